"""The benchmarks run and tell the truth; how fast they are is not tested."""

import dataclasses
import functools
import inspect
import itertools
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from joblib.parallel import ParallelBackendBase

from benchmarks import (
    accuracy,
    ansatz,
    bench_engine,
    cluster,
    compare,
    devices,
    extrapolation,
    features,
    growth,
    harness,
    learning,
    linear,
    precision,
    problems,
    published,
    reproduction,
    rivals,
    scale,
    selection,
    unit_costs,
)
from benchmarks.peers import client

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="the benchmarks read /proc and bind cores",
)
needs_peer = pytest.mark.skipif(
    client.python_of(compare.PEER) is None,
    reason="the peer's environment is built by python -m benchmarks.compare",
)

needs_kymatio = pytest.mark.skipif(
    client.python_of(features.PEER) is None,
    reason="kymatio's environment is built by python -m benchmarks.features",
)


@pytest.fixture
def images():
    """A few tiny colour images."""
    return harness.smooth_images(8, (8, 9, 3))


# ---------------------------------------------------------------------- harness


def test_smooth_images_are_seeded_smooth_and_in_range():
    images = harness.smooth_images(5, (16, 12, 3), seed=1)
    assert images.shape == (5, 16, 12, 3)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images.min(axis=(1, 2, 3)), 0)
    np.testing.assert_array_equal(images.max(axis=(1, 2, 3)), 1)
    np.testing.assert_array_equal(images, harness.smooth_images(5, (16, 12, 3), seed=1))
    assert np.abs(np.diff(images, axis=1)).mean() < 0.8 * images.std()


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 4, 3)])
def test_load_images_scales_bytes_and_refuses_too_few(tmp_path, shape):
    path = tmp_path / "images.npz"
    np.savez(path, X_train=np.full(shape, 255, dtype=np.uint8))
    images = harness.load_images(path, 3)
    assert images.shape == (3, 5, 4, 3 if len(shape) == 4 else 1)
    assert (images == 1).all()
    with pytest.raises(ValueError, match="6 images in X_train, not 7"):
        harness.load_images(path, 7)


def test_format_table_aligns_and_rounds():
    table = harness.format_table(["case", "s"], [["a", 0.123456], ["longer", None]])
    assert table.splitlines() == [
        "======  =====",
        "case        s",
        "======  =====",
        "a       0.123",
        "longer      -",
        "======  =====",
    ]


def test_growth_exponent_of_a_power():
    sizes = np.array([10, 20, 40])
    assert harness.growth_exponent(sizes, 3.0 * sizes**2) == pytest.approx(2)


def test_timed_returns_times_and_result():
    measured, result = harness.timed(sum, [1, 2])
    assert result == 3
    assert measured.keys() == {"seconds", "cpu_seconds"}
    assert min(measured.values()) >= 0


def test_children_are_clocked_while_they_run_and_after():
    before = harness.children_cpu_seconds()
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, "-c", code], **pipes)
    child.stdout.readline()
    assert harness.children_cpu_seconds() - before > 0.2
    child.communicate(b"\n")
    assert 0.2 < harness.children_cpu_seconds() - before < 3


def test_peak_memory_sees_what_is_freed_again():
    def allocate(mebibytes):
        np.ones(mebibytes * harness.MEBIBYTE, dtype=np.uint8)
        return "freed"

    rise, result = harness.peak_memory(allocate, 64)
    assert result == "freed"
    assert 60 < rise / harness.MEBIBYTE < 80
    rise, _ = harness.peak_memory(allocate, 16)
    assert rise / harness.MEBIBYTE < 32


def test_report_writes_what_it_prints(tmp_path, capsys):
    path = tmp_path / "results.json"
    harness.report(["a table"], {"answer": 42}, path)
    assert "a table" in capsys.readouterr().out
    record = json.loads(path.read_text())
    assert record["answer"] == 42
    assert record["machine"]["versions"]["numpy"] == np.__version__
    assert record["machine"]["cores"] >= 1


# ------------------------------------------------------------- the asv entries


def entries():
    """Every measuring method of every class, with its parameters."""
    for _, cls in inspect.getmembers(bench_engine, inspect.isclass):
        if cls.__module__ != bench_engine.__name__:
            continue
        for name in vars(cls):
            if name.startswith(("time_", "peakmem_")):
                for values in itertools.product(*cls.params):
                    label = "-".join(map(str, (cls.__name__, name, *values)))
                    yield pytest.param(cls, name, values, id=label)


