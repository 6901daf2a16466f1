"""Which models the app can open, and whether a file is the one that its bundle describes. Knows no Flet."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from delta import bundled
from delta.bundle import ModelFile, read_bundle_card
from delta.errors import DeltaError
from delta.files import file_sha256
from delta.predict import DepthPredictor

MODEL_VARIABLE = "DELTA_MODEL"  # names bundles or ONNX files, separated as in $PATH
SHIPPED_FOLDER = "model"  # in the assets of a built app


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """One file that a person can pick; `sha256` is empty where no bundle says what the file should be."""

    file: Path
    label: str
    sha256: str = ""


class TimedPredictor(DepthPredictor):
    """A predictor that remembers how long the graph took for the last picture, in milliseconds."""

    infer_ms = 0.0

    def infer(self, pixels: Float32[np.ndarray, "3 h w"]) -> Float32[np.ndarray, "h w"]:
        """Run the graph alone, as `DepthPredictor.infer` does, and take the time."""
        start = time.perf_counter()
        disparity = super().infer(pixels)
        self.infer_ms = (time.perf_counter() - start) * 1000
        return disparity


def find_models(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Choose what to open: the arguments, what $DELTA_MODEL lists, what was built in, or the shipped students.

    A shipped student's name stands for its bundle.
    """
    names = list(arguments) or [name for name in environment.get(MODEL_VARIABLE, "").split(os.pathsep) if name]
    if names:
        return tuple(bundled.find(Path(name)) for name in names)
    built_in = Path(environment.get("FLET_ASSETS_DIR", "")) / SHIPPED_FOLDER
    if environment.get("FLET_ASSETS_DIR") and built_in.is_dir():
        return (built_in,)
    return tuple(bundled.STUDENTS.values())


def list_choices(paths: Sequence[Path]) -> tuple[ModelChoice, ...]:
    """List the models at `paths`, in their order: of a bundle every file, smallest graph first; or an ONNX file.

    Raises:
        DeltaError: an incomplete or damaged bundle.
    """
    return tuple(choice for path in paths for choice in _choices_at(path, f"{path.name} · " if len(paths) > 1 else ""))


def _choices_at(path: Path, prefix: str) -> list[ModelChoice]:
    if not path.is_dir():
        return [ModelChoice(file=path, label=path.stem)]
    models = sorted(read_bundle_card(path).models, key=lambda model: model.size_px)
    return [ModelChoice(file=path / model.file, label=prefix + _label(model), sha256=model.sha256) for model in models]


def open_model(choice: ModelChoice, threads: int = 0) -> TimedPredictor:
    """Check the file against its bundle, then load it for the CPU; 0 threads are one a core.

    Raises:
        DeltaError: the file is missing, not the one that the bundle describes, damaged or not Delta's.
    """
    if choice.sha256 and choice.file.is_file():
        _require_digest(choice)
    predictor = TimedPredictor.open(choice.file, threads=threads)
    assert isinstance(predictor, TimedPredictor)
    return predictor


def _require_digest(choice: ModelChoice) -> None:
    found = file_sha256(choice.file)
    if found != choice.sha256:
        raise DeltaError(
            f"{choice.file.name} is not the file that its bundle describes: "
            f"its SHA-256 begins with {found[:8]}, delta.json says {choice.sha256[:8]}",
            "copy the bundle again, or export it again with `delta export`",
        )


def _label(model: ModelFile) -> str:
    height, width = model.size_px
    size = f"{height} px" if height == width else f"{width}×{height} px"
    return f"{size} · {model.precision} · {model.bytes / 1e6:.1f} MB"
