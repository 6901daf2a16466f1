"""Are depth edges where they should be? The scale-invariant boundary F1 of Depth Pro; knows numpy only.

Bochkovskii et al., "Depth Pro: Sharp Monocular Metric Depth in Less Than a Second", 2024, section 3.3.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64

THRESHOLDS = np.linspace(1.05, 1.25, 10)  # of the ratio of neighbors; the larger weigh more


def boundary_f1(
    z: Float64[np.ndarray, "h w"], truth: Float64[np.ndarray, "h w"], counted: Bool[np.ndarray, "h w"]
) -> float:
    """Compare where the depth of neighbors jumps: F1 of precision and recall, a weighted mean over ten thresholds.

    Both maps are positive where `counted`; either may as well be a disparity, since ratios are compared. A jump is a
    ratio above the threshold between two counted neighbors, in each of four directions, whose precisions and recalls
    are averaged. A threshold or a direction in which the truth has no jump asks for nothing and is left out, where
    Depth Pro's code counts a 0: so a perfect answer has 1 on any scene. NaN where the truth has no jump at all.
    """
    jumps = list(_jumps(np.where(counted, z, 1), np.where(counted, truth, 1), counted))
    scores = np.array([_f1_at(jumps, float(np.log(threshold))) for threshold in THRESHOLDS])
    asked = ~np.isnan(scores)
    return float(scores[asked] @ THRESHOLDS[asked] / THRESHOLDS[asked].sum()) if asked.any() else float("nan")


def _jumps(z: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Log-ratios of neighbors that are both counted, prediction and truth, in each of the four directions."""
    found, real = np.log(z), np.log(truth)
    for axis in (0, 1):
        first, second = (np.take(counted, np.arange(counted.shape[axis] - 1) + step, axis=axis) for step in (0, 1))
        both = first & second
        ours, theirs = (np.diff(each, axis=axis)[both] for each in (found, real))
        yield ours, theirs
        yield -ours, -theirs


def _f1_at(jumps: list[tuple[np.ndarray, np.ndarray]], threshold: float) -> float:
    """F1 at one threshold, the logarithm of a ratio; NaN where the truth has no jump."""
    recalls, precisions = [], []
    for found, real in jumps:
        seen, there = found > threshold, real > threshold
        hits, claimed, asked = (np.count_nonzero(each) for each in (seen & there, seen, there))
        recalls += [hits / asked] if asked else []
        precisions += [hits / claimed] if claimed else []
    if not recalls:
        return float("nan")
    recall, precision = np.mean(recalls), np.mean(precisions) if precisions else 0.0
    return float(2 * recall * precision / (recall + precision)) if recall + precision > 0 else 0.0
