"""``python -m benchmarks.scale``: growth in a run and on paper.

Growth of time, memory and accuracy of a linear machine on features from 1000 to
256,000 images. They are those of a file; beyond its 5000 they are copies, shifted,
mirrored and with noise, which cost what new images would, but teach less. The images
lie in a file that is mapped, and every size has a process of its own. Test images are
those of the file.

``--unit-costs`` measures what single operations cost on this machine, and
``--extrapolate`` tells from such costs what a fit on many workers would take.
"""

import argparse
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures

from .extrapolation import Fit, summarize, tabulate
from .features import Case
from .harness import (
    MEBIBYTE,
    OwnMemory,
    add_data_option,
    format_table,
    growth_exponent,
    in_subprocess,
    peak_resident,
    report,
    timed,
    timed_with_children,
)
from .models import FEATURES
from .problems import read_bytes, write_enlarged
from .unit_costs import SIDES, measure_costs, tabulate_costs

SIZES = (1000, 4000, 16_000, 64_000, 256_000)
WARM_UP = 500
# Columns of the table, by what was measured; those whose growth is of interest.
COLUMNS = {
    "images": "images",
    "fit s": "seconds",
    "fit CPU s": "cpu_seconds",
    "features s": "seconds_kernel",
    "solve s": "seconds_solve",
    "AGOP s": "seconds_agop",
    "rest s": "seconds_rest",
    "predict µs": "predict_microseconds",
    "peak MiB": "peak",
    "own MiB": "own",
    "accuracy %": "accuracy",
    "round": "round",
}
GROWING = ("fit s", "fit CPU s", "peak MiB", "own MiB")


@dataclass(frozen=True)
class Source:
    """Images of a file.

    Attributes
    ----------
    file : str
        Its name.
    image_shape : tuple of int
        Rows, columns and channels.
    features : dict
        Patch size and grid.
    flips : bool, default=True
        True where an image and its mirror image are of one class.
    """

    file: str
    image_shape: tuple[int, int, int]
    features: dict
    flips: bool = True


IMAGES = {
    "cifar10": Source("cifar10_5000_2000.npz", (32, 32, 3), FEATURES["CIFAR-10"]),
    "fashion": Source(
        "fashion_mnist_5000_2000.npz", (28, 28, 1), FEATURES["Fashion-MNIST"]
    ),
    "mnist": Source("mnist_5000_2000.npz", (28, 28, 1), FEATURES["MNIST"], flips=False),
}


# ---------------------------------------------------------------- one process each


def measure(task):
    """Fit and predict in this process.

    Parameters
    ----------
    task : dict
        ``folder`` of the arrays, ``images`` to fit on, ``features``, the parameters of
        the feature layer, and ``parameters`` of the estimator; of no images, the memory
        that importing takes is measured, and whatever is built once on a machine is
        built.

    Returns
    -------
    dict
        Seconds, ``peak`` and ``own`` memory in MiB, accuracy, round.
    """
    imported = peak_resident()
    folder, n_images = Path(task["folder"]), task["images"]
    features = ConvFeatures(**task["features"])
    classifier = ConvRFMClassifier("linear", features, **task["parameters"])
    X = np.load(folder / "X.npy", mmap_mode="r")
    y = np.load(folder / "y.npy")
    if not n_images:
        classifier.fit(X[:WARM_UP], y[:WARM_UP])
        return {"peak": imported / MEBIBYTE}
    X, y = X[:n_images], y[:n_images]
    with OwnMemory() as memory:
        measured, _ = timed_with_children(classifier.fit, X, y)
    peak = peak_resident()
    history = classifier.history_
    clocks = {key: float(history[key].sum()) for key in history if "seconds_" in key}
    clocks["seconds_rest"] = measured["seconds"] - sum(clocks.values())
    X_test, y_test = (np.load(folder / f"{name}_test.npy") for name in "Xy")
    predicting, predicted = timed(classifier.predict, X_test)
    return {
        "images": n_images,
        **measured,
        **clocks,
        "predict_microseconds": 1e6 * predicting["seconds"] / len(X_test),
        "peak": peak / MEBIBYTE,
        "own": memory.peak / MEBIBYTE,
        "accuracy": 100 * float(np.mean(predicted == y_test)),
        "round": int(classifier.best_round_),
    }


def run_child(task, threads):
    """Measure in a process of its own, with so many threads."""
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    env = dict.fromkeys(variables, str(threads)) if threads else None
    return in_subprocess("benchmarks.scale", "--task", json.dumps(task), env=env)


# ----------------------------------------------------------------------- all sizes


def prepare(folder, options):
    """Write training images, enlarged, and test images, with their labels."""
    source, largest = IMAGES[options.images], max(options.sizes)
    (X, X_test), (y, y_test) = read_bytes(options.data / source.file)
    write_enlarged(folder / "X.npy", X, largest, flips=source.flips)
    np.save(folder / "y.npy", np.resize(y, largest))
    np.save(folder / "X_test.npy", X_test)
    np.save(folder / "y_test.npy", y_test)
    if largest > len(X):
        print(f"{len(X)} images of the file; beyond them, copies of these")


def layer_parameters(options):
    """Return the parameters of the feature layer."""
    chosen = {"n_filters": options.filters, **IMAGES[options.images].features}
    if options.patch_size:
        chosen["patch_size"] = options.patch_size
    return chosen


def parameters(options):
    """Return the other parameters of the estimator."""
    return {"n_rounds": options.rounds, "n_jobs": options.n_jobs, "random_state": 0}


