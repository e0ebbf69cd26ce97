"""Growth is measured by size, and extrapolated on paper."""

import dataclasses
import json
import subprocess

import numpy as np
import pytest
from bench_fixtures import *  # noqa: F403

from benchmarks import extrapolation, features, problems, scale, unit_costs


@pytest.mark.parametrize("shape", [(8, 8, 3), (6, 5)])
def test_enlarged_images_seeded_and_nested(shape, tmp_path, rng, monkeypatch):
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
def test_copies_shifted_mirrored_and_noisy(flips, tmp_path, monkeypatch):
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


@pytest.mark.slow
def test_scale_measures_every_size(tmp_path, cifar, capsys):
    output = tmp_path / "results.json"
    command = ["--sizes", "60", "120", "--filters", "4", "--patch-size", "3"]
    command += ["--threads", "1", "--data", str(cifar.parent), "--output", str(output)]
    assert scale.main(command) == 0
    printed = capsys.readouterr().out
    assert "80 images of the file; beyond them, copies" in printed
    assert "power of growth" in printed
    results = json.loads(output.read_text())["scale"]
    assert results["features"]["n_filters"] == 4
    assert [row["images"] for row in results["rows"]] == [60, 120]
    assert results["growth"].keys() == set(scale.GROWING)
    for row in results["rows"]:
        assert {"seconds_kernel", "seconds_solve", "seconds_agop"} < row.keys()
        assert row["seconds"] >= row["seconds_kernel"] + row["seconds_solve"] > 0
        assert row["peak"] > 0 and 0 <= row["accuracy"] <= 100


def test_scale_reports_sizes_before_a_failure(cifar, monkeypatch, capsys):
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


def test_growth_exponents_by_pair_and_over_all():
    sizes = {10: 1, 100: 10, 1000: 1000}
    rows = [
        {**dict.fromkeys(scale.COLUMNS.values(), float(t)), "images": n}
        for n, t in sizes.items()
    ]
    assert scale.growth(rows)["fit s"] == pytest.approx([1, 2, 1.5])
    rows[0]["own"] = -1.0
    assert scale.growth(rows)["own MiB"] == [None, pytest.approx(2), None]


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
    "decomposition": 1e-3,
}


@pytest.fixture
def fit():
    """Return 1000 images of 6×6 with one filter of 2×2 and 4 cells, 10 workers."""
    case = features.Case((6, 6, 1), patch_size=2, n_filters=1, grid=2)
    return extrapolation.Fit(case, 1000, 10, n_outputs=3, tasks_per_worker=2)


def test_extrapolated_traffic(fit):
    assert fit.width == 4 and fit.matrix_bytes == 128 and fit.rounds_fitted == 2
    assert extrapolation.traffic(fit) == {
        "read": 3600,
        "sums up": 10 * 2 * 128,
        "factors down": 10 * 128,
        "predictions up": 1000 * 3 * 2 * 8,
    }


def test_extrapolated_seconds(fit):
    of_workers = extrapolation.worker_seconds(fit, COSTS)
    assert of_workers == pytest.approx(
        {
            "features": 2 * 100 * (2 * 25 * 4) / 1e9,
            "landmarks": 0,
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


def test_extrapolated_fit_with_landmarks(fit):
    landmarks = dataclasses.replace(fit, n_landmarks=20)
    assert landmarks.width == 20 and landmarks.n_features == 4
    of_workers = extrapolation.worker_seconds(landmarks, COSTS)
    assert of_workers["landmarks"] == pytest.approx(2 * 100 * 2 * 20 * (4 + 20) / 2e6)
    assert of_workers["sums"] == pytest.approx(100 * 20**2 / 1e6)
    plain = extrapolation.parent_seconds(fit, COSTS)
    of_parent = extrapolation.parent_seconds(landmarks, COSTS)
    gradients = 1000 * 2 * 20 * 4 * 3 / 2e6
    assert of_parent["AGOP"] - plain["AGOP"] == pytest.approx(gradients)
    # Factors of 20 × 20 doubles, V as large, and 20 rows of 4 float32 in both passes.
    down = 10 * (3200 + 2 * (3200 + 4 * 20 * 4))
    assert extrapolation.traffic(landmarks)["factors down"] == down


def test_extrapolated_price(fit):
    found = extrapolation.summarize(fit, COSTS)
    hours = 11 * sum(found["seconds"].values()) / 3600
    assert found["machine hours"] == pytest.approx(hours)
    last = extrapolation.tabulate(fit, COSTS, price=0.5)[-1].splitlines()[-1]
    assert last.endswith(f"{hours:.1f}, {hours / 2:.2f} at 0.5 an hour.")


def test_extrapolated_memory_and_bottleneck(fit):
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


def test_quickest_number_of_workers(fit):
    def spent(n_workers):
        other = dataclasses.replace(fit, n_images=10**7, n_workers=n_workers)
        return sum(extrapolation.seconds(other, COSTS).values())

    best = round(
        extrapolation.quickest_workers(dataclasses.replace(fit, n_images=10**7), COSTS)
    )
    assert spent(best) < min(spent(best // 2), spent(2 * best))


@pytest.mark.slow
def test_unit_costs_measured_and_extrapolated_from_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(unit_costs, "FILE_BYTES", 2**20)
    monkeypatch.setattr(unit_costs, "FEATURE_IMAGES", 10)
    monkeypatch.setattr(unit_costs, "AGOP_IMAGES", 10)
    path = tmp_path / "costs.json"
    small = ["--filters", "4", "--patch-size", "3", "--images", "mnist"]
    measured = ["--unit-costs", "--repeats", "1", "--sides", "8", "16"]
    assert scale.main([*small, *measured, "--output", str(path)]) == 0
    assert "ns / D³" in capsys.readouterr().out
    costs = json.loads(path.read_text())["unit_costs"]
    assert costs.keys() == COSTS.keys() | {"decomposition_seconds"}
    assert min(costs[key] for key in COSTS) > 0
    assert list(costs["decomposition_seconds"]) == ["8", "16"]
    paper = ["--extrapolate", "--costs", str(path), "--n", "5000", "--workers", "3"]
    assert scale.main([*small, *paper, "--bandwidth", "1"]) == 0
    printed = capsys.readouterr().out
    assert "5,000 images of 28×28×1, 4 filters, D = 36, 3 workers" in printed
    assert scale.main([*small, *paper, "--landmarks", "9", "--price", "1"]) == 0
    assert "9 landmarks, D = 9, 3 workers" in capsys.readouterr().out
    assert "What breaks first" in printed
