"""``python -m benchmarks.published --data FILE.npz``: the published experiment.

Framed MNIST of sigma 1, depth 3, three AGOP rounds (Beaglehole et al.,
arXiv:2309.00570), on 4000 training and 2000 test images. Two passes, each in a process
of its own: one for the time of fit and predict and for the peak memory, and one for the
accuracy of every round on the test images. That is for the report alone: the estimator
chooses ridge and round from the training images.
"""

import argparse
import json

import numpy as np

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import make_framed_digits
from skconvrfm.kernels import ConvNTK

from .harness import (
    MEBIBYTE,
    format_table,
    in_subprocess,
    peak_resident,
    report,
    timed,
)
from .models import TestScore

# Accuracies in per cent after 0, 1, 2 and 3 rounds, and seconds on a GPU.
PUBLISHED_ACCURACY = (52.0, 54.5, 57.3, 59.4)
PUBLISHED_SECONDS = 170


def load_split(options):
    """Return framed training and test images with labels.

    Parameters
    ----------
    options : argparse.Namespace
        ``data``, ``n_train``, ``n_test``, ``sigma`` and ``seed``.

    Returns
    -------
    X_train, y_train, X_test, y_test : ndarray
        Images as float32 of shape (n, rows, columns). The rows are the first of the
        file, which is why they should be in no order.
    """
    frames = np.random.RandomState(options.seed)
    split = []
    with np.load(options.data, allow_pickle=False) as archive:
        for part, n_images in (("train", options.n_train), ("test", options.n_test)):
            images = archive[f"X_{part}"][:n_images]
            labels = archive[f"y_{part}"][:n_images]
            if len(images) < n_images:
                raise ValueError(
                    f"X_{part} has {len(images)} images, not {n_images}: lower "
                    f"--n-{part}."
                )
            if images.dtype == np.uint8:
                images = images.astype(np.float32) / 255
            split += make_framed_digits(
                images, labels, sigma=options.sigma, random_state=frames
            )
    return split


def make_classifier(options, **parameters):
    """Return the estimator of the experiment.

    Parameters
    ----------
    options : argparse.Namespace
        ``depth``, ``rounds`` and ``bias``.
    **parameters : object
        Other parameters of the estimator.

    Returns
    -------
    ConvRFMClassifier
    """
    return ConvRFMClassifier(
        ConvNTK(options.depth, bias=options.bias),
        n_rounds=options.rounds,
        n_iter_no_change=None,
        random_state=options.seed,
        verbose=1,
        **parameters,
    )


def measure_cost(options):
    """Measure seconds of fit and predict and of their parts, memory, and accuracy.

    Parameters
    ----------
    options : argparse.Namespace
        The command line.

    Returns
    -------
    dict
    """
    X_train, y_train, X_test, y_test = load_split(options)
    before = peak_resident()
    fitting, classifier = timed(make_classifier(options).fit, X_train, y_train)
    predicting, predicted = timed(classifier.predict, X_test)
    return {
        "fit_seconds": fitting["seconds"],
        "predict_seconds": predicting["seconds"],
        "cpu_seconds": fitting["cpu_seconds"] + predicting["cpu_seconds"],
        **{
            f"{part}_seconds": float(classifier.history_[f"seconds_{part}"].sum())
            for part in ("kernel", "solve", "agop")
        },
        "peak_mib": peak_resident() / MEBIBYTE,
        "peak_before_fit_mib": before / MEBIBYTE,
        "chosen_round": int(classifier.best_round_),
        "chosen_accuracy": 100 * float(np.mean(predicted == y_test)),
    }


def measure_rounds(options):
    """Measure test accuracy, criterion and ridge by round.

    Parameters
    ----------
    options : argparse.Namespace
        The command line.

    Returns
    -------
    dict of list
    """
    X_train, y_train, X_test, y_test = load_split(options)
    test_score = TestScore(X_test, y_test)
    # Each round is the last when it ends, so the callback sees every one.
    classifier = make_classifier(options, selection="last").set_callbacks(test_score)
    history = classifier.fit(X_train, y_train).history_
    return {
        "round": history["round"].tolist(),
        "accuracy": [100 * score for score in test_score.scores],
        "left_out_accuracy": (100 * history["loo_score"]).tolist(),
        "gcv": history["gcv"].tolist(),
        "alpha": history["alpha"].tolist(),
    }


PASSES = {"cost": measure_cost, "rounds": measure_rounds}


def parse_options(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.published", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add(
        "--data", required=True, metavar="FILE.npz", help="MNIST: X_train, y_train, ..."
    )
    add("--n-train", type=int, default=4000)
    add("--n-test", type=int, default=2000)
    add("--depth", type=int, default=3)
    add("--rounds", type=int, default=3, help="AGOP rounds")
    add("--sigma", type=float, default=1.0, help="strength of the noise")
    add("--bias", type=float, default=0.0, help="of the kernel; 0 as published")
    add("--seed", type=int, default=0)
    add("--passes", nargs="+", choices=PASSES, default=list(PASSES), metavar="PASS")
    add("--json", metavar="FILE", help="write the results there")
    add("--in-this-process", choices=PASSES, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def make_tables(results):
    """Return the tables of the passes.

    Parameters
    ----------
    results : dict
        What the passes measured, by name.

    Returns
    -------
    list of str
    """
    tables = []
    if "cost" in results:
        rows = [[name.replace("_", " "), v] for name, v in results["cost"].items()]
        rows.append(["published seconds, on a GPU", PUBLISHED_SECONDS])
        tables.append(format_table(["cost", ""], rows))
    if "rounds" in results:
        columns = dict(results["rounds"])
        n_rounds = len(columns["round"])
        published = [*PUBLISHED_ACCURACY, *[None] * n_rounds][:n_rounds]
        columns = {"round": columns.pop("round"), "published": published, **columns}
        headers = [name.replace("_", " ") for name in columns]
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        tables.append(format_table(headers, rows))
    return tables


def main(argv=None):
    """Run the command line."""
    options = parse_options(argv)
    if options.in_this_process:
        print(json.dumps(PASSES[options.in_this_process](options)))
        return 0
    settings = {
        "data": options.data,
        **{
            name.replace("_", "-"): getattr(options, name)
            for name in (
                "n_train",
                "n_test",
                "depth",
                "rounds",
                "sigma",
                "bias",
                "seed",
            )
        },
    }
    arguments = [word for name, v in settings.items() for word in (f"--{name}", v)]
    results = {
        name: in_subprocess(
            "benchmarks.published", *arguments, "--in-this-process", name
        )
        for name in options.passes
    }
    report(make_tables(results), {"settings": settings, **results}, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