@pytest.mark.thorough
@pytest.mark.parametrize(("cls", "name", "values"), list(entries()))
def test_entries_run(cls, name, values):
    entry = cls()
    entry.setup(*values)
    result = getattr(entry, name)(*values)
    if isinstance(result, np.ndarray) and result.dtype.kind == "f":
        assert np.isfinite(result).all()


# ---------------------------------------------------------------------- compare


@pytest.mark.parametrize("case", compare.CASES.values(), ids=compare.CASES)
def test_elements_count_pairs_locations_and_layers(case, images):
    pairs = 36 if case.task == "kernel" else 8 * case.n_points
    locations = 6 * 7 + 4 * 5 + 2 * 3 if case.depth == 3 else 6 * 7
    assert case.elements(images) == pairs * locations


def test_compare_without_peer(tmp_path, capsys):
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


@pytest.mark.parametrize(("disagreement", "code"), [(1e-5, 0), (1e-3, 1)])
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
def test_peer_agrees(images, worker, transformed, readout, class_map):
    shared = {"depth": 2, "patch_size": 3}
    choices = {"readout": readout, "class_map": class_map, "block_size": 3}
    arrays = compare.Case("agop", 2, n_classes=3, n_points=5).make_arrays(images)
    transform = None
    if transformed:
        root = np.random.default_rng(0).standard_normal((27, 27)) / 5
        transform = arrays["patch_transform"] = root @ root.T
    _, kernel = worker.compute(arrays, task="kernel", **shared, **choices)
    _, agop = worker.compute(arrays, task="agop", **shared, **choices)
    ours = {**shared, "patch_transform": transform}
    expected = compare.convolutional_kernel(images, **ours)
    assert compare.disagreement(expected, kernel) < compare.TOLERANCE
    expected = compare.patch_agop(images, arrays["dual_coef"], arrays["points"], **ours)
    assert compare.disagreement(expected, agop) < compare.TOLERANCE


@needs_peer
def test_peer_is_warm_the_second_time(images, worker):
    arrays = {"images": images[:, :7]}
    first, second = (worker.compute(arrays, task="kernel")[0] for _ in range(2))
    assert first["compile_seconds"] > 0
    assert second["compile_seconds"] == 0
    assert second["seconds"] > 0


@needs_peer
def test_peer_that_fails_says_why(images):
    with (
        client.PeerWorker(compare.PEER) as worker,
        pytest.raises(RuntimeError, match="no-such-task"),
    ):
        worker.compute({"images": images}, task="no-such-task")


@pytest.fixture(scope="module")
def worker():
    """The peer."""
    with client.PeerWorker(compare.PEER) as worker:
        yield worker


def test_environment_is_current_only_with_these_requirements(monkeypatch, tmp_path):
    monkeypatch.setattr(client, "ENVIRONMENTS", tmp_path)
    assert client.python_of(compare.PEER) is None
    folder = tmp_path / compare.PEER
    folder.mkdir()
    requirements = client.HERE / f"{compare.PEER}_requirements.txt"
    (folder / "installed.txt").write_text(requirements.read_text())
    assert client.python_of(compare.PEER) == folder / "bin" / "python"
    (folder / "installed.txt").write_text("jax==0.1")
    assert client.python_of(compare.PEER) is None


# --------------------------------------------------- growth and the publication


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("images", {"sizes": (6, 8), "rounds": 1}),
        ("prime", {"prime": 7, "rounds": 1}),
        ("agop", {"sizes": (2, 4), "n_centres": 5, "rounds": 1}),
        ("workers", {"n_images": 6, "rounds": 1}),
    ],
)
def test_parts_of_growth_run(name, sizes):
    results = growth.PARTS[name](**sizes)
    columns = [value for value in results.values() if isinstance(value, list)]
    assert len(columns) in (2, 3)
    assert min(map(len, columns)) == max(map(len, columns)) >= 2
    title = growth.TITLES[name][0]
    assert growth.make_table(name, results).startswith(title)


def test_growth_measures_memory(capsys):
    peaks = growth.measure_memory(64, n_images=20, n_points=2, image_shape=(8, 8, 1))
    assert peaks.keys() == {"kernel", "agop"}
    results = {"working_memory": [64], **{key: [v] for key, v in peaks.items()}}
    assert "working_memory" in growth.make_table("memory", results)


@pytest.fixture
def digits(tmp_path):
    """An archive like that of MNIST, small."""
    rng = np.random.default_rng(0)
    path = tmp_path / "digits.npz"
    arrays = {}
    for part, n in (("train", 30), ("test", 10)):
        arrays[f"y_{part}"] = np.arange(n) % 3
        noise = rng.integers(0, 100, size=(n, 6, 6))
        arrays[f"X_{part}"] = (noise + 70 * arrays[f"y_{part}"][:, None, None]).astype(
            np.uint8
        )
    np.savez(path, **arrays)
    return path


