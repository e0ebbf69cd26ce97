"""The estimators inside scikit-learn's tools, and through a file into a process."""

import os
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.ensemble import BaggingClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skconvrfm
from skconvrfm import ConvRFMClassifier, ConvRFMRegressor


@pytest.fixture
def digits():
    X, y = load_digits(n_class=3, return_X_y=True)
    return X[:60] / 16, y[:60], X[60:120] / 16, y[60:120]


def environment():
    """The environment for another process, which finds the package where we do."""
    folder = str(Path(skconvrfm.__file__).parents[1])
    path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture
def classifier():
    return ConvRFMClassifier(depth=1, n_rounds=1)


def test_a_clone_has_the_parameters_and_no_fit(digits, classifier):
    X, y, _, _ = digits
    classifier.set_params(alpha=[0.1, 1.0], patch_size=(2, 3), class_weight={0: 2})
    copy = clone(classifier.fit(X, y))
    assert copy.get_params() == classifier.get_params()
    assert not hasattr(copy, "dual_coef_")


def test_a_grid_over_depth_and_agop_power(digits, classifier):
    X, y, X_test, y_test = digits
    grid = {"depth": [1, 2], "agop_power": [0.5, 1.0]}
    search = GridSearchCV(classifier, grid, cv=2, error_score="raise").fit(X, y)
    assert len(search.cv_results_["params"]) == 4
    assert set(search.best_params_) == set(grid)
    assert search.score(X_test, y_test) > 0.8


def test_a_grid_over_images_of_four_dimensions(digits, classifier):
    X, y, X_test, y_test = digits
    images = X.reshape(-1, 8, 8, 1)
    search = GridSearchCV(classifier, {"depth": [1, 2]}, cv=2, error_score="raise")
    assert search.fit(images, y).score(X_test.reshape(-1, 8, 8, 1), y_test) > 0.8


def test_a_pipeline_with_a_scaler(digits, classifier):
    X, y, X_test, y_test = digits
    pipeline = make_pipeline(StandardScaler(), classifier).fit(X, y)
    assert pipeline.score(X_test, y_test) > 0.8
    by_hand = StandardScaler().fit(X)
    model = clone(classifier).fit(by_hand.transform(X), y)
    assert_array_equal(
        pipeline.predict_proba(X_test), model.predict_proba(by_hand.transform(X_test))
    )


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_calibration(digits, classifier, method):
    X, y, X_test, y_test = digits
    model = CalibratedClassifierCV(classifier, method=method, cv=2).fit(X, y)
    assert_allclose(model.predict_proba(X_test).sum(axis=1), 1)
    assert model.score(X_test, y_test) > 0.8


def test_bagging(digits, classifier):
    X, y, X_test, y_test = digits
    model = BaggingClassifier(classifier, n_estimators=3, random_state=0).fit(X, y)
    assert model.score(X_test, y_test) > 0.8


def test_one_against_the_rest(digits, classifier):
    X, y, X_test, y_test = digits
    model = OneVsRestClassifier(classifier).fit(X, y)
    assert model.score(X_test, y_test) > 0.8


def test_cross_validation_in_two_processes_is_that_in_one(digits, classifier):
    X, y, _, _ = digits
    alone = cross_val_score(classifier, X, y, cv=2)
    shared = cross_val_score(classifier, X, y, cv=2, n_jobs=2)
    assert_allclose(shared, alone)


def test_a_dump_predicts_the_same_in_another_process(digits, classifier, tmp_path):
    X, y, X_test, _ = digits
    pipeline = make_pipeline(StandardScaler(), classifier).fit(X, y)
    joblib.dump(pipeline, tmp_path / "model.joblib")
    np.save(tmp_path / "X.npy", X_test)
    program = (
        "import joblib, numpy as np\n"
        "model = joblib.load('model.joblib')\n"
        "np.save('scores.npy', model.decision_function(np.load('X.npy')))\n"
    )
    subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), check=True
    )
    scores = np.load(tmp_path / "scores.npy")
    assert_allclose(scores, pipeline.decision_function(X_test), rtol=0, atol=1e-12)


def test_frames_go_through_a_pipeline_with_their_names(digits, classifier):
    pandas = pytest.importorskip("pandas")
    X, y, X_test, _ = digits
    names = [f"pixel{i}" for i in range(64)]
    frame, test_frame = (pandas.DataFrame(rows, columns=names) for rows in (X, X_test))
    pipeline = make_pipeline(StandardScaler(), classifier)
    pipeline.set_output(transform="pandas").fit(frame, pandas.Series(y))
    assert_array_equal(pipeline[-1].feature_names_in_, names)
    plain = make_pipeline(StandardScaler(), clone(classifier)).fit(X, y)
    assert_allclose(
        pipeline.predict_proba(test_frame), plain.predict_proba(X_test), atol=1e-12
    )


