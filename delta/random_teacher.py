"""Teachers of the published sizes with random weights: their answers mean nothing, but take as long as any."""

from typing import Any, NamedTuple

import torch

from delta.teacher import DepthAnythingTeacher, Precision

PATCH_PX, PRETRAINED_PX = 14, 518


class Size(NamedTuple):
    """A Depth-Anything-V2's backbone and head, as its published configuration has them."""

    width: int
    blocks: int
    heads: int
    taps: tuple[int, ...]
    neck: tuple[int, ...]
    fusion: int


SIZES = {
    "vits": Size(384, 12, 6, (3, 6, 9, 12), (48, 96, 192, 384), 64),
    "vitb": Size(768, 12, 12, (3, 6, 9, 12), (96, 192, 384, 768), 128),
    "vitl": Size(1024, 24, 16, (5, 12, 18, 24), (256, 512, 1024, 1024), 256),
}


def random_teacher(
    size: str, *, taps: tuple[int, ...], precision: Precision = "float32", device: torch.device
) -> DepthAnythingTeacher:
    """Build a teacher of one of `SIZES` from its configuration alone, at the given taps."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    shape = SIZES[size]
    make_backbone: Any = Dinov2Config  # takes out_indices, which its signature does not show
    backbone = make_backbone(
        hidden_size=shape.width,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        image_size=PRETRAINED_PX,
        patch_size=PATCH_PX,
        out_indices=list(shape.taps),
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=PATCH_PX,
        reassemble_hidden_size=shape.width,
        neck_hidden_sizes=list(shape.neck),
        fusion_hidden_size=shape.fusion,
    )
    model = DepthAnythingForDepthEstimation(config)
    return DepthAnythingTeacher(f"random-{size}", model, taps=taps, precision=precision, device=device)
