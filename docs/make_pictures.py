"""Write the pictures of the README, the guide and the gallery.

``python docs/make_pictures.py``. Needs Matplotlib, and no data but what the package
makes.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from skconvrfm import ConvRFMClassifier, PatchAGOPTransformer
from skconvrfm.datasets import load_digit_images, make_framed_digits, make_star
from skconvrfm.display import PatchFiltersDisplay, RoundsDisplay, SaliencyDisplay

FOLDER = Path(__file__).parent / "images"
DPI = 110


def fit_star():
    """Images of noise, some with a star, and what is learned from fifty of them."""
    X, y = make_star(550, random_state=0)
    clf = ConvRFMClassifier(depth=1, patch_size=11, n_rounds=2)
    return X, y, clf.fit(X[:50], y[:50])


def draw_star(X, y, clf):
    """The picture of the README: images, rounds and filters."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    images, rounds, patterns = figure.subfigures(3, 1, height_ratios=(1, 1.8, 0.9))
    images.suptitle("Noise, and noise with a star in it", fontsize="medium")
    shown = np.concatenate([np.flatnonzero(y == label)[:4] for label in (0, 1)])
    for ax, image in zip(images.subplots(1, len(shown)), X[shown], strict=True):
        ax.imshow(np.clip((1 + image) / 2, 0, 1))
        ax.set(xticks=[], yticks=[])
    RoundsDisplay.from_estimator(clf, ax=rounds.subplots())
    patterns.suptitle(
        "What the predictor responds to: eigenvectors of the patch AGOP, their share",
        fontsize="medium",
    )
    PatchFiltersDisplay.from_estimator(clf, ax=patterns.subplots())
    return figure


def one_axes(*size):
    """A figure of some inches without pyplot, and the axes in it."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def draw_framed_digits():
    """Digits in a frame of noise: where the learned metric finds something."""
    X, y = make_framed_digits(random_state=0)
    features = PatchAGOPTransformer(depth=2, n_rounds=2).fit(X[:400], y[:400])
    figure, ax = one_axes(5, 6.6)
    SaliencyDisplay.from_estimator(features, X[400:], ax=ax)
    return figure


def draw_deep(layer):
    """Rounds and filters of a layer above a layer of filters."""
    X, y = load_digit_images(return_X_y=True)
    clf = ConvRFMClassifier(depth=3, feature_layers=2, n_filters=32, n_rounds=2)
    clf.fit(X[:300], y[:300])
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    rounds, filters = figure.subfigures(2, 1, height_ratios=(2, 1))
    RoundsDisplay.from_estimator(clf, layer=layer, ax=rounds.subplots())
    PatchFiltersDisplay.from_estimator(clf, layer=layer, ax=filters.subplots())
    return figure


def save(figure, name):
    """Write a picture."""
    figure.savefig(FOLDER / name, dpi=DPI)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    X, y, clf = fit_star()
    save(draw_star(X, y, clf), "star.png")
    figure, ax = one_axes(11, 3.2)
    RoundsDisplay.from_estimator(clf, ax=ax)
    save(figure, "star_rounds.png")
    figure, ax = one_axes(9.2, 1.7)
    PatchFiltersDisplay.from_estimator(clf, ax=ax)
    save(figure, "star_filters.png")
    figure, ax = one_axes(5, 6.6)
    SaliencyDisplay.from_estimator(clf, X[50:][y[50:] == 1], ax=ax)
    save(figure, "star_saliency.png")
    save(draw_framed_digits(), "framed_digits_saliency.png")
    save(draw_deep(layer=1), "deep_layer.png")
