"""The displays show what the estimator learned, and say what they lack."""

import io
import sys

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.core.images import convolution_layers, extract_patches
from skconvrfm.datasets import make_framed_digits, make_star
from skconvrfm.display import PatchFiltersDisplay, RoundsDisplay, SaliencyDisplay

DISPLAYS = [RoundsDisplay, PatchFiltersDisplay, SaliencyDisplay]


@pytest.fixture
def figure():
    """Return a figure that needs no screen."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    return Figure(figsize=(16, 8), layout="constrained")


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


@pytest.fixture(autouse=True)
def no_figure_left_open():
    """Let no test but those that ask for pyplot leave a figure open."""
    yield
    plt = sys.modules.get("matplotlib.pyplot")
    assert plt is None or not plt.get_fignums()


@pytest.fixture(scope="module")
def classifier():
    """Return a classifier fitted on a few framed digits."""
    X, y = make_framed_digits(random_state=0)
    model = ConvRFMClassifier(depth=1, patch_size=(2, 3), n_rounds=2, device="cpu")
    return model.fit(X[:60], y[:60])


@pytest.fixture(scope="module")
def framed():
    """Return a few framed digits."""
    X, y = make_framed_digits(random_state=0)
    return X[:40], y[:40]


@pytest.fixture(scope="module")
def deep(framed):
    """Return a classifier of two layers, the second of which sees five channels."""
    X, y = framed
    model = ConvRFMClassifier(depth=2, feature_layers=2, n_filters=5, n_rounds=1)
    return model.fit(X, y)


@pytest.fixture(scope="module")
def transformer(framed):
    """Return a transformer whose patches are padded with zeros."""
    X, y = framed
    model = PatchAGOPTransformer(depth=1, patch_size=(2, 3), n_rounds=1, padding="same")
    return model.fit(X, y)


def draw(display, estimator, X, **options):
    """Draw any of the displays; one of them needs images."""
    if display is SaliencyDisplay:
        options["X"] = X
    return display.from_estimator(estimator, **options)


def as_png(figure):
    """Return the bytes of a figure as a PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


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
            "spectrum": np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]]),
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


@pytest.mark.thorough
def test_rounds_chosen_on_held_out_rows_are_drawn_with_their_loss(figure):
    X, y = make_star(24, random_state=0)
    model = ConvRFMClassifier(n_rounds=1, depth=1, selection="holdout").fit(X, y)
    display = RoundsDisplay.from_estimator(model, ax=figure.subplots(1, 3))
    np.testing.assert_array_equal(display.criterion, model.history_["holdout_loss"])
    with pytest.raises(ValueError, match="'gcv', 'loo_loss'"):
        model.set_params(selection="gcv").fit(X, y)
        RoundsDisplay.from_estimator(model, criterion="holdout_loss")


def test_rounds_are_drawn_from_the_history(classifier, figure):
    display = RoundsDisplay.from_estimator(classifier, ax=figure.subplots(1, 3))
    for line, key in zip(display.lines_, ("loo_score", "gcv"), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), classifier.history_["round"])
        np.testing.assert_array_equal(line.get_ydata(), classifier.history_[key])
    assert display.figure_ is figure


def test_kept_round_is_marked_on_both_curves(figure):
    display = RoundsDisplay.from_estimator(
        HandMadeClassifier().fit(), ax=figure.subplots(1, 3)
    )
    for axes, height in zip(display.axes_[:2], (0.9, 1.0), strict=True):
        mark = axes.get_lines()[1]
        assert (mark.get_xdata(), mark.get_ydata()) == (1, height)
        assert axes.get_legend().get_texts()[0].get_text() == "round 1 is kept"


@pytest.mark.parametrize(
    ("estimator", "name"),
    [(HandMadeClassifier(), "accuracy"), (HandMadeRegressor(), "R²")],
)
def test_score_is_named_after_the_estimator(estimator, name, figure):
    display = RoundsDisplay.from_estimator(estimator.fit(), ax=figure.subplots(1, 3))
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
        ax=figure.subplots(1, 3),
    )
    assert list(display.lines_[1].get_ydata()) == values


