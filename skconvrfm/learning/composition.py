"""Combinations of kernels and feature layers, and layers for a shape of images."""

from .._input import check_pair
from ..features.layer import ConvFeatures
from ..kernels.base import PatchKernel
from ..kernels.whole import WholeKernel

# Shorter sides of an image from which on there are two layers, and larger patches. Maps
# of the first of two layers have about so many rows.
_TWO_LAYERS, _LARGE_PATCHES, _SMALL_PATCHES = 24, 48, 12
_MAP_ROWS = 14


def auto_features(image_shape):
    """Return the feature layers for images, or rows, of a shape, from the image up.

    Their filters are chosen; metrics of whitened patches are not learned, which did not
    pay where they were measured. The second layer's filters are many and the first's
    few, whose number multiplies the cost of the second.
    """
    chosen = {"candidates": 3, "learn": False}
    shorter, longer = sorted(image_shape[:2])
    if shorter < _TWO_LAYERS:
        patch = 5 if longer >= _SMALL_PATCHES else 3
        return [ConvFeatures(patch_size=patch, **chosen)]
    patch = 7 if shorter >= _LARGE_PATCHES else 5
    size = max(2, round((shorter - patch + 1) / _MAP_ROWS))
    return [
        ConvFeatures(
            96,
            patch_size=patch,
            normalize="auto",
            pool_size=size,
            pool_overlap=1.0,
            **chosen,
        ),
        ConvFeatures(
            patch_size=3, shrinkage=3.0, pool="auto", pool_overlap=0.5, **chosen
        ),
    ]


def check_composition(kernel, features):
    """Refuse kernels and feature layers that cannot be combined, and name both."""
    kernel._validate_params()
    for index, layer in enumerate(features):
        if not isinstance(layer, ConvFeatures):
            raise ValueError(
                f"features[{index}]={layer!r} is not a ConvFeatures: pass one, or a "
                "list of them from the image up."
            )
        layer._validate_params()
        if isinstance(kernel, PatchKernel):
            _check_layer_of_deep(index, layer, kernel)
        above = [*features[index + 1 :], kernel][0]
        if layer.pool == "auto" and not isinstance(above, WholeKernel):
            raise ValueError(
                f"features[{index}].pool='auto' is chosen of the last layer, below a "
                f"kernel of whole maps, and this is below {type(above).__name__}: take "
                f"features[{index}].pool='root'."
            )
        if layer.normalize == "auto" and not isinstance(kernel, WholeKernel):
            raise ValueError(
                f"features[{index}].normalize='auto' is chosen below a kernel of whole "
                f"maps, and kernel is {type(kernel).__name__}: take "
                f"features[{index}].normalize=1.0."
            )
        if layer.mirror and not isinstance(above, WholeKernel):
            raise ValueError(
                f"features[{index}].mirror=True would average the maps of an image and "
                f"its mirror below {type(above).__name__}, which sees those of one: "
                "the mirror belongs to the last layer, below a kernel of whole maps "
                f"such as Gaussian(). Take features[{index}].mirror=False."
            )
    if features and getattr(kernel, "mirror", False):
        raise ValueError(
            f"kernel={type(kernel).__name__}(mirror=True) sees the maps of features="
            f"{features!r}, and the mirror of a map is not the map of the mirrored "
            "image: take mirror=False, or features=None."
        )
    _check_scales(kernel, features)
    for index, above in enumerate([*features[1:], kernel][: len(features)]):
        _check_room(index, features[index], above, index + 1 == len(features))


def _check_scales(kernel, features):
    """Refuse a scale of what sees maps: images are divided below the first layer."""
    above = [(f"features[{i}]", layer) for i, layer in enumerate(features)][1:]
    for name, part in [*above, ("kernel", kernel)] if features else ():
        if part.scale != "auto":
            raise ValueError(
                f"{name}.scale={part.scale!r} has no effect above features[0]="
                f"{features[0]!r}, which sees the images: take features[0].scale="
                f"{part.scale!r}, and {name}.scale='auto'."
            )


def _check_layer_of_deep(index, layer, kernel):
    """Refuse options of a layer that a kernel of patches above it makes void."""
    for name, default in (("candidates", 1), ("learn", True), ("skip", False)):
        value = getattr(layer, name)
        if value != default:
            raise ValueError(
                f"features[{index}].{name}={value!r} has no effect below "
                f"kernel={type(kernel).__name__}, whose layers are fitted one upon the "
                f"other: take {name}={default!r}, or a kernel of whole maps such as "
                "Gaussian()."
            )


def _check_room(index, layer, above, is_last):
    """Refuse a pool whose grid has no room for the patches of the layer above."""
    if layer.pool_size is not None or layer.pool_grid is None:
        return
    if is_last and not isinstance(above, PatchKernel):
        return
    grid, name = layer.grid, f"features[{index + 1}]"
    settings = f"patch_size={above.patch_size!r}"
    if is_last:
        name = f"kernel={type(above).__name__}"
        settings = f"depth={above.depth}, {settings}"
    if max(grid) == 1:
        raise ValueError(
            f"features[{index}].pool_grid={layer.pool_grid!r} leaves one location, on "
            f"which {name} ({settings}) has no patches to compare: take pool_grid=None "
            "or pool_size=2 below it, or a kernel of whole maps such as Gaussian()."
        )
    if above.padding == "valid" and is_last and above.depth > 1:
        sizes = check_pair(above.patch_size, "patch_size")
        needed = [above.depth * (size - 1) + 1 for size in sizes]
        if any(n > g > 1 for n, g in zip(needed, grid, strict=True)):
            raise ValueError(
                f"features[{index}].pool_grid={layer.pool_grid!r} leaves a map that "
                f"{name} ({settings}) does not fit on, which needs {needed[0]} × "
                f"{needed[1]} locations: take pool_grid=None or pool_size=2, or a "
                "smaller depth."
            )


def check_patience(n_iter_no_change, selection):
    """Refuse a number of rounds to wait for where no criterion chooses the round."""
    if selection == "last" and n_iter_no_change not in (None, 1):
        raise ValueError(
            f"n_iter_no_change={n_iter_no_change} waits for a criterion, but "
            "selection='last' takes the last of all n_rounds without one: leave "
            "n_iter_no_change at 1 or None, or take selection='gcv'."
        )
