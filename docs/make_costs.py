"""Measure what a fit costs and draw it for the guide: ``python docs/make_costs.py``.

One round on random images of 28×28 pixels, float32, taken apart by ``history_``. Prints
the constants that "What costs what" quotes. Takes about a minute on two cores.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from skconvrfm import ConvRFMClassifier

PATH = Path(__file__).parent / "images" / "costs.png"
SIDE = 28
PARTS = ("kernel", "solve", "agop")
AGOP_IMAGES = 20
REPEATS = 1


def seconds(n, depth=3, n_classes=10):
    """Seconds of the parts of one round, by name."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, SIDE, SIDE)).astype(np.float32)
    y = np.arange(n) % n_classes
    clf = ConvRFMClassifier(
        method="exact", depth=depth, n_rounds=1, agop_samples=AGOP_IMAGES
    )
    runs = [clf.fit(X, y).history_ for _ in range(REPEATS)]
    # Of round 1, for the kernel is then measured with a patch transform.
    rounds = {"kernel": 1, "solve": 1, "agop": 0}
    return {
        part: float(np.median([run[f"seconds_{part}"][rounds[part]] for run in runs]))
        for part in PARTS
    }


def locations(depth):
    """Locations of all layers."""
    return sum((SIDE - 2 * layer) ** 2 for layer in range(1, depth + 1))


def constants(n, measured):
    """Nanoseconds a unit of each part, at n images and depth 3."""
    units = {
        "kernel": n**2 / 2 * locations(3),
        "solve": n**3,
        "agop": n * AGOP_IMAGES * locations(3),
    }
    return {part: 1e9 * measured[part] / unit for part, unit in units.items()}


def draw(panels):
    """One panel a question: (label, values, measured seconds)."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for ax, (label, values, measured) in zip(
        figure.subplots(1, len(panels)), panels, strict=True
    ):
        for part in PARTS:
            ax.plot(values, [m[part] for m in measured], marker="o", label=part)
        ax.set(xlabel=label, ylabel="Seconds a round", xscale="log", yscale="log")
        ax.set_xticks(values, values)
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    ax.legend()
    figure.savefig(PATH, dpi=110)


def main():
    """Measure, print and draw."""
    seconds(250)  # whatever is built and loaded at the first fit
    images, depths, classes = (250, 500, 1000, 2000), (1, 2, 3, 4), (2, 10, 50, 100)
    panels = [
        ("Images", images, [seconds(n) for n in images]),
        ("Depth, 500 images", depths, [seconds(500, depth=d) for d in depths]),
        ("Classes, 500 images", classes, [seconds(500, n_classes=c) for c in classes]),
    ]
    for label, values, measured in panels:
        for value, parts in zip(values, measured, strict=True):
            print(label, value, {part: round(s, 4) for part, s in parts.items()})
    print("ns a unit at 2000 images:", constants(images[-1], panels[0][2][-1]))
    draw(panels)


if __name__ == "__main__":
    main()
