"""Results do not depend on torch's settings in the caller's code, and keep them."""

import ast
import contextlib
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch

import skconvrfm
from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.display import (
    PatchFiltersDisplay,
    RoundsDisplay,
    SaliencyDisplay,
)
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import (
    ConvNNGP,
    ConvNTK,
    Gaussian,
    Laplace,
    Linear,
    PatchGaussian,
    PatchLaplace,
    patch_agop,
)

# ----------------------------------------------------------------- settings


@contextlib.contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def training_script():
    """Everything at once, as in the midst of a training step."""
    with (
        default_device("meta"),
        default_dtype(torch.float16),
        deterministic(),
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.inference_mode(),
    ):
        yield


SETTINGS = {
    "default device": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype float16": lambda: default_dtype(torch.float16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "deterministic": deterministic,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "all": training_script,
}


def state():
    """Return the settings that a caller may have made."""
    return {
        "device": torch.get_default_device(),
        "dtype": torch.get_default_dtype(),
        "inference": torch.is_inference_mode_enabled(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast cuda": torch.is_autocast_enabled("cuda"),
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "threads": torch.get_num_threads(),
        "random": torch.get_rng_state().tolist(),
    }


# ------------------------------------------------------------------- calls


def make_data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(24, 7, 6, 2)).astype(np.float32)
    return X, X[:, 2, 2, 0] * X[:, 3, 3, 1]


X, Y = make_data()
LABELS = (Y > 0).astype(int)
FEATURES = ConvFeatures(5)
LOCATIONS = ConvFeatures(5, patch_size=3, pool_grid=None)

MODELS = {
    "ntk": ConvRFMClassifier(ConvNTK(depth=2), n_rounds=1),
    "nngp without bias": ConvRFMClassifier(
        ConvNNGP(bias=0, metric="whiten"), n_rounds=1
    ),
    "pooled": ConvRFMRegressor(ConvNTK(depth=1, pool_grid=2), n_rounds=1),
    "patch gaussian": ConvRFMRegressor(PatchGaussian(), n_rounds=1, selection="loo"),
    "patch laplace": ConvRFMClassifier(PatchLaplace(pool_grid=3), n_rounds=1),
    "gaussian": ConvRFMClassifier("gaussian", FEATURES, n_rounds=1),
    "laplace": ConvRFMRegressor("laplace", FEATURES, n_rounds=1, selection="holdout"),
    "linear": ConvRFMClassifier("linear", FEATURES, n_rounds=1),
    "two layers": ConvRFMClassifier("linear", [LOCATIONS, FEATURES], n_rounds=1),
    "deep": ConvRFMClassifier(ConvNTK(depth=1), LOCATIONS, n_rounds=1),
    "whole images": ConvRFMRegressor("linear", n_rounds=0),
}
METHODS = ("decision_function", "predict", "predict_proba")
KERNELS = {
    "ntk": ConvNTK(),
    "nngp": ConvNNGP(padding="same"),
    "pooled": ConvNTK(depth=2, pool_grid=2),
    "patch gaussian": PatchGaussian(),
    "patch laplace": PatchLaplace(pool_grid=2),
    "gaussian": Gaussian(),
    "laplace": Laplace(),
    "linear": Linear(),
}
OUTPUTS = {
    "filters": {},
    "eigen": {"rectification": "halves"},
    "saliency": {},
    "image": {},
    "features": {"estimator": ConvRFMClassifier("linear", FEATURES, n_rounds=0)},
}


def fit_and_predict(name):
    model = MODELS[name]
    model.fit(X, LABELS if isinstance(model, ConvRFMClassifier) else Y)
    results = [
        getattr(model, method)(X) for method in METHODS if hasattr(model, method)
    ]
    return [*results, *learned_arrays(model)]


def learned_arrays(model):
    """Return the fitted arrays, which are no tensors."""
    assert not any(isinstance(a, torch.Tensor) for a in vars(model).values())
    names = ("dual_coef_", "coef_", "patch_transform_", "patch_agop_", "temperature_")
    return [np.array(getattr(model, name)) for name in names if hasattr(model, name)]


def stream():
    model = ConvRFMClassifier("linear", FEATURES, n_rounds=0)
    for part in (slice(0, 12), slice(12, 24)):
        model.partial_fit(X[part], LABELS[part], classes=[0, 1])
    model.refine().partial_fit(X, LABELS)
    return [model.predict_proba(X), *learned_arrays(model)]


