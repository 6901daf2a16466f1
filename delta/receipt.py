"""What a verification found, kept inside the file it was found on, beside a digest of everything else in the file.

An ONNX file is a protobuf message, and protobuf reads two messages in a row as one. So the receipt is appended as one
more metadata entry: what stood there before, the body, stays byte for byte, and its digest can be taken again.
"""

import hashlib
from pathlib import Path

import msgspec
import onnx

from delta.config import Config
from delta.errors import DeltaError
from delta.files import write_aside
from delta.onnx_model import METADATA_PREFIX, RECEIPT_KEY


class Measured(Config, frozen=True, kw_only=True):
    """The worst numbers of one comparison, as `delta.parity_report.ParityReport` defines them."""

    provider: str
    reference: str
    n_images: int
    max_relative: float
    p99_relative: float
    max_absolute: float
    p99_absolute: float
    min_cosine: float
    delta1_change: float
    abs_rel_change: float
    passed: bool


class Receipt(Config, frozen=True, kw_only=True):
    """What was measured on a file whose first `body_bytes` have the digest `body_sha256`."""

    body_sha256: str
    body_bytes: int
    measured: tuple[Measured, ...]


def stamp(path: Path, measured: tuple[Measured, ...]) -> Receipt:
    """Write a receipt into the ONNX file at `path`, in place of an older one, and return it.

    Raises:
        DeltaError: the file was changed since its last receipt.
    """
    old, content = read_receipt(path), path.read_bytes()
    body = content[: old.body_bytes] if old else content
    receipt = Receipt(body_sha256=hashlib.sha256(body).hexdigest(), body_bytes=len(body), measured=measured)
    with write_aside(path) as aside:
        aside.write_bytes(body + _entry(msgspec.json.encode(receipt).decode()))
    return receipt


def read_receipt(path: Path) -> Receipt | None:
    """Read the receipt of an ONNX file; None where it has none.

    Raises:
        DeltaError: the file is not the one that its receipt is about.
    """
    content = path.read_bytes()
    text = _receipt_text(content, path)
    if text is None:
        return None
    try:
        receipt = msgspec.json.decode(text, type=Receipt)
    except msgspec.MsgspecError as error:
        raise DeltaError(
            f"the receipt in {path} is damaged: {error}", "`delta verify --stamp` writes it anew"
        ) from None
    digest = hashlib.sha256(content[: receipt.body_bytes]).hexdigest()
    if digest != receipt.body_sha256 or content[receipt.body_bytes :] != _entry(text):
        raise DeltaError(
            f"{path} was changed after it was verified: its digest is {digest[:12]}, its receipt is for "
            f"{receipt.body_sha256[:12]}",
            "export it again, or take the file from where it was verified",
        )
    return receipt


def _entry(text: str) -> bytes:
    entry = onnx.StringStringEntryProto(key=f"{METADATA_PREFIX}{RECEIPT_KEY}", value=text)
    return onnx.ModelProto(metadata_props=[entry]).SerializeToString()


def _receipt_text(content: bytes, path: Path) -> str | None:
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's, which is none of its public names
        raise DeltaError(f"{path} is damaged or not an ONNX model", "`delta export` writes such files") from error
    found = [entry.value for entry in model.metadata_props if entry.key == f"{METADATA_PREFIX}{RECEIPT_KEY}"]
    return found[-1] if found else None
