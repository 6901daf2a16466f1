"""A student comes back from disk as it went there; what is no student is said in one sentence and never run."""

import json
import pickle
import struct
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from delta.checkpoint import (
    WEIGHTS,
    StudentCard,
    flatten_state,
    is_student,
    load_student,
    save_student,
    unflatten_state,
)
from delta.errors import DeltaError
from delta.student import Student, StudentConfig, build_student

CARD = StudentCard(
    config=StudentConfig(width=16),
    size_px=128,
    teacher="a teacher",
    fingerprint="0123abcd",
    commit="c0ffee+",
    step=7,
    agreement={"pearson_r": 0.1 + 0.2, "delta1": 0.75, "abs_rel": 0.2, "n": 3},
)


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    student = build_student(CARD.config).train()
    student(torch.rand(2, 3, 64, 64))  # statistics of norms that are not those of a new student
    return student


@pytest.fixture
def path(tmp_path: Path, student: Student) -> Path:
    return save_student(tmp_path / "run" / WEIGHTS, student, CARD)


def rewritten(path: Path, **metadata: str | None) -> Path:
    """The same weights under other metadata; None drops an entry."""
    kept = {"format": "delta-student", "version": "1", "card": msgspec.json.encode(CARD).decode()} | metadata
    save_file(load_file(path), path, metadata={key: value for key, value in kept.items() if value is not None})
    return path


def complaint(path: Path) -> str:
    with pytest.raises(DeltaError) as caught:
        load_student(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert caught.value.hint
    assert caught.value.exit_code == 2
    return message


def test_a_student_comes_back_bit_for_bit_with_its_card(path, student):
    loaded, card = load_student(path)
    assert card == CARD
    ours, theirs = student.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
    assert not loaded.training


def test_a_run_folder_stands_for_the_student_in_it(path):
    by_folder, by_file = load_student(path.parent), load_student(path)
    assert by_folder[1] == by_file[1]
    assert is_student(path.parent)
    assert is_student(path)


def test_a_save_that_fails_leaves_the_former_student(path, student, monkeypatch):
    before = path.read_bytes()

    def half(_state: object, file: Path, **_: object) -> None:
        file.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr("delta.checkpoint.save_file", half)
    with pytest.raises(OSError, match="disk is full"):
        save_student(path, student, CARD)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [WEIGHTS]


def test_the_file_is_safetensors_with_the_card_as_json_in_its_header(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert json.loads(header["__metadata__"]["card"])["size_px"] == 128
    assert header["__metadata__"]["format"] == "delta-student"


@pytest.mark.parametrize("name", ["student.safetensors", "student.pt"])
def test_a_pickle_is_refused_and_not_run(tmp_path, name):
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / name
    path.write_bytes(pickle.dumps(Trap()))
    assert "is not a Delta student" in complaint(path)
    assert not is_student(path)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "sprung").exists()  # the trap would have worked


def test_nothing_there_is_an_error_that_says_what_makes_a_student(tmp_path):
    assert "there is no student at" in complaint(tmp_path / "nowhere")
    assert "there is no student at" in complaint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"half", b"\xff" * 100])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path, content):
    path = tmp_path / "student.safetensors"
    path.write_bytes(content)
    assert "is not a Delta student" in complaint(path)


@pytest.mark.parametrize("share", [0.0001, 0.5, 0.9999])
def test_a_truncated_student_is_refused(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "is not a Delta student" in complaint(path)


def test_safetensors_of_somebody_else_are_refused(path):
    assert "is not a Delta student" in complaint(rewritten(path, format="other"))
    assert "is not a Delta student" in complaint(rewritten(path, format=None))


def test_a_student_of_a_newer_version_is_refused_with_both_versions(path):
    message = complaint(rewritten(path, version="2"))
    assert "format version 2" in message
    assert "reads version 1" in message


@pytest.mark.parametrize("card", [None, "{}", "not json", '{"config": {"encoder": "mobilevitv2_050", "heads": 3}}'])
def test_a_damaged_card_is_named(path, card):
    assert "is damaged" in complaint(rewritten(path, card=card))


@pytest.mark.parametrize("other", [{"width": 32}, {"encoder": "mobilevit_xxs"}, {"decoder": "seed"}])
def test_weights_of_other_shapes_than_the_card_says_are_refused_for_that_reason(path, other):
    config = msgspec.structs.replace(CARD.config, **other)
    card = msgspec.json.encode(msgspec.structs.replace(CARD, config=config)).decode()
    assert "weights do not fit its card" in complaint(rewritten(path, card=card))


def test_states_under_prefixes_come_apart_again():
    one, two = {"a.b": torch.ones(2)}, {"a.b": torch.zeros(3), "c": torch.tensor(4)}
    together = flatten_state("one", one) | flatten_state("one_more", two)
    assert unflatten_state("one", together).keys() == one.keys()
    back = unflatten_state("one_more", together)
    assert all(torch.equal(back[name], two[name]) for name in two)
