"""Which images carry the patch AGOP: a draw that treats weights as repetitions."""

import numpy as np


def systematic_sample(strata, positions, weights, n_draws, offset):
    """Draw rows in equal steps of weight along an order of the rows.

    Rows are lined up by stratum and, inside it, by position. Equal steps along
    their cumulative weight give every stratum its share, and give the same
    images whether a row has weight 2 or stands there twice.

    Parameters
    ----------
    strata : ndarray of shape (n,)
        A group, or a target, by which the draw is balanced.
    positions : ndarray of shape (n,)
        A number that depends on the row's image alone.
    weights : ndarray of shape (n,)
        The sample weights, all positive.
    n_draws : int
        Number of draws; where it reaches the sum of the weights, all rows are
        taken with their weights.
    offset : float
        Where in its first step the draw begins, in [0, 1).

    Returns
    -------
    rows : ndarray of shape (n_rows,)
        The rows drawn, each once.
    row_weights : ndarray of shape (n_rows,)
        How often each was drawn.
    """
    total = weights.sum()
    if n_draws >= total:
        return np.arange(len(weights)), weights
    order = np.lexsort((positions, strata))
    steps = (np.arange(n_draws) + offset) * (total / n_draws)
    drawn = np.searchsorted(np.cumsum(weights[order]), steps, side="right")
    rows, counts = np.unique(order[drawn.clip(max=len(order) - 1)], return_counts=True)
    return rows, counts.astype(float)
