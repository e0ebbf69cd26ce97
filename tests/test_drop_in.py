"""The estimators in scikit-learn's tools: searches, ensembles, pipelines, routing."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_digits
from sklearn.ensemble import (
    BaggingClassifier,
    BaggingRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    RandomizedSearchCV,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
    validation_curve,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian

OPTIONS = {"n_rounds": 1, "image_shape": (8, 8)}
CLASSIFIER = ConvRFMClassifier(ConvNTK(depth=1), **OPTIONS)
REGRESSOR = ConvRFMRegressor(ConvNTK(depth=1), **OPTIONS)
TRANSFORMER = PatchAGOPTransformer(CLASSIFIER, n_filters=8)
LOGISTIC = LogisticRegression(max_iter=1000)
MODELS = {
    "classifier": CLASSIFIER,
    "regressor": REGRESSOR,
    "transformer": make_pipeline(TRANSFORMER, LOGISTIC),
}
# Every class in both halves, for regressions too.
HALVES = KFold(2, shuffle=True, random_state=0)
SEARCH = {"cv": HALVES, "error_score": "raise"}
WEIGHTS = np.arange(60) % 3
PIXELS = [f"pixel{i}" for i in range(64)]


@pytest.fixture(params=MODELS)
def model(request):
    return clone(MODELS[request.param])


@pytest.fixture
def classifier():
    return clone(CLASSIFIER)


@pytest.fixture
def digits():
    X, y = load_digits(n_class=3, return_X_y=True)
    return X[:60] / 16, y[:60], X[60:120] / 16, y[60:120]


def test_clone_has_the_parameters_and_no_fit(digits, classifier):
    X, y, _, _ = digits
    classifier.set_params(
        alpha=[0.1, 1.0], kernel__patch_size=(2, 3), class_weight={0: 2}
    )
    copy = clone(classifier.fit(X, y))
    assert repr(copy) == repr(classifier)
    assert copy.kernel is not classifier.kernel
    assert not hasattr(copy, "dual_coef_")


# ----------------------------------------------------------------------- tools

TOOLS = {
    "randomised search": RandomizedSearchCV(
        CLASSIFIER,
        {"kernel__patch_size": [2, 3, 4], "kernel__bias": [0.0, 0.3]},
        n_iter=3,
        random_state=0,
        **SEARCH,
    ),
    "halving search": HalvingGridSearchCV(
        REGRESSOR,
        {"alpha": [1e-2, 1e4, 1e5]},
        min_resources=20,
        random_state=0,
        **SEARCH,
    ),
    "votes": VotingClassifier(
        [("ours", CLASSIFIER), ("other", LOGISTIC)], voting="soft"
    ),
    "mean": VotingRegressor([("ours", REGRESSOR), ("other", Ridge())]),
    "stack": StackingClassifier([("ours", CLASSIFIER)], LOGISTIC, cv=HALVES),
    "stack of regressors": StackingRegressor([("ours", REGRESSOR)], Ridge(), cv=HALVES),
    "one vs rest": OneVsRestClassifier(CLASSIFIER),
    "sigmoid": CalibratedClassifierCV(CLASSIFIER, method="sigmoid", cv=2),
    "isotonic": CalibratedClassifierCV(CLASSIFIER, method="isotonic", cv=2),
    "targets": TransformedTargetRegressor(
        REGRESSOR, func=np.log1p, inverse_func=np.expm1
    ),
    "self-training": SelfTrainingClassifier(CLASSIFIER, threshold=0.8),
    "scaler": make_pipeline(StandardScaler(), CLASSIFIER),
}


@pytest.mark.parametrize("name", TOOLS)
def test_tools_learn_digits_with_the_estimators(digits, name):
    X, y, X_test, y_test = digits
    if name == "self-training":  # with a quarter of the labels
        y = np.where(np.arange(60) < 15, y, -1)
    tool = clone(TOOLS[name]).fit(X, y)
    assert tool.score(X_test, y_test) > 0.8
    if hasattr(tool, "predict_proba"):
        probabilities = tool.predict_proba(X_test)
        assert_allclose(probabilities.sum(axis=1), 1)
        assert log_loss(y_test, probabilities) < np.log(3) / 2


@pytest.mark.parametrize(
    ("Bagging", "model", "method"),
    [
        (BaggingClassifier, CLASSIFIER, "predict_proba"),
        (BaggingRegressor, REGRESSOR, "predict"),
    ],
)
def test_bagging_by_weights_equals_bagging_of_rows(digits, Bagging, model, method):
    X, y, X_test, y_test = digits
    bagging = Bagging(model, n_estimators=3, random_state=0).fit(X, y)
    single = [
        getattr(clone(model).fit(X[rows], y[rows]), method)(X_test)
        for rows in bagging.estimators_samples_
    ]
    expected = np.mean(single, axis=0)
    assert_allclose(getattr(bagging, method)(X_test), expected, atol=1e-6)
    assert bagging.score(X_test, y_test) > 0.8


def test_calibration_takes_a_fitted_estimator(digits, classifier):
    X, y, X_test, y_test = digits
    frozen = FrozenEstimator(classifier.fit(X[::2], y[::2]))
    model = CalibratedClassifierCV(frozen, cv=2).fit(X[1::2], y[1::2])
    assert log_loss(y_test, model.predict_proba(X_test)) < np.log(3) / 2


@pytest.mark.parametrize(
    ("Many", "single"),
    [(MultiOutputClassifier, CLASSIFIER), (MultiOutputRegressor, REGRESSOR)],
)
def test_multi_output_fits_one_estimator_per_output(digits, Many, single):
    X, y, X_test, _ = digits
    outputs = np.column_stack([y, y == 1])
    model = Many(single).fit(X, outputs)
    columns = [clone(single).fit(X, column).predict(X_test) for column in outputs.T]
    assert_array_equal(model.predict(X_test), np.transpose(columns))


# ------------------------------------------------------------------ evaluation


def test_cross_validation_equals_fits_by_hand(digits, model):
    X, y, _, _ = digits
    result = cross_validate(model, X, y, cv=HALVES, return_estimator=True)
    predicted = cross_val_predict(model, X, y, cv=HALVES)
    for (train, test), score, fitted in zip(
        HALVES.split(X), result["test_score"], result["estimator"], strict=True
    ):
        by_hand = clone(model).fit(X[train], y[train])
        assert score == by_hand.score(X[test], y[test]) > 0.7
        assert_array_equal(fitted.predict(X), by_hand.predict(X))
        assert_array_equal(predicted[test], by_hand.predict(X[test]))


def test_cross_validation_takes_several_scorers(digits, classifier):
    X, y, _, _ = digits
    least = {"accuracy": 0.7, "neg_log_loss": -np.log(3) / 2, "roc_auc_ovr": 0.9}
    result = cross_validate(classifier, X, y, cv=HALVES, scoring=list(least))
    for name, value in least.items():
        assert (result[f"test_{name}"] > value).all()


@pytest.mark.slow
def test_cross_validation_independent_of_processes(digits, classifier):
    X, y, _, _ = digits
    alone = cross_val_score(classifier, X, y, cv=2)
    shared = cross_val_score(classifier, X, y, cv=2, n_jobs=2)
    assert_allclose(shared, alone)


def test_curves_and_permutations_tell_good_fits_from_bad_ones(digits):
    X, y, _, _ = digits
    options = {"cv": HALVES, "error_score": "raise"}
    sizes, _, scores = learning_curve(
        *(CLASSIFIER, X, y),
        train_sizes=[6, 30],
        shuffle=True,
        random_state=0,
        **options,
    )
    assert_array_equal(sizes, [6, 30])
    assert scores[0].mean() < scores[1].mean()
    ridges = {"param_name": "alpha", "param_range": [1e-3, 1e3]}
    _, scores = validation_curve(REGRESSOR, X, y, **ridges, **options)
    assert (scores[0] > scores[1] + 0.5).all()
    score, permuted, _ = permutation_test_score(
        CLASSIFIER, X, y, cv=HALVES, n_permutations=3, random_state=0
    )
    assert score > 0.7 > 0.6 > permuted.max()


def test_permutation_importance_of_a_blank_pixel_is_zero(digits, classifier):
    X, y, _, _ = digits
    X = X.reshape(60, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(60, 16)
    X[:, 0] = 0
    model = classifier.set_params(image_shape=(4, 4)).fit(X, y)
    options = {"scoring": "neg_log_loss", "n_repeats": 2, "random_state": 0}
    importances = permutation_importance(model, X, y, **options).importances_mean
    assert importances[0] == 0
    assert importances.max() > 0.01


# -------------------------------------------------------------------- searches

LAYER = ConvFeatures(4, patch_size=3)
GRIDS = {
    "kernel": (CLASSIFIER, {"kernel__depth": [1, 2]}),
    "ridge": (REGRESSOR, {"alpha": [1e-2, 1e2]}),
    "features": (
        ConvRFMClassifier("linear", LAYER, **OPTIONS),
        {"features__patch_size": [2, 3]},
    ),
    "both": (
        ConvRFMClassifier(Gaussian(), LAYER, **OPTIONS),
        {"kernel__bandwidth": ["auto", 0.01], "features__n_filters": [8]},
    ),
    "pipeline": (
        MODELS["transformer"],
        {"patchagoptransformer__estimator__kernel__patch_size": [2, 3]},
    ),
}


@pytest.mark.parametrize("name", GRIDS)
def test_grid_search_refits_the_best_candidate(digits, name):
    X, y, X_test, y_test = digits
    model, grid = clone(GRIDS[name][0]), GRIDS[name][1]
    before = repr(model.get_params())
    search = GridSearchCV(model, grid, **SEARCH).fit(X, y)
    by_hand = [
        cross_val_score(clone(model).set_params(**parameters), X, y, cv=HALVES).mean()
        for parameters in search.cv_results_["params"]
    ]
    assert_allclose(search.cv_results_["mean_test_score"], by_hand)
    assert search.best_index_ == np.argmax(by_hand)
    best = clone(model).set_params(**search.best_params_).fit(X, y)
    assert_array_equal(search.predict(X_test), best.predict(X_test))
    assert search.score(X_test, y_test) > 0.8
    assert repr(model.get_params()) == before  # the candidates share no object
    fitted = search.best_estimator_
    for key, value in search.best_params_.items():
        part, _, short = key.partition("__")
        if part in ("kernel", "features"):
            part = fitted.kernel_ if part == "kernel" else fitted.features_[0]
            assert getattr(part, short) == value


def test_grid_search_accepts_images_of_four_dimensions(digits, classifier):
    X, y, X_test, y_test = digits
    search = GridSearchCV(classifier, {"kernel__depth": [1, 2]}, **SEARCH)
    search.fit(X.reshape(-1, 8, 8, 1), y)
    assert search.score(X_test.reshape(-1, 8, 8, 1), y_test) > 0.8


# ---------------------------------------------------------- unions and frames


def test_feature_union_stacks_both_outputs(digits):
    X, y, X_test, _ = digits
    other = clone(TRANSFORMER).set_params(output="saliency")
    union = FeatureUnion([("filters", clone(TRANSFORMER)), ("saliency", other)])
    features = union.fit(X, y).transform(X_test)
    parts = [clone(part).fit(X, y).transform(X_test) for part in (TRANSFORMER, other)]
    assert_array_equal(features, np.hstack(parts))
    names = union.get_feature_names_out()
    assert len(names) == features.shape[1]
    assert (names[0], names[-1]) == ("filters__filter0_0_0", "saliency__saliency_5_5")


def test_column_transformer_takes_columns_of_pixels(digits):
    pandas = pytest.importorskip("pandas")
    X, y, _, _ = digits
    frame = pandas.DataFrame(X, columns=PIXELS).assign(age=np.arange(60.0))
    columns = ColumnTransformer(
        [("image", clone(TRANSFORMER), PIXELS), ("rest", MinMaxScaler(), ["age"])]
    )
    features = columns.fit(frame, y).transform(frame)
    # To rounding: blocks of columns have another order in memory.
    by_hand = clone(TRANSFORMER).fit(X, y).transform(X)
    assert_allclose(features[:, :-1], by_hand, atol=1e-12)
    assert_allclose(features[:, -1], np.arange(60) / 59)
    names = columns.get_feature_names_out()
    assert (names[0], names[-1]) == ("image__filter0_0_0", "rest__age")


@pytest.mark.parametrize("output", ["filters", "eigen", "saliency", "image"])
def test_every_output_can_be_pickled_and_gives_named_frames(digits, output):
    pandas = pytest.importorskip("pandas")
    X, y, X_test, _ = digits
    transformer = clone(TRANSFORMER).set_params(output=output).fit(X, y)
    plain = transformer.transform(X_test)
    transformer = pickle.loads(pickle.dumps(transformer))
    with config_context(transform_output="pandas"):
        frame = transformer.transform(pandas.DataFrame(X_test, index=range(5, 65)))
        of_images = transformer.transform(X_test.reshape(-1, 8, 8))
    assert_array_equal(frame.columns, transformer.get_feature_names_out())
    assert_array_equal(frame.index, range(5, 65))
    assert_array_equal(frame, plain)
    assert_array_equal(of_images, plain)


def test_pipeline_keeps_column_names(digits, classifier):
    pandas = pytest.importorskip("pandas")
    X, y, X_test, _ = digits
    frame, test_frame = (pandas.DataFrame(rows, columns=PIXELS) for rows in (X, X_test))
    pipeline = make_pipeline(StandardScaler(), classifier)
    with config_context(transform_output="pandas"):
        pipeline.fit(frame, pandas.Series(y))
        probabilities = pipeline.predict_proba(test_frame)
    assert_array_equal(pipeline[-1].feature_names_in_, PIXELS)
    plain = make_pipeline(StandardScaler(), clone(classifier)).fit(X, y)
    assert_allclose(probabilities, plain.predict_proba(X_test), atol=1e-12)


# ------------------------------------------------------------ metadata routing


@pytest.fixture
def routing():
    with config_context(enable_metadata_routing=True):
        yield


@pytest.fixture
def asking(classifier, routing):
    """Return a classifier that asks for weights in fits and scores."""
    classifier.set_fit_request(sample_weight=True)
    return classifier.set_score_request(sample_weight=True)


def test_weights_are_routed_through_a_pipeline(digits, model, routing):
    X, y, X_test, _ = digits
    scaler = StandardScaler().set_fit_request(sample_weight=False)
    steps = getattr(model, "steps", [("model", model)])
    asking = [step.set_fit_request(sample_weight=True) for _, step in steps]
    pipeline = make_pipeline(scaler, *asking).fit(X, y, sample_weight=WEIGHTS)
    scaled = StandardScaler().fit(X)
    rows, X_test = scaled.transform(X), scaled.transform(X_test)
    for step in map(clone, asking):
        step.fit(rows, y, sample_weight=WEIGHTS)
        if hasattr(step, "transform"):
            rows, X_test = step.transform(rows), step.transform(X_test)
    assert_array_equal(pipeline.predict(digits[2]), step.predict(X_test))


def test_weights_are_routed_where_they_are_asked_for(digits, asking):
    X, y, _, _ = digits
    search = GridSearchCV(asking, {"kernel__depth": [1]}, **SEARCH)
    search.fit(X, y, sample_weight=WEIGHTS)
    assert len(search.best_estimator_.X_fit_) == 40
    plain = GridSearchCV(clone(CLASSIFIER), {"kernel__depth": [1]}, cv=2)
    with pytest.raises(ValueError, match="sample_weight"):
        plain.fit(X, y, sample_weight=WEIGHTS)


def test_weights_are_routed_through_cross_validation(digits, asking):
    X, y, _, _ = digits
    params = {"sample_weight": WEIGHTS}
    scores = cross_val_score(asking, X, y, cv=HALVES, params=params)
    for (train, test), score in zip(HALVES.split(X), scores, strict=True):
        by_hand = clone(asking).fit(X[train], y[train], WEIGHTS[train])
        assert score == by_hand.score(X[test], y[test], WEIGHTS[test])


# ---------------------------------------------------------- array API dispatch


@pytest.fixture
def dispatch():
    """Arrays are dispatched to their namespace, where this process can do it."""
    try:
        with config_context(array_api_dispatch=True):
            yield
    except ImportError as error:
        pytest.skip(f"scikit-learn {sklearn.__version__}: {error}")
    except RuntimeError:
        pytest.skip("needs SCIPY_ARRAY_API=1 before SciPy is imported")


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("SCIPY_ARRAY_API") == "1", reason="they run in this process"
)
def test_array_api_tests_pass_in_a_process_of_their_own(environment):
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, __file__, "-k", "dispatched"],
        env={**environment, "SCIPY_ARRAY_API": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def results(model, X, y, X_test, y_test):
    """All that a model says after a fit."""
    model = clone(model).fit(X, y)
    methods = ("decision_function", "predict_proba", "predict", "transform")
    said = [getattr(model, name)(X_test) for name in methods if hasattr(model, name)]
    return said + ([model.score(X_test, y_test)] if hasattr(model, "score") else [])


# Ours do not compute in the namespace of their input: tensors on the CPU are taken as
# the numpy arrays that they share their memory with, and numpy arrays are returned.
@pytest.mark.parametrize("estimator", [CLASSIFIER, REGRESSOR, TRANSFORMER], ids=str)
def test_dispatched_arrays_and_tensors_give_equal_results(digits, estimator, request):
    expected = results(estimator, *digits)
    request.getfixturevalue("dispatch")
    for data in (digits, [torch.tensor(array) for array in digits]):
        for ours, theirs in zip(results(estimator, *data), expected, strict=True):
            assert isinstance(ours, np.ndarray | float)
            assert_array_equal(ours, theirs)


def test_dispatched_tensors_go_through_folds_and_pipelines(digits, request):
    X, y, X_test, _ = digits
    pipeline = make_pipeline(MinMaxScaler(), CLASSIFIER)
    expected = clone(pipeline).fit(X, y).predict_proba(X_test)
    scores = cross_val_score(CLASSIFIER, X, y, cv=HALVES)
    request.getfixturevalue("dispatch")
    tensors = torch.tensor(X), torch.tensor(y)
    found = clone(pipeline).fit(*tensors).predict_proba(torch.tensor(X_test))
    assert_allclose(found, expected, atol=1e-12)
    assert_array_equal(cross_val_score(CLASSIFIER, *tensors, **SEARCH), scores)