def published_options(path, *more):
    """The command line of a tiny experiment."""
    sizes = ["--n-train", "30", "--n-test", "10", "--depth", "2", "--rounds", "1"]
    return published.parse_options(["--data", str(path), *sizes, *more])


@pytest.mark.thorough
def test_published_passes_run(digits):
    pytest.importorskip("sklearn.callback")
    options = published_options(digits)
    results = {name: run(options) for name, run in published.PASSES.items()}
    json.dumps(results)
    assert results["cost"]["chosen_round"] in (0, 1)
    assert results["rounds"]["round"] == [0, 1]
    assert len(results["rounds"]["accuracy"]) == 2
    cost, rounds = published.make_tables(results)
    assert "peak mib" in cost
    assert "54.5" in rounds


def test_published_refuses_more_images_than_there_are(digits):
    with pytest.raises(ValueError, match="--n-train"):
        published.load_split(published_options(digits, "--n-train", "31"))


# --------------------------------------------------------------------- the ansatz


@pytest.mark.thorough
def test_ansatz_trains_measures_and_draws(tmp_path, rng, capsys):
    pytest.importorskip("matplotlib")
    data, figure, results = (tmp_path / name for name in ("a.npz", "b.png", "c.json"))
    arrays = {}
    for part in ("train", "test"):
        noise = rng.integers(0, 256, size=(40, 16, 16, 3))
        arrays[f"X_{part}"] = noise.astype(np.uint8)
        arrays[f"y_{part}"] = np.arange(40) % 2
    np.savez(data, **arrays)
    options = ["--data", data, "--figure", figure, "--json", results, "--epochs", 1]
    options += ["--parts", "networks", "--networks", "AlexNet", "VGG-11"]
    assert ansatz.main([str(option) for option in options]) == 0
    assert "features.3" in capsys.readouterr().out
    measured = json.loads(results.read_text())["networks"]
    assert {"before", "after", "accuracy"} < measured["VGG-11"].keys()
    assert figure.stat().st_size > 0


@pytest.mark.thorough
def test_ansatz_measures_a_network_of_full_size(monkeypatch):
    monkeypatch.setitem(ansatz.LARGE, "one", (1, 1))
    assert ansatz.measure_large("one").keys() == {"seconds", "cpu_seconds", "peak mib"}


# --------------------------------------------------------------- the linear path


@pytest.fixture
def small_problem(digits, monkeypatch):
    """A problem of 30 training images in place of the large ones."""
    load = problems._whole(digits.stem)
    monkeypatch.setattr(linear, "LARGE", {"MNIST, 5000": problems.Problem(load)})
    return digits.parent


@pytest.fixture
def quick_rivals(monkeypatch):
    """The peers with small models, and pixels in place of scattering coefficients."""

    def quick(make):
        def rival(image_shape, _):
            made = make(image_shape, lambda images, J: images.reshape(len(images), -1))
            values = {"n_estimators": 5, "max_iter": 3, "epochs": 1, "width": 2}
            known = values.keys() & made.model.get_params(deep=False).keys()
            made.model.set_params(**{name: values[name] for name in known})
            return made

        return rival

    for name, make in rivals.RIVALS.items():
        monkeypatch.setitem(rivals.RIVALS, name, quick(make))


@pytest.mark.thorough
@pytest.mark.parametrize("name", rivals.RIVALS)
def test_rivals_are_searched_and_fitted_again(name, small_problem, quick_rivals):
    if name == "network":
        pytest.importorskip("skorch")
    data = problems._whole("digits")(small_problem, 0)
    runs = [run for _, run in linear._runs("", data, range(2), [name], None)]
    assert len(runs) == (1 if name in ("svc", "scattering") else 2)
    assert min(runs[0][key] for key in linear.TIMES) >= 0
    assert dict(runs[0]["chosen"]) in [parameters for parameters, _ in runs[0]["tried"]]
    assert "chosen" not in runs[-1] or len(runs) == 1
    json.dumps(runs)


def test_networks_of_one_seed_are_one_network(digits):
    pytest.importorskip("skorch")
    X, y, *_ = problems._whole("digits")(digits.parent, 0)
    rows = X.reshape(len(X), -1)

    def weights(seed):
        net = rivals.ConvNet((6, 6, 1), width=2, epochs=2, random_state=seed)
        return net.fit(rows, y).net_.module_[-1].weight.detach().numpy()

    np.testing.assert_array_equal(weights(0), weights(0))
    assert np.abs(weights(0) - weights(1)).max() > 0