def test_rounds_make_their_own_figure(pyplot):
    display = RoundsDisplay.from_estimator(HandMadeClassifier().fit())
    assert display.figure_ is pyplot.gcf()
    assert display.axes_.shape == (3,)


def test_rounds_refuse_an_unknown_criterion(figure):
    with pytest.raises(ValueError, match="criterion='accuracy' is unknown"):
        RoundsDisplay.from_estimator(HandMadeClassifier().fit(), criterion="accuracy")


def test_spectrum_has_a_curve_a_round_and_the_kept_one_stands_out(figure):
    estimator = HandMadeClassifier().fit()
    display = RoundsDisplay.from_estimator(estimator, ax=figure.subplots())
    shares = [line.get_ydata() for line in display.spectrum_lines_]
    np.testing.assert_array_equal(shares, estimator.history_["spectrum"])
    widths = [line.get_linewidth() for line in display.spectrum_lines_]
    assert widths[1] > max(widths[0], widths[2])
    texts = [text.get_text() for text in display.axes_[2].get_legend().get_texts()]
    assert texts == ["round 0", "round 1, kept", "round 2"]


@pytest.mark.parametrize(("size", "scale"), [(9, "linear"), (576, "log")])
def test_long_spectra_are_drawn_on_a_log_axis_without_markers(size, scale, figure):
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


def test_spectrum_of_a_constant_predictor_is_drawn_empty(figure):
    estimator = HandMadeClassifier().fit()
    estimator.history_["spectrum"] = np.full((3, 4), np.nan)
    RoundsDisplay.from_estimator(estimator, ax=figure.subplots())
    assert as_png(figure)


def test_rounds_are_those_of_the_best_layer_unless_said(deep, figure):
    axes = figure.subplots(2, 3)
    best, first = deep.best_layer_, 1 - deep.best_layer_
    for row, options, index in ((0, {}, best), (1, {"layer": first}, first)):
        display = RoundsDisplay.from_estimator(deep, ax=axes[row], **options)
        learned = deep.layers_[index].history_
        np.testing.assert_array_equal(display.criterion, learned["gcv"])
        assert len(display.spectrum_lines_[0].get_ydata()) == (9 if index == 0 else 45)


def test_a_transformer_names_a_score_as_such(transformer, figure):
    display = RoundsDisplay.from_estimator(transformer, ax=figure.subplots())
    assert display.axes_[0].get_ylabel() == "Leave-one-out score"


# ------------------------------------------------------------------ pattern


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_eigenvector_is_the_pattern_with_channels_last(channels, figure):
    pattern = np.random.RandomState(0).normal(size=(2, 3, channels))
    pattern *= np.sign(pattern.flat[np.abs(pattern).argmax()])
    estimator = HandMade().fit(rank_one(pattern), (9, 9, channels), (2, 3))
    display = PatchFiltersDisplay.from_estimator(
        estimator, n_components=1, ax=figure.subplots()
    )
    np.testing.assert_allclose(
        display.eigenvectors[0], pattern / np.linalg.norm(pattern), atol=1e-12
    )
    np.testing.assert_allclose(display.eigenvalue_shares, [1.0])


def test_eigenvectors_come_by_eigenvalue_with_their_shares(figure):
    estimator = HandMade().fit(np.diag([1.0, 6.0, 0.0, 3.0]), (9, 9, 1), (2, 2))
    display = PatchFiltersDisplay.from_estimator(
        estimator, n_components=3, ax=figure.subplots()
    )
    np.testing.assert_allclose(display.eigenvalue_shares, [0.6, 0.3, 0.1])
    flat = display.eigenvectors.reshape(3, 4)
    np.testing.assert_allclose(flat, np.eye(4)[[1, 3, 0]])
    titles = [axes.get_title() for axes in display.axes_]
    assert titles == ["60 %", "30 %", "10 %"]


