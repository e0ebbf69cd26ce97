"""Base of all kernels: hyperparameters, binding to an image shape, blocks, readout."""

import copy
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from numbers import Integral

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_array

from .._input import as_numbers, check_image_array, check_pair, make_resources
from .._scale import SCALE_CONSTRAINTS, resolve_scale
from .._sklearn_compat import Interval, StrOptions
from ..compute.images import cells, convolution_layers, scaled
from ..compute.sampling import Lineup, bandwidth_draws, content_positions
from ..compute.tiles import kernel_matrix
from ..compute.torch_state import plain_torch
from .pooled import FLATTEN, pooled_readouts

# Parameters that the kernels of patches share.
PATCH_PARAMETERS = """patch_size : int or (int, int), default=3
        Rows and columns of a patch, clipped to the map that it looks at.
    padding : {"valid", "same"}, default="valid"
        With "valid" patches lie inside the map, which shrinks by the patch less one;
        "same" pads it with zeros so that every pixel is the centre of a patch."""
METRIC_PARAMETER = """metric : {"identity", "whiten", "auto"}, default="identity"
        Metric of patches in round 0 of a fit: none, or the inverse of the patch
        covariance, shrunk by a tenth of its mean. Under ConvNTK, whitening gained 3
        points on CIFAR-10 and lost 2 on MNIST. ``"auto"`` fits round 0 under both and
        keeps the one with the lower criterion; ``kernel_.metric_`` says which. A call
        of the kernel itself has the metric of its `patch_transform`, whatever this
        is."""
MIRROR_PARAMETER = """mirror : bool, default=False
        True averages the kernel over mirror images (columns reversed), ¼ Σ k(Pᵃ x,
        Pᵇ z), so that predictions for an image and its mirror are equal. It takes twice
        as long under a metric that commutes with the mirror, as those of a fit do, and
        else four times. False, since digits and letters have a hand; photographs of
        animals, say, have none."""

# Parts of the largest entry of a transform that count as rounding under the mirror.
_MIRROR_ROUNDINGS = 64 * np.finfo(float).eps


class BaseKernel(BaseEstimator):
    """Hyperparameters of a kernel; a function of images once it is bound to a shape."""

    _parameter_constraints: dict = {**SCALE_CONSTRAINTS}

    # True where the machine is linear in the features: sums over rows determine it.
    is_linear = False

    @property
    def unmeasured(self):
        """True if the kernel has a bandwidth that is measured anew in every round."""
        return False

    def bind(self, image_shape):
        """Return a copy of the kernel for images of shape (h, w, c), checked."""
        self._validate_params()
        bound = copy.copy(self)
        bound.image_shape_ = tuple(image_shape)
        return bound

    @plain_torch()
    def __call__(
        self,
        X,
        Y=None,
        *,
        patch_transform=None,
        device="auto",
        dtype="auto",
        n_jobs=None,
    ):
        """Return the kernel matrix of images.

        Parameters
        ----------
        X : array-like of shape (n_X, h, w), (n_X, h, w, c) or (n_X, h * h)
            Images, channels last, or the flat rows of square images. With
            ``scale="auto"`` `X` and `Y` together decide what both are divided by.
        Y : array-like of such a shape, default=None
            Images of the columns, the centres of a machine, on which a bandwidth of
            ``"auto"`` is measured; None means `X`, of which one triangle is computed.
        patch_transform : array-like of shape (d, d), default=None
            The symmetric patch transform T, d = c·rows·columns, entries in the order
            (channel, row, column); None is the identity. A kernel of whole images has
            no patches, and takes None only.
        device : str, default="auto"
            ``"auto"`` is CUDA where torch finds it, else the CPU.
        dtype : {"auto", "float32", "float64"}, default="auto"
            Precision; ``"auto"`` is the smaller that holds the images exactly.
        n_jobs : int, default=None
            Tasks that share the tiles; None is 1 unless in a
            :obj:`joblib.parallel_config` context.

        Returns
        -------
        K : ndarray of shape (n_X, n_Y)
            The kernel, not scaled.
        """
        X, Y = check_image_pair(X, Y, self)
        kernel = self.bind(X.shape[1:])
        transform = kernel._check_transform(patch_transform)
        resources = make_resources(device, dtype, n_jobs, X, Y)
        return kernel._matrix(X, Y, transform, resources)


