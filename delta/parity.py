"""Do two forms of a student agree? Both are run on the same pixels and compared, image by image, against a gate."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int, UInt8

from delta.errors import DeltaError
from delta.export import eval_copy
from delta.images import resize, to_tensor_layout
from delta.metrics import agreement_per_image
from delta.parity_report import DECADES, GATE_RELATIVE_GPU, GATES, Gate, ImageParity, ParityReport, TruthChange
from delta.predict import DepthPredictor
from delta.student import Student
from delta.truth import DepthScore, mean_score, score_depth


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two that are compared: how it infers, and what is known of it. A torch student takes any size."""

    name: str
    infer: Callable[[Float32[np.ndarray, "3 h w"]], Float32[np.ndarray, "h w"]]
    size_px: tuple[int, int] | None = None
    precision: str = "fp32"
    provider: str = "torch"
    file_bytes: int = 0
    fingerprint: str = ""


def torch_side(student: Student, name: str = "its student", fingerprint: str = "") -> Side:
    """Run a student by torch: float32, eval mode, on the CPU."""
    reference = eval_copy(student)

    def infer(pixels: Float32[np.ndarray, "3 h w"]) -> Float32[np.ndarray, "h w"]:
        with torch.inference_mode():
            return reference(torch.from_numpy(pixels)[None])[0].numpy()

    return Side(name=name, infer=infer, fingerprint=fingerprint)


def onnx_side(path: Path, provider: str = "CPUExecutionProvider") -> Side:
    """Run an exported file by onnxruntime, on `provider` and no other.

    Raises:
        DeltaError: not an export of Delta's, or the provider would not be used.
    """
    predictor = DepthPredictor.open(path, providers=(provider,))
    card = predictor.card
    return Side(
        name=path.name,
        infer=predictor.infer,
        size_px=card.size_px,
        precision=card.precision,
        provider=predictor.provider,
        file_bytes=path.stat().st_size,
        fingerprint=card.fingerprint,
    )


def gate_for(candidate: Side) -> Gate:
    """Choose the gate of a precision; on a GPU, float32 is held to `GATE_RELATIVE_GPU`.

    Raises:
        DeltaError: a precision that Delta does not write.
    """
    if candidate.precision not in GATES:
        raise DeltaError(
            f"{candidate.name} says its precision is {candidate.precision!r}", f"known: {', '.join(GATES)}"
        )
    if candidate.precision == "fp32" and candidate.provider not in ("CPUExecutionProvider", "torch"):
        return Gate(max_relative=GATE_RELATIVE_GPU)
    return GATES[candidate.precision]


def compare(
    reference: Side,
    candidate: Side,
    images: Iterable[UInt8[np.ndarray, "_ _ 3"]],
    *,
    gate: Gate | None = None,
    fp32_bytes: int = 0,
    depths_m: Sequence[Float32[np.ndarray, "_ _"]] = (),
) -> ParityReport:
    """Run both sides on the same resized `images`.

    Args:
        gate: by the candidate's precision and provider, where none is given.
        fp32_bytes: size of the float32 file that an int8 file is measured by; 0 where it is not known.
        depths_m: measured depth of each image in metres, 0 where there is none.

    Raises:
        DeltaError: no images, sides of two sizes or of none, or outputs of different shapes.
    """
    size_px = _common_size(reference, candidate)
    measured, scores = [], []
    histogram = np.zeros(len(DECADES) + 1, dtype=np.int64)
    for index, image in enumerate(images):
        pixels = to_tensor_layout(resize(image, *size_px))
        expected, found = reference.infer(pixels), candidate.infer(pixels)
        measured.append(compare_maps(expected, found, index))
        histogram += _histogram(expected, found)
        if depths_m:
            scores.append((score_depth(expected, depths_m[index]), score_depth(found, depths_m[index])))
    if not measured:
        raise DeltaError("there is no image to compare on", "give at least one photo")
    gate = gate or gate_for(candidate)
    return _summarize(measured, scores, histogram, gate, reference, candidate, size_px, fp32_bytes)


