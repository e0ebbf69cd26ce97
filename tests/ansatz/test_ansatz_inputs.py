"""Datasets, lists, dicts, tensors and iterables give the numbers of the array."""

import numpy as np
import pytest
import torch
from ansatz_fixtures import *  # noqa: F403
from ansatz_networks import batches, values
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from skconvrfm.ansatz import AnsatzScorer


class Stream(IterableDataset):
    """Single images, with labels or without."""

    def __init__(self, x, y=None):
        self.elements = list(x) if y is None else list(zip(x, y, strict=True))

    def __iter__(self):
        return iter(self.elements)


class ArrayDataset(Dataset):
    """Images of NumPy with their labels, as before any transform."""

    def __init__(self, X, convert=lambda image: image):
        self.X, self.convert = X, convert

    def __len__(self):
        return len(self.X)

    def __getitem__(self, index):
        return self.convert(self.X[index]), index % 3


def tensor(X):
    return batches(X, 99)[0]


def labelled(X):
    return TensorDataset(tensor(X), torch.arange(len(X)))


SINGLE = {
    "dataset": labelled,
    "subset": lambda X: Subset(labelled(np.tile(X, (2, 1, 1, 1))), range(len(X))),
    "concatenated": lambda X: ConcatDataset([labelled(X[:9]), labelled(X[9:])]),
    "dataset of arrays": ArrayDataset,
    "list of tensors": lambda X: list(tensor(X)),
    "list of arrays": list,
    "list of pairs": lambda X: list(labelled(X)),
    "list of pairs of arrays": lambda X: [(image, 3) for image in X],
    "list of dicts": lambda X: [{"label": 1, "image": one} for one in tensor(X)],
    "one-hot labels": lambda X: list(zip(tensor(X), torch.eye(24), strict=True)),
    "tensor": tensor,
    "images and labels": lambda X: (tensor(X), torch.zeros(len(X))),
    "arrays and labels": lambda X: (X, np.zeros(len(X))),
    "dict of all": lambda X: {"y": torch.zeros(len(X)), "image": tensor(X)},
}
STREAMED = {
    "stream": lambda X: Stream(tensor(X)),
    "stream of pairs": lambda X: Stream(tensor(X), range(len(X))),
    "generator": lambda X: (image for image in tensor(X)),
    "generator of arrays": lambda X: (image for image in X),
    "loader without batches": lambda X: DataLoader(labelled(X), batch_size=None),
    "generator of batches of arrays": lambda X: (X[i : i + 4] for i in range(0, 24, 4)),
    "loader": lambda X: DataLoader(labelled(X), batch_size=4),
    "shuffled loader": lambda X: DataLoader(labelled(X), batch_size=4, shuffle=True),
}


@pytest.mark.parametrize("form", SINGLE)
def test_report_equals_that_of_the_array(form, network, images):
    expected = AnsatzScorer().report(network, images)
    actual = AnsatzScorer().report(network, SINGLE[form](images))
    np.testing.assert_allclose(values(actual), values(expected), rtol=1e-6)
    errors = values(expected, "standard_error")
    np.testing.assert_allclose(values(actual, "standard_error"), errors, rtol=1e-3)
    assert actual[0].n_images == 24
    few = AnsatzScorer(max_images=7)
    expected = few.report(network, images)
    actual = few.report(network, SINGLE[form](images))
    np.testing.assert_allclose(values(actual), values(expected), rtol=1e-6)


@pytest.mark.parametrize("form", STREAMED)
def test_correlations_of_streams_equal_those_of_the_array(form, network, images):
    expected = AnsatzScorer().report(network, images)
    actual = AnsatzScorer().report(network, STREAMED[form](images))
    np.testing.assert_allclose(values(actual), values(expected), rtol=1e-5)
    assert (values(actual, "standard_error") > 0).all()
    assert actual[0].n_images == 24
    few = AnsatzScorer(max_images=7).report(network, STREAMED[form](images))
    assert few[0].n_images == 7


def test_empty_batches_of_an_iterable_skipped(network, images):
    x = tensor(images)
    expected = values(AnsatzScorer().report(network, x.split(6)))
    for given in ([x[:0], *x.split(6)], iter([x[:0], *x.split(6), x[:0]])):
        actual = AnsatzScorer().report(network, given)
        np.testing.assert_array_equal(values(actual), expected)


def test_datasets_of_pil_images(network, images):
    image = pytest.importorskip("PIL.Image")
    X = np.abs(50 * images).astype(np.uint8)
    expected = values(AnsatzScorer().report(network, X))
    dataset = ArrayDataset(X, image.fromarray)
    for given in (dataset, [one for one, _ in dataset], (one for one, _ in dataset)):
        actual = AnsatzScorer().report(network, given)
        np.testing.assert_allclose(values(actual), expected, rtol=1e-5)


