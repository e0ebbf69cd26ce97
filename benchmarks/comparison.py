"""``python -m benchmarks.comparison``: everybody on the same few images.

Ours by default, with searched layers and with a kernel of images, fixed and learned,
beside xRFM, an SVC, a random forest, gradient boosting, scattering with a linear model,
and a convolutional network trained with skorch. All learn from the same rows of four
data sets. Each has four candidates, which are compared on the same fifth of the
training images of the first draw; other draws take what was chosen there. Then all
training images are fitted, and the test images are predicted, once. Nobody mirrors or
otherwise augments. What is measured goes to a file line by line, and is not measured
again; ``--draws 0`` makes the tables of what is there. Run it with
``OMP_NUM_THREADS=1``, so that everybody has one thread.
"""

from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, ParameterGrid, StratifiedShuffleSplit
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from skconvrfm import ConvRFMClassifier

from . import machines
from .harness import RESULTS, Results, format_table, mean_and_each, program, timed
from .problems import DRAWN
from .rivals import ConvNet, RecursiveFeatureMachine, Scattering

KEY = "problem", "row", "draw"  # what names a result; the draw of a search is None


@dataclass(frozen=True)
class Row:
    """A machine, and the grid of its candidates."""

    label: str
    model: BaseEstimator
    grid: dict | list

    def seeded(self, seed, **parameters):
        """Return a copy with some parameters, and with a seed if it has one."""
        model = clone(self.model).set_params(**parameters)
        seed = {"random_state": seed} if "random_state" in model.get_params() else {}
        return model.set_params(**seed)


def rows_for(image_shape):
    """Return the rows by name, for images of a shape."""

    def ours(label, machine, n_rounds, grid):
        options = dict(zip(("kernel", "features"), machine, strict=True))
        options |= {"n_rounds": n_rounds, "image_shape": image_shape}
        return Row(label, ConvRFMClassifier(**options, random_state=0), grid)

    photographs, objects = (
        machines.photographs(mirror=False),
        machines.objects_in_noise(),
    )
    layers = {"features": ["auto", [machines.ARTICLES], photographs[1], objects[1]]}
    images = [
        {"kernel__patch_size": [3], "kernel__depth": [1, 3]},
        {"kernel__patch_size": [5, 7], "kernel__depth": [1]},
    ]
    pixels = Pipeline([("scale", None), ("svc", SVC())])
    svc = [
        {"svc__C": [3, 10]},
        {"svc__C": [10], "svc__gamma": [2e-2]},
        {"svc__C": [10], "scale": [StandardScaler()]},
    ]
    leaves = {"max_features": ["sqrt"], "min_samples_leaf": [1, 3]}
    early = {"max_iter": 150, "early_stopping": True, "max_features": 0.1}
    boosting = HistGradientBoostingClassifier(**early, random_state=0)
    steps = [("scattering", Scattering(image_shape)), ("scale", StandardScaler())]
    scattering = Pipeline([*steps, ("linear", LogisticRegression())])
    # What lies anywhere in a frame wants coefficients that hardly see where.
    scales = {"scattering__J": [3, 4] if min(image_shape[:2]) > 32 else [2, 3]}
    logistic = LogisticRegression(max_iter=300, tol=1e-3)
    linear = [
        {**scales, "linear": [logistic], "linear__C": [1e-2]},
        {**scales, "linear": [RidgeClassifier()], "linear__alpha": [1e3]},
    ]
    adaptive = {"bandwidth_mode": ["adaptive"], "bandwidth": [3.0]}
    xrfm = [
        {"diag": [True, False]},
        {"diag": [True], **adaptive},
        {"diag": [False], "standardize": [True], **adaptive},
    ]
    network = ConvNet(image_shape, epochs=20, batch_size=32)
    cells = [{"cells": [None, 1, 2]}, {"cells": [1], "lr": [1e-2], "epochs": [40]}]
    return {
        "svc": Row("pixels + RBF SVC", pixels, svc),
        "forest": Row(
            "pixels + random forest",
            RandomForestClassifier(500, random_state=0),
            [leaves, {"max_features": [0.05, 0.1]}],
        ),
        "boosting": Row(
            "pixels + gradient boosting",
            boosting,
            {"learning_rate": [0.1, 0.2], "max_leaf_nodes": [7, 15]},
        ),
        "scattering": Row("scattering + linear", scattering, linear),
        "xrfm": Row("xRFM", RecursiveFeatureMachine(), xrfm),
        "network": Row("network, skorch", network, cells),
        "default": ours("Gaussian of layers, default", machines.DEFAULT, 1, {}),
        "layers-fixed": ours("Gaussian of layers, fixed", machines.DEFAULT, 0, layers),
        "layers-learned": ours(
            "Gaussian of layers, learned", machines.DEFAULT, 1, layers
        ),
        "ntk-fixed": ours("ConvNTK of images, fixed", machines.EXACT, 0, images),
        "ntk-learned": ours("ConvNTK of images, learned", machines.EXACT, 2, images),
    }


