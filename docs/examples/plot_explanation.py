"""
Explaining one prediction
=========================

Why did the classifier choose this class? Two maps answer: the exact gradient of the
score by pixel, and the fall of the score where a patch is hidden. Red speaks for the
class, blue against it.
"""

import matplotlib.pyplot as plt
import numpy as np

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import load_digit_images
from skconvrfm.display import ExplanationDisplay
from skconvrfm.explain import patch_occlusion

X, y = load_digit_images(return_X_y=True)
X = X.astype(np.float32)
clf = ConvRFMClassifier("gaussian", features="auto", random_state=0)
clf.fit(X[:600], y[:600])
print(f"{clf.score(X[600:], y[600:]):.1%} of {len(y) - 600} new images")

# %%
# A prediction that is right
# --------------------------
# The parts that make the digit what it is are red by patch. The gradient by pixel is
# finer: it holds for small changes of each pixel alone.

predicted = clf.predict(X[600:])
right = 600 + np.flatnonzero(predicted == y[600:])[0]
ExplanationDisplay.from_estimator(clf, X[right])

# %%
# A prediction that is wrong
# --------------------------
# First the class that was predicted, then the true one: the same stroke may speak for
# the one and against the other.

wrong = 600 + np.flatnonzero(predicted != y[600:])[0]
ExplanationDisplay.from_estimator(clf, X[wrong])
ExplanationDisplay.from_estimator(clf, X[wrong], target=y[wrong])

# %%
# As numbers
# ----------
# The maps come as arrays, too. The largest fall by hiding a patch says how much the
# decision hangs on a single place.

falls = patch_occlusion(clf, X[[right, wrong]])
for name, fall in zip(("right", "wrong"), falls, strict=True):
    row, column = np.unravel_index(fall.argmax(), fall.shape)
    print(f"{name}: the score falls by {fall.max():.2f} near ({row}, {column})")
plt.show()
