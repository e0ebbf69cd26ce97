"""Checkpoints: resumed fits equal uninterrupted ones bit by bit; others are refused."""

import errno
import functools
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import is_dataclass

import numpy as np
import pytest
from doubles import Callback, failing
from sklearn.base import clone
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import cross_val_score

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.compute import files
from skconvrfm.compute.native import build
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian, PatchLaplace
from skconvrfm.learning import checkpoint as checkpoints
from skconvrfm.learning import rounds
from skconvrfm.learning.models import PatchModel

NTK = ConvNTK(depth=2)
FEATURES = ConvFeatures(6, patch_size=3)
LOCATIONS = ConvFeatures(6, patch_size=3, pool_grid=None)
DEEP = {"kernel": ConvNTK(depth=1), "features": LOCATIONS, "n_rounds": 2}
TWO_LAYERS = {"kernel": "linear", "features": [LOCATIONS, FEATURES], "n_rounds": 2}
MODELS = {
    "classifier": ConvRFMClassifier(NTK, n_rounds=2),
    "regressor": ConvRFMRegressor(NTK, n_rounds=2),
    "features": ConvRFMClassifier("linear", FEATURES, n_rounds=2),
    "gaussian": ConvRFMRegressor(Gaussian(), FEATURES, n_rounds=2, selection="loo"),
    "fixed kernel": ConvRFMClassifier(n_rounds=0),
    "whole images": ConvRFMClassifier("gaussian", n_rounds=1),
    "last round": ConvRFMRegressor(NTK, n_rounds=2, selection="last"),
    "patch kernel": ConvRFMClassifier(PatchLaplace(metric="whiten"), n_rounds=2),
    "chosen metric": ConvRFMRegressor(ConvNTK(depth=2, metric="auto"), n_rounds=2),
    "chosen metric on held-out rows": ConvRFMClassifier(
        PatchLaplace(metric="auto", mirror=True), n_rounds=1, selection="holdout"
    ),
    "deep": ConvRFMClassifier(**DEEP),
    "landmarks": ConvRFMClassifier(NTK, n_rounds=2, landmarks=15),
    "landmarks of features": ConvRFMRegressor(
        Gaussian(), FEATURES, n_rounds=2, landmarks=15, selection="holdout"
    ),
    "deep landmarks": ConvRFMClassifier(**DEEP, landmarks=15),
    "two layers of features": ConvRFMRegressor(**TWO_LAYERS),
    "holdout": ConvRFMRegressor(**DEEP, selection="holdout"),
    "holdout of features": ConvRFMClassifier(
        **TWO_LAYERS, selection="holdout", random_state=3
    ),
    "transformer": PatchAGOPTransformer(ConvRFMClassifier(NTK, n_rounds=2)),
}
CLASSIFIER = MODELS["classifier"]

KILLS = pytest.mark.skipif(
    not hasattr(signal, "SIGKILL"), reason="no process is killed like that here"
)


def make_images(n=40):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 8, 7, 2))
    signal = (X[:, 2:4, 2:4, 0] * X[:, 3:5, 2:4, 0]).sum((1, 2))
    return X, signal


def fit(model, X=None, y=None, **options):
    """A clone with other options, fitted on what it is for."""
    model = clone(model)
    learner = getattr(model, "estimator", model)
    learner.set_params(**options)
    if X is None:
        X, y = make_images()
        y = y if isinstance(learner, ConvRFMRegressor) else (y > 0).astype(int)
    return model.fit(X, y)


def fitted(model):
    """Return the fitted attributes of a model, a kernel or a layer."""
    state = model.__getstate__()
    return {name: value for name, value in state.items() if name.endswith("_")}


def assert_identical(actual, expected):
    """Check that two models, or attributes, are equal to the last bit."""
    if hasattr(expected, "get_params"):
        actual, expected = fitted(actual), fitted(expected)
    if is_dataclass(expected):
        actual, expected = vars(actual), vars(expected)
    assert type(actual) is type(expected)
    if isinstance(expected, dict):  # a Bunch as well
        assert list(actual) == list(expected)
        for name in expected:
            if not name.startswith("seconds_"):
                assert_identical(actual[name], expected[name])
    elif isinstance(expected, list | tuple):
        for pair in itertools.zip_longest(actual, expected):
            assert_identical(*pair)
    elif isinstance(expected, np.ndarray):
        assert actual.dtype == expected.dtype and actual.shape == expected.shape
        assert actual.tobytes() == expected.tobytes()
        assert actual.flags.c_contiguous == expected.flags.c_contiguous
    else:
        assert actual == expected


