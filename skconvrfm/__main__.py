"""``python -m skconvrfm``: what learned features bring on one data set.

Trains a fixed convolutional kernel, ConvRFM, a support vector machine with a tuned
RBF kernel and a random forest on the same images, prints what each of them costs
and gets right, and draws what ConvRFM has learned.
"""

import argparse
import contextlib
import ctypes
import functools
import gc
import importlib.util
import os
import sys
import threading
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
from sklearn.svm import SVC
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import type_of_target

from . import ConvRFMClassifier
from .commands import (
    Parser,
    UsageError,
    check_device,
    integer,
    run_command,
    write_output,
)
from .datasets import load_digit_images, make_framed_digits
from .display import PatchFiltersDisplay, RoundsDisplay

PROGRAM = "python -m skconvrfm"
KEYS = ("X_train", "y_train", "X_test", "y_test")
EMBEDDED_TEST = 797
# More images do not change which C and gamma win, they only make the search slow.
SVC_SEARCH_IMAGES = 2000
MEGABYTE = 2**20


def main(argv=None):
    """Run the command line.

    Parameters
    ----------
    argv : list of str, default=None
        Arguments; by default those of the process.

    Returns
    -------
    int
        Exit code, see `run_command`.
    """
    return run_command(PROGRAM, lambda: compare(parse_options(argv)))


def compare(options):
    """Compare the models on the data that the options ask for."""
    device = check_device(options.device)
    split = load_split(options)
    folder = make_folder(options.out)
    screen = Screen()
    screen.line(f"{split.describe()}; device {device}")
    models = make_models(options, split)
    results = [
        screen_result(screen, number, len(models), model, split, device)
        for number, model in enumerate(models.items(), start=1)
    ]
    print_results(screen, results)
    convrfm = models["ConvRFM"]
    print_rounds(screen, results, convrfm)
    draw_pictures(screen, convrfm, folder)


# ------------------------------------------------------------------ options


def parse_options(argv=None):
    """Parse the command line; raise UsageError if it is wrong."""
    parser = Parser(
        prog=PROGRAM,
        description="Compare ConvRFM with its fixed kernel, a tuned RBF SVC and a "
        "random forest on one data set, and draw what it has learned.",
        epilog="Without --data: scikit-learn's digits, pasted at random places into "
        "frames of noise.",
    )
    add = parser.add_argument
    add(
        "--data",
        metavar="FILE.npz",
        type=Path,
        help="your own images: a NumPy archive with X_train and X_test of shape "
        "(n, rows, columns) or (n, rows, columns, channels) and labels y_train and "
        "y_test of shape (n,). uint8 images are divided by 255 into [0, 1], floats "
        "are taken as they are",
    )
    add(
        "--n-train",
        metavar="N",
        type=integer(from_=2),
        help="train on N of the training images, drawn by class and by --seed "
        "(default: all of them; there are 1000 digits to train on)",
    )
    add(
        "--rounds",
        metavar="N",
        type=integer(from_=0),
        default=4,
        help="rounds of feature learning after the first fit (default: 4)",
    )
    add(
        "--depth",
        metavar="N",
        type=integer(from_=1),
        default=3,
        help="layers of the convolutional kernel (default: 3)",
    )
    add(
        "--patch-size",
        metavar="P",
        type=_patch_size,
        default=3,
        help="pixels of a patch, as 3 or as rows x columns, 5x3 (default: 3)",
    )
    add(
        "--device",
        default="auto",
        help="where the kernel is computed: auto, cpu, cuda, cuda:1 (default: auto, "
        "which is CUDA where there is one)",
    )
    add(
        "--out",
        metavar="FOLDER",
        type=Path,
        default=Path("skconvrfm-output"),
        help="where the pictures go (default: skconvrfm-output)",
    )
    add(
        "--seed",
        metavar="N",
        type=integer(from_=0, to=2**32 - 1),
        default=0,
        help="seed of everything that is drawn at random (default: 0)",
    )
    return parser.parse_args(argv)


def _patch_size(text):
    """An argparse type: 3 or 5x3."""
    sizes = text.lower().split("x")
    if len(sizes) > 2 or not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(
            f"needs a positive integer, or two as in 5x3, got {text!r}"
        )
    return int(text) if len(sizes) == 1 else tuple(map(int, sizes))


