"""Saved models: without code, in another process, on another machine, years later."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from models.make import FOLDER, make_data, make_models, said
from numpy.testing import assert_allclose, assert_array_equal
from same import assert_same
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Bunch

from skconvrfm import AnsatzScorer, ConvRFMClassifier, base
from skconvrfm.base import fitted_attributes

sio = pytest.importorskip("skops.io")

NAMES = [name for name, _ in make_models(*make_data()[:3])]
PLAIN = (np.ndarray, np.generic, str, int, float, tuple, dict)


@pytest.fixture(scope="module")
def models():
    return dict(make_models(*make_data()[:3]))


@pytest.fixture(scope="module")
def images():
    return make_data()[3]


@pytest.fixture(params=NAMES)
def model(request, models):
    return models[request.param]


def through_skops(model):
    """Save and load a model, and trust nothing but its own class."""
    kind = type(model)
    return sio.loads(
        sio.dumps(model), trusted=[f"{kind.__module__}.{kind.__qualname__}"]
    )


def through_joblib(model, folder):
    joblib.dump(model, folder / "model.joblib")
    return joblib.load(folder / "model.joblib")


# ------------------------------------------------------------------ what is kept


def test_a_file_names_no_class_but_that_of_the_estimator(model):
    kind = type(model)
    untrusted = sio.get_untrusted_types(data=sio.dumps(model))
    assert untrusted == [f"{kind.__module__}.{kind.__qualname__}"]


def test_nothing_is_loaded_that_is_not_trusted(models):
    data = sio.dumps(models["exact-classifier"])
    with pytest.raises(Exception, match="ConvRFMClassifier") as caught:
        sio.loads(data, trusted=[])
    assert type(caught.value).__name__ == "UntrustedTypesFoundException"


def test_saved_attributes_are_arrays_numbers_and_text(model):
    def check(value):
        assert type(value) in (bool, type(None), list) or isinstance(value, PLAIN)
        assert not isinstance(value, Bunch)
        if isinstance(value, np.ndarray):
            assert value.dtype.kind in "biufU"
        elif isinstance(value, list | tuple | dict):
            for item in value.values() if isinstance(value, dict) else value:
                check(item)

    check(model.__getstate__())


def test_attributes_are_the_same_after_a_file(model, images, tmp_path):
    for loaded in (
        through_skops(model),
        through_joblib(model, tmp_path),
        copy.copy(model),
        copy.deepcopy(model),
    ):
        assert_same(vars(loaded), vars(model))
        assert_array_equal(said(loaded, images), said(model, images))


def test_saving_leaves_the_model_as_it_is(model):
    before = dict(vars(model))
    sio.dumps(model)
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is before[name] for name in before)


def test_an_estimator_that_was_not_fitted_is_saved_as_well():
    model = ConvRFMClassifier(depth=2, class_weight={0: 2.0, 1: 1.0})
    loaded = through_skops(model)
    assert loaded.get_params() == model.get_params()
    assert not fitted_attributes(loaded)


# ------------------------------------------------------------- going on with them


def test_a_loaded_stream_goes_on_where_it_was(models):
    X, labels, _, X_new = make_data()
    model = models["streaming-classifier"]
    loaded = through_skops(model).partial_fit(X[:4], labels[:4])
    model = copy.deepcopy(model).partial_fit(X[:4], labels[:4])
    assert_array_equal(said(loaded, X_new), said(model, X_new))


def test_loaded_features_are_refined_and_fitted_further(models):
    X, labels, _, X_new = make_data()
    model = models["streaming-classifier"]
    both = through_skops(model), copy.deepcopy(model)
    for each in both:
        each.refine().set_params(warm_start=True).fit(X, labels)
    assert_array_equal(*(said(each, X_new) for each in both))


def test_a_pipeline_is_saved_with_scikit_learns_own_steps(images):
    X, labels, _, _ = make_data()
    steps = StandardScaler(), ConvRFMClassifier(depth=1, n_rounds=1)
    pipeline = make_pipeline(*steps).fit(X.reshape(16, -1), labels)
    data = sio.dumps(pipeline)
    trusted = sio.get_untrusted_types(data=data)
    assert trusted == ["skconvrfm.estimators.ConvRFMClassifier"]
    flat = images.reshape(len(images), -1)
    loaded = sio.loads(data, trusted=trusted)
    assert_array_equal(said(loaded, flat), said(pipeline, flat))


def test_a_scorer_scores_the_same_after_a_file(models):
    scorer = AnsatzScorer(aggregate="min", agop_power=0.5)
    loaded = sio.loads(sio.dumps(scorer), trusted=["skconvrfm.ansatz.AnsatzScorer"])
    assert loaded.get_params() == scorer.get_params()
    model = models["deep-classifier"]
    assert loaded(through_skops(model), None) == scorer(model, None)


# ---------------------------------------------------- other processes and machines

PROGRAM = """
import joblib, numpy as np, skops.io
from models.make import said

images = np.load("images.npy")
trusted = skops.io.get_untrusted_types(file="model.skops")
model = skops.io.load("model.skops", trusted=trusted)
np.save("skops.npy", said(model, images))
np.save("joblib.npy", said(joblib.load("model.joblib"), images))
"""


@pytest.mark.thorough
def test_a_model_says_the_same_in_a_process_without_cuda(
    models, images, environment, tmp_path
):
    model = models["streaming-classifier"]
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
        assert_allclose(result, said(model, images), rtol=0, atol=1e-12)


def test_a_model_for_cuda_loads_without_it_and_says_how_to_go_on(
    models, images, monkeypatch
):
    model = copy.deepcopy(models["exact-classifier"])
    expected = said(model.set_params(device="cpu"), images)
    loaded = through_skops(model.set_params(device="cuda"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda'.*use device='auto' or 'cpu'"):
        said(loaded, images)
    assert_array_equal(said(loaded.set_params(device="cpu"), images), expected)


def test_a_later_format_is_refused(models, monkeypatch, tmp_path):
    model = models["transformer"]
    with monkeypatch.context() as later:
        later.setattr(base, "STATE_FORMAT", base.STATE_FORMAT + 1)
        data = sio.dumps(model)
        joblib.dump(model, tmp_path / "model.joblib")
    with pytest.raises(ValueError, match="later version of skconvrfm.*update"):
        joblib.load(tmp_path / "model.joblib")
    with pytest.raises(ValueError, match="later version of skconvrfm.*update"):
        sio.loads(data, trusted=sio.get_untrusted_types(data=data))


# ------------------------------------------------------------------ kept models


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", ["skops", "joblib"])
def test_a_model_of_a_former_version_says_what_it_said(name, suffix):
    path = FOLDER / f"{name}.{suffix}"
    if suffix == "skops":
        trusted = sio.get_untrusted_types(file=path)
        assert len(trusted) == 1 and trusted[0].startswith("skconvrfm.")
        model = sio.load(path, trusted=trusted)
    else:
        model = joblib.load(path)
    with np.load(FOLDER / "expected.npz") as expected:
        assert_allclose(said(model, expected["X"]), expected[name], rtol=0, atol=1e-10)
    assert clone(model).get_params().keys() == model.get_params().keys()


def test_the_kept_models_are_those_that_the_script_makes():
    files = {path.stem for path in FOLDER.glob("*.skops")}
    assert files == {path.stem for path in FOLDER.glob("*.joblib")} == set(NAMES)
