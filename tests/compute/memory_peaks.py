"""Peaks of memory of public functions, measured in a process of their own.

``python memory_peaks.py BUDGET NAME ...`` prints a line of JSON: MiB of each function
of `CALLS` beyond its data and result, under a ``working_memory`` of BUDGET, and
seconds.
"""

import ctypes
import gc
import json
import sys
import warnings
from pathlib import Path
from time import perf_counter

import numpy as np
import sklearn
from sklearn import config_context
from torch import nn

from skconvrfm import AnsatzScorer, ConvRFMClassifier, PatchAGOPTransformer
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import (
    ConvNTK,
    Gaussian,
    Linear,
    PatchGaussian,
    PatchLaplace,
    patch_agop,
)

MEBIBYTE = 2**20
PROCESS = Path("/proc/self")


def make_images(n, side, dtype=np.float32):
    """Noise whose size grows from image to image."""
    sizes = np.linspace(0.2, 1, n, dtype=np.float32)[:, None, None]
    noise = np.random.default_rng(0).random((n, side, side), dtype=np.float32)
    return (255 * sizes * noise).astype(dtype)


def make_labels(n):
    return np.arange(n) % 2


def fit(kernel, features, n, side, n_rounds=1, dtype=np.float32):
    """Return the call of a fit."""
    X, model = make_images(n, side, dtype), ConvRFMClassifier(kernel, features)
    model.set_params(n_rounds=n_rounds)
    return lambda: model.fit(X, make_labels(n))


def partial_fit(features, n, side):
    X, model = make_images(n, side), ConvRFMClassifier("linear", features)
    return lambda: model.partial_fit(X, make_labels(n))


def predict(kernel, features, n, side):
    """Return the call of `predict` on n images, of a machine of four."""
    model, X = fit(kernel, features, 4, side, n_rounds=0)(), make_images(n, side)
    return lambda: model.predict(X)


def transform(output, n, side):
    features = ConvFeatures(4, patch_size=5)
    learner = ConvRFMClassifier("linear", features, n_rounds=0)
    maker = PatchAGOPTransformer(learner, output=output, n_filters=16)
    maker.fit(make_images(2, side), make_labels(2))
    X = make_images(n, side)
    return lambda: maker.transform(X)


def matrix(kernel, n, side):
    X = make_images(n, side)
    return lambda: kernel(X)


def agop(kernel, n, side):
    X, coef = make_images(n, side), np.random.default_rng(0).normal(size=(n, 2))
    return lambda: patch_agop(kernel, X, coef)


def ansatz(n, side):
    X, size = make_images(n, side), (side - 4) // 4
    convolutions = nn.Conv2d(1, 4, 5), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten()
    network = nn.Sequential(*convolutions, nn.Linear(4 * size**2, 3))
    return lambda: AnsatzScorer().report(network, X)


FEW, MIRRORED, TWO = (
    ConvFeatures(8, patch_size=5),
    ConvFeatures(8, patch_size=5, mirror=True),
    [
        ConvFeatures(4, patch_size=3, pool="mean", pool_grid=None, pool_size=2),
        ConvFeatures(8, patch_size=3),
    ],
)
CALLS = {
    "fit of linear features": lambda: fit("linear", FEW, 3, 400),
    "fit of uint8 images": lambda: fit("linear", FEW, 4, 400, 0, np.uint8),
    "fit of gaussian features": lambda: fit("gaussian", FEW, 3, 300),
    "fit of mirrored features": lambda: fit("gaussian", MIRRORED, 3, 300),
    "fit of two layers": lambda: fit("linear", TWO, 2, 150),
    "fit without a pool": lambda: fit(
        "linear", ConvFeatures(8, patch_size=3, pool_grid=None), 4, 40
    ),
    "fit of whole images": lambda: fit("gaussian", None, 20, 500),
    "fit of a patch kernel": lambda: fit(PatchGaussian(), None, 12, 100),
    "fit of the NTK": lambda: fit(ConvNTK(depth=2), None, 12, 100),
    "partial_fit": lambda: partial_fit(FEW, 4, 500),
    "predict of linear features": lambda: predict("linear", FEW, 12, 500),
    "predict of gaussian features": lambda: predict("gaussian", FEW, 12, 400),
    "predict of the NTK": lambda: predict(ConvNTK(depth=1), None, 8, 200),
    **{
        f"transform, {output}": lambda output=output: transform(output, 4, 400)
        for output in ("filters", "eigen", "saliency", "image", "features")
    },
    "ConvNTK": lambda: matrix(ConvNTK(depth=2), 6, 300),
    "PatchGaussian": lambda: matrix(PatchGaussian(), 6, 300),
    "PatchLaplace": lambda: matrix(PatchLaplace(2.0), 6, 300),
    "Gaussian": lambda: matrix(Gaussian(), 20, 500),
    "Linear": lambda: matrix(Linear(), 20, 500),
    "AnsatzScorer": lambda: ansatz(30, 200),
    "patch_agop of the NTK": lambda: agop(ConvNTK(depth=2), 3, 200),
    "patch_agop of PatchGaussian": lambda: agop(PatchGaussian(9.0), 3, 200),
    "2000 x 2000": lambda: fit("linear", ConvFeatures(64), 4, 2000),
    "4000 x 4000": lambda: fit("linear", ConvFeatures(16), 4, 4000),
}
LARGE = ("2000 x 2000", "4000 x 4000")


def memory(name):
    """Return a number of the status of this process, in MiB."""
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(name)


def measure(call):
    """Return MiB by which a call raises the peak, but for its result, and seconds."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    (PROCESS / "clear_refs").write_text("5")  # the peak begins anew
    before, begun = memory("VmRSS"), perf_counter()
    result = call()
    seconds = perf_counter() - begun
    return memory("VmHWM") - before - result_size(result), seconds


def result_size(result):
    """Return MiB of an array, or of the fitted arrays of an estimator."""
    arrays = [result] if isinstance(result, np.ndarray) else vars(result).values()
    sizes = [array.nbytes for array in arrays if isinstance(array, np.ndarray)]
    return sum(sizes) / MEBIBYTE


def load_libraries():
    """Let small fits load what fits need: libraries, threads, compiled functions."""
    X, y = make_images(40, 12), make_labels(40)
    features = ConvFeatures(4, patch_size=3)
    for kernel, layer in (("linear", features), (ConvNTK(depth=2), None)):
        ConvRFMClassifier(kernel, layer, n_rounds=1).fit(X, y).predict(X)
    ansatz(4, 16)()


def main(budget, names):
    """Print the peaks of some calls."""
    warnings.simplefilter("ignore")
    with config_context(working_memory=8):
        load_libraries()
    peaks = {}
    for name in names:
        with config_context(working_memory=256):
            call = CALLS[name]()
        sklearn.set_config(working_memory=budget)
        peaks[name] = measure(call)
        del call
    print(json.dumps(peaks))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
