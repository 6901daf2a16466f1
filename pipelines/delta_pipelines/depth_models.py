"""What can be asked for the depth of a photo: a run, a checkpoint, an ONNX file, a bundle, a teacher."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from delta.bundle import SIDECAR, choose_model
from delta.checkpoint import WEIGHTS, is_student, load_student
from delta.errors import DeltaError
from delta.files import file_sha256
from delta.images import resize, resize_disparity, size_of_short_side, to_tensor_layout
from delta.predict import DepthPredictor
from delta.student import Student
from delta.teacher import Teacher, digest_weights, load_teacher
from delta_pipelines.evaluate_recipe import TeacherView

MODELS = "name a run, a checkpoint, an ONNX file, a bundle, or a teacher by its folder or hub id"

Photo = UInt8[np.ndarray, "h w 3"]
Disparity = Float32[np.ndarray, "h w"]


@dataclass(frozen=True, kw_only=True)
class DepthModel:
    """A model under evaluation: `disparity` answers a photo at the photo's own size, larger is nearer."""

    name: str
    source: str
    kind: str
    sees: str  # what it is shown of a photo
    sha256: str  # of its weights, or of its file
    parameters: int  # 0 where a file does not tell: norms are folded into an exported graph's weights
    disparity: Callable[[Photo], Disparity]


def load_models(sources: Sequence[str], view: TeacherView, device: torch.device) -> list[DepthModel]:
    """Load each of `sources`, a path, a hub id, or NAME=one of these, and give them names that differ.

    Raises:
        DeltaError: one is none of these, or cannot be loaded.
    """
    given = [_split_name(source) for source in sources]
    models = [_load(source, view, device) for _, source in given]
    names = [name or model.name for (name, _), model in zip(given, models, strict=True)]
    return [replace(model, name=name) for model, name in zip(models, _unique(names, models), strict=True)]


def _split_name(source: str) -> tuple[str, str]:
    name, equals, rest = source.partition("=")
    return ("", source) if not equals or not name or "/" in name or Path(source).exists() else (name, rest)


def _unique(names: Sequence[str], models: Sequence[DepthModel]) -> list[str]:
    """Tell models of one name apart by their file's name, then by the folder too, and those alike by a number."""
    paths = [Path(model.source).absolute() for model in models]
    for longer in ([path.name for path in paths], [f"{path.parent.name}/{path.name}" for path in paths]):
        names = [new if names.count(old) > 1 else old for old, new in zip(names, longer, strict=True)]
    return [f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _load(source: str, view: TeacherView, device: torch.device) -> DepthModel:
    path = Path(source)
    if is_student(path):
        return _student(path, device)
    if path.suffix == ".onnx" or (path / SIDECAR).is_file():
        return _exported(path)
    if not path.exists() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise DeltaError(f"there is no model {source}", MODELS)
    if path.is_file() or (path.is_dir() and not (path / "config.json").is_file()):
        raise DeltaError(
            f"{path} is no model: neither a run, a checkpoint, an ONNX file, a bundle nor a teacher in hub layout",
            f"a finished run holds {WEIGHTS}, a bundle {SIDECAR}, a teacher config.json",
        )
    return _teacher(source, load_teacher(source, precision=view.precision, device=device), view)


def _student(path: Path, device: torch.device) -> DepthModel:
    student, card = load_student(path)
    side, network = card.size_px, student.to(device)
    name = path.parent.name if path.name == WEIGHTS else path.name.removesuffix(".safetensors")
    return DepthModel(
        name=name or path.absolute().name,
        source=str(path),
        kind="run" if path.is_dir() else "checkpoint",
        sees=f"{side}x{side}",
        sha256=digest_weights(student.state_dict()),
        parameters=sum(parameter.numel() for parameter in student.parameters()),
        disparity=lambda photo: _ask_student(network, photo, side, device),
    )


@torch.inference_mode()
def _ask_student(student: Student, photo: Photo, side_px: int, device: torch.device) -> Disparity:
    """As `delta.predict` does with the exported graph."""
    pixels = torch.from_numpy(to_tensor_layout(resize(photo, side_px, side_px)))[None].to(device)
    return resize_disparity(student(pixels)[0].float().cpu().numpy(), *photo.shape[:2])


def _exported(path: Path) -> DepthModel:
    file = choose_model(path)
    predictor = DepthPredictor.open(file)
    height, width = predictor.card.size_px
    return DepthModel(
        name=path.name if path.is_dir() else file.stem,
        source=str(path),
        kind=f"ONNX {predictor.card.precision}",
        sees=f"{width}x{height}",
        sha256=file_sha256(file),
        parameters=0,
        disparity=predictor.predict,
    )


def _teacher(source: str, teacher: Teacher, view: TeacherView) -> DepthModel:
    multiple = teacher.side_multiple
    if view.size_px % multiple:
        raise DeltaError(f"the teacher's side is a multiple of {multiple} px, not {view.size_px}", "518 is published")
    return DepthModel(
        name=teacher.identity.name.rpartition("/")[2],
        source=source,
        kind="teacher",
        sees=f"short side {view.size_px}" if view.resize == "short_side" else f"{view.size_px}x{view.size_px}",
        sha256=teacher.identity.weights_sha256,
        parameters=teacher.parameters,
        disparity=lambda photo: ask_teacher(teacher, photo, view),
    )


def ask_teacher(teacher: Teacher, photo: Photo, view: TeacherView) -> Disparity:
    """Ask as published: bicubic to `size_px` on the short side, sides in whole patches, the answer bilinearly back."""
    height, width = photo.shape[:2]
    size = (view.size_px, view.size_px)
    if view.resize == "short_side":
        size = size_of_short_side(height, width, view.size_px, teacher.side_multiple)
    answer = teacher(torch.from_numpy(to_tensor_layout(resize(photo, *size)))[None])
    return resize_disparity(answer.disparity[0].float().cpu().numpy(), height, width)
