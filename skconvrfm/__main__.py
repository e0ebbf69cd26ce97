"""``python -m skconvrfm``: learned features against fixed ones on one data set.

Trains a fixed kernel, ConvRFM, feature layers with a linear and a Gaussian readout, a
tuned SVC and a random forest, prints their accuracy and costs, draws the metric.
"""

import argparse
import contextlib
import functools
import importlib.util
import os
import sys
import time
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
from sklearn.svm import SVC
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import type_of_target

from . import _command_line as cli
from .compute.memory import MemoryMeter, give_back_free_memory
from .datasets import load_digit_images, make_framed_digits
from .display import PatchFiltersDisplay, RoundsDisplay
from .estimators import ConvRFMClassifier
from .features import ConvFeatures
from .kernels import ConvNTK

PROGRAM = "python -m skconvrfm"
KEYS = ("X_train", "y_train", "X_test", "y_test")
# More images do not change which C and gamma win, they only make the search slow.
SVC_SEARCH_IMAGES = 2000


def main(argv=None):
    """Run the command line on a list of arguments, and return its exit code."""
    return cli.run_command(PROGRAM, lambda: compare(parse_options(argv)))


def compare(options):
    """Compare the models on the data that the options ask for."""
    device = cli.check_device(options.device)
    split = load_split(options)
    folder = make_folder(options.out)
    screen = Screen()
    screen.line(f"{split.describe()}; device {device}")
    models, results = make_models(options, split), []
    for number, (name, model) in enumerate(models.items(), start=1):
        label = f"[{number}/{len(models)}] {name}"
        with screen.busy(f"{label} ..."):
            result = evaluate(name, model, split, device)
        score = f"{result.accuracy:.1%} of the test images"
        seconds = result.fit_seconds + result.predict_seconds
        screen.line(f"{label}: {score}, {seconds:.1f} s")
        results.append(result)
    print_results(screen, results, models["ConvRFM"])
    draw_pictures(screen, models["ConvRFM"], folder)


def parse_options(argv=None):
    """Parse the command line; raise UsageError if it is wrong."""
    parser = cli.Parser(
        prog=PROGRAM,
        description="Compare ConvRFM with its fixed kernel, feature layers, a tuned "
        "RBF SVC and a random forest on one data set, and draw what it has learned.",
        epilog="Without --data: scikit-learn's digits, pasted at random places into "
        "frames of noise.",
    )

    def add(option, kind, default, text):
        name, value = option.split()
        if default is not None:
            text = f"{text} (default: {default})"
        parser.add_argument(name, metavar=value, type=kind, default=default, help=text)

    images = (
        "your own images: a NumPy archive with X_train and X_test of shape (n, rows, "
        "columns) or (n, rows, columns, channels) and labels y_train and y_test of "
        "shape (n,). Images whose values are all from 0 to 255, some beyond 1.5, are "
        "divided by 255"
    )
    add("--data FILE.npz", Path, None, images)
    part = (
        "train on N of the training images, drawn by class and by --seed (default: all "
        "of them; there are 1000 digits to train on)"
    )
    add("--n-train N", cli.integer(from_=2), None, part)
    rounds = "rounds of feature learning after the first fit"
    add("--rounds N", cli.integer(from_=0), 4, rounds)
    add("--depth N", cli.integer(from_=1), 3, "layers of the convolutional kernel")
    patch = "pixels of a patch, as 3 or as rows x columns, 5x3"
    add("--patch-size P", _patch_size, 3, patch)
    place = "where to compute: cpu, cuda, cuda:1, auto (CUDA where there is one)"
    add("--device DEVICE", str, "auto", place)
    add("--out FOLDER", Path, Path("skconvrfm-output"), "where the pictures go")
    seed = cli.integer(from_=0, to=2**32 - 1)
    add("--seed N", seed, 0, "seed of everything that is drawn at random")
    return parser.parse_args(argv)


def _patch_size(text):
    """Return the sizes in a text such as 3 or 5x3, as argparse's type of an option."""
    sizes = text.lower().split("x")
    if len(sizes) > 2 or not all(size.isdecimal() and int(size) for size in sizes):
        needs = "needs a positive integer, or two as in 5x3"
        raise argparse.ArgumentTypeError(f"{needs}, got {text!r}")
    return int(text) if len(sizes) == 1 else tuple(map(int, sizes))