def test_one_channel_has_zero_in_the_middle_of_the_colours(figure):
    pattern = np.array([[1.0, -3.0], [0.0, 2.0]])[..., None]
    display = PatchFiltersDisplay(eigenvectors=[pattern], eigenvalue_shares=[1.0])
    image = display.plot(figure.subplots()).images_[0]
    np.testing.assert_array_equal(image.get_array(), pattern[..., 0])
    assert image.get_clim() == (-3.0, 3.0)


def test_three_channels_are_rgb_around_grey(figure):
    pattern = np.random.RandomState(0).normal(size=(4, 4, 3))
    pattern[0, 0] = 0.0
    display = PatchFiltersDisplay(eigenvectors=[pattern], eigenvalue_shares=[1.0])
    pixels = display.plot(figure.subplots()).images_[0].get_array()
    assert pixels.shape == (4, 4, 3)
    assert pixels.min() >= 0.0 and pixels.max() <= 1.0
    np.testing.assert_array_equal(pixels[0, 0], 0.5)
    np.testing.assert_allclose(np.corrcoef(pixels.ravel(), pattern.ravel())[0, 1], 1.0)


def test_other_channels_are_shown_by_their_norm(figure):
    pattern = np.zeros((2, 2, 2))
    pattern[0, 1] = 3.0, -4.0
    display = PatchFiltersDisplay(eigenvectors=[pattern], eigenvalue_shares=[1.0])
    pixels = display.plot(figure.subplots()).images_[0].get_array()
    np.testing.assert_allclose(pixels, [[0.0, 5.0], [0.0, 0.0]])


def test_no_more_components_than_there_are(classifier, figure):
    display = PatchFiltersDisplay.from_estimator(
        classifier, n_components=50, ax=figure.subplots()
    )
    assert display.eigenvectors.shape == (6, 2, 3, 1)
    assert len(display.axes_) == len(display.images_) == 6
    assert np.sum(display.eigenvalue_shares) == pytest.approx(1.0)


def test_agop_of_a_constant_predictor_is_drawn_with_shares_of_zero(figure):
    estimator = HandMade().fit(np.zeros((4, 4)), (9, 9, 1), (2, 2))
    display = PatchFiltersDisplay.from_estimator(estimator, ax=figure.subplots())
    np.testing.assert_array_equal(display.eigenvalue_shares, 0.0)


def test_rows_of_images_leave_no_empty_axes(figure):
    display = PatchFiltersDisplay(
        eigenvectors=np.ones((5, 2, 2, 1)), eigenvalue_shares=np.full(5, 0.2)
    )
    display.plot(figure.subplots(), n_columns=3)
    assert sum(axes.axison for axes in figure.axes) == len(display.axes_) == 5


def test_pattern_makes_its_own_figure(classifier, pyplot):
    display = PatchFiltersDisplay.from_estimator(classifier)
    assert display.figure_ is pyplot.gcf()


def test_pattern_refuses_no_components(classifier):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="n_components=0"):
        PatchFiltersDisplay.from_estimator(classifier, n_components=0)


def test_channels_of_a_deep_layer_are_the_filters_below(deep, figure):
    axes = figure.subplots(2)
    for layer, channels in ((0, 1), (1, 5)):
        display = PatchFiltersDisplay.from_estimator(deep, layer=layer, ax=axes[layer])
        assert display.eigenvectors.shape == (8, 3, 3, channels)
        vectors = np.moveaxis(display.eigenvectors, -1, 1).reshape(8, -1)
        agop = deep.layers_[layer].patch_agop_
        np.testing.assert_allclose(
            vectors @ agop @ vectors.T,
            np.diag(display.eigenvalue_shares * np.trace(agop)),
            atol=1e-6 * np.trace(agop),
        )


def test_filters_are_those_of_the_best_layer_unless_said(deep, figure):
    display = PatchFiltersDisplay.from_estimator(deep, ax=figure.subplots())
    channels = (1, 5)[deep.best_layer_]
    assert display.eigenvectors.shape == (8, 3, 3, channels)


