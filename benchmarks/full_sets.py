"""``python -m benchmarks.full_sets``: the whole of MNIST and CIFAR-10, by machine.

Accuracy, time and memory by the number of images: ours exactly, with landmarks, and
with a linear kernel, beside a linear SVM on features, nearest neighbours, gradient
boosting, xRFM and a small network. Every fit has a process of its own. The images are
mapped from a file, as float32 in [0, 1]. Needs ``mnist_60000_10000.npz`` and
``cifar10_jpeg_50000_10000.npz``. What is measured goes to a file line by line, and is
not measured again.
"""

import argparse
import io
import json
import tempfile
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from skconvrfm import ConvRFMClassifier, PatchAGOPTransformer
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import Gaussian

from .comparison import peers, xrfm
from .harness import (
    MEBIBYTE,
    ROOT,
    OwnMemory,
    Results,
    add_data_option,
    check_data_option,
    format_table,
    growth_exponent,
    in_subprocess,
    peak_resident,
    report,
    timed,
    timed_with_children,
)
from .models import FEATURES
from .recommended import photographs
from .rivals import ConvNet

RESULTS = ROOT / "benchmarks" / ".results" / "full_sets.jsonl"
FILES = {
    "MNIST": "mnist_60000_10000.npz",
    "CIFAR-10": "cifar10_jpeg_50000_10000.npz",
}
SIZES = (1000, 5000, 20_000, 60_000)  # the last is all
# More rows than that take an exact fit more time than there is.
MOST_EXACT = 5000
PARTS = "train", "test"
KEY = "set", "row", "n"
CHILD = "benchmarks.full_sets", "--task"


# ------------------------------------------------------------------------- machines


def ours(name, landmarks):
    """Return the recommended machine for a set."""
    kernel, features = Gaussian(), "auto"
    if name == "CIFAR-10":
        kernel, features = photographs(mirror=True)
    return ConvRFMClassifier(
        kernel, features, n_rounds=1, landmarks=landmarks, random_state=0
    )


def linear(name):
    """Return a linear machine on one layer of features."""
    features = ConvFeatures(1024, **FEATURES[name])
    return ConvRFMClassifier("linear", features, n_rounds=0, random_state=0)


def svm_on_features(name):
    """Return a linear SVM on the same features."""
    learner = linear(name)
    features = PatchAGOPTransformer(learner, output="features")
    return make_pipeline(features, StandardScaler(), LinearSVC(C=1e-3, dual=False))


def network(name):
    """Return the small network."""
    shape = (28, 28, 1) if name == "MNIST" else (32, 32, 3)
    return ConvNet(shape, cells=2, epochs=15)


LANDMARKS = {f"{size} landmarks": size for size in (1000, 2500, 8000)}
ROWS = {
    "exact": lambda name: ours(name, None),
    **{row: partial(ours, landmarks=size) for row, size in LANDMARKS.items()},
    "linear": linear,
    "linear SVM on features": svm_on_features,
    "nearest neighbours": lambda _: KNeighborsClassifier(5),
    "gradient boosting": lambda _: HistGradientBoostingClassifier(random_state=0),
    "xRFM": None,  # in an environment of its own, see `machine`
    "network": network,
}
EXACT_ROWS = {"exact", "xRFM"}
IMAGE_ROWS = {"exact", "linear", *LANDMARKS}


@contextmanager
def machine(task):
    """Yield the estimator of a row; xRFM with the best of four candidates."""
    if task["row"] != "xRFM":
        yield ROWS[task["row"]](task["set"])
        return
    with peers(("xrfm",)) as (_, compute):
        search = xrfm(None, None, compute).search(task["n"], seed=0)
        yield search.set_params(refit=True, n_jobs=None)


# ----------------------------------------------------------------- one process each


def measure(task):
    """Fit and predict in this process.

    Parameters
    ----------
    task : dict
        ``folder`` of the arrays, ``set``, ``row``, and ``n``, the training images.

    Returns
    -------
    dict
        ``accuracy`` in per cent, seconds ``fit`` and ``predict``, processor seconds
        ``cpu`` of the fit, ``peak`` and ``own`` memory in MiB beyond the imports.
        Processor seconds and own memory are with those of workers.
    """
    imported, folder = peak_resident(), Path(task["folder"])
    X, X_test = (np.load(folder / f"X_{part}.npy", mmap_mode="r") for part in PARTS)
    y, y_test = (np.load(folder / f"y_{part}.npy") for part in PARTS)
    X, y = X[: task["n"]], y[: task["n"]]
    if task["row"] not in IMAGE_ROWS:
        X, X_test = (images.reshape(len(images), -1) for images in (X, X_test))
    with machine(task) as model:
        with OwnMemory() as memory:
            fitting, _ = timed_with_children(model.fit, X, y)
        peak = peak_resident()
        predicting, accuracy = timed(model.score, X_test, y_test)
    return {
        "accuracy": 100 * accuracy,
        "fit": fitting["seconds"],
        "cpu": fitting["cpu_seconds"],
        "predict": predicting["seconds"],
        "peak": (peak - imported) / MEBIBYTE,
        "own": memory.peak / MEBIBYTE,
    }


