"""Models that the rounds learn with: ridge regressions under patch transforms.

A *recipe* makes the model of some data. A model under the transforms of a round has a
ridge path, and the patch AGOPs of every layer that learns.
"""

import copy
import math
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
from sklearn.base import clone

from ..compute.images import take
from ..compute.parallel import Resources
from ..compute.sampling import Sample, bandwidth_draws
from ..compute.tiles import kernel_matrix, kernel_product
from ..features.filters import FilterBank, draw_bank, drawn_moments
from ..features.gradients import (
    LayerAgop,
    importances,
    layer_agops,
    linear_agop,
)
from ..features.layer import ConvFeatures
from ..features.maps import (
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
from .training_set import TrainingSet

# agop_samples="auto": the AGOP is an average over patches, and accuracy stops growing
# with them before this many; see "How many images" in the guide for the curve. Behind
# feature layers an image costs a hundredth.
_KERNEL_AGOP_PATCHES, _FEATURE_AGOP_PATCHES = 20_000, 200_000
_LEAST_AGOP_IMAGES = 20
# Under a kernel that is not linear, whose cost grows with the outputs as well.
_MOST_RADIAL_IMAGES = 100


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
    metrics: tuple = ()  # of each stage, chosen before by metric="auto"

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
        kernel, agop_power = self.kernel, None
        for _ in range(self.n_stages - 1 - stage):
            kernel = kernel.below()
        if stage < len(self.features):  # whose filters take the metric of its patches
            below = self.features[stage]
            agop_power = below.agop_power
            options = {"patch_size": below.patch_size, "padding": below.padding}
            kernel = clone(kernel).set_params(**options)
        kernel = kernel.bind(tuple(data.images.shape[1:]))
        layer = kernel.layers[0]
        metric = kernel.metric
        if metric == "auto" and self.metrics:
            metric = self.metrics[stage]
        initials = () if metric == "whiten" else (None,)
        if metric != "identity":
            parts = data.images, layer, data.lineup, self.resources
            moments = drawn_moments(*parts)
            if kernel.mirror:
                moments = moments.with_mirrors(kernel.mirror_entries)
            initials += (moments.whitening(),)
        return PatchModel(
            kernel=kernel,
            initials=initials,
            agop_power=agop_power,
            start=None if self.start is None else self.start.transforms,
            agop_sample=self._agop_sample(data, layer, _KERNEL_AGOP_PATCHES),
            bandwidth_sample=data.lineup.draw(bandwidth_draws(layer.n_locations)),
            **common,
        )

    def _map_model(self, common):
        """Return the model whose kernel compares the maps behind all layers."""
        data, layers, banks, images = common["data"], [], [], common["data"].images
        sources = []
        for index, features in enumerate(self.features):
            layer = features.bind(images.shape[1:])
            if self.start is None:
                sources.append(copy.deepcopy(self.rng))
                mirrored = _sees_mirrors(self.features, index)
                parts = images, data.lineup, self.rng, self.resources
                bank = draw_bank(layer, *parts, mirrored)
                # Candidates are in the order of their classes.
                bank = bank.take(slice(None, None, layer.candidates))
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
            sources=tuple(sources),
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

    @property
    def alternatives(self):
        """Models of which the criterion chooses one in round 0."""
        return (self,)

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
    initials: tuple = (None,)  # transforms of round 0, of which one is chosen
    agop_power: float | None = None  # of the layer whose filters take the metric

    # The criteria follow the error on other images from round to round.
    optimism = 0.0

    has_candidates = False

    @property
    def alternatives(self):
        """Models of which the criterion chooses one in round 0."""
        return tuple(replace(self, initials=(initial,)) for initial in self.initials)

    @property
    def initial(self):
        """Transform before anything was learned; None is the identity."""
        return self.initials[0]

    @property
    def metric(self):
        """Name of the metric of round 0."""
        return "identity" if self.initial is None else "whiten"

    @property
    def initial_transforms(self):
        """Transforms before anything was learned; None is the identity."""
        return (self.initial,)

    n_filters, chosen = (), ()

    def powers(self, default):
        """Return the power of the AGOP of each layer that learns."""
        return (self.agop_power or default,)

    @property
    def patch_dims(self):
        """Entries d of a patch of each layer that learns."""
        return (self.kernel.patch_dim,)

    def with_metric(self, transforms):
        """Return the model under the transforms of a round; None is round 0."""
        [transform] = transforms or self.start or self.initial_transforms
        kernel = self.kernel
        if kernel.mirror and transform is not None:
            # Equal in exact arithmetic; else the kernel would take twice the time.
            transform = kernel.over_mirror(transform)
        if kernel.unmeasured:
            at = self.data.images, self.bandwidth_sample, transform
            kernel = kernel.measured_on(*at, self.resources)
        return replace(self, kernel=kernel, transforms=(transform,))

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
        return (LayerAgop(kernel_agop(self.kernel, images, coef, *at, self.resources)),)

    def fitted(self, below, coef, learned):
        """Return fitted layers, ``below`` this stage, the kernel, other attributes."""
        [own] = learned
        own = own | {"metric": self.metric}
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
    sources: tuple[np.random.RandomState, ...]  # of their draws; none after a start
    chosen: tuple = ()  # numbers of the candidates that are kept, of each layer
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

    @property
    def has_candidates(self):
        """True if there are filters to choose, and none are chosen yet."""
        return not (self.chosen or self.start) and any(
            layer.candidates > 1 for layer in self.layers
        )

    @property
    def n_filters(self):
        """Filters of each layer."""
        return tuple(layer.n_filters for layer in self.layers)

    def powers(self, default):
        """Return the power of the AGOP of each layer, None where it does not learn."""
        return layer_powers(self.layers, default)

    def with_filters(self, chosen=None):
        """Return the model with some of the candidates of each layer, by number.

        Without numbers the most important ones are found, from the image up. Filters on
        maps that have changed by that are drawn anew.
        """
        images, kept, banks, moved = self.data.images, [], [], False
        for index, features in enumerate(self.layers):
            bank, numbers = self.banks[index], None
            if moved or features.candidates > 1:
                rng = copy.deepcopy(self.sources[index])
                mirrored = _sees_mirrors(self.layers, index)
                parts = images, self.data.lineup, rng, self.resources
                bank = draw_bank(features, *parts, mirrored)
            if features.candidates > 1:
                if chosen is None:
                    numbers = self._most_important(features, bank, images)
                else:
                    numbers = chosen[index]
                bank, moved = bank.take(numbers), True
            kept.append(numbers)
            banks.append(bank)
            images = pass_through(images, [bank.under(bank.initial, features)])
        return replace(self, chosen=tuple(kept), banks=tuple(banks))

    def _most_important(self, features, bank, images):
        """Return the numbers of the most important filters of a bank on maps."""
        layer = features.pooled_as(self.layers[-1])
        shape = bank.under(bank.initial, layer).shape
        model = replace(
            self,
            data=replace(self.data, images=images),
            layers=(layer,),
            banks=(bank,),
            # A given bandwidth is that of fewer features.
            kernel=type(self.kernel)().bind(shape),
            moments=None,
        ).with_metric(None)
        path = model.ridge_path(model.design())
        is_grouped = self.data.groups is not None
        criterion = path.loo_loss() if is_grouped else path.gcv()
        solution = path.solve(path.alphas[np.argmin(criterion)])
        order = np.argsort(-model.importances(solution.coef), kind="stable")
        return np.sort(order[: features.n_filters])

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
        [first, *above] = self.maps
        simple = not (above or first.overlap or first.mirror)
        if self.kernel.is_linear and simple:
            return (linear_agop(self.maps[0], coef, *at),)
        return tuple(layer_agops(self.maps, self.readout(compress_outputs(coef)), *at))

    def importances(self, coef):
        """Return the importance of every filter of the one layer, see `importances`."""
        sample, readout = self.agop_sample, self.readout(compress_outputs(coef))
        images = take(self.data.images, sample.rows)
        return importances(self.top, readout, images, sample.weights, self.resources)

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


def _sees_mirrors(layers, index):
    """Return True if a layer sees images and their mirrors, and not maps of them."""
    return index == 0 and layers[-1].mirror


def layer_powers(layers, default):
    """Return the power of the AGOP of each layer, None where it does not learn."""
    return [(f.agop_power or default) if f.learn else None for f in layers]


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
