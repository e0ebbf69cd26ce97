"""The estimators with ``method="features"``: linear in the number of images."""

import math

import numpy as np
import pytest
import torch
from by_hand import assert_close
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.core import features as core_features
from skconvrfm.core.filters import FilterBank, antithetic
from skconvrfm.core.images import convolution_layers
from skconvrfm.kernels import convolutional_kernel
from skconvrfm.methods import EXACT_ROWS

SMALL = {"method": "features", "n_filters": 8, "n_rounds": 1, "pool_grid": (2, 2)}
VARIANTS = [
    {},
    {"filters": "gaussian", "initial_metric": "identity", "threshold": 0.0},
    {"selection": "holdout"},
    {"feature_layers": 2, "patch_size": 2},
    {"n_filters": 40},  # more features than rows
    {"antithetic": True, "n_filters": 7, "filters": "gaussian", "pool_power": 1.0},
]


def make_problem(n=60, seed=0):
    """Images with a stroke somewhere, three classes; and how long it is."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 8, 7)) / 4
    y = np.arange(n) % 3
    for image, label in zip(X, y, strict=True):
        r, c = rng.integers(0, 5), rng.integers(0, 4)
        image[r : r + label + 1, c] += 1
        image[r, c : c + 3 - label] += 1
    return X, y


@pytest.fixture(params=[ConvRFMClassifier, ConvRFMRegressor])
def problem(request):
    X, y = make_problem()
    y = y if request.param is ConvRFMClassifier else np.column_stack([y == 1, y / 2])
    return request.param(**SMALL), X, y


def raw_scores(model, X):
    return getattr(model, "decision_function", model.predict)(X)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_weights_equal_repeated_rows(problem, options):
    model, X, y = problem
    model.set_params(**options)
    weights = np.arange(len(X)) % 4
    weighted = clone(model).fit(X, y, sample_weight=weights)
    repeated = clone(model).fit(np.repeat(X, weights, 0), np.repeat(y, weights, 0))
    assert weighted.best_round_ == repeated.best_round_
    assert weighted.alpha_ == repeated.alpha_
    assert_close(weighted.filters_, repeated.filters_, 1e-6)
    assert_allclose(raw_scores(weighted, X), raw_scores(repeated, X), atol=1e-6)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_two_fits_are_equal_bit_by_bit_and_seeds_differ(problem, options):
    model, X, y = problem
    model.set_params(**options)
    first, again, other = (
        clone(model).set_params(random_state=seed).fit(X, y) for seed in (0, 0, 1)
    )
    assert_array_equal(first.filters_, again.filters_)
    assert_array_equal(raw_scores(first, X), raw_scores(again, X))
    assert not np.allclose(raw_scores(first, X), raw_scores(other, X))


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{"n_jobs": 2}, {"working_memory": 0.1}], ids=str)
@pytest.mark.parametrize("variant", VARIANTS[3:5], ids=str)
def test_neither_workers_nor_memory_change_the_result(problem, options, variant):
    model, X, y = problem
    model.set_params(selection="last", **variant)
    expected = raw_scores(clone(model).fit(X, y), X)
    memory = {k: v for k, v in options.items() if k == "working_memory"}
    with config_context(**memory):
        model.set_params(n_jobs=options.get("n_jobs")).fit(X, y)
        assert_allclose(raw_scores(model, X), expected, atol=1e-6)


def test_bytes_are_taken_as_they_are(problem):
    model, X, y = problem
    X = (40 * X + 100).clip(0, 255).astype(np.uint8)
    from_bytes = clone(model).fit(X, y)
    from_floats = clone(model).fit(X.astype(np.float32), y)
    assert_array_equal(raw_scores(from_bytes, X), raw_scores(from_floats, X))
    strided = np.asfortranarray(X)[:, ::-1][:, ::-1]
    assert_array_equal(raw_scores(from_bytes, strided), raw_scores(from_bytes, X))


def test_the_model_is_small_and_knows_no_training_image(problem):
    model, X, y = problem
    model.fit(X, y)
    assert model.method_ == "features"
    assert not hasattr(model, "X_fit_") and not hasattr(model, "dual_coef_")
    assert model.filters_.shape == (8, 9) and model.biases_.shape == (8,)
    assert model.pool_grid_ == (2, 2)
    outputs = 3 if hasattr(model, "classes_") else 2
    assert model.coef_.shape == (32, outputs)
    assert np.shape(model.intercept_) == (outputs,)


def test_one_target_has_one_column_less():
    X, y = make_problem()
    model = ConvRFMRegressor(**SMALL).fit(X, y.astype(float))
    assert model.coef_.shape == (32,) and np.ndim(model.intercept_) == 0
    assert model.predict(X).shape == (60,)


@pytest.mark.parametrize("options", VARIANTS[:3], ids=str)
def test_the_transformer_gives_the_features_of_the_estimator(options):
    X, y = make_problem()
    parameters = {**SMALL, **options}
    model = ConvRFMClassifier(**parameters).fit(X, y)
    pool = parameters.pop("pool_grid")
    transformer = PatchAGOPTransformer(**parameters, pool=pool).fit(X, y)
    assert_array_equal(transformer.filters_, model.filters_)
    scores = transformer.transform(X) @ model.coef_ + model.intercept_
    assert_allclose(model.decision_function(X), scores, atol=1e-10)


def test_features_by_hand(problem):
    from by_hand import patches_by_hand

    model, X, y = problem
    model.fit(X, y)
    maps = [
        math.sqrt(2)
        * np.maximum(
            patches_by_hand(x[..., None]) @ model.filters_.T + model.biases_, 0
        )
        for x in X[:4]
    ]
    rows, columns = (slice(0, 3), slice(3, 6)), (slice(0, 2), slice(2, 5))
    cells = [[[m[r, c].mean((0, 1)) for c in columns] for r in rows] for m in maps]
    raised = np.sqrt(np.array(cells) + model.offsets_) - np.sqrt(model.offsets_)
    expected = raised.reshape(4, -1) @ model.coef_ + model.intercept_
    assert_allclose(raw_scores(model, X[:4]), expected, atol=1e-10)


def test_whitened_patches_have_the_identity_for_a_covariance():
    from skconvrfm.core.filters import PatchMoments

    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    covariance = root @ root.T
    T = PatchMoments(np.zeros(6), covariance).whitening()
    shrunk = covariance + 0.1 * np.trace(covariance) / 6 * np.eye(6)
    assert_close(T @ shrunk @ T, np.eye(6), 1e-10)
    blank = PatchMoments(np.zeros(6), np.zeros((6, 6))).whitening()
    assert_array_equal(blank, np.eye(6))


def test_a_round_from_whitened_patches_is_a_round_on_whitened_images():
    """T is the root of T₀ T' T' T₀, where T' comes from the AGOP of patches T₀ v."""
    from skconvrfm.core.rounds import transform_from_agop

    rng = np.random.default_rng(0)
    initial, agop = (a @ a.T for a in rng.normal(size=(2, 5, 5)))
    T = transform_from_agop(agop, 0.5, initial)
    inverse = np.linalg.inv(initial)
    learned = transform_from_agop(inverse @ agop @ inverse, 0.5)
    assert_close(T @ T, initial @ learned @ learned @ initial, 1e-8)
    assert_close(T, T.T, 1e-14)
    assert (np.linalg.eigvalsh(T) > 0).all()


