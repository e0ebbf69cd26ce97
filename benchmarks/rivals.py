"""Other machines of the comparison: xRFM, scattering and a convolutional network.

All take flat rows of pixels in [0, 1]. Only who runs one needs its package: xrfm (0.4.5
was measured), kymatio (0.3.0) or skorch (1.4.0).
"""

import functools

import joblib
import numpy as np
import scipy.special
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

_COEFFICIENTS = {}  # of images that were scattered, for the next candidates


@functools.cache
def scattering(J, image_shape):
    """Return the function of images (n, h, w, c) for flat coefficients."""
    # kymatio imports it, for volumes; newer releases of scipy do not have it.
    scipy.special.sph_harm = None
    from kymatio.torch import Scattering2D

    transform = Scattering2D(J=J, L=8, shape=image_shape[:2])

    @torch.inference_mode()
    def scatter(images, batch=50):
        maps = torch.from_numpy(np.float32(images)).permute(0, 3, 1, 2).split(batch)
        return torch.cat([transform(m.contiguous()).flatten(1) for m in maps]).numpy()

    return scatter


class Scattering(TransformerMixin, BaseEstimator):
    """Scattering coefficients with so many scales J, computed by kymatio."""

    def __init__(self, image_shape, J=2):
        self.image_shape = image_shape
        self.J = J

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        key = joblib.hash((X, self.J))
        if key not in _COEFFICIENTS:
            images = X.reshape(-1, *self.image_shape)
            _COEFFICIENTS[key] = scattering(self.J, self.image_shape)(images)
        return _COEFFICIENTS[key]

    def __sklearn_is_fitted__(self):
        return True


class RecursiveFeatureMachine(ClassifierMixin, BaseEstimator):
    """xRFM, whose rounds, two at most, are chosen on a fifth of the rows held out.

    All rows are then fitted with so many rounds. ``bandwidth`` is that of the Laplace
    kernel; a multiple of the median distance if ``bandwidth_mode`` is "adaptive", and
    not "constant". ``diag`` is True for a metric of a weight a pixel in place of a
    matrix, ``standardize`` for pixels of variance 1.
    """

    def __init__(
        self,
        bandwidth=10.0,
        bandwidth_mode="constant",
        diag=False,
        standardize=False,
        random_state=0,
    ):
        self.bandwidth = bandwidth
        self.bandwidth_mode = bandwidth_mode
        self.diag = diag
        self.standardize = standardize
        self.random_state = random_state

    def fit(self, X, y):
        self.classes_, codes = np.unique(y, return_inverse=True)
        scale = self.standardize
        self.scaler_ = StandardScaler(with_mean=scale, with_std=scale).fit(X)
        rows, codes = self._rows(X), torch.from_numpy(codes)
        kept, held_out = train_test_split(
            np.arange(len(y)), test_size=0.2, stratify=y, random_state=self.random_state
        )
        judged = rows[held_out], codes[held_out]
        chosen = self._machine(2, True).fit(rows[kept], codes[kept], *judged)
        self.best_round_ = int(chosen.trees[0]["model"].best_iter)
        # It asks for rows to judge by here too, and nothing depends on them.
        self.machine_ = self._machine(self.best_round_, False).fit(rows, codes, *judged)
        return self

    def predict(self, X):
        return self.classes_[np.asarray(self.machine_.predict(self._rows(X)))]

    def _rows(self, X):
        return torch.from_numpy(np.float32(self.scaler_.transform(X)))

    def _machine(self, n_rounds, choose):
        from xrfm import xRFM

        # The kernel for rows of many columns: no root of the metric is needed.
        model = {"kernel": "l2_high_dim", "exponent": 1.0, "diag": self.diag}
        model |= {"bandwidth": self.bandwidth, "bandwidth_mode": self.bandwidth_mode}
        fit = {"reg": 1e-3, "iters": n_rounds, "verbose": False}
        fit |= {"return_best_params": choose, "early_stop_rfm": choose}
        options = {"device": "cpu", "verbose": False, "random_state": self.random_state}
        return xRFM(rfm_params={"model": model, "fit": fit}, **options)


class ConvNet(ClassifierMixin, BaseEstimator):
    """A small convolutional network, with skorch.

    Adam with decoupled weight decay, and a learning rate that rises and falls once.
    ``cells`` are rows and columns that the last maps of convolutions are pooled to, by
    their largest values; None keeps all locations.
    """

    def __init__(
        self, image_shape, cells=None, lr=3e-3, epochs=15, batch_size=64, random_state=0
    ):
        self.image_shape = image_shape
        self.cells = cells
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X, y):
        from skorch import NeuralNetClassifier
        from skorch.callbacks import LRScheduler

        steps = self.epochs * -(-len(X) // self.batch_size)
        schedule = LRScheduler(
            OneCycleLR, step_every="batch", max_lr=self.lr, total_steps=steps + 1
        )
        with torch.random.fork_rng():
            torch.manual_seed(self.random_state)
            network = conv_layers(self.image_shape, len(np.unique(y)), self.cells)
            self.net_ = NeuralNetClassifier(
                network.to(memory_format=torch.channels_last),
                criterion=nn.CrossEntropyLoss,
                optimizer=torch.optim.AdamW,
                optimizer__weight_decay=1e-2,
                lr=self.lr,
                max_epochs=self.epochs,
                batch_size=self.batch_size,
                iterator_train__shuffle=True,
                train_split=None,
                callbacks=[schedule],
                verbose=0,
            ).fit(X, y)
        self.classes_ = self.net_.classes_
        return self

    def predict(self, X):
        return self.net_.predict(X)


def conv_layers(image_shape, n_classes, cells=None):
    """Return three convolutions with pools, and a linear layer, for flat rows."""
    rows, columns, channels = image_shape
    layers = [ChannelsFirst(image_shape), nn.BatchNorm2d(channels)]
    for size in (32, 64, 128):
        layers += [
            nn.Conv2d(channels, size, 3, padding=1, bias=False),
            nn.BatchNorm2d(size),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
        ]
        channels, rows, columns = size, -(-rows // 2), -(-columns // 2)
    if cells is not None:
        layers.append(nn.AdaptiveMaxPool2d(cells))
        rows = columns = cells
    head = nn.Linear(channels * rows * columns, n_classes)
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.5), head)


class ChannelsFirst(nn.Module):
    """Flat rows as images that torch's convolutions take; nothing is copied."""

    def __init__(self, image_shape):
        super().__init__()
        self.image_shape = image_shape

    def forward(self, rows):
        return rows.unflatten(1, self.image_shape).permute(0, 3, 1, 2)
