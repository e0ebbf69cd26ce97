"""``python -m benchmarks.compare``: the engine side by side with neural-tangents.

Ours and the peer take turns (A B A B …), so that what else the machine does hits both;
results are checked to agree before any time is printed. Both are warm: compilation is
not counted. Nothing but the machine is shared: the peer lives in its own process and
environment, which is built when missing.
"""

import argparse
import itertools
import os
from dataclasses import dataclass

import numpy as np
import torch

from skconvrfm.kernels import ConvNTK, patch_agop

from .harness import (
    format_table,
    load_images,
    median,
    report,
    smooth_images,
    tell_differences,
    timed,
)
from .peers.client import PeerWorker, build_environment

PEER = "neural_tangents"
TOLERANCE = 1e-4
PATCH_SIZE = 3


@dataclass(frozen=True)
class Case:
    """One computation that both sides can do.

    Attributes
    ----------
    task : {"kernel", "agop"}
        What is computed.
    depth : int
        Convolutions.
    n_classes, n_points : int
        Of an AGOP.
    with_peer : bool
        Whether the peer does it too, unless asked for everything.
    """

    task: str
    depth: int
    n_classes: int = 0
    n_points: int = 0
    with_peer: bool = True

    @property
    def kernel(self):
        """Kernel of the network, without biases."""
        return ConvNTK(self.depth, patch_size=PATCH_SIZE, bias=0)

    def make_arrays(self, images):
        """Return the input: images, for an AGOP also coefficients and points."""
        if self.task == "kernel":
            return {"images": images}
        coef = np.random.default_rng(0).standard_normal((len(images), self.n_classes))
        return {
            "images": images,
            "dual_coef": np.float32(coef / len(images)),
            "points": images[: self.n_points],
        }

    def elements(self, images):
        """Return pairs · locations, summed over the layers: the unit of cost."""
        n, h, w = images.shape[:3]
        pairs = n * (n + 1) // 2 if self.task == "kernel" else n * self.n_points
        shrink = PATCH_SIZE - 1
        layers = range(1, self.depth + 1)
        return pairs * sum((h - shrink * k) * (w - shrink * k) for k in layers)


CASES = {
    "kernel-depth3": Case("kernel", depth=3),
    "kernel-depth1": Case("kernel", depth=1),
    "agop-depth3-10classes": Case("agop", depth=3, n_classes=10, n_points=20),
    "agop-depth1-10classes": Case("agop", depth=1, n_classes=10, n_points=20),
    "agop-depth3-100classes": Case(
        "agop", depth=3, n_classes=100, n_points=20, with_peer=False
    ),
}

# What is tried to find the peer's best.
PEER_CHOICES = {
    "kernel": {
        "block_size": [10, 20, 25, 40, 50],
        "n_threads": [1, 2],
        "readout": ["apart", "fused"],
    },
    "agop": {
        "block_size": [10, 25, 50],
        "block_points": [2, 5, 10],
        "n_threads": [1, 2],
        "class_map": ["vmap", "lax.map"],
    },
}


def compute_ours(case, arrays):
    """Compute a case with skconvrfm.

    Parameters
    ----------
    case : Case
        What to compute.
    arrays : dict of ndarray
        Its input, from `Case.make_arrays`.

    Returns
    -------
    ndarray
        Kernel or AGOP.
    """
    images = arrays["images"]
    transform = arrays.get("patch_transform")
    shared = {"patch_transform": transform, "dtype": "float32"}
    if case.task == "kernel":
        return case.kernel(images, **shared)
    centres_and_points = images, arrays["dual_coef"], arrays["points"]
    return patch_agop(case.kernel, *centres_and_points, **shared)


def ask_peer(worker, case, arrays, **choices):
    """Compute a case with the peer; return its answer and its result."""
    return worker.compute(
        arrays, task=case.task, depth=case.depth, patch_size=PATCH_SIZE, **choices
    )


