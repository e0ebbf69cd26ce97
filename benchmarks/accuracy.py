"""``python -m benchmarks.accuracy``: recommended machines, and what learning adds.

*recommended*: recommended and default machines on test images, by round; round 0 is
fixed. *learning*: filters and metrics of no layer, one or both of two layers learned,
on training images held out. *regret*: what a criterion of the training images loses
beside the ridge and round that are the best on other images.
"""

import json

import numpy as np

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import make_star
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian
from skconvrfm.learning.rounds import Schedule, solve_round

from . import machines
from .harness import format_table, mean_and_each, program, timed
from .problems import DRAWN


def stars(folder, seed, n_train, n_test):
    """Return stars for training and for the test."""
    X, y = make_star(n_train + n_test, random_state=seed)
    return X[:n_train], y[:n_train], X[n_train:], y[n_train:]


# ------------------------------------------------------------------- recommended

CIFAR, MNIST, FASHION = (DRAWN[name] for name in ("CIFAR-10", "MNIST", "Fashion-MNIST"))
FRAMED = DRAWN["framed MNIST"]
SMALL, LARGE = (500, 1000), (5000, 2000)  # images for training and for the test
STAR = ConvNTK(depth=1, patch_size=11), None
# Data, their numbers of images, kernel and layers, and rounds at most.
RECOMMENDED = {
    "CIFAR-10, mirrors": (CIFAR, [SMALL, LARGE], machines.photographs(mirror=True), 1),
    "CIFAR-10": (CIFAR, [SMALL, LARGE], machines.photographs(mirror=False), 1),
    "CIFAR-10, default": (CIFAR, [SMALL, LARGE], machines.DEFAULT, 1),
    "CIFAR-10, exact": (CIFAR, [SMALL], machines.EXACT, 1),
    "CIFAR-10, exact, mirrors": (CIFAR, [SMALL], machines.MIRRORED, 1),
    "MNIST, default": (MNIST, [SMALL, LARGE], machines.DEFAULT, 1),
    "MNIST, exact": (MNIST, [SMALL], machines.EXACT, 1),
    "Fashion-MNIST": (FASHION, [LARGE], machines.articles(), 0),
    "Fashion-MNIST, default": (FASHION, [LARGE], machines.DEFAULT, 1),
    "framed MNIST": (FRAMED, [SMALL, (1000, 1000)], machines.objects_in_noise(), 1),
    "framed MNIST, default": (FRAMED, [(1000, 1000)], machines.DEFAULT, 1),
    "stars": (stars, [(50, 1000)], STAR, 5),
}


def recommended(options):
    """Return accuracies by round of recommended machines, rows of a table."""
    rows = []
    for name in options.machines:
        load, sizes, machine, n_rounds = RECOMMENDED[name]
        chosen = {"n_rounds": n_rounds, "landmarks": options.landmarks}
        for size in [(n, 2000) for n in options.sizes] or sizes:
            runs = []
            for seed in range(options.draws):
                model = ConvRFMClassifier(*machine, **chosen, random_state=seed)
                runs.append(by_round(model, *load(options.data, seed, *size)))
                print(name, size[0], json.dumps(runs[-1]), flush=True)
            first = mean_and_each([run["accuracies"][0] for run in runs])[0]
            kept = mean_and_each([run["accuracy"] for run in runs])
            seconds = f"{np.mean([run['seconds'] for run in runs]):.0f} s"
            rows.append([name, str(size[0]), first, *kept, seconds])
    return ["machine", "n", "fixed", "learned", "by draw", "fit"], rows


def by_round(model, X, y, X_test, y_test):
    """Return accuracies in per cent by round and of the round kept, and seconds.

    The seconds have the predictions after every round in them.
    """
    scores = machines.TestScore(X_test, y_test)
    times, _ = timed(model.set_callbacks(scores).fit, X, y)
    accuracies = [100 * score for score in scores.scores]
    accuracy = 100 * model.score(X_test, y_test)
    return {"accuracies": accuracies, "accuracy": accuracy, **times}


# ---------------------------------------------------------------------- learning

