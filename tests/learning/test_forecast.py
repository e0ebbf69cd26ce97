"""A fit too large for memory is refused, a long one announced; "auto" ignores n."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian, Linear, PatchLaplace
from skconvrfm.learning import forecast, models
from skconvrfm.learning.composition import auto_features
from skconvrfm.learning.forecast import Costs

LAYER = ConvFeatures(4, patch_size=3, pool_grid=2)
# Models with a matrix of all pairs of rows.
QUADRATIC = {
    "ConvNTK": ConvRFMClassifier(ConvNTK(depth=1), n_rounds=1),
    "PatchLaplace": ConvRFMClassifier(PatchLaplace(), n_rounds=1),
    "Gaussian": ConvRFMClassifier(Gaussian(1.0), LAYER, n_rounds=1),
}
LINEAR = ConvRFMClassifier(Linear(), LAYER, n_rounds=1)
LINEAR_TEXT = r"or kernel='linear' with features=ConvFeatures\(\).*or fewer rows"


@pytest.fixture
def data(rng):
    return rng.normal(size=(60, 6, 6)), np.arange(60) % 2


@pytest.fixture
def nothing_computed(monkeypatch):
    """Fail as soon as a kernel matrix, or features of a fit, are computed."""

    def computed(*_):
        raise AssertionError("something was computed")

    monkeypatch.setattr(models, "kernel_matrix", computed)
    monkeypatch.setattr(models, "compute_features", computed)


def give_memory(n_bytes, monkeypatch):
    monkeypatch.setattr(forecast, "free_memory", lambda device: n_bytes)


@pytest.mark.parametrize("name", QUADRATIC)
def test_fit_that_exceeds_free_memory_is_refused_at_once(
    name, data, nothing_computed, monkeypatch
):
    give_memory(2**16, monkeypatch)
    monkeypatch.setattr(forecast, "_PATH_BYTES", 2**30)
    with pytest.raises(MemoryError) as error:
        QUADRATIC[name].fit(*data)
    assert not hasattr(QUADRATIC[name], "kernel_")
    message = str(error.value)
    found = re.match(
        rf"a fit of 60 rows with {name} needs (\d+\.\d) GiB for its matrices of "
        rf"60 × 60, and (\d+\.\d) GiB are free: take landmarks=2, {LINEAR_TEXT}",
        message,
    )
    assert found, message
    assert float(found[1]) == pytest.approx(3600) and float(found[2]) == 0


def test_free_memory_is_compared_with_the_matrices_of_the_fit(data, monkeypatch):
    model, needed = QUADRATIC["ConvNTK"], (forecast._PATH_BYTES + 8) * 60**2
    assert needed >= 3 * 8 * 60**2
    give_memory(needed, monkeypatch)
    model.fit(*data)
    give_memory(needed - 1, monkeypatch)
    with pytest.raises(MemoryError, match="a fit of 60 rows"):
        model.fit(*data)
    X, y = data
    model.fit(X[:50], y[:50])  # fewer rows are enough
    LINEAR.fit(*data)  # and so is what the message says


@pytest.mark.parametrize("name", QUADRATIC)
def test_fit_of_ten_minutes_warns(name, data, monkeypatch):
    monkeypatch.setattr(forecast, "_MEASURED_ROWS", 60)
    asked = []

    def measured(seconds):
        """Give a round of 60 rows so many seconds, and of 10 landmarks a minute."""

        def of_round(costs, n, n_centres):
            asked.append((n, n_centres))
            return seconds if n == n_centres else 3.0 * n_centres

        monkeypatch.setattr(Costs, "of_round", of_round)

    monkeypatch.setattr(forecast, "measure_costs", lambda *_: Costs(1, 1, 1))
    monkeypatch.setattr(forecast, "_FEWEST", 10)
    measured(300.0)
    message = (
        rf"a fit of 60 rows with {name} will take about 10 minutes \(2 rounds.*\): "
        rf"take landmarks=10, with which it takes about 1 min, {LINEAR_TEXT}"
    )
    with pytest.warns(UserWarning, match=message):
        QUADRATIC[name].fit(*data)
    assert asked[0] == (60, 60)
    measured(299.9)
    QUADRATIC[name].fit(*data)  # warnings are errors here
    X, y = data
    asked.clear()
    QUADRATIC[name].fit(X[:59], y[:59])  # so few that nothing is measured
    LINEAR.fit(*data)
    assert not asked


def test_recommended_landmarks_take_the_time_that_is_said():
    costs = Costs(solve=0.1, pair=1e-6, image=1e-4)
    found = costs.landmarks_within(60, 50_000, 0, 1)
    assert 100 <= found < 50_000
    assert costs.of_round(50_000, found) <= 60
    assert costs.of_round(50_000, 2 * found) > 60
    # Fits to choose by are of the landmarks alone.
    both = costs.of_round(50_000, 1000), costs.of_round(1000, 1000)
    assert costs.of_fit(50_000, 1000, 1, 5) == pytest.approx(2 * both[0] + 3 * both[1])
    # More rows leave room for fewer; and there are always some.
    assert costs.landmarks_within(60, 100_000, 0, 1) < found
    assert costs.landmarks_within(1, 50_000, 0, 1) == 100
    # Where features of all rows take longer than that, a few more cost nothing.
    slow = replace(costs, image=0.1)
    more = slow.landmarks_within(60, 50_000, 0, 1)
    assert more >= 1000
    assert 60 < slow.of_round(50_000, more) <= 1.25 * slow.of_round(50_000, 100)
    assert costs.landmarks_within(1e6, 500, 0, 1) == 400


def test_landmarks_need_less_memory_and_time(data, monkeypatch):
    model = clone(QUADRATIC["ConvNTK"]).set_params(landmarks=10)
    give_memory((forecast._PATH_BYTES + 24) * 10**2, monkeypatch)
    model.fit(*data)
    give_memory((forecast._PATH_BYTES + 24) * 10**2 - 1, monkeypatch)
    with pytest.raises(MemoryError, match="ConvNTK and 10 landmarks .* 10 × 10"):
        model.fit(*data)
    costs = Costs(solve=0.1, pair=1e-6, image=1e-3)
    assert costs.of_round(20_000, 1000) < costs.of_round(20_000, 20_000) / 10


@pytest.mark.parametrize(
    ("kernel", "layers", "counts"),
    [
        (ConvNTK(metric="auto"), None, (3, 4)),
        (Gaussian(1.0), [{}], (3, 4)),
        (Gaussian(), [{}], (3, 5)),
        (Gaussian(1.0), [{"candidates": 2}, {"candidates": 3}], (3, 6)),
        (Gaussian(1.0), [{"candidates": 2, "learn": False}], (1, 3)),
        (Gaussian(1.0), [{"learn": False}], (0, 1)),
    ],
)
def test_fits_are_counted(kernel, layers, counts, data, monkeypatch):
    """Rounds, candidates and a second bandwidth; alternatives have a sample."""
    found = []

    def count(recipe, n_rounds):
        found.append(forecast_count(recipe, n_rounds))
        return found[-1]

    forecast_count = forecast._count_fits
    monkeypatch.setattr(forecast, "_MEASURED_ROWS", 60)
    monkeypatch.setattr(forecast, "_count_fits", count)
    features = layers and [
        ConvFeatures(4, patch_size=3, pool_size=1, pool_grid=3, **options)
        for options in layers
    ]
    ConvRFMClassifier(kernel, features, n_rounds=3).fit(*data)
    assert found == [counts]


@pytest.mark.parametrize("name", QUADRATIC)
def test_predicted_seconds_are_positive_and_finite(name, data, monkeypatch):
    monkeypatch.setattr(forecast, "_MEASURED_ROWS", 60)
    predictions, predict = [], Costs.of_round

    def watching(*arguments):
        predictions.append(predict(*arguments))
        return predictions[-1]

    monkeypatch.setattr(Costs, "of_round", watching)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = QUADRATIC[name].fit(*data).decision_function(data[0])
    assert predictions and 0 < predictions[0] < 3600
    # The measurement draws nothing from the source of the fit.
    monkeypatch.setattr(forecast, "_MEASURED_ROWS", 1000)
    again = QUADRATIC[name].fit(*data).decision_function(data[0])
    np.testing.assert_array_equal(first, again)


# ------------------------------------------------------------------ "auto"


@pytest.mark.parametrize(
    ("image_shape", "patch_sizes", "pool_size"),
    [
        ((32, 32, 3), [5, 3], 2),
        ((64, 64, 1), [7, 3], 4),
        ((48, 96, 3), [7, 3], 3),
        ((28, 28, 1), [5, 3], 2),
        ((24, 5, 1), [5], None),
        ((23, 23, 1), [5], None),
        ((12, 12, 1), [5], None),
        ((8, 8, 1), [3], None),
        ((1, 64, 1), [5], None),
    ],
)
def test_auto_features_follow_the_image_shape(image_shape, patch_sizes, pool_size):
    layers = auto_features(image_shape)
    assert [layer.patch_size for layer in layers] == patch_sizes
    assert layers[0].pool_size == pool_size
    assert all(layer.candidates == 3 and not layer.learn for layer in layers)
    maps = layers[0].bind(image_shape).with_filters(np.ones((1, 1)), None, None)
    assert min(maps.grid) >= 10 or len(layers) == 1


@pytest.mark.parametrize("kernel", ["linear", "gaussian"])
def test_auto_features_are_the_same_for_any_number_of_rows(kernel, rng):
    found = []
    for n in (4, 30):
        X, y = rng.normal(size=(n, 4, 4)), np.arange(n) % 2
        model = ConvRFMClassifier(kernel, "auto", n_rounds=0, alpha=1.0).fit(X, y)
        [layer] = model.features_
        found.append((type(model.kernel_), layer.filters_.shape, layer.get_params()))
    assert found[0] == found[1]
    assert found[0][1] == (512, 9)
