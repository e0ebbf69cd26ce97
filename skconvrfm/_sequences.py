"""Images one by one, in lists and torch's Datasets, made into arrays."""

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler

from .compute.stored import allocate, in_memory

_RESIZE = "Files are resized by skconvrfm.datasets.load_image_folder(path, size=...)."
# Modes of PIL images whose pixels are brightness, of one channel or several.
_PIL_MODES = {"L", "LA", "RGB", "RGBA", "F", "I", "I;16", "I;16B", "I;16L", "I;16N"}


def read_pairs(X, y):
    """Return the images of a torch Dataset or DataLoader as an array, and y.

    Its labels stand in for a y of None. Any other X is returned as it is.
    """
    if not isinstance(X, Dataset | DataLoader):
        return X, y
    return _read(X) if y is None else (read_images(X), y)


def read_images(X):
    """Return the images of a torch Dataset or DataLoader, in order; else X itself."""
    if not isinstance(X, Dataset | DataLoader):
        return X
    if isinstance(X, DataLoader) and not isinstance(X.sampler, SequentialSampler):
        raise ValueError(
            f"X is a DataLoader with a {type(X.sampler).__name__}, in whose order the "
            "results would come: pass one with shuffle=False and no sampler, or its "
            "dataset."
        )
    return _read(X)[0]


def _read(X):
    """Return images and labels of a Dataset or DataLoader; labels None without any.

    Beyond the working memory of scikit-learn the images lie in a temporary file.
    """
    images, labels, count = None, [], 0
    for block, targets in _blocks(X):
        if images is None:
            images = allocate((_length(X), *block.shape[1:]), block.dtype)
        if (block.shape[1:], block.dtype) != (images.shape[1:], images.dtype):
            raise ValueError(
                f"X[{count}] is an image of shape {block.shape[1:]} and dtype "
                f"{block.dtype}, and those before it have {images.shape[1:]} and "
                f"{images.dtype}: bring all to one size in the transform of the "
                f"{type(X).__name__}. {_RESIZE}"
            )
        images[count : count + len(block)] = block
        labels.append(targets)
        count += len(block)
    if images is None:
        raise ValueError(f"X is a {type(X).__name__} without images.")
    known = labels[0] is not None
    return images[:count], np.concatenate(labels) if known else None


def _length(X):
    """Return the number of images of a Dataset or DataLoader."""
    if isinstance(X.dataset if isinstance(X, DataLoader) else X, IterableDataset):
        raise TypeError(
            f"X is a {type(X).__name__} of unknown length: call partial_fit, or "
            "predict, with the images of each batch."
        )
    return len(X.sampler if isinstance(X, DataLoader) else X)


def _blocks(X):
    """Yield arrays of images, and of their labels or None."""
    if isinstance(X, DataLoader) and X.batch_sampler is not None:
        for batch in X:
            images, labels = _parts(batch)
            yield as_numpy(images, "X"), labels
        return
    items = X if isinstance(X, DataLoader) else (X[i] for i in range(_length(X)))
    for index, item in enumerate(items):
        image, label = _parts(item)
        yield _as_image(image, index)[None], None if label is None else label[None]


def _parts(item):
    """Return the images of an item of a Dataset, and its labels, an array or None."""
    pair = item if isinstance(item, tuple | list) else (item,)
    if len(pair) not in (1, 2):
        raise TypeError(
            f"X has items of {len(pair)} parts, but (image, label) is needed: make a "
            "Dataset of such pairs."
        )
    images, labels = pair if len(pair) == 2 else (pair[0], None)
    return images, None if labels is None else np.asarray(as_numpy(labels, "y"))


def as_numpy(values, name):
    """Return tensors and mapped arrays as arrays in memory; all else as it is."""
    if not isinstance(values, torch.Tensor):
        return in_memory(values, name)
    if values.device.type not in ("cpu", "cuda"):
        raise TypeError(f"{name} is a tensor on {values.device}; pass {name}.cpu().")
    try:
        values = values.detach().cpu().resolve_conj().resolve_neg()
        # float32 holds bfloat16 and float8, which numpy has not, exactly.
        small = values.is_floating_point() and values.itemsize < 4
        return (values.float() if small else values).numpy()
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            f"{name} is a tensor with layout {values.layout} and {values.dtype}, which "
            f"no array can hold ({error}). Pass one of numbers, such as "
            f"{name}.to_dense() or {name}.dequantize()."
        ) from error


def stacked(X):
    """Return images one by one, in a list or an object column, as an array.

    Anything else is returned as it is.
    """
    # Sparse arrays of old versions of SciPy may be dicts as well.
    if isinstance(X, dict) and not hasattr(X, "shape"):
        raise TypeError(f"X is a dict with the keys {list(X)}: pass its images alone.")
    items = _items(X)
    if items is None or not len(items):
        return X
    images = [_as_image(item, index) for index, item in enumerate(items)]
    shapes = [np.shape(image) for image in images]
    if shapes[0] == ():  # numbers or texts, which validate_data knows
        return X
    for index, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"X has images of shapes {shapes[0]} and {shape} (number {index}): "
                f"bring them to one shape. {_RESIZE}"
            )
    return np.stack(images)


def _items(X):
    """Return the items of a list, a tuple or an object column; or None."""
    if isinstance(X, list | tuple):
        return X
    if hasattr(X, "iloc") and X.ndim == 2 and X.shape[1] == 1:  # of pandas
        X = X.iloc[:, 0]
    if getattr(getattr(X, "dtype", None), "kind", None) != "O":
        return None
    X = np.asarray(X)
    return X.ravel() if X.ndim == 1 or X.shape[1:] == (1,) else None


def _as_image(item, index):
    """Return an item of a list of images as an array."""
    image = as_numpy(item, f"X[{index}]")
    if isinstance(image, dict):
        keys = list(image)
        raise TypeError(f"X[{index}] is a dict with the keys {keys}, not an image.")
    if type(image).__module__.startswith("PIL.") and image.mode not in _PIL_MODES:
        raise ValueError(
            f"X[{index}] is a PIL image of mode {image.mode!r}, whose numbers are no "
            f"brightness: pass X[{index}].convert('RGB'), or 'L' for grey."
        )
    try:
        return np.asarray(image)
    except ValueError as error:
        raise ValueError(f"X[{index}] has rows of different lengths.") from error
