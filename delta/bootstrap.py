"""How sure is a mean over images? Percentile intervals by drawing images with replacement; knows numpy only.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993. Columns drawn together share their images, so that the
difference of two columns is that of a paired comparison.
"""

import numpy as np
from jaxtyping import Float64

from delta.config import Config

DRAWS_AT_ONCE = 500  # a draw counts every image


class Estimate(Config, frozen=True, kw_only=True):
    """A mean over images and the ends of its interval; NaN where no image has a value."""

    mean: float
    low: float
    high: float


def weighted_means(values: Float64[np.ndarray, "n k"], weights: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " k"]:
    """Average each column over the rows in which it has a value (is not NaN)."""
    return _means(np.ones((1, len(values))), values, weights)[0]


def bootstrap_means(
    values: Float64[np.ndarray, "n k"], weights: Float64[np.ndarray, " n"], *, draws: int, seed: int
) -> Float64[np.ndarray, "draws k"]:
    """Draw `n` rows with replacement, `draws` times, and average each column as `weighted_means` does."""
    rng, count = np.random.default_rng(seed), len(values)
    shares = np.full(count, 1 / count)
    parts = [min(DRAWS_AT_ONCE, draws - start) for start in range(0, draws, DRAWS_AT_ONCE)]
    return np.concatenate([_means(rng.multinomial(count, shares, size=part), values, weights) for part in parts])


def estimate(mean: float, draws: Float64[np.ndarray, " draws"], confidence: float) -> Estimate:
    """Put a mean and the percentiles of its draws together; draws without a value are left out."""
    known = draws[np.isfinite(draws)]
    if not np.isfinite(mean) or not known.size:
        return Estimate(mean=float("nan"), low=float("nan"), high=float("nan"))
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(mean=float(mean), low=float(low), high=float(high))


def _means(counts: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    total = counts @ np.where(known, values * weights[:, None], 0)
    parts = counts @ (known * weights[:, None])
    return np.divide(total, parts, out=np.full(total.shape, np.nan), where=parts > 0)
