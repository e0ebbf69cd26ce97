"""Systematic sampling: balanced over strata, seeded, a weight is so many rows."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skconvrfm.compute.sampling import (
    Lineup,
    find_copies,
    groups_of_images,
    systematic_sample,
)


@pytest.fixture
def rows(rng):
    """Return strata, positions and integer weights of thirty rows."""
    return np.arange(30) % 3, rng.normal(size=30), rng.integers(1, 4, size=30) * 1.0


def test_as_many_as_asked_for_are_drawn(rows):
    for n_draws in (1, 7, 29):
        drawn, counts = systematic_sample(*rows, n_draws, 0.3)
        assert counts.sum() == n_draws
        assert_array_equal(np.unique(drawn), drawn)


def test_every_row_is_taken_where_there_are_no_more(rows):
    for n_draws in (int(rows[2].sum()), 1000):
        drawn, counts = systematic_sample(*rows, n_draws, 0.3)
        assert_array_equal(drawn, np.arange(30))
        assert_array_equal(counts, rows[2])


@pytest.mark.parametrize("offset", [0.0, 0.5, 0.999])
def test_each_stratum_has_its_share(rows, offset):
    strata, positions, _ = rows
    drawn, counts = systematic_sample(strata, positions, np.ones(30), 12, offset)
    assert np.abs(np.bincount(strata[drawn], counts) - 4).max() <= 1


@pytest.mark.parametrize("offset", [0.0, 0.37, 0.999])
def test_weights_equal_repeated_rows(rows, offset, rng):
    strata, positions, weights = rows
    copies = rng.permutation(np.repeat(np.arange(30), weights.astype(int)))
    drawn, counts = systematic_sample(*rows, 17, offset)
    ones = np.ones(len(copies))
    again, more = systematic_sample(strata[copies], positions[copies], ones, 17, offset)
    expected, actual = np.zeros(30), np.zeros(30)
    np.add.at(expected, drawn, counts)
    np.add.at(actual, copies[again], more)
    assert_array_equal(actual, expected)


def test_mean_over_offsets_draws_rows_by_their_weight(rows):
    strata, positions, weights = rows
    mean = np.zeros(30)
    offsets = (np.arange(2000) + 0.5) / 2000
    for offset in offsets:
        drawn, counts = systematic_sample(strata, positions, weights, 9, offset)
        mean[drawn] += counts / len(offsets)
    np.testing.assert_allclose(mean, 9 * weights / weights.sum(), atol=2e-3)


def test_rounding_at_the_end_of_the_line_is_the_last_row():
    weights = np.full(10, 0.1)
    drawn, counts = systematic_sample(
        np.zeros(10), np.arange(10.0), 30 * weights, 3, np.nextafter(1, 0)
    )
    assert drawn.max() <= 9 and counts.sum() == 3


def test_copies_are_found_in_the_order_of_first_rows():
    first, image = find_copies(np.array([0.5, -1, 0.5, 3, -1, -2]))
    assert_array_equal(first, [0, 1, 3, 5])
    assert_array_equal(image, [0, 1, 0, 2, 1, 3])


def test_every_stratum_is_held_out_in_its_share(rng):
    strata = np.repeat([0, 1, 2], [100, 50, 10])
    lineup = Lineup(strata, rng.normal(size=160), np.ones(160), 0.5)
    _, held_out = lineup.split(0.2)
    assert_array_equal(np.bincount(strata[held_out]), [20, 10, 2])


def make_lineup(rng, n, weights=None):
    strata = rng.integers(3, size=n)
    weights = np.ones(n) if weights is None else weights
    return Lineup(strata, rng.normal(size=n), weights, rng.uniform())


def test_whole_groups_are_held_out_about_a_fifth(rng):
    for n_groups in (2, 3, 10, 40):
        lineup, groups = make_lineup(rng, 200), rng.integers(n_groups, size=200)
        kept, held_out = lineup.split(0.2, groups)
        assert_array_equal(np.sort(np.concatenate([kept, held_out])), range(200))
        assert not set(groups[kept]) & set(groups[held_out])
        assert len(kept) and len(held_out)
        if n_groups >= 10:
            assert 0.1 < len(held_out) / 200 < 0.3


def test_large_groups_are_kept():
    groups = np.concatenate([np.zeros(60, int), np.arange(40) // 4 + 1])
    lineup = Lineup(np.zeros(100), np.arange(100.0), np.ones(100), 0.4)
    _, held_out = lineup.split(0.2, groups)
    assert 0 not in groups[held_out] and len(held_out) in (16, 20, 24)


def test_groups_of_every_stratum_are_held_out(rng):
    strata = np.repeat([0, 1, 2], [120, 60, 60])
    lineup = Lineup(strata, rng.normal(size=240), np.ones(240), 0.5)
    _, held_out = lineup.split(0.2, np.arange(240) // 6)
    assert_array_equal(np.bincount(strata[held_out]), [24, 12, 12])


def test_split_of_groups_takes_weights_as_repeated_rows(rng):
    counts = rng.integers(1, 4, size=60)
    lineup, groups = make_lineup(rng, 60, counts.astype(float)), np.arange(60) // 4
    rows = np.repeat(np.arange(60), counts)
    repeated = Lineup(
        lineup.strata[rows], lineup.positions[rows], np.ones(len(rows)), lineup.offset
    )
    _, held_out = lineup.split(0.2, groups)
    _, among = repeated.split(0.2, groups[rows])
    assert_array_equal(np.unique(rows[among]), held_out)


def test_groups_that_share_an_image_are_one():
    image = np.array([0, 1, 2, 3, 1, 3])
    found = groups_of_images(np.array([0, 0, 1, 2, 3, 3]), image)
    assert found[0] == found[1] == found[3] != found[2]
