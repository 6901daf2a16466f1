"""Stage 3: run -> ONNX. A file is only left behind when it agrees with its student on real photos."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from delta import bundled, images
from delta.checkpoint import StudentCard, load_student
from delta.errors import DeltaError, UnreadablePhoto
from delta.export import export_onnx
from delta.files import write_aside
from delta.onnx_model import read_model_card
from delta.parity import ParityReport, compare

PARITY_PHOTOS = 64


def export_model(
    run: Path, path: Path, photos: Path = bundled.PHOTOS, size_px: tuple[int, int] | None = None
) -> ParityReport:
    """Export a run's student to `path` once it has passed the parity check on `photos`.

    Args:
        size_px: height and width of the graph; the student's training size by default.

    Raises:
        DeltaError: no such run, no usable photo, or sides that are not multiples of 64.
        CheckFailed: the file differs from the student; `path` is left as it was.
    """
    student, card = load_student(run)
    chosen = list(usable_photos(photos))
    with write_aside(path) as aside:
        export_onnx(student, aside, size_px or (card.size_px, card.size_px), _metadata(card))
        report = compare(student, aside, chosen)
        report.require()
    return report


def verify_model(path: Path, run: Path, photos: Path) -> ParityReport:
    """Compare an ONNX file with the student it was exported from.

    Raises:
        DeltaError: a file or run that is not Delta's, or an export of another student.
    """
    student, card = load_student(run)
    exported = read_model_card(path)
    if exported.fingerprint != card.fingerprint:
        raise DeltaError(
            f"{path} was exported from training {exported.fingerprint[:12]}, {run} is training {card.fingerprint[:12]}",
            f"name the run it came from, or `delta export {run} {path}`",
        )
    return compare(student, path, usable_photos(photos))


def parse_size(text: str) -> tuple[int, int] | None:
    """Read "HEIGHTxWIDTH" in px; empty is None.

    Raises:
        DeltaError: it is written otherwise.
    """
    if not text:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise DeltaError(f"{text!r} is not a size", "write it as HEIGHTxWIDTH, such as 256x320")
    return int(height), int(width)


def usable_photos(path: Path, limit: int = PARITY_PHOTOS) -> Iterator[np.ndarray]:
    """Read up to `limit` photos at a path, passing over those that cannot be read.

    Raises:
        DeltaError: none can be read.
    """
    failure, count = "", 0
    for photo in images.find_photos(path):
        try:
            image = images.read_photo(photo)
        except UnreadablePhoto as error:
            failure = failure or f"{photo}: {error}"
            continue
        yield image
        count += 1
        if count == limit:
            return
    if not count:
        raise DeltaError(f"no photo at {path} can be used; {failure}", "name a folder with readable photos")


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
