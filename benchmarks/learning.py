"""``python -m benchmarks.learning``: what rounds of learning add to features.

Accuracy by round on training images that were held out, for variants of the metric's
beginning, its power, and the filters; 256 filters, 3000 images (framed digits: 1000).
Nothing of the test is used. Needs the files of ``python -m benchmarks.accuracy
--linear`` and scikit-learn 1.9, whose callbacks see the model after every round.
"""

import argparse
from pathlib import Path

import numpy as np

from skconvrfm import ConvRFMClassifier

from .harness import format_table, report
from .linear import FEATURES
from .problems import DATA, LARGE

N_HELD_OUT = 1000
N_ROUNDS = 2
GAUSSIAN = {"filters": "gaussian", "initial_metric": "identity", "threshold": 0.0}
VARIANTS = {
    "whitened patches": {},
    "power ¼": {"agop_power": 0.25},
    "power ⅛": {"agop_power": 0.125},
    "power 1": {"agop_power": 1.0},
    "patches, identity": {"initial_metric": "identity"},
    "Gaussian, identity": GAUSSIAN,
    "Gaussian, whitened": {"filters": "gaussian"},
    "1024 filters": {"n_filters": 1024},
    "AGOP of all images": {"agop_samples": None},
    "patches of 11×11": {"patch_size": 11, "pool_grid": (2, 2)},
    "patches of 3×3": {"patch_size": 3, "n_filters": 128},
    "and a layer on them": {"patch_size": 3, "n_filters": 128, "feature_layers": 2},
}


class Scores:
    """A callback of scikit-learn that scores the model of every round."""

    def __init__(self, X, y):
        self._X, self._y, self.accuracies = X, y, []

    def setup(self, estimator, context):
        """Nothing to prepare."""

    def on_fit_task_begin(self, estimator, context, **_):
        """Nothing to do."""

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None, **_):
        """Score the model after a round."""
        if context.task_name == "round":
            self.accuracies.append(fitted_estimator.score(self._X, self._y))

    def teardown(self, estimator, context):
        """Nothing to put away."""


def load(problem, folder):
    """Training images to fit on and others of them to judge by."""
    X, y, _, _ = LARGE[problem].load(folder, 0)
    if LARGE[problem].redrawn:  # all are trained on: another draw judges
        X_other, y_other, _, _ = LARGE[problem].load(folder, 99)
    else:
        X_other, y_other = X[-N_HELD_OUT:], y[-N_HELD_OUT:]
        X, y = X[:3000], y[:3000]
    return X, y, X_other, y_other


def measure(problem, variant, folder):
    """Accuracy and GCV by round.

    Returns
    -------
    dict of list
    """
    X, y, X_other, y_other = load(problem, folder)
    scores = Scores(X_other, y_other)
    model = ConvRFMClassifier(
        method="features",
        n_rounds=N_ROUNDS,
        selection="last",
        **{"n_filters": 256, **FEATURES[problem], **VARIANTS[variant]},
    )
    model.set_callbacks(scores).fit(X, y)
    # Of the last layer.
    accuracies = scores.accuracies[-N_ROUNDS - 1 :]
    return {"accuracy": accuracies, "gcv": model.history_["gcv"].tolist()}


def make_table(problem, results):
    """One line a variant."""
    rows = [
        [
            variant,
            " → ".join(f"{100 * value:.1f}" for value in result["accuracy"]),
            " → ".join(f"{value:.3f}" for value in result["gcv"]),
            str(int(np.argmin(result["gcv"]))),
        ]
        for variant, result in results.items()
    ]
    return format_table([problem, "accuracy by round", "GCV", "least GCV"], rows)


def main(argv=None):
    """Run the variants and print a table for each problem."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the files")
    parser.add_argument("--problems", nargs="+", choices=LARGE, default=list(LARGE))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args(argv)
    if not options.data.is_dir():
        parser.error(f"--data {options.data} is no folder; pass the one with the files")
    results = {}
    for problem in options.problems:
        results[problem] = {}
        for variant in options.variants:
            result = measure(problem, variant, options.data)
            results[problem][variant] = result
            print(problem, variant, result, flush=True)
    tables = [make_table(*item) for item in results.items()]
    report(tables, {"learning": results}, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
