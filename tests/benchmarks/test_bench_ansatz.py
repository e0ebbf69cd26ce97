"""Benchmarks of the ansatz train, measure and draw small networks."""

import copy
import json

import numpy as np
import pytest
import torch
from bench_fixtures import *  # noqa: F403
from torch import nn

from benchmarks import ansatz, ansatz_metric, ansatz_reasons, networks
from skconvrfm.features.filters import PatchMoments


@pytest.fixture
def folder(tmp_path, rng):
    """Folder of a small set of images, which both benchmarks take."""
    arrays = {}
    for part in ("train", "test"):
        noise = rng.integers(0, 256, size=(40, 16, 16, 3))
        arrays[f"X_{part}"] = noise.astype(np.uint8)
        arrays[f"y_{part}"] = np.arange(40) % 2
    np.savez(tmp_path / "small.npz", **arrays)
    return tmp_path


@pytest.fixture(autouse=True)
def small_set(monkeypatch):
    monkeypatch.setitem(ansatz.SETS, "CIFAR-10", ("small.npz", 40, 1))
    monkeypatch.setattr(ansatz, "BATCH", 20)
    monkeypatch.setattr(ansatz, "N_MEASURED", 12)
    monkeypatch.setattr(ansatz, "CHECKPOINTS", (0, 0.5, 1))


def run(module, folder, *options):
    known = ["--data", folder, "--folder", folder / "results", *options]
    return module.main([str(option) for option in known])


@pytest.mark.slow
def test_networks_are_trained_measured_and_drawn_once(folder, capsys):
    pytest.importorskip("matplotlib")
    options = ["--sets", "CIFAR-10", "--networks", "MobileNet", "--seeds", 2]
    options += ["--parts", "training", "--figures", folder / "a"]
    assert run(ansatz, folder, *options) == 0
    printed = capsys.readouterr().out
    assert "CIFAR-10, MobileNet" in printed and "depthwise" in printed
    lines = (folder / "results" / "results.jsonl").read_text()
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [row["seed"] for row in rows] == [0, 1]
    assert [point["epoch"] for point in rows[0]["checkpoints"]] == [0, 0.5, 1]
    assert len(list((folder / "a").glob("*.png"))) == 2
    assert run(ansatz, folder, *options) == 0
    assert (folder / "results" / "results.jsonl").read_text() == lines

    options = ["--networks", "MobileNet", "--variants", "MobileNet, no decay"]
    assert run(ansatz_reasons, folder, *options) == 0
    printed = capsys.readouterr().out
    assert "batch norm folded" in printed and "MobileNet, no decay" in printed
    data = ansatz.load_data(folder / "small.npz", 40)
    layers = "features.0", "features.3"
    path = folder / "b.png"
    ansatz.draw_layers(
        folder / "results", data, "CIFAR-10", "MobileNet", layers, path=path
    )
    assert path.stat().st_size > 0


@pytest.mark.slow
def test_ansatz_measures_a_network_of_full_size(monkeypatch):
    monkeypatch.setitem(ansatz.LARGE, "one", (1, 1))
    assert ansatz.measure_large("one").keys() == {"seconds", "cpu_seconds", "peak mib"}


@pytest.fixture
def pair(rng):
    """Return a network with batch norm as if trained, and as it was drawn."""
    torch.manual_seed(0)
    initial = networks.MobileNet(width=4, strides=(1, 2)).eval()
    network = copy.deepcopy(initial)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return network, initial


def test_folded_and_split_networks_have_the_same_outputs(pair, rng):
    network, initial = pair
    x = torch.as_tensor(rng.normal(size=(3, 3, 12, 12)), dtype=torch.float32)
    expected = network(x)
    torch.testing.assert_close(ansatz_reasons.folded(network)(x), expected)
    split = ansatz_reasons.with_changes(network, initial)
    torch.testing.assert_close(split(x), expected)
    torch.testing.assert_close(network(x), expected)  # neither has changed it


def test_centred_gradients_equal_those_patch_by_patch(rng):
    network = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(64, 3),
    ).double()
    x = torch.as_tensor(rng.normal(size=(5, 4, 6, 6)))
    (kind, found) = ansatz_reasons.centred_correlations(network, x)["0"]
    response = network[0](x).detach().requires_grad_()
    after = network[1:](response.clone())
    filters = network[0].weight.detach().reshape(2, 2, 18)
    agop = torch.zeros(2, 18, 18, dtype=torch.float64)
    for one in range(3):
        [delta] = torch.autograd.grad(after[:, one].sum(), response, retain_graph=True)
        rows = delta.movedim(1, -1).reshape(-1, 2, 2)
        gradients = torch.einsum("ngf,gfd->gnd", rows, filters)
        gradients = gradients - gradients.mean(1, keepdim=True)
        agop += gradients.mT @ gradients
    covariance = filters.mT @ filters
    expected = np.corrcoef(covariance.ravel(), agop.ravel())[0, 1]
    assert kind == "grouped" and found == pytest.approx(expected, abs=1e-9)


def test_metric_of_a_matrix_is_its_power_also_after_whitening(rng):
    root = rng.normal(size=(4, 4))
    matrix, moments = root @ root.T, PatchMoments(np.zeros(4), np.diag([1, 2, 3, 4.0]))
    largest = np.linalg.eigvalsh(matrix).max()
    transform = ansatz_metric.instead(matrix, 1)()
    np.testing.assert_allclose(transform @ transform, matrix / largest)
    transform = ansatz_metric.after_whitening(matrix, 1)(moments)
    ratio = (transform @ transform) / matrix
    np.testing.assert_allclose(ratio, ratio[0, 0])


@pytest.mark.slow
def test_metrics_of_a_network_are_compared(folder, monkeypatch, capsys):
    monkeypatch.setattr(ansatz_metric, "FILE", "small.npz")
    options = ["--data", folder, "--epochs", 1, "--n-train", 30, "--draws", 1]
    assert ansatz_metric.main([str(option) for option in options]) == 0
    assert "whitening, AGOP^0.25" in capsys.readouterr().out
