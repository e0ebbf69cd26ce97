"""Correlations of an ansatz report are drawn by layer."""

import numpy as np
from display_fixtures import *  # noqa: F403

from skconvrfm.display import AnsatzDisplay


def test_correlations_without_baseline_drawn_as_one_curve(figure):
    display = AnsatzDisplay(names=["conv1"], correlation=[0.5])
    assert len(display.plot(figure.subplots()).lines_) == 1


def test_standard_errors_drawn_as_bars(figure):
    display = AnsatzDisplay(
        names=["a", "b"], correlation=[0.5, 0.7], standard_error=[0.1, np.nan]
    )
    axes = figure.subplots()
    display.plot(axes)
    [bars] = axes.collections
    np.testing.assert_allclose(bars.get_segments()[0], [[0, 0.4], [0, 0.6]])


def test_correlations_drawn_in_new_figure(pyplot):
    display = AnsatzDisplay(names=["conv1"], correlation=[0.5]).plot()
    assert display.figure_ is pyplot.gcf()
