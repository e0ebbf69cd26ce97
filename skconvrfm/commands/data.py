"""Images and labels as the commands read them: folders of files, or .npz archives."""

import sys
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.utils.multiclass import type_of_target

from .._command_line import UsageError
from .._image_folder import find_images, read_images
from ..datasets import load_image_folder

LARGEST_SIDE = 64  # pixels of the longer side that files are resized to by default
LABELLED = (("X_train", "y_train"), ("X", "y"))
UNLABELLED = (("X",), ("X_test",), ("X_train",))
SHAPES = "(n, rows, columns) or (n, rows, columns, channels)"


@dataclass(frozen=True)
class Images:
    """Images (n, h, w) or (n, h, w, c) with their labels, or None, and names."""

    X: np.ndarray
    y: np.ndarray | None
    names: list[str]


def read_labelled(path, size, mode, skip_broken):
    """Return the training images of a folder or archive, and test images or None."""
    if path.is_dir():
        return _read_class_folders(path, size, mode, skip_broken), None
    if size is not None or mode != "auto":
        raise UsageError(
            "--size and --mode are for folders; arrays are taken as they are"
        )
    place = f"DATA {path}"
    arrays = read_archive(place, path, *LABELLED, also=("X_test", "y_test"))
    names = [name for name in arrays if name.startswith("X")]
    for name in names:
        for fault in find_faults(arrays, name, name.replace("X", "y", 1)):
            raise UsageError(f"{place}: {fault}")
    check_alike(place, arrays)
    return *(_of_archive(arrays, name) for name in names), *[None] * (2 - len(names))


def read_unlabelled(path, model, skip_broken):
    """Return images of a folder, file or archive at the image size of a model."""
    height, width, channels = model.image_shape_
    if path.suffix.lower() != ".npz":
        images = read_files(path, model, skip_broken)
        folders = [Path(name).parent.name for name in images.names]
        known = set(map(str, model.classes_))
        if set(folders) <= known:
            labels = {str(label): label for label in model.classes_}
            y = np.array([labels[name] for name in folders])
            return Images(images.X, y, images.names)
        return images
    place = f"DATA {path}"
    arrays = read_archive(place, path, *UNLABELLED)
    [(name, X)] = arrays.items()
    for fault in _image_faults(name, X):
        raise UsageError(f"{place}: {fault}")
    shape = X.shape[1:] if X.ndim == 4 else (*X.shape[1:], 1)
    if shape != (height, width, channels):
        raise UsageError(
            f"{place}: {name} has images of shape {shape}, the model was trained on "
            f"{model.image_shape_}; bring them to that shape"
        )
    return Images(X, None, [f"{name}[{i}]" for i in range(len(X))])


def read_files(path, model, skip_broken=False):
    """Return the image files of a folder, or one file, at the size of a model."""
    height, width, channels = model.image_shape_
    if channels not in (1, 3):
        raise UsageError(
            f"{path}: the model sees images of {channels} channels, which no file "
            "has; pass an .npz archive"
        )
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    files = [path]
    if path.is_dir():
        files = _said_well(path, lambda: find_images(path))
    if not files:
        raise UsageError(f"{path}: has no image files")
    options = {"size": (height, width), "mode": "gray" if channels == 1 else "rgb"}
    options["on_error"] = "skip" if skip_broken else "raise"
    X, read = _said_well(path, lambda: read_images(files, **options))
    if X is None:
        raise UsageError(f"{path}: has no image files that can be read")
    base = path if path.is_dir() else path.parent
    names = [str(file.relative_to(base)) for file in np.array(files)[read]]
    if model.scale_ == 1.0:  # trained on an archive of floats of order one
        X = X / np.float32(255)
    return Images(X, None, names)


def _read_class_folders(path, size, mode, skip_broken):
    """Return the images of a folder with a subfolder for each class."""
    if size is None:
        size = _said_well(path, lambda: _default_size(find_images(path)))
    on_error = "skip" if skip_broken else "raise"
    options = {"size": size, "mode": mode, "on_error": on_error}
    images = _said_well(path, lambda: load_image_folder(path, **options))
    names = [str(Path(name).relative_to(path)) for name in images.filenames]
    return Images(images.data, images.target_names[images.target], names)


