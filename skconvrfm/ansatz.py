"""The convolutional neural feature ansatz, verified on any network.

The ansatz: in a trained network the covariance of a layer's filters is proportional to
the average outer product of the gradients with respect to the layer's patches (the
patch AGOP). :class:`AnsatzScorer` measures their correlation; ``python -m
skconvrfm.ansatz`` does so from the command line.
"""

from __future__ import annotations

import difflib
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted

from ._typing import Channels, Device, Floats, ImageShape, RandomState
from .core.blocks import (
    SUM_TASKS,
    Resources,
    image_blocks,
    parallel_resources,
    run_in_turn,
    spans,
    sum_tasks,
    working_memory,
)
from .core.cnfa import (
    CORRELATIONS,
    KEPT_PER_OUTPUT,
    MAX_FOLDS,
    AnsatzMeasurement,
    FilterSpace,
    OutputError,
    correlate,
    count_outputs,
    covariance_correlation,
    find_layers,
    frozen,
    measure_batches,
)
from .core.devices import resolve_device
from .core.images import to_tensor
from .core.sampling import systematic_sample
from .display import AnsatzDisplay
from .kernels import as_numpy

if TYPE_CHECKING:
    import pandas

__all__ = ["AnsatzReport", "AnsatzScorer", "LayerReport"]

# Seconds after which a report shows a progress bar.
LONG_RUN = 5.0


@dataclass(frozen=True)
class LayerReport:
    """What was measured for one layer: a row of an :class:`AnsatzReport`.

    Parameters
    ----------
    name : str
        Name of the layer in the network.
    kind : str
        Class of the layer, for instance ``"Conv2d"``.
    weight_shape : tuple of int
        Shape of its weight, (filters, channels / groups, *kernel*); of the patch
        metric, (d, d), for a ConvRFM estimator.
    stride : tuple of int
        Stride in each dimension; empty for a layer that has none.
    groups : int
        Groups of the convolution.
    n_images : int or None
        Images measured; None for a ConvRFM estimator, which chose them in its fit.
    n_patches : int or None
        Patches seen: locations × calls × images.
    correlation : float
        Correlation of filter covariance and patch AGOP; NaN if there is none.
    standard_error : float
        Standard error of `correlation`, from the spread over batches; NaN where there
        is one batch only.
    baseline_correlation : float
        The same correlation for the baseline's own filters and AGOP.
    baseline_drift : float
        Correlation of the baseline's filter covariance with that of the network.
    reason : str
        Why `correlation` is NaN; empty if it is not.

    Examples
    --------
    >>> from skconvrfm.ansatz import LayerReport
    >>> row = LayerReport("conv1", "Conv2d", (8, 3, 3, 3), (1, 1), correlation=0.9)
    >>> row.groups, row.reason
    (1, '')
    """

    name: str
    kind: str
    weight_shape: tuple
    stride: tuple = ()
    groups: int = 1
    n_images: int | None = None
    n_patches: int | None = None
    correlation: float = math.nan
    standard_error: float = math.nan
    baseline_correlation: float = math.nan
    baseline_drift: float = math.nan
    reason: str = field(default="")


