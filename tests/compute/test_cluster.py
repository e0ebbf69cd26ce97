"""Results on a Dask cluster equal those of one process, also when a worker dies.

The cluster is a real one, of two processes of this machine.
"""

import os
import signal
import threading
import time
from contextlib import contextmanager

import joblib
import numpy as np
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from skconvrfm import (
    AnsatzScorer,
    ConvRFMClassifier,
    ConvRFMRegressor,
    PatchAGOPTransformer,
)
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian, patch_agop

pytest.importorskip("dask.distributed", reason="the extra [dask] is not installed")
from dask.distributed import Client, LocalCluster, get_task_stream  # noqa: E402

pytestmark = pytest.mark.slow

# Of the largest value, in float64.
TOLERANCE = 1e-8
SMALL = {"n_rounds": 1, "dtype": "float64"}
LAYER = ConvFeatures(12, patch_size=3)
LOCATIONS = ConvFeatures(6, patch_size=2, pool_grid=None)
FEATURES = {"kernel": "linear", "features": LAYER, **SMALL}
EXACT = {"kernel": ConvNTK(depth=2), **SMALL}
LANDMARKS = {
    "images": ConvRFMClassifier(ConvNTK(depth=2), landmarks=25, **SMALL),
    "maps": ConvRFMClassifier(Gaussian(), [LOCATIONS, LAYER], landmarks=25, **SMALL),
}
MODELS = [
    ConvRFMClassifier(**FEATURES),
    ConvRFMRegressor(**FEATURES),
    ConvRFMClassifier(**EXACT),
    ConvRFMRegressor(**EXACT),
    ConvRFMClassifier(Gaussian(), [LOCATIONS, LAYER], **SMALL),
    ConvRFMClassifier(ConvNTK(depth=1), LOCATIONS, **SMALL),
    ConvRFMClassifier(selection="holdout", **FEATURES),
    *LANDMARKS.values(),
]
# Learning and machine, as both methods leave them.
FITTED = ("patch_agop_", "patch_transform_", "coef_", "dual_coef_", "intercept_")
# Seconds until a fit that should have ended is taken to hang.
PATIENCE = 90


def assert_close(actual, expected, tolerance):
    """Check equality to within a part of the largest expected value."""
    atol = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


