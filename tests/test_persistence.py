"""Saved models: skops and joblib files, copies, other processes and machines."""

import copy
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import persistence_models
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from persistence_models import make_data, make_models, outputs
from same import assert_same
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skconvrfm import AnsatzScorer, ConvRFMClassifier, _input
from skconvrfm._input import fitted_attributes
from skconvrfm.kernels import ConvNTK

sio = pytest.importorskip("skops.io")

NAMES = [name for name, _ in persistence_models.models()]
# All classes that files of fitted models name.
CLASSES = {
    "skconvrfm.compute.images.Layer",
    "skconvrfm.compute.sampling.Lineup",
    "skconvrfm.estimators.ConvRFMClassifier",
    "skconvrfm.estimators.ConvRFMRegressor",
    "skconvrfm.features.layer.ConvFeatures",
    "skconvrfm.features.maps.FilterLayer",
    "skconvrfm.kernels.convolutional.ConvNNGP",
    "skconvrfm.kernels.convolutional.ConvNTK",
    "skconvrfm.kernels.patch.PatchGaussian",
    "skconvrfm.kernels.patch.PatchLaplace",
    "skconvrfm.kernels.whole.Gaussian",
    "skconvrfm.kernels.whole.Laplace",
    "skconvrfm.kernels.whole.Linear",
    "skconvrfm.learning.covariance.Covariance",
    "skconvrfm.learning.primal.Moments",
    "skconvrfm.learning.stream.RowSample",
    "skconvrfm.learning.stream.Stream",
    "skconvrfm.learning.training_set.Observations",
    "skconvrfm.learning.training_set.TrainingSet",
    "skconvrfm.transformer.PatchAGOPTransformer",
}


@pytest.fixture(scope="module")
def models():
    return dict(make_models())


@pytest.fixture(scope="module")
def images():
    return make_data()[3]


@pytest.fixture(params=NAMES)
def model(request, models):
    return models[request.param]


def through_skops(model):
    """Save and load a model, and trust nothing but the classes of the package."""
    return sio.loads(sio.dumps(model), trusted=sorted(CLASSES))


def through_joblib(model, folder):
    joblib.dump(model, folder / "model.joblib")
    return joblib.load(folder / "model.joblib")


# ------------------------------------------------------------------ what is kept


def test_skops_files_name_only_classes_of_the_package(model):
    assert set(sio.get_untrusted_types(data=sio.dumps(model))) <= CLASSES


def test_every_listed_class_is_in_a_file(models):
    found = set()
    for model in models.values():
        found |= set(sio.get_untrusted_types(data=sio.dumps(model)))
    assert found == CLASSES


def test_skops_refuses_what_is_not_trusted(models):
    data = sio.dumps(models["ntk"])
    with pytest.raises(Exception, match="ConvRFMClassifier") as caught:
        sio.loads(data, trusted=[])
    assert type(caught.value).__name__ == "UntrustedTypesFoundException"


def test_saved_models_predict_the_same_bits(model, images, tmp_path):
    for loaded in (
        through_skops(model),
        through_joblib(model, tmp_path),
        copy.copy(model),
        copy.deepcopy(model),
    ):
        assert fitted_attributes(loaded).keys() == fitted_attributes(model).keys()
        assert_array_equal(outputs(loaded, images), outputs(model, images))


def test_saving_leaves_the_model_unchanged(model):
    before = dict(vars(model))
    sio.dumps(model)
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is before[name] for name in before)


@pytest.mark.parametrize("other", [1, 99, -1, math.nan, "3", None])
def test_files_of_another_format_are_refused(models, monkeypatch, tmp_path, other):
    model = models["linear"]
    with monkeypatch.context() as context:
        context.setattr(_input, "_FORMAT", other)
        data = sio.dumps(model)
        joblib.dump(model, tmp_path / "model.joblib")
    match = f"ConvRFMClassifier was saved in format {other} .*fit and save"
    with pytest.raises(ValueError, match=match):
        joblib.load(tmp_path / "model.joblib")
    with pytest.raises(ValueError, match=match):
        sio.loads(data, trusted=sorted(CLASSES))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dual_coef_", lambda coef: coef[:-1]),
        ("X_fit_", lambda rows: rows[:, 1:]),
        ("intercept_", lambda intercept: intercept * np.nan),
        ("temperature_", lambda temperature: -temperature),
        ("classes_", lambda classes: classes[:1]),
        ("image_shape_", lambda shape: (*shape[:2], 9)),
        ("kernel_", lambda kernel: None),
        ("multilabel_", None),
        ("X_fit_", None),
    ],
)
def test_files_with_inconsistent_attributes_are_refused_when_loaded(
    models, name, change
):
    model = copy.copy(models["ntk"])
    if change is None:
        delattr(model, name)
    else:
        setattr(model, name, change(getattr(model, name)))
    with pytest.raises(ValueError, match=r"fit .* again"):
        pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("covariance_", None),
        ("noise_variance_", np.full(2, -1.0)),
        ("noise_variance_", np.ones(3)),
        ("dual_coef_", np.ones((15, 2))),
    ],
)
def test_files_with_an_inconsistent_covariance_are_refused(models, name, value):
    model = copy.copy(models["std"])
    setattr(model, name, value)
    with pytest.raises(ValueError, match=r"fit .* again"):
        pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("roots", lambda roots: roots[1:]),
        ("roots", lambda roots: roots * np.nan),
        ("offsets", lambda offsets: offsets[1:]),
        ("signs", None),
        ("prior", lambda prior: -prior),
        ("base", lambda base: np.nan),
    ],
)
def test_files_with_a_changed_covariance_are_refused(models, name, change):
    model = copy.deepcopy(models["std"])
    parts = vars(model.covariance_)
    parts[name] = None if change is None else change(parts[name])
    with pytest.raises(ValueError, match=r"fit .* again"):
        pickle.loads(pickle.dumps(model))


