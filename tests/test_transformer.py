"""PatchAGOPTransformer: features under a learned patch metric."""

import pickle

import numpy as np
import pandas as pd
import pytest
from by_hand import patches_by_hand
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.datasets import make_star

OUTPUTS = ("filters", "eigen", "saliency", "image")
SMALL = {"depth": 1, "n_rounds": 1, "n_filters": 5, "n_components": 3}


@pytest.fixture
def data(rng):
    X = rng.normal(size=(40, 8, 7, 2))
    return X, (X[:, 2:5, 2:5, 0].sum((1, 2)) > 0).astype(int)


def maps_by_hand(model, X, matrix):
    """Products of the rows of a matrix with every patch, (n, rows, columns, rows)."""
    padding = model.padding
    return np.stack([patches_by_hand(x, 3, padding) for x in X]) @ matrix.T


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


@pytest.mark.parametrize("rectification", ["absolute", "halves"])
def test_projections_on_eigenvectors_lose_their_sign(data, rectification):
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
    model = PatchAGOPTransformer(output="saliency", padding="same", **SMALL).fit(X, y)
    maps = maps_by_hand(model, X, model.patch_transform_)
    expected = np.linalg.norm(maps, axis=3).reshape(len(X), -1)
    assert_allclose(model.transform(X), expected, atol=1e-12)
    assert model.output_shape_ == (8, 7, 1)


def test_saliency_is_largest_where_the_signal_is():
    X, y = make_star(150, random_state=0)
    model = PatchAGOPTransformer(output="saliency", depth=1, patch_size=5, n_rounds=2)
    maps = model.fit(X[:100], y[:100]).transform(X[100:])
    with_star = y[100:] == np.unique(y)[1]
    peaks = maps.max(axis=1)
    assert peaks[with_star].min() > np.median(peaks[~with_star])


def test_the_image_is_seen_as_the_mean_of_its_transformed_patches(data):
    X, y = data
    model = PatchAGOPTransformer(output="image", **SMALL).fit(X, y)
    seen = model.transform(X)
    assert seen.shape == X.shape
    patches = maps_by_hand(model, X, model.patch_transform_)[0, 0, 0]
    assert_allclose(seen[0, 0, 0], patches.reshape(2, 3, 3)[:, 0, 0])  # one patch there
    model.patch_transform_ = np.eye(18)
    assert_allclose(model.transform(X), X, atol=1e-12)


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_transform_moves_with_the_image_before_pooling(data, output):
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


@pytest.mark.parametrize("output", OUTPUTS)
def test_every_output_survives_pickling_pipelines_and_data_frames(data, output):
    X, y = data
    flat = X.reshape(len(X), -1)
    model = PatchAGOPTransformer(output=output, image_shape=(8, 7, 2), **SMALL)
    pipeline = make_pipeline(model, StandardScaler(), LogisticRegression())
    copy = pickle.loads(pickle.dumps(pipeline.fit(flat, y)))
    assert_array_equal(copy.predict(flat), pipeline.predict(flat))
    frame = model.set_output(transform="pandas").fit(flat, y).transform(flat)
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == list(model.get_feature_names_out())
    assert_array_equal(frame, model.set_output(transform="default").transform(flat))
    assert model.set_output(transform="pandas").transform(X).shape == frame.shape


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


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("task", "y", "Learner"),
    [
        ("auto", np.arange(40) % 3, ConvRFMClassifier),
        ("auto", np.arange(40) % 3 / 2, ConvRFMRegressor),
        ("regression", np.arange(40) % 3, ConvRFMRegressor),
        ("auto", np.random.default_rng(0).random((40, 2)), ConvRFMRegressor),
        ("auto", np.array(["a", "b"] * 20), ConvRFMClassifier),
    ],
)
def test_the_type_of_the_targets_chooses_the_learner(data, task, y, Learner):
    X, _ = data
    model = PatchAGOPTransformer(task=task, **SMALL).fit(X, y)
    learner = Learner(depth=1, n_rounds=1).fit(X, y)
    assert_array_equal(model.patch_agop_, learner.patch_agop_)
    assert_array_equal(model.history_["gcv"], learner.history_["gcv"])
    assert model.best_round_ == learner.best_round_