def test_few_images_are_held_out_three_times():
    rival = rivals.forest()
    assert rival.search(1000, 0).cv.get_n_splits() == 3
    assert rival.search(5000, 0).cv.get_n_splits() == 1


@pytest.mark.thorough
def test_linear_table_runs_writes_and_merges(small_problem, tmp_path, capsys):
    first, second, both = (tmp_path / f"{name}.json" for name in "abc")
    problem = ["--problems", "MNIST, 5000", "--seeds", "2", "--data", small_problem]
    for only, path in (("ours", first), ("svc", second)):
        options = ["--linear", *problem, "--only", only, "--json", path]
        accuracy.main([str(option) for option in options])
    capsys.readouterr()
    options = ["--linear", "--merge", first, second, "--json", both]
    accuracy.main([str(option) for option in [*options, "--data", small_problem]])
    printed = capsys.readouterr().out
    assert "features, learned" in printed
    assert "svc__gamma" in printed
    merged = json.loads(both.read_text())["linear"]["MNIST, 5000"]
    runs = {label: len(runs) for label, runs in merged.items()}
    assert runs == {"features, fixed": 2, "features, learned": 2, "pixels + RBF SVC": 1}


def test_later_results_win(tmp_path):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, value in zip(paths, (1, 2), strict=True):
        path.write_text(json.dumps({"linear": {"digits": {"ours": [value]}}}))
    assert linear.merge(paths) == {"digits": {"ours": [2]}}


@pytest.mark.parametrize("name", problems.LARGE)
def test_problems_are_as_large_as_they_say(name, shared):
    problem, folder = problems.LARGE[name], shared / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    X_train, y_train, X_test, y_test = problem.load(folder, 0)
    assert len(X_train) == len(y_train) == int(name.split()[-1])
    assert len(X_test) == len(y_test) == (1000 if problem.redrawn else 2000)
    assert X_train.dtype == X_test.dtype == np.float32


# ------------------------------------------------------------- speed of features


@pytest.mark.parametrize("channels", [1, 3])
def test_features_of_torch_agree_with_ours(channels, images):
    case = features.Case((8, 9, channels), patch_size=3, n_filters=4, grid=2)
    assert case.operations == 2 * 6 * 7 * 4 * 9 * channels
    assert not case.equal_cells
    case = features.Case((8, 8, channels), patch_size=3, n_filters=4, grid=3)
    assert case.equal_cells
    images = images[:, :, :8, :channels]
    ours = features.our_features(case)(images)
    theirs = features.torch_features(case, 3, features.torch.channels_last)(images)
    assert compare.disagreement(ours, theirs) < features.TOLERANCE


def test_features_run_without_peer(tmp_path, capsys):
    path = tmp_path / "results.json"
    options = ["--no-peer", "--images", "4", "--rounds", "2", "--json", str(path)]
    assert features.main(options) == 0
    assert "GFLOP/s" in capsys.readouterr().out
    for measured in json.loads(path.read_text())["features"].values():
        assert len(measured["sides"]["torch"]["cpu_seconds"]) == 2


@needs_kymatio
def test_scattering_has_its_coefficients_and_remembers_them(images):
    images = np.tile(images, (1, 2, 2, 1))[:, :16, :16]
    with linear.coefficients() as extract:
        first, second = (extract(images, 2) for _ in range(2))
    assert first is second
    assert first.shape == (8, 3 * 81 * 4 * 4)


# -------------------------------------------------------- selection and learning


@pytest.fixture
def cifar(tmp_path, rng):
    path = tmp_path / "cifar10_5000_2000.npz"
    X = rng.integers(0, 256, size=(80, 8, 8, 3)).astype(np.uint8)
    y = np.arange(80) % 3
    np.savez(path, X_train=X, y_train=y, X_test=X, y_test=y)
    return path


def test_selection_compares_the_criteria_with_the_truth(cifar, monkeypatch, capsys):
    monkeypatch.setattr(selection, "CASES", ((40, 4, 1), (40, 4, 2)))
    load = functools.partial(selection.load, n_other=30)
    monkeypatch.setattr(selection, "load", load)
    assert selection.main(["--data", str(cifar)]) == 0
    out = capsys.readouterr().out
    assert "gcv / error" in out and " 36 " in out  # d of the second layer


