"""``python -m benchmarks.comparison``: everybody on the same few images.

Ours with the recommended layers, with layers that are searched and with a kernel of
images, fixed and learned, beside xRFM, an SVC, a random forest, gradient boosting,
scattering with a linear model, and two convolutional networks trained with skorch, a
small one and a wide residual one. All learn from the same rows of four data sets. Each
has as many candidates, `BUDGET`, searched with the same fifth of the training images of
the first draw held out; other draws take what was chosen there. Ours by default has
one, and no search. Then all training images are fitted, and the test images are
predicted, once. Nobody mirrors or otherwise augments.

What is measured goes to a file line by line, and what is there already is not measured
again: an interrupted run goes on, and several may share the work. Run it with
``OMP_NUM_THREADS=1``, so that everybody has one thread.
"""

import argparse
import re
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import ParameterGrid
from sklearn.preprocessing import StandardScaler

from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian

from . import rivals
from .harness import (
    ROOT,
    Results,
    add_data_option,
    check_data_option,
    describe_machine,
    format_table,
    report,
)
from .linear import SCATTERING, coefficients, fit_and_score, search_grid
from .peers.client import PeerWorker, build_environment, requirements
from .problems import DRAWN
from .recommended import objects_in_noise, photographs
from .rivals import Rival

RESULTS = ROOT / "benchmarks" / ".results" / "comparison.jsonl"
XRFM = "xrfm"
PEERS = (XRFM, SCATTERING)
# Candidates of everybody, and rounds that ours and xRFM have at most.
BUDGET = 4
ROUNDS = 2
# The parameters of the command that a result depends on.
SETTINGS = ("n_train", "n_test")
# What names a result; the draw of a search is None.
KEY = "problem", "row", "draw"


# -------------------------------------------------------------------- candidates


def of_images(n_rounds):
    """Return the row of our kernel of images.

    GCV chooses ridge and round in every fit, here and in `of_layers`.
    """
    grid = [
        {"kernel__patch_size": [3], "kernel__depth": [1, 3]},
        {"kernel__patch_size": [5, 7], "kernel__depth": [1]},
    ]
    label = f"ConvNTK of images, {_kind(n_rounds)}"
    return _ours(label, ConvNTK(metric="auto"), None, n_rounds, grid)


def of_layers(n_rounds):
    """Return the row of a Gaussian kernel of our layers."""
    one = ConvFeatures(
        512, patch_size=9, pool_grid=5, pool_overlap=0.5, candidates=4, learn=False
    )
    machines = photographs(mirror=False), objects_in_noise()
    grid = {"features": ["auto", [one], *(layers for _, layers in machines)]}
    label = f"Gaussian of layers, {_kind(n_rounds)}"
    return _ours(label, Gaussian(), "auto", n_rounds, grid)


def _ours(label, kernel, features, n_rounds, grid):
    """Return a function that makes a row of ours for the shape of an image."""

    def row(image_shape, *_):
        model = ConvRFMClassifier(
            kernel, features, n_rounds=n_rounds, image_shape=image_shape
        )
        return Rival(label, model, grid)

    return row


def _kind(n_rounds):
    return "learned" if n_rounds else "fixed"


def xrfm(image_shape, extract, compute):
    """Return xRFM on pixels, with a metric of a matrix or of a weight a pixel."""
    model = rivals.RecursiveFeatureMachine(compute, rounds=ROUNDS)
    adaptive = {"bandwidth_mode": ["adaptive"], "bandwidth": [3.0]}
    grid = [
        {"diag": [True, False]},
        {"diag": [True], **adaptive},
        {"diag": [False], "standardize": [True], **adaptive},
    ]
    return Rival("xRFM", model, grid)


def svc(*_):
    """Return the row of `rivals` with a grid of four."""
    grid = [
        {"svc__C": [3, 10]},
        {"svc__C": [10], "svc__gamma": [2e-2]},
        {"svc__C": [10], "scale": [StandardScaler()]},
    ]
    return replace(rivals.kernel_svc(), grid=grid)


