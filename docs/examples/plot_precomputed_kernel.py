"""
The kernel in an SVC and in a Gaussian process
==============================================

A kernel such as :class:`~skconvrfm.kernels.ConvNTK` can be called on images, with the
patch transform of a fitted ConvRFM. Any kernel method can use it: a support vector
machine with `kernel="precomputed"`, or a Gaussian process with a small class.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import rotate
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel, WhiteKernel
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.datasets import load_digit_images, make_framed_digits
from skconvrfm.kernels import ConvNTK

# %%
# A support vector machine
# ------------------------
# ConvRFM learns the metric from the same training images. The SVC gets kernel matrices.

X, y = make_framed_digits(random_state=0)
X_train, X_test, y_train, y_test = train_test_split(
    X.astype(np.float32), y, train_size=300, test_size=300, random_state=0
)
kernel = ConvNTK(depth=2)
clf = ConvRFMClassifier(kernel, n_rounds=2, agop_samples=20).fit(X_train, y_train)


def accuracy_of_svc(patch_transform=None):
    """Accuracy of an SVC with the kernel under a transform, scaled to order one."""
    K_train = kernel(X_train, patch_transform=patch_transform)
    K_test = kernel(X_test, X_train, patch_transform=patch_transform)
    scale = K_train.diagonal().max()
    svc = SVC(kernel="precomputed", C=10).fit(K_train / scale, y_train)
    return svc.score(K_test / scale, y_test)


fixed = accuracy_of_svc()
learned = accuracy_of_svc(clf.patch_transform_)
rows_train, rows_test = (part.reshape(len(part), -1) for part in (X_train, X_test))
pixels = SVC(C=10).fit(rows_train, y_train).score(rows_test, y_test)
print(f"SVC, RBF kernel on pixels:    {pixels:.1%}")
print(f"SVC, fixed convolutional:     {fixed:.1%}")
print(f"SVC, metric of round {clf.best_round_}:        {learned:.1%}")
print(f"ConvRFM itself:               {clf.score(X_test, y_test):.1%}")

# %%
# A Gaussian process
# ------------------
# scikit-learn's Gaussian processes take kernel objects. This kernel has no parameters
# to optimise; only the variance of the noise is optimised.


class ImageKernel(Kernel):
    """The convolutional kernel of flat rows for a Gaussian process."""

    def __init__(self, image_shape, depth=2, patch_transform=None):
        self.image_shape = image_shape
        self.depth = depth
        self.patch_transform = patch_transform

    def __call__(self, X, Y=None, eval_gradient=False):
        """Kernel matrix, and its gradient by no parameters at all."""
        X, Y = (
            None if rows is None else rows.reshape(-1, *self.image_shape)
            for rows in (X, Y)
        )
        K = ConvNTK(self.depth)(X, Y, patch_transform=self.patch_transform)
        return (K, np.empty((*K.shape, 0))) if eval_gradient else K

    def diag(self, X):
        """The kernel of each row with itself."""
        return np.array([self(row[None])[0, 0] for row in X])

    def is_stationary(self):
        """It is not: bright images have large values."""
        return False


# %%
# The task is a regression: by what angle was a digit turned? A Gaussian process also
# predicts a standard deviation, which we compare with the errors. All strokes matter
# for the angle and there is no noise, so that a learned metric adds little here.

digits, _ = load_digit_images(return_X_y=True)
rng = np.random.default_rng(0)
angles = rng.uniform(-60, 60, size=500)
turned = np.stack(
    [
        rotate(np.pad(digit, 2), angle, reshape=False, order=1)
        for digit, angle in zip(digits, angles, strict=False)
    ]
).reshape(500, -1)
train, test = np.s_[:250], np.s_[250:]

# The best variance of the noise is at its lower bound, which scikit-learn warns about.
warnings.simplefilter("ignore", ConvergenceWarning)
reg = ConvRFMRegressor(kernel, image_shape=(12, 12), n_rounds=2, agop_samples=20)
reg.fit(turned[train], angles[train])
results = {}
for name, T in (("fixed kernel", None), ("learned metric", reg.patch_transform_)):
    image_kernel = ImageKernel((12, 12), patch_transform=T)
    scale = image_kernel.diag(turned[train]).mean()
    process = GaussianProcessRegressor(
        # Targets are standardised, and so is the kernel: the noise is a share of it.
        (1 / scale) * image_kernel + WhiteKernel(1e-2, (1e-8, 1e1)),
        normalize_y=True,
    ).fit(turned[train], angles[train])
    mean, deviation = process.predict(turned[test], return_std=True)
    errors = mean - angles[test]
    results[name] = (mean, deviation)
    print(
        f"{name}: off by {np.sqrt(np.mean(errors**2)):.1f}° (root mean square), "
        f"{np.mean(np.abs(errors) < 2 * deviation):.0%} within two deviations, "
        f"log marginal likelihood {process.log_marginal_likelihood_value_:.0f}"
    )

# %%

figure, axes = plt.subplots(
    1, 2, figsize=(6.6, 3.4), layout="constrained", sharex=True, sharey=True
)
for ax, (name, (mean, deviation)) in zip(axes, results.items(), strict=True):
    ax.errorbar(
        angles[test], mean, 2 * deviation, fmt="o", markersize=3, elinewidth=0.5
    )
    ax.plot([-60, 60], [-60, 60], color="black", linewidth=1)
    ax.set(xlabel="Angle", title=name)
    ax.grid(alpha=0.3)
axes[0].set_ylabel("Predicted, ± two deviations")
plt.show()
