"""How weights are changed: the recipe's part of it, and which parameters get which rate."""

from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import nn

from delta.config import Config
from delta.objective import Objective
from delta.student import Student

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class OptimizerConfig(Config, frozen=True, kw_only=True):
    """AdamW in two groups (encoder; all else, projectors too), warm-up and cosine, clipping, EMA, autocast.

    `ema_decay` is reached by timm's warm-up; 0 keeps no average. `precision` is that of the forward pass; losses are
    always float32. `accumulate` cuts each batch into so many parts, whose gradients are added up: the same step (batch
    norms aside, which see a part) in less memory. `compile` hands the student to torch.compile.
    """

    lr_encoder: Annotated[float, Meta(gt=0)] = 1e-3
    lr_decoder: Annotated[float, Meta(gt=0)] = 1e-3
    lr_final: Annotated[float, Meta(ge=0)] = 1e-6
    weight_decay: Annotated[float, Meta(ge=0)] = 0.05
    warmup: Annotated[float, Meta(ge=0, lt=1)] = 0.04
    clip_norm: Annotated[float, Meta(gt=0)] = 1.0
    ema_decay: Annotated[float, Meta(ge=0, lt=1)] = 0.998
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    accumulate: Annotated[int, Meta(ge=1)] = 1
    compile: bool = False
    channels_last: bool = True


def parameter_groups(student: Student, objective: Objective, config: OptimizerConfig) -> list[dict[str, object]]:
    """Four groups: encoder and the rest, each with and without weight decay (none on norms and biases)."""
    rest = nn.ModuleList([student.context, student.decoder, objective])
    groups = []
    for module, rate in ((student.encoder, config.lr_encoder), (rest, config.lr_decoder)):
        parameters = [p for p in module.parameters() if p.requires_grad]
        for decay, chosen in (
            (config.weight_decay, [p for p in parameters if p.ndim > 1]),
            (0.0, [p for p in parameters if p.ndim <= 1]),
        ):
            groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return groups
