"""Correlations of several ansatz reports are drawn over the steps of training."""

import numpy as np
import pytest
from display_fixtures import *  # noqa: F403

from skconvrfm.ansatz import AnsatzReport, LayerReport
from skconvrfm.display import AnsatzTrainingDisplay


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
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == [
        "conv1",
        "conv2",
    ]


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


def test_curves_are_drawn_in_a_new_figure(pyplot):
    display = AnsatzTrainingDisplay.from_reports(REPORTS)
    assert display.figure_ is pyplot.gcf()