# ----------------------------------------------------------------- saliency


def patches_of(images, model):
    """Return patches of shape (n, rows, columns, d)."""
    import torch

    [layer] = convolution_layers(
        model.image_shape_, model.patch_size, model.padding, depth=1
    )
    images = torch.tensor(np.asarray(images, dtype=np.float64))
    return np.moveaxis(extract_patches(images, layer).numpy(), -1, 0)


@pytest.mark.parametrize("name", ["classifier", "deep", "transformer"])
def test_saliency_is_the_length_of_the_transformed_patch(name, framed, figure, request):
    model, (X, _) = request.getfixturevalue(name), framed
    display = SaliencyDisplay.from_estimator(
        model, X, component=1, ax=figure.subplots()
    )
    transform = (
        model.patch_transform_
        if name == "transformer"
        else model.layers_[0].filter_transform_
    )
    patches = patches_of(X[:4, ..., None], model)
    np.testing.assert_allclose(
        display.saliency, np.linalg.norm(patches @ transform, axis=-1), rtol=1e-4
    )
    values, vectors = np.linalg.eigh(transform @ transform.T)
    expected = patches @ vectors[:, -2]
    expected *= np.sign(np.sum(expected * display.projections))
    np.testing.assert_allclose(display.projections, expected, atol=1e-4)
    assert display.axes_[0, 2].get_title() == "Eigenvector 1"


def test_the_first_images_are_drawn_four_unless_said(classifier, framed, figure):
    X, _ = framed
    for number, (options, rows) in enumerate(
        [({}, 4), ({"n_images": 2}, 2), ({"n_images": 99}, 40)], start=1
    ):
        ax = figure.add_subplot(1, 3, number)
        display = SaliencyDisplay.from_estimator(classifier, X, ax=ax, **options)
        assert display.axes_.shape == (rows, 3) and len(display.images_) == 3 * rows
        np.testing.assert_array_equal(display.images[..., 0], X[:rows])


def test_flat_rows_lists_and_bytes_are_images_too(framed, figure):
    X, y = (framed[0] * 50 + 120).clip(0, 255).astype(np.uint8), framed[1]
    model = ConvRFMClassifier(depth=1, n_rounds=1, bias=30).fit(X, y)
    axes = figure.subplots(3)
    forms = X, X.reshape(len(X), -1), X.tolist()
    drawn = [
        SaliencyDisplay.from_estimator(model, images, ax=ax)
        for images, ax in zip(forms, axes, strict=True)
    ]
    for display in drawn[1:]:
        np.testing.assert_allclose(display.saliency, drawn[0].saliency, rtol=1e-4)


def test_scales_are_common_to_all_images_and_the_signed_one_is_symmetric(
    classifier, framed, figure
):
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
def test_a_value_lies_on_the_centre_of_its_patch(name, extent, framed, figure, request):
    display = SaliencyDisplay.from_estimator(
        request.getfixturevalue(name), framed[0], ax=figure.subplots()
    )
    for image in display.images_[1:3]:
        assert tuple(image.get_extent()) == extent
        assert image.axes.get_xlim() == (-0.5, 11.5)
        assert image.axes.get_ylim() == (11.5, -0.5)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_images_are_stretched_and_colour_stays_colour(channels, figure):
    image = np.random.RandomState(0).normal(size=(1, 4, 4, channels)) * 300
    zeros = np.zeros((1, 2, 2))
    display = SaliencyDisplay(images=image, saliency=zeros, projections=zeros)
    pixels = display.plot(figure.subplots()).images_[0].get_array()
    assert pixels.shape == ((4, 4, 3) if channels == 3 else (4, 4))
    assert (pixels.min(), pixels.max()) == (0, 1)
    assert as_png(figure)


def test_colour_images_with_channels_first_are_understood(figure):
    X, y = make_star(20, size=15, random_state=0)
    planes = np.moveaxis(X, -1, 1)
    model = ConvRFMRegressor(depth=1, n_rounds=1, channels="first").fit(planes, y)
    display = SaliencyDisplay.from_estimator(model, planes, ax=figure.subplots())
    np.testing.assert_array_equal(display.images, X[:4])


