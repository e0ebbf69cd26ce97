"""partial_fit sums, refine goes on to the next round, warm_start goes on in fit."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.core.stream import RowSample

# Filters that no image has a part in, so that two fits of different images share them.
FIXED = {
    "filters": "gaussian",
    "initial_metric": "identity",
    "threshold": 0.0,
    "pool_power": 1.0,
}
CHUNKS = [slice(0, 170), slice(170, 230), slice(230, 500)]


def make_data(n=500):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 7, 7))
    y = (X[:, 2, 2] * X[:, 3, 3] > 0).astype(int) + (X[:, 5, 5] > 1)
    return X, y, rng.integers(0, 4, n).astype(float)


def make_classifier(**options):
    options = {"method": "features", "n_filters": 10, "n_rounds": 0} | options
    return ConvRFMClassifier(**options)


def assert_same_machine(one, other, X, tolerance=1e-8):
    for name in ("coef_", "intercept_", "alpha_", "filters_"):
        a, b = np.asarray(getattr(one, name)), np.asarray(getattr(other, name))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(a).max())
    scores = one.decision_function(X)
    scale = np.abs(scores).max()
    difference = np.abs(scores - other.decision_function(X)).max()
    assert difference < tolerance * scale


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]], ids=["in order", "otherwise"])
@pytest.mark.parametrize("weighting", ["none", "integer", "small"])
@pytest.mark.parametrize("class_weight", [None, {0: 1.0, 1: 5.0, 2: 0.5}])
def test_chunks_in_any_order_give_the_fit_of_all_images(order, weighting, class_weight):
    X, y, weights = make_data()
    weights = {"none": None, "integer": weights, "small": weights / 50}[weighting]
    whole = make_classifier(class_weight=class_weight, **FIXED)
    whole.fit(X, y, weights)
    summed = clone(whole)
    for index in order:
        chunk = CHUNKS[index]
        part = None if weights is None else weights[chunk]
        summed.partial_fit(X[chunk], y[chunk], classes=[0, 1, 2], sample_weight=part)
    assert_same_machine(whole, summed, X)
    # All rows are in the sample here, so that nothing is estimated.
    assert summed.temperature_ == pytest.approx(whole.temperature_, rel=1e-6)
    for name in ("gcv", "loo_loss", "loo_score"):
        np.testing.assert_allclose(
            summed.history_[name], whole.history_[name], rtol=1e-7
        )


@pytest.mark.parametrize("n_outputs", [0, 2])
def test_regression_by_chunks_is_that_of_all_images(n_outputs):
    X, _, weights = make_data()
    y = X[:, 1, 1] * X[:, 2, 2]
    y = np.column_stack([y, X[:, 3, 3]]) if n_outputs else y
    whole = ConvRFMRegressor(method="features", n_filters=12, n_rounds=0, **FIXED)
    summed = clone(whole)
    whole.fit(X, y, weights)
    for chunk in CHUNKS:
        summed.partial_fit(X[chunk], y[chunk], sample_weight=weights[chunk])
    np.testing.assert_allclose(summed.predict(X), whole.predict(X), atol=1e-9)
    assert summed.predict(X).shape == y.shape


def test_filters_of_the_first_chunk_stay_and_a_warm_fit_has_them_too():
    X, y, _ = make_data()
    summed = make_classifier().partial_fit(X[CHUNKS[0]], y[CHUNKS[0]], [0, 1, 2])
    warm = pickle.loads(pickle.dumps(summed)).set_params(warm_start=True)
    filters = summed.filters_
    for chunk in CHUNKS[1:]:
        summed.partial_fit(X[chunk], y[chunk])
    np.testing.assert_array_equal(summed.filters_, filters)
    assert_same_machine(warm.fit(X, y), summed, X)


def test_refine_and_a_second_pass_are_a_round_of_fit():
    X, y, _ = make_data()
    rounds = make_classifier(n_rounds=1, selection="last").fit(X, y)
    steps = make_classifier(n_rounds=0).fit(X, y)
    before = steps.decision_function(X)
    steps.refine()
    np.testing.assert_array_equal(steps.decision_function(X), before)
    np.testing.assert_allclose(
        steps.patch_transform_, rounds.patch_transform_, rtol=0, atol=1e-12
    )
    again = pickle.loads(pickle.dumps(steps)).set_params(warm_start=True).fit(X, y)
    for chunk in CHUNKS:
        steps.partial_fit(X[chunk], y[chunk])
    assert_same_machine(rounds, steps, X)
    assert_same_machine(rounds, again, X)


def test_after_fit_the_metric_stays_and_sums_begin_anew():
    X, y, _ = make_data()
    model = make_classifier(n_rounds=1, selection="last").fit(X[:200], y[:200])
    filters, transform = model.filters_, model.patch_transform_
    alone = pickle.loads(pickle.dumps(model)).set_params(warm_start=True, n_rounds=0)
    model.partial_fit(X[200:], y[200:])
    np.testing.assert_array_equal(model.filters_, filters)
    np.testing.assert_array_equal(model.patch_transform_, transform)
    assert_same_machine(alone.fit(X[200:], y[200:]), model, X)


def test_upper_layers_go_on_with_the_layers_below_them():
    X, y, _ = make_data()
    deep = make_classifier(feature_layers=2, selection="last").fit(X, y)
    assert deep.best_layer_ == 1
    summed = pickle.loads(pickle.dumps(deep))
    for chunk in CHUNKS:
        summed.partial_fit(X[chunk], y[chunk])
    assert_same_machine(deep, summed, X)
    assert len(summed.layers_) == 2


def test_a_fit_forgets_what_was_summed():
    X, y, _ = make_data()
    model = make_classifier().partial_fit(X[:300], y[:300]).fit(X[300:], y[300:])
    assert not hasattr(model, "stream_")
    fresh = make_classifier().fit(X[300:], y[300:])
    assert_same_machine(fresh, model, X)
    model.set_params(method="exact").fit(X[:60], y[:60])
    assert not hasattr(model, "coef_") and hasattr(model, "dual_coef_")


def test_probabilities_are_calibrated_on_a_sample():
    X, y, _ = make_data(3000)
    model = make_classifier(n_filters=20)
    for start in range(0, 3000, 600):
        model.partial_fit(X[start : start + 600], y[start : start + 600])
    whole = make_classifier(n_filters=20).fit(X, y)
    assert model.temperature_ == pytest.approx(whole.temperature_, rel=0.2)
    assert len(model.stream_.sample.keys) == 1000


def test_the_sample_does_not_depend_on_the_order():
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 256, (2500, 9)).astype(np.uint8)
    columns = rng.normal(size=(2500, 2)), np.ones(2500), np.ones(2500)
    parts = [
        RowSample.of(rows[part], *(column[part] for column in columns))
        for part in (slice(0, 1200), slice(1200, 1300), slice(1300, None))
    ]
    one = parts[0] + parts[1] + parts[2]
    other = parts[2] + (parts[0] + parts[1])
    whole = RowSample.of(rows, *columns)
    for sample in (other, whole):
        for name, column in vars(one).items():
            np.testing.assert_array_equal(getattr(sample, name), column)
    # Content decides, but not its size: the sample is like the whole.
    assert abs(one.rows.mean() - rows.mean()) < 3


def test_what_cannot_be_summed_is_refused():
    X, y, _ = make_data(60)
    assert not hasattr(make_classifier(method="exact"), "partial_fit")
    assert not hasattr(make_classifier(method="auto", kernel="laplace"), "partial_fit")
    with pytest.raises(ValueError, match="class_weight='balanced'"):
        make_classifier(class_weight="balanced").partial_fit(X, y)
    model = make_classifier().partial_fit(X, y, classes=[0, 1, 2])
    scores = model.decision_function(X)
    with pytest.raises(ValueError, match=r"classes \[7\]"):
        model.partial_fit(X, np.full(60, 7))
    with pytest.raises(ValueError, match="differ from those of the first call"):
        model.partial_fit(X, y, classes=[0, 1])
    with pytest.raises(ValueError, match="images of shape"):
        model.partial_fit(X.reshape(60, 49, 1), y)
    with pytest.raises(ValueError, match="features"):
        model.partial_fit(X[:, :5], y)
    np.testing.assert_array_equal(model.decision_function(X), scores)
    regressor = ConvRFMRegressor(n_filters=5).partial_fit(X, X[:, 0, :2])
    for targets in (X[:, 0, 0], X[:, 0, :3]):
        with pytest.raises(ValueError, match="outputs, but those before had 2"):
            regressor.partial_fit(X, targets)
    exact = make_classifier(method="exact").fit(X, y)
    with pytest.raises(ValueError, match="method='exact'"):
        exact.refine()
    # It has nothing that could be added to: sums begin.
    exact.set_params(method="features").partial_fit(X, y)
    assert_same_machine(make_classifier().fit(X, y), exact, X)
    with pytest.raises(NotFittedError):
        make_classifier().refine()


def test_a_warm_start_that_does_not_fit_is_refused():
    X, y, _ = make_data(60)
    model = make_classifier(warm_start=True).fit(X, y)
    with pytest.raises(ValueError, match="warm_start"):
        model.set_params(feature_layers=2).fit(X, y)
    with pytest.raises(ValueError, match="warm_start"):
        model.set_params(feature_layers=1, method="exact").fit(X, y)


def test_a_warm_start_of_the_exact_kernel_goes_on_with_its_metric():
    X, y, _ = make_data(120)
    options = {"method": "exact", "depth": 1, "selection": "last"}
    two = ConvRFMClassifier(n_rounds=2, **options).fit(X, y)
    one = ConvRFMClassifier(n_rounds=1, warm_start=True, **options).fit(X, y).fit(X, y)
    assert one.best_round_ == 1
    three = ConvRFMClassifier(n_rounds=3, **options).fit(X, y)
    # The second fit begins with the metric of round 1 and learns one more.
    scores = one.decision_function(X)
    for other, same in ((two, True), (three, False)):
        assert np.allclose(scores, other.decision_function(X), atol=1e-9) == same
