"""The teacher: images -> disparity, features, attention. Any Delta student can stand in its place.

Knows nothing of photos, folders or stores. What decides its numbers is told by `TeacherIdentity`.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from delta import hub
from delta.checkpoint import StudentCard, is_student, load_student
from delta.config import Config
from delta.errors import DeltaError
from delta.student import Student

Precision = Literal["float32", "bfloat16", "float16"]
DEFAULT_TEACHER = "depth-anything/Depth-Anything-V2-Small-hf"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TeacherIdentity(Config, frozen=True, kw_only=True):
    """What decides a teacher's numbers, beside the pixels it is shown; `name` alone decides nothing."""

    name: str
    weights_sha256: str
    architecture: str
    preprocessing: str
    precision: Precision


class TeacherOutput(Config, frozen=True, kw_only=True):
    """The answers for one batch.

    `disparity` is relative inverse depth, larger = nearer, at the input's size. `features` maps a tap's name, shallow
    to deep, to "b c gh gw"; `attention` maps it to the CLS-to-patch attention "b heads gh gw", each head summing to at
    most 1 (the rest is CLS to CLS).
    """

    disparity: Tensor
    features: dict[str, Tensor]
    attention: dict[str, Tensor]


@runtime_checkable  # the tests check every type at run time
class Teacher(Protocol):
    """What the cache asks of a teacher."""

    identity: TeacherIdentity
    side_multiple: int
    parameters: int

    def __call__(self, image: Float[Tensor, "b 3 h w"]) -> TeacherOutput:
        """Answer for images in [0, 1] whose sides are multiples of `side_multiple`."""
        ...


def load_teacher(
    name: str,
    *,
    taps: tuple[int, ...] = (3, 6, 9, 12),
    precision: Precision = "float32",
    compiled: bool = False,
    device: torch.device | None = None,
) -> Teacher:
    """Load a teacher by hub id, from a local folder in hub layout, or from a Delta run or checkpoint.

    Args:
        taps: transformer blocks, counted from 1, whose output after the final LayerNorm is kept (as DPT taps them).
            A Delta student has no blocks and gives its four encoder levels instead.
        precision: of the forward pass, by autocast; weights, norms and softmax stay float32.
        compiled: run torch.compile's version of the network, which takes a minute to make.

    Raises:
        DeltaError: nothing loadable under that name, or the hub cannot be reached.
    """
    device = device or torch.device("cpu")
    path = Path(name)
    if is_student(path):
        return StudentTeacher(*load_student(path), precision=precision, device=device)
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1
    if looks_local and not path.is_dir():
        raise DeltaError(
            f"there is no teacher at {name}",
            f"name a folder in hub layout, a Delta run, or a hub id such as {DEFAULT_TEACHER}",
        )
    model = _load_depth_anything(name)
    return DepthAnythingTeacher(name, model, taps=taps, precision=precision, compiled=compiled, device=device)


