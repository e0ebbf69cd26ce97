"""
A deeper layer
==============

Deep ConvRFM learns a metric, draws filters from it, and learns the next metric on the
maps that they give. The second metric is that of patches whose channels are the filters
of the first.
"""

import matplotlib.pyplot as plt
import numpy as np

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import load_digit_images
from skconvrfm.display import PatchFiltersDisplay

X, y = load_digit_images(return_X_y=True)
X = X.astype(np.float32)
X_train, y_train, X_test, y_test = X[:200], y[:200], X[200:], y[200:]

clf = ConvRFMClassifier(
    depth=3, feature_layers=2, n_filters=16, n_rounds=2, agop_samples=20
).fit(X_train, y_train)
for number, layer in enumerate(clf.layers_):
    best = layer.best_round_
    print(
        f"layer {number}: {len(layer.patch_agop_)} entries a patch, round {best} kept, "
        f"GCV {layer.history_['gcv'][best]:.3f}"
    )
print(
    f"layer {clf.best_layer_} predicts: {clf.score(X_test, y_test):.1%} of test images"
)

# %%
# The two metrics
# ---------------
# Above, eigenvectors of the first layer's patch AGOP: strokes and edges. Below, those
# of the second: with 16 channels, 3 · 3 · 16 = 144 entries. They are drawn by their
# norm over the channels: where in the patch they look, not for what.

figure, axes = plt.subplots(2, 1, figsize=(6.6, 3.6), layout="constrained")
for number, ax in enumerate(axes):
    PatchFiltersDisplay.from_estimator(clf, layer=number, n_components=6, ax=ax)
    ax.set_title(f"Layer {number}\n", fontsize="medium")
plt.show()
