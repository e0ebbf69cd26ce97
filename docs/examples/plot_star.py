"""
Fifty images, half of them with a star
======================================

Each image is noise, and half of the images have a star somewhere, 7 pixels wide. A
fixed convolutional kernel weighs all 363 directions of an 11×11 colour patch alike,
although only one of them matters. ConvRFM learns that direction from the gradients of
its own predictor.
"""

import matplotlib.pyplot as plt
import numpy as np

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import make_star
from skconvrfm.display import PatchFiltersDisplay, RoundsDisplay
from skconvrfm.kernels import ConvNTK

X, y = make_star(550, random_state=0)
X = X.astype(np.float32)  # half the time of float64
X_train, y_train, X_test, y_test = X[:50], y[:50], X[50:200], y[50:200]

# %%
# The fixed kernel, and two rounds
# --------------------------------
# Ridge and round are chosen from the fifty training images.

kernel = ConvNTK(depth=1, patch_size=11)
fixed = ConvRFMClassifier(kernel, n_rounds=0).fit(X_train, y_train)
clf = ConvRFMClassifier(kernel, n_rounds=2).fit(X_train, y_train)
for name, model in (("fixed kernel", fixed), ("two rounds", clf)):
    print(f"{name}: {model.score(X_test, y_test):.1%} of {len(y_test)} new images")

# %%
# What happened
# -------------
# Above are four images of each class. In the middle are score and criterion of each
# round on the training data, and the spectrum of its metric. The spectrum is flat at
# first; in the last round one direction has nearly all of the weight. Below are the
# leading eigenvectors of the patch AGOP: that direction is a spot of the star's colour.

figure = plt.figure(figsize=(10, 5.6), layout="constrained")
images, rounds, patterns = figure.subfigures(3, 1, height_ratios=(1, 1.8, 0.9))
images.suptitle("Noise, and noise with a star in it", fontsize="medium")
shown = np.concatenate([np.flatnonzero(y == label)[:4] for label in (0, 1)])
for ax, image in zip(images.subplots(1, len(shown)), X[shown], strict=True):
    ax.imshow(np.clip((1 + image) / 2, 0, 1))
    ax.set(xticks=[], yticks=[])
RoundsDisplay.from_estimator(clf, ax=rounds.subplots())
patterns.suptitle(
    "Eigenvectors of the patch AGOP, and their shares",
    fontsize="medium",
)
PatchFiltersDisplay.from_estimator(clf, ax=patterns.subplots())
plt.show()
