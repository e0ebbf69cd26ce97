"""partial_fit in any order, refine, warm starts, and the sample of the rows."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Linear
from skconvrfm.learning.stream import RowSample

# Filters that no image has a part in, so that two fits of different images share them.
FIXED = ConvFeatures(
    10, patch_size=3, filters="gaussian", metric="identity", threshold=0, pool="mean"
)
LOWER = ConvFeatures(
    6,
    patch_size=3,
    filters="gaussian",
    metric="identity",
    threshold=0,
    pool="mean",
    pool_grid=None,
    pool_size=2,
)
TOP = clone(FIXED).set_params(patch_size=2, pool_grid=2)
LAYERS = {"one layer": FIXED, "two layers": [LOWER, TOP], "no layer": None}
CHUNKS = [slice(0, 170), slice(170, 230), slice(230, 500)]


def make_data(n=500):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 7, 7))
    y = (X[:, 2, 2] * X[:, 3, 3] > 0).astype(int) + (X[:, 5, 5] > 1)
    return X, y, rng.integers(0, 4, n).astype(float)


def make_classifier(features=None, **options):
    features = ConvFeatures(10, patch_size=3) if features is None else features
    return ConvRFMClassifier("linear", features, **{"n_rounds": 0, **options})


def assert_same_machine(one, other, X, tolerance=1e-8):
    pairs = [(getattr(one, n), getattr(other, n)) for n in ("coef_", "intercept_")]
    for ours, theirs in zip(one.features_, other.features_, strict=True):
        pairs.append((ours.filters_, theirs.filters_))
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(a).max())
    assert one.alpha_ == other.alpha_
    scores = one.decision_function(X)
    scale = np.abs(scores).max()
    difference = np.abs(scores - other.decision_function(X)).max()
    assert difference < tolerance * scale


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]], ids=["in order", "otherwise"])
@pytest.mark.parametrize("weighting", ["none", "integer", "small"])
@pytest.mark.parametrize("class_weight", [None, {0: 1.0, 1: 5.0, 2: 0.5}])
@pytest.mark.parametrize("features", LAYERS)
def test_chunks_in_any_order_equal_one_fit(order, weighting, class_weight, features):
    X, y, weights = make_data()
    weights = {"none": None, "integer": weights, "small": weights / 50}[weighting]
    whole = ConvRFMClassifier(
        "linear", LAYERS[features], n_rounds=0, class_weight=class_weight
    )
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
def test_regression_by_chunks_equals_one_fit(n_outputs):
    X, _, weights = make_data()
    y = X[:, 1, 1] * X[:, 2, 2]
    y = np.column_stack([y, X[:, 3, 3]]) if n_outputs else y
    whole = ConvRFMRegressor("linear", FIXED, n_rounds=0)
    summed = clone(whole)
    whole.fit(X, y, weights)
    for chunk in CHUNKS:
        summed.partial_fit(X[chunk], y[chunk], sample_weight=weights[chunk])
    np.testing.assert_allclose(summed.predict(X), whole.predict(X), atol=1e-9)
    assert summed.predict(X).shape == y.shape


def test_filters_of_the_first_chunk_stay_also_in_a_warm_fit():
    X, y, _ = make_data()
    summed = make_classifier().partial_fit(X[CHUNKS[0]], y[CHUNKS[0]], [0, 1, 2])
    warm = pickle.loads(pickle.dumps(summed)).set_params(warm_start=True)
    filters = summed.features_[0].filters_
    for chunk in CHUNKS[1:]:
        summed.partial_fit(X[chunk], y[chunk])
    np.testing.assert_array_equal(summed.features_[0].filters_, filters)
    assert_same_machine(warm.fit(X, y), summed, X)


@pytest.mark.parametrize("features", ["one layer", "two layers"])
def test_refine_and_a_second_pass_equal_a_round_of_fit(features):
    X, y, _ = make_data()
    rounds = make_classifier(LAYERS[features], n_rounds=1, selection="last").fit(X, y)
    steps = make_classifier(LAYERS[features], n_rounds=0).fit(X, y)
    before = steps.decision_function(X)
    steps.refine()
    np.testing.assert_array_equal(steps.decision_function(X), before)
    for ours, theirs in zip(steps.features_, rounds.features_, strict=True):
        np.testing.assert_allclose(
            ours.patch_transform_, theirs.patch_transform_, rtol=0, atol=1e-9
        )
    again = pickle.loads(pickle.dumps(steps)).set_params(warm_start=True).fit(X, y)
    for chunk in CHUNKS:
        steps.partial_fit(X[chunk], y[chunk])
    assert_same_machine(rounds, steps, X)
    assert_same_machine(rounds, again, X)


def test_partial_fit_after_fit_keeps_the_metric_and_begins_new_sums():
    X, y, _ = make_data()
    model = make_classifier(n_rounds=1, selection="last").fit(X[:200], y[:200])
    filters, transform = model.features_[0].filters_, model.patch_transform_
    alone = pickle.loads(pickle.dumps(model)).set_params(warm_start=True, n_rounds=0)
    model.partial_fit(X[200:], y[200:])
    np.testing.assert_array_equal(model.features_[0].filters_, filters)
    np.testing.assert_array_equal(model.patch_transform_, transform)
    assert_same_machine(alone.fit(X[200:], y[200:]), model, X)


def test_partial_fit_goes_on_with_all_learned_layers():
    X, y, _ = make_data()
    model = make_classifier(LAYERS["two layers"], n_rounds=1, selection="last")
    model.fit(X, y)
    summed = pickle.loads(pickle.dumps(model))
    for chunk in CHUNKS:
        summed.partial_fit(X[chunk], y[chunk])
    assert_same_machine(model, summed, X)


def test_fit_forgets_former_sums():
    X, y, _ = make_data()
    model = make_classifier().partial_fit(X[:300], y[:300]).fit(X[300:], y[300:])
    assert not hasattr(model, "stream_")
    fresh = make_classifier().fit(X[300:], y[300:])
    assert_same_machine(fresh, model, X)
    model.set_params(kernel="ntk", features=None).fit(X[:60], y[:60])
    assert not hasattr(model, "coef_") and hasattr(model, "dual_coef_")


def test_probabilities_are_calibrated_on_a_sample():
    X, y, _ = make_data(3000)
    model = make_classifier(ConvFeatures(20, patch_size=3))
    for start in range(0, 3000, 600):
        model.partial_fit(X[start : start + 600], y[start : start + 600])
    whole = make_classifier(ConvFeatures(20, patch_size=3)).fit(X, y)
    assert model.temperature_ == pytest.approx(whole.temperature_, rel=0.2)
    assert len(model.stream_.sample.keys) == 1000


def test_copies_with_other_labels_calibrate_a_stream_as_a_fit():
    X, y, _ = make_data(60)
    rows = np.r_[np.arange(60), 0, 1, 1, 2]
    labels = np.r_[y, (y[[0, 1, 1, 2]] + 1) % 3]
    model = make_classifier().partial_fit(X[rows], labels)
    fitted = make_classifier(n_rounds=0).fit(X[rows], labels)
    assert model.temperature_ == pytest.approx(fitted.temperature_, rel=1e-6)
    for key in ("alpha", "gcv", "loo_score"):
        np.testing.assert_allclose(model.history_[key], fitted.history_[key], rtol=1e-6)


def test_row_sample_independent_of_the_order():
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 256, (2500, 9)).astype(np.uint8)
    keys = rng.permutation(2500).astype(np.uint64)
    targets = rng.normal(size=(2500, 2))
    columns = keys, rows, targets, np.ones(2500), np.zeros((2500, 2))
    parts = [
        RowSample.of(*(column[part] for column in columns))
        for part in (slice(0, 1200), slice(1200, 1300), slice(1300, None))
    ]
    one = parts[0] + parts[1] + parts[2]
    other = parts[2] + (parts[0] + parts[1])
    whole = RowSample.of(*columns)
    for sample in (other, whole):
        for name, column in vars(one).items():
            np.testing.assert_array_equal(getattr(sample, name), column)
    # Content decides, but not its size: the sample is like the whole.
    assert abs(one.rows.mean() - rows.mean()) < 3


def test_chunks_that_do_not_fit_the_sums_are_refused():
    X, y, _ = make_data(60)
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
    regressor = ConvRFMRegressor("linear", FIXED).partial_fit(X, X[:, 0, :2])
    for targets in (X[:, 0, 0], X[:, 0, :3]):
        with pytest.raises(ValueError, match="outputs, but those before had 2"):
            regressor.partial_fit(X, targets)


@pytest.mark.parametrize("kernel", ["ntk", "gaussian", ConvNTK(depth=1)], ids=str)
def test_partial_fit_and_refine_need_a_linear_kernel(kernel):
    X, y, _ = make_data(60)
    model = ConvRFMClassifier(kernel, n_rounds=0)
    assert not hasattr(model, "partial_fit")
    with pytest.raises(AttributeError) as caught:
        model.partial_fit(X, y)
    assert "kernel='linear'" in str(caught.value.__cause__ or caught.value)
    model.fit(X, y)
    with pytest.raises(ValueError, match="refine goes on with sums over rows"):
        model.refine()
    # It has nothing that could be added to: sums begin.
    features = ConvFeatures(10, patch_size=3)
    model.set_params(kernel=Linear(), features=features).partial_fit(X, y)
    assert_same_machine(make_classifier().fit(X, y), model, X)
    with pytest.raises(NotFittedError):
        make_classifier().refine()


def test_warm_start_of_another_composition_is_refused():
    X, y, _ = make_data(60)
    model = make_classifier(warm_start=True).fit(X, y)
    for options in (
        {"features": LAYERS["two layers"]},
        {"features__n_filters": 5},
        {"kernel": "gaussian"},
        {"kernel": "ntk", "features": None},
        {"kernel": ConvNTK(depth=1), "features": LOWER},
    ):
        with pytest.raises(ValueError, match="warm_start"):
            pickle.loads(pickle.dumps(model)).set_params(**options).fit(X, y)
    with pytest.raises(ValueError, match="warm_start.*images of shape"):
        model.fit(X[:, 1:], y)
    deep = {"kernel": ConvNTK(depth=1), "features": LOWER, "warm_start": True}
    model = ConvRFMClassifier(**deep, n_rounds=0, selection="last").fit(X, y)
    with pytest.raises(ValueError, match="warm_start=True .* Deep ConvRFM with 1"):
        model.fit(X, y)


@pytest.mark.parametrize(
    ("kernel", "features"),
    [
        (ConvNTK(depth=1), None),
        ("patch_laplace", None),
        ("linear", FIXED),
        ("gaussian", FIXED),
        ("gaussian", LAYERS["two layers"]),
    ],
    ids=["ntk", "patch laplace", "linear", "gaussian", "two layers"],
)
def test_warm_start_goes_on_with_the_learned_metrics(kernel, features):
    X, y, _ = make_data(60)

    def model(n_rounds, **options):
        return ConvRFMClassifier(
            kernel, features, n_rounds=n_rounds, selection="last", **options
        )

    two, three = model(2).fit(X, y), model(3).fit(X, y)
    one = model(1, warm_start=True).fit(X, y).fit(X, y)
    assert one.best_round_ == 1
    # The second fit begins with the metric of round 1 and learns one more.
    scores = one.decision_function(X)
    assert np.allclose(scores, two.decision_function(X), atol=1e-8)
    assert not np.allclose(scores, three.decision_function(X), atol=1e-8)
