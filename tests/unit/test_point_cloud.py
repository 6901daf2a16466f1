"""A disparity becomes points where the pixels are, nearer ones nearer, and a file that others can read."""

from pathlib import Path

import numpy as np

from delta.point_cloud import FAR, NEAR, draw_view, save_ply, to_point_cloud


def ramp(height: int = 40, width: int = 60) -> tuple[np.ndarray, np.ndarray]:
    photo = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return photo, np.linspace(0, 1, height, dtype=np.float32)[:, None].repeat(width, axis=1)


def test_points_lie_along_their_pixels_and_nearer_ones_are_nearer() -> None:
    photo, disparity = ramp()
    cloud = to_point_cloud(photo, disparity)
    assert len(cloud.points) == len(cloud.colors)
    distance = -cloud.points[:, 2]
    assert np.isclose(distance.min(), NEAR)
    assert distance.max() <= FAR
    bottom, top = cloud.points[-1], cloud.points[0]
    assert bottom[1] < 0 < top[1]  # y is up
    assert -bottom[2] < -top[2]  # the bottom of this ramp is near
    left, right = cloud.points[cloud.points[:, 2].argmax()], cloud.points[-1]
    assert left[0] < 0 < right[0]


def test_points_on_an_edge_are_left_out() -> None:
    photo, _ = ramp()
    disparity = np.zeros((40, 60), np.float32)
    disparity[:, 30:] = 1
    cloud = to_point_cloud(photo, disparity)
    assert len(cloud.points) == 40 * 58  # a column on either side


def test_a_ply_file_holds_every_point(tmp_path: Path) -> None:
    cloud = to_point_cloud(*ramp())
    head, body = save_ply(cloud, tmp_path / "cloud.ply").read_bytes().split(b"end_header\n", 1)
    assert head.startswith(b"ply\nformat binary_little_endian 1.0\n")
    assert f"element vertex {len(cloud.points)}\n".encode() in head
    layout = [(name, "<f4") for name in "xyz"] + [(name, "u1") for name in ("red", "green", "blue")]
    vertices = np.frombuffer(body, dtype=layout)
    np.testing.assert_array_equal(np.stack([vertices[name] for name in "xyz"], axis=1), cloud.points)
    np.testing.assert_array_equal(vertices["green"], cloud.colors[:, 1])


def test_the_view_shows_the_scene_from_elsewhere() -> None:
    photo, disparity = ramp(120, 160)
    view = draw_view(to_point_cloud(photo, disparity), 120, 160)
    assert view.shape == (720, 960, 3)
    assert 0.3 < (view != 255).any(axis=2).mean() < 1  # some of it is bare paper


def test_a_flat_or_broken_map_still_gives_a_cloud() -> None:
    photo, disparity = ramp()
    disparity[:] = 2
    disparity[0, 0] = np.nan
    assert len(to_point_cloud(photo, disparity).points) == disparity.size - 3  # the gap and its two neighbors
    assert len(to_point_cloud(photo, np.full_like(disparity, np.nan)).points) == 0
    assert draw_view(to_point_cloud(photo, np.full_like(disparity, np.nan)), 40, 60).shape == (640, 960, 3)
