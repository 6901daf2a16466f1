"""Compare the files of a bundle, or any two of {run, ONNX, ONNX}, on real photos: may they be trusted?"""

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from delta import bundle
from delta.checkpoint import is_student, load_student
from delta.config import Config
from delta.errors import CheckFailed, DeltaError
from delta.files import file_sha256
from delta.images import resize, to_tensor_layout
from delta.onnx_model import ModelCard, providers_named
from delta.parity import Side, compare, onnx_side, torch_side
from delta.parity_report import ParityReport
from delta.predict import DepthPredictor, read_model_card
from delta.receipt import read_receipt
from delta_pipelines.export_bundle import ExportRecipe, describe
from delta_pipelines.sample_photos import PhotoSample, sample_photos

TIMED_ROUNDS = 12
CPU = "CPUExecutionProvider"


class Speed(Config, frozen=True, kw_only=True):
    """Median milliseconds of a float32 file and of its int8 sibling on the CPU, taken in turns."""

    size_px: tuple[int, int]
    fp32_ms: float
    int8_ms: float


class VerifyReport(Config, frozen=True, kw_only=True):
    """Every comparison, what is wrong with the files themselves, and what else a person should know."""

    rows: tuple[ParityReport, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    speeds: tuple[Speed, ...]
    photos: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether no comparison and no file failed."""
        return not self.problems and all(row.passed for row in self.rows)

    def require(self) -> None:
        """Raise where anything failed.

        Raises:
            CheckFailed: names each comparison with its numbers and gate.
        """
        failed = [f"{row.candidate} on {row.provider}: {'; '.join(row.failures)}" for row in self.rows if row.failures]
        if failed or self.problems:
            raise CheckFailed(" / ".join([*self.problems, *failed]), "export again, or compare with what it came from")


@dataclass(frozen=True, kw_only=True)
class Worst:
    """The photo on which a comparison came out worst, and both answers to it."""

    report: ParityReport
    name: str
    image: np.ndarray
    expected: np.ndarray
    found: np.ndarray


def verify(
    recipe: ExportRecipe,
    candidate: Path,
    reference: Path,
    photos: Path,
    *,
    providers: Sequence[str] = ("cpu",),
    truth: Path | None = None,
    stamp: bool = False,
    on_row: Callable[[ParityReport], None] = lambda row: None,
    on_worst: Callable[[Worst], None] = lambda worst: None,
) -> VerifyReport:
    """Compare every file of `candidate`, on every provider, with `reference`.

    Args:
        candidate: a bundle, an ONNX file, or a run where the reference is a file.
        reference: a run or its weights, an ONNX file, or a bundle, whose float32 file of the same size is taken.
        providers: "cpu", "cuda", "tensorrt", or onnxruntime's own names.
        truth: folder of measured depth: 16-bit PNGs in millimetres named as the photos are.
        stamp: write what was measured into the files and into `delta.json`, where everything passed.

    Raises:
        DeltaError: a path that is neither, too few photos, exports of another student, or a provider that is not here.
    """
    if is_student(candidate) and not is_student(reference):
        candidate, reference = reference, candidate
    cards = {file: read_model_card(file) for file in _files(candidate)}
    _require_kin(cards, reference)
    names = providers_named(providers)
    sample = _sample(recipe, photos, truth)
    problems, notes = _check_files(candidate, list(cards))
    notes += [f"left out {reason}" for reason in sample.left_out]
    rows: dict[Path, list[ParityReport]] = {file: [] for file in cards}
    base, base_size = None, None
    for file, provider in ((file, provider) for file in cards for provider in names):
        size_px = cards[file].size_px
        if base is None or size_px != base_size:  # a bundle lists its files size by size
            base, base_size = _remembering(_reference(reference, file, size_px)), size_px
        side = onnx_side(file, provider)
        row = compare(
            base, side, sample.images, depths_m=sample.depths_m, fp32_bytes=_fp32_bytes(cards, file, reference)
        )
        rows[file].append(row)
        on_row(row)
        on_worst(_worst(row, base, side, sample))
    speeds = [_compare_speed(*pair, sample.images[0]) for pair in _pairs(cards)]
    notes += [_say_speed(speed) for speed in speeds]
    flat = tuple(row for each in rows.values() for row in each)
    report = VerifyReport(
        rows=flat, problems=tuple(problems), notes=tuple(notes), speeds=tuple(speeds), photos=sample.names
    )
    if stamp and report.passed:
        _stamp(candidate, rows)
    return report


def _files(path: Path) -> list[Path]:
    if path.is_dir() and not is_student(path):
        return [path / model.file for model in bundle.read_bundle_card(path).models]
    if is_student(path):
        raise DeltaError(f"{path} is a run, and so is the other: nothing to compare", "`delta export RUN OUT` first")
    read_model_card(path)  # says what is wrong with a file before photos are read
    return [path]


def _require_kin(cards: dict[Path, ModelCard], reference: Path) -> None:
    """Refuse files of another student: their differences would mean nothing."""
    if not is_student(reference):
        return
    fingerprint = load_student(reference)[1].fingerprint
    for file, card in cards.items():
        if card.fingerprint != fingerprint:
            ours, theirs = card.fingerprint[:12], fingerprint[:12]
            raise DeltaError(
                f"{file} was exported from training {ours}, {reference} is training {theirs}",
                f"name the run it came from, or `delta export {reference} OUT`",
            )


def _sample(recipe: ExportRecipe, photos: Path, truth: Path | None) -> PhotoSample:
    sample = sample_photos(photos, recipe.verify_photos, truth)
    if len(sample.names) < recipe.verify_photos:
        raise DeltaError(
            f"{photos} has {len(sample.names)} usable photos, a verification asks for {recipe.verify_photos}",
            f"name more photos, or accept less by --set verify_photos={len(sample.names)}",
        )
    return sample


def _reference(path: Path, file: Path, size_px: tuple[int, int]) -> Side:
    if is_student(path):
        student, card = load_student(path)
        return torch_side(student, f"training {card.fingerprint[:12]}")
    if not path.is_dir():
        return onnx_side(path)
    found = [model for model in bundle.read_bundle_card(path).models if model.size_px == size_px]
    if not found:
        raise DeltaError(
            f"{path} has no file of {size_px[0]}x{size_px[1]} px to compare {file} with", "export both alike"
        )
    return onnx_side(path / min(found, key=lambda model: bundle.PRECISIONS.index(model.precision)).file)


def _remembering(side: Side) -> Side:
    """Answer the same pixels once: every precision and provider is compared with the same reference."""
    answers: dict[bytes, np.ndarray] = {}

    def infer(pixels: np.ndarray) -> np.ndarray:
        key = hashlib.sha256(pixels.tobytes()).digest()
        if key not in answers:
            answers[key] = side.infer(pixels)
        return answers[key]

    return replace(side, infer=infer)


def _fp32_bytes(cards: dict[Path, ModelCard], file: Path, reference: Path) -> int:
    """Size of the float32 file: the sibling of the same size, the reference, or the bytes of the student's weights."""
    if is_student(reference):
        other, known = 4 * sum(parameter.numel() for parameter in load_student(reference)[0].parameters()), {}
    else:
        other, known = 0, {reference: read_model_card(reference)} if reference.is_file() else {}
    for path, card in (cards | known).items():
        if (card.size_px, card.precision) == (cards[file].size_px, "fp32"):
            return path.stat().st_size
    return other


def _check_files(candidate: Path, files: list[Path]) -> tuple[list[str], list[str]]:
    """Digests: what is wrong, and which files say nothing about themselves."""
    problems, notes = [], []
    for file in files:
        try:
            if read_receipt(file) is None:
                notes.append(f"{file} carries no receipt")
        except DeltaError as error:
            problems.append(str(error))
    if candidate.is_dir():
        for model in bundle.read_bundle_card(candidate).models:
            digest = file_sha256(candidate / model.file)
            if digest != model.sha256:
                problems.append(
                    f"{candidate / model.file} has the digest {digest[:12]}, {bundle.SIDECAR} says {model.sha256[:12]}"
                )
    return problems, notes


def _worst(row: ParityReport, base: Side, side: Side, sample: PhotoSample) -> Worst:
    index = max(row.images, key=lambda image: (image.max_relative, image.index)).index
    pixels = to_tensor_layout(resize(sample.images[index], *row.size_px))
    return Worst(
        report=row,
        name=sample.names[index],
        image=sample.images[index],
        expected=base.infer(pixels),
        found=side.infer(pixels),
    )


def _pairs(cards: dict[Path, ModelCard]) -> Iterator[tuple[Path, Path]]:
    for file, card in cards.items():
        for other, sibling in cards.items():
            if (card.precision, sibling.precision) == ("fp32", "int8") and card.size_px == sibling.size_px:
                yield file, other


def _compare_speed(fp32: Path, int8: Path, photo: np.ndarray) -> Speed:
    """Take turns, so that a busy machine is busy for both."""
    sides = [DepthPredictor.open(path, providers=(CPU,), threads=1) for path in (fp32, int8)]
    pixels = to_tensor_layout(resize(photo, *sides[0].card.size_px))
    times: list[list[float]] = [[], []]
    for _ in range(TIMED_ROUNDS):
        for side, taken in zip(sides, times, strict=True):
            start = time.perf_counter()
            side.infer(pixels)
            taken.append(1000 * (time.perf_counter() - start))
    fp32_ms, int8_ms = (statistics.median(taken[2:]) for taken in times)
    return Speed(size_px=sides[0].card.size_px, fp32_ms=fp32_ms, int8_ms=int8_ms)


def _say_speed(speed: Speed) -> str:
    size = f"{speed.size_px[0]}x{speed.size_px[1]}"
    numbers = f"{speed.int8_ms:.1f} ms against {speed.fp32_ms:.1f} ms, one thread"
    if speed.int8_ms >= speed.fp32_ms:
        return f"int8 is not faster than fp32 on this machine at {size}: {numbers}"
    return f"int8 is {speed.fp32_ms / speed.int8_ms:.2f} times as fast as fp32 on this machine at {size}: {numbers}"


def _stamp(candidate: Path, rows: dict[Path, list[ParityReport]]) -> None:
    described = [describe(file, *reports) for file, reports in rows.items()]
    if candidate.is_dir():
        from delta_pipelines.bundle_readme import write_readme

        card = msgspec.structs.replace(bundle.read_bundle_card(candidate), models=tuple(described))
        bundle.write_bundle_card(candidate, card)
        write_readme(candidate, card)
