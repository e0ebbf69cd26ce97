"""The data sets are what their documentation says, and refuse what makes no sense."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from skconvrfm.datasets import load_digit_images, make_framed_digits, make_star

BOTH_MAKERS = pytest.mark.parametrize(
    "make", [lambda seed: make_star(20, random_state=seed), lambda seed: framed(seed)]
)


def framed(seed):
    return make_framed_digits(np.ones((20, 4, 4)), np.arange(20), random_state=seed)


@BOTH_MAKERS
def test_same_seed_same_images_other_seed_other_images(make):
    (X, y), (X_again, y_again), (X_other, _) = make(0), make(0), make(1)
    np.testing.assert_array_equal(X, X_again)
    np.testing.assert_array_equal(y, y_again)
    assert not np.array_equal(X, X_other)


@BOTH_MAKERS
def test_global_random_state_is_left_alone(make):
    np.random.seed(0)  # noqa: NPY002
    expected = np.random.get_state()[1].copy()  # noqa: NPY002
    make(3)
    np.testing.assert_array_equal(np.random.get_state()[1], expected)  # noqa: NPY002


# --------------------------------------------------------------------- star


def test_star_classes_are_balanced_and_in_random_order():
    X, y = make_star(random_state=0)
    assert X.shape == (100, 32, 32, 3) and X.dtype == np.float64
    assert y.shape == (100,) and y.dtype == np.int64
    assert 20 < np.count_nonzero(np.diff(y)) < 90
    for n, n_stars in [(1, 0), (2, 1), (7, 3), (50, 25)]:
        y = make_star(n, random_state=0)[1]
        assert set(y) <= {0, 1} and y.sum() == n_stars


@pytest.mark.parametrize(("options", "sigma"), [({}, 0.3), ({"noise": 2.0}, 2)])
def test_star_noise_has_the_stated_standard_deviation(options, sigma):
    X, y = make_star(40, **options, random_state=0)
    assert X[y == 0].std() == pytest.approx(sigma, rel=0.01)
    assert abs(X[y == 0].mean()) < 0.03 * sigma
    X, y = make_star(10, noise=0.0, random_state=0)
    assert set(np.unique(X[y == 1])) == {0.0, 1.0}
    assert not X[y == 0].any()


def test_star_is_seven_pixels_wide_in_the_first_two_channels_only():
    X, y = make_star(30, amplitude=1.5, random_state=0)
    is_star = X == 1.5
    assert not is_star[y == 0].any()
    assert not is_star[..., 2].any()
    for image in is_star[y == 1]:
        np.testing.assert_array_equal(image[..., 0], image[..., 1])
        rows, columns = np.nonzero(image[..., 0])
        assert np.ptp(rows) == np.ptp(columns) == 6
        star = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1, 0]
        np.testing.assert_array_equal(star, star[:, ::-1])


def test_star_is_anywhere_up_to_the_margin():
    X, y = make_star(800, size=(12, 15), margin=2, random_state=0)
    _, rows, columns = np.nonzero(X[y == 1][..., 0] == 1.0)
    assert (rows.min(), rows.max()) == (2, 9)
    assert (columns.min(), columns.max()) == (2, 12)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"size": 10}, "size=10 leaves no room.*at least 15"),
        ({"size": (6, 32), "margin": 0}, r"size=\(6, 32\) leaves no room"),
        ({"size": (32, 32, 3)}, "size=.* is neither a positive int nor a pair"),
        ({"size": (32, 32.5)}, "size=.* is neither a positive int nor a pair"),
        ({"noise": -1.0}, "'noise' parameter of make_star"),
        ({"noise": np.nan}, "'noise' parameter of make_star"),
        ({"amplitude": np.inf}, "'amplitude' parameter of make_star"),
        ({"margin": -1}, "'margin' parameter of make_star"),
        ({"n_samples": 0}, "'n_samples' parameter of make_star"),
        ({"random_state": "now"}, "'random_state' parameter of make_star"),
    ],
)
def test_star_refuses_what_makes_no_sense(parameters, message):
    with pytest.raises(ValueError, match=message):
        make_star(**parameters)


# ------------------------------------------------------------------- digits


def test_digit_images_are_scikit_learns_digits_from_0_to_1():
    digits, reference = load_digit_images(), load_digits()
    np.testing.assert_array_equal(16 * digits.images, reference.images)
    np.testing.assert_array_equal(16 * digits.data, reference.data)
    np.testing.assert_array_equal(digits.target, reference.target)
    assert digits.images.min() == 0.0 and digits.images.max() == 1.0
    assert list(digits.target_names) == list(range(10))
    X, y = load_digit_images(return_X_y=True)
    np.testing.assert_array_equal(X, digits.images)
    np.testing.assert_array_equal(y, digits.target)


# ------------------------------------------------------------------- frames


def test_frames_hold_scikit_learns_digits_by_default():
    X, y = make_framed_digits(sigma=0.0, random_state=0)
    images, target = load_digit_images(return_X_y=True)
    assert X.shape == (1797, 12, 12) and X.dtype == np.float64
    np.testing.assert_array_equal(y, target)
    np.testing.assert_allclose(X.sum(axis=(1, 2)), images.sum(axis=(1, 2)))


def test_image_replaces_the_noise():
    image = np.arange(1.0, 13.0).reshape(1, 3, 4) * 100
    for seed in range(5):
        X = make_framed_digits(image, frame_shape=(6, 9), random_state=seed)[0]
        rows, columns = np.nonzero(X > 50)
        np.testing.assert_array_equal(
            X[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1], image[0]
        )


@pytest.mark.parametrize("sigma", [0.25, 1.0, 4.0])
def test_noise_has_standard_deviation_half_root_sigma(sigma):
    X = make_framed_digits(
        np.zeros((50, 1, 1)), frame_shape=30, sigma=sigma, random_state=0
    )
    noise = X[X != 0]
    assert noise.size == 50 * 899
    assert noise.std() == pytest.approx(0.5 * np.sqrt(sigma), rel=0.01)
    assert abs(noise.mean()) < 0.01 * np.sqrt(sigma)


def test_sigma_scales_the_noise_and_moves_nothing():
    images = np.zeros((20, 3, 3))
    X = make_framed_digits(images, sigma=1.0, random_state=0)
    X_stronger = make_framed_digits(images, sigma=9.0, random_state=0)
    np.testing.assert_allclose(X_stronger, 3 * X)


def test_places_are_anywhere_in_the_frame():
    images = np.ones((300, 2, 3))
    X = make_framed_digits(images, frame_shape=(5, 7), sigma=0.0, random_state=0)
    n, top = 300, X[:, :, :].any(axis=2).argmax(axis=1)
    left = X.any(axis=1).argmax(axis=1)
    assert set(top) == {0, 1, 2, 3} and set(left) == {0, 1, 2, 3, 4}
    assert np.bincount(top).min() > n / 8


@pytest.mark.parametrize(
    ("image_shape", "frame_shape"),
    [((28, 28), (42, 42)), ((5, 8), (7, 12)), ((4, 4, 3), (6, 6, 3)), ((1, 1), (1, 1))],
)
def test_frame_is_half_as_large_again_by_default(image_shape, frame_shape):
    images = np.zeros((3, *image_shape))
    assert make_framed_digits(images, random_state=0).shape == (3, *frame_shape)


def test_uint8_images_are_scaled_floats_are_not():
    images = np.full((2, 3, 3), 51, dtype=np.uint8)
    X = make_framed_digits(images, frame_shape=3)
    assert X.dtype == np.float64
    np.testing.assert_allclose(X, 0.2)
    np.testing.assert_array_equal(make_framed_digits(images / 10, frame_shape=3), 5.1)


def test_float32_stays_float32_and_input_stays_untouched():
    images = np.ones((4, 3, 3), dtype=np.float32)
    images.flags.writeable = False
    X = make_framed_digits(images, frame_shape=3, random_state=0)
    assert X.dtype == np.float32
    X[:] = 7
    assert (images == 1).all()


def test_targets_come_back_as_they_are_if_they_were_given():
    images = np.ones((3, 2, 2))
    _, y = make_framed_digits(images, ["b", "a", "b"])
    assert list(y) == ["b", "a", "b"]
    assert isinstance(make_framed_digits(images), np.ndarray)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"frame_shape": (8, 7)},
            r"frame_shape=\(8, 7\) is smaller.*8 x 8.*at least \(8, 8\)",
        ),
        (
            {"frame_shape": (9, 9, 9)},
            "frame_shape=.* is neither a positive int nor a pair",
        ),
        ({"frame_shape": 0}, "'frame_shape' parameter of make_framed_digits"),
        ({"sigma": -0.1}, "'sigma' parameter of make_framed_digits"),
        ({"sigma": np.inf}, "'sigma' parameter of make_framed_digits"),
        ({"y": [1, 2]}, "y was given without images"),
        ({"images": np.full((2, 3, 3), np.nan)}, "images contains NaN"),
        ({"images": np.full((2, 3, 3), np.inf)}, "images contains infinity"),
        ({"images": np.ones((2, 9))}, r"images must have shape.*got \(2, 9\).*reshape"),
        ({"images": np.ones((2, 3, 3), dtype=int)}, "dtype int64.*uint8"),
        ({"images": np.ones((2, 3, 3)), "y": [1]}, "inconsistent numbers of samples"),
        ({"images": np.ones((0, 3, 3))}, "0 sample"),
    ],
)
def test_frames_refuse_what_makes_no_sense(parameters, message):
    with pytest.raises(ValueError, match=message):
        make_framed_digits(**parameters)
