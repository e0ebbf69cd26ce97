"""Device and precision: what "auto" becomes, and what is refused."""

import numpy as np
import pytest
import torch
from by_hand import assert_close

from skconvrfm import ConvRFMClassifier
from skconvrfm.compute.devices import resolve_device, resolve_dtype
from skconvrfm.kernels import ConvNTK, patch_agop


@pytest.fixture(params=[0, 2])
def cuda_devices(request, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return request.param


def test_auto_is_cuda_where_there_is_one(cuda_devices):
    assert resolve_device("auto").type == ("cuda" if cuda_devices else "cpu")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_cuda_device_that_is_not_there_is_refused(cuda_devices, index):
    for cpu in ("cpu", torch.device("cpu")):  # which is always there
        assert resolve_device(cpu) == torch.device("cpu")
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


FLOAT32 = ["bool"], ["uint8"], ["int16"], ["float16"], ["float32"], ["u1", "f4"]
FLOAT64 = ["int32"], ["int64"], ["float64"], [">f8"], ["float32", "float64"]


@pytest.mark.parametrize("given", [*FLOAT32, *FLOAT64], ids=str)
def test_auto_precision_is_the_smallest_that_holds_every_value(given):
    expected = torch.float32 if given in FLOAT32 else torch.float64
    assert resolve_dtype("auto", *map(np.dtype, given)) == expected


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_precision_asked_for_is_taken(name):
    for given in ("uint8", "float32", "float64", "longdouble"):
        assert resolve_dtype(name, np.dtype(given)) == getattr(torch, name)


@pytest.mark.skipif(
    np.dtype(np.longdouble).itemsize == 8, reason="long doubles are doubles here"
)
def test_values_wider_than_doubles_are_refused():
    with pytest.raises(TypeError, match="dtype='auto'.*dtype='float64'"):
        resolve_dtype("auto", np.dtype(np.longdouble))


def test_other_precisions_are_refused():
    with pytest.raises(ValueError, match="dtype='half'.*'float32' or 'float64'"):
        resolve_dtype("half")


# Where there is a GPU


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-9)])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("n_outputs", [2, 400])
def test_cuda_equals_the_cpu(dtype, tolerance, padding, n_outputs, rng):
    X, Y = rng.normal(size=(61, 12, 9, 3)), rng.normal(size=(23, 12, 9, 3))
    X[3, :6], Y[5] = 0, X[7]
    coef = rng.normal(size=(61, n_outputs))

    def results(device):
        kernel, options = ConvNTK(padding=padding), {"device": device, "dtype": dtype}
        return (
            kernel(X, **options),
            kernel(X, Y, **options),
            patch_agop(kernel, X, coef, Y, **options),
        )

    for ours, theirs in zip(results("cuda"), results("cpu"), strict=True):
        assert_close(ours, theirs, tolerance)


@pytest.mark.gpu
def test_model_fitted_on_cuda_predicts_on_the_cpu(rng):
    X, y = rng.normal(size=(40, 8, 8)), np.arange(40) % 3
    model = ConvRFMClassifier(ConvNTK(depth=2), device="cuda", n_rounds=1).fit(X, y)
    scores = model.decision_function(X)
    assert not any(isinstance(value, torch.Tensor) for value in vars(model).values())
    assert_close(model.set_params(device="cpu").decision_function(X), scores, 1e-9)


@pytest.mark.gpu
def test_tensors_on_cuda_are_as_arrays(rng):
    X, y = rng.normal(size=(9, 5, 5)), np.arange(9) % 3
    expected = ConvRFMClassifier(ConvNTK(depth=2)).fit(X, y).decision_function(X)
    X, y = torch.from_numpy(X).cuda(), torch.from_numpy(y).cuda()
    model = ConvRFMClassifier(ConvNTK(depth=2)).fit(X, y)
    assert_close(model.decision_function(X), expected, 1e-9)
