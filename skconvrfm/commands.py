"""What the command lines share: options, output, and errors as one line."""

import argparse
import os
import sys

from .core.devices import resolve_device
from .core.files import write_whole


class UsageError(Exception):
    """A mistake in the command line or in a file or place it names: exit code 2."""


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


def run_command(program, command):
    """Run what a command line does; what goes wrong is one line on standard error.

    Parameters
    ----------
    program : str
        What the user called.
    command : callable
        What it does.

    Returns
    -------
    int
        Exit code: 0; 2 after a `UsageError`; 130 after an interruption; 1 where
        memory, the device or standard output failed.
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
        _give_up_stdout()
        if isinstance(error, BrokenPipeError):  # as when `head` has seen enough
            return 1
        where = error.filename or "standard output"
        reason = error.strerror or error
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


def _give_up_stdout():
    """Let what is still to be written go nowhere, not fail once more at the exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def check_place(option, path):
    """Refuse, before anything is computed, a file that could not be written."""
    if path.is_dir():
        raise UsageError(f"{option} {path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{option} {path}: is not writable; name another place")


def write_output(option, path, write):
    """Write a file of results, as a whole or not at all.

    Parameters
    ----------
    option : str
        The option that says where it goes.
    path : pathlib.Path
        The file; a device or a pipe is written to as it is.
    write : callable
        ``write(file)`` to a binary file.
    """
    try:
        if path.exists() and not path.is_file():
            with open(path, "wb") as file:
                write(file)
        else:
            write_whole(path.resolve(), write)
    except OSError as error:
        raise UsageError(
            f"{option}: {path} could not be written: {error.strerror or error}; "
            f"name another place with {option}"
        ) from error
