"""
What a fit costs
================

The time of a kernel grows with the square of the number of images, and the time of its
decomposition with the cube. With a linear kernel of features, time grows linearly. This
example measures the exponents on the machine that built these pages.
"""

import os
import time

import matplotlib.pyplot as plt
import numpy as np
import torch

from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK

SIDE, DEPTH, AGOP_IMAGES = 20, 3, 20
IMAGES = np.array([75, 150, 300, 600])


def problem(n, n_classes=10):
    """Random images and classes: only their number matters."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, SIDE, SIDE)).astype(np.float32), np.arange(n) % n_classes


def exact(n, depth=DEPTH, n_classes=10):
    """Seconds of kernel, decomposition and AGOP of one round at n images."""
    clf = ConvRFMClassifier(ConvNTK(depth), n_rounds=1, agop_samples=AGOP_IMAGES).fit(
        *problem(n, n_classes)
    )
    # Kernel and ridge of round 1, which has a patch transform.
    rounds = {"kernel": 1, "solve": 1, "agop": 0}
    return {part: clf.history_[f"seconds_{part}"][at] for part, at in rounds.items()}


def features(n):
    """Seconds of a whole fit with a linear kernel of features."""
    layer = ConvFeatures(32, patch_size=5)
    clf = ConvRFMClassifier("linear", features=layer, n_rounds=0)
    start = time.perf_counter()
    clf.fit(*problem(n))
    return time.perf_counter() - start


print(f"{os.cpu_count()} cores, torch with {torch.get_num_threads()} threads")
exact(IMAGES[0]), features(IMAGES[0])  # compiles and loads
parts = [exact(n) for n in IMAGES]
seconds = {part: np.array([one[part] for one in parts]) for part in parts[0]}
seconds["whole fit, linear"] = np.array([features(n) for n in IMAGES])

# %%
# Seconds and exponents
# ---------------------
# The exponent is the slope of a line through the logarithms. It is too low for few
# images, and grows with their number towards 3 (decomposition) and 2 (kernel).

print(f"{'images':24}", *(f"{n:8}" for n in IMAGES), "exponent")
exponents = {}
for part, values in seconds.items():
    exponents[part] = np.polyfit(np.log(IMAGES), np.log(values), 1)[0]
    print(f"{part:24}", *(f"{s:8.3f}" for s in values), f"{exponents[part]:8.2f}")

# %%
figure, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
names = {"solve": "decomposition", "agop": "AGOP of 20 images"}
for part, values in seconds.items():
    label = f"{names.get(part, part)}, power {exponents[part]:.2f}"
    ax.plot(IMAGES, values, marker="o", label=label)
ax.set(xlabel="Training images", ylabel="Seconds", xscale="log", yscale="log")
ax.set_xticks(IMAGES, IMAGES)
ax.minorticks_off()
ax.grid(alpha=0.3)
ax.legend()

# %%
# Layers and classes
# ------------------
# Each layer adds its locations to the kernel and to the AGOP. All classes share one
# sweep through the layers, and each costs one matrix product more.

figure, axes = plt.subplots(1, 2, figsize=(6.6, 3.2), layout="constrained")
for ax, name, values in (
    (axes[0], "depth", (1, 2, 3, 4)),
    (axes[1], "n_classes", (2, 10, 50)),
):
    runs = [exact(150, **{name: value}) for value in values]
    for part in ("kernel", "agop"):
        ax.plot(values, [run[part] for run in runs], marker="o", label=part)
    ax.set(xlabel=name, ylabel="Seconds, 150 images", xticks=values)
    ax.set_ylim(0)
    ax.grid(alpha=0.3)
axes[0].legend()

# %%
# The constants
# -------------
# Seconds at the largest number of images, divided by the number of operations in
# :doc:`/guide/costs`.

n = int(IMAGES[-1])
locations = sum((SIDE - 2 * layer) ** 2 for layer in range(1, DEPTH + 1))
units = {
    "kernel": n**2 / 2 * locations,
    "solve": n**3,
    "agop": n * AGOP_IMAGES * locations,
}
for part, unit in units.items():
    print(f"{part:8} {1e9 * seconds[part][-1] / unit:6.2f} ns")
plt.show()
