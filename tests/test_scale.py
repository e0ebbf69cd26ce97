"""Images of 0 to 255 are divided by 255: the machine is that of images in [0, 1]."""

import copy
import pickle

import numpy as np
import pytest
from joblib import parallel_config

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.compute.images import ScaledImages, held, take, unscaled
from skconvrfm.datasets import load_digit_images
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

N = 30
IMAGES, LABELS = load_digit_images(return_X_y=True)
IMAGES, LABELS = np.uint8(255 * IMAGES[:N]), LABELS[:N] % 3
KERNELS = [ConvNTK, ConvNNGP, PatchGaussian, PatchLaplace, Gaussian, Laplace, Linear]
PATCH_KERNELS = KERNELS[:4]
LAYER = ConvFeatures(6, patch_size=3, pool_grid=2)
MACHINES = {
    **{kernel.__name__: (kernel(), None) for kernel in KERNELS},
    "mirrored": (ConvNTK(depth=2, mirror=True, pool_grid=2), None),
    "whitened": (PatchGaussian(metric="auto"), None),
    "one layer": (Linear(), LAYER),
    "mirrored layer": (Gaussian(), ConvFeatures(6, patch_size=3, mirror=True)),
    "two layers": (
        Gaussian(),
        [ConvFeatures(4, patch_size=3, pool_size=2, normalize=1.0, skip=True), LAYER],
    ),
    "candidates": (Laplace(), ConvFeatures(4, patch_size=3, candidates=2)),
    "deep": (ConvNTK(depth=1), ConvFeatures(4, patch_size=3, pool_size=2)),
}
ALL_MACHINES = pytest.mark.parametrize("name", MACHINES)
DTYPES = pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])


def make(name, **options):
    kernel, features = copy.deepcopy(MACHINES[name])
    options = {"n_rounds": 1, "alpha": (1e-3, 1e-1), "dtype": "float32", **options}
    return ConvRFMClassifier(kernel, features, **options)


def divided(images, scale=255):
    """Images over their scale, in float64 as the machines divide."""
    return images.astype(np.float64) / scale


@DTYPES
@ALL_MACHINES
def test_fits_equal_those_of_divided_images(name, dtype):
    images = IMAGES.astype(dtype)
    model = make(name).fit(images, LABELS)
    other = make(name).fit(divided(images), LABELS)
    assert (model.scale_, other.scale_) == (255.0, 1.0)
    np.testing.assert_array_equal(
        model.decision_function(images), other.decision_function(divided(images))
    )
    np.testing.assert_array_equal(model.loo_prediction_, other.loo_prediction_)


@pytest.mark.parametrize("name", ["ConvNTK", "Gaussian", "one layer", "deep"])
@pytest.mark.parametrize("scale", [1, 7.0])
def test_a_number_divides_whatever_the_images(name, scale):
    kernel, features = MACHINES[name]
    part = f"{'features' if features else 'kernel'}__scale"
    for images in (IMAGES, IMAGES / 255 - 0.5):
        model = make(name).set_params(**{part: scale}).fit(images, LABELS)
        plain = make(name).set_params(**{part: 1})
        plain.fit(divided(images, scale), LABELS)
        assert model.scale_ == scale
        np.testing.assert_array_equal(
            model.decision_function(images),
            plain.decision_function(divided(images, scale)),
        )


@pytest.mark.parametrize(
    ("images", "scale"),
    [
        (IMAGES, 255),
        (IMAGES.astype(int), 255),
        (1.6 * (IMAGES / 255), 255),
        (1.4 * (IMAGES / 255), 1),
        (IMAGES / 255, 1),
        (IMAGES > 99, 1),
        (IMAGES - 1.0, 1),
        (IMAGES + 1.0, 1),
        (IMAGES.reshape(N, 1, 64), 1),
    ],
)
def test_auto_asks_for_values_from_0_to_255_some_beyond_one_and_a_half(images, scale):
    model = ConvRFMClassifier("linear", n_rounds=0).fit(images, LABELS)
    assert model.scale_ == scale and type(model.scale_) is float


