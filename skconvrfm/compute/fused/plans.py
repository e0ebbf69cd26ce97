"""Plans of the launches: which layers one takes, and in how wide bands."""

import functools
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Layers that one launch takes, from ``low`` to ``high`` - 1.

    ``levels`` has 13 numbers for every map, in the order in which rows pass through:

    0 to 4
        rows; columns; columns in a band; how far these begin before the band; rows by
        which the map lags behind the first
    5, 6
        patch of the window sums in front of it, 0 rows where the map is read
    7 to 10
        place of what waits for it; place of its layer among all locations; end of what
        waits for it; end of the rows before the next begins
    11, 12
        whether it is layer 0; whether it is the last
    """

    low: int
    high: int
    levels: tuple[int, ...]
    band: int  # columns of the last map that a program takes
    n_bands: int  # programs along the columns
    padded: bool  # zeros around a map


def _lay_out(maps, layers, steps, band, n_maps):
    """Return the levels of a group for a band of so many columns, and what they keep.

    ``maps`` are the rows and columns of the maps, in the order in which rows pass,
    ``layers`` their layers, ``steps`` the patch, and the zeros above and to the left,
    of the window sums between them. ``n_maps`` are summed.
    """
    widths, shifts, lags = [band], [0], [0]
    for patch, _, left in reversed(steps):
        widths.insert(0, widths[0] + patch[1] - 1)
        shifts.insert(0, shifts[0] + left)
    for patch, top, _ in steps:
        lags.append(lags[-1] + patch[0] - 1 - top)
    ends = [*lags[1:], maps[-1][0] + lags[-1]]
    levels, state = [], 0
    for k, (rows, columns) in enumerate(maps):
        patch = steps[k - 1][0] if k else (0, 0)
        place = state
        state += n_maps * max(0, patch[0] - 1) * widths[k]
        levels.append(
            (rows, columns, widths[k], shifts[k], lags[k], *patch, place)
            + (layers[k], state, ends[k], layers[k] == 0, k == len(maps) - 1)
        )
    return levels, state


def _fit_band(maps, layers, steps, n_maps, most, widest):
    """Return the widest band whose window sums fit in registers, or None.

    Bands are of about equal width: as many as the widest would need.
    """
    columns = maps[-1][1]
    band = min(columns, widest)
    while band > 1 and _lay_out(maps, layers, steps, band, n_maps)[1] > most:
        band -= 1
    levels, state = _lay_out(maps, layers, steps, band, n_maps)
    if state > most:
        return None
    n_bands = math.ceil(columns / band)
    band = math.ceil(columns / n_bands)
    return _lay_out(maps, layers, steps, band, n_maps)[0], band, n_bands


def _group(maps, layers, steps, n_maps, sizes, offsets):
    """Return the numbers of the levels, the band and their count; None if none fits.

    One step always fits: registers may spill, but there is no other way.
    """
    fitted = _fit_band(maps, layers, steps, n_maps, *sizes)
    if fitted is None and len(steps) > 1:
        return None
    if fitted is None:
        fitted = _lay_out(maps, layers, steps, 1, n_maps)[0], 1, maps[-1][1]
    levels, band, n_bands = fitted
    levels = tuple(
        int(number)
        for level in levels
        for number in (*level[:8], offsets[level[8]], *level[9:])
    )
    return levels, band, n_bands


def _offsets(maps):
    """Return the beginnings of the locations of each map among those of all."""
    offsets = [0]
    for rows, columns in maps:
        offsets.append(offsets[-1] + rows * columns)
    return offsets


@functools.lru_cache(maxsize=64)
def plan_up(maps, layers, tangent, sizes, single):
    """Return the groups of layers from the patches up to the readout.

    ``maps`` are the rows and columns of the maps of all layers, ``layers`` their patch
    and padding, ``sizes`` the numbers that a lane may keep and the most columns of a
    band. With ``single`` the inputs of all layers are wanted, and not the readout.
    """
    offsets, groups, low = _offsets(maps), [], 0
    steps = [(patch, top, left) for patch, (top, _, left, _) in layers]
    padded = any(any(padding) for _, padding in layers[1:])
    while low < len(maps):
        if single and low == len(maps) - 1:
            break
        for high in range(low + 1 if single else len(maps), low, -1):
            stored = single or high < len(maps)
            end = high + 1 if stored else high
            group = _group(
                maps[low:end],
                list(range(low, end)),
                steps[low + 1 : end],
                2 if tangent else 1,
                sizes,
                offsets,
            )
            if group is not None:
                break
        groups.append(Group(low, high, *group, padded))
        low = high
    return groups


@functools.lru_cache(maxsize=64)
def plan_down(maps, layers, tangent, sizes, together):
    """Return the groups of layers from the readout down, see `plan_up`."""
    offsets, groups, high = _offsets(maps), [], len(maps)
    steps = [
        (patch, patch[0] - 1 - top, patch[1] - 1 - left)
        for patch, (top, _, left, _) in layers
    ]
    while high > 0:
        for low in range(max(0, high - together), high):
            end = low - 1 if low else 0  # the map that is put out
            order = list(range(high - 1, end - 1, -1))
            group = _group(
                [maps[k] for k in order],
                order,
                [steps[k] for k in order[:-1]],
                2 if tangent else 1,
                sizes,
                offsets,
            )
            if group is not None:
                break
        groups.append(Group(low, high, *group, True))
        high = low
    return groups
