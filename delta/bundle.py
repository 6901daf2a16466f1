"""An exported student as a folder: ONNX files of several sizes and precisions, and `delta.json`, which describes them.

Knows no torch and no onnx, so that an app can read a bundle.
"""

from pathlib import Path
from typing import Any

import msgspec

from delta import bundled
from delta.config import Config
from delta.errors import DeltaError
from delta.files import write_aside

SIDECAR = "delta.json"
FORMAT, VERSION = "delta-bundle", 1
PRECISIONS = ("fp32", "packed", "fp16", "int8")
USUAL_PRECISIONS = ("fp32", "fp16", "int8")  # what an export makes unless told otherwise


class InputCard(Config, frozen=True, kw_only=True):
    """What the graphs take; the normalization that the student wants is inside them."""

    name: str = "image"
    dtype: str = "float32"
    layout: str = "NCHW"
    channels: str = "RGB"
    range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # to subtract before; the graph does the rest
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)  # to divide by before
    resize: str = "antialiased bicubic to the graph's size, the aspect ratio is not kept"


class OutputCard(Config, frozen=True, kw_only=True):
    """What the graphs give."""

    name: str = "disparity"
    dtype: str = "float32"
    layout: str = "NHW"
    meaning: str = "relative inverse depth: larger is nearer; scale and shift are arbitrary, no metres"


class ModelFile(Config, frozen=True, kw_only=True):
    """One ONNX file of a bundle."""

    file: str
    size_px: tuple[int, int]  # height, width
    precision: str
    batch: int | str
    bytes: int
    sha256: str  # of the whole file
    convolutions_in_float32: tuple[str, ...] = ()  # of an int8 file, where the search kept some
    receipt: dict[str, Any]


class BundleCard(Config, frozen=True, kw_only=True):
    """The content of `delta.json`."""

    format: str = FORMAT
    version: int = VERSION
    input: InputCard = InputCard()
    output: OutputCard = OutputCard()
    student: dict[str, Any]
    teacher: str
    licence: str
    models: tuple[ModelFile, ...]
    made_with: dict[str, str]


def write_bundle_card(folder: Path, card: BundleCard) -> Path:
    """Write `delta.json` into `folder`."""
    path = folder / SIDECAR
    with write_aside(path) as aside:
        aside.write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n")
    return path


def read_bundle_card(folder: Path) -> BundleCard:
    """Read `delta.json` of a bundle.

    Raises:
        DeltaError: there is none, it is damaged or newer, or a file it lists is missing.
    """
    path = folder / SIDECAR
    if not path.is_file():
        raise DeltaError(f"{folder} is no bundle: it has no {SIDECAR}", "`delta export RUN OUT` writes a whole one")
    try:
        card = msgspec.json.decode(path.read_bytes(), type=BundleCard)
    except msgspec.MsgspecError as error:
        raise DeltaError(f"{path} is damaged: {error}", "`delta export RUN OUT` writes it again") from None
    if (card.format, card.version) != (FORMAT, VERSION):
        raise DeltaError(
            f"{path} is {card.format} version {card.version}; this Delta reads {FORMAT} version {VERSION}",
            "pip install --upgrade delta-depth",
        )
    missing = [model.file for model in card.models if not (folder / model.file).is_file()]
    if missing or not card.models:
        lacks = ", ".join(missing) or "any model"
        raise DeltaError(f"{folder} lacks {lacks}, which {SIDECAR} lists", "`delta export RUN OUT` writes it again")
    return card


def choose_model(path: Path, precision: str = "") -> Path:
    """Return the ONNX file to open at `path`: itself, or of a bundle the first (of a precision, where one is named).

    A shipped student's name stands for its bundle.

    Raises:
        DeltaError: an incomplete bundle, or one without that precision.
    """
    path = bundled.find(path)
    if not path.is_dir():
        return path
    models = read_bundle_card(path).models
    chosen = [model.file for model in models if precision in ("", model.precision)]
    if not chosen:
        known = ", ".join(dict.fromkeys(model.precision for model in models))
        raise DeltaError(f"{path} has no {precision} file", f"it has {known}")
    return path / chosen[0]
