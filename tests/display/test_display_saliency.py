"""Saliency and filtered images agree with the patches of the images."""

import numpy as np
import pytest
import torch
from display_fixtures import *  # noqa: F403
from display_fixtures import as_png

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.compute.images import extract_patches
from skconvrfm.datasets import make_star
from skconvrfm.display import SaliencyDisplay
from skconvrfm.kernels import ConvNTK


def patches_of(images, layer):
    """Patches of shape (n, rows, columns, d)."""
    images = torch.tensor(np.asarray(images, dtype=np.float64))
    return np.moveaxis(extract_patches(images, layer).numpy(), -1, 0)


@pytest.mark.parametrize("name", ["classifier", "deep", "transformer"])
def test_saliency_equals_norm_of_transformed_patch(name, framed, figure, request):
    model, (X, _) = request.getfixturevalue(name), framed
    display = SaliencyDisplay.from_estimator(
        model, X, component=1, ax=figure.subplots()
    )
    learned = model.learned_layers_[0]
    transform = learned.filter_transform_
    patches = patches_of(X[:4, ..., None], learned.layer_)
    np.testing.assert_allclose(
        display.saliency, np.linalg.norm(patches @ transform, axis=-1), rtol=1e-4
    )
    values, vectors = np.linalg.eigh(transform @ transform.T)
    expected = patches @ vectors[:, -2]
    expected *= np.sign(np.sum(expected * display.projections))
    np.testing.assert_allclose(display.projections, expected, atol=1e-4)
    assert display.axes_[0, 2].get_title() == "Eigenvector 1"


def test_first_four_images_drawn_by_default(classifier, framed, figure):
    X, _ = framed
    for number, (options, rows) in enumerate(
        [({}, 4), ({"n_images": 2}, 2), ({"n_images": 99}, 40)], start=1
    ):
        ax = figure.add_subplot(1, 3, number)
        display = SaliencyDisplay.from_estimator(classifier, X, ax=ax, **options)
        assert display.axes_.shape == (rows, 3) and len(display.images_) == 3 * rows
        np.testing.assert_array_equal(display.images[..., 0], X[:rows])


def test_flat_rows_lists_and_bytes_accepted(framed, figure):
    X, y = (framed[0] * 50 + 120).clip(0, 255).astype(np.uint8), framed[1]
    model = ConvRFMClassifier(ConvNTK(depth=1, bias=30), n_rounds=1).fit(X, y)
    axes = figure.subplots(3)
    forms = X, X.reshape(len(X), -1), X.tolist()
    drawn = [
        SaliencyDisplay.from_estimator(model, images, ax=ax)
        for images, ax in zip(forms, axes, strict=True)
    ]
    for display in drawn[1:]:
        np.testing.assert_allclose(display.saliency, drawn[0].saliency, rtol=1e-4)


def test_colour_scales_shared_by_all_images(classifier, framed, figure):
    display = SaliencyDisplay.from_estimator(
        classifier, framed[0], ax=figure.subplots()
    )
    peak = np.abs(display.projections).max()
    for row in range(4):
        _, saliency, filtered = display.images_[3 * row : 3 * row + 3]
        assert saliency.get_clim() == (0, display.saliency.max())
        assert filtered.get_clim() == (-peak, peak)


@pytest.mark.parametrize(
    ("name", "extent"),
    [
        # Patches of 2 x 3: the first is centred between rows 0 and 1, on column 1.
        ("classifier", (0.5, 10.5, 11.0, 0.0)),
        # A row of zeros below and a column on each side.
        ("transformer", (-0.5, 11.5, 12.0, 0.0)),
    ],
)
def test_values_drawn_on_patch_centres(name, extent, framed, figure, request):
    display = SaliencyDisplay.from_estimator(
        request.getfixturevalue(name), framed[0], ax=figure.subplots()
    )
    for image in display.images_[1:3]:
        assert tuple(image.get_extent()) == extent
        assert image.axes.get_xlim() == (-0.5, 11.5)
        assert image.axes.get_ylim() == (11.5, -0.5)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_images_stretched_to_unit_range(channels, figure):
    image = np.random.RandomState(0).normal(size=(1, 4, 4, channels)) * 300
    zeros = np.zeros((1, 2, 2))
    display = SaliencyDisplay(images=image, saliency=zeros, projections=zeros)
    pixels = display.plot(figure.subplots()).images_[0].get_array()
    assert pixels.shape == ((4, 4, 3) if channels == 3 else (4, 4))
    assert (pixels.min(), pixels.max()) == (0, 1)
    assert as_png(figure)


def test_colour_images_with_channels_first(figure):
    X, y = make_star(20, size=15, random_state=0)
    planes = np.moveaxis(X, -1, 1)
    model = ConvRFMRegressor(ConvNTK(depth=1), n_rounds=1, channels="first")
    model.fit(planes, y)
    display = SaliencyDisplay.from_estimator(model, planes, ax=figure.subplots())
    np.testing.assert_array_equal(display.images, X[:4])


@pytest.mark.parametrize(("shape", "aspect"), [((1, 30), "auto"), ((6, 30), 1.0)])
def test_pixels_square_unless_image_is_very_long(shape, aspect, figure):
    values = np.zeros((2, *shape))
    display = SaliencyDisplay(
        images=values[..., None], saliency=values, projections=values
    ).plot(figure.subplots())
    assert {axes.get_aspect() for axes in display.axes_.ravel()} == {aspect}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_images": 0}, "n_images=0"),
        ({"component": 6}, "component=6 is not one of the 6 eigenvectors, 0 to 5"),
        ({"component": -1}, "component=-1"),
        ({"X": np.zeros((2, 5, 5))}, "fitted on images of shape"),
        ({"X": np.full((2, 144), np.nan)}, "NaN"),
    ],
)
def test_saliency_of_invalid_arguments_refused(options, message, classifier):
    pytest.importorskip("matplotlib")
    options = {"X": np.zeros((2, 144)), **options}
    with pytest.raises(ValueError, match=message):
        SaliencyDisplay.from_estimator(classifier, **options)
