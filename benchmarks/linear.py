"""The table of the linear path: ``python -m benchmarks.accuracy --linear``.

Our features and their linear classifier beside peers, each at the best of a small grid
that is searched on a fifth of the training images held out (three such parts where
there are few images). What draws random numbers is fitted with several seeds, what
does not once; the grid is searched once a training set. Every fit sees the training
images as they are: no augmentation, for nobody.
"""

import json
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import joblib
import numpy as np

from skconvrfm import ConvRFMClassifier

from .harness import format_table, report, timed_with_children
from .peers.client import PeerWorker, build_environment
from .problems import LARGE
from .rivals import RIVALS

OURS = "ours"
ROWS = (OURS, *RIVALS)
SCATTERING = "kymatio"
# Of the table; only peers are searched.
TIMES = (
    "search_seconds",
    "fit_seconds",
    "predict_seconds",
    "search_cpu_seconds",
    "fit_cpu_seconds",
)


# By GCV with 256 filters on 3000 training images (1000 framed ones), from patches of 5
# to 11 and grids of 2×2 to 5×5.
FEATURES = {
    "CIFAR-10, 5000": {"patch_size": 6, "pool_grid": (3, 3)},
    "MNIST, 5000": {"patch_size": 7, "pool_grid": (3, 3)},
    "Fashion-MNIST, 5000": {"patch_size": 9, "pool_grid": (5, 5)},
    "framed MNIST, 1000": {"patch_size": 11, "pool_grid": (2, 2)},
}


def linear_models(image_shape, seed, data_name):
    """Our rows of the table; all take flat rows.

    Parameters
    ----------
    image_shape : tuple of int
        Of an image.
    seed : int
        Of the filters.
    data_name : str
        A name in `LARGE`, for what depends on the images.

    Returns
    -------
    dict of estimator
        By label.
    """
    common = {
        "method": "features",
        "n_filters": 1024,
        "image_shape": image_shape,
        "random_state": seed,
        **FEATURES[data_name],
    }
    return {
        "features, fixed": ConvRFMClassifier(n_rounds=0, **common),
        "features, learned": ConvRFMClassifier(n_rounds=2, **common),
    }


def measure(name, options):
    """All runs of the rows asked for on one problem.

    Parameters
    ----------
    name : str
        A name in `LARGE`.
    options : Namespace
        The command line.

    Returns
    -------
    dict of list
        What was measured, one entry a run, by label.
    """
    problem, results = LARGE[name], {}
    with coefficients() as extract:
        for draw in range(options.seeds if problem.redrawn else 1):
            data = problem.load(options.data, draw)
            seeds = [draw] if problem.redrawn else range(options.seeds)
            for label, run in _runs(name, data, seeds, options.only, extract):
                results.setdefault(label, []).append(run)
                print(f"{name}  {label}: {run}", flush=True)
    return results


def _runs(name, data, seeds, rows, extract):
    """Yield (label, run) of all rows asked for, of one training set."""
    X_train, y_train, X_test, y_test = data
    image_shape = np.atleast_3d(X_train[0]).shape
    parts = (_flat(X_train), y_train, _flat(X_test), y_test)
    if OURS in rows:
        for seed in seeds:
            for label, model in linear_models(image_shape, seed, name).items():
                yield label, fit_and_score(model, parts, seed)
    for row in rows:
        if row != OURS:
            rival = RIVALS[row](image_shape, extract)
            for run in rival_runs(rival, parts, seeds):
                yield rival.label, run


def _flat(images):
    return images.reshape(len(images), -1)


def rival_runs(rival, parts, seeds):
    """Yield the runs of a peer, which is searched once and fitted with every seed.

    Parameters
    ----------
    rival : Rival
        The peer.
    parts : tuple of ndarray
        Training rows and labels, test rows and labels.
    seeds : sequence of int
        The first one is also that of the parts held out, and the only one for peers
        that are not random.
    """
    search, searched = search_grid(rival, parts, seeds[0])
    for seed in seeds if rival.random else seeds[:1]:
        model = rival.seeded(seed, **search.best_params_)
        yield fit_and_score(model, parts, seed) | searched
        searched = {}


