"""Callbacks are told of rounds where scikit-learn has them; else nobody is."""

import importlib.util
import sys

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV

import skconvrfm.callbacks
from skconvrfm import ConvRFMClassifier


@pytest.fixture
def old_callbacks(monkeypatch):
    """Return the module as it is under a scikit-learn without callbacks."""
    monkeypatch.setitem(sys.modules, "sklearn.callback", None)
    spec = importlib.util.spec_from_file_location(
        "old_callbacks", skconvrfm.callbacks.__file__
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def new():
    return pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 has them")


@pytest.fixture
def data(rng):
    X, y = rng.normal(size=(24, 16)), np.arange(24) % 2
    X[y == 1, 5] += 2
    return X, y


def test_without_them_in_scikit_learn_rounds_go_on_in_silence(old_callbacks, data):
    class Model(old_callbacks.CallbackSupportMixin, BaseEstimator):
        pass

    def never():
        raise AssertionError("nobody asked for the attributes")

    callbacks = old_callbacks.RoundCallbacks(Model(), 3, *data, None)
    assert not callbacks.end_round(never, False)
    assert not callbacks.end_round(never, True)
    callbacks.end_fit()


def test_a_progress_bar_shows_the_rounds(new, data, capsys):
    pytest.importorskip("rich")
    model = ConvRFMClassifier(depth=1, n_rounds=1).set_callbacks(new.ProgressBar())
    model.fit(*data)
    assert "ConvRFMClassifier - fit" in capsys.readouterr().out


def test_a_monitor_of_a_search_sees_the_rounds_of_every_fit(new, data):
    monitor = new.ScoringMonitor(scoring="accuracy")
    model = ConvRFMClassifier(n_rounds=1).set_callbacks(monitor)
    GridSearchCV(model, {"depth": [1, 2]}, cv=2).fit(*data)
    entries = monitor.get_logs().data
    rounds = [e["accuracy"] for e in entries if e["task_name"] == "round"]
    assert len(rounds) == 2 * (2 * 2 + 1)  # two rounds of each fit, and of the refit
    assert all(0 <= score <= 1 for score in rounds)


def test_the_weights_of_the_rows_reach_the_callbacks(new, data):
    seen = []

    class Watch:
        def setup(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context, *, metadata=None, **_):
            seen.append(metadata)

        def on_fit_task_end(self, estimator, context, **_):
            pass

        def teardown(self, estimator, context):
            pass

    model = ConvRFMClassifier(depth=1, n_rounds=0).set_callbacks(Watch())
    weights = np.arange(24) + 1.0
    model.fit(*data, sample_weight=weights)
    np.testing.assert_array_equal(seen[0]["sample_weight"], weights)
    seen.clear()
    model.fit(*data)
    assert seen[0] == {}


@pytest.mark.parametrize(
    "options", [{"depth": 1}, {"method": "features", "feature_layers": 2}], ids=str
)
def test_a_callback_sees_a_model_that_predicts_after_every_round(new, data, options):
    X, y = data
    models = []

    class Keep:
        def setup(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context, **_):
            pass

        def on_fit_task_end(
            self, estimator, context, *, fitted_estimator=None, **others
        ):
            if context.task_name == "round":
                models.append(fitted_estimator)

        def teardown(self, estimator, context):
            pass

    model = ConvRFMClassifier(n_rounds=2, n_filters=9, selection="last", **options)
    model.set_callbacks(Keep()).fit(X, y)
    n_layers = options.get("feature_layers", 1)
    assert [len(m.history_["round"]) for m in models] == [1, 2, 3] * n_layers
    np.testing.assert_array_equal(
        models[-1].decision_function(X), model.decision_function(X)
    )
    assert all(m.predict_proba(X).shape == (24, 2) for m in models)
