"""Sums of maps over the windows of a layer, and their transpose."""

from torch.nn.functional import pad


def window_sum(maps, layer):
    """Return sums of maps (rows, columns, ...) over the windows of a layer."""
    (rows, columns), (top, bottom, left, right) = layer.patch, layer.padding
    maps = _sliding_sum(maps, 0, rows, top, bottom)
    return _sliding_sum(maps, 1, columns, left, right)


def window_sum_adjoint(maps, layer):
    """Spread each location over its window: the transpose of ``window_sum``."""
    (rows, columns), (top, bottom, left, right) = layer.patch, layer.padding
    maps = _sliding_sum(maps, 0, rows, rows - 1 - top, rows - 1 - bottom)
    return _sliding_sum(maps, 1, columns, columns - 1 - left, columns - 1 - right)


def _sliding_sum(maps, dim, size, before, after):
    """Return sums of ``size`` neighbours along ``dim``, padded before and after."""
    if before or after:
        maps = pad(maps, (0, 0) * (maps.ndim - 1 - dim) + (before, after))
    count = maps.shape[dim] - size + 1
    total, offset, width, power = None, 0, 1, maps
    # About log2(size) additions: power holds sums of `width` neighbours, and size is
    # read bit by bit.
    while True:
        if size & width:
            part = power.narrow(dim, offset, count)
            total = part if total is None else total + part
            offset += width
        if 2 * width > size:
            return total
        length = power.shape[dim] - width
        power = power.narrow(dim, 0, length) + power.narrow(dim, width, length)
        width *= 2
