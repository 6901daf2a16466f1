"""What the teacher is asked and what is kept of its answers; recipes/cache.toml explains each key."""

from typing import Annotated, Literal

from msgspec import Meta

from delta.config import Config

Share = Annotated[float, Meta(gt=0, le=1)]
Ratio = Annotated[float, Meta(gt=0)]
Grid = Annotated[int, Meta(ge=0, le=1024)]
Bits = Annotated[int, Meta(ge=1, le=10)]


class ImageRecipe(Config, frozen=True, kw_only=True):
    """How the view is kept: JPEG (the teacher sees what the JPEG holds), or raw pixels behind Blosc."""

    kind: Literal["jpeg", "raw"] = "jpeg"
    quality: Annotated[int, Meta(ge=1, le=100)] = 95


class DisparityRecipe(Config, frozen=True, kw_only=True):
    """Mantissa bits kept of float16's ten."""

    bits: Bits = 7


class FeatureRecipe(Config, frozen=True, kw_only=True):
    """How features are kept; see `delta.feature_basis.fit_basis` for `transform`, `components` and `step`."""

    kind: Literal["int8", "float16", "none"] = "int8"
    grid: Grid = 24
    transform: Literal["pca", "none"] = "pca"
    components: Annotated[int, Meta(ge=0)] = 0
    step: Annotated[float, Meta(ge=0)] = 0.5
    fit_photos: Annotated[int, Meta(ge=1)] = 128


class AttentionRecipe(Config, frozen=True, kw_only=True):
    """CLS-to-patch attention per head: whether it is kept, on which grid, with how many mantissa bits."""

    kind: Literal["float16", "none"] = "float16"
    grid: Grid = 24
    bits: Bits = 7


class ViewsRecipe(Config, frozen=True, kw_only=True):
    """Views beside the plain one; `crop_scale` is a crop's share of the photo's area, `crop_ratio` its aspect ratio."""

    mirrored: bool = False
    crops: Annotated[int, Meta(ge=0, le=64)] = 0
    crop_scale: tuple[Share, Share] = (0.4, 1.0)
    crop_ratio: tuple[Ratio, Ratio] = (0.75, 1.333)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all views, in the order of the samples."""
        crops = (f"crop{number}" for number in range(1, self.crops + 1))
        return ("plain", *(["mirrored"] if self.mirrored else []), *crops)


class CacheRecipe(Config, frozen=True, kw_only=True):
    """Everything a cache build can be told.

    `batch_size`, `compile` and `limit` are no part of the contract: the first two move the last bits only
    (docs/benchmarks reports by how much), the third shows in the photo list.
    """

    size_px: Annotated[int, Meta(ge=64, le=2048)]
    taps: tuple[Annotated[int, Meta(ge=1)], ...]
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    chunk_samples: Annotated[int, Meta(ge=1, le=4096)] = 32
    batch_size: Annotated[int, Meta(ge=1, le=1024)] = 8
    seed: Annotated[int, Meta(ge=0)] = 0
    limit: Annotated[int, Meta(ge=0)] = 0
    compressor: Literal["zstd", "lz4", "none"] = "zstd"
    level: Annotated[int, Meta(ge=0, le=9)] = 3
    image: ImageRecipe = ImageRecipe()
    disparity: DisparityRecipe = DisparityRecipe()
    features: FeatureRecipe = FeatureRecipe()
    attention: AttentionRecipe = AttentionRecipe()
    views: ViewsRecipe = ViewsRecipe()

    def side(self, multiple: int) -> int:
        """The view's side in px: `size_px`, rounded to what a teacher takes."""
        return max(1, round(self.size_px / multiple)) * multiple