def disagreement(ours, theirs):
    """Return the largest difference relative to the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def compare_case(case, images, rounds, worker=None):
    """Measure one case, in turns.

    Parameters
    ----------
    case : Case
        What to compute.
    images : ndarray of shape (n, h, w, c)
        The images.
    rounds : int
        Turns of each side.
    worker : PeerWorker, default=None
        The peer; None measures ours alone.

    Returns
    -------
    dict
        All times by side, and the disagreement of the results.
    """
    arrays = case.make_arrays(images)
    compute_ours(case, arrays)
    measured = {"elements": case.elements(images), "ours": [], "peer": []}
    for _ in range(rounds):
        times, ours = timed(compute_ours, case, arrays)
        measured["ours"].append(times)
        if worker is not None:
            times, theirs = ask_peer(worker, case, arrays)
            measured["peer"].append(times)
    if worker is not None:
        measured["disagreement"] = disagreement(ours, theirs)
    return measured


def summarize(measured):
    """Add the medians, the cost of an element and the ratio to what was measured.

    Parameters
    ----------
    measured : dict
        From `compare_case`.

    Returns
    -------
    dict
        ``ours`` and ``peer``: median seconds, CPU seconds and nanoseconds an
        element; ``ratio`` and ``cpu_ratio``: how many times the peer's time is ours.
    """
    summary = {}
    for side in ("ours", "peer"):
        if not measured[side]:
            continue
        medians = {
            key: median([times[key] for times in measured[side]])
            for key in ("seconds", "cpu_seconds")
        }
        medians["nanoseconds"] = medians["seconds"] / measured["elements"] * 1e9
        summary[side] = medians
    if "peer" in summary:
        ours, peer = summary["ours"], summary["peer"]
        summary["ratio"] = peer["seconds"] / ours["seconds"]
        summary["cpu_ratio"] = peer["cpu_seconds"] / ours["cpu_seconds"]
    return summary


def make_tables(cases):
    """Return the table of the cases, and the line about classes if both are there.

    Parameters
    ----------
    cases : dict
        What was measured and its ``summary``, by name.

    Returns
    -------
    list of str
    """
    headers = ["case", "ours s", "peer s", "ratio"]
    headers += ["ours ns", "peer ns", "ours CPU s", "peer CPU s", "CPU ratio", "differ"]
    rows = []
    for name, measured in cases.items():
        summary = measured["summary"]
        ours, peer = summary["ours"], summary.get("peer", {})
        row = [name, ours["seconds"], peer.get("seconds"), summary.get("ratio")]
        row += [ours["nanoseconds"], peer.get("nanoseconds")]
        row += [ours["cpu_seconds"], peer.get("cpu_seconds"), summary.get("cpu_ratio")]
        row += [measured.get("disagreement")]
        rows.append(row)
    tables = [format_table(headers, rows)]
    few, many = "agop-depth3-10classes", "agop-depth3-100classes"
    if few in cases and many in cases:
        ratio = np.divide(
            cases[many]["summary"]["ours"]["seconds"],
            cases[few]["summary"]["ours"]["seconds"],
        )
        tables.append(f"AGOP, ours, 100 classes over 10: {ratio:.2f}")
    return tables


def use_cores(n_cores):
    """Bind this process and the peer that it starts to so many cores.

    Parameters
    ----------
    n_cores : int
        Cores, and threads of torch; the peer counts the cores itself.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n_cores])
    torch.set_num_threads(n_cores)


def tune_peer(worker, case, images):
    """Measure the peer with every combination of its choices.

    Parameters
    ----------
    worker : PeerWorker
        The peer.
    case : Case
        What to compute.
    images : ndarray of shape (n, h, w, c)
        The images.

    Returns
    -------
    list of dict
        Choices, best seconds and CPU seconds of two runs, fastest first.
    """
    arrays = case.make_arrays(images)
    names, values = zip(*PEER_CHOICES[case.task].items(), strict=True)
    tried = []
    for combination in itertools.product(*values):
        choices = dict(zip(names, combination, strict=True))
        answers = [ask_peer(worker, case, arrays, **choices)[0] for _ in range(2)]
        best = min(answers, key=lambda answer: answer["seconds"])
        tried.append({**choices, **best})
    return sorted(tried, key=lambda row: row["seconds"])


def parse_options(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--images", type=int, default=400, help="images, or centres")
    parser.add_argument("--data", metavar="FILE.npz", help="images from its X_train")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument(
        "--peer",
        choices=["auto", "all", "none"],
        default="auto",
        help="auto spares the peer the 100 classes",
    )
    parser.add_argument(
        "--cores",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="cores and threads of either side; 1 is the surer where others compute",
    )
    parser.add_argument(
        "--tune", action="store_true", help="search the peer's best options instead"
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Run the command line."""
    options = parse_options(argv)
    use_cores(options.cores)
    if options.data:
        images = load_images(options.data, options.images)
    else:
        images = smooth_images(options.images)
    cases = {name: CASES[name] for name in options.cases}
    if options.peer == "none":
        results = {
            name: compare_case(case, images, options.rounds)
            for name, case in cases.items()
        }
        return _finish(results, None, options)
    build_environment(PEER)
    with PeerWorker(PEER) as worker:
        if options.tune:
            tuned = {n: tune_peer(worker, case, images) for n, case in cases.items()}
            tables = [f"{name}\n{_tuned_table(rows)}" for name, rows in tuned.items()]
            report(tables, {"tuned": tuned}, options.json)
            return 0
        results = {}
        for name, case in cases.items():
            takes_part = case.with_peer or options.peer == "all"
            results[name] = compare_case(
                case, images, options.rounds, worker if takes_part else None
            )
        return _finish(results, worker.ask(task="info"), options)


def _tuned_table(rows):
    return format_table(list(rows[0]), [list(row.values()) for row in rows])


def _finish(results, peer_versions, options):
    """Report the results; fail where they disagree."""
    for measured in results.values():
        measured["summary"] = summarize(measured)
    everything = {"cases": results, "peer_versions": peer_versions}
    report(make_tables(results), everything, options.json)
    differences = {name: one.get("disagreement") for name, one in results.items()}
    return tell_differences(differences, TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
