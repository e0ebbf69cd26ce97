"""Words for the round that a fit kept, and for where its rounds ended."""

import numpy as np

_NAMES = {"gcv": "GCV", "loo": "leave-one-out loss", "holdout": "held-out loss"}


def criterion_name(history, selection):
    """Return the name of the criterion that chose the rounds of a history."""
    grouped = not np.allclose(history["criterion"], history["gcv"], rtol=1e-6)
    if selection == "gcv" and grouped:
        return "leave-one-group-out loss"
    return _NAMES.get(selection, "GCV")


def short_reason(history, best, selection):
    """Return in a few words why the round ``best`` was kept."""
    criterion = np.asarray(history["criterion"])
    if len(criterion) == 1:
        return "the only round"
    if np.isnan(criterion).any():  # of the fit after a choice
        return "chosen by held-out rows"
    if selection == "last":
        return "the last round"
    name = criterion_name(history, selection)
    if criterion[best] == criterion.min():
        return f"lowest {name}"
    return f"no later {name} is lower by 2 %"


def describe_choice(history, best, selection, n_rounds):
    """Return a sentence about the kept round, its margin and the end of the rounds."""
    criterion, last = np.asarray(history["criterion"]), history["round"][-1]
    reason = short_reason(history, best, selection)
    text = f"kept round {best} of 0 to {last}: {reason}"
    if reason.startswith("lowest"):
        others = np.where(np.arange(len(criterion)) == best, np.inf, criterion)
        second = int(np.argmin(others))
        margin = 1 - criterion[best] / others[second] if others[second] > 0 else 0.0
        text += f", {100 * margin:.2g} % below round {second}"
    lowest = int(np.argmin(criterion))
    if selection == "last" or not lowest < last < n_rounds:
        return text
    name = criterion_name(history, selection)
    return f"{text}; {name} did not improve after round {lowest}, so rounds ended"
