"""The scorer scores any network, fits into scikit-learn, and says what it lacks."""

import copy
import csv
import math
import pickle
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib import parallel_config
from joblib.externals.loky import get_reusable_executor
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import skconvrfm
from benchmarks import networks
from skconvrfm import (
    AnsatzScorer,
    ConvRFMClassifier,
    ConvRFMRegressor,
    ansatz,
    ansatz_command,
)
from skconvrfm.ansatz import AnsatzReport, LayerReport, main
from skconvrfm.datasets import load_digit_images
from skconvrfm.display import AnsatzDisplay

ROOT = Path(__file__).parents[1]


@pytest.fixture
def network():
    """Return a little VGG with batch norm."""
    torch.manual_seed(0)
    return networks.VGG((1, 1), n_classes=4, width=4, batch_norm=True)


@pytest.fixture
def images(rng):
    """Return colour images, channels last."""
    return rng.normal(size=(24, 12, 10, 3)).astype(np.float32)


def values(report, name="correlation"):
    """A column of a report."""
    return np.array([getattr(row, name) for row in report])


# ------------------------------------------------------------------------ layers


def test_all_are_the_convolutions_in_forward_order(network, images):
    report = AnsatzScorer().report(network, images)
    assert [row.name for row in report] == ["features.0", "features.4"]
    first = report[0]
    assert first.kind == "Conv2d"
    assert first.weight_shape == (4, 3, 3, 3)
    assert (first.stride, first.groups) == ((1, 1), 1)
    assert first.n_images == 24
    assert first.n_patches == 24 * 12 * 10
    assert report[1].n_patches == 24 * 6 * 5
    assert np.isfinite(values(report)).all()
    assert (values(report, "standard_error") > 0).all()
    assert [row.reason for row in report] == ["", ""]


LINEAR = ["classifier.0", "classifier.3"]


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("all+linear", ["features.0", "features.4", *LINEAR]),
        ("first", ["features.0"]),
        (["classifier.0", "features.4"], ["features.4", "classifier.0"]),
        (("features.0",), ["features.0"]),
        (
            lambda name, module: "Linear" in repr(module),
            ["classifier.0", "classifier.3"],
        ),
    ],
    ids=["linear too", "first", "names", "one name", "predicate"],
)
def test_layers_are_chosen(layers, names, network, images):
    report = AnsatzScorer(layers=layers).report(network, images)
    assert [row.name for row in report] == names
    for row in report:
        if row.name == "classifier.3":  # its outputs are those of the network
            assert row.correlation == pytest.approx(1)


def test_first_is_the_layer_called_first():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(4, 2, 3)
            self.b = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.a(self.b(x).tanh())

    report = AnsatzScorer(layers="first").report(Backwards(), np.ones((3, 8, 8, 3)))
    assert [row.name for row in report] == ["b"]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            ["features.1"],
            r"no convolution or linear layer 'features.1'; near are \['fe",
        ),
        ([], r"layers=\[\] finds no layer in VGG, which has 2 convolutions and 2 lin"),
        (lambda name, module: False, "finds no layer in VGG"),
    ],
    ids=["no layer", "none", "predicate"],
)
def test_layers_that_are_not_there_are_named(layers, message, network, images):
    with pytest.raises(ValueError, match=message):
        AnsatzScorer(layers=layers).report(network, images)


def test_layers_without_a_correlation_are_left_out_of_the_score(network, images):
    network.spare = nn.Conv2d(3, 3, 3)
    report = AnsatzScorer().report(network, images)
    assert report[-1].reason == "the network does not call it"
    assert math.isnan(report[-1].correlation)
    assert "spare: the network does not call it" in str(report)
    assert AnsatzScorer()(network, images) == pytest.approx(
        np.mean(values(report)[:-1])
    )
    assert math.isnan(AnsatzScorer(layers=["spare"])(network, images))


# ----------------------------------------------------------------- what is given


def batches(images, size=7):
    """Torch batches of channels-last images."""
    return torch.from_numpy(np.moveaxis(images, -1, 1).copy()).split(size)


