"""Against measured depth only the order and the proportions of a disparity count."""

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from delta.errors import DeltaError
from delta.truth import (
    ALIGNMENTS,
    FARTHEST_M,
    NEAREST_M,
    DepthScore,
    depth_errors,
    fit_depth,
    fit_line,
    mean_score,
    read_depth_png,
    score_depth,
)


def depth_map(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 8, (20, 30)).astype(np.float32)


def noisy_disparity(depth_m: np.ndarray, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0.7, 1.3, depth_m.shape)
    return (noise / depth_m).astype(np.float32)


def everywhere(depth_m: np.ndarray) -> np.ndarray:
    return np.ones(depth_m.shape, bool)


def naive_errors(z: list[float], truth: list[float]) -> dict[str, float]:
    """The formulas pixel by pixel, in plain Python."""
    n, pairs = len(z), list(zip(z, truth, strict=True))
    logs = [math.log(a) - math.log(b) for a, b in pairs]
    ratios = [max(a / b, b / a) for a, b in pairs]
    mean_log = sum(logs) / n
    return {
        "abs_rel": sum(abs(a - b) / b for a, b in pairs) / n,
        "sq_rel": sum((a - b) ** 2 / b for a, b in pairs) / n,
        "rmse": math.sqrt(sum((a - b) ** 2 for a, b in pairs) / n),
        "rmse_log": math.sqrt(sum(g * g for g in logs) / n),
        "log10": sum(abs(math.log10(a) - math.log10(b)) for a, b in pairs) / n,
        "silog": 100 * math.sqrt(sum(g * g for g in logs) / n - mean_log**2),
        "delta1": sum(r < 1.25 for r in ratios) / n,
        "delta2": sum(r < 1.25**2 for r in ratios) / n,
        "delta3": sum(r < 1.25**3 for r in ratios) / n,
    }


def naive_affine(disparity: np.ndarray, depth_m: np.ndarray) -> list[float]:
    """The protocol's alignment by numpy's own least squares, on every pixel."""
    x, y = disparity.astype(np.float64).ravel(), 1 / depth_m.astype(np.float64).ravel()
    scale, shift = np.polyfit(x, y, 1)
    return [min(max(1 / max(scale * d + shift, 0.1), 1e-3), 10.0) for d in x]


def test_the_inverse_of_the_depth_in_any_scale_and_shift_is_perfect() -> None:
    depth_m = depth_map()
    score = score_depth((7 / depth_m + 3).astype(np.float32), depth_m)
    assert score.abs_rel == pytest.approx(0, abs=1e-5)
    assert (score.delta1, score.delta2, score.delta3) == (1, 1, 1)


@given(scale=st.floats(0.01, 100), shift=st.floats(-50, 50), seed=st.integers(0, 5))
def test_scale_and_shift_of_a_disparity_change_nothing(scale: float, shift: float, seed: int) -> None:
    depth_m = depth_map(seed)
    disparity = noisy_disparity(depth_m, seed + 1).astype(np.float64)
    moved = scale * disparity + shift
    plain, other = (fit_depth(each, depth_m, everywhere(depth_m)) for each in (disparity, moved))
    np.testing.assert_allclose(other, plain, rtol=1e-7)


@given(scale=st.floats(0.01, 100))
def test_the_median_scale_forgives_the_scale_alone(scale: float) -> None:
    depth_m, counted = depth_map(), everywhere(depth_map())
    disparity = noisy_disparity(depth_m).astype(np.float64)
    plain = fit_depth(disparity, depth_m, counted, alignment="median_scale")
    np.testing.assert_allclose(
        fit_depth(scale * disparity, depth_m, counted, alignment="median_scale"), plain, rtol=1e-9
    )
    shifted = fit_depth(disparity + 0.3, depth_m, counted, alignment="median_scale")
    assert not np.allclose(shifted, plain, rtol=0.05)


def test_a_disparity_without_a_positive_median_has_no_scale_and_is_taken_for_far() -> None:
    depth_m = depth_map()
    z = fit_depth(-noisy_disparity(depth_m), depth_m, everywhere(depth_m), alignment="median_scale")
    np.testing.assert_array_equal(z, FARTHEST_M)


def test_least_squares_in_depth_is_the_nearest_line_of_the_inverse() -> None:
    depth_m, counted = depth_map(), everywhere(depth_map())
    disparity = noisy_disparity(depth_m)
    z = fit_depth(disparity, depth_m, counted, alignment="least_squares_depth")
    line = np.polyfit(1 / disparity.astype(np.float64).ravel(), depth_m.astype(np.float64).ravel(), 1)
    np.testing.assert_allclose(z, np.polyval(line, 1 / disparity.astype(np.float64)).clip(NEAREST_M, 10), rtol=1e-9)