def compare_maps(expected: Float32[np.ndarray, "_ _"], found: Float32[np.ndarray, "_ _"], index: int) -> ImageParity:
    """Measure how far `found` is from `expected`, in float64.

    Raises:
        DeltaError: the maps have different shapes.
    """
    if expected.shape != found.shape:
        raise DeltaError(f"the reference answers {expected.shape} where the candidate answers {found.shape}")
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        inf, nan = float("inf"), float("nan")
        errors = dict.fromkeys(("max_absolute", "p99_absolute", "max_relative", "p99_relative", "abs_rel"), inf)
        return ImageParity(index=index, reference_range=nan, cosine=0, pearson=0, delta1=0, **errors)
    wide, other = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    errors = np.abs(wide - other)
    largest, p99, extent = float(errors.max()), float(np.percentile(errors, 99)), float(np.ptp(wide))
    task = agreement_per_image(torch.from_numpy(found)[None], torch.from_numpy(expected)[None])
    return ImageParity(
        index=index,
        max_absolute=largest,
        p99_absolute=p99,
        max_relative=_divide(largest, extent),
        p99_relative=_divide(p99, extent),
        reference_range=extent,
        cosine=_cosine(wide, other),
        pearson=_cosine(wide - wide.mean(), other - other.mean()),
        delta1=float(task.delta1),
        abs_rel=float(task.abs_rel),
    )


def _common_size(reference: Side, candidate: Side) -> tuple[int, int]:
    sizes = [side.size_px for side in (reference, candidate) if side.size_px]
    if not sizes:
        raise DeltaError("two students were named, and no exported file", "`delta export RUN OUT` writes files")
    if sizes[0] != sizes[-1]:
        one, other = (f"{side.name} takes {side.size_px}" for side in (reference, candidate))
        raise DeltaError(f"{one} px and {other} px: they cannot be compared", "export both at one size")
    return sizes[0]


def _summarize(
    images: list[ImageParity],
    scores: list[tuple[DepthScore, DepthScore]],
    histogram: np.ndarray,
    gate: Gate,
    reference: Side,
    candidate: Side,
    size_px: tuple[int, int],
    fp32_bytes: int,
) -> ParityReport:
    delta1 = [image.delta1 for image in images if not np.isnan(image.delta1)]
    abs_rel = [image.abs_rel for image in images if not np.isnan(image.abs_rel)]
    change = 1 - float(np.mean(delta1)) if delta1 else float("nan")
    return ParityReport(
        candidate=candidate.name,
        reference=reference.name,
        precision=candidate.precision,
        provider=candidate.provider,
        size_px=size_px,
        file_bytes=candidate.file_bytes,
        gate=gate,
        failures=tuple(_failures(images, change, gate, candidate.file_bytes, fp32_bytes)),
        n_images=len(images),
        max_absolute=max(image.max_absolute for image in images),
        p99_absolute=max(image.p99_absolute for image in images),
        max_relative=max(image.max_relative for image in images),
        p99_relative=max(image.p99_relative for image in images),
        min_cosine=min(image.cosine for image in images),
        min_pearson=min(image.pearson for image in images),
        delta1_change=change,
        abs_rel_change=float(np.mean(abs_rel)) if abs_rel else float("nan"),
        truth=_truth_change(scores),
        histogram=tuple(int(count) for count in histogram),
        images=tuple(images),
    )


def _failures(
    images: list[ImageParity], delta1_change: float, gate: Gate, file_bytes: int, fp32_bytes: int
) -> Iterator[str]:
    worst = max(images, key=lambda image: image.max_relative)
    if gate.max_relative is not None and not worst.max_relative <= gate.max_relative:
        yield (
            f"image {worst.index} of {len(images)} differs by {worst.max_relative:.2e} of its range "
            f"({worst.max_absolute:.2e} of {worst.reference_range:.2e}, r {worst.pearson:.6f}), "
            f"the gate is {gate.max_relative:.0e}"
        )
    if gate.delta1_change is not None and not delta1_change <= gate.delta1_change:
        yield f"delta1 changes by {delta1_change:.2%}, the gate is {gate.delta1_change:.1%}"
    if gate.size_share is not None and fp32_bytes and file_bytes > gate.size_share * fp32_bytes:
        share = file_bytes / fp32_bytes
        yield f"the file has {share:.3f} of the float32 file's bytes, the gate is {gate.size_share:.2f}"


def _truth_change(scores: list[tuple[DepthScore, DepthScore]]) -> TruthChange | None:
    if not scores:
        return None
    sides = [mean_score(side) for side in zip(*scores, strict=True)]
    return TruthChange(n=len(scores), reference=sides[0], candidate=sides[1])


def _histogram(expected: np.ndarray, found: np.ndarray) -> Int[np.ndarray, " n"]:
    errors = np.abs(found.astype(np.float64) - expected) / max(float(np.ptp(expected)), 1e-30)
    return np.bincount(np.digitize(errors.ravel(), 10.0**DECADES), minlength=len(DECADES) + 1)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    if np.array_equal(a, b):  # two constant maps have no angle, but they are equal
        return 1.0
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms > 0 else 0.0


def _divide(error: float, extent: float) -> float:
    if error == 0:
        return 0.0
    return error / extent if extent > 0 else float("inf")
