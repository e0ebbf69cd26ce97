"""
Edge detectors from two photographs
===================================

The first filters of a trained network are edges and opponent colours. Here a kernel
machine finds its own in scikit-learn's two sample photographs, without any
backpropagation: it has to tell by how many quarter turns a small colour crop was
rotated. Nobody labels anything, and the answer is in the direction of edges and
shadows.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_images

from skconvrfm import ConvRFMClassifier

SIDE, PATCH = 16, 5


def rotated_crops(photographs, columns, n, seed):
    """Crops from a share of the columns, and their quarter turns."""
    rng = np.random.default_rng(seed)
    turns = rng.integers(4, size=n)
    crops = []
    for turn in turns:
        photograph = photographs[rng.integers(len(photographs))]
        height, width, _ = photograph.shape
        row = rng.integers(height - SIDE)
        column = rng.integers(int(columns[0] * width), int(columns[1] * width) - SIDE)
        crop = photograph[row : row + SIDE, column : column + SIDE]
        crops.append(np.rot90(crop, turn))
    return np.stack(crops), turns


# %%
# Crops
# -----
# Photographs are halved in size, training crops come from their left three quarters,
# test crops from the right quarter, so that no pixel is in both.

photographs = [
    image[: 2 * (len(image) // 2)].reshape(len(image) // 2, 2, -1, 2, 3).mean((1, 3))
    / np.float32(255)
    for image in load_sample_images().images
]
photographs = [photograph.astype(np.float32) for photograph in photographs]
X_train, y_train = rotated_crops(photographs, (0, 0.75), n=300, seed=0)
X_test, y_test = rotated_crops(photographs, (0.75, 1), n=300, seed=1)

figure, axes = plt.subplots(2, 6, figsize=(6.6, 2.6), layout="constrained")
figure.suptitle("Training crops, and their quarter turns", fontsize="medium")
for ax, crop, turn in zip(axes.flat, X_train, y_train, strict=False):
    ax.imshow(crop)
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"{turn}", fontsize="small")

# %%
# The machine
# -----------

clf = ConvRFMClassifier(depth=2, patch_size=PATCH, n_rounds=2, agop_samples=40)
clf.fit(X_train, y_train)
for number, (gcv, score) in enumerate(
    zip(clf.history_["gcv"], clf.history_["loo_score"], strict=True)
):
    print(f"round {number}: GCV {gcv:.3f}, {score:.1%} of left-out training crops")
print(f"round {clf.best_round_} is kept: {clf.score(X_test, y_test):.1%} of test crops")
print("by chance: 25 %")

# %%
# What it looks for, and what is simply there
# -------------------------------------------
# Above, the leading eigenvectors of the patch AGOP, zero in the middle grey. Below, for
# comparison, those of the covariance of the patches: what varies in a photograph,
# whoever looks at it.

windows = np.lib.stride_tricks.sliding_window_view(X_train, (PATCH, PATCH), axis=(1, 2))
patches = windows.reshape(-1, 3 * PATCH**2)  # entries (channel, row, column)
matrices = {"Patch AGOP": clf.patch_agop_, "Patch covariance": np.cov(patches.T)}

figure = plt.figure(figsize=(6.6, 4.6), layout="constrained")
for part, (name, matrix) in zip(figure.subfigures(2, 1), matrices.items(), strict=True):
    values, vectors = np.linalg.eigh(matrix)
    part.suptitle(f"{name}: eigenvectors and their shares", fontsize="medium")
    for ax, value, vector in zip(
        part.subplots(2, 5).flat, values[::-1], vectors.T[::-1], strict=False
    ):
        pixels = np.moveaxis(vector.reshape(3, PATCH, PATCH), 0, -1)
        ax.imshow(0.5 + pixels / (2 * np.abs(pixels).max()))
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"{value / values.sum():.1%}", fontsize="small")

# %%
# An edge detector has a sum of nearly zero over the patch: it does not respond to
# light. The share of each matrix that lies in the three directions of uniform colour:

uniform = np.kron(np.eye(3), np.ones(PATCH**2) / PATCH)
for name, matrix in matrices.items():
    share = np.trace(uniform @ matrix @ uniform.T) / np.trace(matrix)
    print(f"{name}: {share:.1%} of the trace is uniform colour")
plt.show()