def test_learning_scores_every_round(cifar, monkeypatch, capsys):
    pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 has callbacks")
    monkeypatch.setattr(learning, "N_HELD_OUT", 30)
    variants = ["power 1", "and a layer on them"]
    for name in variants:
        options = learning.VARIANTS[name] | {"n_filters": 5}
        monkeypatch.setitem(learning.VARIANTS, name, options)
    command = ["--data", str(cifar.parent), "--problems", "CIFAR-10, 5000"]
    assert learning.main([*command, "--variants", *variants]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(tuple(variants))]
    assert len(rows) == 2 and all(row.count(" → ") == 4 for row in rows)


@pytest.mark.thorough
def test_growth_of_the_linear_path_has_time_and_memory_by_images():
    result = growth.linear_by_images((60, 120), rounds=1)
    assert result["images"] == [60, 120]
    assert all(len(result[key]) == 2 for key in ("seconds", "cpu_seconds", "peak"))
    assert "power of the growth" in growth.make_table("linear", result)


# -------------------------------------------------- scale: in a run and on paper


@pytest.mark.parametrize("shape", [(8, 8, 3), (6, 5)])
def test_scale_enlarges_by_seed_and_fewer_images_are_the_first_of_more(
    shape, tmp_path, rng, monkeypatch
):
    monkeypatch.setattr(problems, "PIECE", 7)
    images = rng.integers(0, 256, size=(10, *shape)).astype(np.uint8)
    more, fewer, other = (tmp_path / f"{name}.npy" for name in "abc")
    problems.write_enlarged(more, images, 40)
    problems.write_enlarged(fewer, images, 25)
    problems.write_enlarged(other, images, 25, seed=1)
    more, fewer, other = map(np.load, (more, fewer, other))
    assert more.dtype == np.uint8 and more.shape == (40, *shape)
    np.testing.assert_array_equal(more[:10], images)
    np.testing.assert_array_equal(more[:25], fewer)
    np.testing.assert_array_equal(other[:10], images)
    assert (other[10:] != fewer[10:]).any()
    assert (more[10:20] != more[20:30]).any()


@pytest.mark.parametrize("flips", [True, False])
def test_scale_copies_are_shifted_mirrored_and_noisy(flips, tmp_path, monkeypatch):
    monkeypatch.setattr(problems, "NOISE", 0)
    ramp = np.tile(10 * np.arange(8, dtype=np.uint8), (1, 8, 1))
    problems.write_enlarged(tmp_path / "ramp.npy", ramp, 60, flips=flips)
    rows = np.load(tmp_path / "ramp.npy")[1:, 0].astype(int)
    slopes = rows[:, 4] - rows[:, 3]
    assert set(slopes) == ({10, -10} if flips else {10})
    # The middle of the ramp tells the shift.
    assert set(np.where(slopes > 0, rows[:, 3], rows[:, 4])) == {10, 20, 30, 40, 50}
    monkeypatch.setattr(problems, "NOISE", 6)
    problems.write_enlarged(tmp_path / "ramp.npy", ramp, 60, flips=flips)
    noisy = np.load(tmp_path / "ramp.npy")[1:, 0].astype(int)
    assert 0 < np.abs(noisy - rows).max() <= 6


@pytest.mark.thorough
def test_scale_runs_size_after_size(tmp_path, cifar, capsys):
    output = tmp_path / "results.json"
    command = ["--sizes", "60", "120", "--filters", "4", "--patch-size", "3"]
    command += ["--threads", "1", "--data", str(cifar.parent), "--output", str(output)]
    assert scale.main(command) == 0
    printed = capsys.readouterr().out
    assert "80 images of the file; beyond them, copies" in printed
    assert "power of growth" in printed
    results = json.loads(output.read_text())["scale"]
    assert results["parameters"]["n_filters"] == 4
    assert [row["images"] for row in results["rows"]] == [60, 120]
    assert results["growth"].keys() == set(scale.GROWING)
    for row in results["rows"]:
        assert {"seconds_kernel", "seconds_solve", "seconds_agop"} < row.keys()
        assert row["seconds"] >= row["seconds_kernel"] + row["seconds_solve"] > 0
        assert row["peak"] > 0 and 0 <= row["accuracy"] <= 100


def test_scale_tells_of_the_sizes_before_one_that_fails(cifar, monkeypatch, capsys):
    def run_child(task, threads):
        if task["images"] == 120:
            raise subprocess.CalledProcessError(-9, "python")
        return {**dict.fromkeys(scale.COLUMNS.values(), 2.0), **task}

    monkeypatch.setattr(scale, "run_child", run_child)
    command = ["--sizes", "60", "120", "--data", str(cifar.parent)]
    assert scale.main(command) == 1
    printed = capsys.readouterr().out
    assert "120 images: failed, exit status -9" in printed
    assert "60" in printed.splitlines()[-2]