def test_later_images_are_divided_as_those_of_the_fit():
    model = make("ConvNTK").fit(IMAGES, LABELS)
    dark = np.minimum(IMAGES, 1)
    for other in (dark, dark.astype(float)):
        expected = make("ConvNTK").fit(divided(IMAGES), LABELS)
        np.testing.assert_allclose(
            model.decision_function(other),
            expected.decision_function(other / 255),
            rtol=1e-4,
            atol=1e-5,
        )
    model = make("ConvNTK").fit(IMAGES / 255, LABELS)
    np.testing.assert_array_equal(
        model.predict(IMAGES), model.predict(IMAGES.astype(np.float32))
    )
    assert model.scale_ == 1


def test_training_images_are_kept_as_they_came():
    for options in ({}, {"landmarks": 12}):
        model = make("ConvNTK", **options).fit(IMAGES, LABELS)
        assert model.X_fit_.dtype == np.uint8 and model.X_fit_.max() > 200


@pytest.mark.parametrize("name", ["ConvNTK", "Gaussian", "two layers"])
def test_landmarks_and_stored_images_are_divided_as_well(name, tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    stored = np.load(tmp_path / "images.npy", mmap_mode="r")
    for landmarks in (None, 12):
        other = make(name, landmarks=landmarks).fit(divided(IMAGES), LABELS)
        expected = other.decision_function(divided(IMAGES))
        for images in (IMAGES, stored):
            model = make(name, landmarks=landmarks).fit(images, LABELS)
            assert model.scale_ == 255
            np.testing.assert_array_equal(model.decision_function(images), expected)
            with parallel_config("threading", n_jobs=2):
                found = model.decision_function(images)
            np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
@pytest.mark.parametrize("landmarks", [None, 12])
def test_partial_fits_keep_the_scale_of_the_first(dtype, landmarks):
    images = IMAGES.astype(dtype)
    name = "one layer" if landmarks is None else "candidates"
    model, other = make(name, landmarks=landmarks), make(name, landmarks=landmarks)
    dark = np.minimum(images, 1)
    for batch, labels in ((images[:20], LABELS[:20]), (dark[20:], LABELS[20:])):
        model.partial_fit(batch, labels, classes=[0, 1, 2])
        other.partial_fit(divided(batch), labels, classes=[0, 1, 2])
        assert (model.scale_, other.scale_) == (255, 1)
    np.testing.assert_array_equal(
        model.decision_function(images), other.decision_function(divided(images))
    )


def test_warm_starts_keep_the_scale_of_the_former_fit():
    model = make("ConvNTK", warm_start=True).fit(IMAGES, LABELS)
    assert model.fit(np.minimum(IMAGES, 1), LABELS).scale_ == 255


def test_flat_rows_and_channels_first_are_divided_alike():
    colour = np.stack([IMAGES, IMAGES // 2], axis=-1)
    expected = make("ConvNTK").fit(colour, LABELS).decision_function(colour)
    first = colour.transpose(0, 3, 1, 2)
    model = make("ConvNTK", channels="first").fit(first, LABELS)
    np.testing.assert_array_equal(model.decision_function(first), expected)
    rows = colour.reshape(N, -1)
    model = make("ConvNTK", image_shape=(8, 8, 2)).fit(rows, LABELS)
    np.testing.assert_array_equal(model.decision_function(rows), expected)


def test_saved_models_know_their_scale():
    model = pickle.loads(pickle.dumps(make("two layers").fit(IMAGES, LABELS)))
    assert model.scale_ == 255


def test_models_of_a_changed_scale_are_refused():
    model = make("Gaussian").fit(IMAGES, LABELS)
    for scale in (None, 0, -1.0, "255", np.inf, np.nan):
        model.scale_ = scale
        with pytest.raises(ValueError, match="scale_=.* is not a positive number"):
            model.predict(IMAGES)


def test_checkpoints_tell_scales_apart(tmp_path):
    options = {"checkpoint": tmp_path / "fit"}
    expected = make("ConvNTK").fit(IMAGES, LABELS).decision_function(IMAGES)
    for _ in range(2):  # the second one loads
        model = make("ConvNTK", **options).fit(IMAGES, LABELS)
        np.testing.assert_array_equal(model.decision_function(IMAGES), expected)
    with pytest.raises(ValueError, match="kernel"):
        make("ConvNTK", **options).set_params(kernel__scale=2).fit(IMAGES, LABELS)


def test_transformers_divide_as_their_estimator():
    learner = make("ConvNTK")
    for output in ("filters", "eigen", "saliency"):
        model = PatchAGOPTransformer(learner, output=output).fit(IMAGES, LABELS)
        other = PatchAGOPTransformer(learner, output=output)
        other.fit(divided(IMAGES), LABELS)
        assert (model.scale_, other.scale_) == (255, 1)
        np.testing.assert_array_equal(
            model.transform(IMAGES), other.transform(divided(IMAGES))
        )


def test_regressors_divide():
    y = np.arange(float(N))
    model = ConvRFMRegressor(n_rounds=0, dtype="float32").fit(IMAGES, y)
    other = ConvRFMRegressor(n_rounds=0, dtype="float32").fit(divided(IMAGES), y)
    np.testing.assert_array_equal(model.predict(IMAGES), other.predict(divided(IMAGES)))


# ------------------------------------------------------------------- kernels


@DTYPES
@pytest.mark.parametrize("Kernel", KERNELS)
def test_kernels_divide_both_arguments_by_one_number(Kernel, dtype):
    X, Y = IMAGES[:10].astype(dtype), np.minimum(IMAGES[10:15], 1).astype(dtype)

    def value(*images, scale="auto"):
        return Kernel(scale=scale)(*images, dtype="float32")

    assert_equal = np.testing.assert_array_equal
    assert_equal(value(X), value(divided(X)))
    assert_equal(value(X, Y), value(divided(X), divided(Y)))
    assert_equal(value(Y, X), value(divided(Y), divided(X)))
    assert_equal(value(Y), value(Y, scale=1))
    assert_equal(value(X, scale=2), value(divided(X, 2), scale=1))


@pytest.mark.parametrize("Kernel", PATCH_KERNELS)
def test_agops_are_of_divided_images(Kernel):
    coef = np.random.default_rng(0).normal(size=(10, 2))
    others, options = (
        (divided(IMAGES[:10]), coef, divided(IMAGES[10:20])),
        {"dtype": "float32"},
    )
    for mirror in (False, True):
        kernel = Kernel(mirror=mirror)
        np.testing.assert_array_equal(
            patch_agop(kernel, IMAGES[:10], coef, IMAGES[10:20], **options),
            patch_agop(kernel, *others, **options),
        )


@pytest.mark.parametrize("Kernel", KERNELS)
def test_bad_scales_of_a_kernel_are_refused(Kernel):
    for scale in (0, -1.0, "raw", np.nan, None):
        with pytest.raises(ValueError, match="'scale' parameter"):
            Kernel(scale=scale)(IMAGES[:3])


@pytest.mark.parametrize(
    ("kernel", "features", "name"),
    [
        (Linear(scale=1), LAYER, "kernel"),
        (ConvNTK(depth=1, scale=1), MACHINES["deep"][1], "kernel"),
        (
            Linear(),
            [ConvFeatures(4, pool_size=2), ConvFeatures(4, patch_size=2, scale=1)],
            r"features\[1\]",
        ),
    ],
)
def test_scales_above_a_layer_are_refused(kernel, features, name):
    match = rf"{name}.scale=1 has no effect above features\[0\]=ConvFeatures"
    with pytest.raises(ValueError, match=match):
        ConvRFMClassifier(kernel, features).fit(IMAGES, LABELS)


# --------------------------------------------------------------------- images


def test_divided_images_are_copied_in_blocks_alone():
    images = ScaledImages(IMAGES[..., None], 255.0)
    some = take(images[10:], np.array([3, 1]))
    assert some.shape == (2, 8, 8, 1)
    np.testing.assert_array_equal(some, divided(IMAGES[[13, 11], ..., None]))
    assert np.shares_memory(unscaled(images[2:5]), IMAGES)
    assert unscaled(held(some)).dtype == np.uint8
