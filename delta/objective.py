"""What the student is asked to match, as one weighted sum; the terms themselves are in `losses`.

Holds the trained projectors from the student's features to the teacher's, and the statistics that standardize these.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional

from delta import losses
from delta.batch import Batch
from delta.config import Config
from delta.errors import DeltaError

Weight = Annotated[float, Meta(ge=0)]
STRIDES = (2, 4, 8, 16, 32)
DISPARITY_TERMS = ("affine_invariant", "raw", "gradient", "silog", "sobel", "mse")
FEATURE_TERMS = ("features", "attention_transfer", "feature_l1", "attention_l2")


class LossConfig(Config, frozen=True, kw_only=True):
    """Weights of the terms (0 turns one off) and what they compare.

    `target` divides the teacher's disparity by a constant of the store, or by each image's maximum as the seed does.
    `levels` are strides of student features, paired in order with the store's deepest taps. `standardize` compares with
    teacher features of zero mean and unit variance per channel; `train_projectors` lets the 1x1 projections learn (the
    seed leaves them random).
    """

    target: Literal["store", "image_max"] = "store"
    affine_invariant: Weight = 0.0
    raw: Weight = 0.0
    gradient: Weight = 0.0
    features: Weight = 0.0
    attention_transfer: Weight = 0.0
    silog: Weight = 0.0
    silog_alpha: Annotated[float, Meta(ge=0, le=1)] = 1.0
    sobel: Weight = 0.0
    feature_l1: Weight = 0.0
    attention_l2: Weight = 0.0
    mse: Weight = 0.0
    levels: Annotated[tuple[Literal[2, 4, 8, 16, 32], ...], Meta(min_length=1)] = (16, 32)
    standardize: bool = True
    train_projectors: bool = True

    @property
    def uses_features(self) -> bool:
        """Whether any term looks at features, so that the feed must read them."""
        return any(getattr(self, name) > 0 for name in FEATURE_TERMS)


class TargetStatistics(Config, frozen=True, kw_only=True):
    """Constants of a store: mean disparity, and per tap the features' channel means and deviations."""

    disparity_scale: float
    feature_mean: dict[str, Tensor]
    feature_std: dict[str, Tensor]


class Objective(nn.Module):
    """Student outputs and a batch -> the total loss and its terms."""

    def __init__(self, config: LossConfig, channels: list[int], statistics: TargetStatistics) -> None:
        super().__init__()
        if not any(getattr(config, name) > 0 for name in DISPARITY_TERMS + FEATURE_TERMS):
            raise DeltaError(
                "every term of the loss has weight 0", "give one a weight, such as --set loss.affine_invariant=1"
            )
        self.config = config
        self.disparity_scale = statistics.disparity_scale
        self.taps = list(statistics.feature_mean)[-len(config.levels) :] if config.uses_features else []
        if config.uses_features and len(self.taps) < len(config.levels):
            raise DeltaError(
                f"the recipe pairs {len(config.levels)} student levels with taps; the store has {len(self.taps)}",
                "build the cache with more taps, or give fewer loss.levels",
            )
        self.projectors = nn.ModuleList()
        for level, tap in zip(config.levels, self.taps, strict=False):
            mean, std = statistics.feature_mean[tap], statistics.feature_std[tap]
            self.projectors.append(nn.Conv2d(channels[STRIDES.index(level)], len(mean), 1))
            self.register_buffer(f"mean_{tap}", mean.view(1, -1, 1, 1), persistent=False)
            self.register_buffer(f"std_{tap}", std.view(1, -1, 1, 1), persistent=False)
        self.projectors.requires_grad_(config.train_projectors)

    def forward(self, disparity: Float[Tensor, "b s s"], levels: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Compute the active terms, unweighted, and their weighted sum under "total"."""
        terms = self._disparity_terms(disparity, batch)
        if self.taps:
            terms |= self._feature_terms(levels, batch)
        weighted = [getattr(self.config, name) * value for name, value in terms.items()]
        return terms | {"total": torch.stack(weighted).sum()}

    def target(self, disparity: Float[Tensor, "b s s"]) -> Tensor:
        """Bring the teacher's disparity to the scale the student is asked for."""
        if self.config.target == "image_max":
            return disparity / disparity.amax(dim=(1, 2), keepdim=True).clamp(min=1e-6)
        return disparity / self.disparity_scale

    def _disparity_terms(self, student: Tensor, batch: Batch) -> dict[str, Tensor]:
        config, valid, teacher = self.config, batch.valid, self.target(batch.disparity)
        active = {
            "affine_invariant": lambda: losses.affine_invariant(student, teacher, valid),
            "raw": lambda: losses.raw(student, teacher, valid, scale=1.0),
            "gradient": lambda: losses.gradient_matching(student, teacher, valid),
            "silog": lambda: losses.silog(student, teacher, valid, alpha=config.silog_alpha),
            "sobel": lambda: losses.sobel_l1(student, teacher, valid),
            "mse": lambda: losses.disparity_mse(student, teacher, valid),
        }
        return {name: term() for name, term in active.items() if getattr(config, name) > 0}

    def _feature_terms(self, levels: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        config, weight = self.config, batch.feature_weight
        ours, theirs = [], []
        for stride, tap, project in zip(config.levels, self.taps, self.projectors, strict=True):
            target = batch.features[tap]
            if config.standardize:
                target = (target - getattr(self, f"mean_{tap}")) / getattr(self, f"std_{tap}")
            ours.append(_to_grid(project(levels[STRIDES.index(stride)]), target.shape[-1]))
            theirs.append(target)
        pairs = list(zip(ours, theirs, strict=True))
        active = {
            "features": lambda: sum(losses.feature_distance(s, t, weight) for s, t in pairs) / len(pairs),
            "attention_transfer": lambda: sum(losses.attention_transfer(s, t, weight) for s, t in pairs) / len(pairs),
            "feature_l1": lambda: losses.feature_l1(ours, theirs, weight),
            "attention_l2": lambda: losses.attention_l2(ours, theirs, weight),
        }
        return {name: torch.as_tensor(term()) for name, term in active.items() if getattr(config, name) > 0}


def _to_grid(features: Float[Tensor, "b c h w"], side: int) -> Tensor:
    if features.shape[-1] > side:
        return functional.adaptive_avg_pool2d(features, side)
    return functional.interpolate(features, size=(side, side), mode="bilinear", align_corners=False)
