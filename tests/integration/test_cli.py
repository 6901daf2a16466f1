"""Every command says what it wants, and every mistake is one sentence, a way out and exit code 2."""

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
import typer

from delta import __version__
from delta_pipelines.cli import app

COMMANDS = {
    ("cache", "build"): (
        *("PHOTOS", "STORE", "--teacher", "--recipe", "--set", "--device", "--basis", "--scheduler", "--workers"),
    ),
    ("cache", "plan"): ("PHOTOS", "STORE", "--teacher", "--recipe", "--set", "--device", "--json"),
    ("cache", "info"): ("STORE", "--json"),
    ("cache", "show"): ("STORE", "--output", "-o", "--samples"),
    ("cache", "verify"): ("STORE", "--full", "--live", "--teacher", "--device", "--threads", "--json"),
    ("cache", "repair"): ("STORE", "PHOTOS", "--teacher", "--device", "--threads"),
    ("cache", "merge"): ("STORE", "--output", "-o"),
    ("cache", "subset"): ("STORE", "--output", "-o", "--photos", "--arrays"),
    ("bench", "cache"): ("STORE", "--photos", "--teacher", "--set", "--device", "--place", "--json"),
    ("bench", "train"): ("STORE", "--recipe", "--set", "--rounds", "--sizes", "--device", "--json"),
    ("bench", "equivalence"): (
        *("STORE", "--output", "-o", "--teacher", "--recipe", "--set", "--steps", "--device", "--json"),
    ),
    ("train",): ("STORE", "RUN", "--recipe", "--set", "--device", "--teacher"),
    ("runs",): ("FOLDER", "--output", "-o", "--json"),
    ("evaluate",): ("MODEL... DATA", "--output", "-o", "--teacher", "--recipe", "--set", "--device", "--json"),
    ("export",): ("RUN", "OUT", "--photos", "--size", "--precision", "--dynamic-batch", "--recipe", "--set", "--json"),
    ("verify",): ("BUNDLE|MODEL.onnx", "RUN|MODEL.onnx", "PHOTOS", "--provider", "--truth", "--junit", "--stamp"),
    ("predict",): ("BUNDLE|MODEL.onnx", "PHOTO|FOLDER|VIDEO", "--output", "--depth-only", "--npy", "--ply", "--view"),
    ("bench", "ladder"): ("PHOTOS", "DATA", "--output", "--recipe", "--teacher", "--set", "--device", "--json"),
    ("bench", "latency"): ("MODEL|RUN", "--teacher", "--recipe", "--set", "--json"),
    ("bench", "app"): ("BUNDLE|MODEL.onnx", "--precision", "--runtime", "--recipe", "--set", "--json"),
    ("app", "build"): ("BUNDLE|MODEL.onnx", "--output", "-o", "--precision", "--runtime", "--no-webgpu", "--json"),
    ("app", "serve"): ("BUNDLE|MODEL.onnx", "--https", "--port", "--precision", "--runtime", "--no-webgpu"),
    ("demo",): ("--out", "--photos", "--teacher", "--device"),
}