def forest(*_):
    """Return the row of `rivals` with a grid of four, and with one thread."""
    row = rivals.forest()
    grid = [
        {"max_features": ["sqrt"], "min_samples_leaf": [1, 3]},
        {"max_features": [0.05, 0.1]},
    ]
    return replace(row, model=row.model.set_params(n_jobs=None), grid=grid)


def boosting(*_):
    """Return the row of `rivals` with a grid of four."""
    grid = {"learning_rate": [0.1, 0.2], "max_leaf_nodes": [7, 15]}
    return replace(rivals.boosting(), grid=grid)


def scattering(image_shape, extract, compute):
    """Return the row of `rivals` with scales, and one of the two linear models."""
    row = rivals.scattering(image_shape, extract)
    logistic, ridge = row.grid
    scales = {"scattering__J": row.grid[0]["scattering__J"][-2:]}
    grid = [
        {**logistic, **scales, "linear__C": [1e-2]},
        {**ridge, **scales, "linear__alpha": [1e3]},
    ]
    return replace(row, grid=grid)


def network(image_shape, *_):
    """Return the row of `rivals`, trained for longer and in smaller steps."""
    row = rivals.network(image_shape, None)
    grid = [
        {"cells": [None, 1, 2]},
        {"cells": [1], "lr": [1e-2], "epochs": [40]},
    ]
    model = row.model.set_params(epochs=20, batch_size=32)
    return replace(row, label="network, skorch", model=model, grid=grid)


OURS = {
    "default": _ours("Gaussian of layers, default", Gaussian(), "auto", 1, {}),
    "layers-fixed": of_layers(0),
    "layers-learned": of_layers(1),
    "ntk-fixed": of_images(0),
    "ntk-learned": of_images(ROUNDS),
}
ROWS = {
    "svc": svc,
    "forest": forest,
    "boosting": boosting,
    "scattering": scattering,
    "xrfm": xrfm,
    "network": network,
    "residual": rivals.residual_network,
    **OURS,
}


def make_row(name, image_shape, extract, compute):
    """Return a model with its candidates, judged by one part that is held out.

    Parameters
    ----------
    name : str
        A name in `ROWS`.
    image_shape : tuple of int
        Of an image.
    extract : callable
        ``extract(images, J)`` returns scattering coefficients.
    compute : callable
        The function that `rivals.RecursiveFeatureMachine` calls.

    Returns
    -------
    Rival
    """
    return replace(ROWS[name](image_shape, extract, compute), n_jobs=None, n_parts=1)


# --------------------------------------------------------------------- measuring


@contextmanager
def peers(names):
    """Yield the functions that let kymatio and xRFM compute, in workers of their own.

    Environments are built and workers started before anything is measured.
    """
    with ExitStack() as stack:
        extract = stack.enter_context(coefficients())
        if "scattering" in names:
            build_environment(SCATTERING)
            extract(np.zeros((1, 16, 16, 1), np.float32), 1)
        compute = None
        if "xrfm" in names:
            build_environment(XRFM)
            worker = stack.enter_context(PeerWorker(XRFM))
            worker.ask(task="info")

            def compute(arrays, **request):
                return worker.compute(arrays, **request)[1]

        yield extract, compute


def measure(options, results):
    """Measure what the command line asks for: all rows of a draw, then the next."""
    load = cache(
        lambda problem, draw: _parts(
            DRAWN[problem](options.data, draw, options.n_train, options.n_test)
        )
    )
    with peers(options.only) as (extract, compute):
        for draw, problem, name in product(
            range(options.draws), options.problems, options.only
        ):
            shape, parts = load(problem, draw)
            row = make_row(name, shape, extract, compute)
            measure_row(results, problem, name, row, draw, parts, load(problem, 0)[1])


