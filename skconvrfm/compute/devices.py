"""The device and the dtype of a computation, also where they are "auto"."""

import numpy as np
import torch

TORCH_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def resolve_device(device):
    """Return the torch device of ``device``; "auto" is CUDA where torch finds it."""
    cuda, remedy = torch.cuda.is_available(), "use 'auto', 'cpu' or 'cuda'."
    if device == "auto":
        return torch.device("cuda" if cuda else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} is not known; {remedy}") from error
    if resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r} is not supported; {remedy}")
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if cuda else 0
        if (resolved.index or 0) >= count:
            raise ValueError(
                f"device={device!r} was asked for, but torch sees {count} CUDA "
                "devices; use device='auto' or 'cpu', or install a CUDA build of torch."
            )
    return resolved


def resolve_dtype(dtype, *data_dtypes):
    """Return the ``torch.dtype`` of the parameter ``dtype`` for data of such dtypes.

    ``"auto"`` is the smaller of float32 and float64 that holds every value of the data
    exactly: int32 and int64 become float64. Wider data are a TypeError.
    """
    if dtype == "auto":
        dtype = np.result_type(np.float32, *data_dtypes).name
        if dtype not in TORCH_DTYPES:
            raise TypeError(
                f"dtype='auto' finds no dtype that holds {dtype} data exactly; pass "
                "dtype='float64' to compute in double precision."
            )
    if dtype not in TORCH_DTYPES:
        message = f"dtype={dtype!r} is not known; use 'auto', 'float32' or 'float64'."
        raise ValueError(message)
    return TORCH_DTYPES[dtype]
