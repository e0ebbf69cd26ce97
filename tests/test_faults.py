"""Interruptions, lack of memory and full disks leave estimators unchanged.

See also ``test_tiles.py`` (memory of tiles), ``test_checkpoint.py`` (checkpoints) and
``test_bad_input.py``.
"""

import contextlib
import copy
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from doubles import Callback, failing
from joblib import parallel_config
from joblib.externals.loky import get_reusable_executor
from numpy.testing import assert_allclose
from same import assert_same
from sklearn import config_context
from sklearn.base import clone

from skconvrfm import (
    ConvRFMClassifier,
    ConvRFMRegressor,
    PatchAGOPTransformer,
    _base,
    _command_line,
    _fitting,
    transformer,
)
from skconvrfm.__main__ import main
from skconvrfm._input import fitted_attributes
from skconvrfm.ansatz import command
from skconvrfm.commands import demo
from skconvrfm.features import ConvFeatures, filters, maps
from skconvrfm.kernels import ConvNTK
from skconvrfm.kernels.convolutional import ConvolutionalKernel
from skconvrfm.learning import (
    calibration,
    feature_sums,
    models,
    primal,
    ridge,
    rounds,
    stream,
)

ROOT = Path(__file__).resolve().parents[1]
DEPTH_2 = ConvNTK(depth=2)
LAYER = ConvFeatures(8, patch_size=3, pool_grid=2)
LAST = {"n_rounds": 2, "selection": "last"}
MODELS = {
    "kernel": ConvRFMClassifier(DEPTH_2, **LAST),
    "deep": ConvRFMClassifier(
        ConvNTK(depth=1), ConvFeatures(8, patch_size=3, pool_grid=None), **LAST
    ),
    "linear": ConvRFMClassifier("linear", LAYER, n_rounds=2),
    "gaussian": ConvRFMClassifier("gaussian", LAYER, n_rounds=2),
    "regressor": ConvRFMRegressor(DEPTH_2, **LAST),
    "transformer": PatchAGOPTransformer(
        ConvRFMClassifier(ConvNTK(depth=1), n_rounds=1), n_filters=8
    ),
}


@pytest.fixture
def data(rng):
    X, y = rng.normal(size=(40, 7, 7)), np.arange(40) % 2
    X[y == 1, 2, 3] += 2
    return X, y


@pytest.fixture(params=[False, True], ids=["new", "fitted"])
def fitted(request):
    return request.param


@pytest.fixture(params=MODELS)
def model(request, data, fitted):
    """Return a model that was never fitted, or one that was, to other images."""
    X, y = data
    model = clone(MODELS[request.param])
    return model.fit(X[::-1, 1:, 1:], y) if fitted else model


@pytest.fixture
def two_threads(set_threads):
    """Torch has two threads, and has them after whatever goes wrong."""
    set_threads(2)
    yield
    assert torch.get_num_threads() == 2


@contextlib.contextmanager
def unchanged(estimator):
    """Fail if the estimator, or the number of torch's threads, is not what it was."""
    before, n_threads = copy.deepcopy(vars(estimator)), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
        assert_same(vars(estimator), before)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(n_threads)


# --------------------------------------------------------------- interruptions


