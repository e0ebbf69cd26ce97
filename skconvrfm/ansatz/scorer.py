"""AnsatzScorer: the convolutional neural feature ansatz, verified on any network."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias

import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from .._sklearn_compat import Interval, StrOptions
from .._typing import Channels, Device, Floats, ImageShape, RandomState
from ..compute.devices import resolve_device
from ..compute.parallel import Resources, parallel_resources, working_memory
from ..compute.progress import show_progress
from ..display._learned import learned_layers
from . import batches
from .gradients import AnsatzMeasurement
from .inputs import Reading
from .layers import CORRELATIONS, LearnedMetric, find_layers
from .network import OutputError, frozen, left_alone, run_network, tensors_of
from .report import AnsatzReport, report_rows

Network: TypeAlias = "torch.nn.Module | BaseEstimator"

_POSITIVE = Interval(Integral, 1, None, closed="left")
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
    agop_power : float, default=1.0
        Power of the patch AGOP. The literature has 1 and 1/2, which gives larger
        correlations; the default is the ansatz as first stated for ``W.T @ W``.
    outputs : "all" or int, default="all"
        All outputs of the network, exactly; or that many random directions in their
        place, without bias, whose noise is part of the standard error. Networks with
        no more outputs than that are measured exactly.
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
        Seed of the random directions and of the draw of images. None is a fixed seed.

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
    >>> [(row.name, row.weight_shape, row.n_patches) for row in report]
    [('0', (4, 3, 3, 3), 720), ('2', (6, 4, 3, 3), 80)]
    >>> AnsatzScorer(aggregate="min")(network, X) == float(min(report.correlations()))
    True
    """

    _parameter_constraints: dict = {
        "layers": [StrOptions({"all", "all+linear", "first"}), tuple, list, callable],
        "correlation": [StrOptions(set(CORRELATIONS))],
        "agop_power": [Interval(Real, 0, None, closed="neither")],
        "outputs": [StrOptions({"all"}), _POSITIVE],
        "max_images": [_POSITIVE, None],
        "batch_size": [StrOptions({"auto"}), _POSITIVE],
        "aggregate": [StrOptions({"mean", "min"}), callable],
        "image_shape": [tuple, list, None],
        "channels": [StrOptions({"last", "first"})],
        "device": [str, torch.device],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        *,
        layers: str | Sequence[str] | Callable[[str, torch.nn.Module], bool] = "all",
        correlation: Literal["pearson", "cosine"] = "pearson",
        agop_power: float = 1.0,
        outputs: int | Literal["all"] = "all",
        max_images: int | None = None,
        batch_size: int | Literal["auto"] = "auto",
        aggregate: Literal["mean", "min"] | Callable[[Floats], float] = "mean",
        image_shape: ImageShape = None,
        channels: Channels = "last",
        device: Device = "auto",
        n_jobs: int | None = None,
        random_state: RandomState = None,
    ) -> None:
        self.layers = layers
        self.correlation = correlation
        self.agop_power = agop_power
        self.outputs = outputs
        self.max_images = max_images
        self.batch_size = batch_size
        self.aggregate = aggregate
        self.image_shape = image_shape
        self.channels = channels
        self.device = device
        self.n_jobs = n_jobs
        self.random_state = random_state

    def __call__(self, estimator: Network, X: Any, y: ArrayLike | None = None) -> float:
        """Return the score, as scikit-learn's scorers do.

        It is the aggregate of the correlations of the layers, NaN if none has one;
        larger is better, 1 is proportional. The classes `y` serve to spread
        `max_images` evenly over them; for `estimator` and `X` see :meth:`report`.
        """
        correlations = self._measure(estimator, X, y).correlations()
        if not len(correlations):
            return math.nan
        if callable(self.aggregate):
            return float(self.aggregate(correlations))
        return float(getattr(correlations, self.aggregate)())

    def report(
        self, network: Network, X: Any, *, baseline: Network | None = None
    ) -> AnsatzReport:
        """Measure the correlation of each layer, in the order of their first calls.

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
        baseline : torch.nn.Module or estimator, default=None
            A network with layers of the same names, mostly the untrained one. It sees
            the same batches and directions.
        """
        with show_progress(type(self).__name__, only_bars=True):
            return self._measure(network, X, None, baseline)

    @left_alone()
    def _measure(self, estimator, X, y, baseline=None):
        self._validate_params()
        model, X, is_bare = _open(estimator, X)
        is_network = isinstance(model, torch.nn.Module)
        if is_network and X is None:
            raise TypeError(
                "X=None has no images to put through a network; only ConvRFM "
                "estimators carry their AGOP."
            )
        if baseline is not None:
            baseline, _, _ = _open(baseline)
            if isinstance(baseline, torch.nn.Module) != is_network:
                raise TypeError(
                    f"baseline={type(baseline).__name__} has no torch network; compare "
                    "a network with a network, such as the same one before training."
                    if is_network
                    else f"baseline={type(baseline).__name__} is no ConvRFM estimator, "
                    "but the estimator that it is compared with is one."
                )
        if is_network:
            measured = self._sum_up(model, X, y, is_bare, baseline)
            layers, n_images = measured[0].in_forward_order(), measured[0].sums.n_images
            others = [layer for other in measured[1:] for layer in other.layers]
        else:
            layers, n_images = _metrics(model), None
            others = [] if baseline is None else _metrics(baseline)
        kind, power = self.correlation, self.agop_power
        by_name = {layer.name: layer for layer in others}
        rows = report_rows(layers, by_name, n_images, kind, power)
        return AnsatzReport(rows, correlation=kind, agop_power=power)

    def _sum_up(self, network, X, y, is_bare, baseline):
        """Measure a network, and its baseline if there is one."""
        rng = check_random_state(0 if self.random_state is None else self.random_state)
        options = {"outputs": self.outputs, "seed": int(rng.randint(2**31 - 1))}
        with ExitStack() as stack:
            device = stack.enter_context(frozen(network, self._device(network)))
            everything, layers = self._select_layers(network)
            reading = self._reading(network, is_bare, device)
            ways = batches.open_images(X, y, network, reading, self.max_images, rng)
            images, counts = self._first_pass(network, ways, everything)
            if self.layers == "first":
                layers = [layer for layer in counts if layer.n_dims][:1] or layers[:1]
            place = str(device), reading.dtype, working_memory()
            if {tensor.device.type for tensor in network.parameters()} <= {"cpu"}:
                resources = parallel_resources(*place, self.n_jobs)
            else:  # another process would need a context of its own on the GPU
                resources = Resources(*place)
            n_bytes = sum(counts.values()) * reading.dtype.itemsize
            size, largest = self._batch_sizes(images, n_bytes, resources)
            options |= {"largest": largest, "memory": resources.memory}
            measured = [AnsatzMeasurement(network, layers, **options)]
            if baseline is not None:
                stack.enter_context(frozen(baseline, device))
                by_name, names = find_layers(baseline), [one.name for one in layers]
                same = dict.fromkeys(by_name[one] for one in names if one in by_name)
                options["max_folds"] = 1
                measured.append(AnsatzMeasurement(baseline, list(same), **options))
            total = batches.add_up(measured, images, size, resources)
        for measurement, sums in zip(measured, total, strict=True):
            measurement.set_sums(sums)
        return measured

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
        calls.
        """
        errors = []
        for images in ways:
            try:
                return images, self._count_outputs(network, images, layers)
            except (TypeError, ValueError) as error:
                errors.append(error)
        raise errors[0]

    def _count_outputs(self, network, images, layers):
        counts, first = Counter(), images.first()

        def observe(layer, weight, output):
            counts[layer] += output.numel()

        try:
            with torch.no_grad():
                run_network(network, first, layers, observe)
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
        return counts


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


def _open(estimator, X=None):
    """The network or ConvRFM estimator, X for it, and True if it was passed itself."""
    if isinstance(estimator, torch.nn.Module):
        # The module that torch.compile wrapped: hooks are not for compiled code.
        return getattr(estimator, "_orig_mod", estimator), X, True
    if isinstance(estimator, Pipeline):
        check_is_fitted(estimator)
        earlier, last = estimator[:-1], estimator[-1]
        if len(earlier) and X is not None and not hasattr(last, "learned_layers_"):
            X = earlier.transform(X)
        return *_open(last, X)[:2], False
    if isinstance(estimator, BaseEstimator):
        check_is_fitted(estimator)
    if hasattr(estimator, "learned_layers_"):
        return estimator, X, False
    for attribute in ("module_", "model_"):
        model = getattr(estimator, attribute, None)
        if isinstance(model, torch.nn.Module):
            return getattr(model, "_orig_mod", model), X, False
    inner = _inner_estimator(estimator)
    if inner is not None:
        return *_open(inner, X)[:2], False
    raise TypeError(
        f"{type(estimator).__name__} has no network to look into: pass a "
        "torch.nn.Module, a fitted estimator with one as module_ or model_, a fitted "
        "ConvRFM estimator, or a pipeline or a search (with refit=True) that has one."
    )


def _inner_estimator(estimator):
    """The one fitted estimator in another that passes X on to it, or None."""
    kind = type(estimator).__name__
    if hasattr(estimator, "best_estimator_"):
        return estimator.best_estimator_
    if hasattr(estimator, "transform"):  # its estimator may see another X
        return None
    for attribute in ("estimator_", "regressor_"):
        if hasattr(estimator, attribute):
            return getattr(estimator, attribute)
    for attribute in ("calibrated_classifiers_", "estimators_"):
        inner = getattr(estimator, attribute, ())
        if len(inner) > 1:
            raise TypeError(
                f"{kind} has {len(inner)} fitted estimators in {attribute}, which may "
                "have networks that differ: pass one of them."
            )
        if len(inner) == 1:
            return inner[0]
    is_shell = kind in ("FrozenEstimator", "_CalibratedClassifier")
    return estimator.estimator if is_shell else None


def _metrics(estimator):
    """The layers of a ConvRFM estimator that learned a metric."""
    kind, layers = type(estimator).__name__, learned_layers(estimator)
    return [LearnedMetric(f"layer {i}", kind, one) for i, one in enumerate(layers)]
