"""What the command lines share: options, and mistakes in them as one line."""

import argparse

from .core.devices import resolve_device


class UsageError(Exception):
    """A mistake in the command line or in the user's file: one line, exit code 2."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage above them."""

    def error(self, message):
        """Raise the error in place of printing it and leaving."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def integer(*, from_, to=None):
    """An argparse type: an integer from `from_` to `to`."""
    span = f"of at least {from_}" if to is None else f"from {from_} to {to}"

    def convert(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < from_ or (to is not None and value > to):
            raise argparse.ArgumentTypeError(f"needs an integer {span}, got {text!r}")
        return value

    return convert


def check_device(name):
    """The torch device of that name, if there is one."""
    try:
        return resolve_device(name)
    except ValueError as error:
        raise UsageError(f"--device: {error}") from error
