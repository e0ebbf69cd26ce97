"""Time and peak memory of kernels, AGOP, features and estimators, for asv."""

import numpy as np
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier, PatchAGOPTransformer
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, patch_agop

N_CLASSES = 10
FEATURES = ConvFeatures(64, patch_size=3)
MODELS = {
    "ConvNTK": ConvRFMClassifier(),
    "ConvFeatures + Linear": ConvRFMClassifier("linear", FEATURES),
    "ConvFeatures + Gaussian": ConvRFMClassifier("gaussian", FEATURES),
}


def random_images(n_images, image_shape):
    """Return seeded images (n, h, w, c)."""
    shape = n_images, *image_shape
    return np.random.default_rng(0).random(shape, dtype=np.float32)


class Kernel:
    """The training kernel."""

    params = ([100, 200], [1, 3])
    param_names = ("n_images", "depth")

    def setup(self, n_images, depth):
        self.images = random_images(n_images, (16, 16, 3))

    def time_training(self, n_images, depth):
        return ConvNTK(depth, bias=0)(self.images)

    peakmem_training = time_training


class PatchAGOP:
    """The patch AGOP of a kernel machine, all classes at once."""

    params = ([10, 20], [1, N_CLASSES, 10 * N_CLASSES])
    param_names = ("n_points", "n_classes")

    def setup(self, n_points, n_classes):
        self.images = random_images(100, (16, 16, 3))
        shape = (len(self.images), n_classes)
        self.dual_coef = np.random.default_rng(0).standard_normal(shape)

    def time_agop(self, n_points, n_classes):
        points = self.images[:n_points]
        kernel = ConvNTK(bias=0)
        return patch_agop(kernel, self.images, self.dual_coef, points)

    peakmem_agop = time_agop


class Estimators:
    """Fit and predict, without and with learned metrics, and features of images."""

    params = (list(MODELS), [0, 2])
    param_names = ("model", "n_rounds")

    def setup(self, model, n_rounds):
        images = random_images(200, (12, 12, 1))
        self.X, self.X_new = images[:150], images[150:]
        self.y = np.arange(len(self.X)) % N_CLASSES
        self.classifier = self.time_fit(model, n_rounds)
        self.features = PatchAGOPTransformer(MODELS[model]).fit(self.X, self.y)

    def time_fit(self, model, n_rounds):
        return clone(MODELS[model]).set_params(n_rounds=n_rounds).fit(self.X, self.y)

    def time_predict(self, model, n_rounds):
        return self.classifier.predict(self.X_new)

    def time_features(self, model, n_rounds):
        return self.features.transform(self.X_new)

    peakmem_fit = time_fit
