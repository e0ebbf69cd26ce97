"""The images that accuracy is measured on: files, draws, frames."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from skconvrfm.datasets import make_framed_digits

from .harness import ROOT

DATA = ROOT.parent / "shared" / "data"
N_TEST = 1000
PARTS = ("train", "test")


def framed_mnist(folder, seed, n_train=500):
    """Framed digits for training, and as many as `N_TEST` for the test."""
    parts = _draw(folder / "mnist_5000_2000.npz", n_train, seed)
    frames = np.random.RandomState(seed)
    data = []
    for images, labels in parts:
        framed = make_framed_digits(images, sigma=1.0, random_state=frames)
        data += [framed.astype(np.float32), labels]
    return data


def fashion(folder, seed):
    """1000 articles for training."""
    parts = _draw(folder / "fashion_mnist_5000_2000.npz", 1000, seed)
    return [array for part in parts for array in part]


def _draw(path, n_train, seed):
    """A seeded draw of training and test images in [0, 1], with labels."""
    rng = np.random.RandomState(seed)
    parts = []
    for images, labels, count in zip(*_read(path), (n_train, N_TEST), strict=True):
        rows = rng.permutation(len(images))[:count]
        parts.append((_in_unit_range(images[rows]), labels[rows]))
    return parts


def _read(path):
    """Images of both parts of a file as bytes, and labels of both parts."""
    with np.load(path, allow_pickle=False) as archive:
        return [[archive[f"{kind}_{part}"] for part in PARTS] for kind in "Xy"]


def _in_unit_range(images):
    return images.astype(np.float32) / 255


@dataclass(frozen=True)
class Problem:
    """Images to learn from and to be tested on.

    Attributes
    ----------
    load : callable
        ``load(folder, draw)`` returns training images and labels, test images and
        labels.
    redrawn : bool
        Whether there are several draws; otherwise it is the split of a file.
    """

    load: Callable
    redrawn: bool = False


def _whole(name):
    """The loader of all images of a file."""

    def load(folder, _):
        (X_train, X_test), (y_train, y_test) = _read(folder / f"{name}.npz")
        return [_in_unit_range(X_train), y_train, _in_unit_range(X_test), y_test]

    return load


# Those of the small table, and those of the linear path.
SMALL = {"framed MNIST, 500": framed_mnist, "Fashion-MNIST, 1000": fashion}
LARGE = {
    "CIFAR-10, 5000": Problem(_whole("cifar10_5000_2000")),
    "MNIST, 5000": Problem(_whole("mnist_5000_2000")),
    "Fashion-MNIST, 5000": Problem(_whole("fashion_mnist_5000_2000")),
    "framed MNIST, 1000": Problem(partial(framed_mnist, n_train=1000), redrawn=True),
}
