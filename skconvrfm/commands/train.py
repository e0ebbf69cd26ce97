"""``skconvrfm train``: fit a classifier on a folder of images, and save it."""

import time
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold, cross_val_score, train_test_split

from .. import _command_line as cli
from .._base import KERNELS
from ..estimators import ConvRFMClassifier
from ..features import ConvFeatures
from .data import Images, read_labelled
from .models import find_skops, save_model
from .screen import Screen

DESCRIPTION = (
    "Fit an image classifier and save it. The accuracy that is printed is that of "
    "images that were left out."
)
WHOLE = ("gaussian", "laplace", "linear")  # kernels that see features
FOLDS = 3
PATCHES = (3, 5, 7)  # of the feature layers that are tried


def add_options(parser):
    """Add the options of the command to a parser."""
    parser.add_argument(
        "data",
        metavar="DATA",
        type=Path,
        help="a folder with a subfolder of image files for each class; or a NumPy "
        "archive (.npz) with X_train and y_train, or X and y: images (n, rows, "
        "columns) or (n, rows, columns, channels), uint8 or floats, and "
        "labels (n,). With X_test and y_test their accuracy is printed too",
    )
    parser.add_argument(
        "--out", metavar="FILE.skops", type=Path, required=True, help="the model file"
    )
    parser.add_argument(
        "--kernel",
        choices=KERNELS,
        default="gaussian",
        help="(default: gaussian, of feature layers, the most accurate where measured)",
    )
    parser.add_argument(
        "--features",
        choices=("auto", "none"),
        help="feature layers below the kernel: chosen by the size of the images, or "
        "none (default: auto for gaussian, laplace and linear, none for the others)",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help=f"try several settings of the kernel or the layers by {FOLDS}-fold "
        "cross-validation, and take the best",
    )
    parser.add_argument(
        "--hold-out",
        metavar="PART",
        type=cli.share,
        help="train without this part of each class, such as 0.2, and print its "
        "accuracy (default: the accuracy of leave-one-out)",
    )
    parser.add_argument(
        "--size",
        metavar="N",
        type=cli.pair,
        help="rows and columns that image files are resized to, as 64 or 48x64 "
        "(default: as they are, or at most 64 on the longer side)",
    )
    parser.add_argument(
        "--mode",
        choices=("auto", "gray", "rgb"),
        default="auto",
        help="colours of image files (default: gray where no image has colours)",
    )
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave out files that are broken"
    )
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=cli.integer(from_=0),
        default=4,
        help="rounds of feature learning (default: 4)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument(
        "--seed",
        metavar="N",
        type=cli.integer(from_=0, to=2**32 - 1),
        default=0,
        help="seed of everything that is drawn at random (default: 0)",
    )


def run(options):
    """Train as the options say, print the accuracy, and save the model."""
    cli.check_device(options.device)
    cli.check_place("--out", options.out)
    find_skops()
    screen = Screen()
    train, test = read_labelled(
        options.data, options.size, options.mode, options.skip_broken
    )
    classes, counts = np.unique(train.y, return_counts=True)
    pixels = " x ".join(map(str, train.X.shape[1:]))
    screen.line(f"{len(train.y)} images of {pixels}, {len(classes)} classes")
    if len(classes) < 2:
        raise cli.UsageError(f"DATA {options.data}: all images are of one class")
    held_out = None
    if options.hold_out is not None:
        train, held_out = hold_out(train, counts, options)
    try:
        model = make_model(options)
        if options.search:
            model = search(screen, model, train, options)
        start = time.perf_counter()
        with screen.busy("training ..."):
            model.fit(train.X, train.y)
        seconds = time.perf_counter() - start
    except ValueError as error:
        raise cli.UsageError(str(error)) from error
    screen.line(f"Trained in {seconds:.1f} s")
    if held_out is None:
        loo = model.history_["loo_score"][model.best_round_]
        screen.line(
            f"Accuracy: {loo:.1%} by leave-one-out (the readout without the image; "
            "filters and settings saw all images, --hold-out leaves some out wholly)"
        )
    for images, what in ((held_out, "held out"), (test, "of X_test")):
        if images is not None:
            accuracy = np.mean(model.predict(images.X) == images.y)
            screen.line(f"Accuracy: {accuracy:.1%} of {len(images.y)} images {what}")
    save_model(model, options.out)
    screen.line(f"Model: {options.out}")
    screen.line(f"Next: skconvrfm predict {options.out} IMAGES --out predictions.csv")


def hold_out(images, counts, options):
    """Return images without a part of each class, and that part."""
    if counts.min() < 2:
        raise cli.UsageError("--hold-out: a class has a single image; leave it out")
    n_test = max(round(options.hold_out * len(images.y)), len(counts))
    if n_test > len(images.y) - len(counts):
        part = f"--hold-out {options.hold_out:g}"
        raise cli.UsageError(f"{part}: leaves less than an image of each class")
    every = np.arange(len(images.y))
    seed = options.seed
    parts = train_test_split(
        every, test_size=n_test, stratify=images.y, random_state=seed
    )
    return [
        Images(images.X[p], images.y[p], [images.names[i] for i in p])
        for p in map(np.sort, parts)
    ]


def make_model(options):
    """Return the classifier that the options ask for."""
    features = options.features or ("auto" if options.kernel in WHOLE else "none")
    return ConvRFMClassifier(
        KERNELS[options.kernel](),
        None if features == "none" else "auto",
        n_rounds=options.rounds,
        device=options.device,
        random_state=options.seed,
    )


def search(screen, model, images, options):
    """Return a clone with the settings that cross-validation finds best."""
    _, counts = np.unique(images.y, return_counts=True)
    if counts.min() < FOLDS:
        raise cli.UsageError(
            f"--search: a class has {counts.min()} images, fewer than the {FOLDS} folds"
        )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=options.seed)
    tried = settings(options.kernel, model.features, images.X.shape[1:3])
    means = []
    for number, (name, params) in enumerate(tried.items(), start=1):
        label = f"[{number}/{len(tried)}] {name}"
        with screen.busy(f"{label} ..."):
            candidate = clone(model).set_params(**params)
            scores = cross_val_score(
                candidate, images.X, images.y, cv=folds, error_score="raise"
            )
        means.append(scores.mean())
        screen.line(f"{label}: {means[-1]:.1%} of left-out images, {FOLDS} folds")
    best = list(tried)[int(np.argmax(means))]
    screen.line(f"Chosen: {best}")
    return clone(model).set_params(**tried[best])


def settings(kernel, features, image):
    """Return parameters to try, by the name that is printed."""
    sizes = [size for size in PATCHES if size <= min(image)]
    if features is None and kernel in WHOLE:
        return {kernel: {}}
    if kernel in WHOLE:
        found = {"features auto": {"features": "auto"}}
        for size in sizes:
            layer = ConvFeatures(patch_size=size, candidates=3, learn=False)
            found[f"one layer, patch {size}"] = {"features": layer}
        return found
    found = {}
    for size in sizes[:2]:
        for depth in (1, 2, 3) if kernel in ("ntk", "nngp") else (None,):
            name = f"patch {size}" + (f", depth {depth}" if depth else "")
            found[name] = {"kernel__patch_size": size}
            if depth:
                found[name]["kernel__depth"] = depth
    return found
