"""``python -m benchmarks.cluster``: one fit under each of joblib's backends.

The same fit of real images in one process, and with its tasks in the processes of
loky, of a Dask cluster and of Ray on this machine. Each starts before the clock does,
and has one fit of a few images before the one that is measured: processes import the
package once. Clusters on one machine show what their passing on of tasks costs, not
what more machines gain.
"""

import argparse
import multiprocessing
import os
import pickle
import warnings
from contextlib import contextmanager
from importlib.metadata import version

import joblib
import numpy as np
from joblib.parallel import get_active_backend
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures

from .harness import (
    MEBIBYTE,
    add_data_option,
    children_cpu_seconds,
    format_table,
    load_images,
    report,
    timed,
)

FILE = "mnist_5000_2000.npz"
# Of the largest value of the decision function, in float32 and in float64.
TOLERANCE = {"float32": 1e-3, "float64": 1e-8}
WARM_UP = 64
# Of images, or of the maps of feature layers.
KERNELS = ("linear", "gaussian", "ntk")


# --------------------------------------------------------------------- backends


def _threads_of_a_worker():
    """Return what the environment of this process says of threads."""
    return os.environ.get("OMP_NUM_THREADS")


@contextmanager
def _environment_restored():
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def in_one_process(workers):
    """Start no backend: tasks take turns, each with all threads."""
    yield {}


@contextmanager
def in_loky(workers):
    """Start processes of joblib's own."""
    with joblib.parallel_config(backend="loky", n_jobs=workers):
        yield {}


@contextmanager
def in_dask(workers):
    """Start a Dask cluster of processes with one thread each."""
    from dask.distributed import Client, LocalCluster

    # Dask sets OMP_NUM_THREADS in this process, from which others start later.
    with (
        _environment_restored(),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=None,
        ) as cluster,
        Client(cluster) as client,
        joblib.parallel_config(backend="dask"),
    ):
        setting = client.run(_threads_of_a_worker)
        yield {"OMP_NUM_THREADS": sorted(set(map(str, setting.values())))}


@contextmanager
def in_ray(workers):
    """Start processes of Ray on this machine."""
    import ray
    from ray.util.joblib import register_ray

    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:
        register_ray()
        setting = ray.get(ray.remote(_threads_of_a_worker).remote())
        # Without n_jobs the backend computes everything in this process.
        with joblib.parallel_config(backend="ray", n_jobs=-1):
            yield {"OMP_NUM_THREADS": [str(setting)]}
    finally:
        ray.shutdown()


BACKENDS = {
    "sequential": in_one_process,
    "loky": in_loky,
    "dask": in_dask,
    "ray": in_ray,
}
# Whose version belongs beside the figures.
PACKAGES = {"dask": ["dask", "distributed"], "ray": ["ray"], "loky": ["joblib"]}


# ---------------------------------------------------------------------- measure


class TaskSizes:
    """Bytes of the tasks that joblib hands to a backend, while it is entered.

    Each is pickled once more for it, so that this is for fits which are not timed.
    """

    def __enter__(self):
        self.sizes = []
        self._backend = get_active_backend()[0]
        send = self._backend.submit

        def submit(func, callback=None):
            self.sizes.append(len(pickle.dumps(list(func.items))))
            return send(func, callback)

        self._backend.submit = submit
        return self

    def __exit__(self, *_):
        del self._backend.submit


