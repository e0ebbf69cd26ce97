"""What public signatures say: the types of parameters, and decorators that keep them.

scikit-learn has no types of its own: to a type checker, what its decorators return
could be anything.
"""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import _fit_context
from sklearn.utils._param_validation import validate_params

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
Kernel: TypeAlias = Literal["ntk", "nngp", "laplace", "gaussian"]
Method: TypeAlias = Literal["auto", "exact", "features"]
Filters: TypeAlias = Literal["patches", "gaussian"]
Activation: TypeAlias = Literal["relu", "identity"]
Selection: TypeAlias = Literal["gcv", "loo", "holdout", "last"]
RandomState: TypeAlias = "int | np.random.RandomState | None"
File: TypeAlias = "str | PathLike[str]"

Function = TypeVar("Function", bound=Callable[..., Any])


def validated(constraints: dict[str, Any]) -> Callable[[Function], Function]:
    """A decorator that checks the parameters of a function.

    Parameters
    ----------
    constraints : dict
        What each parameter may be, as in scikit-learn's ``validate_params``.
    """
    return validate_params(constraints, prefer_skip_nested_validation=True)


def fit_method(method: Function) -> Function:
    """Check the estimator's parameters first, and call its callbacks."""
    return _fit_context(prefer_skip_nested_validation=True)(method)
