"""Spoilt files of fitted estimators, for ``python -m benchmarks.fuzz --tamper N``.

A file that skops saved is a zip archive of a schema and of arrays. One thing in it is
changed: an entry of the schema, bytes of an array or of the archive, or an array is
missing (``tests/fitted_mutations.py`` has all other changes of arrays). Then it is
refused in words, when it is loaded or when it predicts; or predictions are the same; or
they are finite, and all arrays have the shapes that they had: that is another model.
Files are used in a process of their own, so that a crash ends that one alone.
"""

import copy
import io
import json
import math
import multiprocessing
import resource
import signal
import warnings
import zipfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from numbers import Number

import numpy as np
import skops.io

from tests.fitted_mutations import MACHINES, REFUSALS, make_data, make_machine, outputs

OUTCOMES = "refused when loaded", "refused when used", "same", "another model"
MOST_SECONDS, MOST_BYTES = 60, 2**34  # for a file; of address space
# Values of an entry of the schema.
NUMBERS = (0, 1, -1, 2, 7, 2**31, 2**70, 0.5, 1e-300, 1e300, math.nan, math.inf)
VALUES = (*NUMBERS, None, True, "", "valid", "same", [], [1, 2], {}, {"a": 1})


def pick(rng, options):
    """Return one of the options."""
    return options[rng.integers(len(options))]


def spoil(data, rng):
    """Return the bytes of a file with one thing changed, and words for that."""
    kind = pick(rng, ["schema"] * 4 + ["array"] * 4 + ["missing", "bytes"])
    if kind == "bytes":
        return with_bytes(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    arrays = [name for name in members if name.endswith(".npy")]
    name = "schema.json" if kind == "schema" else pick(rng, arrays)
    content, words = members.pop(name), "array missing"
    if kind != "missing":
        change = spoil_schema if kind == "schema" else with_bytes
        members[name], words = change(content, rng)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue(), words


def with_bytes(data, rng):
    """Return bytes, of which some are changed or the last are missing, and words."""
    if rng.random() < 0.3:
        return data[: rng.integers(len(data))], "bytes are missing"
    changed = np.frombuffer(data, np.uint8).copy()
    at = rng.integers(len(changed), size=rng.integers(1, 9))
    changed[at] = rng.integers(256, size=len(at))
    return changed.tobytes(), "other bytes"


def spoil_schema(data, rng):
    """Return another schema, in which an entry of a node is changed, and words."""
    schema = json.loads(data)
    nodes = list(nodes_of(schema))
    node, other = pick(rng, nodes), copy.deepcopy(pick(rng, nodes))
    if isinstance(node.get("content"), dict) and rng.random() < 0.7:
        node = node["content"]
    key = pick(rng, sorted(node) or ["content"])
    old = node.pop(key, None)
    kind = pick(rng, ("missing", "a value", "a node", "the entry of another node"))
    if kind == "a value":
        value = pick(rng, VALUES)
        node[key] = json.dumps(value) if isinstance(old, str) else value
    elif kind != "missing":
        node[key] = other if kind == "a node" else other.get(key, old)
    return json.dumps(schema).encode(), f"schema: {key} is {kind}"


def nodes_of(node):
    """Yield all nodes of a schema, dicts with a loader."""
    if isinstance(node, dict) and "__loader__" in node:
        yield node
    children = node.values() if isinstance(node, dict) else node
    for child in children if isinstance(node, dict | list) else ():
        yield from nodes_of(child)


def try_file(seed):
    """Load and use one spoilt file, a pair of outcome and words."""
    rng = np.random.default_rng(seed)
    name = pick(rng, list(MACHINES))
    expected, data = fitted(name)
    spoilt, words = spoil(data, rng)
    signal.alarm(MOST_SECONDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = outcome_of(expected, spoilt, skops.io.get_untrusted_types(data=data))
    signal.alarm(0)
    return found, f"{words}; {name}"


@cache
def fitted(name):
    """Return a fitted machine, and the bytes of its file."""
    model = make_machine(name)
    return model, skops.io.dumps(model)


def outcome_of(expected, data, trusted):
    """Return one of `OUTCOMES`, or words for what is wrong."""
    X, _ = make_data()
    try:
        model = skops.io.loads(data, trusted=trusted)
    except MemoryError as error:
        return f"loading ends in {error!r}"
    except Exception:
        return "refused when loaded"
    try:
        found = outputs(model, X)
    except REFUSALS:
        return "refused when used"
    except Exception as error:
        return f"use ends in {error!r}"
    if not all(np.isfinite(values).all() for values in found):
        return "outputs are not finite"
    if all(map(np.array_equal, found, outputs(expected, X))):
        return "same"
    shapes, known = shapes_of(model), shapes_of(expected)
    changes = [name for name in known if shapes.get(name) != known[name]]
    return f"other outputs in silence: {changes}" if changes else "another model"


def shapes_of(model):
    """Return the shapes of numeric fitted attributes, of parts as well, by name."""
    return {
        f"{type(part).__name__}.{name}": np.shape(value)
        for part in (model, model.kernel_, *model.features_)
        for name, value in vars(part).items()
        if name.endswith("_") and isinstance(value, np.ndarray | Number)
    }


def new_worker():
    """Return an executor of one process with limited memory, which a file may end."""
    limits = MOST_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]
    context = multiprocessing.get_context("spawn")
    set_limits = resource.RLIMIT_AS, limits
    return ProcessPoolExecutor(1, context, resource.setrlimit, set_limits)


def check(n_files, first):
    """Use so many spoilt files, print what is wrong, and return how often what came."""
    counts, worker = Counter(), new_worker()
    for seed in range(first, first + n_files):
        try:
            found, words = worker.submit(try_file, seed).result()
        except BrokenProcessPool:
            found, words = "the process ended", "by a crash, for time or memory"
            worker = new_worker()
        counts[found if found in OUTCOMES else "wrong"] += 1
        if found not in OUTCOMES:
            print(f"seed {seed}: {found}\n    {words}", flush=True)
    worker.shutdown()
    return counts
