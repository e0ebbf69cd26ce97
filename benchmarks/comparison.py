"""``python -m benchmarks.comparison``: everybody on the same few images.

Ours by default, with searched layers and with a kernel of images, fixed and learned,
beside xRFM, an SVC, a random forest, gradient boosting, scattering with a linear model,
and two convolutional networks trained with skorch. All learn from the same rows of four
data sets. Each has four candidates, which are compared on the same fifth of the
training images of the first draw; other draws take what was chosen there. Then all
training images are fitted, and the test images are predicted, once. Nobody mirrors or
otherwise augments.

What is measured goes to a file line by line, and what is there already is not measured
again: an interrupted run goes on, and several may share the work. Run it with
``OMP_NUM_THREADS=1``, so that everybody has one thread.
"""

from dataclasses import dataclass
from functools import cache
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
from .rivals import ConvNet, Peers, RecursiveFeatureMachine, Scattering

SETTINGS = ("n_train", "n_test")  # options that a result depends on
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


def ours(label, machine, n_rounds, grid):
    """Return what makes one of our rows; GCV chooses ridge and round in every fit."""
    options = dict(zip(("kernel", "features"), machine, strict=True))

    def row(image_shape, _):
        model = ConvRFMClassifier(
            **options, n_rounds=n_rounds, image_shape=image_shape, random_state=0
        )
        return Row(label, model, grid)

    return row


LAYERS = {
    "features": [
        "auto",
        [machines.ARTICLES],
        machines.photographs(mirror=False)[1],
        machines.objects_in_noise()[1],
    ]
}
IMAGES = [
    {"kernel__patch_size": [3], "kernel__depth": [1, 3]},
    {"kernel__patch_size": [5, 7], "kernel__depth": [1]},
]


def xrfm(_, peers):
    """Return xRFM on pixels."""
    adaptive = {"bandwidth_mode": ["adaptive"], "bandwidth": [3.0]}
    grid = [
        {"diag": [True, False]},
        {"diag": [True], **adaptive},
        {"diag": [False], "standardize": [True], **adaptive},
    ]
    return Row("xRFM", RecursiveFeatureMachine(peers), grid)


def svc(*_):
    """Return an SVC of pixels as they are, or standardised."""
    grid = [
        {"svc__C": [3, 10]},
        {"svc__C": [10], "svc__gamma": [2e-2]},
        {"svc__C": [10], "scale": [StandardScaler()]},
    ]
    model = Pipeline([("scale", None), ("svc", SVC())])
    return Row("pixels + RBF SVC", model, grid)


def forest(*_):
    """Return a random forest."""
    grid = [
        {"max_features": ["sqrt"], "min_samples_leaf": [1, 3]},
        {"max_features": [0.05, 0.1]},
    ]
    model = RandomForestClassifier(500, random_state=0)
    return Row("pixels + random forest", model, grid)


def boosting(*_):
    """Return gradient boosting on histograms, stopped early."""
    options = {"max_iter": 150, "early_stopping": True, "max_features": 0.1}
    model = HistGradientBoostingClassifier(**options, random_state=0)
    grid = {"learning_rate": [0.1, 0.2], "max_leaf_nodes": [7, 15]}
    return Row("pixels + gradient boosting", model, grid)


def scattering(image_shape, peers):
    """Return one of two linear models on standardised scattering coefficients."""
    model = Pipeline(
        [
            ("scattering", Scattering(peers, image_shape)),
            ("scale", StandardScaler()),
            ("linear", LogisticRegression()),
        ]
    )
    # What lies anywhere in a frame wants coefficients that hardly see where.
    scales = {"scattering__J": [3, 4] if min(image_shape[:2]) > 32 else [2, 3]}
    logistic = LogisticRegression(max_iter=300, tol=1e-3)
    grid = [
        {**scales, "linear": [logistic], "linear__C": [1e-2]},
        {**scales, "linear": [RidgeClassifier()], "linear__alpha": [1e3]},
    ]
    return Row("scattering + linear", model, grid)


