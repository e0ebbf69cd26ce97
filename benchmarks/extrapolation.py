"""Cost of a fit with features on many workers, from unit costs: a model on paper.

A round passes twice over the images: workers compute features and their D × D sums,
which the parent adds up and decomposes; then features again, each row of which meets
the parent's D × D factor for the leave-one-out predictions. The AGOP of a sample of the
images ends it. Workers compute side by side; the parent sends, receives, adds and
decomposes alone, one thing after another. Numbers of the fit are in bytes, seconds and
operations; unit costs are those of `benchmarks.unit_costs`.
"""

import math
from dataclasses import dataclass

from skconvrfm.learning.recipe import _FEATURE_AGOP_PATCHES

from .features import Case
from .harness import format_table

DOUBLE = 8
# Passes over the images in a round: for the sums, and for what concerns single rows.
PASSES = 2
# D × D arrays that the parent has at once, while it decomposes: the sums, their copy
# of which a band form is made, and two for an inverse or eigenvectors.
PARENT_MATRICES = 4
# Of a row, per output: its target, two predictions without it; and the residuals and
# their squares, of which the loss is the mean.
ROW_OUTPUTS = {"targets": 1, "left-out predictions": 2, "residuals": 2}
# Of a row alone: its weight and its count of observations, its position in draws, its
# label and its stratum.
ROW_NUMBERS = {"weights": 2, "positions": 1, "labels": 2}


@dataclass(frozen=True)
class Fit:
    """A fit with features on many workers.

    Attributes
    ----------
    case : Case
        Images and filters.
    n_images, n_workers : int
        How many there are.
    n_rounds : int, default=1
        AGOP rounds; as round 0 comes before them, one more is fitted.
    n_outputs : int, default=10
        Classes or targets.
    tasks_per_worker : int, default=1
        D × D sums that a worker sends in a pass.
    n_landmarks : int, default=None
        Landmarks of a kernel of the features; None is a linear kernel. Rows of the
        ridge regression then have D = `n_landmarks` columns.
    """

    case: Case
    n_images: int
    n_workers: int
    n_rounds: int = 1
    n_outputs: int = 10
    tasks_per_worker: int = 1
    n_landmarks: int | None = None

    @property
    def rounds_fitted(self):
        """Number of rounds, with the one before the first AGOP."""
        return self.n_rounds + 1

    @property
    def n_features(self):
        """Number of features of an image."""
        return self.case.n_filters * self.case.grid**2

    @property
    def width(self):
        """Number D of columns of the ridge regression."""
        return self.n_landmarks or self.n_features

    @property
    def row_operations(self):
        """Additions and multiplications of K(x, Z) V of a row, with landmarks."""
        return 2 * (self.n_landmarks or 0) * (self.n_features + self.width)

    @property
    def machine_bytes(self):
        """Bytes of what makes the columns: landmarks' features and V, if any."""
        centres = 4 * (self.n_landmarks or 0) * self.n_features
        return centres + (self.matrix_bytes if self.n_landmarks else 0)

    @property
    def matrix_bytes(self):
        """Bytes of a D × D matrix of doubles."""
        return DOUBLE * self.width**2

    @property
    def agop_images(self):
        """Number of images that carry the AGOP, by default."""
        wanted = _FEATURE_AGOP_PATCHES / self.case.layer.n_locations
        return min(self.n_images, math.ceil(wanted))


def agop_operations(case):
    """Return the additions and multiplications of the AGOP of one image."""
    patch_dim = case.patch_size**2 * case.image_shape[2]
    inner = (patch_dim + case.n_filters) * case.n_filters
    return 2 * case.layer.n_locations * inner


def traffic(fit):
    """Return the bytes of one pass, or of one round where there is one such pass.

    Parameters
    ----------
    fit : Fit
        The fit.

    Returns
    -------
    dict
        ``read`` of images by one worker in a pass; ``sums up`` to the parent and
        ``factors down`` from it, of all workers in a round; ``predictions up`` of all
        rows, two numbers for each output.
    """
    return {
        "read": fit.n_images * math.prod(fit.case.image_shape) / fit.n_workers,
        "sums up": fit.n_workers * fit.tasks_per_worker * fit.matrix_bytes,
        "factors down": fit.n_workers * (fit.matrix_bytes + PASSES * fit.machine_bytes),
        "predictions up": 2 * DOUBLE * fit.n_images * fit.n_outputs,
    }


def worker_seconds(fit, costs):
    """Return the seconds of a worker in one round, all workers side by side.

    Parameters
    ----------
    fit : Fit
        The fit.
    costs : dict
        Unit costs of one worker.

    Returns
    -------
    dict
        By part.
    """
    share = fit.n_images / fit.n_workers
    return {
        "features": PASSES * share * fit.case.operations / costs["features"],
        "landmarks": PASSES * share * fit.row_operations / costs["leave_one_out"],
        "sums": share * fit.width**2 / costs["sums"],
        "leave-one-out": share * 2 * fit.width**2 / costs["leave_one_out"],
        "reading images": PASSES * traffic(fit)["read"] / costs["read"],
    }