class PatchKernel(BaseKernel):
    """Base of kernels that compare patches under a patch metric.

    Subclasses have ``prepare_block``, ``diagonal``, ``_pair_value`` and
    ``_pair_pullback``, of blocks whose locations meet. Blocks have pixels in the place
    of patches for compiled tiles alone.
    """

    _parameter_constraints: dict = {
        **BaseKernel._parameter_constraints,
        "patch_size": [Interval(Integral, 1, None, closed="left"), tuple, list],
        "padding": [StrOptions({"valid", "same"})],
        "metric": [StrOptions({"identity", "whiten", "auto"})],
        "pool_grid": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "mirror": ["boolean"],
    }

    patch_scale = 1.0  # factor of the inner products of patches
    depth = 1  # number of convolutions
    has_compiled_tiles = False
    has_fused_tiles = False
    fused = False  # tiles by fused programs, see `tiles.fuse`
    readout = FLATTEN  # locations of two images that are compared at the end

    def bind(self, image_shape):
        """Return a copy of the kernel for images of shape (h, w, c), checked."""
        bound = super().bind(image_shape)
        check_pair(self.patch_size, "patch_size")
        if self.pool_grid is not None:
            check_pair(self.pool_grid, "pool_grid", "None, nor a positive int,")
        return bound

    def below(self):
        """Return the kernel of a feature layer below, as deep as the whole network."""
        return self

    @cached_property
    def layers(self):
        """Convolutions of the bound kernel, from the image up."""
        patch = check_pair(self.patch_size, "patch_size")
        return convolution_layers(self.image_shape_, patch, self.padding, self.depth)

    @property
    def layer_(self):
        """First convolution of the bound kernel, whose patches are compared."""
        return self.layers[0]

    @property
    def patch_shape_(self):
        """Rows and columns of a patch of the bound kernel."""
        return self.layers[0].patch

    @property
    def channels(self):
        """Channels of an image."""
        return self.image_shape_[2]

    @property
    def patch_dim(self):
        """Entries d of a patch."""
        return self.channels * math.prod(self.layers[0].patch)

    @cached_property
    def mirror_entries(self):
        """Indices of the entries of a patch in its mirror, which has other columns."""
        return self.layers[0].mirror_entries(self.channels)

    def over_mirror(self, matrix):
        """Return ½ (A + M A M) of a matrix A of patches, with the mirror M of these."""
        mirrored = self.mirror_entries
        return (matrix + matrix[np.ix_(mirrored, mirrored)]) / 2

    def mirror_sides(self, transform):
        """Return the pairs of sides, True if mirrored, over which k is averaged."""
        if not self.mirror:
            return [(False, False)]
        if self.commutes_with_mirror(transform):  # k(Px, Pz) is k(x, z)
            return [(False, False), (False, True)]
        return product((False, True), repeat=2)

    def commutes_with_mirror(self, transform):
        """Return True if k(Px, Pz) is k(x, z) to rounding, for all images.

        Even patches pad one side more than the other, and a grid may divide a map
        unevenly.
        """
        even = all(layer.padding[2] == layer.padding[3] for layer in self.layers)
        if self.pool_grid is not None:
            columns, grid = self.layers[-1].locations[1], np.ravel(self.pool_grid)[-1]
            lengths = [cell.stop - cell.start for cell in cells(columns, grid)]
            even = even and lengths == lengths[::-1]
        if transform is None or not even:
            return even
        change = np.abs(self.over_mirror(transform) - transform).max()
        return change <= _MIRROR_ROUNDINGS * np.abs(transform).max()

    @property
    def is_pooled(self):
        """True if the kernel is a sum of terms, one per offset of its pool."""
        return self.pool_grid is not None and self.readout is FLATTEN

    @property
    def terms(self):
        """Kernels that add up to this one: itself where there is no pool."""
        if not self.is_pooled:
            return (self,)
        grid = check_pair(self.pool_grid, "pool_grid")
        return (self._with(readout=r) for r in pooled_readouts(self.layers, grid))

    def _with(self, **attributes):
        """Return a copy of the bound kernel with other attributes."""
        other = copy.copy(self)
        vars(other).update(attributes)
        return other

    def __getstate__(self):
        state = super().__getstate__()
        derived = {"layers", "mirror_entries"}
        return {name: state[name] for name in state if name not in derived}

    def value(self, left, right):
        """Return the kernel between two blocks, a Tensor (len(left), len(right))."""
        if self.is_pooled:
            # Every term takes its own locations from them, in long runs.
            left, right = left.contiguous(), right.contiguous()
            return sum(term.value(left, right) for term in self.terms)
        return self._pair_value(*self.readout.meet(left, right))

    def pullback(self, left, right, dual_coef):
        """Return the gradients of f_o = Σ_j dual_coef[j, o] k(·, x_j), factorised.

        With respect to the patch at u of a left image z, with s for `patch_scale`, it
        is ``s T [Σ_j dual_coef[j, o] w_zj(u) T v_u(x_j) + 2 β_zo(u) T v_u(z)]``.
        Return w, (rows, columns, len(left), len(right)) at the locations compared, and
        β, (rows, columns, len(left), n_outputs) at all locations.
        """
        return self._pair_pullback(*self.readout.meet(left, right), dual_coef)

    def measured_evenly(self, images, transform, resources):
        """Return the kernel with its bandwidth measured on an even draw of images."""
        if not self.unmeasured:
            return self
        sample = even_sample(images, bandwidth_draws(self.layers[0].n_locations))
        return self.measured_on(images, sample, transform, resources)

    def _matrix(self, X, Y, transform, resources):
        kernel = self.measured_evenly(X if Y is None else Y, transform, resources)
        return kernel_matrix(kernel, X, Y, transform, resources)

    def _check_transform(self, transform):
        """Return the patch transform as a float64 array of shape (d, d), or None."""
        if transform is None:
            return None
        name = "patch_transform"
        transform = as_numbers(transform, name)
        matrix = check_array(transform, dtype=np.float64, input_name=name)
        expected = (self.patch_dim, self.patch_dim)
        if matrix.shape != expected:
            raise ValueError(
                f"patch_transform has shape {matrix.shape}; patches of "
                f"{self.layers[0].patch} with {self.channels} channels need {expected}."
            )
        return matrix


