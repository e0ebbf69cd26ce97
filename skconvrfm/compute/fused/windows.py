"""Window sums of the rows of a map, as they stream through a GPU program."""

import triton.language as tl

from .formulas import device_function


@device_function
def window_row(
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


@device_function
def window_rows(
    state, row, other, LEVELS: tl.constexpr, K: tl.constexpr, TANGENT: tl.constexpr
):
    """Add a row of one map, or of both, to the window sums of a level."""
    AT: tl.constexpr = K * 13
    WIDTH: tl.constexpr = LEVELS[AT + 2]
    TALL: tl.constexpr = LEVELS[AT + 5]
    WIDE: tl.constexpr = LEVELS[AT + 6]
    STATE: tl.constexpr = LEVELS[AT + 7]
    row, waiting = window_row(state, row, STATE, WIDTH, TALL, WIDE)
    if TANGENT:
        other, more = window_row(
            state, other, STATE + (TALL - 1) * WIDTH, WIDTH, TALL, WIDE
        )
        waiting = waiting + more
    return row, other, waiting
