"""``python -m benchmarks.growth``: how time and memory grow.

Time: of the kernel with the number of images and at a prime number of them, of the
AGOP with the images that carry it, and of one worker with two threads against two
workers with one; and of a fit with features with the number of images. Memory: the
peak above data and result against the budget ``working_memory``, or the number of
images, each measured in a process of its own.

The best of several runs stands for a time, and runs to be compared take turns. On a
machine that is shared, the CPU seconds of this process say more than those on the wall.
"""

import argparse
import json
import sys

import numpy as np
import torch
from joblib import parallel_config
from sklearn import config_context

from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, patch_agop

from .harness import (
    MEBIBYTE,
    format_table,
    growth_exponent,
    in_subprocess,
    peak_memory,
    report,
    smooth_images,
    timed,
)

SMALL = (16, 16, 1)
KERNEL = ConvNTK(bias=0)
N_CLASSES = 10
CLOCKS = ("seconds", "cpu_seconds")
BUDGETS = (64, 256, 1024)


def best_in_turns(calls, rounds):
    """Measure several calls that take turns; the best of all rounds counts.

    Parameters
    ----------
    calls : list of callable
        What to measure; each is also run once before.
    rounds : int
        How often each is measured.

    Returns
    -------
    dict of list
        ``seconds`` and ``cpu_seconds``, one a call.
    """
    for call in calls:
        call()
    times = [[timed(call)[0] for call in calls] for _ in range(rounds)]
    by_call = list(zip(*times, strict=True))
    return {
        clock: [min(t[clock] for t in runs) for runs in by_call] for clock in CLOCKS
    }


def exponents(sizes, times):
    """Return the powers of the size that the times grow with, by clock."""
    return {
        f"{clock}_exponent": growth_exponent(sizes, times[clock]) for clock in CLOCKS
    }


def kernel_by_images(sizes=(250, 500, 1000, 2000), rounds=3):
    """Measure kernel time by number of images, and the exponent of its growth.

    Parameters
    ----------
    sizes : sequence of int
        Numbers of images.
    rounds : int, default=3
        Runs of each.

    Returns
    -------
    dict
    """
    images = smooth_images(max(sizes), SMALL)
    calls = [lambda n=n: KERNEL(images[:n]) for n in sizes]
    times = best_in_turns(calls, rounds)
    return {"images": list(sizes), **times, **exponents(sizes, times)}


def kernel_at_a_prime(prime=1009, rounds=5):
    """Measure kernel time at a prime number of images and at its neighbours.

    Parameters
    ----------
    prime : int, default=1009
        The number of images.
    rounds : int, default=5
        Runs of each.

    Returns
    -------
    dict
        ``..._excess`` is the time at the prime over that of its neighbours, less 1.
    """
    sizes = [prime - 1, prime, prime + 1]
    images = smooth_images(prime + 1, SMALL)
    calls = [lambda n=n: KERNEL(images[:n]) for n in sizes]
    times = best_in_turns(calls, rounds)
    excess = {
        f"{clock}_excess": at / ((below + above) / 2) - 1
        for clock, (below, at, above) in times.items()
    }
    return {"images": sizes, **times, **excess}


def agop_by_images(sizes=(20, 40, 80, 160), n_centres=500, rounds=3):
    """Measure AGOP time by number of images that carry it, and its growth.

    Parameters
    ----------
    sizes : sequence of int
        Numbers of images.
    n_centres : int, default=500
        Centres of the machine.
    rounds : int, default=3
        Runs of each.

    Returns
    -------
    dict
    """
    images = smooth_images(n_centres, SMALL)
    coef = np.random.default_rng(0).standard_normal((n_centres, N_CLASSES))
    calls = [lambda n=n: patch_agop(KERNEL, images, coef, images[:n]) for n in sizes]
    times = best_in_turns(calls, rounds)
    return {"images": list(sizes), **times, **exponents(sizes, times)}


