"""Comparison of what a program prints with what a page says that it prints."""

import re

import pytest

_NUMBER = re.compile(r"\d+\.\d+")
_MACHINE = 0.5


def assert_same_output(printed, expected):
    """Equal but for white space, and half a unit of a number with decimals.

    Another processor may round a score to the other side of a threshold.
    """
    words = (_NUMBER.sub("", text).split() for text in (printed, expected))
    assert next(words) == next(words)
    numbers = (list(map(float, _NUMBER.findall(text))) for text in (printed, expected))
    assert next(numbers) == pytest.approx(next(numbers), abs=_MACHINE)
