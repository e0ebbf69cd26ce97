"""Both matrices of a layer are drawn, with their leading eigenvectors."""

import numpy as np
import pytest
import torch
from display_fixtures import *  # noqa: F403
from torch import nn

from skconvrfm import AnsatzScorer
from skconvrfm.display import AnsatzLayerDisplay


@pytest.fixture
def report(rng):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1),
        nn.ConvTranspose2d(4, 2, 2),
        nn.Flatten(),
    )
    X = rng.normal(size=(6, 8, 8, 3))
    return AnsatzScorer(agop_power=(0.5, 1.0)).report(network, X)


def test_matrices_and_their_eigenvectors_are_drawn(report, figure):
    ax = figure.add_subplot(1, 1, 1)
    display = AnsatzLayerDisplay.from_report(report, "0", n_patches=3, ax=ax)
    assert display.axes_.shape == (2, 4) and display.figure_ is figure
    covariance, agop = report.matrices("0")
    np.testing.assert_array_equal(display.images_[0].get_array(), covariance[0])
    peak = np.quantile(np.abs(covariance[0]), 0.99)
    assert display.images_[0].get_clim() == (-peak, peak)
    root = np.asarray(display.agop)
    np.testing.assert_allclose(root @ root, agop[0], atol=1e-9 * agop.max())
    assert display.images_[1].get_array().shape == (3, 3, 3)
    assert display.axes_[1, 0].get_title(loc="left") == "0 patch AGOP"


@pytest.mark.parametrize(
    ("name", "shape"), [("2", (3, 3, 3)), ("4", (1, 1, 6)), ("5", (1, 1, 4))]
)
def test_layers_of_every_kind_have_a_picture(name, shape, report, figure):
    ax = figure.add_subplot(1, 1, 1)
    display = AnsatzLayerDisplay.from_report(report, name, n_patches=99, ax=ax)
    assert display.patch_shape == shape
    assert display.axes_.shape == (2, 1 + np.prod(shape))


def test_wrong_names_and_groups_are_refused(report, figure):
    with pytest.raises(ValueError, match="name='conv' has no matrices: take one of 0,"):
        AnsatzLayerDisplay.from_report(report, "conv")
    with pytest.raises(ValueError, match="group=2 must be from 0 to 1, the groups"):
        AnsatzLayerDisplay.from_report(report, "2", group=2)