# Metadata routing


def test_weights_are_routed_through_a_pipeline(digits, classifier):
    X, y, X_test, _ = digits
    weights = np.arange(60) % 3
    with sklearn.config_context(enable_metadata_routing=True):
        model = clone(classifier).set_fit_request(sample_weight=True)
        pipeline = make_pipeline(
            StandardScaler().set_fit_request(sample_weight=False), model
        )
        pipeline.fit(X, y, sample_weight=weights)
    scaled = StandardScaler().fit(X)
    direct = clone(classifier).fit(scaled.transform(X), y, sample_weight=weights)
    assert_array_equal(
        pipeline.decision_function(X_test),
        direct.decision_function(scaled.transform(X_test)),
    )


def test_weights_without_a_request_are_refused(digits, classifier):
    X, y, _, _ = digits
    with sklearn.config_context(enable_metadata_routing=True):
        search = GridSearchCV(classifier, {"depth": [1]}, cv=2)
        with pytest.raises(ValueError, match="sample_weight"):
            search.fit(X, y, sample_weight=np.ones(60))


def test_weights_are_routed_through_a_search(digits, classifier):
    X, y, _, _ = digits
    with sklearn.config_context(enable_metadata_routing=True):
        model = clone(classifier).set_fit_request(sample_weight=True)
        model.set_score_request(sample_weight=True)
        search = GridSearchCV(model, {"depth": [1, 2]}, cv=2, error_score="raise")
        search.fit(X, y, sample_weight=np.arange(60) % 3)
    assert len(search.best_estimator_.X_fit_) == 40


# Callbacks


class Recorder:
    """Remembers the tasks that it is told of, and stops after some rounds."""

    def __init__(self, stop_after=None):
        self.events, self.scores, self.stop_after = [], [], stop_after

    def setup(self, estimator, context):
        self.events.append("setup")

    def on_fit_task_begin(self, estimator, context, **_):
        self.events.append(("begin", context.task_name, context.task_id))

    def on_fit_task_end(self, estimator, context, **_):
        self.events.append(("end", context.task_name, context.task_id))
        return self.stop_after is not None and context.task_id == self.stop_after

    def teardown(self, estimator, context):
        self.events.append("teardown")


@pytest.fixture
def callback():
    return pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 has them")


@pytest.mark.parametrize("Estimator", [ConvRFMClassifier, ConvRFMRegressor])
def test_callbacks_are_told_of_the_fit_and_of_every_round(digits, callback, Estimator):
    X, y, _, _ = digits
    recorder = Recorder()
    model = Estimator(depth=1, n_rounds=2).set_callbacks(recorder)
    model.fit(X, y)
    events = [event[0] for event in recorder.events if event[1] == "round"]
    assert events == ["begin", "end"] * 3
    rounds = [event[2] for event in recorder.events if event[:2] == ("end", "round")]
    assert rounds == [0, 1, 2]
    assert recorder.events[0] == "setup" and recorder.events[-1] == "teardown"


def test_a_callback_can_stop_the_rounds(digits, callback):
    X, y, X_test, _ = digits
    model = ConvRFMClassifier(depth=1, n_rounds=4, selection="last")
    stopped = clone(model).set_callbacks(Recorder(stop_after=1)).fit(X, y)
    assert_array_equal(stopped.history_["round"], [0, 1])
    short = clone(model).set_params(n_rounds=1).fit(X, y)
    assert_array_equal(stopped.predict_proba(X_test), short.predict_proba(X_test))


def test_callbacks_do_not_change_the_fit(digits, callback):
    X, y, X_test, _ = digits
    model = ConvRFMClassifier(depth=1, n_rounds=2)
    watched = clone(model).set_callbacks(Recorder()).fit(X, y)
    plain = model.fit(X, y)
    assert_array_equal(watched.predict_proba(X_test), plain.predict_proba(X_test))


def test_a_scoring_monitor_scores_every_round(digits, callback):
    X, y, _, _ = digits
    monitor = callback.ScoringMonitor(scoring="accuracy")
    ConvRFMClassifier(depth=1, n_rounds=2).set_callbacks(monitor).fit(X, y)
    data = monitor.get_logs().data
    scores = [entry["accuracy"] for entry in data if entry["task_name"] == "round"]
    assert len(scores) == 3
    assert all(0.8 < score <= 1 for score in scores)
