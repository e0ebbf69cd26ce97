"""All parts of the benchmark of growth run."""

import pytest
from bench_fixtures import *  # noqa: F403

from benchmarks import growth


@pytest.mark.slow
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


@pytest.mark.slow
def test_growth_of_linear_fit_by_images():
    result = growth.linear_by_images((60, 120), rounds=1)
    assert result["images"] == [60, 120]
    assert all(len(result[key]) == 2 for key in ("seconds", "cpu_seconds", "peak"))
    assert "power of the growth" in growth.make_table("linear", result)