def transform(output):
    options = {"estimator": ConvRFMClassifier(n_rounds=1), **OUTPUTS[output]}
    transformer = PatchAGOPTransformer(output=output, n_filters=3, **options)
    return [transformer.fit(X, LABELS).transform(X)]


def call_kernel(name):
    kernel = KERNELS[name]
    results = [kernel(X), kernel(X[:5], X)]
    if hasattr(kernel, "patch_size"):
        results.append(patch_agop(kernel, X, Y, sample_weight=np.arange(24)))
    return results


def draw():
    import matplotlib.pyplot as plt

    model = MODELS["ntk"].fit(X, LABELS)
    display = SaliencyDisplay.from_estimator(model, X, n_images=1)
    filters = PatchFiltersDisplay.from_estimator(model)
    spectrum = RoundsDisplay.from_estimator(model).spectrum
    plt.close("all")
    return [display.saliency, display.projections, filters.eigenvectors, spectrum]


CALLS = {
    **{f"fit {name}": lambda name=name: fit_and_predict(name) for name in MODELS},
    **{f"kernel {name}": lambda name=name: call_kernel(name) for name in KERNELS},
    **{f"output {name}": lambda name=name: transform(name) for name in OUTPUTS},
    "partial_fit and refine": stream,
    "displays": draw,
}


def check_call(call, setting):
    """Compare results under a setting with those without, and the settings after."""
    expected = call()
    with setting():
        before = state()
        results = call()
        assert state() == before
    for actual, wanted in zip(results, expected, strict=True):
        assert actual.dtype == wanted.dtype
        assert actual.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", CALLS)
def test_results_do_not_depend_on_settings_of_torch(name):
    if name == "displays":
        pytest.importorskip("matplotlib").use("agg")
    check_call(CALLS[name], training_script)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["fit ntk", "fit gaussian", "partial_fit and refine"])
def test_results_do_not_depend_on_a_single_setting(name, setting):
    check_call(CALLS[name], SETTINGS[setting])


@pytest.mark.parametrize("name", ["ntk", "linear"])
def test_compiled_code_does_not_depend_on_settings_of_torch(name, compiled_tiles):
    check_call(CALLS[f"fit {name}"], training_script)


@pytest.mark.parametrize("name", ["ntk", "linear"])
def test_threads_do_not_depend_on_settings_of_torch(name, array_tiles, set_threads):
    set_threads(2)
    check_call(CALLS[f"fit {name}"], training_script)
    with joblib.parallel_config("threading", n_jobs=2):
        check_call(CALLS[f"fit {name}"], training_script)


def test_settings_are_kept_by_a_fit_that_fails():
    with training_script():
        before = state()
        with pytest.raises(ValueError, match="NaN"):
            ConvRFMClassifier().fit(np.full((4, 5, 5), np.nan), [0, 1, 0, 1])
        assert state() == before


def test_model_of_one_setting_predicts_in_another():
    with training_script():
        model = MODELS["linear"].fit(X, LABELS)
        expected = model.decision_function(X)
    assert model.decision_function(X).tobytes() == expected.tobytes()
    model.partial_fit(X, LABELS)


# ------------------------------------------------------------------ sources

FACTORIES = {"tensor", "as_tensor", "asarray", "scalar_tensor"}
FROM_NOTHING = {"empty", "zeros", "ones", "full", "eye", "linspace", "rand", "randn"}
OF_INTEGERS = {"arange", "triu_indices", "tril_indices", "randint", "randperm"}
PACKAGE = Path(skconvrfm.__file__).parent


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem
)
def test_every_tensor_names_its_device_and_dtype(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        function = getattr(node, "func", None)
        owner = getattr(getattr(function, "value", None), "id", None)
        name = getattr(function, "attr", None)
        if owner != "torch" or name not in FACTORIES | FROM_NOTHING | OF_INTEGERS:
            continue
        named = {keyword.arg for keyword in node.keywords}
        wanted = {"device", "dtype"} if name in FROM_NOTHING else {"device"}
        where = f"{path.name}:{node.lineno}: torch.{name}"
        assert None in named or wanted <= named, where
