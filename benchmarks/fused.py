r"""The convolutional kernel on a GPU, fused: maps stay in registers.

A lane is a pair of images. A program takes a block of right images with one left
image and a band of columns of the readout with the columns that it looks at, and
streams the rows through: a row of the first layer comes in, passes the ReLU, is added
to the window sums that wait for it, and each window sum that is complete passes on to
the next layer. Only window sums that wait are kept, two rows of two maps a layer for
3 × 3 patches, and no more columns of them than there are registers. The first
covariances are one batched matrix product.

The pullback keeps the input of every layer in memory, and streams from the readout down
to the patches in the same way, a layer a launch.

Where there is no Triton, no CUDA, or a wrong result, `available` is False and the
operations of ``convolutional.py`` serve.

A measured prototype, which the package does not use yet: docs/benchmarks.rst has its
figures on an H100 and an H200, and what it needs around it.
"""

import functools
import math
import os
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # as in builds of torch for the CPU
    triton = None

# arccos(x) / (π sqrt(1 - x)) on [0, 1] as a polynomial in 1 - x, as in compiled.cpp.
_ARC_COSINE = {
    torch.float32: (
        0.45015815152440351381,
        0.037513975889371790987,
        0.0084246799101868681217,
        0.0026301423292364728427,
        0.00042828795217216419444,
        0.0011255480143380693656,
        -0.00067978243361751848978,
        0.00039898953407886895756,
    ),
    torch.float64: (
        0.45015815807855303367,
        0.037513179839880288374,
        0.0084404654638599859191,
        0.0025120432986657556785,
        0.00085479235102181880444,
        0.00031472169062361659029,
        0.00012202546975615803289,
        0.000049337549845467556595,
        0.000019040320636756229827,
        0.000013964276685883178121,
        -0.000013628262712075721932,
        0.000044450145278061059356,
        -0.000081153887617665377596,
        0.00012093827973478794951,
        -0.00013578763924090980839,
        0.00011521738368080832267,
        -0.000071097094503276098457,
        0.000030348227573508243069,
        -8.0251643678362449281e-6,
        1.0096726458324123112e-6,
    ),
}
# Of the check on first use.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Tuning:
    """Sizes that were chosen by measurement.

    Attributes
    ----------
    block : int
        Right images of a program, a power of two.
    warps : int
        Warps of a program.
    registers : int
        Waiting window sums that a lane may keep, in numbers of four bytes.
    columns, pullback_columns : int
        Columns of a band at most: compilation takes about the cube of them.
    right, left : int
        Images on either side of a chunk, powers of two.
    scratch : int
        Bytes of the maps of a chunk.
    together : int
        Layers of the pullback that one launch takes.
    """

    block: int = 128
    warps: int = 4
    registers: int = 80
    columns: int = 10
    pullback_columns: int = 6
    right: int = 1024
    left: int = 256
    scratch: int = 3 * 2**30
    together: int = 1


TUNING = Tuning()
# Rows or columns of windows on a map from which programs would grow too large.
_MOST_WINDOW = 12


# ----------------------------------------------------------------------- device code

