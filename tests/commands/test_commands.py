"""`train`, `predict` and `explain` work on folders and archives, and fail in a line."""

import csv
import re
import subprocess
import sys

import numpy as np
import pytest

import skconvrfm
from skconvrfm.__main__ import main, parse_options
from skconvrfm._command_line import UsageError
from skconvrfm.commands import models, train
from skconvrfm.commands.data import LARGEST_SIDE

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("skops")
pytest.importorskip("matplotlib")

QUICK = ["--kernel", "patch_gaussian", "--rounds", "0", "--device", "cpu"]


def write_images(folder, n=8, size=(9, 7), seed=0):
    """Write images of two classes, dark and light, in colour."""
    rng = np.random.default_rng(seed)
    for name, value in (("dark", 60), ("light", 190)):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(value - 50, value + 50, size=(*size, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder of small images, with a model that was trained on them."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "photos")
    code = main(
        ["train", f"{folder / 'photos'}", "--out", f"{folder / 'm.skops'}", *QUICK]
    )
    assert code == 0
    return folder


@pytest.fixture
def run(capsys):
    """Return a function that runs a command: (exit code, stdout, stderr)."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def assert_one_line(result, *words):
    """Exit code 2, one line on stderr with these words."""
    code, _, err = result
    assert code == 2, err
    assert err.startswith("skconvrfm: error: ") and err.count("\n") == 1
    for word in words:
        assert word in err


# ------------------------------------------------------------------ they work


def test_model_trained_on_a_folder_predicts_another(photos, run, tmp_path):
    write_images(tmp_path / "new", n=3, size=(20, 16), seed=1)
    table = tmp_path / "out.csv"
    code, out, err = run(
        "predict", photos / "m.skops", tmp_path / "new", "--out", table
    )
    assert (code, err) == (0, "")
    assert "Accuracy: 100.0%" in out and f"6 images: {table}" in out
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ["filename", "predicted", "probability_dark", "probability_light"]
    assert list(rows[0]) == columns
    for row in rows:
        assert row["filename"].startswith(row["predicted"])
        shares = [float(row[name]) for name in columns[2:]]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert shares[row["predicted"] == "light"] > 0.5


def test_flat_folders_and_single_files_are_predicted(photos, run, tmp_path):
    (tmp_path / "flat").mkdir()
    for i in range(2):
        source = photos / "photos" / "light" / f"{i}.png"
        (tmp_path / "flat" / f"{i}.png").write_bytes(source.read_bytes())
    for data, names in (
        (tmp_path / "flat", ["0.png", "1.png"]),
        (tmp_path / "flat" / "1.png", ["1.png"]),
    ):
        table = tmp_path / "out.csv"
        code, out, _ = run("predict", photos / "m.skops", data, "--out", table)
        assert code == 0 and "Accuracy" not in out
        rows = list(csv.reader(table.read_text().splitlines()))[1:]
        assert [row[:2] for row in rows] == [[name, "light"] for name in names]


def test_explanation_is_a_picture_with_its_class(photos, run, tmp_path):
    image = photos / "photos" / "dark" / "1.png"
    for options, label in (([], "dark"), (["--target", "light"], "light")):
        picture = tmp_path / f"{label}.png"
        code, out, err = run(
            "explain", photos / "m.skops", image, "--out", picture, *options
        )
        assert (code, err) == (0, "")
        assert f"class {label}: score " in out and f"Picture: {picture}" in out
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_training_says_accuracy_time_and_the_next_command(photos, run, tmp_path):
    model = tmp_path / "m.skops"
    options = ["--out", model, "--hold-out", "0.25", *QUICK]
    code, out, err = run("train", photos / "photos", *options)
    assert (code, err) == (0, "")
    assert "16 images of 9 x 7 x 3, 2 classes" in out
    assert re.search(r"Trained in [\d.]+ s", out)
    assert "Accuracy: 100.0% of 4 images held out" in out and "leave-one" not in out
    assert f"Next: skconvrfm predict {model} IMAGES" in out
    assert models.load_model(model).image_shape_ == (9, 7, 3)


def test_archives_are_trained_on_and_predicted(run, tmp_path):
    X = np.random.default_rng(0).random((20, 6, 6))
    y = np.arange(20) % 2
    X[y == 1] += 1
    test = {"X_test": X[14:], "y_test": y[14:]}
    np.savez(tmp_path / "a.npz", X_train=X[:14], y_train=y[:14], **test)
    np.savez(tmp_path / "b.npz", X=X)
    model, table = tmp_path / "m.skops", tmp_path / "out.csv"
    code, out, _ = run("train", tmp_path / "a.npz", "--out", model, *QUICK)
    assert code == 0
    assert "by leave-one-out" in out and "100.0% of 6 images of X_test" in out
    assert run("predict", model, tmp_path / "b.npz", "--out", table)[0] == 0
    rows = list(csv.reader(table.read_text().splitlines()))[1:]
    assert [row[:2] for row in rows] == [[f"X[{i}]", str(k)] for i, k in enumerate(y)]


def test_search_prints_what_it_tried_and_takes_the_best(photos, run, tmp_path):
    model = tmp_path / "m.skops"
    code, out, _ = run("train", photos / "photos", "--out", model, "--search", *QUICK)
    assert code == 0
    found = dict(re.findall(r"\] (.*): ([\d.]+)% of left-out images, 3 folds", out))
    assert set(found) == {"patch 3", "patch 5"}
    [chosen] = re.findall("Chosen: (.*)", out)
    assert float(found[chosen]) == max(map(float, found.values()))
    assert models.load_model(model).kernel.patch_size == int(chosen[-1])


def test_large_images_are_resized_and_that_is_said(run, tmp_path):
    write_images(tmp_path / "photos", n=3, size=(120, 90))
    model = tmp_path / "m.skops"
    code, out, _ = run("train", tmp_path / "photos", "--out", model, *QUICK)
    assert code == 0
    assert "120 x 90 pixels are resized to 64 x 48" in out and "--size" in out
    assert max(models.load_model(model).image_shape_) == LARGEST_SIDE
    options = ["--out", model, "--size", "10x8", "--mode", "gray", *QUICK]
    code, out, _ = run("train", tmp_path / "photos", *options)
    assert code == 0 and "are resized" not in out
    assert models.load_model(model).image_shape_ == (10, 8, 1)


def test_broken_files_are_named_or_left_out(run, tmp_path):
    write_images(tmp_path / "photos", n=4)
    (tmp_path / "photos" / "dark" / "bad.png").write_text("no image")
    options = [tmp_path / "photos", "--out", tmp_path / "m.skops", *QUICK]
    assert_one_line(run("train", *options), "bad.png", "--skip-broken")
    code, out, err = run("train", *options, "--skip-broken")
    assert code == 0 and "8 images" in out
    assert err.startswith("skconvrfm: warning: 1 of 9") and "bad.png" in err


def test_whole_kernels_have_features_and_patch_kernels_none():
    for kernel, features in (("gaussian", "auto"), ("linear", "auto"), ("ntk", None)):
        command = ["train", "x", "--out", "y", "--kernel", kernel]
        assert train.make_model(parse_options(command)).features == features
    command = ["train", "x", "--out", "y", "--features", "none"]
    assert train.make_model(parse_options(command)).features is None
    names = train.settings("gaussian", "auto", (5, 5))
    assert list(names) == [
        "features auto",
        "one layer, patch 3",
        "one layer, patch 5",
    ]


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert not caught.value.code
    assert capsys.readouterr().out.strip() == skconvrfm.__version__


@pytest.mark.slow
def test_module_is_the_command():
    command = [sys.executable, "-m", "skconvrfm", "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: skconvrfm train")


# ------------------------------------------------------------------- mistakes


def test_missing_or_unknown_command_is_one_line(run):
    assert_one_line(run(), "COMMAND", "--help")
    assert_one_line(run("fly"), "fly", "train")


def test_data_that_cannot_be_trained_on_are_one_line(photos, run, tmp_path):
    out = ["--out", tmp_path / "m.skops", *QUICK]
    folder = photos / "photos"
    for arguments, words in (
        ([tmp_path / "none"], ["No such file"]),
        ([folder / "dark"], ["no subfolders"]),
        ([folder, "--hold-out", "2"], ["--hold-out", "between 0 and 1"]),
        ([folder, "--size", "0"], ["--size"]),
        ([folder, "--kernel", "best"], ["--kernel", "gaussian"]),
        ([folder, "--device", "tpu"], ["--device", "tpu"]),
        ([folder / "dark" / "1.png"], [".npz"]),
    ):
        assert_one_line(run("train", *out, *arguments), *words)
    assert_one_line(run("train", folder, "--out", tmp_path), "is a folder")
    assert_one_line(run("train", folder), "--out")
    assert not list(tmp_path.iterdir())


def test_few_images_refuse_search_and_holding_out(run, tmp_path):
    write_images(tmp_path / "photos", n=1)
    out = [tmp_path / "photos", "--out", tmp_path / "m.skops", *QUICK]
    assert_one_line(run("train", *out, "--search"), "--search", "3 folds")
    assert_one_line(run("train", *out, "--hold-out", "0.5"), "single image")


def test_model_files_that_cannot_be_trusted_or_read_are_one_line(photos, run, tmp_path):
    import skops.io
    from sklearn.linear_model import LogisticRegression

    other, text = tmp_path / "other.skops", tmp_path / "text.skops"
    skops.io.dump(LogisticRegression(), other)
    text.write_text("nothing")
    foreign, half = tmp_path / "foreign.skops", tmp_path / "half.skops"
    skops.io.dump(UsageError("of no estimator"), foreign)
    half.write_bytes((photos / "m.skops").read_bytes()[:2000])
    for model, words in (
        (other, ["LogisticRegression, not a fitted"]),
        (text, ["no file of skconvrfm train"]),
        (half, ["no file of skconvrfm train"]),
        (foreign, ["UsageError"]),
        (tmp_path / "none", ["No such file"]),
    ):
        arguments = [model, photos / "photos", "--out", tmp_path / "out.csv"]
        assert_one_line(run("predict", *arguments), f"MODEL {model}", *words)
    assert not (tmp_path / "out.csv").exists()


def test_model_of_another_version_is_refused(photos, run, tmp_path, monkeypatch):
    from skconvrfm import _input

    monkeypatch.setattr(_input, "_FORMAT", 99)
    arguments = [photos / "m.skops", photos / "photos", "--out", tmp_path / "out.csv"]
    assert_one_line(run("predict", *arguments), "another version")


def test_images_that_do_not_fit_the_model_are_one_line(photos, run, tmp_path):
    np.savez(tmp_path / "x.npz", X=np.zeros((2, 5, 5)))
    out = ["--out", tmp_path / "out"]
    model = photos / "m.skops"
    (tmp_path / "empty").mkdir()
    for command, data, words in (
        ("predict", tmp_path / "x.npz", ["(5, 5, 1)", "(9, 7, 3)"]),
        ("predict", tmp_path / "empty", ["no image files"]),
        ("predict", tmp_path / "none", ["no such file"]),
        ("explain", tmp_path / "empty", ["is a folder"]),
        ("explain", tmp_path / "x.npz", ["cannot be read as an image"]),
    ):
        assert_one_line(run(command, model, data, *out), *words)
    image = photos / "photos" / "dark" / "1.png"
    options = [image, *out, "--target", "blue"]
    assert_one_line(run("explain", model, *options), "blue", "dark, light")
    options = [image, *out, "--patch-size", "9"]
    assert_one_line(run("explain", model, *options), "patch_size=9")


@pytest.mark.parametrize(
    ("module", "command", "words"),
    [
        ("skops", "predict", 'pip install "skconvrfm[save]"'),
        ("matplotlib", "explain", 'pip install "skconvrfm[plot]"'),
        ("PIL", "predict", 'pip install "skconvrfm[images]"'),
    ],
)
def test_missing_extra_is_one_line(
    module, command, words, photos, run, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    data = photos / "photos" / ("" if command == "predict" else "dark/1.png")
    arguments = [photos / "m.skops", data, "--out", tmp_path / "out"]
    assert_one_line(run(command, *arguments), words)
