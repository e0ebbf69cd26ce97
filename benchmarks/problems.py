"""Images that accuracy is measured on: files, draws, frames, copies."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from skconvrfm.datasets import make_framed_digits

N_TEST = 1000
PARTS = ("train", "test")
# Copies of images: pixels and grey levels that they differ by at most, and how many are
# made at once.
SHIFT, NOISE = 2, 6
PIECE = 1000


def framed_mnist(folder, seed, n_train=500, n_test=N_TEST):
    """Framed digits for training and for the test."""
    parts = _draw(folder / "mnist_5000_2000.npz", n_train, seed, n_test)
    frames = np.random.RandomState(seed)
    data = []
    for images, labels in parts:
        framed = make_framed_digits(images, sigma=1.0, random_state=frames)
        data += [framed.astype(np.float32), labels]
    return data


def fashion(folder, seed):
    """Draw 1000 articles for training."""
    return draw("fashion_mnist_5000_2000.npz", folder, seed, 1000)


def draw(name, folder, seed, n_train, n_test=N_TEST):
    """Draw so many images of a file for training, and for the test."""
    parts = _draw(folder / name, n_train, seed, n_test)
    return [array for part in parts for array in part]


def _draw(path, n_train, seed, n_test):
    """A seeded draw of training and test images in [0, 1], with labels."""
    rng = np.random.RandomState(seed)
    parts = []
    for images, labels, count in zip(*read_bytes(path), (n_train, n_test), strict=True):
        rows = rng.permutation(len(images))[:count]
        parts.append((_in_unit_range(images[rows]), labels[rows]))
    return parts


def read_bytes(path):
    """Images of both parts of a file as bytes, and labels of both parts."""
    with np.load(path, allow_pickle=False) as archive:
        return [[archive[f"{kind}_{part}"] for part in PARTS] for kind in "Xy"]


def _in_unit_range(images):
    return images.astype(np.float32) / 255


def write_enlarged(path, images, n_images, flips=True, seed=0):
    """Write so many images to a file, piece by piece: copies where there are too few.

    Every image comes once as it is; copies follow in the same order, each shifted by
    up to `SHIFT` pixels with its edge repeated, perhaps mirrored, and with noise of up
    to `NOISE` grey levels. A piece has a seed of its own, so that fewer images are the
    first of more.

    Parameters
    ----------
    path : path-like
        The ``.npy`` file.
    images : ndarray of shape (m, h, w) or (m, h, w, c), uint8
        What there is.
    n_images : int
        How many are wanted.
    flips : bool, default=True
        Whether left and right may be exchanged.
    seed : int, default=0
        Of all copies.
    """
    shape = (n_images, *images.shape[1:])
    out = np.lib.format.open_memmap(path, "w+", dtype=np.uint8, shape=shape)
    margins = [(0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)] + [(0, 0)] * (images.ndim - 3)
    padded = np.pad(images, margins, mode="edge")
    for start in range(0, n_images, PIECE):
        rows = np.arange(start, start + PIECE)
        rng = np.random.default_rng([seed, start])
        piece = _shaken(padded, rows % len(images), images.shape[1:3], flips, rng)
        originals = rows < len(images)
        piece[originals] = images[rows[originals]]
        out[start : start + PIECE] = piece[: n_images - start]
    out.flush()


def _shaken(padded, rows, sides, flips, rng):
    """Copies of some images: shifted, perhaps mirrored, with noise."""
    down, right = (
        rng.integers(0, 2 * SHIFT + 1, size=(len(rows), 1)) + np.arange(side)
        for side in sides
    )
    mirrored = rng.integers(0, 2, size=len(rows)).astype(bool) & flips
    right[mirrored] = right[mirrored, ::-1]
    copies = padded[rows[:, None, None], down[:, :, None], right[:, None]]
    noise = rng.integers(-NOISE, NOISE, size=copies.shape, dtype=np.int8, endpoint=True)
    return (copies.astype(np.int16) + noise).clip(0, 255).astype(np.uint8)


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
        (X_train, X_test), (y_train, y_test) = read_bytes(folder / f"{name}.npz")
        return [_in_unit_range(X_train), y_train, _in_unit_range(X_test), y_test]

    return load


# Those of the small table, those of the linear path, and those of which as many images
# are drawn as one likes: by folder, seed, and the numbers for training and test.
SMALL = {"framed MNIST, 500": framed_mnist, "Fashion-MNIST, 1000": fashion}
LARGE = {
    "CIFAR-10, 5000": Problem(_whole("cifar10_5000_2000")),
    "MNIST, 5000": Problem(_whole("mnist_5000_2000")),
    "Fashion-MNIST, 5000": Problem(_whole("fashion_mnist_5000_2000")),
    "framed MNIST, 1000": Problem(partial(framed_mnist, n_train=1000), redrawn=True),
}
DRAWN = {
    "Fashion-MNIST": partial(draw, "fashion_mnist_5000_2000.npz"),
    "MNIST": partial(draw, "mnist_5000_2000.npz"),
    "framed MNIST": framed_mnist,
    "CIFAR-10": partial(draw, "cifar10_5000_2000.npz"),
}