# ------------------------------------------------------------------------------ data


def unpack(name, source, folder):
    """Write images, float32 in [0, 1], and labels of a set to a folder."""
    with np.load(source / FILES[name], allow_pickle=False) as archive:
        for part in PARTS:
            if f"X_{part}" in archive:
                images = archive[f"X_{part}"]
            else:
                images = decode(archive[f"jpeg_{part}"], archive[f"end_{part}"])
            shape = (*images.shape, 1)[:4]
            out = np.lib.format.open_memmap(
                folder / f"X_{part}.npy", "w+", np.float32, shape
            )
            for rows in np.array_split(np.arange(len(images)), 50):
                out[rows] = images[rows].reshape(-1, *shape[1:]) / np.float32(255)
            np.save(folder / f"y_{part}.npy", archive[f"y_{part}"])


def decode(jpeg, ends):
    """Return the images of JPEG bytes that lie one after another, uint8."""
    from PIL import Image

    starts = [0, *ends[:-1]]
    return np.stack(
        [
            np.asarray(Image.open(io.BytesIO(jpeg[start:end].tobytes())))
            for start, end in zip(starts, ends, strict=True)
        ]
    )


# ------------------------------------------------------------------------- all fits


def measure_all(options, results):
    """Measure what is not there yet."""
    for name in options.sets:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            unpack(name, options.data, Path(folder))
            n_images = len(np.load(Path(folder) / "y_train.npy"))
            sizes = sorted({min(n, n_images) for n in options.sizes})
            for n, row in product(sizes, options.only):
                if is_due(row, n):
                    task = {"set": name, "row": row, "n": n, "folder": folder}
                    line = json.dumps(task)
                    results.once((name, row, n), partial(in_subprocess, *CHILD, line))


def is_due(row, n):
    """Return True if a row can be fitted to n images, and is no other one."""
    return n <= MOST_EXACT if row in EXACT_ROWS else LANDMARKS.get(row, 0) < n


def make_table(found, name):
    """Return the table of a set."""
    rows = [
        [
            row,
            str(n),
            f"{record['accuracy']:.2f}",
            *(f"{record[key]:.0f}" for key in ("fit", "cpu", "predict", "own")),
        ]
        for (of, row, n), record in sorted(found.items(), key=_order)
        if of == name
    ]
    headers = ["images", "accuracy, %", "fit, s", "CPU, s", "predict, s", "own, MiB"]
    return format_table([name, *headers], rows)


def make_growth_table(found):
    """Return the powers of the number of images that time and memory grow with."""
    rows = []
    for name in FILES:
        for row in ROWS:
            records = [r for r in _by_size(found, name, row) if r["n"] >= 5000]
            if len(records) < 2:
                continue
            sizes = [record["n"] for record in records]
            power = growth_exponent(sizes, [record["cpu"] for record in records])
            more = records[-1]["own"] - records[0]["own"]
            rows.append([name, row, f"{power:.2f}", f"{more:.0f}"])
    return format_table(["data", "row", "power of CPU s", "more memory, MiB"], rows)


def _by_size(found, name, row):
    """Return the results of a row of a set, by the number of images."""
    return [r for key, r in sorted(found.items()) if key[:2] == (name, row)]


def _order(item):
    (name, row, n), _ = item
    return name, list(ROWS).index(row), n


def draw_figure(path, found):
    """Draw accuracy over the number of images, and over the time of the fit."""
    from matplotlib.figure import Figure

    names = [name for name in FILES if any(key[0] == name for key in found)]
    figure = Figure(figsize=(10, 4 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False)
    for pair, name in zip(panels, names, strict=True):
        for row in ROWS:
            records = _by_size(found, name, row)
            if not records:
                continue
            accuracies = [record["accuracy"] for record in records]
            for panel, key in zip(pair, ("n", "fit"), strict=True):
                values = [record[key] for record in records]
                panel.plot(values, accuracies, "o-", label=row)
        pair[0].set(title=name, xlabel="training images", ylabel="test accuracy, %")
        pair[1].set(title=name, xlabel="seconds of the fit")
        for panel in pair:
            panel.set_xscale("log")
            panel.grid(alpha=0.3)
        pair[0].legend(fontsize=8)
    figure.savefig(path)


def main(argv=None):
    """Measure what is missing; print tables and draw the picture."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.full_sets", description=__doc__.splitlines()[0]
    )
    add_data_option(parser)
    parser.add_argument("--sets", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--folder", type=Path, help="for the images; a temporary one")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines")
    parser.add_argument("--figure", metavar="FILE", help="draw the picture there")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.task:
        print(json.dumps(measure(json.loads(options.task))))
        return 0
    check_data_option(parser, options)
    results = Results(options.results, KEY)
    measure_all(options, results)
    found = results.read()
    tables = [make_table(found, name) for name in options.sets]
    report([*tables, make_growth_table(found)], {})
    if options.figure:
        draw_figure(options.figure, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
