"""The convolutional kernel and its patch AGOP as plain functions of images.

In the manner of :mod:`sklearn.metrics.pairwise`: arrays in, arrays out.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight

from ._typing import Device, Dtype, Floats, Kernel, Padding, Pair, validated
from .core import agop, sampling, tiles
from .core.blocks import (
    parallel_resources,
    squares_fit_float32,
    working_memory,
)
from .core.convolutional import KINDS, ConvolutionalKernel
from .core.devices import TORCH_DTYPES, resolve_device, resolve_dtype
from .core.images import convolution_layers
from .core.machine import measured_kernel
from .core.pooling import PooledKernel
from .core.radial import RADIAL_KINDS, PatchKernel

__all__ = ["convolutional_kernel", "patch_agop", "patch_kernel"]

# Its square must not overflow; what images are made of is nothing to it long before.
_LARGEST_BIAS = 1e100

_PATCH_CONSTRAINTS = {
    "patch_size": [Interval(Integral, 1, None, closed="left"), tuple, list],
    "padding": [StrOptions({"valid", "same"})],
    "device": [str, torch.device],
    "dtype": [StrOptions({"auto", *TORCH_DTYPES})],
    "n_jobs": [Integral, None],
}
_POOL_CONSTRAINTS = {
    "pool_grid": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
}
_NETWORK_CONSTRAINTS = {
    "depth": [Interval(Integral, 1, None, closed="left")],
    "bias": [Interval(Real, 0, None, closed="left")],
}
_BANDWIDTH_CONSTRAINTS = {
    "bandwidth": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
}
KERNEL_CONSTRAINTS = {
    **_PATCH_CONSTRAINTS,
    **_NETWORK_CONSTRAINTS,
    **_BANDWIDTH_CONSTRAINTS,
}
_FUNCTION_CONSTRAINTS = {
    "X": ["array-like"],
    "Y": ["array-like", None],
    "patch_transform": ["array-like", None],
    **_PATCH_CONSTRAINTS,
    **_POOL_CONSTRAINTS,
}


@validated(
    {
        **_FUNCTION_CONSTRAINTS,
        **_NETWORK_CONSTRAINTS,
        "kind": [StrOptions(set(KINDS))],
    }
)
def convolutional_kernel(
    X: ArrayLike,
    Y: ArrayLike | None = None,
    *,
    kind: Literal["ntk", "nngp"] = "ntk",
    depth: int = 3,
    patch_size: Pair = 3,
    padding: Padding = "valid",
    bias: float = 0.0,
    pool_grid: Pair | None = None,
    patch_transform: ArrayLike | None = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    n_jobs: int | None = None,
) -> Floats:
    """Convolutional neural tangent kernel (or NNGP) between images.

    The kernel of an infinitely wide ReLU network with `depth` convolutions of
    stride 1, a flatten and a linear readout, whose patches are measured in the
    metric ``T @ T.T`` of `patch_transform`.

    Parameters
    ----------
    X : array-like of shape (n_X, h, w) or (n_X, h, w, c)
        Images, channels last. Integers are converted tile by tile.
    Y : array-like of shape (n_Y, h, w) or (n_Y, h, w, c), default=None
        Images of the columns. None means `X`, of which only one triangle is then
        computed.
    kind : {"ntk", "nngp"}, default="ntk"
        The neural tangent kernel, which gradient descent on all layers follows, or
        the Gaussian process kernel of a network of which the readout alone is
        trained.
    depth : int, default=3
        Number of convolutions.
    patch_size : int or (int, int), default=3
        Rows and columns of a patch, clipped to the map that it looks at.
    padding : {"valid", "same"}, default="valid"
        Whether maps shrink by the patch less one in each layer, or are padded with
        zeros.
    bias : float, default=0.0
        Standard deviation of the bias of each convolution. With 0 the kernel is
        homogeneous: scaling an image scales it.
    pool_grid : int, (int, int) or None, default=None
        Rows and columns of a grid: the last layer's maps are averaged over each of its
        cells before the readout, so that what moves within a cell stays alike. 1 is a
        global average; None keeps all locations. Far slower, see the notes.
    patch_transform : array-like of shape (d, d), default=None
        The symmetric patch transform T, d = c·rows·columns, entries in the order
        (channel, row, column). None is the identity.
    device : str, default="auto"
        ``"auto"`` takes CUDA where torch finds it.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Precision. ``"auto"`` is the smallest that holds the images exactly: float64
        images stay float64, uint8 images are computed in float32.
    n_jobs : int, default=None
        Number of tasks that share the tiles; None is 1 unless in a
        :obj:`joblib.parallel_config` context.

    Returns
    -------
    K : ndarray of shape (n_X, n_Y)
        The kernel, not scaled: values grow by rows·columns of the patch a layer.

    Raises
    ------
    ValueError
        If shapes do not match, images are not finite, or the device is not there.

    Notes
    -----
    No array of size pairs × locations exceeds the ``working_memory`` of
    :func:`sklearn.get_config`.

    With a pool, every location meets all those in its cell: cells of a × b locations
    make up to (2a - 1)(2b - 1) passes of the kernel without one, by array operations.

    References
    ----------
    Arora et al., "On exact computation with an infinitely wide neural net",
    arXiv:1904.11955; Beaglehole et al., "Mechanism of feature learning in
    convolutional neural networks", arXiv:2309.00570.

    Examples
    --------
    >>> import numpy as np
    >>> from skconvrfm.kernels import convolutional_kernel
    >>> X = np.random.default_rng(0).normal(size=(5, 8, 8))
    >>> convolutional_kernel(X, depth=2).shape
    (5, 5)
    """
    images, others = _check_images(X, Y)
    transform = _check_transform(patch_transform)
    kernel = make_kernel(
        kind, images.shape[1:], patch_size, padding, depth, bias, pool_grid=pool_grid
    )
    _check_transform_size(transform, kernel)
    resources = make_resources(device, dtype, n_jobs, images, others)
    return tiles.kernel_matrix(kernel, images, others, transform, resources)


@validated(
    {
        **_FUNCTION_CONSTRAINTS,
        **_BANDWIDTH_CONSTRAINTS,
        "kind": [StrOptions(set(RADIAL_KINDS))],
    }
)
def patch_kernel(
    X: ArrayLike,
    Y: ArrayLike | None = None,
    *,
    kind: Literal["laplace", "gaussian"] = "laplace",
    bandwidth: float | Literal["auto"] = "auto",
    patch_size: Pair = 3,
    padding: Padding = "valid",
    pool_grid: Pair | None = None,
    patch_transform: ArrayLike | None = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    n_jobs: int | None = None,
) -> Floats:
    """Laplace or Gaussian kernel of patches, averaged over locations.

    ``k(x, z)`` is the mean over locations u of ``κ(r)``, where ``r`` is the length of
    ``T @ (patch u of x - patch u of z) / bandwidth``, and ``κ(r)`` is ``exp(-r)``
    (Laplace) or ``exp(-r² / 2)`` (Gaussian).

    Parameters
    ----------
    X : array-like of shape (n_X, h, w) or (n_X, h, w, c)
        Images, channels last. Integers are converted tile by tile.
    Y : array-like of shape (n_Y, h, w) or (n_Y, h, w, c), default=None
        Images of the columns. None means `X`, of which only one triangle is then
        computed.
    kind : {"laplace", "gaussian"}, default="laplace"
        The profile κ. The Laplace kernel has heavier tails, so that its bandwidth
        matters less.
    bandwidth : float or "auto", default="auto"
        The distance of patches at which κ has fallen to exp(-1), or exp(-1/2).
        ``"auto"`` is the median distance of the patches of two images of `X` at one
        location, under the transform; equal patches are left out, and of many images
        an even draw is taken.
    patch_size : int or (int, int), default=3
        Rows and columns of a patch, clipped to the image.
    padding : {"valid", "same"}, default="valid"
        Whether patches lie inside the image, or it is padded with zeros so that every
        pixel is the centre of one.
    pool_grid : int, (int, int) or None, default=None
        Rows and columns of a grid: all pairs of locations in one of its cells are
        compared, and the kernel is the mean over cells, so that what moves within a
        cell stays alike. 1 compares all locations with all; None compares equal
        locations only. Far slower, see the notes.
    patch_transform : array-like of shape (d, d), default=None
        The symmetric patch transform T, d = c·rows·columns, entries in the order
        (channel, row, column). None is the identity.
    device : str, default="auto"
        ``"auto"`` takes CUDA where torch finds it.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Precision. ``"auto"`` is the smallest that holds the images exactly.
    n_jobs : int, default=None
        Number of tasks that share the tiles; None is 1 unless in a
        :obj:`joblib.parallel_config` context.

    Returns
    -------
    K : ndarray of shape (n_X, n_Y)
        The kernel, with values in (0, 1], and ones on the diagonal without a pool.

    Raises
    ------
    ValueError
        If shapes do not match, images are not finite, or the device is not there.

    See Also
    --------
    convolutional_kernel : The kernel of an infinitely wide network.

    Notes
    -----
    There is one layer, so that `depth` and `bias` do not apply. Patches whose squared
    distance is rounding noise beside their squared lengths count as equal.

    With a pool of cells of a × b locations the kernel takes a · b times as long, and
    its diagonal is no longer made of ones.

    References
    ----------
    Radhakrishnan et al., "Mechanism for feature learning in neural networks and
    backpropagation-free machine learning models", Science 383 (2024), for the Laplace
    kernel with a learned metric.

    Examples
    --------
    >>> import numpy as np
    >>> from skconvrfm.kernels import patch_kernel
    >>> X = np.random.default_rng(0).normal(size=(5, 8, 8))
    >>> patch_kernel(X, kind="gaussian", bandwidth=3.0).shape
    (5, 5)
    """
    images, others = _check_images(X, Y)
    transform = _check_transform(patch_transform)
    kernel = make_kernel(
        kind,
        images.shape[1:],
        patch_size,
        padding,
        bandwidth=bandwidth,
        pool_grid=pool_grid,
    )
    _check_transform_size(transform, kernel)
    resources = make_resources(device, dtype, n_jobs, images, others)
    kernel = _with_bandwidth(kernel, images, transform, resources)
    return tiles.kernel_matrix(kernel, images, others, transform, resources)


@validated(
    {
        **_FUNCTION_CONSTRAINTS,
        **_NETWORK_CONSTRAINTS,
        **_BANDWIDTH_CONSTRAINTS,
        "kind": [StrOptions({*KINDS, *RADIAL_KINDS})],
        "dual_coef": ["array-like"],
        "sample_weight": ["array-like", Real, None],
    }
)
def patch_agop(
    X: ArrayLike,
    dual_coef: ArrayLike,
    Y: ArrayLike | None = None,
    *,
    kind: Kernel = "ntk",
    depth: int = 3,
    patch_size: Pair = 3,
    padding: Padding = "valid",
    bias: float = 0.0,
    bandwidth: float | Literal["auto"] = "auto",
    pool_grid: Pair | None = None,
    patch_transform: ArrayLike | None = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    n_jobs: int | None = None,
    sample_weight: ArrayLike | float | None = None,
) -> Floats:
    """Patch average gradient outer product of a convolutional kernel machine.

    For ``f_o(z) = Σ_j dual_coef[j, o] k(X[j], z)``, the sum over outputs o and
    locations u of the outer products of the gradient of f_o with respect to the
    patch of z at u, averaged over the images z in `Y`.

    Parameters
    ----------
    X : array-like of shape (n_X, h, w) or (n_X, h, w, c)
        The centres of the machine.
    dual_coef : array-like of shape (n_X,) or (n_X, n_outputs)
        Its coefficients, for the kernel as :func:`convolutional_kernel` or
        :func:`patch_kernel` returns it.
    Y : array-like of shape (n_Y, h, w) or (n_Y, h, w, c), default=None
        The images at which gradients are taken; None means `X`.
    kind : {"ntk", "nngp", "laplace", "gaussian"}, default="ntk"
        See :func:`convolutional_kernel` and :func:`patch_kernel`.
    depth : int, default=3
        Number of convolutions; patch kernels have one layer, and do without it.
    patch_size : int or (int, int), default=3
        Rows and columns of a patch.
    padding : {"valid", "same"}, default="valid"
        Whether maps shrink or are padded.
    bias : float, default=0.0
        Standard deviation of the bias of each convolution; not for patch kernels.
    bandwidth : float or "auto", default="auto"
        Of patch kernels, see :func:`patch_kernel`; ``"auto"`` measures it on `X`.
    pool_grid : int, (int, int) or None, default=None
        Rows and columns of the grid over whose cells the last layer is averaged.
    patch_transform : array-like of shape (d, d), default=None
        The symmetric patch transform T. Gradients are taken with respect to the
        patches before the transform.
    device : str, default="auto"
        Where to compute.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Precision of the tiles.
    n_jobs : int, default=None
        Number of tasks that share the images of `Y`.
    sample_weight : array-like of shape (n_Y,), default=None
        Weights of the average over `Y`.

    Returns
    -------
    agop : ndarray of shape (d, d), float64
        Symmetric positive semi-definite, entries in the order (channel, row,
        column) of a patch.

    Raises
    ------
    ValueError
        If shapes do not match or values are not finite.

    References
    ----------
    Beaglehole et al., arXiv:2309.00570, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from skconvrfm.kernels import patch_agop
    >>> rng = np.random.default_rng(0)
    >>> X, dual_coef = rng.normal(size=(5, 8, 8)), rng.normal(size=5)
    >>> patch_agop(X, dual_coef, depth=2).shape
    (9, 9)
    """
    images, others = _check_images(X, Y)
    others = images if others is None else others
    transform = _check_transform(patch_transform)
    coef = check_array(
        dual_coef,
        dtype=np.float64,
        ensure_2d=False,
        allow_nd=True,  # refused below, in better words
        input_name="dual_coef",
    )
    if coef.ndim not in (1, 2) or len(coef) != len(images):
        raise ValueError(
            f"dual_coef has shape {coef.shape}; it needs one row for each of "
            f"the {len(images)} images in X: (n_X,) or (n_X, n_outputs)."
        )
    weights = check_weights(sample_weight, others)
    kernel = make_kernel(
        kind, images.shape[1:], patch_size, padding, depth, bias, bandwidth, pool_grid
    )
    _check_transform_size(transform, kernel)
    resources = make_resources(device, dtype, n_jobs, images, others)
    kernel = _with_bandwidth(kernel, images, transform, resources)
    coef = coef.reshape(len(images), -1)
    return agop.patch_agop(kernel, images, coef, others, transform, weights, resources)


def make_kernel(
    kind,
    image_shape,
    patch_size,
    padding,
    depth=1,
    bias=0.0,
    bandwidth="auto",
    pool_grid=None,
):
    """The kernel for images of shape (h, w, c), its patch size and grid checked.

    Patch kernels leave `depth` and `bias` aside, convolutional ones `bandwidth`.
    """
    patch_size = check_pair(patch_size, "patch_size")
    if bias > _LARGEST_BIAS:
        raise ValueError(f"bias={bias!r} is too large; take at most {_LARGEST_BIAS}.")
    if kind in RADIAL_KINDS:
        layers = convolution_layers(image_shape, patch_size, padding, 1)
        bandwidth = None if bandwidth == "auto" else float(bandwidth)
        kernel = PatchKernel(kind, layers, image_shape[2], bandwidth)
    else:
        layers = convolution_layers(image_shape, patch_size, padding, depth)
        kernel = ConvolutionalKernel(kind, layers, image_shape[2], float(bias))
    if pool_grid is None:
        return kernel
    single = "None, nor a positive int,"
    return PooledKernel(kernel, check_pair(pool_grid, "pool_grid", single=single))


def check_pair(value, name, single="a positive int"):
    """Rows and columns as a pair of ints.

    Parameters
    ----------
    value : int or sequence of 2 int
        One number for both, or a pair.
    name : str
        What to call it in an error.
    single : str, default="a positive int"
        What it may be in place of a pair, for the error.
    """
    pair = (value, value) if isinstance(value, Integral) else tuple(value)
    if len(pair) != 2 or not all(isinstance(s, Integral) and s >= 1 for s in pair):
        raise ValueError(
            f"{name}={value!r} is neither {single} nor a pair (rows, columns) of them."
        )
    return int(pair[0]), int(pair[1])


def make_resources(device, dtype, n_jobs, *arrays, learned=()):
    """The place where parameters and scikit-learn's configuration become resources.

    Parameters
    ----------
    device, dtype, n_jobs
        As the user gave them.
    *arrays : ndarray, StoredRows, StoredImages or None
        The images, whose dtypes decide ``dtype="auto"``, and values that float32 could
        not square.
    learned : iterable of ndarray
        What was learned, which decides by its values alone.

    Returns
    -------
    Resources
    """
    name = str(device)
    resolve_device(name)
    arrays = [array for array in arrays if array is not None]
    precision = resolve_dtype(dtype, *(array.dtype for array in arrays))
    if dtype == "auto" and precision == torch.float32:
        fit = all(map(squares_fit_float32, (*arrays, *learned)))
        precision = torch.float32 if fit else torch.float64
    return parallel_resources(name, precision, working_memory(), n_jobs)


def _check_images(X, Y):
    """X and Y as finite arrays of shape (n, h, w, c), Y possibly None."""
    X = check_image_array(X, "X")
    if Y is None:
        return X, None
    Y = check_image_array(Y, "Y")
    if X.shape[1:] != Y.shape[1:]:
        raise ValueError(
            f"X has images of shape {X.shape[1:]} and Y of shape {Y.shape[1:]}; "
            "both need the same rows, columns and channels."
        )
    return X, Y


# scikit-learn adds up all values first, and large ones may be infinity less infinity.
summed_quietly = np.errstate(invalid="ignore")


@summed_quietly
def check_image_array(images, name):
    """Images as a finite real array of shape (n, h, w, c).

    Parameters
    ----------
    images : array-like of shape (n, h, w) or (n, h, w, c)
        The images.
    name : str
        What to call them in an error.
    """
    images = check_array(
        as_numpy(images, name), dtype="numeric", allow_nd=True, input_name=name
    )
    if images.ndim not in (3, 4):
        raise ValueError(
            f"{name} has shape {images.shape}; images are (n, h, w) or (n, h, w, c). "
            "Reshape flat rows first, for instance X.reshape(-1, 28, 28)."
        )
    if 0 in images.shape:
        raise ValueError(f"{name} has shape {images.shape}, which has no pixels.")
    return images[..., None] if images.ndim == 3 else images


def check_weights(sample_weight, X):
    """One weight a row of X as float64, none negative, not all of them zero."""
    if sample_weight is not None and not np.asarray(sample_weight).any():
        raise ValueError(
            "sample_weight is all zero, so that no row is left: give some rows a "
            "positive weight."
        )
    weights = _check_sample_weight(
        sample_weight, X, dtype=np.float64, ensure_non_negative=True
    )
    with np.errstate(over="ignore"):  # refused in better words
        total = weights.sum()
    if not np.isfinite(total):
        raise ValueError(
            f"sample_weight has values up to {weights.max():.3g}, whose sum overflows: "
            "scale the weights."
        )
    return weights


def as_numpy(values, name):
    """A torch tensor on the CPU as a numpy array; anything else as it is."""
    if not isinstance(values, torch.Tensor):
        return values
    if values.device.type != "cpu":
        raise TypeError(
            f"{name} is a tensor on {values.device}; pass {name}.cpu(), and device="
            f"{values.device.type!r} to compute there."
        )
    return values.detach().numpy()


def _with_bandwidth(kernel, X, transform, resources):
    """The kernel with its bandwidth, measured on an even draw of X if it has none."""
    if not kernel.unmeasured:
        return kernel
    positions = sampling.content_positions(
        X.reshape(len(X), -1), np.random.RandomState(0)
    )
    lineup = sampling.Lineup(np.zeros(len(X)), positions, np.ones(len(X)), offset=0.5)
    sample = lineup.draw(sampling.bandwidth_draws(kernel.layers[0].n_locations))
    return measured_kernel(kernel, X, sample, transform, resources)


def _check_transform(patch_transform):
    """The patch transform as a float64 array, or None."""
    if patch_transform is None:
        return None
    return check_array(patch_transform, dtype=np.float64, input_name="patch_transform")


def _check_transform_size(transform, kernel):
    """Refuse a transform that does not act on the kernel's patches."""
    expected = (kernel.patch_dim, kernel.patch_dim)
    if transform is not None and transform.shape != expected:
        raise ValueError(
            f"patch_transform has shape {transform.shape}; patches of "
            f"{kernel.layers[0].patch} with {kernel.channels} channels need {expected}."
        )