def test_tensors_of_half_precision(network, images):
    x = tensor(images)
    for dtype in (torch.float16, torch.bfloat16):
        expected = values(AnsatzScorer().report(network, x.to(dtype).float()))
        for given in (x.to(dtype), list(x.to(dtype))):
            actual = AnsatzScorer().report(network, given)
            np.testing.assert_allclose(values(actual), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "add_channel", [lambda x: x[:, None], lambda x: x.view(-1, 1, 6, 5)]
)
def test_batches_without_channels_where_the_network_adds_them(add_channel, rng):
    class Grey(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x):
            return self.conv(add_channel(x)).tanh().flatten(1)

    network, x = Grey(), torch.from_numpy(rng.normal(size=(24, 6, 5))).float()
    expected = values(AnsatzScorer().report(network, x))
    for given in (x.split(7), DataLoader(labelled_rows(x), batch_size=5)):
        actual = AnsatzScorer().report(network, given)
        np.testing.assert_allclose(values(actual), expected, rtol=1e-5)
        assert actual[0].n_images == 24


def labelled_rows(x):
    return TensorDataset(x, torch.zeros(len(x)))


class TakesDict(nn.Module):
    """A network whose input is a dict."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, batch):
        return self.network(batch["photo"]) * batch["scale"][:, None]


class TakesNames(TakesDict):
    def forward(self, photo, scale=None, mode="none"):
        assert scale is not None
        return super().forward({"photo": photo, "scale": scale})


class TakesKeywords(TakesDict):
    def forward(self, **batch):
        assert set(batch) == {"photo", "scale"}
        return super().forward(batch)


@pytest.mark.parametrize("kind", [TakesDict, TakesNames, TakesKeywords])
def test_dicts_passed_as_the_network_takes_them(kind, network, images):
    x, scale = tensor(images), torch.linspace(1, 2, 24)
    single = [
        {"photo": image, "scale": size, "label": 3, "path": "a.png"}
        for image, size in zip(x, scale, strict=True)
    ]
    network = kind(network)
    given = {"photo": x, "scale": scale, "target": scale}
    expected = values(AnsatzScorer().report(network, given))
    arrays = {name: one.numpy() for name, one in given.items()}
    loader = DataLoader(single, batch_size=5)
    for X in (arrays, single, (one for one in single), loader, [given]):
        actual = AnsatzScorer().report(network, X)
        np.testing.assert_allclose(values(actual), expected, rtol=1e-5)
        assert actual[0].n_images == 24


@pytest.mark.parametrize(
    ("convert", "error", "message"),
    [
        (lambda X: torch.from_numpy(X), ValueError, r"X.movedim\(-1, 1\) brings chan"),
        (lambda X: tensor(X).long(), ValueError, r"X.float\(\) changes whole numbers"),
        (
            lambda X: [*tensor(X)[:5], tensor(X)[0, :, :7]],
            ValueError,
            r"shapes \(3, 12, 10\) and \(3, 7, 10\) \(number 5\)",
        ),
        (
            lambda X: iter([X[0], X[1, :7]]),
            ValueError,
            r"shapes \(12, 10, 3\) and \(7, 10, 3\) \(number 1\)",
        ),
        (lambda X: [(3, X[0])], ValueError, "put labels behind them"),
        (lambda X: [{"a": tensor(X), "b": tensor(X)}], TypeError, r"\['a', 'b'\] may"),
        (
            lambda X: {"x": tensor(X), "size": torch.ones(3)},
            ValueError,
            "must have equal lengths",
        ),
        (lambda X: Subset(labelled(X), []), ValueError, "X has no batches, or no im"),
        (lambda X: None, TypeError, "X=None has no images"),
        (lambda X: [(tensor(X), "a"), ("a", 3)], TypeError, "type str without a ten"),
    ],
    ids=[
        *("channels last", "whole numbers", "shapes in a list", "shapes in a stream"),
        *("labels first", "two images", "lengths", "empty", "none", "text"),
    ],
)
def test_unusable_inputs_refused_with_the_cause(
    convert, error, message, network, images
):
    with pytest.raises(error, match=message):
        AnsatzScorer().report(network, convert(images))


def test_tokens_of_an_embedding_are_no_pixels(rng):
    network = nn.Sequential(nn.Embedding(30, 6), nn.Conv1d(12, 5, 3), nn.Tanh())
    tokens = rng.integers(0, 30, size=(20, 12))
    expected = values(AnsatzScorer().report(network, torch.from_numpy(tokens)))
    for given in (tokens, tokens.astype(np.int32), list(torch.from_numpy(tokens))):
        actual = AnsatzScorer().report(network, given)
        np.testing.assert_array_equal(values(actual), expected)
