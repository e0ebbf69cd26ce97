"""Reports as sequence, table, data frame and picture."""

import pickle
import sys

import numpy as np
import pytest

from skconvrfm.ansatz import AnsatzReport, LayerReport
from skconvrfm.display import AnsatzDisplay


@pytest.fixture
def report():
    """Return a report written by hand."""
    rows = [
        LayerReport(
            *("conv1", "Conv2d", (8, 3, 3, 3), (2, 2), 1, 10, 90, 0.9, 0.01, 0.5, 0.1)
        ),
        LayerReport("conv2", "Conv1d", (4, 8, 3), reason="is not used"),
    ]
    return AnsatzReport(rows, correlation="cosine", agop_power=0.5)


def test_report_is_a_sequence(report):
    assert len(report) == 2
    assert report[-1].name == "conv2"
    assert [row.name for row in report] == ["conv1", "conv2"]
    np.testing.assert_array_equal(report.correlations(), [0.9])
    assert repr(report) == (
        "<AnsatzReport of 2 layers, correlation='cosine', agop_power=0.5>"
    )
    assert pickle.loads(pickle.dumps(report))[0] == report[0]


def test_report_prints_as_table(report):
    assert str(report).splitlines() == [
        "Cosine correlation of filter covariance and patch AGOP to the power 0.5",
        "",
        "layer  kind    weight         patches    correlation  baseline  drift",
        "-----  ------  -------------  -------  -------------  --------  -----",
        "conv1  Conv2d  8 x 3 x 3 x 3       90  0.900 ± 0.010     0.500  0.100",
        "conv2  Conv1d  4 x 8 x 3            -              -         -      -",
        "mean                                           0.900     0.500  0.100",
        "conv2: is not used",
    ]


def test_report_to_data_frame(report):
    pytest.importorskip("pandas")
    frame = report.to_frame()
    assert list(frame.columns) == [
        *("name", "kind", "weight_shape", "stride", "groups", "n_images", "n_patches"),
        *("correlation", "standard_error", "baseline_correlation", "baseline_drift"),
        "reason",
    ]
    assert frame.loc[0, "weight_shape"] == (8, 3, 3, 3)


def test_to_frame_without_pandas_names_it(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        report.to_frame()


def test_report_plot_draws_network_and_baseline(report):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    display = report.plot(axes)
    assert isinstance(display, AnsatzDisplay)
    assert display.ax_ is axes and display.figure_ is axes.figure
    network, baseline = display.lines_
    np.testing.assert_array_equal(network.get_ydata(), [0.9, np.nan])
    np.testing.assert_array_equal(baseline.get_ydata(), [0.5, np.nan])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["conv1", "conv2"]
    assert axes.get_ylabel() == "Cosine correlation, AGOP$^{0.5}$"
