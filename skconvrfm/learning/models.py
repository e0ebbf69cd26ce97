"""Models that the rounds learn with: ridge regressions under patch transforms.

A model under the transforms of a round has a ridge path, and the patch AGOPs of every
layer that learns.
"""

import copy
import math
from dataclasses import dataclass, replace

import numpy as np

from ..compute.images import take
from ..compute.parallel import Resources
from ..compute.tiles import kernel_matrix, kernel_product
from ..features.filters import FilterBank, draw_bank
from ..features.gradients import (
    LayerAgop,
    importances,
    layer_agops,
    linear_agop,
)
from ..features.layer import ConvFeatures
from ..features.maps import (
    FilterLayer,
    compute_features,
    hold_maps,
    pass_through,
)
from ..features.skips import (
    SideBySide,
    fitted_scales,
    kernel_features,
    seen_layers,
    unit_scales,
)
from ..kernels.agop import compress_outputs, kernel_agop
from ..kernels.base import PatchKernel
from ..kernels.whole import WholeKernel
from .feature_sums import Design, LinearReadout, RadialReadout, readout_outputs
from .landmarks import LandmarkDesign, MapColumns, PatchColumns
from .primal import Moments, PrimalRidgePath
from .ridge import RidgePath
from .training_set import TrainingSet

# Part by which another floor of contrast must lower the criterion: on CIFAR-10 those of
# two differ by less, and by chance; on Fashion-MNIST by 9 to 20 per cent.
_HANDICAP = 0.02


@dataclass(frozen=True, kw_only=True)
class Model:
    """A ridge regression on images under the patch transforms of a round."""

    data: TrainingSet  # of training
    alphas: np.ndarray
    resources: Resources
    agop_draws: float  # of images that carry the AGOP
    bandwidth_draws: int  # of centres on which a bandwidth is measured
    landmarks: TrainingSet | None = None  # the centres; None is all images
    moments: Moments | None = None  # of all rows, of which data is a sample
    held_out: TrainingSet | None = None  # rows by which ridges are chosen
    start: tuple | None = None  # transforms of round 0, of a former fit
    transforms: tuple = ()  # of each layer that learns; None is the identity
    multiple: float | None = None  # of the median, a bandwidth; None is not chosen
    covariance_bytes: int = 0  # that the covariance of a solution may take

    # Part by which its criterion must be lower than those of other alternatives.
    handicap = 0.0

    @property
    def chooses_bandwidth(self):
        """True if the multiple of the median distance is still to be chosen."""
        return False

    @property
    def alternatives(self):
        """Models of which the criterion chooses one in round 0."""
        return (self,)

    @property
    def _centres(self):
        return self.data if self.landmarks is None else self.landmarks

    @property
    def centre_images(self):
        """Images that the kernel machine compares with."""
        return self._centres.images

    @property
    def n_coefs(self):
        """Coefficients of an output: one for each centre."""
        return len(self.centre_images)

    @property
    def bandwidth_sample(self):
        """Centres on which a bandwidth is measured, a `Sample`."""
        return self._centres.lineup.draw(self.bandwidth_draws)

    @property
    def agop_sample(self):
        """Images that carry the AGOP, a `Sample`."""
        return self.data.lineup.draw(self.agop_draws)

    def on_landmarks(self):
        """Return the model of the landmarks alone, itself where all images are."""
        if self.landmarks is None:
            return self
        return replace(self, data=self.landmarks, landmarks=None, moments=None)

    def on_sample(self, n_images):
        """Return the model of so many images, or landmarks, alone, or of all."""
        base = self.on_landmarks()
        if len(base.data.images) <= n_images:
            return base
        return replace(base, data=base.data.draw_once(n_images), moments=None)

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
        columns = data.targets, data.weights, self.alphas, device, data.scatter
        return *columns, data.groups

    def _primal_path(self, design):
        """Return the ridge regressions on features, from sums over all rows."""
        moments = design.moments() if self.moments is None else self.moments
        return PrimalRidgePath(moments, design, *self._ridge_options)


