"""Invariants that every fit has, for ``python -m benchmarks.fuzz``.

Most say that another case, such as one with its rows in another order, gives the same
outputs, bit by bit or up to rounding. Where rounding decides between ridges or rounds
whose criteria are as good as equal, a comparison is undecided.
"""

import copy
import itertools
import pickle
import tempfile
from contextlib import nullcontext
from functools import partial

import joblib
import numpy as np
import pandas as pd
import skops.io
import torch
from sklearn import config_context

from skconvrfm import ConvRFMClassifier
from skconvrfm.kernels import ConvNTK, Linear
from skconvrfm.kernels.convolutional import ConvolutionalKernel
from skconvrfm.kernels.whole import RadialKernel

from .random_fits import fit, pick, stream

# Rounding is so many times what other last digits of the images change, and so many
# units in the last place of kernels, which the ridge magnifies.
_FACTOR, _UNITS = 1000, 100
# Part of an output that last digits of float64 may change.
_MOST_MOVED = 1e-4
# Parameters that change no prediction after a fit.
_OTHER_PARAMETERS = {
    "alpha": 7.0,
    "n_rounds": 9,
    "kernel": ConvNTK(5),
    "features": "auto",
    "agop_power": 3.0,
    "selection": "last",
    "image_shape": (1, 1),
    "channels": "first",
    "random_state": 77,
}


class ViolationError(Exception):
    """An invariant does not hold."""


class UndecidedError(Exception):
    """Rounding decides which ridge, round or layer is kept."""


# ------------------------------------------------------------------ comparisons


def exactly(case, other):
    """Compare outputs bit by bit."""
    for name, expected in case.outputs.items():
        if not np.array_equal(other.outputs[name], expected):
            error = np.abs(other.outputs[name] - expected).max()
            raise ViolationError(f"{name} differs by {error:.2g}, in some bits")


def closely(case, other):
    """Compare criteria, what they chose, and outputs, up to rounding."""
    compare_criteria(case, other)
    nearly(case, other)


def nearly(case, other):
    """Compare outputs up to rounding, where the same ridges and round were chosen."""
    if not choices(case.fitted) == choices(case.noisy.fitted) == choices(other.fitted):
        raise UndecidedError
    if other_bandwidth(case, other) or other_bandwidth(case, case.noisy):
        raise UndecidedError
    if choices(case.fitted)[1] > 0 and not same_filters(case, other, case.noisy):
        raise UndecidedError
    *_, paths = choices(case.fitted)
    alpha = min([case.fitted.alpha_, *itertools.chain.from_iterable(paths)])
    size = target_size(case) if case.learner is case.model else 0.0
    for name, expected in case.outputs.items():
        error = np.abs(other.outputs[name] - expected).max()
        limit = limit_of(case, expected, case.noisy.outputs[name], alpha, size)
        if not error <= limit:
            raise ViolationError(f"{name} differs by {error:.2g}, not {limit:.2g}")


def compare_criteria(case, other):
    """Compare the criteria of rounds, up to the first that takes another ridge."""
    size, cases = target_size(case) ** 2, (case, other, case.noisy)
    if other_bandwidth(case, other) or other_bandwidth(case, case.noisy):
        raise UndecidedError
    layers = zip(
        *(histories(c.fitted, c.groups is not None) for c in cases), strict=False
    )
    last = None if same_filters(*cases) else 1
    for round_ in itertools.chain.from_iterable(
        itertools.islice(zip(*histories_of_layer, strict=False), last)
        for histories_of_layer in layers
    ):
        alphas, (expected, found, noisy) = zip(*round_, strict=True)
        limit = limit_of(case, expected, noisy, min(alphas) ** 2, size)
        if not abs(found - expected) <= limit:
            difference = abs(found - expected)
            raise ViolationError(
                f"criterion differs by {difference:.2g}, not {limit:.2g}"
            )
        if len(set(alphas)) > 1:
            raise UndecidedError


def target_size(case):
    """Return the largest target of the regression."""
    classifies = isinstance(case.learner, ConvRFMClassifier)
    return 1.0 if classifies else np.abs(case.y).max()


def other_bandwidth(case, other):
    """Return True if two fits have bandwidths that differ by more than rounding."""
    kernels = (getattr(c.fitted, "estimator_", c.fitted).kernel_ for c in (case, other))
    found = [getattr(kernel, "bandwidth_", 1.0) for kernel in kernels]
    return max(found) > 1.4 * min(found)


