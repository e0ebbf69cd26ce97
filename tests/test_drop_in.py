"""The estimators in scikit-learn's tools: searches, ensembles, pipelines, routing."""

import os
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
from sklearn.dummy import DummyClassifier
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
MODELS = {
    "classifier": CLASSIFIER,
    "regressor": REGRESSOR,
    "transformer": make_pipeline(TRANSFORMER, LogisticRegression(max_iter=1000)),
}
# Every class in both halves, for regressions too.
HALVES = KFold(2, shuffle=True, random_state=0)


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


# ------------------------------------------------------------------ evaluation


def test_cross_validate_equals_fits_by_hand(digits, model):
    X, y, _, _ = digits
    result = cross_validate(model, X, y, cv=HALVES, return_estimator=True)
    for (train, test), score, fitted in zip(
        HALVES.split(X), result["test_score"], result["estimator"], strict=True
    ):
        by_hand = clone(model).fit(X[train], y[train])
        assert score == by_hand.score(X[test], y[test]) > 0.7
        assert_array_equal(fitted.predict(X), by_hand.predict(X))


def test_cross_validate_takes_several_scorers(digits, classifier):
    X, y, _, _ = digits
    scoring = ["accuracy", "neg_log_loss", "roc_auc_ovr"]
    result = cross_validate(classifier, X, y, cv=HALVES, scoring=scoring)
    assert (result["test_accuracy"] > 0.7).all()
    assert (result["test_neg_log_loss"] > -np.log(3)).all()
    assert (result["test_roc_auc_ovr"] > 0.9).all()


@pytest.mark.slow
def test_cross_validation_independent_of_processes(digits, classifier):
    X, y, _, _ = digits
    alone = cross_val_score(classifier, X, y, cv=2)
    shared = cross_val_score(classifier, X, y, cv=2, n_jobs=2)
    assert_allclose(shared, alone)


def test_cross_val_predict_equals_fits_by_hand(digits, model):
    X, y, _, _ = digits
    predicted = cross_val_predict(model, X, y, cv=HALVES)
    for train, test in HALVES.split(X):
        by_hand = clone(model).fit(X[train], y[train])
        assert_array_equal(predicted[test], by_hand.predict(X[test]))


def test_cross_val_predict_gives_probabilities_better_than_chance(digits, classifier):
    X, y, _, _ = digits
    probabilities = cross_val_predict(
        classifier, X, y, cv=HALVES, method="predict_proba"
    )
    assert_allclose(probabilities.sum(axis=1), 1)
    assert log_loss(y, probabilities) < np.log(3) / 2


def test_learning_curve_rises_to_the_cross_validation(digits, model):
    X, y, _, _ = digits
    sizes, _, scores = learning_curve(
        model,
        *(X, y),
        cv=HALVES,
        train_sizes=[6, 30],
        shuffle=True,
        random_state=0,
        error_score="raise",
    )
    assert_array_equal(sizes, [6, 30])
    assert scores[0].mean() < scores[1].mean()
    assert_allclose(scores[1], cross_val_score(model, X, y, cv=HALVES), atol=1e-9)


def test_validation_curve_falls_for_a_huge_ridge(digits):
    X, y, _, _ = digits
    ridges = [1e-3, 1e3]
    _, scores = validation_curve(
        REGRESSOR, X, y, param_name="alpha", param_range=ridges, cv=HALVES
    )
    for alpha, score in zip(ridges, scores, strict=True):
        by_hand = clone(REGRESSOR).set_params(alpha=alpha)
        assert_array_equal(score, cross_val_score(by_hand, X, y, cv=HALVES))
    assert (scores[0] > scores[1] + 0.5).all()


def test_permuted_classes_cannot_be_learned(digits, model):
    X, y, _, _ = digits
    score, permuted, p_value = permutation_test_score(
        model, X, y, cv=HALVES, n_permutations=5, random_state=0
    )
    assert score > 0.7 > 0.6 > permuted.max()
    assert p_value == 1 / 6


