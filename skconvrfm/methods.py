"""The two methods, exact kernel and features: from parameters to machines.

A method makes the machine of the first layer and those of deeper ones, says what a
fitted estimator keeps of them, and predicts from that.
"""

import math
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np

from .core.feature_machine import FeatureMachine, StreamMachine, feature_product
from .core.features import FilterLayer, pass_through
from .core.filters import (
    FilterBank,
    antithetic,
    draw_filters,
    draw_patches,
    moment_draws,
    patch_moments,
    to_one_length,
)
from .core.images import as_images, cells, convolution_layers
from .core.machine import KernelMachine
from .core.radial import RADIAL_KINDS
from .core.sampling import bandwidth_draws
from .core.tiles import hold_maps, kernel_product
from .kernels import check_pair, make_kernel, make_resources

METHODS = ("auto", "exact", "features")

# method="auto": rows, and pairs of rows × pairs of locations × layers, up to which the
# exact kernel is the method: a few minutes on two cores.
EXACT_ROWS = 3000
EXACT_PAIRS = 2e10

# Filters, and the pool, where they are "auto".
EXACT_FILTERS = 64
FEATURE_FILTERS = 512
FEATURE_POOL = (3, 3)

# agop_samples="auto": the AGOP is an average over patches, and accuracy stops growing
# with them before this many; see "How many images" in the guide for the curve. With
# features an image costs a hundredth.
AUTO_AGOP_PATCHES = {"exact": 20_000, "features": 200_000}
AUTO_AGOP_IMAGES = 20


def resolve_method(estimator, image_shape, n_rows):
    """What ``method`` is for so many rows, and why.

    Parameters
    ----------
    estimator : estimator
        Its parameters.
    image_shape : tuple of int
        Rows, columns and channels of an image.
    n_rows : int
        Rows of positive weight.

    Returns
    -------
    name : {"exact", "features"}
        The method.
    reason : str
        Why, as a line for ``verbose``; empty where nothing was to be decided.
    """
    radial = estimator.kernel in RADIAL_KINDS
    if estimator.method == "features" and radial:
        raise ValueError(
            f"method='features' has no kernel={estimator.kernel!r}: features are those "
            "of a network. Take kernel='ntk', or method='exact'."
        )
    if estimator.method != "auto":
        return estimator.method, ""
    if radial:
        return "exact", f"method='exact': kernel={estimator.kernel!r} has no features"
    pairs = n_rows**2 / 2 * _location_pairs(estimator, image_shape) * estimator.depth
    sizes = f"{n_rows} rows (limit {EXACT_ROWS}), {pairs:.1e} pairs of locations"
    exact = n_rows <= EXACT_ROWS and pairs <= EXACT_PAIRS
    name = "exact" if exact else "features"
    return name, f"method={name!r}: {sizes} (limit {EXACT_PAIRS:.0e})"


def _location_pairs(estimator, image_shape):
    """Pairs of locations that the exact kernel compares in a pair of images."""
    patch_size = check_pair(estimator.patch_size, "patch_size")
    layers = convolution_layers(
        image_shape, patch_size, estimator.padding, estimator.depth
    )
    grid = exact_pool(estimator)
    if grid is None:
        return layers[0].n_locations
    sides = [
        sum((part.stop - part.start) ** 2 for part in cells(size, n))
        for size, n in zip(layers[-1].locations, grid, strict=True)
    ]
    return math.prod(sides)


def exact_pool(estimator):
    """The grid of the exact kernel, or None."""
    return _pool(getattr(estimator, "pool_grid", None), None)


def _pool(grid, auto):
    """The parameter `pool_grid` as a pair of ints or None."""
    if grid is None:
        return None
    if isinstance(grid, str):
        return auto
    return check_pair(grid, "pool_grid", single="'auto', None, nor a positive int,")


def _n_filters(estimator, auto):
    return auto if isinstance(estimator.n_filters, str) else estimator.n_filters


