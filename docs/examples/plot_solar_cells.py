"""
Defects of solar cells
======================

Which solar cells are defective? The package
`elpv-dataset <https://github.com/zae-bayern/elpv-dataset>`_ has 2624 grey images of
cells under a current, in which defects are dark, and for each a probability of a defect
given by experts: 0, 1/3, 2/3 or 1. A part of them, made small, shows the way from
images to a ROC curve.

``pip install elpv-dataset`` brings the images, whose licence (CC BY-NC-SA 4.0) excludes
commercial use. Without the package, drawn cells take their place. They show the same
steps; their figures say nothing about real cells. All real cells, larger and with
cross-validation, are on the page :doc:`/benchmarks/solar_cells`.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import RocCurveDisplay, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.display import ExplanationDisplay
from skconvrfm.features import ConvFeatures

try:
    from elpv_dataset.utils import load_dataset
except ImportError:
    load_dataset = None

SIDE, N_IMAGES = 60, 800


# %%
# Images
# ------
# Real cells are averaged from 300×300 to 60×60 pixels. Drawn ones differ in brightness,
# grain, shade and busbars, and may have stains. Defective ones have cracks or a dark
# area. How strong a defect is decides its probability, with some error.


def draw_cell(severity, rng):
    """Return a drawn cell, of values about 0 to 1, with a defect of strength 0 to 1."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    grain = gaussian_filter(rng.normal(size=(SIDE, SIDE)), rng.uniform(0.5, 2))
    cell = rng.uniform(0.4, 0.85) + grain / grain.std() * rng.uniform(0.01, 0.04)
    cell += rng.uniform(-0.1, 0.1) * np.linspace(-1, 1, SIDE)[:, None]
    for busbar in np.arange(10, SIDE, rng.choice([20, 26])) + rng.integers(-2, 3):
        cell[busbar] -= rng.uniform(0.15, 0.3)
    for _ in range(rng.integers(4)):  # stains, which are no defects
        row, column = rng.uniform(0, SIDE, 2)
        squares = (rows - row) ** 2 + (columns - column) ** 2
        cell -= rng.uniform(0.05, 0.2) * np.exp(-squares / rng.uniform(4, 40))
    if severity and rng.random() < 0.4:
        angle = rng.uniform(0, 2 * np.pi)
        across = (rows - SIDE / 2) * np.sin(angle) + (columns - SIDE / 2) * np.cos(
            angle
        )
        dark = across > SIDE * rng.uniform(0.45, 0.55) * (1 - 0.7 * severity)
        cell[dark] *= 1 - severity * rng.uniform(0.4, 0.8)
    elif severity:
        for _ in range(rng.integers(1, 5)):
            cell -= severity * rng.uniform(0.4, 0.8) * draw_crack(severity, rng)
    return cell


def draw_crack(severity, rng):
    """Return a curved line, longer for a strong defect, on blank ground."""
    n_steps = int(SIDE * rng.uniform(0.3, 0.6 + 0.6 * severity))
    turns = rng.normal(0, 0.03) + rng.normal(0, 0.08, n_steps)
    angles = rng.uniform(0, 2 * np.pi) + turns.cumsum()
    points = rng.uniform(0.15 * SIDE, 0.85 * SIDE, (2, 1)) + np.cumsum(
        [np.sin(angles), np.cos(angles)], axis=1
    )
    row, column = points[:, ((points >= 0) & (points < SIDE)).all(0)].astype(int)
    crack = np.zeros((SIDE, SIDE))
    crack[row, column] = 1
    return gaussian_filter(crack, 0.6)


def draw_cells(n_images, rng):
    """Return drawn cells, and their probabilities of a defect."""
    defective = rng.random(n_images) < 0.45
    severity = np.where(defective, rng.uniform(0.25, 1, n_images), 0)
    cells = np.stack([draw_cell(one, rng) for one in severity]).clip(0, 1)
    judged = (severity + rng.normal(0, 0.1, n_images)).clip(0, 1)
    return cells, np.round(3 * judged) / 3


rng = np.random.default_rng(0)
if load_dataset is None:
    print("drawn cells, since elpv-dataset is missing")
    X, probability = draw_cells(N_IMAGES, rng)
else:
    print("real cells")
    X, probability, _ = load_dataset()
    chosen = rng.choice(len(X), N_IMAGES, replace=False)
    block = X.shape[1] // SIDE
    X = X[chosen].reshape(N_IMAGES, SIDE, block, SIDE, block).mean((2, 4)) / 255
    probability = probability[chosen]

