"""Models that the rounds learn with: ridge regressions under patch transforms.

A *recipe* makes the model of some data. A model under the transforms of a round has a
ridge path, and the patch AGOPs of every layer that learns.
"""

import math
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
from sklearn.base import clone

from ..compute.images import take
from ..compute.parallel import Resources
from ..compute.sampling import Lineup, Sample, bandwidth_draws
from ..compute.stored import StoredImages
from ..compute.tiles import kernel_matrix, kernel_product
from ..features.filters import FilterBank, draw_bank, drawn_moments
from ..features.gradients import layer_agops, linear_agop
from ..features.layer import ConvFeatures
from ..features.maps import (
    FeatureMaps,
    FilterLayer,
    Pixels,
    compute_features,
    hold_maps,
    pass_through,
)
from ..kernels.agop import compress_outputs, kernel_agop
from ..kernels.base import PatchKernel
from ..kernels.whole import BANDWIDTH_IMAGES, WholeKernel
from .feature_sums import Design, LinearReadout, RadialReadout, readout_outputs
from .ridge import Moments, PrimalRidgePath, RidgePath

# agop_samples="auto": the AGOP is an average over patches, and accuracy stops growing
# with them before this many; see "How many images" in the guide for the curve. Behind
# feature layers an image costs a hundredth.
_KERNEL_AGOP_PATCHES, _FEATURE_AGOP_PATCHES = 20_000, 200_000
_LEAST_AGOP_IMAGES = 20
# Under a kernel that is not linear, whose cost grows with the outputs as well.
_MOST_RADIAL_IMAGES = 100


@dataclass(frozen=True)
class Observations:
    """Targets and weights of single rows, of which some may be copies of an image."""

    image: np.ndarray  # (m,), number of the image in the training set
    targets: np.ndarray  # (m, n_outputs)
    weights: np.ndarray  # (m,), all positive

    def of_images(self):
        """Return the mean targets, weights and scatter of the n images.

        Their shapes are (n, n_outputs), (n,) and (n, n_outputs).
        """
        first = np.unique(self.image, return_index=True)[1]
        weights = np.bincount(self.image, self.weights)
        # Of equal targets this is the target, to the last bit.
        targets, share = self.targets[first], self.weights / weights[self.image]
        changes = share[:, None] * (self.targets - targets[self.image])
        targets = targets + self.sum_by_image(changes)
        squares = (self.targets - targets[self.image]) ** 2
        return targets, weights, self.sum_by_image(self.weights[:, None] * squares)

    def sum_by_image(self, values):
        """Return the sums of values (m, n_outputs) over the rows of each image."""
        columns = [np.bincount(self.image, column) for column in values.T]
        return np.stack(columns, axis=1)

    def take(self, images):
        """Return the rows of some images, numbered anew."""
        number = np.full(self.image.max() + 1, -1)
        number[images] = np.arange(len(images))
        kept = number[self.image] >= 0
        image = number[self.image[kept]]
        return Observations(image, self.targets[kept], self.weights[kept])


@dataclass(frozen=True)
class TrainingSet:
    """Distinct images with their targets and weights."""

    images: np.ndarray | StoredImages | FeatureMaps  # (n, h, w, c)
    targets: np.ndarray  # (n, n_outputs), means over the copies of an image
    weights: np.ndarray  # (n,), all positive
    scatter: np.ndarray  # (n, n_outputs), Σ w (y - ȳ)² over the copies
    lineup: Lineup  # order for draws
    observations: Observations
    groups: np.ndarray | None = None  # (n,), numbers of groups that are left out

    def take(self, images):
        """Return some of the images."""
        columns = (c[images] for c in (self.targets, self.weights, self.scatter))
        parts = self.lineup.take(images), self.observations.take(images)
        groups = None if self.groups is None else self.groups[images]
        if groups is not None and len(np.unique(groups)) < 2:
            groups = None  # without the only one there would be nothing to learn from
        return TrainingSet(take(self.images, images), *columns, *parts, groups)

    def scaled(self, factor):
        """Return the same with all weights times a factor."""
        weights, scatter = factor * self.weights, factor * self.scatter
        lineup = replace(self.lineup, weights=weights)
        observations = replace(
            self.observations, weights=factor * self.observations.weights
        )
        parts = {"lineup": lineup, "observations": observations}
        return replace(self, weights=weights, scatter=scatter, **parts)

    def behind(self, maps, resources):
        """Return the images as they are behind a layer of filters."""
        images = hold_maps(pass_through(self.images, [maps]), resources)
        return replace(self, images=images)


