"""What ``python -m skconvrfm.ansatz`` does: the ansatz on a network from the shell."""

import csv
import difflib
import importlib
import io
import zipfile
from argparse import ArgumentTypeError
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch

from .ansatz import AnsatzScorer, LayerReport
from .commands import (
    Parser,
    UsageError,
    check_device,
    check_place,
    integer,
    run_command,
    write_output,
)

PROGRAM = "python -m skconvrfm.ansatz"
IMAGE_FILES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
ARCHIVE_KEYS = ("X", "X_test", "X_train")
# Where state dicts are found in the files of training scripts.
STATE_KEYS = ("state_dict", "model")
DEFAULT = "DEFAULT"


def run(argv=None):
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
    return run_command(PROGRAM, lambda: measure(parse_options(argv)))


def measure(options):
    """Measure what the options ask for, print it, and write it."""
    check_device(options.device)
    if options.csv is not None:
        check_place("--csv", options.csv)
    source = find_network(options.network)
    X, channels = load_images(options, source)
    network, baseline = make_networks(options, source)
    scorer = AnsatzScorer(
        layers=options.layers,
        outputs=options.outputs,
        agop_power=options.power,
        channels=channels,
        device=options.device,
    )
    try:
        report = scorer.report(network, X, baseline=baseline)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(report)
    if options.csv is not None:
        write_csv(report, options.csv)


def parse_options(argv=None):
    """Parse the command line; raise UsageError if it is wrong."""
    parser = Parser(
        prog=PROGRAM,
        description="Correlation of the filter covariance of each layer of a network "
        "with its patch AGOP: the convolutional neural feature ansatz.",
    )
    add = parser.add_argument
    add(
        "network",
        metavar="NETWORK",
        help="a name of torchvision, such as resnet18, or package.module:factory, "
        "what the factory returns being a torch.nn.Module",
    )
    add(
        "--images",
        metavar="FOLDER|FILE.npz",
        type=Path,
        required=True,
        help="a folder of image files, searched in all depths, or a NumPy archive with "
        "X, X_test or X_train of shape (n, rows, columns, channels). Files and uint8 "
        "arrays are divided by 255. For torchvision's networks they are then resized, "
        "cropped and normalised as these ask for",
    )
    add(
        "--weights",
        metavar=f"FILE|{DEFAULT}",
        help="trained weights: a state dict as torch.save or np.savez write it, or "
        "DEFAULT for those of torchvision, which are downloaded. The network without "
        "them is the baseline (default: none, the network as it is made)",
    )
    add(
        "--outputs",
        metavar="N|all",
        type=_outputs,
        default=64,
        help="random directions in place of all outputs of the network (default: 64)",
    )
    add(
        "--power",
        metavar="P",
        type=_power,
        default=1.0,
        help="power of the patch AGOP (default: 1)",
    )
    add(
        "--layers",
        choices=("all", "all+linear", "first"),
        default="all",
        help="which layers (default: all convolutions)",
    )
    add(
        "--max-images",
        metavar="N",
        type=integer(from_=1),
        default=200,
        help="measure N images, taken evenly (default: 200)",
    )
    add(
        "--size",
        metavar="N",
        type=integer(from_=1),
        help="resize the shorter side of image files to N and crop the centre; not "
        "for torchvision's networks, which know their size (default: as they are)",
    )
    add(
        "--device",
        default="auto",
        help="where to compute: auto, cpu, cuda, cuda:1 (default: auto, which is the "
        "CPU, where networks are made)",
    )
    add("--csv", metavar="FILE", type=Path, help="write the report there as well")
    return parser.parse_args(argv)


def _outputs(text):
    """An argparse type: a positive integer, or "all"."""
    return "all" if text == "all" else integer(from_=1)(text)


def _power(text):
    """An argparse type: a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"needs a positive number, got {text!r}")
    return value


# --------------------------------------------------------------------- networks


class FactoryNetwork:
    """A network from ``package.module:factory``."""

    transform = None

    def __init__(self, text):
        name, _, attribute = text.partition(":")
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise UsageError(f"NETWORK {text}: {error}") from error
        self.factory = getattr(module, attribute, None)
        if not callable(self.factory):
            raise UsageError(f"NETWORK {text}: {name} has no function {attribute!r}")
        self.text = text

    def make(self):
        """The network as the factory makes it."""
        network = self.factory()
        if not isinstance(network, torch.nn.Module):
            raise UsageError(
                f"NETWORK {self.text}: returns a {type(network).__name__}, not a "
                "torch.nn.Module"
            )
        return network

    def default_weights(self):
        """Only torchvision's networks have them."""
        raise UsageError(
            f"--weights {DEFAULT}: only for names of torchvision; pass a file, or let "
            f"{self.text} return the trained network"
        )


