"""``python -m benchmarks.uncertainty``: how many new targets intervals cover.

Targets are the value of a digit of scikit-learn's, learned from 600 images. Times are
seconds of all CPU cores together, for the predictions of the others.
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


def digits(seed):
    """Return training and test images and targets."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(X))
    X, y = X[order].reshape(-1, 8, 8).astype(np.float32), y[order]
    return X[:600], y[:600], X[600:], y[600:]


def measure(options):
    """Return the table of means over draws, and its rows."""
    data, rows = [digits(seed) for seed in range(options.draws)], {}
    for name in options.only:
        machine = MACHINES[name] | {"n_rounds": options.rounds}
        found = [_measure(machine, *parts) for parts in data]
        rows[name] = np.mean(found, axis=0).tolist()
    levels = [f"{level:.0%}" for level in LEVELS]
    headers = ["machine", *levels, "error", "mean std", "s", "s with std"]
    table = format_table(headers, [[name, *row] for name, row in rows.items()])
    return [table], {"uncertainty": rows}


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


OPTIONS = {"--rounds": {"type": int, "default": 0, "help": "auto chooses from 1 on"}}
main = program(measure, MACHINES, draws=3, needs_data=False, options=OPTIONS)

if __name__ == "__main__":
    raise SystemExit(main())
