"""metric="auto": the criterion chooses the metric of patches in round 0."""

import gc
import weakref

import numpy as np
import pytest
from by_hand import assert_close
from sklearn.base import clone
from sklearn.svm import SVC

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNNGP, ConvNTK, PatchGaussian, PatchLaplace
from skconvrfm.learning import models
from skconvrfm.learning.models import PatchModel

KERNELS = [
    ConvNTK(depth=2),
    ConvNNGP(depth=1),
    PatchGaussian(),
    PatchLaplace(pool_grid=2),
]
DEEP = ConvFeatures(6, patch_size=3, pool_grid=None)


def make_data(kind, n=48):
    """Images whose signal is their brightness, or a faint edge beside it."""
    rng = np.random.default_rng(0)
    brightness, noise = rng.normal(size=(n, 1, 1)), rng.normal(size=(n, 5, 5))
    edge = noise[:, 1, 1] - noise[:, 1, 2]
    return 30 * brightness + noise, edge if kind == "whiten" else brightness[:, 0, 0]


DATA = {kind: make_data(kind) for kind in ("identity", "whiten")}


def fit(kernel, data, metric, features=None, weights=None, **options):
    """The regressor with a metric, fitted."""
    options = {"n_rounds": 2, "alpha": (1e-3, 1e-1, 10.0)} | options
    kernel = clone(kernel).set_params(metric=metric)
    return ConvRFMRegressor(kernel, features, **options).fit(*data, weights)


def assert_same_machine(found, expected):
    """Check that two fits are equal bit by bit, but for the seconds."""
    np.testing.assert_array_equal(found.dual_coef_, expected.dual_coef_)
    np.testing.assert_array_equal(found.patch_transform_, expected.patch_transform_)
    np.testing.assert_array_equal(found.patch_agop_, expected.patch_agop_)
    assert found.kernel_.metric_ == expected.kernel_.metric_
    assert found.history_.keys() == expected.history_.keys()
    for key, values in expected.history_.items():
        if not key.startswith("seconds"):
            np.testing.assert_array_equal(found.history_[key], values)


@pytest.mark.parametrize("selection", ["gcv", "loo", "holdout", "last"])
@pytest.mark.parametrize("metric", DATA)
def test_fit_is_that_of_the_metric_with_the_lower_criterion(metric, selection):
    options = {"selection": selection}
    found = fit(KERNELS[0], DATA[metric], "auto", **options)
    fixed = {name: fit(KERNELS[0], DATA[metric], name, **options) for name in DATA}
    key = {"loo": "loo_loss", "holdout": "holdout_loss"}.get(selection, "gcv")
    criteria = {name: model.history_[key][0] for name, model in fixed.items()}
    assert found.kernel_.metric_ == min(criteria, key=criteria.get) == metric
    assert_same_machine(found, fixed[metric])
    assert list(found.history_["round"]) == [0, 1, 2]
    assert found.kernel.metric == "auto"


@pytest.mark.parametrize("metric", DATA)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_every_patch_kernel_chooses(kernel, metric):
    found = fit(kernel, DATA[metric], "auto", n_rounds=0)
    fixed = {name: fit(kernel, DATA[metric], name, n_rounds=0) for name in DATA}
    chosen = min(fixed, key=lambda name: fixed[name].history_["gcv"][0])
    assert_same_machine(found, fixed[chosen])
    assert fixed["whiten"].kernel_.metric_ == "whiten"
    assert fixed["identity"].kernel_.metric_ == "identity"


def test_identity_is_kept_where_both_are_as_good():
    blank = np.ones((6, 3, 3)), np.arange(6.0)
    assert fit(KERNELS[1], blank, "auto").kernel_.metric_ == "identity"


def test_refit_takes_the_choice_of_the_held_out_rows(monkeypatch):
    fitted, design = [], PatchModel.design
    monkeypatch.setattr(
        PatchModel,
        "design",
        lambda self: (
            fitted.append((len(self.data.images), self.choice)) or design(self)
        ),
    )
    model = fit(KERNELS[0], DATA["whiten"], "auto", selection="holdout", n_rounds=0)
    n_kept = fitted[0][0]
    assert n_kept < 48
    assert fitted == [(n_kept, "identity"), (n_kept, "whiten"), (48, "whiten")]
    assert model.kernel_.metric_ == "whiten"


