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
    numbers = {"baseline": 0.5, "lift": 0.4, "lift_standard_error": 0.02}
    rows = [
        LayerReport("conv1", "full", (8, 3, 3, 3), 0.9, 0.01, cosine=0.95, **numbers),
        LayerReport("conv2", "full", (4, 8, 3), reason="is not used"),
        LayerReport("conv3", "depthwise", (4, 1, 3, 3), 0.8),
    ]
    return AnsatzReport(rows, correlation="cosine", agop_power=0.5)


def test_report_is_a_sequence(report):
    assert len(report) == 3
    assert report[-1].name == "conv3"
    assert [row.name for row in report[:2]] == ["conv1", "conv2"]
    np.testing.assert_array_equal(report.correlations(), [0.9, 0.8])
    assert repr(report) == (
        "<AnsatzReport of 3 layers, correlation='cosine', agop_power=0.5>"
    )
    assert repr(pickle.loads(pickle.dumps(report))[0]) == repr(report[0])


def test_report_prints_as_table(report):
    assert str(report).splitlines() == [
        "Cosine correlation of filter covariance and patch AGOP to the power 0.5, "
        "all outputs",
        "",
        "layer            kind       shape            correlation  baseline"
        "           lift  no trace  cosine",
        "---------------  ---------  -------------  -------------  --------"
        "  -------------  --------  ------",
        "conv1            full       8 x 3 x 3 x 3  0.900 ± 0.010     0.500"
        "  0.400 ± 0.020         -   0.950",
        "conv2            full       4 x 8 x 3                  -         -"
        "              -         -       -",
        "conv3            depthwise  4 x 1 x 3 x 3          0.800         -"
        "              -         -       -",
        "mean, full                                         0.900     0.500"
        "          0.400         -   0.950",
        "mean, depthwise                                    0.800         -"
        "              -         -       -",
        "mean                                               0.850     0.500"
        "          0.400         -   0.950",
        "conv2: is not used",
        "weak evidence, of patches of at most 9 entries or one filter a group: conv3",
    ]


def test_means_are_of_all_layers_or_of_a_kind(report):
    assert report.mean() == pytest.approx(0.85)
    assert report.mean("full") == report.mean(kind="full") == 0.9
    assert np.isnan(report.mean("linear"))
    with pytest.raises(ValueError, match="kind='conv' must be one of full, pointwise"):
        report.mean("conv")


def test_rows_of_several_powers_have_arrays():
    values = {"correlation": np.array([0.5, 0.7]), "cosine": np.array([0.6, np.nan])}
    nothing = {name: np.full(2, np.nan) for name in values}
    rows = [
        LayerReport("a", "full", (8, 3, 3, 3), **values),
        LayerReport("b", "full", (8, 3, 3, 3), **nothing, reason="is not used"),
    ]
    report = AnsatzReport(rows, correlation="pearson", agop_power=(1.0, 0.5))
    np.testing.assert_array_equal(report.mean(), [0.5, 0.7])
    np.testing.assert_array_equal(report.correlations(), [[0.5, 0.7]])
    assert str(report).count("Pearson correlation") == 2
    records = report.records()
    found = [(one["name"], one["agop_power"], one["correlation"]) for one in records]
    assert found[:2] == [("a", 1.0, 0.5), ("a", 0.5, 0.7)] and len(found) == 4
    assert np.isnan(records[1]["cosine"]) and records[0]["cosine"] == 0.6


def test_report_to_data_frame(report):
    pytest.importorskip("pandas")
    frame = report.to_frame()
    assert list(frame.columns[:6]) == [
        *("name", "kind", "shape", "agop_power", "correlation", "standard_error"),
    ]
    assert frame.loc[0, "shape"] == (8, 3, 3, 3)
    assert list(frame["is_weak"]) == [False, False, True]


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
    np.testing.assert_array_equal(network.get_ydata(), [0.9, np.nan, 0.8])
    np.testing.assert_array_equal(baseline.get_ydata(), [0.5, np.nan, np.nan])
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels == ["conv1", "conv2", "conv3"]
    assert axes.get_ylabel() == "Cosine correlation, AGOP$^{0.5}$"