class Interruption(Exception):
    """Comes in the midst of a fit."""


@pytest.fixture(scope="module", autouse=True)
def array_tiles_alone():
    """All fits are the same bits, whatever other tests have compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(build.SWITCH, "0")
        yield


@functools.cache
def plain(name="classifier"):
    """Return a model that was fitted without a checkpoint."""
    return fit(MODELS[name])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoint"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the name and the bytes of the file of a finished fit."""
    folder = tmp_path_factory.mktemp("finished") / "checkpoint"
    fit(CLASSIFIER, checkpoint=folder)
    path = archive_of(folder)
    return path.name, path.read_bytes()


@pytest.fixture
def archive(folder, finished):
    """Return the path of a copy of it, alone in a folder."""
    folder.mkdir()
    path = folder / finished[0]
    path.write_bytes(finished[1])
    return path


# Resuming


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_fit_resumed_after_every_round_equals_the_uninterrupted_one(
    name, folder, monkeypatch
):
    model, expected = MODELS[name], plain(name)
    record, n_rounds = rounds._record, 0
    while True:
        # The second round of each attempt is lost.
        monkeypatch.setattr(rounds, "_record", failing(Interruption, record, at=1))
        n_rounds += 1
        try:
            resumed = fit(model, checkpoint=folder)
            break
        except Interruption:
            assert n_rounds < 100
    assert_identical(resumed, expected)
    calls = []
    monkeypatch.setattr(rounds, "_record", lambda *a: calls.append(a) or record(*a))
    fit(model)
    assert n_rounds == len(calls)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["design", "ridge_path", "patch_agops"])
def test_fit_can_be_resumed_from_every_step(folder, step, monkeypatch):
    model, expected = MODELS["deep"], plain("deep")
    method = getattr(PatchModel, step)
    for at in itertools.count():
        here = folder / str(at)
        monkeypatch.setattr(PatchModel, step, failing(KeyboardInterrupt, method, at))
        try:
            fit(model, checkpoint=here)
            break
        except KeyboardInterrupt:
            assert_identical(fit(model, checkpoint=here), expected)
    assert at >= 5


@pytest.mark.parametrize("name", MODELS)
def test_checkpoint_changes_no_fit_and_returns_finished_ones(name, folder, monkeypatch):
    model = MODELS[name]
    done = fit(model, checkpoint=folder)
    assert_identical(done, plain(name))
    monkeypatch.setattr(rounds, "_choose_ridge", None)  # no round is done again
    monkeypatch.setattr(rounds, "_record", None)
    again = fit(model, checkpoint=folder)
    assert_identical(again, done)
    # Now also the seconds, which are those of the fit that took them.
    for name, values in done.history_.items():
        np.testing.assert_array_equal(again.history_[name], values)


def test_files_of_different_rounds_are_resumed_together(folder, monkeypatch):
    model = MODELS["deep"]
    with monkeypatch.context() as context:
        record = rounds._record
        context.setattr(rounds, "_record", failing(Interruption, record, at=2))
        with pytest.raises(Interruption):
            fit(model, checkpoint=folder)
    first = archive_of(folder)
    unfinished = first.read_bytes()
    done = fit(model, checkpoint=folder)
    first.write_bytes(unfinished)
    assert_identical(fit(model, checkpoint=folder), done)


def test_weights_and_several_outputs_are_resumed(folder, monkeypatch):
    X, y = make_images()
    y, weights = np.column_stack([y, y**2]), np.arange(40) % 3
    model = MODELS["two layers of features"]
    expected = clone(model).fit(X, y, weights)
    model = clone(model).set_params(checkpoint=folder)
    with monkeypatch.context() as context:
        record = rounds._record
        context.setattr(rounds, "_record", failing(Interruption, record, at=2))
        with pytest.raises(Interruption):
            model.fit(X, y, weights)
    with pytest.raises(ValueError, match="differs in the data sample_weight"):
        model.fit(X, y)
    assert_identical(model.fit(X, y, weights), expected)


