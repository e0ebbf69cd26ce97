"""``python -m benchmarks.reproduction``: published experiments at a laptop's size.

Experiments of Beaglehole et al., arXiv:2309.00570: the star, signals planted in rows of
noise, framed digits, and data sets at hand. The kernel has the bias 0 of the
publication; ridge and round are chosen by GCV where nothing else is said, and nothing
by test images, which are scored after every round for the report alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import make_star
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK

from .harness import format_table, mean_and_each, program
from .machines import by_round
from .problems import DRAWN, framed_mnist

STAR = ConvNTK(depth=1, patch_size=11, bias=0)
PLANTED_SHAPE = (16, 32)  # rows and columns, as published


def star(_, seed, n_train, n_test, noise):
    """Make stars in noise and noise alone."""
    X, y = make_star(n_train + n_test, noise=noise, random_state=seed)
    X = X.astype(np.float32)
    return X[:n_train], y[:n_train], X[n_train:], y[n_train:]


def planted(_, seed, n_train, n_test, sigma):
    """Make rows of noise, and one constant row of length 1 with the sign of the label.

    ``sigma`` is the mean squared length of a row of noise.
    """
    rng, n = np.random.default_rng(seed), n_train + n_test
    rows, columns = PLANTED_SHAPE
    X = rng.normal(scale=np.sqrt(sigma / columns), size=(n, rows, columns))
    y = rng.integers(0, 2, size=n)
    signal = (2 * y - 1)[:, None] / np.sqrt(columns)
    X[np.arange(n), rng.integers(0, rows, size=n)] = signal
    X = X.astype(np.float32)
    return X[:n_train], y[:n_train], X[n_train:], y[n_train:]


@dataclass(frozen=True)
class Experiment:
    """Data and a machine; with accuracies by round where they are published."""

    load: Callable  # by folder, seed, and the numbers of images for training and test
    sizes: tuple[int, int]  # these numbers
    n_rounds: int = 2
    kernel: ConvNTK = field(default_factory=lambda: ConvNTK(bias=0))
    options: dict = field(default_factory=dict)  # of the classifier
    deep: bool = False  # True to measure Deep ConvRFM of two layers as well
    published: str = "-"


EXPERIMENTS = {
    "star": Experiment(
        partial(star, noise=0.3),
        (50, 500),
        n_rounds=1,
        kernel=STAR,
        options={"alpha": 1e-3, "agop_samples": 20},
        published="78.0 → 94.8",
    ),
    "framed MNIST": Experiment(
        framed_mnist, (4000, 2000), n_rounds=3, published="52.0 → 54.5 → 57.3 → 59.4"
    ),
}
for noise in (0.2, 0.3, 0.4, 0.5):
    load = partial(star, noise=noise)
    EXPERIMENTS[f"star, noise {noise}"] = Experiment(load, (50, 500), 3, STAR)
for sigma in (0.5, 1.0, 2.0, 4.0):
    load = partial(planted, sigma=sigma)
    EXPERIMENTS[f"planted, sigma {sigma}"] = Experiment(load, (200, 200), deep=True)
for sigma in (0.25, 1.0, 2.0):
    load = partial(framed_mnist, sigma=sigma)
    EXPERIMENTS[f"framed, sigma {sigma}"] = Experiment(load, (2000, 2000), deep=True)
for name in ("MNIST", "Fashion-MNIST", "CIFAR-10"):
    EXPERIMENTS[name] = Experiment(DRAWN[name], (1000, 1000))


def deep_convrfm(activation, **parameters):
    """Return Deep ConvRFM of two layers, each with a predictor of its own."""
    options = {"filters": "gaussian", "metric": "identity", "bias": 0, "threshold": 0}
    options |= {"activation": activation, "pool_grid": None}
    layers = [ConvFeatures(16, patch_size=3, **options)]
    return ConvRFMClassifier(ConvNTK(2, bias=0), layers, **parameters)


def run(experiment, folder, seed, sizes):
    """Return accuracies in per cent: by round, and of deep machines; and seconds."""
    data = X, y, X_test, y_test = experiment.load(folder, seed, *sizes)
    n_rounds = experiment.n_rounds
    # Each round is the last when it ends, so the callback sees every one.
    model = ConvRFMClassifier(
        experiment.kernel, n_rounds=n_rounds, selection="last", **experiment.options
    )
    found = by_round(model, *data) | {"kept": int(np.argmin(model.history_["gcv"]))}
    for activation in ("relu", "identity") if experiment.deep else ():
        deep = deep_convrfm(activation, n_rounds=n_rounds, n_iter_no_change=None)
        found[activation] = 100 * deep.fit(X, y).score(X_test, y_test)
    return found


def table_of_experiments(results):
    """Return accuracies by experiment, means over the draws."""
    rows = []
    for name, runs in results.items():
        means = np.mean([run["accuracies"] for run in runs], axis=0)
        learned = [run["accuracies"][run["kept"]] for run in runs]
        deep = [
            float(np.mean([run[key] for run in runs])) if key in runs[0] else None
            for key in ("relu", "identity")
        ]
        rounds = " → ".join(f"{value:.1f}" for value in means)
        kept = "".join(str(run["kept"]) for run in runs)
        seconds = float(np.mean([run["seconds"] for run in runs]))
        head = [name, EXPERIMENTS[name].published, rounds]
        rows.append([*head, *mean_and_each(learned), kept, *deep, seconds])
    headers = ["published", "by round", "ConvRFM", "by draw", "kept", "deep, relu"]
    return format_table(["experiment", *headers, "deep, identity", "s"], rows)


def measure(options):
    """Run the experiments asked for."""
    results = {}
    for name in options.only:
        sizes = 2 * options.sizes or EXPERIMENTS[name].sizes
        results[name] = [
            run(EXPERIMENTS[name], options.data, seed, sizes[:2])
            for seed in range(options.draws)
        ]
        print(name, results[name], flush=True)
    return [table_of_experiments(results)], {"reproduction": results}


main = program(measure, EXPERIMENTS, sizes=[], draws=2)

if __name__ == "__main__":
    raise SystemExit(main())