@pytest.mark.parametrize(
    ("options", "convert"),
    [
        ({}, lambda X: X.astype(np.float64)),
        ({}, lambda X: X.tolist()),
        ({}, lambda X: torch.from_numpy(X)),
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
def test_images_may_come_in_any_layout(options, convert, network, images):
    expected = AnsatzScorer().report(network, images)
    actual = AnsatzScorer(**options).report(network, convert(images))
    np.testing.assert_allclose(values(actual), values(expected), rtol=1e-4)
    assert actual[0].n_images == len(images)


def test_grey_images_need_no_channels(rng):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
    X = rng.normal(size=(6, 5, 5))
    expected = AnsatzScorer()(network, X[..., None])
    assert AnsatzScorer()(network, X) == expected
    assert AnsatzScorer(channels="first")(network, X) == expected
    rows = X.reshape(6, 25)
    assert AnsatzScorer(image_shape=(5, 5))(network, rows) == expected


@pytest.mark.parametrize(("conv", "n_dims"), [(nn.Conv1d, 1), (nn.Conv3d, 3)])
def test_signals_and_volumes_have_as_many_axes_as_the_network(conv, n_dims, rng):
    network = nn.Sequential(conv(2, 4, 2), nn.ReLU(), nn.Flatten())
    X = rng.normal(size=(6, *(5, 4, 3)[:n_dims], 2))
    expected = AnsatzScorer()(network, X)
    assert math.isfinite(expected)
    first = np.moveaxis(X, -1, 1)
    assert AnsatzScorer(channels="first")(network, first) == expected


def test_bytes_are_taken_as_they_are(network, rng):
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
def test_images_that_cannot_be_used_are_refused(
    options, convert, message, network, images
):
    with pytest.raises(ValueError, match=message):
        AnsatzScorer(**options).report(network, convert(images))


def test_batches_without_images_are_refused(network):
    with pytest.raises(TypeError, match="batch of type dict without a tensor"):
        AnsatzScorer().report(network, [{"label": 3}])


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("layers", "conv1"),
        ("layers", 3),
        ("correlation", "spearman"),
        ("agop_power", 0),
        ("outputs", 0),
        ("outputs", "some"),
        ("max_images", 0),
        ("batch_size", 0),
        ("aggregate", "median"),
        ("image_shape", 12),
        ("channels", "middle"),
        ("device", 1.5),
        ("n_jobs", 1.5),
        ("random_state", "seed"),
    ],
)
def test_bad_parameters_are_named(parameter, value, network, images):
    with pytest.raises(ValueError, match=f"The '{parameter}' parameter of An"):
        AnsatzScorer(**{parameter: value})(network, images)


def test_unknown_device_is_refused(network, images):
    with pytest.raises(ValueError, match="device='abacus' is not known"):
        AnsatzScorer(device="abacus")(network, images)
    assert AnsatzScorer(device="cpu")(network, images) == AnsatzScorer()(
        network, images
    )


