"""Networks are measured as they are, whatever they do, and left as they were found."""

import collections
import copy
import dataclasses
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from ansatz_fixtures import *  # noqa: F403
from ansatz_networks import batches, make, measure, values
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torch.utils.data import DataLoader, TensorDataset

from skconvrfm.ansatz import AnsatzScorer
from skconvrfm.ansatz.network import frozen


def state_of(network):
    """All that must not change, with the identity of the tensors."""
    return {
        "modes": [module.training for module in network.modules()],
        "flags": [parameter.requires_grad for parameter in network.parameters()],
        "tensors": [
            (name, id(tensor), tensor.detach().clone(), str(tensor.device))
            for name, tensor in [*network.named_parameters(), *network.named_buffers()]
        ],
        "gradients": [
            None if parameter.grad is None else (id(parameter.grad), parameter.grad + 0)
            for parameter in network.parameters()
        ],
        "hooks": [
            [*module._forward_hooks, *module._forward_pre_hooks]
            for module in network.modules()
        ],
    }


def assert_same_state(before, after):
    for key in ("modes", "flags", "hooks"):
        assert before[key] == after[key]
    for one, found in zip(before["tensors"], after["tensors"], strict=True):
        name, identity, value, device = one
        assert (name, identity, device) == (found[0], found[1], found[3])
        assert torch.equal(value, found[2])
    for value, found in zip(before["gradients"], after["gradients"], strict=True):
        assert (value is None) == (found is None)
        if value is not None:
            assert value[0] == found[0] and torch.equal(value[1], found[1])


@pytest.mark.parametrize("layer", [nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d()])
def test_lazy_layers_refused(layer):
    with pytest.raises(ValueError, match="lazy layers without weights: call it"):
        with frozen(nn.Sequential(layer)):
            pass


class Returning(nn.Module):
    """Wraps what a network returns."""

    def __init__(self, network, wrap):
        super().__init__()
        self.network = network
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.network(x))


Scores = collections.namedtuple("Scores", ["aux", "scores"])


@dataclasses.dataclass
class Outputs:
    loss: torch.Tensor
    scores: torch.Tensor


class Logits:
    def __init__(self, logits):
        self.loss = None
        self.logits = logits


RETURNED = {
    "tuple": lambda f: (f, 2 * f),
    "list": lambda f: [None, f],
    "dict": lambda f: {"out": f, "aux": 3 * f},
    "dict with logits": lambda f: {"hidden": 2 * f, "logits": f},
    "logits": Logits,
    "many axes": lambda f: f.reshape(len(f), 2, -1, 1),
    "loss first": lambda f: (f.sum(), f, 2 * f),
    "named tuple": lambda f: Scores(None, f),
    "dataclass": lambda f: Outputs(f.sum(), f),
    "classes first": lambda f: collections.UserDict(
        labels=f.flatten(1).argmax(1), scores=f
    ),
    "complex": lambda f: torch.complex(f, 0 * f),
}


@pytest.mark.parametrize("form", RETURNED)
def test_outputs_extracted_from_returned_structures(form):
    network, x = make("plain")
    expected, _ = measure(network, x)
    actual, _ = measure(Returning(network, RETURNED[form]), x)
    torch.testing.assert_close(actual["network.2"].agop, expected["2"].agop)


@pytest.mark.parametrize(
    ("wrap", "found"),
    [(lambda f: f.sum(), "shape ()"), (lambda f: "no", "no tensor")],
    ids=["scalar", "text"],
)
def test_outputs_without_one_row_per_image_refused(wrap, found):
    network, x = make("plain")
    with pytest.raises(ValueError, match="output for 2 images") as error:
        measure(Returning(network, wrap), x)
    assert found in str(error.value)


class Restless(nn.Module):
    """Changes its input, buffers, a parameter and hooks at every call; may fail."""

    def __init__(self, error=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.9)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("deleted", torch.ones(2))
        self.register_buffer("replaced", torch.ones(2))
        self.error = error

    def forward(self, x):
        x.mul_(2)
        self.calls += 1
        self.replaced = x.mean()
        if "deleted" in self._buffers:
            del self.deleted
            self.deleted = torch.zeros(3)
        self.register_buffer("added", torch.ones(1), persistent=False)
        self.conv.bias = nn.Parameter(torch.zeros(4))
        self.conv.register_forward_hook(lambda *call: None)
        if self.error is not None and len(x) > 1:
            raise self.error
        return self.drop(self.norm(self.conv(x))).mean((2, 3))