def _default_size(files):
    """Return rows and columns for image files; None where all have one small size."""
    from PIL import Image

    sizes = set()
    for file in files:
        try:
            with Image.open(file) as image:
                sizes.add(image.size[::-1])
        except Exception:  # of any type; said where it is read
            continue
    if not sizes:
        return None
    largest = max(map(max, sizes))
    if len(sizes) == 1 and largest <= LARGEST_SIDE:
        return None
    height, width = np.median(list(sizes), axis=0)
    scale = min(1.0, LARGEST_SIDE / max(height, width))
    size = tuple(max(1, round(side * scale)) for side in (height, width))
    ends = " to ".join(
        f"{h} x {w}" for h, w in sorted({min(sizes), max(sizes)}, key=np.prod)
    )
    print(
        f"Images of {ends} pixels are resized to {size[0]} x {size[1]}, and cropped "
        "to these proportions; --size sets another size"
    )
    return size


def _said_well(path, read):
    """Return what a function reads; its errors and warnings become one line each."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = read()
    except ImportError as error:
        raise UsageError(str(error)) from error
    except (ValueError, NotADirectoryError) as error:
        message = str(error).replace('on_error="skip"', "--skip-broken")
        raise UsageError(f"DATA {path}: {message}") from error
    for warning in caught:
        print(f"skconvrfm: warning: {warning.message}", file=sys.stderr)
    return found


def read_archive(place, path, *alternatives, also=()):
    """Return arrays of an .npz file: the first keys that are all there, and others.

    ``place`` names the file in messages; all keys of ``also`` are read, or none.
    """
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            wanted = [", ".join(keys) for keys in alternatives]
            if not isinstance(archive, np.lib.npyio.NpzFile):
                keys = ", ".join(f"{key}=..." for key in alternatives[0])
                how = f"save an archive with np.savez({path.stem!r}, {keys})"
                raise UsageError(f"{place}: holds one array; {how}")
            complete = [keys for keys in alternatives if set(keys) <= set(archive)]
            if not complete:
                has = ", ".join(archive) or "nothing"
                lacks = " or ".join(wanted)
                if len(alternatives) == 1:
                    lacks = ", ".join(k for k in alternatives[0] if k not in archive)
                raise UsageError(f"{place}: lacks {lacks}; it has {has}")
            keys = complete[0] + (tuple(also) if set(also) <= set(archive) else ())
            return {key: archive[key] for key in keys}
    except OSError as error:
        raise UsageError(f"{place}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        fault = f"cannot be read as an .npz file of plain arrays ({error})"
        raise UsageError(f"{place}: {fault}") from error


def find_faults(arrays, images, labels):
    """Yield, in words, what makes arrays of an archive, by name, unusable."""
    X, y = arrays[images], arrays[labels]
    yield from _image_faults(images, X)
    if y.ndim != 1 or y.dtype.kind not in "biufUS":
        expected = "it must hold one label an image, shape (n,)"
        yield f"{labels} has shape {y.shape} and dtype {y.dtype}; {expected}"
    if y.dtype.kind == "f" and (
        not np.isfinite(y).all() or type_of_target(y) == "continuous"
    ):
        yield f"{labels} has values that are no class labels; save integers"
    if len(X) != len(y):
        yield f"{images} has {len(X)} images, but {labels} has {len(y)} labels"


def _image_faults(name, X):
    if X.ndim not in (3, 4) or 0 in X.shape:
        fit = f"{SHAPES}, with at least one image"
        yield f"{name} has shape {X.shape}; it must be {fit}"
    if X.dtype not in (np.uint8, np.float32, np.float64):
        fit = "uint8, float32 or float64 images"
        yield f"{name} has dtype {X.dtype}; save {fit}"
    if not np.isfinite(X).all():
        yield f"{name} has NaN or infinite pixels"


def check_alike(place, arrays):
    """Refuse test images or labels of another kind than those of training."""
    (train, first), *others = ((n, a) for n, a in arrays.items() if n[0] == "X")
    for name, images in others:
        if images.shape[1:] != first.shape[1:]:
            shapes = (
                f"the images of {train} have shape {first.shape[1:]}, those of {name} "
                f"{images.shape[1:]}"
            )
            raise UsageError(f"{place}: {shapes}; they must be equal")
        own, other = arrays["y" + train[1:]].dtype, arrays["y" + name[1:]].dtype
        if (own.kind in "US") != (other.kind in "US"):
            dtypes = f"y{train[1:]} has dtype {own}, y{name[1:]} {other}"
            raise UsageError(f"{place}: {dtypes}; both must be numbers or both text")


def _of_archive(arrays, name):
    y = arrays[name.replace("X", "y", 1)]
    return Images(arrays[name], y, [f"{name}[{i}]" for i in range(len(y))])
