"""The boundary F1: where depth jumps in the truth it should jump in the prediction, and nowhere else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta.boundary import boundary_f1


def scene(seed: int = 0, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """Rectangles at different depths: jumps of every size in every direction."""
    rng = np.random.default_rng(seed)
    depth = np.full(size, 4.0)
    for _ in range(12):
        top, left = rng.integers(0, size[0] - 4), rng.integers(0, size[1] - 4)
        depth[top : top + rng.integers(2, 12), left : left + rng.integers(2, 12)] = rng.uniform(1, 8)
    return depth


def everywhere(depth: np.ndarray) -> np.ndarray:
    return np.ones(depth.shape, bool)


def published(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Depth Pro's definition, pixel by pixel, for scenes with jumps in all directions at all thresholds."""
    total = weights = 0.0
    for threshold in np.linspace(1.05, 1.25, 10):
        precision = recall = 0.0
        for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            hits = claimed = asked = 0
            for y in range(truth.shape[0]):
                for x in range(truth.shape[1]):
                    v, u = y + down, x + right
                    if not (0 <= v < truth.shape[0] and 0 <= u < truth.shape[1]):
                        continue
                    seen = predicted[y, x] / predicted[v, u] > threshold
                    there = truth[y, x] / truth[v, u] > threshold
                    hits, claimed, asked = hits + (seen and there), claimed + seen, asked + there
            recall += hits / asked / 4
            precision += hits / claimed / 4
        total += threshold * 2 * recall * precision / (recall + precision)
        weights += threshold
    return total / weights


def test_it_is_the_published_number_where_all_directions_have_jumps() -> None:
    truth = scene()
    predicted = truth * np.random.default_rng(1).uniform(0.9, 1.1, truth.shape)
    found = boundary_f1(predicted, truth, everywhere(truth))
    assert 0.2 < found < 0.9
    assert found == pytest.approx(published(predicted, truth), rel=1e-9)


@given(seed=st.integers(0, 30), scale=st.floats(0.1, 10))
def test_the_truth_in_any_scale_and_its_inverse_are_perfect(seed: int, scale: float) -> None:
    truth = scene(seed)
    assert boundary_f1(scale * truth, truth, everywhere(truth)) == pytest.approx(1)
    assert boundary_f1(1 / truth, 1 / truth, everywhere(truth)) == pytest.approx(1)


def test_a_single_edge_is_enough_for_a_perfect_answer_to_be_perfect() -> None:
    truth = np.full((8, 8), 2.0)
    truth[:, 4:] = 2.3
    assert boundary_f1(truth, truth, everywhere(truth)) == pytest.approx(1)


def test_an_edge_at_the_wrong_place_inverted_or_blurred_counts_nothing() -> None:
    truth = np.full((8, 16), 2.0)
    truth[:, 8:] = 4.0
    for wrong in (np.roll(truth, 1, axis=1), truth[:, ::-1], np.geomspace(2, 4, 16)[None].repeat(8, axis=0)):
        assert boundary_f1(np.ascontiguousarray(wrong), truth, everywhere(truth)) == 0
    assert boundary_f1(np.ones_like(truth), truth, everywhere(truth)) == 0


def test_edges_against_what_was_not_measured_do_not_count() -> None:
    truth = scene(3)
    counted = np.random.default_rng(0).random(truth.shape) > 0.3
    holes = np.where(counted, truth, 0.0)
    assert boundary_f1(truth, holes, counted) == pytest.approx(1)


def test_a_scene_without_edges_has_no_number() -> None:
    flat = np.full((8, 8), 2.0)
    assert np.isnan(boundary_f1(scene(0, (8, 8)), flat, everywhere(flat)))
