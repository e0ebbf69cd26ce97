"""
A fit on a cluster
==================

A Dask cluster can run the loops of a fit, through joblib. This one has two worker
processes on one machine; for many machines only the address differs. Workers import
this file, so it ends with a `__main__` guard.
"""

import time

import joblib
import matplotlib.pyplot as plt
import numpy as np
from dask.distributed import Client, LocalCluster, get_task_stream

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import make_framed_digits
from skconvrfm.features import ConvFeatures

# %%
# The same fit, wherever it runs
# ------------------------------
# `n_jobs=None` takes all workers that the cluster has.

X, y = make_framed_digits(random_state=0)
X, y = X.astype(np.float32)[:1000], y[:1000]
clf = ConvRFMClassifier("linear", features=ConvFeatures(64, patch_size=5), n_rounds=1)


def timed_fit():
    """Seconds of a fit, and its scores for the first images."""
    start = time.perf_counter()
    clf.fit(X, y)
    return time.perf_counter() - start, clf.decision_function(X[:200])


def run():
    """Fit here and on the cluster; the tasks of the second fit, for the picture."""
    timed_fit()  # compiles and loads
    seconds, expected = timed_fit()
    print(f"in this process: {seconds:.1f} s")
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        with joblib.parallel_config(backend="dask"):
            timed_fit()  # workers import the package when their first task comes
            with get_task_stream(client) as stream:
                start = time.time()
                seconds, scores = timed_fit()
    tasks = stream.data
    workers = {task["worker"] for task in tasks}
    print(f"on {len(workers)} workers: {seconds:.1f} s in {len(tasks)} tasks")
    print(f"largest difference of a score: {np.abs(scores - expected).max():.1e}")
    return start, tasks


# %%
# What the workers did
# --------------------
# There is a row for each worker and a bar for each task. In the gaps a worker waited
# for the parent process, which decomposes, or for a task to arrive. On a problem as
# small as this one workers mostly wait. Use a cluster where passes over the images take
# minutes.


def draw(start, tasks):
    """Draw the tasks of each worker over time."""
    workers = sorted({task["worker"] for task in tasks})
    figure, ax = plt.subplots(figsize=(6.6, 2.2), layout="constrained")
    for number, worker in enumerate(workers):
        spans = [
            (span["start"] - start, span["stop"] - span["start"])
            for task in tasks
            if task["worker"] == worker
            for span in task["startstops"]
            if span["action"] == "compute"
        ]
        ax.broken_barh(spans, (number - 0.4, 0.8), color=f"C{number}")
    ax.set_yticks(range(len(workers)), [f"worker {i + 1}" for i in range(len(workers))])
    ax.set(xlabel="Seconds since the beginning of the fit")
    ax.grid(axis="x", alpha=0.3)
    plt.show()


if __name__ == "__main__":
    draw(*run())
