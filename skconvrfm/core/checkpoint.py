"""Checkpoints: what the rounds of a fit have found, kept in a folder.

Each layer has one file, ``convrfm-PHASE-LAYER.npz``: an archive of numpy arrays with
the rest in its first member, ``convrfm.json``, and nothing that would be executed. A
file is written beside its place, forced to the disk and renamed, so that it is there as
a whole or not at all; and each stands for itself, so that files of different moments
are no contradiction. Results are kept, not the loop: on resuming it runs again, from
the same draws, and finds them in place of the rounds that led to them.

A file has the fingerprint of its fit, without which it is foreign, and digests: of the
arrays in ``convrfm.json``, and of this in the comment of the archive.
"""

import errno
import hashlib
import json
import os
import zipfile
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np

from .blocks import byte_blocks
from .files import TEMPORARY, write_whole
from .ridge import RidgeSolution
from .rounds import Journal, Progress, Round

# Of the layout of the files; another one is foreign.
FORMAT = 1
ON_ERROR = ("raise", "restart")

_PREFIX, _SUFFIX = "convrfm-", ".npz"
_VALUES = "convrfm.json"
# How our files begin, truncated or not: the header of a member, 30 bytes, and its name.
_MAGIC, _NAME_AT = b"PK\x03\x04", 30
_DIGEST_BYTES = 16
_SOLUTION = [field.name for field in fields(RidgeSolution)]
# Bytes of an array that are hashed at once.
_HASH_BLOCK = 2**22


class Checkpoint:
    """The folder of one fit.

    Parameters
    ----------
    folder : str or path-like
        The folder; it is made where there is none.
    parameters : dict
        What the result depends on, by name, in terms of JSON, see `describe`.
    data : dict of str
        Digests of the data, by name, see `digest`.
    on_error : {"raise", "restart"}
        What follows where the folder has the files of another fit, or damaged ones.
    """

    def __init__(self, folder, parameters, data, on_error):
        self._name, self._folder = os.fspath(folder), Path(folder)
        self._fit = {"parameters": {"format": FORMAT} | parameters, "data": data}
        with self._explained("cannot be used"):
            self._folder.mkdir(parents=True, exist_ok=True)
            # Better known now than after the first round.
            if not os.access(self._folder, os.W_OK | os.X_OK):
                raise OSError(errno.EACCES, "the folder is not writable")
            for leftover in self._folder.glob(f".{_PREFIX}*{TEMPORARY}"):
                leftover.unlink(missing_ok=True)
            paths = sorted(self._folder.glob(f"{_PREFIX}*{_SUFFIX}"))
            self._refuse_strangers(paths)
            try:
                self._states = {path.name: self._read(path) for path in paths}
            except _UnusableError as error:
                if on_error == "raise":
                    raise ValueError(f"checkpoint={self._name!r} {error}") from error
                for path in paths:
                    path.unlink(missing_ok=True)
                self._states = {}

    @property
    def n_rounds(self):
        """Rounds that were found in the folder, of all layers."""
        histories = [values["history"] for values, _ in self._states.values()]
        return sum(len(history["round"]) for history in histories)

    def journal(self, phase):
        """The `Journal` of one pass over the layers, which has a name of its own."""
        return _PhaseJournal(self, phase)

    def load(self, name):
        """What was found under a name, (values, arrays), or None; given away once."""
        return self._states.pop(name, None)

    def save(self, name, values, arrays):
        """Put a file in the place of the one of this name, if any."""
        with self._explained("could not be written, and holds what it held before"):
            write_whole(
                self._folder / name,
                lambda file: _write_archive(file, self._fit, values, arrays),
            )

    def _refuse_strangers(self, paths):
        """Refuse files that have our names and are not ours, which stay as they are."""
        for path in paths:
            if not _is_ours(path):
                raise ValueError(
                    f"checkpoint={self._name!r} has {path.name}, which is not of this "
                    "package and in its way: move it, or take another folder."
                )

    def _read(self, path):
        """The values and arrays of a file of this fit."""
        with open(path, "rb") as file:
            try:
                fit, values, arrays = _read_archive(file)
            # What a damaged archive raises depends on where it is damaged.
            except Exception as error:
                raise _UnusableError(
                    f"is damaged: {path.name} is truncated or was changed "
                    f"({error!r}). {_remedy(self._name)}"
                ) from error
        differences = _differences(fit, self._fit)
        if differences:
            raise _UnusableError(
                f"holds another fit, which differs in {', '.join(differences)}. "
                f"{_remedy(self._name)} The fits of a search or of a cross-validation "
                "differ from each other, and need checkpoint=None."
            )
        return values, arrays

    @contextmanager
    def _explained(self, what):
        """Say of an error of the file system that it concerns the checkpoint."""
        try:
            yield
        except OSError as error:
            message = f"checkpoint={self._name!r} {what}: {error.strerror or error}"
            raise OSError(error.errno, message) from error


