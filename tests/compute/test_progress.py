"""Lines and bars of long calls."""

import re
import sys

import pytest
from numpy.testing import assert_array_equal
from sklearn import config_context

from skconvrfm import ConvRFMClassifier, PatchAGOPTransformer
from skconvrfm.compute import progress
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian

LINE = re.compile(r"\[(\w+)\] ([\w ]+): (\d+)%, about (\d+ s|\d+ min|\d+\.\d h) left\n")


class Clock:
    """A clock that goes on by a second whenever it is looked at."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(progress, "monotonic", Clock())


def work(n, **options):
    with progress.show_progress("Call", **options):
        return [sum(progress.track(range(3), "inner")) for _ in outer(n)]


def outer(n):
    return progress.track(range(n), "outer")


def test_lines_show_the_outermost_loop_in_growing_intervals(capsys):
    assert work(50) == [3] * 50
    found = capsys.readouterr().out
    lines = LINE.findall(found)
    assert LINE.sub("", found) == ""
    assert {line[:2] for line in lines} == {("Call", "outer")}
    shares = [int(line[2]) for line in lines]
    assert 2 <= len(lines) <= 7
    assert shares == sorted(set(shares))
    assert shares[1] >= 1.5 * shares[0]


def test_time_left_is_that_of_equal_steps(capsys):
    with progress.show_progress("Call"):
        for step in progress.track(range(10), "steps"):
            progress.monotonic.now += 60 - 4  # looked at four times a step
            if step == 5:
                break
    lines = LINE.findall(capsys.readouterr().out)
    assert lines[0][2:] == ("10", "9 min")


def test_unequal_steps_count_by_their_costs(capsys):
    with progress.show_progress("Call"):
        for _ in progress.track(range(3), "steps", costs=[6, 3, 1]):
            progress.monotonic.now += 10
    assert LINE.findall(capsys.readouterr().out)[0][2] == "60"


@pytest.mark.parametrize("options", [{"wanted": 0}, {"only_bars": True}])
def test_nothing_is_shown_where_it_is_not_wanted(options, capsys):
    work(50, **options)
    assert capsys.readouterr() == ("", "")


def test_short_loops_are_not_shown(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LONG_CALL", 1e9)
    work(50)
    assert capsys.readouterr() == ("", "")


def test_line_on_a_terminal_is_rewritten_and_removed(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    work(50)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\r") > 20
    assert "\n" not in err
    assert err.endswith("\r\033[K")


def test_bar_on_a_terminal(capsys, monkeypatch):
    console = pytest.importorskip("rich.console")
    plain = console.Console
    monkeypatch.setattr(
        console, "Console", lambda **options: plain(force_terminal=True, **options)
    )
    work(50)
    assert "[Call] outer" in capsys.readouterr().err


def test_loop_that_fails_leaves_the_next_one_shown(capsys):
    with progress.show_progress("Call"):
        with pytest.raises(ZeroDivisionError):
            [1 / (2 - step) for step in progress.track(range(5), "first")]
        list(progress.track(range(50), "second"))
    assert "second" in {line[1] for line in LINE.findall(capsys.readouterr().out)}


@pytest.mark.parametrize(
    ("kernel", "landmarks"), [(ConvNTK(depth=1), None), (Gaussian(), 10)]
)
def test_fits_predictions_and_transforms_are_shown(
    kernel, landmarks, rng, capsys, monkeypatch
):
    monkeypatch.setattr(progress, "LONG_CALL", 0.0)
    X = rng.normal(size=(40, 5, 5))
    y = (X[:, 3, 3] > 0).astype(int)
    features = None if isinstance(kernel, ConvNTK) else ConvFeatures(4, patch_size=3)
    model = ConvRFMClassifier(
        kernel, features, landmarks=landmarks, n_rounds=1, verbose=1
    )
    output = "filters" if features is None else "features"
    with config_context(working_memory=0.02):
        learner = PatchAGOPTransformer(model, output=output).fit(X, y)
        fitted = learner.estimator_
        shown = LINE.findall(capsys.readouterr().out)
        assert {line[0] for line in shown} == {"ConvRFMClassifier"}
        for call in learner.transform, fitted.predict:
            expected = call(X)
            assert LINE.findall(capsys.readouterr().out)
            fitted.verbose = 0
            assert_array_equal(call(X), expected)
            assert capsys.readouterr() == ("", "")
            fitted.verbose = 1
