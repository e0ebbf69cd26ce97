"""The benchmark of networks that others trained measures any of them."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import known_networks, networks


def small(folder):
    """Return a network of two kinds of layers, images and labels."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten()
    rng = np.random.default_rng(0)
    return (
        nn.Sequential(*layers, nn.Linear(64, 3)),
        rng.normal(size=(8, 8, 8, 3)).astype(np.float32),
        rng.integers(3, size=8),
    )


@pytest.mark.parametrize("n_baselines", [0, 2])
def test_networks_are_measured_by_kind_and_power(n_baselines, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(known_networks.NETWORKS, "small", small)
    found = known_networks.measure("small", None, 6, n_baselines, tmp_path)
    assert (tmp_path / "ansatz_small.png").stat().st_size > 0
    kinds = [(name, kind, power) for name, kind, power, *_ in found["means"]]
    assert kinds == [
        ("small", kind, power) for kind in ("full", "depthwise") for power in (1.0, 0.5)
    ]
    lift = known_networks.COLUMNS.index("lift")
    lifts = [values[lift] for _, _, _, *values in found["means"]]
    assert np.isfinite(lifts).all() == bool(n_baselines)
    assert found["run"]["images"] == 6 and 0 <= found["run"]["right"] <= 6
    assert found["text"].count("Pearson correlation") == 2
    json.dumps(found)


def test_squeezenet_has_26_convolutions_and_takes_any_size():
    network = networks.SqueezeNet()
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 26
    assert network(torch.zeros(2, 3, 96, 80)).shape == (2, 1000)


def test_edge_detector_loads_weights_of_keras_and_has_an_output_a_pixel(tmp_path):
    h5py = pytest.importorskip("h5py")
    torch.manual_seed(0)
    network = networks.HED()
    with h5py.File(tmp_path / "hed.h5", "w") as file:
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d):
                block, _, place = name.partition(".")
                group = block.replace("side", "dsn")
                if place:  # of every second module, behind a pool but in block 1
                    index = (int(place) - (block != "block1")) // 2
                    group += "/layers/conv2d" + (f"_{index}" if index else "")
                kernel = module.weight.detach().numpy().transpose(2, 3, 1, 0)
                file[f"{group}/vars/0"] = kernel
                file[f"{group}/vars/1"] = module.bias.detach().numpy()
    x = torch.rand(2, 3, 24, 20)
    expected = network(x)
    assert expected.shape == (2, 480)
    loaded = networks.load_keras(networks.HED(), tmp_path / "hed.h5")
    torch.testing.assert_close(loaded(x), expected)


def test_networks_without_labels_have_no_share_of_right_images(monkeypatch):
    without = lambda folder: (*small(folder)[:2], None)  # noqa: E731
    monkeypatch.setitem(known_networks.NETWORKS, "small", without)
    assert known_networks.measure("small", None, 4, 0)["run"]["right"] is None