def test_permutation_importance_of_a_blank_pixel_is_zero(digits, model):
    X, y, _, _ = digits
    X = X.reshape(60, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(60, 16)
    names = {name for name in model.get_params() if name.endswith("image_shape")}
    model.set_params(**dict.fromkeys(names, (4, 4)))
    X[:, 0] = 0
    probable = hasattr(model, "predict_proba")
    importances = permutation_importance(
        model.fit(X, y),
        *(X, y),
        scoring="neg_log_loss" if probable else "r2",
        n_repeats=2,
        random_state=0,
    ).importances_mean
    assert importances[0] == 0
    assert importances.max() > 0.01


# -------------------------------------------------------------------- searches


GRIDS = {
    "classifier": {"kernel__depth": [1, 2], "agop_power": [0.5, 1.0]},
    "regressor": {"alpha": [1e-2, 1e2]},
    "transformer": {"patchagoptransformer__estimator__kernel__patch_size": [2, 3]},
}


@pytest.mark.parametrize("name", MODELS)
def test_grid_search_refits_the_best_candidate(digits, name):
    X, y, X_test, y_test = digits
    model = clone(MODELS[name])
    search = GridSearchCV(model, GRIDS[name], cv=HALVES, error_score="raise")
    search.fit(X, y)
    by_hand = [
        cross_val_score(clone(model).set_params(**parameters), X, y, cv=HALVES).mean()
        for parameters in search.cv_results_["params"]
    ]
    assert_allclose(search.cv_results_["mean_test_score"], by_hand)
    assert search.best_index_ == np.argmax(by_hand)
    best = clone(model).set_params(**search.best_params_).fit(X, y)
    assert_array_equal(search.predict(X_test), best.predict(X_test))
    assert search.score(X_test, y_test) > 0.8


@pytest.mark.parametrize(
    ("kernel", "features", "grid"),
    [
        (
            ConvNTK(depth=1),
            None,
            {"kernel__depth": [1, 2], "kernel__patch_size": [2, 3]},
        ),
        (
            "linear",
            ConvFeatures(4, patch_size=3),
            {"features__patch_size": [2, 3], "features__n_filters": [2, 8]},
        ),
        (
            Gaussian(),
            ConvFeatures(4, patch_size=3),
            {"kernel__bandwidth": ["auto", 0.01], "features__n_filters": [8]},
        ),
    ],
    ids=["kernel", "features", "both"],
)
def test_grid_search_reaches_kernel_and_feature_parameters(
    digits, kernel, features, grid
):
    X, y, X_test, y_test = digits
    model = ConvRFMClassifier(kernel, features, **OPTIONS)
    search = GridSearchCV(model, grid, cv=HALVES, error_score="raise").fit(X, y)
    results = search.cv_results_
    for parameters, score in zip(
        results["params"], results["mean_test_score"], strict=True
    ):
        by_hand = clone(model).set_params(**parameters)
        assert score == cross_val_score(by_hand, X, y, cv=HALVES).mean()
    for name, value in search.best_params_.items():
        part, _, short = name.partition("__")
        fitted = search.best_estimator_
        part = fitted.kernel_ if part == "kernel" else fitted.features_[0]
        assert getattr(part, short) == value
    # The candidates share no object.
    assert getattr(model.kernel, "depth", 1) == 1
    assert features is None or features.n_filters == 4
    assert search.score(X_test, y_test) > 0.8


def test_grid_search_accepts_images_of_four_dimensions(digits, classifier):
    X, y, X_test, y_test = digits
    images = X.reshape(-1, 8, 8, 1)
    search = GridSearchCV(
        classifier, {"kernel__depth": [1, 2]}, cv=2, error_score="raise"
    )
    assert search.fit(images, y).score(X_test.reshape(-1, 8, 8, 1), y_test) > 0.8


def test_randomised_search_draws_from_the_grid(digits, classifier):
    X, y, X_test, y_test = digits
    grid = {"kernel__patch_size": [2, 3, 4], "kernel__bias": [0.0, 0.3]}
    search = RandomizedSearchCV(
        classifier, grid, n_iter=3, cv=2, random_state=0, error_score="raise"
    ).fit(X, y)
    assert len(search.cv_results_["params"]) == 3
    assert all(search.best_params_[name] in grid[name] for name in grid)
    assert search.score(X_test, y_test) > 0.8


def test_halving_search_keeps_the_better_ridge(digits):
    X, y, X_test, y_test = digits
    search = HalvingGridSearchCV(
        REGRESSOR,
        {"alpha": [1e-2, 1e4, 1e5]},
        cv=HALVES,
        min_resources=20,
        factor=3,
        random_state=0,
        error_score="raise",
    ).fit(X, y)
    assert (search.n_candidates_, search.n_resources_) == ([3, 1], [20, 60])
    assert search.best_params_ == {"alpha": 1e-2}
    assert search.score(X_test, y_test) > 0.8


# ------------------------------------------------------------------- ensembles


def test_soft_votes_are_mean_probabilities(digits, classifier):
    X, y, X_test, y_test = digits
    other = LogisticRegression()
    vote = VotingClassifier([("ours", classifier), ("other", other)], voting="soft")
    vote.fit(X, y)
    mean = sum(m.fit(X, y).predict_proba(X_test) for m in (classifier, other)) / 2
    assert_allclose(vote.predict_proba(X_test), mean, atol=1e-12)
    assert vote.score(X_test, y_test) > 0.8


def test_regressor_votes_are_mean_predictions(digits):
    X, y, X_test, _ = digits
    members = [clone(REGRESSOR), Ridge()]
    vote = VotingRegressor([("ours", members[0]), ("other", members[1])]).fit(X, y)
    mean = sum(member.fit(X, y).predict(X_test) for member in members) / 2
    assert_allclose(vote.predict(X_test), mean, atol=1e-12)


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_stacking_learns_from_left_out_predictions(digits, kind):
    X, y, X_test, y_test = digits
    Stack, final, method = {
        "classifier": (StackingClassifier, LogisticRegression(), "predict_proba"),
        "regressor": (StackingRegressor, Ridge(), "predict"),
    }[kind]
    model = clone(MODELS[kind])
    stack = Stack([("ours", model)], final_estimator=final, cv=HALVES).fit(X, y)
    left_out = cross_val_predict(model, X, y, cv=HALVES, method=method)
    by_hand = clone(final).fit(left_out.reshape(60, -1), y)
    assert_allclose(stack.final_estimator_.coef_, by_hand.coef_, atol=1e-6)
    assert stack.score(X_test, y_test) > 0.8


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_bagging_by_weights_equals_bagging_of_rows(digits, kind):
    X, y, X_test, y_test = digits
    Bagging, method = {
        "classifier": (BaggingClassifier, "predict_proba"),
        "regressor": (BaggingRegressor, "predict"),
    }[kind]
    model = clone(MODELS[kind])
    bagging = Bagging(model, n_estimators=3, random_state=0).fit(X, y)
    mean = np.mean(
        [
            getattr(clone(model).fit(X[rows], y[rows]), method)(X_test)
            for rows in bagging.estimators_samples_
        ],
        axis=0,
    )
    assert_allclose(getattr(bagging, method)(X_test), mean, atol=1e-6)
    assert bagging.score(X_test, y_test) > 0.8


def test_one_vs_rest_fits_one_estimator_per_class(digits, classifier):
    X, y, X_test, y_test = digits
    model = OneVsRestClassifier(classifier).fit(X, y)
    columns = [
        clone(classifier).fit(X, y == label).decision_function(X_test)
        for label in model.classes_
    ]
    assert_array_equal(model.decision_function(X_test), np.transpose(columns))
    assert model.score(X_test, y_test) > 0.8


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
@pytest.mark.parametrize("fitted", [False, True])
def test_calibrated_probabilities_are_better_than_chance(
    digits, classifier, method, fitted
):
    X, y, X_test, y_test = digits
    if fitted:
        classifier = FrozenEstimator(classifier.fit(X[::2], y[::2]))
        X, y = X[1::2], y[1::2]
    model = CalibratedClassifierCV(classifier, method=method, cv=2).fit(X, y)
    probabilities = model.predict_proba(X_test)
    assert_allclose(probabilities.sum(axis=1), 1)
    assert log_loss(y_test, probabilities) < np.log(3) / 2
    assert model.score(X_test, y_test) > 0.8


def test_multi_output_fits_one_estimator_per_output(digits, classifier):
    X, y, X_test, _ = digits
    outputs = np.column_stack([y, y == 1])
    for single, Many in (
        (classifier, MultiOutputClassifier),
        (REGRESSOR, MultiOutputRegressor),
    ):
        model = Many(single).fit(X, outputs)
        columns = [clone(single).fit(X, column).predict(X_test) for column in outputs.T]
        assert_array_equal(model.predict(X_test), np.transpose(columns))


def test_transformed_targets_are_transformed_back(digits):
    X, y, X_test, y_test = digits
    model = TransformedTargetRegressor(
        clone(REGRESSOR), func=np.log1p, inverse_func=np.expm1
    ).fit(X, y)
    by_hand = clone(REGRESSOR).fit(X, np.log1p(y)).predict(X_test)
    assert_allclose(model.predict(X_test), np.expm1(by_hand))
    assert model.score(X_test, y_test) > 0.8


def test_self_training_labels_rows_correctly(digits, classifier):
    X, y, X_test, y_test = digits
    known = np.arange(60) < 15
    model = SelfTrainingClassifier(classifier, threshold=0.8)
    model.fit(X, np.where(known, y, -1))
    assert_array_equal(model.transduction_[known], y[known])
    labelled = (model.labeled_iter_ > 0) & ~known
    assert labelled.sum() > 20
    assert (model.transduction_[labelled] == y[labelled]).mean() > 0.9
    assert model.score(X_test, y_test) > 0.8


# ---------------------------------------------------- pipelines, unions, frames


def test_pipeline_with_a_scaler_equals_steps_by_hand(digits, classifier):
    X, y, X_test, y_test = digits
    pipeline = make_pipeline(StandardScaler(), classifier).fit(X, y)
    assert pipeline.score(X_test, y_test) > 0.8
    by_hand = StandardScaler().fit(X)
    model = clone(classifier).fit(by_hand.transform(X), y)
    assert_array_equal(
        pipeline.predict_proba(X_test), model.predict_proba(by_hand.transform(X_test))
    )


def test_feature_union_stacks_both_outputs(digits):
    X, y, X_test, _ = digits
    other = clone(TRANSFORMER).set_params(output="saliency")
    union = FeatureUnion([("filters", clone(TRANSFORMER)), ("saliency", other)])
    features = union.fit(X, y).transform(X_test)
    parts = [clone(part).fit(X, y).transform(X_test) for part in (TRANSFORMER, other)]
    assert_array_equal(features, np.hstack(parts))
    names = union.get_feature_names_out()
    assert len(names) == features.shape[1]
    assert names[0] == "filters__filter0_0_0"
    assert names[-1] == "saliency__saliency_5_5"


def test_column_transformer_takes_columns_of_pixels(digits):
    pandas = pytest.importorskip("pandas")
    X, y, _, _ = digits
    pixels = [f"pixel{i}" for i in range(64)]
    frame = pandas.DataFrame(X, columns=pixels).assign(age=np.arange(60.0))
    columns = ColumnTransformer(
        [("image", clone(TRANSFORMER), pixels), ("rest", MinMaxScaler(), ["age"])]
    )
    features = columns.fit(frame, y).transform(frame)
    # To rounding: blocks of columns have another order in memory.
    by_hand = clone(TRANSFORMER).fit(X, y).transform(X)
    assert_allclose(features[:, :-1], by_hand, atol=1e-12)
    assert_allclose(features[:, -1], np.arange(60) / 59)
    names = columns.get_feature_names_out()
    assert (names[0], names[-1]) == ("image__filter0_0_0", "rest__age")


@pytest.mark.parametrize("output", ["filters", "eigen", "saliency", "image"])
def test_transform_output_pandas_gives_named_frames(digits, output):
    pandas = pytest.importorskip("pandas")
    X, y, X_test, _ = digits
    transformer = clone(TRANSFORMER).set_params(output=output).fit(X, y)
    plain = transformer.transform(X_test)
    with config_context(transform_output="pandas"):
        frame = transformer.transform(pandas.DataFrame(X_test, index=range(5, 65)))
    assert_array_equal(frame.columns, transformer.get_feature_names_out())
    assert_array_equal(frame.index, range(5, 65))
    assert_array_equal(frame, plain)


def test_pipeline_keeps_column_names(digits, classifier):
    pandas = pytest.importorskip("pandas")
    X, y, X_test, _ = digits
    names = [f"pixel{i}" for i in range(64)]
    frame, test_frame = (pandas.DataFrame(rows, columns=names) for rows in (X, X_test))
    pipeline = make_pipeline(StandardScaler(), classifier)
    with config_context(transform_output="pandas"):
        pipeline.fit(frame, pandas.Series(y))
        probabilities = pipeline.predict_proba(test_frame)
    assert_array_equal(pipeline[-1].feature_names_in_, names)
    plain = make_pipeline(StandardScaler(), clone(classifier)).fit(X, y)
    assert_allclose(probabilities, plain.predict_proba(X_test), atol=1e-12)


# ------------------------------------------------------------ metadata routing


@pytest.fixture
def routing():
    with config_context(enable_metadata_routing=True):
        yield


WEIGHTS = np.arange(60) % 3


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


def test_weights_without_a_request_are_refused(digits, classifier, routing):
    X, y, _, _ = digits
    search = GridSearchCV(classifier, {"kernel__depth": [1]}, cv=2)
    with pytest.raises(ValueError, match="sample_weight"):
        search.fit(X, y, sample_weight=np.ones(60))


def test_weights_are_routed_through_a_grid_search(digits, classifier, routing):
    X, y, _, _ = digits
    classifier.set_fit_request(sample_weight=True)
    classifier.set_score_request(sample_weight=True)
    search = GridSearchCV(
        classifier, {"kernel__depth": [1, 2]}, cv=2, error_score="raise"
    )
    search.fit(X, y, sample_weight=WEIGHTS)
    assert len(search.best_estimator_.X_fit_) == 40


def test_weights_are_routed_through_cross_validation(digits, classifier, routing):
    X, y, _, _ = digits
    classifier.set_fit_request(sample_weight=True)
    classifier.set_score_request(sample_weight=True)
    scores = cross_val_score(
        classifier, X, y, cv=HALVES, params={"sample_weight": WEIGHTS}
    )
    for (train, test), score in zip(HALVES.split(X), scores, strict=True):
        by_hand = clone(classifier).fit(X[train], y[train], WEIGHTS[train])
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
    scored = hasattr(model, "score")
    return said + ([model.score(X_test, y_test)] if scored else [])


# Ours do not compute in the namespace of their input: tensors on the CPU are taken as
# the numpy arrays that they share their memory with, and numpy arrays are returned.
@pytest.mark.parametrize("estimator", [CLASSIFIER, REGRESSOR, TRANSFORMER], ids=str)
def test_dispatched_arrays_and_tensors_give_equal_results(digits, estimator, request):
    expected = results(estimator, *digits)
    request.getfixturevalue("dispatch")
    tensors = [torch.tensor(array) for array in digits]
    for data in (digits, tensors):
        for ours, theirs in zip(results(estimator, *data), expected, strict=True):
            assert isinstance(ours, np.ndarray | float)
            assert_array_equal(ours, theirs)


def test_dispatched_tensors_are_cut_into_folds(digits, classifier, request):
    X, y, _, _ = digits
    expected = cross_val_score(classifier, X, y, cv=HALVES)
    request.getfixturevalue("dispatch")
    tensors = torch.tensor(X), torch.tensor(y)
    scores = cross_val_score(classifier, *tensors, cv=HALVES, error_score="raise")
    assert_array_equal(scores, expected)


def test_dispatched_tensors_go_through_a_pipeline(digits, classifier, request):
    X, y, X_test, y_test = digits
    pipeline = make_pipeline(MinMaxScaler(), classifier)
    expected = clone(pipeline).fit(X, y).predict_proba(X_test)
    request.getfixturevalue("dispatch")
    pipeline.fit(torch.tensor(X), torch.tensor(y))
    assert_allclose(pipeline.predict_proba(torch.tensor(X_test)), expected, atol=1e-12)


def test_dispatched_score_beats_a_dummy(digits, request):
    X, y, X_test, y_test = digits
    request.getfixturevalue("dispatch")
    ours = clone(CLASSIFIER).fit(X, y).score(X_test, y_test)
    assert ours > DummyClassifier().fit(X, y).score(X_test, y_test) + 0.4