@dataclass(frozen=True)
class Recipe:
    """Kernel, feature layers and options from which models of data are made."""

    kernel: PatchKernel | WholeKernel  # not yet bound
    features: tuple[ConvFeatures, ...]  # not yet bound, from the image up
    alphas: np.ndarray
    agop_samples: object  # "auto", int, float or None
    resources: Resources
    rng: np.random.RandomState  # source of the filters
    start: "Start | None" = None  # former fit to go on from
    moments: Moments | None = None  # of rows that are gone, in place of the data's

    @property
    def n_stages(self):
        """Number of models that are fitted one upon the other, as in Deep ConvRFM."""
        return 1 if isinstance(self.kernel, WholeKernel) else 1 + len(self.features)

    def model(self, data, held_out=None, stage=0):
        """Return the model of a stage on the images, or maps, that it sees."""
        common = {"data": data, "held_out": held_out, "alphas": self.alphas}
        common["resources"] = self.resources
        if isinstance(self.kernel, WholeKernel):
            return self._map_model(common)
        kernel = self.kernel
        for _ in range(self.n_stages - 1 - stage):
            kernel = kernel.below()
        if stage < len(self.features):  # whose filters take the metric of its patches
            below = self.features[stage]
            options = {"patch_size": below.patch_size, "padding": below.padding}
            kernel = clone(kernel).set_params(**options)
        kernel = kernel.bind(tuple(data.images.shape[1:]))
        layer = kernel.layers[0]
        initial = None
        if kernel.metric == "whiten":
            parts = data.images, layer, data.lineup, self.resources
            initial = drawn_moments(*parts).whitening()
        return PatchModel(
            kernel=kernel,
            initial=initial,
            start=None if self.start is None else self.start.transforms,
            agop_sample=self._agop_sample(data, layer, _KERNEL_AGOP_PATCHES),
            bandwidth_sample=data.lineup.draw(bandwidth_draws(layer.n_locations)),
            **common,
        )

    def _map_model(self, common):
        """Return the model whose kernel compares the maps behind all layers."""
        data, layers, banks, images = common["data"], [], [], common["data"].images
        for index, features in enumerate(self.features):
            layer = features.bind(images.shape[1:])
            if self.start is None:
                bank = draw_bank(layer, images, data.lineup, self.rng, self.resources)
                transform = bank.initial
            else:
                bank, transform = self.start.banks[index], self.start.transforms[index]
                if index and self.start.refined:
                    parts = images, layer.layer_, data.lineup, self.resources
                    bank = bank.measured_on(*parts)
            layers.append(layer)
            banks.append(bank)
            images = pass_through(images, [bank.under(transform, layer)])
        first = layers[0].layer_ if layers else Pixels(images.shape[1:]).layer
        return MapModel(
            kernel=self.kernel.bind(images.shape[1:]),
            layers=tuple(layers),
            banks=tuple(banks),
            start=None if self.start is None else self.start.transforms,
            agop_sample=self._agop_sample(data, first, _FEATURE_AGOP_PATCHES),
            bandwidth_sample=data.lineup.draw(BANDWIDTH_IMAGES),
            moments=self.moments,
            **common,
        )

    def summed(self, model, moments):
        """Return the recipe for a model of which only sums over the rows are left."""
        start = Start(model.transforms, model.banks)
        return replace(self, start=start, moments=moments)

    def _agop_sample(self, data, layer, auto_patches):
        """Draw the images that carry the AGOP."""
        samples = self.agop_samples
        if samples is None:
            samples = np.inf
        elif samples == "auto":
            samples = max(_LEAST_AGOP_IMAGES, auto_patches // layer.n_locations)
            if auto_patches == _FEATURE_AGOP_PATCHES and not self.kernel.is_linear:
                samples = min(samples, _MOST_RADIAL_IMAGES)
        elif not isinstance(samples, Integral):
            # Rounded first: the order of a sum must not add an image.
            samples = round(samples * data.lineup.weights.sum(), 6)
            samples = max(1, math.ceil(samples))
        return data.lineup.draw(samples)


@dataclass(frozen=True)
class Start:
    """Metrics and filters of a former fit."""

    transforms: tuple  # of each layer that learns
    banks: tuple = ()  # of each feature layer
    refined: bool = False  # after the banks were drawn, so that maps have moved


@dataclass(frozen=True, kw_only=True)
class Model:
    """A ridge regression on images under the patch transforms of a round."""

    data: TrainingSet  # of training
    alphas: np.ndarray
    resources: Resources
    agop_sample: Sample  # images that carry the AGOP
    bandwidth_sample: Sample  # images on which a bandwidth is measured
    held_out: TrainingSet | None = None  # rows by which ridges are chosen
    start: tuple | None = None  # transforms of round 0, of a former fit
    transforms: tuple = ()  # of each layer that learns; None is the identity
    multiple: float | None = None  # of the median, a bandwidth; None is not chosen

    @property
    def chooses_bandwidth(self):
        """True if the multiple of the median distance is still to be chosen."""
        return False

    def held_out_loss(self, path):
        """Return the weighted mean squared error of all ridges on the held-out rows."""
        data = self.held_out
        coef, intercepts = path.coefficients()
        predictions = self.outputs(data.images, coef) + intercepts
        predictions = predictions.reshape(len(data.targets), len(path.alphas), -1)
        losses = ((predictions - data.targets[:, None]) ** 2).sum(2)
        return (data.weights @ losses + data.scatter.sum()) / data.weights.sum()

    @property
    def _ridge_options(self):
        data, device = self.data, self.resources.device
        scatter = float(data.scatter.sum())
        return data.targets, data.weights, self.alphas, device, scatter, data.groups


@dataclass(frozen=True, kw_only=True)
class PatchModel(Model):
    """Kernel ridge regression with a kernel of patches."""

    kernel: PatchKernel  # bound
    initial: np.ndarray | None = None  # transform of round 0

    # The criteria follow the error on other images from round to round.
    optimism = 0.0

    @property
    def initial_transforms(self):
        """Transforms before anything was learned; None is the identity."""
        return (self.initial,)

    @property
    def patch_dims(self):
        """Entries d of a patch of each layer that learns."""
        return (self.kernel.patch_dim,)

    def with_metric(self, transforms):
        """Return the model under the transforms of a round; None is round 0."""
        transforms = transforms or self.start or self.initial_transforms
        kernel = self.kernel
        if kernel.unmeasured:
            at = self.data.images, self.bandwidth_sample, transforms[0]
            kernel = kernel.measured_on(*at, self.resources)
        return replace(self, kernel=kernel, transforms=transforms)

    def design(self):
        """Return the kernel matrix of the training images."""
        [transform], images = self.transforms, self.data.images
        return kernel_matrix(self.kernel, images, None, transform, self.resources)

    def ridge_path(self, design):
        """Return the ridge regressions on a kernel matrix."""
        return RidgePath(design, *self._ridge_options)

    def patch_agops(self, coef):
        """Return the patch AGOP of the model with these coefficients, in a tuple."""
        images, sample = self.data.images, self.agop_sample
        at = take(images, sample.rows), self.transforms[0], sample.weights
        return (kernel_agop(self.kernel, images, coef, *at, self.resources),)

    def fitted(self, below, coef, learned):
        """Return fitted layers, ``below`` this stage, the kernel, other attributes."""
        [own] = learned
        kernel = self.kernel._with(**{f"{name}_": own[name] for name in own})
        return below, kernel, {"dual_coef_": coef}

    def outputs(self, images, coef):
        """Return the kernel of images with the training images times coefficients."""
        machine = self.data.images, self.transforms[0], coef
        return kernel_product(self.kernel, images, *machine, self.resources)


@dataclass(frozen=True, kw_only=True)
class MapModel(Model):
    """Ridge regression with a kernel of the maps behind feature layers."""

    kernel: WholeKernel  # bound to the shape of the maps
    layers: tuple[ConvFeatures, ...]  # bound; none for a kernel of images
    banks: tuple[FilterBank, ...]  # their filters before they take a metric
    maps: tuple[FilterLayer, ...] = ()  # layers under the transforms of a round
    centres: np.ndarray | None = None  # features (n, D), of a kernel not linear
    moments: Moments | None = None  # of all rows, of which data is a sample

    # Measured where learning does not help: see "Held-out rows" in the guide.
    optimism = 0.02

    @property
    def initial_transforms(self):
        """Transforms before anything was learned; None is the identity."""
        return tuple(bank.initial for bank in self.banks)

    @property
    def patch_dims(self):
        """Entries d of a patch of each layer that learns."""
        return tuple(bank.directions.shape[1] for bank in self.banks)

    def with_metric(self, transforms):
        """Return the model under the transforms of a round; None is round 0."""
        base = self.start or self.initial_transforms
        transforms = transforms or base
        images, maps, banks, moved = self.data.images, [], [], False
        parts = zip(self.layers, self.banks, transforms, base, strict=True)
        for features, bank, transform, before in parts:
            if moved:  # thresholds and centres are those of the present maps
                where = images, features.layer_, self.data.lineup, self.resources
                bank = bank.measured_on(*where)
            maps.append(bank.under(transform, features))
            banks.append(bank)
            images = pass_through(images, maps[-1:])
            moved = moved or transform is not before
        maps, banks, transforms = tuple(maps), tuple(banks), tuple(transforms)
        model = replace(self, maps=maps, banks=banks, transforms=transforms)
        if self.kernel.is_linear:
            return model
        images = pass_through(self.data.images, model.maps[:-1])
        centres = compute_features(model.top, images, self.resources)
        centres = centres.reshape(len(centres), -1)
        kernel = self.kernel
        if kernel.unmeasured:
            sample = self.bandwidth_sample
            kernel = kernel.measured(centres, sample.weights, sample.rows)
            kernel = kernel.stretched(self.multiple or 1.0)
        return replace(model, kernel=kernel, centres=centres)

    def stretched(self, multiple):
        """Return the model with another multiple of the median as its bandwidth."""
        kernel = self.kernel.stretched(multiple / (self.multiple or 1.0))
        return replace(self, kernel=kernel, multiple=multiple)

    @property
    def chooses_bandwidth(self):
        """True if the multiple of the median distance is still to be chosen."""
        return self.kernel.unmeasured and self.multiple is None

    def design(self):
        """Return the features of the training images, a `Design`."""
        images = pass_through(self.data.images, self.maps[:-1])
        data = replace(self.data, images=images)
        return Design(self.top, data, self.resources, self.centres)

    def ridge_path(self, design):
        """Return the ridge regressions on the features, on the smaller side."""
        options = self._ridge_options
        if not self.kernel.is_linear:
            matrix = self.kernel.matrix_of(design.kernel_matrix())
            return RidgePath(matrix, *options)
        if self.moments is None and design.wide:
            return RidgePath(design.kernel_matrix(), *options, design.combine)
        moments = design.moments() if self.moments is None else self.moments
        return PrimalRidgePath(moments, design, *options)

    def patch_agops(self, coef):
        """Return the patch AGOPs of all layers of the model with these coefficients."""
        if not self.layers:
            return ()
        sample = self.agop_sample
        at = take(self.data.images, sample.rows), sample.weights, self.resources
        if self.kernel.is_linear and len(self.layers) == 1:
            return (linear_agop(self.maps[0], coef, *at),)
        return tuple(layer_agops(self.maps, self.readout(compress_outputs(coef)), *at))

    def fitted(self, below, coef, learned):
        """Return the same as `PatchModel.fitted`; there are no stages below."""
        parts = zip(self.layers, self.banks, self.maps, learned, strict=True)
        features = [layer.fitted(bank, maps, **own) for layer, bank, maps, own in parts]
        if self.kernel.is_linear:
            return features, self.kernel, {"coef_": coef}
        return features, self.kernel, {"dual_coef_": coef, "X_fit_": self.centres}

    def outputs(self, images, coef):
        """Return the outputs of images with these coefficients."""
        images = pass_through(images, self.maps[:-1])
        return readout_outputs(self.top, images, self.readout(coef), self.resources)

    @property
    def top(self):
        """The last layer, a `FilterLayer`, or `Pixels` where there is none."""
        return self.maps[-1] if self.maps else Pixels(self.data.images.shape[1:])

    def readout(self, coef):
        """Return the readout of the features with these coefficients."""
        if self.kernel.is_linear:
            return LinearReadout(coef)
        return RadialReadout(self.kernel, self.centres, coef)


def fitted_outputs(kernel, features, images, coef, centres, resources):
    """Return f(x) of a fitted machine, (n, n_outputs) float64, without the intercept.

    Centres are images (n_centres, h, w, c) of a kernel of patches, features
    (n_centres, D) of a kernel of whole maps, or None of a linear kernel.
    """
    maps = [layer.maps_ for layer in features]
    if isinstance(kernel, PatchKernel):
        transform = kernel.patch_transform_
        # The identity costs nothing as None.
        if np.array_equal(transform, np.eye(len(transform))):
            transform = None
        images = pass_through(images, maps)
        centres = hold_maps(pass_through(centres, maps), resources)
        return kernel_product(kernel, images, centres, transform, coef, resources)
    top = maps[-1] if maps else Pixels(images.shape[1:])
    if kernel.is_linear:
        readout = LinearReadout(coef)
    else:
        readout = RadialReadout(kernel, centres, coef)
    return readout_outputs(top, pass_through(images, maps[:-1]), readout, resources)