@dataclass(frozen=True, kw_only=True)
class PatchModel(Model):
    """Kernel ridge regression with a kernel of patches."""

    kernel: PatchKernel  # bound
    initials: tuple = (None,)  # transforms of round 0, of which one is chosen
    agop_power: float | None = None  # of the layer whose filters take the metric

    # The criteria follow the error on other images from round to round.
    optimism = 0.0

    has_candidates = False
    banks, scales = (), ()  # of layers below the kernel, of whose maps it sees patches

    @property
    def alternatives(self):
        """Models of which the criterion chooses one in round 0."""
        return tuple(replace(self, initials=(initial,)) for initial in self.initials)

    @property
    def initial(self):
        """Transform before anything was learned; None is the identity."""
        return self.initials[0]

    @property
    def choice(self):
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
            at = self.centre_images, self.bandwidth_sample, transform
            kernel = kernel.measured_on(*at, self.resources)
        return replace(self, kernel=kernel, transforms=(transform,))

    def design(self):
        """Return the kernel matrix of the training images, or features of landmarks."""
        [transform], resources = self.transforms, self.resources
        if self.landmarks is None:
            pair = self.data.images, None
            # A decomposition on the same device takes it from there.
            stays = resources.keeps(8 * len(self.data.images) ** 2)
            return kernel_matrix(self.kernel, *pair, transform, resources, stays)
        rounding = np.finfo(resources.numpy_dtype).eps
        machine = self.kernel, self.centre_images, transform, rounding
        return LandmarkDesign(PatchColumns(*machine), self.data, resources)

    def ridge_path(self, design):
        """Return the ridge regressions on what `design` returns."""
        if self.landmarks is None:
            return RidgePath(design, *self._ridge_options)
        return self._primal_path(design)

    def patch_agops(self, coef):
        """Return the patch AGOP of the model with these coefficients, in a tuple."""
        centres, sample = self.centre_images, self.agop_sample
        at = take(self.data.images, sample.rows), self.transforms[0], sample.weights
        agop = kernel_agop(self.kernel, centres, coef, *at, self.resources)
        return (LayerAgop(agop),)

    def fitted(self, below, coef, learned):
        """Return fitted layers, ``below`` this stage, the kernel, other attributes."""
        [own] = learned
        own = own | {"metric": self.choice}
        kernel = self.kernel._with(**{f"{name}_": own[name] for name in own})
        return below, kernel, {"dual_coef_": coef}

    def outputs(self, images, coef):
        """Return the kernel of images with the centres times coefficients."""
        machine = self.centre_images, self.transforms[0], coef
        return kernel_product(self.kernel, images, *machine, self.resources)