def test_output_that_is_not_one_an_image_is_said_to_be_that(images):
    class Total(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return self.conv(x).sum()

    with pytest.raises(ValueError, match=r"^The network's output for 1 images has sh"):
        AnsatzScorer()(Total(), images)


# ------------------------------------------------------------------------ options


def test_aggregates(network, images):
    found = values(AnsatzScorer().report(network, images))
    for aggregate, expected in (
        ("mean", found.mean()),
        ("min", found.min()),
        (np.median, np.median(found)),
    ):
        score = AnsatzScorer(aggregate=aggregate)(network, images)
        assert type(score) is float
        assert score == pytest.approx(expected)


def test_report_knows_correlation_and_power(network, images):
    scorer = AnsatzScorer(correlation="cosine", agop_power=0.5)
    report = scorer.report(network, images)
    assert (report.correlation, report.agop_power) == ("cosine", 0.5)
    assert str(report).startswith("Cosine correlation of filter covariance and patch")
    assert "AGOP to the power 0.5" in str(report)
    for options in ({"correlation": "cosine"}, {"agop_power": 0.5}):
        other = AnsatzScorer(**options).report(network, images)
        assert (values(report) != values(other)).all()


def test_max_images_are_drawn_evenly_over_classes(network, images, monkeypatch):
    drawn = []
    draw = ansatz._draw_images
    monkeypatch.setattr(
        ansatz,
        "_draw_images",
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


def test_fewer_directions_than_outputs_are_near(network, images):
    network.classifier[-1] = nn.Linear(8, 40)
    exact = AnsatzScorer().report(network, images)
    probed = AnsatzScorer(outputs=10).report(network, images)
    again = AnsatzScorer(outputs=10).report(network, images)
    np.testing.assert_array_equal(values(probed), values(again))
    assert (values(exact) != values(probed)).all()
    np.testing.assert_allclose(values(exact), values(probed), atol=0.05)


def test_memory_bounds_the_batches(network, images):
    sizes = []
    network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    expected = AnsatzScorer()(network, images)
    assert max(sizes) == 3  # a tenth, for the standard error
    sizes.clear()
    with config_context(working_memory=1 / 64):
        assert AnsatzScorer()(network, images) == pytest.approx(expected, rel=1e-5)
    assert max(sizes) == 1


# ----------------------------------------------------------------------- baseline


def test_baseline_is_measured_beside(network, images):
    baseline = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    report = AnsatzScorer().report(network, images, baseline=baseline)
    alone = AnsatzScorer().report(network, images)
    of_baseline = AnsatzScorer().report(baseline, images)
    np.testing.assert_array_equal(values(report), values(alone))
    np.testing.assert_allclose(
        values(report, "baseline_correlation"), values(of_baseline)
    )
    drift = values(report, "baseline_drift")
    assert ((0 < drift) & (drift < 1)).all()


def test_a_network_has_not_drifted_from_itself(network, images):
    generator = (batch for batch in batches(images))
    report = AnsatzScorer().report(network, generator, baseline=network)
    np.testing.assert_allclose(values(report, "baseline_drift"), 1)
    np.testing.assert_allclose(values(report, "baseline_correlation"), values(report))


def test_baseline_of_another_shape_has_no_drift(network, images):
    other = networks.VGG((1,), n_classes=4, width=6)
    report = AnsatzScorer().report(network, images, baseline=other)
    assert np.isfinite(report[0].baseline_correlation)
    assert np.isnan(report[0].baseline_drift)
    assert np.isnan(report[1].baseline_correlation)


def test_baseline_must_be_of_the_same_kind(network, images, fitted):
    with pytest.raises(TypeError, match="baseline=ConvRFMClassifier has no torch netw"):
        AnsatzScorer().report(network, images, baseline=fitted)
    with pytest.raises(TypeError, match="baseline=VGG is no ConvRFM estimator"):
        AnsatzScorer().report(fitted, None, baseline=network)


# ------------------------------------------------------------------------- report


@pytest.fixture
def report():
    """Return a report written by hand."""
    rows = [
        LayerReport(
            *("conv1", "Conv2d", (8, 3, 3, 3), (2, 2), 1, 10, 90, 0.9, 0.01, 0.5, 0.1)
        ),
        LayerReport("conv2", "Conv1d", (4, 8, 3), reason="is not used"),
    ]
    return AnsatzReport(rows, correlation="cosine", agop_power=0.5)


def test_report_is_a_sequence(report):
    assert len(report) == 2
    assert report[-1].name == "conv2"
    assert [row.name for row in report] == ["conv1", "conv2"]
    np.testing.assert_array_equal(report.correlations(), [0.9])
    assert repr(report) == (
        "<AnsatzReport of 2 layers, correlation='cosine', agop_power=0.5>"
    )
    assert pickle.loads(pickle.dumps(report))[0] == report[0]


def test_report_is_a_table(report):
    assert str(report).splitlines() == [
        "Cosine correlation of filter covariance and patch AGOP to the power 0.5",
        "",
        "layer  kind    weight         patches    correlation  baseline  drift",
        "-----  ------  -------------  -------  -------------  --------  -----",
        "conv1  Conv2d  8 x 3 x 3 x 3       90  0.900 ± 0.010     0.500  0.100",
        "conv2  Conv1d  4 x 8 x 3            -              -         -      -",
        "mean                                           0.900     0.500  0.100",
        "conv2: is not used",
    ]


def test_report_is_a_frame(report):
    pytest.importorskip("pandas")
    frame = report.to_frame()
    assert list(frame.columns) == [
        *("name", "kind", "weight_shape", "stride", "groups", "n_images", "n_patches"),
        *("correlation", "standard_error", "baseline_correlation", "baseline_drift"),
        "reason",
    ]
    assert frame.loc[0, "weight_shape"] == (8, 3, 3, 3)


def test_without_pandas_it_is_named(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        report.to_frame()


def test_report_is_drawn(report):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    display = report.plot(axes)
    assert isinstance(display, AnsatzDisplay)
    assert display.ax_ is axes and display.figure_ is axes.figure
    network, baseline = display.lines_
    np.testing.assert_array_equal(network.get_ydata(), [0.9, np.nan])
    np.testing.assert_array_equal(baseline.get_ydata(), [0.5, np.nan])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["conv1", "conv2"]
    assert axes.get_ylabel() == "Cosine correlation, AGOP$^{0.5}$"


def test_report_without_baseline_is_one_curve():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    display = AnsatzDisplay(names=["conv1"], correlation=[0.5])
    assert len(display.plot(Figure().subplots()).lines_) == 1


# ------------------------------------------------------------------------ ConvRFM


@pytest.fixture(scope="module")
def digits():
    X, y = load_digit_images(return_X_y=True)
    return X[:60], y[:60]


@pytest.fixture(scope="module")
def fitted(digits):
    """Return a ConvRFM that has gone some rounds."""
    model = ConvRFMClassifier(depth=1, n_rounds=3, selection="last", device="cpu")
    return model.fit(*digits)


def test_convrfm_is_scored_by_its_metric(fitted):
    metric = fitted.patch_transform_ @ fitted.patch_transform_.T
    expected = np.corrcoef(metric.ravel(), fitted.patch_agop_.ravel())[0, 1]
    assert AnsatzScorer()(fitted, None) == pytest.approx(expected)
    (row,) = AnsatzScorer().report(fitted, None)
    assert (row.name, row.kind, row.weight_shape) == (
        *("layer 0", "ConvRFMClassifier"),
        (9, 9),
    )
    assert row.n_images is row.n_patches is None


def test_convrfm_at_the_fixed_point_scores_one(fitted):
    model = copy.deepcopy(fitted)
    values, vectors = np.linalg.eigh(model.patch_agop_)
    model.patch_transform_ = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    assert AnsatzScorer()(model, None) == pytest.approx(1)
    assert AnsatzScorer(agop_power=0.5)(model, None) < 0.999


def test_convrfm_in_a_pipeline_and_with_a_baseline(fitted, digits):
    X, y = digits
    rows = X.reshape(len(X), -1)
    pipeline = make_pipeline(StandardScaler(), clone(fitted)).fit(rows, y)
    assert AnsatzScorer()(pipeline, rows) == AnsatzScorer()(pipeline[-1], None)
    baseline = clone(fitted).set_params(n_rounds=0).fit(X, y)
    (row,) = AnsatzScorer().report(fitted, None, baseline=baseline)
    (alone,) = AnsatzScorer().report(baseline, None)
    assert row.baseline_correlation == alone.correlation
    assert -1 < row.baseline_drift < 1


def test_layers_of_a_deep_convrfm_are_rows(images):
    y = images.mean(axis=(1, 2, 3))
    model = ConvRFMRegressor(depth=2, feature_layers=2, n_filters=4, n_rounds=1)
    report = AnsatzScorer().report(model.fit(images, y), None)
    assert [row.name for row in report] == ["layer 0", "layer 1"]
    assert [row.weight_shape[0] for row in report] == [
        len(layer.patch_agop_) for layer in model.layers_
    ]


def test_unfitted_and_foreign_estimators_are_refused(images):
    with pytest.raises(NotFittedError, match="ConvRFMClassifier"):
        AnsatzScorer()(ConvRFMClassifier(), images)
    scaler = StandardScaler().fit(images[:, 0, 0])
    for foreign in (scaler, object()):
        with pytest.raises(TypeError, match="has no network to look into: pass a"):
            AnsatzScorer()(foreign, images)


# ------------------------------------------------------------------- scikit-learn


def test_parameters_survive_cloning_and_pickling(network, images):
    scorer = AnsatzScorer(layers=["features.0"], outputs=3, random_state=1)
    copies = clone(scorer), pickle.loads(pickle.dumps(scorer))
    for copied in copies:
        assert copied.get_params() == scorer.get_params()
        assert copied(network, images) == scorer(network, images)
    assert repr(scorer) == (
        "AnsatzScorer(layers=['features.0'], outputs=3, random_state=1)"
    )


class Wrapped(ClassifierMixin, BaseEstimator):
    """An estimator with a network as model_; its fit draws the weights."""

    def __init__(self, seed=0):
        self.seed = seed

    def fit(self, X, y):
        torch.manual_seed(self.seed)
        self.classes_ = np.unique(y)
        self.model_ = networks.mobilenet(n_classes=len(self.classes_), channels=1)
        self.model_.train()
        return self

    def predict(self, X):
        self.model_.eval()
        with torch.no_grad():
            scores = self.model_(torch.from_numpy(X))
        self.model_.train()
        return self.classes_[scores.argmax(1).numpy()]


def first_channels(X):
    return np.ascontiguousarray(X.reshape(len(X), 1, 8, 8), dtype=np.float32)


@pytest.mark.parametrize("metadata_routing", [False, True])
def test_scorer_in_cross_validation_leaves_the_accuracy_alone(digits, metadata_routing):
    X, y = digits
    model = make_pipeline(FunctionTransformer(first_channels), Wrapped())
    with config_context(enable_metadata_routing=metadata_routing):
        # Of scikit-learn 1.6 routing asks for params.
        alone = cross_validate(model, X, y, cv=2, scoring="accuracy", params={})
        both = cross_validate(
            *(model, X, y),
            cv=2,
            params={},
            scoring={"ansatz": AnsatzScorer(), "acc": "accuracy"},
            return_estimator=True,
            return_train_score=True,
        )
    np.testing.assert_array_equal(alone["test_score"], both["test_acc"])
    assert np.isfinite(both["test_ansatz"]).all()
    assert all(one[-1].model_.training for one in both["estimator"])


def test_scorer_chooses_in_a_grid_search(digits):
    X, y = digits
    search = GridSearchCV(
        Wrapped(), {"seed": [0, 1, 2]}, scoring=AnsatzScorer(max_images=10), cv=2
    )
    search.fit(first_channels(X), y)
    scores = search.cv_results_["mean_test_score"]
    assert len(set(scores)) == 3
    assert search.best_params_["seed"] == scores.argmax()


def test_scorer_of_convrfm_in_cross_validation(digits):
    scores = cross_validate(
        ConvRFMClassifier(depth=1, n_rounds=1, device="cpu"),
        *digits,
        cv=2,
        scoring={"acc": "accuracy", "ansatz": AnsatzScorer()},
    )
    assert (scores["test_ansatz"] <= 1).all()


def test_scorer_of_skorch_in_cross_validation(digits):
    skorch = pytest.importorskip("skorch")
    X, y = first_channels(digits[0]), digits[1].astype(np.int64)

    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(
                *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
                *(nn.Dropout(), nn.Conv2d(4, 6, 3, stride=2), nn.Flatten()),
                nn.Linear(24, 10),
            )

    def run(scoring):
        torch.manual_seed(0)
        net = skorch.NeuralNetClassifier(
            Net,
            criterion=nn.CrossEntropyLoss,
            max_epochs=2,
            train_split=None,
            verbose=0,
            iterator_train__shuffle=True,
        )
        return cross_validate(net, X, y, cv=2, scoring=scoring)

    alone = run({"acc": "accuracy"})
    both = run({"acc": "accuracy", "ansatz": AnsatzScorer()})
    np.testing.assert_array_equal(alone["test_acc"], both["test_acc"])
    assert np.isfinite(both["test_ansatz"]).all()


# ----------------------------------------------------------------- real networks


def read_resnet20(shared):
    """The trained ResNet-20, an untrained one, and 200 of its images."""
    folder = shared / "data"
    torch.manual_seed(0)
    untrained = networks.resnet20()
    path = folder / "weights_cifar10_resnet20.npz"
    trained = networks.load_npz(networks.resnet20(), path)
    with np.load(folder / "cifar10_lossless_400_164.npz") as data:
        return trained, untrained, data["X_train"][:200] / np.float32(255)


@pytest.mark.thorough
def test_resnet20_satisfies_the_ansatz_more_after_training_than_before(shared):
    trained, untrained, X = read_resnet20(shared)
    start = time.perf_counter()
    report = AnsatzScorer().report(trained, X, baseline=untrained)
    seconds = time.perf_counter() - start
    assert len(report) == 19
    assert report.correlations().mean() == pytest.approx(0.89, abs=0.01)
    assert 0.6 < values(report, "baseline_correlation").mean() < 0.8
    assert values(report, "baseline_drift").mean() == pytest.approx(0.1, abs=0.05)
    roots = AnsatzScorer(agop_power=0.5).report(trained, X)
    assert roots.correlations().mean() == pytest.approx(0.957, abs=0.01)
    few = AnsatzScorer(outputs=9).report(trained, X)
    np.testing.assert_allclose(values(few), values(report), atol=0.02)
    assert seconds < 60  # a bound for a busy machine; see the benchmarks


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [networks.resnet18, networks.resnet50, networks.vgg16], ids=str
)
def test_networks_of_full_size_run(make):
    options = {} if make is networks.vgg16 else {"stem": "imagenet"}
    network = make(width=64, n_classes=1000, **options)
    X = np.random.default_rng(0).normal(size=(4, 224, 224, 3)).astype(np.float32)
    report = AnsatzScorer(outputs=2, agop_power=0.5).report(network, X)
    assert np.isfinite(values(report)).all()


# ----------------------------------------------------------------------- workers


@pytest.fixture
def pair(network):
    """Return a network in float64, and one with other weights."""
    network = network.double()
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network, other


def assert_same_report(actual, expected):
    assert [row.name for row in actual] == [row.name for row in expected]
    for name in (
        *("n_images", "n_patches", "correlation", "standard_error"),
        *("baseline_correlation", "baseline_drift"),
    ):
        np.testing.assert_allclose(
            values(actual, name), values(expected, name), rtol=1e-12, err_msg=name
        )
    assert [row.reason for row in actual] == [row.reason for row in expected]


GIVEN = {
    "array": lambda X: X,
    "generator": lambda X: (batch for batch in batches(X, 2)),
    "loader": lambda X: DataLoader(TensorDataset(*batches(X, 99)), batch_size=2),
}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize(
    "options",
    [{}, {"outputs": 2}, {"layers": "all+linear", "max_images": 17}],
    ids=["exact", "probes", "some images"],
)
def test_the_report_does_not_depend_on_the_number_of_threads(
    given, options, pair, images
):
    network, baseline = pair
    alone = AnsatzScorer(**options)
    expected = alone.report(network, GIVEN[given](images), baseline=baseline)
    shared = clone(alone).set_params(n_jobs=2)
    with parallel_config("threading"):
        actual = shared.report(network, GIVEN[given](images), baseline=baseline)
    assert_same_report(actual, expected)


@pytest.mark.thorough
def test_the_report_does_not_depend_on_the_number_of_processes(pair, images):
    network, baseline = pair
    scorer = AnsatzScorer(outputs=2)
    try:
        for convert in GIVEN.values():
            expected = scorer.report(network, convert(images), baseline=baseline)
            with parallel_config("loky", n_jobs=2, inner_max_num_threads=1):
                actual = scorer.report(network, convert(images), baseline=baseline)
            assert_same_report(actual, expected)
    finally:
        get_reusable_executor().shutdown(wait=True)


def test_workers_split_batches_where_memory_is_short(pair, images):
    network, _ = pair
    sizes = []
    network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    with config_context(working_memory=0.2):
        expected = AnsatzScorer(outputs=2).report(network, images)
        whole = max(sizes)
        sizes.clear()
        with parallel_config("threading"):
            actual = AnsatzScorer(outputs=2, n_jobs=2).report(network, images)
    assert max(sizes) < whole
    assert_same_report(actual, expected)


def test_batches_are_read_as_workers_ask_for_them(network, images):
    read, done = [], []
    network.register_forward_hook(lambda *call: done.append(1))

    def some():
        for batch in batches(np.tile(images, (4, 1, 1, 1)), 1):
            read.append(len(done))
            yield batch

    with parallel_config("threading"):
        AnsatzScorer(n_jobs=2).report(network, some())
    assert all(number - before < 20 for number, before in enumerate(read))


class Failing(nn.Sequential):
    """Fails at batches of more than one image."""

    def forward(self, x):
        if len(x) > 1:
            raise ZeroDivisionError("too many images")
        return super().forward(x)


@pytest.mark.thorough
@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_errors_of_workers_are_theirs_and_the_network_is_put_back(backend, images):
    network = Failing(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Flatten()).train()
    try:
        with parallel_config(backend), pytest.raises(ZeroDivisionError, match="^too m"):
            AnsatzScorer(n_jobs=2).report(network, images)
    finally:
        get_reusable_executor().shutdown(wait=True)
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not network[0]._forward_hooks


# ---------------------------------------------------------------------- progress


def test_a_report_is_silent_unless_it_is_long(network, images, capsys, monkeypatch):
    AnsatzScorer().report(network, images)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(ansatz, "LONG_RUN", -1.0)
    AnsatzScorer().report(network, images)
    assert capsys.readouterr() == ("", "")  # no terminal


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_a_long_report_shows_a_bar_on_a_terminal(
    n_jobs, network, images, monkeypatch, capsys
):
    console = pytest.importorskip("rich.console")
    monkeypatch.setattr(ansatz, "LONG_RUN", -1.0)
    plain = console.Console
    monkeypatch.setattr(
        console, "Console", lambda **options: plain(force_terminal=True, **options)
    )
    with parallel_config("threading"):
        report = AnsatzScorer(n_jobs=n_jobs).report(network, images)
    assert len(report) == 2
    assert "Patch AGOPs" in capsys.readouterr().err


def test_without_rich_there_is_no_bar(network, images, monkeypatch):
    monkeypatch.setattr(ansatz, "LONG_RUN", -1.0)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert len(AnsatzScorer().report(network, images)) == 2


# ------------------------------------------------------------------ command line


@pytest.fixture
def archive(tmp_path, rng):
    """Return the path of an archive of small colour images."""
    path = tmp_path / "images.npz"
    np.savez(path, X=rng.integers(0, 256, size=(12, 16, 16, 3), dtype=np.uint8))
    return path


NETWORK = "benchmarks.networks:mobilenet"


def run_main(capsys, *arguments):
    """Exit code, output and errors of the command line."""
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.mark.thorough
def test_command_runs_without_a_warning(archive):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "skconvrfm.ansatz", NETWORK]
        + ["--images", str(archive)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Pearson correlation of filter covariance")
    assert "features.3" in done.stdout


def test_command_loads_weights_and_writes_a_table(archive, tmp_path, capsys):
    network = networks.mobilenet()
    weights, table = tmp_path / "weights.pt", tmp_path / "table.csv"
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, weights)
    options = (
        "--weights",
        weights,
        "--csv",
        table,
        "--outputs",
        "all",
        "--power",
        ".5",
    )
    code, out, err = run_main(capsys, NETWORK, "--images", archive, *options)
    assert (code, err) == (0, "")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with np.load(archive) as data:
        X = data["X"] / np.float32(255)
    expected = AnsatzScorer(agop_power=0.5).report(network, X)
    for row, found in zip(expected, rows, strict=True):
        assert row.name == found["name"]
        assert float(found["correlation"]) == pytest.approx(row.correlation)
        assert math.isfinite(float(found["baseline_correlation"]))


def test_command_reads_weights_of_numpy(archive, tmp_path, capsys):
    path = tmp_path / "weights.npz"
    state = networks.mobilenet().state_dict()
    np.savez(path, **{name: value.numpy() for name, value in state.items()})
    code, out, _ = run_main(capsys, NETWORK, "--images", archive, "--weights", path)
    assert code == 0


def test_command_reads_folders_of_images(tmp_path, capsys, rng):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "deep").mkdir()
    for number, folder in enumerate((tmp_path, tmp_path, tmp_path / "deep")):
        pixels = rng.integers(0, 256, size=(20 + number, 24, 3), dtype=np.uint8)
        image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    code, _, err = run_main(capsys, NETWORK, "--images", tmp_path)
    assert code == 2
    assert "different sizes" in err and "--size N" in err
    code, out, _ = run_main(capsys, NETWORK, "--images", tmp_path, "--size", 16)
    assert code == 0