def test_text_labels_and_text_folders_are_accepted(folder, monkeypatch):
    X, y = make_images()
    for labels in (np.array(["no", "yes"]), np.array(["no", "yes"], dtype=object)):
        y_text = labels[(y > 0).astype(int)]
        here = str(folder / labels.dtype.kind)
        done = fit(CLASSIFIER, X, y_text, checkpoint=here)
        assert_identical(fit(CLASSIFIER, X, y_text, checkpoint=here), done)
        with pytest.raises(ValueError, match="differs in the data y"):
            fit(CLASSIFIER, X, y_text[::-1], checkpoint=here)


def test_verbose_reports_resumed_rounds(archive, capsys):
    fit(CLASSIFIER, checkpoint=archive.parent, verbose=1)
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("[ConvRFMClassifier] goes on after 3 rounds in checkpoint=")


class Rounds(Callback):
    """Raises in place of a round's end, or asks for the end."""

    def __init__(self, fail_at=None, stop_at=None):
        self.fail_at, self.stop_at, self.ends = fail_at, stop_at, []

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None, **_):
        if context.task_name != "round":
            return False
        index = len(fitted_estimator.history_["round"]) - 1
        if index == self.fail_at:
            raise Interruption
        self.ends.append(index)
        return index == self.stop_at


def with_callback(callback, folder):
    pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 has them")
    return clone(CLASSIFIER).set_params(checkpoint=folder).set_callbacks(callback)


def test_callbacks_see_the_remaining_rounds(folder):
    X, y = make_images()
    first, second, third = Rounds(fail_at=1), Rounds(), Rounds()
    with pytest.raises(Interruption):
        with_callback(first, folder).fit(X, y > 0)
    with_callback(second, folder).fit(X, y > 0)
    with_callback(third, folder).fit(X, y > 0)
    assert (first.ends, second.ends, third.ends) == ([0], [1, 2], [])


def test_fit_ended_by_a_callback_stays_ended(folder):
    X, y = make_images()
    ended = with_callback(Rounds(stop_at=1), folder).fit(X, y > 0)
    assert len(ended.history_["round"]) == 2
    assert_identical(fit(CLASSIFIER, X, y > 0, checkpoint=folder), ended)


# What is refused


def archive_of(folder):
    [path] = folder.iterdir()
    return path