def network(image_shape, _):
    """Return a small convolutional network."""
    grid = [{"cells": [None, 1, 2]}, {"cells": [1], "lr": [1e-2], "epochs": [40]}]
    return Row("network, skorch", ConvNet(image_shape, epochs=20, batch_size=32), grid)


def residual(image_shape, _):
    """Return a wide residual network (WRN-16-2), with a recipe for few images.

    Small batches, many epochs and strong decay are what such networks are best with on
    few images (Brigato et al., arXiv:2108.13122).
    """
    grid = {"lr": [1e-3, 3e-3], "weight_decay": [0.05, 0.5]}
    model = ConvNet(image_shape, residual=True, epochs=100, batch_size=10)
    return Row("wide residual network", model, grid)


OURS = {
    "default": ours("Gaussian of layers, default", machines.DEFAULT, 1, {}),
    "layers-fixed": ours("Gaussian of layers, fixed", machines.DEFAULT, 0, LAYERS),
    "layers-learned": ours("Gaussian of layers, learned", machines.DEFAULT, 1, LAYERS),
    "ntk-fixed": ours("ConvNTK of images, fixed", machines.EXACT, 0, IMAGES),
    "ntk-learned": ours("ConvNTK of images, learned", machines.EXACT, 2, IMAGES),
}
ROWS = {
    "svc": svc,
    "forest": forest,
    "boosting": boosting,
    "scattering": scattering,
    "xrfm": xrfm,
    "network": network,
    "residual": residual,
    **OURS,
}
PEERS = {"scattering": "kymatio", "xrfm": "xrfm"}


# --------------------------------------------------------------------- measuring


def measure_all(options, results):
    """Measure what is missing: all rows of a draw, then the next."""
    sizes = [getattr(options, name) for name in SETTINGS]

    @cache
    def load(problem, draw):
        X, y, X_test, y_test = DRAWN[problem](options.data, draw, *sizes)
        flat, flat_test = (images.reshape(len(images), -1) for images in (X, X_test))
        data = {"X": flat, "y": y, "X_test": flat_test, "y_test": y_test}
        return np.atleast_3d(X[0]).shape, data

    with Peers() as peers:
        for name in PEERS.keys() & set(options.only):
            peers.start(PEERS[name])  # before anything is measured
        for draw, problem, name in product(
            range(options.draws), options.problems, options.only
        ):
            shape, data = load(problem, draw)
            row, (_, first) = ROWS[name](shape, peers), load(problem, 0)
            measure_row(results, (problem, name), row, draw, data, first)


def measure_row(results, name, row, draw, data, first):
    """Search on the first draw, once; fit and predict another."""
    searched = results.once((*name, None), lambda: search(row, first))
    model = row.seeded(draw, **chosen(row, searched))
    results.once((*name, draw), lambda: fit_and_score(model, data, draw))


def search(row, data):
    """Return the time of the search, what it chose, and what it tried."""
    part = StratifiedShuffleSplit(1, test_size=0.2, random_state=0)
    search = GridSearchCV(row.seeded(0), row.grid, cv=part, refit=False)
    found = _named("search", timed(search.fit, data["X"], data["y"])[0])
    scores = search.cv_results_["mean_test_score"].tolist()
    tried = [_plain(parameters) for parameters in search.cv_results_["params"]]
    found["chosen"] = _plain(search.best_params_)
    return found | {"tried": list(zip(tried, scores, strict=True))}


def chosen(row, searched):
    """Return the parameters that a search chose, as objects of the grid."""
    scores = [score for _, score in searched["tried"]]
    return ParameterGrid(row.grid)[int(np.argmax(scores))]


def fit_and_score(model, data, seed):
    """Return the accuracy, and the times of fit and prediction."""
    fitting, _ = timed(model.fit, data["X"], data["y"])
    predicting, predicted = timed(model.predict, data["X_test"])
    accuracy = float(np.mean(predicted == data["y_test"]))
    times = _named("fit", fitting) | _named("predict", predicting)
    return {"seed": seed, "accuracy": accuracy, **times}


