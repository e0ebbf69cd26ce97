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
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier

from .harness import format_table, report, timed
from .peers.client import PeerWorker, build_environment
from .problems import LARGE
from .rivals import RIVALS

OURS = "ours"
ROWS = (OURS, *RIVALS)
SCATTERING = "kymatio"


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
    del data_name
    common = {"image_shape": image_shape, "random_state": seed}
    # The parameters of the linear path go here.
    return {
        "features, fixed": ConvRFMClassifier(n_rounds=0, **common),
        "features, learned": ConvRFMClassifier(n_rounds=1, **common),
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
    """Yield the runs of a peer: the search and its fit, then fits with other seeds.

    Parameters
    ----------
    rival : Rival
        The peer.
    parts : tuple of ndarray
        Training rows and labels, test rows and labels.
    seeds : sequence of int
        The first one is also that of the parts held out; the others are for peers
        that are random.
    """
    search = rival.search(len(parts[0]), seeds[0])
    run = fit_and_score(search, parts, seeds[0])
    run["search_seconds"], run["fit_seconds"] = run["fit_seconds"], search.refit_time_
    tried = zip(
        map(_plain, search.cv_results_["params"]),
        search.cv_results_["mean_test_score"].tolist(),
        strict=True,
    )
    yield {**run, "chosen": _plain(search.best_params_), "tried": list(tried)}
    for seed in seeds[1:] if rival.random else ():
        model = rival.seeded(clone(search.best_estimator_), seed)
        yield fit_and_score(model, parts, seed)


def fit_and_score(model, parts, seed):
    """Fit a model and measure it.

    Returns
    -------
    dict
        ``accuracy``, ``fit_seconds``, ``predict_seconds`` and ``seed``.
    """
    X_train, y_train, X_test, y_test = parts
    fitting, _ = timed(model.fit, X_train, y_train)
    predicting, accuracy = timed(model.score, X_test, y_test)
    return {
        "accuracy": float(accuracy),
        "fit_seconds": fitting["seconds"],
        "predict_seconds": predicting["seconds"],
        "seed": seed,
    }


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
        searches = [run["search_seconds"] for run in runs if "search_seconds" in run]
        rows.append(
            [
                label,
                f"{np.mean(accuracies):.1f} %",
                " ".join(f"{accuracy:.1f}" for accuracy in accuracies),
                f"{np.mean(searches):.0f} s" if searches else None,
                f"{np.mean([run['fit_seconds'] for run in runs]):.1f} s",
                f"{np.mean([run['predict_seconds'] for run in runs]):.2f} s",
            ]
        )
    headers = [name, "accuracy", "by run", "search and fit", "fit", "predict"]
    return format_table(headers, rows)


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