@pytest.mark.parametrize(
    "error", [None, KeyboardInterrupt(), ZeroDivisionError()], ids=repr
)
@pytest.mark.parametrize("as_baseline", [False, True])
def test_network_restored_whatever_forward_changes(error, as_baseline, images):
    network, plain, seen = Restless(error).train(), Restless(), []
    network.norm.eval()
    network.conv.bias.requires_grad_(False)
    network.conv.weight.grad = torch.ones_like(network.conv.weight)
    network.conv.register_forward_hook(lambda *call: seen.append(call))
    x = batches(images, 99)[0]
    before, names, pixels = state_of(network), list(network.state_dict()), x.clone()
    pair = (plain, network) if as_baseline else (network, plain)
    with nullcontext() if error is None else pytest.raises(type(error)):
        AnsatzScorer(baseline=pair[1]).report(pair[0], x)
    assert seen or as_baseline  # the user's hooks work meanwhile
    assert_same_state(before, state_of(network))
    assert list(network.state_dict()) == names
    assert torch.equal(network.deleted, torch.ones(2))
    assert torch.equal(x, pixels)


def test_measurement_in_evaluation_mode(images):
    torch.manual_seed(0)
    dropout = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9))
    random, x = torch.get_rng_state(), batches(images, 4)[0]
    (one,), (other,) = (
        measure(dropout.train(), x, batch=n)[0].values() for n in (1, 4)
    )
    torch.testing.assert_close(one.agop, other.agop)
    assert torch.equal(random, torch.get_rng_state())


def test_network_restored_if_a_hook_of_the_user_raises(network, images):
    network.features[0].register_forward_hook(lambda *call: 1 / 0)
    before = state_of(network)
    with pytest.raises(ValueError, match="raised ZeroDivisionError: division by zero"):
        AnsatzScorer().report(network, images)
    assert_same_state(before, state_of(network))


@pytest.mark.parametrize("within", [False, True], ids=["outside", "inside"])
def test_weights_made_in_inference_mode_measured(within, network, images):
    expected = AnsatzScorer().report(network, images)
    with torch.inference_mode():
        made = copy.deepcopy(network)
    before = state_of(made)
    with torch.inference_mode(within):
        actual = AnsatzScorer().report(made, batches(images, 99)[0] + 0)
    np.testing.assert_array_equal(values(actual), values(expected))
    assert all(parameter.is_inference() for parameter in made.parameters())
    assert_same_state(before, state_of(made))


class Recurrent(nn.Module):
    """A convolution before a recurrent layer, which keeps its weights once more."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.lstm = nn.LSTM(6, 5, batch_first=True)

    def forward(self, x):
        return self.lstm(self.conv(x).mean(2).transpose(1, 2))[0][:, -1]


def test_recurrent_layers_in_other_precision_keep_their_weights(images):
    network = Recurrent().half()
    expected = AnsatzScorer().report(copy.deepcopy(network).float(), images)
    actual = AnsatzScorer().report(network, images)
    np.testing.assert_allclose(values(actual), values(expected), rtol=1e-6)
    assert network.lstm._flat_weights[0] is network.lstm.weight_ih_l0
    assert network.lstm.weight_ih_l0.dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_gradients_of_half_precision_as_in_float32(dtype, network, images):
    with torch.no_grad():
        network.classifier[-1].weight.mul_(1e-6)
    half = network.to(dtype)
    before = state_of(half)
    expected = AnsatzScorer().report(copy.deepcopy(half).float(), images)
    for X in (images, list(batches(images.astype(np.float32), 3))):
        actual = AnsatzScorer().report(half, X)
        np.testing.assert_allclose(values(actual), values(expected), rtol=1e-5)
    assert_same_state(before, state_of(half))


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_gradients_whose_squares_leave_float32(size, network, images):
    with torch.no_grad():
        network.classifier[-1].weight.mul_(size)
    single = AnsatzScorer().report(network, images)
    double = AnsatzScorer().report(network.double(), images)
    np.testing.assert_allclose(values(single), values(double), rtol=1e-4)


BODIES = {
    "conv": lambda: [nn.Conv2d(3, 6, 3), nn.Identity()],
    "bn": lambda: [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True)],
    "two": lambda: [nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 6, 3)],
    "dropout": lambda: [nn.Dropout(), nn.Conv2d(3, 6, 3), nn.ReLU()],
}


class Checkpointed(nn.Module):
    """A first block that may be checkpointed, as one or in two segments."""

    def __init__(self, body, how=None, **options):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(*body())
        self.head = nn.Linear(6, 2)
        self.how, self.options = how, options

    def forward(self, x):
        if self.how is checkpoint:
            x = checkpoint(self.body, x, **self.options)
        elif self.how is checkpoint_sequential:
            x = checkpoint_sequential(self.body, 2, x, **self.options)
        else:
            x = self.body(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("how", [checkpoint, checkpoint_sequential])
@pytest.mark.parametrize("body", BODIES)
def test_checkpointed_first_block_measured_as_without(body, how, images):
    plain = Checkpointed(BODIES[body])
    wrapped = Checkpointed(BODIES[body], how, use_reentrant=False)
    for options in ({}, {"outputs": 1, "layers": "all+linear"}):
        expected = AnsatzScorer(**options).report(plain, images)
        actual = AnsatzScorer(**options).report(wrapped, images)
        np.testing.assert_allclose(values(actual), values(expected), rtol=1e-6)
        assert actual[0].n_patches == expected[0].n_patches


@pytest.mark.parametrize("how", [checkpoint, checkpoint_sequential])
@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_reentrant_checkpoints_refused(how, images):
    network = Checkpointed(BODIES["two"], how, use_reentrant=True)
    with pytest.raises(ValueError, match="Checkpointed .*switch checkpointing off"):
        AnsatzScorer().report(network, images)


class Words(nn.Module):
    """Convolutions of embedded tokens, checkpointed with or without the embedding."""

    def __init__(self, checkpointed=""):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(30, 5)
        layers = nn.Conv1d(5, 6, 3), nn.ReLU(), nn.Conv1d(6, 4, 3), nn.Tanh()
        self.body = nn.Sequential(*layers)
        self.checkpointed = checkpointed

    def embed(self, x):
        return self.embedding(x).transpose(1, 2)

    def forward(self, x):
        if self.checkpointed == "all":
            x = checkpoint(lambda x: self.body(self.embed(x)), x, use_reentrant=False)
        elif self.checkpointed == "body":
            x = checkpoint(self.body, self.embed(x), use_reentrant=False)
        else:
            x = self.body(self.embed(x))
        return x.mean(2)


@pytest.mark.parametrize("checkpointed", ["all", "body"])
def test_checkpointed_blocks_of_tokens_measured_as_without(checkpointed, rng):
    tokens = torch.from_numpy(rng.integers(0, 30, size=(20, 12)))
    expected = values(AnsatzScorer().report(Words(), tokens))
    network = Words(checkpointed)
    for X in (tokens, tokens.numpy(), list(tokens), TensorDataset(tokens)):
        np.testing.assert_array_equal(
            values(AnsatzScorer().report(network, X)), expected
        )
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("backend", ["whole", "in place", "layer"])
def test_compiled_networks_measured_as_plain(backend, network, images):
    expected = values(AnsatzScorer().report(network, images))
    options = {"backend": "eager"}
    if backend == "whole":
        network = torch.compile(network, **options)
    elif backend == "in place":
        network.compile(**options)
    else:
        network.features[0] = torch.compile(network.features[0], **options)
    np.testing.assert_allclose(values(AnsatzScorer().report(network, images)), expected)


@pytest.fixture
def default_device():
    """Set a default device on which no values can be computed."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def given_to(images):
    x = batches(images, 99)[0]
    dataset = TensorDataset(x)
    return [images, x, dataset, DataLoader(dataset, batch_size=4)]


