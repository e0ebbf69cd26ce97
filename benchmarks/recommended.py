"""``python -m benchmarks.recommended``: recommended and default machines, by round.

Round 0 is fixed: the first filters that were drawn, or the first metric. Later rounds
have learned. All choices were made on training images (``python -m
benchmarks.learning``); every machine predicts the test images once a round. Several
draws, with seconds of the fits without those predictions. Needs
``mnist_5000_2000.npz``, ``fashion_mnist_5000_2000.npz`` and ``cifar10_5000_2000.npz``.
"""

import argparse
import json
import time
from functools import partial

import numpy as np

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import make_star
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian

from .harness import add_data_option, check_data_option, format_table, report
from .models import TestScore
from .problems import draw, framed_mnist

CHOSEN = {"candidates": 4, "learn": False}


def photographs(mirror):
    """Return two layers for photographs of 32×32 pixels, and their kernel.

    1024 filters of four times as many are no more accurate on held-out images.
    """
    first = ConvFeatures(
        96, patch_size=5, normalize=1.0, pool_size=2, pool_overlap=1.0, learn=False
    )
    top = ConvFeatures(
        640,
        patch_size=3,
        shrinkage=3.0,
        pool_overlap=0.5,
        mirror=mirror,
        candidates=6,
        learn=False,
    )
    return Gaussian(), [first, top]


def objects_in_noise():
    """Return two layers for objects that stand anywhere in noise, and their kernel."""
    first = ConvFeatures(
        96, patch_size=7, normalize=1.0, pool_size=2, pool_overlap=0.5, **CHOSEN
    )
    top = ConvFeatures(
        256, patch_size=5, shrinkage=3.0, pool="norm", pool_grid=1, **CHOSEN
    )
    return Gaussian(), [first, top]


def articles():
    """Return one layer of large patches and a fine grid for Fashion-MNIST."""
    options = {"padding": "same", "pool_grid": 7, "pool_overlap": 0.5, "learn": False}
    return Gaussian(), [ConvFeatures(512, patch_size=9, normalize=0.01, **options)]


def stars(folder, seed, n_train, n_test):
    """Return stars for training and for the test."""
    X, y = make_star(n_train + n_test, random_state=seed)
    return X[:n_train], y[:n_train], X[n_train:], y[n_train:]


DEFAULT, EXACT = (Gaussian(), "auto"), (ConvNTK(metric="auto"), None)
MIRRORED = (ConvNTK(metric="auto", mirror=True), None)
CIFAR, MNIST, FASHION = (
    partial(draw, f"{name}_5000_2000.npz")
    for name in ("cifar10", "mnist", "fashion_mnist")
)
SMALL, LARGE = (500, 1000), (5000, 2000)  # images for training and for the test
# Data, their numbers of images, kernel and layers, and rounds at most.
CASES = {
    "CIFAR-10, mirrors": (CIFAR, [SMALL, LARGE], photographs(mirror=True), 1),
    "CIFAR-10": (CIFAR, [SMALL, LARGE], photographs(mirror=False), 1),
    "CIFAR-10, default": (CIFAR, [SMALL, LARGE], DEFAULT, 1),
    "CIFAR-10, exact": (CIFAR, [SMALL], EXACT, 1),
    "CIFAR-10, exact, mirrors": (CIFAR, [SMALL], MIRRORED, 1),
    "MNIST, default": (MNIST, [SMALL, LARGE], DEFAULT, 1),
    "MNIST, exact": (MNIST, [SMALL], EXACT, 1),
    "Fashion-MNIST": (FASHION, [LARGE], articles(), 0),
    "Fashion-MNIST, default": (FASHION, [LARGE], DEFAULT, 1),
    "framed MNIST": (framed_mnist, [SMALL, (1000, 1000)], objects_in_noise(), 1),
    "framed MNIST, default": (framed_mnist, [(1000, 1000)], DEFAULT, 1),
    "stars": (stars, [(50, 1000)], (ConvNTK(depth=1, patch_size=11), None), 5),
}


def measure(name, n_train, n_test, seed, folder):
    """Fit one machine and score the test images after every round.

    Returns
    -------
    dict
        ``accuracies`` by round, ``kept``, the round, ``accuracy`` of it, and
        ``seconds`` of the fit.
    """
    load, _, (kernel, features), n_rounds = CASES[name]
    X, y, X_test, y_test = load(folder, seed, n_train, n_test)
    scores = TestScore(X_test, y_test)
    model = ConvRFMClassifier(kernel, features, n_rounds=n_rounds, random_state=seed)
    start = time.perf_counter()
    model.set_callbacks(scores).fit(X, y)
    seconds = time.perf_counter() - start - scores.seconds
    return {
        "accuracies": scores.scores,
        "kept": int(model.best_round_),
        "accuracy": model.score(X_test, y_test),
        "seconds": seconds,
    }


def make_table(results):
    """Return a table with one line a machine and number of images."""
    rows = []
    for (name, n_train), runs in results.items():
        first = 100 * np.mean([run["accuracies"][0] for run in runs])
        kept = [100 * run["accuracy"] for run in runs]
        rows.append(
            [
                name,
                str(n_train),
                f"{first:.1f}",
                f"{np.mean(kept):.1f}",
                " ".join(f"{accuracy:.1f}" for accuracy in kept),
                f"{np.mean([run['seconds'] for run in runs]):.0f} s",
            ]
        )
    return format_table(["machine", "n", "fixed", "learned", "draws", "fit"], rows)


def main(argv=None):
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recommended", description=__doc__.splitlines()[0]
    )
    add_data_option(parser)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--sizes", nargs="+", type=int, help="training images")
    parser.add_argument("--seeds", type=int, default=3, help="draws")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args(argv)
    check_data_option(parser, options)
    results = {}
    for name in options.cases:
        for sizes in CASES[name][1]:
            if options.sizes and sizes[0] not in options.sizes:
                continue
            for seed in range(options.seeds):
                run = measure(name, *sizes, seed, options.data)
                results.setdefault((name, sizes[0]), []).append(run)
                print(name, sizes[0], json.dumps(run), flush=True)
    named = {", ".join(map(str, key)): runs for key, runs in results.items()}
    report([make_table(results)], {"recommended": named}, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