def even_sample(images, n_draws):
    """Return an even draw of so many images, a `Sample`."""
    positions = content_positions(images, np.random.RandomState(0))
    n = len(images)
    return Lineup(np.zeros(n), positions, np.ones(n), 0.5).draw(n_draws)


def check_image_pair(X, Y, kernel):
    """Return X and Y as finite images (n, h, w, c), divided by the kernel's scale.

    Y may be None.
    """
    X = check_image_array(X, "X")
    Y = None if Y is None else check_image_array(Y, "Y")
    if Y is not None and X.shape[1:] != Y.shape[1:]:
        raise ValueError(
            f"X has images of shape {X.shape[1:]} and Y of shape {Y.shape[1:]}; "
            "both need the same rows, columns and channels."
        )
    pair = [images for images in (X, Y) if images is not None]
    kernel._validate_params()
    divisor = resolve_scale(kernel.scale, X.shape[1:], *pair)
    return tuple(None if a is None else scaled(a, divisor) for a in (X, Y))


@dataclass(frozen=True)
class ImageBlock:
    """Block of images as a tile needs it; the last dimension runs over the images."""

    patches: torch.Tensor  # T v, (rows, columns, d, n)

    def __len__(self):
        return self.patches.shape[-1]

    def __getitem__(self, index):
        """Return the images ``index`` (a slice) of the block."""
        return self._map(lambda array: array[..., index])

    def at(self, locations):
        """Return the block at some locations of each of its maps, a pair of indices."""
        return self._map(lambda array: array[locations])

    def contiguous(self):
        """Return the block with its images next to each other in memory."""
        return self._map(torch.Tensor.contiguous)

    def __setitem__(self, index, block):
        """Put the images of another block in the place of some of this one's."""
        for mine, theirs in zip(self.tensors(), block.tensors(), strict=True):
            mine[..., index] = theirs

    def room_for(self, n):
        """Return an empty block of n images of this kind."""
        return self._map(lambda array: array.new_empty((*array.shape[:-1], n)))

    def tensors(self):
        """Yield all tensors of the block."""
        for value in vars(self).values():
            yield from value if isinstance(value, list) else [value]

    def _map(self, function):
        def apply(item):
            return [*map(function, item)] if isinstance(item, list) else function(item)

        return type(self)(*map(apply, vars(self).values()))