# Filters that are drawn for each one kept, of both layers; layers whose metric is
# learned; and rounds.
VARIANTS = {
    "fixed": ((1, 1), (), 0),
    "filters of layer 1 chosen": ((4, 1), (), 1),
    "filters of layer 2 chosen": ((1, 4), (), 1),
    "filters of both chosen": ((4, 4), (), 1),
    "metric of layer 1": ((1, 1), (0,), 1),
    "metric of layer 2": ((1, 1), (1,), 1),
    "metrics of both": ((1, 1), (0, 1), 1),
    "filters of both, metric of layer 2": ((4, 4), (1,), 2),
}
PHOTOGRAPHS = (
    {"n_filters": 96, "patch_size": 5, "pool_size": 2, "pool_overlap": 0.5},
    {"n_filters": 192, "patch_size": 3, "pool_overlap": 0.5},
)
IN_NOISE = (
    {"n_filters": 96, "patch_size": 7, "pool_size": 2},
    {"n_filters": 192, "patch_size": 5, "pool": "norm", "pool_grid": 1},
)


def two_layers(problem, candidates, learned=()):
    """Return feature layers for a problem in `DRAWN`."""
    options = IN_NOISE if problem == "framed MNIST" else PHOTOGRAPHS
    layers = [
        ConvFeatures(candidates=n, learn=index in learned, agop_power=0.25, **one)
        for index, (n, one) in enumerate(zip(candidates, options, strict=True))
    ]
    layers[1].set_params(shrinkage=3.0)
    return layers


def held_out(problem, folder, seed, n_train, n_other=2000):
    """Return training images and labels to fit on, and others to judge by."""
    X, y, *_ = DRAWN[problem](folder, seed, n_train + n_other, 1)
    return X[:n_train], y[:n_train], X[n_train:], y[n_train:]


def learning(options):
    """Return accuracy and squared error by what is learned, rows of a table."""
    rows = []
    for problem in options.problems:
        [n_train] = options.sizes[:1] or [1000 if problem == "framed MNIST" else 2000]
        for variant, (candidates, learned, n_rounds) in VARIANTS.items():
            runs = []
            for seed in range(options.draws):
                X, y, X_other, y_other = held_out(problem, options.data, seed, n_train)
                layers = two_layers(problem, candidates, learned)
                model = ConvRFMClassifier(
                    "gaussian", layers, n_rounds=n_rounds, selection="last"
                ).set_params(random_state=seed)
                model.fit(X, y)
                targets = 2.0 * (y_other[:, None] == model.classes_) - 1
                scores = model.decision_function(X_other)
                error = float(((scores - targets) ** 2).sum(1).mean())
                gcv = float(model.history_["gcv"][-1])
                runs.append((100 * model.score(X_other, y_other), error, gcv))
                print(problem, variant, runs[-1], flush=True)
            accuracies, *errors = zip(*runs, strict=True)
            errors = [mean_and_each(each, 3)[0] for each in errors]
            rows.append([problem, variant, *mean_and_each(accuracies), *errors])
    return ["data", "learned", "accuracy", "by draw", "squared error", "GCV"], rows


# ------------------------------------------------------------------------ regret

N_ROUNDS = 2
HELD_OUT = 5  # one part of so many
MARGIN = 0.02  # by which a later round must be better


