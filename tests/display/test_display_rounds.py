"""Rounds are drawn as the history of the fit tells."""

import numpy as np
import pytest
from display_fixtures import *  # noqa: F403
from display_fixtures import (
    HandMadeClassifier,
    HandMadeRegressor,
    HandMadeTransformer,
    as_png,
)

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import make_star
from skconvrfm.display import RoundsDisplay
from skconvrfm.kernels import ConvNTK


@pytest.mark.slow
def test_rounds_selected_by_holdout_drawn_with_held_out_loss(figure):
    X, y = make_star(24, random_state=0)
    model = ConvRFMClassifier(ConvNTK(depth=1), n_rounds=1, selection="holdout").fit(
        X, y
    )
    display = RoundsDisplay.from_estimator(model, ax=figure.subplots(1, 3))
    np.testing.assert_array_equal(display.criterion, model.history_["holdout_loss"])
    with pytest.raises(ValueError, match="'gcv', 'loo_loss'"):
        model.set_params(selection="gcv").fit(X, y)
        RoundsDisplay.from_estimator(model, criterion="holdout_loss")


def test_rounds_drawn_from_history(classifier, figure):
    display = RoundsDisplay.from_estimator(classifier, ax=figure.subplots(1, 3))
    for line, key in zip(display.lines_, ("loo_score", "gcv"), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), classifier.history_["round"])
        np.testing.assert_array_equal(line.get_ydata(), classifier.history_[key])
    assert display.figure_ is figure


def test_kept_round_marked_on_both_curves(figure):
    display = RoundsDisplay.from_estimator(
        HandMadeClassifier().fit(), ax=figure.subplots(1, 3)
    )
    texts = "round 1 is kept", "kept: lowest GCV"
    for axes, height, text in zip(display.axes_[:2], (0.9, 1.0), texts, strict=True):
        mark = axes.get_lines()[1]
        assert (mark.get_xdata(), mark.get_ydata()) == (1, height)
        assert axes.get_legend().get_texts()[0].get_text() == text


@pytest.mark.parametrize(
    ("estimator", "name"),
    [(HandMadeClassifier("loo"), "accuracy"), (HandMadeRegressor("loo"), "R²")],
)
def test_score_and_criterion_are_those_of_the_estimator(estimator, name, figure):
    axes = figure.subplots(2, 3)
    for row, model in enumerate(
        (estimator.fit(), HandMadeTransformer().fit(estimator))
    ):
        display = RoundsDisplay.from_estimator(model, ax=axes[row])
        assert display.axes_[0].get_ylabel() == f"Leave-one-out {name}"
        assert list(display.lines_[1].get_ydata()) == [6, 4, 5]


@pytest.mark.parametrize(
    ("selection", "criterion", "values"),
    [
        ("gcv", None, [3, 1, 2]),
        ("last", None, [3, 1, 2]),
        ("loo", None, [6, 4, 5]),
        ("loo", "gcv", [3, 1, 2]),
        ("gcv", "loo_loss", [6, 4, 5]),
    ],
)
def test_criterion_defaults_to_that_of_selection(selection, criterion, values, figure):
    display = RoundsDisplay.from_estimator(
        HandMadeClassifier(selection).fit(),
        criterion=criterion,
        ax=figure.subplots(1, 3),
    )
    assert list(display.lines_[1].get_ydata()) == values


def test_unknown_criterion_refused(figure):
    with pytest.raises(ValueError, match="criterion='accuracy' is unknown"):
        RoundsDisplay.from_estimator(HandMadeClassifier().fit(), criterion="accuracy")


def test_one_spectrum_per_round_and_kept_one_highlighted(figure):
    estimator = HandMadeClassifier().fit()
    display = RoundsDisplay.from_estimator(estimator, ax=figure.subplots())
    shares = [line.get_ydata() for line in display.spectrum_lines_]
    np.testing.assert_array_equal(
        shares, estimator.learned_layers_[0].history_["spectrum"]
    )
    widths = [line.get_linewidth() for line in display.spectrum_lines_]
    assert widths[1] > max(widths[0], widths[2])
    texts = [text.get_text() for text in display.axes_[2].get_legend().get_texts()]
    assert texts == ["round 0", "round 1, kept", "round 2"]


@pytest.mark.parametrize(("size", "scale"), [(9, "linear"), (576, "log")])
def test_long_spectra_on_log_axis_without_markers(size, scale, figure):
    display = RoundsDisplay(
        rounds=range(9),
        score=np.arange(9),
        criterion=np.arange(9),
        spectrum=np.exp(-np.outer(np.arange(9), np.arange(size))),
        best_round=4,
    ).plot(figure.subplots())
    axes = display.axes_[2]
    assert axes.get_xscale() == scale and axes.get_yscale() == "log"
    assert (display.spectrum_lines_[0].get_marker() == "o") == (scale == "linear")
    # Rounding errors do not stretch the axis, and nine rounds not the legend.
    assert axes.get_ylim()[0] >= 1e-7
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["round 0", "round 4, kept", "round 8"]


def test_spectrum_of_constant_predictor_drawn_empty(figure):
    estimator = HandMadeClassifier().fit()
    estimator.learned_layers_[0].history_["spectrum"] = np.full((3, 4), np.nan)
    RoundsDisplay.from_estimator(estimator, ax=figure.subplots())
    assert as_png(figure)


def test_rounds_default_to_best_layer(deep, figure):
    axes = figure.subplots(2, 3)
    best, first = deep.best_layer_, 1 - deep.best_layer_
    for row, options, index in ((0, {}, best), (1, {"layer": first}, first)):
        display = RoundsDisplay.from_estimator(deep, ax=axes[row], **options)
        learned = deep.learned_layers_[index].history_
        np.testing.assert_array_equal(display.criterion, learned["gcv"])
        assert len(display.spectrum_lines_[0].get_ydata()) == (9 if index == 0 else 45)
