"""
A pipeline under GridSearchCV
=============================

:class:`~skconvrfm.PatchAGOPTransformer` learns a patch metric, and makes features for
any classifier. As a step of a pipeline it can be searched. This example searches the
size of the patch, the number of filters, and the grid on which responses are averaged.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skconvrfm import ConvRFMClassifier, PatchAGOPTransformer
from skconvrfm.datasets import load_digit_images
from skconvrfm.kernels import ConvNTK

X, y = load_digit_images(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X.astype(np.float32), y, train_size=300, stratify=y, random_state=0
)

# %%
# The search
# ----------
# Three folds of 300 training images.

learner = ConvRFMClassifier(ConvNTK(depth=1), n_rounds=1, agop_samples=20)
model = make_pipeline(
    PatchAGOPTransformer(learner),
    StandardScaler(),
    LogisticRegression(C=0.1, max_iter=500),
)
grid = {
    "patchagoptransformer__estimator__kernel__patch_size": [3, 5],
    "patchagoptransformer__n_filters": [16, 64],
    "patchagoptransformer__pool": [(2, 2), (3, 3)],
}
search = GridSearchCV(model, grid, cv=3).fit(X_train, y_train)

table = pd.DataFrame(search.cv_results_).rename(
    columns=lambda name: name.split("__")[-1]
)
columns = ["patch_size", "n_filters", "pool", "mean_test_score", "std_test_score"]
print(table[columns].round(3).to_string(index=False))

# %%
# The chosen model, and the test
# ------------------------------
# The test images are used once. For comparison, the same classifier is fitted to the
# pixels.

pixels = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
pixels.fit(X_train.reshape(len(X_train), -1), y_train)
print(search.best_params_)
print(f"chosen pipeline: {search.score(X_test, y_test):.1%}")
print(f"pixels:          {pixels.score(X_test.reshape(len(X_test), -1), y_test):.1%}")

# %%
# All candidates
# --------------

figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
names = [
    f"{row.patch_size}×{row.patch_size}, {row.n_filters} filters, "
    f"pool {row.pool[0]}×{row.pool[1]}"
    for row in table.itertuples()
]
ax.errorbar(
    table["mean_test_score"], names, xerr=table["std_test_score"], fmt="o", capsize=3
)
ax.set(xlabel="Accuracy over three folds (mean, and deviation between folds)")
ax.grid(axis="x", alpha=0.3)
plt.show()
