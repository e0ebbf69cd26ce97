"""``python -m benchmarks.devices``: a GPU beside the processors of its machine.

The same calls on both, in float32 and in float64: seconds, how far the results are
apart, and the memory that the GPU needed. Random images with the spectrum of
photographs; the first call of each kind, which compiles or loads, is not counted.
"""

import argparse
import os
from functools import partial

import numpy as np
import torch

from skconvrfm import ConvRFMClassifier
from skconvrfm.compute.native import build
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian, Linear, patch_agop
from skconvrfm.learning.ridge import RidgePath

from .harness import MEBIBYTE, format_table, median, report, smooth_images, timed

N_CLASSES = 10
ALPHAS = np.logspace(-6, 2, 25)
# A tenth of the images carries the AGOP, as in the estimators.
AGOP_SHARE = 10


class Problem:
    """Images, coefficients and a kernel matrix to measure with.

    Parameters
    ----------
    n_images : int
        Training images; predictions are of as many.
    seed : int, default=0
        Of the images and the coefficients.
    """

    def __init__(self, n_images, seed=0):
        images = smooth_images(2 * n_images, seed=seed)
        self.X, self.X_new = images[:n_images], images[n_images:]
        rng = np.random.default_rng(seed)
        self.dual_coef = rng.standard_normal((n_images, N_CLASSES))
        # Brightness in ten classes: something that can be learned.
        order = np.argsort(self.X.mean((1, 2, 3)))
        self.y = np.empty(n_images, dtype=int)
        self.y[order] = np.arange(n_images) * N_CLASSES // n_images
        # A matrix with a spectrum as kernels have it.
        flat = self.X.reshape(n_images, -1).astype(np.float64)
        self.matrix = 1 + flat @ flat.T / flat.shape[1]

    def kernel(self, depth, **where):
        """Compute the training kernel."""
        return ConvNTK(depth, bias=0)(self.X, **where)

    def agop(self, depth, **where):
        """Compute one patch AGOP."""
        kernel, points = ConvNTK(depth, bias=0), self.X[: len(self.X) // AGOP_SHARE]
        return patch_agop(kernel, self.X, self.dual_coef, points, **where)

    def decomposition(self, device, dtype):
        """Compute GCV of all ridges."""
        ones = np.ones(len(self.matrix))
        device = torch.device(device)
        return RidgePath(self.matrix, self.dual_coef, ones, ALPHAS, device).gcv()

    def fit(self, kernel, features=None, **where):
        """Return scores of new images after a fit with two rounds."""
        options = {"selection": "last", "n_rounds": 2, "random_state": 0, **where}
        classifier = ConvRFMClassifier(kernel, features, **options)
        return classifier.fit(self.X, self.y).decision_function(self.X_new)


CASES = {
    "kernel, depth 1": partial(Problem.kernel, depth=1),
    "kernel, depth 3": partial(Problem.kernel, depth=3),
    "AGOP, depth 3": partial(Problem.agop, depth=3),
    "decomposition": Problem.decomposition,
    "fit and predict, ConvNTK": partial(Problem.fit, kernel=ConvNTK()),
    **{
        f"fit and predict, ConvFeatures + {type(kernel).__name__}": partial(
            Problem.fit, kernel=kernel, features=ConvFeatures(patch_size=3)
        )
        for kernel in (Linear(), Gaussian())
    },
}


def measure_case(case, problem, warm_up, device, dtype, repeats):
    """Measure one case on one device in one precision.

    Parameters
    ----------
    case : callable
        One of `CASES`.
    problem, warm_up : Problem
        What is measured, and a small one that goes first.
    device, dtype : str
        As the estimators read them.
    repeats : int
        Calls, of which the median counts.

    Returns
    -------
    measured : dict
        ``seconds``, and ``gpu_mib`` at the peak (None on the CPU).
    result : ndarray
        What was computed.
    """
    where = {"device": device, "dtype": dtype}
    case(warm_up, **where)
    on_gpu = device != "cpu"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        measured, result = timed(case, problem, **where)
        seconds.append(measured["seconds"])
    peak = torch.cuda.max_memory_allocated() / MEBIBYTE if on_gpu else None
    return {"seconds": median(seconds), "gpu_mib": peak}, result


def measure(name, problem, warm_up, repeats):
    """Measure one case everywhere; return a row of the table, as a dict."""
    row, results = {"case": name}, {}
    for device, dtype in (
        ("cuda", "float32"),
        ("cuda", "float64"),
        ("cpu", "float32"),
    ):
        measured, result = measure_case(
            CASES[name], problem, warm_up, device, dtype, repeats
        )
        results[device, dtype] = result
        row[f"{device}_{dtype}"] = measured
    exact = results["cuda", "float64"]
    for key, result in results.items():
        difference = np.linalg.norm(result - exact) / np.linalg.norm(exact)
        row["{}_{}".format(*key)]["difference"] = float(difference)
    return row


def tabulate(rows):
    """Return the table of the cases.

    Parameters
    ----------
    rows : list of dict
        See `measure`.

    Returns
    -------
    str
    """
    headers = ["case", "GPU s", "CPU s", "ratio", "GPU float64 s", "GPU MiB"]
    headers += ["GPU to float64", "CPU to float64"]
    cells = []
    for row in rows:
        low, high, cpu = (
            row[key] for key in ("cuda_float32", "cuda_float64", "cpu_float32")
        )
        cells.append(
            [
                row["case"],
                low["seconds"],
                cpu["seconds"],
                cpu["seconds"] / low["seconds"],
                high["seconds"],
                f"{low['gpu_mib']:.0f}",
                f"{low['difference']:.0e}",
                f"{cpu['difference']:.0e}",
            ]
        )
    return format_table(headers, cells)


def parse_options(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.devices", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--n-images", type=int, default=2000, help="training images")
    add("--repeats", type=int, default=3, help="calls, of which the median counts")
    add("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    add("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here")
    return options


def main(argv=None):
    """Run the command line."""
    options = parse_options(argv)
    # However small the images that go first: what is compiled is compiled by them.
    os.environ[build.SWITCH] = "1"
    problem, warm_up = Problem(options.n_images), Problem(100, seed=1)
    rows = []
    for name in options.cases:
        rows.append(measure(name, problem, warm_up, options.repeats))
        print(tabulate(rows[-1:]), flush=True)
    gpu = torch.cuda.get_device_name()
    heading = f"{gpu}, {options.n_images} images of 32x32x3"
    report([heading, tabulate(rows)], {"gpu": gpu, "rows": rows}, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
