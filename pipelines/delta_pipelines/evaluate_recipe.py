"""What an evaluation can be told; recipes/evaluate.toml explains each key."""

from typing import Annotated, Literal

from msgspec import Meta

from delta.config import Config
from delta.teacher import Precision
from delta.truth import Alignment

ProtocolName = Literal["auto", "nyu", "kitti", "da2k", "diode", "pairs", "fidelity"]
NotNegative = Annotated[float, Meta(ge=0)]


class TeacherView(Config, frozen=True, kw_only=True):
    """How a teacher is shown a photo."""

    size_px: Annotated[int, Meta(ge=64, le=2048)] = 518
    resize: Literal["short_side", "square"] = "short_side"
    precision: Precision = "float32"


class EvaluateRecipe(Config, frozen=True, kw_only=True):
    """Everything an evaluation can be told."""

    protocol: ProtocolName = "auto"
    dataset: str = ""
    split: str = ""
    limit: Annotated[int, Meta(ge=0)] = 0
    alignments: Annotated[tuple[Alignment, ...], Meta(min_length=1)] = ("affine_disparity",)
    nearest_m: NotNegative = 0.0
    farthest_m: NotNegative = 0.0
    levels_per_m: NotNegative = 0.0
    bootstrap: Annotated[int, Meta(ge=100, le=1_000_000)] = 10_000
    confidence: Annotated[float, Meta(gt=0, lt=1)] = 0.95
    seed: Annotated[int, Meta(ge=0)] = 0
    holdout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    teacher: TeacherView = TeacherView()
