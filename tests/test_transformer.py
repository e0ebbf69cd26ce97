"""PatchAGOPTransformer: features under a learned patch metric."""

from dataclasses import replace

import numpy as np
import pytest
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.datasets import make_star
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian

OUTPUTS = ("filters", "eigen", "saliency", "image")
LEARNER = ConvRFMClassifier(ConvNTK(depth=1), n_rounds=1)
PADDED = ConvRFMClassifier(ConvNTK(depth=1, padding="same"), n_rounds=1)
SMALL = {"estimator": LEARNER, "n_filters": 5, "n_components": 3}


@pytest.fixture
def data(rng):
    X = rng.normal(size=(40, 8, 7, 2))
    return X, (X[:, 2:5, 2:5, 0].sum((1, 2)) > 0).astype(int)


def maps_by_hand(model, X, matrix):
    """Products of the rows of a matrix with every patch, (n, rows, columns, rows)."""
    if model.estimator.kernel.padding == "same":
        X = np.pad(X, [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(X, (3, 3), axis=(1, 2))
    return windows.reshape(*windows.shape[:3], -1) @ matrix.T


def test_filters_are_convolved_rectified_and_pooled(data):
    X, y = data
    model = PatchAGOPTransformer(**SMALL).fit(X, y)
    maps = np.maximum(maps_by_hand(model, X, model.filters_), 0)  # gain 2 / 2 channels
    cells = [
        maps[:, r, c].mean((1, 2))
        for r in (slice(3), slice(3, 6))
        for c in (slice(2), slice(2, 5))
    ]
    assert_allclose(model.transform(X), np.hstack(cells), atol=1e-12)
    assert model.output_shape_ == (2, 2, 5)


def test_eigen_features_have_no_null_space(data, rng):
    X, y = data
    layer = ConvFeatures(4, patch_size=3, filters="gaussian", metric="identity")
    learner = ConvRFMClassifier("linear", layer, n_rounds=1, selection="last")
    model = PatchAGOPTransformer(learner, output="eigen", n_components=18)
    model.fit(X, y)
    # Four filters on patches of 18 entries: the AGOP has rank 4.
    assert model.components_.shape == (4, 18)
    assert model.get_feature_names_out()[-1] == "eigen3_1_1"
    order = rng.permutation(len(X))
    permuted = clone(model).fit(X[order], y[order])
    assert_allclose(permuted.transform(X), model.transform(X), atol=1e-6)


def test_label_sets_are_learned_by_a_classifier(data):
    X, y = data
    model = PatchAGOPTransformer().fit(X, np.column_stack([y, 1 - y]))
    assert isinstance(model.estimator_, ConvRFMClassifier)
    assert model.estimator_.multilabel_


@pytest.mark.parametrize("rectification", ["absolute", "halves"])
def test_eigen_features_are_rectified_projections(data, rectification):
    X, y = data
    model = PatchAGOPTransformer(
        output="eigen", rectification=rectification, pool=None, **SMALL
    ).fit(X, y)
    assert_allclose(model.components_ @ model.components_.T, np.eye(3), atol=1e-12)
    metric = model.patch_transform_ @ model.patch_transform_.T
    eigenvalues = np.linalg.eigvalsh(metric)[::-1][:3]
    assert_allclose(metric @ model.components_.T, model.components_.T * eigenvalues)
    peaks = np.abs(model.components_).argmax(axis=1)
    assert (model.components_[range(3), peaks] > 0).all()
    maps = maps_by_hand(model, X, model.components_)
    if rectification == "absolute":
        expected = np.abs(maps)
    else:
        expected = np.concatenate([np.maximum(maps, 0), np.maximum(-maps, 0)], axis=3)
    assert_allclose(model.transform(X), expected.reshape(len(X), -1), atol=1e-12)


def test_saliency_is_the_length_of_the_transformed_patch(data):
    X, y = data
    model = PatchAGOPTransformer(PADDED, output="saliency").fit(X, y)
    maps = maps_by_hand(model, X, model.patch_transform_)
    expected = np.linalg.norm(maps, axis=3).reshape(len(X), -1)
    assert_allclose(model.transform(X), expected, atol=1e-12)
    assert model.output_shape_ == (8, 7, 1)


@pytest.mark.slow
def test_saliency_is_largest_where_the_signal_is():
    X, y = make_star(150, random_state=0)
    learner = ConvRFMClassifier(ConvNTK(depth=1, patch_size=5), n_rounds=2)
    model = PatchAGOPTransformer(learner, output="saliency")
    maps = model.fit(X[:100], y[:100]).transform(X[100:])
    with_star = y[100:] == np.unique(y)[1]
    peaks = maps.max(axis=1)
    assert peaks[with_star].min() > np.median(peaks[~with_star])


def test_image_is_the_mean_of_its_transformed_patches(data):
    X, y = data
    model = PatchAGOPTransformer(output="image", **SMALL).fit(X, y)
    seen = model.transform(X)
    assert seen.shape == X.shape
    patches = maps_by_hand(model, X, model.patch_transform_)[0, 0, 0]
    assert_allclose(seen[0, 0, 0], patches.reshape(2, 3, 3)[:, 0, 0])  # one patch there
    model.maps_ = [replace(model.maps_[0], transform=np.eye(18))]
    assert_allclose(model.transform(X), X, atol=1e-12)


@pytest.mark.parametrize("output", OUTPUTS)
def test_features_without_pool_move_with_the_image(data, output):
    X, y = data
    model = PatchAGOPTransformer(output=output, pool=None, **SMALL).fit(X, y)
    moved = np.roll(X, (1, 2), axis=(1, 2))
    shape = (len(X), *model.output_shape_)
    before, after = (model.transform(images).reshape(shape) for images in (X, moved))
    border = 2 if output == "image" else 0  # where a mean has fewer patches
    rows, columns = shape[1:3]
    inside = before[:, border : rows - 1 - border, border : columns - 2 - border]
    there = after[:, 1 + border : rows - border, 2 + border : columns - border]
    assert_allclose(there, inside, atol=1e-12)
    assert inside.size


def test_features_are_named_by_map_row_and_column(data):
    X, y = data
    model = PatchAGOPTransformer(**SMALL).fit(X, y)
    names = model.get_feature_names_out()
    assert list(names[[0, 1, 5, 10]]) == [
        *("filter0_0_0", "filter1_0_0", "filter0_0_1", "filter0_1_0"),
    ]
    halves = clone(model).set_params(output="eigen", rectification="halves", pool=1)
    assert list(halves.fit(X, y).get_feature_names_out()) == [
        f"eigen{index}{sign}_0_0" for sign in "+-" for index in range(3)
    ]


@pytest.mark.parametrize(
    ("y", "Learner"),
    [
        (np.arange(40) % 3, ConvRFMClassifier),
        (np.arange(40) % 3 / 2, ConvRFMRegressor),
        (np.random.default_rng(0).random((40, 2)), ConvRFMRegressor),
        (np.array(["a", "b"] * 20), ConvRFMClassifier),
    ],
)
def test_type_of_the_targets_chooses_the_default_estimator(data, y, Learner):
    X = data[0][:, :4, :4]
    model = PatchAGOPTransformer().fit(X, y)
    assert type(model.estimator_) is Learner
    learner = Learner().fit(X, y)
    assert_array_equal(model.patch_agop_, learner.patch_agop_)
    assert model.best_round_ == learner.best_round_


def test_given_estimator_is_cloned_and_fitted(data):
    X, y = data
    learner = ConvRFMRegressor(ConvNTK(depth=1), n_rounds=1)
    model = PatchAGOPTransformer(learner).fit(X, y)
    assert type(model.estimator_) is ConvRFMRegressor
    assert model.estimator_ is not learner and not hasattr(learner, "kernel_")
    assert_array_equal(model.estimator_.predict(X), clone(learner).fit(X, y).predict(X))


@pytest.mark.parametrize("kernel", ["linear", Gaussian()], ids=str)
def test_features_are_the_maps_that_the_kernel_sees(data, kernel):
    X, y = data
    layers = [
        ConvFeatures(4, patch_size=3, pool_grid=None),
        ConvFeatures(5, patch_size=3, pool_grid=(2, 1)),
    ]
    learner = ConvRFMClassifier(kernel, layers, n_rounds=1, selection="last")
    model = PatchAGOPTransformer(learner, output="features").fit(X, y)
    features = model.transform(X)
    assert model.output_shape_ == (2, 1, 5)
    assert list(model.get_feature_names_out()[[0, 4, 5]]) == [
        *("filter0_0_0", "filter4_0_0", "filter0_1_0"),
    ]
    fitted = model.estimator_
    if kernel == "linear":
        expected = features @ fitted.coef_ + fitted.intercept_
        assert_allclose(expected[:, 0], fitted.decision_function(X), atol=1e-9)
    else:
        assert_allclose(features, fitted.X_fit_, atol=1e-12)


def test_outputs_without_what_they_need_are_refused(data):
    X, y = data
    with pytest.raises(ValueError, match="output='features'.*features=None"):
        PatchAGOPTransformer(LEARNER, output="features").fit(X, y)
    whole = ConvRFMClassifier("gaussian", n_rounds=0)
    with pytest.raises(ValueError, match=r"kernel=Gaussian\(\).*no patch metric"):
        PatchAGOPTransformer(whole).fit(X, y)


@pytest.mark.parametrize("output", OUTPUTS)
def test_small_integers_give_float32(rng, output):
    X = rng.integers(0, 256, size=(30, 6, 6)).astype(np.uint8)
    model = PatchAGOPTransformer(output=output, **SMALL).fit(X, X[:, 2, 2] > 127)
    assert model.transform(X).dtype == np.float32
    assert model.transform(X.astype(np.float64)).dtype == np.float64


@pytest.mark.parametrize("output", OUTPUTS)
def test_features_independent_of_blocks_and_workers(data, output):
    X, y = data
    model = PatchAGOPTransformer(output=output, **SMALL).fit(X, y)
    expected = model.transform(X)
    with config_context(working_memory=0.01):
        assert_allclose(model.transform(X), expected, atol=1e-12)
    model.estimator_.set_params(n_jobs=2)
    with parallel_config("threading"):
        assert_allclose(model.transform(X), expected, atol=1e-12)


def test_channels_first_equals_channels_last_features(data):
    X, y = data
    first = X.transpose(0, 3, 1, 2)
    expected = PatchAGOPTransformer(**SMALL).fit_transform(X, y)
    learner = clone(LEARNER).set_params(channels="first")
    model = PatchAGOPTransformer(learner, n_filters=5)
    assert_allclose(model.fit_transform(first, y), expected, atol=1e-12)
    seen = model.set_params(output="image").fit_transform(first, y)
    assert seen.shape == first.shape


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"pool": (2, 0)}, r"pool=\(2, 0\) is neither"),
        ({"pool": (2, 2, 2)}, "pool="),
        ({"output": "maps"}, "'output' parameter"),
        ({"n_components": 0}, "'n_components' parameter"),
        ({"estimator": "classifier"}, "'estimator' parameter"),
    ],
)
def test_bad_parameters_are_refused(data, parameters, message):
    with pytest.raises(ValueError, match=message):
        PatchAGOPTransformer(**{**SMALL, **parameters}).fit(*data)


def test_images_of_another_shape_are_refused(data):
    X, y = data
    model = PatchAGOPTransformer(**SMALL).fit(X, y)
    with pytest.raises(ValueError, match="PatchAGOPTransformer was fitted on images"):
        model.transform(X[:, :, :6])
