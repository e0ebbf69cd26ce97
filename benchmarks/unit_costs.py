"""Costs of single operations of a fit with features on this machine.

Each is measured alone, on arrays as large as a block of a fit, and the median of
several runs is taken. Rates are in operations or bytes a second.
"""

import multiprocessing
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from skconvrfm import ConvRFMClassifier
from skconvrfm.compute.sampling import content_positions
from skconvrfm.features import ConvFeatures
from skconvrfm.learning.band import BandForm
from skconvrfm.learning.ridge import inverse_factor

from .extrapolation import agop_operations
from .features import our_features
from .growth import byte_images
from .harness import format_table, growth_exponent, median, timed

SIDES = (576, 1152, 2304, 4608)
# Rows of features that are multiplied at once, as in a fit.
BLOCK = 1024
COLUMNS = 1024
FEATURE_IMAGES = 400
AGOP_IMAGES = 100
FILE_BYTES = 2**28
N_OUTPUTS = 10


def measure_costs(case, repeats=3, sides=SIDES):
    """Measure all unit costs.

    Parameters
    ----------
    case : Case
        Images and filters.
    repeats : int, default=3
        Runs of each.
    sides : sequence of int, default=SIDES
        Sides of the matrices that are decomposed.

    Returns
    -------
    dict
        Operations a second of ``features``, ``sums``, ``leave_one_out`` and ``agop``;
        bytes a second of ``read``, ``order``, ``send`` and ``add``; ``decomposition``,
        seconds over the cube of the side; and ``decomposition_seconds`` by side.
    """
    width = case.n_filters * case.grid**2
    by_side = {side: decomposition_seconds(side, repeats) for side in sorted(sides)}
    side, spent = list(by_side.items())[-1]
    return {
        "features": features_rate(case, repeats),
        "sums": sums_rate(width, repeats),
        "leave_one_out": leave_one_out_rate(width, repeats),
        "agop": agop_rate(case, repeats),
        "read": read_rate(case.image_shape, repeats),
        "order": order_rate(case.image_shape, repeats),
        "send": send_rate(width, repeats),
        "add": add_rate(width, repeats),
        # Of the largest: smaller ones have not yet come to the cube.
        "decomposition": spent / side**3,
        "decomposition_seconds": by_side,
    }


def median_seconds(call, repeats, prepare=tuple):
    """Return the median time of a call, after one that does not count.

    Parameters
    ----------
    call : callable
        What is measured, with the arguments that ``prepare()`` returns.
    repeats : int
        Runs.
    prepare : callable
        What comes before each run and is not measured.
    """
    call(*prepare())
    return median([timed(call, *prepare())[0]["seconds"] for _ in range(repeats)])


def features_rate(case, repeats):
    """Return operations a second of the features of images of bytes."""
    images = byte_images(FEATURE_IMAGES, case.image_shape)[0]
    compute = our_features(case)
    spent = median_seconds(lambda: compute(images), repeats)
    return FEATURE_IMAGES * case.operations / spent


def sums_rate(width, repeats):
    """Return operations a second of ΦᵀΦ, n D² of them, as it is symmetric."""
    features = torch.randn(BLOCK, width)
    total = _doubles(width)

    def add_products():
        block = features.double()
        for start in range(0, width, COLUMNS):
            stop = min(start + COLUMNS, width)
            total[:stop, start:stop] += block[:, :stop].T @ block[:, start:stop]

    return BLOCK * width**2 / median_seconds(add_products, repeats)


def leave_one_out_rate(width, repeats):
    """Return operations a second of features times eigenvectors, in float64."""
    block, vectors = torch.randn(BLOCK, width), _doubles(width)

    def rotate():
        return (block.double() @ vectors).square()

    return 2 * BLOCK * width**2 / median_seconds(rotate, repeats)


