"""Checkpoints: the results of the rounds of a fit, kept in a folder.

Each layer has one file, ``convrfm-PHASE-LAYER.npz``: an archive of numpy arrays with
the rest in its first member, ``convrfm.json``, without pickled objects. A file is
written beside its place, forced to the disk and renamed, so that it is never half
written; and each is complete in itself. Results are kept, not the loop: on resuming it
runs again, from the same draws, and finds them in place of rounds.

A file has the fingerprint of its fit, without which it is foreign, and digests: of the
arrays in ``convrfm.json``, and of this in the comment of the archive.

One fit at a time has the lock of the folder, the file ``convrfm-lock``, which ends with
its process at the latest.
"""

import copy
import errno
import functools
import hashlib
import json
import os
import zipfile
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np

from ..compute.blocks import byte_blocks
from ..compute.files import TEMPORARY, hold_lock, write_whole
from ..features.gradients import LayerAgop
from .covariance import Covariance, keeps_covariance
from .fitted import check_numbers
from .ridge import RidgeSolution
from .rounds import CLOCKS, Progress, Round

# Of the layout of the files; another one is foreign.
FORMAT = 4

_PREFIX, _SUFFIX = "convrfm-", ".npz"
_LOCK, _VALUES = "convrfm-lock", "convrfm.json"
# How our files begin, truncated or not: the header of a member, 30 bytes, and its name.
_MAGIC, _NAME_AT = b"PK\x03\x04", 30
_DIGEST_BYTES = 16
_HASH_BLOCK = 2**22  # bytes of an array


class Checkpoint:
    """The folder of one fit, whose parameters and data's digests are dicts by name.

    As a context it has the lock of the folder, which it takes when it is made.
    """

    def __init__(self, folder, parameters, data):
        self._name, self._folder = os.fspath(folder), Path(folder)
        self._fit = {"parameters": {"format": FORMAT} | parameters, "data": data}
        with self._explained("cannot be used"), ExitStack() as stack:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self._folder, os.W_OK | os.X_OK):
                raise OSError(errno.EACCES, "the folder is not writable")
            if self._is_locked(stack):  # else they may be those of another fit
                for leftover in self._folder.glob(f".{_PREFIX}*{TEMPORARY}"):
                    leftover.unlink(missing_ok=True)
            paths = sorted(self._folder.glob(f"{_PREFIX}*{_SUFFIX}"))
            for path in paths:
                if not _is_ours(path):
                    raise ValueError(
                        f"checkpoint={self._name!r} has {path.name}, which is not of "
                        "this package and in its way: move it, or take another folder."
                    )
            self._states = {path.name: self._read(path) for path in paths}
            self._held = stack.pop_all()

    def _is_locked(self, stack):
        """Take the lock until the stack is closed; False where files have no locks."""
        try:
            return stack.enter_context(hold_lock(self._folder / _LOCK))
        except BlockingIOError as error:
            raise BlockingIOError(
                error.errno,
                "another fit, in this process or another one, is using it. Wait until "
                "that has ended, or take another folder; the fits of a search or of a "
                "cross-validation need checkpoint=None",
            ) from error

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._held.close()

    @property
    def n_rounds(self):
        """Number of rounds that were found in the folder, of all layers."""
        return sum(len(v["history"]["round"]) for v, _ in self._states.values())

    def phase(self, name):
        """Return the checkpoint for one pass over the stages, such as a choice."""
        part = copy.copy(self)
        part._phase = name
        return part

    def load(self, stage, model):
        """Return the `Progress` of a stage that was found, or None; only once."""
        name = self._file_name(stage)
        found = self._states.pop(name, None)
        if found is None:
            return None
        with self._no_damage(name):
            return _unpack(*found, model)

    def save(self, stage, progress):
        """Keep the `Progress` of a stage, in the place of an earlier one."""
        write = functools.partial(_write_archive, self._fit, *_pack(progress))
        with self._explained("could not be written, and holds what it held before"):
            write_whole(self._folder / self._file_name(stage), write)

    def _file_name(self, stage):
        return f"{_PREFIX}{self._phase}-{stage}{_SUFFIX}"

    def _read(self, path):
        """Return the values and arrays of a file of this fit."""
        with open(path, "rb") as file, self._no_damage(path.name):
            fit, values, arrays = _read_archive(file)
            differences = _differences(fit, self._fit)
        if differences:
            raise ValueError(
                f"checkpoint={self._name!r} holds another fit, which differs in "
                f"{', '.join(differences)}. {self._remedy} The fits of a search or of "
                "a cross-validation differ from each other, and need checkpoint=None."
            )
        return values, arrays

    @property
    def _remedy(self):
        return (
            f"Take another folder, or remove {self._name!r} to fit from the beginning."
        )

    @contextmanager
    def _no_damage(self, name):
        """Name the checkpoint and the file in errors of any type."""
        try:
            yield
        except Exception as error:  # by the place of the damage
            raise ValueError(
                f"checkpoint={self._name!r} is damaged: {name} is truncated or was "
                f"changed ({error!r}). {self._remedy}"
            ) from error

    @contextmanager
    def _explained(self, what):
        """Name the checkpoint in errors of the file system."""
        try:
            yield
        except OSError as error:
            message = f"checkpoint={self._name!r} {what}: {error.strerror or error}"
            raise OSError(error.errno, message) from error


def describe(value):
    """Return a parameter in terms of JSON; a random state becomes a digest."""
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
    return value if isinstance(value, str | int | float | None) else repr(value)


def digest(array):
    """Return the dtype, the shape and a hash of an array, which is read by blocks."""
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for rows in byte_blocks(array, _HASH_BLOCK):
        block = np.asarray(array[rows])
        # Pointers differ from process to process.
        is_plain = not block.dtype.hasobject
        state.update(block.tobytes() if is_plain else repr(block.tolist()).encode())
    return f"{array.dtype} {list(array.shape)} {state.hexdigest()}"


