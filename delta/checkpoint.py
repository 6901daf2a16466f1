"""Students on disk: safetensors with the card as JSON in the header; nothing is ever unpickled."""

from pathlib import Path
from typing import Any

import msgspec
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from delta import bundled
from delta.config import Config
from delta.errors import DeltaError
from delta.files import write_aside
from delta.student import Student, StudentConfig, build_student

FORMAT, VERSION = "delta-student", 1
WEIGHTS = "student.safetensors"


class StudentCard(Config, frozen=True, kw_only=True):
    """What a student is: its shape, how it was made, and how well it agrees with its teacher on held-out photos.

    `recipe` and `contract` (of the store it learned from) are kept whole, as plain data.
    """

    config: StudentConfig
    size_px: int
    teacher: str
    fingerprint: str
    commit: str = ""
    step: int = 0
    agreement: dict[str, float] = {}
    recipe: dict[str, Any] = {}
    contract: dict[str, Any] = {}


def save_student(path: Path, student: Student, card: StudentCard, *, half: bool = False) -> Path:
    """Write weights and card to `path`, aside first; `half` keeps matrices and kernels (not norms) in float16."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in student.state_dict().items()}
    if half:
        state = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in state.items()}
    metadata = {"format": FORMAT, "version": str(VERSION), "card": msgspec.json.encode(card).decode()}
    with write_aside(path) as aside:
        save_file(state, aside, metadata=metadata)
    return path


def round_to_half(student: Student) -> Student:
    """Round in place what `save_student` keeps in float16, so that the file and the student are the same."""
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half())
    return student


def weights_file(path: Path) -> Path:
    """Where the weights of a run, a checkpoint or a shipped student lie, if they do."""
    path = bundled.find(path)
    return path / WEIGHTS if path.is_dir() else path


def is_student(path: Path) -> bool:
    """Whether `path` is a run folder with a student in it, a Delta checkpoint, or the name of a shipped student."""
    file = weights_file(path)
    return file.is_file() and _metadata(file).get("format") == FORMAT


def load_student(path: Path) -> tuple[Student, StudentCard]:
    """Load a student from a run folder, a `.safetensors` file or by a shipped student's name, in eval mode on the CPU.

    Raises:
        DeltaError: nothing there, not a Delta checkpoint, of a newer version, or of other shapes than its card.
    """
    file = weights_file(path)
    if not file.is_file():
        raise DeltaError(f"there is no student at {path}", "name a run made by `delta train`, or its .safetensors file")
    metadata = _metadata(file)
    if metadata.get("format") != FORMAT:
        raise DeltaError(f"{file} is not a Delta student", "name a run made by `delta train`, or its .safetensors file")
    if metadata.get("version") != str(VERSION):
        raise DeltaError(
            f"{file} is a student of format version {metadata.get('version')}; this Delta reads version {VERSION}",
            "train it again with this Delta, or install the Delta that made it",
        )
    try:
        card = msgspec.json.decode(metadata["card"], type=StudentCard)
        student = build_student(card.config)
        student.load_state_dict(load_file(file))
    except (KeyError, msgspec.MsgspecError, RuntimeError, safetensors.SafetensorError) as error:
        # torch lists every tensor that does not fit, over many lines
        reason = "its weights do not fit its card" if isinstance(error, RuntimeError) else str(error).splitlines()[0]
        raise DeltaError(f"the student {file} is damaged: {reason}", "train or download it again") from error
    return student.eval(), card


def _metadata(file: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}
    except (safetensors.SafetensorError, OSError):
        return {}


def flatten_state(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Prefix names, so that several state dicts share one safetensors file."""
    return {f"{prefix}.{name}": tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def unflatten_state(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `flatten_state` for one prefix."""
    start = f"{prefix}."
    return {name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)}
