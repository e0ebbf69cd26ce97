"""Memory of the process and of the machine, and the budget of every function."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from memory_peaks import CALLS, LARGE

from skconvrfm.compute import memory

# MiB that libraries, threads and the allocator may take beyond the budget.
SLACK = 40
PROGRAM = Path(__file__).with_name("memory_peaks.py")
SMALL = [name for name in CALLS if name not in LARGE]
GROUPS = [SMALL[i::4] for i in range(4)]  # one process each


def test_memory_meter_measures_the_peak_of_freed_memory():
    with memory.MemoryMeter(torch.device("cpu")) as meter:
        block = np.ones(2**23)
        for _ in range(20):
            block += 1  # long enough to be seen
        del block
    assert meter.gpu is None
    if memory.resident_memory() is not None:
        assert 60 < meter.host / 2**20 < 100


def test_memory_meter_works_without_proc(monkeypatch):
    monkeypatch.setattr(memory, "resident_memory", lambda: None)
    with memory.MemoryMeter(torch.device("cpu")) as meter:
        np.ones(2**10)
    assert meter.host is None or meter.host >= 0
    monkeypatch.setattr(memory, "high_water_mark", lambda: None)
    with memory.MemoryMeter(torch.device("cpu")) as meter:
        np.ones(2**10)
    assert meter.host is None


def test_free_memory_is_below_the_limit_of_a_container(monkeypatch):
    device = torch.device("cpu")
    monkeypatch.setattr(memory, "_cgroup_free", lambda: 2**63)
    free = memory.free_memory(device)
    assert 0 < free < 2**63
    monkeypatch.setattr(memory, "_cgroup_free", lambda: 12345)
    assert memory.free_memory(device) == 12345


# ------------------------------------------------------------------------- budgets


def measure_peaks(budget, names, environment):
    """MiB and seconds of calls in a process of their own, by name."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(budget), *names],
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


needs_clear_refs = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="resets the peak in /proc"
)


@needs_clear_refs
@pytest.mark.slow
@pytest.mark.parametrize("budget", [32, 256])
@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
def test_public_functions_keep_to_working_memory(names, budget, environment):
    peaks = measure_peaks(budget, names, environment)
    assert peaks.keys() == set(names)
    excess = {name: peak for name, (peak, _) in peaks.items() if peak > budget + SLACK}
    assert not excess


@needs_clear_refs
@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_images_of_millions_of_pixels_fit_in_64_mebibytes(name, environment):
    [[peak, seconds]] = measure_peaks(64, [name], environment).values()
    print(f"{name}: {peak:.0f} MiB, {seconds:.0f} s")
    assert peak < 64 + SLACK
    assert seconds < 600
