"""``python -m benchmarks.bootstraps``: criteria where rows come several times.

Draws images with replacement, as a bootstrap does, and lets generalised
cross-validation and leave-one-out choose ridge and round: the value of the criterion
over the squared error on other training images, the error, and the accuracy. Needs
``mnist_5000_2000.npz``.
"""

import argparse
from pathlib import Path

import numpy as np

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import load_digit_images, make_framed_digits
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK

from .harness import DATA, format_table, report
from .models import squared_error
from .problems import read_bytes

FILE = DATA / "mnist_5000_2000.npz"
CRITERIA = {"gcv": "gcv", "loo": "loo_loss"}  # and their names in the history
LAYER = ConvFeatures(128, patch_size=4)
MACHINES = {
    "NTK, depth 1": (ConvNTK(depth=1), None),
    "linear": ("linear", LAYER),
    "Gaussian": ("gaussian", LAYER),
}


def digits(path, seed):
    """Return the digits of scikit-learn in an order of the seed."""
    X, y = load_digit_images(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(X))
    return X[order], y[order]


def framed_digits(path, seed):
    """Return framed digits of the training images of MNIST."""
    (images, _), (labels, _) = read_bytes(path)
    order = np.random.default_rng(seed).permutation(len(images))[:1500]
    framed = make_framed_digits(images[order] / 255, sigma=1.0, random_state=seed)
    return framed.astype(np.float32), labels[order]


def measure(problem, machine, path, n_draws, n_images):
    """Return arrays (n_draws, 4) by criterion: ratio, error, accuracy, ridge."""
    found = {name: [] for name in CRITERIA}
    for seed in range(n_draws):
        X, y = problem(path, seed)
        drawn = np.random.default_rng(seed).integers(n_images, size=n_images)
        others = X[n_images:], y[n_images:]
        for name, key in CRITERIA.items():
            model = ConvRFMClassifier(*machine, n_rounds=1, selection=name)
            model.fit(X[drawn], y[drawn])
            error = squared_error(model, *others)
            ratio = model.history_[key][model.best_round_] / error
            row = ratio, error, model.score(*others), model.alpha_
            found[name].append([float(value) for value in row])
    return {name: np.array(rows) for name, rows in found.items()}


def make_table(results):
    """Return a table with one line per problem, machine and criterion."""
    rows = []
    for problem, machine, found in results:
        for name, values in found.items():
            ratio, error, accuracy, _ = values.mean(0)
            ridges = " ".join(f"{ridge:.0e}" for ridge in values[:, 3])
            numbers = f"{ratio:.2f}", f"{error:.3f}", f"{100 * accuracy:.1f}"
            rows.append([problem, machine, name, *numbers, ridges])
    headers = "data machine criterion ratio error accuracy ridges".split()
    return format_table(headers, rows)


def main(argv=None):
    """Run all problems and machines, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bootstraps", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", type=Path, default=FILE, help="the file")
    parser.add_argument("--draws", type=int, default=5, help="bootstraps (5)")
    parser.add_argument("--images", type=int, default=500, help="of each (500)")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args(argv)
    if not options.data.is_file():
        parser.error(f"--data {options.data} is no file; pass that of MNIST")
    results = []
    for problem in (digits, framed_digits):
        for name, machine in MACHINES.items():
            where = options.data, options.draws, options.images
            results.append((problem.__name__, name, measure(problem, machine, *where)))
            print(*results[-1][:2], flush=True)
    plain = [
        (*names, {name: values.tolist() for name, values in found.items()})
        for *names, found in results
    ]
    report([make_table(results)], {"bootstraps": plain}, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
