"""The range of disparities that the colors of moving pictures span. Knows numpy only, so that an app can use it."""

import math

import numpy as np
from jaxtyping import Float32

SMOOTHING_S = 1.0  # time constant with which the range of the colors follows the scene


class SteadyRange:
    """The range of disparities that the colors span: it follows the scene slowly, and starts anew where one is cut.

    The 2nd and 98th percentile of each frame are smoothed exponentially; a frame whose range does not touch the
    smoothed one is taken for a cut.
    """

    def __init__(self, smoothing_s: float = SMOOTHING_S) -> None:
        self._smoothing_s = smoothing_s
        self._range: np.ndarray | None = None

    def follow(self, disparity: Float32[np.ndarray, "..."], elapsed_s: float) -> tuple[float, float]:
        """Take in a frame, `elapsed_s` after the last one, and return the range to paint it with."""
        finite = disparity[np.isfinite(disparity)]
        found = np.percentile(finite.astype(np.float64), [2, 98]) if finite.size else np.array([0.0, 1.0])
        if self._range is None or found[0] > self._range[1] or found[1] < self._range[0]:
            self._range = found
        share = 1 - math.exp(-max(elapsed_s, 0.0) / self._smoothing_s)
        self._range = self._range + share * (found - self._range)
        return float(self._range[0]), float(self._range[1])
