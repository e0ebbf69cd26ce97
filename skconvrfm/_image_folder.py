"""Image files, read by Pillow into one uint8 array, which may lie in a file."""

import os
from pathlib import Path

import numpy as np

from .compute.stored import allocate
from .compute.warn import warn_caller

_NAMED_FILES = 10  # in a warning
_DEEP_GREYS = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # modes of Pillow
_WHITE = (255, 255, 255, 255)


def find_classes(path, classes):
    """Return the subfolders of the classes of a folder, in their order."""
    folder = Path(path)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise NotADirectoryError(
            f"path={str(path)!r} {found}: give a folder with a subfolder per class."
        )
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    names = [name for name in names if not name.startswith((".", "__"))]
    if not names:
        raise ValueError(
            f"path={str(path)!r} has no subfolders: put the images of each class in a "
            "subfolder with the name of the class."
        )
    if classes is None:
        return [folder / name for name in names]
    classes = list(classes)
    unknown = [name for name in classes if name not in names]
    if unknown or not classes or len(set(classes)) < len(classes):
        raise ValueError(
            f"classes={classes!r} must name some subfolders of {str(path)!r}, each "
            f"once; there are {', '.join(names)}."
        )
    return [folder / name for name in classes]


def find_images(folder):
    """Return the image files in a folder and in those below it, sorted."""
    suffixes = _image_suffixes()
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        images = [name for name in names if Path(name).suffix.lower() in suffixes]
        found += [Path(root) / name for name in images if not name.startswith(".")]
    return sorted(found)


def read_images(files, *, size=None, mode="auto", resize="crop", on_error="raise"):
    """Read image files as :func:`~skconvrfm.datasets.load_image_folder` does.

    Returns the images in uint8, and which of the files they are, an array of booleans.
    """
    images = _Images(len(files), mode)
    failures, read = [], np.zeros(len(files), dtype=bool)
    for i, file in enumerate(files):
        try:
            pixels = _read_image(file, size, mode, resize)
        except Exception as error:  # of any type, by format and damage
            what = f"{str(file)!r} cannot be read as an image: {error}"
            if on_error == "raise":
                raise ValueError(
                    f'{what}. Remove it, or leave such files out: on_error="skip".'
                ) from error
            failures.append(str(file))
            continue
        images.append(pixels, file)
        read[i] = True
    if failures:
        more = len(failures) - _NAMED_FILES
        named = ", ".join(failures[:_NAMED_FILES]) + (f" and {more} more" * (more > 0))
        warn_caller(
            f"{len(failures)} of {len(files)} files cannot be read as images and are "
            f"left out: {named}"
        )
    return images.finish(), read


class _Images:
    """Images of one size, grey until one has colours, in memory or in a file."""

    def __init__(self, n, mode):
        self.n, self.mode = n, mode
        self.count, self.data, self.first = 0, None, None

    def append(self, pixels, file):
        """Keep an image of shape (h, w) or (h, w, 3)."""
        if self.mode == "auto" and pixels.ndim == 3 and _is_grey(pixels):
            pixels = pixels[..., 0]
        if self.data is None:
            self.data, self.first = allocate((self.n, *pixels.shape), np.uint8), file
        if pixels.shape[:2] != self.data.shape[1:3]:
            (h, w), (rows, columns) = pixels.shape[:2], self.data.shape[1:3]
            raise ValueError(
                f"{str(file)!r} has {h} x {w} pixels, but {str(self.first)!r} has "
                f"{rows} x {columns}, and an array holds images of one size: pass "
                f"size, such as size=({rows}, {columns}), to which all are resized."
            )
        if pixels.ndim > self.data.ndim - 1:  # the first in colour
            grey, self.data = self.data, allocate((self.n, *pixels.shape), np.uint8)
            for i in range(self.count):
                self.data[i] = grey[i][..., None]
        elif pixels.ndim < self.data.ndim - 1:
            pixels = pixels[..., None]
        self.data[self.count] = pixels
        self.count += 1

    def finish(self):
        """Return all images, or None if there are none."""
        return None if self.data is None else self.data[: self.count]


def _read_image(file, size, mode, resize):
    """Return the pixels of a file, of shape (h, w) if it is grey, or (h, w, 3)."""
    from PIL import Image, ImageOps

    with Image.open(file) as image:
        image = _as_eight_bits(ImageOps.exif_transpose(image))
    if mode != "auto":
        image = image.convert({"gray": "L", "rgb": "RGB"}[mode])
    if size is not None and image.size != size[::-1]:
        options = {} if resize == "crop" else {"color": 0}
        fit = ImageOps.fit if resize == "crop" else ImageOps.pad
        image = fit(image, size[::-1], method=Image.Resampling.BICUBIC, **options)
    return np.asarray(image)


def _as_eight_bits(image):
    """Return an image of mode "L" or "RGB"; what is transparent becomes white."""
    from PIL import Image

    if image.mode in _DEEP_GREYS:
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("its pixels have 32 bits, of which 8 or 16 are read")
        return Image.fromarray(np.round(pixels / 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floats, of an unknown scale")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, _WHITE)
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _is_grey(pixels):
    """Return True if the three channels of an image are equal."""
    return (pixels == pixels[..., :1]).all()


def _image_suffixes():
    """Return the suffixes of the files that Pillow reads."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            'Image files are read by Pillow: pip install "skconvrfm[images]".'
        ) from error
    suffixes = Image.registered_extensions()
    return {suffix for suffix, format in suffixes.items() if format in Image.OPEN}
