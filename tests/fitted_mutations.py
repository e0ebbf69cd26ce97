"""Program: predicts after every fitted attribute was replaced by unusable values.

``python fitted_mutations.py NAME`` prints ``attribute: mutation`` before, and an
outcome after each prediction: "refused", "same" or "changed".
"""

import copy
import sys
import warnings

import numpy as np

from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian, Linear, PatchGaussian, PatchLaplace

LOCATIONS = ConvFeatures(5, patch_size=3, pool_grid=None)
SEEN = ConvFeatures(5, patch_size=3, pool_grid=None, skip=True)
POOLED = ConvFeatures(5, patch_size=3, pool_grid=2)
MACHINES = {
    "ntk": (ConvNTK(depth=2), None),
    "patch laplace": (PatchLaplace(), None),
    "pooled": (PatchGaussian(pool_grid=2), None),
    "gaussian": (Gaussian(), POOLED),
    "linear": (Linear(), POOLED),
    "two layers": (Gaussian(), [SEEN, ConvFeatures(4, patch_size=2, pool_grid=2)]),
    "deep": (ConvNTK(depth=1), LOCATIONS),
}
# Refusals in words; a crash, or an error of the memory, is none.
REFUSALS = (ValueError, TypeError, AttributeError, IndexError, ArithmeticError, Warning)
NUMBERS = {
    "NaN": np.nan,
    "infinity": np.inf,
    "text": "auto",
    "none": None,
    "array": np.ones((3, 2)),
    "empty": np.empty(0),
}


def make_data():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(22, 6, 7, 2)), np.arange(22) % 3
    X[y == 1, 2, 3] += 2
    return X, y


def make_machine(name):
    X, y = make_data()
    kernel, features = copy.deepcopy(MACHINES[name])
    model = ConvRFMClassifier(kernel, features, n_rounds=1, selection="last", alpha=0.1)
    return model.fit(X, y)


def outputs(model, X):
    return [
        np.asarray(getattr(model, name)(X), dtype=np.float64)
        for name in ("decision_function", "predict_proba", "predict")
    ]


def mutations(name, value):
    """Yield (description, other value) of a fitted attribute."""
    if isinstance(value, np.ndarray):
        yield "one row less", value[:-1]
        yield "one row more", np.concatenate([value, value[:1]])
        yield "empty", value[:0]
        yield "one dimension more", value[..., None]
        yield "flat", value.ravel()
        yield "a number", value.flat[0]
        yield "none", None
        yield "text", value.astype(str)
        if name != "classes_":  # which may be anything
            yield "objects", np.full(value.shape, None)
        yield "complex", value + 1j
        yield "read only", _locked(value)
        yield "other order", np.asfortranarray(value)
        yield "list", value.tolist()
        if value.ndim == 2:
            yield "one column less", value[:, :-1]
            yield "one column more", np.hstack([value, value[:, :1]])
            yield "no columns", value[:, :0]
            yield "transposed", value.T
            yield "strided", np.repeat(value, 2, axis=1)[:, ::2]
            yield "oversized", np.broadcast_to(value[:1], (10**6, value.shape[1]))
            yield "oversized rows", np.broadcast_to(value[:, :1], (len(value), 10**6))
        else:
            yield "oversized", np.broadcast_to(value[:1], (10**6,))
        if value.dtype.kind == "f":
            yield "NaN", np.full_like(value, np.nan)
            yield "one NaN", _with_one(value, np.nan)
            yield "one infinity", _with_one(value, np.inf)
            yield "float32", value.astype(np.float32)
            yield "long double", value.astype(np.longdouble)
            yield "other byte order", value.astype(value.dtype.newbyteorder())
    elif name == "image_shape_":
        rows, columns, channels = value
        yield "transposed", (columns, rows, channels)
        yield "larger", (rows + 1, columns, channels)
        yield "one row", (1, rows * columns, channels)
        yield "channels", (rows, 1, columns)
        yield "negative", (-rows, -columns, channels)
        yield "no channels", (rows, columns)
        yield "zero", (0, 0, 0)
        yield "huge", (2**40, 2**40, 2**40)
        yield "none", None
        yield "text", "image"
    elif isinstance(value, float):
        yield from NUMBERS.items()
        if name == "bandwidth_":
            yield "zero", 0.0
            yield "negative", -value


def _locked(value):
    value = value.copy()
    value.flags.writeable = False
    return value


def _with_one(value, number):
    value = value.copy()
    value.flat[-1] = number
    return value


def parts_of(model):
    """Yield (name, function that gives it of a copy) of all that has attributes."""
    yield "model", lambda model: model
    yield "kernel_", lambda model: model.kernel_
    for index in range(len(model.features_)):
        yield f"features_[{index}]", lambda model, i=index: model.features_[i]


def is_same(found, expected):
    return all(
        a.shape == b.shape and np.allclose(a, b, rtol=1e-3, atol=1e-4)
        for a, b in zip(found, expected, strict=True)
    )


def main(name):
    warnings.simplefilter("error")
    X, _ = make_data()
    rows = X.reshape(len(X), -1)
    model = make_machine(name)
    expected = outputs(model, rows)
    for part_name, part_of in parts_of(model):
        for attribute, value in list(vars(part_of(model)).items()):
            if not attribute.endswith("_"):
                continue
            for mutation, other in mutations(attribute, value):
                print(f"{part_name}.{attribute}: {mutation}", end=" ", flush=True)
                mutant = copy.deepcopy(model)
                setattr(part_of(mutant), attribute, other)
                try:
                    found = outputs(mutant, rows)
                except REFUSALS as error:
                    print(
                        "refused", type(error).__name__, str(error)[:70].split("\n")[0]
                    )
                else:
                    print("same" if is_same(found, expected) else "changed", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
