"""Photos into a store: seen as they are, and those that cannot be used recorded with the reason, never lost."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delta.errors import DeltaError
from delta.images import read_photo
from delta.teacher import Teacher
from delta_cache.errors import CacheError
from delta_cache.reader import Store
from delta_cache.schema import Status
from delta_pipelines.build_cache import build_cache
from delta_pipelines.cache_recipe import CacheRecipe

FakeTeacher = Callable[..., Teacher]


def test_the_view_is_the_centered_square_of_the_upright_photo(
    tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    scene = np.zeros((40, 100, 3), np.uint8)
    scene[:, 30:70] = (200, 100, 50)  # what the centered square sees; black beside it
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.ascontiguousarray(scene.swapaxes(0, 1)[::-1])).save(tmp_path / "photos" / "a.png", exif=exif)
    store = build_cache(tiny_cache_recipe, tmp_path / "photos" / "a.png", tmp_path / "store.zarr", fake_teacher())
    data = store.read_chunk(0, ["view", "image"])
    assert data["view"].tolist() == [[30, 0, 40, 40, 100, 40, 0]]
    assert (data["image"][0, :, 4:-4] == (200, 100, 50)).all()  # at the sides the filter sees beyond the box


def write_bad_files(folder: Path) -> dict[str, str]:
    """Write every kind of file that cannot be used; return the reasons expected."""
    colors = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    (folder / "empty.jpg").touch()
    (folder / "poem.png").write_text("a poem, renamed")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.fromarray(colors).save(folder / "whole.jpg")
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:-400])
    (folder / "whole.jpg").unlink()
    (folder / "gone.webp").symlink_to(folder / "moved-away.webp")
    return {
        "empty.jpg": "it is not an image in a known format",
        "poem.png": "it is not an image in a known format",
        "dot.png": "it is 1x1 px, below 32 px on a side",
        "cut.jpg": "it cannot be decoded: ",
        "gone.webp": "it cannot be read: No such file or directory",
    }


def test_photos_that_cannot_be_used_are_recorded_and_masked_and_the_others_cached(
    photo_folder: Callable[..., Path], tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    folder = photo_folder(tmp_path / "photos", count=5)
    (folder / "album.jpg").mkdir()
    reasons = write_bad_files(folder)
    if os.name == "posix" and os.geteuid() != 0:
        (folder / "locked.png").write_bytes((folder / "001.png").read_bytes())
        (folder / "locked.png").chmod(0)
        reasons["locked.png"] = "it cannot be read: Permission denied"
    store = build_cache(tiny_cache_recipe, folder, tmp_path / "store.zarr", fake_teacher()).require_complete()
    failures = store.failures()
    assert failures.keys() == reasons.keys()
    assert all(failures[name].startswith(reason) for name, reason in reasons.items())
    assert sorted(photo.path for photo in store.photos) == sorted(
        [*reasons, "001.png", "002.png", "003.jpg", "below/000.jpg", "below/004.png"]
    )
    status = store.status()
    for chunk in range(store.contract.chunks):
        data = store.read_chunk(chunk, [spec.name for spec in store.contract.arrays])
        for row, sample in enumerate(store.contract.chunk_range(chunk)):
            failed = store.photos[sample].path in reasons
            assert status[sample] == data["status"][row] == (Status.FAILED if failed else Status.OK)
            assert all(values[row].any() != failed for name, values in data.items() if name != "status")


def test_an_unusual_photo_is_cached_with_its_true_values(
    tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    gray = np.full((70, 70), 51 * 256, np.uint16)
    (tmp_path / "photos").mkdir()
    Image.fromarray(gray).save(tmp_path / "photos" / "gray16.png")
    Image.new("CMYK", (70, 70), (204, 204, 204, 0)).save(tmp_path / "photos" / "cmyk.jpg", quality=100)
    Image.new("P", (70, 70), 3).save(tmp_path / "photos" / "palette.png", transparency=bytes(4))
    frames = [Image.new("RGB", (70, 70), (51, 51, 51)), Image.new("RGB", (70, 70), "red")]
    frames[0].save(tmp_path / "photos" / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    store = build_cache(tiny_cache_recipe, tmp_path / "photos", tmp_path / "store.zarr", fake_teacher())
    assert store.failures() == {}
    seen = dict(zip([photo.path for photo in store.photos], store.read_chunk(0, ["image"])["image"], strict=True))
    assert np.abs(seen["cmyk.jpg"].astype(int) - 51).max() <= 2  # JPEG's rounding
    assert (seen["gray16.png"] == 51).all()
    assert (seen["moving.webp"] == 51).all()
    np.testing.assert_array_equal(seen["palette.png"], read_photo(tmp_path / "photos" / "palette.png"))


def test_a_folder_of_broken_files_alone_is_one_clear_error(
    tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    count = len(write_bad_files(tmp_path / "photos"))
    for _attempt in range(2):
        with pytest.raises(DeltaError, match=rf"^none of the {count} photos can be used; the first, .*: it ") as caught:
            build_cache(tiny_cache_recipe, tmp_path / "photos", tmp_path / "store.zarr", fake_teacher())
        assert caught.value.hint == "name a folder with readable JPEG, PNG or WebP files"
    with pytest.raises(CacheError, match=r"store\.zarr holds no readable photo"):
        Store.open(tmp_path / "store.zarr").require_complete()


def test_an_empty_folder_makes_no_store(
    tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DeltaError, match="no photos in"):
        build_cache(tiny_cache_recipe, tmp_path / "photos", tmp_path / "store.zarr", fake_teacher())
    assert [entry.name for entry in tmp_path.iterdir()] == ["photos"]


@pytest.mark.skipif(os.name != "posix", reason="names are Unicode there")
def test_a_file_name_that_is_not_text_is_named(
    tiny_cache_recipe: CacheRecipe, fake_teacher: FakeTeacher, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    path = Path(os.fsdecode(os.fsencode(tmp_path / "photos") + b"/caf\xe9.png"))
    try:
        Image.new("RGB", (64, 64)).save(path)
    except OSError:
        pytest.skip("this file system refuses such names itself")
    with pytest.raises(DeltaError, match=r"the file name 'caf\\udce9\.png' is not UTF-8") as caught:
        build_cache(tiny_cache_recipe, tmp_path / "photos", tmp_path / "store.zarr", fake_teacher())
    assert caught.value.hint == "rename that file"
