"""``python -m benchmarks.scale``: the whole of MNIST and CIFAR-10.

Accuracy, time and memory by the number of images, each fit in a process of its own and
written to a file of JSON lines.
"""

from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier

from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures

from . import machines
from .comparison import ROWS as COMPARED
from .harness import (
    RESULTS,
    OwnMemory,
    Results,
    format_table,
    in_process,
    program,
    timed,
)
from .problems import WHOLE, in_unit_range, read
from .rivals import ConvNet

KEY = "set", "row", "n"
MOST_EXACT = 5000  # rows of an exact fit, for lack of time


def ours(name, landmarks=None):
    """Return the recommended machine for a set."""
    photographs = machines.photographs(mirror=True)
    kernel, features = photographs if name == "CIFAR-10" else machines.DEFAULT
    return ConvRFMClassifier(kernel, features, n_rounds=1, landmarks=landmarks)


def linear(name):
    """Return a linear machine on one layer of features."""
    features = ConvFeatures(1024, **machines.ONE_LAYER[name])
    return ConvRFMClassifier("linear", features, n_rounds=0)


def searched_xrfm(_):
    """Return xRFM with the best of four candidates."""
    row = COMPARED["xrfm"]
    return GridSearchCV(row.model, row.grid)


LANDMARKS = {f"{size} landmarks": size for size in (1000, 2500, 8000)}
IMAGES = {  # rows that take images, not flat rows
    "exact": ours,
    **{row: partial(ours, landmarks=size) for row, size in LANDMARKS.items()},
    "linear": linear,
}
ROWS = {
    **IMAGES,
    "nearest neighbours": lambda _: KNeighborsClassifier(5),
    "gradient boosting": lambda _: HistGradientBoostingClassifier(random_state=0),
    "xRFM": searched_xrfm,
    "network": lambda name: ConvNet(
        (28, 28, 1) if name == "MNIST" else (32, 32, 3), cells=2
    ),
}


def fit_set(folder, name, row, n):
    """Fit a row to n images of a set; return accuracy, seconds and own memory."""
    X, y, X_test, y_test = read(Path(folder) / WHOLE[name], n)
    X, X_test = in_unit_range(X), in_unit_range(X_test)
    if row not in IMAGES:
        X, X_test = (images.reshape(len(images), -1) for images in (X, X_test))
    with OwnMemory() as memory:
        fitting, model = timed(ROWS[row](name).fit, X, y)
        own = memory.peak
        predicting, accuracy = timed(model.score, X_test, y_test)
    found = {"accuracy": 100 * accuracy, "fit": fitting["seconds"]}
    found |= {"cpu": fitting["cpu_seconds"], "predict": predicting["seconds"]}
    return found | {"own": own}


def measure(options):
    """Return the table of whole sets, of all that is in the file of results."""
    results = Results(options.results, KEY)
    for name, n, row in product(options.sets, options.sizes, options.only):
        most = MOST_EXACT if row in ("exact", "xRFM") else np.inf
        if LANDMARKS.get(row, 0) < n <= most:
            task = str(options.data), name, row, n
            results.once((name, row, n), partial(in_process, fit_set, *task))
    columns = ("accuracy", "fit", "cpu", "predict", "own")
    rows = [
        [*name, *(f"{one[key]:.4g}" for key in columns)]
        for name, one in sorted(results.read().items())
    ]
    headers = ["fit, s", "CPU, s", "predict, s", "own, MiB"]
    headers = ["data", "machine", "images", "accuracy, %", *headers]
    return [format_table(headers, rows)], {"scale": list(results.read().values())}


main = program(
    measure,
    ROWS,
    sizes=[1000, 5000, 20_000, 60_000],
    options={
        "--sets": {"nargs": "+", "choices": WHOLE, "default": list(WHOLE)},
        "--results": {"type": Path, "default": RESULTS / "full_sets.jsonl"},
    },
)

if __name__ == "__main__":
    raise SystemExit(main())
