"""`delta bench cache --photos …`, its part on views: what answers to one view are worth under another."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from delta import images
from delta.feature_basis import mean_cosine
from delta.metrics import align
from delta.teacher import Teacher, TeacherOutput
from delta_pipelines.bench_cache import Row
from delta_pipelines.cache_recipe import CacheRecipe
from delta_pipelines.views import decode_view, list_photos, open_photos

CROP = 0.7  # side of the crop that features are replayed under
PHOTOS = 16


def bench_views(recipe: CacheRecipe, photos: str, teacher: Teacher, device: torch.device) -> Iterator[Row]:
    """What is lost when answers to the plain view are warped to another, beside the teacher's answer to that view.

    Features: mean cosine. Disparity: mean relative difference after least-squares alignment.
    """
    side = recipe.side(teacher.side_multiple)
    views = first_views(recipe, photos, side).to(device)
    plain = join_answers([teacher(view[None]) for view in views])
    edge = (1 - CROP) / 2
    box = slice(round(edge * side), round((1 - edge) * side))
    crop = functional.interpolate(views[:, :, box, box], (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    warps = {"mirrored": (views.flip(-1), lambda maps: maps.flip(-1)), f"crop of {CROP} of the side": (crop, _zoom)}
    for name, (seen, warp) in warps.items():
        live = join_answers([teacher(view[None]) for view in seen])
        for tap, maps in live.features.items():
            cosine = mean_cosine(warp(plain.features[tap]), maps)
            yield Row(bench="views", name=f"{name}: features {tap}", value=cosine, unit="cosine")
        error = _aligned_error(warp(plain.disparity[:, None])[:, 0], live.disparity)
        yield Row(bench="views", name=f"{name}: disparity", value=error, unit="mean relative difference")


def first_views(recipe: CacheRecipe, photos: str, side: int, count: int = PHOTOS) -> Tensor:
    """The plain views of the first photos that can be read, as the teacher is shown them: "b 3 s s"."""
    storage = open_photos(photos)
    decoded = (decode_view(storage, photo, "plain", recipe, side) for photo in list_photos(photos)[: 2 * count])
    usable = [images.to_tensor_layout(each.image) for each in decoded if not each.record.failure][:count]
    return torch.from_numpy(np.stack(usable))


def _zoom(maps: Tensor) -> Tensor:
    """Cut the middle out of maps and bring it to their size, as training replays a crop."""
    matrix = torch.tensor([[CROP, 0.0, 0.0], [0.0, CROP, 0.0]], device=maps.device).expand(len(maps), 2, 3)
    grid = functional.affine_grid(matrix, list(maps.shape), align_corners=False)
    return functional.grid_sample(maps.float(), grid, padding_mode="border", align_corners=False)


def join_answers(answers: list[TeacherOutput]) -> TeacherOutput:
    """Disparity and features of several batches as one; attention is dropped."""
    return TeacherOutput(
        disparity=torch.cat([answer.disparity for answer in answers]),
        features={tap: torch.cat([answer.features[tap] for answer in answers]) for tap in answers[0].features},
        attention={},
    )


def _aligned_error(ours: Tensor, theirs: Tensor) -> float:
    scale, shift = align(ours, theirs, torch.ones_like(theirs, dtype=torch.bool))
    aligned = ours * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    return ((aligned - theirs).abs().mean(dim=(1, 2)) / theirs.mean(dim=(1, 2))).mean().item()