def test_unfitted_estimators_are_saved():
    model = ConvRFMClassifier(ConvNTK(depth=2), class_weight={0: 2.0, 1: 1.0})
    loaded = through_skops(model)
    assert repr(loaded) == repr(model)
    assert not fitted_attributes(loaded)


# ------------------------------------------------------------- going on with them


def test_loaded_stream_takes_more_images(models):
    X, labels, _, X_new = make_data()
    model = models["streaming"]
    loaded = through_skops(model).partial_fit(X[:4], labels[:4])
    model = copy.deepcopy(model).partial_fit(X[:4], labels[:4])
    assert_array_equal(outputs(loaded, X_new), outputs(model, X_new))
    assert_same(loaded.stream_, model.stream_)


def test_loaded_features_are_refined_and_fitted_further(models):
    X, labels, _, X_new = make_data()
    model = models["streaming"]
    both = through_skops(model), copy.deepcopy(model)
    for each in both:
        each.refine().set_params(warm_start=True).fit(X, labels)
    assert_array_equal(*(outputs(each, X_new) for each in both))


def test_pipelines_are_saved(images):
    X, labels, _, _ = make_data()
    steps = StandardScaler(), ConvRFMClassifier(ConvNTK(depth=1), n_rounds=1)
    steps[-1].set_params(image_shape=X.shape[1:])
    pipeline = make_pipeline(*steps).fit(X.reshape(16, -1), labels)
    data = sio.dumps(pipeline)
    trusted = sio.get_untrusted_types(data=data)
    assert set(trusted) <= CLASSES
    flat = images.reshape(len(images), -1)
    loaded = sio.loads(data, trusted=trusted)
    assert_array_equal(outputs(loaded, flat), outputs(pipeline, flat))


def test_ansatz_scorers_are_saved(models):
    scorer = AnsatzScorer(aggregate="min", agop_power=0.5)
    data = sio.dumps(scorer)
    [name] = sio.get_untrusted_types(data=data)
    assert name.startswith("skconvrfm.ansatz.")
    loaded = sio.loads(data, trusted=[name])
    assert loaded.get_params() == scorer.get_params()
    model = models["deep"]
    assert loaded(through_skops(model), None) == scorer(model, None)


# ---------------------------------------------------- other processes and machines

PROGRAM = """
import joblib, numpy as np, skops.io
from persistence_models import outputs

images = np.load("images.npy")
trusted = skops.io.get_untrusted_types(file="model.skops")
model = skops.io.load("model.skops", trusted=trusted)
np.save("skops.npy", outputs(model, images))
np.save("joblib.npy", outputs(joblib.load("model.joblib"), images))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ntk", "two layers"])
def test_models_predict_the_same_in_a_process_without_cuda(
    models, images, environment, tmp_path, name
):
    model = models[name]
    sio.dump(model, tmp_path / "model.skops")
    joblib.dump(model, tmp_path / "model.joblib")
    np.save(tmp_path / "images.npy", images)
    environment["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
    subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    for way in ("skops", "joblib"):
        result = np.load(tmp_path / f"{way}.npy")
        assert_allclose(result, outputs(model, images), rtol=0, atol=1e-12)


def test_model_fitted_for_cuda_says_how_to_predict_without_it(
    models, images, monkeypatch
):
    model = copy.deepcopy(models["ntk"])
    expected = outputs(model.set_params(device="cpu"), images)
    loaded = through_skops(model.set_params(device="cuda"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda'.*use device='auto' or 'cpu'"):
        outputs(loaded, images)
    assert_array_equal(outputs(loaded.set_params(device="cpu"), images), expected)