STEPS = {
    "kernel": (models, "kernel_matrix"),
    "ridge": (ridge.RidgePath, "solve"),
    "agop": (models, "kernel_agop"),
    "transform": (rounds, "transform_from_agop"),
    "between rounds": (rounds, "_record"),
    "filters": (filters, "draw_patches"),
    "features": (models, "compute_features"),
    "feature ridge": (feature_sums.Design, "moments"),
    "feature agop": (models, "linear_agop"),
    "layer agops": (models, "layer_agops"),
    "temperature": (calibration, "brentq"),
    "eigenvectors": (transformer, "leading_eigenvectors"),
}
OF_MODELS = {
    "kernel": ["kernel", "ridge", "agop", "transform", "between rounds", "temperature"],
    "deep": ["kernel", "ridge", "agop", "transform", "between rounds"],
    "linear": ["filters", "transform", "feature agop", "between rounds"],
    "gaussian": ["features", "ridge", "layer agops", "between rounds"],
    "regressor": ["kernel", "ridge", "agop", "transform", "between rounds"],
    "transformer": ["kernel", "agop", "between rounds", "eigenvectors"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "step"),
    [(name, step) for name, steps in OF_MODELS.items() for step in steps],
    indirect=["model"],
)
@pytest.mark.parametrize("at", [0, 1])
def test_interrupted_fit_leaves_estimator_unchanged(model, data, step, at, monkeypatch):
    place, name = STEPS[step]
    interrupt = failing(KeyboardInterrupt(), getattr(place, name), at)
    once = step in ("temperature", "eigenvectors", "filters")
    if place is ridge.RidgePath:
        monkeypatch.setattr(place, name, lambda *args: interrupt(*args))
    else:
        monkeypatch.setattr(place, name, interrupt)
    if once and at:
        pytest.skip("is called once a fit")
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        model.fit(*data)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (filters, "patch_moments"),
        (stream.RowSample, "of"),
        (_fitting.Stream, "of"),
        (primal.Moments, "__add__"),
        (models.MapModel, "ridge_path"),
    ],
    ids=["filters", "sample", "sums", "addition", "ridge"],
)
def test_interrupted_partial_fit_leaves_sums_unchanged(
    data, fitted, place, name, monkeypatch
):
    X, y = data
    model = clone(MODELS["linear"])
    if fitted:
        if name == "patch_moments":
            pytest.skip("there are filters already")
        model.partial_fit(X[:20], y[:20])
    elif name == "__add__":
        pytest.skip("there is nothing to add to")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context, unchanged(model):
        context.setattr(place, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.partial_fit(X[20:], y[20:])
    if fitted:
        again = clone(model).partial_fit(X[:20], y[:20]).partial_fit(X[20:], y[20:])
        model.partial_fit(X[20:], y[20:])
        assert_same(model.stream_.moments, again.stream_.moments)


def test_interrupted_refine_keeps_metric(data, monkeypatch):
    model = clone(MODELS["linear"]).partial_fit(*data)
    interrupt = failing(KeyboardInterrupt())
    monkeypatch.setattr(_base, "transforms_from", interrupt)
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        model.refine()


@contextlib.contextmanager
def interruption(seconds):
    """Interrupt what is done after a time, as Ctrl-C would, if it still goes on.

    Python drops an interrupt that arrives in a finalizer, and goes on.
    """

    def interrupt(*_):
        raise KeyboardInterrupt

    def report(unraisable):
        if unraisable.exc_type is not KeyboardInterrupt:
            former(unraisable)

    before, former = signal.signal(signal.SIGALRM, interrupt), sys.unraisablehook
    sys.unraisablehook = report
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sys.unraisablehook = former


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers of signals")
@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize("name", ["kernel", "linear", "gaussian"])
def test_interruptions_at_any_moment_leave_estimator_unchanged(
    data, name, n_jobs, two_threads
):
    X, y = data
    model = clone(MODELS[name]).set_params(n_jobs=n_jobs)
    n_interrupted = 0

    def fit(model):
        # Joblib's threads of a context that was interrupted may not run again.
        with parallel_config("threading"):
            return model.fit(X, y)

    expected = fit(clone(model)).decision_function(X)
    start = time.perf_counter()
    fit(clone(model))
    length = time.perf_counter() - start
    model.fit(X[:20], y[:20])
    for share in np.linspace(0.05, 0.95, 10):
        former = copy.deepcopy(model)
        try:
            with interruption(share * length):
                fit(model)
            model = former  # faster than before: once more
            continue
        except KeyboardInterrupt:
            pass
        except ValueError as error:  # joblib's, of threads that were interrupted
            assert str(error) == "Pool not running"
        n_interrupted += 1
        assert_same(vars(model), vars(former))
        assert torch.get_num_threads() == 2
    result = fit(model).decision_function(X)
    assert n_interrupted
    assert_allclose(result, expected, atol=1e-9)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers of signals")
def test_interruption_of_worker_processes_leaves_estimator_unchanged(data):
    X, y = data
    large = np.random.default_rng(1).normal(size=(300, 16, 16))
    model = ConvRFMClassifier(n_rounds=2, n_jobs=2).fit(X, y)
    try:
        with parallel_config("loky", inner_max_num_threads=1), unchanged(model):
            clone(model).fit(X, y)  # workers are there
            with pytest.raises(KeyboardInterrupt), interruption(0.5):
                model.fit(large, np.arange(300) % 2)
    finally:
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


# ------------------------------------------------------------------- callbacks


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["setup", "on_fit_task_begin", "on_fit_task_end", "teardown"]
)
def test_error_of_callback_is_raised_and_changes_nothing(model, fitted, data, moment):
    pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 has them")
    if isinstance(model, PatchAGOPTransformer):
        pytest.skip("its learner has the rounds")
    error = OSError("the callback's own")

    class Failing(Callback):
        def __init__(self):
            setattr(self, moment, failing(error))

    model.set_callbacks(Failing())
    before = {name: copy.deepcopy(x) for name, x in fitted_attributes(model).items()}
    with pytest.raises(OSError) as caught:
        model.fit(*data)
    assert caught.value is error
    assert_same(fitted_attributes(model), before)


