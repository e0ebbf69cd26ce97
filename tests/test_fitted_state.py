"""Predictions use fitted attributes alone, and refuse those that were spoilt."""

import copy
import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import fitted_mutations
import numpy as np
import pytest
from fitted_mutations import MACHINES, make_data
from numpy.testing import assert_array_equal

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK

# Another value of every parameter that can be set after a fit; device, dtype and
# n_jobs are those of the computation.
OTHERS = {
    "alpha": 7.0,
    "n_rounds": 3,
    "n_iter_no_change": None,
    "agop_power": 1.0,
    "agop_samples": 2,
    "landmarks": 3,
    "selection": "loo",
    "class_weight": "balanced",
    "image_shape": (7, 6),
    "channels": "first",
    "warm_start": True,
    "checkpoint": "somewhere",
    "random_state": 5,
    "verbose": 1,
    "kernel__depth": 3,
    "kernel__patch_size": 5,
    "kernel__padding": "same",
    "kernel__bias": 2.0,
    "kernel__metric": "whiten",
    "kernel__pool_grid": (1, 2),
    "kernel__mirror": True,
    "kernel__scale": 3.0,
    "kernel__bandwidth": 0.1,
    "features__n_filters": 2,
    "features__patch_size": 6,
    "features__padding": "same",
    "features__filters": "gaussian",
    "features__metric": "identity",
    "features__bias": 3.0,
    "features__activation": "identity",
    "features__threshold": -1.0,
    "features__pool": "mean",
    "features__pool_grid": (3, 1),
    "features__pool_size": 3,
    "features__pool_overlap": 0.5,
    "features__candidates": 2,
    "features__learn": False,
    "features__agop_power": 0.25,
    "features__shrinkage": 5.0,
    "features__normalize": 0.5,
    "features__skip": True,
    "features__mirror": True,
    "features__scale": 3.0,
    # Last, for they take the nested ones away.
    "features": ConvFeatures(3),
    "kernel": ConvNTK(),
}
OF_THE_COMPUTATION = {"device", "dtype", "n_jobs"}


@pytest.fixture(params=MACHINES)
def name(request):
    return request.param


def test_every_parameter_has_another_value():
    names = set(ConvRFMClassifier(ConvNTK(), ConvFeatures()).get_params())
    names.add("kernel__bandwidth")
    assert set(OTHERS) == names - OF_THE_COMPUTATION


def outputs(model, X):
    return [getattr(model, name)(X) for name in ("decision_function", "predict_proba")]


def test_predictions_independent_of_parameters_set_after_the_fit(name):
    X, _ = make_data()
    model = fitted_mutations.make_machine(name)
    expected = outputs(model, X)
    names = [key for key in OTHERS if key in model.get_params()]
    for key in names:
        model.set_params(**{key: OTHERS[key]})
        assert_array_equal(outputs(model, X), expected, err_msg=key)


def test_predictions_independent_of_objects_that_were_passed(name):
    X, y = make_data()
    kernel, features = copy.deepcopy(MACHINES[name])
    model = ConvRFMClassifier(kernel, features, n_rounds=1).fit(X, y)
    expected = outputs(model, X)
    layers = features if isinstance(features, list) else [features]
    for part, prefix in [(kernel, "kernel"), *((f, "features") for f in layers)]:
        for key in () if part is None else part.get_params():
            setattr(part, key, OTHERS[f"{prefix}__{key}"])
    assert_array_equal(outputs(model, X), expected)


@pytest.mark.parametrize("n_outputs", [0, 1, 2])
def test_regressors_refuse_coefficients_of_other_outputs(n_outputs):
    X, y = make_data()
    y = np.column_stack([y] * n_outputs) if n_outputs else y
    model = ConvRFMRegressor(ConvNTK(depth=1), n_rounds=0).fit(X, y)
    for intercept in (np.zeros(3), np.reshape(model.intercept_, (-1, 1))):
        model.intercept_ = intercept
        match = "dual_coef_ has shape .*fit the estimator"
        with pytest.raises(ValueError, match=match):
            model.predict(X)


def test_loaded_transformers_refuse_another_number_of_components():
    X, y = make_data()
    learner = ConvRFMRegressor(ConvNTK(depth=1), n_rounds=1)
    model = PatchAGOPTransformer(learner, output="eigen", n_components=2).fit(X, y)
    more = np.repeat(model.components_, 2, axis=0)
    model.maps_ = [dataclasses.replace(model.maps_[0], components=more)]
    data = pickle.dumps(model)
    with pytest.raises(ValueError, match="output_shape_ is .*fit the estimator"):
        pickle.loads(data)


@pytest.mark.parametrize(
    ("machine", "part", "attribute", "change"),
    [
        ("ntk", "", "dual_coef_", lambda a: a[:, 0]),
        ("ntk", "", "X_fit_", lambda a: a[:, :-1]),
        ("ntk", "", "intercept_", lambda a: a * np.nan),
        ("ntk", "kernel_", "patch_transform_", lambda a: a[:-1, :-1]),
        ("ntk", "kernel_", "image_shape_", lambda a: (a[1], a[0], a[2])),
        ("patch laplace", "kernel_", "bandwidth_", lambda a: -a),
        ("gaussian", "kernel_", "bandwidth_", lambda a: np.nan),
        ("gaussian", "", "X_fit_", lambda a: a[:, :-1]),
        ("linear", "", "coef_", lambda a: a * np.inf),
        ("linear", "features_", "filters_", lambda a: a[:, 1:]),
        ("linear", "features_", "biases_", lambda a: a[1:]),
        ("deep", "features_", "offsets_", lambda a: None),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_spoilt_attributes_are_named(machine, part, attribute, change):
    model = fitted_mutations.make_machine(machine)
    owner = getattr(model, part) if part else model
    owner = owner[0] if isinstance(owner, list) else owner
    setattr(owner, attribute, change(getattr(owner, attribute)))
    with pytest.raises(ValueError, match=attribute.strip("_")):
        model.predict(make_data()[0])


# In a process of their own, so that a crash is a failure and no end of the tests.
@pytest.mark.slow
def test_spoilt_attributes_are_refused_and_never_used(name, environment):
    program = [sys.executable, fitted_mutations.__file__, name]
    environment["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
    done = subprocess.run(
        program, env=environment, capture_output=True, text=True, timeout=300
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1:]}\n{done.stderr}"
    assert len(lines) > 150
    assert [line for line in lines if line.endswith("changed")] == []
    assert sum(" refused " in line for line in lines) > 50
