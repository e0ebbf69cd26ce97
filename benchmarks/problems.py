"""Images that are measured on: random ones, and those of files."""

import io
from functools import partial

import numpy as np

from skconvrfm.datasets import make_framed_digits

N_TEST = 1000
PARTS = ("train", "test")
FILES = {
    "Fashion-MNIST": "fashion_mnist_5000_2000.npz",
    "MNIST": "mnist_5000_2000.npz",
    "CIFAR-10": "cifar10_5000_2000.npz",
}
WHOLE = {
    "MNIST": "mnist_60000_10000.npz",
    "CIFAR-10": "cifar10_jpeg_50000_10000.npz",
}


def read(path, n_train=None, n_test=None):
    """Return training images and labels, test images and labels; images are bytes.

    They are the first of the file, arrays or JPEG, in its order.
    """
    found = []
    with np.load(path, allow_pickle=False) as archive:
        for part, size in zip(PARTS, (n_train, n_test), strict=True):
            if f"X_{part}" in archive:
                images = archive[f"X_{part}"][:size]
            else:
                images = _decode(archive[f"jpeg_{part}"], archive[f"end_{part}"][:size])
            found += [images, archive[f"y_{part}"][:size]]
    return found


def _decode(jpeg, ends):
    """Return the images of JPEG bytes that lie one after another."""
    from PIL import Image

    parts = np.split(jpeg, ends[:-1])
    parts[-1] = parts[-1][: ends[-1] - (ends[-2] if len(ends) > 1 else 0)]
    return np.stack(
        [np.asarray(Image.open(io.BytesIO(part.tobytes()))) for part in parts]
    )


def in_unit_range(images):
    """Return bytes as float32 in [0, 1]."""
    return images.astype(np.float32) / 255


def draw(file, folder, seed, n_train, n_test=N_TEST):
    """Draw so many images of a file for training, and for the test, in [0, 1]."""
    rng = np.random.RandomState(seed)
    X, y, X_test, y_test = read(folder / file)
    parts = []
    for images, labels, size in ((X, y, n_train), (X_test, y_test, n_test)):
        rows = rng.permutation(len(images))[:size]
        parts += [in_unit_range(images[rows]), labels[rows]]
    return parts


def framed_mnist(folder, seed, n_train=500, n_test=N_TEST, sigma=1.0):
    """Draw digits, each at a random place in a frame of noise."""
    X, y, X_test, y_test = draw(FILES["MNIST"], folder, seed, n_train, n_test)
    frames = np.random.RandomState(seed)
    X, X_test = (
        make_framed_digits(images, sigma=sigma, random_state=frames).astype(np.float32)
        for images in (X, X_test)
    )
    return X, y, X_test, y_test


# By folder, seed, and the numbers for training and test.
DRAWN = {
    "Fashion-MNIST": partial(draw, FILES["Fashion-MNIST"]),
    "MNIST": partial(draw, FILES["MNIST"]),
    "framed MNIST": framed_mnist,
    "CIFAR-10": partial(draw, FILES["CIFAR-10"]),
}
