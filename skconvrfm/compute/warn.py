"""Warnings that point at the line of the user that led to them."""

import sys
import warnings

# Whose frames may lie between that line and the warning.
_PASSED = {"contextlib", "joblib", "numpy", "sklearn", "skconvrfm", "torch"}


def warn_caller(message, category=UserWarning):
    """Warn at the first line of the stack that is not of these packages."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and _package(frame) in _PASSED:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _package(frame):
    return frame.f_globals.get("__name__", "").partition(".")[0]
