"""``skconvrfm ansatz``: the ansatz from the shell."""

import csv
import difflib
import functools
import importlib
import io
import sys
import zipfile
from argparse import ArgumentTypeError
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from .._command_line import (
    UsageError,
    check_device,
    check_place,
    integer,
    write_output,
)
from .report import COLUMNS
from .scorer import AnsatzScorer
from .weights import load_weights

DESCRIPTION = (
    "Measure the convolutional neural feature ansatz on a network. Prints the "
    "correlation of the filter covariance of each layer with its patch AGOP."
)
IMAGE_FILES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
ARCHIVE_KEYS = ("X", "X_test", "X_train")
DEFAULT = "DEFAULT"


def run(options):
    """Measure as the options say, print the report, and write it."""
    check_device(options.device)
    if options.csv is not None:
        check_place("--csv", options.csv)
    find = find_factory if ":" in options.network else find_in_torchvision
    make, default_weights, transform = find(options.network)
    X, channels = load_images(options, transform)
    network = make_network(options, make, default_weights)
    scorer = AnsatzScorer(
        layers=options.layers,
        outputs=options.outputs,
        agop_power=options.agop_power,
        baseline=None if options.baseline == "none" else options.baseline,
        n_baselines=options.n_baselines,
        channels=channels,
        device=options.device,
        verbose=True,
    )
    try:
        report = scorer.report(network, X)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(report)
    if options.csv is not None:
        write_csv(report, options.csv)


_positive = integer(from_=1)


def _outputs(text):
    """An argparse type: a positive integer, "auto" or "all"."""
    return text if text in ("auto", "all") else _positive(text)


def _power(text):
    """An argparse type: a positive number."""
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise ArgumentTypeError(f"needs a positive number, got {text!r}")


HELP = {
    "network": "a name of torchvision, such as resnet18, or package.module:factory, "
    "the factory being a function that returns a torch.nn.Module",
    "--images": "a folder of image files, searched in all depths, or a NumPy archive "
    "with X, X_test or X_train of shape (n, rows, columns, channels). Files and uint8 "
    "arrays are divided by 255. For torchvision's networks they are then resized, "
    "cropped and normalised as these ask for",
    "--weights": "trained weights: a file of torch.save, np.savez or safetensors, with "
    "a state dict or a checkpoint that has one, under any key and prefix; or DEFAULT "
    "for those of torchvision, which are downloaded (default: the network as it is "
    "made)",
    "--baseline": "compare with the network with weights drawn anew, or with none "
    "(default: reinitialised)",
    "--n-baselines": "networks that are drawn (default: 3)",
    "--outputs": "random directions in place of all network outputs (default: auto, "
    "which is 64)",
    "--agop-power": "power of the patch AGOP, or powers (default: 1)",
    "--layers": "which layers (default: all convolutions)",
    "--max-images": "measure N images, taken evenly (default: 200)",
    "--size": "resize the shorter side of image files to N and crop the centre; not "
    "for torchvision's networks, which know their size (default: as they are)",
    "--device": "where to compute: auto, cpu, cuda, cuda:1 (default: auto, which is "
    "the CPU, where networks are made)",
    "--csv": "write the report there as well",
}


def add_options(parser):
    """Add the options of the command to a parser."""

    def add(name, **settings):
        parser.add_argument(name, help=HELP[name], **settings)

    add("network", metavar="NETWORK")
    add("--images", metavar="FOLDER|FILE.npz", type=Path, required=True)
    add("--weights", metavar=f"FILE|{DEFAULT}")
    baselines = ("reinitialised", "none")
    add("--baseline", choices=baselines, default=baselines[0])
    add("--n-baselines", metavar="N", type=_positive, default=3)
    add("--outputs", metavar="N|auto|all", type=_outputs, default="auto")
    add("--agop-power", metavar="P", type=_power, nargs="+", default=[1.0])
    add("--layers", choices=("all", "all+linear", "first"), default="all")
    add("--max-images", metavar="N", type=_positive, default=200)
    add("--size", metavar="N", type=_positive)
    add("--device", default="auto")
    add("--csv", metavar="FILE", type=Path)


def find_factory(text):
    """Return functions for a network and its default weights, and no transform."""
    name, _, attribute = text.partition(":")
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"NETWORK {text}: {error}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise UsageError(f"NETWORK {text}: {name} has no function {attribute!r}")

    def make():
        network = factory()
        if not isinstance(network, torch.nn.Module):
            kind = type(network).__name__
            raise UsageError(f"NETWORK {text}: returns a {kind}, not a torch.nn.Module")
        return network

    def default_weights():
        hint = f"pass a file, or let {text} return the trained network"
        raise UsageError(f"--weights {DEFAULT}: only for names of torchvision; {hint}")

    return make, default_weights, None