@pytest.mark.parametrize("selection", ["gcv", "holdout"])
@pytest.mark.parametrize("metric", DATA)
def test_every_stage_of_deep_convrfm_chooses(metric, selection, monkeypatch):
    tried, design = [], PatchModel.design
    monkeypatch.setattr(
        PatchModel,
        "design",
        lambda self: tried.append((self.kernel.channels, self.choice)) or design(self),
    )
    options = {"features": DEEP, "n_rounds": 1, "selection": selection}
    model = fit(ConvNTK(depth=1), DATA[metric], "auto", **options)
    for channels in (1, 6):
        first_two = [name for c, name in tried if c == channels][:2]
        assert first_two == ["identity", "whiten"]
    assert np.isfinite(model.predict(DATA[metric][0])).all()
    assert model.kernel_.metric_ in DATA


@pytest.mark.parametrize("metric", DATA)
def test_warm_start_goes_on_with_the_former_choice(metric, monkeypatch):
    options = {"selection": "last", "warm_start": True, "n_rounds": 1}
    warm = fit(KERNELS[0], DATA[metric], "auto", **options)
    fixed = fit(KERNELS[0], DATA[metric], metric, **options)
    tried, design = [], PatchModel.design
    monkeypatch.setattr(
        PatchModel, "design", lambda self: tried.append(1) or design(self)
    )
    warm.fit(*DATA[metric])
    assert len(tried) == 2
    assert_same_machine(warm, fixed.fit(*DATA[metric]))
    assert warm.kernel_.metric_ == metric


def test_one_matrix_of_all_pairs_is_alive_at_a_time(monkeypatch):
    alive, compute = [], models.kernel_matrix

    def watched(*arguments):
        gc.collect()
        assert not any(matrix() is not None for matrix in alive)
        matrix = compute(*arguments)
        alive.append(weakref.ref(matrix))
        return matrix

    paths, make = [], PatchModel.ridge_path

    def watched_path(self, design):
        assert not any(path() is not None for path in paths)
        path = make(self, design)
        paths.append(weakref.ref(path))
        return path

    monkeypatch.setattr(models, "kernel_matrix", watched)
    monkeypatch.setattr(PatchModel, "ridge_path", watched_path)
    fit(KERNELS[0], DATA["whiten"], "auto", n_rounds=1)
    assert len(alive) == len(paths) == 3


@pytest.mark.parametrize("metric", DATA)
def test_weights_equal_repeated_rows(metric):
    X, y = DATA[metric]
    counts = np.arange(48) % 3 + 1
    rows = np.repeat(np.arange(48), counts)
    options = {"n_rounds": 1, "agop_samples": None}
    weighted = fit(KERNELS[0], (X, y), "auto", weights=counts, **options)
    repeated = fit(KERNELS[0], (X[rows], y[rows]), "auto", **options)
    assert repeated.kernel_.metric_ == weighted.kernel_.metric_
    assert_close(repeated.predict(X), weighted.predict(X), 1e-6)


@pytest.mark.parametrize("metric", ["whiten", "auto"])
def test_call_of_a_kernel_has_the_metric_of_its_patch_transform(metric):
    X, y = DATA["whiten"]
    expected = ConvNTK(depth=1)(X)
    np.testing.assert_array_equal(ConvNTK(depth=1, metric=metric)(X), expected)
    rows = X.reshape(48, 25)
    machine = SVC(kernel=ConvNTK(depth=1, metric=metric)).fit(rows, y > 0)
    assert machine.score(rows, y > 0) > 0.5


def test_classes_are_predicted_from_probabilities_of_the_chosen_metric():
    X, signal = DATA["whiten"]
    kernel = ConvNTK(depth=1, metric="auto")
    model = ConvRFMClassifier(kernel, n_rounds=1).fit(X, signal > 0)
    assert model.kernel_.metric_ == "whiten"
    assert_close(model.predict_proba(X).sum(1), np.ones(48), 1e-12)
