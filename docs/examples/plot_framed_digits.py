"""
Digits in a frame of noise
==========================

Each of scikit-learn's digits, 8×8 pixels, is pasted at a random place into a frame of
noise. The noise is as strong as the digits, and fills more than half of an image. A
model has to learn which patterns of a patch are strokes and which are noise.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import make_framed_digits
from skconvrfm.display import PatchFiltersDisplay
from skconvrfm.features import ConvFeatures

X, y = make_framed_digits(random_state=0)
X = X.astype(np.float32)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, train_size=400, test_size=300, stratify=y, random_state=0
)

figure, axes = plt.subplots(2, 6, figsize=(6.6, 2.5), layout="constrained")
figure.suptitle("Training images", fontsize="medium")
for ax, image, label in zip(axes.flat, X_train, y_train, strict=False):
    ax.imshow(image, cmap="gray", vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"{label}", fontsize="small")

# %%
# Five models
# -----------
# The parameters of ConvRFM are the defaults, except for `agop_samples`. Ridge and round
# are chosen by generalised cross-validation on the training images.

models = {
    "fixed kernel": ConvRFMClassifier(n_rounds=0),
    "ConvRFM": ConvRFMClassifier(n_rounds=3, agop_samples=20),
    "Gaussian of features": ConvRFMClassifier(
        "gaussian", features=ConvFeatures(64, patch_size=5), n_rounds=0
    ),
    "SVC on pixels": SVC(C=10),
    "random forest on pixels": RandomForestClassifier(random_state=0),
}
rows_train, rows_test = (part.reshape(len(part), -1) for part in (X_train, X_test))
for name, model in models.items():
    accuracy = model.fit(rows_train, y_train).score(rows_test, y_test)
    print(f"{name:24} {accuracy:.1%}")

# %%
# What the rounds did
# -------------------
# The criterion falls from round to round. The spectrum of round 0 is flat, because all
# nine directions of a patch count alike; later rounds weigh some of them more.

clf = models["ConvRFM"]
history = clf.history_
print(f"round {clf.best_round_} was kept")
figure, axes = plt.subplots(1, 2, figsize=(6.6, 3), layout="constrained")
axes[0].plot(history["round"], history["gcv"], marker="o")
axes[0].plot(
    clf.best_round_,
    history["gcv"][clf.best_round_],
    "ko",
    markersize=13,
    markerfacecolor="none",
    label="kept",
)
axes[0].set(xlabel="Round", ylabel="Generalised cross-validation", xticks=range(4))
axes[0].legend()
for number, spectrum in enumerate(history["spectrum"]):
    axes[1].plot(range(1, 10), spectrum, marker="o", label=f"round {number}")
axes[1].set(xlabel="Eigenvalue of the metric", ylabel="Share of all", yscale="log")
axes[1].legend()
for ax in axes:
    ax.grid(alpha=0.3)

# %%
# Learned patterns
# ----------------
# These are the leading eigenvectors of the patch AGOP and their shares. Blue is
# negative, white zero, red positive.

PatchFiltersDisplay.from_estimator(clf, n_components=6)
plt.show()