def measure(name, model, data, workers):
    """Measure one fit under a backend.

    Parameters
    ----------
    name : {"sequential", "loky", "dask", "ray"}
        The backend.
    model : estimator
        What to fit.
    data : (ndarray, ndarray)
        Images and labels.
    workers : int
        Processes of the backend.

    Returns
    -------
    measured : dict
        ``seconds``; ``cpu_seconds`` of this process and its children; ``submitted``,
        the tasks, and ``largest_task`` of them in bytes, of another such fit, None
        where there are none; ``streams``, whether results come as a generator;
        ``threads``, what the environment of a worker sets; ``warnings``.
    scores : ndarray of shape (n, n_classes)
        The decision function of the images.
    """
    X, y = data
    with BACKENDS[name](workers) as facts, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        clone(model).fit(X[:WARM_UP], y[:WARM_UP])
        children = children_cpu_seconds()
        times, fitted = timed(clone(model).fit, X, y)
        times["cpu_seconds"] += children_cpu_seconds() - children
        scores = fitted.decision_function(X)
        with TaskSizes() as tasks:
            clone(model).fit(X, y)
        streams = get_active_backend()[0].supports_return_generator
    return {
        **times,
        "submitted": len(tasks.sizes) or None,
        "largest_task": max(tasks.sizes, default=None),
        "streams": streams,
        "threads": facts.get("OMP_NUM_THREADS"),
        "warnings": sorted({f"{w.category.__name__}: {w.message}" for w in seen}),
    }, scores


def compare(names, model, data, workers):
    """Measure all backends in turn, each against the first one."""
    results, expected = {}, None
    for name in names:
        results[name], scores = measure(name, model, data, workers)
        expected = scores if expected is None else expected
        difference = np.abs(scores - expected).max() / np.abs(expected).max()
        results[name]["difference"] = float(difference)
    return results


# ----------------------------------------------------------------------- report


def make_table(results):
    """Return a table with a row a backend."""
    headers = ["backend", "seconds", "CPU s", "tasks", "largest, MiB"]
    headers += ["generator", "threads", "difference"]
    rows = []
    for name, measured in results.items():
        largest = measured["largest_task"]
        rows.append(
            [
                name,
                measured["seconds"],
                measured["cpu_seconds"],
                measured["submitted"],
                None if largest is None else largest / MEBIBYTE,
                "yes" if measured["streams"] else "no",
                "/".join(measured["threads"] or ["-"]),
                measured["difference"],
            ]
        )
    return format_table(headers, rows)


def parse_options(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cluster", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--backend", nargs="+", choices=BACKENDS, default=["sequential", "loky"]
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--filters", type=int, default=64, help="of the features")
    parser.add_argument("--rounds", type=int, default=1, help="n_rounds of the fit")
    parser.add_argument("--kernel", choices=KERNELS, default="linear")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    add_data_option(parser)
    parser.add_argument("--file", default=FILE, help="images and labels in it")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    return parser.parse_args(argv)


def main(argv=None):
    """Run the command line; fail where a backend changes the result."""
    options = parse_options(argv)
    features = None
    if options.kernel != "ntk":
        features = ConvFeatures(options.filters, patch_size=3)
    model = ConvRFMClassifier(
        options.kernel, features, n_rounds=options.rounds, dtype=options.dtype
    )
    path = options.data / options.file
    data = load_images(path, options.images), _labels(path, options.images)
    results = compare(options.backend, model, data, options.workers)
    packages = [name for key in options.backend for name in PACKAGES.get(key, ())]
    versions = {name: version(name) for name in packages}
    filters = "" if features is None else f"on {options.filters} filters, "
    title = (
        f"{options.images} images of {options.file}, {options.kernel} {filters}"
        f"{options.rounds} rounds, {options.dtype}, {options.workers} workers; "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
    )
    lines = [
        f"{name}: {line}"
        for name, measured in results.items()
        for line in measured["warnings"]
    ]
    table = "\n".join([title, make_table(results), *lines])
    report([table], {"cluster": results, "packages": versions}, options.json)
    wrong = [
        name
        for name, measured in results.items()
        if not measured["difference"] <= TOLERANCE[options.dtype]
    ]
    idle = [
        name
        for name, measured in results.items()
        if name != "sequential" and not measured["submitted"]
    ]
    if idle:
        print(f"\nnothing was computed by the workers of {idle}")
    if wrong:
        print(f"\nresults differ from those of {options.backend[0]}: {wrong}")
    return 1 if wrong or idle else 0


def _labels(path, n_images):
    with np.load(path, allow_pickle=False) as archive:
        return archive["y_train"][:n_images]


if __name__ == "__main__":
    raise SystemExit(main())