def parent_seconds(fit, costs):
    """Return the seconds of the parent in one round, in which workers wait.

    Parameters
    ----------
    fit : Fit
        The fit.
    costs : dict
        Unit costs of the parent.

    Returns
    -------
    dict
        By part.
    """
    moved = traffic(fit)
    agop = fit.agop_images * agop_operations(fit.case) / costs["agop"]
    # Gradients of every output, over all landmarks.
    gradients = 2 * (fit.n_landmarks or 0) * fit.n_features * fit.n_outputs
    agop += fit.agop_images * gradients / costs["leave_one_out"]
    return {
        "receiving sums": moved["sums up"] / costs["send"],
        "adding sums": moved["sums up"] / costs["add"],
        "decomposition": costs["decomposition"] * fit.width**3,
        "sending factors": moved["factors down"] / costs["send"],
        "receiving predictions": moved["predictions up"] / costs["send"],
        "AGOP": agop,
    }


def seconds(fit, costs):
    """Return the seconds of the whole fit by part.

    Before the rounds the parent passes once over all images, to put them in an order
    that depends on their content alone.
    """
    in_a_round = {**worker_seconds(fit, costs), **parent_seconds(fit, costs)}
    whole = {part: fit.rounds_fitted * spent for part, spent in in_a_round.items()}
    image_bytes = fit.n_images * math.prod(fit.case.image_shape)
    whole["ordering images"] = image_bytes * (1 / costs["read"] + 1 / costs["order"])
    return whole


def parent_memory(fit):
    """Return the bytes of the parent by part, without images, which stay in files."""
    of_rows = {
        **{part: count * fit.n_outputs for part, count in ROW_OUTPUTS.items()},
        **ROW_NUMBERS,
    }
    return {
        "D × D matrices": PARENT_MATRICES * fit.matrix_bytes,
        **{part: DOUBLE * fit.n_images * count for part, count in of_rows.items()},
    }


def quickest_workers(fit, costs):
    """Return the number of workers from which on more make a fit slower.

    What workers compute is shared out, and what they exchange with the parent grows
    with them: a / W + b W is least at the root of a / b.
    """
    shared = fit.n_workers * sum(worker_seconds(fit, costs).values())
    parts = parent_seconds(fit, costs)
    exchanged = ("receiving sums", "adding sums", "sending factors")
    return math.sqrt(shared / sum(parts[key] for key in exchanged) * fit.n_workers)


def largest(parts):
    """Return the largest part and its share of the sum."""
    name = max(parts, key=parts.get)
    return name, parts[name] / sum(parts.values())


def summarize(fit, costs):
    """Return all numbers of the model.

    Parameters
    ----------
    fit : Fit
        The fit.
    costs : dict
        Unit costs.

    Returns
    -------
    dict
        ``seconds`` of the fit and ``memory`` of the parent by part, ``traffic``, the
        ``parent share`` of the time, the quickest number of ``workers``,
        ``machine hours`` of them and the parent, and what ``breaks first`` of time and
        memory.
    """
    spent, memory = seconds(fit, costs), parent_memory(fit)
    by_workers = fit.rounds_fitted * sum(worker_seconds(fit, costs).values())
    return {
        "seconds": spent,
        "memory": memory,
        "traffic": traffic(fit),
        "parent share": 1 - by_workers / sum(spent.values()),
        "workers": quickest_workers(fit, costs),
        "machine hours": (fit.n_workers + 1) * sum(spent.values()) / 3600,
        "breaks first": {"time": largest(spent), "memory": largest(memory)},
    }


def tabulate(fit, costs, price=None):
    """Return the numbers of `summarize` as tables, a list of str.

    ``price`` is that of an hour of a machine.
    """
    found = summarize(fit, costs)
    title = (
        f"{fit.n_images:,} images of {'×'.join(map(str, fit.case.image_shape))}, "
        f"{fit.case.n_filters} filters, "
        + (f"{fit.n_landmarks} landmarks, " if fit.n_landmarks else "")
        + f"D = {fit.width}, {fit.n_workers} workers, "
        f"{fit.rounds_fitted} rounds with round 0"
    )
    of_workers = worker_seconds(fit, costs)
    spent = {
        f"{part}, {'each worker' if part in of_workers else 'the parent'}": value
        for part, value in found["seconds"].items()
    }
    moved = [[part, count / 1e9] for part, count in found["traffic"].items()]
    memory = {part: count / 1e9 for part, count in found["memory"].items()}
    first = {key: f"{n} ({s:.0%})" for key, (n, s) in found["breaks first"].items()}
    hours = found["machine hours"]
    paid = "" if price is None else f", {price * hours:.2f} at {price} an hour"
    return [
        title,
        _table_of_shares("time of the fit", "s", spent),
        format_table(["moved in a round (read: a worker and pass)", "GB"], moved),
        _table_of_shares("memory of the parent", "GB", memory),
        f"What breaks first. Time: {first['time']}; memory: {first['memory']}.\n"
        f"The parent alone: {found['parent share']:.0%} of the time. From "
        f"{found['workers']:.0f} workers on, more of them make the fit slower.\n"
        f"Hours of machines, with the parent's: {hours:.1f}{paid}.",
    ]


def _table_of_shares(title, unit, parts):
    """Return a table of parts, their shares, and their sum."""
    whole = sum(parts.values())
    rows = [[part, value, f"{value / whole:.0%}"] for part, value in parts.items()]
    return format_table([title, unit, "share"], [*rows, ["all", whole, "100%"]])
