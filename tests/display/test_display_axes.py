"""All displays draw all estimators, in new and in given axes."""

import sys

import numpy as np
import pytest
from display_fixtures import *  # noqa: F403
from display_fixtures import HandMade, as_png
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

from skconvrfm import ConvRFMClassifier, PatchAGOPTransformer
from skconvrfm.display import (
    ExplanationDisplay,
    PatchFiltersDisplay,
    RoundsDisplay,
    SaliencyDisplay,
)
from skconvrfm.kernels import Gaussian

DISPLAYS = [RoundsDisplay, PatchFiltersDisplay, SaliencyDisplay]


def draw(display, estimator, X, **options):
    """Draw any of the displays; some of them need images."""
    if display is SaliencyDisplay:
        options["X"] = X
    elif display is ExplanationDisplay:
        options["image"] = X[0]
    return display.from_estimator(estimator, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classifier", "deep", "transformer"])
@pytest.mark.parametrize("display", DISPLAYS)
def test_every_display_draws_every_estimator(display, name, framed, figure, request):
    drawn = draw(
        display, request.getfixturevalue(name), framed[0], ax=figure.subplots()
    )
    assert isinstance(drawn, display)
    assert as_png(figure).startswith(b"\x89PNG")
    # Drawn once more elsewhere, it is the same object.
    figure.clear()
    assert drawn.plot(figure.subplots()) is drawn


@pytest.mark.parametrize("display", [*DISPLAYS, ExplanationDisplay])
def test_new_figure_without_ax(display, classifier, framed, pyplot):
    drawn = draw(display, classifier, framed[0])
    assert drawn.figure_ is pyplot.gcf()
    if display is ExplanationDisplay:  # whose colour bars are axes as well
        return
    assert drawn.figure_.axes == list(np.ravel(drawn.axes_))
    assert as_png(drawn.figure_).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("display", "n_axes"), [*zip(DISPLAYS, (3, 6, 12), strict=True)]
)
def test_given_axes_used(display, n_axes, classifier, framed, figure):
    axes = figure.subplots(3, n_axes // 3)
    for given in (axes, list(axes.ravel())):
        drawn = draw(display, classifier, framed[0], ax=given)
        assert list(np.ravel(drawn.axes_)) == list(axes.ravel())
        assert figure.axes == list(axes.ravel())
        assert drawn.figure_ is figure


@pytest.mark.parametrize("display", DISPLAYS)
def test_single_axes_divided_and_neighbour_untouched(
    display, classifier, framed, figure
):
    left, right = figure.subplots(1, 2)
    drawn = draw(display, classifier, framed[0], ax=left)
    figure.draw_without_rendering()
    assert not left.axison and right.axison and not right.has_data()
    for axes in np.ravel(drawn.axes_):
        assert axes.get_position().x1 <= right.get_position().x0


@pytest.mark.parametrize("display", DISPLAYS)
def test_axes_of_wrong_number_or_kind_refused(display, classifier, framed, figure):
    for ax, message in [
        (figure.subplots(1, 2), "got 2"),
        ([], "got 0"),
        (figure, "got objects of type Figure"),
        (figure.add_axes((0, 0, 1, 1)), "no place in a grid"),
    ]:
        with pytest.raises(ValueError, match=message):
            draw(display, classifier, framed[0], ax=ax)


@pytest.mark.parametrize("display", [RoundsDisplay, PatchFiltersDisplay])
@pytest.mark.parametrize("layer", [2, -1, "first"])
def test_missing_layer_refused(display, layer, deep, transformer):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=f"layer={layer!r} is not one of the 2"):
        display.from_estimator(deep, layer=layer)
    with pytest.raises(ValueError, match=f"layer={layer!r} is not one of the 1"):
        display.from_estimator(transformer, layer=layer)


@pytest.mark.parametrize("display", DISPLAYS)
@pytest.mark.parametrize("estimator", [ConvRFMClassifier(), PatchAGOPTransformer()])
def test_unfitted_estimator_refused(display, estimator, framed):
    pytest.importorskip("matplotlib")
    with pytest.raises(NotFittedError, match=type(estimator).__name__):
        draw(display, estimator, framed[0])


@pytest.mark.parametrize("display", DISPLAYS)
def test_unrelated_estimators_refused(display, framed):
    pytest.importorskip("matplotlib")
    other = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    with pytest.raises(TypeError, match="LogisticRegression learns no patch metric"):
        draw(display, other, framed[0])


@pytest.mark.parametrize("display", DISPLAYS)
def test_missing_matplotlib_names_the_extra(display, framed, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "skconvrfm\[plot\]"'):
        draw(display, HandMade().fit(), framed[0])


@pytest.mark.parametrize("display", DISPLAYS)
def test_estimator_without_patch_metric_refused(display, framed):
    pytest.importorskip("matplotlib")
    model = ConvRFMClassifier(Gaussian()).fit(*framed)
    with pytest.raises(TypeError, match="ConvRFMClassifier learns no patch metric"):
        draw(display, model, framed[0])
