"""Fitted attributes of estimators that the displays draw."""

from sklearn.utils.validation import check_is_fitted

from ._axes import check_matplotlib


def learned_layers(estimator):
    """Return the layers of a fitted estimator that learned a patch metric, if any."""
    layers = getattr(estimator, "learned_layers_", None)
    if layers:
        return layers
    remedy = (
        "; pass a fitted ConvRFMClassifier, ConvRFMRegressor or PatchAGOPTransformer "
        "(of a pipeline, its step)."
        if layers is None
        else " with this kernel, which compares whole images; take a kernel of "
        "patches, such as ConvNTK(), or features."
    )
    raise TypeError(f"{type(estimator).__name__} learns no patch metric{remedy}")


def learned_layer(estimator, layer):
    """Return attributes of a layer (None is that chosen), and the ConvRFM estimator."""
    check_matplotlib()
    check_is_fitted(estimator)
    layers = learned_layers(estimator)
    machine = getattr(estimator, "estimator_", estimator)
    layer = machine.best_layer_ if layer is None else layer
    if layer not in range(len(layers)):
        raise ValueError(
            f"layer={layer!r} is not one of the {len(layers)} of the estimator, "
            f"0 to {len(layers) - 1}."
        )
    return layers[layer], machine
