"""
Edge detectors from two photographs
===================================

The first filters of a trained network are edges. Here a kernel machine finds edges in
scikit-learn's two sample photographs, without backpropagation and without labels: it
learns whether a small grey crop was turned by 90 degrees. Brightness and contrast are
removed from every crop, so that only edges carry information.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_images
from sklearn.model_selection import train_test_split

from skconvrfm import ConvRFMClassifier
from skconvrfm.kernels import ConvNTK

SIDE, PATCH = 16, 7

# %%
# Crops
# -----
# The photographs are cut along a grid, so that no two crops share a pixel. Crops
# without contrast, such as sky, are left out. Half of the others are turned.

rng = np.random.default_rng(0)
crops = []
for photograph in load_sample_images().images:
    grey = photograph.mean(axis=2) / 255
    for row in range(0, len(grey) - SIDE + 1, SIDE):
        for column in range(0, grey.shape[1] - SIDE + 1, SIDE):
            crop = grey[row : row + SIDE, column : column + SIDE]
            if crop.std() > 0.04:
                crops.append((crop - crop.mean()) / crop.std())
y = rng.integers(2, size=len(crops))
X = np.stack([np.rot90(crop, turn) for crop, turn in zip(crops, y, strict=True)])
X_train, X_test, y_train, y_test = train_test_split(
    X.astype(np.float32), y, train_size=400, test_size=400, random_state=0
)

figure, axes = plt.subplots(2, 6, figsize=(6.6, 2.6), layout="constrained")
figure.suptitle("Training crops", fontsize="medium")
for ax, crop, turn in zip(axes.flat, X_train, y_train, strict=False):
    ax.imshow(crop, cmap="gray")
    ax.set(xticks=[], yticks=[])
    ax.set_title("turned" if turn else "upright", fontsize="small")

# %%
# The machine
# -----------
# The test crops come from the same two photographs, so that the accuracy says nothing
# about other photographs.

kernel = ConvNTK(depth=1, patch_size=PATCH)
clf = ConvRFMClassifier(kernel, n_rounds=2, agop_samples=30)
clf.fit(X_train, y_train)
for number, (gcv, score) in enumerate(
    zip(clf.history_["gcv"], clf.history_["loo_score"], strict=True)
):
    print(f"round {number}: GCV {gcv:.3f}, {score:.1%} of left-out training crops")
print(f"round {clf.best_round_} is kept: {clf.score(X_test, y_test):.1%} of test crops")
print("by chance: 50 %")

# %%
# Learned patterns
# ----------------
# Above are the leading eigenvectors of the patch AGOP, blue negative and red positive.
# Below, for comparison, are those of the covariance of the patches, which do not depend
# on the classes.

windows = np.lib.stride_tricks.sliding_window_view(X_train, (PATCH, PATCH), axis=(1, 2))
covariance = np.cov(windows.reshape(-1, PATCH**2).T)
matrices = {"Patch AGOP": clf.patch_agop_, "Patch covariance": covariance}

figure = plt.figure(figsize=(6.6, 3.6), layout="constrained")
for part, (name, matrix) in zip(figure.subfigures(2, 1), matrices.items(), strict=True):
    values, vectors = np.linalg.eigh(matrix)
    part.suptitle(f"{name}: eigenvectors and their shares", fontsize="medium")
    for ax, value, vector in zip(
        part.subplots(1, 6), values[::-1], vectors.T[::-1], strict=False
    ):
        peak = np.abs(vector).max()
        ax.imshow(vector.reshape(PATCH, PATCH), cmap="RdBu_r", vmin=-peak, vmax=peak)
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"{value / values.sum():.0%}", fontsize="small")

# %%
# An edge detector does not respond to uniform brightness. This is the share of uniform
# brightness in each matrix:

uniform = np.full(PATCH**2, 1 / PATCH)
for name, matrix in matrices.items():
    share = uniform @ matrix @ uniform / np.trace(matrix)
    print(f"{name}: {share:.1%} of the trace is uniform brightness")
plt.show()
