"""``python -m benchmarks.accuracy``: recommended and default machines, by round.

On test images, by round; round 0 is fixed. ``--landmarks`` fits on some rows.
"""

import json

import numpy as np

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import make_star
from skconvrfm.kernels import ConvNTK

from . import machines
from .harness import format_table, mean_and_each, program
from .problems import DRAWN


def stars(folder, seed, n_train, n_test):
    """Return stars for training and for the test."""
    X, y = make_star(n_train + n_test, random_state=seed)
    return X[:n_train], y[:n_train], X[n_train:], y[n_train:]


CIFAR, MNIST, FASHION = (DRAWN[name] for name in ("CIFAR-10", "MNIST", "Fashion-MNIST"))
FRAMED = DRAWN["framed MNIST"]
SMALL, LARGE = (500, 1000), (5000, 2000)  # images for training and for the test
STAR = ConvNTK(depth=1, patch_size=11), None
# Data, their numbers of images, kernel and layers, and rounds at most.
RECOMMENDED = {
    "CIFAR-10, mirrors": (CIFAR, [SMALL, LARGE], machines.photographs(mirror=True), 1),
    "CIFAR-10": (CIFAR, [SMALL, LARGE], machines.photographs(mirror=False), 1),
    "CIFAR-10, default": (CIFAR, [SMALL, LARGE], machines.DEFAULT, 1),
    "CIFAR-10, exact": (CIFAR, [SMALL], machines.EXACT, 1),
    "CIFAR-10, exact, mirrors": (CIFAR, [SMALL], machines.MIRRORED, 1),
    "MNIST, default": (MNIST, [SMALL, LARGE], machines.DEFAULT, 1),
    "MNIST, exact": (MNIST, [SMALL], machines.EXACT, 1),
    "Fashion-MNIST": (FASHION, [LARGE], machines.articles(), 0),
    "Fashion-MNIST, default": (FASHION, [LARGE], machines.DEFAULT, 1),
    "framed MNIST": (FRAMED, [SMALL, (1000, 1000)], machines.objects_in_noise(), 1),
    "framed MNIST, default": (FRAMED, [(1000, 1000)], machines.DEFAULT, 1),
    "stars": (stars, [(50, 1000)], STAR, 5),
}


def measure(options):
    """Return accuracies by round of the machines."""
    rows, results = [], {}
    for name in options.only:
        load, sizes, machine, n_rounds = RECOMMENDED[name]
        chosen = {"n_rounds": n_rounds, "landmarks": options.landmarks}
        for size in [(n, 2000) for n in options.sizes] or sizes:
            runs = []
            for seed in range(options.draws):
                model = ConvRFMClassifier(*machine, **chosen, random_state=seed)
                runs.append(machines.by_round(model, *load(options.data, seed, *size)))
                print(name, size[0], json.dumps(runs[-1]), flush=True)
            first = mean_and_each([run["accuracies"][0] for run in runs])[0]
            kept = mean_and_each([run["accuracy"] for run in runs])
            seconds = f"{np.mean([run['seconds'] for run in runs]):.0f} s"
            rows.append([name, size[0], first, *kept, seconds])
            results[f"{name}, {size[0]}"] = runs
    headers = ["machine", "n", "fixed", "learned", "by draw", "fit"]
    return [format_table(headers, rows)], {"accuracy": results}


main = program(
    measure,
    RECOMMENDED,
    sizes=[],
    draws=3,
    options={"--landmarks": {"type": int, "help": "of the machines; all rows"}},
)

if __name__ == "__main__":
    raise SystemExit(main())
