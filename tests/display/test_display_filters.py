"""Leading eigenvectors of patch AGOPs are drawn as patches."""

import numpy as np
import pytest
from display_fixtures import *  # noqa: F403
from display_fixtures import HandMade, rank_one

from skconvrfm.display import PatchFiltersDisplay


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_eigenvector_equals_pattern_with_channels_last(channels, figure):
    pattern = np.random.RandomState(0).normal(size=(2, 3, channels))
    pattern *= np.sign(pattern.flat[np.abs(pattern).argmax()])
    estimator = HandMade().fit(rank_one(pattern), (2, 3))
    display = PatchFiltersDisplay.from_estimator(
        estimator, n_components=1, ax=figure.subplots()
    )
    np.testing.assert_allclose(
        display.eigenvectors[0], pattern / np.linalg.norm(pattern), atol=1e-12
    )
    np.testing.assert_allclose(display.eigenvalue_shares, [1.0])


def test_eigenvectors_ordered_by_eigenvalue_with_shares(figure):
    estimator = HandMade().fit(np.diag([1.0, 6.0, 0.0, 3.0]), (2, 2))
    display = PatchFiltersDisplay.from_estimator(
        estimator, n_components=3, ax=figure.subplots()
    )
    np.testing.assert_allclose(display.eigenvalue_shares, [0.6, 0.3, 0.1])
    flat = display.eigenvectors.reshape(3, 4)
    np.testing.assert_allclose(flat, np.eye(4)[[1, 3, 0]])
    titles = [axes.get_title() for axes in display.axes_]
    assert titles == ["60 %", "30 %", "10 %"]


def test_one_channel_drawn_on_symmetric_colour_scale(figure):
    pattern = np.array([[1.0, -3.0], [0.0, 2.0]])[..., None]
    display = PatchFiltersDisplay(eigenvectors=[pattern], eigenvalue_shares=[1.0])
    image = display.plot(figure.subplots()).images_[0]
    np.testing.assert_array_equal(image.get_array(), pattern[..., 0])
    assert image.get_clim() == (-3.0, 3.0)


def test_three_channels_drawn_as_rgb_around_grey(figure):
    pattern = np.random.RandomState(0).normal(size=(4, 4, 3))
    pattern[0, 0] = 0.0
    display = PatchFiltersDisplay(eigenvectors=[pattern], eigenvalue_shares=[1.0])
    pixels = display.plot(figure.subplots()).images_[0].get_array()
    assert pixels.shape == (4, 4, 3)
    assert pixels.min() >= 0.0 and pixels.max() <= 1.0
    np.testing.assert_array_equal(pixels[0, 0], 0.5)
    np.testing.assert_allclose(np.corrcoef(pixels.ravel(), pattern.ravel())[0, 1], 1.0)


def test_other_channels_drawn_by_norm(figure):
    pattern = np.zeros((2, 2, 2))
    pattern[0, 1] = 3.0, -4.0
    display = PatchFiltersDisplay(eigenvectors=[pattern], eigenvalue_shares=[1.0])
    pixels = display.plot(figure.subplots()).images_[0].get_array()
    np.testing.assert_allclose(pixels, [[0.0, 5.0], [0.0, 0.0]])


def test_number_of_components_limited_by_patch(classifier, figure):
    display = PatchFiltersDisplay.from_estimator(
        classifier, n_components=50, ax=figure.subplots()
    )
    assert display.eigenvectors.shape == (6, 2, 3, 1)
    assert len(display.axes_) == len(display.images_) == 6
    assert np.sum(display.eigenvalue_shares) == pytest.approx(1.0)


def test_agop_of_constant_predictor_has_shares_of_zero(figure):
    estimator = HandMade().fit(np.zeros((4, 4)), (2, 2))
    display = PatchFiltersDisplay.from_estimator(estimator, ax=figure.subplots())
    np.testing.assert_array_equal(display.eigenvalue_shares, 0.0)


def test_no_empty_axes_in_last_row(figure):
    display = PatchFiltersDisplay(
        eigenvectors=np.ones((5, 2, 2, 1)), eigenvalue_shares=np.full(5, 0.2)
    )
    display.plot(figure.subplots(), n_columns=3)
    assert sum(axes.axison for axes in figure.axes) == len(display.axes_) == 5


def test_zero_components_refused(classifier):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="n_components=0"):
        PatchFiltersDisplay.from_estimator(classifier, n_components=0)


def test_channels_of_deep_layer_are_filters_below(deep, figure):
    axes = figure.subplots(3)
    best = PatchFiltersDisplay.from_estimator(deep, ax=axes[2])
    assert best.eigenvectors.shape == (8, 3, 3, (1, 5)[deep.best_layer_])
    for layer, channels in ((0, 1), (1, 5)):
        display = PatchFiltersDisplay.from_estimator(deep, layer=layer, ax=axes[layer])
        assert display.eigenvectors.shape == (8, 3, 3, channels)
        vectors = np.moveaxis(display.eigenvectors, -1, 1).reshape(8, -1)
        agop = deep.learned_layers_[layer].patch_agop_
        np.testing.assert_allclose(
            vectors @ agop @ vectors.T,
            np.diag(display.eigenvalue_shares * np.trace(agop)),
            atol=1e-6 * np.trace(agop),
        )
