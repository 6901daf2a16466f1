"""Which models the app can open, and whether a file is the one that its bundle describes. Knows no Flet."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from delta import bundled
from delta.bundle import ModelFile, read_bundle_card
from delta.errors import DeltaError
from delta.predict import DepthPredictor

MODEL_VARIABLE = "DELTA_MODEL"  # names a bundle or an ONNX file
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


def find_model(arguments: Sequence[str], environment: Mapping[str, str]) -> Path:
    """Choose what to open: the first argument, $DELTA_MODEL, what was built into the app, or the bundled student."""
    named = next(iter(arguments), "") or environment.get(MODEL_VARIABLE, "")
    if named:
        return Path(named)
    shipped = Path(environment.get("FLET_ASSETS_DIR", "")) / SHIPPED_FOLDER
    return shipped if environment.get("FLET_ASSETS_DIR") and shipped.is_dir() else bundled.MODEL


def list_choices(path: Path) -> tuple[ModelChoice, ...]:
    """List the models at `path`: every file of a bundle, smallest graph first, or the one ONNX file.

    Raises:
        DeltaError: an incomplete or damaged bundle.
    """
    if not path.is_dir():
        return (ModelChoice(file=path, label=path.stem),)
    models = sorted(read_bundle_card(path).models, key=lambda model: model.size_px)
    return tuple(ModelChoice(file=path / model.file, label=_label(model), sha256=model.sha256) for model in models)


def open_model(choice: ModelChoice, threads: int = 0) -> TimedPredictor:
    """Check the file against its bundle, then load it for the CPU; 0 threads are one a core.

    Raises:
        DeltaError: the file is missing, not the one that the bundle describes, damaged or not Delta's.
    """
    if choice.sha256:
        _require_digest(choice)
    predictor = TimedPredictor.open(choice.file, threads=threads)
    assert isinstance(predictor, TimedPredictor)
    return predictor


def _require_digest(choice: ModelChoice) -> None:
    with choice.file.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
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