@pytest.fixture(autouse=True)
def plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """No colors, whatever the terminal or the CI promises."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")


def test_the_commands_are_those_tested_here():
    top = typer.main.get_command(app).commands
    groups = {name: command.commands for name, command in top.items() if hasattr(command, "commands")}
    listed = {(group, name) for group, commands in groups.items() for name in commands}
    assert listed | {(name,) for name in top if name not in groups} == set(COMMANDS)


@pytest.mark.parametrize("command", list(COMMANDS), ids=" ".join)
def test_help_names_every_argument(delta, command):
    ended = delta(*command, "--help")
    assert ended.code == 0
    assert ended.err == ""
    assert re.search(rf"Usage: .*{' '.join(command)} ", ended.out)
    missing = [name for name in COMMANDS[command] if name not in ended.out]
    assert missing == []


def test_help_of_the_whole_lists_the_commands(delta):
    ended = delta("--help")
    assert ended.code == 0
    assert all(command[0] in ended.out for command in COMMANDS)


@pytest.mark.parametrize("group", [(), ("cache",), ("bench",)])
def test_a_group_alone_shows_its_help(delta, group):
    ended = delta(*group)
    assert ended.code == 2  # click's way: nothing was done
    assert "Usage: " in ended.out + ended.err


def test_version_is_that_of_the_package(delta):
    ended = delta("--version")
    assert (ended.code, ended.out) == (0, f"delta {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("trane",), "trane"),
        (("train",), "STORE"),
        (("train", "store"), "RUN"),
        (("train", "store", "run", "more"), "more"),
        (("train", "store", "run", "--epochs", "3"), "--epochs"),
        (("cache", "bild"), "bild"),
        (("cache", "build", "photos"), "STORE"),
        (("cache", "show", "store"), "--output"),
        (("cache", "show", "store", "-o", "x.png", "--samples", "0"), "--samples"),
        (("export", "run"), "OUT"),
        (("verify", "model.onnx", "run"), "PHOTOS"),
        (("predict", "model.onnx", "photos"), "--output"),
        (("demo", "out"), "out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_usage_ends_with_2_and_names_what_is_wrong(delta, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    ended = delta(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert named in ended.err
    assert "Traceback" not in ended.err
    assert list(tmp_path.iterdir()) == []


def test_training_prints_where_the_student_is_and_shows_how_well_it_agrees(delta, tmp_path, tiny_store, tiny_run):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    ended = delta("train", tiny_store, run, *settings(tiny_run))
    assert ended.code == 0
    files = ("student.safetensors", "samples.png", "loss.png", "report.md")
    assert ended.out.splitlines()[-4:] == [str(run / file) for file in files]
    assert "agreement with the teacher, 3 held-out photos" in ended.out
    assert "mean map of training" in ended.out
    assert "resuming at step 6 of 6" in ended.err


def settings(run: Path) -> list[str]:
    """The `--set` arguments that repeat a run's recipe, read from the run itself."""

    def flat(tree: dict, prefix: str = "") -> list[str]:
        pairs = []
        for key, value in tree.items():
            name = f"{prefix}{key}"
            pairs += flat(value, f"{name}.") if isinstance(value, dict) else [f"{name}={json.dumps(value)}"]
        return pairs

    return [part for pair in flat(json.loads((run / "run.json").read_text())["recipe"]) for part in ("--set", pair)]


def test_train_without_a_store_says_how_to_make_one(delta, tmp_path):
    ended = delta("train", tmp_path / "none.zarr", tmp_path / "run")
    assert ended.complaint() == f"there is no cache at {tmp_path / 'none.zarr'}"
    assert "delta cache build" in ended.err
    assert not (tmp_path / "run").exists()


def test_train_on_a_folder_that_is_no_store_says_so(delta, tmp_path):
    (tmp_path / "notes.txt").touch()
    assert "is not a Delta cache" in delta("train", tmp_path, tmp_path / "run").complaint()


def test_train_on_an_incomplete_store_says_what_is_missing_and_what_resumes_it(delta, tmp_path, store_at):
    store = store_at(tmp_path / "store.zarr", without_chunks=[1])
    ended = delta("train", store, tmp_path / "run")
    assert ended.complaint() == f"cache {store} is incomplete: 1 of 3 chunks missing"
    assert "resumes it" in ended.err
    assert not (tmp_path / "run").exists()


def test_train_into_a_run_of_another_recipe_says_what_differs(delta, tiny_store, tiny_run):
    before = (tiny_run / "run.json").read_bytes()
    error = delta("train", tiny_store, tiny_run, *settings(tiny_run), "--set", "seed=5").complaint()
    assert error.splitlines() == [f"{tiny_run} is a run of another student:", "  seed: run 0, asked 5"]
    assert (tiny_run / "run.json").read_bytes() == before


