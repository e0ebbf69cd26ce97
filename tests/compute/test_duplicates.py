"""Near-duplicates are found among images, and nothing else is taken for them."""

import numpy as np
import pytest

from skconvrfm.compute.duplicates import near_duplicate_share
from skconvrfm.datasets import load_digit_images, make_framed_digits, make_star

FILES = "mnist_5000_2000", "fashion_mnist_5000_2000", "cifar10_5000_2000"


def views(images, n_views, noise, rng, shift=2):
    """Return shifted, noisy views of images."""
    found = [
        np.roll(image, tuple(rng.integers(-shift, shift + 1, size=2)), axis=(0, 1))
        for image in images
        for _ in range(n_views)
    ]
    return found + noise * images.std() * rng.normal(size=np.shape(found))


@pytest.fixture(params=FILES)
def images(request, shared):
    path = shared / "data" / f"{request.param}.npz"
    if not path.exists():
        pytest.skip(f"no file {path}")
    with np.load(path) as archive:
        X = archive["X_train"]
    return X if X.ndim == 4 else X[..., None]


@pytest.mark.parametrize("n", [300, 5000])
def test_known_data_have_few_near_duplicates(images, n):
    assert near_duplicate_share(images[:n]) < 0.06


@pytest.mark.parametrize(("n_objects", "n_views"), [(300, 2), (60, 5), (30, 30)])
def test_shifted_noisy_views_are_near_duplicates(images, n_objects, n_views, rng):
    assert near_duplicate_share(views(images[:n_objects], n_views, 0.1, rng)) > 0.8


@pytest.mark.parametrize("share", [0.03, 0.13, 0.3])
def test_share_of_near_duplicates_is_that_of_the_rows(images, share, rng):
    n = int(share * 1500) // 10
    X = np.concatenate([views(images[:n], 10, 0.05, rng), images[n : 1500 - 9 * n]])
    assert near_duplicate_share(X) == pytest.approx(share, abs=0.06)


def noise(rng, *shape):
    return rng.normal(size=(400, *shape))


OTHER_DATA = {
    "digits": lambda rng: load_digit_images(return_X_y=True)[0][..., None],
    "stars": lambda rng: make_star(random_state=0)[0],
    "framed digits": lambda rng: make_framed_digits(random_state=0)[0][..., None],
    "noise": lambda rng: noise(rng, 8, 8, 1),
    "binary": lambda rng: noise(rng, 8, 8, 1) > 0,
    "few bits": lambda rng: noise(rng, 3, 3, 1) > 0,
    "sparse bits": lambda rng: noise(rng, 20, 20, 1) > 2,
    "single pixels": lambda rng: noise(rng, 1, 1, 1),
    "rows of a table": lambda rng: noise(rng, 1, 30, 1),
    "constant": lambda rng: np.broadcast_to(noise(rng, 1, 1, 1), (400, 9, 9, 1)),
    "blank": lambda rng: np.zeros((400, 9, 9, 1)),
    "half blank": lambda rng: (
        noise(rng, 9, 9, 1) * (np.arange(400) % 2)[:, None, None, None]
    ),
    "large": lambda rng: 1e307 * noise(rng, 9, 9, 1),
    "small": lambda rng: 1e-300 * noise(rng, 9, 9, 1),
    "few rows": lambda rng: views(noise(rng, 9, 9, 1)[:3], 5, 0.1, rng),
}


@pytest.mark.parametrize("name", OTHER_DATA)
def test_other_data_have_no_near_duplicates(name, rng):
    assert near_duplicate_share(OTHER_DATA[name](rng)) < 0.05


def test_scale_and_offset_change_no_share(rng):
    X = views(np.kron(rng.normal(size=(30, 5, 5)), np.ones((3, 3))), 5, 0.1, rng)
    X = X[..., None]
    share = near_duplicate_share(X)
    assert share > 0.5
    assert near_duplicate_share(1e-6 * X + 3) == pytest.approx(share, abs=0.02)
