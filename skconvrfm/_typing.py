"""Types of parameters in public signatures."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import torch

Array: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.floating[Any]]
Pair: TypeAlias = "int | tuple[int, int] | list[int]"
ImageShape: TypeAlias = "tuple[int, ...] | list[int] | None"
Channels: TypeAlias = Literal["last", "first"]
Padding: TypeAlias = Literal["valid", "same"]
Device: TypeAlias = "str | torch.device"
Dtype: TypeAlias = Literal["auto", "float32", "float64"]
Metric: TypeAlias = Literal["identity", "whiten"]
KernelMetric: TypeAlias = Literal["identity", "whiten", "auto"]
Filters: TypeAlias = Literal["patches", "gaussian"]
Activation: TypeAlias = Literal["relu", "identity"]
Pool: TypeAlias = (
    'Literal["root", "mean", "norm", "max", "auto"] | tuple[float, float] | list[float]'
)
Scale: TypeAlias = float | Literal["auto"]
Selection: TypeAlias = Literal["gcv", "loo", "holdout", "last"]
RandomState: TypeAlias = "int | np.random.RandomState | None"
File: TypeAlias = "str | PathLike[str]"
Weights: TypeAlias = "ArrayLike | None"

Function = TypeVar("Function", bound=Callable[..., Any])
