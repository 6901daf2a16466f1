"""Intervals: seeded, as wide as the theory says, paired, and honest about what has no value."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta.bootstrap import bootstrap_means, estimate, weighted_means

ONES = np.ones(200)


def values(seed: int = 0, columns: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(1, 0.5, (200, columns))


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    one, same, other = (bootstrap_means(values(), ONES, draws=700, seed=seed) for seed in (1, 1, 2))
    assert one.shape == (700, 2)
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_interval_is_that_of_the_standard_error() -> None:
    column = values()[:, :1]
    draws = bootstrap_means(column, ONES, draws=4000, seed=0)[:, 0]
    found = estimate(float(column.mean()), draws, 0.95)
    half = 1.96 * column.std() / np.sqrt(200)
    assert found.low == pytest.approx(column.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(column.mean() + half, abs=0.1 * half)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        column = np.random.default_rng(seed).exponential(1, (80, 1))
        draws = bootstrap_means(column, np.ones(80), draws=300, seed=seed)[:, 0]
        found = estimate(float(column.mean()), draws, 0.9)
        covered += found.low <= 1 <= found.high
    assert 0.83 <= covered / 200 <= 0.95  # 0.9, less what skewness and 80 values cost, and the noise of 200 repeats


def test_columns_share_their_draws_so_that_differences_are_paired() -> None:
    one = values(columns=1)
    both = np.concatenate([one, one + 0.1], axis=1)
    draws = bootstrap_means(both, ONES, draws=500, seed=0)
    np.testing.assert_allclose(draws[:, 1] - draws[:, 0], 0.1, atol=1e-12)
    assert draws[:, 0].std() > 0.01


@given(seed=st.integers(0, 50))
def test_the_order_of_the_images_does_not_change_a_mean(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(200)
    np.testing.assert_allclose(weighted_means(values()[order], ONES), weighted_means(values(), ONES))


def test_weights_count_an_image_as_many_times() -> None:
    column, weights = np.array([[0.0], [1.0]]), np.array([3.0, 1.0])
    assert weighted_means(column, weights) == pytest.approx(0.25)
    assert bootstrap_means(column, weights, draws=2000, seed=0).mean() == pytest.approx(0.25 * 1 + 0.5 * 0.25, abs=0.03)


def test_what_has_no_value_is_left_out_of_its_column_alone() -> None:
    table = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    np.testing.assert_array_equal(weighted_means(table, np.ones(2)), [2, 5, np.nan])
    draws = bootstrap_means(table, np.ones(2), draws=200, seed=0)
    assert estimate(5.0, draws[:, 1], 0.95).low == 5
    nothing = estimate(float("nan"), draws[:, 2], 0.95)
    assert np.isnan([nothing.mean, nothing.low, nothing.high]).all()
