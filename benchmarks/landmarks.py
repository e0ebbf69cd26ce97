"""``python -m benchmarks.landmarks``: accuracy and time by the number of landmarks.

Recommended machines on 5000 images with all rows as centres, and with fewer landmarks,
predict the test images once. ``--draws`` compares ways to draw landmarks instead: the
squared error and the accuracy of one layer's features on training images held out.
"""

import argparse
import time

import numpy as np
import scipy.linalg

from skconvrfm import ConvRFMClassifier, PatchAGOPTransformer
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian
from skconvrfm.learning.landmarks import inverse_root

from .harness import add_data_option, check_data_option, format_table, report
from .problems import draw, framed_mnist
from .recommended import CIFAR, objects_in_noise, photographs

CASES = {
    "CIFAR-10, mirrors": (CIFAR, photographs(mirror=True), 1),
    "framed MNIST": (framed_mnist, objects_in_noise(), 1),
    "CIFAR-10, exact kernel": (CIFAR, (ConvNTK(depth=1, patch_size=5), None), 0),
}
N_TRAIN, N_TEST = 5000, 2000
LANDMARKS = (None, 2500, 1000)

# Ways to draw: held-out images, landmarks, and repetitions.
N_HELD_OUT, N_DRAWN, REPETITIONS = 1000, (200, 400, 800, 2000), 3
RIDGES = 10.0 ** np.arange(-5, 1.5, 0.5)
ONE_LAYER = {
    "CIFAR-10": ("cifar10_5000_2000.npz", ConvFeatures(patch_size=6, pool_overlap=0.5)),
    "framed MNIST": (None, ConvFeatures(256, patch_size=11, pool="norm", pool_grid=1)),
}


# ------------------------------------------------------------- number of landmarks


def measure(name, n_landmarks, seed, folder):
    """Fit one machine and score the test images.

    Returns
    -------
    dict
        ``accuracy``, ``seconds`` of the fit, ``predict`` of the test images.
    """
    load, (kernel, features), n_rounds = CASES[name]
    X, y, X_test, y_test = load(folder, seed, N_TRAIN, N_TEST)
    model = ConvRFMClassifier(
        kernel, features, n_rounds=n_rounds, landmarks=n_landmarks, random_state=seed
    )
    times = [time.perf_counter()]
    model.fit(X, y)
    times.append(time.perf_counter())
    accuracy = model.score(X_test, y_test)
    times.append(time.perf_counter())
    seconds, predict = np.diff(times).tolist()
    return {"accuracy": accuracy, "seconds": seconds, "predict": predict}


def make_table(results):
    """Return a table with a line for each machine and number of landmarks."""
    rows = []
    for (name, n_landmarks), runs in results.items():
        accuracies = [100 * run["accuracy"] for run in runs]
        means = (np.mean([run[key] for run in runs]) for key in ("seconds", "predict"))
        rows.append(
            [
                name,
                "all" if n_landmarks is None else str(n_landmarks),
                f"{np.mean(accuracies):.1f}",
                " ".join(f"{accuracy:.1f}" for accuracy in accuracies),
                *(f"{seconds:.0f} s" for seconds in means),
            ]
        )
    headers = ["machine", "landmarks", "accuracy", "by draw", "fit", "predict"]
    return format_table(headers, rows)


# --------------------------------------------------------------------- ways to draw


def compare_draws(name, folder):
    """Return rows of a table: landmarks, way, squared error and accuracy."""
    file, layer = ONE_LAYER[name]
    if file is None:
        X, y, *_ = framed_mnist(folder, 0, N_TRAIN, 1)
    else:
        X, y, *_ = draw(file, folder, 0, N_TRAIN, 1)
    kernel, targets = gaussian_matrix(X, y, layer)
    n = len(X) - N_HELD_OUT
    ways = {
        "uniform": lambda m, rng: rng.permutation(n)[:m],
        "even over classes": lambda m, rng: even_over_classes(y[:n], m, rng),
        "randomly pivoted": lambda m, rng: randomly_pivoted(kernel[:n, :n], m, rng),
    }
    rows = []
    for m in N_DRAWN:
        for way, choose in ways.items():
            rngs = map(np.random.default_rng, range(REPETITIONS))
            found = [held_out(kernel, targets, n, choose(m, rng)) for rng in rngs]
            error, accuracy = np.mean(found, axis=0)
            rows.append([name, str(m), way, f"{error:.3f}", f"{100 * accuracy:.1f}"])
    error, accuracy = held_out(kernel, targets, n, np.arange(n))
    rows.append([name, str(n), "all rows", f"{error:.3f}", f"{100 * accuracy:.1f}"])
    return rows


