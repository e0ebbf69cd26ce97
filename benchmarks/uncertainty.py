"""``python -m benchmarks.uncertainty``: how many new targets intervals cover.

*digits*: the value of a digit of scikit-learn's, from 600 images. *halves*: the mean
colour of the right half of a CIFAR-10 photograph, from the left half of 2000. Times are
seconds of all CPU cores together, for the predictions of the test images.
"""

import numpy as np
from scipy.special import erfinv
from sklearn.datasets import load_digits

from skconvrfm import ConvRFMRegressor
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK

from .harness import format_table, program, timed

LEVELS = 0.68, 0.90, 0.95
MACHINES = {
    "`ConvNTK(depth=1)`": {"kernel": ConvNTK(depth=1)},
    '`"gaussian"`': {"kernel": "gaussian"},
    '`"gaussian"`, 300 landmarks': {"kernel": "gaussian", "landmarks": 300},
    '`"gaussian"`, `features="auto"`': {"kernel": "gaussian", "features": "auto"},
    '`"linear"`, 64 filters': {"kernel": "linear", "features": ConvFeatures(64)},
    '`"linear"`, `features="auto"`': {"kernel": "linear", "features": "auto"},
}
N_DRAWS = 3  # of digits into training and test images


def digits(_, seed):
    """Return training and test images and targets."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(X))
    X, y = X[order].reshape(-1, 8, 8).astype(np.float32), y[order]
    return X[:600], y[:600], X[600:], y[600:]


def halves(folder, _):
    """Return the same."""
    with np.load(folder / "cifar10_5000_2000.npz") as data:
        pairs = [data[name][:2000] for name in ("X_train", "X_test")]
    parts = []
    for images in pairs:
        images = images.reshape(-1, 32, 32, 3)
        parts += [images[:, :, :16], images[:, :, 16:].mean((1, 2)) / 255.0]
    return parts


PROBLEMS = {"digits": (digits, N_DRAWS), "halves": (halves, 1)}


def measure(options):
    """Return a table for each problem, and its numbers."""
    tables, results = [], {}
    for name in options.only:
        draw, n_draws = PROBLEMS[name]
        data = [draw(options.data, seed) for seed in range(n_draws)]
        rounds = {"n_rounds": options.rounds}
        machines = {label: rounds | machine for label, machine in MACHINES.items()}
        rows = {label: _mean(machine, data) for label, machine in machines.items()}
        names = [f"{level:.0%}" for level in LEVELS]
        head = [name, *names, "error", "mean std", "s", "s with std"]
        lines = [[label, *row] for label, row in rows.items()]
        tables.append(format_table(head, lines))
        results[name] = rows
    return tables, results


def _mean(machine, data):
    return np.mean([_measure(machine, *parts) for parts in data], axis=0).tolist()


def _measure(machine, X, y, X_test, y_test):
    """Return shares that are covered, root mean square error, mean std and seconds."""
    model = ConvRFMRegressor(store_covariance=True, **machine).fit(X, y)
    model.predict(X_test[:2], return_std=True)  # compiles
    plain, _ = timed(model.predict, X_test)
    longer, (prediction, std) = timed(model.predict, X_test, return_std=True)
    seconds = plain["cpu_seconds"], longer["cpu_seconds"]
    errors = np.abs(y_test - prediction)
    covered = [(errors < np.sqrt(2) * erfinv(level) * std).mean() for level in LEVELS]
    return *covered, np.sqrt((errors**2).mean()), std.mean(), *seconds


ROUNDS = {"type": int, "default": 0, "help": "from 1 on filters of auto are chosen"}
main = program(measure, PROBLEMS, options={"--rounds": ROUNDS})

if __name__ == "__main__":
    raise SystemExit(main())
