"""The peers of the linear path, each with the small grid it is chosen from.

All take flat rows of pixels in [0, 1]. None sees more images than those it is given:
no augmentation, for nobody.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from .harness import processor_flags
from .networks import BasicBlock, ResNet

# Images up to which one part held out is a small one to choose by.
FEW_IMAGES = 2000


@dataclass(frozen=True)
class Rival:
    """A peer and what it is chosen from.

    Attributes
    ----------
    label : str
        In tables.
    model : estimator
        The model.
    grid : dict or list of dict
        Its parameters to try.
    n_jobs : int or None
        Fits of the grid at a time, for those that use one core.
    n_parts : int
        Parts that are held out in turn where images are few.
    """

    label: str
    model: BaseEstimator
    grid: dict | list
    n_jobs: int | None = None
    n_parts: int = 3

    @property
    def random(self):
        """True where fits differ by a seed, the parameter random_state."""
        return "random_state" in self.model.get_params(deep=False)

    def search(self, n_images, seed):
        """The search over the grid, by a fifth of the training images held out.

        Parameters
        ----------
        n_images : int
            Training images.
        seed : int
            Of the parts, and of the model.

        Returns
        -------
        GridSearchCV
            Fits nothing again: that is measured apart.
        """
        n_parts = 1 if n_images > FEW_IMAGES else self.n_parts
        parts = StratifiedShuffleSplit(n_parts, test_size=0.2, random_state=seed)
        return GridSearchCV(
            self.seeded(seed), self.grid, cv=parts, n_jobs=self.n_jobs, refit=False
        )

    def seeded(self, seed, **parameters):
        """A copy of the model with some parameters, and with a seed if it has one."""
        model = clone(self.model).set_params(**parameters)
        return model.set_params(random_state=seed) if self.random else model


def kernel_svc(*_):
    """RBF SVC; ``gamma="scale"`` and values around it, pixels as they are or not."""
    model = Pipeline([("scale", None), ("svc", SVC())])
    grid = [
        {"svc__C": [10], "svc__gamma": ["scale", 1e-2, 2e-2, 3e-2]},
        {"svc__C": [3]},
        {"svc__C": [10], "scale": [StandardScaler()]},
    ]
    return Rival("pixels + RBF SVC", model, grid, n_jobs=-1)


def forest(*_):
    """Random forest."""
    model = RandomForestClassifier(500, n_jobs=-1, random_state=0)
    grid = [
        {"max_features": ["sqrt"], "min_samples_leaf": [1, 3]},
        {"max_features": [0.05]},
    ]
    return Rival("pixels + random forest", model, grid)


def boosting(*_):
    """Gradient boosting on histograms, stopped early."""
    model = HistGradientBoostingClassifier(
        max_iter=150,
        early_stopping=True,
        max_features=0.1,
        max_leaf_nodes=15,
        random_state=0,
    )
    grid = {"learning_rate": [0.1, 0.2]}
    return Rival("pixels + gradient boosting", model, grid, n_parts=1)


def scattering(image_shape, extract):
    """A linear classifier on standardised scattering coefficients.

    Parameters
    ----------
    image_shape : tuple of int
        Of an image.
    extract : callable
        ``extract(images, J)`` returns the coefficients.
    """
    steps = [
        ("scattering", Scattering(extract, image_shape)),
        ("scale", StandardScaler()),
        ("linear", LogisticRegression()),
    ]
    # What lies anywhere in a frame wants coefficients that hardly see where.
    scales = {"scattering__J": [2, 3, 4] if min(image_shape[:2]) > 32 else [2, 3]}
    alphas = [1e2, 1e3, 1e4, 3e4]
    logistic = LogisticRegression(max_iter=300, tol=1e-3)
    return Rival(
        "scattering + linear",
        Pipeline(steps),
        [
            {**scales, "linear": [logistic], "linear__C": [1e-3, 1e-2]},
            {**scales, "linear": [RidgeClassifier()], "linear__alpha": alphas},
        ],
    )


def network(image_shape, _):
    """A small convolutional network, trained by backpropagation."""
    grid = [
        {"cells": [None, 1, 2]},
        {"cells": [1], "lr": [1e-2], "epochs": [30]},
        {"cells": [2], "width": [48]},
    ]
    model = ConvNet(image_shape, random_state=0)
    return Rival("network, backpropagation", model, grid, n_parts=1)


def residual_network(image_shape, *_):
    """A wide residual network (WRN-16-2), with a recipe for few images.

    Small batches, many epochs and strong decay are what such networks are best with on
    few images (Brigato et al., arXiv:2108.13122). Epochs and grid are as many as an
    hour allows for 500 images.
    """
    grid = {"lr": [1e-3, 3e-3], "weight_decay": [0.05, 0.5]}
    model = ConvNet(
        image_shape, residual=True, epochs=100, batch_size=10, random_state=0
    )
    return Rival("wide residual network", model, grid, n_parts=1)


RIVALS = {
    "svc": kernel_svc,
    "forest": forest,
    "boosting": boosting,
    "scattering": scattering,
    "network": network,
}


class Scattering(TransformerMixin, BaseEstimator):
    """Scattering coefficients, computed elsewhere.

    Parameters
    ----------
    extract : callable
        ``extract(images, J)`` returns the coefficients.
    image_shape : tuple of int
        Of the images in the rows.
    J : int, default=2
        Scales.
    """

    def __init__(self, extract, image_shape, J=2):
        self.extract = extract
        self.image_shape = image_shape
        self.J = J

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return self.extract(X.reshape(-1, *self.image_shape), self.J)

    def __sklearn_is_fitted__(self):
        return True


class RecursiveFeatureMachine(ClassifierMixin, BaseEstimator):
    """xRFM on flat rows, computed elsewhere.

    Parameters
    ----------
    compute : callable
        ``compute(arrays, **request)`` returns the array that the worker answers with,
        see `benchmarks.peers.xrfm_peer`.
    bandwidth : float, default=10
        Of the Laplace kernel.
    bandwidth_mode : {"constant", "adaptive"}, default="constant"
        Whether the bandwidth is a multiple of the median distance.
    exponent : float, default=1
        Of the distance in the kernel.
    diag : bool, default=False
        Whether the metric has a weight a pixel, and not a matrix.
    reg : float, default=1e-3
        Ridge.
    rounds : int, default=3
        Rounds of the AGOP at most; how many is chosen on a fifth held out.
    standardize : bool, default=False
        Whether pixels are.
    random_state : int, default=0
        Seed of the rows held out.
    """

    def __init__(
        self,
        compute,
        bandwidth=10.0,
        bandwidth_mode="constant",
        exponent=1.0,
        diag=False,
        reg=1e-3,
        rounds=3,
        standardize=False,
        random_state=0,
    ):
        self.compute = compute
        self.bandwidth = bandwidth
        self.bandwidth_mode = bandwidth_mode
        self.exponent = exponent
        self.diag = diag
        self.reg = reg
        self.rounds = rounds
        self.standardize = standardize
        self.random_state = random_state

    def fit(self, X, y):
        self.classes_, codes = np.unique(y, return_inverse=True)
        # The kernel for rows of many columns: no root of the metric is needed.
        model = {
            "kernel": "l2_high_dim",
            "bandwidth": self.bandwidth,
            "bandwidth_mode": self.bandwidth_mode,
            "exponent": self.exponent,
            "diag": self.diag,
        }
        rounds = self.compute(
            {"X": X, "y": codes},
            task="fit",
            model=model,
            fit={"reg": self.reg},
            rounds=self.rounds,
            standardize=self.standardize,
            seed=self.random_state,
        )
        self.best_round_ = int(rounds)
        return self

    def predict(self, X):
        return self.classes_[self.compute({"X": X}, task="predict")]


class ConvNet(ClassifierMixin, BaseEstimator):
    """A small convolutional network, or a wide residual one; with skorch.

    Adam with decoupled weight decay, and a learning rate that rises and falls once.

    Parameters
    ----------
    image_shape : tuple of int
        Of the images in the rows.
    width : int, default=32
        Filters of the first stage; the second has twice, the third four times as many.
    residual : bool, default=False
        Whether a stage has two residual blocks, of twice the usual width (WRN-16-2), in
        place of a convolution.
    cells : int or None, default=None
        Rows and columns of the cells that the last maps of convolutions are pooled to,
        by their largest values; None keeps all locations.
    lr, weight_decay : float
        Largest learning rate, and the decay.
    epochs, batch_size : int
        How long, and in which steps.
    random_state : int, default=0
        Seed of weights, order and dropout.
    """

    def __init__(
        self,
        image_shape,
        width=32,
        residual=False,
        cells=None,
        lr=3e-3,
        weight_decay=1e-2,
        epochs=15,
        batch_size=64,
        random_state=0,
    ):
        self.image_shape = image_shape
        self.width = width
        self.residual = residual
        self.cells = cells
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X, y):
        with torch.random.fork_rng():
            torch.manual_seed(self.random_state)
            self.net_ = self._make_net(len(X), len(np.unique(y)))
            self.net_.fit(X, y)
        self.classes_ = self.net_.classes_
        return self

    def predict(self, X):
        return self.net_.predict(X)

    def _make_layers(self, n_classes):
        common = self.image_shape, n_classes, self.width
        if self.residual:
            return residual_layers(*common)
        return conv_layers(*common, self.cells)

    def _make_net(self, n_images, n_classes):
        # Only who runs the network needs skorch.
        from skorch import NeuralNetClassifier
        from skorch.callbacks import LRScheduler

        steps = self.epochs * -(-n_images // self.batch_size)
        schedule = LRScheduler(
            OneCycleLR, step_every="batch", max_lr=self.lr, total_steps=steps + 1
        )
        return NeuralNetClassifier(
            self._make_layers(n_classes),
            criterion=nn.CrossEntropyLoss,
            optimizer=torch.optim.AdamW,
            optimizer__weight_decay=self.weight_decay,
            lr=self.lr,
            max_epochs=self.epochs,
            batch_size=self.batch_size,
            iterator_train__shuffle=True,
            train_split=None,
            callbacks=[schedule],
            verbose=0,
        )


def residual_layers(image_shape, n_classes, width):
    """The residual network of `ConvNet`, on flat rows."""
    channels = image_shape[2]
    net = ResNet(BasicBlock, (2, 2, 2, 0), n_classes, channels, width)
    return _on_rows(ChannelsFirst(image_shape), nn.BatchNorm2d(channels), net)


def conv_layers(image_shape, n_classes, width, cells=None):
    """The network of `ConvNet`, on flat rows.

    Returns
    -------
    Sequential
    """
    rows, columns, channels = image_shape
    layers = [ChannelsFirst(image_shape), nn.BatchNorm2d(channels)]
    for size in (width, 2 * width, 4 * width):
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
    width = channels * rows * columns
    head = [nn.Flatten(), nn.Dropout(0.5), nn.Linear(width, n_classes)]
    return _on_rows(*layers, *head)


def _on_rows(*layers):
    """Return layers one after the other, in the format that is fastest here."""
    whole = HalfPrecision if multiplies_halves() else nn.Sequential
    return whole(*layers).to(memory_format=torch.channels_last)


def multiplies_halves():
    """Return True where the processor multiplies bfloat16, which others emulate."""
    return bool({"avx512_bf16", "amx_bf16"} & processor_flags())


class HalfPrecision(nn.Sequential):
    """Layers whose convolutions and products take bfloat16, twice as fast there."""

    def forward(self, rows):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(rows).float()


class ChannelsFirst(nn.Module):
    """Flat rows as images that torch's convolutions take; nothing is copied."""

    def __init__(self, image_shape):
        super().__init__()
        self.image_shape = image_shape

    def forward(self, rows):
        return rows.unflatten(1, self.image_shape).permute(0, 3, 1, 2)
