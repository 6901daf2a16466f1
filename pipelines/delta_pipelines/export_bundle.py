"""Stage 3: run -> bundle. A file only stays in it when it agrees with its student on real photos."""

import platform
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import msgspec
import onnx
from msgspec import Meta

from delta import bundle
from delta.bundle import BundleCard, ModelFile
from delta.checkpoint import WEIGHTS, StudentCard, load_student, round_to_half, save_student
from delta.config import Config
from delta.errors import CheckFailed, DeltaError
from delta.export import export_onnx, require_valid_size
from delta.files import file_sha256
from delta.onnx_model import DYNAMIC_BATCH, METADATA_PREFIX
from delta.parity import compare, onnx_side, torch_side
from delta.parity_report import ParityReport
from delta.quantize import in_precision, save
from delta.receipt import stamp
from delta.student import Student
from delta_pipelines.bundle_readme import write_readme
from delta_pipelines.sample_photos import sample_photos, to_pixels

EXCLUDED = f"{METADATA_PREFIX}convolutions_in_float32"
# Licences of teachers, by a part of their name; a student is a derivative of its teacher's answers.
LICENCES = {
    "Depth-Anything-V2-Small": "Apache-2.0",
    "Depth-Anything-V2-Base": "CC-BY-NC-4.0",
    "Depth-Anything-V2-Large": "CC-BY-NC-4.0",
}
TOOLS = ("torch", "timm", "onnx", "onnxscript")


class ExportRecipe(Config, frozen=True, kw_only=True):
    """How many photos check and calibrate; recipes/export.toml explains each key."""

    verify_photos: Annotated[int, Meta(ge=1)]
    calibration_photos: Annotated[int, Meta(ge=1)]
    search_photos: Annotated[int, Meta(ge=1)]
    search_change: Annotated[float, Meta(ge=0, le=1)]
    licence: str
    keep_student: bool = False


def export_bundle(
    recipe: ExportRecipe,
    run: Path,
    out: Path,
    photos: Path,
    *,
    sizes: Sequence[tuple[int, int]] = (),
    precisions: Sequence[str] = bundle.USUAL_PRECISIONS,
    dynamic_batch: bool = False,
    on_start: Callable[[str], None] = lambda name: None,
    on_file: Callable[[ParityReport], None] = lambda report: None,
) -> BundleCard:
    """Export a run's student to the folder `out`: every size in every precision, each compared with the student.

    Args:
        photos: folder or store that calibrates int8 and on which each file is compared.
        sizes: heights and widths of the graphs; the student's training size by default.
        on_start: called with the name of each file before it is made; int8 can take minutes.
        on_file: called with each file's comparison.

    Raises:
        DeltaError: no such run, no usable photo, sides that are not multiples of 64, or a folder of something else.
        CheckFailed: files differ too much from the student; they are not left behind, the others are.
    """
    student, card = load_student(run)
    sizes = list(dict.fromkeys(sizes)) or [(card.size_px, card.size_px)]
    for size_px in sizes:
        require_valid_size(size_px)
    unknown = sorted(set(precisions) - set(bundle.PRECISIONS))
    if unknown:
        raise DeltaError(f"there is no precision {unknown[0]!r}", f"use {', '.join(bundle.PRECISIONS)}")
    sample = sample_photos(photos, max(recipe.calibration_photos, recipe.search_photos))
    _claim(out)
    if recipe.keep_student:
        save_student(out / WEIGHTS, round_to_half(student), card, half=True)
    reference, models, failures = torch_side(student), [], []
    for size_px in sizes:
        with tempfile.TemporaryDirectory() as folder:
            plain = export_onnx(
                student, Path(folder) / "fp32.onnx", size_px, _metadata(card), dynamic_batch=dynamic_batch
            )
            graph, fp32_bytes = onnx.load_model(plain), plain.stat().st_size
        for precision in precisions:
            path = out / _file_name(size_px, precision)
            on_start(path.name)
            save(
                in_precision(
                    graph,
                    precision,
                    lambda size_px=size_px: to_pixels(sample.images[: recipe.calibration_photos], size_px),
                    search=recipe.search_photos,
                    max_change=recipe.search_change,
                ),
                path,
            )
            report = compare(reference, onnx_side(path), sample.images, fp32_bytes=fp32_bytes)
            on_file(report)
            if report.passed:
                models.append(describe(path, report))
            else:
                failures.append(f"{path.name}: {'; '.join(report.failures)}")
                path.unlink()
    if not models:
        raise CheckFailed(f"no file agrees with its student: {' / '.join(failures)}", "nothing was left in the bundle")
    result = _card(recipe, student, card, models)
    bundle.write_bundle_card(out, result)
    write_readme(out, result)
    if failures:
        raise CheckFailed(f"left out of {out}: {' / '.join(failures)}", f"the other {len(models)} files are good")
    return result


def describe(path: Path, *reports: ParityReport) -> ModelFile:
    """Stamp a file with what was measured on it, and say what it is."""
    receipt = stamp(path, tuple(report.measured() for report in reports))
    model = onnx.load_model(path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    excluded = properties.get(EXCLUDED, "")
    return ModelFile(
        file=path.name,
        size_px=reports[0].size_px,
        precision=reports[0].precision,
        batch=DYNAMIC_BATCH if model.graph.input[0].type.tensor_type.shape.dim[0].dim_param else 1,
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
        convolutions_in_float32=tuple(excluded.split(", ")) if excluded else (),
        receipt=msgspec.to_builtins(receipt),
    )


def parse_size(text: str) -> tuple[int, int]:
    """Read "HEIGHTxWIDTH" in px.

    Raises:
        DeltaError: it is written otherwise.
    """
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise DeltaError(f"{text!r} is not a size", "write it as HEIGHTxWIDTH, such as 256x320")
    return int(height), int(width)


def _file_name(size_px: tuple[int, int], precision: str) -> str:
    return f"depth_{size_px[0]}x{size_px[1]}_{precision}.onnx"


def _claim(out: Path) -> None:
    """Make the folder, or take the bundle in it apart: its card goes first, so that no half-new bundle looks whole."""
    if out.is_file():
        raise DeltaError(f"{out} is a file, not a folder", "a bundle is a folder: name another")
    strangers = [
        entry.name
        for entry in (out.iterdir() if out.is_dir() else ())
        if entry.name not in (bundle.SIDECAR, "README.md", WEIGHTS) and not entry.match("depth_*.onnx")
    ]
    if strangers:
        raise DeltaError(f"{out} holds {min(strangers)}, which is no part of a bundle", "name a new or an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    for entry in sorted(out.iterdir(), key=lambda entry: entry.name != bundle.SIDECAR):
        entry.unlink()


def _metadata(card: StudentCard) -> dict[str, str]:
    return {
        "encoder": card.config.encoder,
        "teacher": card.teacher,
        "commit": card.commit,
        "fingerprint": card.fingerprint,
        "decoder": card.config.decoder,
        "step": str(card.step),
        **{f"agreement_{name}": f"{value:.6g}" for name, value in card.agreement.items()},
    }


def _card(recipe: ExportRecipe, student: Student, card: StudentCard, models: list[ModelFile]) -> BundleCard:
    known = next((licence for name, licence in LICENCES.items() if name in card.teacher), "not stated")
    return BundleCard(
        student={
            **msgspec.to_builtins(card),
            "parameters": sum(parameter.numel() for parameter in student.parameters()),
        },
        teacher=card.teacher,
        licence=recipe.licence or known,
        models=tuple(models),
        made_with={"python": platform.python_version(), **{tool: version(tool) for tool in TOOLS}},
    )
