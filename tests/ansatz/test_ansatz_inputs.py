"""Images in every form give the numbers of the array, or are refused with the cause."""

import math
import sys

import numpy as np
import pytest
import torch
from ansatz_fixtures import *  # noqa: F403
from ansatz_fixtures import make_images, make_network
from ansatz_networks import batches, values
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
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
from skconvrfm.ansatz import batches as batches_module
from skconvrfm.compute import progress


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


def planes(X):
    return np.moveaxis(X, -1, 1)


def labelled(X):
    return TensorDataset(tensor(X), torch.arange(len(X)))


# Options of the scorer, and the form. The first are arrays, or images one by one, of
# which the same blocks are made and the same few drawn as of the array.
SHAPE, FIRST = {"image_shape": (12, 10, 3)}, {"channels": "first"}
SINGLE = {
    "float64": ({}, lambda X: X.astype(np.float64)),
    "lists": ({}, lambda X: X.tolist()),
    "channels first": (FIRST, planes),
    "rows": (SHAPE, lambda X: X.reshape(len(X), -1)),
    "shape of images": (SHAPE, lambda X: X),
    "rows, channels first": (SHAPE | FIRST, lambda X: planes(X).reshape(len(X), -1)),
    "tensor": ({}, tensor),
    "dataset": ({}, labelled),
    "subset": ({}, lambda X: Subset(labelled(np.tile(X, (2, 1, 1, 1))), range(len(X)))),
    "concatenated": ({}, lambda X: ConcatDataset([labelled(X[:9]), labelled(X[9:])])),
    "dataset of arrays": ({}, ArrayDataset),
    "list of tensors": ({}, lambda X: list(tensor(X))),
    "list of arrays": ({}, list),
    "list of pairs": ({}, lambda X: list(labelled(X))),
    "list of pairs of arrays": ({}, lambda X: [(image, 3) for image in X]),
    "list of dicts": ({}, lambda X: [{"label": 1, "image": x} for x in tensor(X)]),
    "one-hot": ({}, lambda X: list(zip(tensor(X), torch.eye(24), strict=True))),
    "images and labels": ({}, lambda X: (tensor(X), torch.zeros(len(X)))),
    "arrays and labels": ({}, lambda X: (X, np.zeros(len(X)))),
    "dict of all": ({}, lambda X: {"y": torch.zeros(len(X)), "image": tensor(X)}),
}
STREAMED = {
    "batches": ({}, lambda X: list(batches(X))),
    "generator of batches": ({}, lambda X: (batch for batch in batches(X))),
    "tuples": ({}, lambda X: [(batch, None) for batch in batches(X)]),
    "lists of two": ({}, lambda X: [[batch, 0] for batch in batches(X)]),
    "dicts": ({}, lambda X: [{"y": b[:, 0, 0, 0], "x": b} for b in batches(X)]),
    "batches split": ({"batch_size": 3}, lambda X: list(batches(X, 99))),
    "batch size": ({"batch_size": 5}, lambda X: X),
    "stream": ({}, lambda X: Stream(tensor(X))),
    "stream of pairs": ({}, lambda X: Stream(tensor(X), range(len(X)))),
    "generator": ({}, lambda X: (image for image in tensor(X))),
    "generator of arrays": ({}, lambda X: (image for image in X)),
    "loader without batches": ({}, lambda X: DataLoader(labelled(X), batch_size=None)),
    "batches of arrays": ({}, lambda X: (X[i : i + 4] for i in range(0, 24, 4))),
    "loader": ({}, lambda X: DataLoader(labelled(X), batch_size=4)),
    "shuffled": ({}, lambda X: DataLoader(labelled(X), batch_size=4, shuffle=True)),
}


def report(network, X, **options):
    """Measure the first layer, which sees what becomes of the images."""
    return AnsatzScorer(layers="first", **options).report(network, X)


@pytest.fixture(scope="module")
def of_the_array():
    """Reports of the first layer, of all images and of seven."""
    X = make_images()
    return [report(make_network(), X, max_images=n) for n in (24, 7)]


@pytest.mark.parametrize("form", [*SINGLE, *STREAMED])
def test_report_independent_of_the_form_of_images(form, network, images, of_the_array):
    options, convert = (SINGLE | STREAMED)[form]
    found = report(network, convert(images), **options)
    few = report(network, convert(images), max_images=7, **options)
    assert (found[0].n_images, few[0].n_images) == (24, 7)
    expected, drawn = of_the_array
    assert_allclose(values(found), values(expected), rtol=1e-5)
    assert found[0].standard_error > 0
    if form in SINGLE:
        error = expected[0].standard_error
        assert found[0].standard_error == pytest.approx(error, rel=1e-3)
        assert_allclose(values(few), values(drawn), rtol=1e-5)


