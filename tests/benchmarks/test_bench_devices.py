"""Cases of the benchmark of devices run, and its table is right."""

import numpy as np
import pytest
import torch
from bench_fixtures import *  # noqa: F403

from benchmarks import devices


@pytest.mark.slow
@pytest.mark.parametrize("name", devices.CASES)
def test_device_cases_run_on_cpu(name):
    problem = devices.Problem(20)
    measured, result = devices.measure_case(
        devices.CASES[name], problem, problem, "cpu", "float32", 2
    )
    assert measured["seconds"] > 0
    assert measured["gpu_mib"] is None
    assert np.isfinite(result).all()


def test_device_table_has_ratio():
    sides = {"cuda_float32": 0.5, "cuda_float64": 1.0, "cpu_float32": 4.0}
    row = {
        side: {"seconds": seconds, "gpu_mib": 7.0, "difference": 0.0}
        for side, seconds in sides.items()
    }
    cells = devices.tabulate([{"case": "kernel", **row}]).splitlines()[3].split()
    assert cells[:6] == ["kernel", "0.5", "4", "8", "1", "7"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_devices_refused_without_gpu(capsys):
    with pytest.raises(SystemExit):
        devices.main([])
    assert "torch finds no CUDA device here" in capsys.readouterr().err
