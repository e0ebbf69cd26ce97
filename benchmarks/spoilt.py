"""Spoilt files of fitted estimators, for ``python -m benchmarks.fuzz --tamper N``.

A file that skops saved is a zip archive of a schema and of arrays. One thing in it is
changed: a number, a node or a key of the schema, values, shape, dtype or bytes of an
array, or the archive. Then it is refused in words, when it is loaded or when it
predicts; or predictions are the same; or they are finite, and all arrays have the
shapes that they had: that is another model. Files are used in a process of their own,
so that a crash ends that one alone.
"""

import copy
import io
import json
import math
import multiprocessing
import re
import resource
import signal
import warnings
import zipfile
from collections import Counter
from numbers import Number
from pathlib import Path

import numpy as np
import skops.io

from .random_fits import Case, pick, read

# Errors in words; those of loading may be of any type.
REFUSALS = (ValueError, TypeError, AttributeError, IndexError, ArithmeticError, Warning)
OUTCOMES = ("refused when loaded", "refused when used", "same", "another model")
_MOST_SECONDS = 60  # for a file
_MOST_BYTES = 2**33  # beyond those of the process
_NUMBERS = (0, 1, -1, 2, 3, 7, 2**31, 2**70, 0.5, 1e-300, 1e300, math.nan, math.inf)
_VALUES = (*_NUMBERS, None, True, "", "valid", "same", [], [1, 2], {}, {"a": 1})
_CLASSES = ("dict", "list", "tuple", "str", "int", "object", "type", "slice")


# ---------------------------------------------------------------------- changes


def spoil(data, rng):
    """Return the bytes of a file with one thing changed, and words for that."""
    members = members_of(data)
    data = archive_of(members)
    arrays = [name for name in members if name.endswith(".npy")]
    kind = pick(rng, ["schema"] * 4 + ["array"] * 5 * bool(arrays) + ["archive"])
    if kind == "archive":
        return spoil_archive(data, members, rng)
    if kind == "schema":
        schema = json.loads(members["schema.json"])
        words = spoil_schema(schema, rng, arrays)
        members["schema.json"] = json.dumps(schema).encode()
    else:
        name = pick(rng, arrays)
        members[name], words = spoil_array(members[name], rng)
    return archive_of(members), words


def members_of(data):
    """Return the members of a file, with the same names in every process."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = {}  # of objects, their addresses

    def rename(match):
        return names.setdefault(match[0], str(10**6 + len(names)))

    schema = members.pop("schema.json").decode()
    schema = re.sub(r'(?<="__id__": )\d+|\d+(?=\.npy")', rename, schema)
    renamed = {re.sub(r"^\d+", rename, name): members[name] for name in members}
    return renamed | {"schema.json": schema.encode()}


def archive_of(members):
    """Return the bytes of an archive of members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # without a time
    return file.getvalue()


def spoil_archive(data, members, rng):
    """Change bytes of the archive, or take a member out."""
    kind = pick(rng, ("cut", "bytes", "member"))
    if kind == "member":
        name = pick(rng, list(members))
        del members[name]
        return archive_of(members), f"no {name}"
    changed = (
        data[: rng.integers(len(data))] if kind == "cut" else with_bytes(data, rng)
    )
    return changed, f"archive: {kind}"


def with_bytes(data, rng):
    """Return bytes, some of them changed."""
    changed = np.frombuffer(data, np.uint8).copy()
    at = rng.integers(len(changed), size=rng.integers(1, 9))
    changed[at] = rng.integers(256, size=len(at))
    return changed.tobytes()


def nodes_of(node):
    """Yield all nodes of a schema, dicts with a loader."""
    if isinstance(node, dict) and "__loader__" in node:
        yield node
    children = node.values() if isinstance(node, dict) else node
    for child in children if isinstance(node, dict | list) else ():
        yield from nodes_of(child)


def spoil_schema(schema, rng, arrays):
    """Change one node of a schema in its place, and return words for that."""
    nodes = list(nodes_of(schema))
    node, other = pick(rng, nodes), pick(rng, nodes)
    kind = pick(rng, ("number", "number", "class", "loader", "file", "node", "key"))
    if kind == "number":
        node = pick(rng, [node for node in nodes if node["__loader__"] == "JsonNode"])
        node["content"] = json.dumps(pick(rng, _VALUES))
    elif kind == "class":
        node["__class__"] = pick(rng, (other["__class__"], *_CLASSES))
        node["__module__"] = pick(rng, (other["__module__"], "builtins"))
    elif kind == "loader":
        node["__loader__"] = other["__loader__"]
    elif kind == "file":
        node = pick(rng, [node for node in nodes if "file" in node] or nodes)
        node["file"] = pick(rng, arrays or ["schema.json"])
    elif kind == "node":
        replacement = copy.deepcopy(other)
        node.clear()
        node.update(replacement)
    else:
        content = node["content"] if isinstance(node.get("content"), dict) else node
        key = pick(rng, sorted(content) or ["content"])
        del content[key]
        if rng.random() < 0.5:
            content[key] = pick(rng, _VALUES)
        return f"schema: key {key}"
    return f"schema: {kind}, now {json.dumps(node)[:80]}"