def fake_torchvision(monkeypatch, weights=None):
    """Put something in the place of torchvision that has one network."""

    class Weights:
        url = "https://example.org/weights.pth"

        def transforms(self):
            return lambda image: image[:, 2:14, 2:14].float() / 255

        def get_state_dict(self, **options):
            if weights is None:
                raise OSError("no route to host")
            return weights

    models = types.SimpleNamespace(
        list_models=lambda module=None: ["tinynet"],
        get_model=lambda name, weights=None: networks.mobilenet(),
        get_model_weights=lambda name: types.SimpleNamespace(DEFAULT=Weights()),
    )
    module = types.ModuleType("torchvision")
    module.models = models
    monkeypatch.setitem(sys.modules, "torchvision", module)


def test_command_takes_names_weights_and_transforms_of_torchvision(
    archive, capsys, monkeypatch
):
    torch.manual_seed(3)
    network = networks.mobilenet()
    fake_torchvision(monkeypatch, network.state_dict())
    code, out, err = run_main(
        capsys, "tinynet", "--images", archive, "--weights", "DEFAULT"
    )
    assert (code, err) == (0, "")
    with np.load(archive) as data:
        X = data["X"][:, 2:14, 2:14] / np.float32(255)
    (row, *_) = AnsatzScorer(outputs=64).report(network, X)
    assert f"{row.correlation:.3f} ± " in out


