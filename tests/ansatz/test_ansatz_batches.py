"""Images in every layout, arrays and iterables of batches, and the work of workers."""

import math
import sys

import numpy as np
import pytest
from ansatz_fixtures import *  # noqa: F403
from ansatz_networks import batches, values
from joblib import parallel_config
from sklearn import config_context
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skconvrfm.ansatz import AnsatzScorer
from skconvrfm.ansatz import batches as batches_module
from skconvrfm.compute import progress


@pytest.mark.parametrize(
    ("options", "convert"),
    [
        ({}, lambda X: X.astype(np.float64)),
        ({}, lambda X: X.tolist()),
        ({}, lambda X: batches(X, 99)[0]),
        ({"channels": "first"}, lambda X: np.moveaxis(X, -1, 1)),
        ({"image_shape": (12, 10, 3)}, lambda X: X.reshape(len(X), -1)),
        ({"image_shape": (12, 10, 3)}, lambda X: X),
        (
            {"image_shape": (12, 10, 3), "channels": "first"},
            lambda X: np.moveaxis(X, -1, 1).reshape(len(X), -1),
        ),
        ({}, lambda X: list(batches(X))),
        ({}, lambda X: (batch for batch in batches(X))),
        ({}, lambda X: [(batch, None) for batch in batches(X)]),
        ({}, lambda X: [[batch, 0] for batch in batches(X)]),
        ({}, lambda X: [{"y": b[:, 0, 0, 0], "x": b} for b in batches(X)]),
        ({}, lambda X: DataLoader(TensorDataset(*batches(X, 99)), batch_size=5)),
        ({"batch_size": 3}, lambda X: list(batches(X, 99))),
        ({"batch_size": 5}, lambda X: X),
    ],
    ids=[
        *("float64", "lists", "tensor", "channels first", "rows", "shape of images"),
        *("rows, channels first", "batches", "generator", "tuples", "lists of two"),
        *("dicts", "loader", "batches split", "batch size"),
    ],
)
def test_report_independent_of_image_layout(options, convert, network, images):
    expected = AnsatzScorer().report(network, images)
    actual = AnsatzScorer(**options).report(network, convert(images))
    np.testing.assert_allclose(values(actual), values(expected), rtol=1e-4)
    assert actual[0].n_images == len(images)


def test_grey_images_without_channel_axis(rng):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
    X = rng.normal(size=(6, 5, 5))
    expected = AnsatzScorer()(network, X[..., None])
    assert AnsatzScorer()(network, X) == expected
    assert AnsatzScorer(channels="first")(network, X) == expected
    rows = X.reshape(6, 25)
    assert AnsatzScorer(image_shape=(5, 5))(network, rows) == expected


@pytest.mark.parametrize(("conv", "n_dims"), [(nn.Conv1d, 1), (nn.Conv3d, 3)])
def test_signals_and_volumes_accepted(conv, n_dims, rng):
    network = nn.Sequential(conv(2, 4, 2), nn.ReLU(), nn.Flatten())
    X = rng.normal(size=(6, *(5, 4, 3)[:n_dims], 2))
    expected = AnsatzScorer()(network, X)
    assert math.isfinite(expected)
    first = np.moveaxis(X, -1, 1)
    assert AnsatzScorer(channels="first")(network, first) == expected


def test_uint8_pixels_not_rescaled(network, rng):
    X = rng.integers(0, 256, size=(10, 12, 10, 3)).astype(np.uint8)
    expected = AnsatzScorer()(network, X.astype(np.float32))
    assert AnsatzScorer()(network, X) == expected
    assert AnsatzScorer(batch_size=1)(network, list(batches(X, 1))) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize(
    ("options", "convert", "message"),
    [
        (
            {},
            lambda X: X.reshape(24, -1),
            r"shape \(24, 360\).*Pass image_shape=",
        ),
        ({}, lambda X: np.moveaxis(X, -1, 1), "channels='last'.*change these, or pass"),
        ({"image_shape": (4, 4)}, lambda X: X.reshape(24, -1), "16 pixels, but X has"),
        ({"image_shape": (12, 12, 3)}, lambda X: X, "does not match X.*leave image_s"),
        ({"image_shape": (12,)}, lambda X: X, r"image_shape=\(12,\) must have 2 sizes"),
        ({"image_shape": (12, -1)}, lambda X: X, "all positive integers"),
        ({}, lambda X: X * np.nan, "X contains NaN"),
        ({}, lambda X: X[:0], "0 sample"),
        ({}, lambda X: iter([]), "X has no batches"),
    ],
    ids=[
        *("rows", "channels", "too few pixels", "another shape", "one size"),
        *("negative", "nan", "none", "no batches"),
    ],
)
def test_unusable_images_refused(options, convert, message, network, images):
    with pytest.raises(ValueError, match=message):
        AnsatzScorer(**options).report(network, convert(images))


def test_batches_without_images_refused(network):
    with pytest.raises(TypeError, match="batch of type dict without a tensor"):
        AnsatzScorer().report(network, [{"label": 3}])


def test_max_images_sampled_evenly_over_classes(network, images, monkeypatch):
    drawn = []
    draw = batches_module.draw_images
    monkeypatch.setattr(
        batches_module,
        "draw_images",
        lambda *arguments: drawn.append(draw(*arguments)) or drawn[-1],
    )
    y = np.array(list("abc")).repeat(8)
    scorer = AnsatzScorer(max_images=6)
    score = scorer(network, images, y)
    np.testing.assert_array_equal(np.unique(y[drawn[-1]], return_counts=True)[1], 2)
    assert scorer(network, images, y) == score
    assert scorer.set_params(random_state=1)(network, images, y) != score
    assert scorer.report(network, images)[0].n_images == 6
    assert scorer.report(network, batches(images, 4))[0].n_images == 6
    assert AnsatzScorer(max_images=99).report(network, images)[0].n_images == 24


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
        AnsatzScorer(n_jobs=2).report(network, some())
    assert all(number - before < 20 for number, before in enumerate(read))


def test_short_report_prints_nothing(network, images, capsys, monkeypatch):
    AnsatzScorer().report(network, images)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(progress, "LONG_CALL", -1.0)
    AnsatzScorer().report(network, images)
    assert capsys.readouterr() == ("", "")  # no terminal


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_long_report_shows_progress_bar_on_terminal(
    n_jobs, network, images, monkeypatch, capsys
):
    console = pytest.importorskip("rich.console")
    monkeypatch.setattr(progress, "LONG_CALL", -1.0)
    plain = console.Console
    monkeypatch.setattr(
        console, "Console", lambda **options: plain(force_terminal=True, **options)
    )
    with parallel_config("threading"):
        report = AnsatzScorer(n_jobs=n_jobs).report(network, images)
    assert len(report) == 2
    assert "patch AGOPs" in capsys.readouterr().err


def test_no_progress_bar_without_rich(network, images, monkeypatch):
    monkeypatch.setattr(progress, "LONG_CALL", -1.0)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert len(AnsatzScorer().report(network, images)) == 2
