"""Recipes: kernel, feature layers and options from which models of data are made."""

import copy
import itertools
import math
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
from sklearn.base import clone

from ..compute.images import held
from ..compute.parallel import Resources
from ..compute.sampling import bandwidth_draws
from ..features.filters import draw_bank, drawn_moments
from ..features.layer import ConvFeatures
from ..features.maps import pass_through
from ..features.skips import kernel_features, seen_layers
from ..kernels.base import PatchKernel
from ..kernels.whole import BANDWIDTH_IMAGES, WholeKernel
from .models import MapModel, PatchModel, sees_mirrors
from .primal import Moments
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
    landmarks: int | None  # centres of a machine that is not linear; None is all
    resources: Resources
    rng: np.random.RandomState  # source of the filters
    scale: float = 1.0  # that images are divided by
    start: "Start | None" = None  # former fit to go on from
    moments: Moments | None = None  # of rows that are gone, in place of the data's
    choices: tuple = ()  # of each stage, what was chosen before where it is "auto"
    multiple: float | None = None  # of the median distance, a bandwidth chosen before
    held: TrainingSet | None = None  # landmarks drawn before
    covariance_bytes: int = 0  # that the covariance of a solution may take

    @property
    def n_stages(self):
        """Number of models that are fitted one upon the other, as in Deep ConvRFM."""
        return 1 if isinstance(self.kernel, WholeKernel) else 1 + len(self.features)

    def has_landmarks(self, data):
        """Return True unless all images are centres, or none."""
        # One row less than all would leave no degree of freedom.
        enough = len(data.images) - 1
        return not self.kernel.is_linear and (self.landmarks or enough) < enough

    def landmarks_of(self, data):
        """Return the landmarks, a `TrainingSet`, or None."""
        if self.held is not None:
            return self.held
        if not self.has_landmarks(data):
            return None
        return self._draw_landmarks(data)

    def with_held(self, data):
        """Return the recipe with landmarks of these images, also if that are all."""
        if self.kernel.is_linear or self.held is not None:
            return self
        return replace(self, held=self._draw_landmarks(data))

    def _draw_landmarks(self, data):
        landmarks = data.draw_once(self.landmarks)
        return replace(landmarks, images=held(landmarks.images))

    def model(self, data, held_out=None, landmarks=None, stage=0):
        """Return the model of a stage on the images, or maps, that it sees."""
        common = {"data": data, "held_out": held_out, "alphas": self.alphas}
        common |= {"landmarks": landmarks, "moments": self.moments}
        common["resources"] = self.resources
        common["covariance_bytes"] = self.covariance_bytes
        if isinstance(self.kernel, WholeKernel):
            first, *others = self._map_models(common)
            return replace(first, others=tuple(others))
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
        if metric == "auto" and self.choices:
            metric = self.choices[stage]
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
            agop_draws=self._agop_draws(data, layer, _KERNEL_AGOP_PATCHES),
            bandwidth_draws=bandwidth_draws(layer.n_locations),
            **common,
        )

    def _map_models(self, common):
        """Return a model for each choice of what is "auto", with equal draws."""
        if self.choices or not self.features:
            return [self._map_model(common, *self.choices)]
        options = [layer.options("normalize") for layer in self.features]
        models, pools = [], self.features[-1].options("pool")
        for floors in itertools.product(*options):
            model = self._map_model(common, [{"normalize": floor} for floor in floors])
            models += [model.with_pool(pool) for pool in pools]
        return models

    def _map_model(self, common, choice=()):
        """Return the model whose kernel compares the maps behind all layers."""
        data, layers, banks, images = common["data"], [], [], common["data"].images
        sources, drawn, rng = [], [], copy.deepcopy(self.rng)
        for index, features in enumerate(self.features):
            layer = features.bind(images.shape[1:]).with_choice(choice[index])
            if self.start is None:
                sources.append(copy.deepcopy(rng))
                mirrored = sees_mirrors(self.features, index)
                parts = images, data.lineup, rng, self.resources
                drawn.append(draw_bank(layer, *parts, mirrored))
                # Candidates are in the order of their classes.
                bank = drawn[index].take(slice(None, None, layer.candidates))
                transform = bank.initial
            else:
                bank, transform = self.start.banks[index], self.start.transforms[index]
                if index and self.start.refined:
                    parts = images, layer, data.lineup, self.resources
                    bank = bank.measured_on(*parts)
            layers.append(layer)
            banks.append(bank)
            images = pass_through(images, [bank.under(transform, layer)])
        maps = images.layers if layers else ()
        scales, shape = seen_layers(layers), data.images.shape[1:]
        top, _ = kernel_features(maps, scales, shape)
        first = layers[0].layer_ if layers else top.layer
        return MapModel(
            kernel=self.kernel.bind(top.shape),
            layers=tuple(layers),
            banks=tuple(banks),
            sources=tuple(sources),
            drawn=tuple(drawn),
            multiple=self.multiple,
            start=None if self.start is None else self.start.transforms,
            first_scales=() if self.start is None else self.start.scales,
            agop_draws=self._agop_draws(data, first, _FEATURE_AGOP_PATCHES),
            bandwidth_draws=BANDWIDTH_IMAGES,
            **common,
        )

    def summed(self, model, moments):
        """Return the recipe for a model of which only sums over the rows are left."""
        start = Start(model.transforms, model.banks, scales=model.scales)
        chosen = {"choices": (model.choice,), "multiple": model.multiple}
        return replace(self, start=start, moments=moments, **chosen)

    def _agop_draws(self, data, layer, auto_patches):
        """Return the number of draws of the images that carry the AGOP."""
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
        return samples


@dataclass(frozen=True)
class Start:
    """Metrics and filters of a former fit."""

    transforms: tuple  # of each layer that learns
    banks: tuple = ()  # of each feature layer
    refined: bool = False  # after the banks were drawn, so that maps have moved
    scales: tuple = ()  # of the layers that the kernel sees, see `kernel_features`
