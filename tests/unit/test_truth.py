"""Against measured depth only the order and the proportions of a disparity count."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delta.errors import DeltaError
from delta.truth import DepthScore, mean_score, read_depth_png, score_depth


def depth_map() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.5, 8, (20, 30)).astype(np.float32)


def test_the_inverse_of_the_depth_in_any_scale_and_shift_is_perfect() -> None:
    depth_m = depth_map()
    score = score_depth((7 / depth_m + 3).astype(np.float32), depth_m)
    assert score.abs_rel == pytest.approx(0, abs=1e-5)
    assert score.delta1 == 1


def test_a_constant_is_no_answer() -> None:
    score = score_depth(np.ones((20, 30), np.float32), depth_map())
    assert score.abs_rel > 0.2
    assert score.delta1 < 0.5


def test_what_was_not_measured_does_not_count() -> None:
    depth_m = depth_map()
    disparity = (1 / depth_m).astype(np.float32)
    depth_m[:5], depth_m[5:8] = 0, 50
    disparity[:8] = 99
    assert score_depth(disparity, depth_m).abs_rel == pytest.approx(0, abs=1e-5)
    with pytest.raises(DeltaError, match="has no pixel to compare"):
        score_depth(disparity, np.zeros_like(depth_m))


def test_a_disparity_of_another_size_is_resized() -> None:
    depth_m = np.linspace(1, 5, 64, dtype=np.float32)[None].repeat(48, axis=0)
    small = np.asarray(Image.fromarray(1 / depth_m).resize((32, 24), Image.Resampling.BILINEAR))
    assert score_depth(small, depth_m).abs_rel < 0.02


def test_scores_are_averaged() -> None:
    mean = mean_score([DepthScore(abs_rel=0.1, delta1=1), DepthScore(abs_rel=0.3, delta1=0.5)])
    assert (mean.abs_rel, mean.delta1) == (pytest.approx(0.2), 0.75)


def test_depth_is_read_as_metres_from_16_bits_only(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1500], [65535, 250]], np.uint16)).save(tmp_path / "depth.png")
    np.testing.assert_allclose(read_depth_png(tmp_path / "depth.png"), [[0, 1.5], [65.535, 0.25]])
    Image.new("L", (4, 4)).save(tmp_path / "gray.png")
    with pytest.raises(DeltaError, match=r"gray\.png is no depth map: its pixels are L"):
        read_depth_png(tmp_path / "gray.png")
    with pytest.raises(DeltaError, match="there is no depth map"):
        read_depth_png(tmp_path / "absent.png")