@pytest.mark.parametrize("selection", ["gcv", "loo", "holdout"])
def test_a_round_is_kept_if_it_is_better_by_more_than_its_optimism(problem, selection):
    model, X, y = problem
    model.set_params(selection=selection, n_rounds=2).fit(X, y)
    name = {"gcv": "gcv", "loo": "loo_loss", "holdout": "holdout_loss"}[selection]
    criteria = model.history_[name]
    best = 0
    for index in (1, 2):  # two per cent are the optimism of a round
        share = 1.0 if selection == "holdout" else 0.98
        best = index if criteria[index] < share * criteria[best] else best
    assert model.best_round_ == best
    assert model.alpha_ == model.history_["alpha"][model.best_round_]


@pytest.mark.parametrize("method", ["exact", "features"])
def test_after_the_choice_all_rows_are_fitted(method):
    X, y = make_problem(40)
    model = ConvRFMClassifier(method=method, n_filters=8, depth=1, n_rounds=2)
    chosen = clone(model).set_params(selection="holdout").fit(X, y)
    by_hand = clone(model).set_params(
        selection="last", n_rounds=chosen.best_round_, alpha=chosen.alpha_
    )
    ridges = chosen.history_["alpha"][: chosen.best_round_ + 1]
    if np.ptp(ridges) == 0:  # one ridge for all rounds, which can be said by hand
        by_hand.fit(X, y)
        assert_allclose(
            chosen.decision_function(X), by_hand.decision_function(X), atol=1e-8
        )
    if method == "exact":
        assert len(chosen.X_fit_) == 40


