"""The scorer measures any network, and works in scikit-learn's model selection."""

import copy
import math
import pickle
import time

import numpy as np
import pytest
import torch
from ansatz_fixtures import *  # noqa: F403
from ansatz_networks import batches, values
from joblib import parallel_config
from joblib.externals.loky import get_reusable_executor
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import networks
from skconvrfm.ansatz import AnsatzScorer
from skconvrfm.datasets import load_digit_images


def test_report_of_all_convolutions_in_forward_order(network, images):
    report = AnsatzScorer().report(network, images)
    first, second = report
    assert [row.name for row in report] == ["features.0", "features.4"]
    assert (first.kind, first.shape) == ("full", (4, 3, 3, 3))
    assert (first.stride, first.groups) == ((1, 1), 1)
    assert first.n_images == 24
    assert (first.n_patches, second.n_patches) == (24 * 12 * 10, 24 * 6 * 5)
    assert np.isfinite(values(report)).all()
    assert (values(report, "standard_error") > 0).all()
    assert (first.reason, second.reason) == ("", "")


LINEAR = ["classifier.0", "classifier.3"]
CHOICES = {
    "linear too": ("all+linear", ["features.0", "features.4", *LINEAR]),
    "first": ("first", ["features.0"]),
    "names": (["classifier.0", "features.4"], ["features.4", "classifier.0"]),
    "one name": (("features.0",), ["features.0"]),
    "predicate": (lambda name, module: "Linear" in repr(module), LINEAR),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_layers_parameter_selects_layers(choice, network, images):
    layers, names = CHOICES[choice]
    report = AnsatzScorer(layers=layers).report(network, images)
    assert [row.name for row in report] == names
    for row in report:
        if row.name == "classifier.3":  # its outputs are those of the network
            assert row.correlation == pytest.approx(1)


def test_first_layer_is_the_one_called_first():
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
        (["features.1"], r"no convolution or linear layer 'features.1'; near are \['f"),
        ([], r"layers=\[\] finds no layer in VGG, which has 2 convolutions and 2 lin"),
        (lambda name, module: False, "finds no layer in VGG"),
    ],
    ids=["no layer", "none", "predicate"],
)
def test_unknown_layers_refused_by_name(layers, message, network, images):
    with pytest.raises(ValueError, match=message):
        AnsatzScorer(layers=layers).report(network, images)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")
def test_networks_that_hide_their_layers_refused_with_the_cause(images):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    x = batches(images, 99)[0]
    traced = torch.jit.trace(network.eval(), x[:1])
    quantised = nn.Sequential(torch.ao.nn.quantized.Conv2d(3, 4, 3))
    for hidden, message in (
        (torch.jit.script(network), "pass it as it was before torch.jit"),
        (traced, "pass it as it was before torch.jit"),
        (quantised, "pass it as it was before quantisation"),
        (nn.Sequential(nn.Flatten(), nn.Linear(360, 2)), "'all\\+linear' takes in lin"),
    ):
        for X in (images, x, [x], TensorDataset(x)):
            with pytest.raises(ValueError, match=f"finds no layer in .*{message}"):
                AnsatzScorer().report(hidden, X)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_network_with_a_scripted_part_measured_and_restored(images):
    part = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    for parameter in part.parameters():
        parameter.requires_grad_(False)
    network = nn.Sequential(part, nn.Conv2d(4, 5, 3), nn.ReLU()).train()
    (row,) = AnsatzScorer().report(network, images)
    assert row.name == "1"
    assert math.isfinite(row.correlation)
    assert network.training and network[0].training
    flags = [parameter.requires_grad for parameter in network.parameters()]
    assert flags == [False, False, True, True]


def test_complex_weights_refused(images):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, dtype=torch.complex64))
    with pytest.raises(TypeError, match="Layer '0' has complex weights"):
        AnsatzScorer().report(network, images)


