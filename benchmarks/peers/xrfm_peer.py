"""The peer of the comparison: recursive feature machines on flat rows with xRFM.

It runs in a virtual environment of its own (``xrfm_requirements.txt``), imports nothing
of skconvrfm, and is a worker like the others. A request has a ``task``:

- ``info``: the answer has the ``version``;
- ``fit``: ``input`` is an .npz file with ``X`` (n, d) and ``y`` (n,), integers from 0.
  ``model`` and ``fit`` are the two parts of xRFM's ``rfm_params``; ``rounds`` are the
  most rounds of the AGOP, ``standardize`` is whether columns are, and ``seed`` is that
  of the rows held out. ``output`` is the .npz file to write, whose ``result`` is the
  number of rounds that was chosen;
- ``predict``: ``input`` has ``X``, and ``result`` in ``output`` are the labels that the
  model fitted last gives.

xRFM chooses its rounds on rows that it does not learn from: a fifth of what it is given
is held out for that. All rows are then fitted with so many rounds.
"""

from importlib.metadata import version

import numpy as np
import torch
from serving import serve
from sklearn.model_selection import train_test_split
from xrfm import xRFM

HELD_OUT = 0.2


class Machine:
    """An xRFM, and the means and deviations that its columns are freed from."""

    def __init__(self, model, fit, rounds, standardize, seed):
        self._model, self._fit, self._standardize = model, fit, standardize
        self._most_rounds, self._seed = rounds, seed

    def fit(self, X, y):
        """Choose the rounds and fit all rows; return their number."""
        self._mean, self._deviation = 0, 1
        if self._standardize:
            deviation = X.std(0)
            self._mean = X.mean(0)
            self._deviation = np.where(deviation > 0, deviation, 1)
        rows, labels = self._rows(X), torch.from_numpy(np.int64(y))
        kept, held_out = train_test_split(
            np.arange(len(y)), test_size=HELD_OUT, stratify=y, random_state=self._seed
        )
        parts = rows[kept], labels[kept], rows[held_out], labels[held_out]
        chosen = self._machine(self._most_rounds, choose=True).fit(*parts)
        rounds = chosen.trees[0]["model"].best_iter
        # It asks for rows to judge by here too, and nothing depends on them.
        self._machine_ = self._machine(rounds, choose=False)
        self._machine_.fit(rows, labels, *parts[2:])
        return rounds

    def predict(self, X):
        """Labels of rows."""
        return np.asarray(self._machine_.predict(self._rows(X)))

    def _rows(self, X):
        return torch.from_numpy(np.float32((X - self._mean) / self._deviation))

    def _machine(self, rounds, choose):
        chosen = {
            "iters": rounds,
            "return_best_params": choose,
            "early_stop_rfm": choose,
            "verbose": False,
        }
        return xRFM(
            rfm_params={"model": self._model, "fit": {**self._fit, **chosen}},
            device="cpu",
            verbose=False,
            random_state=self._seed,
        )


class Worker:
    """Answers requests; keeps the machine that was fitted last."""

    def answer(self, request):
        """Do what a request asks for and return the answer."""
        if request["task"] == "info":
            return {"version": version("xrfm")}
        with np.load(request["input"]) as archive:
            arrays = dict(archive)
        if request["task"] == "fit":
            names = ("model", "fit", "rounds", "standardize", "seed")
            self._machine = Machine(**{name: request[name] for name in names})
            result = self._machine.fit(arrays["X"], arrays["y"])
        else:
            result = self._machine.predict(arrays["X"])
        np.savez(request["output"], result=result)
        return {}


if __name__ == "__main__":
    serve(Worker().answer)
