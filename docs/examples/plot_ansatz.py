"""
The ansatz on a trained ResNet
==============================

In many trained networks the covariance of a layer's filters is nearly proportional to
the layer's patch AGOP, which is called the *convolutional neural feature ansatz*.
:class:`~skconvrfm.AnsatzScorer` measures how nearly, for every layer of a torch
network. Here it is a small ResNet that learns scikit-learn's digits in half a minute.
"""

import copy

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from skconvrfm import AnsatzScorer
from skconvrfm.datasets import load_digit_images
from skconvrfm.display import AnsatzLayerDisplay, AnsatzTrainingDisplay

X, y = load_digit_images(return_X_y=True)
X = X.astype(np.float32)
X_train, y_train, X_test, y_test = X[:900], y[:900], X[900:], y[900:]


# %%
# A network
# ---------


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels_in, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.around = nn.Identity()
        if stride > 1:
            self.around = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x):
        """Maps of the next block."""
        out = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(out)) + self.around(x)).relu()


torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1, bias=False),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    Block(16, 16, stride=1),
    Block(16, 32, stride=2),
    Block(32, 64, stride=2),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(64, 10),
)

# %%
# The baseline is this network before training. Its batch norm gets the statistics of
# the images, as it has them after training.

images, labels = torch.as_tensor(X_train)[:, None], torch.as_tensor(y_train)
untrained = copy.deepcopy(network)
for module in untrained.modules():
    if isinstance(module, nn.BatchNorm2d):
        module.momentum = None  # the mean over all batches
with torch.no_grad():
    untrained(images)

# %%
# Training
# --------


def accuracy(model, X, y):
    """The share of images whose class is predicted."""
    model.eval()
    with torch.no_grad():
        scores = model(torch.as_tensor(X)[:, None])
    return float((scores.argmax(1).numpy() == y).mean())


optimizer = torch.optim.Adam(network.parameters(), lr=3e-3, weight_decay=1e-3)
network.train()
scorer = AnsatzScorer(max_images=200)
reports = {0: scorer.report(untrained, X_test)}
for epoch in range(1, 21):
    for rows in torch.randperm(len(images)).split(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images[rows]), labels[rows])
        loss.backward()
        optimizer.step()
    if epoch in (1, 2, 5, 10, 20):
        reports[epoch] = scorer.report(network, X_test)
for name, model in (("untrained", untrained), ("trained", network)):
    print(f"{name}: {accuracy(model, X_test, y_test):.1%} of test images")

# %%
# The ansatz, trained against untrained
# -------------------------------------
# We take 200 images that were not trained on, and all ten outputs. The *lift* of a
# layer is its correlation less that of the baseline: the part that is due to training.
# It is large in the last convolution here, and negative in those before it.
# :ref:`evidence` has the reasons.

report = AnsatzScorer(max_images=200, baseline=untrained).report(network, X_test)
print(report)

# %%
# `drift` is the correlation of the filter covariances before and after training. Where
# it is low, training has changed the filters.

print({row.name: round(row.drift, 2) for row in report})

# %%
# The picture has the same numbers. Random filters are already correlated with their
# AGOP, because it contains them on both sides. The effect of training is the distance
# from the dashed line.

report.plot()
plt.show()

# %%
# In the first epoch most correlations fall: the gradients have changed, and the filters
# hardly yet. After that they rise.

AnsatzTrainingDisplay.from_reports(reports, step_name="Epoch")
plt.show()

# %%
# For one layer, the filter covariance is above and the AGOP below, each with its
# leading eigenvectors. These are patches of many channels; the picture shows their norm
# over the channels at each pixel.

deepest = max(report, key=lambda row: row.lift)
AnsatzLayerDisplay.from_report(report, deepest.name)
plt.show()

# %%
# A network of your own
# ---------------------
# Build it, read your checkpoint, and pass both to the scorer::
#
#     network = MyNetwork()
#     untrained = copy.deepcopy(network)
#     network.load_state_dict(torch.load("checkpoint.pt", weights_only=True))
#     AnsatzScorer(baseline=untrained).report(network, X)
#
# `X` is an array of images `(n, h, w, c)`, scaled and normalised as in the training, or
# a `DataLoader`. From the command line::
#
#     skconvrfm ansatz package.module:MyNetwork --images FILE.npz \
#         --weights checkpoint.pt
#
# :ref:`ansatz` explains the numbers.
