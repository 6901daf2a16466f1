"""What a benchmark counts: its crop, its range, and that each known mistake moves the number."""

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from delta import depth_protocol
from delta.depth_protocol import DIODE, KITTI, NYU, PAIRS, DepthProtocol
from delta.errors import DeltaError


def scene(seed: int, size: tuple[int, int] = (480, 640)) -> np.ndarray:
    """A floor and boxes from 0.7 to 9.5 m, and a window through which 25 m are seen."""
    rng = np.random.default_rng(seed)
    depth_m = (1 / np.linspace(1 / 9.5, 1 / 1.2, size[0]))[:, None].repeat(size[1], axis=1)
    for _ in range(10):
        top, left = rng.integers(0, size[0] - 60), rng.integers(0, size[1] - 60)
        depth_m[top : top + rng.integers(20, 160), left : left + rng.integers(20, 160)] = rng.uniform(0.7, 5)
    depth_m[60:140, 300:400] = 25
    return depth_m.astype(np.float32)


def measured(depth_m: np.ndarray, seed: int) -> np.ndarray:
    """As a sensor does: nonsense at the edge of the frame."""
    frame = np.ones(depth_m.shape, bool)
    frame[depth_protocol.EIGEN_ROWS, depth_protocol.EIGEN_COLUMNS] = False
    nonsense = np.random.default_rng(seed).uniform(0.5, 9, depth_m.shape).astype(np.float32)
    return np.where(frame, nonsense, depth_m)


def disparity_of(depth_m: np.ndarray, seed: int) -> np.ndarray:
    """What a fair model would answer: nearly the inverse, bent, in its own scale and shift."""
    rows, columns = np.indices(depth_m.shape) / max(depth_m.shape)
    wave = 0.03 * np.sin(5 * rows + seed) + 0.03 * np.cos(7 * columns - seed)
    return (9 * ((1 / depth_m) ** 0.7 + wave) + 4).astype(np.float32)


def abs_rel(protocol: DepthProtocol) -> float:
    depth_m = scene(0)
    return protocol.score(disparity_of(depth_m, 0), measured(depth_m, 0), "affine_disparity")["abs_rel"]


def test_the_nyu_crop_keeps_what_eigen_kept() -> None:
    counted = NYU.counted(np.full((480, 640), 2, np.float32))
    rows, columns = np.nonzero(counted)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (45, 470, 41, 600)
    assert counted.sum() == 426 * 560


def test_the_kitti_crop_is_gargs() -> None:
    """As monodepth2 and its heirs round it, at 375x1242."""
    rows, columns = np.nonzero(KITTI.counted(np.full((375, 1242), 9, np.float32)))
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (153, 371, 44, 1197)


@pytest.mark.parametrize("protocol", [NYU, KITTI, DIODE, PAIRS], ids=lambda each: each.name)
def test_depth_counts_between_nearest_and_farthest_only(protocol: DepthProtocol) -> None:
    depth_m = np.full((480, 640), protocol.farthest_m / 2, np.float32)
    depth_m[300, 300:304] = [0, protocol.nearest_m, protocol.farthest_m, np.nan]
    whole = int(protocol.counted(np.full((480, 640), protocol.farthest_m / 2, np.float32)).sum())
    assert protocol.counted(depth_m).sum() == whole - 4


def test_another_size_than_the_crop_was_made_for_is_refused() -> None:
    with pytest.raises(DeltaError, match=r"a depth map is 320x240 px, the NYUv2 crop is made for 640x480") as caught:
        NYU.counted(np.ones((240, 320), np.float32))
    assert "protocol=pairs" in caught.value.hint


@pytest.mark.parametrize("seed", [0, 1])
def test_what_lies_outside_the_crop_changes_nothing(seed: int) -> None:
    depth_m = scene(seed)
    disparity = disparity_of(depth_m, seed)
    outside = ~NYU.counted(np.full((480, 640), 2, np.float32))
    noise = np.random.default_rng(seed).uniform(0, 50, depth_m.shape).astype(np.float32)
    plain = NYU.score(disparity, depth_m, "affine_disparity")
    other = NYU.score(np.where(outside, noise, disparity), np.where(outside, noise, depth_m), "affine_disparity")
    assert other == pytest.approx(plain, rel=1e-9)


def test_mirrored_images_score_the_same_where_the_crop_is_symmetric() -> None:
    depth_m = scene(1)
    disparity = disparity_of(depth_m, 1)
    plain, mirrored = (
        PAIRS.score(np.ascontiguousarray(d), np.ascontiguousarray(z), "affine_disparity")
        for d, z in ((disparity, depth_m), (disparity[:, ::-1], depth_m[:, ::-1]))
    )
    assert mirrored == pytest.approx(plain, rel=1e-9)


def unaligned(disparity: np.ndarray, depth_m: np.ndarray, counted: np.ndarray, **_: object) -> np.ndarray:
    return np.clip(1 / np.maximum(disparity.astype(np.float64), 0.1), 1e-3, 10)


def fitted_to_depth(disparity: np.ndarray, depth_m: np.ndarray, counted: np.ndarray, **_: object) -> np.ndarray:
    line = np.polyfit(disparity[counted].astype(np.float64), depth_m[counted].astype(np.float64), 1)
    return np.clip(np.polyval(line, disparity.astype(np.float64)), 1e-3, 10)


@pytest.mark.parametrize("mistake", [unaligned, fitted_to_depth], ids=["no alignment", "depth for disparity"])
def test_a_wrong_alignment_moves_the_number(
    mistake: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = abs_rel(NYU)
    monkeypatch.setattr(depth_protocol, "fit_depth", mistake)
    assert abs_rel(NYU) > 1.5 * right


@pytest.mark.parametrize(
    "mistake", [{"crop": "none"}, {"farthest_m": 1e6}, {"nearest_m": 3.0}], ids=["no crop", "no cap", "other range"]
)
def test_a_wrong_mask_moves_the_number(mistake: dict[str, object]) -> None:
    assert abs(abs_rel(msgspec.structs.replace(NYU, **mistake)) - abs_rel(NYU)) > 0.05 * abs_rel(NYU)