def make_folder(path):
    """Make the folder for the pictures before anything is computed."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out {path}: {error.strerror}; name another folder"
        ) from error
    if not os.access(path, os.W_OK):
        raise UsageError(f"--out {path}: is not writable; name another folder")
    return path


# --------------------------------------------------------------------- data


@dataclass(frozen=True)
class Split:
    """Training and test images, (n, rows, columns) or (n, rows, columns, channels)."""

    name: str
    X_train: np.ndarray
    y_train: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray

    @property
    def image_shape(self):
        """Shape of one image."""
        return self.X_train.shape[1:]

    def describe(self):
        """One line that says what is in it."""
        pixels = " x ".join(map(str, self.image_shape))
        return (
            f"{self.name}: {len(self.X_train)} training and {len(self.X_test)} test "
            f"images of {pixels}, {len(np.unique(self.y_train))} classes"
        )

    def training_subset(self, n_train, seed):
        """The same split with `n_train` training images, in proportion to classes."""
        chosen = draw_by_class(self.y_train, n_train, seed)
        return Split(
            self.name,
            self.X_train[chosen],
            self.y_train[chosen],
            self.X_test,
            self.y_test,
        )


def load_split(options):
    """The images that the options ask for."""
    if options.data is None:
        split = embedded_split(options.seed)
    else:
        split = read_npz(options.data)
    n_train = options.n_train or len(split.y_train)
    if n_train > len(split.y_train):
        raise UsageError(
            f"--n-train {n_train} is more than the {len(split.y_train)} training "
            f"images of {split.name}"
        )
    split = split.training_subset(n_train, options.seed)
    if len(np.unique(split.y_train)) < 2:
        raise UsageError(
            f"the {n_train} training images of {split.name} are all of one class, two "
            "are needed"
        )
    return split


def embedded_split(seed):
    """Framed digits: 1000 images to train on, and 797 to test."""
    images, y = load_digit_images(return_X_y=True)
    X, y = make_framed_digits(images.astype(np.float32), y, random_state=seed)
    test = draw_by_class(y, EMBEDDED_TEST, seed)
    train = np.setdiff1d(np.arange(len(y)), test)
    return Split("framed digits", X[train], y[train], X[test], y[test])


def draw_by_class(y, n, seed):
    """Indices of `n` entries of y, every class in proportion to its size.

    Works for any n and any class sizes: each class is shuffled and spread evenly
    over the interval from 0 to 1, and the first n of all classes are taken.
    """
    rng = check_random_state(seed)
    position = np.empty(len(y))
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        places = (np.arange(members.size) + rng.uniform()) / members.size
        position[members] = rng.permutation(places)
    return np.sort(np.argsort(position, kind="stable")[:n])


def read_npz(path):
    """The user's images, checked so that no model is asked the impossible."""
    arrays = _read_arrays(path)
    for part in ("train", "test"):
        images, labels = arrays[f"X_{part}"], arrays[f"y_{part}"]
        arrays[f"X_{part}"] = _check_images(path, f"X_{part}", images)
        _check_labels(path, f"y_{part}", labels)
        if len(images) != len(labels):
            raise UsageError(
                f"--data {path}: X_{part} has {len(images)} images, but y_{part} has "
                f"{len(labels)} labels"
            )
    train, test = arrays["X_train"], arrays["X_test"]
    if train.shape[1:] != test.shape[1:]:
        raise UsageError(
            f"--data {path}: the images of X_train have shape {train.shape[1:]}, those "
            f"of X_test {test.shape[1:]}; they must be equal"
        )
    kinds = [arrays[name].dtype for name in ("y_train", "y_test")]
    if len({kind.kind in "US" for kind in kinds}) > 1:
        raise UsageError(
            f"--data {path}: y_train has dtype {kinds[0]}, y_test {kinds[1]}; both "
            "must be numbers or both text"
        )
    return Split(path.name, **arrays)