def same_filters(*cases):
    """Return True if fits are known to have chosen the same candidates."""
    models = [getattr(case.fitted, "estimator_", case.fitted) for case in cases]
    if all(layer.candidates == 1 for layer in models[0].features_):
        return True
    biases = [[layer.unit_biases_ for layer in m.features_] for m in models]
    return all(m.best_round_ > 0 for m in models) and all(
        np.array_equal(one, biases[0][layer])
        for found in biases
        for layer, one in enumerate(found)
    )


def histories(fitted, in_groups=False):
    """Return the pairs (ridge, criterion) of rounds, a list for each layer."""
    model = getattr(fitted, "estimator_", fitted)
    key = {"loo": "loo_loss", "holdout": "holdout_loss"}.get(model.selection, "gcv")
    if in_groups and not hasattr(model, "stream_"):
        key = "loo_loss"
    key = key if key in model.history_ else "gcv"
    parts = [part.history_ for part in model.learned_layers_] or [model.history_]
    return [list(zip(part["alpha"], part[key], strict=True)) for part in parts]


def choices(fitted):
    """Return the ridges, rounds and the layer that make the predictions."""
    model = getattr(fitted, "estimator_", fitted)
    rounds = [layer.best_round_ for layer in model.learned_layers_]
    paths = [[alpha for alpha, _ in path] for path in histories(fitted)]
    paths = [path[: best + 1] for path, best in zip(paths, rounds, strict=False)]
    return model.alpha_, model.best_round_, model.best_layer_, rounds, paths


def limit_of(case, values, noisy, alpha, size=0.0):
    """Return the difference that is rounding, of what is solved with a ridge."""
    size = max(size, np.abs(values).max())
    rounding = _UNITS * np.finfo(case.precision).eps * size / min(1, alpha)
    rounding *= magnification(case.fitted)
    return _FACTOR * np.abs(noisy - values).max() + rounding


def magnification(fitted):
    """Return how much a fit magnifies rounding, but for its ridge."""
    factor, model = 1.0, getattr(fitted, "estimator_", fitted)
    if isinstance(model.kernel_, ConvNTK):  # whose gradients have roots of rounding
        factor = 1 / np.sqrt(np.finfo(np.float64).eps) / _UNITS
    if isinstance(model.kernel_, RadialKernel):  # squared distances, from products
        lengths = np.square(model.X_fit_, dtype=float).sum(1)
        factor = max(1.0, lengths.max() / model.kernel_.bandwidth_**2)
    if getattr(fitted, "output", None) == "eigen":  # eigenvectors, by their gaps
        values = np.linalg.eigvalsh(fitted.patch_transform_)[::-1]
        gaps = -np.diff(values)[: len(fitted.components_)]
        factor *= values[0] / max(gaps.min(initial=values[0]), 1e-16 * values[0])
    return factor


# ------------------------------------------------- invariants of a case by itself


def finite(case):
    """Outputs are finite."""
    for name, values in case.outputs.items():
        if not np.isfinite(values).all():
            raise ViolationError(f"{name} is not finite")


def probabilities(case):
    """Probabilities are in [0, 1], and those of exclusive classes sum to 1."""
    found = case.outputs.get("predict_proba", np.ones(1))
    if found.min() < 0 or found.max() > 1:
        raise ViolationError(f"from {found.min()} to {found.max()}")
    if found.ndim == 2 and case.y.ndim == 1 and abs(found.sum(1) - 1).max() > 1e-12:
        raise ViolationError(f"sums are {found.sum(axis=1)}")


def stable(case):
    """Last digits of float64 images, well conditioned, make a small difference."""
    if case.precision == np.float32 or np.min(case.learner.alpha) < 1e-3:
        return
    if getattr(case.model, "output", None) == "eigen":  # eigenvalues may be equal
        raise UndecidedError
    if choices(case.fitted) != choices(case.noisy.fitted):
        raise UndecidedError
    if other_bandwidth(case, case.noisy):
        raise UndecidedError
    for name, values in case.outputs.items():
        moved = np.abs(case.noisy.outputs[name] - values).max()
        if moved > _MOST_MOVED * np.abs(values).max():
            raise ViolationError(f"{name} moves by {moved:.2g}")


