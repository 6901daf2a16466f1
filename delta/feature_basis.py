"""Transform coding of feature maps: the principal axes of a tap's features, and int8 codes along them.

Features are rotated to their principal axes (Karhunen-Loève transform) and rounded to multiples of one step for all
axes: those that carry little round to zeros, which cost next to nothing once compressed, and none is cut off blindly.
Against a fixed number of axes with a scale each, this keeps more at fewer bytes (docs/decisions/0004). Knows no store.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int8
from torch import Tensor
from torch.nn import functional

from delta.config import Config

KEPT_VECTORS = 32_768  # enough for the covariance of 1,024 channels; bounds memory whatever the photos
LIMIT = 127


class FeatureBasis(Config, frozen=True, kw_only=True):
    """`mean`, `std` "c" and `axes` "k c" (orthonormal rows), `scale` "k": value = mean + (code * scale) @ axes."""

    mean: Tensor
    std: Tensor
    axes: Tensor
    scale: Tensor

    def to(self, device: torch.device) -> "FeatureBasis":
        """Copy to a device."""
        return FeatureBasis(**{name: getattr(self, name).to(device) for name in ("mean", "std", "axes", "scale")})

    def encode(self, features: Float[Tensor, "b c g h"]) -> Int8[Tensor, "b k g h"]:
        """Round to codes; what lies beyond 127 steps is clipped."""
        centered = features - self.mean[:, None, None]
        coefficients = torch.einsum("kc,bcgh->bkgh", self.axes / self.scale[:, None], centered)
        return coefficients.round().clamp(-LIMIT, LIMIT).to(torch.int8)

    def decode(self, codes: Int8[Tensor, "b k g h"] | Float[Tensor, "b k g h"]) -> Float[Tensor, "b c g h"]:
        """Turn codes, or means of several, back into features, float32."""
        values = torch.einsum("kc,bkgh->bcgh", self.axes * self.scale[:, None], codes.float())
        return values + self.mean[:, None, None]


def fit_basis(
    vectors: Float[Tensor, "n c"], *, transform: Literal["pca", "none"], components: int = 0, step: float = 0.0
) -> FeatureBasis:
    """Fit a basis to feature vectors.

    Args:
        transform: "pca" rotates to the principal axes, "none" keeps the channels.
        components: axes kept, by falling variance; 0 keeps all.
        step: rounding step for all axes, in units of the features' root mean square deviation per channel; where an
            axis would leave int8, its step grows. 0 gives each axis the step that its own range needs.
    """
    values = vectors.double()
    mean, std = values.mean(dim=0), values.std(dim=0, correction=0)
    axes = _principal_axes(values - mean) if transform == "pca" else torch.eye(len(mean), dtype=torch.float64)
    axes = axes[: components or None]
    reach = ((values - mean) @ axes.T).abs().amax(dim=0) / LIMIT
    scale = torch.maximum(reach, step * std.square().mean().sqrt()).clamp(min=1e-12)
    return FeatureBasis(mean=mean.float(), std=std.float(), axes=axes.float(), scale=scale.float())


def mean_cosine(ours: Float[Tensor, "b c g h"], theirs: Float[Tensor, "b c g h"]) -> float:
    """Cosine over channels, averaged over positions."""
    return functional.cosine_similarity(ours.float(), theirs.float(), dim=1).mean().item()


def resample_area(maps: Float[Tensor, "b c h w"], side: int, *, keep: Literal["mean", "sum"]) -> Tensor:
    """Resample maps to side x side by exact areas: "b c side side", keeping the mean, or (a distribution's) sum."""
    rows, columns = (_area_weights(length, side, keep).to(maps) for length in maps.shape[-2:])
    return torch.einsum("sh,bchw,tw->bcst", rows, maps, columns)


def _area_weights(length: int, side: int, keep: str) -> Float[Tensor, "side length"]:
    edges = torch.arange(side + 1, dtype=torch.float64) * length / side
    cells = torch.arange(length, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], cells)
    high = torch.minimum(edges[1:, None], cells + 1)
    overlap = (high - low).clamp(min=0)
    return overlap * side / length if keep == "mean" else overlap


def _principal_axes(centered: Float[Tensor, "n c"]) -> Float[Tensor, "c c"]:
    _, vectors = torch.linalg.eigh(centered.T @ centered / len(centered))
    axes = vectors.flip(1).T
    largest = axes.abs().argmax(dim=1, keepdim=True)
    return axes * axes.gather(1, largest).sign()  # an eigenvector's sign is arbitrary: the largest entry is positive
