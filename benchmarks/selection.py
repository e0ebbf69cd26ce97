"""``python -m benchmarks.selection``: what the criteria of a fit choose, and its price.

Two feature layers under the Gaussian kernel: filters are chosen for round 1, and the
metric of the second layer is learned for round 2. Every criterion picks a ridge and a
round from the training images alone. Its regret is the accuracy on other images of the
ridge and round that are the best there, less that of its pick. Held-out rows judge a
machine that was fitted to the other four fifths. Needs ``mnist_5000_2000.npz``,
``fashion_mnist_5000_2000.npz`` and ``cifar10_5000_2000.npz``.
"""

import argparse
import json
from functools import partial

import numpy as np

from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import Gaussian
from skconvrfm.learning.rounds import Schedule, solve_round

from .harness import add_data_option, check_data_option, format_table, report
from .precision import make_model
from .problems import DRAWN

SIZES = (500, 2000, 5000)
N_ROUNDS = 2
HELD_OUT = 5  # one part of so many
MARGIN = 0.02  # by which a later round must be better
DRAWN_HERE = DRAWN | {"framed MNIST": partial(DRAWN["framed MNIST"], n_test=2000)}


def layers(problem, scale=1):
    """Return two small feature layers for a problem in `DRAWN`."""
    chosen = {"candidates": 3}
    if problem == "framed MNIST":
        first = {"patch_size": 7, "pool_size": 2, **chosen}
        top = {"patch_size": 5, "pool": "norm", "pool_grid": 1, **chosen}
    else:
        first = {"patch_size": 5, "pool_size": 2, "pool_overlap": 0.5, **chosen}
        top = {"patch_size": 3, "pool_overlap": 0.5, **chosen}
    return [
        ConvFeatures(64 * scale, learn=False, **first),
        ConvFeatures(128 * scale, shrinkage=3.0, agop_power=0.25, **top),
    ]


def measure_rounds(X, y, X_other, y_other, features):
    """Return criteria and errors of every round and ridge.

    Returns
    -------
    dict of ndarray, shape (n_rounds + 1, n_alphas)
        ``gcv`` and ``loo``, and ``error`` (squared) and ``accuracy`` on the others.
    """
    model = make_model(X, y, "float32", Gaussian(), features)
    X_other = X_other[..., None] if X_other.ndim == 3 else X_other
    classes = np.unique(y)
    targets = 2.0 * (y_other[:, None] == classes) - 1
    schedule, transforms, multiple, measured = (
        Schedule(N_ROUNDS, 0.5, "gcv"),
        None,
        None,
        [],
    )
    for index in range(N_ROUNDS + 1):
        current = model.with_metric(transforms)
        if multiple is not None:
            current = current.stretched(multiple)
        fitted = solve_round(current, current.design(), schedule, index)
        multiple = fitted.model.multiple
        path = fitted.model.ridge_path(fitted.model.design())
        coef, intercepts = path.coefficients()
        outputs = fitted.model.outputs(X_other, coef) + intercepts
        outputs = outputs.reshape(len(targets), len(path.alphas), -1)
        measured.append(
            {
                "gcv": path.gcv(),
                "loo": path.loo_loss(),
                "error": ((outputs - targets[:, None]) ** 2).sum(2).mean(0),
                "accuracy": (classes[outputs.argmax(2)] == y_other[:, None]).mean(0),
            }
        )
        if index == 0:
            model = model.with_filters()
            transforms = model.initial_transforms
        else:
            transforms = fitted.next_transforms(fitted.patch_agops(), 0.5)
    return {name: np.array([one[name] for one in measured]) for name in measured[0]}


def picks(whole, part):
    """Return the (round, ridge) that every criterion picks, by its name.

    ``whole`` is of all training images, ``part`` of the rest of those held out.
    """
    chosen = {}
    for name, values in (
        ("gcv", whole["gcv"]),
        ("loo", whole["loo"]),
        ("held out", part["error"]),
    ):
        chosen[name] = np.unravel_index(values.argmin(), values.shape)
        if name != "held out":
            best = 0
            for index, value in enumerate(values.min(1)):
                if value < (1 - MARGIN) * values[best].min():
                    best = index
            chosen[f"{name}, margin"] = best, values[best].argmin()
    best = chosen["held out"][0]
    chosen["held out, ridge by loo"] = best, whole["loo"][best].argmin()
    return chosen


def measure(problem, n_images, draw, folder, scale=1):
    """Return the accuracies by round, and the regret of every criterion."""
    X, y, X_other, y_other = DRAWN_HERE[problem](folder, draw, n_images)
    features, n_rest = layers(problem, scale), n_images - n_images // HELD_OUT
    whole = measure_rounds(X, y, X_other, y_other, features)
    part = measure_rounds(X[:n_rest], y[:n_rest], X[n_rest:], y[n_rest:], features)
    accuracy, error = whole["accuracy"], whole["error"]
    result = {"problem": problem, "n": n_images, "draw": draw}
    result["best"] = accuracy.max(1).tolist()
    for name, at in picks(whole, part).items():
        result[name] = {
            "round": int(at[0]),
            "alpha": int(at[1]),
            "regret": float(accuracy.max() - accuracy[at]),
            "error": float(error[at] / error.min()),
        }
    return result


def make_table(results):
    """Return a table of mean regrets with one line a problem and size."""
    names = [name for name in results[0] if isinstance(results[0][name], dict)]
    rows = []
    for key in dict.fromkeys((one["problem"], one["n"]) for one in results):
        runs = [one for one in results if (one["problem"], one["n"]) == key]
        best = 100 * np.mean([one["best"] for one in runs], axis=0)
        row = [key[0], str(key[1]), " → ".join(f"{value:.1f}" for value in best)]
        for name in names:
            regret = 100 * np.mean([one[name]["regret"] for one in runs])
            error = np.mean([one[name]["error"] for one in runs])
            row.append(f"{regret:.1f} ({error:.2f})")
        rows.append(row)
    return format_table(["data", "n", "best by round", *names], rows)


def main(argv=None):
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.selection", description=__doc__.splitlines()[0]
    )
    add_data_option(parser)
    parser.add_argument("--problems", nargs="+", choices=DRAWN, default=list(DRAWN))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--scale", type=int, default=1, help="times as many filters")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args(argv)
    check_data_option(parser, options)
    results = []
    for n_images in options.sizes:
        for problem in options.problems:
            for draw in range(options.draws):
                case = problem, n_images, draw, options.data, options.scale
                results.append(measure(*case))
                print(json.dumps(results[-1]), flush=True)
    report([make_table(results)], {"selection": results}, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
