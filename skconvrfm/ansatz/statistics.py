"""Statistics of layers: correlations, their standard errors, lifts over baselines."""

import math

import numpy as np
import torch

from .matrices import covariance_correlation, matrix_power
from .report import LayerReport

STATISTICS = (
    *("correlation", "standard_error", "baseline", "lift", "lift_standard_error"),
    *("cosine", "correlation_no_trace", "eigenvalue_correlation"),
    "eigenvector_overlap",
)
# Draws of blocks of images for a standard error, whose own relative error is 7 per
# cent; fewer where each takes the eigenvalues of a large matrix.
_DRAWS, _FEWEST_DRAWS, _LARGE = 100, 20, 512


def report_rows(layers, others, n_images, kind, powers, drifts):
    """Yield the row of each layer, beside the layers of its name in baselines."""
    for layer in layers:
        there = [other[layer.name] for other in others if layer.name in other]
        values, reason = layer_statistics(layer, there, kind, powers)
        if drifts and there:
            values["drift"] = drift(layer, there[0], kind)
        yield LayerReport(
            layer.name,
            layer.kind,
            tuple(layer.sums.weight.shape),
            stride=layer.stride,
            groups=layer.groups,
            n_images=n_images,
            n_patches=layer.sums.n_patches,
            reason=reason,
            **values,
        )


def layer_statistics(layer, others, kind, powers):
    """Return statistics of a layer by name, and why it has none, "" if it has.

    ``others`` are the same layer in baselines. Those of several powers are arrays.
    """
    found, reason = [], ""
    for power in powers:
        agop, why = _to_power(layer, kind, power)
        found.append({} if why else _of_power(layer, agop, others, kind, power))
        reason = reason or why
    if len(powers) == 1:
        return found[0], reason
    by_name = {n: np.array([v.get(n, math.nan) for v in found]) for n in STATISTICS}
    return by_name, reason


def drift(layer, other, kind):
    """Return the correlation of filter covariances of a layer and its baseline."""
    pair = layer.filters, other.filters
    same_shape = pair[0].shape == pair[1].shape
    if not same_shape or not all(filters.isfinite().all() for filters in pair):
        return math.nan
    return covariance_correlation(*pair, kind)


def correlation(layer, kind, power):
    """Return the correlation of a layer, NaN where it has none."""
    agop, reason = _to_power(layer, kind, power)
    space = layer.space
    return math.nan if reason else space.correlation(space.covariance, agop, kind)


def _to_power(layer, kind, power):
    """Return the AGOP of a layer to a power, and why it has no correlation, or ""."""
    if layer.sums.n_patches == 0:
        return None, "the network does not call it"
    if not layer.sums.moments:
        return None, "no output depends on it, or the network detaches it"
    agop, covariance = layer.agop, layer.space.covariance
    for name, matrix in ((layer.covariance_name, covariance), ("patch AGOP", agop)):
        if not matrix.isfinite().all():
            return None, f"its {name} is not finite"
    agop = matrix_power(agop, power)
    for name, matrix in ((layer.covariance_name, covariance), ("patch AGOP", agop)):
        if not matrix.any():
            return None, f"its {name} is zero"
        if not layer.space.variation(matrix, kind):
            return None, f"its {name} is constant"
    return agop, ""


def _of_power(layer, agop, others, kind, power):
    space, pair = layer.space, (layer.space.covariance, agop)
    values = {
        "correlation": space.correlation(*pair, kind),
        "cosine": space.correlation(*pair, "cosine"),
        "correlation_no_trace": space.correlation(*pair, kind, traceless=True),
        "eigenvalue_correlation": space.eigenvalue_correlation(*pair),
        "eigenvector_overlap": space.eigenvector_overlap(*pair),
    }
    own = _resampled(layer, layer, kind, power)
    values["standard_error"] = _spread(own, layer)
    found = [(other, correlation(other, kind, power)) for other in others]
    found = [(other, value) for other, value in found if not math.isnan(value)]
    if found:
        others, baselines = zip(*found, strict=True)
        values["baseline"] = float(np.mean(baselines))
        values["lift"] = values["correlation"] - values["baseline"]
        # The same blocks are drawn for all, so that what they share cancels.
        changes = [own - _resampled(other, layer, kind, power) for other in others]
        error = _spread(np.mean(changes, axis=0), layer)
        if len(others) > 1:
            spread = np.std(baselines, ddof=1) / math.sqrt(len(others))
            error = math.hypot(error, spread)
        values["lift_standard_error"] = error
    return values


def _resampled(layer, like, kind, power):
    """Return correlations where blocks of images are drawn with replacement.

    The blocks are those of the layer ``like``; there are none if it has one alone.
    """
    folds, r = sorted(like.sums.moments), layer.space.filters.shape[-1]
    if len(folds) < 2:
        return np.array([])
    n_draws = _DRAWS if power == 1 or r <= _LARGE else _FEWEST_DRAWS
    counts = np.random.default_rng(0).multinomial(
        len(folds), np.full(len(folds), 1 / len(folds)), size=n_draws
    )
    moments = layer.sums.moments
    agops = [layer.agop_of(moments[fold]) for fold in folds if fold in moments]
    there = [fold in moments for fold in folds]
    return np.array(
        [
            layer.space.correlation(
                layer.space.covariance,
                matrix_power(_weighted(agops, weights), power),
                kind,
            )
            for weights in counts[:, there]
        ]
    )


def _weighted(matrices, weights):
    pairs = zip(matrices, weights, strict=True)
    return sum((int(w) * m for m, w in pairs if w), torch.zeros_like(matrices[0]))


def _spread(values, layer):
    """Return the standard error of a statistic from its values in draws of blocks."""
    n_blocks = len(layer.sums.moments)
    if not len(values) or not np.isfinite(values).all():
        return math.nan
    # Of few blocks the draws vary by less than other blocks would.
    return float(np.std(values, ddof=1) * math.sqrt(n_blocks / (n_blocks - 1)))
