"""Which pixels of which benchmark count, and how an image is scored on them; knows numpy only."""

from typing import Literal

import msgspec
import numpy as np
from jaxtyping import Bool, Float32, Float64

from delta.boundary import boundary_f1
from delta.config import Config
from delta.errors import DeltaError
from delta.truth import Alignment, depth_errors, fit_depth

# Rows and columns of a 480x640 image that the NYUv2 protocol keeps (Eigen et al., 2014): Kinect's frame is cut off.
EIGEN_ROWS, EIGEN_COLUMNS, EIGEN_SIZE = slice(45, 471), slice(41, 601), (480, 640)
# The shares of height and width that the KITTI protocol keeps (Garg et al., 2016): LiDAR sees no sky.
GARG_ROWS, GARG_COLUMNS = (0.40810811, 0.99189189), (0.03594771, 0.96405229)


class DepthProtocol(Config, frozen=True, kw_only=True):
    """What a benchmark counts: depth strictly between `nearest_m` and `farthest_m`, inside `crop`.

    `typical_m` is where the median of such depth maps lies; a folder whose median does not is in another unit.
    `levels_per_m` is what 16-bit PNGs of this benchmark count in: 1000 are millimetres.
    """

    name: str
    title: str
    nearest_m: float = 1e-3
    farthest_m: float
    crop: Literal["none", "eigen", "garg"] = "none"
    typical_m: tuple[float, float]
    levels_per_m: float = 1000.0

    def counted(self, depth_m: Float32[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
        """Tell which pixels are scored.

        Raises:
            DeltaError: an image that this crop is not made for.
        """
        height, width = depth_m.shape
        inside = np.zeros(depth_m.shape, bool)
        if self.crop == "eigen":
            if depth_m.shape != EIGEN_SIZE:
                raise DeltaError(
                    f"a depth map is {width}x{height} px, the {self.title} crop is made for 640x480",
                    "evaluate as a plain folder: --set protocol=pairs",
                )
            inside[EIGEN_ROWS, EIGEN_COLUMNS] = True
        elif self.crop == "garg":
            rows, columns = (
                [int(share * side) for share in shares] for shares, side in ((GARG_ROWS, height), (GARG_COLUMNS, width))
            )
            inside[rows[0] : rows[1], columns[0] : columns[1]] = True
        else:
            inside[:] = True
        return inside & (depth_m > self.nearest_m) & (depth_m < self.farthest_m)

    def depth(
        self, disparity: Float32[np.ndarray, "h w"], depth_m: Float32[np.ndarray, "h w"], alignment: Alignment
    ) -> Float64[np.ndarray, "h w"]:
        """Turn a disparity of the truth's size into metres, aligned on the counted pixels."""
        return fit_depth(
            disparity,
            depth_m,
            self.counted(depth_m),
            alignment=alignment,
            nearest_m=self.nearest_m,
            farthest_m=self.farthest_m,
        )

    def score(
        self, disparity: Float32[np.ndarray, "h w"], depth_m: Float32[np.ndarray, "h w"], alignment: Alignment
    ) -> dict[str, float]:
        """Score a disparity of the truth's size: the fields of `DepthScore`, and `boundary_f1`."""
        counted, z = self.counted(depth_m), self.depth(disparity, depth_m, alignment)
        truth = depth_m.astype(np.float64)
        errors = msgspec.structs.asdict(depth_errors(z[counted], truth[counted]))
        return errors | {"boundary_f1": boundary_f1(z, truth, counted)}


NYU = DepthProtocol(name="nyu", title="NYUv2", farthest_m=10, crop="eigen", typical_m=(0.5, 9))
KITTI = DepthProtocol(
    name="kitti", title="KITTI Eigen", farthest_m=80, crop="garg", typical_m=(2, 60), levels_per_m=256
)
DIODE = DepthProtocol(name="diode", title="DIODE", nearest_m=0.6, farthest_m=350, typical_m=(0.6, 150))
PAIRS = DepthProtocol(name="pairs", title="RGB and depth", farthest_m=100, typical_m=(0.1, 90))