def gaussian_matrix(X, y, layer):
    """Return the Gaussian kernel of a layer's features at the median, and targets."""
    learner = ConvRFMClassifier("linear", layer, n_rounds=0)
    features = PatchAGOPTransformer(learner, output="features").fit(X, y).transform(X)
    kernel = Gaussian()(features[:, None], dtype="float64")
    return kernel, 2.0 * (y[:, None] == np.unique(y)) - 1


def held_out(kernel, targets, n, landmarks):
    """Return squared error and accuracy on the rows from n on, the ridge by GCV."""
    basis = inverse_root(kernel[np.ix_(landmarks, landmarks)], np.finfo(float).eps)
    phi = kernel[:, landmarks] @ basis
    mean, target_mean = phi[:n].mean(0), targets[:n].mean(0)
    phi, residual = phi - mean, targets - target_mean
    values, vectors = scipy.linalg.eigh(phi[:n].T @ phi[:n])
    right = vectors.T @ (phi[:n].T @ residual[:n])
    found = []
    for ridge in RIDGES:
        errors = residual - phi @ (vectors @ (right / (values + ridge)[:, None]))
        freedom = 1 + (values / (values + ridge)).sum()
        gcv = (errors[:n] ** 2).sum() / (1 - freedom / n) ** 2
        chosen = (targets - errors)[n:].argmax(1)
        accuracy = (chosen == targets[n:].argmax(1)).mean()
        found.append((gcv, (errors[n:] ** 2).sum(1).mean(), accuracy))
    return min(found)[1:]


def even_over_classes(labels, m, rng):
    """Return so many rows, each class its share."""
    order = np.lexsort((rng.random(len(labels)), labels))
    return order[(len(labels) * (np.arange(m) + rng.random()) / m).astype(int)]


def randomly_pivoted(kernel, m, rng):
    """Return so many rows, each drawn by what the former leave of the diagonal.

    Chen, Epperly, Tropp and Webber, arXiv:2207.06503.
    """
    rest, factor = np.diagonal(kernel).copy(), np.zeros((len(kernel), m))
    chosen = []
    for k in range(m):
        row = rng.choice(len(rest), p=rest / rest.sum())
        column = kernel[:, row] - factor[:, :k] @ factor[row, :k]
        factor[:, k] = column / np.sqrt(column[row])
        rest = np.maximum(rest - factor[:, k] ** 2, 0)
        chosen.append(row)
        rest[chosen] = 0
    return np.array(chosen)


def main(argv=None):
    """Run the cases, or the comparison of draws, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.landmarks", description=__doc__.splitlines()[0]
    )
    add_data_option(parser)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--landmarks", nargs="+", type=int, help="0 is all rows")
    parser.add_argument("--seeds", type=int, default=1, help="draws of the images")
    parser.add_argument("--draws", action="store_true", help="compare ways to draw")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args(argv)
    check_data_option(parser, options)
    if options.draws:
        rows = [row for name in ONE_LAYER for row in compare_draws(name, options.data)]
        headers = ["data", "landmarks", "draw", "squared error", "accuracy"]
        report([format_table(headers, rows)], {"draws": rows}, options.json)
        return 0
    sizes = LANDMARKS
    if options.landmarks:
        sizes = [size or None for size in options.landmarks]
    results = {}
    for name in options.cases:
        for seed in range(options.seeds):
            for size in sizes:
                run = measure(name, size, seed, options.data)
                results.setdefault((name, size), []).append(run)
                print(name, size, run, flush=True)
    named = {f"{name}, {size}": runs for (name, size), runs in results.items()}
    report([make_table(results)], {"landmarks": named}, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
