"""``python -m benchmarks.learning``: learned against fixed, layer by layer.

Two feature layers under the Gaussian kernel: filters of no layer, of one or of both
chosen by the AGOP, and metrics learned in the same or in later rounds. Accuracy and
squared error on training images that were held out, 2000 images (framed digits: 1000),
several draws. Nothing of the test is used. Needs ``mnist_5000_2000.npz``,
``fashion_mnist_5000_2000.npz`` and ``cifar10_5000_2000.npz``.
"""

import argparse
import json

import numpy as np

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import make_framed_digits
from skconvrfm.features import ConvFeatures

from .harness import add_data_option, check_data_option, format_table, report
from .models import squared_error
from .problems import read_bytes

# Filters that are drawn for each one kept, of both layers; layers whose metric is
# learned; and rounds.
VARIANTS = {
    "fixed": ((1, 1), (), 0),
    "filters of layer 1 chosen": ((4, 1), (), 1),
    "filters of layer 2 chosen": ((1, 4), (), 1),
    "filters of both chosen": ((4, 4), (), 1),
    "metric of layer 1": ((1, 1), (0,), 1),
    "metric of layer 2": ((1, 1), (1,), 1),
    "metrics of both": ((1, 1), (0, 1), 1),
    "filters of both, metric of layer 2": ((4, 4), (1,), 2),
}
PHOTOGRAPHS = (
    {"n_filters": 96, "patch_size": 5, "pool_size": 2, "pool_overlap": 0.5},
    {"n_filters": 192, "patch_size": 3, "pool_overlap": 0.5},
)
IN_NOISE = (
    {"n_filters": 96, "patch_size": 7, "pool_size": 2},
    {"n_filters": 192, "patch_size": 5, "pool": "norm", "pool_grid": 1},
)
# Files, images to learn from, and the layers.
PROBLEMS = {
    "CIFAR-10": ("cifar10", 2000, PHOTOGRAPHS),
    "Fashion-MNIST": ("fashion_mnist", 2000, PHOTOGRAPHS),
    "MNIST": ("mnist", 2000, PHOTOGRAPHS),
    "framed MNIST": ("mnist", 1000, IN_NOISE),
}
N_HELD_OUT = 2000


def load(problem, draw, folder):
    """Return training images and labels to fit on, and others to judge by."""
    name, n_images, _ = PROBLEMS[problem]
    (X, _), (y, _) = read_bytes(folder / f"{name}_5000_2000.npz")
    rows = np.random.RandomState(draw).permutation(len(X))[: n_images + N_HELD_OUT]
    X, y = X[rows].astype(np.float32) / 255, y[rows]
    if problem == "framed MNIST":
        X = make_framed_digits(X, sigma=1.0, random_state=draw).astype(np.float32)
    return X[:n_images], y[:n_images], X[n_images:], y[n_images:]


def make_model(problem, variant, draw):
    """Return the classifier of a variant."""
    candidates, learning, n_rounds = VARIANTS[variant]
    layers = [
        ConvFeatures(candidates=n, learn=index in learning, agop_power=0.25, **options)
        for index, (n, options) in enumerate(
            zip(candidates, PROBLEMS[problem][2], strict=True)
        )
    ]
    layers[1].set_params(shrinkage=3.0)
    return ConvRFMClassifier(
        "gaussian", layers, n_rounds=n_rounds, selection="last", random_state=draw
    )


def measure(problem, variant, draw, folder):
    """Return the accuracy and the squared error on images held out, and GCV."""
    X, y, X_other, y_other = load(problem, draw, folder)
    model = make_model(problem, variant, draw).fit(X, y)
    return {
        "accuracy": model.score(X_other, y_other),
        "error": squared_error(model, X_other, y_other),
        "gcv": float(model.history_["gcv"][-1]),
    }


def make_table(problem, results):
    """Return a table with one line a variant."""
    rows = []
    for variant, runs in results.items():
        mean = {key: np.mean([run[key] for run in runs]) for key in runs[0]}
        accuracies = " ".join(f"{100 * run['accuracy']:.1f}" for run in runs)
        errors = [f"{mean[key]:.3f}" for key in ("error", "gcv")]
        rows.append([variant, f"{100 * mean['accuracy']:.1f}", accuracies, *errors])
    headers = [problem, "accuracy", "draws", "squared error", "GCV"]
    return format_table(headers, rows)


def main(argv=None):
    """Run the variants and print a table for each problem."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning", description=__doc__.splitlines()[0]
    )
    add_data_option(parser)
    parser.add_argument(
        "--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS)
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args(argv)
    check_data_option(parser, options)
    results = {}
    for problem in options.problems:
        results[problem] = {}
        for variant in options.variants:
            runs = results[problem][variant] = []
            for draw in range(options.draws):
                runs.append(measure(problem, variant, draw, options.data))
                print(problem, variant, json.dumps(runs[-1]), flush=True)
    tables = [make_table(*item) for item in results.items()]
    report(tables, {"learning": results}, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
