"""Where the photo and its depth stand on the stage. Pure geometry, in logical pixels; knows no Flet."""

from dataclasses import dataclass

from delta_flet.session import Comparison

GAP_PX = 12


@dataclass(frozen=True)
class Box:
    """A rectangle on the stage."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, kw_only=True)
class Places:
    """The whole photo, the whole depth map, and the window through which the depth is seen."""

    photo: Box | None
    depth: Box
    window: Box
    opacity: float = 1.0


def places(comparison: Comparison, width: float, height: float, aspect: float, mix: float) -> Places:
    """Fit the two pictures of one aspect ratio into a stage.

    `mix`, in [0, 1], is how strongly the depth covers the photo, or where the photo ends and the depth begins.
    """
    if comparison is Comparison.SIDE:
        photo, depth = _pair(width, height, aspect)
        return Places(photo=photo, depth=depth, window=depth)
    box = _fit(0, 0, width, height, aspect)
    if comparison is Comparison.DEPTH:
        return Places(photo=None, depth=box, window=box)
    if comparison is Comparison.OVERLAY:
        return Places(photo=box, depth=box, window=box, opacity=mix)
    seen_px = box.width * (1 - mix)
    return Places(photo=box, depth=box, window=Box(box.left + box.width - seen_px, box.top, seen_px, box.height))


def _pair(width: float, height: float, aspect: float) -> tuple[Box, Box]:
    """Put two pictures beside or above each other, whichever makes them larger."""
    half_width, half_height = (width - GAP_PX) / 2, (height - GAP_PX) / 2
    if min(half_width / aspect, height) >= min(width / aspect, half_height):
        used = min(half_width, height * aspect)
        left = (width - 2 * used - GAP_PX) / 2
        return (
            _fit(left, 0, used, height, aspect),
            _fit(left + used + GAP_PX, 0, used, height, aspect),
        )
    used = min(half_height, width / aspect)
    top = (height - 2 * used - GAP_PX) / 2
    return _fit(0, top, width, used, aspect), _fit(0, top + used + GAP_PX, width, used, aspect)


def _fit(left: float, top: float, width: float, height: float, aspect: float) -> Box:
    fitted_width, fitted_height = min(width, height * aspect), min(height, width / aspect)
    return Box(left + (width - fitted_width) / 2, top + (height - fitted_height) / 2, fitted_width, fitted_height)
