"""``python -m benchmarks.ansatz_metric``: matrices of a trained network as a metric.

Trains an AlexNet whose first filters have 6×6 pixels on 5000 CIFAR-10 images, and takes
the patch AGOP and the filter covariance of its first layer, to some power, as the
metric of features of 6×6 patches, in place of whitening and after it: accuracy of a
Gaussian kernel machine on 1000 of the same images, three draws.
"""

import argparse
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from skconvrfm import AnsatzScorer, ConvRFMClassifier
from skconvrfm.features import ConvFeatures
from skconvrfm.features.filters import PatchMoments

from . import ansatz, networks
from .harness import add_data_option, check_data_option, format_table, report

FILE = "cifar10_5000_2000.npz"
PATCH = 6
WHITENING = PatchMoments.whitening


def trained_matrices(data, epochs):
    """Return filter covariance and AGOP of the first layer, and the accuracy."""
    X, y, X_test, y_test = data
    torch.manual_seed(0)
    network = networks.alexnet(width=16, dropout=0.1)
    network.features[0] = nn.Conv2d(3, 32, PATCH, padding=PATCH // 2)
    network.features[3] = nn.Conv2d(32, 48, 5, padding=2)
    for _ in ansatz.train(network, X, y, epochs):
        pass
    layers = AnsatzScorer(channels="first").report(network, X[:500].numpy())
    [covariance], [agop] = layers.matrices("features.0")
    accuracy = 100 * ansatz.accuracy(network, X_test, y_test)
    return {"filter covariance": covariance, "AGOP": agop}, accuracy


def power(matrix, exponent):
    """Return a power of a positive matrix, whose largest eigenvalue is 1."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * (values.clip(0) / values.max()) ** exponent) @ vectors.T


def instead(matrix, exponent):
    """Return the transform whose metric is a power of a matrix."""
    return lambda *_: power(matrix, exponent / 2)


def after_whitening(matrix, exponent):
    """Return the transform that whitens, and then takes the matrix there to a power."""

    def transform(moments, *_):
        white = WHITENING(moments)
        root = np.linalg.inv(white)
        return power(white @ power(root @ matrix @ root, exponent) @ white, 0.5)

    return transform


def accuracies(images, transform, n_train, draws):
    """Accuracy in per cent for each draw; the transform None is whitening."""
    X, y, X_test, y_test = images
    found = []
    for draw in range(draws):
        rows = np.random.default_rng(draw).permutation(len(X))[:n_train]
        features = ConvFeatures(patch_size=PATCH)
        machine = ConvRFMClassifier("gaussian", features, n_rounds=0, random_state=draw)
        with patch.object(PatchMoments, "whitening", transform or WHITENING):
            machine.fit(X[rows], y[rows])
        found.append(100 * machine.score(X_test, y_test))
    return found


def main(argv=None):
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ansatz_metric", description=__doc__.splitlines()[0]
    )
    add_data_option(parser)
    add = parser.add_argument
    add("--epochs", type=int, default=20, metavar="N", help="default: 20")
    add("--n-train", type=int, default=1000, metavar="N", help="default: 1000")
    add("--draws", type=int, default=3, metavar="N", help="default: 3")
    add("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args(argv)
    check_data_option(parser, options)
    path = options.data / FILE
    matrices, accuracy = trained_matrices(ansatz.load_data(path, 5000), options.epochs)
    with np.load(path, allow_pickle=False) as archive:
        X, X_test = (archive[f"X_{p}"] / np.float32(255) for p in ("train", "test"))
        images = X, archive["y_train"], X_test, archive["y_test"]
    # Of images in [0, 1]; the network saw them divided by their deviations.
    scale = np.repeat(1 / X.std((0, 1, 2)), PATCH**2)
    transforms = {"whitening": None, "none": lambda *_: np.eye(len(scale))}
    for name, matrix in matrices.items():
        scaled = matrix * np.outer(scale, scale)
        for exponent in (1, 0.5, 0.25):
            transforms[f"{name}^{exponent:g}"] = instead(scaled, exponent)
        for exponent in (0.5, 0.25, 0.1):
            way = f"whitening, {name}^{exponent:g}"
            transforms[way] = after_whitening(scaled, exponent)
    rows = []
    for name, transform in transforms.items():
        found = accuracies(images, transform, options.n_train, options.draws)
        rows.append([name, float(np.mean(found)), *found])
    header = ["metric", "accuracy", *(f"draw {d}" for d in range(options.draws))]
    texts = [f"network: {accuracy:.1f} %", format_table(header, rows)]
    report(texts, {"network": accuracy, "metrics": rows}, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
