"""
A round of ConvRFM by hand
==========================

This program computes one round step by step: the kernel machine, its gradients with
respect to patches, the patch AGOP, the patch transform, and its effect on patches,
distances and predictions. :doc:`/method` explains the pictures.
"""

import matplotlib.pyplot as plt
import numpy as np

from skconvrfm.datasets import make_star
from skconvrfm.kernels import ConvNTK, patch_agop

PATCH = 11
NTK = ConvNTK(depth=1, patch_size=PATCH, bias=0)
RIDGE = 1e-2

X, y = make_star(150, random_state=0)
X, targets = X.astype(np.float32), np.where(y == 1, 1.0, -1.0)
X_train, X_test = X[:50], X[50:]
y_train, y_test = targets[:50], targets[50:]
d = 3 * PATCH**2


def show(ax, pixels, title=None):
    """Draw a patch or an image; 0 is the middle grey."""
    ax.imshow(np.clip((1 + pixels) / 2, 0, 1), interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize="medium")


def as_pixels(vector):
    """The entries of a patch, in the order (channel, row, column), as a picture."""
    return np.moveaxis(vector.reshape(3, PATCH, PATCH), 0, -1)


# %%
# 1. A kernel machine
# -------------------
# In round 0 the patch transform :math:`T` is the identity. The ridge is fixed here.


def kernel(A, B, T):
    """The kernel of images A and B under the patch transform T."""
    return NTK(A, B, patch_transform=T)


def fit(T):
    """Coefficients of the ridge regression, and its predictions of left-out images."""
    K = kernel(X_train, X_train, T)
    inverse = np.linalg.inv(K + RIDGE * K.diagonal().max() * np.eye(len(K)))
    alpha = inverse @ y_train
    return alpha, y_train - alpha / inverse.diagonal()


def draw_scores(ax, scores, title):
    """Draw the predictions for new images, by class."""
    bins = np.linspace(-1, 1.5, 26)
    for label, name in ((-1, "noise"), (1, "star")):
        ax.hist(scores[y_test == label], bins, alpha=0.6, label=name)
    right = np.mean(np.sign(scores) == y_test)
    ax.set(xlabel="f(z)", ylabel="Test images", title=f"{title}: {right:.1%} right")
    ax.axvline(0, color="black", linewidth=1)
    ax.legend()


T = np.eye(d)
alpha, left_out = fit(T)
scores = kernel(X_test, X_train, T) @ alpha

figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
draw_scores(ax, scores, "Fixed kernel")

# %%
# 2. Its gradients with respect to patches
# ----------------------------------------
# With one layer the kernel is a mean over locations, so that the predictor is a mean of
# predictors on crops of one location. The AGOP of one crop is the outer product of its
# gradient with itself. A row of this matrix is the gradient, up to a factor.

stars = y_test == 1
image = X_test[stars][np.argmax(scores[stars])]
corners = np.arange(0, len(image) - PATCH + 1, 2)  # every other row and column
gradients = np.empty((len(corners), len(corners), d))
for at in np.ndindex(gradients.shape[:2]):
    row, column = corners[at[0]], corners[at[1]]
    here = np.s_[:, row : row + PATCH, column : column + PATCH]
    outer = patch_agop(NTK, X_train[here], alpha, image[None][here])
    largest = outer.diagonal().argmax()
    gradients[at] = outer[largest] / np.sqrt(outer[largest, largest])
lengths = np.linalg.norm(gradients, axis=-1)

figure = plt.figure(figsize=(6.6, 4.8), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=(1.7, 1))
left, right = above.subplots(1, 2)
show(left, image, "An image z with a star")
first, last = PATCH // 2 - 1, PATCH // 2 + corners[-1] + 1
drawn = right.imshow(lengths, cmap="inferno", extent=(first, last, last, first))
right.set(xlim=(-0.5, 31.5), ylim=(31.5, -0.5), xticks=[], yticks=[], facecolor="0.85")
right.set_title("Length of the gradient by location", fontsize="medium")
above.colorbar(drawn, ax=right)
below.suptitle("The gradients at four places where they are longest", fontsize="medium")
longest = np.argsort(-lengths, axis=None)[:20:5]
for ax, place in zip(below.subplots(1, 4), longest, strict=True):
    gradient = gradients.reshape(-1, d)[place]
    show(ax, as_pixels(gradient / np.abs(gradient).max()))

# %%
# 3. The patch AGOP
# -----------------
# The mean over all training images of the sum of these outer products. One call
# computes it for all locations and outputs.

G = patch_agop(NTK, X_train, alpha, patch_transform=T)
eigenvalues, eigenvectors = np.linalg.eigh(G)
shares = eigenvalues[::-1] / eigenvalues.sum()

