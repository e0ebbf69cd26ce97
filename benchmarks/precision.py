"""``python -m benchmarks.precision``: float32 beside float64.

The same float32 images, fitted with ``dtype="float32"`` and with ``dtype="float64"``,
round by round, each precision by its own metric: the kernel matrix, the patch AGOP,
predictions, criterion, ridge and round, beside the condition numbers that occur. Real
images: MNIST, Fashion-MNIST, CIFAR-10 and framed MNIST, several draws. Needs
``mnist_5000_2000.npz``, ``fashion_mnist_5000_2000.npz`` and ``cifar10_5000_2000.npz``.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK
from skconvrfm.learning.rounds import leading_eigenvectors, transforms_from

from .harness import add_data_option, check_data_option, format_table, report
from .problems import DRAWN

DTYPES = ("float32", "float64")
# Kernel and feature layers of the estimator, and rounds of learning.
CASES = {
    "ConvNTK, depth 1": (ConvNTK(depth=1), None, 2),
    "ConvNTK, depth 3": (ConvNTK(depth=3), None, 2),
    "ConvNTK, depth 6": (ConvNTK(depth=6), None, 0),
    "ConvFeatures + Linear": ("linear", ConvFeatures(patch_size=3), 2),
}
# Angles between two patches, and how many pairs of patches for each.
ANGLES = np.logspace(-5, 0, 61)
N_PAIRS = 200


def make_model(X, y, dtype, kernel, features=None):
    """Return the model that a fit of the classifier would take through its rounds.

    Parameters
    ----------
    X : ndarray of shape (n, h, w) or (n, h, w, c)
        Training images.
    y : ndarray of shape (n,)
        Their labels.
    dtype : {"float32", "float64"}
        The precision.
    kernel, features
        Of `ConvRFMClassifier`.

    Returns
    -------
    PatchModel or MapModel
    """
    estimator = ConvRFMClassifier(kernel, features, dtype=dtype, device="cpu")
    X = X[..., None] if X.ndim == 3 else X
    targets = 2.0 * (y[:, None] == np.unique(y)) - 1
    ones, rng, rows = np.ones(len(X)), estimator._rng(), X.reshape(len(X), -1)
    recipe = estimator._recipe(rows, X.shape[1:], rng)
    _, data = estimator._training_set(rows, targets, ones, None, X.shape[1:], rng)
    return recipe.model(data)


def fit(model, X_test, n_rounds, power=0.5):
    """Fit the rounds of a model, ridge by GCV, and return what each computes.

    Parameters
    ----------
    model : PatchModel or MapModel
        From `make_model`.
    X_test : ndarray of shape (n_test, h, w) or (n_test, h, w, c)
        Images to predict.
    n_rounds : int
        Rounds of learning.
    power : float, default=0.5
        The power of the patch AGOP.

    Returns
    -------
    list of dict
        By round: ``kernel`` in units of its largest diagonal entry, ``agop``,
        ``predictions`` of shape (n_alphas, n_test, n_classes) at all ridges,
        ``chosen``, the index of the ridge, ``gcv`` there, and ``alphas``.
    """
    X_test = X_test[..., None] if X_test.ndim == 3 else X_test
    rounds, transforms = [], None
    for index in range(n_rounds + 1):
        current = model.with_metric(transforms)
        design = current.design()
        path = current.ridge_path(design)
        kernel = design if isinstance(design, np.ndarray) else design.kernel_matrix()
        kernel = kernel.astype(np.float64)
        gcv = path.gcv()
        chosen = int(np.argmin(gcv))
        [agop] = [
            found.agop
            for found in current.patch_agops(path.solve(path.alphas[chosen]).coef)
        ]
        coef, intercepts = path.coefficients()
        predictions = current.outputs(X_test, coef) + intercepts
        shape = len(X_test), len(path.alphas), -1
        rounds.append(
            {
                "kernel": kernel / np.diagonal(kernel).max(),
                "agop": agop,
                "predictions": predictions.reshape(shape).swapaxes(0, 1),
                "chosen": chosen,
                "gcv": float(gcv[chosen]),
                "alphas": path.alphas,
            }
        )
        if index < n_rounds:
            powers = model.powers(power)
            transforms = transforms_from([agop], powers, model.initial_transforms)
    return rounds


def compare(low, high):
    """Measure how far one round in float32 is from the same in float64.

    Parameters
    ----------
    low, high : dict
        The round in either precision, see `fit`.

    Returns
    -------
    dict
        ``kernel max`` and ``kernel fro``, errors over the largest entry and the norm;
        ``kernel 2``, the spectral norm of the error in units of the ridge; ``agop``,
        over its norm, and ``angle`` of its leading eigenvector in radians;
        ``condition`` of K plus the chosen ridge, and ``worst condition`` at the
        smallest; ``f``, the largest change of a prediction at the ridges chosen, ``f by
        ridge`` at all, and ``bound`` of the coefficients' relative change; ``labels``,
        the share that changes; ``gcv``, relative; ``alpha`` and ``same ridge``.
    """
    error = low["kernel"] - high["kernel"]
    spectral = float(np.linalg.norm(error, 2))
    eigenvalues = np.linalg.eigvalsh(high["kernel"]).clip(0)
    alphas, chosen = high["alphas"], high["chosen"]
    conditions = (eigenvalues[-1] + alphas) / (eigenvalues[0] + alphas)
    changes = np.abs(low["predictions"] - high["predictions"]).max((1, 2))
    own = low["predictions"][low["chosen"]], high["predictions"][chosen]
    vectors = [leading_eigenvectors(part["agop"], 1)[0] for part in (low, high)]
    agop_error = np.linalg.norm(low["agop"] - high["agop"])
    return {
        "kernel max": float(np.abs(error).max() / np.abs(high["kernel"]).max()),
        "kernel fro": float(np.linalg.norm(error) / np.linalg.norm(high["kernel"])),
        "kernel 2": spectral,
        "agop": float(agop_error / np.linalg.norm(high["agop"])),
        # The chord, for the cosine of a small angle has lost it.
        "angle": float(np.linalg.norm(vectors[0] - vectors[1])),
        "condition": float(conditions[chosen]),
        "worst condition": float(conditions.max()),
        "bound": (spectral / (eigenvalues[0] + alphas)).tolist(),
        "f": float(np.abs(own[0] - own[1]).max()),
        "f by ridge": changes.tolist(),
        "labels": float((own[0].argmax(1) != own[1].argmax(1)).mean()),
        "gcv": abs(low["gcv"] / high["gcv"] - 1),
        "alpha": float(alphas[chosen]),
        "same ridge": low["chosen"] == chosen,
    }


def chosen_round(rounds, optimism):
    """Return the round that the criterion keeps."""
    best = 0
    for index, current in enumerate(rounds):
        if current["gcv"] < (1 - optimism) * rounds[best]["gcv"]:
            best = index
    return best


def measure(load, folder, case, seed, n_train, n_test):
    """Fit all rounds of a case in both precisions, on one draw.

    Returns
    -------
    dict
        ``rounds``, a list of `compare`'s results, and ``same round``.
    """
    kernel, features, n_rounds = CASES[case]
    X, y, X_test, _ = load(folder, seed, n_train)
    fits, kept = [], []
    for dtype in DTYPES:
        model = make_model(X, y, dtype, kernel, features)
        fits.append(fit(model, X_test[:n_test], n_rounds))
        kept.append(chosen_round(fits[-1], model.optimism))
    rounds = [compare(low, high) for low, high in zip(*fits, strict=True)]
    return {"rounds": rounds, "same round": kept[0] == kept[1], "round": kept[1]}


def kink(angles=ANGLES, n_pairs=N_PAIRS, seed=0):
    """Measure the error of the tangent kernel of two patches, by their angle.

    Returns
    -------
    dict
        ``gap``, medians of 1 - κ, and ``error``, the largest relative errors.
    """
    rng = np.random.default_rng(seed)
    result = {"gap": [], "error": []}
    for angle in angles:
        first, other = np.linalg.qr(rng.standard_normal((n_pairs, 27, 2)))[0].T
        second = np.cos(angle) * first + np.sin(angle) * other
        pair = [v.T.reshape(-1, 3, 3, 3).astype(np.float32) for v in (first, second)]
        kernel = ConvNTK(depth=1, bias=0)
        low, high = (kernel(*pair, dtype=dtype).diagonal() for dtype in DTYPES)
        a, b = (images.reshape(n_pairs, -1).astype(np.float64) for images in pair)
        a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
        # Half the squared distance is 1 - κ without its cancellation.
        result["gap"].append(float(np.median(((a - b) ** 2).sum(1) / 2)))
        result["error"].append(float(np.abs(low / high - 1).max()))
    return result


def make_table(case, results):
    """Return a table with one line a problem and round: the worst of the draws."""
    rows = []
    for name, draws in results.items():
        kept = "".join(str(one["round"]) for one in draws)
        for index, entries in enumerate(
            zip(*(one["rounds"] for one in draws), strict=True)
        ):
            worst = {
                key: max(entry[key] for entry in entries)
                for key in entries[0]
                if not isinstance(entries[0][key], list)
            }
            rows.append(
                [
                    f"{name}, round {index}",
                    *(f"{worst[key]:.0e}" for key in ("kernel max", "kernel fro")),
                    *(f"{worst[key]:.0e}" for key in ("agop", "angle")),
                    *(f"{worst[key]:.0e}" for key in ("condition", "f")),
                    f"{100 * worst['labels']:.1f} %",
                    f"{worst['gcv']:.0e}",
                    _count(entry["same ridge"] for entry in entries),
                    _count(one["same round"] for one in draws) + f" ({kept})",
                ]
            )
    headers = [case, "K max", "K", "AGOP", "angle", "condition", "Δf", "labels"]
    return format_table([*headers, "GCV", "same ridge", "same round (kept)"], rows)


def _count(flags):
    flags = list(flags)
    return f"{sum(flags)} of {len(flags)}"


def draw_figure(path, kinks, results, alphas):
    """Draw the error at the kink, and that of predictions by ridge."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    left.loglog(kinks["gap"], kinks["error"], ".-", markersize=4)
    eps = np.finfo(np.float32).eps
    left.axhline(eps, color="grey", linestyle=":", label="eps of float32")
    left.axvline(32 * eps, color="grey", linestyle="--", label="32 eps")
    left.set(
        xlabel="1 - κ of two patches",
        ylabel="relative error",
        title="Tangent kernel of two patches, float32",
    )
    left.legend(fontsize="small")
    for colour, (name, draws) in enumerate(results.items()):
        first = draws[0]["rounds"][0]
        right.loglog(alphas, first["f by ridge"], f"C{colour}.-", label=name)
        bound = "bound of coefficients" if colour == 0 else None
        right.loglog(alphas, first["bound"], f"C{colour}:", label=bound)
        index = int(np.argmin(np.abs(np.array(alphas) - first["alpha"])))
        right.loglog(first["alpha"], first["f by ridge"][index], f"C{colour}o")
    right.set(
        xlabel="ridge (largest diagonal entry of K: 1)",
        ylabel="largest change of a prediction",
        title="ConvNTK, depth 3, round 0",
    )
    right.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main(argv=None):
    """Measure all cases, print a table for each, and draw."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision", description=__doc__.splitlines()[0]
    )
    add_data_option(parser)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--problems", nargs="+", choices=DRAWN, default=list(DRAWN))
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--n-train", type=int, default=500)
    parser.add_argument("--n-test", type=int, default=100)
    parser.add_argument("--figure", metavar="FILE", help="draw it there")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument(
        "--merge", nargs="+", metavar="FILE", help="tables of earlier results (--json)"
    )
    options = parser.parse_args(argv)
    results = merge(options.merge) if options.merge else measure_all(options, parser)
    kinks = kink()
    if options.figure:
        alphas = ConvRFMClassifier().alpha
        draw_figure(options.figure, kinks, results["ConvNTK, depth 3"], alphas)
    tables = [make_table(*item) for item in results.items()]
    report(tables, {"precision": results, "kink": kinks}, options.json)
    return 0


def merge(paths):
    """Return the results of earlier runs, problem by problem."""
    results = {}
    for path in paths:
        for case, problems in json.loads(Path(path).read_text())["precision"].items():
            results.setdefault(case, {}).update(problems)
    return results


def measure_all(options, parser):
    """Measure all draws of all problems and cases."""
    check_data_option(parser, options)
    results = {case: {} for case in options.cases}
    for case in options.cases:
        for name in options.problems:
            draws = results[case].setdefault(name, [])
            for seed in range(options.draws):
                sizes = options.n_train, options.n_test
                load = DRAWN[name]
                draws.append(measure(load, options.data, case, seed, *sizes))
                print(case, name, seed, draws[-1], flush=True)
    return results


if __name__ == "__main__":
    raise SystemExit(main())
