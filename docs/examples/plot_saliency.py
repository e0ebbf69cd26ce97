"""
Saliency: where the signal is
=============================

The *saliency* of an image is the length of its patches under the learned metric. It is
large where a patch has a pattern to which the predictor responds. It is the same for
all classes, and does not say for which class a pattern speaks.
"""

import matplotlib.pyplot as plt
import numpy as np

from skconvrfm import ConvRFMClassifier, PatchAGOPTransformer
from skconvrfm.datasets import make_framed_digits, make_star
from skconvrfm.display import SaliencyDisplay
from skconvrfm.kernels import ConvNTK

# %%
# Stars in noise
# --------------
# These images were not trained on. Saliency is large where the star is, over the width
# of a patch of 11 pixels. No patch is centred in the grey border. Only one direction
# matters here: up to a factor, saliency is the absolute projection on it.

X, y = make_star(80, random_state=0)
X = X.astype(np.float32)
kernel = ConvNTK(depth=1, patch_size=11)
clf = ConvRFMClassifier(kernel, n_rounds=2).fit(X[:50], y[:50])
stars = X[50:][y[50:] == 1]
SaliencyDisplay.from_estimator(clf, stars, n_images=3)

# %%
# Over all test images with a star: how often does the most salient patch have the whole
# star in it? The star is where the first two channels are 1.

saliency = SaliencyDisplay.from_estimator(clf, stars, n_images=len(stars)).saliency
plt.close()  # the arrays are wanted, not a picture of so many rows
hits = 0
for image, lengths in zip(stars, saliency, strict=True):
    rows, columns = np.nonzero((image[..., 0] == 1) & (image[..., 1] == 1))
    row, column = np.unravel_index(lengths.argmax(), lengths.shape)
    hits += (
        row <= rows.min() <= rows.max() < row + 11
        and column <= columns.min() <= columns.max() < column + 11
    )
print(f"the most salient patch has the whole star in {hits} of {len(stars)} images")

# %%
# Digits in noise
# ---------------
# Here more directions matter. The metric of 3×3 patches responds to strokes, and to
# noise that looks like a stroke.

X, y = make_framed_digits(random_state=0)
X = X.astype(np.float32)
learner = ConvRFMClassifier(ConvNTK(depth=2), n_rounds=2, agop_samples=20)
features = PatchAGOPTransformer(learner)
features.fit(X[:300], y[:300])
SaliencyDisplay.from_estimator(features, X[300:], n_images=3)

# %%
# As features
# -----------
# `output="saliency"` gives the same maps as an array.

features.set_params(output="saliency").fit(X[:300], y[:300])
print(features.transform(X[300:]).shape, features.output_shape_)
plt.show()