# ---------------------------------------------------------------------- memory

ERRORS = {
    "numpy": MemoryError("Unable to allocate 3.00 GiB for an array"),
    "torch": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: "
        "can't allocate memory: you tried to allocate 99 bytes."
    ),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
}
# Functions that prepare a block of images, for kernels and for feature layers.
BLOCKS = {
    "kernel": (ConvolutionalKernel, "prepare_block"),
    "linear": (maps, "compute_maps"),
    "gaussian": (maps, "compute_maps"),
}


@pytest.mark.parametrize(
    ("error", "n_jobs"), [*((error, None) for error in ERRORS), ("torch", 2)]
)
@pytest.mark.parametrize("name", BLOCKS)
def test_fit_retried_with_less_memory_gives_same_result(
    data, name, error, n_jobs, monkeypatch
):
    X, y = data
    model = clone(MODELS[name]).set_params(n_jobs=n_jobs)
    expected = clone(model).fit(X, y).decision_function(X)
    place, function = BLOCKS[name]
    once = failing(ERRORS[error], getattr(place, function), at=2)
    monkeypatch.setattr(place, function, lambda *args: once(*args))
    with parallel_config("threading"), pytest.warns(RuntimeWarning, match="half"):
        model.fit(X, y)
    assert_allclose(model.decision_function(X), expected, atol=1e-8)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", BLOCKS)
def test_fit_without_enough_memory_is_memory_error(
    data, fitted, name, error, monkeypatch
):
    X, y = data
    model = clone(MODELS[name])
    if fitted:
        model.fit(X[:20], y[:20])

    def fail(*_):
        raise ERRORS[error]

    monkeypatch.setattr(*BLOCKS[name], fail)
    with unchanged(model), config_context(working_memory=4):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            with pytest.raises(MemoryError, match="working_memory") as caught:
                model.fit(X, y)
    assert str(ERRORS[error]) in str(caught.value)


