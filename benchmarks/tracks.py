"""``python -m benchmarks.tracks``: rows that come in tracks, with and without groups.

Takes some images, several shifted and noisy copies of each as training rows, and new
images as the test. Without groups (and their warning), with one group per image, and
with the bandwidth fixed at the median distance: the criterion over the squared error on
the test images, this error, the accuracy, the ridge and the multiple of the median.
Needs ``mnist_5000_2000.npz`` or a file of its form.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np

from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian
from skconvrfm.kernels.whole import RadialKernel
from skconvrfm.learning import rounds

from .harness import DATA, format_table, report
from .models import squared_error
from .problems import read_bytes

FILE = DATA / "mnist_5000_2000.npz"
SHIFT, NOISE = 2, 0.1  # pixels, and part of the images' standard deviation
LAYER = ConvFeatures(128, patch_size=6)
MACHINES = {
    "NTK, depth 1": (ConvNTK(depth=1, patch_size=6), None),
    "linear": ("linear", LAYER),
    "Gaussian": (Gaussian(), LAYER),
    "Laplace": ("laplace", LAYER),
}
VARIANTS = "no groups", "groups", "groups, median"
COLUMNS = "ratio", "error", "accuracy", "ridge", "multiple"


def make_tracks(images, labels, n_objects, n_views, rng):
    """Return shifted, noisy views of images, labels and numbers of the images."""
    group = np.repeat(np.arange(n_objects), n_views)
    shifts = rng.integers(-SHIFT, SHIFT + 1, size=(len(group), 2))
    views = [
        np.roll(images[g], tuple(shift), axis=(0, 1))
        for g, shift in zip(group, shifts, strict=True)
    ]
    noise = NOISE * images.std() * rng.standard_normal(np.shape(views))
    return (views + noise).astype(np.float32), labels[group], group


def measure(machine, variant, path, n_draws, n_objects, n_views, n_rounds):
    """Return an array (n_draws, 5), see `COLUMNS`."""
    found = []
    (images, new), (labels, new_labels) = read_bytes(path)
    for seed in range(n_draws):
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(len(images))[:n_objects]
        X, y, group = make_tracks(
            images[chosen] / 255, labels[chosen], n_objects, n_views, rng
        )
        test, test_labels, _ = make_tracks(new / 255, new_labels, len(new), 1, rng)
        model = ConvRFMClassifier(*machine, n_rounds=n_rounds)
        groups = None if variant == VARIANTS[0] else group
        multiples = rounds.MULTIPLES
        if variant == VARIANTS[2]:
            rounds.MULTIPLES = (1.0,)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model.fit(X, y, groups=groups)
        rounds.MULTIPLES = multiples
        key = "gcv" if groups is None else "loo_loss"
        error = squared_error(model, test, test_labels)
        ratio = model.history_[key][model.best_round_] / error
        accuracy = model.score(test, test_labels)
        found.append([ratio, error, accuracy, model.alpha_, multiple_of(model)])
    return np.array(found, float)


def multiple_of(model):
    """Return the bandwidth over the median distance of the rows that were compared."""
    if not isinstance(model.kernel_, RadialKernel):
        return np.nan
    rows = model.X_fit_[:: max(1, len(model.X_fit_) // 500)].astype(float)
    squares = (rows**2).sum(1)
    distances = squares[:, None] + squares - 2 * rows @ rows.T
    return model.kernel_.bandwidth_ / np.sqrt(np.median(distances[distances > 1e-9]))


def make_table(results):
    """Return a table with one line per machine and variant."""
    rows = []
    for machine, variant, values in results:
        ratio, error, accuracy, *_ = values.mean(0)
        ridges = " ".join(f"{ridge:.0e}" for ridge in values[:, 3])
        multiples = " ".join(f"{multiple:.1f}" for multiple in values[:, 4])
        numbers = f"{ratio:.2f}", f"{error:.3f}", f"{100 * accuracy:.1f}"
        rows.append([machine, variant, *numbers, ridges, multiples])
    headers = "machine", "variant", *COLUMNS[:3], "ridges", "multiples"
    return format_table(headers, rows)


def main(argv=None):
    """Run all machines, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tracks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", type=Path, default=FILE, help="the file")
    parser.add_argument("--draws", type=int, default=3, help="of the objects (3)")
    parser.add_argument("--objects", type=int, default=60, help="images (60)")
    parser.add_argument("--views", type=int, default=30, help="of each (30)")
    parser.add_argument("--rounds", type=int, default=1, help="n_rounds (1)")
    parser.add_argument("--machine", choices=MACHINES, help="one of them; all")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args(argv)
    if not options.data.is_file():
        parser.error(f"--data {options.data} is no file; pass that of MNIST")
    sizes = options.draws, options.objects, options.views, options.rounds
    results = []
    for name in [options.machine] if options.machine else MACHINES:
        is_radial = name in ("Gaussian", "Laplace")
        for variant in VARIANTS if is_radial else VARIANTS[:2]:
            values = measure(MACHINES[name], variant, options.data, *sizes)
            results.append((name, variant, values))
            print(name, variant, np.round(values, 3).tolist(), flush=True)
    plain = [(*names, values.tolist()) for *names, values in results]
    report([make_table(results)], {"tracks": plain}, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
