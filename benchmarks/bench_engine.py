"""Small benchmarks in the manner of asv: classes with setup, time_* and peakmem_*.

Each runs in well under a second, so that the tests can run all of them once.
"""

import numpy as np

from skconvrfm import ConvRFMClassifier
from skconvrfm.kernels import convolutional_kernel, patch_agop

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
        """One triangle."""
        return convolutional_kernel(self.images, depth=depth)

    def time_rectangle(self, n_images, depth):
        """All pairs of two sets."""
        return convolutional_kernel(self.images[::2], self.images[1::2], depth=depth)

    def peakmem_training(self, n_images, depth):
        """Memory of one triangle."""
        return convolutional_kernel(self.images, depth=depth)


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
        """All classes at once."""
        return patch_agop(self.images, self.dual_coef, self.images[:n_points])

    def peakmem_agop(self, n_points, n_classes):
        """Memory of the same."""
        return patch_agop(self.images, self.dual_coef, self.images[:n_points])


class Classifier:
    """Fit and predict of the estimator, without and with learned features."""

    params = ([0, 2],)
    param_names = ("n_rounds",)

    def setup(self, n_rounds):
        """Make the images, and fit what predicts."""
        images = smooth_images(200, (12, 12, 1))
        self.X, self.X_new = images[:150], images[150:]
        self.y = np.arange(len(self.X)) % N_CLASSES
        self.classifier = self.time_fit(n_rounds)

    def time_fit(self, n_rounds):
        """Rounds of kernel, solve and AGOP."""
        return ConvRFMClassifier(n_rounds=n_rounds).fit(self.X, self.y)

    def time_predict(self, n_rounds):
        """Predict images that were not seen."""
        return self.classifier.predict(self.X_new)

    def peakmem_fit(self, n_rounds):
        """Memory of a fit."""
        return self.time_fit(n_rounds)