if triton is not None:
    # The interpreter prepares itself anew at every call of a function of its own, for
    # much longer than the call takes: there they stay functions of Python.
    _INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
    _function = (lambda function: function) if _INTERPRETED else triton.jit

    _SINGLE = tl.constexpr(_ARC_COSINE[torch.float32])
    _DOUBLE = tl.constexpr(_ARC_COSINE[torch.float64])

    @_function
    def _arc_cosine(cosine):
        """s / π and k0 of κ."""
        size = tl.abs(cosine)
        gap = 1 - size
        root = tl.sqrt(gap)
        if cosine.dtype == tl.float64:
            angle = gap * _DOUBLE[19]
            for k in tl.static_range(18, 0, -1):
                angle = (angle + _DOUBLE[k]) * gap
            angle = (angle + _DOUBLE[0]) * root
        else:
            angle = gap * _SINGLE[7]
            for k in tl.static_range(6, 0, -1):
                angle = (angle + _SINGLE[k]) * gap
            angle = (angle + _SINGLE[0]) * root
        sine = root * tl.sqrt(1 + size) * 0.31830988618379067154
        return sine, tl.where(cosine < 0, angle, 1 - angle)

    @_function
    def _cosine(covariance, scale, below):
        """κ in [-1, 1]; 1 where it is 1 but for rounding, 0 where a patch is blank."""
        cosine = tl.where(scale > 0, covariance / scale, 0.0)
        cosine = tl.where(cosine > below, 1.0, cosine)
        return tl.where(cosine < -1, -1.0, cosine)

    @_function
    def _relu(s, theta, a, b, below):
        """S' and Θ' of one pair."""
        scale = a * b
        cosine = _cosine(s, scale, below)
        sine, k0 = _arc_cosine(cosine)
        return scale * (sine + k0 * cosine), k0 * theta

    @_function
    def _derive_nngp(d, s, a, b, below):
        """Derivatives by S, and by r times b, from the one by S'."""
        cosine = _cosine(s, a * b, below)
        sine, k0 = _arc_cosine(cosine)
        return d * k0, d * sine * b

    @_function
    def _derive_ntk(d, d_theta, s, theta, a, b, below, floor):
        """Derivatives by S, Θ, and by r times b, from those by S' and Θ'."""
        scale = a * b
        cosine = _cosine(s, scale, below)
        sine, k0 = _arc_cosine(cosine)
        # 1 / (π² s r) is 0 where patches are blank, or parallel to rounding.
        regular = (sine > floor) & (scale > 0)
        slope = 0.10132118364233777144 / tl.where(regular, sine * scale, 1.0)
        through_k0 = tl.where(regular, d_theta * theta * slope, 0.0)
        d_scale = d * sine - through_k0 * cosine
        d_theta = d_theta * k0
        # Θ = window sum of Θ' + S
        d_covariance = d * k0 + through_k0 + d_theta
        return d_covariance, d_theta, d_scale * b

    @_function
    def _window_row(
        state,
        row,
        START: tl.constexpr,
        WIDTH: tl.constexpr,
        TALL: tl.constexpr,
        WIDE: tl.constexpr,
    ):
        """Add a row to the window sums that wait for it.

        Returns the sums that are complete, `WIDTH` of them, and those that wait:
        `WIDTH` for every row of a patch but one, from the place `START` of `state` on.
        """
        sums = ()
        for k in tl.static_range(WIDTH):
            x = row[k]
            for q in tl.static_range(1, WIDE):
                x = x + row[k + q]
            sums = sums + (x,)
        complete = sums
        waiting = ()
        if TALL > 1:
            complete = ()
            for k in tl.static_range(WIDTH):
                complete = complete + (state[START + k] + sums[k],)
            for q in tl.static_range(1, TALL - 1):
                for k in tl.static_range(WIDTH):
                    waiting = waiting + (state[START + q * WIDTH + k] + sums[k],)
            waiting = waiting + sums
        return complete, waiting

    @_function
    def _window_rows(
        state, row, other, LEVELS: tl.constexpr, K: tl.constexpr, TANGENT: tl.constexpr
    ):
        """Add a row of one map, or of both, to the window sums of a level."""
        AT: tl.constexpr = K * 13
        WIDTH: tl.constexpr = LEVELS[AT + 2]
        TALL: tl.constexpr = LEVELS[AT + 5]
        WIDE: tl.constexpr = LEVELS[AT + 6]
        STATE: tl.constexpr = LEVELS[AT + 7]
        row, waiting = _window_row(state, row, STATE, WIDTH, TALL, WIDE)
        if TANGENT:
            other, more = _window_row(
                state, other, STATE + (TALL - 1) * WIDTH, WIDTH, TALL, WIDE
            )
            waiting = waiting + more
        return row, other, waiting

    @_function
    def _up_level(
        state,
        s_row,
        theta_row,
        total,
        r,
        start,
        first,
        past,
        s_in,
        theta_in,
        s_out,
        theta_out,
        left,
        right,
        weights,
        scale,
        bias,
        below,
        LEVELS: tl.constexpr,
        K: tl.constexpr,
        KERNEL: tl.constexpr,
        CHUNK: tl.constexpr,
        TOP: tl.constexpr,
        RAW: tl.constexpr,
        STORED: tl.constexpr,
        WEIGHTED: tl.constexpr,
        PADDED: tl.constexpr,
    ):
        """Take a row of the level below through one level."""
        TANGENT: tl.constexpr = KERNEL[0]
        AT: tl.constexpr = K * 13
        ROWS: tl.constexpr = LEVELS[AT]
        COLUMNS: tl.constexpr = LEVELS[AT + 1]
        WIDTH: tl.constexpr = LEVELS[AT + 2]
        TALL: tl.constexpr = LEVELS[AT + 5]
        LEFT: tl.constexpr = CHUNK[0]
        RIGHT: tl.constexpr = CHUNK[1]
        row = r - LEVELS[AT + 4]
        column = start - LEVELS[AT + 3]
        waiting = ()
        if TALL > 0:  # else it is the lowest level, which is read
            s_row, theta_row, waiting = _window_rows(
                state, s_row, theta_row, LEVELS, K, TANGENT
            )
        u = row * COLUMNS + column
        s_in += u * (LEFT * RIGHT)
        theta_in += u * (LEFT * RIGHT)
        s_out += u * (LEFT * RIGHT)
        theta_out += u * (LEFT * RIGHT)
        left += (LEVELS[AT + 8] + u) * LEFT
        right += (LEVELS[AT + 8] + u) * RIGHT
        weights += u
        s_next = ()
        theta_next = ()
        row_total = tl.zeros_like(total)
        for k in tl.static_range(WIDTH):
            inside = (column + k >= 0) & (column + k < COLUMNS)
            inside = inside & (row >= 0) & (row < ROWS)
            if TALL > 0:
                s = s_row[k] + bias
                theta = s
                if TANGENT:
                    theta = theta_row[k] + s
            else:
                at = s_in + k * (LEFT * RIGHT)
                s = tl.load(at, mask=inside, other=0.0) if PADDED else tl.load(at)
                if RAW:
                    s = s * scale + bias
                theta = s
                if TANGENT and not RAW:
                    at = theta_in + k * (LEFT * RIGHT)
                    theta = (
                        tl.load(at, mask=inside, other=0.0) if PADDED else tl.load(at)
                    )
            if STORED and TOP:
                # Bands may overlap; each stores its own columns.
                own = inside & (column + k >= first) & (column + k < past)
                tl.store(s_out + k * (LEFT * RIGHT), s, mask=own)
                if TANGENT:
                    tl.store(theta_out + k * (LEFT * RIGHT), theta, mask=own)
            else:
                at = left + k * LEFT
                to = right + k * RIGHT
                if PADDED:
                    a = tl.load(at, mask=inside, other=0.0)
                    b = tl.load(to, mask=inside, other=0.0)
                else:
                    a = tl.load(at)
                    b = tl.load(to)
                if KERNEL[1]:
                    s, theta = _relu(s, theta, a, b, below)
                else:
                    s, theta = tl.map_elementwise(_relu, s, theta, a, b, below)
                if PADDED:
                    theta = tl.where(inside, theta, 0.0)
                if TOP:
                    value = s + theta if TANGENT else s
                    value = tl.where((column + k >= first) & (row >= 0), value, 0.0)
                    if WEIGHTED:
                        value = value * tl.load(weights + k, mask=inside, other=0.0)
                    row_total += value
                else:
                    s_next = s_next + (s,)
                    if TANGENT:
                        theta_next = theta_next + (theta,)
        return s_next, theta_next, waiting, total + row_total

    @triton.jit
    def _up(
        s_in,
        theta_in,
        s_out,
        theta_out,
        totals,
        left,
        right,
        weights,
        constants,
        n_right,
        diagonal,
        LEVELS: tl.constexpr,
        KERNEL: tl.constexpr,
        CHUNK: tl.constexpr,
        BAND: tl.constexpr,
        RAW: tl.constexpr,
        STORED: tl.constexpr,
        WEIGHTED: tl.constexpr,
        PADDED: tl.constexpr,
    ):
        """Some layers, from maps in memory to maps in memory or to the readout."""
        LEFT: tl.constexpr = CHUNK[0]
        RIGHT: tl.constexpr = CHUNK[1]
        BLOCK: tl.constexpr = CHUNK[2]
        N_LEVELS: tl.constexpr = len(LEVELS) // 13
        N_STATE: tl.constexpr = LEVELS[(N_LEVELS - 1) * 13 + 9]
        band = tl.program_id(0)
        i = tl.program_id(1) // (RIGHT // BLOCK)
        begin = tl.program_id(1) % (RIGHT // BLOCK) * BLOCK
        # Nothing is wanted beyond the last image, nor left of the diagonal.
        if (begin >= n_right) | (begin + BLOCK <= diagonal + i):
            return
        j = begin + tl.arange(0, BLOCK)
        first = band * BAND
        past = first + BAND
        # The last band is shifted to end with the map.
        start = tl.minimum(first, tl.maximum(LEVELS[(N_LEVELS - 1) * 13 + 1] - BAND, 0))
        scale = tl.load(constants)
        bias = tl.load(constants + 1)
        below = tl.load(constants + 3)
        zero = tl.zeros((BLOCK,), dtype=s_in.dtype.element_ty)
        total = zero
        state = (zero,)
        for _extra in tl.static_range(N_STATE):
            state = state + (zero,)
        s_in += i * RIGHT + j
        theta_in += i * RIGHT + j
        s_out += i * RIGHT + j
        theta_out += i * RIGHT + j
        left += i
        right += j
        # Levels that have not begun go along, to no effect: one loop is sooner compiled
        # than one for every level that begins.
        for r in range(LEVELS[(N_LEVELS - 1) * 13 + 10]):
            s_row = ()
            theta_row = ()
            fresh = ()
            for k in tl.static_range(N_LEVELS):
                s_row, theta_row, waiting, total = _up_level(
                    state,
                    s_row,
                    theta_row,
                    total,
                    r,
                    start,
                    first,
                    past,
                    s_in,
                    theta_in,
                    s_out,
                    theta_out,
                    left,
                    right,
                    weights,
                    scale,
                    bias,
                    below,
                    LEVELS,
                    k,
                    KERNEL,
                    CHUNK,
                    k == N_LEVELS - 1,
                    RAW,
                    STORED,
                    WEIGHTED,
                    PADDED,
                )
                fresh = fresh + waiting
            state = fresh + (zero,)
        if not STORED:
            tl.store(totals + (band * LEFT + i) * RIGHT + j, total)

    @_function
    def _down_level(
        state,
        d_row,
        d_theta_row,
        r,
        start,
        first,
        past,
        s_in,
        theta_in,
        d_in,
        d_theta_in,
        d_scale_out,
        d_out,
        d_theta_out,
        out_stride,
        n_right,
        left,
        right,
        weights,
        scale,
        bias,
        mean,
        below,
        floor,
        j,
        LEVELS: tl.constexpr,
        K: tl.constexpr,
        KERNEL: tl.constexpr,
        CHUNK: tl.constexpr,
        READOUT: tl.constexpr,
        STORED: tl.constexpr,
        WEIGHTED: tl.constexpr,
    ):
        """Take derivatives by the output of a layer down to its input."""
        TANGENT: tl.constexpr = KERNEL[0]
        AT: tl.constexpr = K * 13
        ROWS: tl.constexpr = LEVELS[AT]
        COLUMNS: tl.constexpr = LEVELS[AT + 1]
        WIDTH: tl.constexpr = LEVELS[AT + 2]
        TALL: tl.constexpr = LEVELS[AT + 5]
        BOTTOM: tl.constexpr = LEVELS[AT + 11]
        LEFT: tl.constexpr = CHUNK[0]
        RIGHT: tl.constexpr = CHUNK[1]
        PAIRS: tl.constexpr = LEFT * RIGHT
        row = r - LEVELS[AT + 4]
        column = start - LEVELS[AT + 3]
        waiting = ()
        if TALL > 0:
            d_row, d_theta_row, waiting = _window_rows(
                state, d_row, d_theta_row, LEVELS, K, TANGENT
            )
        u = row * COLUMNS + column
        at_u = u * PAIRS
        at_map = (LEVELS[AT + 8] + u) * PAIRS
        left += (LEVELS[AT + 8] + u) * LEFT
        right += (LEVELS[AT + 8] + u) * RIGHT
        # All that is read comes before all that is written: the compiler cannot tell
        # that they are apart, and would wait for one number after the other.
        s_row = ()
        theta_row = ()
        a_row = ()
        b_row = ()
        for k in tl.static_range(WIDTH):
            inside = (column + k >= 0) & (column + k < COLUMNS)
            inside = inside & (row >= 0) & (row < ROWS)
            if TALL == 0:
                if READOUT:
                    d = mean
                    if WEIGHTED:
                        d = mean * tl.load(weights + u + k, mask=inside, other=0.0)
                    d_row = d_row + (d,)
                    d_theta_row = d_theta_row + (d,)
                else:
                    at = d_in + at_u + k * PAIRS
                    d_row = d_row + (tl.load(at, mask=inside, other=0.0),)
                    if TANGENT:
                        at = d_theta_in + at_u + k * PAIRS
                        d = tl.load(at, mask=inside, other=0.0)
                        d_theta_row = d_theta_row + (d,)
            if not (STORED and LEVELS[AT + 12]):
                at = at_map + k * PAIRS
                s = tl.load(s_in + at, mask=inside, other=0.0)
                if BOTTOM:
                    s = s * scale + bias
                theta = s
                if TANGENT and not BOTTOM:
                    theta = tl.load(theta_in + at, mask=inside, other=0.0)
                s_row = s_row + (s,)
                theta_row = theta_row + (theta,)
                a = tl.load(left + k * LEFT, mask=inside, other=0.0)
                b = tl.load(right + k * RIGHT, mask=inside, other=0.0)
                a_row = a_row + (a,)
                b_row = b_row + (b,)
        d_next = ()
        d_theta_next = ()
        for k in tl.static_range(WIDTH):
            inside = (column + k >= 0) & (column + k < COLUMNS)
            inside = inside & (row >= 0) & (row < ROWS)
            own = inside & (column + k >= first) & (column + k < past)
            d = d_row[k]
            if TANGENT:
                d_theta = d_theta_row[k]
            if STORED and LEVELS[AT + 12]:
                at = u * out_stride + k * out_stride
                tl.store(d_out + at, d, mask=own)
                if TANGENT:
                    tl.store(d_theta_out + at, d_theta, mask=own)
            else:
                s = s_row[k]
                a = a_row[k]
                b = b_row[k]
                if TANGENT:
                    theta = theta_row[k]
                    if KERNEL[1]:
                        d, d_theta, d_scale = _derive_ntk(
                            d, d_theta, s, theta, a, b, below, floor
                        )
                    else:
                        d, d_theta, d_scale = tl.map_elementwise(
                            _derive_ntk, d, d_theta, s, theta, a, b, below, floor
                        )
                elif KERNEL[1]:
                    d, d_scale = _derive_nngp(d, s, a, b, below)
                else:
                    d, d_scale = tl.map_elementwise(_derive_nngp, d, s, a, b, below)
                tl.store(d_scale_out + at_map + k * PAIRS, d_scale, mask=own)
                if BOTTOM:
                    # A blank patch has no gradient.
                    d = tl.where(a > 0, d, 0.0)
                    at = u.to(tl.int64) * out_stride + k * out_stride
                    tl.store(d_out + at, d, mask=own & (j < n_right))
                else:
                    d_next = d_next + (tl.where(inside, d, 0.0),)
                    if TANGENT:
                        d_theta_next = d_theta_next + (tl.where(inside, d_theta, 0.0),)
        return d_next, d_theta_next, waiting

    @triton.jit
    def _down(
        s_in,
        theta_in,
        d_in,
        d_theta_in,
        d_scale_out,
        d_out,
        d_theta_out,
        out_stride,
        out_row,
        left,
        right,
        weights,
        constants,
        n_right,
        LEVELS: tl.constexpr,
        KERNEL: tl.constexpr,
        CHUNK: tl.constexpr,
        BAND: tl.constexpr,
        READOUT: tl.constexpr,
        STORED: tl.constexpr,
        WEIGHTED: tl.constexpr,
    ):
        """Derivatives of some layers, from the readout or maps down to maps."""
        RIGHT: tl.constexpr = CHUNK[1]
        BLOCK: tl.constexpr = CHUNK[2]
        N_LEVELS: tl.constexpr = len(LEVELS) // 13
        N_STATE: tl.constexpr = LEVELS[(N_LEVELS - 1) * 13 + 9]
        band = tl.program_id(0)
        i = tl.program_id(1) // (RIGHT // BLOCK)
        begin = tl.program_id(1) % (RIGHT // BLOCK) * BLOCK
        if begin >= n_right:
            return
        j = begin + tl.arange(0, BLOCK)
        first = band * BAND
        past = first + BAND
        start = tl.minimum(first, tl.maximum(LEVELS[(N_LEVELS - 1) * 13 + 1] - BAND, 0))
        scale = tl.load(constants)
        bias = tl.load(constants + 1)
        zero = tl.zeros((BLOCK,), dtype=s_in.dtype.element_ty)
        mean = tl.load(constants + 2) + zero
        below = tl.load(constants + 3)
        floor = tl.load(constants + 4)
        state = (zero,)
        for _extra in tl.static_range(N_STATE):
            state = state + (zero,)
        at = i * RIGHT + j
        s_in += at
        theta_in += at
        d_in += at
        d_theta_in += at
        d_scale_out += at
        d_out += i * out_row + j
        d_theta_out += at
        left += i
        right += j
        for r in range(LEVELS[(N_LEVELS - 1) * 13 + 10]):
            d_row = ()
            d_theta_row = ()
            fresh = ()
            for k in tl.static_range(N_LEVELS):
                d_row, d_theta_row, waiting = _down_level(
                    state,
                    d_row,
                    d_theta_row,
                    r,
                    start,
                    first,
                    past,
                    s_in,
                    theta_in,
                    d_in,
                    d_theta_in,
                    d_scale_out,
                    d_out,
                    d_theta_out,
                    out_stride,
                    n_right,
                    left,
                    right,
                    weights,
                    scale,
                    bias,
                    mean,
                    below,
                    floor,
                    j,
                    LEVELS,
                    k,
                    KERNEL,
                    CHUNK,
                    READOUT,
                    STORED,
                    WEIGHTED,
                )
                fresh = fresh + waiting
            state = fresh + (zero,)


# ----------------------------------------------------------------------- plans


@dataclass(frozen=True)
class _Group:
    """Layers that one launch takes, as the device code reads them.

    Attributes
    ----------
    low, high : int
        The layers from `low` to `high` - 1, upwards or downwards.
    levels : tuple of int
        For every map in the order in which rows pass through: rows, columns, columns
        in a band, how far these begin before the band, rows by which it lags behind
        the first, patch of the window sums in front of it (0 rows where the map is
        read), place of what waits for it, place of its layer among all locations, end
        of what waits for it, end of the rows before the next begins, whether it is
        layer 0, whether it is the last.
    band : int
        Columns of the last map that a program takes.
    n_bands : int
        Programs along the columns.
    padded : bool
        Whether there are zeros around a map.
    """

    low: int
    high: int
    levels: tuple
    band: int
    n_bands: int
    padded: bool


def _lay_out(maps, layers, steps, band, n_maps):
    """The levels of a group for a band of so many columns, and what they keep.

    Parameters
    ----------
    maps : list of (int, int)
        Rows and columns of the maps, in the order in which rows pass.
    layers : list of int
        Their layers.
    steps : list of ((int, int), int, int)
        Patch, and zeros above and to the left, of the window sums between maps.
    band : int
        Columns of the last map.
    n_maps : int
        How many maps are summed.
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
    """The widest band whose window sums fit in registers; None where no column does.

    Bands of about equal width: as many as the widest would need.
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
    """Numbers of the levels, band and number of bands; None where they do not fit.

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
def _plan_up(maps, layers, tangent, sizes, single):
    """Groups of layers from the patches up to the readout.

    Parameters
    ----------
    maps : tuple of (int, int)
        Rows and columns of the maps of all layers.
    layers : tuple of (patch, padding)
        The layers.
    tangent : bool
        Whether there are two maps, or one.
    sizes : (int, int)
        Numbers that a lane may keep, and columns of a band at most.
    single : bool
        Whether the inputs of all layers are wanted, and not the readout.
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
        groups.append(_Group(low, high, *group, padded))
        low = high
    return groups


@functools.lru_cache(maxsize=64)
def _plan_down(maps, layers, tangent, sizes, together):
    """Groups of layers from the readout down to the patches; see `_plan_up`."""
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
        groups.append(_Group(low, high, *group, True))
        high = low
    return groups


# ----------------------------------------------------------------------- host code


def value(kernel, left, right, diagonal=None, memory=None, tuning=None):
    """The kernel between two blocks, as `ConvolutionalKernel.value`.

    Parameters
    ----------
    kernel : ConvolutionalKernel
        The kernel.
    left, right : Block
        The images of the rows and of the columns.
    diagonal : int or None
        Where given, row i may be wrong left of column ``diagonal + i``.
    memory : int, default=None
        Bytes of the maps that may be in use at once; None is as many as pay.
    tuning : Tuning, default=None
        Other sizes than those that were chosen.

    Returns
    -------
    Tensor of shape (len(left), len(right))
    """
    with _on(left.patches.device):
        return _value(kernel, left, right, diagonal, memory, tuning or TUNING)


def _value(kernel, left, right, diagonal, memory, tuning):
    work = _Work(kernel, left, right, memory, tuning)
    out = left.patches.new_empty((len(left), len(right)))
    groups = work.plan_up(single=False)
    totals = work.empty(groups[-1].n_bands, 1)
    for rows, columns in work.chunks():
        past = None if diagonal is None else diagonal + rows.start - columns.start
        if past is not None and columns.stop - columns.start <= past:
            continue
        maps = work.first_covariance(rows, columns, past)
        for group in groups:
            maps = work.up(group, rows, columns, maps, totals, past)
        n_rows, n_columns = rows.stop - rows.start, columns.stop - columns.start
        mean = totals[:, :n_rows, :n_columns].sum(0)
        torch.mul(mean, work.mean, out=out[rows, columns])
    return out


def pullback(kernel, left, right, dual_coef, memory=None, tuning=None):
    """Derivatives, as `ConvolutionalKernel.pullback`.

    Parameters
    ----------
    kernel : ConvolutionalKernel
        The kernel.
    left, right : Block
        Images z at which to differentiate, and centres x_j.
    dual_coef : Tensor of shape (len(right), n_outputs)
        The coefficients of the centres.
    memory : int, default=None
        Bytes of the maps that may be in use at once; None is as many as pay.
    tuning : Tuning, default=None
        Other sizes than those that were chosen.

    Returns
    -------
    weights : Tensor of shape (rows, columns, len(left), len(right))
        ∂k/∂S + ∂k/∂Θ at layer 1, where the images meet.
    self_weights : Tensor of shape (rows, columns, len(left), n_outputs)
        Σ_j α_jo ∂k/∂a at layer 1, everywhere.
    """
    with _on(left.patches.device):
        return _pullback(kernel, left, right, dual_coef, memory, tuning or TUNING)


def _pullback(kernel, left, right, dual_coef, memory, tuning):
    work = _Work(kernel, left, right, memory, tuning, pullback=True)
    weights = left.patches.new_empty((*work.maps[0], len(left), len(right)))
    # ∂k/∂a of every layer, summed over the centres, without the layers above.
    own = left.patches.new_zeros((work.n_locations, len(left), dual_coef.shape[1]))
    d_scale = work.empty(work.n_locations, 1)
    for rows, columns in work.chunks():
        maps = work.forward(rows, columns)
        derivatives = None
        for group in work.plan_down():
            derivatives = work.down(
                group, rows, columns, maps, derivatives, d_scale, weights
            )
        n_rows, n_columns = rows.stop - rows.start, columns.stop - columns.start
        own[:, rows] += d_scale[:, :n_rows, :n_columns] @ dual_coef[columns]
    return weights, _self_weights(kernel, left, work.readout, own)


def _on(device):
    """Make a device the one that Triton launches on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _self_weights(kernel, left, readout, own):
    """Take ∂k/∂a of all layers down to the patches.

    Variances are those of the whole map, wherever the images meet.
    """
    at, total = 0, None
    places = []
    met = left if readout is None else left.at(readout.left)
    for inverse in met.inverse_roots:
        count = inverse[..., 0].numel()
        here = own[at : at + count].unflatten(0, inverse.shape[:2])
        places.append(here * (inverse[..., None] / 2))
        at += count
    for index in reversed(range(len(kernel.layers))):
        shape = (*left.roots[index].shape, own.shape[-1])
        if total is None:
            total = own.new_zeros(shape)
        if readout is None:
            total += places[index]
        else:
            total[readout.left] += places[index]
        if index:
            total = _window_sum_adjoint(total, kernel.layers[index])
    return total


def _window_sum_adjoint(maps, layer):
    """Spread each location over its window."""
    (rows, columns), (top, bottom, left, right) = layer.patch, layer.padding
    edges = (columns - 1 - left, columns - 1 - right, rows - 1 - top, rows - 1 - bottom)
    maps = torch.nn.functional.pad(maps, (0, 0, 0, 0, *edges))
    height, width = (
        n - k + 1 for n, k in zip(maps.shape[:2], layer.patch, strict=True)
    )
    maps = sum(maps[k : k + height] for k in range(rows))
    return sum(maps[:, k : k + width] for k in range(columns))


class _Work:
    """A pair of blocks in chunks that one launch takes.

    Parameters
    ----------
    kernel, left, right, memory
        As `value` takes them.
    tuning : Tuning
        The sizes.
    pullback : bool, default=False
        Whether the maps of all layers are kept.
    """

    def __init__(self, kernel, left, right, memory, tuning, pullback=False):
        self.memory = min(memory or tuning.scratch, tuning.scratch)
        self.readout = getattr(kernel, "readout", None)
        if self.readout is not None:
            left, right = self.readout.meet(left, right)
        self.left, self.right = left, right
        self.tangent = (
            kernel.tangent if hasattr(kernel, "tangent") else kernel.kind == "ntk"
        )
        self.maps = tuple(tuple(root.shape[:2]) for root in left.roots)
        self.layers = tuple((x.patch, x.padding) for x in kernel.layers)
        self.dtype, self.device = left.patches.dtype, left.patches.device
        self.tuning = tuning
        self.shape = self.maps, self.layers, self.tangent
        numbers = tuning.registers * 4 // self.dtype.itemsize
        self.band_sizes = numbers, tuning.columns
        self.n_locations = sum(rows * columns for rows, columns in self.maps)

        weights = None if self.readout is None else self.readout.weights
        self.weighted = weights is not None
        rows, columns = self.maps[-1]
        self.mean = 1.0 if self.weighted else 1 / (rows * columns)
        gap = kernel.parallel_gap(self.dtype)
        floor = math.sqrt(2 * gap) / 2 / math.pi
        numbers = [1 / kernel.channels, kernel.bias**2, self.mean, 1 - gap, floor]
        self.constants = torch.tensor(numbers, dtype=self.dtype, device=self.device)
        self.weights = self.constants
        if self.weighted:
            self.weights = torch.as_tensor(
                weights, dtype=self.dtype, device=self.device
            ).contiguous()

        # The interpreter cannot map functions of numbers.
        self.kernel = (self.tangent, _INTERPRETED)
        self.sides = self._choose_sides(pullback)
        self.steps = [
            math.ceil(len(block) / max(1, math.ceil(len(block) / side))) or 1
            for block, side in zip((left, right), self.sides, strict=True)
        ]
        self.packed_left = _pack(left, self.steps[0], self.sides[0])
        self.packed_right = _pack(right, self.steps[1], self.sides[1])
        self._scratch = {}

    def _choose_sides(self, pullback):
        """Room for images on the left and on the right of a chunk."""
        t, size = self.tuning, self.dtype.itemsize
        locations = self.maps[0][0] * self.maps[0][1]
        if pullback:
            # Inputs and ∂k/∂a of all layers, and derivatives of two.
            n_maps = 2 if self.tangent else 1
            locations = (n_maps + 1) * self.n_locations + 2 * n_maps * locations
        most = min(self.memory // size, 2**31 - 1) // locations
        right = max(t.block, min(t.right, _power_of_two(len(self.right))))
        side = max(1, min(t.left, _power_of_two(len(self.left))))
        while side * right > most and (side > 1 or right > t.block):
            # Long rows for memory, until few images are left on the other side.
            if right > t.block and side < 16:
                right //= 2
            elif side > 1:
                side //= 2
            else:
                right //= 2
        return side, right

    def chunks(self):
        """Slices of the left and of the right images, of about equal sizes."""
        for i in range(0, len(self.left), self.steps[0]):
            for j in range(0, len(self.right), self.steps[1]):
                yield (
                    slice(i, min(i + self.steps[0], len(self.left))),
                    slice(j, min(j + self.steps[1], len(self.right))),
                )

    def empty(self, count, n_maps):
        """Room for maps of a chunk."""
        shape = (count, *self.sides)
        rooms = [
            torch.empty(shape, dtype=self.dtype, device=self.device)
            for _ in range(n_maps)
        ]
        return rooms[0] if n_maps == 1 else rooms

    def scratch(self, name, count):
        """Room for maps that the next chunk uses again."""
        if name not in self._scratch or len(self._scratch[name]) < count:
            self._scratch[name] = self.empty(count, 1)
        return self._scratch[name][:count]

    def plan_up(self, single):
        """See `_plan_up`."""
        return _plan_up(*self.shape, self.band_sizes, single)

    def plan_down(self):
        """See `_plan_down`."""
        sizes = self.band_sizes[0], self.tuning.pullback_columns
        return _plan_down(*self.shape, sizes, self.tuning.together)

    def first_covariance(self, rows, columns, past=None, out=None):
        """Inner products of patches, location by location, not scaled."""
        count = self.maps[0][0] * self.maps[0][1]
        out = self.scratch("first", count) if out is None else out
        # Whole vectors left of the diagonal are not needed.
        skip = max(0, past or 0) // 32 * 32
        x, z = (
            block.patches[..., part].flatten(0, 1)
            for block, part in (
                (self.left, rows),
                (self.right, slice(columns.start + skip, columns.stop)),
            )
        )
        n_rows, n_columns = rows.stop - rows.start, columns.stop - columns.start
        torch.bmm(x.transpose(1, 2), z, out=out[:, :n_rows, skip:n_columns])
        return out, out

    def _grid(self, group, rows):
        blocks = self.sides[1] // self.tuning.block
        return (group.n_bands, (rows.stop - rows.start) * blocks)

    def _packed(self, rows, columns):
        return (
            self.packed_left[rows.start // self.steps[0]],
            self.packed_right[columns.start // self.steps[1]],
        )

    def up(self, group, rows, columns, maps, totals=None, past=None, out=None):
        """One launch upwards; the maps that it puts out, or None at the readout."""
        stored = totals is None or group.high < len(self.maps)
        if stored and out is None:
            last = self.maps[group.high]
            count = last[0] * last[1]
            out = [self.scratch((k, group.high % 2), count) for k in range(2)]
        s_out, theta_out = out if stored else maps
        _up[self._grid(group, rows)](
            *maps,
            s_out,
            theta_out,
            maps[0] if stored else totals,
            *self._packed(rows, columns),
            self.weights,
            self.constants,
            columns.stop - columns.start,
            -self.sides[0] if past is None else past,
            LEVELS=group.levels,
            KERNEL=self.kernel,
            CHUNK=(*self.sides, self.tuning.block),
            BAND=group.band,
            RAW=group.low == 0,
            STORED=stored,
            WEIGHTED=self.weighted,
            PADDED=group.padded,
            num_warps=self.tuning.warps,
            enable_fp_fusion=True,
        )
        return out

    def forward(self, rows, columns):
        """The inputs S and Θ of all layers, each with all locations of all maps."""
        s = self.scratch("s", self.n_locations)
        theta = self.scratch("theta", self.n_locations) if self.tangent else s
        count = self.maps[0][0] * self.maps[0][1]
        self.first_covariance(rows, columns, out=s[:count])
        at, maps = count, (s[:count], s[:count])
        for group in self.plan_up(single=True):
            here = self.maps[group.high]
            count = here[0] * here[1]
            out = (s[at : at + count], theta[at : at + count])
            maps = self.up(group, rows, columns, maps, out=out)
            at += count
        return s, theta

    def down(self, group, rows, columns, maps, derivatives, d_scale, weights):
        """One launch downwards; the derivatives that it puts out."""
        stored = group.low > 0
        if stored:
            last = self.maps[group.low - 1]
            count = last[0] * last[1]
            out = [self.scratch(("d", k, group.low % 2), count) for k in range(2)]
            target, strides = out[0], (self.sides[0] * self.sides[1], self.sides[1])
        else:
            out = None
            target = weights[:, :, rows, columns]
            strides = target.stride()[1:3]
        _down[self._grid(group, rows)](
            *maps,
            *(maps if derivatives is None else derivatives),
            d_scale,
            target,
            out[1] if stored else d_scale,
            *strides,
            *self._packed(rows, columns),
            self.weights,
            self.constants,
            columns.stop - columns.start,
            LEVELS=group.levels,
            KERNEL=self.kernel,
            CHUNK=(*self.sides, self.tuning.block),
            BAND=group.band,
            READOUT=derivatives is None,
            STORED=stored,
            WEIGHTED=self.weighted,
            num_warps=self.tuning.warps,
            enable_fp_fusion=True,
        )
        return out


def _power_of_two(n):
    """The least power of two from n on."""
    return 1 << max(0, n - 1).bit_length()


def _pack(block, step, size):
    """Roots of all layers, (chunks, locations, size), 0 beyond a chunk's images."""
    roots = torch.cat([root.flatten(0, 1) for root in block.roots])
    chunks = math.ceil(roots.shape[-1] / step)
    roots = torch.nn.functional.pad(roots, (0, chunks * step - roots.shape[-1]))
    roots = roots.unflatten(-1, (chunks, step)).transpose(0, 1)
    return torch.nn.functional.pad(roots, (0, size - step)).contiguous()


# ----------------------------------------------------------------------- self-check


def supports(kernel):
    """Tell whether the windows of a kernel are small enough for these programs.

    Parameters
    ----------
    kernel : ConvolutionalKernel
        The kernel. Patches of the first layer may have any size.

    Returns
    -------
    bool
    """
    return all(max(layer.patch) <= _MOST_WINDOW for layer in kernel.layers[1:])


@functools.cache
def available(device):
    """Tell whether fused kernels run on a device, and agree with the plain operations.

    Tried once a process on a few small images, and remembered. Where they fail there
    is one warning, and never an error.

    Parameters
    ----------
    device : torch.device
        Where the blocks are.

    Returns
    -------
    bool
    """
    if triton is None or torch.device(device).type != "cuda":
        return False
    try:
        _check(device)
    except Exception as error:
        warnings.warn(
            f"fused kernels do not work on {device}, whose plain operations serve "
            f"instead: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def _check(device):
    """Compare with plain steps in float64 and their gradient; raise if they differ."""
    generator = torch.Generator().manual_seed(0)
    layers = [
        SimpleNamespace(patch=(3, 3), padding=(1, 1, 1, 1)),
        SimpleNamespace(patch=(3, 3), padding=(0, 0, 0, 0)),
    ]
    kernel = SimpleNamespace(
        tangent=True,
        layers=layers,
        channels=2,
        bias=0.0,
        parallel_gap=lambda dtype: 32 * torch.finfo(dtype).eps,
    )
    patches = [
        torch.randn((7, 6, 5, n), generator=generator, dtype=torch.float64)
        for n in (3, 4)
    ]
    patches[0][2, 3] = 0  # a blank one
    coef = torch.randn((4, 2), generator=generator, dtype=torch.float64)
    exact = _reference(kernel, *patches, coef)
    blocks = [_reference_block(kernel, x.float().to(device)) for x in patches]
    got = value(kernel, *blocks), *pullback(kernel, *blocks, coef.float().to(device))
    for result, expected in zip(got, exact, strict=True):
        error = (result.double().cpu() - expected).norm() / expected.norm()
        if not error < _TOLERANCE:
            raise ArithmeticError(f"results are off by {error:.1e}")


class _Sample(SimpleNamespace):
    """A block of images for the check."""

    def __init__(self, patches, roots, inverse_roots):
        super().__init__(patches=patches, roots=roots, inverse_roots=inverse_roots)

    def __len__(self):
        return self.patches.shape[-1]


def _reference_block(kernel, patches):
    """Patches with what `value` needs to know of them."""
    variances = [patches.square().sum(2) / kernel.channels + kernel.bias**2]
    for layer in kernel.layers[1:]:
        variances.append(_window_sum(variances[-1], layer) + kernel.bias**2)
    roots = [variance.sqrt() for variance in variances]
    inverses = [torch.where(root > 0, 1 / root, 0) for root in roots]
    return _Sample(patches, roots, inverses)


def _window_sum(maps, layer):
    """Sums over windows, of maps (rows, columns, ...)."""
    top, bottom, left, right = layer.padding
    rows, columns = layer.patch
    edges = (0, 0) * (maps.dim() - 2) + (left, right, top, bottom)
    maps = torch.nn.functional.pad(maps, edges)
    height, width = maps.shape[0] - rows + 1, maps.shape[1] - columns + 1
    maps = sum(maps[k : k + height] for k in range(rows))
    return sum(maps[:, k : k + width] for k in range(columns))


def _reference(kernel, x, z, coef):
    """The kernel, its weights and its self-weights, in plain steps."""
    bias, scale = kernel.bias**2, 1 / kernel.channels
    a = (x.square().sum(2) * scale + bias).requires_grad_()
    b = z.square().sum(2) * scale + bias
    first = (x.transpose(-1, -2) @ z * scale + bias).requires_grad_()
    s, theta, variance = first, first, a
    for index, layer in enumerate(kernel.layers):
        if index:
            s = _window_sum(s, layer) + bias
            theta = _window_sum(theta, layer) + s
            variance = _window_sum(variance, layer) + bias
            b = _window_sum(b, layer) + bias
        r = (variance[..., None] * b[:, :, None]).clamp_min(1e-300).sqrt()
        cosine = s / r
        k0 = 1 - torch.arccos(cosine) / math.pi
        s = r * ((1 - cosine.square()).sqrt() / math.pi + k0 * cosine)
        theta = k0 * theta
    result = (s + theta if kernel.tangent else s).mean((0, 1))
    blank = a.detach() == 0
    weights = torch.autograd.grad(result.sum(), first, retain_graph=True)[0]
    own = [
        torch.autograd.grad((result @ column).sum(), a, retain_graph=True)[0]
        for column in coef.T
    ]
    own = torch.stack(own, -1)
    return result.detach(), weights.masked_fill(blank[..., None], 0), own
