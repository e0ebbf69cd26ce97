"""A folder of image files becomes one array: classes, sizes, colours, damage."""

import gc
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import config_context

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import load_image_folder

RNG = np.random.default_rng(0)


def save(folder, name, pixels, **options):
    """Write an image file and return its path."""
    path = Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def grey(h=6, w=8):
    return RNG.integers(0, 256, (h, w), dtype=np.uint8)


def colour(h=6, w=8):
    return RNG.integers(0, 256, (h, w, 3), dtype=np.uint8)


def load_one(folder, name, pixels, *, options=None, **arguments):
    """Load the only image of a folder."""
    save(folder, f"a/{name}", pixels, **(options or {}))
    return load_image_folder(folder, **arguments).data[0]


def test_files_are_sorted_by_class_and_path(tmp_path):
    pixels = {name: grey() for name in ("b/2.png", "b/1.PNG", "a/z.bmp", "a/in/0.tif")}
    for name, image in pixels.items():
        save(tmp_path, name, image)
    images = load_image_folder(tmp_path)
    order = ["a/in/0.tif", "a/z.bmp", "b/1.PNG", "b/2.png"]
    np.testing.assert_array_equal(images.data, [pixels[name] for name in order])
    assert images.data.dtype == np.uint8 and images.target.dtype == np.int64
    assert images.filenames.tolist() == [str(tmp_path / name) for name in order]
    assert images.target.tolist() == [0, 0, 1, 1]
    assert images.target_names.tolist() == ["a", "b"]


def test_classes_select_and_order_subfolders(tmp_path):
    for name in "abc":
        save(tmp_path, f"{name}/1.png", grey())
    images = load_image_folder(str(tmp_path), classes=["c", "a"])
    assert images.target_names[images.target].tolist() == ["c", "a"]
    assert [Path(name).parent.name for name in images.filenames] == ["c", "a"]
    for classes in (["a", "d"], ["a", "a"], []):
        with pytest.raises(ValueError, match="must name some subfolders.*a, b, c"):
            load_image_folder(tmp_path, classes=classes)


def test_hidden_files_and_others_are_left_out(tmp_path):
    save(tmp_path, "a/1.png", grey())
    save(tmp_path, "a/.hidden.png", grey())
    save(tmp_path, "a/__MACOSX/2.png", grey())
    save(tmp_path, ".git/3.png", grey())
    save(tmp_path, "__pycache__/4.png", grey())
    save(tmp_path, "5.png", grey())
    (tmp_path / "a" / "notes.txt").write_text("none")
    images = load_image_folder(tmp_path)
    assert [Path(name).name for name in images.filenames] == ["1.png"]
    assert images.target_names.tolist() == ["a"]


# ------------------------------------------------------------------- colours


def test_auto_is_grey_until_an_image_has_colours(tmp_path):
    first, second, third = grey(), grey(), colour()
    save(tmp_path, "a/1.png", first)
    save(tmp_path, "a/2.png", np.repeat(second[..., None], 3, axis=2))
    images = load_image_folder(tmp_path)
    np.testing.assert_array_equal(images.data, [first, second])
    save(tmp_path, "a/3.png", third)
    images = load_image_folder(tmp_path)
    assert images.data.shape == (3, 6, 8, 3)
    np.testing.assert_array_equal(images.data[2], third)
    for image, pixels in zip(images.data, (first, second), strict=False):
        np.testing.assert_array_equal(image, np.repeat(pixels[..., None], 3, axis=2))


def test_mode_makes_all_grey_or_coloured(tmp_path):
    pixels = colour()
    save(tmp_path, "a/1.png", pixels)
    save(tmp_path, "a/2.png", grey())
    grey_images = load_image_folder(tmp_path, mode="gray").data
    weighted = pixels @ [0.299, 0.587, 0.114]
    assert grey_images.shape == (2, 6, 8)
    np.testing.assert_allclose(grey_images[0], weighted, atol=0.51)
    assert load_image_folder(tmp_path, mode="rgb").data.shape == (2, 6, 8, 3)


def test_transparent_pixels_are_laid_on_white(tmp_path):
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[0, :, 3] = 255
    pixels[1, 1, 3] = 128
    found = load_one(tmp_path, "1.png", pixels)
    np.testing.assert_array_equal(found, [[0, 0], [255, 127]])


