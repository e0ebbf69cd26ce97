"""Reports of the ansatz: one row per layer, printed, drawn or as a data frame."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np

from .._typing import Array, Floats
from ..display import AnsatzDisplay
from .layers import KINDS

if TYPE_CHECKING:
    import pandas

Statistic: TypeAlias = "float | Floats"

# Entries of a patch up to which any two matrices correlate.
_FEW_ENTRIES = 9


@dataclass(frozen=True, eq=False)
class LayerReport:
    """Measurements of one layer: a row of an :class:`AnsatzReport`.

    Statistics are numbers, or arrays with one for each power of the AGOP; NaN if they
    are not defined. All are of the covariance of the filters, and of the AGOP to the
    power.

    Parameters
    ----------
    name : str
        Name of the layer in the network.
    kind : {"full", "pointwise", "depthwise", "grouped", "transposed", "linear"}
        Convolution with filters of k×k, or of 1×1 pixels; one filter or several for
        every channel; other groups; transposed convolution, whose patch is one
        location; linear layer, whose patch is its input. A patch metric of a ConvRFM
        estimator is "full".
    shape : tuple of int
        Shape of the weight, (filters, channels / groups, *kernel*) of a convolution;
        (d, d) of the patch metric of a ConvRFM estimator.
    correlation, standard_error : float or ndarray
        Correlation over the entries, and what other images would change: the spread
        over draws of blocks of the images; NaN if there is one block.
    baseline, lift, lift_standard_error : float or ndarray
        Mean correlation of the layer in the baselines, what the network has more, and
        the standard error of this over images and, of several baselines, seeds.
    cosine, correlation_no_trace : float or ndarray
        Cosine of the matrices; correlation after the multiple of the identity that has
        its trace was taken off each.
    eigenvalue_correlation, eigenvector_overlap : float or ndarray
        Pearson correlation of their eigenvalues by rank; mean squared cosine of the
        principal angles between the first tenth of their eigenvectors, of which random
        ones have about a tenth.
    drift : float
        Correlation of the filter covariances of the network and of a baseline that was
        passed: near 1 the filters are those of the baseline.
    stride, groups : tuple of int, int
        Stride in each dimension, empty for a layer that has none; groups.
    n_images, n_patches : int or None
        Images measured, and patches seen: locations × calls × images. None for a
        ConvRFM estimator, which chose its images in the fit.
    reason : str
        Why there is no correlation, empty if there is one.

    Examples
    --------
    >>> from skconvrfm.ansatz import LayerReport
    >>> LayerReport("conv1", "depthwise", (8, 1, 3, 3), correlation=0.9).is_weak
    True
    """

    name: str
    kind: str
    shape: tuple
    correlation: Statistic = math.nan
    standard_error: Statistic = math.nan
    baseline: Statistic = math.nan
    lift: Statistic = math.nan
    lift_standard_error: Statistic = math.nan
    cosine: Statistic = math.nan
    correlation_no_trace: Statistic = math.nan
    eigenvalue_correlation: Statistic = math.nan
    eigenvector_overlap: Statistic = math.nan
    drift: float = math.nan
    stride: tuple = ()
    groups: int = 1
    n_images: int | None = None
    n_patches: int | None = None
    reason: str = ""

    @property
    def is_weak(self) -> bool:
        """True where a correlation says little, trained or not.

        Patches have at most 9 entries, whose matrices mostly correlate, or a group has
        one filter, whose matrices are proportional by construction.
        """
        sizes = self.shape[0] // self.groups, math.prod(self.shape[1:])
        n_filters, n_entries = sizes[::-1] if self.kind == "transposed" else sizes
        return n_entries <= _FEW_ENTRIES or n_filters == 1


class AnsatzReport(Sequence[LayerReport]):
    """Correlations of all layers of a network: a sequence of rows, printed as a table.

    Parameters
    ----------
    rows : sequence of LayerReport
        One per layer, in the order of first calls: see :meth:`AnsatzScorer.report`.
    correlation : {"pearson", "cosine"}
        Kind of the correlation in the rows.
    agop_power : float or tuple of float
        Power of the patch AGOP, or powers.
    outputs : str, default="all outputs"
        Outputs that were measured, in words.
    layers : mapping, default=()
        For each name of a row the filter covariance and the AGOP in coordinates of the
        space of filters, and its basis; for :meth:`matrices`.

    Examples
    --------
    >>> from skconvrfm.ansatz import AnsatzReport, LayerReport
    >>> rows = [LayerReport("conv1", "full", (8, 3, 3, 3), correlation=0.9)]
    >>> print(AnsatzReport(rows, correlation="pearson", agop_power=1.0))
    Pearson correlation of filter covariance and patch AGOP, all outputs
    <BLANKLINE>
    layer  kind  shape          correlation  baseline  lift  no trace  cosine
    -----  ----  -------------  -----------  --------  ----  --------  ------
    conv1  full  8 x 3 x 3 x 3        0.900         -     -         -       -
    mean                              0.900         -     -         -       -
    """

    def __init__(
        self,
        rows: Iterable[LayerReport],
        *,
        correlation: Literal["pearson", "cosine"],
        agop_power: float | tuple[float, ...],
        outputs: str = "all outputs",
        layers: Mapping[str, tuple] | tuple = (),
    ) -> None:
        self._rows = tuple(rows)
        self.correlation = correlation
        self.agop_power = agop_power
        self.outputs = outputs
        self._layers = dict(layers)

    @overload
    def __getitem__(self, index: int) -> LayerReport: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[LayerReport, ...]: ...

    def __getitem__(self, index):
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self):
        kind = f"correlation={self.correlation!r}, agop_power={self.agop_power!r}"
        return f"<AnsatzReport of {len(self)} layers, {kind}>"

    def __str__(self):
        tables = [self._table(index) for index in range(len(self._powers))]
        weak = [row.name for row in self if row.is_weak and not row.reason]
        notes = [f"{row.name}: {row.reason}" for row in self if row.reason]
        if weak:
            notes.append(
                f"weak evidence, of patches of at most {_FEW_ENTRIES} entries or one "
                f"filter a group: {', '.join(weak)}"
            )
        return "\n".join(["\n\n".join(tables), *notes])

    @property
    def _powers(self):
        return np.atleast_1d(self.agop_power)

    def _table(self, index):
        """Table of one power, as text."""
        power = self._powers[index]
        to_power = "" if power == 1 else f" to the power {power:g}"
        kind = self.correlation.capitalize()
        title = f"{kind} correlation of filter covariance and patch AGOP{to_power}"
        kinds = [kind for kind in KINDS if any(row.kind == kind for row in self)]
        groups = [*kinds * (len(kinds) > 1), None]
        means = [self._mean_cells(kind, index) for kind in groups]
        lines = [*(_cells(row, index) for row in self), *means]
        return "\n".join([f"{title}, {self.outputs}", "", *_aligned(lines)])

    def _mean_cells(self, kind, index):
        means = {name: _at(self._mean(name, kind), index) for name in _MEANS}
        name = "mean" if kind is None else f"mean, {kind}"
        return name, "", "", *(_number(means[column]) for column in _MEANS)

    def mean(self, kind: str | None = None) -> Statistic:
        """Return the mean correlation of the layers, or those of a kind, that have one.

        It is an array if there are several powers, and NaN if no layer has one.
        """
        if kind is not None and kind not in KINDS:
            raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)}.")
        return self._mean("correlation", kind)

    def _mean(self, name, kind):
        rows = [row for row in self if kind in (None, row.kind)]
        return _mean_of([getattr(row, name) for row in rows], len(self._powers))

    def correlations(self) -> Floats:
        """Return the correlations that are defined, in row order.

        They are an array (n,), or for several powers (n, n_powers).
        """
        values = np.array([np.atleast_1d(row.correlation) for row in self])
        values = values.reshape(len(self), len(self._powers))
        values = values[np.isfinite(values).all(1)]
        return values if np.ndim(self.agop_power) else values[:, 0]

    def matrices(self, name: str) -> tuple[Array, Array]:
        """Return the filter covariance and the patch AGOP of a layer, without a power.

        Parameters
        ----------
        name : str
            Name of a row.

        Returns
        -------
        covariance, agop : ndarray of shape (groups, d, d)
            Entries of patches are in the order (channel, row, column).
        """
        covariance, agop, basis = self._layer(name)
        if basis is not None:
            covariance, agop = (basis @ one @ basis.mT for one in (covariance, agop))
        return covariance.numpy(), agop.numpy()

    def _layer(self, name):
        if name not in self._layers:
            raise ValueError(
                f"name={name!r} has no matrices: take one of "
                f"{', '.join(self._layers) or 'a report of AnsatzScorer'}."
            )
        return self._layers[name]

    def to_frame(self) -> pandas.DataFrame:
        """Return a data frame with the attributes of the rows as columns.

        With several powers each row of the report gives one for every power, in the
        column ``agop_power``.
        """
        try:
            import pandas as pd
        except ImportError as error:
            message = "AnsatzReport.to_frame needs pandas: `pip install pandas`."
            raise ImportError(message) from error
        return pd.DataFrame(self.records(), columns=COLUMNS)

    def records(self) -> list[dict]:
        """Return a dict for every row and power, with the columns of a table."""
        return [
            {
                "agop_power": power,
                **{name: _at(getattr(row, name), index) for name in _ATTRIBUTES},
            }
            for row in self
            for index, power in enumerate(map(float, self._powers))
        ]

    def plot(self, ax: Any = None) -> AnsatzDisplay:
        """Draw the correlations, layers along x, in axes `ax` or in a new figure."""
        return AnsatzDisplay.from_report(self, ax=ax)


_ATTRIBUTES = [*(one.name for one in fields(LayerReport)), "is_weak"]
# Of a table.
COLUMNS = [*_ATTRIBUTES[:3], "agop_power", *_ATTRIBUTES[3:]]
_MEANS = ("correlation", "baseline", "lift", "correlation_no_trace", "cosine")
_HEADER = (
    *("layer", "kind", "shape", "correlation"),
    *("baseline", "lift", "no trace", "cosine"),
)


def _at(value, index):
    """Return a statistic at one of several powers, or other values as they are."""
    return float(value[index]) if isinstance(value, np.ndarray) else value


def _mean_of(values, n_powers):
    """Return the mean of the finite among numbers, or by power among arrays."""
    if n_powers > 1:
        columns = np.array([np.broadcast_to(v, n_powers) for v in values]).T
        return np.array([_mean_of(list(column), 1) for column in columns])
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan


def _cells(row, index):
    """A row of the table as text."""
    values = {name: _at(getattr(row, name), index) for name in _MEANS}
    errors = {
        "correlation": _at(row.standard_error, index),
        "lift": _at(row.lift_standard_error, index),
    }
    numbers = [_number(values[name], errors.get(name, math.nan)) for name in _MEANS]
    return row.name, row.kind, " x ".join(map(str, row.shape)), *numbers


def _number(value, error=math.nan):
    spread = f" ± {error:.3f}" if math.isfinite(error) else ""
    return f"{value:.3f}{spread}" if math.isfinite(value) else "-"


def _aligned(lines):
    """Lines of a table: three columns of text, then numbers to the right."""
    widths = [max(map(len, column)) for column in zip(_HEADER, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    to_side = [str.ljust] * 3 + [str.rjust] * (len(widths) - 3)
    for cells in (_HEADER, rule, *lines):
        padded = (side(*one) for side, *one in zip(to_side, cells, widths, strict=True))
        yield "  ".join(padded).rstrip()