class DepthAnythingTeacher:
    """Depth-Anything-V2 by transformers, with the fast attention kernel kept."""

    side_multiple = 14

    def __init__(
        self,
        name: str,
        model: Any,
        *,
        taps: tuple[int, ...],
        precision: Precision,
        compiled: bool = False,
        device: torch.device,
    ) -> None:
        model = model.eval().requires_grad_(False)
        weights_sha256 = digest_weights(model.state_dict())
        self._model = model.to(device)
        self._forward = torch.compile(self._answer) if compiled else self._answer
        blocks = len(self._blocks)
        if not taps or list(taps) != sorted(set(taps)) or not 1 <= taps[0] <= taps[-1] <= blocks:
            raise DeltaError(
                f"taps {list(taps)} do not fit a teacher of {blocks} blocks",
                f"give ascending block numbers from 1 to {blocks}, such as [3, 6, 9, 12]",
            )
        self._taps, self._device = taps, device
        self._precision: Precision = precision
        self.parameters = sum(p.numel() for p in model.parameters())
        self._mean = torch.tensor(IMAGENET_MEAN, device=device).view(3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=device).view(3, 1, 1)
        self.identity = TeacherIdentity(
            name=DEFAULT_TEACHER if Path(name).name == DEFAULT_TEACHER.split("/")[1] else Path(name).name,
            weights_sha256=weights_sha256,
            architecture=_describe(self._model.config),
            preprocessing="bicubic, rgb/255, imagenet mean and std",
            precision=precision,
        )

    @property
    def _blocks(self) -> Any:
        return self._model.backbone.encoder.layer

    @torch.inference_mode()
    def __call__(self, image: Float[Tensor, "b 3 h w"]) -> TeacherOutput:
        """Answer for a batch; sides must be multiples of 14."""
        pixels = (image.to(self._device, torch.float32) - self._mean) / self._std
        with _autocast(self._device, self._precision):
            disparity, tokens, queries, keys = self._forward(pixels)
        grid = (image.shape[-2] // self.side_multiple, image.shape[-1] // self.side_multiple)
        heads = self._model.config.backbone_config.num_attention_heads
        names = [f"block{tap:02d}" for tap in self._taps]
        return TeacherOutput(
            disparity=disparity.float(),
            features={name: _patch_grid(value, grid) for name, value in zip(names, tokens, strict=True)},
            attention={
                name: cls_attention(query, key, heads, grid)
                for name, query, key in zip(names, queries, keys, strict=True)
            },
        )

    def _answer(self, pixels: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """Disparity, and per tap the normalized tokens, the queries and the keys, caught on their way."""
        caught: dict[tuple[str, int], Tensor] = {}
        hooks = []
        for tap in self._taps:
            block = self._blocks[tap - 1]
            for kind, module in (("token", block), ("query", block.attention.q_proj), ("key", block.attention.k_proj)):
                hooks.append(module.register_forward_hook(_keep(caught, (kind, tap))))
        try:
            disparity = self._model(pixels).predicted_depth
        finally:
            for hook in hooks:
                hook.remove()
        tokens, queries, keys = ([caught[kind, tap] for tap in self._taps] for kind in ("token", "query", "key"))
        return disparity, [self._model.backbone.layernorm(value) for value in tokens], queries, keys


class StudentTeacher:
    """A trained Delta student as the teacher of the next one (multi-stage distillation)."""

    side_multiple = 64

    def __init__(self, student: Student, card: StudentCard, *, precision: Precision, device: torch.device) -> None:
        self._student = student.to(device).eval().requires_grad_(False)
        self._precision: Precision = precision
        self._device = device
        self.parameters = sum(p.numel() for p in student.parameters())
        self.identity = TeacherIdentity(
            name=f"delta student {card.config.encoder} of {card.teacher}",
            weights_sha256=digest_weights(student.state_dict()),
            architecture=f"{card.config.encoder}, {card.config.decoder} decoder",
            preprocessing="bicubic, rgb/255",
            precision=precision,
        )

    @torch.inference_mode()
    def __call__(self, image: Float[Tensor, "b 3 h w"]) -> TeacherOutput:
        """Answer for a batch; sides must be multiples of 64. A student has no CLS token, so no attention."""
        with _autocast(self._device, self._precision):
            disparity, levels = self._student.forward_with_features(image.to(self._device, torch.float32))
        features = {f"stride{stride:02d}": level.float() for stride, level in levels.items() if stride > 2}
        return TeacherOutput(disparity=disparity.float().clamp(min=0), features=features, attention={})


def cls_attention(
    query: Float[Tensor, "b n d"], key: Float[Tensor, "b n d"], heads: int, grid: tuple[int, int]
) -> Tensor:
    """Compute softmax(q_cls k / sqrt(d_head)) over all tokens and keep the patches of the grid: "b heads gh gw".

    Equal to the "eager" kernel's CLS row; the default SDPA kernel of transformers returns no attention at all.
    """
    batch, tokens, width = query.shape
    head_width = width // heads
    cls_query = query[:, :1].float().view(batch, 1, heads, head_width).transpose(1, 2)
    keys = key.float().view(batch, tokens, heads, head_width).transpose(1, 2)
    attention = (cls_query @ keys.transpose(2, 3) / head_width**0.5).softmax(dim=-1)
    return attention[:, :, 0, 1:].reshape(batch, heads, *grid)


def digest_weights(state: Mapping[str, Tensor]) -> str:
    """Hash names, shapes and float32 values, so that storage format and order do not matter (hex SHA-256)."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu()
        digest.update(json.dumps([name, list(tensor.shape)]).encode())
        digest.update(tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _autocast(device: torch.device, precision: Precision) -> torch.autocast:
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


def _keep(into: dict[tuple[str, int], Tensor], key: tuple[str, int]) -> Any:
    def hook(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        into[key] = output

    return hook


def _describe(config: Any) -> str:
    backbone = config.backbone_config
    taps = "-".join(str(index) for index in backbone.out_indices)
    return (
        f"{config.model_type}: {backbone.num_hidden_layers} blocks of {backbone.hidden_size}, "
        f"{backbone.num_attention_heads} heads, patch {backbone.patch_size}, DPT on blocks {taps}"
    )


def _patch_grid(tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Tensor:
    return tokens[:, 1:].float().transpose(1, 2).reshape(tokens.shape[0], -1, *grid)


def _load_depth_anything(name: str) -> Any:
    from transformers import AutoModelForDepthEstimation
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        with nullcontext() if Path(name).is_dir() else hub.without_waiting():
            model, loading = AutoModelForDepthEstimation.from_pretrained(
                name, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DeltaError(
            f"the teacher {name} cannot be loaded: {str(error).splitlines()[0]}",
            "give --teacher (or DELTA_TEACHER) a local folder in hub layout, or connect to the hub once",
        ) from error
    if getattr(model.config, "model_type", "") != "depth_anything" or not hasattr(model.backbone, "encoder"):
        raise DeltaError(
            f"the teacher {name} is a {model.config.model_type} model, not a Depth-Anything",
            f"use {DEFAULT_TEACHER}, another Depth-Anything-V2 in hub layout, or a Delta run",
        )
    lacking = sorted(loading["missing_keys"])
    if lacking:  # transformers would go on with random numbers in their place
        raise DeltaError(
            f"the teacher {name} lacks {len(lacking)} of its tensors, {lacking[0]} among them", "download it again"
        )
    if model.config.depth_estimation_type != "relative":
        raise DeltaError(
            f"the teacher {name} answers {model.config.depth_estimation_type} depth, not relative disparity",
            f"use {DEFAULT_TEACHER} or another relative Depth-Anything-V2",
        )
    return model


def teacher_name(given: str | None) -> str:
    """Choose the teacher: the one given, else environment `DELTA_TEACHER`, else `DEFAULT_TEACHER`."""
    return given or os.environ.get("DELTA_TEACHER") or DEFAULT_TEACHER