def agop_rate(case, repeats):
    """Return operations a second of the AGOP, as a fit on few images reports it."""
    X, y = byte_images(AGOP_IMAGES, case.image_shape)
    features = ConvFeatures(
        case.n_filters, patch_size=case.patch_size, pool_grid=case.grid
    )
    classifier = ConvRFMClassifier("linear", features, n_rounds=0, agop_samples=None)
    spent = [
        float(classifier.fit(X, y).history_["seconds_agop"].sum())
        for _ in range(repeats + 1)
    ]
    return AGOP_IMAGES * agop_operations(case) / median(spent[1:])


def decomposition_seconds(side, repeats):
    """Return seconds for all ridges of a Gram matrix, and leave-one-out of one."""

    def decompose(matrix):
        BandForm(matrix.clone())
        matrix.diagonal().add_(1)
        inverse_factor(matrix)

    def make():
        root = _doubles(side)
        return (root @ root.T,)

    return median_seconds(decompose, repeats, make)


def read_rate(image_shape, repeats):
    """Return bytes a second of blocks of a mapped file that is not in memory.

    On a file system in memory it always is.
    """
    rows = FILE_BYTES // int(np.prod(image_shape))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        np.save(path, np.zeros((rows, *image_shape), dtype=np.uint8))

        def read():
            images = np.load(path, mmap_mode="r")
            for start in range(0, rows, BLOCK):
                np.array(images[start : start + BLOCK])

        spent = median_seconds(read, repeats, lambda: _forget(path))
    return FILE_BYTES / spent


def _forget(path):
    """Let the system drop the pages of a file; no arguments for what comes next."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return ()


def order_rate(image_shape, repeats):
    """Return bytes a second of the number that each image gets from its content."""
    images = np.zeros((BLOCK, int(np.prod(image_shape))), dtype=np.uint8)
    rng = np.random.RandomState(0)
    return images.nbytes / median_seconds(
        lambda: content_positions(images, rng), repeats
    )


def send_rate(width, repeats):
    """Return bytes a second of a D × D matrix, pickled, through a pipe."""
    # Started afresh: a process forked from one with threads may hang.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    sender = context.Process(target=_send, args=(there, width))
    sender.start()
    there.close()

    def ask():
        here.send("next")
        here.recv()

    try:
        return 8 * width**2 / median_seconds(ask, repeats)
    finally:
        here.close()
        sender.join()


def _send(pipe, width):
    """Send a matrix whenever asked, until the other end is closed."""
    matrix = np.zeros((width, width))
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(matrix)


def add_rate(width, repeats):
    """Return bytes a second of adding a D × D matrix to another."""
    total, matrix = np.zeros((width, width)), np.ones((width, width))

    def add():
        np.add(total, matrix, out=total)

    return matrix.nbytes / median_seconds(add, repeats)


def _doubles(side):
    return torch.randn((side, side), dtype=torch.float64)


def tabulate_costs(costs, case):
    """Return unit costs as tables.

    Parameters
    ----------
    costs : dict
        What `measure_costs` returned.
    case : Case
        What they were measured on.

    Returns
    -------
    list of str
    """
    microseconds = {
        "features": case.operations,
        "sums": (case.n_filters * case.grid**2) ** 2,
        "leave_one_out": 2 * (case.n_filters * case.grid**2) ** 2,
        "agop": agop_operations(case),
    }
    computed = [
        [key.replace("_", " "), 1e6 * count / costs[key], costs[key] / 1e9]
        for key, count in microseconds.items()
    ]
    moved = [[key, costs[key] / 1e6] for key in ("read", "order", "send", "add")]
    moved = [[key, f"{rate:.0f}"] for key, rate in moved]
    by_side = costs["decomposition_seconds"]
    decompositions = [
        [f"D = {side}", spent, 1e9 * spent / int(side) ** 3]
        for side, spent in by_side.items()
    ]
    tables = [
        format_table(["computing", "µs an image", "GFLOP/s"], computed),
        format_table(["moving", "MB/s"], moved),
        format_table(["decomposition", "s", "ns / D³"], decompositions),
    ]
    if len(by_side) > 1:
        power = growth_exponent(list(map(int, by_side)), list(by_side.values()))
        tables.append(f"power of the decomposition's growth: {power:.2f}")
    return tables
