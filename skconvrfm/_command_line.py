"""Options, output and errors in one line, shared by the command lines."""

import argparse
import contextlib
import os
import sys

from .compute.devices import resolve_device
from .compute.files import write_whole


class UsageError(Exception):
    """A mistake in the command line or in a file or place it names: exit code 2."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage above them."""

    def error(self, message):
        """Raise the error in place of printing it and leaving."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def integer(*, from_, to=None):
    """Return an argparse type: an integer from `from_` to `to`."""
    span = f"of at least {from_}" if to is None else f"from {from_} to {to}"

    def convert(text):
        with contextlib.suppress(ValueError):
            value = int(text)
            if value >= from_ and (to is None or value <= to):
                return value
        raise argparse.ArgumentTypeError(f"needs an integer {span}, got {text!r}")

    return convert


def share(text):
    """Return a number between 0 and 1, as an argparse type."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"needs a number between 0 and 1, got {text!r}")


def pair(text):
    """Return the numbers in a text such as 3 or 5x3, as an argparse type."""
    sizes = text.lower().split("x")
    if len(sizes) > 2 or not all(size.isdecimal() and int(size) for size in sizes):
        needs = "needs a positive integer, or two as in 5x3"
        raise argparse.ArgumentTypeError(f"{needs}, got {text!r}")
    return int(text) if len(sizes) == 1 else tuple(map(int, sizes))


def check_device(name):
    """Return the torch device of that name, if there is one."""
    try:
        return resolve_device(name)
    except ValueError as error:
        raise UsageError(f"--device: {error}") from error


def run_command(program, command):
    """Run a command, and return its exit code; errors are one line on standard error.

    The code is 0; 2 after a `UsageError`; 130 after an interruption; 1 if memory, the
    device or standard output failed.
    """
    try:
        command()
        sys.stdout.flush()
    except UsageError as error:
        return _fail(program, error, 2)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", 130)
    except MemoryError as error:
        return _fail(program, str(error) or "out of memory", 1)
    except OSError as error:
        with open(os.devnull, "wb") as nowhere:  # or the rest would fail at the exit
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # as when `head` has seen enough
            return 1
        where, reason = error.filename or "standard output", error.strerror or error
        return _fail(program, f"{where}: {reason}; send it elsewhere", 1)
    except RuntimeError as error:
        what = str(error).partition("\n")[0]
        if "CUDA error" not in what:
            raise
        return _fail(program, f"{what}; try --device cpu", 1)
    return 0


def _fail(program, error, code):
    print(f"{program}: error: {error}", file=sys.stderr)
    return code


def check_place(option, path):
    """Refuse, before anything is computed, a file that could not be written."""
    if path.is_dir():
        raise UsageError(f"{option} {path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{option} {path}: is not writable; name another place")


def write_output(option, path, write):
    """Write a file of an option, whole or not at all; a device or pipe as it is."""
    try:
        if path.exists() and not path.is_file():
            with open(path, "wb") as file:
                write(file)
        else:
            write_whole(path.resolve(), write)
    except OSError as error:
        reason = f"{path} could not be written: {error.strerror or error}"
        how = f"name another place with {option}"
        raise UsageError(f"{option}: {reason}; {how}") from error
