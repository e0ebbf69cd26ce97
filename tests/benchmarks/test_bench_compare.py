"""The comparison with neural-tangents counts, agrees, and fails on differences."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from bench_fixtures import *  # noqa: F403

from benchmarks import compare
from benchmarks.peers import client

needs_peer = pytest.mark.skipif(
    client.python_of(compare.PEER) is None,
    reason="the peer's environment is built by python -m benchmarks.compare",
)


@pytest.fixture(scope="module")
def worker():
    """Yield the peer."""
    with client.PeerWorker(compare.PEER) as worker:
        yield worker


@pytest.mark.parametrize("case", compare.CASES.values(), ids=compare.CASES)
def test_elements_count_pairs_locations_and_layers(case, images):
    pairs = 36 if case.task == "kernel" else 8 * case.n_points
    locations = 6 * 7 + 4 * 5 + 2 * 3 if case.depth == 3 else 6 * 7
    assert case.elements(images) == pairs * locations


def test_compare_runs_without_peer(tmp_path, capsys):
    path = tmp_path / "results.json"
    code = compare.main(
        ["--peer", "none", "--images", "4", "--rounds", "2", "--json", str(path)]
    )
    assert code == 0
    assert "100 classes over 10" in capsys.readouterr().out
    cases = json.loads(path.read_text())["cases"]
    assert cases.keys() == compare.CASES.keys()
    for measured in cases.values():
        assert len(measured["ours"]) == 2
        assert measured["peer"] == []


def test_summary_takes_medians_and_ratios():
    def times(*seconds):
        return [{"seconds": value, "cpu_seconds": 2 * value} for value in seconds]

    measured = {"elements": 10**9, "ours": times(1, 9, 2), "peer": times(8, 9, 100)}
    summary = compare.summarize(measured)
    assert summary["ours"] == {"seconds": 2, "cpu_seconds": 4, "nanoseconds": 2}
    assert summary["ratio"] == summary["cpu_ratio"] == 4.5
    table = compare.make_tables({"a-case": {**measured, "summary": summary}})[0]
    assert "a-case" in table
    assert "4.5" in table


@pytest.mark.parametrize(
    ("disagreement", "code"), [(1e-5, 0), (1e-3, 1), (float("nan"), 1)]
)
def test_compare_fails_where_results_differ(
    monkeypatch, capsys, images, disagreement, code
):
    case = compare.CASES["kernel-depth1"]
    measured = compare.compare_case(case, images, rounds=1)
    measured["disagreement"] = disagreement
    options = compare.parse_options([])
    assert compare._finish({"kernel-depth1": measured}, None, options) == code
    assert ("results differ" in capsys.readouterr().out) == bool(code)


@needs_peer
@pytest.mark.parametrize("transformed", [False, True], ids=["identity", "transform"])
@pytest.mark.parametrize("readout", ["apart", "fused"])
@pytest.mark.parametrize("class_map", ["vmap", "lax.map"])
def test_kernel_and_agop_equal_those_of_neural_tangents(
    images, worker, transformed, readout, class_map
):
    choices = {"readout": readout, "class_map": class_map, "block_size": 3}
    agop = compare.Case("agop", 2, n_classes=3, n_points=5)
    arrays = agop.make_arrays(images)
    if transformed:
        root = np.random.default_rng(0).standard_normal((27, 27)) / 5
        arrays["patch_transform"] = root @ root.T
    for case in (compare.Case("kernel", 2), agop):
        _, theirs = compare.ask_peer(worker, case, arrays, **choices)
        ours = compare.compute_ours(case, arrays)
        assert compare.disagreement(ours, theirs) < compare.TOLERANCE


def test_kernel_is_the_tangent_kernel_without_biases():
    kernel = compare.CASES["kernel-depth3"].kernel
    assert type(kernel).__name__ == "ConvNTK"
    parameters = {"depth": 3, "patch_size": 3, "padding": "valid", "bias": 0}
    parameters |= {"metric": "identity", "pool_grid": None, "mirror": False}
    assert kernel.get_params() == parameters


@needs_peer
def test_peer_compiles_once(images, worker):
    arrays = {"images": images[:, :7]}
    first, second = (worker.compute(arrays, task="kernel")[0] for _ in range(2))
    assert first["compile_seconds"] > 0
    assert second["compile_seconds"] == 0
    assert second["seconds"] > 0


@needs_peer
def test_error_of_peer_raised_with_its_message(images):
    with (
        client.PeerWorker(compare.PEER) as worker,
        pytest.raises(RuntimeError, match="no-such-task"),
    ):
        worker.compute({"images": images}, task="no-such-task")


def test_environment_rebuilt_for_other_requirements(monkeypatch, tmp_path):
    monkeypatch.setattr(client, "ENVIRONMENTS", tmp_path)
    assert client.python_of(compare.PEER) is None
    folder = tmp_path / compare.PEER
    folder.mkdir()
    requirements = client.HERE / f"{compare.PEER}_requirements.txt"
    (folder / "installed.txt").write_text(requirements.read_text())
    assert client.python_of(compare.PEER) == folder / "bin" / "python"
    (folder / "installed.txt").write_text("jax==0.1")
    assert client.python_of(compare.PEER) is None


def test_environment_built_once_by_many_callers(tmp_path, monkeypatch):
    """Others wait for the one that builds."""
    built = []
    monkeypatch.setattr(client, "ENVIRONMENTS", tmp_path)

    def create(folder, **_):
        built.append(folder)
        time.sleep(0.2)
        folder.mkdir()

    monkeypatch.setattr(client.venv, "create", create)
    monkeypatch.setattr(client.subprocess, "run", lambda *_, **__: None)
    with ThreadPoolExecutor(3) as pool:
        pythons = list(pool.map(client.build_environment, ["xrfm"] * 3))
    assert built == [tmp_path / "xrfm"]
    assert pythons == [tmp_path / "xrfm" / "bin" / "python"] * 3
