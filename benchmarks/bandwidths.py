"""``python -m benchmarks.bandwidths``: accuracy at multiples of the median distance.

A readout of one feature layer in round 0, at bandwidths of so many median distances:
accuracy on test images, and GCV over that at the median. Needs the files of MNIST,
Fashion-MNIST and CIFAR-10.
"""

import argparse
from pathlib import Path

from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import Gaussian, Laplace
from skconvrfm.learning import rounds

from .harness import DATA, format_table, report
from .problems import draw, framed_mnist

FILES = {
    "CIFAR-10": "cifar10_5000_2000.npz",
    "Fashion-MNIST": "fashion_mnist_5000_2000.npz",
    "MNIST": "mnist_5000_2000.npz",
}
MULTIPLES = 0.5, 1, 2, 4, 16


def measure(kernel, layer, data, multiples):
    """Return pairs (accuracy, GCV) at each multiple of the median distance."""
    X, y, X_test, y_test = data
    chosen_from, rounds.MULTIPLES = rounds.MULTIPLES, (1.0,)
    try:
        model = ConvRFMClassifier(kernel(), layer, n_rounds=0).fit(X, y)
    finally:
        rounds.MULTIPLES = chosen_from
    found, median = [], model.kernel_.bandwidth_
    for multiple in multiples:
        model = ConvRFMClassifier(kernel(multiple * median), layer, n_rounds=0)
        model.fit(X, y)
        accuracy, [gcv] = model.score(X_test, y_test), model.history_["gcv"]
        found.append((float(accuracy), float(gcv)))
    return found


def main(argv=None):
    """Run all data and kernels, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bandwidths", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--folder", type=Path, default=DATA, help="of the files")
    parser.add_argument("--images", type=int, default=1000, help="of training (1000)")
    parser.add_argument("--filters", type=int, default=128, help="of the layer (128)")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args(argv)
    if not all((options.folder / name).is_file() for name in FILES.values()):
        parser.error(f"--folder {options.folder} has not {', '.join(FILES.values())}")
    n = options.images
    problems = {name: draw(file, options.folder, 0, n) for name, file in FILES.items()}
    problems["framed MNIST"] = framed_mnist(options.folder, 0, n // 2)
    results = []
    for name, data in problems.items():
        size = 11 if name == "framed MNIST" else 6
        layer = ConvFeatures(options.filters, patch_size=size)
        for kernel in (Gaussian, Laplace):
            found = measure(kernel, layer, data, MULTIPLES)
            results.append((name, kernel.__name__, found))
            print(*results[-1], flush=True)
    rows = []
    for *names, found in results:
        [median] = [gcv for (_, gcv), m in zip(found, MULTIPLES, strict=True) if m == 1]
        cells = [
            f"{100 * accuracy:.1f} ({gcv / median:.2f})" for accuracy, gcv in found
        ]
        rows.append([*names, *cells])
    table = format_table(["data", "kernel", *map(str, MULTIPLES)], rows)
    report([table], {"bandwidths": results}, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