def measure_row(results, problem, name, row, draw, parts, first_parts):
    """Search on the first draw, once; fit and predict another."""
    searched = results.once(
        (problem, name, None), lambda: search_grid(row, first_parts, 0)[1]
    )
    scores = [score for _, score in searched["tried"]]
    chosen = ParameterGrid(row.grid)[int(np.argmax(scores))]
    model = row.seeded(draw, **chosen)
    results.once((problem, name, draw), lambda: fit_and_score(model, parts, draw))


def _parts(data):
    """Return the shape of an image, and rows and labels of both parts."""
    X_train, y_train, X_test, y_test = data
    shape = np.atleast_3d(X_train[0]).shape
    flat = [X.reshape(len(X), -1) for X in (X_train, X_test)]
    return shape, (flat[0], y_train, flat[1], y_test)


# ------------------------------------------------------------------------ tables


def summarize(records, problem):
    """Return accuracies and mean seconds by row, the best first.

    Returns
    -------
    list of dict
        ``row``, ``label``, ``accuracies`` by draw, ``search``, ``fit`` and ``predict``
        in CPU seconds, and ``wall``, the seconds of the fit.
    """
    rows = []
    for name in ROWS:
        fits = sorted(
            (draw, record)
            for (of, row, draw), record in records.items()
            if (of, row) == (problem, name) and draw is not None
        )
        if not fits:
            continue
        runs = [record for _, record in fits]
        rows.append(
            {
                "row": name,
                "label": make_row(name, (16, 16, 1), None, None).label,
                "accuracies": [run["accuracy"] for run in runs],
                "search": records[problem, name, None]["search_cpu_seconds"],
                "fit": float(np.mean([run["fit_cpu_seconds"] for run in runs])),
                "predict": float(np.mean([run["predict_cpu_seconds"] for run in runs])),
                "wall": float(np.mean([run["fit_seconds"] for run in runs])),
            }
        )
    return sorted(rows, key=lambda row: -np.mean(row["accuracies"]))


def make_table(records, problem):
    """Return the table of a problem."""
    rows = [
        [
            row["label"],
            f"{100 * np.mean(row['accuracies']):.1f} %",
            " ".join(f"{100 * accuracy:.1f}" for accuracy in row["accuracies"]),
            *(f"{row[key]:.1f} s" for key in ("search", "fit", "predict", "wall")),
        ]
        for row in summarize(records, problem)
    ]
    headers = ["accuracy", "by draw", "search", "fit", "predict", "fit, wall"]
    return format_table([problem, *headers], rows)


def list_choices(records):
    """Return what the searches chose, as a table."""
    rows = [
        [problem, name, _describe(record["chosen"]) or "nothing searched"]
        for (problem, name, draw), record in sorted(
            records.items(), key=lambda item: item[0][:2]
        )
        if draw is None
    ]
    return format_table(["data", "row", "chosen"], rows)


def _describe(chosen):
    """Return parameters, as they are written to the file, as one line of text."""
    parts = []
    for name, value in chosen.items():
        text = " ".join(str(value).split())
        layers = re.findall(r"ConvFeatures\(.*?\)", text)
        if layers:  # by filters and patches alone
            sizes = [
                [
                    re.search(rf"{key}=(\d+)", layer)
                    for key in ("n_filters", "patch_size")
                ]
                for layer in layers
            ]
            text = " then ".join(
                f"{filters[1] if filters else 512} of {patch[1]}×{patch[1]}"
                for filters, patch in sizes
            )
        parts.append(f"{name}={text}")
    return ", ".join(parts)


def write_page(path, tables):
    """Write the tables as text that a page of the documentation includes."""
    Path(path).write_text("\n\n".join(tables) + "\n")


def describe_versions():
    """Return the versions of everybody, in a line."""
    versions = describe_machine()["versions"]
    pinned = (requirements(peer).read_text().splitlines()[0] for peer in PEERS)
    ours = (f"{name}=={number}" for name, number in versions.items())
    return f"threads: {torch.get_num_threads()}; " + " ".join([*ours, *pinned])