def test_copies_of_a_held_out_image_are_held_out_too():
    from skconvrfm.core.sampling import Lineup

    positions = np.repeat(np.random.default_rng(0).normal(size=20), 3)
    lineup = Lineup(np.zeros(60), positions, np.ones(60), 0.5)
    kept, held_out = lineup.split(0.2)
    assert len(held_out) == 12 and len(kept) == 48
    assert not set(positions[kept]) & set(positions[held_out])


def test_every_stratum_is_held_out_in_its_share():
    from skconvrfm.core.sampling import Lineup

    rng = np.random.default_rng(0)
    strata = np.repeat([0, 1, 2], [100, 50, 10])
    lineup = Lineup(strata, rng.normal(size=160), np.ones(160), 0.5)
    _, held_out = lineup.split(0.2)
    assert_array_equal(np.bincount(strata[held_out]), [20, 10, 2])


def test_too_few_rows_to_hold_some_out_are_refused():
    X, y = make_problem(4)
    with pytest.raises(ValueError, match="selection='holdout'.*selection='gcv'"):
        ConvRFMClassifier(**SMALL, selection="holdout").fit(X, y)


def test_deeper_layers_see_pooled_maps(problem):
    model, X, y = problem
    model.set_params(feature_layers=2, patch_size=2, selection="last").fit(X, y)
    first, second = model.layers_
    assert first.filters.shape == (8, 4) and second.filters.shape == (8, 32)
    assert second.patch_transform_.shape == second.patch_agop_.shape == (32, 32)
    assert model.best_layer_ == 1
    assert_array_equal(model.filters_, second.filters)
    assert np.isfinite(raw_scores(model, X)).all()


def test_prediction_runs_only_the_layers_that_it_needs(problem, monkeypatch):
    model, X, y = problem
    model.set_params(feature_layers=2, patch_size=2)
    model.fit(X, y)
    calls = []
    convolve = core_features.convolve

    def counted(*arguments):
        calls.append(arguments)
        return convolve(*arguments)

    monkeypatch.setattr(core_features, "convolve", counted)
    monkeypatch.setenv("SKCONVRFM_COMPILE", "0")
    model.predict(X)
    # Threads share the images out: what counts is whose filters were used.
    assert len({filters.shape for _, _, filters, _ in calls}) == model.best_layer_ + 1