def workers_against_threads(n_images=3000, rounds=3):
    """Measure kernel time of one worker with two threads and of two workers with one.

    Parameters
    ----------
    n_images : int, default=3000
        Number of images.
    rounds : int, default=3
        Runs of each.

    Returns
    -------
    dict
    """
    images = smooth_images(n_images, SMALL)

    def with_workers(backend):
        # The workers share out the threads that this process has.
        with parallel_config(backend):
            return KERNEL(images, n_jobs=2)

    calls = {
        "1 worker, 2 threads": lambda: KERNEL(images, n_jobs=1),
        "2 workers, loky": lambda: with_workers("loky"),
        "2 workers, threading": lambda: with_workers("threading"),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        times = best_in_turns(list(calls.values()), rounds)
    finally:
        torch.set_num_threads(threads)
    # The CPU seconds of other processes are not among those of this one.
    return {"how": list(calls), "seconds": times["seconds"]}


def memory_by_budget(budgets=BUDGETS):
    """Measure peak memory above data and result by working_memory.

    Parameters
    ----------
    budgets : sequence of int
        Values of working_memory in MiB.

    Returns
    -------
    dict
        Peaks in MiB, of kernel and AGOP.
    """
    peaks = [
        in_subprocess("benchmarks.growth", "--measure-memory", budget)
        for budget in budgets
    ]
    return {
        "working_memory": list(budgets),
        "kernel": [peak["kernel"] for peak in peaks],
        "agop": [peak["agop"] for peak in peaks],
    }


def measure_memory(budget, n_images=1200, n_points=60, image_shape=(32, 32, 3)):
    """Measure the peak memory of kernel and AGOP in this process.

    Parameters
    ----------
    budget : int
        working_memory in MiB.
    n_images, n_points : int
        Images of the kernel, and points of the AGOP.
    image_shape : (int, int, int), default=(32, 32, 3)
        Rows, columns and channels.

    Returns
    -------
    dict
        MiB above data and result.
    """
    images = smooth_images(n_images, image_shape)
    coef = np.random.default_rng(0).standard_normal((n_images, N_CLASSES))
    calls = {
        "kernel": lambda n: KERNEL(images[:n]),
        "agop": lambda n: patch_agop(
            KERNEL, images[:n], coef[:n], images[:n][:n_points]
        ),
    }
    peaks = {}
    for name, call in calls.items():
        call(8)  # Libraries are loaded and threads have started.
        with config_context(working_memory=budget):
            rise, result = peak_memory(call, n_images)
        peaks[name] = (rise - result.nbytes) / MEBIBYTE
    return peaks


def linear_by_images(sizes=(2000, 4000, 8000, 16_000, 32_000), rounds=2):
    """Measure time and memory of a fit with features by number of images.

    Parameters
    ----------
    sizes : sequence of int
        Numbers of images.
    rounds : int, default=2
        Runs of each.

    Returns
    -------
    dict
        ``peak`` is MiB above the data, which are bytes, in a process of its own, with
        a budget that holds no features.
    """
    X, y = byte_images(max(sizes))
    times = best_in_turns([lambda n=n: linear_fit(X[:n], y[:n]) for n in sizes], rounds)
    peaks = [
        in_subprocess("benchmarks.growth", "--measure-linear", size)["peak"]
        for size in sizes
    ]
    return {"images": list(sizes), **times, "peak": peaks, **exponents(sizes, times)}


def byte_images(n_images, image_shape=(32, 32, 3)):
    """Make images of bytes, and classes that have to do with them."""
    images = smooth_images(n_images, image_shape)
    contrast = images[:, :16].mean((1, 2, 3)) - images[:, 16:].mean((1, 2, 3))
    labels = np.digitize(contrast, np.quantile(contrast, np.arange(1, N_CLASSES) / 10))
    return (255 * images).astype(np.uint8), labels


def linear_fit(X, y):
    """Fit two rounds with few features, so that the cost of the images is in sight."""
    features = ConvFeatures(64, patch_size=3)
    return ConvRFMClassifier("linear", features, n_rounds=1).fit(X, y)


def measure_linear(n_images, budget=64):
    """Measure the peak memory of a fit with features, above the data."""
    X, y = byte_images(n_images)
    linear_fit(X[:100], y[:100])  # Libraries are loaded and threads have started.
    with config_context(working_memory=budget):
        rise, _ = peak_memory(linear_fit, X, y)
    return {"peak": rise / MEBIBYTE}


PARTS = {
    "images": kernel_by_images,
    "prime": kernel_at_a_prime,
    "agop": agop_by_images,
    "workers": workers_against_threads,
    "memory": memory_by_budget,
    "linear": linear_by_images,
}

GROWTH = (
    "power of the growth: {seconds_exponent:.3f} on the wall, "
    "{cpu_seconds_exponent:.3f} in CPU seconds"
)
EXCESS = (
    "the prime over its neighbours: {seconds_excess:+.1%} on the wall, "
    "{cpu_seconds_excess:+.1%} in CPU seconds"
)
# The title of each part, what heads its columns, and what is said of it in one line.
TITLES = {
    "images": ("Kernel, by images", GROWTH),
    "prime": ("Kernel, at a prime", EXCESS),
    "agop": ("AGOP, by images", GROWTH),
    "workers": ("Kernel, workers or threads", ""),
    "memory": ("Peak above data and result, MiB", ""),
    "linear": ("Fit with features, by images", GROWTH),
}


def make_table(name, results):
    """Return the table of a part, under its title and over the line that sums it up.

    Parameters
    ----------
    name : str
        The part.
    results : dict
        What it measured: columns as lists, numbers for the line below.

    Returns
    -------
    str
    """
    title, summary = TITLES[name]
    columns = {key: value for key, value in results.items() if isinstance(value, list)}
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    lines = [title, format_table(list(columns), rows), summary.format(**results)]
    return "\n".join(line for line in lines if line)


def main(argv=None):
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART"
    )
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--measure-memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--measure-linear", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure_memory:
        json.dump(measure_memory(options.measure_memory), sys.stdout)
        return 0
    if options.measure_linear:
        json.dump(measure_linear(options.measure_linear), sys.stdout)
        return 0
    results = {name: PARTS[name]() for name in options.parts}
    tables = [make_table(name, result) for name, result in results.items()]
    report(tables, results, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