def draw_figure(path, records, problems):
    """Draw accuracies over processor seconds of search and fit, a panel a problem."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained", facecolor="white")
    panels = figure.subplots(2, 2, squeeze=False).ravel()
    named = []
    for panel, problem in zip(panels, problems, strict=False):
        points = {}
        for row in summarize(records, problem):
            ours = row["row"] in OURS
            at = row["search"] + row["fit"], 100 * np.mean(row["accuracies"])
            panel.plot(*at, "o" if ours else "s", color="C3" if ours else "C7")
            points[row["row"]] = at
        panel.set(title=problem, xscale="log")
        panel.margins(x=0.2, y=0.12)
        panel.grid(alpha=0.3)
        named.append((panel, points))
    figure.supxlabel("processor seconds of search and fit")
    figure.supylabel("test accuracy, %")
    figure.draw_without_rendering()  # which settles where the panels are
    for panel, points in named:
        name_points(panel, points)
    figure.savefig(path, dpi=figure.dpi)


# Where a name may stand beside its point: offset, and alignment.
_PLACES = [
    {"xytext": (6, 0), "ha": "left", "va": "center"},
    {"xytext": (-6, 0), "ha": "right", "va": "center"},
    {"xytext": (0, 5), "ha": "center", "va": "bottom"},
    {"xytext": (0, -6), "ha": "center", "va": "top"},
    {"xytext": (5, 5), "ha": "left", "va": "bottom"},
    {"xytext": (5, -5), "ha": "left", "va": "top"},
    {"xytext": (-5, 5), "ha": "right", "va": "bottom"},
    {"xytext": (-5, -5), "ha": "right", "va": "top"},
]


def name_points(panel, points):
    """Write the names of points where they meet no other name or point, if they can.

    Parameters
    ----------
    panel : matplotlib.axes.Axes
        Where the points are, with its limits and its place in the figure settled.
    points : dict of str to (float, float)
        The points by name.

    Returns
    -------
    list of matplotlib.text.Annotation
        The names.
    """
    from matplotlib.transforms import Bbox

    centres = panel.transData.transform(list(points.values()))
    taken = [Bbox.from_extents(*(centre - 4), *(centre + 4)) for centre in centres]
    kept = []
    for own, (name, point) in enumerate(points.items()):
        others = taken[:own] + taken[own + 1 :]

        def crossings(text, others=others):
            box = text.get_window_extent()
            outside = sum(not panel.bbox.containsx(x) for x in (box.x0, box.x1))
            return box.count_overlaps(others) + outside

        texts = [
            panel.annotate(name, point, textcoords="offset points", fontsize=8, **place)
            for place in _PLACES
        ]
        best = min(texts, key=crossings)
        for text in texts:
            if text is not best:
                text.remove()
        taken.append(best.get_window_extent())
        kept.append(best)
    return kept


def parse_options(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.comparison", description=__doc__.splitlines()[0]
    )
    add_data_option(parser)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--problems", nargs="+", choices=DRAWN, default=list(DRAWN))
    parser.add_argument("--n-train", type=int, default=1000, help="training images")
    parser.add_argument("--n-test", type=int, default=2000, help="test images")
    parser.add_argument("--draws", type=int, default=3, help="of both")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines")
    parser.add_argument(
        "--tables", action="store_true", help="of what is measured; measure nothing"
    )
    parser.add_argument("--page", metavar="FILE", help="write the tables there")
    parser.add_argument("--figure", metavar="FILE", help="draw the picture there")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args(argv)
    check_data_option(parser, options)
    return options


def main(argv=None):
    """Measure what is missing; print and write the tables."""
    options = parse_options(argv)
    settings = {key: getattr(options, key) for key in SETTINGS}
    results = Results(options.results, KEY, settings)
    if not options.tables:
        measure(options, results)
    records = results.read()
    tables = [make_table(records, problem) for problem in options.problems]
    tables.append(list_choices(records))
    if options.page:
        write_page(options.page, tables)
    if options.figure:
        draw_figure(options.figure, records, options.problems)
    report(
        [describe_versions(), *tables],
        {"comparison": list(records.values())},
        options.json,
    )


if __name__ == "__main__":
    main()
