"""What the student is asked to match, as one weighted sum; the terms themselves are in `losses`.

Holds the trained projectors from the student's features to the teacher's, and the statistics that standardize these.
"""

from collections.abc import Callable
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
DISPARITY_TERMS = ("affine_invariant", "hierarchical", "raw", "gradient", "silog", "sobel", "mse")
FEATURE_TERMS = ("features", "relational", "attention_transfer", "feature_l1", "attention_l2")
PROJECTED = ("features", "attention_transfer", "feature_l1", "attention_l2")


class LossConfig(Config, frozen=True, kw_only=True):
    """Weights of the terms (0 turns one off) and what they compare.

    A term is the loss of its name in `losses` (`gradient` is gradient matching, `features` the feature distance), the
    mean over the paired levels where it compares several; the seed's `feature_l1` and `attention_l2` are their sums.
    `target` divides the teacher's disparity by a constant of the store, or by each image's maximum as the seed does.
    `levels` are strides of student features, paired in order with the store's deepest taps. `standardize` compares with
    teacher features of zero mean and unit variance per channel; `train_projectors` lets the 1x1 projections learn (the
    seed leaves them random). `cls_attention` needs a store that kept attention.
    """

    target: Literal["store", "image_max"] = "store"
    affine_invariant: Weight = 0.0
    hierarchical: Weight = 0.0
    raw: Weight = 0.0
    gradient: Weight = 0.0
    features: Weight = 0.0
    relational: Weight = 0.0
    attention_transfer: Weight = 0.0
    cls_attention: Weight = 0.0
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

    @property
    def uses_attention(self) -> bool:
        """Whether any term looks at the teacher's attention, so that the feed must read it."""
        return self.cls_attention > 0


class TargetStatistics(Config, frozen=True, kw_only=True):
    """Constants of a store: mean disparity, and by tap the features' channel means and deviations, and the heads."""

    disparity_scale: float
    feature_mean: dict[str, Tensor]
    feature_std: dict[str, Tensor]
    heads: dict[str, int] = {}


