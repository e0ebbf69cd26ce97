"""The programs of the benchmarks start, and their small parts are right."""

import importlib
import json

import pytest

from benchmarks import comparison, fuzz, harness, machines
from skconvrfm.features import ConvFeatures

NAMES = "accuracy ansatz comparison fuzz peers.__main__ reproduction scale".split()


@pytest.mark.parametrize("name", NAMES)
def test_programs_tell_their_options(name, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert end.value.code == 0
    assert "--only" in capsys.readouterr().out


def test_fits_have_no_violation(capsys):
    assert fuzz.main(["--fits", "4"]) == 0
    assert "4 fits" in capsys.readouterr().out


def test_results_are_measured_once_for_the_same_settings(tmp_path):
    results = harness.Results(tmp_path / "r.jsonl", ("name",), {"n": 1})
    for value in (1, 2):
        assert results.once(("a",), lambda value=value: {"value": value})["value"] == 1
    other = harness.Results(tmp_path / "r.jsonl", ("name",), {"n": 2})
    assert other.read() == {}


def test_table_is_one_of_restructured_text():
    lines = harness.format_table(["a", "b"], [["x", 1.23456], ["y", None]]).splitlines()
    assert lines[0] == lines[2] == lines[-1] == "=  ===="
    assert lines[3:5] == ["x  1.23", "y     -"]


def test_comparison_makes_tables_of_earlier_results(tmp_path, capsys):
    times = {f"{part}_cpu_seconds": 1.0 for part in ("search", "fit", "predict")}
    one = {"problem": "MNIST", "row": "svc", "n_train": 1000, "n_test": 2000, **times}
    tried = [[{}, 0.1], [{}, 0.5], [{}, 0.2], [{}, 0.3]]
    rows = [{**one, "draw": None, "tried": tried}]
    rows.append({**one, "draw": 0, "accuracy": 0.5, "fit_seconds": 2.0})
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    options = ["--tables", "--results", str(path), "--data", str(tmp_path)]
    assert comparison.main([*options, "--problems", "MNIST"]) == 0
    printed = capsys.readouterr().out
    assert "50.0 %" in printed and "svc__C=10" in printed


def test_layers_described_by_filters_and_patches():
    layers = [ConvFeatures(96, patch_size=5), ConvFeatures(640, patch_size=3)]
    assert machines.describe(layers) == "96 of 5×5 then 640 of 3×3"
