"""Program from the first covariances up to the readout, or to the maps of a layer.

A lane is a pair of images. A program takes a block of right images with one left image
and a band of columns of its last map with the columns that these look at, and streams
the rows through: a row of the first layer comes in, passes the ReLU, is added to the
window sums that wait for it, and each window sum that is complete passes on to the next
layer. Only window sums that wait are kept.
"""

import triton
import triton.language as tl

from .formulas import device_function, relu
from .windows import window_rows


@device_function
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
        s_row, theta_row, waiting = window_rows(
            state, s_row, theta_row, LEVELS, K, TANGENT
        )
    u = row * COLUMNS + column
    s_in += u * (LEFT * RIGHT)
    theta_in += u * (LEFT * RIGHT)
    s_out += u * (LEFT * RIGHT)
    theta_out += u * (LEFT * RIGHT)
    left += (LEVELS[AT + 8] + u) * LEFT
    right += (LEVELS[AT + 8] + u) * RIGHT
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
                theta = tl.load(at, mask=inside, other=0.0) if PADDED else tl.load(at)
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
                s, theta = relu(s, theta, a, b, below)
            else:
                s, theta = tl.map_elementwise(relu, s, theta, a, b, below)
            if PADDED:
                theta = tl.where(inside, theta, 0.0)
            if TOP:
                value = s + theta if TANGENT else s
                value = tl.where((column + k >= first) & (row >= 0), value, 0.0)
                row_total += value
            else:
                s_next = s_next + (s,)
                if TANGENT:
                    theta_next = theta_next + (theta,)
    return s_next, theta_next, waiting, total + row_total


@triton.jit
def up(
    s_in,
    theta_in,
    s_out,
    theta_out,
    totals,
    left,
    right,
    constants,
    n_right,
    diagonal,
    LEVELS: tl.constexpr,
    KERNEL: tl.constexpr,
    CHUNK: tl.constexpr,
    BAND: tl.constexpr,
    RAW: tl.constexpr,
    STORED: tl.constexpr,
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
                PADDED,
            )
            fresh = fresh + waiting
        state = fresh + (zero,)
    if not STORED:
        tl.store(totals + (band * LEFT + i) * RIGHT + j, total)