class AnsatzReport(Sequence[LayerReport]):
    """The correlations of all layers of a network, a sequence of rows.

    Printed, it is a table.

    Parameters
    ----------
    rows : sequence of LayerReport
        One row a layer, in the order in which the network calls them.
    correlation : {"pearson", "cosine"}
        Which correlation the rows have.
    agop_power : float
        The power of the patch AGOP in it.

    See Also
    --------
    AnsatzScorer.report : Makes one.

    Examples
    --------
    >>> from skconvrfm.ansatz import AnsatzReport, LayerReport
    >>> report = AnsatzReport(
    ...     [LayerReport("conv1", "Conv2d", (8, 3, 3, 3), correlation=0.9)],
    ...     correlation="pearson",
    ...     agop_power=1.0,
    ... )
    >>> len(report), report[0].correlation
    (1, 0.9)
    >>> print(report)
    Pearson correlation of filter covariance and patch AGOP
    <BLANKLINE>
    layer  kind    weight         patches  correlation  baseline  drift
    -----  ------  -------------  -------  -----------  --------  -----
    conv1  Conv2d  8 x 3 x 3 x 3        -        0.900         -      -
    mean                                         0.900         -      -
    """

    def __init__(
        self,
        rows: Iterable[LayerReport],
        *,
        correlation: Literal["pearson", "cosine"],
        agop_power: float,
    ) -> None:
        self._rows = tuple(rows)
        self.correlation = correlation
        self.agop_power = agop_power

    @overload
    def __getitem__(self, index: int) -> LayerReport: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[LayerReport, ...]: ...

    def __getitem__(self, index):
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self):
        return (
            f"<AnsatzReport of {len(self)} layers, correlation={self.correlation!r}, "
            f"agop_power={self.agop_power!r}>"
        )

    def __str__(self):
        columns = ("correlation", "baseline", "drift")
        header = ("layer", "kind", "weight", "patches", *columns)
        lines = [_cells(row) for row in self]
        means = (_finite_mean(self, name) for name in _NUMBERS)
        lines.append(("mean", "", "", "", *map(_number, means)))
        power = "" if self.agop_power == 1 else f" to the power {self.agop_power:g}"
        title = (
            f"{self.correlation.capitalize()} correlation of filter covariance and "
            f"patch AGOP{power}"
        )
        notes = [f"{row.name}: {row.reason}" for row in self if row.reason]
        return "\n".join([title, "", *_aligned(header, lines), *notes])

    def correlations(self) -> Floats:
        """The correlations that are defined.

        Returns
        -------
        ndarray of shape (n,), float64
            In the order of the rows, without NaN.
        """
        values = np.array([row.correlation for row in self], dtype=np.float64)
        return values[np.isfinite(values)]

    def to_frame(self) -> pandas.DataFrame:
        """The report as a data frame.

        Returns
        -------
        pandas.DataFrame
            One row a layer, with the attributes of :class:`LayerReport` as columns.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "AnsatzReport.to_frame needs pandas. Install it with `pip install "
                "pandas`."
            ) from error
        columns = [column.name for column in fields(LayerReport)]
        return pd.DataFrame([asdict(row) for row in self], columns=columns)

    def plot(self, ax: Any = None) -> AnsatzDisplay:
        """Draw the correlations, layers along x.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; by default in a new figure.

        Returns
        -------
        AnsatzDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        return AnsatzDisplay.from_report(self, ax=ax)


# What the last columns of the table show.
_NUMBERS = ("correlation", "baseline_correlation", "baseline_drift")


def _finite_mean(rows, name):
    """Mean of an attribute of the rows over those that have it, NaN if none has."""
    values = [value for row in rows if math.isfinite(value := getattr(row, name))]
    return sum(values) / len(values) if values else math.nan


def _cells(row):
    """A row of the table as text."""
    correlation = _number(row.correlation)
    if math.isfinite(row.standard_error):
        correlation += f" ± {row.standard_error:.3f}"
    return (
        row.name,
        row.kind,
        " x ".join(map(str, row.weight_shape)),
        "-" if row.n_patches is None else str(row.n_patches),
        correlation,
        _number(row.baseline_correlation),
        _number(row.baseline_drift),
    )