def measure_rounds(X, y, X_other, y_other, layers):
    """Return criteria and errors of every round and ridge.

    Filters are chosen for round 1, and the metric is learned for round 2.

    Returns
    -------
    dict of ndarray, shape (n_rounds + 1, n_alphas)
        ``gcv`` and ``loo``, and ``error`` (squared) and ``accuracy`` on the others.
    """
    estimator, classes = ConvRFMClassifier(Gaussian(), layers), np.unique(y)
    X, X_other = (np.atleast_3d(x).reshape(*x.shape[:3], -1) for x in (X, X_other))
    shape, rows = X.shape[1:], X.reshape(len(X), -1)
    targets, others = (
        2.0 * (labels[:, None] == classes) - 1 for labels in (y, y_other)
    )
    rng = estimator._rng()
    recipe = estimator._recipe(rows, shape, rng)
    columns = targets, np.ones(len(X)), None
    _, data = estimator._training_set(rows, *columns, shape, recipe.scale, rng)
    model, transforms, multiple, found = recipe.model(data), None, None, []
    for index in range(N_ROUNDS + 1):
        current = model.with_metric(transforms)
        if multiple is not None:
            current = current.stretched(multiple)
        schedule = Schedule(N_ROUNDS, 0.5, "gcv")
        fitted = solve_round(current, current.design(), schedule, index)
        multiple = fitted.model.multiple
        path = fitted.model.ridge_path(fitted.model.design())
        coef, intercepts = path.coefficients()
        outputs = fitted.model.outputs(X_other, coef) + intercepts
        outputs = outputs.reshape(len(others), len(path.alphas), -1)
        labels = classes[outputs.argmax(2)]
        found.append(
            {
                "gcv": path.gcv(),
                "loo": path.loo_loss(),
                "error": ((outputs - others[:, None]) ** 2).sum(2).mean(0),
                "accuracy": (labels == y_other[:, None]).mean(0),
            }
        )
        if index == 0:
            model = model.with_filters()
            transforms = model.initial_transforms
        else:
            transforms = fitted.next_transforms(fitted.patch_agops(), 0.5)
    return {name: np.array([one[name] for one in found]) for name in found[0]}


def picks(whole, part):
    """Return the (round, ridge) that every criterion picks, by its name.

    ``whole`` is of all training images, ``part`` of the rest of those held out.
    """
    chosen = {}
    for name in ("gcv", "loo"):
        values, best = whole[name], 0
        chosen[name] = np.unravel_index(values.argmin(), values.shape)
        for index, value in enumerate(values.min(1)):
            if value < (1 - MARGIN) * values[best].min():
                best = index
        chosen[f"{name}, margin"] = best, values[best].argmin()
    error = part["error"]
    chosen["held out"] = np.unravel_index(error.argmin(), error.shape)
    best = chosen["held out"][0]
    chosen["held out, ridge by loo"] = best, whole["loo"][best].argmin()
    return chosen


def regret(options):
    """Return the accuracy that every criterion loses, and its error over the least."""
    rows, names = [], []
    for problem in options.problems:
        for n_train in options.sizes or [500, 2000]:
            best, lost = [], []
            for seed in range(options.draws):
                X, y, *others = DRAWN[problem](options.data, seed, n_train, 2000)
                layers = two_layers(problem, (3, 3), learned=(1,))
                whole = measure_rounds(X, y, *others, layers)
                n = n_train - n_train // HELD_OUT
                part = measure_rounds(X[:n], y[:n], X[n:], y[n:], layers)
                accuracy, error = 100 * whole["accuracy"], whole["error"]
                chosen = picks(whole, part)
                names = list(chosen)
                pairs = ((accuracy[at], error[at]) for at in chosen.values())
                lost.append([(accuracy.max() - a, e / error.min()) for a, e in pairs])
                best.append(accuracy.max(1))
                print(problem, n_train, lost[-1], flush=True)
            by_round = " → ".join(f"{value:.1f}" for value in np.mean(best, axis=0))
            cells = [f"{a:.1f} ({e:.2f})" for a, e in np.mean(lost, axis=0)]
            rows.append([problem, str(n_train), by_round, *cells])
    return ["data", "n", "best by round", *names], rows


PARTS = {"recommended": recommended, "learning": learning, "regret": regret}


def measure(options):
    """Make the tables asked for."""
    results = {name: PARTS[name](options) for name in options.only}
    return [format_table(*found) for found in results.values()], {"accuracy": results}


main = program(
    measure,
    PARTS,
    sizes=[],
    draws=3,
    options={
        "--problems": {"nargs": "+", "choices": DRAWN, "default": list(DRAWN)},
        "--machines": {"nargs": "+", "choices": RECOMMENDED, "default": RECOMMENDED},
        "--landmarks": {"type": int, "help": "of recommended machines; all rows"},
    },
)

if __name__ == "__main__":
    raise SystemExit(main())
