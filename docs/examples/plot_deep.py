"""
A deeper layer
==============

Deep ConvRFM learns a metric, draws filters from it, and learns the next metric on the
maps of these filters. Each filter of the first layer is a channel of the second.
"""

import matplotlib.pyplot as plt
import numpy as np

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import load_digit_images
from skconvrfm.display import PatchFiltersDisplay
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK

X, y = load_digit_images(return_X_y=True)
X = X.astype(np.float32)
X_train, y_train, X_test, y_test = X[:200], y[:200], X[200:], y[200:]

layer = ConvFeatures(
    16,
    patch_size=3,
    filters="gaussian",
    metric="identity",
    bias=0,
    threshold=0,
    pool_grid=None,
)
clf = ConvRFMClassifier(
    ConvNTK(depth=2), features=[layer], n_rounds=2, agop_samples=20, selection="last"
).fit(X_train, y_train)
for number, layer in enumerate(clf.learned_layers_):
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
# Above are eigenvectors of the first layer's patch AGOP: strokes and edges. Below are
# those of the second layer, with 3 · 3 · 16 = 144 entries for 16 channels. The picture
# shows their norm over the channels at each pixel.

figure, axes = plt.subplots(2, 1, figsize=(6.6, 3.6), layout="constrained")
for number, ax in enumerate(axes):
    PatchFiltersDisplay.from_estimator(clf, layer=number, n_components=6, ax=ax)
    ax.set_title(f"Layer {number}\n", fontsize="medium")
plt.show()
