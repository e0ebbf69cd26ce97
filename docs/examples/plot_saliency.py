"""
Saliency: where the signal is
=============================

The learned metric is the same at all locations. Under it, a patch is long where it has
a pattern to which the predictor responds, and short elsewhere: the map of this length
is the *saliency* of an image.
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
# These images were not trained on. The signal is found where the star is, as wide as a
# patch of 11 pixels; no patch is centred in the grey border. One direction is all that
# matters here, so that saliency is the absolute value of the projection on it, up to a
# factor.

X, y = make_star(80, random_state=0)
X = X.astype(np.float32)
kernel = ConvNTK(depth=1, patch_size=11)
clf = ConvRFMClassifier(kernel, n_rounds=2).fit(X[:50], y[:50])
stars = X[50:][y[50:] == 1]
SaliencyDisplay.from_estimator(clf, stars, n_images=3)

# %%
# In numbers, over all the stars of the test images: how often the most salient location
# is a patch with the whole star in it. The star is where the first two channels are 1.

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
# Where more directions matter, saliency and projections differ. The metric of 3×3
# patches responds to strokes, and to noise that looks like a stroke.

X, y = make_framed_digits(random_state=0)
X = X.astype(np.float32)
learner = ConvRFMClassifier(ConvNTK(depth=2), n_rounds=2, agop_samples=20)
features = PatchAGOPTransformer(learner)
features.fit(X[:300], y[:300])
SaliencyDisplay.from_estimator(features, X[300:], n_images=3)

# %%
# As features
# -----------
# The same maps come as an array from `output="saliency"`.

features.set_params(output="saliency").fit(X[:300], y[:300])
print(features.transform(X[300:]).shape, features.output_shape_)
plt.show()
