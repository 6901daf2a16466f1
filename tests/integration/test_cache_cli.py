"""`delta cache` as a person meets it: pictures, tables and JSON, one sentence and an exit code where it fails."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from delta.teacher import Teacher
from delta_cache.reader import Store

Delta = Callable[..., Any]
QUICK = ("--set", "size_px=64", "--set", "chunk_samples=4", "--set", "batch_size=4", "--device", "cpu")


@pytest.fixture(scope="module")
def built(small_photos: Path, random_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a student's answers, made by the job behind the command."""
    from delta.teacher import load_teacher
    from delta_pipelines.build_cache import build_cache
    from delta_pipelines.cache_recipe import CacheRecipe
    from delta_pipelines.recipe import load_recipe

    recipe = load_recipe(CacheRecipe, "cache", QUICK[1:6:2])
    store = tmp_path_factory.mktemp("cli") / "store.zarr"
    return Path(build_cache(recipe, small_photos, store, load_teacher(str(random_student))).url)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--help"], ["cache", "train", "export", "verify", "predict", "demo"]),
        (["cache", "--help"], ["build", "plan", "info", "show", "verify", "repair", "merge", "subset"]),
        (["cache", "build", "--help"], ["PHOTOS", "STORE", "--teacher", "--recipe", "--set", "--device", "--basis"]),
        (["cache", "build", "--help"], ["--scheduler", "--workers"]),
        (["cache", "plan", "--help"], ["PHOTOS", "STORE", "--teacher", "--recipe", "--set", "--device", "--json"]),
        (["cache", "verify", "--help"], ["STORE", "--full", "--live", "--threads", "--teacher", "--json"]),
        (["cache", "repair", "--help"], ["STORE", "PHOTOS", "--teacher", "--threads"]),
        (["cache", "merge", "--help"], ["STORE", "--output"]),
        (["cache", "subset", "--help"], ["STORE", "--output", "--photos", "--arrays"]),
        (["cache", "info", "--help"], ["STORE", "--json"]),
        (["cache", "show", "--help"], ["STORE", "--output", "--samples"]),
        (["--version"], ["delta "]),
    ],
)
def test_help_names_what_can_be_said(delta: Delta, arguments: list[str], says: list[str]) -> None:
    ended = delta(*arguments)
    assert ended.code == 0
    assert [word for word in says if word not in ended.out] == []


@pytest.mark.parametrize(
    "arguments",
    [["cache", "burn"], ["cache", "build"], ["cache", "show", "store.zarr"], ["cache", "info", "--yaml", "a"]],
)
def test_a_command_that_does_not_exist_exits_2(delta: Delta, arguments: list[str]) -> None:
    ended = delta(*arguments)
    assert ended.code == 2
    assert "Usage" in ended.err


def test_a_build_ends_with_the_store_and_what_it_holds(
    delta: Delta, small_photos: Path, random_student: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store.zarr"
    ended = delta("cache", "build", small_photos, store, "--teacher", random_student, *QUICK)
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"{store}: 10 photos, ")
    assert ended.out.rstrip().endswith("kB each")
    assert Store.open(store).require_complete().contract.recipe["size_px"] == 64
    again = delta("cache", "build", small_photos, store, "--teacher", random_student, *QUICK)
    assert (again.code, again.out) == (0, ended.out)


def test_a_photo_left_out_is_told_while_building_and_after(
    delta: Delta, photo_folder: Callable[..., Path], random_student: Path, tmp_path: Path
) -> None:
    folder, store = photo_folder(tmp_path / "photos", count=3), tmp_path / "store.zarr"
    (folder / "poem[1].jpg").write_text("not a photo")
    ended = delta("cache", "build", folder, store, "--teacher", random_student, *QUICK)
    assert ended.code == 0, ended.err
    assert "left out poem[1].jpg: it is not an image in a known format" in ended.err
    assert "3 photos, " in ended.out
    assert f", 1 left out (`delta cache info {store}` says why)" in ended.out
    assert "left out poem[1].jpg: it is not an image in a known format" in delta("cache", "info", store).out


def test_info_is_a_table_for_people_and_json_for_machines(delta: Delta, built: Path) -> None:
    table = delta("cache", "info", built)
    assert table.code == 0
    for words in ("complete", "yes", "10 cached, 0 left out, 0 to do", "10, plain", "64 px", "disparity", "rounded, 7"):
        assert words in table.out
    facts = json.loads(delta("cache", "info", built, "--json").out)
    assert facts["complete"] is True
    assert facts["samples"] == {"cached": 10, "failed": 0, "missing": 0}
    assert (facts["photos"], facts["views"]) == (10, ["plain"])
    assert facts["fingerprint"] == Store.open(built).contract.fingerprint
    assert facts["bytes"] == Store.open(built).bytes_on_disk()
    assert facts["bytes_per_photo"] == pytest.approx({name: size / 10 for name, size in facts["bytes"].items()})
    assert facts["bytes_per_photo_total"] * 10 == pytest.approx(sum(facts["bytes"].values()))
    assert facts["holdout_cosine"].keys() == {"stride04", "stride08", "stride16", "stride32"}
    assert facts["build"]["samples"] == 10
    assert facts["build"]["workers"] == 1
    assert facts["build"]["meter"]["bottleneck"] in ("decode", "teacher", "write")
    assert facts["forecast"] == {}
    assert facts["contract"]["recipe"]["size_px"] == 64