def test_scale_takes_powers_by_pair_and_over_all():
    sizes = {10: 1, 100: 10, 1000: 1000}
    rows = [
        {**dict.fromkeys(scale.COLUMNS.values(), float(t)), "images": n}
        for n, t in sizes.items()
    ]
    assert scale.growth(rows)["fit s"] == pytest.approx([1, 2, 1.5])
    rows[0]["own"] = -1.0
    assert scale.growth(rows)["own MiB"] == [None, pytest.approx(2), None]


def test_scale_own_memory_is_that_of_children_too_but_not_of_mapped_files(tmp_path):
    mapped = np.lib.format.open_memmap(
        tmp_path / "a.npy", "w+", dtype=np.uint8, shape=(48 * harness.MEBIBYTE,)
    )
    code = "a = bytearray(b'x') * 2**26; print(flush=True); input()"
    with harness.OwnMemory(0.001) as memory:
        mapped[:] = 1
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        child.stdout.readline()
        time.sleep(0.1)
        child.communicate(b"\n")
    assert 60 < memory.peak / harness.MEBIBYTE < 100


# Python warns of threads that a child does not have; this one uses none.
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_scale_own_memory_does_not_count_the_copy_that_a_fork_shows():
    ballast = np.ones(200 * harness.MEBIBYTE, np.uint8)
    with harness.OwnMemory(0.001) as memory:
        child = os.fork()
        if not child:
            time.sleep(0.1)
            os._exit(0)
        os.waitpid(child, 0)
    assert memory.peak < ballast.nbytes / 4


# Round numbers, so that the model can be reckoned in the head.
COSTS = {
    "features": 1e9,
    "sums": 1e6,
    "leave_one_out": 2e6,
    "agop": 1e9,
    "read": 1e6,
    "order": 1e6,
    "send": 1e3,
    "add": 1e4,
    "eigen": 1e-3,
}


@pytest.fixture
def fit():
    """1000 images of 6×6 with one filter of 2×2 and 4 cells, on 10 workers."""
    case = features.Case((6, 6, 1), patch_size=2, n_filters=1, grid=2)
    return extrapolation.Fit(case, 1000, 10, n_outputs=3, tasks_per_worker=2)


def test_scale_extrapolates_what_is_moved(fit):
    assert fit.width == 4 and fit.matrix_bytes == 128 and fit.rounds_fitted == 2
    assert extrapolation.traffic(fit) == {
        "read": 3600,
        "sums up": 10 * 2 * 128,
        "factors down": 10 * 128,
        "predictions up": 1000 * 3 * 2 * 8,
    }


def test_scale_extrapolates_seconds(fit):
    of_workers = extrapolation.worker_seconds(fit, COSTS)
    assert of_workers == pytest.approx(
        {
            "features": 2 * 100 * (2 * 25 * 4) / 1e9,
            "sums": 100 * 16 / 1e6,
            "leave-one-out": 100 * 2 * 16 / 2e6,
            "reading images": 2 * 3600 / 1e6,
        }
    )
    of_parent = extrapolation.parent_seconds(fit, COSTS)
    assert of_parent == pytest.approx(
        {
            "receiving sums": 2.56,
            "adding sums": 0.256,
            "decomposition": 0.064,
            "sending factors": 1.28,
            "receiving predictions": 48,
            # 8000 images for 200,000 patches of 25 each: all there are.
            "AGOP": 1000 * (2 * 25 * 5) / 1e9,
        }
    )
    whole = extrapolation.seconds(fit, COSTS)
    in_a_round = sum(of_workers.values()) + sum(of_parent.values())
    assert whole["ordering images"] == pytest.approx(0.072)
    assert sum(whole.values()) == pytest.approx(2 * in_a_round + 0.072)


def test_scale_extrapolates_memory_and_what_breaks_first(fit):
    memory = extrapolation.parent_memory(fit)
    assert memory == {
        "D × D matrices": 4 * 128,
        "targets": 24_000,
        "left-out predictions": 48_000,
        "residuals": 48_000,
        "weights": 16_000,
        "positions": 8000,
        "labels": 16_000,
    }
    found = extrapolation.summarize(fit, COSTS)
    assert found["breaks first"]["time"][0] == "receiving predictions"
    assert 0.9 < found["breaks first"]["time"][1] < found["parent share"] < 1
    assert found["breaks first"]["memory"] == ("left-out predictions", 48 / 160.512)


