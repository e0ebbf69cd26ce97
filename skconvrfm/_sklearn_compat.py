"""scikit-learn's internals that the package uses, imported here and nowhere else.

Fit callbacks are there from scikit-learn 1.9 on; before, their calls do nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import _fit_context
from sklearn.utils import _param_validation
from sklearn.utils._param_validation import (
    RealNotInt,
    StrOptions,
    validate_params,
)
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import _check_feature_names_in as check_feature_names_in
from sklearn.utils.validation import _check_sample_weight as check_sample_weight

from ._typing import Function

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # scikit-learn < 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stand-in for scikit-learn's mixin, with a context without callbacks."""

        def _init_callback_context(self, **_):
            return _SilentContext()


__all__ = [
    "CallbackSupportMixin",
    "Interval",
    "RealNotInt",
    "RoundCallbacks",
    "StrOptions",
    "check_feature_names_in",
    "check_sample_weight",
    "fit_method",
    "output_container",
    "validated",
]


class Interval(_param_validation.Interval):
    """Interval of real numbers, whose bounds are not cast to a float of few bits."""

    def is_satisfied_by(self, val):
        """Return True if a value is in the interval."""
        return super().is_satisfied_by(
            val.item() if isinstance(val, np.floating) else val
        )


def output_container(transformer):
    """Return the kind of container that `set_output` asks for, or "default"."""
    return _get_output_config("transform", transformer)["dense"]


def validated(constraints: dict[str, Any]) -> Callable[[Function], Function]:
    """Return a decorator that checks parameters, from ``validate_params``."""
    return validate_params(constraints, prefer_skip_nested_validation=True)


def fit_method(method: Function) -> Function:
    """Check the estimator's parameters first, and call its callbacks."""
    return _fit_context(prefer_skip_nested_validation=True)(method)


class _SilentContext:
    """A callback context without callbacks."""

    def subcontext(self, **_):
        return self

    def call_on_fit_task_begin(self, **_):
        return self

    def call_on_fit_task_end(self, **_):
        return False


class RoundCallbacks:
    """Callbacks of a fit of at most ``n_tasks`` rounds, and of every round."""

    def __init__(self, estimator, n_tasks, X, y, **metadata):
        metadata = {k: values for k, values in metadata.items() if values is not None}
        self._task = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        self._fit = estimator._init_callback_context(max_subtasks=n_tasks)
        self._fit.call_on_fit_task_begin(**self._task)
        self._begin_round()

    def _begin_round(self):
        self._round = self._fit.subcontext(task_name="round")
        self._round.call_on_fit_task_begin(**self._task)

    def end_round(self, fitted_attributes, last):
        """Call the callbacks at the end of a round; return True where one asks to stop.

        ``fitted_attributes()`` gives the fitted attributes as if the fit ended here.
        """
        stop = self._round.call_on_fit_task_end(
            **self._task, reconstruction_attributes=fitted_attributes
        )
        if not (stop or last):
            self._begin_round()
        return stop

    def end_fit(self):
        """Call the callbacks at the end of the fit."""
        self._fit.call_on_fit_task_end(**self._task, reconstruction_attributes={})