def test_command_says_what_is_wrong_in_one_line(archive, tmp_path, capsys, monkeypatch):
    empty, other = tmp_path / "empty", tmp_path / "other.npz"
    empty.mkdir()
    np.savez(other, images=np.zeros((2, 3)))
    wrong = tmp_path / "wrong.pt"
    torch.save(networks.alexnet(width=2).state_dict(), wrong)
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"nothing")
    for arguments, message in (
        ([NETWORK], "required: --images"),
        ([NETWORK, "--images", empty], "has no image files"),
        ([NETWORK, "--images", tmp_path / "none.npz"], "No such file"),
        ([NETWORK, "--images", broken], "neither a folder nor an .npz file"),
        ([NETWORK, "--images", other], "has none of X, X_test, X_train; it has images"),
        ([NETWORK, "--images", archive, "--size", "9"], "--size is for folders"),
        ([NETWORK, "--images", archive, "--outputs", "no"], "--outputs: needs an int"),
        ([NETWORK, "--images", archive, "--power", "0"], "--power: needs a positive"),
        ([NETWORK, "--images", archive, "--device", "tpu7"], "device='tpu7'"),
        ([NETWORK, "--images", archive, "--csv", empty], "--csv"),
        ([NETWORK, "--images", archive, "--weights", wrong], "are not those of"),
        ([NETWORK, "--images", archive, "--weights", broken], "cannot be read as weig"),
        ([NETWORK, "--images", archive, "--weights", empty / "x"], "No such file"),
        ([NETWORK, "--images", archive, "--weights", "DEFAULT"], "only for names of t"),
        (["no.such:thing", "--images", archive], "No module named 'no'"),
        (["math:tau", "--images", archive], "math has no function 'tau'"),
        (["builtins:dict", "--images", archive], "returns a dict, not a torch.nn.Mod"),
    ):
        code, out, err = run_main(capsys, *arguments)
        assert (code, err.count("\n")) == (2, 1), err
        assert err.startswith("python -m skconvrfm.ansatz: error: ")
        assert message in err


