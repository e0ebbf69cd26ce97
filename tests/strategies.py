"""Hypothesis strategies: images, targets, weights, kernels, layers and options.

An example is a short description and a seed, from which arrays are made: it is printed
in full where it fails, shrinks fast, and can be kept as it is.
"""

import os
import re
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from sklearn.base import clone

from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import (
    ConvNNGP,
    ConvNTK,
    Gaussian,
    Laplace,
    Linear,
    PatchGaussian,
    PatchLaplace,
)
from skconvrfm.kernels.base import PatchKernel

# Errors that examples may end in: they name the parameter, its value, the remedy.
DOCUMENTED_ERRORS = (
    r"y has only one class, .*; a classifier needs at least two classes",
    r"X has 1 sample with a positive weight; a fit needs at least 2",
    r"selection='holdout' leaves \d+ rows to fit on and \d+ to choose by, of \d+; take",
    r"the kernel overflows float(32|64): X has values up to .*scale the images",
    r"the features overflow float(32|64): X has values up to .*scale the images",
    r"dtype='float32' has no numbers as large as those of X, up to .*scale the images",
    r"the covariance of patches overflows float64: X has values up to .*scale the ima",
    r"the patch AGOP overflows float(32|64): X has values up to .*scale the images",
    r"sample_weight adds up to .*; scale the weights",
    r"the error of the fit is not finite for alpha=.*: take larger ridges, or scale",
    r"the predictions of .* are not finite: .* X is far larger than the images of",
    # The transformer.
    r"compares whole images and learns no patch metric: take a kernel of patches",
    r"output='features' gives the maps of feature layers, but the machine that",
)
# Warnings of scikit-learn.
DOCUMENTED_WARNINGS = (
    "X of shape .* looks like",
    r"A column-vector y was passed when a 1d array was expected",
    r"The number of unique classes is greater than 50% of the number of samples",
)
# Content of images, float64 of shape (n, h, w, c) with entries of about 1.
CONTENTS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "positive": lambda rng, shape: rng.uniform(size=shape),
    "sparse": lambda rng, shape: rng.normal(size=shape) * (rng.random(shape) < 0.2),
    "one pixel": lambda rng, shape: _one_pixel(rng, shape),
    "flat": lambda rng, shape: np.ones(shape) * rng.normal(size=(shape[0], 1, 1, 1)),
    "one flat": lambda rng, shape: np.full(shape, rng.normal()),
    "blank": lambda rng, shape: np.zeros(shape),
    "partly blank": lambda rng, shape: _rows(rng, shape, lambda: rng.random() < 0.5),
    "copies": lambda rng, shape: _copies(rng, shape, 0),
    "near copies": lambda rng, shape: _copies(rng, shape, 10.0 ** rng.integers(-16, 0)),
    "multiples": lambda rng, shape: (
        rng.normal(size=(1, *shape[1:])) * rng.normal(size=(shape[0], 1, 1, 1))
    ),
    "far from zero": lambda rng, shape: 1e3 + rng.normal(size=shape),
    "mixed scales": lambda rng, shape: _rows(
        rng, shape, lambda: 10.0 ** rng.uniform(-30, 30)
    ),
    "mixed pixels": lambda rng, shape: (
        rng.normal(size=shape) * 10.0 ** rng.uniform(-30, 0, size=shape)
    ),
}
LAYOUTS = (
    *("C", "Fortran", "reversed", "stepped", "transposed", "read-only"),
    *("memmap", "memmap of a part"),
)
DTYPES = ("bool", "u1", "i2", ">i2", "f2", "f4", ">f4", "f8", ">f8")


