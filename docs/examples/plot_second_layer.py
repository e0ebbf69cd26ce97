"""
What a second layer has learned
===============================

Two feature layers below a Gaussian kernel find digits in noise. The filters of both are
chosen by the patch AGOP, and the second layer's metric is learned. Its leading
eigenvectors are patterns of maps and hard to read. So this example shows the places in
images that excite each of them most.
"""

import matplotlib.pyplot as plt
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import make_framed_digits
from skconvrfm.features import ConvFeatures

PATCH = 3

# %%
# The machine
# -----------
# Digits of 8×8 pixels stand in frames of noise. Round 0 has the filters that were drawn
# first, round 1 has the most important of four times as many, and round 2 also has a
# learned metric of the second layer.

X, y = make_framed_digits(random_state=0)
layers = [
    ConvFeatures(64, patch_size=PATCH, pool_grid=None, candidates=4, learn=False),
    ConvFeatures(
        128, patch_size=PATCH, pool="norm", pool_grid=2, shrinkage=3, candidates=4
    ),
]
clf = ConvRFMClassifier("gaussian", layers, n_rounds=2).fit(X[:600], y[:600])
for number, (gcv, score) in enumerate(
    zip(clf.history_["gcv"], clf.history_["loo_score"], strict=True)
):
    print(f"round {number}: GCV {gcv:.3f}, {score:.1%} of left-out images")
print(f"round {clf.best_round_} is kept: {clf.score(X[600:], y[600:]):.1%} of the rest")

# %%
# Patches that excite the leading eigenvectors
# --------------------------------------------
# A patch of the second layer is 3×3 places of all maps of the first layer, and sees 5×5
# pixels. Each row belongs to one eigenvector of the second layer's patch AGOP. It shows
# the pixels whose patches have the largest products with it, in images that were not
# fitted.

first, second = clf.features_


def patches(images):
    """Return patches (n, rows, columns, d) of images (n, h, w, c)."""
    windows = sliding_window_view(images, (PATCH, PATCH), axis=(1, 2))
    return windows.reshape(*windows.shape[:3], -1)


X_other = X[600:1200].astype(np.float32)
maps = patches(X_other[..., None]) @ first.filters_.T + first.biases_
maps = np.sqrt(2) * np.maximum(maps, 0)
_, vectors = np.linalg.eigh(second.patch_agop_)
scores = np.abs((patches(maps) - second.patch_mean_) @ vectors[:, ::-1][:, :5])

side = 2 * PATCH - 1
pixels = sliding_window_view(X_other, (side, side), axis=(1, 2))
figure, axes = plt.subplots(5, 10, figsize=(6.6, 3.6), layout="constrained")
figure.suptitle("Patches by the eigenvector that they excite", fontsize="medium")
for number, row in enumerate(axes):
    at_image = scores[..., number].reshape(len(X_other), -1)
    images = np.argsort(-at_image.max(axis=1))[: len(row)]  # one patch of each
    row[0].set_ylabel(f"{number + 1}", rotation=0, labelpad=10, va="center")
    for ax, image in zip(row, images, strict=True):
        place = np.unravel_index(at_image[image].argmax(), scores.shape[1:3])
        ax.imshow(pixels[(image, *place)], cmap="gray")
        ax.set(xticks=[], yticks=[])
plt.show()
