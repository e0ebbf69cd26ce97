"""What "auto" becomes, and what is refused."""

import numpy as np
import pytest
import torch

from skconvrfm.core.devices import resolve_device, resolve_dtype


@pytest.fixture(params=[0, 2])
def cuda_devices(request, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return request.param


def test_auto_is_cuda_where_there_is_one(cuda_devices):
    assert resolve_device("auto").type == ("cuda" if cuda_devices else "cpu")


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_the_cpu_is_always_there(cuda_devices, device):
    assert resolve_device(device) == torch.device("cpu")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_cuda_device_is_taken_only_where_it_is(cuda_devices, index):
    device = f"cuda:{index}"
    if index < cuda_devices:
        assert resolve_device(device) == torch.device(device)
    else:
        with pytest.raises(ValueError, match=f"'{device}'.*sees {cuda_devices} CUDA"):
            resolve_device(device)


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", "meta", "mps"])
def test_other_devices_are_refused(device):
    with pytest.raises(ValueError, match=f"device='{device}'.*'auto', 'cpu' or 'cuda'"):
        resolve_device(device)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["bool"], torch.float32),
        (["uint8"], torch.float32),
        (["int16"], torch.float32),
        (["float16"], torch.float32),
        (["float32"], torch.float32),
        (["int32"], torch.float64),
        (["int64"], torch.float64),
        (["float64"], torch.float64),
        ([">f8"], torch.float64),
        (["float32", "float64"], torch.float64),
        (["uint8", "float32"], torch.float32),
    ],
)
def test_auto_is_the_smallest_that_holds_every_value(given, expected):
    assert resolve_dtype("auto", *map(np.dtype, given)) == expected


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_a_precision_asked_for_is_taken(name):
    for given in ("uint8", "float32", "float64", "longdouble"):
        assert resolve_dtype(name, np.dtype(given)) == getattr(torch, name)


@pytest.mark.skipif(
    np.dtype(np.longdouble).itemsize == 8, reason="long doubles are doubles here"
)
def test_values_wider_than_doubles_are_not_cut_in_silence():
    with pytest.raises(TypeError, match="dtype='auto'.*dtype='float64'"):
        resolve_dtype("auto", np.dtype(np.longdouble))


def test_other_precisions_are_refused():
    with pytest.raises(ValueError, match="dtype='half'.*'float32' or 'float64'"):
        resolve_dtype("half")