@pytest.mark.parametrize("is_antithetic", [False, True])
def test_the_kernel_of_many_filters_tends_to_the_exact_pooled_kernel(is_antithetic):
    """At the rate 1 / sqrt(n_filters); in a metric, with biases."""
    rng = np.random.RandomState(0)
    X, T = rng.normal(size=(6, 7, 6, 2)), rng.normal(size=(18, 18)) / 4
    T = T + T.T
    exact = convolutional_kernel(
        X, kind="nngp", depth=1, bias=0.3, pool_grid=(2, 2), patch_transform=T
    )
    [layer] = convolution_layers((7, 6), 3, "valid", 1)

    def error(n_filters):
        draws = rng.normal(size=(n_filters, 18)), rng.normal(size=n_filters)
        if is_antithetic:
            draws = (antithetic(draw[::2], n_filters) for draw in draws)
        bank = FilterBank(*draws, 0.3, 0.0, 1.0, moments=None, initial=None)
        maps = bank.under(T, layer, 2, "relu", (2, 2))(torch.from_numpy(X))
        features = maps.flatten(1).numpy()
        kernel = features @ features.T / features.shape[1]
        return np.linalg.norm(kernel - exact) / np.linalg.norm(exact)

    few, many = (
        np.sqrt(np.mean([error(n_filters) ** 2 for _ in range(8)]))
        for n_filters in (64, 16_384)
    )
    assert many < 0.01
    assert 0.4 < np.log(few / many) / np.log(256) < 0.6


def test_antithetic_filters_are_negatives_of_each_other():
    X, y = make_problem()
    model = ConvRFMClassifier(
        **SMALL, filters="gaussian", initial_metric="identity", threshold=0.0
    ).set_params(antithetic=True)
    filters = model.fit(X, y).filters_
    assert_array_equal(filters[:4], -filters[4:])
    assert_array_equal(model.biases_[:4], -model.biases_[4:])


def test_auto_goes_by_the_rows_and_says_so(capsys):
    X, y = make_problem(EXACT_ROWS + 3)
    model = ConvRFMClassifier(
        n_filters=2, n_rounds=0, pool_grid=1, verbose=1, depth=1, alpha=1.0
    )
    X = X[:, :3, :3]
    assert model.fit(X, y).method_ == "features"
    assert f"{EXACT_ROWS + 3} rows (limit {EXACT_ROWS})" in capsys.readouterr().out
    weights = np.arange(EXACT_ROWS + 3) < 60
    assert model.fit(X, y, sample_weight=weights).method_ == "exact"


def test_patch_kernels_have_no_features():
    X, y = make_problem(20)
    with pytest.raises(ValueError, match="kernel='laplace'.*method='exact'"):
        ConvRFMClassifier(method="features", kernel="laplace").fit(X, y)


@pytest.mark.parametrize("grid", ["many", (2, 3, 4), (0, 1), 0])
def test_a_grid_that_is_none_is_refused(grid):
    X, y = make_problem(20)
    with pytest.raises(ValueError, match="pool_grid"):
        ConvRFMClassifier(method="features", pool_grid=grid).fit(X, y)


def test_blank_and_constant_images_give_finite_scores(problem):
    model, X, y = problem
    for filters in ("patches", "gaussian"):
        model.set_params(filters=filters)
        for blank in (np.zeros_like(X), np.full_like(X, 3.0)):
            assert np.isfinite(raw_scores(clone(model).fit(blank, y), X)).all()
        with_blanks = X.copy()
        with_blanks[::2] = 0
        assert np.isfinite(raw_scores(clone(model).fit(with_blanks, y), X)).all()


def test_learning_finds_the_channel_that_matters():
    """A faint channel has edges of one direction or the other; three are loud noise."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(400, 9, 9, 4)), np.arange(400) % 2
    X[..., 0] /= 3
    X[y == 1, :, :, 0] += np.sign(np.sin(2 * np.arange(9)))
    X[y == 0, :, :, 0] += np.sign(np.sin(2 * np.arange(9)))[:, None]
    X[..., 0] /= 4
    parameters = {**SMALL, "n_filters": 64, "filters": "gaussian", "pool_grid": 1}
    model = ConvRFMClassifier(**parameters, initial_metric="identity", threshold=0.0)
    fixed, learned = (
        clone(model).set_params(n_rounds=n_rounds).fit(X[:200], y[:200])
        for n_rounds in (0, 3)
    )
    score = learned.score(X[200:], y[200:])
    assert learned.best_round_ > 0
    assert score > fixed.score(X[200:], y[200:]) + 0.1
    share = np.diag(learned.patch_agop_).reshape(4, 9).sum(1)
    assert share[0] > 0.8 * share.sum()
