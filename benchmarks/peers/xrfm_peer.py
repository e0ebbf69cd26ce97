"""Recursive feature machines on flat rows with xRFM.

xRFM chooses its rounds on rows that it does not learn from: a fifth of what it is given
is held out for that. All rows are then fitted with so many rounds.
"""

import numpy as np
import torch
from serving import serve
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from xrfm import xRFM

HELD_OUT = 0.2
FITTED = {}  # what was fitted last, by "rows" and "machine"


def fit(arrays, model, fit, rounds, standardize, seed):
    """Choose the rounds, fit all rows, and return the number of rounds.

    ``model`` and ``fit`` are the two parts of xRFM's ``rfm_params``.
    """
    X, y = arrays["X"], torch.from_numpy(np.int64(arrays["y"]))
    scaler = StandardScaler(with_mean=standardize, with_std=standardize).fit(X)
    FITTED["rows"] = lambda X: torch.from_numpy(np.float32(scaler.transform(X)))
    rows = FITTED["rows"](X)
    kept, held_out = train_test_split(
        np.arange(len(y)), test_size=HELD_OUT, stratify=y, random_state=seed
    )
    judged = rows[held_out], y[held_out]

    def machine(rounds, choose):
        chosen = {"iters": rounds, "return_best_params": choose, "verbose": False}
        params = {"model": model, "fit": {**fit, **chosen, "early_stop_rfm": choose}}
        options = {"device": "cpu", "verbose": False, "random_state": seed}
        return xRFM(rfm_params=params, **options)

    chosen = machine(rounds, choose=True).fit(rows[kept], y[kept], *judged)
    rounds = chosen.trees[0]["model"].best_iter
    # It asks for rows to judge by here too, and nothing depends on them.
    FITTED["machine"] = machine(rounds, choose=False).fit(rows, y, *judged)
    return rounds


def answer(arrays, task, **parameters):
    """Fit ``X`` and ``y``, the result is the rounds; or predict the labels of ``X``."""
    if task == "fit":
        return {}, fit(arrays, **parameters)
    return {}, np.asarray(FITTED["machine"].predict(FITTED["rows"](arrays["X"])))


if __name__ == "__main__":
    serve(answer)