def test_command_says_what_to_install_or_to_pass(archive, capsys, monkeypatch):
    for torchvision, arguments, message in (
        (
            "missing",
            ["resnet18"],
            "not installed; pip install torchvision, or pass p",
        ),
        ("broken", ["resnet18"], "cannot be imported (operator does not exist)"),
        ("fake", ["resnet18"], "near are tinynet"),
        ("fake", ["tinynet", "--weights", "DEFAULT"], "elsewhere and pass --weights F"),
    ):
        if torchvision == "fake":
            fake_torchvision(monkeypatch)
        else:
            monkeypatch.setitem(sys.modules, "torchvision", None)
        if torchvision == "broken":
            monkeypatch.delitem(sys.modules, "torchvision")
            monkeypatch.setattr(sys, "meta_path", [BrokenFinder(), *sys.meta_path])
        code, _, err = run_main(capsys, *arguments, "--images", archive)
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err


class BrokenFinder:
    """Finds a torchvision that was built for another torch."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            raise RuntimeError("operator does not exist\nand more")
        return None


def test_command_without_pillow_names_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    code, _, err = run_main(capsys, NETWORK, "--images", tmp_path)
    assert code == 2
    assert "pip install pillow, or pass an .npz file" in err


def test_the_package_has_no_other_lazy_names():
    assert skconvrfm.AnsatzScorer is AnsatzScorer
    assert ansatz_command.PROGRAM.endswith(ansatz.__name__)
    with pytest.raises(AttributeError, match="no attribute 'AnsatzScores'"):
        _ = skconvrfm.AnsatzScores