def test_each_alignment_is_perfect_where_nothing_is_wrong_and_they_differ_where_something_is() -> None:
    depth_m, counted = depth_map(), everywhere(depth_map())
    perfect = (3 / depth_m).astype(np.float32)
    for alignment in ALIGNMENTS:
        np.testing.assert_allclose(fit_depth(perfect, depth_m, counted, alignment=alignment), depth_m, rtol=1e-4)
    noisy = [fit_depth(noisy_disparity(depth_m), depth_m, counted, alignment=each) for each in ALIGNMENTS]
    assert not np.allclose(noisy[0], noisy[1], rtol=1e-2)
    assert not np.allclose(noisy[0], noisy[2], rtol=1e-2)


def test_depth_is_what_a_naive_evaluation_finds() -> None:
    depth_m = depth_map(2)
    disparity = noisy_disparity(depth_m, 3)
    expected = naive_affine(disparity, depth_m)
    found = fit_depth(disparity, depth_m, everywhere(depth_m))
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-9)
    score = msgspec.structs.asdict(score_depth(disparity, depth_m))
    assert score == pytest.approx(naive_errors(expected, [float(t) for t in depth_m.ravel()]), rel=1e-9)


@given(seed=st.integers(0, 20))
def test_errors_are_the_naive_ones_in_any_order_of_the_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    z, truth = rng.uniform(0.1, 10, 50), rng.uniform(0.1, 10, 50)
    order = rng.permutation(50)
    found = msgspec.structs.asdict(depth_errors(z, truth))
    assert found == pytest.approx(naive_errors(z.tolist(), truth.tolist()), rel=1e-9)
    assert msgspec.structs.asdict(depth_errors(z[order], truth[order])) == pytest.approx(found, rel=1e-12)


def test_a_constant_is_fitted_by_the_mean_and_is_no_answer() -> None:
    score = score_depth(np.ones((20, 30), np.float32), depth_map())
    assert score.abs_rel > 0.2
    assert score.delta1 < 0.5
    assert fit_line(np.full(5, 3.0), np.arange(5.0)) == (0.0, 2.0)


def test_the_aligned_disparity_is_capped_before_it_is_inverted() -> None:
    """A line through a bent disparity goes below 0 at the far end: that would be negative or boundless depth."""
    depth_m = (1 / np.linspace(0.02, 1, 200, dtype=np.float32))[None].repeat(3, axis=0)
    disparity = np.sqrt(1 / depth_m)
    scale, shift = np.polyfit(disparity.ravel(), 1 / depth_m.ravel(), 1)
    assert (scale * disparity + shift).min() < 0
    z = fit_depth(disparity, depth_m, everywhere(depth_m), farthest_m=60.0)
    assert (z.min() > 0, z.max()) == (True, 60.0)


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


@pytest.mark.parametrize(
    ("mistake", "moves"),
    [
        (lambda d, gt: np.clip(1 / np.maximum(d, 0.1), NEAREST_M, FARTHEST_M), "no alignment"),
        (lambda d, gt: np.clip(np.polyval(np.polyfit(d.ravel(), gt.ravel(), 1), d), NEAREST_M, FARTHEST_M), "depth"),
        (lambda d, gt: np.abs(1 / np.polyval(np.polyfit(d.ravel(), 1 / gt.ravel(), 1), d)), "no cap"),
    ],
    ids=["no alignment", "depth for disparity", "no cap"],
)
def test_a_known_mistake_moves_the_number(mistake: Callable[[np.ndarray, np.ndarray], np.ndarray], moves: str) -> None:
    rng = np.random.default_rng(0)
    depth_m = rng.uniform(0.6, 9.9, (40, 40)).astype(np.float32)
    noise = rng.normal(0, 0.03, depth_m.shape)
    disparity = (4 * (1 / depth_m + noise) + 2).astype(np.float32)
    right = score_depth(disparity, depth_m).abs_rel
    z = mistake(disparity.astype(np.float64), depth_m.astype(np.float64))
    wrong = depth_errors(z.ravel(), depth_m.astype(np.float64).ravel()).abs_rel
    assert abs(wrong - right) > 0.1 * right, moves


def test_scores_are_averaged() -> None:
    one = dict.fromkeys(DepthScore.__struct_fields__, 0.0)
    mean = mean_score([DepthScore(**one | {"abs_rel": 0.1, "delta1": 1}), DepthScore(**one | {"abs_rel": 0.3})])
    assert (mean.abs_rel, mean.delta1, mean.rmse) == (pytest.approx(0.2), 0.5, 0)


def test_depth_is_read_as_metres_from_16_bits_only(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1500], [65535, 250]], np.uint16)).save(tmp_path / "depth.png")
    np.testing.assert_allclose(read_depth_png(tmp_path / "depth.png"), [[0, 1.5], [65.535, 0.25]])
    np.testing.assert_allclose(read_depth_png(tmp_path / "depth.png", 500), [[0, 3], [131.07, 0.5]])
    Image.new("L", (4, 4)).save(tmp_path / "gray.png")
    with pytest.raises(DeltaError, match=r"gray\.png is no depth map: its pixels are L"):
        read_depth_png(tmp_path / "gray.png")
    with pytest.raises(DeltaError, match="there is no depth map"):
        read_depth_png(tmp_path / "absent.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "depth.png").read_bytes()[:50])
    with pytest.raises(DeltaError, match="there is no depth map"):
        read_depth_png(tmp_path / "cut.png")