@pytest.mark.parametrize("n_axes", [1, 2, 3])
def test_signals_grey_images_and_volumes_accepted(n_axes, rng):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n_axes - 1]
    channels = 1 if n_axes == 2 else 2
    network = nn.Sequential(conv(channels, 4, 2), nn.ReLU(), nn.Flatten())
    X = rng.normal(size=(6, *(5, 4, 3)[:n_axes], channels))
    expected = AnsatzScorer()(network, X)
    assert math.isfinite(expected)
    assert AnsatzScorer(channels="first")(network, planes(X)) == expected
    if n_axes == 2:  # without an axis of channels
        assert AnsatzScorer()(network, X[..., 0]) == expected
        assert AnsatzScorer(channels="first")(network, X[..., 0]) == expected
        rows = X.reshape(6, 20)
        assert AnsatzScorer(image_shape=(5, 4))(network, rows) == expected


def test_uint8_pixels_not_rescaled(network, rng):
    X = rng.integers(0, 256, size=(10, 12, 10, 3)).astype(np.uint8)
    expected = AnsatzScorer()(network, X.astype(np.float32))
    assert AnsatzScorer()(network, X) == expected
    single = AnsatzScorer(batch_size=1)(network, list(batches(X, 1)))
    assert single == pytest.approx(expected, rel=1e-5)


def test_empty_batches_of_an_iterable_skipped(network, images):
    x = tensor(images)
    expected = values(report(network, x.split(6)))
    for given in ([x[:0], *x.split(6)], iter([x[:0], *x.split(6), x[:0]])):
        assert_array_equal(values(report(network, given)), expected)


