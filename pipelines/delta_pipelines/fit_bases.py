"""The bases of a store's int8 features, fitted on its first photos (a random sample) before the first chunk."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from delta.errors import DeltaError
from delta.feature_basis import KEPT_VECTORS, FeatureBasis, fit_basis, mean_cosine
from delta.teacher import Teacher
from delta_cache.basis import TapBasis
from delta_cache.schema import Photo
from delta_cache.storage import Storage
from delta_pipelines.answers import resampled_features
from delta_pipelines.cache_recipe import CacheRecipe
from delta_pipelines.views import decode_view

HELD_OUT = 8  # every eighth photo is not fitted on: what comes back of its features is what the store promises


def fit_bases(
    recipe: CacheRecipe,
    photos: Sequence[Photo],
    storage: Storage,
    teacher: Teacher,
    side: int,
    device: torch.device,
    on_photo: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, TapBasis]:
    """Fit one basis a tap on the plain views of the first `fit_photos` photos.

    The mean cosine on every eighth of them, which are not fitted on, is kept with each basis.

    Raises:
        DeltaError: none of the photos can be used.
    """
    chosen = photos[: recipe.features.fit_photos]
    vectors: dict[str, list[Tensor]] = {}
    held: dict[str, list[Tensor]] = {}
    reason = ""
    for done, photo in enumerate(chosen, 1):
        decoded = decode_view(storage, photo, "plain", recipe, side)
        on_photo(done, len(chosen))
        if decoded.record.failure:
            reason = reason or f"{photo.path}: {decoded.record.failure}"
            continue
        image = torch.tensor(decoded.image, device=device).permute(2, 0, 1).to(torch.float32)[None] / 255
        maps = resampled_features(recipe, teacher(image))
        if not all(value.isfinite().all() for value in maps.values()):
            continue
        keep_whole = done % HELD_OUT == 0
        for tap, value in maps.items():
            if keep_whole:
                held.setdefault(tap, []).append(value.half().cpu())
            else:
                vectors.setdefault(tap, []).append(_some(value, len(chosen), seed=done).half().cpu())
    if not vectors:
        raise DeltaError(
            f"none of the first {len(chosen)} photos can be used to fit the feature bases; {reason}",
            "name a folder with readable JPEG, PNG or WebP files",
        )
    return {tap: _fit(recipe, torch.cat(parts), held.get(tap, [])) for tap, parts in vectors.items()}


def _some(maps: Tensor, photos: int, seed: int) -> Tensor:
    """Feature vectors at random positions of a photo, so many that all photos together are `KEPT_VECTORS`: "n c"."""
    vectors = maps[0].flatten(1).T
    chosen = np.random.default_rng(seed).permutation(len(vectors))[: max(1, KEPT_VECTORS // photos)]
    return vectors[torch.from_numpy(np.sort(chosen)).to(vectors.device)]


def _fit(recipe: CacheRecipe, vectors: Tensor, held: list[Tensor]) -> TapBasis:
    """Fit one tap; where no photo could be spared, the cosine is that of the fitted vectors themselves."""
    features = recipe.features
    basis = fit_basis(vectors.float(), transform=features.transform, components=features.components, step=features.step)
    seen = torch.cat(held).float() if held else vectors.float().T[None, :, :, None]
    return TapBasis(
        **{name: getattr(basis, name).numpy() for name in ("mean", "std", "axes", "scale")},
        holdout_cosine=mean_cosine(_back(basis, seen), seen),
    )


def _back(basis: FeatureBasis, features: Tensor) -> Tensor:
    return basis.decode(basis.encode(features))
