"""``python -m benchmarks.peers``: our engine beside neural-tangents, torch and kymatio.

Kernel and patch AGOP beside neural-tangents; features beside torch's own convolution,
ReLU and pooling at the best of some batch sizes, and beside kymatio's scattering. All
sides are warm and take turns, so that what else the machine does hits all; results are
compared before any time is printed. ``taskset -c 1`` gives every side one core.
"""

import os
from functools import partial
from itertools import product

import numpy as np
import torch
from torch.nn import functional

from skconvrfm.compute.images import convolution_layers
from skconvrfm.compute.parallel import Resources
from skconvrfm.features.maps import FilterLayer, compute_features
from skconvrfm.kernels import ConvNTK, patch_agop

from ..harness import format_table, program, timed
from ..rivals import scattering
from .client import worker

TOLERANCE = 1e-4
N_POINTS, N_CLASSES = 20, 10
GRID = 3, 3
BATCHES = (10, 25, 50, 100, 200, 400)


def random_images(n_images, image_shape):
    """Return seeded images (n, h, w, c)."""
    return np.random.default_rng(0).random((n_images, *image_shape), dtype=np.float32)


def engine_work(task, depth, n_images, n_points):
    """Return our call of a kernel or AGOP, and the arrays and request of the peer's.

    Patches are 3×3, and there are no biases.
    """
    arrays = {"images": random_images(n_images, (32, 32, 3))}
    ours = kernel = ConvNTK(depth, bias=0)
    if task == "agop":
        coef = np.random.default_rng(0).standard_normal((n_images, N_CLASSES))
        arrays["dual_coef"] = np.float32(coef / n_images)
        arrays["points"] = arrays["images"][:n_points]
        ours = partial(patch_agop, kernel)
    request = {"task": task, "depth": depth, "patch_size": 3}
    return partial(ours, *arrays.values()), (arrays, request)


def engine(task, depth):
    """Return what makes the sides of a kernel or AGOP: calls of (times, array)."""

    def sides(n_images):
        ours, (arrays, request) = engine_work(task, depth, n_images, N_POINTS)
        return {
            "ours": partial(timed, ours, dtype="float32"),
            "neural-tangents": partial(worker().compute, arrays, **request),
        }

    return sides


def features(image_shape, patch_size):
    """Return what makes the sides of 512 filters on a grid of 3×3 cells.

    The batches of the others are searched first.
    """
    channels = image_shape[2]
    patches = convolution_layers(image_shape, patch_size, "valid", 1)[0]
    # Entries of a filter run (channel, row, column).
    filters = np.random.default_rng(0).standard_normal((512, patch_size**2 * channels))
    ours = FilterLayer(patches, np.float32(filters), "relu", pool=GRID)
    resources = Resources("cpu", torch.float32, 2**30)
    weight = torch.from_numpy(np.float32(filters * (2 / channels) ** 0.5))
    weight = weight.reshape(512, channels, patch_size, patch_size)

    @torch.inference_mode()
    def by_torch(images, batch, layout):
        out, filters = [], weight.contiguous(memory_format=layout)
        for part in torch.from_numpy(images).permute(0, 3, 1, 2).split(batch):
            maps = part.contiguous(memory_format=layout)
            maps = functional.conv2d(maps, filters).relu_()
            cells = functional.adaptive_avg_pool2d(maps, GRID)
            out.append(cells.permute(0, 2, 3, 1).numpy())
        return np.concatenate(out)

    def sides(n_images):
        images = random_images(n_images, image_shape)
        scatter = scattering(2, image_shape)
        layouts = (torch.contiguous_format, torch.channels_last)
        others = {
            "torch": [
                partial(timed, by_torch, images, batch, layout)
                for batch, layout in product(BATCHES, layouts)
            ],
            "kymatio": [partial(timed, scatter, images, batch) for batch in BATCHES],
        }
        compute = partial(compute_features, ours, images, resources=resources)
        return {"ours": partial(timed, compute)} | {
            name: min(calls, key=lambda call: min(call()[0]["seconds"] for _ in "12"))
            for name, calls in others.items()
        }

    return sides


CASES = {
    "kernel-depth3": engine("kernel", 3),
    "kernel-depth1": engine("kernel", 1),
    "agop-depth3": engine("agop", 3),
    "agop-depth1": engine("agop", 1),
    "features-cifar": features((32, 32, 3), patch_size=6),
    "features-mnist": features((28, 28, 1), patch_size=7),
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
    found = {}
    for name in sides:
        found[name] = {
            clock: float(np.median([run[name][clock] for run in runs]))
            for clock in ("seconds", "cpu_seconds")
        }
        found[name]["differs"] = disagreement(results["ours"], results[name])
    return found


def measure(options):
    """Measure the cases asked for."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    [n_images], rows, results, wrong = options.sizes, [], {}, []
    for name in options.only:
        results[name] = compare(CASES[name](n_images), options.draws)
        ours = results[name]["ours"]
        for side, one in results[name].items():
            ratios = (one[key] / ours[key] for key in ("seconds", "cpu_seconds"))
            rows.append([name, side, *one.values(), *ratios])
            # Where cells have not as many locations each, torch pools others.
            comparable = (name, side) != ("features-mnist", "torch")
            if comparable and (one["differs"] or 0) > TOLERANCE:
                wrong.append(f"{name}, {side}")
    headers = ["case", "side", "s", "CPU s", "differs", "over ours", "CPU over ours"]
    return [format_table(headers, rows)], {"peers": results, "wrong": wrong}


main = program(measure, CASES, sizes=[400], draws=5, needs_data=False)

if __name__ == "__main__":
    raise SystemExit(main())