class TorchvisionNetwork:
    """A network that torchvision knows, with the transform that goes with it."""

    def __init__(self, name):
        try:
            from torchvision import models
        except ImportError as error:
            if getattr(error, "name", None) != "torchvision":
                raise UsageError(_broken_torchvision(error)) from error
            raise UsageError(
                f"NETWORK {name}: is a name of torchvision, which is not installed; "
                "pip install torchvision, or pass package.module:factory"
            ) from error
        except RuntimeError as error:  # built for another version of torch
            raise UsageError(_broken_torchvision(error)) from error
        names = models.list_models(module=models)
        if name not in names:
            close = difflib.get_close_matches(name, names, n=3, cutoff=0)
            raise UsageError(
                f"NETWORK {name}: is not among torchvision's classification networks; "
                f"near are {', '.join(close)}"
            )
        self.name = name
        self.models = models
        self.weights = models.get_model_weights(name).DEFAULT
        self.transform = self.weights.transforms()

    def make(self):
        """The network without training."""
        return self.models.get_model(self.name, weights=None)

    def default_weights(self):
        """Weights that torchvision downloads."""
        try:
            return self.weights.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise UsageError(
                f"--weights {DEFAULT}: cannot be downloaded ({error}); download "
                f"{self.weights.url} elsewhere and pass --weights FILE"
            ) from error


def _broken_torchvision(error):
    reason = str(error).partition("\n")[0]
    return (
        f"torchvision cannot be imported ({reason}); install the version for torch "
        f"{torch.__version__}, or pass package.module:factory"
    )


def find_network(text):
    """Where the network comes from."""
    return FactoryNetwork(text) if ":" in text else TorchvisionNetwork(text)


def make_networks(options, source):
    """The network, and the baseline: the same one without weights, or None."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = source.make()
        if options.weights is None:
            return network, None
        baseline = source.make()
    if options.weights == DEFAULT:
        state = source.default_weights()
    else:
        state = read_state(Path(options.weights))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"--weights {options.weights}: are not those of {options.network} "
            f"({reason[:200]})"
        ) from error
    return network, baseline


def read_state(path):
    """A state dict from the file of torch.save or np.savez."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays}
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"--weights {path}: {error.strerror or error}") from error
    except Exception as error:  # of many kinds, from pickle and zip alike
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"--weights {path}: cannot be read as weights ({reason}); write them with "
            "torch.save(network.state_dict(), file)"
        ) from error
    for key in STATE_KEYS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise UsageError(
            f"--weights {path}: holds a {type(state).__name__}, not a state dict"
        )
    # Networks that were trained in parallel.
    return {name.removeprefix("module."): value for name, value in state.items()}


# ----------------------------------------------------------------------- images


def load_images(options, source):
    """The images as an array, and on which side of it their channels are."""
    path, transform = options.images, source.transform
    if options.size is not None and (transform is not None or not path.is_dir()):
        raise UsageError(
            "--size is for folders of images and for networks of your own; "
            "torchvision's know their size, and arrays are taken as they are"
        )
    if path.is_dir():
        images = read_folder(path, options.max_images, options.size)
    else:
        images = list(read_archive(path, options.max_images))
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


def read_archive(path, n_images):
    """Images of a NumPy archive, taken evenly."""
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
        raise UsageError(
            f"--images {path}: is neither a folder nor an .npz file of plain arrays "
            f"({error})"
        ) from error
    if images.ndim not in (3, 4) or not images.size:
        raise UsageError(
            f"--images {path}: {key} has shape {images.shape}; it must be (n, rows, "
            "columns) or (n, rows, columns, channels)"
        )
    images = images[..., None] if images.ndim == 3 else images
    return images[_evenly(len(images), n_images)]


def read_folder(path, n_images, size):
    """Image files of a folder as arrays (rows, columns, 3), uint8, taken evenly."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise UsageError(
            f"--images {path}: image files need Pillow; pip install pillow, or pass an "
            ".npz file"
        ) from error
    files = sorted(
        file for file in path.rglob("*") if file.suffix.lower() in IMAGE_FILES
    )
    if not files:
        raise UsageError(
            f"--images {path}: has no image files ({', '.join(sorted(IMAGE_FILES))})"
        )
    images = []
    for number in _evenly(len(files), n_images):
        try:
            with Image.open(files[number]) as file:
                image = file.convert("RGB")
        except (OSError, SyntaxError) as error:  # what PIL raises for broken files
            raise UsageError(f"--images {files[number]}: {error}") from error
        if size is not None:
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        images.append(np.array(image))
    return images


def _evenly(n, n_taken):
    """Indices of at most `n_taken` of n things, evenly over all."""
    return np.linspace(0, n - 1, min(n, n_taken)).round().astype(int)


# ----------------------------------------------------------------------- output


def write_csv(report, path):
    """Write the rows of a report."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [column.name for column in fields(LayerReport)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in report)
    write_output("--csv", path, lambda file: file.write(text.getvalue().encode()))