class Objective(nn.Module):
    """Student outputs and a batch -> the total loss and its terms."""

    def __init__(self, config: LossConfig, channels: dict[int, int], statistics: TargetStatistics) -> None:
        """Make the projectors; `channels` are those of the student's levels by stride.

        Raises:
            DeltaError: every weight is 0, or store or student lack what the recipe's levels pair.
        """
        super().__init__()
        if not any(getattr(config, name) > 0 for name in (*DISPARITY_TERMS, *FEATURE_TERMS, "cls_attention")):
            raise DeltaError(
                "every term of the loss has weight 0", "give one a weight, such as --set loss.affine_invariant=1"
            )
        self.config = config
        self.disparity_scale = statistics.disparity_scale
        self.taps = _pair(config, channels, list(statistics.feature_mean), "") if config.uses_features else []
        heads = list(statistics.heads)
        self.attention_taps = _pair(config, channels, heads, " of attention") if config.uses_attention else []
        projected = self.taps if any(getattr(config, name) > 0 for name in PROJECTED) else []
        self.projectors = nn.ModuleList(
            nn.Conv2d(channels[level], len(statistics.feature_mean[tap]), 1)
            for level, tap in zip(config.levels, projected, strict=False)
        ).requires_grad_(config.train_projectors)
        self.attention_projectors = nn.ModuleList(
            nn.Conv2d(channels[level], statistics.heads[tap], 1)
            for level, tap in zip(config.levels, self.attention_taps, strict=False)
        )
        for tap in self.taps:
            self.register_buffer(f"mean_{tap}", statistics.feature_mean[tap].view(1, -1, 1, 1), persistent=False)
            self.register_buffer(f"std_{tap}", statistics.feature_std[tap].view(1, -1, 1, 1), persistent=False)

    @property
    def arrays(self) -> list[str]:
        """What the feed must bring beside images and disparity: "features/block09", "attention/block12", ..."""
        return [f"features/{tap}" for tap in self.taps] + [f"attention/{tap}" for tap in self.attention_taps]

    def forward(self, disparity: Float[Tensor, "b s s"], levels: dict[int, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Compute the active terms, unweighted, and their weighted sum under "total"."""
        terms = self._disparity_terms(disparity, batch)
        if self.taps:
            terms |= self._feature_terms(levels, batch)
        if self.attention_taps:
            terms["cls_attention"] = self._cls_attention(levels, batch)
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
            "hierarchical": lambda: losses.hierarchical(student, teacher, valid),
            "raw": lambda: losses.raw(student, teacher, valid, scale=1.0),
            "gradient": lambda: losses.gradient_matching(student, teacher, valid),
            "silog": lambda: losses.silog(student, teacher, valid, alpha=config.silog_alpha),
            "sobel": lambda: losses.sobel_l1(student, teacher, valid),
            "mse": lambda: losses.disparity_mse(student, teacher, valid),
        }
        return {name: term() for name, term in active.items() if getattr(config, name) > 0}

    def _feature_terms(self, levels: dict[int, Tensor], batch: Batch) -> dict[str, Tensor]:
        config, weight = self.config, batch.feature_weight
        theirs = [self._teacher_features(tap, batch) for tap in self.taps]
        bare = [levels[stride] for stride in config.levels]
        projected = [project(level) for project, level in zip(self.projectors, bare, strict=False)]

        def mean(loss: Callable[..., Tensor], ours: list[Tensor]) -> Tensor:
            pairs = zip(ours, theirs, strict=True)
            return torch.stack([loss(_to_grid(s, t.shape[-1]), t, weight) for s, t in pairs]).mean()

        def at_once(loss: Callable[..., Tensor]) -> Tensor:
            ours = [_to_grid(s, t.shape[-1]) for s, t in zip(projected, theirs, strict=True)]
            return loss(ours, theirs, weight)

        active = {
            "features": lambda: mean(losses.feature_distance, projected),
            "relational": lambda: mean(losses.relational, bare),
            "attention_transfer": lambda: mean(losses.attention_transfer, projected),
            "feature_l1": lambda: at_once(losses.feature_l1),
            "attention_l2": lambda: at_once(losses.attention_l2),
        }
        return {name: term() for name, term in active.items() if getattr(config, name) > 0}

    def _teacher_features(self, tap: str, batch: Batch) -> Tensor:
        target = batch.features[tap]
        if not self.config.standardize:
            return target
        return (target - getattr(self, f"mean_{tap}")) / getattr(self, f"std_{tap}")

    def _cls_attention(self, levels: dict[int, Tensor], batch: Batch) -> Tensor:
        terms = []
        for stride, tap, project in zip(
            self.config.levels, self.attention_taps, self.attention_projectors, strict=True
        ):
            target = batch.attention[tap]
            logits = _to_grid(project(levels[stride]), target.shape[-1])
            terms.append(losses.cls_attention(logits, target, batch.feature_weight))
        return torch.stack(terms).mean()


def _pair(config: LossConfig, channels: dict[int, int], taps: list[str], kind: str) -> list[str]:
    """The store's deepest taps, one for each of the recipe's levels, in order."""
    count = len(config.levels)
    if len(taps) < count:
        raise DeltaError(
            f"the recipe pairs {count} student levels with taps{kind}; the store has {len(taps)}",
            "build the cache with more taps, or give fewer loss.levels",
        )
    lacking = [stride for stride in config.levels if stride not in channels]
    if lacking:
        raise DeltaError(
            f"the student has no level of stride {lacking[0]}, which loss.levels asks for",
            f"choose among {', '.join(map(str, channels))}",
        )
    return taps[-count:]


def _to_grid(features: Float[Tensor, "b c h w"], side: int) -> Tensor:
    if features.shape[-1] > side:
        return functional.adaptive_avg_pool2d(features, side)
    return functional.interpolate(features, size=(side, side), mode="bilinear", align_corners=False)
