"""Other machines of the comparison: networks, and what is computed elsewhere.

All take flat rows of pixels in [0, 1].
"""

import joblib
import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from .harness import processor_flags
from .networks import BASIC, ResNet
from .peers.client import PeerWorker


class Peers:
    """The workers of kymatio and xRFM; each is started when it is first asked.

    A context manager that ends them.
    """

    def __enter__(self):
        self._workers, self._remembered = {}, {}
        return self

    def __exit__(self, *error):
        for worker in self._workers.values():
            worker.__exit__(*error)

    def start(self, peer):
        """Return the worker of a peer, started."""
        if peer not in self._workers:
            self._workers[peer] = PeerWorker(peer).__enter__()
        return self._workers[peer]

    def scattering(self, images, J):
        """Return the coefficients of images, remembered for the next candidates."""
        key = joblib.hash((images, J))
        if key not in self._remembered:
            worker = self.start("kymatio")
            _, self._remembered[key] = worker.compute({"images": images}, J=J)
        return self._remembered[key]

    def xrfm(self, arrays, **request):
        """Return the array that xRFM answers with."""
        return self.start("xrfm").compute(arrays, **request)[1]

    def __deepcopy__(self, memo):
        return self  # of clones of estimators


class Scattering(TransformerMixin, BaseEstimator):
    """Scattering coefficients with so many scales J."""

    def __init__(self, peers, image_shape, J=2):
        self.peers = peers
        self.image_shape = image_shape
        self.J = J

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return self.peers.scattering(X.reshape(-1, *self.image_shape), self.J)

    def __sklearn_is_fitted__(self):
        return True


class RecursiveFeatureMachine(ClassifierMixin, BaseEstimator):
    """xRFM; its rounds are chosen on a fifth held out, see `peers/xrfm_peer.py`.

    Parameters
    ----------
    peers : Peers
        Where it is computed.
    bandwidth : float, default=10
        Of the Laplace kernel; a multiple of the median distance if ``bandwidth_mode``
        is "adaptive", and not "constant".
    diag : bool, default=False
        True for a metric of a weight a pixel in place of a matrix.
    standardize : bool, default=False
        True for pixels of variance 1.
    random_state : int, default=0
        Seed of the rows held out.
    """

    def __init__(
        self,
        peers,
        bandwidth=10.0,
        bandwidth_mode="constant",
        diag=False,
        standardize=False,
        random_state=0,
    ):
        self.peers = peers
        self.bandwidth = bandwidth
        self.bandwidth_mode = bandwidth_mode
        self.diag = diag
        self.standardize = standardize
        self.random_state = random_state

    def fit(self, X, y):
        self.classes_, codes = np.unique(y, return_inverse=True)
        # The kernel for rows of many columns: no root of the metric is needed.
        model = {"kernel": "l2_high_dim", "exponent": 1.0, "diag": self.diag}
        model |= {"bandwidth": self.bandwidth, "bandwidth_mode": self.bandwidth_mode}
        request = {"model": model, "fit": {"reg": 1e-3}, "rounds": 2}
        request |= {"standardize": self.standardize, "seed": self.random_state}
        rounds = self.peers.xrfm({"X": X, "y": codes}, task="fit", **request)
        self.best_round_ = int(rounds)
        return self

    def predict(self, X):
        return self.classes_[self.peers.xrfm({"X": X}, task="predict")]


class ConvNet(ClassifierMixin, BaseEstimator):
    """A small convolutional network, or a wide residual one; with skorch.

    Adam with decoupled weight decay, and a learning rate that rises and falls once.

    Parameters
    ----------
    image_shape : tuple of int
        Of the images in the rows.
    residual : bool, default=False
        True for stages of two residual blocks of 32 filters and more (WRN-16-2) in
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
        residual=False,
        cells=None,
        lr=3e-3,
        weight_decay=1e-2,
        epochs=15,
        batch_size=64,
        random_state=0,
    ):
        self.image_shape = image_shape
        self.residual = residual
        self.cells = cells
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X, y):
        # Only who runs the network needs skorch.
        from skorch import NeuralNetClassifier
        from skorch.callbacks import LRScheduler

        steps = self.epochs * -(-len(X) // self.batch_size)
        schedule = LRScheduler(
            OneCycleLR, step_every="batch", max_lr=self.lr, total_steps=steps + 1
        )
        with torch.random.fork_rng():
            torch.manual_seed(self.random_state)
            self.net_ = NeuralNetClassifier(
                self._layers(len(np.unique(y))),
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
            ).fit(X, y)
        self.classes_ = self.net_.classes_
        return self

    def predict(self, X):
        return self.net_.predict(X)

    def _layers(self, n_classes):
        """Return the network on flat rows, in the format that is fastest here."""
        channels = self.image_shape[2]
        first = [ChannelsFirst(self.image_shape), nn.BatchNorm2d(channels)]
        if self.residual:
            rest = [ResNet(BASIC, (2, 2, 2), n_classes, channels, width=32)]
        else:
            rest = conv_layers(self.image_shape, n_classes, 32, self.cells)
        # Where the processor multiplies bfloat16, which others emulate.
        halves = {"avx512_bf16", "amx_bf16"} & processor_flags()
        whole = HalfPrecision if halves else nn.Sequential
        return whole(*first, *rest).to(memory_format=torch.channels_last)


def conv_layers(image_shape, n_classes, width, cells=None):
    """Return three convolutions with pools, and a linear layer, as a list."""
    rows, columns, channels = image_shape
    layers = []
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
    head = nn.Linear(channels * rows * columns, n_classes)
    return [*layers, nn.Flatten(), nn.Dropout(0.5), head]


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