def test_info_of_a_half_built_store_says_how_far_it_is(delta: Delta, built: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(built, tmp_path / "store.zarr"))
    (store / "ledger" / "00000001.json").unlink()
    assert "no, 1 of 3 chunks missing" in delta("cache", "info", store).out
    facts = json.loads(delta("cache", "info", store, "--json").out)
    assert facts["bytes_per_photo_total"] == pytest.approx(sum(facts["bytes"].values()) / 6)
    assert (facts["complete"], facts["chunks_missing"], facts["samples"]["missing"]) == (False, 1, 4)


def test_show_draws_a_row_for_each_photo(delta: Delta, built: Path, small_store: Path, tmp_path: Path) -> None:
    ended = delta("cache", "show", built, "-o", tmp_path / "two.png", "--samples", "2")
    assert (ended.code, ended.out) == (0, f"{tmp_path / 'two.png'}\n"), ended.err
    delta("cache", "show", built, "-o", tmp_path / "four.png")
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "four.png") as four:
        assert two.width == four.width
        assert four.height > 1.5 * two.height
        assert np.asarray(two.convert("L"))[two.height // 2 :].std() > 10  # photos and colors, not a plain sheet
    assert delta("cache", "show", small_store, "-o", tmp_path / "with-attention.png").code == 0


def refused(delta: Delta, *arguments: object) -> tuple[str, str]:
    ended = delta(*arguments)
    assert (ended.code, ended.out) == (2, "")
    error, hint = ended.err.strip().splitlines()[-2:]
    assert "Traceback" not in ended.err
    return error.removeprefix("error: "), hint.removeprefix("hint:").strip()


def test_errors_are_a_sentence_and_a_way_out(
    delta: Delta, built: Path, small_photos: Path, random_student: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    build = ("cache", "build", small_photos, tmp_path / "new.zarr", "--teacher")
    sayings = {
        "no store": refused(delta, "cache", "info", tmp_path / "nowhere.zarr"),
        "no cache": refused(delta, "cache", "show", tmp_path / "empty", "-o", tmp_path / "a.png"),
        "no photos": refused(delta, "cache", "build", tmp_path / "empty", tmp_path / "n", "--teacher", random_student),
        "no folder": refused(delta, "cache", "build", tmp_path / "none", tmp_path / "n", "--teacher", random_student),
        "no teacher": refused(delta, *build, tmp_path / "teacher"),
        "no recipe": refused(delta, *build, random_student, "--recipe", "cashe"),
        "no key": refused(delta, *build, random_student, "--set", "sise_px=3"),
        "no device": refused(delta, *build, random_student, "--device", "abacus"),
        "not a folder": refused(
            delta, "cache", "build", small_photos, tmp_path / "file" / "s", "--teacher", random_student
        ),
        "other contract": refused(delta, "cache", "build", small_photos, built, "--teacher", random_student),
    }
    assert sayings["no store"][0] == f"there is no cache at {tmp_path / 'nowhere.zarr'}"
    assert sayings["no cache"][0] == f"there is no cache at {tmp_path / 'empty'}"
    assert sayings["no photos"][0].startswith(f"no photos in {tmp_path / 'empty'}: looked for ")
    assert sayings["no folder"] == (f"there is no folder {tmp_path / 'none'}", "name an existing folder of photos")
    assert sayings["no teacher"][0] == f"there is no teacher at {tmp_path / 'teacher'}"
    assert sayings["no recipe"][0] == "there is no recipe cashe"
    assert sayings["no key"] == ("recipe cache: there is no key sise_px", "did you mean size_px?")
    assert sayings["no device"][0].startswith("there is no device 'abacus' here: ")
    assert sayings["not a folder"][1] == "check the path and its permissions"
    assert sayings["other contract"][1] == "repeat the build as the store was made, or name another store"
    assert all(hint for _sentence, hint in sayings.values())
    assert not (tmp_path / "new.zarr").exists()


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Let the kernel refuse to let any file grow beyond `limit` bytes, as a full disk does."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.skipif(os.name != "posix", reason="no such limits there")
def test_a_full_disk_is_said_so_and_the_same_command_goes_on(
    delta: Delta, small_photos: Path, random_student: Path, tmp_path: Path
) -> None:
    image = 4 * 64 * 64 * 3  # bytes of a chunk's raw pixels: no other file of such a store is as large
    command = ("cache", "build", small_photos, tmp_path / "store.zarr", "--teacher", random_student, *QUICK)
    for setting in ("features.kind=none", "image.kind=raw", "compressor=none"):
        command = (*command, "--set", setting)
    with file_size_limit(image - 1):
        ended = delta(*command)
    assert ended.code == 2, ended.err
    assert "error: no space left on the disk for " in ended.err
    assert "hint:  free some and run the same command; what is done is kept" in ended.err
    assert Store.open(tmp_path / "store.zarr").missing_chunks()
    assert delta(*command).code == 0
    assert Store.open(tmp_path / "store.zarr").missing_chunks() == []


def test_an_interrupt_exits_130_and_the_same_command_goes_on(
    delta: Delta,
    small_photos: Path,
    fake_teacher: Callable[..., Teacher],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(call: int) -> None:
        if call == 7:  # the seventh chunk
            raise KeyboardInterrupt

    kinds = ("--set", "features.kind=float16", "--set", "chunk_samples=1")
    command = ("cache", "build", small_photos, tmp_path / "store.zarr", *QUICK, *kinds)
    monkeypatch.setattr("delta.teacher.load_teacher", lambda *_, **__: fake_teacher(before=interrupt))
    ended = delta(*command)
    assert ended.code == 130
    assert "Traceback" not in ended.err
    missing = Store.open(tmp_path / "store.zarr").missing_chunks()
    assert 4 <= len(missing) < 10  # six were answered; of them at most two were still on their way to the disk
    monkeypatch.setattr("delta.teacher.load_teacher", lambda *_, **__: fake_teacher())
    assert delta(*command).code == 0
