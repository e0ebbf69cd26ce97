"""``python -m benchmarks.scale``: the whole of MNIST and CIFAR-10, and how costs grow.

*sets*: accuracy, time and memory by the number of images, each fit in a process of its
own and written to a file of JSON lines. *growth*: kernel by images and AGOP by those
that carry it. *cluster*: one fit under the backends of joblib.
"""

from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path

import joblib
import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier

from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, patch_agop

from . import machines
from .comparison import xrfm
from .harness import (
    RESULTS,
    OwnMemory,
    Results,
    best_in_turns,
    format_table,
    growth_exponent,
    in_process,
    program,
    timed,
)
from .problems import WHOLE, in_unit_range, read, smooth_images
from .rivals import ConvNet, Peers

KEY = "set", "row", "n"
MOST_EXACT = 5000  # rows of an exact fit, for lack of time
N_CLASSES = 10


def ours(name, _, landmarks=None):
    """Return the recommended machine for a set."""
    photographs = machines.photographs(mirror=True)
    kernel, features = photographs if name == "CIFAR-10" else machines.DEFAULT
    return ConvRFMClassifier(kernel, features, n_rounds=1, landmarks=landmarks)


def linear(name, _):
    """Return a linear machine on one layer of features."""
    features = ConvFeatures(1024, **machines.ONE_LAYER[name])
    return ConvRFMClassifier("linear", features, n_rounds=0)


def searched_xrfm(_, peers):
    """Return xRFM with the best of four candidates."""
    row = xrfm(None, peers)
    return GridSearchCV(row.model, row.grid)


LANDMARKS = {f"{size} landmarks": size for size in (1000, 2500, 8000)}
IMAGES = {  # rows that take images, not flat rows
    "exact": ours,
    **{row: partial(ours, landmarks=size) for row, size in LANDMARKS.items()},
    "linear": linear,
}
ROWS = {
    **IMAGES,
    "nearest neighbours": lambda *_: KNeighborsClassifier(5),
    "gradient boosting": lambda *_: HistGradientBoostingClassifier(random_state=0),
    "xRFM": searched_xrfm,
    "network": lambda name, _: ConvNet(
        (28, 28, 1) if name == "MNIST" else (32, 32, 3), cells=2
    ),
}


def fit_set(folder, name, row, n):
    """Fit a row to n images of a set; return accuracy, seconds and own memory."""
    X, y, X_test, y_test = read(Path(folder) / WHOLE[name], n)
    X, X_test = in_unit_range(X), in_unit_range(X_test)
    if row not in IMAGES:
        X, X_test = (images.reshape(len(images), -1) for images in (X, X_test))
    with Peers() as peers, OwnMemory() as memory:
        fitting, model = timed(ROWS[row](name, peers).fit, X, y)
        own = memory.peak
        predicting, accuracy = timed(model.score, X_test, y_test)
    found = {"accuracy": 100 * accuracy, "fit": fitting["seconds"]}
    found |= {"cpu": fitting["cpu_seconds"], "predict": predicting["seconds"]}
    return found | {"own": own}


def sets(options):
    """Return the table of whole sets, of all that is in the file of results."""
    results = Results(options.results, KEY)
    for name, n, row in product(options.sets, options.sizes, options.rows):
        most = MOST_EXACT if row in ("exact", "xRFM") else np.inf
        if LANDMARKS.get(row, 0) < n <= most:
            task = str(options.data), name, row, n
            results.once((name, row, n), partial(in_process, fit_set, *task))
    columns = ("accuracy", "fit", "cpu", "predict", "own")
    rows = [
        [name, row, str(n), *(f"{one[key]:.4g}" for key in columns)]
        for (name, row, n), one in sorted(results.read().items())
    ]
    headers = ["fit, s", "CPU, s", "predict, s", "own, MiB"]
    return ["data", "machine", "images", "accuracy, %", *headers], rows


def growth(options):
    """Return best times of the kernel by images and of the AGOP by its images."""
    kernel, sizes = ConvNTK(bias=0), [n // 20 for n in options.sizes]
    images = smooth_images(max(sizes), (16, 16, 1))
    coef = np.random.default_rng(0).standard_normal((len(images), N_CLASSES))
    calls = {
        "kernel": {n: lambda n=n: kernel(images[:n]) for n in sizes},
        "AGOP": {
            n // 10: lambda n=n: patch_agop(kernel, images, coef, images[: n // 10])
            for n in sizes
        },
    }
    rows = []
    for name, by_size in calls.items():
        found = best_in_turns(by_size, 3)
        for n, times in found.items():
            rows.append([name, str(n), times["seconds"], times["cpu_seconds"]])
        if len(found) > 1:
            powers = (
                growth_exponent(list(found), [one[clock] for one in found.values()])
                for clock in ("seconds", "cpu_seconds")
            )
            rows.append([name, "power", *powers])
    return ["case", "images", "s", "CPU s"], rows


def in_dask():
    """Return a Dask cluster of two processes, which is joblib's backend meanwhile."""
    from dask.distributed import Client

    return Client(n_workers=2, threads_per_worker=1, dashboard_address=None)


def cluster(options):
    """Return times of one fit by backend, and the difference of its scores."""
    X, y, *_ = read(options.data / WHOLE["MNIST"], min(options.sizes))
    model = ConvRFMClassifier("linear", ConvFeatures(64, patch_size=3), n_rounds=1)
    rows, expected = [], None
    for backend in ("sequential", "loky", "dask"):
        with in_dask() if backend == "dask" else nullcontext():
            with joblib.parallel_config(backend, n_jobs=2):
                model.fit(X[:100], y[:100])  # processes have imported the package
                times, _ = timed(model.fit, X, y)
        scores = model.decision_function(X)
        expected = scores if expected is None else expected
        difference = np.abs(scores - expected).max() / np.abs(expected).max()
        rows.append([backend, *times.values(), float(difference)])
    return ["backend", "s", "CPU s", "difference"], rows


PARTS = {"sets": sets, "growth": growth, "cluster": cluster}


def measure(options):
    """Make the tables asked for."""
    results = {name: PARTS[name](options) for name in options.only}
    return [format_table(*found) for found in results.values()], {"scale": results}


main = program(
    measure,
    PARTS,
    sizes=[1000, 5000, 20_000, 60_000],
    options={
        "--sets": {"nargs": "+", "choices": WHOLE, "default": list(WHOLE)},
        "--rows": {"nargs": "+", "choices": ROWS, "default": list(ROWS)},
        "--results": {"type": Path, "default": RESULTS / "full_sets.jsonl"},
    },
)

if __name__ == "__main__":
    raise SystemExit(main())
