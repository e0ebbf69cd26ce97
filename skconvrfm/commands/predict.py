"""``skconvrfm predict``: classes and probabilities of images, as a table."""

import csv
import io
from pathlib import Path

import numpy as np

from .. import _command_line as cli
from .data import read_unlabelled
from .models import load_model

DESCRIPTION = (
    "Predict the classes of images with a saved model. Writes a CSV file with the "
    "columns filename, predicted and the probability of each class."
)


def add_options(parser):
    """Add the options of the command to a parser."""
    parser.add_argument(
        "model", metavar="MODEL", type=Path, help="a file of skconvrfm train"
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        type=Path,
        help="a folder of image files, searched in all depths, an image file, or a "
        "NumPy archive (.npz) with X, X_test or X_train. Files are resized to the "
        "images of the model. Where each file lies in a subfolder with the name of a "
        "class, the accuracy is printed",
    )
    parser.add_argument(
        "--out", metavar="FILE.csv", type=Path, required=True, help="the table"
    )
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave out files that are broken"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")


def run(options):
    """Predict as the options say, and write the table."""
    cli.check_device(options.device)
    cli.check_place("--out", options.out)
    model = load_model(options.model).set_params(device=options.device)
    images = read_unlabelled(options.data, model, options.skip_broken)
    predicted, probabilities = model.predict(images.X), model.predict_proba(images.X)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    columns = [f"probability_{label}" for label in model.classes_]
    writer.writerow(["filename", "predicted", *columns])
    for name, label, row in zip(images.names, predicted, probabilities, strict=True):
        writer.writerow([name, label, *(f"{value:.6g}" for value in row)])
    table = text.getvalue().encode()
    cli.write_output("--out", options.out, lambda file: file.write(table))
    if images.y is not None:
        accuracy = np.mean(predicted == images.y)
        print(f"Accuracy: {accuracy:.1%}, by the names of the subfolders")
    print(f"Predictions of {len(predicted)} images: {options.out}")