figure, (left, right) = plt.subplots(1, 2, figsize=(6.6, 3.1), layout="constrained")
peak = np.abs(G).max()
left.imshow(G, cmap="RdBu_r", vmin=-peak, vmax=peak)
ticks = np.arange(3) * PATCH**2 + PATCH**2 // 2
for axis in (left.set_xticks, left.set_yticks):
    axis(ticks, ["red", "green", "blue"])
left.set_title("G, 363 by 363", fontsize="medium")
right.plot(np.arange(1, d + 1), shares)
right.set(xlabel="Eigenvalue of G", ylabel="Share of all", xscale="log", yscale="log")
right.set_ylim(1e-5, 1)
right.grid(alpha=0.3)
print(f"the leading eigenvector has {shares[0]:.0%} of the trace")

# %%
# An eigenvector is a pattern in a patch. Its eigenvalue is the mean squared slope of
# the predictor along it.

figure, axes = plt.subplots(1, 5, figsize=(6.6, 1.7), layout="constrained")
figure.suptitle("Leading eigenvectors of G, and their shares", fontsize="medium")
for ax, vector, share in zip(axes, eigenvectors.T[::-1], shares, strict=False):
    vector = vector * np.sign(vector.sum()) / np.abs(vector).max()
    show(ax, as_pixels(vector), f"{share:.1%}")

# %%
# 4. The patch transform
# ----------------------
# The patch transform is the square root of :math:`G`, scaled to the norm of the
# identity. Patches are multiplied by it before they are compared.


def transform(G):
    """The patch transform that a patch AGOP gives."""
    eigenvalues, eigenvectors = np.linalg.eigh(G)
    root = (eigenvectors * np.sqrt(eigenvalues.clip(0))) @ eigenvectors.T
    return np.sqrt(d) * root / np.linalg.norm(root)


T = transform(G)

row, column = corners[list(np.unravel_index(np.argmax(lengths), lengths.shape))]
with_star = image[row : row + PATCH, column : column + PATCH]
noise = X_test[y_test == -1][:2, :PATCH, :PATCH]
figure, axes = plt.subplots(2, 3, figsize=(5, 3.9), layout="constrained")
for (above, below), patch, name in zip(
    axes.T, [with_star, *noise], ["with a star", "noise", "noise"], strict=True
):
    v = np.moveaxis(patch, -1, 0).ravel()
    show(above, as_pixels(v), f"{name}: length {np.linalg.norm(v):.1f}")
    show(below, as_pixels(T @ v), f"length {np.linalg.norm(T @ v):.1f}")
axes[0, 0].set_ylabel("patch v")
axes[1, 0].set_ylabel("T v")

# %%
# 5. Distances, before and after
# ------------------------------
# :math:`k(x, x) + k(z, z) - 2 k(x, z)` is the squared distance of two images in the
# space of the kernel.


def distances(T):
    """Distances of the first test images, noise first, in units of the largest."""
    images = np.concatenate([X_test[y_test == label][:20] for label in (-1, 1)])
    K = kernel(images, images, T)
    squares = K.diagonal()[:, None] + K.diagonal() - 2 * K
    lengths = np.sqrt(squares.clip(0))
    return lengths / lengths.max()


figure, axes = plt.subplots(1, 2, figsize=(6.6, 3.2), layout="constrained")
for ax, measure, title in zip(
    axes, (np.eye(d), T), ("Fixed kernel", "After one round"), strict=True
):
    drawn = ax.imshow(distances(measure), vmin=0, vmax=1)
    ax.set_xticks([9.5, 29.5], ["noise", "star"])
    ax.set_yticks([9.5, 29.5], ["noise", "star"], rotation=90, va="center")
    ax.tick_params(length=0)
    ax.set_title(title, fontsize="medium")
figure.colorbar(drawn, ax=axes, label="Distance, of the largest")

# %%
# 6. Fit again, and again
# -----------------------
# Left-out predictions come from the same inverse. The test images are for comparison
# only.

accuracy = {"left-out training images": [], "test images": []}
scores_by_round = []
T = np.eye(d)
for number in range(4):
    alpha, left_out = fit(T)
    scores_by_round.append(kernel(X_test, X_train, T) @ alpha)
    for name, f, true in zip(
        accuracy, (left_out, scores_by_round[-1]), (y_train, y_test), strict=True
    ):
        accuracy[name].append(np.mean(np.sign(f) == true))
    print(
        f"round {number}:",
        ", ".join(f"{values[-1]:.0%} of {name}" for name, values in accuracy.items()),
    )
    T = transform(patch_agop(NTK, X_train, alpha, patch_transform=T))

figure, axes = plt.subplots(2, 1, figsize=(6, 5), layout="constrained", sharex=True)
draw_scores(axes[0], scores_by_round[0], "Fixed kernel")
draw_scores(axes[1], scores_by_round[1], "After one round")

# %%
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for name, values in accuracy.items():
    ax.plot(values, marker="o", label=name)
ax.set(xlabel="Round", ylabel="Accuracy", xticks=range(4))
ax.grid(alpha=0.3)
ax.legend()
plt.show()