def _read_arrays(path):
    """The four arrays of the archive."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UsageError(
                    f"--data {path}: holds one array; save an archive with "
                    f"np.savez({path.stem!r}, X_train=..., y_train=..., X_test=..., "
                    "y_test=...)"
                )
            missing = [key for key in KEYS if key not in archive]
            if missing:
                raise UsageError(
                    f"--data {path}: lacks {', '.join(missing)}; it has "
                    f"{', '.join(archive) or 'nothing'}"
                )
            return {key: archive[key] for key in KEYS}
    except OSError as error:
        raise UsageError(f"--data {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(
            f"--data {path}: cannot be read as an .npz file of plain arrays ({error})"
        ) from error


def _check_images(path, name, images):
    """Finite float images; uint8 scaled to [0, 1]."""
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise UsageError(
            f"--data {path}: {name} has shape {images.shape}; it must be (n, rows, "
            "columns) or (n, rows, columns, channels), with at least one image"
        )
    if images.dtype == np.uint8:
        return images / np.float32(255)
    if images.dtype not in (np.float32, np.float64):
        raise UsageError(
            f"--data {path}: {name} has dtype {images.dtype}; save uint8 images (0 to "
            "255), or float32 or float64 images of order one"
        )
    if not np.isfinite(images).all():
        raise UsageError(f"--data {path}: {name} has NaN or infinite pixels")
    return images


def _check_labels(path, name, labels):
    """Refuse what is not one class label an image."""
    if labels.ndim != 1 or labels.dtype.kind not in "biufUS":
        raise UsageError(
            f"--data {path}: {name} has shape {labels.shape} and dtype {labels.dtype}; "
            "it must hold one label an image, shape (n,)"
        )
    if labels.dtype.kind == "f" and (
        not np.isfinite(labels).all() or type_of_target(labels) == "continuous"
    ):
        raise UsageError(
            f"--data {path}: {name} has values that are no class labels; save integers"
        )


# ------------------------------------------------------------------- models


def make_models(options, split):
    """The models by name, in the order of the table; all take flat rows."""
    common = {
        "image_shape": split.image_shape,
        "device": options.device,
        "random_state": options.seed,
    }
    kernel = {
        **common,
        "method": "exact",
        "depth": options.depth,
        "patch_size": options.patch_size,
    }
    # One layer of features sees as much of an image as all layers of the kernel.
    field = tuple(
        1 + options.depth * (size - 1)
        for size in np.broadcast_to(options.patch_size, 2).tolist()
    )
    svc = tuned_svc(split, options.seed)
    return {
        "fixed kernel": ConvRFMClassifier(**kernel, n_rounds=0),
        "ConvRFM": ConvRFMClassifier(**kernel, n_rounds=options.rounds, verbose=1),
        "ConvRFM, features": ConvRFMClassifier(
            **common, method="features", patch_size=field, n_rounds=options.rounds
        ),
        "RBF SVC, tuned" if isinstance(svc, GridSearchCV) else "RBF SVC": svc,
        "random forest": RandomForestClassifier(
            n_estimators=500, n_jobs=-1, random_state=options.seed
        ),
    }


def tuned_svc(split, seed):
    """An RBF SVC that looks for C and gamma on the training images alone.

    A class with a single image cannot be held out: the SVC then is not tuned.
    All pixels have one unit, so they are not standardised: that would blow up the
    pixels of the border that hardly ever change. gamma is searched around
    scikit-learn's "scale", 1 / (number of pixels · variance of the pixels).
    """
    _, counts = np.unique(split.y_train, return_counts=True)
    if counts.min() < 2:
        return SVC()
    variance = float(split.X_train.var()) or 1.0
    scale = 1 / (np.prod(split.image_shape) * variance)
    n_search = min(len(split.y_train), max(SVC_SEARCH_IMAGES, 2 * len(counts)))
    n_held_out = max(n_search // 3, len(counts))
    return GridSearchCV(
        SVC(),
        {"C": [1, 10, 100], "gamma": [scale * factor for factor in (0.3, 1, 3, 10)]},
        cv=StratifiedShuffleSplit(
            3,
            train_size=n_search - n_held_out,
            test_size=n_held_out,
            random_state=seed,
        ),
    )


@dataclass(frozen=True)
class Result:
    """What one model got right and what it cost."""

    name: str
    accuracy: float
    fit_seconds: float
    predict_seconds: float
    memory: float | None
    gpu_memory: float | None


def evaluate(name, model, split, device):
    """Fit on the training images, score on the test images."""
    rows_train = split.X_train.reshape(len(split.X_train), -1)
    rows_test = split.X_test.reshape(len(split.X_test), -1)
    give_back_free_memory()
    with MemoryMeter(device) as meter:
        start = time.perf_counter()
        model.fit(rows_train, split.y_train)
        fitted = time.perf_counter()
        accuracy = np.mean(model.predict(rows_test) == split.y_test)
        predicted = time.perf_counter()
    return Result(
        name,
        float(accuracy),
        fitted - start,
        predicted - fitted,
        meter.host,
        meter.gpu,
    )


class MemoryMeter:
    """How far memory rises above where it was, in bytes.

    On Linux a thread looks at the resident memory every few milliseconds. Elsewhere
    the high-water mark of the process is asked before and after, which misses what
    stays below an earlier peak; where there is none, `host` is None.

    Parameters
    ----------
    device : torch.device
        If it is a GPU, its memory is measured as well.

    Attributes
    ----------
    host, gpu : float or None
        Bytes above the start, known when the block is left.
    """

    def __init__(self, device):
        self.device = device
        self.host = self.gpu = None

    def __enter__(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._gpu_start = torch.cuda.memory_allocated(self.device)
        self._start = self._peak = resident_memory()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        if self._start is None:
            self._start = high_water_mark()
        else:
            self._watcher.start()
        return self

    def __exit__(self, *exception):
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join()
        peak = high_water_mark() if self._peak is None else self._peak
        if self._start is not None:
            self.host = peak - self._start
        if self.device.type == "cuda":
            self.gpu = torch.cuda.max_memory_allocated(self.device) - self._gpu_start

    def _watch(self):
        while not self._stop.wait(0.005):
            self._peak = max(self._peak, resident_memory())


def give_back_free_memory():
    """Hand memory that earlier models have freed to the system, where it can be.

    Otherwise a model would use it again unseen, and its peak would depend on what ran
    before.
    """
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_memory():
    """Resident memory of this process in bytes, or None if the system hides it."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def high_water_mark():
    """Largest resident memory so far in bytes, or None if the system hides it."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# ------------------------------------------------------------------- output


class Screen:
    """What the user sees: with rich if it is installed, else plain text."""

    def __init__(self):
        self.console = None
        if installed("rich"):
            from rich.console import Console

            self.console = Console(highlight=False, markup=False, soft_wrap=True)

    def line(self, text):
        """Print a line."""
        if self.console is None:
            print(text, flush=True)
        else:
            self.console.print(text)

    def busy(self, text):
        """A context in which a terminal shows that something is under way."""
        if self.console is None or not self.console.is_terminal:
            self.line(text)
            return contextlib.nullcontext()
        return self.console.status(text)

    def table(self, header, rows, best):
        """Print a table: the first column is text, the others numbers."""
        if self.console is None:
            self._plain_table(header, rows)
            return
        from rich.table import Table

        table = Table()
        for column, name in enumerate(header):
            table.add_column(name, justify="right" if column else "left")
        for number, row in enumerate(rows):
            table.add_row(*row, style="bold" if number == best else None)
        self.console.print(table)

    def _plain_table(self, header, rows):
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        rule = ["-" * width for width in widths]
        for first, *rest in [header, rule, *rows]:
            cells = [first.ljust(widths[0])]
            cells += [cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True)]
            print("  ".join(cells))


def installed(module):
    """Whether an optional dependency is there."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a module that was replaced by None
        return False


