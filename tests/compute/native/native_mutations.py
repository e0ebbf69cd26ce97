"""Every argument of every compiled call, changed one at a time.

Run as a script, so that a read out of bounds ends that process and not the tests; it
prints how many changes were refused and how many accepted.
"""

import copy
from types import SimpleNamespace

import native_stand_ins as stand_ins
import numpy as np
import torch

from skconvrfm.compute.images import Layer
from skconvrfm.compute.native import build, calls

HUGE = 2**40
# Changes of the order in memory, which may be refused or else change no result.
SAME_VALUES = ("another order", "every second", "backwards", "column order")


def valid_calls(dtype):
    """Yield (name, call, arguments): ``call(library, arguments)`` gives tensors."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return torch.tensor(rng.normal(size=shape), dtype=dtype)

    for pixels in (False, True):
        options = {"n_left": 5, "pixels": pixels}
        kernel, left, right = stand_ins.make_blocks("same", dtype, rng, **options)
        yield (
            "tiles",
            call_tiles,
            {
                "kernel": kernel,
                "left": left,
                "right": right,
                "rows": slice(1, 5),
                "columns": slice(16, 35),
                "diagonal": None,
                "dual_coef": normal(19, 2),
            },
        )
    arrays = {"weights": normal(3, 4, 9), "coef_product": normal(9, 9)}
    yield "gram_product", call_gram, {**arrays, "patches": normal(3, 5, 9)}
    for patches in (normal(2, 2, 12, 9), normal(2, 3, 2, 9)):
        arrays = {"weights": normal(4, 4, 9), "coef": normal(2, 9), "patches": patches}
        layer = Layer((2, 3), (1, 0, 1, 0), (2, 2))
        out = torch.zeros(4, 4, 2, 12, dtype=dtype)
        yield "output", call_output, {**arrays, "layer": layer, "out": out}
    layer = Layer((2, 3), (1, 0, 1, 1), (6, 7))
    features = stand_ins.make_filters(
        layer, 2, np.empty((20, 12)), "relu", np.empty(20), (3, 2)
    )
    features.filters, features.biases = rng.normal(size=(20, 12)), rng.normal(size=20)
    features.affine = None
    yield "filters", call_filters, {"features": features, "images": normal(4, 6, 7, 2)}


def call_tiles(library, a):
    tiles = calls.CompiledTiles(library, a["kernel"], a["left"], a["right"])
    value = tiles.value(a["rows"], a["columns"], a["diagonal"])
    return value, *tiles.pullback(a["rows"], a["columns"], a["dual_coef"])


def call_gram(library, a):
    return [calls.gram_product(library, *a.values())]


def call_output(library, a):
    calls.add_output_product(library, *a.values())
    return [a["out"]]


def call_filters(library, a):
    features = a["features"]
    features.affine = lambda channels: (features.filters, features.biases)
    return [calls.filter_maps(library, features, a["images"])]


def mutations(value, name):
    """Yield (label, changed value) of one argument."""
    if isinstance(value, torch.Tensor):
        yield from other_tensors(value)
    elif isinstance(value, np.ndarray):
        yield from other_arrays(value)
    elif isinstance(value, slice):
        pairs = [(-1, 3), (0, 99), (3, 2), (5, HUGE), (8, 2**63), (1, 9), (7, 12)]
        yield from ((f"{a}:{b}", slice(a, b)) for a, b in pairs)
        yield from ((str(s), s) for s in (slice(None), slice(0.0, 8.0), slice(0, 8, 2)))
    elif isinstance(value, Layer):
        yield from other_layers(value)
    elif isinstance(value, tuple | list) and len(value) and not isinstance(value, str):
        for index, entry in enumerate(value):
            for label, other in mutations(entry, name):
                changed = list(value)
                changed[index] = other
                yield f"[{index}] {label}", type(value)(changed)
        yield "shorter", value[:-1]
        yield "longer", value + value[-1:]
        yield "empty", value[:0]
    elif isinstance(value, SimpleNamespace):
        for key, entry in vars(value).items():
            for label, other in mutations(entry, key):
                changed = copy.copy(value)
                setattr(changed, key, other)
                yield f".{key} {label}", changed
    elif isinstance(value, int) and not isinstance(value, bool):
        others = (0, -1, value + 1, HUGE, 2**62, 2**63, 2.5, "3", None)
        yield from ((repr(other), other) for other in others)
    elif isinstance(value, str):
        yield from ((repr(other), other) for other in ("junk", "", None, 3))
    elif name == "diagonal":
        yield from ((repr(other), other) for other in (-HUGE, HUGE, -(2**70), 1.5, "1"))


def other_tensors(array):
    yield "None", None
    yield "ndarray", array.numpy()
    for dtype in (torch.float32, torch.float64, torch.float16, torch.int64):
        if dtype != array.dtype:
            yield str(dtype), array.to(dtype)
    yield "complex", array.to(torch.complex64)
    yield "bool", array.to(torch.bool)
    yield "meta device", array.to("meta")
    yield "sparse", array.to_sparse()
    yield "negated view", torch.complex(-array, -array).conj().imag
    yield "no memory", without_memory(array)
    yield "one dimension more", array[None]
    yield "one dimension less", array.select(0, 0)
    yield "flat", array.flatten()
    yield "oversized view", array.flatten()[:1].expand((HUGE, *array.shape[1:]))
    for dim, size in enumerate(array.shape):
        for other in {0, 1, size - 1, size + 1, 3 * size} - {size}:
            shape = list(array.shape)
            shape[dim] = other
            yield f"{size} → {other} in dimension {dim}", array.new_ones(shape)
    yield "another order of memory", array.mT.contiguous().mT
    yield "every second entry", array.repeat_interleave(2, -1)[..., ::2]
    yield "transposed", array.mT


def without_memory(array):
    array = array.clone()
    array.untyped_storage().resize_(0)
    return array


def other_arrays(array):
    yield "None", None
    yield "list", array.tolist()
    yield "tensor", torch.from_numpy(array)
    for dtype in (np.complex128, np.int64, object, "U8", bool):
        yield str(dtype), array.astype(dtype)
    yield "one dimension more", array[None]
    yield "one dimension less", array[0]
    yield "empty", array[:0]
    yield "shorter", array[:-1]
    yield "longer", np.concatenate([array, array])
    yield "oversized", np.broadcast_to(array.flat[:1].reshape(()), (10**6, 2))
    yield "very long", np.zeros(1_600_000)
    yield "narrower", array[..., :-1]
    yield "backwards twice", array[::-1].copy()[::-1]
    yield "column order", np.asfortranarray(array)


def other_layers(layer):
    for key, value in vars(layer).items():
        for label, other in mutations(value, key):
            yield f".{key} {label}", Layer(**{**vars(layer), key: other})


def main():
    refused = accepted = 0
    library = build.load(0)
    for dtype in (torch.float32, torch.float64):
        for name, call, valid in valid_calls(dtype):
            expected = [array.clone() for array in call(library, valid)]
            for argument, value in valid.items():
                for label, other in mutations(value, argument):
                    if "out" in valid:  # a sum over all calls
                        valid["out"].zero_()
                    label = f"{name}: {argument} {label} ({dtype})"
                    print(label, flush=True)
                    try:
                        results = call(library, {**valid, argument: other})
                    except (ValueError, TypeError):
                        refused += 1
                        continue
                    except RuntimeError as error:
                        assert "allocate memory" in str(error), label
                        refused += 1
                        continue
                    accepted += 1
                    if any(order in label for order in SAME_VALUES):
                        for result, right in zip(results, expected, strict=True):
                            torch.testing.assert_close(result, right)
    print(f"{refused} refused, {accepted} accepted")


if __name__ == "__main__":
    main()
