"""``python -m benchmarks.features``: how fast the features of an image are computed.

Ours, torch's own convolution, ReLU and adaptive pooling at their best, and kymatio's
scattering take turns (A B C A B C …), so that what else the machine does hits all. The
batch size of either other, and torch's memory format, are searched first. Where cells
are equal the results of the first two are checked to agree.
"""

import argparse
import functools
import itertools
import os
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from skconvrfm.compute.images import convolution_layers
from skconvrfm.compute.parallel import Resources
from skconvrfm.features.maps import FilterLayer, compute_features

from .compare import disagreement
from .harness import (
    format_table,
    median,
    report,
    smooth_images,
    tell_differences,
    timed,
)
from .peers.client import PeerWorker, build_environment

PEER = "kymatio"
N_CLASSES = 10
# Of an image: its features on the wall and on all cores, and a linear model on them.
MEASURED = ("seconds", "cpu_seconds", "linear_seconds")
TOLERANCE = 1e-4
MEMORY = 2**30
BATCHES = (10, 25, 50, 100, 200, 400)


@dataclass(frozen=True)
class Case:
    """Images, and the filters that look at them.

    Attributes
    ----------
    image_shape : tuple of int
        Rows, columns and channels.
    patch_size, n_filters, grid : int
        Rows and columns of a patch, filters, rows and columns of cells.
    """

    image_shape: tuple[int, int, int]
    patch_size: int
    n_filters: int = 512
    grid: int = 3

    @property
    def layer(self):
        """The patches."""
        return convolution_layers(self.image_shape, self.patch_size, "valid", 1)[0]

    @property
    def operations(self):
        """Additions and multiplications of the convolution of one image."""
        patch_dim = self.patch_size**2 * self.image_shape[2]
        return 2 * self.layer.n_locations * self.n_filters * patch_dim

    @property
    def equal_cells(self):
        """True where all cells have as many locations, so that all pool alike."""
        return not any(size % self.grid for size in self.layer.locations)

    def make_filters(self):
        """Seeded filters, entries in the order (channel, row, column)."""
        patch_dim = self.patch_size**2 * self.image_shape[2]
        rng = np.random.default_rng(0)
        return np.float32(rng.standard_normal((self.n_filters, patch_dim)))


CASES = {
    "cifar": Case((32, 32, 3), patch_size=6),
    "mnist": Case((28, 28, 1), patch_size=7),
}


def our_features(case):
    """Return a function that makes our features of a numpy array (n, h, w, c)."""
    grid = (case.grid, case.grid)
    features = FilterLayer(case.layer, case.make_filters(), "relu", pool=grid)
    resources = Resources("cpu", torch.float32, MEMORY)
    return functools.partial(compute_features, features, resources=resources)


def torch_features(case, batch, memory_format):
    """Return a function that does so with torch's own functions, batch by batch."""
    channels = case.image_shape[2]
    weight = torch.from_numpy(case.make_filters() * np.float32((2 / channels) ** 0.5))
    weight = weight.reshape(-1, channels, case.patch_size, case.patch_size)
    weight = weight.contiguous(memory_format=memory_format)

    def compute(images):
        out = []
        for part in torch.from_numpy(images).permute(0, 3, 1, 2).split(batch):
            maps = part.contiguous(memory_format=memory_format)
            maps = functional.conv2d(maps, weight).relu_()
            cells = functional.adaptive_avg_pool2d(maps, case.grid)
            out.append(cells.permute(0, 2, 3, 1).numpy())
        return np.concatenate(out)

    return torch.inference_mode()(compute)


def tune_torch(case, images):
    """Return the fastest of all batch sizes and memory formats."""
    formats = (torch.contiguous_format, torch.channels_last)
    choices = list(itertools.product(BATCHES, formats))
    return min(
        choices, key=lambda choice: _seconds(torch_features(case, *choice), images)
    )


def _seconds(compute, images):
    """Return the seconds of the better of two runs."""
    return min(timed(compute, images)[0]["seconds"] for _ in range(2))


