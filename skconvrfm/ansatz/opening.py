"""Networks, and ConvRFM estimators, inside of other estimators."""

import torch
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from ..display._learned import learned_layers
from .layers import LearnedMetric


def open_estimator(estimator, X=None):
    """The network or ConvRFM estimator, X for it, and True if it was passed itself."""
    if isinstance(estimator, torch.nn.Module):
        # The module that torch.compile wrapped: hooks are not for compiled code.
        return getattr(estimator, "_orig_mod", estimator), X, True
    if isinstance(estimator, Pipeline):
        check_is_fitted(estimator)
        earlier, last = estimator[:-1], estimator[-1]
        if len(earlier) and X is not None and not hasattr(last, "learned_layers_"):
            X = earlier.transform(X)
        return *open_estimator(last, X)[:2], False
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
        return *open_estimator(inner, X)[:2], False
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


def learned_metrics(estimator):
    """The layers of a ConvRFM estimator that learned a metric."""
    layers = enumerate(learned_layers(estimator))
    return [LearnedMetric(f"layer {i}", one) for i, one in layers]


def named(baseline):
    """A baseline in errors."""
    return repr(baseline) if isinstance(baseline, str) else type(baseline).__name__