def spoil_array(data, rng):
    """Return the bytes of another array, and words for the change."""
    if rng.random() < 0.2:
        cut = data[: rng.integers(len(data))]
        return pick(rng, (with_bytes(data, rng), cut, b"")), "array: bytes"
    array = np.load(io.BytesIO(data), allow_pickle=False)
    name = pick(rng, sorted(CHANGES))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        np.save(file, CHANGES[name](np.array(array), rng))
    return file.getvalue(), f"array {array.shape}: {name}"


def one_value(value):
    """Return a change of one value, where the dtype has it."""

    def change(array, rng):
        if array.size and array.dtype.kind == "f":
            array.flat[rng.integers(array.size)] = value
        return array

    return change


def as_type(dtype):
    """Return a change of the dtype; text becomes zeros."""
    return lambda array, rng: (
        np.zeros(array.shape, dtype) if array.dtype.kind == "U" else array.astype(dtype)
    )


CHANGES = {
    "NaN": one_value(np.nan),
    "infinity": one_value(np.inf),
    "huge": one_value(1e300),
    "all NaN": lambda array, rng: np.full(array.shape, np.nan),
    "zero": lambda array, rng: np.zeros_like(array),
    "permuted": lambda array, rng: np.resize(
        rng.permutation(array.ravel()), array.shape
    ),
    "one row less": lambda array, rng: np.atleast_1d(array)[:-1],
    "one row more": lambda array, rng: np.resize(
        array, (len(np.atleast_1d(array)) + 1, *array.shape[1:])
    ),
    "one column less": lambda array, rng: np.atleast_2d(array)[:, :-1],
    "transposed": lambda array, rng: array.T,
    "flat": lambda array, rng: array.ravel(),
    "one dimension more": lambda array, rng: array[..., None],
    "one number": lambda array, rng: np.resize(array, ()),
    "empty": lambda array, rng: np.atleast_1d(array)[:0],
    "large": lambda array, rng: np.resize(array, (100_000, *array.shape[1:])),
    **{f"of {dtype}": as_type(dtype) for dtype in ("f4", "i1", "?", "c16", "U")},
    "dates": lambda array, rng: np.zeros(array.shape, "M8[s]"),
    "other view": lambda array, rng: array.view(f"V{array.itemsize}"),
}


# ---------------------------------------------------------------------- outcomes


def try_file(seed):
    """Load and use one spoilt file, a pair of outcome and words."""
    case = Case.of_seed(seed)
    data = skops.io.dumps(case.fitted)
    trusted = skops.io.get_untrusted_types(data=data)
    spoilt, words = spoil(data, np.random.default_rng([seed, 3]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return outcome_of(case, spoilt, trusted), f"{words}; {case}"


def outcome_of(case, data, trusted):
    """Return one of `OUTCOMES`, or words for what is wrong."""
    try:
        model = skops.io.loads(data, trusted=trusted)
    except MemoryError as error:
        return f"loading ends in {error!r}"
    except Exception:
        return "refused when loaded"
    try:
        found = read(model, case.X_new)
    except REFUSALS:
        return "refused when used"
    except Exception as error:
        return f"use ends in {error!r}"
    expected = case.outputs
    if not all(np.isfinite(values).all() for values in found.values()):
        return "outputs are not finite"
    if found.keys() == expected.keys() and all(
        np.array_equal(found[name], expected[name]) for name in expected
    ):
        return "same"
    changes = changed_shapes(model, case.fitted)
    return f"other outputs in silence: {changes}" if changes else "another model"


def changed_shapes(model, expected):
    """Return the names of attributes that cannot be those of a fitted estimator."""
    found, known = (dict(numbers_of(each)) for each in (model, expected))
    return [
        name
        for name, value in known.items()
        if name not in found
        or np.shape(found[name]) != np.shape(value)
        or np.asarray(found[name]).dtype.kind not in "biuf"
        or not np.isfinite(found[name]).all()
    ]


def numbers_of(part, prefix=""):
    """Yield names and values of the numeric fitted attributes, of parts as well."""
    for name, value in vars(part).items():
        if name == "history_" or not name.endswith("_"):
            continue
        for index, each in enumerate(value if isinstance(value, list) else [value]):
            path = f"{prefix}{name}[{index}]" if isinstance(value, list) else name
            if hasattr(each, "get_params"):
                yield from numbers_of(each, f"{path}.")
            elif isinstance(each, Number | np.ndarray):
                if np.asarray(each).dtype.kind in "biuf":
                    yield prefix + path, each


# --------------------------------------------------------------------------- run


def work(connection, seeds):
    """Send the outcomes of files, one after the other."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    used = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MOST_BYTES, limit))
    for seed in seeds:
        signal.alarm(_MOST_SECONDS)
        connection.send(try_file(seed))
    signal.alarm(0)


def check(n_files, first):
    """Use so many spoilt files, print what is wrong, and return how often what came."""
    counts, seed, end = Counter(), first, first + n_files
    context = multiprocessing.get_context("spawn")
    while seed < end:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(sender, range(seed, end)))
        process.start()
        sender.close()
        found, words = None, ""
        while seed < end:
            try:
                found, words = receiver.recv()
            except EOFError:  # the file ended the process
                process.join()
                found, words = f"the process ended with {process.exitcode}", ""
            counts[found if found in OUTCOMES else "wrong"] += 1
            if found not in OUTCOMES:
                print(f"seed {seed}: {found}\n    {words}", flush=True)
            seed += 1
            if not words:
                break
        process.join()
    return counts