def _number(value):
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _aligned(header, lines, n_text_columns=3):
    """Lines of a table: first columns of text, then numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    for cells in (header, rule, *lines):
        padded = [
            cell.ljust(width) if number < n_text_columns else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        yield "  ".join(padded).rstrip()


def _silently(steps, total):
    """Pass steps on."""
    return steps


class AnsatzScorer(BaseEstimator):
    """Correlation of filter covariance and patch AGOP: the neural feature ansatz.

    In trained convolutional networks the covariance ``W.T @ W`` of the filters of a
    layer is nearly proportional to the patch AGOP of its input: the outer product of
    the gradients with respect to its patches, summed over outputs and locations and
    averaged over images. The scorer measures, on any torch network, how nearly. It can
    be called as a scikit-learn scorer, and :meth:`report` has a row for each layer.

    Parameters
    ----------
    layers : {"all", "all+linear", "first"}, list of str or callable, default="all"
        All convolutions; linear layers as well, with their whole input as the patch;
        the convolution that is called first; layers by name; or those for which
        ``layers(name, module)`` is true.
    correlation : {"pearson", "cosine"}, default="pearson"
        Over the entries of the two matrices, with their means taken off first or not.
        In a grouped convolution the entries are those of all groups, without the
        zeros between groups, which both matrices have by construction.
    agop_power : float, default=1.0
        Power of the patch AGOP. The literature has 1 and 1/2, which gives larger
        correlations; the default is the ansatz as it was first stated for
        ``W.T @ W``.
    outputs : "all" or int, default="all"
        All outputs of the network, exactly; or that many random directions in their
        place, without bias, whose noise is part of the standard error. Networks with
        no more outputs than that are measured exactly.
    max_images : int, default=None
        Measure so many of the images: of arrays a draw that is even over the classes
        of `y`, of other iterables the first. None takes all; a few hundred mostly
        give the third digit.
    batch_size : "auto" or int, default="auto"
        Images that go through the network together. ``"auto"`` is a tenth of an
        array, for the standard error, and as few as the ``working_memory`` of
        :func:`sklearn.get_config` asks for; batches of an iterable are split only if
        they are larger than that.
    aggregate : {"mean", "min"} or callable, default="mean"
        How the correlations of all layers become the score; a callable gets them as an
        array. Layers without a correlation do not take part.
    image_shape : tuple of int, default=None
        Rows and columns of an image, ``(h, w)``, or with channels ``(h, w, c)``, in
        this order for either value of `channels`. Needed for images in flat rows only.
    channels : {"last", "first"}, default="last"
        How images in arrays are laid out, (n, h, w, c) or (n, c, h, w), and their flat
        rows. Torch batches are always as the network takes them, and so is what an
        estimator takes.
    device : str, default="auto"
        ``"auto"`` is where the network is; it is moved elsewhere and back for any
        other device.
    n_jobs : int, default=None
        Tasks that share the batches, through joblib, each with a copy of the network.
        None is 1 unless in a :obj:`joblib.parallel_config` context; a single task uses
        the threads of torch. Results do not depend on it. A network on a GPU is not
        sent to other processes: its batches go in turn, whatever `n_jobs` is.
    random_state : int, RandomState instance or None, default=None
        Seed of the random directions and of the draw of images. None is a seed as
        well: scores are repeatable by default.

    See Also
    --------
    AnsatzReport : The correlations layer by layer.
    skconvrfm.ConvRFMClassifier : The machine that makes the ansatz its algorithm.

    Notes
    -----
    The gradients are taken in evaluation mode: no dropout, batch norm with its running
    statistics. Networks in which the images of a batch see each other even then, such
    as batch norm without running statistics, have no gradient for an image alone, and
    the score depends on the batches.

    The network is left as it was found: modes, gradients, hooks, buffers, device.

    Pixels are taken as they are, uint8 as 0 to 255: scale and normalise them as in the
    training of the network.

    References
    ----------
    Beaglehole, Radhakrishnan, Pandit, Belkin, "Mechanism of feature learning in
    convolutional neural networks", arXiv:2309.00570.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from skconvrfm import AnsatzScorer
    >>> X = np.random.default_rng(0).normal(size=(20, 8, 8, 3))
    >>> network = torch.nn.Sequential(
    ...     torch.nn.Conv2d(3, 4, kernel_size=3),
    ...     torch.nn.ReLU(),
    ...     torch.nn.Conv2d(4, 6, kernel_size=3, stride=2),
    ...     torch.nn.Flatten(),
    ...     torch.nn.Linear(24, 5),
    ... )
    >>> report = AnsatzScorer().report(network, X)
    >>> [(row.name, row.weight_shape, row.n_patches) for row in report]
    [('0', (4, 3, 3, 3), 720), ('2', (6, 4, 3, 3), 80)]
    >>> score = AnsatzScorer(aggregate="min")(network, X)
    >>> score == min(row.correlation for row in report)
    True
    """

    _parameter_constraints: dict = {
        "layers": [StrOptions({"all", "all+linear", "first"}), tuple, list, callable],
        "correlation": [StrOptions(set(CORRELATIONS))],
        "agop_power": [Interval(Real, 0, None, closed="neither")],
        "outputs": [StrOptions({"all"}), Interval(Integral, 1, None, closed="left")],
        "max_images": [Interval(Integral, 1, None, closed="left"), None],
        "batch_size": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
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

    def __call__(
        self,
        estimator: torch.nn.Module | BaseEstimator,
        X: Any,
        y: ArrayLike | None = None,
    ) -> float:
        """Score a network or an estimator, as scikit-learn's scorers do.

        Parameters
        ----------
        estimator : torch.nn.Module or estimator
            See :meth:`report`.
        X : array-like or iterable of torch batches
            See :meth:`report`.
        y : array-like of shape (n,), default=None
            Classes, over which `max_images` are spread evenly; not needed otherwise.

        Returns
        -------
        score : float
            The correlations of the layers, aggregated; larger is better, 1 is
            proportional. NaN if no layer has a correlation.
        """
        correlations = self._measure(estimator, X, y).correlations()
        if not len(correlations):
            return math.nan
        if self.aggregate == "mean":
            return float(correlations.mean())
        if self.aggregate == "min":
            return float(correlations.min())
        return float(self.aggregate(correlations))

    def report(
        self,
        network: torch.nn.Module | BaseEstimator,
        X: Any,
        *,
        baseline: torch.nn.Module | BaseEstimator | None = None,
    ) -> AnsatzReport:
        """Measure the correlation of each layer.

        Parameters
        ----------
        network : torch.nn.Module or estimator
            A network; a fitted estimator that has one as ``module_`` (skorch) or
            ``model_``; a fitted ConvRFM estimator, whose patch metric then stands in
            for the filter covariance; or a pipeline that ends in one of these.
        X : array-like or iterable of torch batches
            Images of shape (n, h, w, c), or as `channels` and `image_shape` say;
            without the last axis for one channel; with one or three axes in place of
            (h, w) for networks of Conv1d or Conv3d. For an estimator, whatever its
            network takes. Or batches, for instance a DataLoader: tensors as the network
            takes them, or tuples, lists or dicts that hold them. Not needed for ConvRFM
            estimators, which carry their AGOP: there it may be None.
        baseline : torch.nn.Module or estimator, default=None
            A network with layers of the same names, mostly the untrained one. It sees
            the same batches and directions.

        Returns
        -------
        report : AnsatzReport
            One row a layer, in the order in which the network calls them.

        Raises
        ------
        InvalidParameterError, ValueError
            If a parameter or X cannot be used; the message says what to do.
        TypeError
            If `network` has no network in it.
        """
        return self._measure(network, X, None, baseline, _show_progress)

    def _measure(self, estimator, X, y, baseline=None, progress=_silently):
        self._validate_params()
        model, X, is_bare = _open(estimator, X)
        if baseline is not None:
            baseline, _, _ = _open(baseline)
        if isinstance(model, torch.nn.Module):
            rows = self._network_rows(model, X, y, is_bare, baseline, progress)
        else:
            rows = self._convrfm_rows(model, baseline)
        return AnsatzReport(
            rows, correlation=self.correlation, agop_power=self.agop_power
        )

    # ------------------------------------------------------------------ networks

    def _network_rows(self, network, X, y, is_bare, baseline, progress):
        if baseline is not None and not isinstance(baseline, torch.nn.Module):
            raise TypeError(
                f"baseline={type(baseline).__name__} has no torch network; compare a "
                "network with a network, such as the same one before training."
            )
        rng = check_random_state(0 if self.random_state is None else self.random_state)
        seed = int(rng.randint(2**31 - 1))
        with ExitStack() as stack:
            device = stack.enter_context(frozen(network, self._device(network)))
            images = self._images(X, y, network, is_bare, rng).to(device)
            first = images.first()
            layers, n_elements = self._select_layers(network, first)
            resources = self._resources(network, device, first.dtype)
            size, largest = self._batch_sizes(images, first, n_elements, resources)
            options = {
                "outputs": self.outputs,
                "seed": seed,
                "memory": resources.memory,
                "largest": largest,
            }
            measured = [AnsatzMeasurement(network, layers, **options)]
            if baseline is not None:
                stack.enter_context(frozen(baseline, device))
                same = _same_names(layers, baseline)
                measured.append(
                    AnsatzMeasurement(baseline, same, max_folds=1, **options)
                )
            total = _add_up(measured, images, size, resources, progress)
        for measurement, sums in zip(measured, total, strict=True):
            measurement.take(sums)
        return self._rows(*measured)

    def _resources(self, network, device, dtype):
        """Who runs the batches, and with how much memory."""
        memory = working_memory()
        devices = {tensor.device.type for tensor in network.parameters()}
        if devices <= {"cpu"}:
            return parallel_resources(str(device), dtype, memory, self.n_jobs)
        # Another process would need a context of its own on the GPU.
        return Resources(str(device), dtype, memory)

    def _batch_sizes(self, images, first, n_elements, resources):
        """Images of a batch, and as many of them as a worker has memory for.

        The first does not depend on the workers, for folds and random directions
        belong to batches.
        """
        if self.batch_size != "auto":
            return self.batch_size, None
        kept = KEPT_PER_OUTPUT * n_elements * first.element_size()
        # The other half is for gradients.
        largest, of_worker = (
            max(1, one.memory // (2 * max(1, kept)))
            for one in (resources, resources.one_worker())
        )
        return images.batch_size(largest), of_worker

    def _device(self, network):
        """Where to move the network, None to leave it where it is."""
        if self.device == "auto":
            return None
        devices = {tensor.device for tensor in network.parameters()}
        if len(devices) > 1:
            raise ValueError(
                f"device={self.device!r} cannot be used for a network that is spread "
                f"over {sorted(map(str, devices))}; use device='auto'."
            )
        return resolve_device(self.device)

    def _images(self, X, y, network, is_bare, rng):
        """X as something that gives batches."""
        dtype = next(
            (p.dtype for p in network.parameters() if p.is_floating_point()),
            torch.float32,
        )
        if _is_iterable_of_batches(X):
            return _Batches(X, dtype, self.max_images)
        X = check_array(
            as_numpy(X, "X"),
            dtype="numeric",
            ensure_2d=False,
            allow_nd=True,
            input_name="X",
        )
        if self.image_shape is not None or is_bare:
            X = self._lay_out(X, network)
        elif X.dtype.kind in "iu" and X.dtype.itemsize >= 4:
            dtype = torch.int64  # what an estimator takes, for instance tokens
        if self.max_images is not None and self.max_images < len(X):
            X = X[_draw_images(len(X), y, self.max_images, rng)]
        return _Array(X, dtype)

    def _lay_out(self, X, network):
        """Images as a view of shape (n, channels, ...), as a convolution takes them."""
        layers = find_layers(network).values()
        n_dims = next((layer.n_dims for layer in layers if layer.n_dims), None)
        last = self.channels == "last"
        if self.image_shape is not None:
            X = self._shape_rows(X, n_dims or 2)
        elif n_dims is None:
            return X  # without convolutions nothing is known of the layout
        elif X.ndim == n_dims + 1:
            X = np.expand_dims(X, -1 if last else 1)
        elif X.ndim != n_dims + 2:
            raise ValueError(
                f"X has shape {X.shape}; a network of Conv{n_dims}d takes (n, "
                f"{n_dims} axes of pixels, channels), or with channels='first' (n, "
                "channels, ...). Pass image_shape=(h, w, c) for flat rows."
            )
        return np.moveaxis(X, -1, 1) if last else X

    def _shape_rows(self, X, n_dims):
        """Rows as images, with channels where `channels` says."""
        shape = tuple(self.image_shape)
        positive = all(isinstance(size, Integral) and size > 0 for size in shape)
        if len(shape) not in (n_dims, n_dims + 1) or not positive:
            raise ValueError(
                f"image_shape={self.image_shape!r} must have {n_dims} sizes, or with "
                f"the channels {n_dims + 1}, all positive integers."
            )
        *sizes, n_channels = (*shape, 1)[: n_dims + 1]
        last = self.channels == "last"
        laid_out = (*sizes, n_channels) if last else (n_channels, *sizes)
        fits = (laid_out, tuple(sizes)) if n_channels == 1 else (laid_out,)
        if X.ndim == 2 and X.shape[1] != math.prod(shape):
            raise ValueError(
                f"image_shape={self.image_shape!r} has {math.prod(shape)} pixels, but "
                f"X has {X.shape[1]} features a row; they must agree."
            )
        if X.ndim != 2 and X.shape[1:] not in fits:
            raise ValueError(
                f"image_shape={self.image_shape!r} with channels={self.channels!r} "
                f"does not match X, whose images have shape {X.shape[1:]}; leave "
                "image_shape=None to take it from X."
            )
        return X.reshape(len(X), *laid_out)

    def _select_layers(self, network, first):
        """The layers asked for, and the elements that all put out for one image."""
        by_name = find_layers(network)
        everything = list(dict.fromkeys(by_name.values()))
        convolutions = [layer for layer in everything if layer.n_dims]
        counts = self._try(network, first, everything)
        if isinstance(self.layers, (list, tuple)):
            layers = list(dict.fromkeys(_by_name(by_name, self.layers)))
        elif callable(self.layers):
            layers = [
                layer
                for layer in everything
                if self.layers(layer.name, layer.modules[0])
            ]
        elif self.layers == "first":
            layers = [layer for layer in counts if layer.n_dims][:1]
        else:
            layers = everything if self.layers == "all+linear" else convolutions
        if not layers:
            raise ValueError(
                f"layers={self.layers!r} finds no layer in {type(network).__name__}, "
                f"which has {len(convolutions)} convolutions and "
                f"{len(everything) - len(convolutions)} linear layers."
            )
        return layers, sum(counts.values())

    def _try(self, network, first, layers):
        """Put one image through the network; say what may be wrong with it."""
        try:
            return count_outputs(network, first, layers)
        except OutputError:
            raise
        except Exception as error:
            raise ValueError(
                f"X cannot be put through {type(network).__name__}: a batch of shape "
                f"{tuple(first.shape)} raised {type(error).__name__}: {error} Arrays "
                f"were read with channels={self.channels!r} and "
                f"image_shape={self.image_shape!r}; change these, or pass torch "
                "batches as the network takes them."
            ) from error

    def _rows(self, measurement, baseline=None):
        """The rows of the report from what was measured."""
        others = {layer.name: layer for layer in baseline.layers} if baseline else {}
        for layer in measurement.in_forward_order():
            correlation, reason = layer.correlation(self.correlation, self.agop_power)
            compared = {}
            other = others.get(layer.name)
            if other is not None:
                compared["baseline_correlation"], _ = other.correlation(
                    self.correlation, self.agop_power
                )
                compared["baseline_drift"] = self._drift(layer, other)
            yield LayerReport(
                name=layer.name,
                kind=layer.kind,
                weight_shape=tuple(layer.weight.shape),
                stride=layer.stride,
                groups=layer.groups,
                n_images=measurement.n_images,
                n_patches=layer.n_patches,
                correlation=correlation,
                standard_error=math.nan
                if reason
                else layer.standard_error(self.correlation, self.agop_power),
                reason=reason,
                **compared,
            )

    def _drift(self, layer, other):
        """Correlation of two filter covariances, NaN if they cannot be compared."""
        weights = layer.weight, other.weight
        if weights[0].shape != weights[1].shape or layer.groups != other.groups:
            return math.nan
        if not all(weight.isfinite().all() for weight in weights):
            return math.nan
        return covariance_correlation(*weights, layer.groups, self.correlation)

    # ------------------------------------------------------------------- ConvRFM

    def _convrfm_rows(self, estimator, baseline):
        """One row for each layer of a ConvRFM estimator, from what its fit kept."""
        layers = _convrfm_layers(estimator)
        others = () if baseline is None else _convrfm_layers(baseline)
        others = itertools.chain(others, itertools.repeat(None))
        for number, (layer, other) in enumerate(zip(layers, others, strict=False)):
            metric = layer.patch_transform_
            correlation, reason = self._convrfm_correlation(layer)
            compared = {}
            if other is not None:
                compared["baseline_correlation"], _ = self._convrfm_correlation(other)
                if other.patch_transform_.shape == metric.shape:
                    compared["baseline_drift"] = covariance_correlation(
                        *map(_metric_filters, (layer, other)),
                        1,
                        self.correlation,
                    )
            yield LayerReport(
                name=f"layer {number}",
                kind=type(estimator).__name__,
                weight_shape=metric.shape,
                correlation=correlation,
                reason=reason,
                **compared,
            )

    def _convrfm_correlation(self, layer):
        """Correlation of the metric T Tᵀ of an estimator with its patch AGOP."""
        space = FilterSpace.spanned_by(_metric_filters(layer)[None])
        agop = torch.as_tensor(layer.patch_agop_, dtype=torch.float64)[None]
        matrices = {"patch metric": space.covariance, "patch AGOP": agop}
        return correlate(space, matrices, self.correlation, self.agop_power)


def _open(estimator, X=None):
    """The network or ConvRFM estimator in an estimator, X for it, and is it bare.

    Returns
    -------
    model : torch.nn.Module or estimator
    X : object
        After the earlier steps of a pipeline.
    is_bare : bool
        Whether `estimator` itself is a network, whose X is then laid out for it.
    """
    if isinstance(estimator, torch.nn.Module):
        # What torch.compile wraps: hooks are for the modules, not for compiled code.
        return getattr(estimator, "_orig_mod", estimator), X, True
    if isinstance(estimator, Pipeline):
        check_is_fitted(estimator)
        if len(estimator) > 1 and X is not None and not _is_convrfm(estimator[-1]):
            X = estimator[:-1].transform(X)
        model, X, _ = _open(estimator[-1], X)
        return model, X, False
    if isinstance(estimator, BaseEstimator):
        check_is_fitted(estimator)
    if _is_convrfm(estimator):
        return estimator, X, False
    for attribute in ("module_", "model_"):
        model = getattr(estimator, attribute, None)
        if isinstance(model, torch.nn.Module):
            return getattr(model, "_orig_mod", model), X, False
    raise TypeError(
        f"{type(estimator).__name__} has no network to look into: pass a "
        "torch.nn.Module, a fitted estimator with one as module_ or model_, a fitted "
        "ConvRFM estimator, or a pipeline that ends in one of these."
    )


def _is_convrfm(estimator):
    layers = getattr(estimator, "layers_", None) or [estimator]
    return all(hasattr(layer, "patch_agop_") for layer in layers)


def _convrfm_layers(estimator):
    """What has a patch transform and a patch AGOP in a ConvRFM estimator."""
    if not _is_convrfm(estimator):
        raise TypeError(
            f"baseline={type(estimator).__name__} is no ConvRFM estimator, but the "
            "estimator that it is compared with is one."
        )
    layers = list(getattr(estimator, "layers_", [estimator]))
    layers[getattr(estimator, "best_layer_", 0)] = estimator  # the layer that predicts
    return layers


def _metric_filters(layer):
    """Filters whose covariance is the metric T Tᵀ: the columns of T."""
    return torch.as_tensor(layer.patch_transform_, dtype=torch.float64).T


def _by_name(by_name, names):
    """Layers of these names."""
    for name in names:
        if name not in by_name:
            close = difflib.get_close_matches(str(name), by_name, n=3, cutoff=0)
            raise ValueError(
                f"layers={list(names)!r}: there is no convolution or linear layer "
                f"{name!r}; near are {close}, and print(network) shows all."
            )
        yield by_name[name]


def _same_names(layers, network):
    """The layers of a network that have the names of other layers."""
    by_name = find_layers(network)
    found = (by_name.get(layer.name) for layer in layers)
    return list(dict.fromkeys(layer for layer in found if layer is not None))


def _add_up(measured, images, size, resources, progress):
    """The sums of all batches, one a network; progress is by batch, or else by task."""
    in_turn = resources.run is run_in_turn
    parts, n_parts = images.parts(size, resources)
    if in_turn:
        total = images.n_batches(size)
        parts = ((first, progress(batches, total)) for first, batches in parts)

    def run(function, tasks):
        results = resources.run(function, tasks)
        return results if in_turn else progress(results, n_parts)

    tasks = ((measured, batches, first, in_turn) for first, batches in parts)
    return sum_tasks(measure_batches, tasks, replace(resources, run=run))


# --------------------------------------------------------------------- batches


@dataclass
class _Blocks:
    """Batches of an array, each cast where it is needed."""

    blocks: list
    dtype: torch.dtype
    device: torch.device

    def __iter__(self):
        return map(self._cast, self.blocks)

    def _cast(self, block):
        wide = self.dtype in (torch.float64, torch.int64)
        exact = torch.float64 if wide else torch.float32
        return to_tensor(block, exact, self.device).to(self.dtype)


class _Array:
    """Batches of an array of images."""

    def __init__(self, X, dtype):
        self.X, self.dtype = X, dtype

    def to(self, device):
        """Give batches on this device."""
        self.device = device
        return self

    def first(self):
        """The first image as a batch."""
        return next(iter(self._part([slice(0, 1)])))

    def batch_size(self, largest):
        """Images of a batch: enough batches for the standard error, if they fit."""
        return max(1, min(largest, -(-len(self.X) // MAX_FOLDS)))

    def n_batches(self, size):
        """How many batches there are."""
        return len(image_blocks(self.X, size))

    def parts(self, size, resources):
        """What tasks get, (number of the first batch, batches), and how many tasks."""
        blocks = image_blocks(self.X, size)
        shares = spans(len(blocks), resources, SUM_TASKS)
        return [(span.start, self._part(blocks[span])) for span in shares], len(shares)

    def _part(self, blocks):
        return _Blocks([self.X[block] for block in blocks], self.dtype, self.device)


class _Batches:
    """Batches of an iterable, as they come."""

    def __init__(self, batches, dtype, max_images):
        self.given, self.dtype, self.max_images = batches, dtype, max_images

    def to(self, device):
        """Give batches on this device."""
        self.device = device
        return self

    def first(self):
        """The first image as a batch."""
        self._tensors = self._read()
        first = next(self._tensors, None)
        if first is None:
            raise ValueError("X has no batches, or no images in them.")
        self._tensors = itertools.chain([first], self._tensors)
        return first[:1]

    def batch_size(self, largest):
        """Images of a batch at most."""
        return max(1, largest)

    def n_batches(self, size):
        """How many batches there are, as far as that is known."""
        known = hasattr(self.given, "__len__") and self.max_images is None
        return len(self.given) if known else None

    def parts(self, size, resources):
        """What tasks get, (number of the first batch, batches), and how many tasks."""
        batches = self._batches(size)
        if resources.run is run_in_turn:
            return [(0, batches)], 1
        # One by one, as workers ask for them.
        one_each = ((number, [batch]) for number, batch in enumerate(batches))
        return one_each, self.n_batches(size)

    def _batches(self, size):
        """All batches, those split that are larger than `size`."""
        for batch in self._tensors:
            yield from batch.split(size)

    def _read(self):
        """The images of each batch, as the network takes them."""
        left = math.inf if self.max_images is None else self.max_images
        for batch in self.given:
            images = _images_of(batch)
            images = images[: min(left, len(images))]
            left -= len(images)
            if len(images):
                # Other integers may be tokens, which an embedding takes as they are.
                is_image = images.is_floating_point() or images.dtype == torch.uint8
                yield images.to(self.device, self.dtype if is_image else images.dtype)
            if not left:
                return


def _is_iterable_of_batches(X):
    """Whether X gives batches and is not an array itself."""
    if hasattr(X, "__array__") or hasattr(X, "dtypes"):
        return False
    if isinstance(X, (list, tuple)):
        first = X[0] if X else None
        while isinstance(first, (list, tuple)) and first:
            first = first[0]
        return isinstance(first, (torch.Tensor, dict))
    return isinstance(X, Iterable) and not isinstance(X, (str, bytes, dict))


def _images_of(batch):
    """The images of a batch: the first of a tuple, of a dict what has most axes."""
    if isinstance(batch, torch.Tensor) and batch.ndim:
        return batch
    if isinstance(batch, (tuple, list)) and batch:
        return _images_of(batch[0])
    if isinstance(batch, dict):
        tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
        if tensors:
            return max(tensors, key=lambda tensor: tensor.ndim)
    raise TypeError(
        f"X has a batch of type {type(batch).__name__} without a tensor of images; "
        "batches are tensors, or tuples, lists or dicts with one."
    )


def _draw_images(n, y, n_draws, rng):
    """Rows of an even draw over the classes of y, in ascending order."""
    strata = np.zeros(n)
    if y is not None and np.shape(y) == (n,):
        if type_of_target(y) in ("binary", "multiclass"):
            strata = np.unique(y, return_inverse=True)[1]
    rows, _ = systematic_sample(
        strata, rng.uniform(size=n), np.ones(n), n_draws, rng.uniform()
    )
    return rows


def _show_progress(steps, total):
    """Pass steps on; if that is long, show a bar on a terminal (with rich)."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield from steps
        return
    console = Console(stderr=True)
    start, bar = time.monotonic(), None
    with ExitStack() as stack:
        for done, step in enumerate(steps):
            if bar is None and time.monotonic() - start > LONG_RUN:
                if console.is_terminal:
                    bar = Progress(console=console, transient=True)
                    stack.enter_context(bar)
                    task = bar.add_task("Patch AGOPs", total=total)
            if bar is not None:
                bar.update(task, completed=done)
            yield step


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, see ``python -m skconvrfm.ansatz --help``.

    Parameters
    ----------
    argv : list of str, default=None
        Arguments; by default those of the process.

    Returns
    -------
    int
        Exit code: 0, or 2 after a mistake in the options or in the data.
    """
    from .ansatz_command import run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