def leaves_inputs(case):
    """A fit and its predictions change neither data nor parameters."""
    parts = {key: copy.deepcopy(getattr(case, key)) for key in ("X", "y", "weights")}
    other = case.but(**parts, X_new=case.X_new.copy())
    before = repr(other.model.get_params())
    exactly(case, other)
    for name in (*parts, "X_new"):
        if not np.array_equal(getattr(other, name), getattr(case, name)):
            raise ViolationError(f"{name} was changed")
    if repr(other.model.get_params()) != before:
        raise ViolationError("parameters were changed")


# ----------------------------- invariants of another case; None if it does not apply


def refitted(case):
    return case.but()


def rows_permuted(case):
    return case.take(case.rng.permutation(len(case.y)))


def weights_repeated(case):
    """The case with a row of weight k as k rows."""
    if case.weights is not None and case.weights.dtype.kind == "i":
        rows = np.repeat(np.arange(len(case.y)), case.weights)
        return case.take(rows).but(weights=None)


def zero_weights_removed(case):
    if case.weights is not None and not case.weights.all():
        return case.take(np.flatnonzero(case.weights))


def one_by_one(case):
    def read_each(fitted, X):
        found = [case.read(fitted, X[i : i + 1]) for i in range(len(X))]
        return {key: np.concatenate([f[key] for f in found]) for key in found[0]}

    return case.but(fit=lambda _: case.fitted, read=read_each)


def n_jobs(case):
    # Processes take seconds to start.
    backend = "loky" if case.rng.random() < 0.02 else "threading"
    context = partial(joblib.parallel_config, backend=backend)
    return case.but({"n_jobs": 2}, context=context)


def working_memory(case):
    size = pick(case.rng, (0.05, 0.2, 1, 8, 64))
    return case.but(context=partial(config_context, working_memory=size))


def stored(case):
    """The case with memory maps of files for images."""
    files = [tempfile.NamedTemporaryFile(suffix=".npy") for _ in range(2)]
    for file, images in zip(files, (case.X, case.X_new), strict=True):
        np.save(file, images)
        file.flush()
    X, X_new = (np.load(file.name, mmap_mode="r") for file in files)
    return case.but(X=X, X_new=X_new, context=partial(nullcontext, files))


def channels_first(case):
    X, X_new = (images.transpose(0, 3, 1, 2) for images in (case.X, case.X_new))
    return case.but({"channels": "first"}, X=X, X_new=X_new)


def laid_out(case):
    """The case with images of another kind or layout, and the same values."""
    change = LAYOUTS[pick(case.rng, sorted(LAYOUTS))]
    X, X_new = change(case.X), change(case.X_new)
    shape = case.X.shape[1:]
    return None if X is None else case.but({"image_shape": shape}, X=X, X_new=X_new)


def flat(images):
    return images.reshape(len(images), -1)


def as_tensor(images):
    """Return a tensor, of bfloat16 where that has the same values."""
    tensor = torch.from_numpy(images)
    small = tensor.bfloat16()
    same = images.dtype == np.float32 and torch.equal(small.float(), tensor)
    return small if same else tensor


def strided(images):
    return np.repeat(images, 2, axis=2)[:, :, ::2]


LAYOUTS = {
    "flat": flat,
    "gray": lambda images: images[..., 0] if images.shape[3] == 1 else None,
    "Fortran": np.asfortranarray,
    "byte order": lambda images: images.astype(images.dtype.newbyteorder()),
    "strided": strided,
    "tensor": as_tensor,
    "list": list,
    "list of tensors": lambda images: [torch.from_numpy(image) for image in images],
    "data frame": lambda images: pd.DataFrame(flat(images)),
}


def other_precision(case):
    """The case in float64, for one in float32."""
    if case.precision == np.float64:
        return None
    # Beside the bias of a kernel, float32 loses the squares of small values; and where
    # images are many bandwidths apart, their kernel.
    small = np.abs(case.X).max() < 0.05
    fixed = getattr(case.learner.kernel, "bandwidth", "auto") != "auto"
    return None if small or fixed else case.but({"dtype": "float64"})


def classes_renamed(case):
    """The case with names of classes in another order."""
    if not isinstance(case.learner, ConvRFMClassifier) or case.y.ndim > 1:
        return None
    classes = np.unique(case.y)
    names = case.rng.permutation([f"class {i}" for i in range(len(classes))])
    kept = names[np.searchsorted(classes, np.unique(case.y[_positive(case)]))]
    place = np.argsort(np.argsort(kept))  # of our classes among the renamed

    def read_in_order(fitted, X):
        found = case.read(fitted, X)
        if "predict_proba" in found:
            scores = found["decision_function"]
            sign = 1 if place[0] == 0 else -1
            scores = sign * scores if scores.ndim == 1 else scores[:, place]
            found = {
                "decision_function": scores,
                "predict_proba": found["predict_proba"][:, place],
            }
        return found

    y = names[np.searchsorted(classes, case.y)]
    return case.but(y=y, read=read_in_order)