def test_report_does_not_depend_on_the_default_device(network, images, request):
    scorer, forms = AnsatzScorer(layers="first"), given_to(images)
    expected = [values(scorer.report(network, X)) for X in given_to(images)]
    request.getfixturevalue("default_device")
    for X, numbers in zip(forms, expected, strict=True):
        np.testing.assert_array_equal(values(scorer.report(network, X)), numbers)


def test_report_does_not_depend_on_autocast_or_default_dtype(network, images):
    expected = values(AnsatzScorer().report(network, images))
    found = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found.append(values(AnsatzScorer().report(network, images)))
    try:
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        found.append(values(AnsatzScorer().report(network, images)))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
    for one in found:
        np.testing.assert_array_equal(one, expected)


def test_network_that_turns_autocast_on_measured_in_its_own_precision(network, images):
    def forward(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return plain(x)

    expected = AnsatzScorer().report(network, images)
    plain, network.forward = network.forward, forward
    actual = AnsatzScorer().report(network, images)
    np.testing.assert_array_equal(values(actual), values(expected))


class Noisy(nn.Sequential):
    """Draws random numbers of every kind whenever it is called."""

    def forward(self, x):
        x = x + 0.1 * torch.randn_like(x) + random.random() + np.random.rand()  # noqa: NPY002
        return super().forward(x)


def test_random_states_not_moved_by_noisy_networks(images):
    network = Noisy(nn.Conv2d(3, 4, 3), nn.Flatten())
    x = batches(images, 99)[0]
    before = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    AnsatzScorer()(network, DataLoader(TensorDataset(x), batch_size=4, shuffle=True))
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()


def test_layers_in_inference_mode_count_as_detached(images):
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x):
            with torch.inference_mode():
                x = self.first(x).tanh()
            return self.last(x.clone()).flatten(1)

    first, last = AnsatzScorer().report(Frozen(), images)
    assert first.reason.startswith("no output depends on it")
    assert np.isfinite(last.correlation)


def test_network_moved_outside_of_inference_mode(monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    own = network[0].weight
    move, moves = network.to, []

    def record(*arguments, **options):
        moves.append(torch.is_inference_mode_enabled())
        return move(*arguments, **options)

    monkeypatch.setattr(network, "to", record)
    with torch.inference_mode(), frozen(network, torch.device("meta")) as device:
        assert device.type == network[0].weight.device.type == "meta"
    assert moves == [False]
    assert network[0].weight is own
    assert own.device.type == "cpu"