@dataclass(frozen=True)
class Method:
    """What both methods share.

    Attributes
    ----------
    estimator : estimator
        Its parameters.
    image_shape : tuple of int
        Rows, columns and channels of an image.
    alphas : ndarray of shape (n_alphas,)
        The ridges.
    resources : Resources
        Device, precision, memory, workers.
    rng : numpy.random.RandomState
        Where filters come from.
    """

    estimator: object
    image_shape: tuple[int, int, int]
    alphas: np.ndarray
    resources: object
    rng: np.random.RandomState

    def pass_on(self, machine, maps):
        """The machine that sees what a layer of filters makes of another's images."""

        def behind(data):
            images = pass_through(data.images, [maps])
            return replace(data, images=hold_maps(images, self.resources))

        held_out = None if machine.held_out is None else behind(machine.held_out)
        return self.machine(behind(machine.data), held_out, machine)

    def _start(self, below):
        """The patch transform of round 0 where a former fit is to be gone on with."""
        if below is not None or not self.estimator.warm_start:
            return None
        return getattr(self.estimator, "patch_transform_", None)

    def _agop_sample(self, lineup, n_locations):
        """The images that carry the AGOP."""
        samples = self.estimator.agop_samples
        if samples is None:
            n_draws = np.inf
        elif samples == "auto":
            n_draws = max(AUTO_AGOP_IMAGES, AUTO_AGOP_PATCHES[self.name] // n_locations)
        elif isinstance(samples, Integral):
            n_draws = samples
        else:
            n_draws = max(1, int(np.ceil(samples * lineup.weights.sum())))
        return lineup.draw(n_draws)


class ExactMethod(Method):
    """Kernel ridge regression with the exact kernel."""

    name = "exact"

    def machine(self, data, held_out=None, below=None):
        """The machine on some data: the first, or that above another one."""
        depth = self.estimator.depth if below is None else len(below.kernel.layers) - 1
        kernel = make_exact_kernel(self.estimator, data.images.shape[1:], depth)
        locations = kernel.layers[0].n_locations
        return KernelMachine(
            kernel=kernel,
            data=data,
            alphas=self.alphas,
            agop_sample=self._agop_sample(data.lineup, locations),
            bandwidth_sample=data.lineup.draw(bandwidth_draws(locations)),
            resources=self.resources,
            held_out=held_out,
            start=self._start(below),
        )

    def maps(self, fitted, transform):
        """The filters that pass maps on, drawn from the learned metric."""
        estimator = self.estimator
        filters = draw_filters(
            transform, _n_filters(estimator, EXACT_FILTERS), self.rng
        )
        layer = fitted.best.machine.kernel.layers[0]
        return FilterLayer(layer, filters, estimator.activation)

    @staticmethod
    def attributes(best):
        """What the estimator keeps of the chosen machine beyond its layers."""
        kept = {"dual_coef_": best.solution.coef}
        if best.machine.kernel.kind in RADIAL_KINDS:
            kept["bandwidth_"] = best.machine.kernel.bandwidth
        return kept

    @staticmethod
    def predict(estimator, images):
        """f(x) of a fitted estimator without the intercept."""
        resources = make_resources(
            estimator.device,
            estimator.dtype,
            estimator.n_jobs,
            estimator.X_fit_,
            images,
        )
        filters = _fitted_layers(estimator, estimator.best_layer_)
        kernel = make_exact_kernel(
            estimator,
            filters[-1].shape if filters else estimator.image_shape_,
            estimator.depth - estimator.best_layer_,
            getattr(estimator, "bandwidth_", None),
        )
        centres = as_images(
            estimator.X_fit_, estimator.image_shape_, estimator.channels
        )
        return kernel_product(
            kernel,
            pass_through(images, filters),
            hold_maps(pass_through(centres, filters), resources),
            _unless_identity(estimator.patch_transform_),
            estimator.dual_coef_.reshape(len(centres), -1),
            resources,
        )


def _unless_identity(transform):
    """A patch transform, or None for the identity, which costs nothing."""
    return None if np.array_equal(transform, np.eye(len(transform))) else transform


def make_exact_kernel(estimator, image_shape, depth, bandwidth=None):
    """The kernel on images, or maps, of this shape."""
    return make_kernel(
        estimator.kernel,
        image_shape,
        estimator.patch_size,
        estimator.padding,
        depth,
        estimator.bias,
        estimator.bandwidth if bandwidth is None else bandwidth,
        exact_pool(estimator),
    )


class FeatureMethod(Method):
    """Ridge regression on pooled maps of filters."""

    name = "features"

    def machine(self, data, held_out=None, below=None):
        """The machine on some data, with a bank of filters of its own."""
        layer = _layer(self.estimator, data.images.shape[1:])
        start = self._start(below)
        if start is None:
            bank = self._draw_bank(data, layer)
        else:
            bank = self.estimator.filter_bank_
        return FeatureMachine(
            bank=bank,
            held_out=held_out,
            start=start,
            **self._parts(data, layer),
        )

    def present_machine(self, data):
        """The machine on some data with the filters and the metric that there are."""
        estimator = self.estimator
        if not estimator._is_linear:
            return self.machine(data).under(None)
        data = self._behind_fitted_layers(data)
        return FeatureMachine(
            bank=estimator.filter_bank_,
            transform=estimator.patch_transform_,
            **self._parts(data, _layer(estimator, data.images.shape[1:])),
        )

    def summed_machine(self, machine, sample, moments):
        """A machine with the same filters whose ridge is fitted to sums."""
        sample = self._behind_fitted_layers(sample)
        return StreamMachine(
            bank=machine.bank,
            start=machine.transform,
            moments=moments,
            **self._parts(sample, machine.layer),
        )

    def _behind_fitted_layers(self, data):
        """Data as the layer sees it that a fitted estimator has chosen."""
        if not self.estimator._is_linear:
            return data
        below = _fitted_layers(self.estimator, self.estimator.best_layer_)
        return replace(data, images=pass_through(data.images, below))

    def _parts(self, data, layer):
        """What a machine has from the parameters and the data."""
        return {
            "layer": layer,
            "activation": self.estimator.activation,
            "pool": _pool(self.estimator.pool_grid, FEATURE_POOL),
            "data": data,
            "alphas": self.alphas,
            "agop_sample": self._agop_sample(data.lineup, layer.n_locations),
            "resources": self.resources,
        }

    def maps(self, fitted, transform):
        """The chosen round's own filters, with the pool between layers."""
        features = fitted.best.machine.features
        pool = _between(self.estimator, features.layer)
        return replace(features, pool=pool, power=1.0)

    @staticmethod
    def attributes(best):
        """What the estimator keeps of the chosen machine beyond its layers."""
        features = best.machine.features
        return {
            "coef_": best.solution.coef,
            "filters_": features.filters,
            "biases_": features.biases,
            "offsets_": features.offsets,
            "pool_grid_": features.grid,
            "filter_bank_": best.machine.bank,
        }

    @staticmethod
    def predict(estimator, images):
        """f(x) of a fitted estimator without the intercept."""
        resources = make_resources(
            estimator.device,
            estimator.dtype,
            estimator.n_jobs,
            images,
            learned=(estimator.filters_, estimator.biases_),
        )
        below = _fitted_layers(estimator, estimator.best_layer_)
        shape = below[-1].shape if below else estimator.image_shape_
        last = FilterLayer(
            _layer(estimator, shape),
            estimator.filters_,
            estimator.activation,
            estimator.biases_,
            estimator.pool_grid_,
            float(estimator.pool_power),
            estimator.offsets_,
        )
        coef = estimator.coef_.reshape(math.prod(last.shape), -1)
        return feature_product(last, pass_through(images, below), coef, resources)

    def _draw_bank(self, data, layer):
        """The filters of a layer before they take a metric, a `FilterBank`."""
        estimator, rng = self.estimator, self.rng
        patch_dim = data.images.shape[3] * math.prod(layer.patch)
        n_filters = _n_filters(estimator, FEATURE_FILTERS)
        n_drawn = math.ceil(n_filters / 2) if estimator.antithetic else n_filters
        whitened = estimator.initial_metric == "whiten"
        n_images = moment_draws(layer.n_locations, patch_dim)
        moments = patch_moments(
            data.images, layer, data.lineup.draw(n_images), self.resources
        )
        initial = moments.whitening() if whitened else None
        if estimator.filters == "patches":
            rows = data.lineup.sequence(n_drawn)
            directions = draw_patches(
                data.images, layer, rows, moments.mean, rng, self.resources
            )
            directions = to_one_length(directions @ initial if whitened else directions)
        else:
            directions = rng.standard_normal((n_drawn, patch_dim))
        biases = rng.standard_normal(n_drawn)
        if estimator.antithetic:
            directions = antithetic(directions, n_filters)
            biases = antithetic(biases, n_filters)
        return FilterBank(
            directions,
            biases,
            float(estimator.bias),
            float(estimator.threshold),
            float(estimator.pool_power),
            moments,
            initial,
        )


METHOD_CLASSES = {method.name: method for method in (ExactMethod, FeatureMethod)}


def _layer(estimator, image_shape):
    """The convolution of one layer of filters."""
    patch_size = check_pair(estimator.patch_size, "patch_size")
    [layer] = convolution_layers(image_shape, patch_size, estimator.padding, 1)
    return layer


def _between(estimator, layer):
    """The grid of means between two layers of features."""
    return tuple(max(1, size // estimator.pool_between) for size in layer.locations)


def _fitted_layers(estimator, count):
    """The first layers of filters of a fitted estimator."""
    if not count:
        return []
    layers, shape = [], estimator.image_shape_
    for learned in estimator.layers_[:count]:
        layer = _layer(estimator, shape)
        pool = None
        if estimator.method_ == "features":
            pool = _between(estimator, layer)
        maps = FilterLayer(
            layer, learned.filters, estimator.activation, learned.biases, pool
        )
        layers.append(maps)
        shape = maps.shape
    return layers