def screen_result(screen, number, total, model, split, device):
    """Evaluate one model and say so while it happens."""
    name, estimator = model
    label = f"[{number}/{total}] {name}"
    with screen.busy(f"{label} ..."):
        result = evaluate(name, estimator, split, device)
    screen.line(
        f"{label}: {result.accuracy:.1%} of the test images, "
        f"{result.fit_seconds + result.predict_seconds:.1f} s"
    )
    return result


def print_results(screen, results):
    """The table of all models."""
    header = ["model", "test accuracy", "fit", "predict", "peak memory"]
    with_gpu = any(result.gpu_memory is not None for result in results)
    if with_gpu:
        header.append("on the GPU")
    rows = []
    for result in results:
        row = [
            result.name,
            f"{result.accuracy:.1%}",
            f"{result.fit_seconds:.1f} s",
            f"{result.predict_seconds:.2f} s",
            _megabytes(result.memory),
        ]
        rows.append(row + [_megabytes(result.gpu_memory)] * with_gpu)
    best = int(np.argmax([result.accuracy for result in results]))
    screen.line("")
    screen.table(header, rows, best)
    screen.line("Peak memory: the most that fit and predict needed beyond the data.")


def _megabytes(size):
    """Bytes as text."""
    return "unknown" if size is None else f"{size / MEGABYTE:.0f} MB"


def print_rounds(screen, results, convrfm):
    """Which round ConvRFM kept, and what that brought."""
    accuracy = {result.name: result.accuracy for result in results}
    gain = 100 * (accuracy["ConvRFM"] - accuracy["fixed kernel"])
    screen.line(
        f"ConvRFM kept round {convrfm.best_round_} of "
        f"0 to {convrfm.history_['round'][-1]}, chosen by "
        f"{convrfm.selection.upper()} on the training images: {gain:+.1f} points on "
        "its fixed kernel."
    )


def draw_pictures(screen, convrfm, folder):
    """Write the two pictures, or say what they need."""
    if not installed("matplotlib"):
        screen.line('For the pictures: pip install "skconvrfm[plot]"')
        return
    # Figures without pyplot need no display and no choice of a backend.
    from matplotlib.figure import Figure

    rounds = Figure(figsize=(11, 3.2), layout="constrained")
    RoundsDisplay.from_estimator(convrfm, ax=rounds.subplots())
    patterns = Figure(figsize=(9.2, 1.8), layout="constrained")
    PatchFiltersDisplay.from_estimator(convrfm, ax=patterns.subplots())
    patterns.suptitle("Leading eigenvectors of the patch AGOP, share of the trace")
    for figure, name in ((rounds, "rounds.png"), (patterns, "patch_agop.png")):
        picture = functools.partial(figure.savefig, dpi=150, format="png")
        write_output("--out", folder / name, picture)
        screen.line(f"Picture: {folder / name}")


if __name__ == "__main__":
    sys.exit(main())
