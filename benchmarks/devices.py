"""``python -m benchmarks.devices``: a GPU beside its processors, and beside a peer.

The same calls by fused programs, by single operations and on the processors; with
``--peer`` kernels and AGOPs by neural-tangents on the same card, at the best of some
sizes of blocks. All sides are warm and take turns; results are compared first.
"""

import os
from functools import partial

import numpy as np
import torch

from skconvrfm import ConvRFMClassifier
from skconvrfm.compute.native.build import SWITCH
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK

from .harness import format_table, program, timed
from .peers.__main__ import (
    N_CLASSES,
    TOLERANCE,
    compare,
    engine_work,
    random_images,
)
from .peers.client import worker

SHARE_OF_POINTS = 10  # one of so many images carries the AGOP
BLOCKS = 50, 100, 200, 400  # of the peer
# Multiply-adds and roots of a pair at a location of a layer, as operations.
OPERATIONS = 64


def engine(task, depth):
    """Return what makes our call of a kernel or AGOP, the peer's, and their work."""

    def prepare(n_images):
        n_points = n_images // SHARE_OF_POINTS
        ours, theirs = engine_work(task, depth, n_images, n_points)
        locations = sum((32 - 2 * layer) ** 2 for layer in range(1, depth + 1))
        pairs = n_images * (n_points if task == "agop" else n_images // 2)
        return ours, theirs, pairs * locations * OPERATIONS

    return prepare


def fit(kernel, features=None):
    """Return what makes the call of a fit with two rounds, and of its scores."""

    def prepare(n_images):
        X = random_images(2 * n_images, (32, 32, 3))
        y = np.argsort(np.argsort(X[:n_images].mean((1, 2, 3)))) * N_CLASSES // n_images

        def call(**where):
            options = {"selection": "last", "n_rounds": 2, "random_state": 0, **where}
            model = ConvRFMClassifier(kernel, features, **options)
            return model.fit(X[:n_images], y).decision_function(X[n_images:])

        return call, None, None

    return prepare


CASES = {
    "kernel-depth1": engine("kernel", 1),
    "kernel-depth3": engine("kernel", 3),
    "agop-depth3": engine("agop", 3),
    "fit-exact": fit(ConvNTK()),
    "fit-linear-features": fit("linear", ConvFeatures(patch_size=3)),
    "fit-gaussian-features": fit("gaussian", ConvFeatures(patch_size=3)),
}


def switched(switch, call, **where):
    """Return (times, result) of a call with fused programs, or without."""
    os.environ[SWITCH] = switch
    return timed(call, **where)


def sides(call, asked, options):
    """Return the calls of all sides, which begin with ours on the device."""
    device, on_card = options.device, {"device": options.device, "dtype": options.dtype}
    named = {"ours": partial(switched, "1", call, **on_card)}
    if device != "cpu":
        named["single operations"] = partial(switched, "0", call, **on_card)
        on_host = {"device": "cpu", "dtype": options.dtype}
        named["processors"] = partial(switched, "1", call, **on_host)
    if options.peer and asked:
        arrays, request = asked
        compute = partial(worker(device.split(":")[0]).compute, arrays, **request)
        calls = [partial(compute, block_size=block) for block in BLOCKS]
        best = min(calls, key=lambda one: min(one()[0]["seconds"] for _ in "12"))
        named["neural-tangents"] = best
    return named


def card_rates(device):
    """Return operations and bytes a second of a matrix product and of a copy."""
    matrix, copied = torch.rand((4096, 4096), device=device), 2**26
    vector = torch.rand(copied, device=device)

    def seconds(call):
        def run():
            call()
            torch.cuda.synchronize() if "cuda" in device else None

        return min(timed(run)[0]["seconds"] for _ in range(5))

    product, copy = seconds(lambda: matrix @ matrix), seconds(vector.clone)
    return 2 * 4096**3 / product, 8 * copied / copy


def measure(options):
    """Measure the cases asked for."""
    [n_images], rows, results, wrong = options.sizes, [], {}, []
    rate, copies = card_rates(options.device)
    for name in options.only:
        call, asked, work = CASES[name](n_images)
        results[name] = compare(sides(call, asked, options), options.draws)
        ours = results[name]["ours"]["seconds"]
        for side, one in results[name].items():
            done = work and work / one["seconds"] / 1e12
            row = [one["seconds"], one["seconds"] / ours, one["differs"], done]
            rows.append([name, side, *row, done and done * 1e12 / rate])
            if (one["differs"] or 0) > TOLERANCE:
                wrong.append(f"{name}, {side}")
    headers = ["case", "side", "s", "over ours", "differs", "TFLOP/s", "of the product"]
    rates = (
        f"product of matrices {rate / 1e12:.3g} TFLOP/s, copy {copies / 1e9:.3g} GB/s"
    )
    return [rates, format_table(headers, rows)], {"devices": results, "wrong": wrong}


OPTIONS = {
    "--peer": {"action": "store_true", "help": "with neural-tangents"},
    "--device": {"default": "cuda", "help": "whose calls are ours"},
    "--dtype": {"default": "float32", "choices": ["float32", "float64"]},
}
main = program(measure, CASES, sizes=[2000], draws=3, needs_data=False, options=OPTIONS)

if __name__ == "__main__":
    raise SystemExit(main())