ROWS = rows_for((28, 28, 1))


def measure_all(options, results):
    """Measure what is missing: all rows of a draw, then the next."""

    @cache
    def load(problem, draw):
        X, y, X_test, y_test = DRAWN[problem](
            options.data, draw, options.n_train, options.n_test
        )
        flat, flat_test = (images.reshape(len(images), -1) for images in (X, X_test))
        data = {"X": flat, "y": y, "X_test": flat_test, "y_test": y_test}
        return np.atleast_3d(X[0]).shape, data

    everything = product(range(options.draws), options.problems, options.only)
    for draw, problem, name in everything:
        shape, data = load(problem, draw)
        row, (_, first) = rows_for(shape)[name], load(problem, 0)
        # A search on the first draw, once; then one fit.
        searched = results.once((problem, name, None), partial(search, row, first))
        model = row.seeded(draw, **chosen(row, searched))
        results.once((problem, name, draw), partial(fit_and_score, model, data))


def search(row, data):
    """Return the time of the search, what it chose, and what it tried."""
    part = StratifiedShuffleSplit(1, test_size=0.2, random_state=0)
    search = GridSearchCV(row.seeded(0), row.grid, cv=part, refit=False)
    times, _ = timed(search.fit, data["X"], data["y"])
    tried = map(machines.describe, search.cv_results_["params"])
    scores = search.cv_results_["mean_test_score"].tolist()
    return named("search", times) | {"tried": list(zip(tried, scores, strict=True))}


def chosen(row, searched):
    """Return the parameters that a search chose, as objects of the grid."""
    scores = [score for _, score in searched["tried"]]
    return ParameterGrid(row.grid)[int(np.argmax(scores))]


def fit_and_score(model, data):
    """Return the accuracy, and the times of fit and prediction."""
    fitting, _ = timed(model.fit, data["X"], data["y"])
    predicting, predicted = timed(model.predict, data["X_test"])
    accuracy = float(np.mean(predicted == data["y_test"]))
    times = named("fit", fitting) | named("predict", predicting)
    return {"accuracy": accuracy, **times}


def named(name, times):
    """Return times with a name before those of the clocks."""
    return {f"{name}_{key}": value for key, value in times.items()}


def summarize(records, problem):
    """Return accuracies in per cent and mean seconds by row, the best first."""
    rows = []
    for name in ROWS:
        key = problem, name
        runs = [records[k] for k in sorted(records, key=str) if k[:2] == key]
        runs = [run for run in runs if run["draw"] is not None]
        if runs:
            times = ("fit_cpu_seconds", "predict_cpu_seconds", "fit_seconds")
            times = [float(np.mean([run[clock] for run in runs])) for clock in times]
            times = [records[(*key, None)]["search_cpu_seconds"], *times]
            rows.append((name, [100 * run["accuracy"] for run in runs], times))
    return sorted(rows, key=lambda row: -np.mean(row[1]))


def make_table(records, problem):
    """Return the table of a problem."""
    rows = []
    for name, accuracies, times in summarize(records, problem):
        mean, each = mean_and_each(accuracies)
        seconds = (f"{one:.1f} s" for one in times)
        rows.append([ROWS[name].label, f"{mean} %", each, *seconds])
    headers = ["accuracy", "by draw", "search", "fit", "predict", "fit, wall"]
    return format_table([problem, *headers], rows)


def list_choices(records):
    """Return what the searches chose, as a table."""
    rows = []
    for problem, name, draw in sorted(records, key=str):
        if draw is None:
            # Shapes larger than 32 pixels, of framed digits, have other scales.
            rows_of = rows_for((42, 42, 1)) if problem == "framed MNIST" else ROWS
            best = chosen(rows_of[name], records[problem, name, None])
            rows.append([problem, name, machines.describe(best) or "nothing searched"])
    return format_table(["data", "row", "chosen"], rows)


def measure(options):
    """Measure what is missing, and return tables of all that is measured."""
    settings = {"n_train": options.n_train, "n_test": options.n_test}
    results = Results(options.results, KEY, settings)
    measure_all(options, results)
    records = results.read()
    tables = [make_table(records, problem) for problem in options.problems]
    return [*tables, list_choices(records)], {"comparison": list(records.values())}


main = program(
    measure,
    ROWS,
    draws=3,
    options={
        "--problems": {"nargs": "+", "choices": DRAWN, "default": list(DRAWN)},
        "--n-train": {"type": int, "default": 1000, "help": "training images"},
        "--n-test": {"type": int, "default": 2000, "help": "test images"},
        "--results": {"type": Path, "default": RESULTS / "comparison.jsonl"},
    },
)

if __name__ == "__main__":
    raise SystemExit(main())
