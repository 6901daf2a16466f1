"""A disparity as colored points in space, for a look around; knows numpy only.

A relative disparity has no metres: the nearest 2 % are put at distance 1 and the farthest 2 % at distance 10, seen by a
camera of 60 degrees. Shapes along the line of sight are a guess; what is in front of what is not.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from delta.files import write_aside
from delta.predict import normalize_for_display

NEAR, FAR = 1.0, 10.0
FIELD_OF_VIEW_DEG = 60.0  # across the width
POINTS_AT_MOST = 1_000_000
EDGE_STEP = 0.08  # neighbors whose distances differ by more lie on either side of an edge: no surface joins them
YAW_DEG, PITCH_DEG = 18.0, 10.0  # where the second picture is taken from
VIEW_PX = 960


@dataclass(frozen=True, kw_only=True)
class PointCloud:
    """Points with x to the right, y up and the camera looking along -z, as viewers expect, and their colors."""

    points: Float32[np.ndarray, "n 3"]
    colors: UInt8[np.ndarray, "n 3"]


def to_point_cloud(photo: UInt8[np.ndarray, "h w 3"], disparity: Float32[np.ndarray, "h w"]) -> PointCloud:
    """Place every pixel in space, without those on depth edges; every k-th where there would be too many."""
    step = int(np.ceil(np.sqrt(disparity.size / POINTS_AT_MOST)))
    photo, disparity = photo[::step, ::step], disparity[::step, ::step]
    nearness = np.nan_to_num(normalize_for_display(disparity))
    distance = 1 / (1 / FAR + nearness * (1 / NEAR - 1 / FAR))
    height, width = distance.shape
    focal_px = _focal_px(width)
    across, down = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    points = np.stack([across * distance / focal_px, -down * distance / focal_px, -distance], axis=-1)
    kept = np.isfinite(disparity) & ~_is_edge(distance)
    return PointCloud(points=points[kept].astype(np.float32), colors=photo[kept])


def save_ply(cloud: PointCloud, path: Path) -> Path:
    """Write a cloud as binary PLY: the format's header is ten lines, its body is numpy's own layout."""
    layout = [(axis, "<f4") for axis in "xyz"] + [(color, "u1") for color in ("red", "green", "blue")]
    vertices = np.empty(len(cloud.points), dtype=layout)
    for index, (axis, color) in enumerate(zip("xyz", ("red", "green", "blue"), strict=True)):
        vertices[axis], vertices[color] = cloud.points[:, index], cloud.colors[:, index]
    kinds = [f"property float {axis}" for axis in "xyz"] + [
        f"property uchar {name}" for name in ("red", "green", "blue")
    ]
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}", *kinds, "end_header", ""]
    with write_aside(path) as aside, aside.open("wb") as file:
        file.write("\n".join(head).encode("ascii"))
        file.write(vertices.tobytes())
    return path


def draw_view(cloud: PointCloud, height_px: int, width_px: int) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the cloud from a little to the right and above, nearer points over farther ones, on white."""
    zoom = VIEW_PX / max(height_px, width_px)
    height, width = max(1, round(height_px * zoom)), max(1, round(width_px * zoom))
    center = np.array([0, 0, -float(np.median(-cloud.points[:, 2]))]) if len(cloud.points) else np.zeros(3)
    seen = (cloud.points - center) @ _turn().T + center
    distance = np.maximum(-seen[:, 2], 1e-3)
    focal_px = _focal_px(width)
    across = np.rint(seen[:, 0] * focal_px / distance + width / 2).astype(int)
    down = np.rint(-seen[:, 1] * focal_px / distance + height / 2).astype(int)
    order = np.argsort(-distance)
    picture = np.full((height + 2, width + 2, 3), 255, dtype=np.uint8)
    side = max(2, int(np.ceil(zoom * 2.5)))  # a point covers a little more than in the photo: turned away, they spread
    for offset_y, offset_x in np.ndindex(side, side):
        row, column = down[order] + offset_y, across[order] + offset_x
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        picture[row[inside], column[inside]] = cloud.colors[order][inside]
    return picture[:height, :width]


def _focal_px(width: int) -> float:
    return width / 2 / np.tan(np.radians(FIELD_OF_VIEW_DEG / 2))


def _is_edge(distance: np.ndarray) -> np.ndarray:
    steps = [np.abs(np.gradient(distance, axis=axis)) if distance.shape[axis] > 1 else 0 * distance for axis in (0, 1)]
    return np.maximum(*steps) > EDGE_STEP * distance


def _turn() -> np.ndarray:
    yaw, pitch = np.radians([YAW_DEG, PITCH_DEG])
    around_y = np.array([[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]])
    around_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    return around_x @ around_y
