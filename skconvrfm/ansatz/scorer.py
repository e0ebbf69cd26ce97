"""AnsatzScorer: the convolutional neural feature ansatz, verified on any network."""

from __future__ import annotations

import copy
import difflib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from numbers import Integral, Real
from time import perf_counter
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from .._sklearn_compat import Interval, StrOptions
from .._typing import Channels, Device, Floats, ImageShape, RandomState
from ..compute.devices import resolve_device
from ..compute.parallel import Resources, parallel_resources, working_memory
from ..compute.progress import in_words, show_progress
from ..compute.warn import warn_caller
from . import batches
from .baselines import STATISTICS_IMAGES, estimate_statistics, reinitialised
from .gradients import AnsatzMeasurement
from .inputs import Reading
from .layers import AnsatzSums, MeasuredLayer, find_layers
from .matrices import CORRELATIONS
from .network import (
    OutputError,
    frozen,
    left_alone,
    n_rows,
    run_network,
    tensors_of,
)
from .opening import learned_metrics, named, open_estimator
from .report import AnsatzReport
from .statistics import correlation, report_rows

Network: TypeAlias = "torch.nn.Module | BaseEstimator"

_POSITIVE = Interval(Integral, 1, None, closed="left")
_DIRECTIONS = 64  # of outputs="auto"
# Backward passes of one image from which on the time is worth a measurement, and
# predicted seconds from which on a report is announced.
_MANY_PASSES, _LONG_REPORT = 500, 120
_EMBEDDINGS = (torch.nn.Embedding, torch.nn.EmbeddingBag)
# Tensors that autograd keeps for each output of a layer: itself, normalised, rectified,
# and one more for a shortcut.
_KEPT_PER_OUTPUT = 4


