"""A view is a function of seed, path and name; what is stored of it gives the same pixels again."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from delta.errors import DeltaError
from delta.images import read_photo, to_tensor_layout
from delta.teacher import Teacher
from delta_cache.codec import decode_jpeg, encode_jpeg
from delta_cache.reader import Store, open_cache
from delta_cache.schema import VIEW_COLUMNS
from delta_cache.storage import LocalStorage
from delta_pipelines.build_cache import build_cache
from delta_pipelines.cache_recipe import CacheRecipe, ViewsRecipe
from delta_pipelines.views import View, choose_view, cut_view, decode_view, jpeg_limit, list_photos, open_photos

SIDES = st.integers(32, 3000)
NAMES = st.sampled_from(["plain", "mirrored", "crop1", "crop2"])
RECIPES = st.builds(
    ViewsRecipe,
    mirrored=st.booleans(),
    crops=st.integers(0, 4),
    crop_scale=st.sampled_from([(0.4, 1.0), (0.05, 0.2), (1.0, 1.0)]),
    crop_ratio=st.sampled_from([(0.75, 1.333), (1.0, 1.0), (0.2, 5.0)]),
)


@given(name=NAMES, path=st.text(min_size=1), width=SIDES, height=SIDES, recipe=RECIPES, seed=st.integers(0, 99))
def test_a_view_is_told_by_its_arguments_and_lies_inside_the_photo(
    name: str, path: str, width: int, height: int, recipe: ViewsRecipe, seed: int
) -> None:
    view = choose_view(name, path, width, height, recipe, seed)
    assert view == choose_view(name, path, width, height, recipe, seed)
    assert 0 <= view.left <= view.left + view.width <= width + 1e-9
    assert 0 <= view.top <= view.top + view.height <= height + 1e-9
    assert min(view.width, view.height) > 0


@given(width=SIDES, height=SIDES)
def test_the_plain_view_is_the_largest_centered_square_and_the_mirrored_one_its_mirror(width: int, height: int) -> None:
    plain, mirrored = (choose_view(name, "a.jpg", width, height, ViewsRecipe(), 0) for name in ("plain", "mirrored"))
    side = min(width, height)
    assert (plain.width, plain.height, plain.mirrored) == (side, side, False)
    assert (2 * plain.left + side, 2 * plain.top + side) == (width, height)
    assert mirrored == View(left=plain.left, top=plain.top, width=side, height=side, mirrored=True)


def test_crops_have_the_area_and_the_ratio_of_the_recipe_and_are_mirrored_half_of_the_time() -> None:
    recipe = ViewsRecipe(crops=1, crop_scale=(0.2, 0.5), crop_ratio=(0.5, 2.0))
    crops = [choose_view("crop1", f"{number}.jpg", 1000, 1000, recipe, 0) for number in range(2000)]
    areas = np.array([crop.width * crop.height / 1e6 for crop in crops])
    ratios = np.array([crop.width / crop.height for crop in crops])
    assert 0.2 - 1e-9 <= areas.min() < 0.21
    assert 0.49 < areas.max() <= 0.5 + 1e-9
    assert 0.5 - 1e-9 <= ratios.min() < 0.52
    assert 1.94 < ratios.max() <= 2 + 1e-9
    assert abs(np.log(ratios).mean()) < 4 * math.log(4) / math.sqrt(12 * 2000)  # log-uniform: neither way is favored
    assert 0.45 < np.mean([crop.mirrored for crop in crops]) < 0.55
    assert len({(crop.left, crop.top) for crop in crops}) == 2000


def test_every_seed_name_and_photo_has_crops_of_its_own() -> None:
    recipe = ViewsRecipe(crops=2)
    views = {
        choose_view(name, path, 640, 480, recipe, seed)
        for name in ("crop1", "crop2")
        for path in ("a.jpg", "b.jpg")
        for seed in (0, 1)
    }
    assert len(views) == 8


def test_the_names_of_the_views_are_those_asked_for() -> None:
    assert ViewsRecipe().names == ("plain",)
    assert ViewsRecipe(mirrored=True, crops=2).names == ("plain", "mirrored", "crop1", "crop2")


def test_a_mirrored_view_is_the_mirror_of_the_view() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    view = View(left=3.5, top=7.25, width=40, height=31)
    plain = cut_view(photo, view, 24)
    mirrored = cut_view(photo, View(left=3.5, top=7.25, width=40, height=31, mirrored=True), 24)
    assert plain.shape == (24, 24, 3)
    assert mirrored.flags.c_contiguous
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])


def test_a_photo_that_cannot_be_read_is_a_record_with_the_reason(
    tmp_path: Path, tiny_cache_recipe: CacheRecipe, small_photos: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    storage = LocalStorage(tmp_path)
    photo = list_photos(tmp_path)[0]
    decoded = decode_view(storage, photo, "plain", tiny_cache_recipe, 70)
    assert decoded.record.failure == "it is not an image in a known format"
    assert not decoded.image.any()
    assert not decoded.view.any()
    gone = decode_view(storage, list_photos(small_photos)[0], "plain", tiny_cache_recipe, 70)
    assert gone.record.failure == "it cannot be read: No such file or directory"
    assert gone.record.sha256 == ""


def test_photos_are_listed_by_relative_names_with_their_sizes(small_photos: Path) -> None:
    listed = list_photos(small_photos)
    assert len(listed) == 10
    assert [photo.path for photo in listed] == sorted(photo.path for photo in listed)
    assert "below/000.jpg" in {photo.path for photo in listed}
    assert all((small_photos / photo.path).stat().st_size == photo.bytes for photo in listed)
    (single,) = list_photos(small_photos / "001.png")
    assert single.path == "001.png"
    assert open_photos(small_photos / "001.png").read("001.png") == (small_photos / "001.png").read_bytes()


def test_photos_are_listed_in_a_memory_file_system_as_in_a_folder(small_photos: Path) -> None:
    """As any fsspec URL."""
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(small_photos), "/listed-photos", recursive=True)
    memory.pipe("/listed-photos/notes.txt", b"no photo")
    assert list_photos("memory://listed-photos") == sorted(list_photos(small_photos), key=lambda photo: photo.path)
    with pytest.raises(DeltaError, match=r"^no photos at memory://nothing-there$") as caught:
        list_photos("memory://nothing-there")
    assert caught.value.hint == "name a place that holds .jpg, .jpeg, .png, .webp files"


def samples(store: Store, names: list[str]) -> dict[str, np.ndarray]:
    chunks = [store.read_chunk(chunk, names) for chunk in range(store.contract.chunks)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in names}


def stored_view(row: np.ndarray) -> View:
    named = dict(zip(VIEW_COLUMNS, row.tolist(), strict=True))
    box = {key: named[f"{key}_px"] for key in ("left", "top", "width", "height")}
    return View(**box, mirrored=bool(named["mirrored"]))


def test_the_stored_parameters_replay_to_the_stored_images(
    compact_store: Path, small_photos: Path, compact_cache_recipe: CacheRecipe
) -> None:
    store = open_cache(compact_store)
    data, side = samples(store, ["image", "view"]), store.contract.recipe["size_px"]
    quality = compact_cache_recipe.image.quality
    worst = 0
    for sample in range(store.contract.samples):
        photo = store.photos[store.contract.photo_of(sample)]
        source = read_photo(small_photos / photo.path)
        view = stored_view(data["view"][sample])
        assert data["view"][sample][4:6].tolist() == [source.shape[1], source.shape[0]]
        pixels = cut_view(source, view, side)
        image = decode_jpeg(encode_jpeg(pixels, quality, jpeg_limit(side)))
        worst = max(worst, int(np.abs(image.astype(int) - data["image"][sample]).max()))
    assert worst <= 4  # parameters are kept as float32: a pixel may round otherwise, and JPEG spreads it


@pytest.fixture(scope="module")
def exact_views(
    small_photos: Path,
    tiny_cache_recipe: CacheRecipe,
    fake_teacher: Callable[..., Teacher],
    tmp_path_factory: pytest.TempPathFactory,
) -> Store:
    import msgspec

    recipe = msgspec.structs.replace(tiny_cache_recipe, views=ViewsRecipe(mirrored=True, crops=2))
    return build_cache(recipe, small_photos, tmp_path_factory.mktemp("views") / "store.zarr", fake_teacher())


def test_raw_images_of_plain_and_mirrored_views_replay_to_the_bit(exact_views: Store, small_photos: Path) -> None:
    data, count = samples(exact_views, ["image", "view"]), exact_views.contract.photo_count
    for sample in range(2 * count):
        source = read_photo(small_photos / exact_views.photos[exact_views.contract.photo_of(sample)].path)
        view = stored_view(data["view"][sample])
        np.testing.assert_array_equal(data["image"][sample], cut_view(source, view, 70))
    np.testing.assert_array_equal(data["image"][count : 2 * count], data["image"][:count, :, ::-1])


def test_the_answers_of_every_view_are_the_teachers_own_on_that_views_image(
    exact_views: Store, fake_teacher: Callable[..., Teacher]
) -> None:
    """Not the plain view's answers moved along: the fake teacher's features do not mirror with their image either."""
    names = ["image", "disparity", "features/block03", "features/block12", "attention/block12"]
    data, count = samples(exact_views, names), exact_views.contract.photo_count
    for sample in range(exact_views.contract.samples):
        answer: Any = fake_teacher()(torch.from_numpy(to_tensor_layout(data["image"][sample]))[None])
        expected = {"disparity": answer.disparity, "attention/block12": answer.attention["block12"]}
        expected |= {f"features/{tap}": maps for tap, maps in answer.features.items()}
        for name, value in expected.items():
            np.testing.assert_array_equal(data[name][sample], value[0].half().numpy(), err_msg=f"{name} of {sample}")
    plain, mirrored = data["features/block12"][:count], data["features/block12"][count : 2 * count]
    assert not np.array_equal(mirrored, plain[..., ::-1])


def test_samples_come_view_by_view_each_of_the_photos_in_their_order(exact_views: Store) -> None:
    count = exact_views.contract.photo_count
    rows = samples(exact_views, ["view"])["view"]
    mirrored = rows[:, VIEW_COLUMNS.index("mirrored")].astype(bool)
    assert not mirrored[:count].any()
    assert mirrored[count : 2 * count].all()
    recorded = [sample.path for record in exact_views.records() for sample in record.samples]
    assert recorded == [photo.path for photo in exact_views.photos] * 4


def test_a_photo_lying_on_its_side_is_cut_upright(
    tmp_path: Path, tiny_cache_recipe: CacheRecipe, fake_teacher: Callable[..., Teacher]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png", exif=exif)
    store = build_cache(tiny_cache_recipe, tmp_path / "photos", tmp_path / "store.zarr", fake_teacher())
    data = samples(store, ["view", "image"])
    assert data["view"][0].tolist() == [0, 15, 50, 50, 50, 80, 0]
    upright = np.ascontiguousarray(np.rot90(pixels, -1))
    np.testing.assert_array_equal(data["image"][0], cut_view(upright, stored_view(data["view"][0]), 70))
