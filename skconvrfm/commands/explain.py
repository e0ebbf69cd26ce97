"""``skconvrfm explain``: a picture of what speaks for and against a class."""

import functools
from pathlib import Path

import numpy as np

from .. import _command_line as cli
from ..display import ExplanationDisplay
from .data import read_files
from .models import load_model
from .screen import installed

DESCRIPTION = (
    "Explain the prediction for one image. Draws which pixels and patches speak for "
    "and against a class."
)


def add_options(parser):
    """Add the options of the command to a parser."""
    parser.add_argument(
        "model", metavar="MODEL", type=Path, help="a file of skconvrfm train"
    )
    parser.add_argument("image", metavar="IMAGE", type=Path, help="an image file")
    parser.add_argument(
        "--out", metavar="FILE.png", type=Path, required=True, help="the picture"
    )
    parser.add_argument(
        "--target", metavar="CLASS", help="the class (default: the one predicted)"
    )
    parser.add_argument(
        "--patch-size",
        metavar="P",
        type=cli.pair,
        help="pixels of the patches that are hidden, as 4 or 4x6 (default: an eighth "
        "of the longer side)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")


def run(options):
    """Explain as the options say, and write the picture."""
    cli.check_device(options.device)
    cli.check_place("--out", options.out)
    if not installed("matplotlib"):
        remedy = 'pip install "skconvrfm[plot]"'
        raise cli.UsageError(f"the picture needs matplotlib: {remedy}")
    from matplotlib.figure import Figure

    model = load_model(options.model).set_params(device=options.device)
    if options.image.is_dir():
        raise cli.UsageError(f"IMAGE {options.image}: is a folder; name a file")
    images = read_files(options.image, model)
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    how = {"target": _find_class(model, options.target), "ax": figure.subplots()}
    try:
        display = ExplanationDisplay.from_estimator(
            model, images.X[0], patch_size=options.patch_size, **how
        )
    except ValueError as error:
        raise cli.UsageError(str(error)) from error
    picture = functools.partial(figure.savefig, dpi=150, format="png")
    cli.write_output("--out", options.out, picture)
    print(display.title.replace("\n", ", "))
    print(f"Picture: {options.out}")


def _find_class(model, text):
    """Return the class of that name, None for none."""
    if text is None:
        return None
    [found] = np.nonzero(model.classes_.astype(str) == text)
    if not len(found):
        known = ", ".join(map(str, model.classes_[:20]))
        raise cli.UsageError(f"--target {text}: is not among the classes {known}")
    return model.classes_[found[0]]
