"""The displays show what the estimator learned, and say what they lack."""

import sys

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import NotFittedError

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import make_framed_digits
from skconvrfm.display import PatchAGOPDisplay, RoundsDisplay


@pytest.fixture
def figure():
    """Return a figure that needs no screen."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    return Figure(layout="constrained")


@pytest.fixture
def pyplot():
    """Return pyplot without a screen; figures are closed afterwards."""
    pytest.importorskip("matplotlib")
    import matplotlib.pyplot as plt

    backend = plt.get_backend()
    plt.switch_backend("agg")
    yield plt
    plt.close("all")
    plt.switch_backend(backend)


@pytest.fixture(scope="module")
def classifier():
    """Return a classifier fitted on a few framed digits."""
    X, y = make_framed_digits(random_state=0)
    model = ConvRFMClassifier(depth=1, patch_size=(2, 3), n_rounds=2, device="cpu")
    return model.fit(X[:60], y[:60])


class HandMade(BaseEstimator):
    """An estimator whose fitted attributes are written by hand."""

    def __init__(self, selection="gcv"):
        self.selection = selection

    def fit(self, agop=None, image_shape=None, patch_shape=None):
        self.history_ = {
            "round": np.arange(3),
            "gcv": np.array([3.0, 1.0, 2.0]),
            "loo_loss": np.array([6.0, 4.0, 5.0]),
            "loo_score": np.array([0.7, 0.9, 0.8]),
        }
        self.best_round_ = 1
        self.patch_agop_ = agop
        self.image_shape_ = image_shape
        self.patch_shape_ = patch_shape
        return self


class HandMadeClassifier(ClassifierMixin, HandMade):
    pass


class HandMadeRegressor(RegressorMixin, HandMade):
    pass


def rank_one(patch):
    """Return the AGOP of one patch of shape (rows, columns, channels)."""
    vector = np.moveaxis(patch, -1, 0).ravel()
    return np.outer(vector, vector)


# ------------------------------------------------------------------- rounds


def test_rounds_are_drawn_from_the_history(classifier, figure):
    display = RoundsDisplay.from_estimator(classifier, ax=figure.subplots(1, 2))
    for line, key in zip(display.lines_, ("loo_score", "gcv"), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), classifier.history_["round"])
        np.testing.assert_array_equal(line.get_ydata(), classifier.history_[key])
    assert display.figure_ is figure


def test_kept_round_is_marked_on_both_curves(figure):
    display = RoundsDisplay.from_estimator(
        HandMadeClassifier().fit(), ax=figure.subplots(1, 2)
    )
    for axes, height in zip(display.axes_, (0.9, 1.0), strict=True):
        mark = axes.get_lines()[1]
        assert (mark.get_xdata(), mark.get_ydata()) == (1, height)
        assert axes.get_legend().get_texts()[0].get_text() == "round 1 is kept"


@pytest.mark.parametrize(
    ("estimator", "name"),
    [(HandMadeClassifier(), "accuracy"), (HandMadeRegressor(), "R²")],
)
def test_score_is_named_after_the_estimator(estimator, name, figure):
    display = RoundsDisplay.from_estimator(estimator.fit(), ax=figure.subplots(1, 2))
    assert display.axes_[0].get_ylabel() == f"Leave-one-out {name}"


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
def test_criterion_is_the_one_that_chose_unless_said(
    selection, criterion, values, figure
):
    display = RoundsDisplay.from_estimator(
        HandMadeClassifier(selection).fit(),
        criterion=criterion,
        ax=figure.subplots(1, 2),
    )
    assert list(display.lines_[1].get_ydata()) == values


def test_rounds_make_their_own_figure(pyplot):
    display = RoundsDisplay.from_estimator(HandMadeClassifier().fit())
    assert display.figure_ is pyplot.gcf()
    assert display.axes_.shape == (2,)


def test_rounds_refuse_unknown_criterion_and_single_axes(figure):
    estimator = HandMadeClassifier().fit()
    with pytest.raises(ValueError, match="criterion='accuracy' is unknown"):
        RoundsDisplay.from_estimator(estimator, criterion="accuracy")
    with pytest.raises(ValueError, match="ax must hold 2 axes.*got 1"):
        RoundsDisplay.from_estimator(estimator, ax=figure.subplots())


# ------------------------------------------------------------------ pattern


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_eigenvector_is_the_pattern_with_channels_last(channels, figure):
    pattern = np.random.RandomState(0).normal(size=(2, 3, channels))
    pattern *= np.sign(pattern.flat[np.abs(pattern).argmax()])
    estimator = HandMade().fit(rank_one(pattern), (9, 9, channels), (2, 3))
    display = PatchAGOPDisplay.from_estimator(estimator, n_components=1, fig=figure)
    np.testing.assert_allclose(
        display.eigenvectors[0], pattern / np.linalg.norm(pattern), atol=1e-12
    )
    np.testing.assert_allclose(display.eigenvalue_shares, [1.0])


def test_eigenvectors_come_by_eigenvalue_with_their_shares(figure):
    estimator = HandMade().fit(np.diag([1.0, 6.0, 0.0, 3.0]), (9, 9, 1), (2, 2))
    display = PatchAGOPDisplay.from_estimator(estimator, n_components=3, fig=figure)
    np.testing.assert_allclose(display.eigenvalue_shares, [0.6, 0.3, 0.1])
    flat = display.eigenvectors.reshape(3, 4)
    np.testing.assert_allclose(flat, np.eye(4)[[1, 3, 0]])
    titles = [axes.get_title() for axes in display.axes_]
    assert titles == ["60 %", "30 %", "10 %"]


def test_one_channel_has_zero_in_the_middle_of_the_colours(figure):
    pattern = np.array([[1.0, -3.0], [0.0, 2.0]])[..., None]
    display = PatchAGOPDisplay(eigenvectors=[pattern], eigenvalue_shares=[1.0])
    image = display.plot(fig=figure).images_[0]
    np.testing.assert_array_equal(image.get_array(), pattern[..., 0])
    assert image.get_clim() == (-3.0, 3.0)


def test_three_channels_are_rgb_around_grey(figure):
    pattern = np.random.RandomState(0).normal(size=(4, 4, 3))
    pattern[0, 0] = 0.0
    display = PatchAGOPDisplay(eigenvectors=[pattern], eigenvalue_shares=[1.0])
    pixels = display.plot(fig=figure).images_[0].get_array()
    assert pixels.shape == (4, 4, 3)
    assert pixels.min() >= 0.0 and pixels.max() <= 1.0
    np.testing.assert_array_equal(pixels[0, 0], 0.5)
    np.testing.assert_allclose(np.corrcoef(pixels.ravel(), pattern.ravel())[0, 1], 1.0)


def test_other_channels_are_shown_by_their_norm(figure):
    pattern = np.zeros((2, 2, 2))
    pattern[0, 1] = 3.0, -4.0
    display = PatchAGOPDisplay(eigenvectors=[pattern], eigenvalue_shares=[1.0])
    pixels = display.plot(fig=figure).images_[0].get_array()
    np.testing.assert_allclose(pixels, [[0.0, 5.0], [0.0, 0.0]])


def test_no_more_components_than_there_are(classifier, figure):
    display = PatchAGOPDisplay.from_estimator(classifier, n_components=50, fig=figure)
    assert display.eigenvectors.shape == (6, 2, 3, 1)
    assert len(display.axes_) == len(display.images_) == 6
    assert np.sum(display.eigenvalue_shares) == pytest.approx(1.0)


def test_agop_of_a_constant_predictor_is_drawn_with_shares_of_zero(figure):
    estimator = HandMade().fit(np.zeros((4, 4)), (9, 9, 1), (2, 2))
    display = PatchAGOPDisplay.from_estimator(estimator, fig=figure)
    np.testing.assert_array_equal(display.eigenvalue_shares, 0.0)


def test_rows_of_images_leave_no_empty_axes(figure):
    display = PatchAGOPDisplay(
        eigenvectors=np.ones((5, 2, 2, 1)), eigenvalue_shares=np.full(5, 0.2)
    )
    display.plot(n_columns=3, fig=figure)
    assert len(figure.axes) == len(display.axes_) == 5


def test_pattern_makes_its_own_figure(classifier, pyplot):
    display = PatchAGOPDisplay.from_estimator(classifier)
    assert display.figure_ is pyplot.gcf()


def test_pattern_refuses_no_components(classifier):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="n_components=0"):
        PatchAGOPDisplay.from_estimator(classifier, n_components=0)


# --------------------------------------------------------------------- both


@pytest.mark.parametrize("display", [RoundsDisplay, PatchAGOPDisplay])
def test_unfitted_estimator_is_refused(display):
    pytest.importorskip("matplotlib")
    with pytest.raises(NotFittedError, match="ConvRFMClassifier"):
        display.from_estimator(ConvRFMClassifier())


@pytest.mark.parametrize("display", [RoundsDisplay, PatchAGOPDisplay])
def test_without_matplotlib_the_extra_is_named(display, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "skconvrfm\[plot\]"'):
        display.from_estimator(HandMade().fit())
