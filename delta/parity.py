"""Is the ONNX file the student? Both are run on the same pixels and compared, image by image, against a gate."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from delta.config import Config
from delta.errors import CheckFailed, DeltaError
from delta.export import eval_copy
from delta.images import resize, to_tensor_layout
from delta.predict import DepthPredictor
from delta.student import Student

# float32, CPU, worst of 40 to 60 photos. mobilevitv2_050: 4.4e-6 untrained and 1.0e-6 trained at 256 px, 3.9e-6 trained
# at 384 px; mobilevit_xs: 1.7e-6 untrained. A flat image is not fair, onnxruntime's instance norm loses digits on it
# (1e-4 untrained, 2e-5 trained); nor is a student whose output hardly varies (an untrained seed's sigmoid: 7e-5).
GATE_RELATIVE = 1e-5


class ImageParity(Config, frozen=True, kw_only=True):
    """How far one image's disparity from the file is from the student's; errors are infinite where one is not finite.

    `max_relative` is `max_absolute` divided by the range, maximum minimum minus, of the student's disparity of this
    image, since the scale of a disparity means nothing. `cosine` and `pearson` are 1 for equal maps.
    """

    index: int
    max_absolute: float
    p99_absolute: float
    max_relative: float
    reference_range: float
    cosine: float
    pearson: float


class ParityReport(Config, frozen=True, kw_only=True):
    """The comparison of a student with its ONNX file over some images: the worst of each measure, and every image."""

    passed: bool
    gate_relative: float
    n_images: int
    max_absolute: float
    p99_absolute: float
    max_relative: float
    min_cosine: float
    min_pearson: float
    provider: str
    size_px: tuple[int, int]  # height, width
    file_bytes: int
    images: tuple[ImageParity, ...]

    def require(self) -> None:
        """Raise where the gate is not kept.

        Raises:
            CheckFailed: names the worst image, its numbers and the gate.
        """
        if self.passed:
            return
        worst = max(self.images, key=lambda image: image.max_relative)
        raise CheckFailed(
            f"the ONNX file is not the student: image {worst.index} of {self.n_images} differs by "
            f"{worst.max_relative:.2e} of its range ({worst.max_absolute:.2e} of {worst.reference_range:.2e}, "
            f"r {worst.pearson:.6f}), the gate is {self.gate_relative:.0e}",
            "export the student again; compare it with the file that was made from it",
        )


def compare(
    student: Student,
    onnx_path: Path,
    images: Iterable[UInt8[np.ndarray, "_ _ 3"]],
    *,
    gate_relative: float = GATE_RELATIVE,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> ParityReport:
    """Run `student` (float32, eval, on the CPU) and its file on the same resized `images`.

    Raises:
        DeltaError: no images, a file that is not an export of Delta's, or outputs of different shapes.
    """
    predictor = DepthPredictor.open(onnx_path, providers=providers)
    reference = eval_copy(student)
    measured = []
    for index, image in enumerate(images):
        pixels = to_tensor_layout(resize(image, *predictor.card.size_px))
        with torch.inference_mode():
            expected = reference(torch.from_numpy(pixels)[None])[0].numpy()
        measured.append(compare_maps(expected, predictor.infer(pixels), index))
    if not measured:
        raise DeltaError("there is no image to compare on", "give at least one photo")
    return _summarize(measured, gate_relative, predictor, onnx_path)


def compare_maps(expected: Float32[np.ndarray, "..."], found: Float32[np.ndarray, "..."], index: int) -> ImageParity:
    """Measure how far `found` is from `expected`, in float64.

    Raises:
        DeltaError: the maps have different shapes.
    """
    if expected.shape != found.shape:
        raise DeltaError(f"the student answers {expected.shape} where the ONNX file answers {found.shape}")
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        inf, nan = float("inf"), float("nan")
        return ImageParity(
            index=index, max_absolute=inf, p99_absolute=inf, max_relative=inf, reference_range=nan, cosine=0, pearson=0
        )
    wide, other = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    errors = np.abs(wide - other)
    extent = float(np.ptp(wide))
    return ImageParity(
        index=index,
        max_absolute=float(errors.max()),
        p99_absolute=float(np.percentile(errors, 99)),
        max_relative=_divide(float(errors.max()), extent),
        reference_range=extent,
        cosine=_cosine(wide, other),
        pearson=_cosine(wide - wide.mean(), other - other.mean()),
    )


def _summarize(images: list[ImageParity], gate_relative: float, predictor: DepthPredictor, path: Path) -> ParityReport:
    max_relative = max(image.max_relative for image in images)
    return ParityReport(
        passed=max_relative <= gate_relative,
        gate_relative=gate_relative,
        n_images=len(images),
        max_absolute=max(image.max_absolute for image in images),
        p99_absolute=max(image.p99_absolute for image in images),
        max_relative=max_relative,
        min_cosine=min(image.cosine for image in images),
        min_pearson=min(image.pearson for image in images),
        provider=predictor.provider,
        size_px=predictor.card.size_px,
        file_bytes=path.stat().st_size,
        images=tuple(images),
    )


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    if np.array_equal(a, b):  # two constant maps have no angle, but they are equal
        return 1.0
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms > 0 else 0.0


def _divide(error: float, extent: float) -> float:
    if error == 0:
        return 0.0
    return error / extent if extent > 0 else float("inf")