@contextmanager
def cluster_of_two(folder):
    """A client of a cluster of two processes, a thread each, on the loopback device."""
    # Dask sets OMP_NUM_THREADS=1 and others here, for what it starts; other tests
    # start processes too.
    environment = dict(os.environ)
    try:
        with (
            LocalCluster(
                n_workers=2,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                # None is port 8787, with a warning where another cluster has it.
                dashboard_address="127.0.0.1:0",
                local_directory=str(folder),
                # The machine may be small: no worker is to be stopped for that.
                memory_limit=None,
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client
    finally:
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """The cluster that all tests share which leave it whole."""
    with cluster_of_two(tmp_path_factory.mktemp("dask")) as client:
        yield client


def make_problem(n=60):
    """Noise with a stroke somewhere, lying or standing: images and two classes."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 8, 7)) / 4
    y = np.arange(n) % 2
    for image, label in zip(X, y, strict=True):
        r, c = rng.integers(0, 5), rng.integers(0, 4)
        image[r : r + 1 + 3 * label, c : c + 1 + 3 * (1 - label)] += 1
    return X, y


def scores(model, X):
    """Return the raw outputs of a model for images."""
    return getattr(model, "decision_function", model.predict)(X)


def assert_same_model(actual, expected):
    """Assert equal metrics, coefficients, choices and criteria."""
    for name in filter(lambda name: hasattr(expected, name), FITTED):
        found, wanted = (np.asarray(getattr(m, name)) for m in (actual, expected))
        assert_close(found, wanted, TOLERANCE)
    assert actual.alpha_ == expected.alpha_
    assert actual.best_round_ == expected.best_round_
    for name in ("loo_score", "loo_loss", "gcv"):
        assert_close(actual.history_[name], expected.history_[name], TOLERANCE)


def joblib_tasks(stream):
    """Of the tasks that a cluster executed, those of joblib."""
    return [row for row in stream if "batch_of_" in str(row["key"])]


# ------------------------------------------------------------------ equal results


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_fit_on_a_cluster_equals_that_of_one_process(model, client):
    X, y = make_problem()
    alone = clone(model).fit(X, y)
    with joblib.parallel_config(backend="dask"):
        shared = clone(model).fit(X, y)
        assert_close(scores(shared, X), scores(alone, X), TOLERANCE)
        np.testing.assert_array_equal(shared.predict(X) > 0.5, alone.predict(X) > 0.5)
    assert_same_model(shared, alone)


@pytest.mark.parametrize("output", ["filters", "eigen", "saliency", "image"])
@pytest.mark.parametrize("learner", [FEATURES, EXACT], ids=["features", "exact"])
def test_transform_on_a_cluster_equals_that_of_one_process(learner, output, client):
    X, y = make_problem()
    model = PatchAGOPTransformer(ConvRFMClassifier(**learner), output=output)
    alone = clone(model).fit(X, y)
    with joblib.parallel_config(backend="dask"):
        shared = clone(model).fit(X, y)
        assert_close(shared.transform(X), alone.transform(X), TOLERANCE)
    assert_same_model(shared.estimator_, alone.estimator_)


@pytest.mark.parametrize("pool_grid", [None, 2])
def test_kernel_and_agop_on_a_cluster_equal_those_of_one_process(pool_grid, client):
    X, y = make_problem(30)
    kernel = ConvNTK(depth=2, pool_grid=pool_grid)
    matrix, agop = kernel(X), patch_agop(kernel, X, y - 0.5)
    with joblib.parallel_config(backend="dask"):
        assert_close(kernel(X), matrix, TOLERANCE)
        assert_close(kernel(X, X), matrix, TOLERANCE)
        assert_close(patch_agop(kernel, X, y - 0.5), agop, TOLERANCE)


def test_ansatz_on_a_cluster_equals_that_of_one_process(client):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.Flatten(),
        nn.Linear(48, 2),
    ).double()
    X = make_problem(24)[0][..., None]
    alone = AnsatzScorer().report(network, X)
    with joblib.parallel_config(backend="dask"):
        shared = AnsatzScorer().report(network, X)
    expected = np.array([layer.correlation for layer in alone])
    assert len(expected) == 2
    found = np.array([layer.correlation for layer in shared])
    assert_close(found, expected, TOLERANCE)


def test_working_memory_reaches_the_workers_also_in_a_search(client):
    X, y = make_problem()
    grid = {"features__patch_size": [2, 3]}
    search = GridSearchCV(ConvRFMClassifier(**FEATURES), grid, cv=2)
    alone = clone(search).fit(X, y)
    # Tasks of tasks: each fit shares out its own from the worker that has it.
    with config_context(working_memory=0.1), joblib.parallel_config(backend="dask"):
        shared = clone(search).fit(X, y)
    for name in ("mean_test_score", "split0_test_score", "split1_test_score"):
        np.testing.assert_allclose(shared.cv_results_[name], alone.cv_results_[name])
    assert_same_model(shared.best_estimator_, alone.best_estimator_)


# --------------------------------------------------------------- who did the work


def score_network(X, y):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    images = X[..., None]
    network(torch.tensor(images).float().permute(0, 3, 1, 2))
    AnsatzScorer().report(network, images)


WORK = {
    "features": lambda X, y: ConvRFMClassifier(**FEATURES).fit(X, y),
    "exact": lambda X, y: ConvRFMClassifier(**EXACT).fit(X, y),
    "kernel": lambda X, y: ConvNTK(depth=2)(X),
    "ansatz": score_network,
}


@pytest.mark.parametrize("work", WORK)
def test_tasks_run_on_the_workers(work, client):
    X, y = make_problem()
    pids = client.run(os.getpid)
    assert len(pids) == 2 and os.getpid() not in pids.values()
    with get_task_stream(client) as stream, joblib.parallel_config(backend="dask"):
        WORK[work](X, y)
    tasks = joblib_tasks(stream.data)
    assert tasks
    assert {task["worker"] for task in tasks} <= set(pids)


def test_cluster_is_used_by_predictions_and_in_its_context_alone(client):
    X, y = make_problem()
    with get_task_stream(client) as stream:
        model = ConvRFMClassifier(**FEATURES).fit(X, y)
    assert not joblib_tasks(stream.data)
    with get_task_stream(client) as stream, joblib.parallel_config(backend="dask"):
        model.decision_function(X)
    assert joblib_tasks(stream.data)


# ---------------------------------------------------------------- a worker is lost


class InBackground(threading.Thread):
    """A fit in a thread, which does not keep the tests from ending if it hangs."""

    def __init__(self, model, X, y):
        super().__init__(daemon=True)
        self.model, self.error = model, None
        self._data = X, y

    def run(self):
        try:
            # Contexts of joblib are those of a thread.
            with joblib.parallel_config(backend="dask"):
                self.model.fit(*self._data)
        except BaseException as error:  # raised where it is waited for
            self.error = error

    def result(self, timeout):
        """The fitted model."""
        self.join(timeout)
        assert not self.is_alive(), f"the fit hangs: {timeout} seconds have passed"
        if self.error is not None:
            raise self.error
        return self.model


def wait_until(condition, fit):
    """Return True if a condition came true before the fit was over."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if not fit.is_alive():
            return False
        assert time.monotonic() < end, f"{condition.__name__} in {PATIENCE} seconds"
        time.sleep(0.01)
    return True


def stop_in_a_task(client, fit, address, pid, n_before):
    """Stop a worker that a fit needs, after the first tasks are done.

    A fit cannot end while a worker is stopped with one of its tasks, or with a result
    that it waits for, so that what follows happens in the middle of the fit, however
    fast it is.

    Returns
    -------
    bool
        False if the fit was over before; the worker then goes on.
    """

    def enough_tasks_were_executed():
        return len(joblib_tasks(stream.data_so_far())) >= n_before

    def it_is_needed():
        """It holds a task, or nothing goes on without it."""
        if client.processing()[address]:
            return True
        n_executed = len(joblib_tasks(stream.data_so_far()))
        time.sleep(2)
        return fit.is_alive() and len(joblib_tasks(stream.data_so_far())) == n_executed

    stream = Stream(client)
    fit.start()
    if not wait_until(enough_tasks_were_executed, fit):
        return False
    os.kill(pid, signal.SIGSTOP)
    while wait_until(it_is_needed, fit):
        held = set(client.processing()[address])
        # What it said before it was stopped arrives meanwhile.
        time.sleep(0.2)
        if held == set(client.processing()[address]):
            return True
    os.kill(pid, signal.SIGCONT)
    return False


class Stream:
    """The tasks that a cluster executed from now on."""

    def __init__(self, client):
        self._client, self._start = client, time.time()
        client.get_task_stream()  # the scheduler records them from here on

    def data_so_far(self):
        return self._client.get_task_stream(start=self._start)


@pytest.mark.parametrize(
    ("model", "n_before"),
    [
        (ConvRFMClassifier(**{**FEATURES, "n_rounds": 2}), 6),
        (ConvRFMClassifier(**{**EXACT, "n_rounds": 2}), 1),
        (clone(LANDMARKS["images"]).set_params(n_rounds=2), 6),
        (clone(LANDMARKS["maps"]).set_params(n_rounds=2), 6),
    ],
    ids=["features", "exact", "landmarks of images", "landmarks of maps"],
)
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process")
def test_fit_survives_the_loss_of_a_worker(model, n_before, tmp_path):
    X, y = make_problem(200 if model.features or model.landmarks else 50)
    alone = clone(model).fit(X, y)
    with cluster_of_two(tmp_path) as client:
        address, pid = sorted(client.run(os.getpid).items())[0]
        fit = InBackground(clone(model), X, y)
        assert stop_in_a_task(client, fit, address, pid, n_before)
        os.kill(pid, signal.SIGKILL)
        assert fit.is_alive()
        shared = fit.result(PATIENCE)
        client.wait_for_workers(2, timeout=PATIENCE)
        assert pid not in client.run(os.getpid).values()
    assert_same_model(shared, alone)
    assert_close(scores(shared, X), scores(alone, X), TOLERANCE)