@contextmanager
def only_documented_warnings():
    """Fail at a warning that is not documented."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for words in DOCUMENTED_WARNINGS:
            warnings.filterwarnings("ignore", words)
        yield


def result_or_documented_error(function, *arguments):
    """Return the value of a function, or None if it refuses in documented words."""
    try:
        return function(*arguments)
    except ValueError as error:
        if not any(re.search(words, str(error)) for words in DOCUMENTED_ERRORS):
            raise
        return None


def _one_pixel(rng, shape):
    images = np.zeros((shape[0], np.prod(shape[1:])))
    images[np.arange(shape[0]), rng.integers(images.shape[1], size=shape[0])] = 1
    return images.reshape(shape)


def _rows(rng, shape, factor):
    factors = np.array([factor() for _ in range(shape[0])], dtype=float)
    return rng.normal(size=shape) * factors[:, None, None, None]


def _copies(rng, shape, noise):
    few = rng.normal(size=(2, *shape[1:]))
    return few[rng.integers(2, size=shape[0])] + noise * rng.normal(size=shape)


@dataclass(frozen=True)
class Images:
    """Images, but for how they lie in memory."""

    n: int
    shape: tuple[int, int, int]
    content: str = "normal"
    dtype: str = "f8"
    scale: float = 1.0
    seed: int = 0

    def array(self):
        """The images, (n, h, w, c)."""
        rng = np.random.default_rng(self.seed)
        images = CONTENTS[self.content](rng, (self.n, *self.shape))
        dtype = np.dtype(self.dtype)
        if dtype.kind == "b":
            return images > 0
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            images = np.rint(100 * images).clip(limits.min, limits.max)
        else:
            largest = float(np.finfo(dtype).max) / 2
            images = (images * self.scale).clip(-largest, largest)
        return images.astype(dtype)

    @property
    def can_overflow(self):
        """Return True if values are far from those that float32 can square."""
        return np.dtype(self.dtype).kind == "f" and np.dtype(self.dtype).itemsize > 2

    def __len__(self):
        return self.n


def laid_out(array, layout):
    """Return equal values in another place: a new array, or a view of one."""
    if layout == "Fortran":
        return np.asfortranarray(array)
    if layout == "reversed":
        return np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]
    if layout == "stepped":
        wide = np.zeros((2 * len(array), 2 * array.shape[1], *array.shape[2:]))
        wide = wide.astype(array.dtype)
        wide[::2, ::2] = array
        return wide[::2, ::2]
    if layout == "transposed":
        return np.ascontiguousarray(np.moveaxis(array, 0, -1)).transpose(
            array.ndim - 1, *range(array.ndim - 1)
        )
    if layout == "read-only":
        array = array.copy()
        array.flags.writeable = False
        return array
    if layout.startswith("memmap"):
        return _mapped(array, padding=layout != "memmap")
    return array


def _mapped(array, padding):
    """A read-only memmap of a file without a name, perhaps of a part of it."""
    handle, path = tempfile.mkstemp()
    os.close(handle)
    whole = np.concatenate([array[:1], array]) if padding else array
    whole = whole.astype(array.dtype)  # which has lost its order of bytes
    whole.tofile(path)
    mapped = np.memmap(path, array.dtype, "r", shape=whole.shape)
    mapped = mapped[1:] if padding else mapped
    return Deleting.of(mapped, path)


class Deleting:
    """Takes the file of a map away once the test is over."""

    paths: list[str] = []

    @classmethod
    def of(cls, mapped, path):
        cls.paths.append(path)
        return mapped

    @classmethod
    def all(cls):
        while cls.paths:
            os.unlink(cls.paths.pop())


# Mostly small; one in thirty is as large as can be.
small_shapes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3))
large_shapes = st.tuples(st.integers(1, 40), st.integers(1, 17), st.integers(1, 8))
shapes = st.integers(0, 29).flatmap(lambda i: small_shapes if i else large_shapes)
seeds = st.integers(0, 2**32 - 1)
# Mostly 1, so that scales do not hide everything else.
scales = st.one_of(
    st.just(1.0),
    st.sampled_from([1e-30, 1e-20, 1e-15, 1e-10, 1e-5, 1e5, 1e10, 1e15, 1e20, 1e30]),
)


@st.composite
def images(draw, sizes=(1, 8), shape=shapes, dtypes=DTYPES, contents=None):
    """Images of a shape and dtype; of any content and scale, or of some contents."""
    shape = draw(shape)
    most = 3 if np.prod(shape) > 300 else sizes[1]
    return Images(
        n=draw(st.integers(sizes[0], max(most, sizes[0]))),
        shape=shape,
        content=draw(st.sampled_from(contents or sorted(CONTENTS))),
        dtype=draw(st.sampled_from(dtypes)),
        scale=draw(scales) if contents is None else 1.0,
        seed=draw(seeds),
    )


patch_sizes = st.one_of(
    st.integers(1, 5), st.tuples(st.integers(1, 4), st.integers(1, 4))
)
pool_grids = st.one_of(
    st.none(),
    st.none(),
    st.integers(1, 3),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
geometry = {
    "patch_size": patch_sizes,
    "padding": st.sampled_from(["valid", "same"]),
}
metrics = st.sampled_from(["identity", "whiten"])
biases = st.sampled_from([0.0, 0.0, 0.3, 1.0])
bandwidths = st.sampled_from(["auto", "auto", 0.1, 1.0, 10.0])


def make(kind, **options):
    return kind(**options)


# Images as they are: what the images decide together is tested in test_scale.
as_they_are = {"scale": st.just(1)}
rarely = st.sampled_from([False, False, True])
patch_options = {
    "pool_grid": pool_grids,
    "metric": metrics,
    "mirror": rarely,
    **geometry,
    **as_they_are,
}
convolutional = st.builds(
    make,
    st.sampled_from([ConvNTK, ConvNNGP]),
    depth=st.integers(1, 4),
    bias=biases,
    **patch_options,
)
patch_kernels = st.one_of(
    convolutional,
    st.builds(
        make,
        st.sampled_from([PatchLaplace, PatchGaussian]),
        bandwidth=bandwidths,
        **patch_options,
    ),
)
whole_kernels = st.one_of(
    st.builds(
        make,
        st.sampled_from([Gaussian, Laplace]),
        bandwidth=bandwidths,
        **as_they_are,
    ),
    st.builds(Linear, **as_they_are),
)
kernels = st.one_of(patch_kernels, patch_kernels, whole_kernels)


def affordable(kernel, images):
    """Return the kernel, without its pool where an image is not small."""
    if np.prod(images.shape[:2]) <= 12 or not isinstance(kernel, PatchKernel):
        return kernel
    return clone(kernel).set_params(pool_grid=None)


precisions = st.sampled_from(["auto", "auto", "float32", "float64"])
# Compiled tiles or array operations; MiB of memory.
places = st.tuples(
    st.sampled_from(["array", "compiled"]), st.sampled_from([1024, 1024, 0.05])
)

TRANSFORMS = {
    "identity": lambda rng, d: None,
    "dense": lambda rng, d: _symmetric(rng.normal(size=(d, d))),
    "rank one": lambda rng, d: _rank_one(rng.normal(size=d)),
    "one entry": lambda rng, d: np.diag(np.arange(d) == 0).astype(float),
    "zero": lambda rng, d: np.zeros((d, d)),
}


def _symmetric(matrix):
    return (matrix + matrix.T) / 2


def _rank_one(vector):
    return np.outer(vector, vector) / (vector @ vector)


transforms = st.sampled_from(sorted(TRANSFORMS))


def transform_of(name, images, kernel):
    """A patch transform by its name, for some images; None for a whole kernel."""
    if not isinstance(kernel, PatchKernel):
        return None
    d = kernel.bind(images.shape[1:]).patch_dim
    return TRANSFORMS[name](np.random.default_rng(0), d)


# Weights

WEIGHTS = {
    "none": lambda rng, n: None,
    "ones": lambda rng, n: np.ones(n),
    "uniform": lambda rng, n: rng.uniform(0.1, 2, size=n),
    "counts": lambda rng, n: rng.integers(1, 4, size=n),
    "zeros": lambda rng, n: _not_all_zero(rng.integers(0, 2, size=n)),
    "bools": lambda rng, n: _not_all_zero(rng.integers(0, 2, size=n)) > 0,
    "ratio 1e6": lambda rng, n: 10.0 ** rng.uniform(0, 6, size=n),
    "ratio 1e12": lambda rng, n: 10.0 ** rng.uniform(-6, 6, size=n),
    "ratio 1e60": lambda rng, n: 10.0 ** rng.uniform(-30, 30, size=n),
    "ratio 1e600": lambda rng, n: 10.0 ** rng.uniform(-300, 300, size=n),
    "tiny": lambda rng, n: np.full(n, 1e-300),
    "huge": lambda rng, n: np.full(n, 1e300),
    "subnormal": lambda rng, n: 5e-324 * rng.integers(1, 9, size=n),
    "one subnormal": lambda rng, n: np.where(np.arange(n) == n - 1, 5e-324, 1.0),
}
weightings = st.one_of(st.just("none"), st.sampled_from(sorted(WEIGHTS)))


def _not_all_zero(weights):
    weights[0] = 1
    return weights


def weights_of(name, n, seed):
    """Weights by their name."""
    return WEIGHTS[name](np.random.default_rng(seed), n)


# Targets

LABELS = {
    "two ints": lambda rng, n: rng.integers(2, size=n) * 7 - 3,
    "bools": lambda rng, n: rng.integers(2, size=n) > 0,
    "texts": lambda rng, n: np.array(["dog", "cat", "a longer name"])[
        rng.integers(3, size=n)
    ],
    "objects": lambda rng, n: np.array(["no", "yes"], dtype=object)[
        rng.integers(2, size=n)
    ],
    "whole floats": lambda rng, n: rng.integers(4, size=n).astype(float),
    "small ints": lambda rng, n: rng.integers(3, size=n).astype("u1"),
    "all different": lambda rng, n: rng.permutation(n),
    "one rare": lambda rng, n: np.arange(n) == n - 1,
    "one class": lambda rng, n: np.zeros(n, dtype=int),
}
TARGETS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "outputs": lambda rng, n: rng.normal(size=(n, 3)),
    "many outputs": lambda rng, n: rng.normal(size=(n, 2 * n)),
    "column": lambda rng, n: rng.normal(size=(n, 1)),
    "constant": lambda rng, n: np.full(n, 3.0),
    "zero": lambda rng, n: np.zeros(n),
    "whole": lambda rng, n: rng.integers(-5, 5, size=n),
    "bools": lambda rng, n: rng.integers(2, size=n) > 0,
    "float32": lambda rng, n: rng.normal(size=n).astype("f4"),
    "far from zero": lambda rng, n: 1e6 + rng.normal(size=n),
    "mixed scales": lambda rng, n: rng.normal(size=n) * 10.0 ** rng.uniform(-30, 30, n),
    "outputs of other scales": lambda rng, n: (
        rng.normal(size=(n, 2)) * np.array([1e-20, 1e20])
    ),
}


def labels_of(name, n, seed):
    """Classes by their name; all that are possible appear where there is room."""
    return LABELS[name](np.random.default_rng(seed), n)


def targets_of(name, n, scale, seed):
    """Targets by their name."""
    targets = TARGETS[name](np.random.default_rng(seed), n)
    return targets if scale == 1 else targets * scale


# Estimators


def feature_layers(pools):
    return st.builds(
        make,
        st.just(ConvFeatures),
        n_filters=st.sampled_from([1, 4, 9]),
        filters=st.sampled_from(["patches", "gaussian"]),
        metric=metrics,
        normalize=st.sampled_from([None, None, 1.0, 0.1]),
        shrinkage=st.sampled_from([0.1, 1.0]),
        agop_power=st.sampled_from([None, None, 0.25]),
        bias=biases,
        activation=st.sampled_from(["relu", "identity"]),
        threshold=st.sampled_from([0.5, 0.0, -1.0, 3.0]),
        pool=st.sampled_from(["root", "mean", "norm", "max", (1.5, 0.5)]),
        **pools,
        **geometry,
    )


overlaps = {"pool_overlap": st.sampled_from([0.0, 0.0, 0.4, 1.0])}
# What the layers below a kernel of patches do not have.
choices = {
    "candidates": st.sampled_from([1, 1, 2, 3]),
    "learn": st.sampled_from([True, True, False]),
}


def lower_layers(**options):
    """Layers whose map has room for the patches of another one, or of a kernel."""
    return st.one_of(
        feature_layers({"pool_grid": st.none(), **options}),
        feature_layers(
            {"pool_size": st.sampled_from([2, (1, 2)]), **overlaps, **options}
        ),
    )


top_layer = st.one_of(
    feature_layers({"pool_grid": st.none(), "mirror": rarely, **choices}),
    feature_layers(
        {
            "pool_grid": st.sampled_from([3, 1, (2, 1)]),
            "mirror": rarely,
            **overlaps,
            **choices,
        }
    ),
)
stacks = st.one_of(
    st.tuples(top_layer).map(list),
    st.tuples(lower_layers(skip=rarely, **choices), top_layer).map(list),
)
shallow_kernels = patch_kernels.filter(lambda kernel: kernel.depth <= 3)


def with_scale_below(machine):
    """Let the first layer, if any, take the images as they are, not the kernel."""
    if machine["features"]:
        machine["kernel"].set_params(scale="auto")
        machine["features"][0].set_params(scale=1)
    return machine


machines = st.one_of(
    st.fixed_dictionaries({"kernel": shallow_kernels, "features": st.none()}),
    st.fixed_dictionaries({"kernel": whole_kernels, "features": st.none() | stacks}),
    st.fixed_dictionaries({"kernel": whole_kernels, "features": stacks}),
    st.fixed_dictionaries(
        {
            "kernel": patch_kernels.filter(lambda kernel: kernel.depth <= 2).map(
                lambda kernel: kernel.set_params(mirror=False)
            ),
            "features": st.tuples(lower_layers()).map(list),
        }
    ),
).map(with_scale_below)
linear_machines = st.fixed_dictionaries(
    {"kernel": st.builds(Linear), "features": st.none() | stacks}
)
learning = st.fixed_dictionaries(
    {
        "n_rounds": st.integers(0, 2),
        "n_iter_no_change": st.sampled_from([1, None]),
        "selection": st.sampled_from(["gcv", "gcv", "loo", "holdout", "last"]),
        "agop_power": st.sampled_from([0.5, 0.25, 1.0]),
        "agop_samples": st.sampled_from(["auto", None, 2, 0.5]),
        "landmarks": st.sampled_from([None, None, 4, 1000]),
        "alpha": st.sampled_from([(1e-6, 1e-2, 1.0, 100.0), 1e-3, 1.0]),
        "dtype": precisions,
    }
)
estimators = st.tuples(machines, learning).map(lambda parts: parts[0] | parts[1])
linear_estimators = st.tuples(linear_machines, learning).map(
    lambda parts: parts[0] | parts[1]
)
