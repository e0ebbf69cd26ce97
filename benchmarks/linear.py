"""Table of feature layers: ``python -m benchmarks.accuracy --linear``.

Our features under a linear and under a Gaussian kernel beside peers, each at the best
of a small grid that is searched on a fifth of the training images held out (three such
parts where there are few images). What draws random numbers is fitted with several
seeds, what does not once; the grid is searched once a training set. Every fit sees the
training images as they are: no augmentation, for nobody.
"""

import json
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import joblib
import numpy as np

from skconvrfm import ConvRFMClassifier
from skconvrfm.kernels import Gaussian, Linear

from .harness import format_table, report, timed_with_children
from .models import conv_features
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


def our_models(image_shape, seed, data_name):
    """Return our rows of the table; all take flat rows.

    Parameters
    ----------
    image_shape : tuple of int
        Of an image.
    seed : int
        Of the filters.
    data_name : str
        A name in `LARGE`, for the patches.

    Returns
    -------
    dict of estimator
        By label.
    """
    features = conv_features(data_name, 1024)
    common = {"image_shape": image_shape, "random_state": seed}
    return {
        f"ConvFeatures + {type(kernel).__name__}, {kind}": ConvRFMClassifier(
            kernel, features, n_rounds=n_rounds, **common
        )
        for kernel in (Linear(), Gaussian())
        for kind, n_rounds in (("fixed", 0), ("learned", 2))
    }


def measure(name, options):
    """Return all runs of the rows asked for on one problem.

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
            for label, model in our_models(image_shape, seed, name).items():
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
    """Return seconds and CPU seconds of a call and its workers, and its result."""
    measured, result = timed_with_children(function, *args)
    return {f"{name}_{key}": value for key, value in measured.items()}, result


def _plain(parameters):
    """Return parameters as JSON has them; estimators and such as text."""
    simple = int | float | str | bool | None
    return {
        key: value if isinstance(value, simple) else str(value)
        for key, value in parameters.items()
    }


@contextmanager
def coefficients():
    """Yield the function that lets kymatio compute scattering coefficients.

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
    """Return accuracies and seconds as a table; means over the runs."""
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
    """Return lines that tell what the searches chose."""
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
