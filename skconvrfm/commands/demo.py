"""``skconvrfm demo``: learned features against fixed ones on one data set.

Trains feature layers with a Gaussian and a linear readout, ConvRFM, its fixed kernel, a
tuned SVC and a random forest, prints their accuracy and costs, draws the metric and
explains a prediction.
"""

import functools
import os
import time
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
from sklearn.svm import SVC
from sklearn.utils import check_random_state

from .. import _command_line as cli
from ..compute.memory import MemoryMeter, give_back_free_memory
from ..datasets import load_digit_images, make_framed_digits
from ..display import ExplanationDisplay, PatchFiltersDisplay, RoundsDisplay
from ..estimators import ConvRFMClassifier
from ..features import ConvFeatures
from ..kernels import ConvNTK
from .data import check_alike, find_faults, read_archive
from .screen import Screen, installed

DESCRIPTION = (
    "Compare the machines of this package on one data set. Trains feature layers with "
    "two readouts, ConvRFM, its fixed kernel, a tuned RBF SVC and a random forest, and "
    "draws what they have learned."
)
EPILOG = (
    "Without --data: scikit-learn's digits, pasted at random places into frames of "
    "noise."
)
KEYS = ("X_train", "y_train", "X_test", "y_test")
BEST = "features, Gaussian"
# More images do not change which C and gamma win, they only make the search slow.
SVC_SEARCH_IMAGES = 2000


def run(options):
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
    print_results(screen, results, models)
    draw_pictures(screen, models, split, folder)
    screen.line("Next, with a folder that has a subfolder of images for each class:")
    screen.line("  skconvrfm train FOLDER --out model.skops")


def add_options(parser):
    """Add the options of the command to a parser."""
    parser.epilog = EPILOG

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
    add("--patch-size P", cli.pair, 3, patch)
    place = "where to compute: cpu, cuda, cuda:1, auto (CUDA where there is one)"
    add("--device DEVICE", str, "auto", place)
    add("--out FOLDER", Path, Path("skconvrfm-output"), "where the pictures go")
    seed = cli.integer(from_=0, to=2**32 - 1)
    add("--seed N", seed, 0, "seed of everything that is drawn at random")


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
    place = f"--data {path}"
    arrays = read_archive(place, path, KEYS)
    faults = find_faults(arrays, "X_train", "y_train")
    for fault in chain(faults, find_faults(arrays, "X_test", "y_test")):
        raise cli.UsageError(f"{place}: {fault}")
    check_alike(place, arrays)
    return Split(path.name, **arrays)


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
        BEST: ConvRFMClassifier("gaussian", layers, **learned),
        "features, linear": ConvRFMClassifier("linear", features, **learned),
        "ConvRFM": ConvRFMClassifier(kernel, **learned, verbose=1),
        "fixed kernel": ConvRFMClassifier(kernel, **common, n_rounds=0),
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


def print_results(screen, results, models):
    """Print the table of all models, the best one, and the round that ConvRFM kept."""
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
    best = max(accuracy, key=accuracy.get)
    screen.line(f"Best on the test images: {best}, {accuracy[best]:.1%}.")
    gain, convrfm = (
        100 * (accuracy["ConvRFM"] - accuracy["fixed kernel"]),
        models["ConvRFM"],
    )
    last = convrfm.history_["round"][-1]
    chosen = f"chosen by {convrfm.selection.upper()} on the training images"
    kept = f"ConvRFM kept round {convrfm.best_round_} of 0 to {last}, {chosen}"
    screen.line(f"{kept}: {gain:+.1f} points on its fixed kernel.")


def _megabytes(size):
    """Return bytes as text."""
    return "unknown" if size is None else f"{size / 2**20:.0f} MB"


def draw_pictures(screen, models, split, folder):
    """Write the pictures, or say what they need."""
    if not installed("matplotlib"):
        screen.line('For the pictures: pip install "skconvrfm[plot]"')
        return
    # Figures without pyplot need no display and no choice of a backend.
    from matplotlib.figure import Figure

    explained = Figure(figsize=(10, 3.2), layout="constrained")
    row = split.X_test[:1].reshape(-1)
    ExplanationDisplay.from_estimator(models[BEST], row, ax=explained.subplots())
    convrfm = models["ConvRFM"]
    rounds = Figure(figsize=(11, 3.2), layout="constrained")
    RoundsDisplay.from_estimator(convrfm, ax=rounds.subplots())
    patterns = Figure(figsize=(9.2, 1.8), layout="constrained")
    PatchFiltersDisplay.from_estimator(convrfm, ax=patterns.subplots())
    patterns.suptitle("Leading eigenvectors of the patch AGOP, share of the trace")
    for figure, name, what in (
        (explained, "explanation.png", f"{BEST}: a test image, and why its class"),
        (rounds, "rounds.png", "ConvRFM by round"),
        (patterns, "patch_agop.png", "patterns that ConvRFM responds to"),
    ):
        picture = functools.partial(figure.savefig, dpi=150, format="png")
        cli.write_output("--out", folder / name, picture)
        screen.line(f"Picture: {folder / name} ({what})")