@pytest.mark.gpu
def test_gpu_with_little_memory_takes_smaller_tiles(rng):
    X = rng.normal(size=(200, 16, 16, 3))
    expected = ConvNTK()(X, device="cpu")
    torch.cuda.empty_cache()
    room = 2**27 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(room)
    try:
        with pytest.warns(RuntimeWarning, match="out of memory: going on with tiles"):
            actual = ConvNTK()(X, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


@pytest.mark.parametrize("error", ["torch", "cuda"])
@pytest.mark.parametrize("step", ["BandForm", "inverse_factor"])
def test_memory_error_of_ridge_names_rows(data, error, step, monkeypatch):
    model = clone(MODELS["kernel"])
    monkeypatch.setattr(ridge, step, failing(ERRORS[error]))
    with unchanged(model), pytest.raises(MemoryError, match="working_memory.*rows"):
        model.fit(*data)


# ------------------------------------------------------------------------- GPU


def test_missing_gpu_changes_nothing(model, data, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    learner = "estimator__" if isinstance(model, PatchAGOPTransformer) else ""
    model.set_params(**{f"{learner}device": "cuda"})
    with unchanged(model), pytest.raises(ValueError, match="device='cuda'.*'cpu'"):
        model.fit(*data)


@pytest.mark.parametrize("step", ["kernel", "agop"])
def test_failing_gpu_is_named_and_changes_nothing(data, fitted, step, monkeypatch):
    X, y = data
    model = clone(MODELS["kernel"])
    if fitted:
        model.fit(X[:20], y[:20])
    error = RuntimeError(
        "CUDA error: an illegal memory access was encountered\nSearch for it ..."
    )
    place, name = STEPS[step]
    monkeypatch.setattr(place, name, failing(error, getattr(place, name), at=1))
    message = "device='auto' failed.*illegal memory access was encountered.*'cpu'"
    with unchanged(model), pytest.raises(RuntimeError, match=message) as caught:
        model.fit(X, y)
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------- disks and files


@pytest.fixture
def full_disk():
    """Return a context in which no file can grow beyond some bytes, for real."""
    resource = pytest.importorskip("resource")

    @contextlib.contextmanager
    def limited(n_bytes=512):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


def nowhere(tmp_path):
    """Folders that cannot be made, not even by the superuser."""
    file = tmp_path / "file"
    file.write_text("mine")
    places = [file / "folder"]
    if os.path.isdir("/proc/self"):
        places.append(Path("/proc/skconvrfm"))
    return places


def test_checkpoint_on_full_disk_leaves_no_file(model, data, tmp_path, full_disk):
    learner = "estimator__" if isinstance(model, PatchAGOPTransformer) else ""
    model.set_params(**{f"{learner}checkpoint": tmp_path})
    message = f"checkpoint='{tmp_path}' could not be written.*File too large"
    with unchanged(model), pytest.raises(OSError, match=message), full_disk():
        model.fit(*data)
    assert not list(tmp_path.iterdir())


def test_impossible_checkpoint_folder_is_refused_before_fit(
    data, tmp_path, monkeypatch
):
    monkeypatch.setattr(models, "kernel_matrix", failing(AssertionError()))
    for place in nowhere(tmp_path):
        model = clone(MODELS["kernel"]).set_params(checkpoint=place)
        with unchanged(model), pytest.raises(OSError, match="cannot be used") as caught:
            model.fit(*data)
        assert str(place) in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def assert_one_line(code, err, *words):
    """An exit code that is not 0, and one line on standard error with these words."""
    assert code
    assert err.startswith("skconvrfm: error: ") and err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.fixture
def comparison(tmp_path, data, monkeypatch):
    """Return the arguments of a job that takes no time, and has pictures to write."""
    pytest.importorskip("matplotlib")
    X, y = data
    arrays = {"X_train": X[:30], "y_train": y[:30], "X_test": X[30:], "y_test": y[30:]}
    np.savez(tmp_path / "images.npz", **arrays)

    def only_ours(options, split):
        shape = {"image_shape": split.image_shape, "device": "cpu"}
        model = ConvRFMClassifier(ConvNTK(depth=1), n_rounds=1, **shape)
        fixed = clone(model).set_params(n_rounds=0)
        return {demo.BEST: clone(model), "fixed kernel": fixed, "ConvRFM": model}

    monkeypatch.setattr(demo, "make_models", only_ours)
    return ["demo", "--data", str(tmp_path / "images.npz"), "--out"]


@pytest.mark.slow
def test_pictures_on_full_disk_leave_no_file(comparison, tmp_path, full_disk, capsys):
    folder = tmp_path / "out"
    with full_disk():
        code = main([*comparison, str(folder)])
    error = "could not be written: File too large; name another place with --out"
    first = str(folder / "explanation.png")
    assert_one_line(code, capsys.readouterr().err, first, error)
    assert not list(folder.iterdir())
    assert main([*comparison, str(folder)]) == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["explanation.png", "patch_agop.png", "rounds.png"]


def test_impossible_folder_of_pictures_is_refused_first(
    comparison, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(demo, "make_models", failing(AssertionError()))
    for place in nowhere(tmp_path):
        code = main([*comparison, str(place)])
        assert_one_line(code, capsys.readouterr().err, f"--out {place}: ", "another")


@pytest.fixture
def measurement(tmp_path, rng, monkeypatch):
    """Return the arguments of the other command, and where its table goes."""
    np.savez(tmp_path / "images.npz", X=rng.random(size=(4, 8, 8, 3)))
    return [
        "ansatz",
        "benchmarks.networks:mobilenet",
        "--images",
        str(tmp_path / "images.npz"),
    ]


def test_table_on_full_disk_leaves_former_table(
    measurement, tmp_path, full_disk, capsys
):
    table = tmp_path / "table.csv"
    table.write_text("former")
    with full_disk():
        code = main([*measurement, "--csv", str(table)])
    out, err = capsys.readouterr()
    assert "correlation" in out
    error = "could not be written: File too large; name another place with --csv"
    assert_one_line(code, err, str(table), error)
    assert table.read_text() == "former"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "images.npz",
        "table.csv",
    ]


def test_impossible_place_of_table_is_refused_first(
    measurement, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(command, "load_images", failing(AssertionError()))
    places = [place / "table.csv" for place in nowhere(tmp_path)]
    for place in [*places, tmp_path]:
        code = main([*measurement, "--csv", str(place)])
        assert_one_line(code, capsys.readouterr().err, f"--csv {place}: ")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
def test_full_device_is_one_line_and_stays_a_device(measurement, environment, capsys):
    code = main([*measurement, "--csv", "/dev/full"])
    assert_one_line(code, capsys.readouterr().err, "/dev/full", "No space left")
    assert not Path("/dev/full").is_file()
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "skconvrfm", *measurement],
            cwd=ROOT,
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert_one_line(done.returncode, done.stderr, "standard output", "No space left")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("CUDA error: gone\nmore"), 1, "CUDA error: gone; try --device"),
        (_command_line.UsageError("wrong"), 2, "wrong"),
    ],
)
def test_failing_command_is_one_line(error, code, words, capsys):
    found = _command_line.run_command("skconvrfm", failing(error))
    assert found == code
    assert_one_line(found, capsys.readouterr().err, words)


def test_unknown_error_of_command_is_raised():
    with pytest.raises(RuntimeError, match="ours"):
        _command_line.run_command("skconvrfm", failing(RuntimeError("ours")))