@dataclass(frozen=True, kw_only=True)
class MapModel(Model):
    """Ridge regression with a kernel of the maps behind feature layers."""

    kernel: WholeKernel  # bound to the shape of the maps
    layers: tuple[ConvFeatures, ...]  # bound; none for a kernel of images
    banks: tuple[FilterBank, ...]  # their filters before they take a metric
    sources: tuple[np.random.RandomState, ...]  # of their draws; none after a start
    drawn: tuple[FilterBank, ...]  # with all candidates; none after a start
    others: tuple["MapModel", ...] = ()  # of which one may be chosen in its place
    chosen: tuple = ()  # numbers of the candidates that are kept, of each layer
    maps: tuple[FilterLayer, ...] = ()  # layers under the transforms of a round
    first_scales: tuple = ()  # of a former fit
    scales: tuple = ()  # of the layers that the kernel sees, see `kernel_features`
    centres: np.ndarray | None = None  # features (n, D), of a kernel not linear

    # Measured where learning does not help: see "Held-out rows" in the guide.
    optimism = 0.02

    @property
    def initial_transforms(self):
        """Transforms before anything was learned; None is the identity."""
        return tuple(bank.initial for bank in self.banks)

    @property
    def alternatives(self):
        """Models of which the criterion chooses one in round 0."""
        return replace(self, others=()), *self.others

    @property
    def handicap(self):
        """Part by which its criterion must be lower than those of others."""
        preferred = [layer.options("normalize")[0] for layer in self.layers]
        is_other = [layer.normalize_ for layer in self.layers] != preferred
        return _HANDICAP * is_other

    @property
    def choice(self):
        """The choice for each layer where it is "auto"."""
        return tuple(layer.choice for layer in self.layers)

    def with_pool(self, pool):
        """Return the model with another pool of the last layer."""
        *below, last = self.layers
        return replace(self, layers=(*below, last.with_choice({"pool": pool})))

    @property
    def patch_dims(self):
        """Entries d of a patch of each layer that learns."""
        return tuple(bank.directions.shape[1] for bank in self.banks)

    @property
    def n_coefs(self):
        """Coefficients of an output: one for each feature, or centre."""
        is_linear = self.kernel.is_linear
        return math.prod(self.top.shape) if is_linear else super().n_coefs

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
        kept, banks, passed, moved = [], [], [], False
        for index, features in enumerate(self.layers):
            bank, numbers = self.drawn[index], None
            if moved:
                rng = copy.deepcopy(self.sources[index])
                mirrored = sees_mirrors(self.layers, index)
                images = pass_through(self.data.images, passed)
                parts = images, self.data.lineup, rng, self.resources
                bank = draw_bank(features, *parts, mirrored)
            if features.candidates > 1:
                if chosen is None:
                    numbers = self._most_important(features, bank, passed)
                else:
                    numbers = chosen[index]
                bank, moved = bank.take(numbers), True
            kept.append(numbers)
            banks.append(bank)
            passed.append(bank.under(bank.initial, features))
        return replace(self, chosen=tuple(kept), banks=tuple(banks))

    def _most_important(self, features, bank, passed):
        """Return the numbers of the most important filters of a bank.

        It is on the maps behind the layers that were ``passed``.
        """
        layer = features.pooled_as(self.layers[-1])
        shape = bank.under(bank.initial, layer).shape
        base = self.on_landmarks()
        images = pass_through(base.data.images, passed)
        model = replace(
            base,
            data=replace(base.data, images=images),
            layers=(layer,),
            banks=(bank,),
            first_scales=(),
            # A given bandwidth is that of fewer features.
            kernel=type(self.kernel)().bind(shape),
            moments=None,
        ).with_metric(None)
        path = model.ridge_path(model.design())
        is_grouped = self.data.groups is not None
        criterion = path.loo_loss() if is_grouped else path.gcv()
        coef = path.coefficients_at(path.alphas[np.argmin(criterion)])
        order = np.argsort(-model.importances(coef), kind="stable")
        return np.sort(order[: features.n_filters])

    def with_metric(self, transforms):
        """Return the model under the transforms of a round; None is round 0."""
        base = self.start or self.initial_transforms
        scales = () if transforms else self.first_scales
        transforms = transforms or base
        images, maps, banks, moved = self.data.images, [], [], False
        parts = zip(self.layers, self.banks, transforms, base, strict=True)
        for features, bank, transform, before in parts:
            if moved:  # thresholds and centres are those of the present maps
                where = images, features, self.data.lineup, self.resources
                bank = bank.measured_on(*where)
            maps.append(bank.under(transform, features))
            banks.append(bank)
            images = pass_through(images, maps[-1:])
            moved = moved or transform is not before
        maps, banks, transforms = tuple(maps), tuple(banks), tuple(transforms)
        scales = scales or self._measure_scales(maps)
        model = replace(
            self, maps=maps, banks=banks, transforms=transforms, scales=scales
        )
        if self.kernel.is_linear:
            return model
        centres, kernel = model.features_of(self.centre_images), self.kernel
        if kernel.unmeasured:
            sample = self.bandwidth_sample
            kernel = kernel.measured(centres, sample.weights, sample.rows)
            kernel = kernel.stretched(self.multiple or 1.0)
        return replace(model, kernel=kernel, centres=centres)

    def _measure_scales(self, maps):
        """Return the scales of the layers that the kernel sees; none of one alone."""
        seen, sample = seen_layers(self.layers), self.bandwidth_sample
        if not seen:
            return ()
        images = take(self.centre_images, sample.rows)
        where = SideBySide(maps, seen), images, sample.weights, self.resources
        return unit_scales(*where)

    def stretched(self, multiple):
        """Return the model with another multiple of the median as its bandwidth."""
        kernel = self.kernel.stretched(multiple / (self.multiple or 1.0))
        return replace(self, kernel=kernel, multiple=multiple)

    @property
    def chooses_bandwidth(self):
        """True if the multiple of the median distance is still to be chosen."""
        return self.kernel.unmeasured and self.multiple is None

    def design(self):
        """Return the features of the training images, or those of landmarks."""
        data = replace(self.data, images=self._below(self.data.images))
        if self.landmarks is None:
            return Design(self.top, data, self.resources, self.centres)
        machine = self.top, self.kernel, self.centres, len(data.images)
        return LandmarkDesign(MapColumns(*machine), data, self.resources)

    def ridge_path(self, design):
        """Return the ridge regressions on what `design` returns."""
        if self.landmarks is not None:
            return self._primal_path(design)
        options = self._ridge_options
        if not self.kernel.is_linear:
            matrix = self.kernel.matrix_of(design.kernel_matrix())
            return RidgePath(matrix, *options)
        if self.moments is None and design.wide:  # rows are the smaller side
            return RidgePath(design.kernel_matrix(), *options, design.combine)
        return self._primal_path(design)

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
        readout = self.readout(compress_outputs(coef))
        return tuple(layer_agops(self.maps, readout, *at, self.scales))

    def importances(self, coef):
        """Return the importance of every filter of the one layer, see `importances`."""
        sample, readout = self.agop_sample, self.readout(compress_outputs(coef))
        images = take(self.data.images, sample.rows)
        return importances(self.top, readout, images, sample.weights, self.resources)

    def fitted(self, below, coef, learned):
        """Return the same as `PatchModel.fitted`; there are no stages below."""
        scales = self.scales or [None] * len(self.layers)
        parts = zip(self.layers, self.banks, self.maps, scales, learned, strict=True)
        features = [
            layer.fitted(bank, maps, skip_scale=scale, **own)
            for layer, bank, maps, scale, own in parts
        ]
        if self.kernel.is_linear:
            return features, self.kernel, {"coef_": coef}
        return features, self.kernel, {"dual_coef_": coef, "X_fit_": self.centres}

    def outputs(self, images, coef):
        """Return the outputs of images with these coefficients."""
        images = self._below(images)
        return readout_outputs(self.top, images, self.readout(coef), self.resources)

    @property
    def top(self):
        """The features that the kernel sees, see `kernel_features`."""
        return kernel_features(self.maps, self.scales, self.data.images.shape[1:])[0]

    def features_of(self, images):
        """Return the features of images as the kernel sees them, (n, D)."""
        features = compute_features(self.top, self._below(images), self.resources)
        return features.reshape(len(features), -1)

    def _below(self, images):
        """Return images as the features see them."""
        below = kernel_features(self.maps, self.scales, images.shape[1:])[1]
        return pass_through(images, below)

    def readout(self, coef):
        """Return the readout of the features with these coefficients."""
        if self.kernel.is_linear:
            return LinearReadout(coef)
        return RadialReadout(self.kernel, self.centres, coef)


