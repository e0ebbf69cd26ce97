"""The programs of the benchmarks start, and their small parts are right."""

import importlib
import json

import numpy as np
import pytest

from benchmarks import ansatz, comparison, fuzz, harness, machines
from benchmarks.asv_suite import engine
from benchmarks.peers.__main__ import compare
from skconvrfm.features import ConvFeatures

NAMES = "accuracy ansatz comparison devices fuzz peers.__main__ reproduction scale"
NAMES = [*NAMES.split(), "solar_cells", "uncertainty"]


@pytest.mark.parametrize("name", NAMES)
def test_programs_tell_their_options(name, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert end.value.code == 0
    assert "--only" in capsys.readouterr().out


def test_fits_have_no_violation(capsys):
    assert fuzz.main(["--batches", "1", "--fits", "5"]) == 0
    assert "rows permuted" in capsys.readouterr().out


def test_violations_are_told_with_their_seed(capsys, monkeypatch):
    def compare(case, other):
        raise fuzz.ViolationError("other predictions")

    monkeypatch.setitem(fuzz.INVARIANTS, "pickle", (lambda case: case, compare))
    assert fuzz.main(["--batches", "1", "--only", "pickle", "--seed", "3"]) == 1
    assert (
        "seed 3: pickle: ViolationError: other predictions\nF"
        in capsys.readouterr().out
    )


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
    options = ["--draws", "0", "--results", str(path), "--data", str(tmp_path)]
    assert comparison.main([*options, "--problems", "MNIST"]) == 0
    printed = capsys.readouterr().out
    assert "50.0 %" in printed and "svc__C=10" in printed


def test_layers_described_by_filters_and_patches():
    layers = [ConvFeatures(96, patch_size=5), ConvFeatures(640, patch_size=3)]
    assert machines.describe(layers) == "96 of 5×5 then 640 of 3×3"


def test_lift_above_its_error_is_counted_over_seeds():
    def run(lift):
        one = {"name": "conv", "kind": "full", "agop_power": 1.0, "correlation": 0.5}
        one |= {"baseline": 0.5 - lift, "lift": lift, "correlation_no_trace": 0.4}
        one["lift_standard_error"] = 0.03
        return {"layers": [[one], [one]]}

    [row] = ansatz.layer_table([run(0.1), run(0.2)]).values()
    assert row["lift"] == pytest.approx(0.15)
    spread = np.std([0.1, 0.2], ddof=1)
    assert row["error"] == pytest.approx(np.hypot(0.03, spread) / np.sqrt(2))


def test_peers_are_compared_with_ours():
    times = {"seconds": 1.0, "cpu_seconds": 2.0}
    sides = {
        "ours": lambda: (times, np.ones(2)),
        "other": lambda: (times, np.full(2, 2)),
    }
    assert compare(sides, turns=2)["other"] == {**times, "differs": 0.5}


@pytest.mark.parametrize("suite", [engine.Kernel, engine.PatchAGOP, engine.Estimators])
def test_measurements_of_asv_run(suite):
    one, first = suite(), [values[0] for values in suite.params]
    one.setup(*first)
    for name in dir(one):
        if name.startswith(("time_", "peakmem_")):
            getattr(one, name)(*first)