@pytest.mark.parametrize("output", OUTPUTS)
def test_small_integers_give_float32(rng, output):
    X = rng.integers(0, 256, size=(30, 6, 6)).astype(np.uint8)
    model = PatchAGOPTransformer(output=output, **SMALL).fit(X, X[:, 2, 2] > 127)
    assert model.transform(X).dtype == np.float32
    assert model.transform(X.astype(np.float64)).dtype == np.float64


@pytest.mark.thorough
@pytest.mark.parametrize("output", OUTPUTS)
def test_neither_blocks_nor_workers_change_the_features(data, output):
    X, y = data
    model = PatchAGOPTransformer(output=output, **SMALL).fit(X, y)
    expected = model.transform(X)
    with config_context(working_memory=0.01):
        assert_allclose(model.transform(X), expected, atol=1e-12)
    assert_allclose(model.set_params(n_jobs=2).transform(X), expected, atol=1e-12)


def test_weights_equal_repeated_rows(data, rng):
    X, y = data
    weights = rng.integers(0, 3, size=len(X))
    model = PatchAGOPTransformer(agop_samples=10, **SMALL)
    weighted = model.fit(X, y, sample_weight=weights).transform(X)
    repeated = model.fit(X.repeat(weights, axis=0), y.repeat(weights)).transform(X)
    assert_allclose(repeated, weighted, atol=1e-7)


def test_channels_first_gives_the_same_features(data):
    X, y = data
    first = X.transpose(0, 3, 1, 2)
    expected = PatchAGOPTransformer(**SMALL).fit_transform(X, y)
    model = PatchAGOPTransformer(channels="first", **SMALL)
    assert_allclose(model.fit_transform(first, y), expected, atol=1e-12)
    seen = model.set_params(output="image").fit_transform(first, y)
    assert seen.shape == first.shape


def test_a_grid_search_runs_over_patch_size_and_filters(data):
    X, y = data
    flat = X.reshape(len(X), -1)
    features = PatchAGOPTransformer(image_shape=(8, 7, 2), depth=1, n_rounds=1)
    search = GridSearchCV(
        make_pipeline(features, StandardScaler(), LogisticRegression()),
        {
            "patchagoptransformer__patch_size": [2, 3],
            "patchagoptransformer__n_filters": [4, 16],
        },
        cv=2,
    )
    assert search.fit(flat, y).best_score_ > 0.7


def test_features_serve_a_regression(data):
    X, _ = data
    y = np.abs(X[:, 2:5, 2:5, 0]).sum((1, 2))
    model = make_pipeline(PatchAGOPTransformer(depth=1, n_rounds=1), Ridge())
    assert model.fit(X, y).score(X, y) > 0.9


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"pool": (2, 0)}, r"pool=\(2, 0\) is neither"),
        ({"pool": (2, 2, 2)}, "pool="),
        ({"output": "maps"}, "'output' parameter"),
        ({"n_components": 0}, "'n_components' parameter"),
        ({"task": "ranking"}, "'task' parameter"),
    ],
)
def test_bad_parameters_are_refused(data, parameters, message):
    with pytest.raises(ValueError, match=message):
        PatchAGOPTransformer(**{**SMALL, **parameters}).fit(*data)


def test_targets_are_required(data):
    with pytest.raises(ValueError, match="requires y to be passed"):
        PatchAGOPTransformer().fit(data[0], None)


def test_images_of_another_shape_are_refused(data):
    X, y = data
    model = PatchAGOPTransformer(**SMALL).fit(X, y)
    with pytest.raises(ValueError, match="PatchAGOPTransformer was fitted on images"):
        model.transform(X[:, :, :6])
