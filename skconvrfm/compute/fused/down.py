"""Program of the pullback: from the readout, or the maps of a layer, to those below.

Rows stream through as they do upwards, see `up.py`.
"""

import triton
import triton.language as tl

from .formulas import derive_nngp, derive_ntk, device_function
from .windows import window_rows


@device_function
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
        d_row, d_theta_row, waiting = window_rows(
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
                d_row = d_row + (mean,)
                d_theta_row = d_theta_row + (mean,)
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
                    d, d_theta, d_scale = derive_ntk(
                        d, d_theta, s, theta, a, b, below, floor
                    )
                else:
                    d, d_theta, d_scale = tl.map_elementwise(
                        derive_ntk, d, d_theta, s, theta, a, b, below, floor
                    )
            elif KERNEL[1]:
                d, d_scale = derive_nngp(d, s, a, b, below)
            else:
                d, d_scale = tl.map_elementwise(derive_nngp, d, s, a, b, below)
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
def down(
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
    constants,
    n_right,
    LEVELS: tl.constexpr,
    KERNEL: tl.constexpr,
    CHUNK: tl.constexpr,
    BAND: tl.constexpr,
    READOUT: tl.constexpr,
    STORED: tl.constexpr,
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
            )
            fresh = fresh + waiting
        state = fresh + (zero,)