class _PhaseJournal(Journal):
    """The journal of one pass over the layers.

    Parameters
    ----------
    checkpoint : Checkpoint
        The folder.
    phase : str
        The name of the pass.
    """

    def __init__(self, checkpoint, phase):
        self._checkpoint, self._phase = checkpoint, phase

    def load(self, layer, machine):
        found = self._checkpoint.load(self._name(layer))
        return None if found is None else _unpack(*found, machine)

    def save(self, layer, progress):
        self._checkpoint.save(self._name(layer), *_pack(progress))

    def _name(self, layer):
        return f"{_PREFIX}{self._phase}-{layer}{_SUFFIX}"


class _UnusableError(Exception):
    """A folder has what this fit cannot go on from."""


def _remedy(name):
    return (
        "Take another folder, or pass checkpoint_on_error='restart' to discard what "
        f"{name!r} has of this package."
    )


def describe(value):
    """A parameter in terms of JSON, equal for equal parameters.

    Parameters
    ----------
    value : object
        The parameter.

    Returns
    -------
    object
        A random state becomes a digest of its state.
    """
    if isinstance(value, np.random.RandomState):
        state = describe(value.get_state(legacy=False))
        return f"RandomState {_hash(json.dumps(state).encode())}"
    if isinstance(value, dict):
        pairs = [[describe(key), describe(item)] for key, item in value.items()]
        return sorted(pairs, key=json.dumps)
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    plain = value is None or isinstance(value, str | int | float)
    return value if plain else repr(value)


def digest(array):
    """The dtype, the shape and a hash of an array, a str.

    Parameters
    ----------
    array : ndarray, or what has its dtype and shape and gives slices of its rows
        The array; block by block it passes through memory.

    Returns
    -------
    str
    """
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for rows in byte_blocks(array, _HASH_BLOCK):
        state.update(_as_bytes(array[rows]))
    return f"{array.dtype} {list(array.shape)} {state.hexdigest()}"


def _as_bytes(rows):
    """Some rows of an array as bytes, equal for equal rows."""
    if rows.dtype.hasobject:  # pointers, which differ from process to process
        return repr(rows.tolist()).encode()
    return np.ascontiguousarray(rows).tobytes()


def _differences(there, here):
    """What two fits differ in, parameters with both values; empty where in nothing."""
    parameters = [
        f"{name} ({old!r} there, {new!r} here)"
        for name, old, new in _unequal(there["parameters"], here["parameters"])
    ]
    return parameters + [
        f"the data {name}" for name, _, _ in _unequal(there["data"], here["data"])
    ]


def _unequal(there, here):
    """Yield (name, value there, value here) of what is not the same in two dicts."""
    for name in {**there, **here}:
        old, new = there.get(name), here.get(name)
        if json.dumps(old) != json.dumps(new):
            yield name, old, new


def _pack(progress):
    """What the rounds have found as values for JSON, and as arrays."""
    best, solution = progress.best, vars(progress.best.solution)
    arrays = {
        "spectrum": np.array(progress.history["spectrum"]),
        "transform": progress.transform,
        "agop": progress.agop,
        "best_transform": best.machine.transform,
    }
    arrays |= {name: x for name, x in solution.items() if isinstance(x, np.ndarray)}
    values = {
        "history": progress.history | {"spectrum": None},  # which keeps its place
        "stopped": progress.stopped,
        "ended": progress.ended,
        "index": best.index,
        "criterion": best.criterion,
        "solution": {name: x for name, x in solution.items() if name not in arrays},
    }
    return values, {name: x for name, x in arrays.items() if x is not None}


def _unpack(values, arrays, machine):
    """The inverse, with the rounds' machine under the transform of the best."""
    solution = values["solution"] | arrays
    best = Round(
        values["index"],
        machine.under(arrays.get("best_transform")),
        RidgeSolution(**{name: solution[name] for name in _SOLUTION}),
        values["criterion"],
    )
    return Progress(
        history=values["history"] | {"spectrum": list(arrays["spectrum"])},
        best=best,
        agop=arrays.get("agop"),
        transform=arrays.get("transform"),
        stopped=values["stopped"],
        ended=values["ended"],
    )


def _write_archive(file, fit, values, arrays):
    """Write one state as an archive."""
    digests = {name: digest(array) for name, array in arrays.items()}
    known = {"fit": fit, "rounds": values, "arrays": digests}
    text = json.dumps(known, indent=1).encode()
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = _hash(text).encode()
        # A time of its own would make files of equal states differ.
        archive.writestr(zipfile.ZipInfo(_VALUES), text)
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")
            with archive.open(member, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def _read_archive(file):
    """The fit, values and arrays of an archive; any error where it is damaged."""
    with zipfile.ZipFile(file) as archive:
        text = archive.read(_VALUES)
        if archive.comment != _hash(text).encode():
            raise ValueError(f"{_VALUES} was changed")
        known = json.loads(text)
        arrays = {}
        for name, expected in known["arrays"].items():
            with archive.open(f"{name}.npy") as stream:
                arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
            if digest(arrays[name]) != expected:
                raise ValueError(f"{name}.npy was changed")
    return known["fit"], known["rounds"], arrays


def _hash(data):
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()


def _is_ours(path):
    """Whether a file begins as ours do, or is empty."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(_NAME_AT + len(_VALUES))
    name = _VALUES.encode()
    return _MAGIC.startswith(start[: len(_MAGIC)]) and name.startswith(start[_NAME_AT:])
