"""A receipt is part of the file, and tells when anything else of it was changed."""

import hashlib
from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from delta.errors import DeltaError
from delta.files import file_sha256
from delta.receipt import Measured, read_receipt, stamp

MEASURED = Measured(
    provider="CPUExecutionProvider",
    reference="its student",
    n_images=64,
    max_relative=1e-6,
    p99_relative=1e-7,
    max_absolute=1e-6,
    p99_absolute=1e-7,
    min_cosine=1.0,
    delta1_change=0.0,
    abs_rel_change=0.0,
    passed=True,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("a", "b")]
    graph = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "identity", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {"delta.format": "delta-onnx"})
    onnx.save_model(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_a_file_without_a_receipt_has_none(path: Path) -> None:
    assert read_receipt(path) is None


def test_a_stamped_file_is_the_same_model_with_a_receipt(path: Path) -> None:
    body = path.read_bytes()
    receipt = stamp(path, (MEASURED,))
    assert read_receipt(path) == receipt
    assert receipt.body_sha256 == hashlib.sha256(body).hexdigest()
    assert path.read_bytes().startswith(body)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert set(session.get_modelmeta().custom_metadata_map) == {"delta.format", "delta.receipt"}
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_second_stamp_takes_the_place_of_the_first(path: Path) -> None:
    first = stamp(path, (MEASURED,))
    second = stamp(path, (MEASURED, MEASURED))
    assert (second.body_sha256, second.body_bytes) == (first.body_sha256, first.body_bytes)
    assert read_receipt(path) == second
    assert path.read_bytes().count(b"delta.receipt") == 1


@pytest.mark.parametrize("change", ["flip", "append", "forge"])
def test_a_changed_file_is_told_by_its_receipt(path: Path, change: str) -> None:
    receipt = stamp(path, (MEASURED,))
    content = bytearray(path.read_bytes())
    if change == "flip":
        at = content.index(b"delta-onnx")
        content[at : at + 1] = b"D"
    elif change == "append":
        content += onnx.ModelProto(doc_string="more").SerializeToString()
    else:  # a receipt that claims another digest
        at = content.index(receipt.body_sha256.encode())
        content[at : at + 8] = b"00000000"
    path.write_bytes(content)
    with pytest.raises(DeltaError, match="was changed after it was verified") as caught:
        read_receipt(path)
    assert str(path) in str(caught.value)
    with pytest.raises(DeltaError, match="was changed after it was verified"):
        stamp(path, (MEASURED,))


def test_what_is_no_onnx_and_no_receipt_is_said(path: Path) -> None:
    stamp(path, (MEASURED,))
    path.write_bytes(path.read_bytes().replace(b'"passed"', b'"parsed"'))
    with pytest.raises(DeltaError, match=r"the receipt in .* is damaged"):
        read_receipt(path)
    path.write_bytes(b"weights, honestly")
    with pytest.raises(DeltaError, match="is damaged or not an ONNX model"):
        read_receipt(path)
