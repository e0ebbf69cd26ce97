"""Results do not depend on torch's settings in the caller's code, and keep them."""

import ast
import contextlib
import functools
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from persistence_models import make_data, models
from sklearn.base import clone

import skconvrfm
from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.display import (
    PatchFiltersDisplay,
    RoundsDisplay,
    SaliencyDisplay,
)
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


X, LABELS, TARGETS, _ = make_data()
X, Y = X.astype(np.float32), TARGETS[:, 0]  # float32, which autocast would round
MODELS = {n: m for n, m in models() if not n.startswith("streaming")}
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
OUTPUTS = ("eigen", "saliency", "image")


def fit_and_predict(name):
    model = clone(MODELS[name])
    model.fit(X, Y if isinstance(model, ConvRFMRegressor) else LABELS)
    methods = ("decision_function", "predict_proba", "predict", "transform")
    results = [getattr(model, m)(X) for m in methods if hasattr(model, m)]
    learned = getattr(model, "estimator_", model)
    return [np.asarray(r) for r in (*results, *learned_arrays(learned))]


def learned_arrays(model):
    """Return the fitted arrays, which are no tensors."""
    assert not any(isinstance(a, torch.Tensor) for a in vars(model).values())
    names = ("dual_coef_", "coef_", "patch_transform_", "patch_agop_", "temperature_")
    return [np.array(getattr(model, name)) for name in names if hasattr(model, name)]


def stream():
    model = clone(MODELS["linear"]).set_params(selection="gcv", n_rounds=0)
    for part in (slice(0, 8), slice(8, 16)):
        model.partial_fit(X[part], LABELS[part], classes=["even", "odd"])
    model.refine().partial_fit(X, LABELS)
    return [model.predict_proba(X), *learned_arrays(model)]


def transform(output):
    transformer = PatchAGOPTransformer(MODELS["ntk"], output=output, n_filters=3)
    return [transformer.fit(X, LABELS).transform(X)]


def call_kernel(name):
    kernel = KERNELS[name]
    results = [kernel(X), kernel(X[:5], X)]
    if hasattr(kernel, "patch_size"):
        results.append(patch_agop(kernel, X, Y, sample_weight=np.arange(16)))
    return results


def draw():
    import matplotlib.pyplot as plt

    model = clone(MODELS["ntk"]).fit(X, LABELS)
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


@functools.cache
def plain(name):
    """Return the results of a call without settings."""
    return CALLS[name]()


def check_call(name, setting, expected=None):
    """Compare results under a setting with those without, and the settings after."""
    expected = plain(name) if expected is None else expected
    with setting():
        before = state()
        results = CALLS[name]()
        assert state() == before
    for actual, wanted in zip(results, expected, strict=True):
        assert actual.dtype == wanted.dtype
        assert actual.tobytes() == wanted.tobytes()


@pytest.mark.usefixtures("array_tiles")
@pytest.mark.parametrize("name", CALLS)
def test_results_do_not_depend_on_settings_of_torch(name):
    if name == "displays":
        pytest.importorskip("matplotlib").use("agg")
    check_call(name, training_script)


@pytest.mark.usefixtures("array_tiles")
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    "name", ["fit ntk", "fit two layers", "partial_fit and refine"]
)
def test_results_do_not_depend_on_a_single_setting(name, setting):
    check_call(name, SETTINGS[setting])


@pytest.mark.parametrize("name", ["fit ntk", "fit linear"])
def test_compiled_code_does_not_depend_on_settings_of_torch(name, compiled_tiles):
    check_call(name, training_script, CALLS[name]())


@pytest.mark.parametrize("name", ["fit ntk", "fit linear"])
def test_threads_do_not_depend_on_settings_of_torch(name, array_tiles, set_threads):
    set_threads(2)
    check_call(name, training_script, CALLS[name]())
    with joblib.parallel_config("threading", n_jobs=2):
        check_call(name, training_script, CALLS[name]())


def test_settings_are_kept_by_a_fit_that_fails():
    with training_script():
        before = state()
        with pytest.raises(ValueError, match="NaN"):
            ConvRFMClassifier().fit(np.full((4, 5, 5), np.nan), [0, 1, 0, 1])
        assert state() == before


def test_model_of_one_setting_predicts_in_another():
    with training_script():
        model = clone(MODELS["linear"]).fit(X, LABELS)
        expected = model.decision_function(X)
    assert model.decision_function(X).tobytes() == expected.tobytes()
    model.partial_fit(X, LABELS)


# ------------------------------------------------------------------ sources

FACTORIES = {"tensor", "as_tensor", "asarray", "scalar_tensor"}
FROM_NOTHING = {"empty", "zeros", "ones", "full", "eye", "linspace", "rand", "randn"}
OF_INTEGERS = {"arange", "triu_indices", "tril_indices", "randint", "randperm"}
PACKAGE = Path(skconvrfm.__file__).parent


def calls_of_torch():
    """Yield place, name and keywords of all calls of functions of torch."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            function = getattr(node, "func", None)
            if getattr(getattr(function, "value", None), "id", None) == "torch":
                keywords = {keyword.arg for keyword in node.keywords}
                yield f"{path.name}:{node.lineno}", function.attr, keywords


def test_every_tensor_names_its_device_and_dtype():
    unsaid = []
    for place, name, keywords in calls_of_torch():
        if name in FACTORIES | FROM_NOTHING | OF_INTEGERS:
            wanted = {"device", "dtype"} if name in FROM_NOTHING else {"device"}
            if None not in keywords and not wanted <= keywords:
                unsaid.append((place, name))
    assert unsaid == []