def test_scale_knows_from_how_many_workers_on_more_are_slower(fit):
    def spent(n_workers):
        other = dataclasses.replace(fit, n_images=10**7, n_workers=n_workers)
        return sum(extrapolation.seconds(other, COSTS).values())

    best = round(
        extrapolation.quickest_workers(dataclasses.replace(fit, n_images=10**7), COSTS)
    )
    assert spent(best) < min(spent(best // 2), spent(2 * best))


@pytest.mark.thorough
def test_scale_measures_unit_costs_and_extrapolates_from_a_file(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(unit_costs, "FILE_BYTES", 2**20)
    monkeypatch.setattr(unit_costs, "FEATURE_IMAGES", 10)
    monkeypatch.setattr(unit_costs, "AGOP_IMAGES", 10)
    path = tmp_path / "costs.json"
    small = ["--filters", "4", "--patch-size", "3", "--images", "mnist"]
    measured = ["--unit-costs", "--repeats", "1", "--eigen-sizes", "8", "16"]
    assert scale.main([*small, *measured, "--output", str(path)]) == 0
    assert "ns / D³" in capsys.readouterr().out
    costs = json.loads(path.read_text())["unit_costs"]
    assert costs.keys() == COSTS.keys() | {"eigen_seconds"}
    assert min(costs[key] for key in COSTS) > 0
    assert list(costs["eigen_seconds"]) == ["8", "16"]
    paper = ["--extrapolate", "--costs", str(path), "--n", "5000", "--workers", "3"]
    assert scale.main([*small, *paper, "--bandwidth", "1"]) == 0
    printed = capsys.readouterr().out
    assert "5,000 images of 28×28×1, 4 filters, D = 36, 3 workers" in printed
    assert "What breaks first" in printed


# ---------------------------------------------------------------------- cluster

watched = pytest.mark.skipif(
    not hasattr(ParallelBackendBase, "submit"),
    reason="tasks are counted where joblib, from 1.5 on, submits them",
)


@pytest.fixture
def little_file(tmp_path):
    """A folder with images and labels as those of the shared data."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 255, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", X_train=X, y_train=np.arange(40) % 2)
    return tmp_path


@pytest.mark.thorough
@watched
def test_backends_are_compared_with_the_fit_of_one_process(little_file, capsys):
    sizes = ["--images", "40", "--filters", "4", "--workers", "2", "--dtype", "float64"]
    place = ["--data", str(little_file), "--file", "images.npz"]
    path = little_file / "results.json"
    backends = ["--backend", "sequential", "loky"]
    assert cluster.main([*backends, *sizes, *place, "--json", str(path)]) == 0
    results = json.loads(path.read_text())["cluster"]
    assert results["sequential"]["submitted"] is None
    assert results["loky"]["submitted"] > 0
    assert results["loky"]["largest_task"] > 40 * 64 / 8  # images, in a few parts
    assert results["loky"]["difference"] < 1e-8
    assert "40 images of images.npz" in capsys.readouterr().out


@watched
def test_a_backend_that_computes_nothing_is_told_of(little_file, monkeypatch, capsys):
    monkeypatch.setitem(cluster.BACKENDS, "loky", cluster.in_one_process)
    place = ["--data", str(little_file), "--file", "images.npz"]
    options = ["--backend", "loky", "--images", "40", "--filters", "4", *place]
    assert cluster.main(options) == 1
    assert "nothing was computed by the workers of ['loky']" in capsys.readouterr().out


# ------------------------------------------------------------------- the precision


@pytest.mark.parametrize("case", ["exact, depth 1", "features"])
def test_precision_measures_every_round_in_both_precisions(digits, case, monkeypatch):
    pytest.importorskip("matplotlib")
    load = functools.partial(problems.draw, digits.name)
    results = precision.measure(load, digits.parent, case, 0, 30, 10)
    assert len(results["rounds"]) == 3
    for one in results["rounds"]:
        assert 0 < one["kernel fro"] < 1e-5
        assert one["condition"] <= one["worst condition"]
        assert len(one["f by ridge"]) == len(one["bound"]) == 17
    json.dumps(results)
    table = precision.make_table(case, {"digits": [results, results]})
    assert "digits, round 2" in table and "2 of 2" in table


def test_precision_of_a_copy_is_that_of_the_kernel_it_copies():
    same = precision.make_machine(
        np.ones((4, 5, 5)), np.arange(4) % 2, "float64", method="exact"
    )
    [one] = precision.fit(same, np.ones((2, 5, 5)), 0)
    compared = precision.compare(one, one)
    assert compared["kernel max"] == compared["f"] == compared["labels"] == 0
    assert compared["same ridge"]


def test_precision_drives_the_rounds_of_a_fit(rng):
    X, y = rng.normal(size=(30, 6, 6)), np.arange(30) % 3
    machine = precision.make_machine(X, y, "float64", method="exact", depth=2)
    rounds = precision.fit(machine, X, 2)
    model = precision.ConvRFMClassifier(method="exact", depth=2, n_rounds=2).fit(X, y)
    np.testing.assert_allclose([one["gcv"] for one in rounds], model.history_["gcv"])
    kept = rounds[precision.chosen_round(rounds, machine.optimism)]
    np.testing.assert_allclose(
        kept["predictions"][kept["chosen"]], model.decision_function(X), atol=1e-8
    )


def test_the_kink_loses_half_of_the_digits():
    measured = precision.kink(angles=[3e-3, 1.0], n_pairs=50)
    assert measured["gap"][0] < 1e-5 < measured["gap"][1]
    assert measured["error"][1] < 1e-6 < measured["error"][0] < 1e-3


# ---------------------------------------------------------------- the reproduction


def test_planted_rows_carry_the_sign_of_their_label():
    X, y, X_test, y_test = reproduction.planted(30, 10, 0.0, seed=0)
    assert X.shape == (30, 16, 32) and X_test.shape == (10, 16, 32)
    np.testing.assert_array_equal(np.sign(X.sum((1, 2))), 2 * y - 1)
    np.testing.assert_allclose((X**2).sum((1, 2)), 1, rtol=1e-5)  # one row each
    noisy, *_ = reproduction.planted(200, 10, 2.0, seed=0)
    assert (noisy**2).sum(2).mean() == pytest.approx((2 * 15 + 1) / 16, rel=0.05)


@pytest.mark.thorough
def test_reproduction_of_stars_and_planted_rows(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn.callback")
    monkeypatch.setattr(reproduction, "PLANTED_SIGMA", (1.0,))
    path = tmp_path / "results.json"
    sizes = ["--draws", "1", "--star-draws", "1", "--n-star", "20", "--n-planted", "20"]
    parts = ["--parts", "star", "planted", "--rounds", "1", "--data", str(tmp_path)]
    parts += ["--star-noise", "0.3"]
    assert reproduction.main([*parts, *sizes, "--json", str(path)]) == 0
    results = json.loads(path.read_text())["reproduction"]
    [published] = results["star"]["published"]
    assert len(published["accuracy"]) == 2
    [one] = results["planted"]["1.0"]
    assert {"accuracy", "kept", "deep"} == one.keys()
    out = capsys.readouterr().out
    assert "94.8" in out and "deep, identity" in out


def test_reproduction_of_data_sets(digits, monkeypatch):
    pytest.importorskip("sklearn.callback")
    monkeypatch.setattr(reproduction, "DATASETS", {"MNIST": digits.name})
    place = ["--data", str(digits.parent), "--rounds", "1", "--n-train", "20"]
    options = reproduction.parse_options(place)
    measured = reproduction.measure_datasets(options)
    [table] = reproduction.table_datasets(measured)
    assert "MNIST" in table and " → " in table
    X, y, X_test, y_test = reproduction.framed(digits.parent, 20, 5, 1.0, 0)
    assert X.shape == (20, 9, 9) and X_test.shape == (5, 9, 9)
    assert len(y) == 20 and len(y_test) == 5


# ---------------------------------------------------------------------- devices


@pytest.mark.thorough
@pytest.mark.parametrize("name", devices.CASES)
def test_a_case_of_devices_runs_on_the_processor(name):
    problem = devices.Problem(20)
    measured, result = devices.measure_case(
        devices.CASES[name], problem, problem, "cpu", "float32", 2
    )
    assert measured["seconds"] > 0
    assert measured["gpu_mib"] is None
    assert np.isfinite(result).all()


def test_the_table_of_devices_has_the_ratio():
    sides = {"cuda_float32": 0.5, "cuda_float64": 1.0, "cpu_float32": 4.0}
    row = {
        side: {"seconds": seconds, "gpu_mib": 7.0, "difference": 0.0}
        for side, seconds in sides.items()
    }
    cells = devices.tabulate([{"case": "kernel", **row}]).splitlines()[3].split()
    assert cells[:6] == ["kernel", "0.5", "4", "8", "1", "7"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_devices_without_a_gpu_end_with_a_line(capsys):
    with pytest.raises(SystemExit):
        devices.main([])
    assert "torch finds no CUDA device here" in capsys.readouterr().err
