"""``python -m benchmarks.selection``: optimism of the criteria of a fit.

For machines whose last metric has d entries a side and that learn from n images: the
error that GCV, leave-one-out and held-out rows say a round has, over the error that it
has on other images, before and after rounds that learned from the same labels; and the
accuracy of the machine that each of them chooses. Needs ``cifar10_5000_2000.npz``.
"""

import argparse
from pathlib import Path

import numpy as np

from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures

from .harness import DATA, format_table, report
from .models import with_layer_below

FILE = DATA / "cifar10_5000_2000.npz"
N_OTHER = 1000
SELECTIONS = ("gcv", "loo", "holdout")
# Images, filters of a layer, layers: d is 108 (6×6 patches of pixels) in one layer,
# 9 · filters in the second.
CASES = (
    (500, 64, 1),
    (2000, 64, 1),
    (500, 32, 2),
    (2000, 32, 2),
    (500, 128, 2),
    (2000, 128, 2),
)


def load(path, n_images, n_other=N_OTHER):
    """Return training images to fit on, and others of them to judge by."""
    with np.load(path, allow_pickle=False) as archive:
        X, y = archive["X_train"].astype(np.float32) / 255, archive["y_train"]
    return X[:n_images], y[:n_images], X[-n_other:], y[-n_other:]


def squared_error(model, X, y):
    """Return the squared error of a fit: summed over classes, the mean over images."""
    targets = 2.0 * (y[:, None] == model.classes_) - 1
    return float(((model.decision_function(X) - targets) ** 2).sum(1).mean())


def make_model(n_filters, n_layers, **parameters):
    """Return a linear machine on one feature layer, or two."""
    # Small patches above another layer, so that d is 9 times the filters.
    layer = ConvFeatures(n_filters, patch_size=6 if n_layers == 1 else 3)
    features = [layer] if n_layers == 1 else with_layer_below(layer)
    return ConvRFMClassifier("linear", features, **parameters)


def measure(path, n_images, n_filters, n_layers, n_rounds=1):
    """Measure the criteria of rounds, and the errors that they estimate.

    Returns
    -------
    dict
        ``ratios``: by criterion, its value over the error on other images, one a round;
        ``accuracies`` on those, one a round; ``chosen``: the accuracy of the machine
        that each criterion chooses.
    """
    X, y, X_other, y_other = load(path, n_images)
    ratios = {name: [] for name in SELECTIONS}
    accuracies = []
    for index in range(n_rounds + 1):
        model = make_model(n_filters, n_layers, n_rounds=index, selection="last")
        d = len(model.fit(X, y).learned_layers_[-1].patch_agop_)
        error = squared_error(model, X_other, y_other)
        accuracies.append(model.score(X_other, y_other))
        history = model.history_
        ratios["gcv"].append(history["gcv"][-1] / error)
        ratios["loo"].append(history["loo_loss"][-1] / error)
    chosen = {}
    for name in SELECTIONS:
        model = make_model(n_filters, n_layers, n_rounds=n_rounds, selection=name)
        chosen[name] = model.fit(X, y).score(X_other, y_other)
        if name == "holdout":
            ratios[name] = list(_held_out_ratios(model, X_other, y_other))
    return {"d": d, "ratios": ratios, "accuracies": accuracies, "chosen": chosen}


def _held_out_ratios(model, X, y):
    """Yield the held-out loss of the chosen round over the error after the refit."""
    yield model.history_["holdout_loss"][model.best_round_] / squared_error(model, X, y)


def make_table(results):
    """Return a table with one line a case."""
    rows = []
    for (n_images, _, n_layers), case in results:
        rows.append(
            [
                str(n_images),
                str(n_layers),
                str(case["d"]),
                *(
                    " → ".join(f"{ratio:.2f}" for ratio in case["ratios"][name])
                    for name in SELECTIONS
                ),
                " → ".join(f"{100 * accuracy:.1f}" for accuracy in case["accuracies"]),
                *(f"{100 * case['chosen'][name]:.1f}" for name in SELECTIONS),
            ]
        )
    headers = [
        *("n", "layers", "d"),
        *(f"{name} / error" for name in SELECTIONS),
        "accuracy by round",
        *(f"by {name}" for name in SELECTIONS),
    ]
    return format_table(headers, rows)


def main(argv=None):
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.selection", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", type=Path, default=FILE, help="the file")
    parser.add_argument("--cases", type=int, default=len(CASES), help="how many")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args(argv)
    if not options.data.is_file():
        parser.error(f"--data {options.data} is no file; pass that of CIFAR-10")
    results = []
    for case in CASES[: options.cases]:
        results.append((case, measure(options.data, *case)))
        print(*results[-1], flush=True)
    report([make_table(results)], {"selection": results}, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
