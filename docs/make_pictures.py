"""Write the pictures of the README and of the guide: ``python docs/make_pictures.py``.

Needs Matplotlib, and no data but what the package makes.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import make_star
from skconvrfm.display import PatchAGOPDisplay, RoundsDisplay

FOLDER = Path(__file__).parent / "images"
N_TRAIN = 50


def draw_star(path):
    """Images of noise, some with a star, and what is learned from fifty of them."""
    X, y = make_star(550, random_state=0)
    clf = ConvRFMClassifier(depth=1, patch_size=11, n_rounds=2)
    clf.fit(X[:N_TRAIN], y[:N_TRAIN])

    figure = Figure(figsize=(9, 5.6), layout="constrained")
    images, rounds, patterns = figure.subfigures(3, 1, height_ratios=(1, 1.8, 0.9))
    images.suptitle("Noise, and noise with a star in it", fontsize="medium")
    shown = np.concatenate([np.flatnonzero(y == label)[:4] for label in (0, 1)])
    for ax, image in zip(images.subplots(1, len(shown)), X[shown], strict=True):
        ax.imshow(np.clip((1 + image) / 2, 0, 1))
        ax.set(xticks=[], yticks=[])
    RoundsDisplay.from_estimator(clf, ax=rounds.subplots(1, 2))
    patterns.suptitle(
        "What the predictor responds to: eigenvectors of the patch AGOP, their share",
        fontsize="medium",
    )
    PatchAGOPDisplay.from_estimator(clf, fig=patterns)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    draw_star(FOLDER / "star.png")
