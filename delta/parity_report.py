"""What a comparison says: numbers for each image, the worst of them, and the gates that they are held to."""

import numpy as np

from delta.config import Config
from delta.errors import CheckFailed
from delta.receipt import Measured
from delta.truth import DepthScore

# float32, CPU, worst of 40 to 60 photos. mobilevitv2_050: 4.4e-6 untrained and 1.0e-6 trained at 256 px, 3.9e-6 trained
# at 384 px; mobilevit_xs: 1.7e-6 untrained. A flat image is not fair (1e-4 untrained, 2e-5 trained), nor is a student
# whose output hardly varies (an untrained seed's sigmoid: 7e-5).
GATE_RELATIVE = 1e-5
GATE_RELATIVE_GPU = 1e-4  # without TF32; kernels sum in another order
DECADES = np.arange(-10, 2)  # edges of the histogram of relative errors, as powers of ten


class Gate(Config, frozen=True, kw_only=True):
    """What must not be exceeded; None is not asked for."""

    max_relative: float | None = None
    delta1_change: float | None = None
    size_share: float | None = None  # of the float32 file


GATES = {
    "fp32": Gate(max_relative=GATE_RELATIVE),
    "packed": Gate(delta1_change=0.002, size_share=0.55),
    "fp16": Gate(delta1_change=0.002),
    "int8": Gate(delta1_change=0.02, size_share=0.30),
}


class ImageParity(Config, frozen=True, kw_only=True):
    """How far one image's candidate is from its reference; errors are infinite where one is not finite.

    Relative errors are absolute ones divided by the range, maximum minus minimum, of the reference of this image, since
    the scale of a disparity means nothing. `cosine` and `pearson` are 1 for equal maps. `delta1` and `abs_rel` take the
    reference for the truth, after an affine alignment; they are NaN where its disparity is nowhere positive.
    """

    index: int
    max_absolute: float
    p99_absolute: float
    max_relative: float
    p99_relative: float
    reference_range: float
    cosine: float
    pearson: float
    delta1: float
    abs_rel: float


class TruthChange(Config, frozen=True, kw_only=True):
    """Reference and candidate against measured depth, means over the `n` images that have it."""

    n: int
    reference: DepthScore
    candidate: DepthScore


class ParityReport(Config, frozen=True, kw_only=True):
    """The comparison of a candidate with its reference over some images: the worst of each measure, and every image.

    `delta1_change` is 1 minus the mean delta1, `abs_rel_change` the mean AbsRel, both with the reference as the truth.
    `histogram` counts pixels by relative error: below 1e-10, then by decades, the last above 10.
    """

    candidate: str
    reference: str
    precision: str
    provider: str
    size_px: tuple[int, int]  # height, width
    file_bytes: int
    gate: Gate
    failures: tuple[str, ...]
    n_images: int
    max_absolute: float
    p99_absolute: float
    max_relative: float
    p99_relative: float
    min_cosine: float
    min_pearson: float
    delta1_change: float
    abs_rel_change: float
    truth: TruthChange | None
    histogram: tuple[int, ...]
    images: tuple[ImageParity, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate is kept."""
        return not self.failures

    def require(self) -> None:
        """Raise where a gate is not kept.

        Raises:
            CheckFailed: names the numbers and the gate.
        """
        if self.failures:
            hint = f"export the student again, or compare {self.candidate} with what it was made from"
            raise CheckFailed(f"{self.candidate} is not {self.reference}: {'; '.join(self.failures)}", hint)

    def measured(self) -> Measured:
        """Condense to what a receipt holds."""
        own = {name: getattr(self, name) for name in Measured.__struct_fields__}
        return Measured(**own)
