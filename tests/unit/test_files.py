"""Files appear whole or not at all."""

import os
import stat
from pathlib import Path

import pytest
from PIL import Image

from delta.errors import DeltaError
from delta.files import write_aside


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_what_was_written_aside_is_all_that_remains(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with write_aside(path) as aside:
        aside.write_bytes(b"\x00\xffweights\n")
    assert path.read_bytes() == b"\x00\xffweights\n"
    assert names_in(tmp_path) == ["model.onnx"]


def test_nothing_stands_at_the_path_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with write_aside(path) as aside:
        aside.write_bytes(b"half")
        assert not path.exists()
    assert path.exists()


def test_the_temporary_is_a_new_hidden_sibling_of_the_same_kind(tmp_path: Path) -> None:
    path = tmp_path / "panel.v2.png"
    with write_aside(path) as first, write_aside(path) as second:
        assert not first.exists()
        assert first != second
        assert first.parent == second.parent == tmp_path
        assert first.suffix == ".png"
        assert first.name.startswith(".panel.v2.")
        first.touch()
        second.touch()


def test_a_library_that_looks_at_the_suffix_writes_through_it(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    with write_aside(path) as aside:
        Image.new("RGB", (2, 2), "red").save(aside)
    with Image.open(path) as image:
        assert image.format == "PNG"


def write_half_and_fail(path: Path, failure: type[BaseException]) -> None:
    with write_aside(path) as aside:
        aside.write_text("half of the n")
        raise failure


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file_and_no_temporary(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "card.json"
    path.write_text("old")
    with pytest.raises(failure):
        write_half_and_fail(path, failure)
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["card.json"]


def test_a_rename_that_fails_leaves_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(f"{source} may not become {target}")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError), write_aside(tmp_path / "card.json") as aside:
        aside.write_text("new")
    assert names_in(tmp_path) == []


def test_the_bytes_and_the_folder_are_flushed_around_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    real_replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append("folder" if is_folder(descriptor) else "file"))

    def replace(source: Path, target: Path) -> None:
        events.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with write_aside(tmp_path / "card.json") as aside:
        aside.write_text("new")
    assert [event for event in events if event != "folder"] == ["file", "rename"]
    assert os.name != "posix" or events[-1] == "folder"


def is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def test_a_writer_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), write_aside(tmp_path / "card.json"):
        pass
    assert names_in(tmp_path) == []


def test_missing_folders_are_made(tmp_path: Path) -> None:
    with write_aside(tmp_path / "runs" / "first" / "card.json") as aside:
        aside.write_text("new")
    assert (tmp_path / "runs" / "first" / "card.json").read_text() == "new"


def test_a_folder_at_the_path_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DeltaError, match="is a folder, not a file") as caught, write_aside(tmp_path):
        pytest.fail("the body must not run")
    assert caught.value.hint == "name a file inside it"


def test_a_very_long_name_still_fits(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 240 + ".onnx")
    with write_aside(path) as aside:
        aside.write_bytes(b"ok")
    assert path.read_bytes() == b"ok"
