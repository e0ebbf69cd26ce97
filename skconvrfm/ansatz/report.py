"""Reports of the ansatz: one row per layer, printed, drawn or as a data frame."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from .._typing import Floats
from ..display import AnsatzDisplay
from .layers import covariance_correlation

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class LayerReport:
    """Measurements of one layer: a row of an :class:`AnsatzReport`.

    Parameters
    ----------
    name, kind : str, str
        Name of the layer in the network, and its class, for instance ``"Conv2d"``.
    weight_shape : tuple of int
        (filters, channels / groups, *kernel*); for a ConvRFM estimator (d, d), of the
        patch metric.
    stride, groups : tuple of int, int
        Stride in each dimension, empty for a layer that has none; groups.
    n_images, n_patches : int or None
        Images measured, and patches seen: locations × calls × images. None for a
        ConvRFM estimator, which chose its images in the fit.
    correlation, standard_error, reason : float, float, str
        Correlation of filter covariance and patch AGOP, NaN if there is none; its
        standard error, from the spread over batches, NaN if there is only one; why
        there is no correlation, empty if there is one.
    baseline_correlation, baseline_drift : float
        The same correlation for the baseline's own filters and AGOP; correlation of
        the baseline's filter covariance with that of the network.

    Examples
    --------
    >>> from skconvrfm.ansatz import LayerReport
    >>> LayerReport("conv1", "Conv2d", (8, 3, 3, 3), correlation=0.9).groups
    1
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
    reason: str = ""


class AnsatzReport(Sequence[LayerReport]):
    """Correlations of all layers of a network: a sequence of rows, printed as a table.

    Parameters
    ----------
    rows : sequence of LayerReport
        One per layer, in the order of first calls: see :meth:`AnsatzScorer.report`.
    correlation, agop_power : {"pearson", "cosine"}, float
        Kind of the correlation in the rows, and the power of the patch AGOP in it.

    Examples
    --------
    >>> from skconvrfm.ansatz import AnsatzReport, LayerReport
    >>> rows = [LayerReport("conv1", "Conv2d", (8, 3, 3, 3), correlation=0.9)]
    >>> print(AnsatzReport(rows, correlation="pearson", agop_power=1.0))
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
        kind = f"correlation={self.correlation!r}, agop_power={self.agop_power!r}"
        return f"<AnsatzReport of {len(self)} layers, {kind}>"

    def __str__(self):
        header = "layer kind weight patches correlation baseline drift".split()
        names = ("correlation", "baseline_correlation", "baseline_drift")
        known = map(self._finite, names)
        means = [_number(one.mean()) if len(one) else "-" for one in known]
        power = "" if self.agop_power == 1 else f" to the power {self.agop_power:g}"
        kind = self.correlation.capitalize()
        title = f"{kind} correlation of filter covariance and patch AGOP{power}"
        notes = [f"{row.name}: {row.reason}" for row in self if row.reason]
        table = _aligned(header, [*map(_cells, self), ["mean", "", "", "", *means]])
        return "\n".join([title, "", *table, *notes])

    def correlations(self) -> Floats:
        """Return the correlations that are defined, an array (n,) in row order."""
        return self._finite("correlation")

    def _finite(self, name):
        """The finite values of an attribute of the rows."""
        values = np.array([getattr(row, name) for row in self], dtype=np.float64)
        return values[np.isfinite(values)]

    def to_frame(self) -> pandas.DataFrame:
        """Return a data frame with the attributes of the rows as columns."""
        try:
            import pandas as pd
        except ImportError as error:
            message = "AnsatzReport.to_frame needs pandas: `pip install pandas`."
            raise ImportError(message) from error
        return pd.DataFrame(map(asdict, self), columns=LayerReport.__match_args__)

    def plot(self, ax: Any = None) -> AnsatzDisplay:
        """Draw the correlations, layers along x, in axes `ax` or in a new figure."""
        return AnsatzDisplay.from_report(self, ax=ax)


def _cells(row):
    """A row of the table as text."""
    weight = " x ".join(map(str, row.weight_shape))
    n_patches = "-" if row.n_patches is None else str(row.n_patches)
    error = row.standard_error
    spread = f" ± {error:.3f}" if math.isfinite(error) else ""
    baseline = _number(row.baseline_correlation), _number(row.baseline_drift)
    correlation = _number(row.correlation) + spread
    return (row.name, row.kind, weight, n_patches, correlation, *baseline)


def _number(value):
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _aligned(header, lines):
    """Lines of a table: three columns of text, then numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    to_side = [str.ljust] * 3 + [str.rjust] * (len(widths) - 3)
    for cells in (header, rule, *lines):
        padded = (side(*one) for side, *one in zip(to_side, cells, widths, strict=True))
        yield "  ".join(padded).rstrip()


def report_rows(layers, others, n_images, kind, power):
    """Yield the row of each measured layer, beside that of the baseline, by name."""
    for layer in layers:
        sums, other = layer.sums, others.get(layer.name)
        shape, n_seen = tuple(sums.weight.shape), (n_images, sums.n_patches)
        correlation, reason = layer.correlation(kind, power)
        error = math.nan if reason else layer.standard_error(kind, power)
        compared = {} if other is None else _compared(layer, other, kind, power)
        row = (layer.name, layer.kind, shape, layer.stride, layer.groups, *n_seen)
        yield LayerReport(*row, correlation, error, reason=reason, **compared)


def _compared(layer, other, kind, power):
    """Correlation of a layer of the baseline, and the drift from it if it has one."""
    drift, groups = math.nan, layer.groups
    weights = layer.sums.weight, other.sums.weight
    same_shape = weights[0].shape == weights[1].shape and groups == other.groups
    if same_shape and all(weight.isfinite().all() for weight in weights):
        drift = covariance_correlation(*weights, groups, kind)
    correlation, _ = other.correlation(kind, power)
    return {"baseline_correlation": correlation, "baseline_drift": drift}