def _differences(there, here):
    """Return the differences of two fits in words, parameters with both values."""
    texts = []
    for part in ("parameters", "data"):
        for name in {**there[part], **here[part]}:
            old, new = there[part].get(name), here[part].get(name)
            if json.dumps(old) != json.dumps(new):
                values = f"{name} ({old!r} there, {new!r} here)"
                texts.append(values if part == "parameters" else f"the data {name}")
    return texts


def _pack(progress):
    """Return the progress of a stage as values for JSON, and as arrays."""
    best, solution = progress.best, dict(vars(progress.best.solution))
    covariance = solution.pop("covariance")
    solution |= {} if covariance is None else vars(covariance)
    groups = {
        "transform": progress.transforms,
        "agop": progress.agops and [one.agop for one in progress.agops],
        "importance": progress.agops and [one.importance for one in progress.agops],
        "chosen": progress.chosen,
        "best_transform": best.model.transforms,
        "best_chosen": best.model.chosen,
    }
    groups |= {f"spectra_{i}": x for i, x in enumerate(progress.history["spectra"])}
    arrays = {
        f"{name}_{layer}": array
        for name, group in groups.items()
        for layer, array in enumerate(group or ())
        if array is not None
    }
    arrays |= {name: x for name, x in solution.items() if isinstance(x, np.ndarray)}
    values = {
        "history": progress.history | {"spectra": None},  # which keeps its place
        # None is the identity, or the absence of all of a group.
        "groups": {
            name: None if group is None else [array is not None for array in group]
            for name, group in groups.items()
        },
        "stopped": progress.stopped,
        "ended": progress.ended,
        "choice": progress.choice,
        "index": best.index,
        "criterion": best.criterion,
        "multiple": best.model.multiple,
        "solution": {name: x for name, x in solution.items() if name not in arrays},
    }
    return values, arrays


def _unpack(values, arrays, model):
    """Return the progress, with the model under the transforms of the best round."""

    def group(name, shapes):
        there = values["groups"][name]
        if not there:
            return there
        return tuple(
            check_numbers(name, arrays[f"{name}_{i}"], shape) if is_there else None
            for i, (is_there, shape) in enumerate(zip(there, shapes, strict=True))
        )

    choice = int(values["choice"])
    model = model.alternatives[choice]
    history, counts = values["history"], [(n,) for n in model.n_filters]
    squares = [(d, d) for d in model.patch_dims]
    layers = range(len(squares))
    _check_history(history)
    history["spectra"] = [
        [arrays[f"spectra_{i}_{layer}"] for layer in layers] for i in history["round"]
    ]
    chosen = group("best_chosen", counts)
    current = model.with_filters(tuple(chosen)) if chosen else model
    current = current.with_metric(group("best_transform", squares))
    if values["multiple"] is not None:
        current = current.stretched(float(values["multiple"]))
    solution = _check_solution(values["solution"] | arrays, current)
    index = history["round"].index(values["index"])
    best = Round(index, current, solution, float(values["criterion"]))
    ends = {name: bool(values[name]) for name in ("stopped", "ended")}
    agops = group("agop", squares)
    if agops:
        importances = group("importance", counts or (None,))
        agops = tuple(map(LayerAgop, agops, importances))
    later = group("transform", squares), tuple(group("chosen", counts))
    return Progress(history, best, agops, *later, **ends, choice=choice)


def _check_history(history):
    """Refuse a history without one number for each round in every list."""
    n = len(history["round"])
    if n == 0 or history["round"] != [*range(n)]:
        raise ValueError(f"it has the rounds {history['round']}")
    for name in {"alpha", "gcv", "loo_loss", "loo_score", *CLOCKS, *history}:
        if name != "spectra" and np.shape(np.array(history[name], float)) != (n,):
            raise ValueError(f"{name} has not {n} numbers, one for each round")


def _check_solution(found, model):
    """Return the solution of a model, whose arrays are of its sizes."""
    n, n_outputs = model.data.targets.shape
    n_coefs = model.n_coefs
    shapes = {
        "coef": (n_coefs, n_outputs),
        "intercept": (n_outputs,),
        "loo_prediction": (n, n_outputs),
        "noise": (n_outputs,),
    }
    covariance = None
    if keeps_covariance(model):
        parts = (field.name for field in fields(Covariance))
        covariance = Covariance(**{name: found[name] for name in parts})
        covariance.check("covariance", n_coefs)
    else:
        del shapes["noise"]
    names = {field.name for field in fields(RidgeSolution)} - {"noise", "covariance"}
    return RidgeSolution(
        **{name: float(found[name]) for name in names - shapes.keys()},
        **{name: check_numbers(name, found[name], shapes[name]) for name in shapes},
        covariance=covariance,
    )


def _write_archive(fit, values, arrays, file):
    """Write one state as an archive."""
    digests = {name: digest(array) for name, array in arrays.items()}
    text = json.dumps({"fit": fit, "rounds": values, "arrays": digests}, indent=1)
    text = text.encode()
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = _hash(text).encode()
        # A time of its own would make files of equal states differ.
        archive.writestr(zipfile.ZipInfo(_VALUES), text)
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")
            with archive.open(member, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def _read_archive(file):
    """Return the fit, values and arrays of an archive; any error if it is damaged."""
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
    """Return True if a file begins like ours, or is empty."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(_NAME_AT + len(_VALUES))
    name = _VALUES.encode()
    return _MAGIC.startswith(start[: len(_MAGIC)]) and name.startswith(start[_NAME_AT:])