def assert_refused(folder, match, model=CLASSIFIER):
    """Check the error, that the folder is as it was, and that another one works."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=match) as caught:
        fit(model, checkpoint=folder)
    assert "Take another folder, or remove" in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_truncated_checkpoint_is_refused(archive, finished, share):
    archive.write_bytes(finished[1][: int(share * len(finished[1]))])
    assert_refused(archive.parent, "checkpoint=.* is damaged: .*truncated")


def rewritten(path, change):
    """Write an archive anew with members changed, as if it had been edited."""
    with zipfile.ZipFile(path) as archive:
        comment = archive.comment
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = comment
        for name, content in members.items():
            archive.writestr(name, content)


def test_edited_checkpoint_is_refused(archive, finished):
    def edit_values(members):
        known = json.loads(members["convrfm.json"])
        known["rounds"]["criterion"] *= 2
        members["convrfm.json"] = json.dumps(known).encode()

    def edit_array(members):
        members["coef.npy"] = members["coef.npy"][:-1] + b"\0"

    for change, match in [
        (edit_values, "convrfm.json was changed"),
        (edit_array, "coef.npy was changed"),
        (lambda members: members.pop("coef.npy"), "damaged: .*coef.npy"),
    ]:
        archive.write_bytes(finished[1])
        rewritten(archive, change)
        assert_refused(archive.parent, match)


def test_flipped_bits_are_refused_or_change_nothing(archive, finished):
    expected = plain()
    content = finished[1]
    draw = random.Random(0)
    # The last bytes, where an archive says what is where, and some of all.
    places = [*range(len(content) - 120, len(content), 3)]
    places += draw.sample(range(len(content)), 40)
    refused = 0
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        archive.write_bytes(changed)
        try:
            assert_identical(fit(CLASSIFIER, checkpoint=archive.parent), expected)
        except ValueError as error:
            assert "checkpoint=" in str(error)
            refused += 1
    assert refused > 50


OTHERS = [
    ({"n_rounds": 3}, r"n_rounds \(2 there, 3 here\)"),
    ({"kernel__bias": 0.5}, r"kernel \(.ConvNTK\(depth=2\). there, .*bias=0.5"),
    ({"kernel": "nngp"}, r"kernel \(.ConvNTK\(depth=2\). there, .ConvNNGP"),
    ({"features": LOCATIONS}, r"features \(\[\] there, .*ConvFeatures"),
    ({"alpha": [0.1]}, r"alpha \(\[1e-06,"),
    ({"class_weight": {1: 2.0, 0: 1}}, r"class_weight \(None there, \[\[0, 1\]"),
    ({"random_state": 1}, r"random_state \(None there, 1 here\)"),
]


@pytest.mark.parametrize(("options", "match"), OTHERS, ids=str)
def test_other_parameters_are_named(archive, options, match):
    other = clone(CLASSIFIER).set_params(**options)
    match = f"another fit, which differs in {match}"
    assert_refused(archive.parent, match, other)


def test_other_data_are_named(folder):
    X, y = make_images()
    y = y > 0
    fit(CLASSIFIER, X, y, checkpoint=folder)
    other = X.copy()
    other[-1, -1, -1, -1] += 1
    for X_new, y_new, names in [
        (other, y, "the data X"),
        (X.astype(np.float32), y, "the data X"),
        (X, ~y, "the data y"),
        (X[:30], y[:30], "the data X, the data y, the data sample_weight"),
    ]:
        with pytest.raises(ValueError, match=rf"differs in {names}\."):
            fit(CLASSIFIER, X_new, y_new, checkpoint=folder)


def test_parameters_without_effect_may_differ(folder, monkeypatch):
    X, y = make_images()
    expected = fit(CLASSIFIER, X, y > 0, checkpoint=folder)
    monkeypatch.setattr(rounds, "_record", None)
    options = {"n_jobs": 2, "verbose": 1, "device": "cpu"}
    options["alpha"] = np.array(CLASSIFIER.alpha)
    options["image_shape"] = (8, 7, 2)
    flat = X.reshape(40, -1)
    moved = os.path.join(folder, "..", folder.name)
    other = fit(CLASSIFIER, flat, y > 0, checkpoint=moved, **options)
    assert_identical(other, expected)


def test_random_state_counts_as_it_was_before_the_fit(folder):
    state = np.random.RandomState(7)
    expected = fit(CLASSIFIER, random_state=state, checkpoint=folder)
    same = fit(CLASSIFIER, random_state=np.random.RandomState(7), checkpoint=folder)
    assert_identical(same, expected)
    state.uniform()
    with pytest.raises(ValueError, match="differs in random_state"):
        fit(CLASSIFIER, random_state=state, checkpoint=folder)


def test_fits_of_a_cross_validation_are_refused(folder):
    X, y = make_images()
    model = clone(CLASSIFIER).set_params(checkpoint=folder)
    with pytest.warns(FitFailedWarning, match="of a cross-validation differ"):
        scores = cross_val_score(model, X, y > 0, cv=2)
    assert np.isnan(scores).tolist() == [False, True]


def test_another_format_is_refused(archive, monkeypatch):
    here = checkpoints.FORMAT
    monkeypatch.setattr(checkpoints, "FORMAT", 0)
    assert_refused(archive.parent, rf"format \({here} there, 0 here\)")


# The folder


def test_folder_holds_no_pickle(folder):
    fit(MODELS["holdout"], checkpoint=folder)
    names = sorted(path.name for path in folder.iterdir())
    assert {"convrfm-choice-0.npz", "convrfm-choice-1.npz"} < set(names)
    assert all(name.startswith("convrfm-") for name in names)
    for path in folder.iterdir():
        with zipfile.ZipFile(path) as archive:
            json.loads(archive.read("convrfm.json"))
            for name in set(archive.namelist()) - {"convrfm.json"}:
                with archive.open(name) as file:
                    np.lib.format.read_array(file, allow_pickle=False)


def test_other_files_stay_as_they_are(folder):
    folder.mkdir()
    others = {"notes.txt": b"mine", "convrfm.npz": b"mine", ".convrfm": b"mine"}
    for name, content in others.items():
        (folder / name).write_bytes(content)
    fit(CLASSIFIER, checkpoint=folder)
    with pytest.raises(ValueError, match="differs in n_rounds"):
        fit(CLASSIFIER, checkpoint=folder, n_rounds=1)
    for name, content in others.items():
        assert (folder / name).read_bytes() == content
    assert len(list(folder.iterdir())) == 4


def test_foreign_file_of_our_name_is_never_removed(folder):
    folder.mkdir()
    name = "convrfm-fit-0.npz"
    np.savez(folder / name, mine=np.arange(3))
    content = (folder / name).read_bytes()
    with pytest.raises(ValueError, match=f"{name}, which is not of this package"):
        fit(CLASSIFIER, checkpoint=folder)
    assert (folder / name).read_bytes() == content
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(ValueError, match=f"{name}, which is not of this package"):
        fit(CLASSIFIER, checkpoint=folder)


def test_leftovers_of_a_killed_writer_are_removed(folder):
    folder.mkdir()
    (folder / ".convrfm-fit-0.npz.0123.tmp").write_bytes(b"half")
    fit(CLASSIFIER, checkpoint=folder)
    assert [path.name for path in folder.iterdir()] == ["convrfm-fit-0.npz"]


def test_temporary_files_of_another_fit_stay_where_files_have_no_locks(
    folder, monkeypatch
):
    monkeypatch.setattr(files, "try_lock", lambda file: None)
    folder.mkdir()
    temporary = folder / ".convrfm-fit-0.npz.0123.tmp"
    temporary.write_bytes(b"half")
    fit(CLASSIFIER, checkpoint=folder)
    assert sorted(os.listdir(folder)) == [temporary.name, "convrfm-fit-0.npz"]


def test_file_in_place_of_the_folder_is_refused(folder):
    folder.write_text("mine")
    with pytest.raises(OSError, match="checkpoint='.*' cannot be used: File exists"):
        fit(CLASSIFIER, checkpoint=folder)
    assert folder.read_text() == "mine"


def test_folder_that_is_not_writable_is_refused(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="checkpoint='.*' .* not writable"):
        fit(CLASSIFIER, checkpoint=folder)


def test_full_disk_keeps_the_former_checkpoint(folder, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    model = clone(CLASSIFIER).set_params(checkpoint=folder)
    X, y = make_images()
    y = (y > 0).astype(int)
    with monkeypatch.context() as context:
        write = failing(full, checkpoints._write_archive, at=1)
        context.setattr(checkpoints, "_write_archive", write)
        with pytest.raises(OSError, match="checkpoint='.*' could not be.*No space"):
            model.fit(X, y)
    assert fitted(model) == {}
    assert [path.name for path in folder.iterdir()] == ["convrfm-fit-0.npz"]
    assert_identical(model.fit(X, y), plain())


def test_large_arrays_are_hashed_block_by_block(monkeypatch):
    rows = np.arange(60.0).reshape(20, 3)
    whole = checkpoints.digest(rows)
    assert whole == checkpoints.digest(np.asfortranarray(rows))
    monkeypatch.setattr(checkpoints, "_HASH_BLOCK", 100)
    assert whole == checkpoints.digest(rows)
    assert len({whole, *map(checkpoints.digest, (rows + 1, rows.reshape(15, 4)))}) == 3


# One fit at a time


def meanwhile(monkeypatch, action):
    """Do something once, in the midst of the next fit, after its first round."""
    record, left = rounds._record, [action]

    def recording(*arguments):
        if left:
            left.pop()()
        return record(*arguments)

    monkeypatch.setattr(rounds, "_record", recording)


IN_USE = (
    "checkpoint='.*' cannot be used: another fit, .* is using it. Wait until .* or "
)


@pytest.mark.parametrize("name", ["features", "holdout", "deep landmarks"])
def test_second_fit_on_a_folder_is_refused_and_the_first_goes_on(
    name, folder, monkeypatch
):
    model, expected = MODELS[name], plain(name)
    refused = []

    def second():
        with pytest.raises(BlockingIOError, match=IN_USE) as caught:
            fit(model, checkpoint=folder)
        refused.append(caught)

    meanwhile(monkeypatch, second)
    assert_identical(fit(model, checkpoint=folder), expected)
    assert len(refused) == 1
    assert not (folder / "convrfm-lock").exists()


def test_second_fit_in_another_thread_is_refused(folder, monkeypatch):
    with ThreadPoolExecutor(1) as pool:

        def second():
            with pytest.raises(BlockingIOError, match=IN_USE):
                pool.submit(fit, CLASSIFIER, checkpoint=folder).result()

        meanwhile(monkeypatch, second)
        fit(CLASSIFIER, checkpoint=folder)


@KILLS
def test_second_process_is_refused_until_the_first_is_killed(folder, monkeypatch):
    context = multiprocessing.get_context("fork")
    ready, pipe = context.Pipe(duplex=False)

    def first():
        meanwhile(monkeypatch, lambda: (pipe.send("ready"), time.sleep(60)))
        fit(CLASSIFIER, checkpoint=folder)

    process = context.Process(target=first)
    process.start()
    assert ready.poll(30) and ready.recv() == "ready"
    temporary = folder / ".convrfm-fit-0.npz.0123.tmp"
    temporary.write_bytes(b"half")
    with pytest.raises(BlockingIOError, match=IN_USE):
        fit(CLASSIFIER, checkpoint=folder)
    assert temporary.exists()
    process.kill()
    process.join()
    assert_identical(fit(CLASSIFIER, checkpoint=folder), plain())
    assert os.listdir(folder) == ["convrfm-fit-0.npz"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_folder_is_free_after_a_fit_that_ended_with_an_error(
    folder, monkeypatch, error
):
    def fail():
        raise error

    with monkeypatch.context() as context:
        meanwhile(context, fail)
        with pytest.raises(error) as caught:
            fit(CLASSIFIER, checkpoint=folder)
    fit(CLASSIFIER, checkpoint=folder)
    assert caught.traceback  # which holds all objects of the failed fit


def test_folder_is_free_after_a_fit_that_was_refused(archive):
    with pytest.raises(ValueError, match="differs in n_rounds") as caught:
        fit(CLASSIFIER, checkpoint=archive.parent, n_rounds=1)
    fit(CLASSIFIER, checkpoint=archive.parent)
    assert caught.traceback


def test_folder_may_be_removed_and_used_again_after_a_fit(archive):
    fit(CLASSIFIER, checkpoint=archive.parent)
    shutil.rmtree(archive.parent)
    fit(CLASSIFIER, checkpoint=archive.parent, n_rounds=1)


def test_file_systems_without_locks_are_used_without(folder, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    if files.fcntl is not None:
        monkeypatch.setattr(files.fcntl, "flock", flock)
    assert_identical(fit(CLASSIFIER, checkpoint=folder), plain())
    monkeypatch.setattr(files, "fcntl", None)  # as on Windows
    assert_identical(fit(CLASSIFIER, checkpoint=folder), plain())


def test_lock_is_taken_of_the_file_that_is_there(tmp_path, monkeypatch):
    # The holder removes the file between the open and the lock of the next one.
    path, try_lock, left = tmp_path / "lock", files.try_lock, [None]

    def removed_first(file):
        if left:
            left.pop()
            path.unlink()
        return try_lock(file)

    monkeypatch.setattr(files, "try_lock", removed_first)
    with files.hold_lock(path):
        assert path.exists()
        with pytest.raises(BlockingIOError), files.hold_lock(path):
            pass
    assert not path.exists()


# Forged files, whose digests are right


def forged(path, change):
    """Write an archive anew with values and arrays changed, and all digests."""
    with open(path, "rb") as file:
        known, values, arrays = checkpoints._read_archive(file)
    change(values, arrays)
    with open(path, "wb") as file:
        checkpoints._write_archive(known, values, arrays, file)


FORGERIES = {
    "no solution": lambda values, arrays: values.pop("solution"),
    "no coefficients": lambda values, arrays: arrays.pop("coef"),
    "few coefficients": lambda values, arrays: arrays.update(coef=arrays["coef"][:3]),
    "flat coefficients": lambda values, arrays: arrays.update(
        coef=arrays["coef"].ravel()
    ),
    "text": lambda values, arrays: arrays.update(intercept=np.array(["a"])),
    "not finite": lambda values, arrays: arrays.update(
        loo_prediction=arrays["loo_prediction"] * np.nan
    ),
    "empty metric": lambda values, arrays: arrays.update(
        best_transform_0=np.empty((0, 18))
    ),
    "no metric": lambda values, arrays: arrays.pop("best_transform_0"),
    "two metrics": lambda values, arrays: values["groups"].update(
        best_transform=[True, True]
    ),
    "no groups": lambda values, arrays: values.update(groups=[]),
    "no rounds": lambda values, arrays: values["history"].update(round=[]),
    "other rounds": lambda values, arrays: values["history"].update(round=[2, 1, 0]),
    "short history": lambda values, arrays: values["history"]["gcv"].pop(),
    "no history": lambda values, arrays: values["history"].pop("seconds_agop"),
    "text in the history": lambda values, arrays: values["history"].update(
        alpha=["a", "b", "c"]
    ),
    "no spectrum": lambda values, arrays: arrays.pop("spectra_1_0"),
    "another round": lambda values, arrays: values.update(index=7),
    "no criterion": lambda values, arrays: values.update(criterion=None),
    "no end": lambda values, arrays: values.pop("ended"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_checkpoint_is_refused_in_words(archive, name):
    forged(archive, FORGERIES[name])
    match = r"checkpoint=.* is damaged: convrfm-fit-0\.npz"
    assert_refused(archive.parent, match)


# Killed processes


def fit_in_child(name, folder, kill_at, pipe):
    """Fit, tell of the begin, and send what was fitted.

    With ``kill_at``, the process kills itself at that call of the file system.
    """
    if kill_at is not None:
        left = itertools.count(kill_at, -1)

        def killing(function):
            def replaced(*args, **kwargs):
                if next(left) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return replaced

        for step in ("fsync", "replace", "unlink"):
            setattr(os, step, killing(getattr(os, step)))
    pipe.send("begin")
    pipe.send(fitted(fit(MODELS[name], checkpoint=folder)))


class Children:
    """Starts processes that have imported all they need."""

    def __init__(self):
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["skconvrfm", "pytest"])

    def start(self, name, folder, kill_at=None):
        """A process that has begun to fit, and the end of its pipe."""
        pipe, other = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=fit_in_child, args=(name, folder, kill_at, other)
        )
        process.start()
        other.close()
        assert pipe.recv() == "begin"
        return process, pipe

    def fit(self, name, folder):
        """Return the fit of a process that is not interrupted."""
        return end_of(*self.start(name, folder))


def end_of(process, pipe):
    """The attributes that a process has fitted, or None if it was killed."""
    try:
        result = pipe.recv()
    except EOFError:
        result = None
    process.join()
    pipe.close()
    if process.exitcode == -signal.SIGKILL:
        return None  # perhaps after the last word: it counts as killed
    assert process.exitcode == 0 and result is not None
    return result


@pytest.mark.slow
@KILLS
def test_process_killed_at_any_step_of_a_write_is_resumed(folder):
    children = Children()
    expected = children.fit("classifier", folder / "whole")
    for kill_at in itertools.count():
        here = folder / str(kill_at)
        if end_of(*children.start("classifier", here, kill_at)) is not None:
            break
        assert_identical(children.fit("classifier", here), expected)
        assert len(list(here.iterdir())) == 1
    # Three rounds and the last AGOP; for each fsync, replace, unlink, fsync. And the
    # unlink of the lock.
    assert kill_at == 4 * 4 + 1


@KILLS
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "name", ["classifier", "holdout", "landmarks", "two layers of features"]
)
def test_a_hundred_random_kills_do_not_change_the_result(name, folder, seed):
    """Kill fits until there were so many kills; every finished one is compared."""
    draw, children, start = random.Random(seed), Children(), time.perf_counter()
    expected = children.fit(name, folder / "whole")
    duration = time.perf_counter() - start
    kills = finished = 0
    while kills < 20:
        longest = duration / 2
        while True:
            process, pipe = children.start(name, folder / str(finished))
            time.sleep(draw.uniform(0, longest))
            process.kill()
            result = end_of(process, pipe)
            if result is not None:
                break
            kills += 1
            longest *= 1.1  # so that there is an end also on a busy machine
        assert_identical(result, expected)
        finished += 1