def make_folder(path):
    """Make the folder for the pictures before anything is computed."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{error.strerror}; name another folder"
        raise cli.UsageError(f"--out {path}: {reason}") from error
    if not os.access(path, os.W_OK):
        raise cli.UsageError(f"--out {path}: is not writable; name another folder")
    return path


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
        """Return one line on its contents."""
        pixels = " x ".join(map(str, self.image_shape))
        return (
            f"{self.name}: {len(self.X_train)} training and {len(self.X_test)} test "
            f"images of {pixels}, {len(np.unique(self.y_train))} classes"
        )


def load_split(options):
    """Return the images that the options ask for."""
    split = read_npz(options.data) if options.data else embedded_split(options.seed)
    X, y = split.X_train, split.y_train
    n, images = options.n_train or len(y), f"training images of {split.name}"
    if n > len(y):
        raise cli.UsageError(f"--n-train {n} is more than the {len(y)} {images}")
    chosen = draw_by_class(y, n, options.seed)
    if len(np.unique(y[chosen])) < 2:
        raise cli.UsageError(f"the {n} {images} are all of one class, two are needed")
    return replace(split, X_train=X[chosen], y_train=y[chosen])


def embedded_split(seed):
    """Return framed digits: 1000 images to train on, and 797 to test."""
    images, y = load_digit_images(return_X_y=True)
    X, y = make_framed_digits(images.astype(np.float32), y, random_state=seed)
    test = draw_by_class(y, 797, seed)
    train = np.setdiff1d(np.arange(len(y)), test)
    return Split("framed digits", X[train], y[train], X[test], y[test])


def draw_by_class(y, n, seed):
    """Return indices of `n` entries of y, every class in proportion to its size."""
    rng, position = check_random_state(seed), np.empty(len(y))
    # Each class is shuffled and spread evenly over 0 to 1, the first n are taken.
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        places = (np.arange(members.size) + rng.uniform()) / members.size
        position[members] = rng.permutation(places)
    return np.sort(np.argsort(position, kind="stable")[:n])


def read_npz(path):
    """Return the user's images, checked for all models."""
    option = f"--data {path}"
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                keys = ", ".join(f"{key}=..." for key in KEYS)
                how = f"save an archive with np.savez({path.stem!r}, {keys})"
                raise cli.UsageError(f"{option}: holds one array; {how}")
            missing = ", ".join(key for key in KEYS if key not in archive)
            if missing:
                has = ", ".join(archive) or "nothing"
                raise cli.UsageError(f"{option}: lacks {missing}; it has {has}")
            arrays = {key: archive[key] for key in KEYS}
    except OSError as error:
        raise cli.UsageError(f"{option}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        fault = f"cannot be read as an .npz file of plain arrays ({error})"
        raise cli.UsageError(f"{option}: {fault}") from error
    for fault in _find_faults(arrays):
        raise cli.UsageError(f"{option}: {fault}")
    return Split(path.name, **arrays)


def _find_faults(arrays):
    """Yield, in words, what makes the arrays of an archive unusable."""
    for part in ("train", "test"):
        images, labels = arrays[f"X_{part}"], arrays[f"y_{part}"]
        X, y = f"X_{part} has", f"y_{part} has"
        if images.ndim not in (3, 4) or 0 in images.shape:
            fit = "(n, rows, columns) or (n, rows, columns, channels)"
            yield f"{X} shape {images.shape}; it must be {fit}, with at least one image"
        if images.dtype not in (np.uint8, np.float32, np.float64):
            fit = "uint8, float32 or float64 images"
            yield f"{X} dtype {images.dtype}; save {fit}"
        if not np.isfinite(images).all():
            yield f"{X} NaN or infinite pixels"
        if labels.ndim != 1 or labels.dtype.kind not in "biufUS":
            expected = "it must hold one label an image, shape (n,)"
            yield f"{y} shape {labels.shape} and dtype {labels.dtype}; {expected}"
        if labels.dtype.kind == "f" and (
            not np.isfinite(labels).all() or type_of_target(labels) == "continuous"
        ):
            yield f"{y} values that are no class labels; save integers"
        if len(images) != len(labels):
            yield f"{X} {len(images)} images, but {y} {len(labels)} labels"
    train, test = (arrays[name].shape[1:] for name in ("X_train", "X_test"))
    if train != test:
        shapes = f"the images of X_train have shape {train}, those of X_test {test}"
        yield f"{shapes}; they must be equal"
    train, test = (arrays[name].dtype for name in ("y_train", "y_test"))
    if (train.kind in "US") != (test.kind in "US"):
        dtypes = f"y_train has dtype {train}, y_test {test}"
        yield f"{dtypes}; both must be numbers or both text"


def make_models(options, split):
    """Return the models by name, in the order of the table; all take flat rows."""
    common = {"image_shape": split.image_shape, "device": options.device}
    common["random_state"] = options.seed
    learned = {**common, "n_rounds": options.rounds}
    kernel = ConvNTK(options.depth, patch_size=options.patch_size)
    # One feature layer sees as much of an image as all layers of the kernel.
    sizes = np.broadcast_to(options.patch_size, 2).tolist()
    field = tuple(1 + options.depth * (size - 1) for size in sizes)
    features = ConvFeatures(patch_size=field)
    layers = "auto" if options.data else two_layers()
    svc = tuned_svc(split, options.seed)
    trees = {"n_estimators": 500, "n_jobs": -1, "random_state": options.seed}
    return {
        "fixed kernel": ConvRFMClassifier(kernel, **common, n_rounds=0),
        "ConvRFM": ConvRFMClassifier(kernel, **learned, verbose=1),
        "features, linear": ConvRFMClassifier("linear", features, **learned),
        "features, Gaussian": ConvRFMClassifier("gaussian", layers, **learned),
        "RBF SVC, tuned" if isinstance(svc, GridSearchCV) else "RBF SVC": svc,
        "random forest": RandomForestClassifier(**trees),
    }


def two_layers():
    """Return layers for small objects that stand anywhere in noise.

    Of images of 12×12 pixels `features="auto"` makes one layer.
    """
    chosen = {"patch_size": 3, "candidates": 4, "learn": False}
    return [
        ConvFeatures(64, pool_size=1, **chosen),
        ConvFeatures(256, pool="norm", pool_grid=2, shrinkage=3.0, **chosen),
    ]


def tuned_svc(split, seed):
    """Return an RBF SVC that looks for C and gamma on the training images alone.

    A class with a single image cannot be held out: the SVC then is not tuned. Pixels
    are not standardised: that would blow up those of the border that hardly change.
    gamma is searched around scikit-learn's "scale".
    """
    _, counts = np.unique(split.y_train, return_counts=True)
    if counts.min() < 2:
        return SVC()
    scale = 1 / (np.prod(split.image_shape) * (float(split.X_train.var()) or 1.0))
    n_search = min(len(split.y_train), max(SVC_SEARCH_IMAGES, 2 * len(counts)))
    n_held_out = max(n_search // 3, len(counts))
    sizes = {"train_size": n_search - n_held_out, "test_size": n_held_out}
    splits = StratifiedShuffleSplit(3, **sizes, random_state=seed)
    grid = {"C": [1, 10, 100], "gamma": [scale * factor for factor in (0.3, 1, 3, 10)]}
    return GridSearchCV(SVC(), grid, cv=splits)


@dataclass(frozen=True)
class Result:
    """Accuracy and costs of one model."""

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
        accuracy = float(np.mean(model.predict(rows_test) == split.y_test))
        predicted = time.perf_counter()
    memory = meter.host, meter.gpu
    return Result(name, accuracy, fitted - start, predicted - fitted, *memory)


class Screen:
    """Standard output: with rich if it is installed, else plain text."""

    def __init__(self):
        self.console, self.line = None, functools.partial(print, flush=True)
        if installed("rich"):
            from rich.console import Console

            self.console = Console(highlight=False, markup=False, soft_wrap=True)
            self.line = self.console.print

    def busy(self, text):
        """Return a context in which a terminal shows that work is under way."""
        if self.console is None or not self.console.is_terminal:
            self.line(text)
            return contextlib.nullcontext()
        return self.console.status(text)

    def table(self, header, rows, best):
        """Print a table: the first column is text, the others numbers."""
        if self.console is None:
            _print_table(header, rows)
            return
        from rich.table import Table

        table = Table()
        for column, name in enumerate(header):
            table.add_column(name, justify="right" if column else "left")
        for number, row in enumerate(rows):
            table.add_row(*row, style="bold" if number == best else None)
        self.console.print(table)


def _print_table(header, rows):
    """Print a table in plain text."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for first, *rest in [header, ["-" * width for width in widths], *rows]:
        cells = [cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))


def installed(module):
    """Return True if an optional dependency is there."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a module that was replaced by None
        return False


def print_results(screen, results, convrfm):
    """Print the table of all models, and the round that ConvRFM kept."""
    header = ["model", "test accuracy", "fit", "predict", "peak memory", "on the GPU"]
    rows = []
    for result in results:
        times = f"{result.fit_seconds:.1f} s", f"{result.predict_seconds:.2f} s"
        memory = map(_megabytes, (result.memory, result.gpu_memory))
        rows.append([result.name, f"{result.accuracy:.1%}", *times, *memory])
    if all(result.gpu_memory is None for result in results):
        header, *rows = (row[:-1] for row in (header, *rows))
    accuracy = {result.name: result.accuracy for result in results}
    screen.line("")
    screen.table(header, rows, best=int(np.argmax(list(accuracy.values()))))
    screen.line("Peak memory: the most that fit and predict needed beyond the data.")
    gain = 100 * (accuracy["ConvRFM"] - accuracy["fixed kernel"])
    last = convrfm.history_["round"][-1]
    chosen = f"chosen by {convrfm.selection.upper()} on the training images"
    kept = f"ConvRFM kept round {convrfm.best_round_} of 0 to {last}, {chosen}"
    screen.line(f"{kept}: {gain:+.1f} points on its fixed kernel.")


def _megabytes(size):
    """Return bytes as text."""
    return "unknown" if size is None else f"{size / 2**20:.0f} MB"


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
        cli.write_output("--out", folder / name, picture)
        screen.line(f"Picture: {folder / name}")


if __name__ == "__main__":
    sys.exit(main())