def _named(name, times):
    return {f"{name}_{key}": value for key, value in times.items()}


def _plain(parameters):
    """Return parameters as JSON has them; estimators and such as text."""
    simple = int | float | str | bool | None
    return {k: v if isinstance(v, simple) else str(v) for k, v in parameters.items()}


# ------------------------------------------------------------------------ tables


def summarize(records, problem):
    """Return accuracies in per cent and mean seconds by row, the best first."""
    rows = []
    for name in ROWS:
        key = problem, name
        draws = sorted(k[2] for k in records if k[:2] == key and k[2] is not None)
        if not draws:
            continue
        runs = [records[(*key, draw)] for draw in draws]
        means = {
            label: float(np.mean([run[clock] for run in runs]))
            for label, clock in (
                ("fit", "fit_cpu_seconds"),
                ("predict", "predict_cpu_seconds"),
                ("wall", "fit_seconds"),
            )
        }
        search = records[(*key, None)]["search_cpu_seconds"]
        accuracies = [100 * run["accuracy"] for run in runs]
        row = {"row": name, "label": ROWS[name]((16, 16, 1), None).label}
        rows.append({**row, "accuracies": accuracies, "search": search, **means})
    return sorted(rows, key=lambda row: -np.mean(row["accuracies"]))


def make_table(records, problem):
    """Return the table of a problem."""
    rows = []
    for row in summarize(records, problem):
        mean, each = mean_and_each(row["accuracies"])
        seconds = (f"{row[key]:.1f} s" for key in ("search", "fit", "predict", "wall"))
        rows.append([row["label"], f"{mean} %", each, *seconds])
    headers = ["accuracy", "by draw", "search", "fit", "predict", "fit, wall"]
    return format_table([problem, *headers], rows)


def list_choices(records):
    """Return what the searches chose, as a table."""
    rows = []
    for problem, name, draw in sorted(records, key=lambda key: key[:2]):
        if draw is None:
            # Shapes larger than 32 pixels, of framed digits, have other scales.
            shape = (42, 42, 1) if problem == "framed MNIST" else (28, 28, 1)
            best = chosen(ROWS[name](shape, None), records[problem, name, None])
            words = [
                f"{key}={machines.describe(value)}"
                for key, value in sorted(best.items())
            ]
            rows.append([problem, name, ", ".join(words) or "nothing searched"])
    return format_table(["data", "row", "chosen"], rows)


def draw_figure(path, records, problems):
    """Draw accuracies over processor seconds of search and fit, a panel a problem."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained", facecolor="white")
    for panel, problem in zip(figure.subplots(2, 2).ravel(), problems, strict=False):
        for row in summarize(records, problem):
            at = row["search"] + row["fit"], np.mean(row["accuracies"])
            panel.plot(*at, "oC3" if row["row"] in OURS else "sC7")
            offset = {"xytext": (5, 2), "textcoords": "offset points", "fontsize": 8}
            panel.annotate(row["row"], at, **offset)
        panel.set(title=problem, xscale="log")
        panel.margins(x=0.25, y=0.12)
        panel.grid(alpha=0.3)
    figure.supxlabel("processor seconds of search and fit")
    figure.supylabel("test accuracy, %")
    figure.savefig(path)


def measure(options):
    """Measure what is missing, and return tables of all that is measured."""
    settings = {key: getattr(options, key) for key in SETTINGS}
    results = Results(options.results, KEY, settings)
    if not options.tables:
        measure_all(options, results)
    records = results.read()
    tables = [make_table(records, problem) for problem in options.problems]
    if options.figure:
        draw_figure(options.figure, records, options.problems)
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
        "--tables": {"action": "store_true", "help": "measure nothing"},
        "--figure": {"metavar": "FILE", "help": "draw the picture there"},
    },
)

if __name__ == "__main__":
    raise SystemExit(main())