class AnsatzScorer(BaseEstimator):
    """Correlation of filter covariance and patch AGOP: the neural feature ansatz.

    In trained convolutional networks the covariance ``W.T @ W`` of the filters of a
    layer is nearly proportional to the patch AGOP of its input: the outer product of
    the gradients with respect to its patches, summed over outputs and locations and
    averaged over images (Beaglehole, Radhakrishnan, Pandit, Belkin, arXiv:2309.00570).
    The scorer measures, on any torch network, how nearly. It can be called as a
    scikit-learn scorer; :meth:`report` has a row for each layer.
    :class:`skconvrfm.ConvRFMClassifier` makes the ansatz its algorithm.

    Parameters
    ----------
    layers : {"all", "all+linear", "first"}, list of str or callable, default="all"
        All convolutions; linear layers as well, with their whole input as the patch;
        the convolution called first; layers by name, or by ``layers(name, module)``.
    correlation : {"pearson", "cosine"}, default="pearson"
        Over the entries of the two matrices, with their means taken off first or not;
        of all groups together, without the zeros between them.
    agop_power : float or tuple of float, default=1.0
        Power of the patch AGOP. The literature has 1 and 1/2, which gives larger
        correlations; the default is the ansatz as first stated for ``W.T @ W``. Several
        are measured in one pass, for :meth:`report`.
    baseline : None, "reinitialised", module or estimator, default=None
        What the correlations are compared with: the same network with weights that its
        modules draw anew by their ``reset_parameters``, statistics of batch norm being
        those of the images; or another one with layers of the same names, such as the
        network before its training. Baselines see the same images and directions.
    n_baselines : int, default=3
        Networks that ``baseline="reinitialised"`` draws: their spread is part of the
        standard error of a lift.
    outputs : "auto", "all" or int, default="auto"
        Random directions that stand for the outputs of the network, without bias and
        with noise that is part of the standard error; 64 with ``"auto"``. Networks with
        no more outputs than that are measured exactly, with ``"all"`` any.
    max_images : int, default=None
        Images to measure: of arrays, tensors and datasets a draw even over the classes
        of `y`, of other iterables the first. None takes all; a few hundred mostly give
        the third digit.
    batch_size : "auto" or int, default="auto"
        Images in one pass, to which larger batches of an iterable are split.
        ``"auto"`` is what the ``working_memory`` of :func:`sklearn.get_config` lets
        in, and at most a tenth of an array, for the standard error.
    aggregate : {"mean", "min"} or callable, default="mean"
        Reduction of the correlations of the layers that have one to the score; a
        callable gets them as an array.
    image_shape : tuple of int, default=None
        ``(h, w)`` or ``(h, w, c)``, in this order for either value of `channels`.
        Needed for images in flat rows only.
    channels : {"last", "first"}, default="last"
        Layout of images in arrays, (n, h, w, c) or (n, c, h, w), and of their flat
        rows. Torch batches, and the X of an estimator, are as the network takes them.
    device : str, default="auto"
        ``"auto"`` is where the network is; it is moved to any other, and back.
    n_jobs : int, default=None
        Tasks that share the batches, through joblib, each with a copy of the network,
        if it is not on a GPU. None is 1 unless in a :obj:`joblib.parallel_config`
        context; one task uses the threads of torch. Results do not depend on it.
    random_state : int, RandomState instance or None, default=None
        Seed of random directions, baselines and the draw of images. None is fixed.
    verbose : bool, default=False
        Print the progress of reports that take more than some seconds, with the time
        that is left. On a terminal there is a bar in any case where rich is installed.

    Notes
    -----
    The network is measured in evaluation mode (no dropout, running statistics in batch
    norm, half precision in float32) and left as it was found: modes, gradients, hooks,
    buffers, device. Random states are put back as well. If the
    output for an image depends on the others of its batch even then, as with batch norm
    without running statistics, the score depends on the batches.

    Pixels are taken as they are, uint8 as 0 to 255: scale and normalise them as in the
    training of the network.

    Examples
    --------
    >>> import numpy as np
    >>> from torch.nn import Conv2d, ReLU, Sequential
    >>> from skconvrfm import AnsatzScorer
    >>> X = np.random.default_rng(0).normal(size=(20, 8, 8, 3))
    >>> network = Sequential(Conv2d(3, 4, 3), ReLU(), Conv2d(4, 6, 3, stride=2))
    >>> report = AnsatzScorer().report(network, X)
    >>> [(row.name, row.kind, row.shape, row.n_patches) for row in report]
    [('0', 'full', (4, 3, 3, 3), 720), ('2', 'full', (6, 4, 3, 3), 80)]
    >>> AnsatzScorer(aggregate="min")(network, X) == float(min(report.correlations()))
    True
    """

    _parameter_constraints: dict = {
        "layers": [StrOptions({"all", "all+linear", "first"}), tuple, list, callable],
        "correlation": [StrOptions(set(CORRELATIONS))],
        "agop_power": [Interval(Real, 0, None, closed="neither"), tuple, list],
        "baseline": [
            StrOptions({"reinitialised"}),
            torch.nn.Module,
            BaseEstimator,
            None,
        ],
        "n_baselines": [_POSITIVE],
        "outputs": [StrOptions({"all", "auto"}), _POSITIVE],
        "max_images": [_POSITIVE, None],
        "batch_size": [StrOptions({"auto"}), _POSITIVE],
        "aggregate": [StrOptions({"mean", "min"}), callable],
        "image_shape": [tuple, list, None],
        "channels": [StrOptions({"last", "first"})],
        "device": [str, torch.device],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
        "verbose": ["boolean"],
    }

    def __init__(
        self,
        *,
        layers: str | Sequence[str] | Callable[[str, torch.nn.Module], bool] = "all",
        correlation: Literal["pearson", "cosine"] = "pearson",
        agop_power: float | Sequence[float] = 1.0,
        baseline: Network | Literal["reinitialised"] | None = None,
        n_baselines: int = 3,
        outputs: int | Literal["auto", "all"] = "auto",
        max_images: int | None = None,
        batch_size: int | Literal["auto"] = "auto",
        aggregate: Literal["mean", "min"] | Callable[[Floats], float] = "mean",
        image_shape: ImageShape = None,
        channels: Channels = "last",
        device: Device = "auto",
        n_jobs: int | None = None,
        random_state: RandomState = None,
        verbose: bool = False,
    ) -> None:
        self.layers = layers
        self.correlation = correlation
        self.agop_power = agop_power
        self.baseline = baseline
        self.n_baselines = n_baselines
        self.outputs = outputs
        self.max_images = max_images
        self.batch_size = batch_size
        self.aggregate = aggregate
        self.image_shape = image_shape
        self.channels = channels
        self.device = device
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def __call__(self, estimator: Network, X: Any, y: ArrayLike | None = None) -> float:
        """Return the score, as scikit-learn's scorers do.

        It is the aggregate of the correlations of the layers, NaN if none has one;
        larger is better, 1 is proportional. The classes `y` serve to spread
        `max_images` evenly over them; for `estimator` and `X` see :meth:`report`.
        """
        if np.ndim(self.agop_power):
            raise ValueError(
                f"agop_power={self.agop_power!r} has no one score: take one of them, "
                "or report(network, X)."
            )
        self._validate_params()
        layers, *_ = self._measure(estimator, X, y, None)
        kind, [power] = self.correlation, self._powers()
        found = [correlation(layer, kind, power) for layer in layers]
        correlations = np.array([one for one in found if math.isfinite(one)])
        if not len(correlations):
            return math.nan
        if callable(self.aggregate):
            return float(self.aggregate(correlations))
        return float(getattr(correlations, self.aggregate)())

    def report(self, network: Network, X: Any) -> AnsatzReport:
        """Measure the correlation of each layer, in the order of their first calls.

        A measurement of more than two minutes is announced by a warning. Interrupted
        (Ctrl-C), it gives the report of the batches that were done, with a warning too,
        unless they are shared out by `n_jobs`.

        Parameters
        ----------
        network : torch.nn.Module or estimator
            A network; a fitted estimator that has one as ``module_`` (skorch) or
            ``model_``; a fitted ConvRFM estimator, whose patch metric then stands in
            for the filter covariance; a pipeline that ends in one of these, or a search
            or another estimator that has fitted just one of them.
        X : array-like, tensor, dict, dataset or iterable
            Images (n, h, w, c), or as `channels` and `image_shape` say; (n, h, w) for
            one channel; with one or three axes in place of (h, w) for networks of
            Conv1d or Conv3d. For an estimator, whatever its network takes. A torch
            tensor, or a dict of arrays, is a batch as the network takes it. Datasets,
            lists, DataLoaders and other iterables give batches or single images, alone
            or in tuples, lists or dicts with labels, which are left out. None for
            ConvRFM estimators, which carry their AGOP.
        """
        self._validate_params()
        kind, powers = self.correlation, self._powers()
        with show_progress(type(self).__name__, only_bars=not self.verbose):
            measured = self._measure(network, X, None, self.baseline)
        layers, others, n_images, outputs = measured
        drifts = bool(others) and self.baseline != "reinitialised"
        rows = report_rows(layers, others, n_images, kind, powers, drifts)
        seen = [layer for layer in layers if layer.sums.moments]
        return AnsatzReport(
            rows,
            correlation=kind,
            agop_power=powers if len(powers) > 1 else powers[0],
            outputs=outputs,
            layers={layer.name: layer.matrices(n_images) for layer in seen},
        )

    @left_alone()
    def _measure(self, estimator, X, y, baseline):
        """Return the layers, those of baselines by name, images, outputs in words."""
        model, X, is_bare = open_estimator(estimator, X)
        if not isinstance(model, torch.nn.Module):
            others = self._other_metrics(model, baseline)
            return learned_metrics(model), others, None, "as in the fit"
        if X is None:
            raise TypeError(
                "X=None has no images to put through a network; only ConvRFM "
                "estimators carry their AGOP."
            )
        measured, n_outputs = self._sum_up(model, X, y, is_bare, baseline)
        first, *others = measured
        by_name = [{layer.name: layer for layer in other.layers} for other in others]
        words, n_directions = "all outputs", self._n_directions(n_outputs)
        if n_directions < n_outputs:
            words = f"{n_directions} random directions of {n_outputs} outputs"
        return first.in_forward_order(), by_name, first.sums.n_images, words

    def _powers(self):
        """The powers of the AGOP, a tuple of float."""
        powers = tuple(np.atleast_1d(self.agop_power).tolist())
        if not powers or not all(
            isinstance(one, Real) and 0 < one < math.inf for one in powers
        ):
            raise ValueError(
                f"agop_power={self.agop_power!r} must be a positive number, or several."
            )
        return tuple(map(float, powers))

    def _n_directions(self, n_outputs):
        """Backward passes for an image: of outputs, or random directions."""
        if self.outputs == "all":
            return n_outputs
        return min(n_outputs, _DIRECTIONS if self.outputs == "auto" else self.outputs)

    def _other_metrics(self, model, baseline):
        """The layers of a baseline of a ConvRFM estimator by name, in a list."""
        if baseline is None:
            return []
        other = None if isinstance(baseline, str) else open_estimator(baseline)[0]
        if other is None or isinstance(other, torch.nn.Module):
            raise TypeError(
                f"baseline={named(baseline)} is no ConvRFM estimator, but the "
                f"{type(model).__name__} that it is compared with is one."
            )
        return [{layer.name: layer for layer in learned_metrics(other)}]

    def _baselines(self, network, baseline, rng):
        """The networks of the baseline, a list."""
        if baseline is None:
            return []
        if isinstance(baseline, str):
            seeds = [int(rng.randint(2**31 - 1)) for _ in range(self.n_baselines)]
            return reinitialised(network, seeds)
        other = open_estimator(baseline)[0]
        if not isinstance(other, torch.nn.Module):
            raise TypeError(
                f"baseline={named(baseline)} has no torch network; compare a network "
                "with a network, such as the same one before training."
            )
        return [other]

    def _sum_up(self, network, X, y, is_bare, baseline):
        """Return the measurements of network and baselines, and number of outputs."""
        rng = check_random_state(0 if self.random_state is None else self.random_state)
        options = {"seed": int(rng.randint(2**31 - 1))}
        with ExitStack() as stack:
            others = self._baselines(network, baseline, copy.deepcopy(rng))
            device = stack.enter_context(frozen(network, self._device(network)))
            everything, layers = self._select_layers(network)
            reading = self._reading(network, is_bare, device)
            ways = batches.open_images(X, y, network, reading, self.max_images, rng)
            images, counts, n_outputs = self._first_pass(network, ways, everything)
            if self.layers == "first":
                layers = [layer for layer in counts if layer.n_dims][:1] or layers[:1]
            place = str(device), reading.dtype, working_memory()
            if {tensor.device.type for tensor in network.parameters()} <= {"cpu"}:
                resources = parallel_resources(*place, self.n_jobs)
            else:  # another process would need a context of its own on the GPU
                resources = Resources(*place)
            n_bytes = sum(counts.values()) * reading.dtype.itemsize
            size, largest = self._batch_sizes(images, n_bytes, resources)
            options |= {"largest": largest, "outputs": self._n_directions(n_outputs)}
            options["memory"] = resources.memory // (1 + len(others))
            measured = [AnsatzMeasurement(network, layers, **options)]
            options["max_folds"] = measured[0].n_folds  # the same blocks of images
            for other in others:
                stack.enter_context(frozen(other, device))
                if baseline == "reinitialised":
                    # Without gradients; of few images variances would be too small.
                    fits = max(2, resources.memory // (2 * max(1, n_bytes)))
                    sample = images.sample(STATISTICS_IMAGES, fits)
                    estimate_statistics(other, sample)
                by_name, names = find_layers(other), [one.name for one in layers]
                same = dict.fromkeys(by_name[one] for one in names if one in by_name)
                measured.append(AnsatzMeasurement(other, list(same), **options))
            self._announce(measured, images, size, resources.n_workers)
            total = batches.add_up(measured, images, size, resources)
        for measurement, sums in zip(measured, total, strict=True):
            measurement.set_sums(sums)
        return measured, n_outputs

    def _announce(self, measured, images, size, n_workers):
        """Warn before a measurement that takes more than some minutes."""
        n_directions = measured[0].outputs
        n_passes = (images.n_images or 0) * n_directions * len(measured)
        if n_passes < _MANY_PASSES:
            return
        batch = next(iter(images.sample(size, size)))
        first, several = (_seconds(measured[0], batch, n) for n in (1, 3))
        each = max(0.0, several - first) / 2  # the rest is the forward pass
        n_batches = math.ceil(images.n_images / n_rows(batch)) * len(measured)
        seconds = n_batches * (first + (n_directions - 1) * each) / n_workers
        if seconds > _LONG_REPORT:
            warn_caller(
                f"the report will take about {in_words(seconds)}: {images.n_images} "
                f"images, {n_directions} directions of outputs, networks: "
                f"{len(measured)}. Take fewer by max_images, outputs or n_baselines."
            )

    def _batch_sizes(self, images, n_bytes, resources):
        """Images of a batch, and as many of them as a worker has memory for."""
        # The first, which folds and directions go by, does not depend on the workers.
        if self.batch_size != "auto":
            return self.batch_size, None
        # The other half is for gradients.
        kept = 2 * max(1, _KEPT_PER_OUTPUT * n_bytes)
        largest = max(1, min(resources.memory // kept, images.largest))
        return largest, max(1, resources.one_worker().memory // kept)

    def _device(self, network):
        """The device to move the network to, None to leave it where it is."""
        if self.device == "auto":
            return None
        devices = {tensor.device for tensor in network.parameters()}
        if len(devices) > 1:
            raise ValueError(
                f"device={self.device!r} cannot be used for a network that is spread "
                f"over {sorted(map(str, devices))}; use device='auto'."
            )
        return resolve_device(self.device)

    def _reading(self, network, is_bare, device):
        """The `Reading` of images as inputs of the network."""
        dtypes = (p.dtype for p in network.parameters() if p.is_floating_point())
        layers = find_layers(network).values()
        return Reading(
            next(dtypes, torch.float32),
            device,
            n_dims=next((layer.n_dims for layer in layers if layer.n_dims), None),
            lays_out=is_bare or self.image_shape is not None,
            is_text=any(isinstance(one, _EMBEDDINGS) for one in network.modules()),
            image_shape=self.image_shape,
            channels=self.channels,
        )

    def _select_layers(self, network):
        """All layers of the network, and those asked for."""
        by_name = find_layers(network)
        everything = list(dict.fromkeys(by_name.values()))
        convolutions = [layer for layer in everything if layer.n_dims]
        chosen = self.layers
        if isinstance(chosen, (list, tuple)):
            for name in (one for one in chosen if one not in by_name):
                near = difflib.get_close_matches(str(name), by_name, n=3, cutoff=0)
                raise ValueError(
                    f"layers={list(chosen)!r}: there is no convolution or linear layer "
                    f"{name!r}; near are {near}, and print(network) shows all."
                )
            layers = list(dict.fromkeys(map(by_name.get, chosen)))
        elif callable(chosen):
            layers = [one for one in everything if chosen(one.name, one.modules[0])]
        else:
            layers = everything if chosen == "all+linear" else convolutions
        if not layers:
            raise ValueError(
                f"layers={chosen!r} finds no layer in {type(network).__name__}, "
                f"which has {len(convolutions)} convolutions and "
                f"{len(everything) - len(convolutions)} linear layers: "
                f"{_layers_remedy(network)}."
            )
        for layer in layers:
            if layer.sums.weight.is_complex():
                raise TypeError(
                    f"Layer {layer.name!r} has complex weights, which cannot be "
                    "measured: leave it out with layers=[...]."
                )
        return everything, layers

    def _first_pass(self, network, ways, layers):
        """The way in which the network takes the images, and sizes of its layers.

        These are the elements that layers put out for an image, in the order of first
        calls; and the number of outputs of the network.
        """
        errors = []
        for images in ways:
            try:
                return images, *self._count_outputs(network, images, layers)
            except (TypeError, ValueError) as error:
                errors.append(error)
        raise errors[0]

    def _count_outputs(self, network, images, layers):
        counts, first = Counter(), images.first()

        def observe(layer, weight, n_patches, output):
            counts[layer] += output.numel()

        try:
            with torch.no_grad():
                outputs = run_network(network, first, layers, observe)
        except OutputError:
            raise
        except Exception as error:
            shapes = [tuple(tensor.shape) for tensor in tensors_of(first)]
            raise ValueError(
                f"X cannot be put through {type(network).__name__}: a batch of shape "
                f"{', '.join(map(str, shapes))} raised {type(error).__name__}: "
                f"{str(error).rstrip('. ')}. "
                f"{images.remedy()}"
            ) from error
        return counts, outputs.shape[1]


def _seconds(measurement, batch, n_directions):
    """Return the seconds that a batch takes with so many directions."""
    # Layers of its own, whose sums nobody needs.
    layers = [MeasuredLayer(one.name, one.modules[0]) for one in measurement.layers]
    trial = replace(
        measurement, layers=layers, outputs=n_directions, sums=AnsatzSums(0, {})
    )
    seconds = []
    for _ in range(2):  # the second is as fast as those that follow
        begun = perf_counter()
        trial.add(batch, 0)
        seconds.append(perf_counter() - begun)
    return min(seconds)


def _layers_remedy(network):
    """Return what may help where no layers are found."""
    for module in network.modules():
        if isinstance(module, torch.jit.ScriptModule):
            return "pass it as it was before torch.jit, which hides the layers"
        if "quantized" in type(module).__module__:
            return "pass it as it was before quantisation, which leaves no gradients"
    return (
        "layers='all+linear' takes in linear layers; functional and exported ones "
        "are not found"
    )