def test_datasets_of_pil_images(network, images):
    image = pytest.importorskip("PIL.Image")
    X = np.abs(50 * images).astype(np.uint8)
    expected = values(report(network, X))
    dataset = ArrayDataset(X, image.fromarray)
    for given in (dataset, [one for one, _ in dataset], (one for one, _ in dataset)):
        assert_allclose(values(report(network, given)), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tensors_of_half_precision(dtype, network, images):
    x = tensor(images).to(dtype)
    expected = values(report(network, x.float()))
    for given in (x, list(x)):
        assert_allclose(values(report(network, given)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "add_channel", [lambda x: x[:, None], lambda x: x.view(-1, 1, 6, 5)]
)
def test_batches_without_channels_where_the_network_adds_them(add_channel, rng):
    class Grey(nn.Sequential):
        def forward(self, x):
            return super().forward(add_channel(x)).tanh().flatten(1)

    network = Grey(nn.Conv2d(1, 4, 3))
    x = torch.from_numpy(rng.normal(size=(24, 6, 5))).float()
    expected = values(report(network, x))
    loader = DataLoader(TensorDataset(x, torch.zeros(24)), batch_size=5)
    for given in (x.split(7), loader):
        found = report(network, given)
        assert_allclose(values(found), expected, rtol=1e-5)
        assert found[0].n_images == 24


def test_tokens_of_an_embedding_are_no_pixels(rng):
    network = nn.Sequential(nn.Embedding(30, 6), nn.Conv1d(12, 5, 3), nn.Tanh())
    tokens = rng.integers(0, 30, size=(20, 12))
    expected = values(report(network, torch.from_numpy(tokens)))
    for given in (tokens, tokens.astype(np.int32), list(torch.from_numpy(tokens))):
        assert_array_equal(values(report(network, given)), expected)


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
    expected = values(report(network, given))
    arrays = {name: one.numpy() for name, one in given.items()}
    loader = DataLoader(single, batch_size=5)
    for X in (arrays, single, (one for one in single), loader, [given]):
        found = report(network, X)
        assert_allclose(values(found), expected, rtol=1e-5)
        assert found[0].n_images == 24


# Options, what is passed for images, and the message.
REFUSED = {
    "rows": ({}, lambda X: X.reshape(24, -1), r"shape \(24, 360\).*Pass image_shape="),
    "channels": ({}, planes, "channels='last'.*change these, or pass"),
    "too few pixels": (
        {"image_shape": (4, 4)},
        lambda X: X.reshape(24, -1),
        "16 pixels, but X has",
    ),
    "shape": ({"image_shape": (12, 12, 3)}, lambda X: X, "does not match X.*leave"),
    "one size": ({"image_shape": (12,)}, lambda X: X, r"=\(12,\) must have 2 sizes"),
    "negative": ({"image_shape": (12, -1)}, lambda X: X, "all positive integers"),
    "nan": ({}, lambda X: X * np.nan, "X contains NaN"),
    "none": ({}, lambda X: X[:0], "0 sample"),
    "no batches": ({}, lambda X: iter([]), "X has no batches"),
    "label alone": ({}, lambda X: [{"label": 3}], "batch of type dict without a ten"),
    "channels last": ({}, torch.from_numpy, r"X.movedim\(-1, 1\) brings chan"),
    "whole numbers": ({}, lambda X: tensor(X).long(), r"X.float\(\) changes whole"),
    "shapes in a list": (
        {},
        lambda X: [*tensor(X)[:5], tensor(X)[0, :, :7]],
        r"shapes \(3, 12, 10\) and \(3, 7, 10\) \(number 5\)",
    ),
    "shapes in a stream": (
        {},
        lambda X: iter([X[0], X[1, :7]]),
        r"shapes \(12, 10, 3\) and \(7, 10, 3\) \(number 1\)",
    ),
    "labels first": ({}, lambda X: [(3, X[0])], "put labels behind them"),
    "two images": ({}, lambda X: [{"a": X, "b": tensor(X)}], r"\['a', 'b'\] may"),
    "lengths": ({}, lambda X: {"x": tensor(X), "s": torch.ones(3)}, "equal lengths"),
    "empty": ({}, lambda X: Subset(labelled(X), []), "X has no batches, or no im"),
    "no images": ({}, lambda X: None, "X=None has no images"),
    "text": ({}, lambda X: [(tensor(X), "a"), ("a", 3)], "type str without a ten"),
}
OF_TYPE = "label alone", "two images", "no images", "text"


@pytest.mark.parametrize("case", REFUSED)
def test_unusable_images_refused_with_the_cause(case, network, images):
    options, convert, message = REFUSED[case]
    with pytest.raises(TypeError if case in OF_TYPE else ValueError, match=message):
        report(network, convert(images), **options)


# ------------------------------------------------------------- batches and progress


def test_max_images_sampled_evenly_over_classes(network, images, monkeypatch):
    drawn, draw = [], batches_module.draw_images

    def watching(*arguments):
        drawn.append(draw(*arguments))
        return drawn[-1]

    monkeypatch.setattr(batches_module, "draw_images", watching)
    y = np.array(list("abc")).repeat(8)
    scorer = AnsatzScorer(max_images=6)
    score = scorer(network, images, y)
    assert_array_equal(np.unique(y[drawn[-1]], return_counts=True)[1], 2)
    assert scorer(network, images, y) == score
    assert scorer.set_params(random_state=1)(network, images, y) != score
    assert report(network, images, max_images=99)[0].n_images == 24


def test_batch_size_bounded_by_working_memory(network, images):
    sizes = []
    network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    expected = AnsatzScorer()(network, images)
    assert max(sizes) == 3  # a tenth, for the standard error
    sizes.clear()
    with config_context(working_memory=1 / 64):
        assert AnsatzScorer()(network, images) == pytest.approx(expected, rel=1e-5)
    assert max(sizes) == 1


def test_batches_read_lazily_by_workers(network, images):
    read, done = [], []
    network.register_forward_hook(lambda *call: done.append(1))

    def some():
        for batch in batches(np.tile(images, (4, 1, 1, 1)), 1):
            read.append(len(done))
            yield batch

    with parallel_config("threading"):
        report(network, some(), n_jobs=2)
    assert all(number - before < 20 for number, before in enumerate(read))


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_progress_bar_of_long_reports_on_a_terminal_alone(
    n_jobs, network, images, monkeypatch, capsys
):
    console = pytest.importorskip("rich.console")
    plain = console.Console

    def on_a_terminal(**options):
        return plain(force_terminal=True, **options)

    report(network, images)
    monkeypatch.setattr(progress, "LONG_CALL", -1.0)
    report(network, images)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(console, "Console", on_a_terminal)
    with parallel_config("threading"):
        assert len(report(network, images, n_jobs=n_jobs)) == 1
    assert "patch AGOPs" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert len(report(network, images)) == 1