def find_in_torchvision(name):
    """Return functions for a network and its default weights, and its transform."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        if getattr(error, "name", None) == "torchvision":
            why = f"NETWORK {name}: is a name of torchvision, which is not installed"
            remedy = "pip install torchvision"
        else:  # built for another torch
            first_line = str(error).partition("\n")[0]
            why = f"torchvision cannot be imported ({first_line})"
            remedy = f"install the version for torch {torch.__version__}"
        message = f"{why}; {remedy}, or pass package.module:factory"
        raise UsageError(message) from error
    names = models.list_models(module=models)
    if name not in names:
        near = ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0))
        known = "torchvision's classification networks"
        raise UsageError(f"NETWORK {name}: is not among {known}; near are {near}")
    weights = models.get_model_weights(name).DEFAULT

    def default_weights():
        try:
            return weights.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise UsageError(
                f"--weights {DEFAULT}: cannot be downloaded ({error}); download "
                f"{weights.url} elsewhere and pass --weights FILE"
            ) from error

    make = functools.partial(models.get_model, name, weights=None)
    return make, default_weights, weights.transforms()


def make_network(options, make, default_weights):
    """Return the network with the weights that were asked for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make()
    if options.weights is None:
        return network
    if options.weights == DEFAULT:
        network.load_state_dict(default_weights())
        return network
    left_out = load_weights(network, options.weights, options.network)
    if left_out:
        rest = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        names = f"{', '.join(left_out[:5])}{rest}"
        print(f"--weights {options.weights}: left out {names}", file=sys.stderr)
    return network


def load_images(options, transform):
    """Return the images as an array, and the side of it that has the channels."""
    path = options.images
    if options.size is not None and (transform is not None or not path.is_dir()):
        raise UsageError(
            "--size is for folders of images and for networks of your own; "
            "torchvision's know their size, and arrays are taken as they are"
        )
    read = read_folder if path.is_dir() else read_archive
    images = read(path, options)
    if transform is not None:
        tensors = (torch.from_numpy(image).permute(2, 0, 1) for image in images)
        return torch.stack([transform(tensor) for tensor in tensors]).numpy(), "first"
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise UsageError(
            f"--images {path}: has images of different sizes, for instance "
            f"{sorted(shapes)[:2]}; pass --size N"
        )
    X = np.stack(images)
    return (X / np.float32(255) if X.dtype == np.uint8 else X), "last"


def read_archive(path, options):
    """Return images of a NumPy archive, taken evenly."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise UsageError(f"--images {path}: is no archive; write it with np.savez")
        with archive:
            key = next((key for key in ARCHIVE_KEYS if key in archive), None)
            if key is None:
                raise UsageError(
                    f"--images {path}: has none of {', '.join(ARCHIVE_KEYS)}; it has "
                    f"{', '.join(archive) or 'nothing'}"
                )
            images = archive[key]
    except OSError as error:
        raise UsageError(f"--images {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        message = "is neither a folder nor an .npz file of plain arrays"
        raise UsageError(f"--images {path}: {message} ({error})") from error
    if images.ndim not in (3, 4) or not images.size:
        remedy = "it must be (n, rows, columns) or (n, rows, columns, channels)"
        raise UsageError(f"--images {path}: {key} has shape {images.shape}; {remedy}")
    images = images[..., None] if images.ndim == 3 else images
    return [images[one] for one in _evenly(len(images), options)]


def read_folder(path, options):
    """Return image files of a folder, taken evenly, as arrays (rows, columns, 3)."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        message = "image files need Pillow; pip install pillow, or pass an .npz file"
        raise UsageError(f"--images {path}: {message}") from error
    files = sorted(one for one in path.rglob("*") if one.suffix.lower() in IMAGE_FILES)
    if not files:
        known = ", ".join(sorted(IMAGE_FILES))
        raise UsageError(f"--images {path}: has no image files ({known})")
    images = []
    for number in _evenly(len(files), options):
        try:
            with Image.open(files[number]) as file:
                image = file.convert("RGB")
        except (OSError, SyntaxError) as error:  # as PIL raises for broken files
            raise UsageError(f"--images {files[number]}: {error}") from error
        if options.size is not None:
            image = ImageOps.fit(image, (options.size,) * 2, Image.Resampling.BILINEAR)
        images.append(np.array(image))
    return images


def _evenly(n, options):
    """Indices of those of n images that are measured, evenly over all."""
    return np.linspace(0, n - 1, min(n, options.max_images)).round().astype(int)


def write_csv(report, path):
    """Write the rows of a report."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(report.records())
    write_output("--csv", path, lambda file: file.write(text.getvalue().encode()))
