"""Rows that are related: whole groups are left out, held out, and asked for."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    LeaveOneGroupOut,
    cross_val_score,
)

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian, Laplace, PatchLaplace

LAYER = ConvFeatures(6, patch_size=3)
MACHINES = {
    "ntk": (ConvNTK(depth=1), None),
    "gaussian": (Gaussian(), LAYER),
    "linear of few features": ("linear", ConvFeatures(2, patch_size=3, pool_grid=2)),
    "linear of many features": ("linear", LAYER),
}
GROUPS = np.array(list("aabbccddeeffgghhiijj"))
N = len(GROUPS)


@pytest.fixture
def data(rng):
    """Return images of two rows per group, and targets."""
    X = rng.normal(size=(N, 6, 6))
    return X, (X[:, 2, 2] * X[:, 3, 3])


def fit(X, y, groups=GROUPS, machine="ntk", **options):
    options = {"n_rounds": 0, "random_state": 0} | options
    return ConvRFMRegressor(*MACHINES[machine], **options).fit(X, y, groups=groups)


@pytest.mark.parametrize("selection", ["gcv", "loo", "last"])
@pytest.mark.parametrize("machine", MACHINES)
def test_loss_and_ridge_are_those_of_left_out_groups(data, machine, selection):
    X, y = data
    model = fit(X, y, machine=machine, selection=selection)
    errors = y - model.loo_prediction_
    assert model.history_["loo_loss"] == pytest.approx(np.mean(errors**2))
    losses = [
        fit(X, y, machine=machine, alpha=alpha).history_["loo_loss"][0]
        for alpha in model.alpha
    ]
    assert model.history_["loo_loss"][0] <= min(losses) * (1 + 1e-9)


def test_left_out_predictions_are_those_of_a_fit_without_the_group(data):
    X, y = data
    alone = fit(X, y, None, selection="loo")
    model = fit(X, y, range(N), selection="loo")  # every row in its group
    assert model.alpha_ == alone.alpha_
    assert_allclose(model.loo_prediction_, alone.loo_prediction_, rtol=1e-8)
    model = fit(X, y, alpha=0.1)
    scale = np.diagonal(model.kernel_(X)).max()
    for label in "aej":
        kept = GROUPS != label
        unit = np.diagonal(model.kernel_(X[kept])).max()
        rest = fit(X[kept], y[kept], GROUPS[kept], alpha=0.1 * scale / unit)
        expected = rest.predict(X[~kept])
        assert_allclose(model.loo_prediction_[~kept], expected, rtol=1e-8)


def test_probabilities_are_calibrated_on_left_out_groups(rng):
    X = np.repeat(rng.normal(size=(15, 6, 6)), 4, axis=0)
    X, y = X + 0.01 * rng.normal(size=X.shape), np.arange(60) // 4 % 2
    model = ConvRFMClassifier(ConvNTK(depth=1), n_rounds=0, alpha=1e-3)
    honest = clone(model).fit(X, y, groups=np.arange(60) // 4)
    blind = clone(model).fit(X, y, groups=np.arange(60))
    assert honest.temperature_ > 2 * blind.temperature_


def test_names_and_types_of_groups_change_nothing(data):
    X, y = data
    expected = fit(X, y).loo_prediction_
    numbers = 100 - np.unique(GROUPS, return_inverse=True)[1]
    for groups in (numbers, list(GROUPS), GROUPS.astype(object), numbers / 3):
        found = fit(X, y, groups).loo_prediction_
        assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("selection", ["gcv", "loo", "holdout", "last"])
@pytest.mark.parametrize("machine", MACHINES)
def test_weights_equal_repeated_rows_in_groups(data, machine, selection):
    X, y = data
    counts = np.arange(N) % 3 + 1
    rows = np.repeat(np.arange(N), counts)
    model = ConvRFMRegressor(*MACHINES[machine], n_rounds=1, selection=selection)
    weighted = clone(model).fit(X, y, sample_weight=counts, groups=GROUPS)
    repeated = clone(model).fit(X[rows], y[rows], groups=GROUPS[rows])
    assert weighted.alpha_ == repeated.alpha_
    assert_allclose(weighted.predict(X), repeated.predict(X), rtol=1e-6, atol=1e-8)
    expected = weighted.loo_prediction_[rows]
    assert_allclose(repeated.loo_prediction_, expected, rtol=1e-6, atol=1e-8)


def test_copies_join_their_groups(data):
    X, y = data
    X[2], X[5] = X[1], X[3]  # a and b, then b and c
    joined = np.where(np.isin(GROUPS, ["b", "c"]), "a", GROUPS)
    expected = fit(X, y, joined).loo_prediction_
    assert_allclose(fit(X, y).loo_prediction_, expected, rtol=1e-10)


def test_groups_of_rows_of_weight_zero_do_not_count(data):
    X, y = data
    weights = np.where(np.isin(GROUPS, ["a", "b"]), 1.0, 0)
    model = ConvRFMRegressor(ConvNTK(depth=1), n_rounds=0)
    model.fit(X, y, weights, GROUPS)
    assert len(model.loo_prediction_) == N
    with pytest.raises(ValueError, match="groups has only one group"):
        model.fit(X, y, np.where(GROUPS == "a", 1.0, 0), GROUPS)


def test_holdout_of_two_groups_holds_one_out(data):
    X, y = data
    model = fit(X, y, np.arange(N) < 4, selection="holdout", n_rounds=1)
    assert np.isfinite(model.history_["holdout_loss"]).all()
    assert np.isfinite(model.history_["loo_loss"]).all()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (np.arange(N - 1), r"groups has shape \(19,\), but X has 20 rows: pass one"),
        (np.ones((N, 1)), r"groups has shape \(20, 1\)"),
        ([*GROUPS[:-1], None], r"groups\[19\] is None, which is no label: give"),
        ([np.nan, *range(N - 1)], r"groups\[0\] is nan, which is no label"),
        (
            np.array([1, "a"] * 10, dtype=object),
            "groups has labels that cannot be comp",
        ),
        (np.ones(N), "groups has only one group.*at least 2 are needed.*groups=None"),
    ],
)
@pytest.mark.parametrize("selection", ["gcv", "holdout"])
def test_unusable_groups_are_refused(data, groups, message, selection):
    with pytest.raises(ValueError, match=message):
        fit(*data, groups, selection=selection)


def test_transformer_passes_groups_on(data):
    X, y = data
    learner = ConvRFMRegressor(ConvNTK(depth=1), n_rounds=1)
    transformer = PatchAGOPTransformer(learner).fit(X, y, groups=GROUPS)
    expected = clone(learner).fit(X, y, groups=GROUPS).loo_prediction_
    assert_array_equal(transformer.estimator_.loo_prediction_, expected)


def test_checkpoint_of_other_groups_is_refused(data, tmp_path):
    X, y = data
    first = fit(X, y, checkpoint=tmp_path)
    again = fit(X, y, checkpoint=tmp_path)
    assert_array_equal(again.loo_prediction_, first.loo_prediction_)
    for groups in (np.roll(GROUPS, 1), None):
        with pytest.raises(ValueError, match="differs in the data groups"):
            fit(X, y, groups, checkpoint=tmp_path)


# ------------------------------------------------------------------ metadata routing


def test_groups_are_routed_through_a_grid_search(data):
    X, y = data
    model = ConvRFMRegressor(ConvNTK(), n_rounds=0)
    with config_context(enable_metadata_routing=True):
        model.set_fit_request(groups=True)
        search = GridSearchCV(model, {"kernel__depth": [1, 2]}, cv=GroupKFold(2))
        search.fit(X, y, groups=GROUPS)
        expected = clone(search.best_estimator_).fit(X, y, groups=GROUPS)
    found = search.best_estimator_.loo_prediction_
    assert_array_equal(found, expected.loo_prediction_)


def test_groups_of_a_splitter_need_no_routing(data):
    X, y = data
    model = ConvRFMRegressor(ConvNTK(depth=1), n_rounds=0)
    cross_val_score(model, X, y, cv=LeaveOneGroupOut(), groups=GROUPS)


# ------------------------------------------------------------------- near-duplicates


def make_views(rng, n_objects, n_views, noise=0.05):
    """Return shifted, noisy views of smooth images."""
    small = rng.normal(size=(n_objects, 5, 5))
    images = np.kron(small, np.ones((3, 3)))
    views = [
        np.roll(image, tuple(rng.integers(-1, 2, size=2)), axis=(0, 1))
        for image in images
        for _ in range(n_views)
    ]
    return np.array(views) + noise * rng.normal(size=(n_objects * n_views, 15, 15))


def test_near_duplicates_without_groups_warn_once(rng):
    X = make_views(rng, 10, 6)
    y = np.arange(60) // 6 % 2
    model = ConvRFMClassifier("linear", LAYER, n_rounds=1, selection="holdout")
    with pytest.warns(UserWarning, match="near-duplicate.* pass groups to fit") as seen:
        model.fit(X, y)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(X, y, groups=np.arange(60) // 6)
        model.fit(X, y, groups=range(60))


def test_exact_copies_are_no_near_duplicates(rng):
    X = np.repeat(make_views(rng, 30, 1), 3, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ConvRFMClassifier("linear", LAYER, n_rounds=0).fit(X, np.arange(90) // 3 % 2)


# ------------------------------------------------------------------------ bandwidths


@pytest.mark.parametrize("kernel", [Gaussian(), Laplace()])
@pytest.mark.parametrize("features", [None, LAYER])
@pytest.mark.parametrize("selection", ["gcv", "loo", "holdout"])
def test_bandwidth_is_chosen_with_the_ridge(data, kernel, features, selection):
    X, y = data[0], data[0].sum((1, 2))  # linear in the images: the wider the better
    options = {"n_rounds": 1, "selection": selection}
    model = ConvRFMRegressor(kernel, features, **options).fit(X, y)
    history = model.history_
    assert len(history["bandwidth"]) == len(history["round"])
    if selection != "holdout":
        assert model.kernel_.bandwidth_ == history["bandwidth"][model.best_round_]
    fixed = clone(model).set_params(kernel__bandwidth=model.kernel_.bandwidth_)
    if model.best_round_ == 0 and selection != "holdout":
        assert_allclose(fixed.fit(X, y).predict(X), model.predict(X), rtol=1e-7)
    if features is None:
        half = clone(model).set_params(kernel__bandwidth=history["bandwidth"][0] / 2)
        key = {"loo": "loo_loss", "holdout": "holdout_loss"}.get(selection, "gcv")
        half = half.fit(X, y).history_
        assert history[key][0] < half[key][0]
        assert history["bandwidth"][0] / median(X) in (2, 4, 8, 16, 32) or (
            selection == "holdout"  # with the median of other rows
        )


def median(X):
    kernel = Gaussian().bind((*X.shape[1:], 1))
    return kernel.measured(X.reshape(len(X), -1), np.ones(len(X))).bandwidth_


def test_bandwidth_of_a_kernel_of_patches_is_in_the_history(data):
    X, y = data
    model = ConvRFMRegressor(PatchLaplace(), n_rounds=1).fit(X, y)
    assert model.history_["bandwidth"][model.best_round_] == model.kernel_.bandwidth_
    assert "bandwidth" not in fit(X, y).history_


def test_resumed_fit_keeps_the_chosen_bandwidth(data, tmp_path):
    X, y = data[0], data[0].sum((1, 2))
    model = ConvRFMRegressor(Gaussian(), LAYER, n_rounds=2)
    expected = clone(model).fit(X, y)
    clone(model).set_params(checkpoint=tmp_path).fit(X, y)
    resumed = clone(model).set_params(checkpoint=tmp_path).fit(X, y)
    assert resumed.kernel_.bandwidth_ == expected.kernel_.bandwidth_
    assert_array_equal(resumed.predict(X), expected.predict(X))