def search_grid(rival, parts, seed):
    """Search the grid of a peer, on training images alone.

    Returns
    -------
    search : GridSearchCV
        The search, done.
    measured : dict
        Its seconds and CPU seconds, what it has ``chosen``, and what it has ``tried``:
        pairs of parameters and held-out accuracy.
    """
    search = rival.search(len(parts[0]), seed)
    measured, _ = _spent("search", search.fit, *parts[:2])
    tried = zip(
        map(_plain, search.cv_results_["params"]),
        search.cv_results_["mean_test_score"].tolist(),
        strict=True,
    )
    measured |= {"chosen": _plain(search.best_params_), "tried": list(tried)}
    return search, measured


def fit_and_score(model, parts, seed):
    """Fit a model and measure it.

    Returns
    -------
    dict
        ``accuracy``, ``seed``, and the seconds and CPU seconds of fit and prediction.
    """
    X_train, y_train, X_test, y_test = parts
    fitting, _ = _spent("fit", model.fit, X_train, y_train)
    predicting, predicted = _spent("predict", model.predict, X_test)
    accuracy = float(np.mean(predicted == y_test))
    return {"seed": seed, "accuracy": accuracy, **fitting, **predicting}


def _spent(name, function, *args):
    """Seconds and CPU seconds of a call, those of workers and pools too; its result."""
    measured, result = timed_with_children(function, *args)
    return {f"{name}_{key}": value for key, value in measured.items()}, result


def _plain(parameters):
    """Parameters as JSON has them; estimators and such as text."""
    simple = int | float | str | bool | None
    return {
        key: value if isinstance(value, simple) else str(value)
        for key, value in parameters.items()
    }


@contextmanager
def coefficients():
    """The function that lets kymatio compute scattering coefficients.

    It starts the worker when it is first called, and remembers what it has computed:
    a search asks again for the same images with each candidate.
    """
    remembered = {}
    with ExitStack() as stack:

        @cache
        def worker():
            return stack.enter_context(PeerWorker(SCATTERING))

        def extract(images, J):
            key = joblib.hash((images, J))
            if key not in remembered:
                _, remembered[key] = worker().compute({"images": images}, J=J)
            return remembered[key]

        yield extract


def merge(paths):
    """Put the results of several runs together; later ones win.

    Parameters
    ----------
    paths : list of path-like
        What ``--json`` wrote.

    Returns
    -------
    dict of dict
        Runs by problem and label.
    """
    merged = {}
    for path in paths:
        for name, results in json.loads(Path(path).read_text())["linear"].items():
            merged.setdefault(name, {}).update(results)
    return merged


def make_table(name, results):
    """Accuracies and seconds of a problem as a table; means over the runs."""
    rows = []
    for label, runs in results.items():
        accuracies = [100 * run["accuracy"] for run in runs]
        by_run = " ".join(f"{accuracy:.1f}" for accuracy in accuracies)
        times = [[run[key] for run in runs if key in run] for key in TIMES]
        means = [f"{np.mean(values):.1f}" if values else None for values in times]
        rows.append([label, f"{np.mean(accuracies):.1f} %", by_run, *means])
    headers = [name, "accuracy", "by run", "search s", "fit s", "predict s"]
    return format_table([*headers, "search CPU s", "fit CPU s"], rows)


def list_choices(results):
    """Lines that tell what the searches chose."""
    return "\n".join(
        f"{name}, {label}: {run['chosen']}"
        for name, rows in results.items()
        for label, runs in rows.items()
        for run in runs
        if "chosen" in run
    )


def run(options):
    """Measure what the command line asks for, or merge; print and write the tables."""
    if options.merge:
        results = merge(options.merge)
    else:
        if "scattering" in options.only:
            build_environment(SCATTERING)
        results = {name: measure(name, options) for name in options.problems}
    tables = [make_table(name, measured) for name, measured in results.items()]
    report([*tables, list_choices(results)], {"linear": results}, options.json)
