"""Where and how precisely to compute: "auto" becomes a device and a dtype."""

import numpy as np
import torch

TORCH_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def resolve_device(device):
    """Turn the parameter ``device`` into a ``torch.device`` that exists.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda", "cuda:0", ...} or torch.device
        ``"auto"`` is CUDA where torch finds it, else the CPU.

    Returns
    -------
    torch.device

    Raises
    ------
    ValueError
        If the name is unknown, or the device is not on this machine.
    """
    cuda = torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda" if cuda else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={device!r} is not known; use 'auto', 'cpu' or 'cuda'."
        ) from error
    if resolved.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device={device!r} is not supported; use 'auto', 'cpu' or 'cuda'."
        )
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if cuda else 0
        if (resolved.index or 0) >= count:
            raise ValueError(
                f"device={device!r} was asked for, but torch sees {count} CUDA "
                "devices; use device='auto' or 'cpu', or install a CUDA build of torch."
            )
    return resolved


def resolve_dtype(dtype, *data_dtypes):
    """Turn the parameter ``dtype`` into the ``torch.dtype`` of the arithmetic.

    ``"auto"`` is the smaller of float32 and float64 that holds every value of
    the data exactly: float64 stays float64, uint8 and float32 become float32,
    int32 and int64 become float64.

    Parameters
    ----------
    dtype : {"auto", "float32", "float64"}
        What the user asked for.
    *data_dtypes : numpy.dtype
        The dtypes of the arrays that take part.

    Returns
    -------
    torch.dtype

    Raises
    ------
    ValueError
        If ``dtype`` is none of the three.
    TypeError
        If the data are wider than float64 and ``dtype`` is ``"auto"``.
    """
    if dtype == "auto":
        dtype = np.result_type(np.float32, *data_dtypes).name
        if dtype not in TORCH_DTYPES:
            raise TypeError(
                f"dtype='auto' finds no dtype that holds {dtype} data exactly; pass "
                "dtype='float64' to compute in double precision."
            )
    if dtype not in TORCH_DTYPES:
        raise ValueError(
            f"dtype={dtype!r} is not known; use 'auto', 'float32' or 'float64'."
        )
    return TORCH_DTYPES[dtype]
