"""Delta's teacher against transformers' own calls, with the real weights and real photos."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from delta import bundled, images
from delta.teacher import DEFAULT_TEACHER, IMAGENET_MEAN, IMAGENET_STD, Teacher, load_teacher
from delta_cache.reader import open_cache
from delta_pipelines.cache_recipe import ViewsRecipe
from delta_pipelines.views import choose_view, cut_view

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TAPS = (3, 6, 9, 12)
COCO_39769 = "000000039769.jpg"  # two cats, two remote controls: the photo of transformers' own checks
CORNER = (2.6725, 2.6184, 2.6544)  # of its answer at 518x686, from shared/teacher/README.md


@pytest.fixture(scope="module")
def teacher(teacher_dir: Path) -> Teacher:
    return load_teacher(str(teacher_dir), taps=TAPS)


@pytest.fixture(scope="module")
def eager(teacher_dir: Path) -> Any:
    """The same weights in transformers' slow kernel, which tells its attention."""
    from transformers import AutoModelForDepthEstimation

    return AutoModelForDepthEstimation.from_pretrained(
        str(teacher_dir), dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def processor(teacher_dir: Path) -> Any:
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(str(teacher_dir))


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return images.read_photo(images.find_photos(bundled.PHOTOS)[0]).copy()  # torch wants it writable


def as_input(view: np.ndarray) -> Tensor:
    return torch.from_numpy(images.to_tensor_layout(view))[None]


def worst(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference as a share of the answer's range."""
    return float((ours - theirs).abs().max() / (theirs.max() - theirs.min()))


@torch.inference_mode()
def test_disparity_is_transformers_own_on_a_square_view(
    teacher: Teacher, eager: Any, processor: Any, photo: np.ndarray
) -> None:
    height, width = photo.shape[:2]
    view = cut_view(photo, choose_view("plain", "", width, height, ViewsRecipe(), seed=0), 392).copy()
    inputs = processor(images=view, size={"height": 392, "width": 392}, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 392, 392)
    assert worst(teacher(as_input(view)).disparity, eager(**inputs).predicted_depth) < 1e-3


@torch.inference_mode()
def test_a_whole_photo_resized_by_us_and_by_transformers_is_answered_alike(
    teacher: Teacher, eager: Any, processor: Any, photo: np.ndarray
) -> None:
    """Their resizing is torchvision's antialiased bicubic on u8, ours Pillow's: a step of u8 in a few pixels."""
    inputs = processor(images=photo, size={"height": 224, "width": 224}, return_tensors="pt")
    height, width = inputs["pixel_values"].shape[2:]
    assert height != width
    ours = teacher(as_input(images.resize(photo, height, width))).disparity
    theirs = eager(**inputs).predicted_depth
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().mean() / (theirs.max() - theirs.min())) < 1e-3


def test_the_reference_photo_has_the_reference_corner(teacher: Teacher, photos_dir: Path) -> None:
    named = os.environ.get("DELTA_COCO_39769")
    found = [Path(named)] if named else sorted(photos_dir.rglob(COCO_39769))
    if not found:
        pytest.skip(f"NOT TESTED: no {COCO_39769} below {photos_dir}; DELTA_COCO_39769 names it elsewhere")
    photo = images.read_photo(found[0])
    assert photo.shape == (480, 640, 3)
    answer = teacher(as_input(images.resize(photo, 518, 686)))
    assert answer.disparity.shape == (1, 518, 686)
    torch.testing.assert_close(answer.disparity[0, 0, :3], torch.tensor(CORNER), rtol=1e-3, atol=0)


@torch.inference_mode()
def test_features_and_attention_are_transformers_own_also_off_the_square(
    teacher: Teacher, eager: Any, photo: np.ndarray
) -> None:
    image = as_input(images.resize(photo, 210, 266))
    answer = teacher(image)
    pixels = (image - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    maps = eager.backbone(pixels).feature_maps
    attentions = eager(pixels, output_attentions=True).attentions
    assert list(answer.features) == list(answer.attention) == ["block03", "block06", "block09", "block12"]
    for tap, own in zip(TAPS, maps, strict=True):
        features = own[:, 1:].transpose(1, 2).unflatten(2, (15, 19))
        # Two attention kernels in float32, twelve blocks deep: they differ by 2e-4 at most, features by units.
        torch.testing.assert_close(answer.features[f"block{tap:02d}"], features, rtol=1e-3, atol=1e-3)
        attention = attentions[tap - 1][:, :, 0, 1:].unflatten(2, (15, 19))
        torch.testing.assert_close(answer.attention[f"block{tap:02d}"], attention, rtol=0, atol=1e-5)
    normed = torch.stack([value.mean(dim=1).abs().max() for value in answer.features.values()])
    assert (normed < 1).all()  # a final LayerNorm centers each patch up to its bias


def test_the_weights_digest_is_the_same_from_either_storage(
    teacher: Teacher, teacher_dir: Path, tmp_path: Path
) -> None:
    weights = load_file(teacher_dir / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    (tmp_path / "config.json").write_bytes((teacher_dir / "config.json").read_bytes())
    single = {name: tensor.float() for name, tensor in weights.items()}
    save_file(single, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = load_teacher(str(tmp_path), taps=TAPS)
    assert again.identity.weights_sha256 == teacher.identity.weights_sha256
    assert teacher.identity.name == DEFAULT_TEACHER


def test_the_shared_weights_are_those_that_were_pinned(teacher_dir: Path) -> None:
    """Guards the fixture: every number above is of these weights."""
    pinned = re.findall(r"\b[0-9a-f]{64}\b", (teacher_dir.parent / "README.md").read_text())
    with (teacher_dir / "model.safetensors").open("rb") as file:
        assert pinned == [hashlib.file_digest(file, "sha256").hexdigest()]


def test_a_store_of_the_real_teacher_holds_its_four_taps(
    delta: Callable[..., Any], teacher: Teacher, teacher_dir: Path, tmp_path: Path
) -> None:
    settings = ("size_px=140", "limit=3", "chunk_samples=2", "batch_size=2")
    settings += ("image.kind=raw", "disparity.bits=10", "features.kind=float16", "features.grid=0", "attention.grid=0")
    flags = [word for setting in settings for word in ("--set", setting)]
    ended = delta(
        "cache", "build", bundled.PHOTOS, tmp_path / "s.zarr", "--teacher", teacher_dir, "--device", "cpu", *flags
    )
    assert ended.code == 0, ended.err
    store = open_cache(tmp_path / "s.zarr")
    shapes = {spec.name: spec.shape for spec in store.contract.arrays}
    assert [shapes[f"features/block{tap:02d}"] for tap in TAPS] == [(384, 10, 10)] * 4
    assert [shapes[f"attention/block{tap:02d}"] for tap in TAPS] == [(6, 10, 10)] * 4
    data = store.read_chunk(0, ["image", "disparity", "features/block12"])
    live = teacher(torch.cat([as_input(image) for image in data["image"]]))
    torch.testing.assert_close(torch.from_numpy(data["disparity"].copy()), live.disparity.half())
    torch.testing.assert_close(torch.from_numpy(data["features/block12"].copy()), live.features["block12"].half())


def test_a_store_by_the_shipped_recipe_agrees_with_its_teacher(
    delta: Callable[..., Any], teacher_dir: Path, tmp_path: Path
) -> None:
    store, settings = tmp_path / "s.zarr", ("size_px=140", "views.mirrored=true", "batch_size=4")
    flags = [word for setting in settings for word in ("--set", setting)]
    photos = ("cache", "build", bundled.PHOTOS, store, "--teacher", teacher_dir, "--device", "cpu")
    assert delta(*photos, *flags).code == 0
    ended = delta("cache", "verify", store, "--full", "--live", "4", "--teacher", teacher_dir, "--json")
    assert ended.code == 0, ended.err
    rows = {row["name"]: row for row in json.loads(ended.out)["live"]["rows"]}
    assert rows.keys() == {"disparity", *(f"features/block{tap:02d}" for tap in TAPS)}
    assert rows["disparity"]["value"] < 0.005
    assert all(0.8 < rows[name]["gate"] <= rows[name]["value"] for name in rows if name != "disparity")
