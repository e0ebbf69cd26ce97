"""``skconvrfm demo`` does what its help says, and answers mistakes in one line."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from skconvrfm.__main__ import main, parse_options
from skconvrfm.commands import demo as job
from skconvrfm.datasets import make_framed_digits

MODELS = [
    "features, Gaussian",
    "features, linear",
    "ConvRFM",
    "fixed kernel",
    "RBF SVC, tuned",
    "random forest",
]


@pytest.fixture(autouse=True)
def small_forest(monkeypatch):
    """A hundred times fewer trees: here nobody looks at the accuracy."""
    forest = job.RandomForestClassifier

    def small(*, n_estimators, n_jobs, **others):
        return forest(n_estimators=n_estimators // 100, **others)

    monkeypatch.setattr(job, "RandomForestClassifier", small)


@pytest.fixture
def arrays():
    """Return a few uint8 images as an archive would have them."""
    X, y = make_framed_digits(sigma=0.1, random_state=0)
    X = np.clip(255 * X, 0, 255).astype(np.uint8)
    X, y = X[y < 3][:90], y[y < 3][:90]
    return {"X_train": X[:60], "y_train": y[:60], "X_test": X[60:], "y_test": y[60:]}


@pytest.fixture
def run(tmp_path, capsys):
    """Return a function that runs the job on arrays: (exit code, stdout, stderr)."""

    def run(arrays=None, *options):
        place = ["--out", str(tmp_path / "out"), "--device", "cpu"]
        arguments = ["demo", *place, *options]
        if arrays is not None:
            np.savez(tmp_path / "images.npz", **arrays)
            arguments += ["--data", str(tmp_path / "images.npz")]
        code = main(arguments)
        return code, *capsys.readouterr()

    return run


def assert_one_line(result, *words):
    """Exit code 2, nothing on stdout, one line on stderr with these words."""
    code, out, err = result
    assert code == 2 and out == ""
    assert err.startswith("skconvrfm: error: ") and err.count("\n") == 1
    for word in words:
        assert word in err


# ------------------------------------------------------------------ it works


def test_embedded_data_give_a_table_and_pictures(run, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    split = job.embedded_split(0)
    few = replace(split, X_test=split.X_test[:60], y_test=split.y_test[:60])
    monkeypatch.setattr(job, "embedded_split", lambda seed: few)
    code, out, err = run(None, "--n-train", "40", "--rounds", "1", "--depth", "1")
    assert code == 0 and err == ""
    assert "framed digits: 40 training and 60 test images of 12 x 12" in out
    for model in MODELS:
        assert re.search(rf"{model}\W+[\d.]+%\W+[\d.]+ s\W+[\d.]+ s\W+\d+ MB", out)
    best = max(
        re.findall(r"\] (.*): ([\d.]+)% of the test", out), key=lambda m: float(m[1])
    )
    assert f"Best on the test images: {best[0]}, {best[1]}%." in out
    assert out.index("Best on") < out.index("ConvRFM kept round")
    assert out.splitlines()[-1].strip() == "skconvrfm train FOLDER --out model.skops"
    for name in ("explanation.png", "rounds.png", "patch_agop.png"):
        picture = (tmp_path / "out" / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and str(tmp_path / "out" / name) in out


@pytest.mark.slow
def test_own_images_give_the_same_and_without_rich_a_plain_table(
    run, arrays, monkeypatch
):
    monkeypatch.setitem(sys.modules, "rich", None)
    code, out, _ = run(arrays, "--rounds", "1", "--depth", "2", "--n-train", "30")
    assert code == 0 and out.isascii()
    assert "images.npz: 30 training and 30 test images of 12 x 12, 3 classes" in out
    assert re.search(r"ConvRFM kept round [01] of 0 to 1, chosen by GCV", out)
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("model "))
    table = lines[start : start + 2 + len(MODELS)]
    assert len({len(line) for line in table}) == 1
    for model, line in zip(MODELS, table[2:], strict=True):
        assert line.startswith(model)


def test_options_reach_the_models(arrays):
    options = parse_options(
        "demo --rounds 2 --depth 4 --patch-size 5x3 --device cpu --seed 7".split()
    )
    models = job.make_models(options, job.Split("some", **arrays))
    convrfm = models["ConvRFM"].get_params()
    expected = {
        "n_rounds": 2,
        "kernel__depth": 4,
        "kernel__patch_size": (5, 3),
        "device": "cpu",
        "random_state": 7,
        "image_shape": (12, 12),
    }
    assert {name: convrfm[name] for name in expected} == expected
    # The field of four layers.
    assert models["features, linear"].features.patch_size == (17, 9)
    assert all(layer.candidates == 4 for layer in models["features, Gaussian"].features)
    options.data = "images.npz"
    others = job.make_models(options, job.Split("some", **arrays))
    assert others["features, Gaussian"].features == "auto"
    fixed = models["fixed kernel"].get_params()
    differing = {n for n in fixed if repr(fixed[n]) != repr(convrfm[n])}
    assert differing == {"n_rounds", "verbose"} and fixed["n_rounds"] == 0


def test_images_are_left_to_the_machines_to_scale(arrays, tmp_path):
    arrays["X_test"] = arrays["X_test"].astype(np.float32)
    np.savez(tmp_path / "images.npz", **arrays)
    split = job.read_npz(tmp_path / "images.npz")
    assert split.X_train.dtype == np.uint8
    np.testing.assert_array_equal(split.X_train, arrays["X_train"])
    np.testing.assert_array_equal(split.X_test, arrays["X_test"])


@pytest.mark.slow
def test_colour_images_and_text_labels_work(run, arrays):
    for part in ("train", "test"):
        X = arrays[f"X_{part}"][:, :6, :5]
        arrays[f"X_{part}"] = np.stack([X, X, X], axis=3)
        arrays[f"y_{part}"] = np.array(["no", "yes", "so"])[arrays[f"y_{part}"]]
    code, out, _ = run(arrays, "--rounds", "1", "--depth", "1")
    assert code == 0 and "images of 6 x 5 x 3, 3 classes" in out


@pytest.mark.parametrize("n", [2, 13, 59, 60])
def test_training_images_are_drawn_by_class_and_seed(n):
    y = np.repeat([0, 1, 2], [30, 20, 10])
    chosen = job.draw_by_class(y, n, 0)
    assert len(np.unique(chosen)) == n
    share = np.bincount(y[chosen], minlength=3) - n * np.array([3, 2, 1]) / 6
    assert np.abs(share).max() <= 1
    np.testing.assert_array_equal(chosen, job.draw_by_class(y, n, 0))
    if n < 59:
        assert not np.array_equal(chosen, job.draw_by_class(y, n, 1))


def test_embedded_split_keeps_training_and_test_apart():
    split = job.embedded_split(0)
    assert len(split.X_train) == 1000 and len(split.X_test) == 797
    both = np.concatenate([split.X_train, split.X_test]).reshape(1797, -1)
    assert len(np.unique(both, axis=0)) == 1797


def test_help_names_the_options(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    out = capsys.readouterr().out
    for option in "data n-train rounds depth patch-size device out seed".split():
        assert f"--{option}" in out
    assert "divided by 255" in " ".join(out.split())


# ---------------------------------------------------------------- extras missing


@pytest.mark.slow
def test_without_matplotlib_one_line_says_what_pictures_need(
    run, arrays, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arrays["y_train"][0] = 9  # a class of one image, which leaves the SVC untuned
    code, out, _ = run(arrays, "--rounds", "0", "--depth", "1")
    assert code == 0 and "RBF SVC" in out and "tuned" not in out
    assert out.splitlines()[-3] == 'For the pictures: pip install "skconvrfm[plot]"'
    assert not list((tmp_path / "out").iterdir())


# ------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rounds", "-1"], ["--rounds", "at least 0", "'-1'"]),
        (["--depth", "deep"], ["--depth", "at least 1", "'deep'"]),
        (["--n-train", "1"], ["--n-train", "at least 2", "'1'"]),
        (["--n-train", "1001"], ["--n-train 1001", "1000 training images"]),
        (["--patch-size", "0"], ["--patch-size", "'0'"]),
        (["--patch-size", "3x3x3"], ["--patch-size", "'3x3x3'"]),
        (["--seed", str(2**32)], ["--seed", str(2**32)]),
        (["--device", "tpu"], ["--device", "tpu"]),
        (["--colour"], ["--colour", "--help"]),
        (["--depth"], ["--depth", "expected one argument"]),
    ],
)
def test_wrong_option_is_one_line(run, options, words):
    assert_one_line(run(None, *options), *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_one_line(run):
    assert_one_line(run(None, "--device", "cuda"), "--device", "cuda")


def test_folder_that_is_a_file_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_line(run(None, "--out", str(tmp_path / "file")), "--out", "file")


@pytest.mark.parametrize("missing", job.KEYS)
def test_missing_key_is_one_line(run, arrays, missing):
    del arrays[missing]
    assert_one_line(run(arrays), f"lacks {missing}", "it has")


def as_float(images, value):
    images = images.astype(float)
    images[0, 0, 0] = value
    return images


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("X_train", lambda X: X.reshape(60, -1), ["X_train", "(60, 144)", "columns"]),
        ("X_test", lambda X: X[:, 1:], ["(12, 12)", "(11, 12)"]),
        ("X_test", lambda X: X[:0], ["X_test", "(0, 12, 12)"]),
        ("X_test", lambda X: X[1:], ["29 images", "30 labels"]),
        ("X_train", lambda X: X.astype(int), ["X_train", "int64", "uint8"]),
        ("X_train", lambda X: as_float(X, np.nan), ["X_train", "NaN"]),
        ("X_test", lambda X: as_float(X, np.inf), ["X_test", "infinite"]),
        ("y_train", lambda y: y[:, None], ["y_train", "(60, 1)"]),
        ("y_train", lambda y: y + 0.5, ["y_train", "no class labels"]),
        ("y_test", lambda y: y.astype(str), ["y_train", "y_test", "<U"]),
        ("y_train", np.zeros_like, ["one class"]),
        ("y_train", lambda y: y.astype(object), ["plain arrays"]),
    ],
)
def test_wrong_array_is_one_line(run, arrays, key, change, words):
    arrays[key] = change(arrays[key])
    assert_one_line(run(arrays), "images.npz", *words)


def write_array(path):
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def write_broken_archive(path):
    np.savez(path, X_train=np.ones(1000))
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, ["No such file"]),
        (Path.mkdir, ["directory"]),
        (Path.touch, ["cannot be read"]),
        (lambda path: path.write_text("not an archive"), ["cannot be read"]),
        (write_array, ["one array", "np.savez"]),
        (write_broken_archive, ["cannot be read"]),
    ],
)
def test_unreadable_file_is_one_line(run, tmp_path, write, words):
    path = tmp_path / "broken.npz"
    write(path)
    assert_one_line(run(None, "--data", str(path)), str(path), *words)
    assert not (tmp_path / "out").exists()
