"""The fuzz finds planted faults, repeats them, and finds none in the package."""

import os
import re
import signal

import pytest
from bench_fixtures import *  # noqa: F403
from same import assert_same

from benchmarks import fuzz, tampered
from benchmarks.random_fits import Case
from skconvrfm import ConvRFMClassifier, ConvRFMRegressor


def test_fits_have_no_violation(capsys):
    assert fuzz.main(["--fits", "8"]) == 0
    assert re.search(r"8 fits, \d+ comparisons, \d+ undecided, 0 viol", printed(capsys))


def test_seconds_end_the_fuzz(capsys):
    assert fuzz.main(["--seconds", "0.01"]) == 0
    assert "1 fits, " in printed(capsys)


def test_seeds_repeat_cases():
    first, second = Case.of_seed(3), Case.of_seed(3)
    for name in ("model", "X", "y", "weights", "X_new"):
        assert_same(getattr(first, name), getattr(second, name))


def test_predictions_that_depend_on_the_batch_are_found(monkeypatch, capsys):
    for cls, name in (
        (ConvRFMClassifier, "decision_function"),
        (ConvRFMRegressor, "predict"),
    ):
        monkeypatch.setattr(cls, name, depending_on_the_batch(getattr(cls, name)))
    assert fuzz.main(["--fits", "12"]) == 1
    out = printed(capsys)
    line = next(x for x in out.splitlines() if "one by one = batch" in x)
    seed = re.match(r"seed (\d+): one by one = batch: \w+ differs", line)[1]
    assert fuzz.main(["--fits", "1", "--seed", seed]) == 1
    assert line in printed(capsys).splitlines()


def depending_on_the_batch(method):
    return lambda self, X: method(self, X) + 1e-3 * len(X)


@pytest.mark.parametrize(
    ("raised", "text"),
    [(RuntimeWarning("careful"), "RuntimeWarning: careful"), (KeyError("a"), "KeyErr")],
)
def test_errors_and_warnings_of_a_fit_are_violations(monkeypatch, capsys, raised, text):
    def fit(*args, **weights):
        raise raised

    for cls in (ConvRFMClassifier, ConvRFMRegressor):
        monkeypatch.setattr(cls, "fit", fit)
    assert fuzz.main(["--fits", "1", "--seed", "5"]) == 1
    assert f"seed 5: fit: {text}" in printed(capsys)


def test_spoilt_files_are_refused_or_predict_finite_numbers():
    found = [tampered.try_file(seed)[0] for seed in range(12)]
    assert set(found) <= set(tampered.OUTCOMES)
    assert "refused when loaded" in found


def test_spoilt_arrays_in_silence_are_found(monkeypatch):
    case = Case.of_seed(0)
    model = case.fitted
    name = "coef_" if hasattr(model, "coef_") else "dual_coef_"
    setattr(model, name, getattr(model, name)[:-1])
    assert tampered.changed_shapes(model, Case.of_seed(0).fitted) == [name]


def crash_at_two(connection, first, end):
    for seed in range(first, end):
        if seed == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        connection.send(("same", "nothing changed"))


@pytest.mark.slow
def test_crashes_are_counted_and_the_next_file_is_tried(monkeypatch, capsys):
    monkeypatch.setattr(tampered, "work", crash_at_two)
    assert tampered.run(4, seed=0) == 1
    out = printed(capsys)
    assert "seed 2: the process ended with -9" in out
    assert "4 spoilt files: same: 3, wrong: 1" in out


def printed(capsys):
    return capsys.readouterr().out
