"""``python -m benchmarks.reproduction``: published experiments at a laptop's size.

Experiments of Beaglehole et al., arXiv:2309.00570: the star, signals planted in rows
of noise, framed digits, data sets at hand, filters of a ResNet-20 before and after
training, and metrics of photographs beside its first layer. The kernel has the bias 0
of the publication; ridge and round are chosen by GCV where nothing else is said, and
nothing by test images, which are scored after every round for the report alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from skconvrfm import AnsatzScorer, ConvRFMClassifier
from skconvrfm.datasets import make_star
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK
from skconvrfm.learning.rounds import leading_eigenvectors

from . import networks
from .harness import format_table, mean_and_each, program, timed
from .machines import TestScore
from .problems import DRAWN, framed_mnist, in_unit_range

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
    """Data and a machine.

    Attributes
    ----------
    load : callable
        By folder, seed, and the numbers of images for training and test.
    sizes : (int, int)
        These numbers.
    n_rounds : int, default=2
        Rounds of learning.
    kernel : ConvNTK
        Depth 3 by default.
    options : dict
        Other parameters of the classifier.
    deep : bool, default=False
        True if Deep ConvRFM of two layers is measured as well.
    published : str, default="-"
        Accuracies by round, where they are known.
    """

    load: Callable
    sizes: tuple[int, int]
    n_rounds: int = 2
    kernel: ConvNTK = field(default_factory=lambda: ConvNTK(bias=0))
    options: dict = field(default_factory=dict)
    deep: bool = False
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
    **{
        f"star, noise {noise}": Experiment(
            partial(star, noise=noise), (50, 500), n_rounds=3, kernel=STAR
        )
        for noise in (0.2, 0.3, 0.4, 0.5)
    },
    **{
        f"planted, sigma {sigma}": Experiment(
            partial(planted, sigma=sigma), (200, 200), deep=True
        )
        for sigma in (0.5, 1.0, 2.0, 4.0)
    },
    "framed MNIST": Experiment(
        framed_mnist, (4000, 2000), n_rounds=3, published="52.0 → 54.5 → 57.3 → 59.4"
    ),
    **{
        f"framed, sigma {sigma}": Experiment(
            partial(framed_mnist, sigma=sigma), (2000, 2000), deep=True
        )
        for sigma in (0.25, 1.0, 2.0)
    },
    **{
        name: Experiment(DRAWN[name], (1000, 1000))
        for name in ("MNIST", "Fashion-MNIST", "CIFAR-10")
    },
}


def deep_convrfm(activation, **parameters):
    """Return Deep ConvRFM of two layers, each with a predictor of its own."""
    layer = ConvFeatures(
        16,
        patch_size=3,
        filters="gaussian",
        metric="identity",
        bias=0,
        activation=activation,
        threshold=0,
        pool_grid=None,
    )
    return ConvRFMClassifier(ConvNTK(2, bias=0), [layer], **parameters)


def run(experiment, folder, seed, sizes):
    """Return accuracies in per cent: by round, and of deep machines; and seconds."""
    X, y, X_test, y_test = experiment.load(folder, seed, *sizes)
    n_rounds, scores = experiment.n_rounds, TestScore(X_test, y_test)
    # Each round is the last when it ends, so the callback sees every one.
    model = ConvRFMClassifier(
        experiment.kernel, n_rounds=n_rounds, selection="last", **experiment.options
    )
    times, _ = timed(model.set_callbacks(scores).fit, X, y)
    found = {"accuracy": [100 * score for score in scores.scores], **times}
    found["kept"] = int(np.argmin(model.history_["gcv"]))
    for activation in ("relu", "identity") if experiment.deep else ():
        deep = deep_convrfm(activation, n_rounds=n_rounds, n_iter_no_change=None)
        deep.fit(X, y)
        found[activation] = 100 * deep.score(X_test, y_test)
    return found


def table_of_experiments(results):
    """Return accuracies by experiment, means over the draws."""
    rows = []
    for name, runs in results.items():
        by_round = np.mean([run["accuracy"] for run in runs], axis=0)
        learned = [run["accuracy"][run["kept"]] for run in runs]
        deep = [
            mean_and_each([run[key] for run in runs])[0] if key in runs[0] else None
            for key in ("relu", "identity")
        ]
        rows.append(
            [
                name,
                EXPERIMENTS[name].published,
                " → ".join(f"{value:.1f}" for value in by_round),
                *mean_and_each(learned),
                "".join(str(run["kept"]) for run in runs),
                *deep,
                f"{np.mean([run['seconds'] for run in runs]):.0f}",
            ]
        )
    headers = ["published", "by round", "ConvRFM", "by draw", "kept", "deep, relu"]
    return format_table(["experiment", *headers, "deep, identity", "s"], rows)


# --------------------------------------------------------------- trained networks


def resnet20(folder, n_images=200):
    """Return correlations of the layers of a trained ResNet-20, a table.

    Of filter covariances before and after training, and of these with patch AGOPs.
    """
    torch.manual_seed(0)
    before = networks.resnet20()
    path = folder / "weights_cifar10_resnet20.npz"
    after = networks.load_npz(networks.resnet20(), path)
    with np.load(folder / "cifar10_lossless_400_164.npz") as archive:
        X = in_unit_range(archive["X_train"][:n_images])
    layers = AnsatzScorer(baseline=before).report(after, X)
    rows = [[row.name, row.drift, row.correlation, row.baseline] for row in layers]
    rows.append(["mean", *(float(np.mean([r[i] for r in rows])) for i in (1, 2, 3))])
    headers = ["initial and trained", "trained and AGOP", "untrained and AGOP"]
    return format_table(["layer", *headers], rows)


def edges(folder, n_train=1000):
    """Return how far metrics of CIFAR-10 agree with the network's first filters."""
    with np.load(folder / "weights_cifar10_resnet20.npz") as archive:
        # With respect to pixels, which are divided by deviations in the network.
        deviations = np.array(networks.IMAGENET_STD)[:, None, None]
        filters = archive["conv1.weight"] / deviations
    filters = filters.reshape(len(filters), -1)
    network = filters.T @ filters
    X, y, *_ = DRAWN["CIFAR-10"](folder, 0, n_train)
    model = ConvRFMClassifier(ConvNTK(), n_rounds=2).fit(X, y)
    agop, random = model.patch_agop_, np.random.RandomState(0)
    random = random.standard_normal((16, len(agop)))
    matrices = {
        "patch AGOP": agop,
        "its square root": model.learned_layers_[0].filter_transform_,
        "identity": np.eye(len(agop)),
        "16 random filters": random.T @ random,
    }
    rows = []
    for name, matrix in matrices.items():
        row = [name, float(np.corrcoef(matrix.ravel(), network.ravel())[0, 1])]
        for k in (3, 6, 9):  # share of one leading eigenspace that is in the other
            a, b = (leading_eigenvectors(m, k) for m in (matrix, network))
            row.append(float(np.square(a @ b.T).sum() / k))
        rows.append(row)
    headers = ["beside WᵀW of the network", "correlation", "top 3", "top 6", "top 9"]
    return format_table(headers, rows)


TABLES = {"resnet20": resnet20, "edges": edges}


def measure(options):
    """Run experiments, and make the tables of the trained network."""
    results = {}
    for name in options.only:
        if name in EXPERIMENTS:
            sizes = 2 * options.sizes or EXPERIMENTS[name].sizes
            results[name] = [
                run(EXPERIMENTS[name], options.data, seed, sizes[:2])
                for seed in range(options.draws)
            ]
            print(name, results[name], flush=True)
    tables = [table_of_experiments(results)] if results else []
    tables += [TABLES[name](options.data) for name in options.only if name in TABLES]
    return tables, {"reproduction": results}


main = program(measure, [*EXPERIMENTS, *TABLES], sizes=[], draws=2)

if __name__ == "__main__":
    raise SystemExit(main())
