"""``python -m benchmarks.peers``: our engine beside neural-tangents, torch and kymatio.

Kernel and patch AGOP beside neural-tangents; features beside torch's own convolution,
ReLU and pooling at the best of some batch sizes, and beside kymatio's scattering. All
sides are warm and take turns, so that what else the machine does hits all; results are
compared before any time is printed. ``taskset -c 1`` gives every side one core.
"""

import functools
import itertools
import os
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from skconvrfm.compute.images import convolution_layers
from skconvrfm.compute.parallel import Resources
from skconvrfm.features.maps import FilterLayer, compute_features
from skconvrfm.kernels import ConvNTK, patch_agop

from ..harness import format_table, program, timed
from ..problems import smooth_images
from .client import PeerWorker

TOLERANCE = 1e-4
N_POINTS, N_CLASSES = 20, 10
BATCHES = (10, 25, 50, 100, 200, 400)


@dataclass(frozen=True)
class Engine:
    """Kernel or patch AGOP of the network without biases, on 3×3 patches."""

    task: str
    depth: int
    comparable = True

    def sides(self, n_images, worker):
        """Return a call for either side, whose result is (times, array)."""
        arrays = {"images": smooth_images(n_images)}
        if self.task == "agop":
            coef = np.random.default_rng(0).standard_normal((n_images, N_CLASSES))
            arrays["dual_coef"] = np.float32(coef / n_images)
            arrays["points"] = arrays["images"][:N_POINTS]
        kernel = ConvNTK(self.depth, bias=0)
        ours = (
            kernel if self.task == "kernel" else functools.partial(patch_agop, kernel)
        )
        peer = worker("neural_tangents").compute
        request = {"task": self.task, "depth": self.depth, "patch_size": 3}
        return {
            "ours": lambda: timed(ours, *arrays.values(), dtype="float32"),
            "neural-tangents": lambda: peer(arrays, **request),
        }


@dataclass(frozen=True)
class Features:
    """512 filters on a grid of cells, for images of a shape."""

    image_shape: tuple[int, int, int]
    patch_size: int
    n_filters: int = 512
    grid: int = 3

    @property
    def layer(self):
        """The patches."""
        return convolution_layers(self.image_shape, self.patch_size, "valid", 1)[0]

    @property
    def comparable(self):
        """True where all cells have as many locations: torch pools others otherwise."""
        return not any(size % self.grid for size in self.layer.locations)

    def filters(self):
        """Return seeded filters, whose entries run (channel, row, column)."""
        patch_dim = self.patch_size**2 * self.image_shape[2]
        rng = np.random.default_rng(0)
        return np.float32(rng.standard_normal((self.n_filters, patch_dim)))

    def sides(self, n_images, worker):
        """Return a call for each side; the batches of the others are searched first."""
        images = smooth_images(n_images, self.image_shape)
        scatter = functools.partial(worker("kymatio").compute, {"images": images})

        def seconds(call):
            return min(call()[0]["seconds"] for _ in range(2))

        layouts = itertools.product(
            BATCHES, (torch.contiguous_format, torch.channels_last)
        )
        computed = [self.by_torch(images, *layout) for layout in layouts]
        scattered = [functools.partial(scatter, batch=batch) for batch in BATCHES]
        return {
            "ours": functools.partial(timed, self.ours(), images),
            "torch": min(computed, key=seconds),
            "kymatio": min(scattered, key=seconds),
        }

    def ours(self):
        """Return the function of images (n, h, w, c)."""
        grid = (self.grid, self.grid)
        features = FilterLayer(self.layer, self.filters(), "relu", pool=grid)
        resources = Resources("cpu", torch.float32, 2**30)
        return functools.partial(compute_features, features, resources=resources)

    def by_torch(self, images, batch, memory_format):
        """Return a call with torch's own functions, batch by batch."""
        channels, size = self.image_shape[2], self.patch_size
        weight = torch.from_numpy(self.filters() * np.float32((2 / channels) ** 0.5))
        weight = weight.reshape(-1, channels, size, size)
        weight = weight.contiguous(memory_format=memory_format)

        @torch.inference_mode()
        def compute():
            out = []
            for part in torch.from_numpy(images).permute(0, 3, 1, 2).split(batch):
                maps = part.contiguous(memory_format=memory_format)
                maps = functional.conv2d(maps, weight).relu_()
                cells = functional.adaptive_avg_pool2d(maps, self.grid)
                out.append(cells.permute(0, 2, 3, 1).numpy())
            return np.concatenate(out)

        return functools.partial(timed, compute)


CASES = {
    "kernel-depth3": Engine("kernel", 3),
    "kernel-depth1": Engine("kernel", 1),
    "agop-depth3": Engine("agop", 3),
    "agop-depth1": Engine("agop", 1),
    "features-cifar": Features((32, 32, 3), patch_size=6),
    "features-mnist": Features((28, 28, 1), patch_size=7),
}


def disagreement(ours, theirs):
    """Return the largest difference over the largest value; None of other shapes."""
    if ours.shape != theirs.shape:
        return None
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def compare(sides, turns):
    """Return medians of the times, a dict by side, with the disagreement with ours."""
    results = {name: call()[1] for name, call in sides.items()}  # all are warm now
    runs = [{name: call()[0] for name, call in sides.items()} for _ in range(turns)]
    return {
        name: {
            **{
                key: float(np.median([run[name][key] for run in runs]))
                for key in clocks
            },
            "differs": disagreement(results["ours"], results[name]),
        }
        for name, clocks in runs[0].items()
    }


def measure(options):
    """Measure the cases asked for."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    [n_images], rows, results, wrong = options.sizes, [], {}, []
    with ExitStack() as stack:

        @functools.cache
        def worker(peer):
            return stack.enter_context(PeerWorker(peer))

        for name in options.only:
            results[name] = compare(CASES[name].sides(n_images, worker), options.draws)
            ours = results[name]["ours"]
            for side, one in results[name].items():
                ratios = (one[key] / ours[key] for key in ("seconds", "cpu_seconds"))
                rows.append([name, side, *one.values(), *ratios])
                if CASES[name].comparable and (one["differs"] or 0) > TOLERANCE:
                    wrong.append(f"{name}, {side}")
    headers = ["case", "side", "s", "CPU s", "differs", "over ours", "CPU over ours"]
    return [format_table(headers, rows)], {"peers": results, "wrong": wrong}


main = program(measure, CASES, sizes=[400], draws=5, needs_data=False)

if __name__ == "__main__":
    raise SystemExit(main())
