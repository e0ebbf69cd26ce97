"""ConvRFM estimators are scored by the correlation of patch metric and patch AGOP."""

import numpy as np
import pytest
from ansatz_fixtures import *  # noqa: F403
from ansatz_networks import values
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Bunch
from torch import nn

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.ansatz import AnsatzScorer
from skconvrfm.datasets import load_digit_images
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian


class HandMade(BaseEstimator):
    """An estimator of which the layers that learned a metric are written by hand."""

    def fit(self, *layers):
        self.learned_layers_ = [
            Bunch(patch_transform_=transform, patch_agop_=agop)
            for transform, agop in layers
        ]
        self.best_layer_ = 0
        return self


def random_layer(rng, d=9):
    """A symmetric patch transform, and a patch AGOP."""
    factors = rng.normal(size=(2, d, d))
    root, agop = factors @ factors.transpose(0, 2, 1)
    return root, agop


def test_convrfm_score_is_correlation_of_metric_and_agop(rng):
    transform, agop = random_layer(rng)
    model = HandMade().fit((transform, agop))
    metric = transform @ transform.T
    expected = np.corrcoef(metric.ravel(), agop.ravel())[0, 1]
    assert AnsatzScorer()(model, None) == pytest.approx(expected)
    (row,) = AnsatzScorer().report(model, None)
    assert (row.name, row.kind, row.shape) == ("layer 0", "full", (9, 9))
    assert row.n_images is row.n_patches is None
    assert np.isnan(row.standard_error)


def test_convrfm_at_fixed_point_scores_one(rng):
    _, agop = random_layer(rng)
    eigenvalues, vectors = np.linalg.eigh(agop)
    root = (vectors * np.sqrt(eigenvalues.clip(0))) @ vectors.T
    model = HandMade().fit((root, agop))
    assert AnsatzScorer()(model, None) == pytest.approx(1)
    assert AnsatzScorer(agop_power=0.5)(model, None) < 0.999


def test_convrfm_without_correlation_states_the_reason(rng):
    transform, agop = random_layer(rng)
    model = HandMade().fit((transform, np.zeros_like(agop)), (transform * 0, agop))
    reasons = [row.reason for row in AnsatzScorer().report(model, None)]
    assert reasons == ["its patch AGOP is zero", "its patch metric is zero"]


def test_convrfm_baseline_compared_layer_by_layer(rng):
    layers = [random_layer(rng) for _ in range(4)]
    model, baseline = HandMade().fit(*layers[:2]), HandMade().fit(*layers[2:])
    report = AnsatzScorer(baseline=baseline).report(model, None)
    alone = AnsatzScorer().report(baseline, None)
    np.testing.assert_array_equal(values(report, "baseline"), values(alone))
    for row, (first, _), (other, _) in zip(report, layers[:2], layers[2:], strict=True):
        metrics = [(root @ root.T).ravel() for root in (first, other)]
        assert row.drift == pytest.approx(np.corrcoef(metrics)[0, 1])

    other = HandMade().fit(random_layer(rng, 4))  # of another shape
    first, second = AnsatzScorer(baseline=other).report(model, None)
    assert np.isfinite(first.baseline) and np.isnan(first.drift)
    assert np.isnan(second.baseline)


def test_baseline_of_other_kind_refused(network, images, rng):
    model = HandMade().fit(random_layer(rng))
    with pytest.raises(TypeError, match="baseline=HandMade has no torch network"):
        AnsatzScorer(baseline=model).report(network, images)
    with pytest.raises(TypeError, match="baseline=VGG is no ConvRFM estimator"):
        AnsatzScorer(baseline=network).report(model, None)


def test_estimators_without_metric_or_network_refused(images, digits):
    whole = ConvRFMClassifier(Gaussian()).fit(*digits)
    for model in (HandMade().fit(), whole):
        name = type(model).__name__
        with pytest.raises(TypeError, match=f"{name} learns no patch metric"):
            AnsatzScorer()(model, images)
    scaler = StandardScaler().fit(images[:, 0, 0])
    for foreign in (scaler, object()):
        with pytest.raises(TypeError, match="has no network to look into: pass a"):
            AnsatzScorer()(foreign, images)
    with pytest.raises(NotFittedError, match="ConvRFMClassifier"):
        AnsatzScorer()(ConvRFMClassifier(), images)


def test_fitted_estimator_with_network_scored_as_network(network, images):
    class Wrapped(BaseEstimator):
        def fit(self):
            self.module_ = nn.Sequential(network)
            return self

    wrapped = Wrapped().fit()
    planes = np.moveaxis(images, -1, 1)
    expected = AnsatzScorer()(network, images)
    assert AnsatzScorer()(wrapped, planes) == pytest.approx(expected)


# Estimators that are really fitted.


@pytest.fixture(scope="module")
def digits():
    X, y = load_digit_images(return_X_y=True)
    return X[:60], y[:60]


@pytest.fixture(scope="module")
def fitted(digits):
    """Return a ConvRFM after some rounds."""
    model = ConvRFMClassifier(
        ConvNTK(depth=1), n_rounds=3, selection="last", device="cpu"
    )
    return model.fit(*digits)


def test_fitted_convrfm_scored_by_patch_transform_and_agop(fitted):
    metric = fitted.patch_transform_ @ fitted.patch_transform_.T
    expected = np.corrcoef(metric.ravel(), fitted.patch_agop_.ravel())[0, 1]
    assert AnsatzScorer()(fitted, None) == pytest.approx(expected)
    (row,) = AnsatzScorer().report(fitted, None)
    assert row.kind == "full"


def test_convrfm_in_pipeline_and_with_baseline(fitted, digits):
    X, y = digits
    rows = X.reshape(len(X), -1)
    model = clone(fitted).set_params(image_shape=(8, 8))
    pipeline = make_pipeline(StandardScaler(), model).fit(rows, y)
    assert AnsatzScorer()(pipeline, rows) == AnsatzScorer()(pipeline[-1], None)
    baseline = clone(fitted).set_params(n_rounds=0).fit(X, y)
    (row,) = AnsatzScorer(baseline=baseline).report(fitted, None)
    (alone,) = AnsatzScorer().report(baseline, None)
    assert row.baseline == alone.correlation
    assert -1 < row.drift < 1


def test_deep_convrfm_has_one_row_per_layer(images):
    y = images.mean(axis=(1, 2, 3))
    layer = ConvFeatures(4, patch_size=3, pool_grid=None)
    model = ConvRFMRegressor(ConvNTK(depth=1), layer, n_rounds=1).fit(images, y)
    report = AnsatzScorer().report(model, None)
    assert [row.name for row in report] == ["layer 0", "layer 1"]
    assert [row.shape[0] for row in report] == [27, 36]


def test_transformer_scored_like_its_estimator(digits):
    machine = ConvRFMClassifier(ConvNTK(depth=1), n_rounds=1)
    transformer = PatchAGOPTransformer(machine).fit(*digits)
    score = AnsatzScorer()(transformer, None)
    assert score == AnsatzScorer()(transformer.estimator_, None)


def test_convrfm_scored_in_cross_validation(digits):
    scores = cross_validate(
        ConvRFMClassifier(ConvNTK(depth=1), n_rounds=1, device="cpu"),
        *digits,
        cv=2,
        scoring={"acc": "accuracy", "ansatz": AnsatzScorer()},
    )
    assert (scores["test_ansatz"] <= 1).all()
