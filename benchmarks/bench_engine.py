"""Small benchmarks in the manner of asv: classes with setup, time_* and peakmem_*.

Each runs in well under a second, so that the tests can run all of them once.
"""

import numpy as np
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, patch_agop

from .harness import smooth_images

N_CLASSES = 10


class Kernel:
    """The training kernel, and one between two sets of images."""

    params = ([100, 200], [1, 3])
    param_names = ("n_images", "depth")

    def setup(self, n_images, depth):
        """Make the images."""
        self.images = smooth_images(n_images, (16, 16, 3))

    def time_training(self, n_images, depth):
        """Compute one triangle."""
        return ConvNTK(depth, bias=0)(self.images)

    def time_rectangle(self, n_images, depth):
        """Compute all pairs of two sets."""
        return ConvNTK(depth, bias=0)(self.images[::2], self.images[1::2])

    def peakmem_training(self, n_images, depth):
        """Compute one triangle, for its memory."""
        return self.time_training(n_images, depth)


class PatchAGOP:
    """The patch AGOP of a kernel machine."""

    params = ([10, 20], [1, N_CLASSES, 10 * N_CLASSES])
    param_names = ("n_points", "n_classes")

    def setup(self, n_points, n_classes):
        """Make the machine."""
        self.images = smooth_images(100, (16, 16, 3))
        shape = (len(self.images), n_classes)
        self.dual_coef = np.random.default_rng(0).standard_normal(shape)

    def time_agop(self, n_points, n_classes):
        """Take all classes at once."""
        points = self.images[:n_points]
        return patch_agop(ConvNTK(bias=0), self.images, self.dual_coef, points)

    def peakmem_agop(self, n_points, n_classes):
        """Do the same, for its memory."""
        return self.time_agop(n_points, n_classes)


FEATURES = ConvFeatures(64, patch_size=3)
MODELS = {
    "ConvNTK": ConvRFMClassifier(),
    "ConvFeatures + Linear": ConvRFMClassifier("linear", FEATURES),
    "ConvFeatures + Gaussian": ConvRFMClassifier("gaussian", FEATURES),
}


class Classifier:
    """Fit and predict of the estimator, without and with learned metrics."""

    params = (list(MODELS), [0, 2])
    param_names = ("model", "n_rounds")

    def setup(self, model, n_rounds):
        """Make the images, and fit what predicts."""
        images = smooth_images(200, (12, 12, 1))
        self.X, self.X_new = images[:150], images[150:]
        self.y = np.arange(len(self.X)) % N_CLASSES
        self.classifier = self.time_fit(model, n_rounds)

    def time_fit(self, model, n_rounds):
        """Fit rounds of kernel, solve and AGOP."""
        return clone(MODELS[model]).set_params(n_rounds=n_rounds).fit(self.X, self.y)

    def time_predict(self, model, n_rounds):
        """Predict images that were not seen."""
        return self.classifier.predict(self.X_new)

    def peakmem_fit(self, model, n_rounds):
        """Fit, for its memory."""
        return self.time_fit(model, n_rounds)