def test_palettes_give_their_colours_and_transparency(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([2, 1, 0])
    found = load_one(tmp_path, "1.png", image, options={"transparency": 1})
    np.testing.assert_array_equal(found, [[[0, 0, 255], [255] * 3, [255, 0, 0]]])


@pytest.mark.parametrize("name", ["1.png", "1.tif"])
def test_grey_of_16_bits_becomes_8_bits(tmp_path, name):
    pixels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(load_one(tmp_path, name, pixels), [[0, 1, 128, 255]])


@pytest.mark.parametrize("pixels", [np.float32([[0.5]]), np.int32([[70000]])])
def test_pixels_of_unknown_scale_are_refused_by_name(tmp_path, pixels):
    with pytest.raises(ValueError, match="1.tif' cannot be read as an image: its"):
        load_one(tmp_path, "1.tif", pixels)


def test_two_colours_of_one_bit_are_black_and_white(tmp_path):
    found = load_one(tmp_path, "1.png", np.array([[True, False]]))
    np.testing.assert_array_equal(found, [[255, 0]])


def test_photographs_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    pixels = np.zeros((16, 32), dtype=np.uint8)
    pixels[:, :16] = 255
    found = load_one(tmp_path, "1.jpg", pixels, options={"exif": exif})
    assert found.shape == (32, 16)
    assert found[:8].min() > 200 and found[-8:].max() < 50


# --------------------------------------------------------------------- sizes


def test_mixed_sizes_need_a_size(tmp_path):
    save(tmp_path, "a/1.png", grey(6, 8))
    save(tmp_path, "a/2.png", grey(8, 6))
    with pytest.raises(ValueError, match=r"2.png' has 8 x 6 .*size=\(6, 8\)"):
        load_image_folder(tmp_path)
    with pytest.raises(ValueError, match="2.png"):
        load_image_folder(tmp_path, on_error="skip")
    assert load_image_folder(tmp_path, size=5).data.shape == (2, 5, 5)
    assert load_image_folder(tmp_path, size=(4, 7)).data.shape == (2, 4, 7)


def test_crop_covers_and_pad_fits_in(tmp_path):
    pixels = np.full((10, 20), 200, dtype=np.uint8)
    pixels[:, :5] = pixels[:, 15:] = 100
    cropped = load_one(tmp_path, "1.png", pixels, size=10)
    np.testing.assert_array_equal(cropped, np.full((10, 10), 200))
    padded = load_image_folder(tmp_path, size=20, resize="pad").data[0]
    np.testing.assert_array_equal(padded[5:15], pixels)
    assert not padded[:5].any() and not padded[15:].any()


def test_images_of_the_size_are_left_as_they_are(tmp_path):
    pixels = colour()
    for resize in ("crop", "pad"):
        found = load_one(tmp_path, "1.png", pixels, size=(6, 8), resize=resize)
        np.testing.assert_array_equal(found, pixels)


# -------------------------------------------------------------------- damage


@pytest.fixture
def broken(tmp_path):
    """A folder in which three of five files are broken."""
    save(tmp_path, "a/1.png", np.full((6, 8), 1, dtype=np.uint8))
    save(tmp_path, "b/5.png", np.full((6, 8), 5, dtype=np.uint8))
    whole = save(tmp_path, "a/2.jpg", grey(60, 80)).read_bytes()
    (tmp_path / "a" / "2.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a" / "3.png").write_text("no image")
    (tmp_path / "b" / "4.gif").write_bytes(b"")
    return tmp_path


def test_a_broken_file_is_named(broken):
    with pytest.raises(ValueError, match='2.jpg.*cannot be read.*on_error="skip"'):
        load_image_folder(broken)


def test_broken_files_are_skipped_with_one_warning(broken):
    with pytest.warns(UserWarning, match="3 of 5 files.*2.jpg.*3.png.*4.gif") as caught:
        images = load_image_folder(broken, on_error="skip")
    assert len(caught) == 1 and caught[0].filename == __file__
    assert images.data[:, 0, 0].tolist() == [1, 5]
    assert images.target.tolist() == [0, 1]
    assert [Path(name).name for name in images.filenames] == ["1.png", "5.png"]


def test_a_long_warning_names_ten_files(tmp_path):
    save(tmp_path, "a/1.png", grey())
    for i in range(12):
        (tmp_path / "a" / f"b{i}.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="12 of 13 .* and 2 more$"):
        load_image_folder(tmp_path, on_error="skip")


def test_folders_without_images_are_refused_by_name(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere.*does not exist"):
        load_image_folder(tmp_path / "nowhere")
    path = save(tmp_path, "1.png", grey())
    with pytest.raises(NotADirectoryError, match="is a file"):
        load_image_folder(path)
    with pytest.raises(ValueError, match="has no subfolders"):
        load_image_folder(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="a' has no images that can be read"):
        load_image_folder(tmp_path)
    save(tmp_path, "b/1.png", grey())
    with pytest.raises(ValueError, match="a' has no images that can be read"):
        load_image_folder(tmp_path)


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    save(tmp_path, "a/1.png", grey())
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'pip install "skconvrfm\[images\]"'):
        load_image_folder(tmp_path)


# -------------------------------------------------------------------- memory


def test_beyond_the_working_memory_images_lie_in_a_file(tmp_path):
    for i in range(6):
        save(tmp_path, f"{i % 2}/{i}.png", grey(40, 40))
    save(tmp_path, "1/7.png", colour(40, 40))
    expected = load_image_folder(tmp_path)
    with config_context(working_memory=0.02):
        images = load_image_folder(tmp_path)
        assert isinstance(images.data, np.memmap)
        np.testing.assert_array_equal(images.data, expected.data)
        model = ConvRFMClassifier(kernel="linear", n_rounds=0, features=None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = model.fit(images.data, images.target).predict(images.data)
            memory = model.fit(expected.data, expected.target).predict(expected.data)
    np.testing.assert_array_equal(stored, memory)
    file = Path(images.data.filename)
    assert file.exists()
    row = images.data[0]
    del images
    gc.collect()
    assert file.exists() and row.shape == (40, 40, 3)
    del row
    gc.collect()
    assert not file.parent.exists()