def sees_mirrors(layers, index):
    """Return True if a layer sees images and their mirrors, and not maps of them."""
    return index == 0 and layers[-1].mirror


def layer_powers(layers, default):
    """Return the power of the AGOP of each layer, None where it does not learn."""
    return [(f.agop_power or default) if f.learn else None for f in layers]


def fitted_transform(kernel):
    """Return the transform of a fitted kernel of patches; None is the identity."""
    transform = kernel.patch_transform_
    # The identity costs nothing as None.
    return None if np.array_equal(transform, np.eye(len(transform))) else transform


def fitted_outputs(kernel, features, images, coef, centres, resources):
    """Return f(x) of a fitted machine, (n, n_outputs) float64, without the intercept.

    Centres are images (n_centres, h, w, c) of a kernel of patches, features
    (n_centres, D) of a kernel of whole maps, or None of a linear kernel.
    """
    maps = [layer.maps_ for layer in features]
    if isinstance(kernel, PatchKernel):
        transform = fitted_transform(kernel)
        images = pass_through(images, maps)
        centres = hold_maps(pass_through(centres, maps), resources)
        return kernel_product(kernel, images, centres, transform, coef, resources)
    top, below = kernel_features(maps, fitted_scales(features), images.shape[1:])
    if kernel.is_linear:
        readout = LinearReadout(coef)
    else:
        readout = RadialReadout(kernel, centres, coef)
    return readout_outputs(top, pass_through(images, below), readout, resources)