@pytest.mark.parametrize(("shape", "aspect"), [((1, 30), "auto"), ((6, 30), 1.0)])
def test_pixels_are_squares_unless_the_image_is_a_thread(shape, aspect, figure):
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
def test_saliency_refuses_what_it_cannot_draw(options, message, classifier):
    pytest.importorskip("matplotlib")
    options = {"X": np.zeros((2, 144)), **options}
    with pytest.raises(ValueError, match=message):
        SaliencyDisplay.from_estimator(classifier, **options)


# ---------------------------------------------------------------------- all


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["classifier", "deep", "transformer"])
@pytest.mark.parametrize("display", DISPLAYS)
def test_all_displays_draw_all_estimators(display, name, framed, figure, request):
    drawn = draw(
        display, request.getfixturevalue(name), framed[0], ax=figure.subplots()
    )
    assert isinstance(drawn, display)
    assert as_png(figure).startswith(b"\x89PNG")
    # Drawn once more elsewhere, it is the same object.
    figure.clear()
    assert drawn.plot(figure.subplots()) is drawn


@pytest.mark.parametrize("display", DISPLAYS)
def test_without_ax_there_is_a_new_figure(display, classifier, framed, pyplot):
    drawn = draw(display, classifier, framed[0])
    assert drawn.figure_ is pyplot.gcf()
    assert drawn.figure_.axes == list(np.ravel(drawn.axes_))
    assert as_png(drawn.figure_).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("display", "n_axes"), [*zip(DISPLAYS, (3, 6, 12), strict=True)]
)
def test_given_axes_are_drawn_in(display, n_axes, classifier, framed, figure):
    axes = figure.subplots(3, n_axes // 3)
    for given in (axes, list(axes.ravel())):
        drawn = draw(display, classifier, framed[0], ax=given)
        assert list(np.ravel(drawn.axes_)) == list(axes.ravel())
        assert figure.axes == list(axes.ravel())
        assert drawn.figure_ is figure


@pytest.mark.parametrize("display", DISPLAYS)
def test_one_axes_is_divided_and_its_neighbour_untouched(
    display, classifier, framed, figure
):
    left, right = figure.subplots(1, 2)
    drawn = draw(display, classifier, framed[0], ax=left)
    figure.draw_without_rendering()
    assert not left.axison and right.axison and not right.has_data()
    for axes in np.ravel(drawn.axes_):
        assert axes.get_position().x1 <= right.get_position().x0


@pytest.mark.parametrize("display", DISPLAYS)
def test_axes_of_a_wrong_number_or_kind_are_refused(
    display, classifier, framed, figure
):
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
def test_a_layer_that_is_not_there_is_refused(display, layer, deep, transformer):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=f"layer={layer!r} is not one of the 2"):
        display.from_estimator(deep, layer=layer)
    with pytest.raises(ValueError, match=f"layer={layer!r} is not one of the 1"):
        display.from_estimator(transformer, layer=layer)


@pytest.mark.parametrize("display", DISPLAYS)
@pytest.mark.parametrize("estimator", [ConvRFMClassifier(), PatchAGOPTransformer()])
def test_unfitted_estimator_is_refused(display, estimator, framed):
    pytest.importorskip("matplotlib")
    with pytest.raises(NotFittedError, match=type(estimator).__name__):
        draw(display, estimator, framed[0])


@pytest.mark.parametrize("display", DISPLAYS)
def test_other_estimators_are_refused(display, framed):
    pytest.importorskip("matplotlib")
    other = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    with pytest.raises(TypeError, match="LogisticRegression learns no patch metric"):
        draw(display, other, framed[0])


@pytest.mark.parametrize("display", DISPLAYS)
def test_without_matplotlib_the_extra_is_named(display, framed, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "skconvrfm\[plot\]"'):
        draw(display, HandMade().fit(), framed[0])
