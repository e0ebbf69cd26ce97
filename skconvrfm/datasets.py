"""Folders of images, and small seeded data sets on which learned features matter.

Nothing is downloaded. Images are arrays (n, h, w) or (n, h, w, c); those that are made
have values of order one, and those from files are uint8.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike
from sklearn.datasets import load_digits
from sklearn.utils import Bunch, check_array, check_consistent_length
from sklearn.utils import check_random_state as _check_random_state

from ._image_folder import find_classes, find_images, read_images
from ._input import check_pair
from ._sklearn_compat import Interval, StrOptions, validated
from ._typing import Array, Floats, Pair, RandomState

__all__ = [
    "load_digit_images",
    "load_image_folder",
    "make_framed_digits",
    "make_star",
]

_STAR_ROWS = "...#... ...#... ####### .#####. ..###.. .##.##. ##...##".split()
_STAR = np.array([[pixel == "#" for pixel in row] for row in _STAR_ROWS])
_COUNT = Interval(Integral, 1, None, closed="left")
_CONSTRAINTS = {
    "n_samples": [_COUNT],
    "size": [_COUNT, tuple, list],
    "noise": [Interval(Real, 0, None, closed="left")],
    "amplitude": [Interval(Real, None, None, closed="neither")],
    "margin": [Interval(Integral, 0, None, closed="left")],
    "images": ["array-like", None],
    "y": ["array-like", None],
    "frame_shape": [_COUNT, tuple, list, None],
    "sigma": [Interval(Real, 0, None, closed="left")],
    "random_state": ["random_state"],
    "return_X_y": ["boolean"],
}
_FOLDER_CONSTRAINTS = {
    "path": [str, os.PathLike],
    "size": [_COUNT, tuple, list, None],
    "mode": [StrOptions({"auto", "gray", "rgb"})],
    "classes": ["array-like", None],
    "resize": [StrOptions({"crop", "pad"})],
    "on_error": [StrOptions({"raise", "skip"})],
}


@validated(_FOLDER_CONSTRAINTS)
def load_image_folder(
    path: str | os.PathLike[str],
    *,
    size: Pair | None = None,
    mode: str = "auto",
    classes: Sequence[str] | None = None,
    resize: str = "crop",
    on_error: str = "raise",
) -> Bunch:
    """Load image files that lie in one subfolder per class.

    Reads PNG, JPEG and whatever else Pillow reads, which comes with the extra
    ``pip install "skconvrfm[images]"``.
    The subfolders of a class are searched as well; hidden files, other files and
    images outside of the subfolders are left out.

    Parameters
    ----------
    path : str or path-like
        The folder with the subfolders of the classes.
    size : int or (int, int), default=None
        Rows and columns that all images are resized to, smoothly (bicubic, with
        antialiasing). By default images keep their size; if the sizes differ, that is
        an error which names the first odd file.
    mode : {"auto", "gray", "rgb"}, default="auto"
        Grey images of shape (rows, columns), or colour ones of shape (rows, columns,
        3). "auto" is grey if no image has colours: a file in RGB whose channels are
        equal counts as grey. For new images of a fitted model, name the mode that its
        training images had.
    classes : sequence of str, default=None
        The subfolders to read, in the order of their labels. By default all, sorted by
        name, without hidden ones and those whose name begins with ``__``.
    resize : {"crop", "pad"}, default="crop"
        How an image of other proportions than `size` is made to fit; it is never
        distorted. "crop" scales it until it covers the size, and cuts off what sticks
        out on two sides; "pad" scales it until all of it fits in, and adds black bars.
    on_error : {"raise", "skip"}, default="raise"
        Whether a broken file raises a ValueError that names it, or is left out, with
        one warning that names all of these files.

    Returns
    -------
    images : :class:`~sklearn.utils.Bunch`
        ``data``, uint8 of shape (n, rows, columns) or (n, rows, columns, 3), 0 black
        and 255 full; ``target``, int64 of shape (n,), which indexes the array
        ``target_names``; and the array ``filenames``, paths that begin with `path`.
        Images are sorted by class, and within it by path.

    Raises
    ------
    ImportError
        Without Pillow.
    NotADirectoryError
        If `path` is no folder.
    ValueError
        For a broken file, images of different sizes without `size`, a folder without
        subfolders, and a class without images.

    Notes
    -----
    A photograph is turned upright as its EXIF data say. Transparent pixels are laid on
    white. Grey images of 16 bits are divided by 257. Of an animation the first image is
    read.

    If `data` would exceed the ``working_memory`` of :func:`sklearn.set_config`, 1 GiB
    by default, it is a :class:`numpy.memmap` of a temporary file, which the estimators
    read in blocks; the file is removed with the array.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from PIL import Image
    >>> from skconvrfm.datasets import load_image_folder
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, value in [("dark", 10), ("light", 250)]:
    ...         Path(folder, name).mkdir()
    ...         pixels = np.full((20, 30), value, dtype=np.uint8)
    ...         Image.fromarray(pixels).save(Path(folder, name, "one.png"))
    ...     images = load_image_folder(folder, size=8)
    >>> images.data.shape, images.data.dtype, images.target_names[images.target]
    ((2, 8, 8), dtype('uint8'), array(['dark', 'light'], dtype='<U5'))
    """
    if size is not None:
        size = check_pair(size, "size")
    folders = find_classes(path, classes)
    found = [find_images(folder) for folder in folders]
    files = [file for images in found for file in images]
    options = {"size": size, "mode": mode, "resize": resize, "on_error": on_error}
    data, read = read_images(files, **options)
    target = np.repeat(np.arange(len(found)), [len(images) for images in found])[read]
    for label, folder in enumerate(folders):
        if label not in target:
            raise ValueError(
                f"the subfolder {str(folder)!r} has no images that can be read: add "
                "some, or name the subfolders to read in classes."
            )
    return Bunch(
        data=data,
        target=target.astype(np.int64),
        target_names=np.array([folder.name for folder in folders]),
        filenames=np.array([str(file) for file in files])[read],
    )


@validated(_CONSTRAINTS)
def make_star(
    n_samples: int = 100,
    *,
    size: Pair = 32,
    noise: float = 0.3,
    amplitude: float = 1.0,
    margin: int = 4,
    random_state: RandomState = None,
) -> tuple[Floats, Array]:
    """Make colour images of Gaussian noise, half of them with a small star in it.

    An image of class 1 has a five-pointed star, 7 pixels wide and high, at a random
    place in its first two channels. A fixed kernel weighs all directions of a patch
    alike and needs many images; one that learns the direction of the star needs few.
    :func:`make_framed_digits` makes a task of ten classes.

    Parameters
    ----------
    n_samples : int, default=100
        Number of images, half of each class; if it is odd, class 0 has one more.
    size : int or (int, int), default=32
        Rows and columns of an image, at least 7 + 2·margin; as published in
        :arxiv:`2309.00570`.
    noise, amplitude : float, default=0.3 and 1.0
        Standard deviation of the noise, as published, and value of the pixels of the
        star, which replace the noise. A star pixel is more than three standard
        deviations high, but a star is one pixel in forty.
    margin : int, default=4
        Least number of pixels between the star and the border, where few patches show
        the whole star: after 50 training images, a fixed kernel of depth 1 and patch
        size 11 is right on 64 % of the test images without a margin, and one that
        learns on 95 %; with the default, the mean of the published data, 79 % and 99 %.
    random_state : int, RandomState instance or None, default=None
        Seed of the noise, of the places and of the order of the classes.

    Returns
    -------
    X, y : ndarray of shape (n_samples, rows, columns, 3), (n_samples,)
        The images in float64, channels last; and in int64, in random order, 1 where
        there is a star, 0 where there is none.

    Examples
    --------
    >>> from skconvrfm.datasets import make_star
    >>> X, y = make_star(50, random_state=0)
    >>> X.shape, y.shape, int(y.sum())
    ((50, 32, 32, 3), (50,), 25)
    """
    rows, columns = check_pair(size, "size")
    least = len(_STAR) + 2 * margin
    if min(rows, columns) < least:
        raise ValueError(
            f"size={size!r} leaves no room for the star of 7 x 7 pixels with "
            f"margin={margin} around it. Make size at least {least}, or the margin "
            "smaller."
        )
    rng = _check_random_state(random_state)
    y = rng.permutation(np.arange(n_samples, dtype=np.int64) % 2)
    X = rng.normal(scale=noise, size=(n_samples, rows, columns, 3))
    positives = np.flatnonzero(y == 1)
    top = margin + rng.randint(rows - least + 1, size=positives.size)
    left = margin + rng.randint(columns - least + 1, size=positives.size)
    down, across = np.nonzero(_STAR)
    pixels = positives[:, None], top[:, None] + down, left[:, None] + across
    X[..., :2][pixels] = amplitude
    return X, y


@validated(_CONSTRAINTS)
def make_framed_digits(
    images: ArrayLike | None = None,
    y: ArrayLike | None = None,
    *,
    frame_shape: Pair | None = None,
    sigma: float = 1.0,
    random_state: RandomState = None,
) -> Floats | tuple[Floats, Array]:
    """Paste images at random places into larger frames of Gaussian noise.

    The noise is of the size of the image's own values: a kernel machine does well if
    it has learned which directions of a patch carry the image and which the noise.

    Parameters
    ----------
    images : array-like of shape (n, h, w) or (n, h, w, c), default=None
        Floats of order one, taken as they are, or uint8, divided by 255 into [0, 1].
        Other types are refused, because their scale is not known, and so are NaN and
        infinite pixels. By default the 1797 digits of :func:`load_digit_images`.
    y : array-like of shape (n,) or (n, n_outputs), default=None
        Targets of `images`, returned as they are; not without `images`.
    frame_shape : int or (int, int), default=None
        Rows and columns of the frame, each at least those of the image. By default
        1.5 times the image, rounded down: 28 x 28 pixels go into 42 x 42, as published
        (:arxiv:`2309.00570`), and 8 x 8 into 12 x 12.
    sigma : float, default=1.0
        Strength of the noise: its standard deviation is 0.5·sqrt(sigma), in the unit
        of the images, as published. With the default one frame pixel in three is
        farther from 0 than half the brightness of a white image pixel.
    random_state : int, RandomState instance or None, default=None
        Seed of the places and of the noise. With the same int, frames of different
        `sigma` have the same places and the same noise up to its scale.

    Returns
    -------
    X, y : ndarray of shape (n, rows, columns) or (n, rows, columns, c), and as `y`
        The images in their frames, float32 if `images` is float32, else float64; the
        targets, left out if `images` comes without `y`. The default digits have theirs.

    Examples
    --------
    >>> from skconvrfm.datasets import make_framed_digits
    >>> X, y = make_framed_digits(frame_shape=(10, 14), random_state=0)
    >>> X.shape, y.shape
    ((1797, 10, 14), (1797,))
    """
    if images is None:
        if y is not None:
            raise ValueError(
                "y was given without images: give the images that it belongs to, or "
                "leave y out to frame scikit-learn's digits."
            )
        images, y = load_digit_images(return_X_y=True)
    pictures = _check_images(images)
    if y is not None:
        y = np.asarray(y)
        check_consistent_length(pictures, y)
    n, h, w = pictures.shape[:3]
    shape = (h + h // 2, w + w // 2) if frame_shape is None else frame_shape
    rows, columns = check_pair(shape, "frame_shape")
    if rows < h or columns < w:
        raise ValueError(
            f"frame_shape=({rows}, {columns}) is smaller than the images, which have "
            f"{h} x {w} pixels. Give a frame of at least ({h}, {w})."
        )
    rng = _check_random_state(random_state)
    top, left = rng.randint(rows - h + 1, size=n), rng.randint(columns - w + 1, size=n)
    X = rng.standard_normal((n, rows, columns, *pictures.shape[3:]))
    X = X.astype(pictures.dtype, copy=False)
    X *= 0.5 * np.sqrt(sigma)
    for frame, image, i, j in zip(X, pictures, top, left, strict=True):
        frame[i : i + h, j : j + w] = image
    return X if y is None else (X, y)


@validated(_CONSTRAINTS)
def load_digit_images(*, return_X_y: bool = False) -> Bunch | tuple[Floats, Array]:
    """Load the images of :func:`sklearn.datasets.load_digits`, scaled to [0, 1].

    Parameters
    ----------
    return_X_y : bool, default=False
        If True, return `(images, target)` in place of a Bunch.

    Returns
    -------
    digits : :class:`~sklearn.utils.Bunch`
        ``images`` of shape (1797, 8, 8), 0 black and 1 white, their flat rows ``data``,
        the digits ``target`` (int64), and scikit-learn's ``target_names``, ``DESCR``.

    Examples
    --------
    >>> from skconvrfm.datasets import load_digit_images
    >>> X, y = load_digit_images(return_X_y=True)
    >>> X.shape, float(X.min()), float(X.max())
    ((1797, 8, 8), 0.0, 1.0)
    """
    digits = load_digits()
    images, target = digits.images / 16.0, digits.target.astype(np.int64)
    if return_X_y:
        return images, target
    described = {key: digits[key] for key in ("target_names", "DESCR")}
    data = images.reshape(len(images), -1)
    return Bunch(images=images, data=data, target=target, **described)


def _check_images(images):
    """Return finite float images (n, h, w) or (n, h, w, c), uint8 in [0, 1]."""
    images = np.asarray(images)
    if images.ndim not in (3, 4):
        raise ValueError(
            f"images must have shape (n, h, w) or (n, h, w, c), got {images.shape}. "
            "Reshape flat rows with images.reshape(-1, h, w); a single image with "
            "image[None]."
        )
    if images.dtype == np.uint8:
        images = images / 255.0
    elif images.dtype.kind != "f":
        raise ValueError(
            f"images has dtype {images.dtype}, whose scale is not known. Give uint8 "
            "images (0 to 255), or floats of order one."
        )
    options = {"allow_nd": True, "ensure_2d": False, "input_name": "images"}
    return check_array(images, dtype=[np.float64, np.float32], **options)
