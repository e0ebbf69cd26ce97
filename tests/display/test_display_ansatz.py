"""Ansatz reports are drawn: by layer, by step of training, and layer by layer."""

import numpy as np
import pytest
import torch
from display_fixtures import *  # noqa: F403
from torch import nn

from skconvrfm import AnsatzScorer
from skconvrfm.ansatz import AnsatzReport, LayerReport
from skconvrfm.display import AnsatzDisplay, AnsatzLayerDisplay, AnsatzTrainingDisplay

# ----------------------------------------------------------------- all layers


def test_correlations_have_a_curve_and_standard_errors_bars(figure):
    axes = figure.subplots()
    display = AnsatzDisplay(
        names=["a", "b"], correlation=[0.5, 0.7], standard_error=[0.1, np.nan]
    )
    assert len(display.plot(axes).lines_) == 1  # there is no baseline
    [bars] = axes.collections
    np.testing.assert_allclose(bars.get_segments()[0], [[0, 0.4], [0, 0.6]])


def test_displays_draw_in_a_new_figure(pyplot):
    display = AnsatzDisplay(names=["conv1"], correlation=[0.5]).plot()
    assert display.figure_ is pyplot.gcf()
    display = AnsatzTrainingDisplay.from_reports(REPORTS)
    assert display.figure_ is pyplot.gcf()


# ----------------------------------------------------------- steps of training


def made_report(power=1.0, **correlations):
    rows = [
        LayerReport(name, "full", (4, 3, 3, 3), correlation=value)
        for name, value in correlations.items()
    ]
    return AnsatzReport(rows, correlation="pearson", agop_power=power)


REPORTS = {
    5: made_report(conv1=0.8, conv2=0.7),
    0: made_report(conv1=0.9, conv2=0.5),
    20: made_report(conv1=0.9),
}


def test_each_layer_has_a_curve_over_sorted_steps(figure):
    display = AnsatzTrainingDisplay.from_reports(REPORTS, ax=figure.subplots())
    first, second = display.lines_
    np.testing.assert_array_equal(first.get_xdata(), [0, 5, 20])
    np.testing.assert_array_equal(first.get_ydata(), [0.9, 0.8, 0.9])
    np.testing.assert_array_equal(second.get_ydata(), [0.5, 0.7, np.nan])
    assert display.ax_.get_xscale() == "symlog"
    texts = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert texts == ["conv1", "conv2"]


def test_chosen_layers_are_drawn_alone(figure):
    options = {"layers": ["conv2"], "step_name": "Epoch", "ax": figure.subplots()}
    display = AnsatzTrainingDisplay.from_reports(REPORTS, **options)
    assert [line.get_label() for line in display.lines_] == ["conv2"]
    assert display.ax_.get_xlabel() == "Epoch"


def test_of_several_powers_the_first_is_drawn_and_named(figure):
    reports = {0: made_report((0.5, 1.0), conv1=np.array([0.3, 0.4]))}
    display = AnsatzTrainingDisplay.from_reports(reports, ax=figure.subplots())
    assert display.lines_[0].get_ydata() == [0.3]
    assert display.ax_.get_ylabel() == "Pearson correlation, AGOP$^{0.5}$"


def test_no_report_and_unknown_layers_are_refused():
    with pytest.raises(ValueError, match="reports is empty: pass a dict of reports"):
        AnsatzTrainingDisplay.from_reports({})
    with pytest.raises(ValueError, match="layers has 'fc', which is no layer"):
        AnsatzTrainingDisplay.from_reports(REPORTS, layers=["fc"])


# ------------------------------------------------------------------- one layer


@pytest.fixture
def report(rng):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1),
        nn.ConvTranspose2d(4, 2, 2),
        nn.Flatten(),
    )
    X = rng.normal(size=(6, 8, 8, 3))
    return AnsatzScorer(agop_power=(0.5, 1.0)).report(network, X)


def test_matrices_and_their_eigenvectors_are_drawn(report, figure):
    ax = figure.add_subplot(1, 1, 1)
    display = AnsatzLayerDisplay.from_report(report, "0", n_patches=3, ax=ax)
    assert display.axes_.shape == (2, 4) and display.figure_ is figure
    covariance, agop = report.matrices("0")
    np.testing.assert_array_equal(display.images_[0].get_array(), covariance[0])
    peak = np.quantile(np.abs(covariance[0]), 0.99)
    assert display.images_[0].get_clim() == (-peak, peak)
    root = np.asarray(display.agop)
    np.testing.assert_allclose(root @ root, agop[0], atol=1e-9 * agop.max())
    assert display.images_[1].get_array().shape == (3, 3, 3)
    assert display.axes_[1, 0].get_title(loc="left") == "0 patch AGOP"


@pytest.mark.parametrize(
    ("name", "shape"), [("2", (3, 3, 3)), ("4", (1, 1, 6)), ("5", (1, 1, 4))]
)
def test_layers_of_every_kind_have_a_picture(name, shape, report, figure):
    ax = figure.add_subplot(1, 1, 1)
    display = AnsatzLayerDisplay.from_report(report, name, n_patches=99, ax=ax)
    assert display.patch_shape == shape
    assert display.axes_.shape == (2, 1 + np.prod(shape))


def test_wrong_names_and_groups_are_refused(report):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="name='conv' has no matrices: take one of 0,"):
        AnsatzLayerDisplay.from_report(report, "conv")
    with pytest.raises(ValueError, match="group=2 must be from 0 to 1, the groups"):
        AnsatzLayerDisplay.from_report(report, "2", group=2)