def test_score_ignores_layers_without_correlation(network, images):
    network.spare = nn.Conv2d(3, 3, 3)
    report = AnsatzScorer().report(network, images)
    assert report[-1].reason == "the network does not call it"
    assert math.isnan(report[-1].correlation)
    assert "spare: the network does not call it" in str(report)
    assert AnsatzScorer()(network, images) == pytest.approx(
        np.mean(values(report)[:-1])
    )
    assert math.isnan(AnsatzScorer(layers=["spare"])(network, images))


INVALID = {
    **{"layers": ["conv1", 3], "correlation": ["spearman"], "agop_power": ["one"]},
    **{"outputs": [0, "some"], "max_images": [0], "batch_size": [0]},
    **{"aggregate": ["median"], "image_shape": [12], "channels": ["middle"]},
    **{"device": [1.5], "n_jobs": [1.5], "random_state": ["seed"], "n_baselines": [0]},
}


@pytest.mark.parametrize("parameter", INVALID)
def test_invalid_parameters_refused_by_name(parameter, network, images):
    for value in INVALID[parameter]:
        with pytest.raises(ValueError, match=f"The '{parameter}' parameter of An"):
            AnsatzScorer(**{parameter: value})(network, images)


def test_devices_refused_or_taken(network, images):
    with pytest.raises(ValueError, match="device='abacus' is not known"):
        AnsatzScorer(device="abacus")(network, images)
    expected = AnsatzScorer()(network, images)
    assert AnsatzScorer(device="cpu")(network, images) == expected