X = X.astype(np.float32)
y = (probability > 0.5).astype(int)
X_train, X_test, y_train, y_test, p_train, p_test = train_test_split(
    X, y, probability, test_size=250, stratify=y, random_state=0
)

figure, axes = plt.subplots(2, 5, figsize=(6.6, 3), layout="constrained")
for row, (name, label) in enumerate([("functional", 0), ("defective", 1)]):
    for ax, cell in zip(axes[row], X_train[y_train == label], strict=False):
        ax.imshow(cell, cmap="gray", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, fontsize="small")

# %%
# ROC curves
# ----------
# The area under the curve (AUC) is the share of pairs of a defective and a functional
# cell in which the defective one has the higher score. A crack takes little of a cell,
# so layers pool the strongest response in place of a mean. HOG counts the directions of
# edges in small squares.


def oriented_gradients(images, square=6, n_directions=9):
    """Return histograms of oriented gradients (HOG), in blocks of 2×2 squares."""
    down, across = np.gradient(np.sqrt(images), axis=(1, 2))
    size = np.hypot(down, across)
    at = (np.arctan2(down, across) % np.pi) / np.pi * n_directions
    n = images.shape[1] // square
    squares = []
    for direction in np.arange(n_directions) + 0.5:
        away = abs(at - direction)
        share = 1 - np.minimum(away, n_directions - away)
        votes = (share.clip(0) * size)[:, : n * square, : n * square]
        squares.append(votes.reshape(-1, n, square, n, square).sum((2, 4)))
    corners = [np.stack(squares, -1)[:, i : n - 1 + i] for i in (0, 1)]
    corners = [half[:, :, j : n - 1 + j] for half in corners for j in (0, 1)]
    blocks = np.concatenate(corners, -1)
    blocks /= np.sqrt((blocks**2).sum(-1, keepdims=True) + 1e-4)
    return blocks.reshape(len(images), -1)


layers = [
    ConvFeatures(64, patch_size=7, pool="max", pool_size=4, pool_overlap=1.0),
    ConvFeatures(256, patch_size=3, pool="max", pool_overlap=0.5, shrinkage=3.0),
]
clf = ConvRFMClassifier("gaussian", layers, n_rounds=0, random_state=0)
clf.fit(X_train, y_train)

rows_train, rows_test = (part.reshape(len(part), -1) for part in (X_train, X_test))
hog_train, hog_test = map(oriented_gradients, (X_train, X_test))
hog = make_pipeline(StandardScaler(), SVC(C=10)).fit(hog_train, y_train)
pca = make_pipeline(PCA(50, random_state=0), SVC(C=10)).fit(rows_train, y_train)
forest = RandomForestClassifier(500, random_state=0).fit(rows_train, y_train)

scores = {
    "ConvRFM": (clf.predict(X_test), clf.decision_function(X_test)),
    "HOG and SVC": (hog.predict(hog_test), hog.decision_function(hog_test)),
    "PCA and SVC": (pca.predict(rows_test), pca.decision_function(rows_test)),
    "random forest": (
        forest.predict(rows_test),
        forest.predict_proba(rows_test)[:, 1],
    ),
}
figure, ax = plt.subplots(figsize=(5, 4.6), layout="constrained")
for name, (predicted, score) in scores.items():
    accuracy = np.mean(predicted == y_test)
    print(f"{name:<14} accuracy {accuracy:.3f}  AUC {roc_auc_score(y_test, score):.3f}")
    RocCurveDisplay.from_predictions(y_test, score, name=name, ax=ax)

# %%
# The defect probability
# ----------------------
# A regressor uses all four levels.

reg = ConvRFMRegressor("gaussian", layers, n_rounds=0, random_state=0)
predicted = reg.fit(X_train, p_train).predict(X_test)
print(f"regressor: AUC {roc_auc_score(y_test, predicted):.3f}")

figure, ax = plt.subplots(figsize=(5, 3), layout="constrained")
levels = np.unique(p_test)
ax.boxplot([predicted[p_test == level] for level in levels])
ax.set_xticks(np.arange(len(levels)) + 1, [f"{level:.2f}" for level in levels])
ax.set(xlabel="probability given by experts", ylabel="predicted")

# %%
# One prediction
# --------------
# The test cell with the highest score for a defect. Red speaks for a defect. By patch,
# a patch is replaced by the mean grey of the image. Inside a large dark area this makes
# new edges, which look like a defect, too: the score rises, and the map is blue there.

worst = clf.decision_function(X_test).argmax()
ExplanationDisplay.from_estimator(clf, X_test[worst], target=1)
plt.show()