def ask_scattering(worker, images, batch):
    """Return times of the scattering of images, and its coefficients."""
    return worker.compute({"images": images}, J=2, L=8, batch=batch)


def tune_scattering(worker, images):
    """Return the fastest batch size of the scattering."""
    return min(
        BATCHES,
        key=lambda batch: min(
            ask_scattering(worker, images, batch)[0]["seconds"] for _ in range(2)
        ),
    )


def classify(features):
    """Return the seconds that a linear model takes to classify features."""
    flat = features.reshape(len(features), -1)
    coef = np.ones((flat.shape[1], N_CLASSES), dtype=flat.dtype)
    measured, _ = timed(lambda: (flat @ coef).argmax(axis=1))
    return measured["seconds"]


def compare_case(case, n_images, rounds, worker=None):
    """Measure one case, in turns.

    Parameters
    ----------
    case : Case
        What to compute.
    n_images : int
        How many images.
    rounds : int
        Turns of each side.
    worker : PeerWorker, default=None
        Of kymatio; None leaves it out.

    Returns
    -------
    dict
        Times by side, their seconds an image, what was chosen, and how far ours and
        torch's results differ.
    """
    images = smooth_images(n_images, case.image_shape)
    choice = tune_torch(case, images)
    chosen = {"torch": [choice[0], str(choice[1])]}
    sides = {"ours": our_features(case), "torch": torch_features(case, *choice)}
    runs = {name: functools.partial(timed, run, images) for name, run in sides.items()}
    if worker is not None:
        chosen[PEER] = tune_scattering(worker, images)
        runs[PEER] = functools.partial(ask_scattering, worker, images, chosen[PEER])
    runs["ours"]()
    measured = {name: {key: [] for key in MEASURED} for name in runs}
    results = {}
    for _ in range(rounds):
        for name, run in runs.items():
            times, results[name] = run()
            seconds = (*map(times.get, MEASURED[:2]), classify(results[name]))
            for key, value in zip(MEASURED, seconds, strict=True):
                measured[name][key].append(value / n_images)
    differ = disagreement(results["ours"], results["torch"])
    return {
        "operations": case.operations,
        "sides": measured,
        "chosen": chosen,
        "n_features": {name: int(a[0].size) for name, a in results.items()},
        "disagreement": differ if case.equal_cells else None,
    }


def make_table(name, measured):
    """Return the table of one case: medians, and how many times ours each is."""
    headers = [name, "features", "µs an image", "ratio", "GFLOP/s"]
    headers += ["CPU µs", "CPU ratio", "linear, µs"]
    medians = {
        side: {key: median(values) for key, values in times.items()}
        for side, times in measured["sides"].items()
    }
    rows = []
    for side, times in medians.items():
        seconds, cpu_seconds, linear_seconds = times.values()
        row = [side, measured["n_features"][side], 1e6 * seconds]
        row += [seconds / medians["ours"]["seconds"]]
        speed = measured["operations"] / seconds / 1e9
        row += [None if side == PEER else speed, 1e6 * cpu_seconds]
        row += [cpu_seconds / medians["ours"]["cpu_seconds"], 1e6 * linear_seconds]
        rows.append(row)
    title = f"{measured['operations'] / 1e6:.1f} million operations an image"
    return f"{title}; {measured['chosen']}\n{format_table(headers, rows)}"


def parse_options(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.features", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--no-peer", action="store_true", help="without kymatio")
    return parser.parse_args(argv)


def main(argv=None):
    """Run the command line."""
    options = parse_options(argv)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if options.no_peer:
        return _finish(_measure(options, None), options)
    build_environment(PEER)
    with PeerWorker(PEER) as worker:
        return _finish(_measure(options, worker), options)


def _measure(options, worker):
    """Measure all cases asked for."""
    return {
        name: compare_case(CASES[name], options.images, options.rounds, worker)
        for name in options.cases
    }


def _finish(results, options):
    """Report the results; fail where ours and torch's differ."""
    tables = [make_table(name, measured) for name, measured in results.items()]
    report(tables, {"features": results}, options.json)
    differences = {name: one["disagreement"] for name, one in results.items()}
    return tell_differences(differences, TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
