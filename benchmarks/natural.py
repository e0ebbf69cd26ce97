"""``python -m benchmarks.natural``: metrics of ConvRFM and of a network on photographs.

The leading eigenvectors of the patch AGOP that ConvRFM learns from CIFAR-10, beside
those of the covariance of the first-layer filters of a trained ResNet-20, and how far
the two agree. Needs ``cifar10_5000_2000.npz`` and ``weights_cifar10_resnet20.npz``.
"""

import argparse

import numpy as np

from skconvrfm import ConvRFMClassifier
from skconvrfm.kernels import ConvNTK
from skconvrfm.learning.rounds import leading_eigenvectors

from .harness import add_data_option, check_data_option, format_table, report, timed

# Deviations that the network's inputs were divided by, behind which its filters are.
INPUT_DEVIATION = np.array([0.229, 0.224, 0.225])
PATCH = 3


def filter_covariance(folder):
    """Return WᵀW of the first layer, with respect to pixels."""
    with np.load(folder / "weights_cifar10_resnet20.npz", allow_pickle=False) as file:
        filters = file["conv1.weight"]
    filters = filters / INPUT_DEVIATION[:, None, None]
    filters = filters.reshape(len(filters), -1)
    return filters.T @ filters


def fit_convrfm(folder, n_train, patch_size):
    """Fit ConvRFM to a draw of the images of the file."""
    with np.load(folder / "cifar10_5000_2000.npz", allow_pickle=False) as archive:
        rows = np.random.RandomState(0).permutation(len(archive["X_train"]))[:n_train]
        X, y = archive["X_train"][rows], archive["y_train"][rows]
        X_test, y_test = archive["X_test"], archive["y_test"]
    model = ConvRFMClassifier(ConvNTK(patch_size=patch_size), n_rounds=2)
    seconds, _ = timed(model.fit, X.astype(np.float32) / 255, y)
    accuracy = model.score(X_test.astype(np.float32) / 255, y_test)
    return model, accuracy, seconds["seconds"]


def correlation(first, second):
    """Return the Pearson correlation of the entries of two matrices."""
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def captured(first, second, n_components):
    """Return the share of one leading eigenspace that lies in another, 0 to 1."""
    a, b = (leading_eigenvectors(matrix, n_components) for matrix in (first, second))
    return float(np.square(a @ b.T).sum() / n_components)


def draw(path, rows):
    """Draw eigenvectors as colour patches, a row for each matrix."""
    from matplotlib.figure import Figure

    n_components = 9
    figure = Figure(figsize=(9, 1.25 * len(rows)), layout="constrained")
    parts = figure.subfigures(len(rows), 1)
    for part, (name, matrix, patch) in zip(parts, rows, strict=True):
        part.suptitle(name, fontsize="small")
        vectors = leading_eigenvectors(matrix, n_components)
        for ax, vector in zip(part.subplots(1, n_components), vectors, strict=True):
            pixels = np.moveaxis(vector.reshape(3, patch, patch), 0, -1)
            ax.imshow(0.5 + pixels / (2 * np.abs(pixels).max()))
            ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def main(argv=None):
    """Fit, compare, and draw."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.natural", description=__doc__.splitlines()[0]
    )
    add_data_option(parser)
    parser.add_argument("--n-train", type=int, default=1000, help="training images")
    parser.add_argument("--figure", help="file to draw the eigenvectors to")
    parser.add_argument("--json", help="file to write the results to")
    options = parser.parse_args(argv)
    check_data_option(parser, options)
    network = filter_covariance(options.data)
    model, accuracy, seconds = fit_convrfm(options.data, options.n_train, PATCH)
    wide, *_ = fit_convrfm(options.data, options.n_train, 7)
    agop, metric = model.patch_agop_, model.learned_layers_[0].filter_transform_
    matrices = {
        "patch AGOP": agop,
        "its square root, the next transform": metric,
        "identity": np.eye(len(agop)),
    }
    rng = np.random.RandomState(0)
    random = rng.standard_normal((16, len(agop)))
    matrices["16 random filters"] = random.T @ random
    rows = [
        [
            name,
            f"{correlation(matrix, network):.3f}",
            *(f"{captured(matrix, network, k):.2f}" for k in (3, 6, 9)),
        ]
        for name, matrix in matrices.items()
    ]
    headers = ["beside WᵀW of the network", "correlation", "top 3", "top 6", "top 9"]
    results = {
        "accuracy": accuracy,
        "best_round": model.best_round_,
        "seconds": seconds,
        "comparison": rows,
    }
    print(f"test accuracy {accuracy:.3f}, round {model.best_round_}, {seconds:.0f} s")
    if options.figure:
        pictures = [
            ("network: covariance of the first-layer filters", network, PATCH),
            ("ConvRFM: patch AGOP, 3×3", agop, PATCH),
            ("ConvRFM: patch AGOP, 7×7", wide.patch_agop_, 7),
        ]
        draw(options.figure, pictures)
    report([format_table(headers, rows)], {"natural": results}, options.json)


if __name__ == "__main__":
    main()