def parameters_set(case):
    name = pick(case.rng, sorted(_OTHER_PARAMETERS))
    prefix = "" if case.learner is case.model else "estimator__"
    model = copy.deepcopy(case.fitted)
    model.set_params(**{prefix + name: _OTHER_PARAMETERS[name]})
    return case.but(fit=lambda _: model)


def pickled(case):
    return case.but(fit=lambda _: pickle.loads(pickle.dumps(case.fitted)))


def saved(case):
    """The case with the estimator that skops saved and loaded."""
    data = skops.io.dumps(case.fitted)
    trusted = skops.io.get_untrusted_types(data=data)
    return case.but(fit=lambda _: skops.io.loads(data, trusted=trusted))


def callable_kernel(case):
    """The case with K @ dual_coef_ + intercept_ for predictions."""
    fitted = case.fitted
    kernel = getattr(fitted, "kernel_", None)
    if not isinstance(kernel, ConvolutionalKernel) or fitted.features_:
        return None

    def read_kernel(fitted, X):
        centres = fitted.X_fit_.reshape(-1, *fitted.image_shape_)
        transform = kernel.patch_transform_
        K = kernel(X, centres, patch_transform=transform, dtype=str(case.precision))
        scores = K @ fitted.dual_coef_ + fitted.intercept_
        names = list(case.outputs)
        return case.outputs | {names[0]: scores.reshape(case.outputs[names[0]].shape)}

    return case.but(fit=lambda _: case.fitted, read=read_kernel)


def new_images_mirrored(case):
    """The case with the mirrors of the new images, for a layer with a mirror."""
    layers = getattr(case.fitted, "features_", [])
    if layers and layers[-1].mirror:
        X_new = np.ascontiguousarray(case.X_new[:, :, ::-1])
        return case.but(fit=lambda _: case.fitted, X_new=X_new)


def streamed(case):
    """The case with sums over batches, for a linear machine of round 0."""
    if not _is_linear_stream(case):
        return None
    rows = case.rng.permutation(np.flatnonzero(_positive(case)))
    batches = np.array_split(rows, case.rng.integers(1, 5))
    batches = [batch for batch in batches if len(batch)]
    return case.but(fit=partial(stream, batches=batches))


def fitted_at_once(case):
    """The case of a stream as one fit, where that has one round and the same ridge."""
    if case.groups is not None:  # which a stream does not know
        return None
    if _is_linear_stream(case) and case.model.n_rounds == 0:
        return case.but(fit=fit) if case.model.selection != "holdout" else None


def _is_linear_stream(case):
    """Return True for sums that no landmarks of the first batch have a part in."""
    if case.fit is not stream:
        return False
    return case.model.kernel == "linear" or isinstance(case.model.kernel, Linear)


def _positive(case):
    return np.ones(len(case.y), bool) if case.weights is None else case.weights > 0


# Those of every fit, and those of which some are drawn, each with its comparison.
ALWAYS = {"finite": finite, "probabilities": probabilities}
DRAWN = {
    "last digits": (stable, None),
    "inputs unchanged": (leaves_inputs, None),
    "clone refits": (refitted, exactly),
    "rows permuted": (rows_permuted, closely),
    "weight = repeats": (weights_repeated, closely),
    "zero weight = removed": (zero_weights_removed, closely),
    "one by one = batch": (one_by_one, closely),
    "n_jobs": (n_jobs, closely),
    "working_memory": (working_memory, closely),
    "memmap = array": (stored, closely),
    "channels first = last": (channels_first, closely),
    "layouts": (laid_out, closely),
    "float32 near float64": (other_precision, nearly),
    "classes renamed": (classes_renamed, closely),
    "set_params after fit": (parameters_set, exactly),
    "pickle": (pickled, exactly),
    "skops": (saved, exactly),
    "kernel called": (callable_kernel, closely),
    "mirrors alike": (new_images_mirrored, exactly),
    "partial_fit in any order": (streamed, closely),
    "partial_fit = fit": (fitted_at_once, closely),
}