def test_output_shape_error_reported_without_wrapping(images):
    class Total(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return self.conv(x).sum()

    with pytest.raises(ValueError, match=r"^The network's output for 1 images has sh"):
        AnsatzScorer()(Total(), images)


def test_aggregate_parameter_reduces_correlations(network, images):
    found = values(AnsatzScorer().report(network, images))
    for aggregate, expected in (
        ("mean", found.mean()),
        ("min", found.min()),
        (np.median, np.median(found)),
    ):
        score = AnsatzScorer(aggregate=aggregate)(network, images)
        assert type(score) is float
        assert score == pytest.approx(expected)


def test_report_states_correlation_and_power(network, images):
    scorer = AnsatzScorer(correlation="cosine", agop_power=0.5)
    report = scorer.report(network, images)
    assert (report.correlation, report.agop_power) == ("cosine", 0.5)
    assert str(report).startswith("Cosine correlation of filter covariance and patch")
    assert "AGOP to the power 0.5" in str(report)
    for options in ({"correlation": "cosine"}, {"agop_power": 0.5}):
        other = AnsatzScorer(**options).report(network, images)
        assert (values(report) != values(other)).all()


def test_random_directions_close_to_exact_outputs(network, images):
    network.classifier[-1] = nn.Linear(8, 40)
    exact = AnsatzScorer().report(network, images)
    probed = AnsatzScorer(outputs=10).report(network, images)
    again = AnsatzScorer(outputs=10).report(network, images)
    np.testing.assert_array_equal(values(probed), values(again))
    assert (values(exact) != values(probed)).all()
    np.testing.assert_allclose(values(exact), values(probed), atol=0.05)


def test_baselines_equal_its_own_report(pair, images):
    network, baseline = pair
    report = AnsatzScorer(baseline=baseline).report(network, images)
    alone = AnsatzScorer().report(network, images)
    of_baseline = AnsatzScorer().report(baseline, images)
    np.testing.assert_array_equal(values(report), values(alone))
    np.testing.assert_allclose(values(report, "baseline"), values(of_baseline))
    drift = values(report, "drift")
    assert ((0 < drift) & (drift < 1)).all()
    itself = AnsatzScorer(baseline=network).report(network, iter(batches(images)))
    np.testing.assert_allclose(values(itself, "drift"), 1)
    np.testing.assert_allclose(values(itself, "baseline"), values(itself))
    other = networks.VGG((1,), n_classes=4, width=6).double()  # of another shape
    first, second = AnsatzScorer(baseline=other).report(network, images)
    assert np.isfinite(first.baseline)
    assert np.isnan(first.drift) and np.isnan(second.baseline)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digit_images(return_X_y=True)
    return X[:60], y[:60]


def test_scorer_clones_and_pickles(network, images):
    scorer = AnsatzScorer(layers=["features.0"], outputs=3, random_state=1)
    for copied in clone(scorer), pickle.loads(pickle.dumps(scorer)):
        assert copied.get_params() == scorer.get_params()
        assert copied(network, images) == scorer(network, images)
    text = "AnsatzScorer(layers=['features.0'], outputs=3, random_state=1)"
    assert repr(scorer) == text


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
def test_scorer_in_cross_validation_does_not_change_accuracy(digits, metadata_routing):
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


def test_scorer_selects_in_grid_search(digits):
    X, y = digits
    search = GridSearchCV(
        Wrapped(), {"seed": [0, 1, 2]}, scoring=AnsatzScorer(max_images=10), cv=2
    )
    search.fit(first_channels(X), y)
    scores = search.cv_results_["mean_test_score"]
    assert len(set(scores)) == 3
    assert search.best_params_["seed"] == scores.argmax()


def test_fitted_searches_and_wrappers_looked_through(digits):
    X, y = first_channels(digits[0]), digits[1]
    search = GridSearchCV(Wrapped(), {"seed": [0, 1]}, cv=2, scoring="accuracy")
    search.fit(X, y)
    expected = AnsatzScorer()(search.best_estimator_.model_, torch.from_numpy(X))
    assert AnsatzScorer()(search, X) == expected
    assert AnsatzScorer()(make_pipeline(FunctionTransformer(), search), X) == expected
    piped = make_pipeline(FunctionTransformer(first_channels), Wrapped())
    search = GridSearchCV(piped, {"wrapped__seed": [0, 1]}, cv=2).fit(*digits)
    assert AnsatzScorer()(search, digits[0]) == expected
    without_refit = clone(search).set_params(refit=False).fit(*digits)
    for estimator, message in (
        (without_refit, "GridSearchCV has no network .* search \\(with refit=True\\)"),
        (ovr(*digits), "OneVsRestClassifier has 10 fitted estimators in estimators_"),
    ):
        with pytest.raises(TypeError, match=message):
            AnsatzScorer()(estimator, digits[0])


def ovr(X, y):
    piped = make_pipeline(FunctionTransformer(first_channels), Wrapped())
    fitted = OneVsRestClassifier(piped)
    fitted.estimators_ = [piped] * 10
    fitted.classes_ = np.unique(y)
    return fitted


class _CalibratedClassifier:
    """A part of scikit-learn's estimator, by its name."""


def test_calibrated_network_looked_through_if_there_is_one(digits):
    calibration = pytest.importorskip("sklearn.calibration")
    X = digits[0]
    piped = make_pipeline(FunctionTransformer(first_channels), Wrapped().fit(*digits))
    inner = _CalibratedClassifier()
    inner.estimator = piped
    calibrated = calibration.CalibratedClassifierCV(piped)
    calibrated.classes_ = np.unique(digits[1])
    calibrated.calibrated_classifiers_ = [inner]
    expected = AnsatzScorer()(piped, X)
    assert AnsatzScorer()(calibrated, X) == expected
    calibrated.calibrated_classifiers_ = [inner, inner]
    with pytest.raises(TypeError, match="has 2 fitted estimators in calibrated_class"):
        AnsatzScorer()(calibrated, X)


class Net(nn.Sequential):
    """A network whose parts depend on whether it is trained."""

    def __init__(self):
        super().__init__(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            *(nn.Dropout(), nn.Conv2d(4, 6, 3, stride=2), nn.Flatten()),
            nn.Linear(24, 10),
        )


def test_scorer_of_skorch_with_datasets_and_in_cross_validation(digits):
    skorch = pytest.importorskip("skorch")
    slices = pytest.importorskip("skorch.helper").SliceDataset
    X, y = first_channels(digits[0]), digits[1].astype(np.int64)
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    options = {"max_epochs": 2, "train_split": None, "verbose": 0}
    options |= {"criterion": nn.CrossEntropyLoss, "iterator_train__shuffle": True}
    net = skorch.NeuralNetClassifier(Net, **options).fit(dataset, y=None)
    expected = AnsatzScorer()(net, X)
    for given in (dataset, torch.from_numpy(X), slices(dataset)):
        assert AnsatzScorer()(net, given) == expected

    def run(scoring):
        torch.manual_seed(0)
        net = skorch.NeuralNetClassifier(Net, **options)
        return cross_validate(net, X, y, cv=2, scoring=scoring)

    alone = run({"acc": "accuracy"})
    both = run({"acc": "accuracy", "ansatz": AnsatzScorer()})
    np.testing.assert_array_equal(alone["test_acc"], both["test_acc"])
    assert np.isfinite(both["test_ansatz"]).all()


def read_resnet20(shared):
    """The trained ResNet-20, an untrained one, and 200 of its images."""
    folder = shared / "data"
    torch.manual_seed(0)
    untrained = networks.resnet20()
    path = folder / "weights_cifar10_resnet20.npz"
    trained = networks.load_npz(networks.resnet20(), path)
    with np.load(folder / "cifar10_lossless_400_164.npz") as data:
        return trained, untrained, data["X_train"][:200] / np.float32(255)


@pytest.mark.slow
def test_resnet20_correlations_increase_by_training(shared):
    trained, untrained, X = read_resnet20(shared)
    start = time.process_time()
    report = AnsatzScorer(baseline=untrained).report(trained, X)
    seconds = time.process_time() - start
    assert len(report) == 19
    assert report.correlations().mean() == pytest.approx(0.89, abs=0.01)
    assert 0.6 < values(report, "baseline").mean() < 0.8
    assert values(report, "drift").mean() == pytest.approx(0.1, abs=0.05)
    roots = AnsatzScorer(agop_power=0.5).report(trained, X)
    assert roots.correlations().mean() == pytest.approx(0.957, abs=0.01)
    few = AnsatzScorer(outputs=9).report(trained, X)
    np.testing.assert_allclose(values(few), values(report), atol=0.02)
    assert seconds < 60  # of processors, which may be busy; see the benchmarks


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [networks.resnet18, networks.resnet50, networks.vgg16], ids=str
)
def test_report_of_full_size_networks(make):
    options = {} if make is networks.vgg16 else {"stem": "imagenet"}
    network = make(width=64, n_classes=1000, **options)
    X = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype(np.float32)
    report = AnsatzScorer(outputs=2, agop_power=0.5).report(network, X)
    assert np.isfinite(values(report)).all()


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
        *("baseline", "drift"),
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


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ("array", {}),
        ("generator", {"outputs": 2}),
        ("array", {"layers": "all+linear", "max_images": 17}),
        ("loader", {"layers": "first", "max_images": 17}),
    ],
)
def test_report_independent_of_number_of_threads(given, options, pair, images):
    network, baseline = pair
    alone = AnsatzScorer(baseline=baseline, **options)
    expected = alone.report(network, GIVEN[given](images))
    shared = clone(alone).set_params(n_jobs=2)
    with parallel_config("threading"):
        actual = shared.report(network, GIVEN[given](images))
    assert_same_report(actual, expected)


@pytest.mark.slow
def test_report_independent_of_number_of_processes(pair, images):
    network, baseline = pair
    scorer = AnsatzScorer(outputs=2, baseline=baseline)
    try:
        for convert in GIVEN.values():
            expected = scorer.report(network, convert(images))
            with parallel_config("loky", n_jobs=2, inner_max_num_threads=1):
                actual = scorer.report(network, convert(images))
            assert_same_report(actual, expected)
    finally:
        get_reusable_executor().shutdown(wait=True)


def test_workers_split_batches_if_memory_is_short(pair, images):
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


class Failing(nn.Sequential):
    """Fails at batches of more than one image."""

    def forward(self, x):
        if len(x) > 1:
            raise ZeroDivisionError("too many images")
        return super().forward(x)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_worker_error_propagates_and_network_restored(backend, images):
    network = Failing(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Flatten()).train()
    try:
        with parallel_config(backend), pytest.raises(ZeroDivisionError, match="^too m"):
            AnsatzScorer(n_jobs=2).report(network, images)
    finally:
        get_reusable_executor().shutdown(wait=True)
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not network[0]._forward_hooks
