"""Callbacks of scikit-learn 1.9 around fits and rounds, and none before it."""

import importlib.util
import sys

import numpy as np
import pytest
from doubles import Callback
from numpy.testing import assert_array_equal
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import GridSearchCV

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, _sklearn_compat
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK

DEPTH_1 = ConvNTK(depth=1)


@pytest.fixture
def old_callbacks(monkeypatch):
    """Return the module as it is under a scikit-learn without callbacks."""
    monkeypatch.setitem(sys.modules, "sklearn.callback", None)
    spec = importlib.util.spec_from_file_location(
        "skconvrfm.old_callbacks", _sklearn_compat.__file__
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def new():
    return pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 has them")


@pytest.fixture
def data(rng):
    X, y = rng.normal(size=(24, 4, 4)), np.arange(24) % 2
    X[y == 1, 1, 1] += 2
    return X, y


class Recorder(Callback):
    """Remembers the tasks that it is told of, and stops after some rounds."""

    def __init__(self, stop_after=None):
        self.events, self.metadata, self.models = [], [], []
        self.stop_after = stop_after

    def setup(self, estimator, context):
        self.events.append("setup")

    def on_fit_task_begin(self, estimator, context, *, metadata=None, **_):
        self.events.append(("begin", context.task_name, context.task_id))
        self.metadata.append(metadata)

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None, **_):
        self.events.append(("end", context.task_name, context.task_id))
        if context.task_name == "round":
            self.models.append(fitted_estimator)
        return self.stop_after is not None and context.task_id == self.stop_after

    def teardown(self, estimator, context):
        self.events.append("teardown")


def test_rounds_without_callbacks_in_scikit_learn(old_callbacks, data):
    class Model(old_callbacks.CallbackSupportMixin, BaseEstimator):
        pass

    def never():
        raise AssertionError("nobody asked for the attributes")

    callbacks = old_callbacks.RoundCallbacks(Model(), 3, *data)
    assert not callbacks.end_round(never, False)
    assert not callbacks.end_round(never, True)
    callbacks.end_fit()


def test_progress_bar_shows_the_fit(new, data, capsys):
    pytest.importorskip("rich")
    model = ConvRFMClassifier(DEPTH_1, n_rounds=1).set_callbacks(new.ProgressBar())
    model.fit(*data)
    assert "ConvRFMClassifier - fit" in capsys.readouterr().out


def test_scoring_monitor_of_a_search_sees_the_rounds_of_every_fit(new, data):
    monitor = new.ScoringMonitor(scoring="accuracy")
    model = ConvRFMClassifier(DEPTH_1, n_rounds=1).set_callbacks(monitor)
    GridSearchCV(model, {"kernel__depth": [1, 2]}, cv=2).fit(*data)
    entries = monitor.get_logs().data
    rounds = [e["accuracy"] for e in entries if e["task_name"] == "round"]
    assert len(rounds) == 2 * (2 * 2 + 1)  # two rounds of each fit, and of the refit
    assert all(0 <= score <= 1 for score in rounds)


def test_sample_weights_reach_the_callbacks(new, data):
    recorder, weights = Recorder(), np.arange(24) + 1.0
    model = ConvRFMClassifier(DEPTH_1, n_rounds=0).set_callbacks(recorder)
    model.fit(*data, sample_weight=weights)
    assert_array_equal(recorder.metadata[0]["sample_weight"], weights)
    recorder.metadata.clear()
    model.fit(*data)
    assert recorder.metadata[0] == {}


@pytest.mark.parametrize(
    ("kernel", "features", "n_stages"),
    [
        (DEPTH_1, None, 1),
        ("linear", ConvFeatures(9, patch_size=2), 1),
        ("gaussian", [ConvFeatures(9, patch_size=2, pool_grid=None)] * 2, 1),
        (DEPTH_1, ConvFeatures(9, patch_size=2, pool_grid=None), 2),
    ],
    ids=["kernel", "features", "two layers", "deep"],
)
def test_callbacks_see_a_fitted_model_after_every_round(
    new, data, kernel, features, n_stages
):
    X, y = data
    recorder = Recorder()
    model = ConvRFMClassifier(kernel, features, n_rounds=2, selection="last")
    plain = clone(model).fit(X, y).decision_function(X)
    model.set_callbacks(recorder).fit(X, y)
    models = recorder.models
    assert [len(m.history_["round"]) for m in models] == [1, 2, 3] * n_stages
    assert_array_equal(models[-1].decision_function(X), plain)
    assert_array_equal(model.decision_function(X), plain)
    assert all(m.predict_proba(X).shape == (24, 2) for m in models)


@pytest.mark.parametrize("Estimator", [ConvRFMClassifier, ConvRFMRegressor])
def test_callbacks_are_called_for_the_fit_and_every_round(data, new, Estimator):
    recorder = Recorder()
    options = {"n_rounds": 2, "n_iter_no_change": None}
    Estimator(DEPTH_1, **options).set_callbacks(recorder).fit(*data)
    events = [event[0] for event in recorder.events if event[1] == "round"]
    assert events == ["begin", "end"] * 3
    rounds = [event[2] for event in recorder.events if event[:2] == ("end", "round")]
    assert rounds == [0, 1, 2]
    assert recorder.events[0] == "setup" and recorder.events[-1] == "teardown"


def test_callbacks_can_stop_the_rounds(data, new):
    X, y = data
    model = ConvRFMClassifier(DEPTH_1, n_rounds=4, selection="last")
    stopped = clone(model).set_callbacks(Recorder(stop_after=1)).fit(X, y)
    assert_array_equal(stopped.history_["round"], [0, 1])
    short = clone(model).set_params(n_rounds=1).fit(X, y)
    assert_array_equal(stopped.predict_proba(X), short.predict_proba(X))
