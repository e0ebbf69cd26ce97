"""Memory of the process and of the machine."""

import numpy as np
import torch

from skconvrfm.compute import memory


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