def test_train_into_a_run_on_another_store_says_so(delta, tmp_path, store_at, tiny_run):
    store = store_at(tmp_path / "store.zarr", teacher="another")
    first, difference, *fields = delta("train", store, tiny_run, *settings(tiny_run)).complaint().splitlines()
    assert first == f"{tiny_run} is a run of another student:"
    assert difference.startswith("  store: run ")
    assert len(fields) == 1
    assert fields[0].startswith("  store.teacher.weights_sha256: run ")


def test_train_into_a_folder_of_something_else_leaves_it_alone(delta, tmp_path, tiny_store):
    (tmp_path / "letter.txt").write_text("dear")
    assert delta("train", tiny_store, tmp_path).complaint() == f"{tmp_path} is not empty and not a Delta run"
    assert [entry.name for entry in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--recipe", "nothing"), "there is no recipe nothing"),
        (("--recipe", "cache"), "recipe cache:"),
        (("--set", "epoch=3"), "there is no key epoch"),
        (("--set", "epochs"), "is not key=value"),
        (("--set", "epochs=many"), "epochs"),
        (("--set", "epochs=0"), "epochs"),
        (("--set", "size_px=100"), "size_px"),
        (("--set", "loss.levels=[]"), "levels"),
        (("--set", "augment.crop_ratio=[0.0, 1.0]"), "crop_ratio"),
        (("--set", "student.width=0"), "width"),
        (("--set", "student.encoder=vit_tiny_patch16_224"), "needs levels of strides 4, 8, 16, 32"),
        (("--device", "abacus"), "there is no device 'abacus'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_recipe_or_device_that_cannot_be_is_said_by_name(delta, tmp_path, tiny_store, arguments, named):
    run = tmp_path / "run"
    assert named in delta("train", tiny_store, run, "--set", "student.encoder_weights=none", *arguments).complaint()
    assert {entry.name for entry in run.glob("*")} <= {"run.json"}


def test_a_damaged_state_is_said_and_left_to_the_person(delta, tmp_path, tiny_store, tiny_run):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    state = run / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    assert f"{state} is damaged" in delta("train", tiny_store, run, *settings(tiny_run)).complaint()
    assert state.stat().st_size == 1000


def test_a_full_disk_is_said_with_exit_2(delta, tmp_path, tiny_store, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "state.safetensors")

    monkeypatch.setattr("delta_pipelines.distill.claim", full)
    error = delta("train", tiny_store, tmp_path / "run", "--set", "student.encoder_weights=none").complaint()
    assert error == "no space left on the disk for state.safetensors"


def test_a_bug_is_no_mistake_of_the_person_and_shows_itself(delta, tmp_path, tiny_store, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("delta_pipelines.distill.claim", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        delta("train", tiny_store, tmp_path / "run", "--set", "student.encoder_weights=none")


def test_cache_build_without_photos_or_teacher_says_which(delta, tmp_path, few_photos, random_student):
    (tmp_path / "empty").mkdir()
    store = tmp_path / "store.zarr"
    assert "no photos in" in delta("cache", "build", tmp_path / "empty", store, "--teacher", random_student).complaint()
    nowhere = tmp_path / "nowhere"
    error = delta("cache", "build", nowhere, store, "--teacher", random_student).complaint()
    assert error == f"there is no folder {nowhere}"
    assert "there is no teacher at" in delta("cache", "build", few_photos, store, "--teacher", nowhere).complaint()
    assert not store.exists()


def test_a_picture_of_a_store_is_drawn(delta, tmp_path, tiny_store):
    ended = delta("cache", "show", tiny_store, "-o", tmp_path / "panel.png", "--samples", "2")
    assert (ended.code, ended.out) == (0, f"{tmp_path / 'panel.png'}\n")
    assert (tmp_path / "panel.png").stat().st_size > 10_000
