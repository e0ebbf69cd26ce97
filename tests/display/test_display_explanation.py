"""Explanations show image, gradient and occlusion on scales symmetric about 0."""

import sys

import numpy as np
import pytest
from display_fixtures import *  # noqa: F403
from display_fixtures import HandMade, as_png
from sklearn.exceptions import NotFittedError

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.display import ExplanationDisplay
from skconvrfm.explain import patch_occlusion, pixel_gradients
from skconvrfm.kernels import Gaussian


@pytest.mark.parametrize("name", ["classifier", "deep"])
def test_maps_are_gradient_and_occlusion_of_the_target(name, framed, figure, request):
    model, image = request.getfixturevalue(name), framed[0][3]
    options = {"target": 2, "patch_size": 3}
    display = ExplanationDisplay.from_estimator(
        model, image, ax=figure.subplots(), **options
    )
    gradient = pixel_gradients(model, image[None], target=2)[0, ..., 0]
    by_pixel = gradient * (image - image.mean())
    np.testing.assert_allclose(display.by_pixel, by_pixel, rtol=1e-5, atol=1e-7)
    by_patch = patch_occlusion(model, image[None], **options)[0]
    np.testing.assert_allclose(display.by_patch, by_patch, rtol=1e-5, atol=1e-7)
    assert as_png(figure).startswith(b"\x89PNG")


def test_title_has_class_score_and_probability(classifier, framed, figure):
    image = framed[0][:1]
    display = ExplanationDisplay.from_estimator(
        classifier, image[0], ax=figure.subplots()
    )
    [label], scores = classifier.predict(image), classifier.decision_function(image)
    share = classifier.predict_proba(image).max()
    expected = f"class {label}: score {scores.max():.2f}\nprobability {share:.1%}"
    assert display.title == expected == display.axes_[0].get_title()


def test_scales_are_symmetric_and_have_colour_bars(classifier, framed, figure):
    display = ExplanationDisplay.from_estimator(
        classifier, framed[0][0], ax=figure.subplots()
    )
    for drawn, values in zip(
        display.images_[1:], (display.by_pixel, display.by_patch), strict=True
    ):
        peak = np.abs(values).max()
        assert drawn.get_clim() == (-peak, peak)
    assert [bar.mappable for bar in display.colorbars_] == display.images_[1:]


def test_regressors_and_colour_images_are_drawn(figure):
    X = np.random.default_rng(0).normal(size=(20, 6, 5, 3))
    model = ConvRFMRegressor(Gaussian()).fit(X, X[:, 2, 2, 0])
    display = ExplanationDisplay.from_estimator(model, X[0], ax=figure.subplots(1, 3))
    assert display.title == f"output 0: {model.predict(X[:1])[0]:.3g}"
    assert as_png(figure).startswith(b"\x89PNG")


def test_unfitted_estimator_and_missing_matplotlib_are_said(framed, monkeypatch):
    pytest.importorskip("matplotlib")
    image = framed[0][0]
    with pytest.raises(NotFittedError, match="ConvRFMClassifier"):
        ExplanationDisplay.from_estimator(ConvRFMClassifier(), image)
    with pytest.raises(TypeError, match="HandMade cannot be explained"):
        ExplanationDisplay.from_estimator(HandMade().fit(), image)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "skconvrfm\[plot\]"'):
        ExplanationDisplay.from_estimator(ConvRFMClassifier(), image)