def grow(options):
    """Measure size after size, and tell each as soon as it is known.

    Parameters
    ----------
    options : argparse.Namespace
        The command line.

    Returns
    -------
    dict
        ``features``, ``parameters`` and ``rows``, up to the first size that fails.
    """
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        prepare(Path(name), options)
        model = {
            "features": layer_parameters(options),
            "parameters": parameters(options),
        }
        task = {"folder": name, **model}
        imported = run_child({**task, "images": 0}, options.threads)["peak"]
        for n_images in options.sizes:
            try:
                row = run_child({**task, "images": n_images}, options.threads)
            except subprocess.CalledProcessError as error:
                print(f"{n_images} images: failed, exit status {error.returncode}")
                break
            row["peak"] -= imported
            rows.append(row)
            line = (f"{head} {_text(row[key])}" for head, key in COLUMNS.items())
            print("  ".join(line), flush=True)
    return {**model, "threads": options.threads, "rows": rows}


def growth(rows):
    """Return the powers of the size that columns grow with, by pair and over all.

    Parameters
    ----------
    rows : list of dict
        What was measured, by increasing size.

    Returns
    -------
    dict of list
        By column; the last entry is over all sizes.
    """
    pairs = [list(pair) for pair in zip(rows, rows[1:], strict=False)]
    return {
        head: [_exponent(part, COLUMNS[head]) for part in [*pairs, rows]]
        for head in GROWING
    }


def _exponent(rows, key):
    """Return the power that a column grows with; None where there is no logarithm."""
    values = [row[key] for row in rows]
    if min(values) <= 0:
        return None
    return growth_exponent([row["images"] for row in rows], values)


def tabulate_growth(results):
    """Return the tables of what was measured and of the powers.

    Parameters
    ----------
    results : dict
        What `grow` returned.

    Returns
    -------
    list of str
    """
    rows = results["rows"]
    cells = [[_text(row[key]) for key in COLUMNS.values()] for row in rows]
    tables = [format_table(list(COLUMNS), cells)]
    if len(rows) > 1:
        sizes = [row["images"] for row in rows]
        spans = [f"{a} to {b}" for a, b in zip(sizes, sizes[1:], strict=False)]
        exponents = growth(rows)
        body = map(list, zip([*spans, "all"], *exponents.values(), strict=True))
        tables.append(format_table(["power of growth", *exponents], list(body)))
    return tables


def _text(value):
    """Return a number with three digits, and a large one in full."""
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
    return value


# -------------------------------------------------------------------- command line


def parse_options(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--output", metavar="FILE", help="write the results there, as JSON")
    add("--filters", type=int, default=512)
    add("--rounds", type=int, default=1, help="AGOP rounds")
    add("--patch-size", type=int, help="of the images' own choice by default")
    add("--images", choices=IMAGES, default="cifar10")
    add("--threads", type=int, help="of a process; as the environment says by default")
    runs = parser.add_argument_group("growth in a run")
    add = runs.add_argument
    add("--sizes", type=int, nargs="+", default=list(SIZES), metavar="N")
    add("--n-jobs", type=int, help="workers; their memory counts as own memory")
    add_data_option(runs)
    add("--folder", type=Path, help="for the enlarged images; a temporary one")
    paper = parser.add_argument_group("growth on paper")
    add = paper.add_argument
    add("--unit-costs", action="store_true", help="measure what operations cost")
    add("--repeats", type=int, default=3, help="of each; the median is taken")
    add("--sides", type=int, nargs="+", default=list(SIDES), metavar="D")
    add("--extrapolate", action="store_true", help="to --n images and --workers")
    add("--costs", type=Path, metavar="FILE", help="of --unit-costs; or measured now")
    add("--n", type=int, default=10_000_000, help="images of the fit")
    add("--workers", type=int, default=100)
    add("--landmarks", type=int, help="of a Gaussian kernel; a linear one otherwise")
    add("--price", type=float, help="of an hour of a machine, in any currency")
    add("--tasks-per-worker", type=int, default=1, help="sums a worker sends a pass")
    add("--bandwidth", type=float, help="MB/s between machines, if not that of a pipe")
    add("--task", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.sizes = sorted(set(options.sizes))
    return options


def on_paper(options):
    """Return unit costs and what follows from them: tables, and results by name."""
    tables, results, case = [], {}, make_case(options)
    if options.costs:
        costs = json.loads(options.costs.read_text())["unit_costs"]
    else:
        torch.set_num_threads(options.threads or torch.get_num_threads())
        costs = measure_costs(case, options.repeats, options.sides)
        results["unit_costs"] = costs
        tables += tabulate_costs(costs, case)
    if options.extrapolate:
        if options.bandwidth:
            costs = {**costs, "send": 1e6 * options.bandwidth}
        fit = Fit(
            case,
            options.n,
            options.workers,
            options.rounds,
            tasks_per_worker=options.tasks_per_worker,
            n_landmarks=options.landmarks,
        )
        tables += tabulate(fit, costs, options.price)
        results["extrapolation"] = summarize(fit, costs)
    return tables, results


def make_case(options):
    """Return images and filters for growth on paper."""
    chosen = layer_parameters(options)
    return Case(
        IMAGES[options.images].image_shape,
        chosen["patch_size"],
        options.filters,
        chosen["pool_grid"][0],
    )


def main(argv=None):
    """Run the command line."""
    options = parse_options(argv)
    if options.task:
        print(json.dumps(measure(json.loads(options.task))))
        return 0
    if options.unit_costs or options.extrapolate:
        report(*on_paper(options), options.output)
        return 0
    results = grow(options)
    results["growth"] = growth(results["rows"]) if len(results["rows"]) > 1 else {}
    report(tabulate_growth(results), {"scale": results}, options.output)
    return 0 if len(results["rows"]) == len(options.sizes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
