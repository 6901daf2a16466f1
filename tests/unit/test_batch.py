"""One map for image, disparity and features; color for the image alone; the same generator, the same batch."""

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from delta.augment import NO_AUGMENTATION, AugmentConfig
from delta.batch import Batch, Targets, draw, make_batch

SIDE_PX, GRID = 64, 9
COLORFUL = {
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "gray": 0.5,
    "blur": 0.5,
    "noise": 0.1,
    "jpeg": 0.5,
}
CROPPED = {"crop_scale": (0.3, 0.6), "crop_ratio": (0.75, 1.333)}
ALL_AT_ONCE = AugmentConfig(rotation_deg=10, cutmix=0.5, noise=0.1, jpeg=0.5)


def centers(side: int) -> Tensor:
    """Coordinates of the pixel centers of a square that spans [-1, 1]."""
    return (torch.arange(side) + 0.5) * 2 / side - 1


def coordinates(count: int) -> Targets:
    """Views that say where they are: red = x, green = y, disparity = x + 2, features and attention = (x, y)."""
    y, x = torch.meshgrid(centers(SIDE_PX), centers(SIDE_PX), indexing="ij")
    image = torch.stack([(x + 1) * 127.5, (y + 1) * 127.5, torch.full_like(x, 90)], dim=-1).round().to(torch.uint8)
    features = torch.stack(torch.meshgrid(centers(GRID), centers(GRID), indexing="xy"))
    return Targets(
        image=image.expand(count, -1, -1, -1),
        disparity=(x + 2).expand(count, -1, -1),
        features={"block12": features.half().expand(count, -1, -1, -1)},
        attention={"block12": features.expand(count, -1, -1, -1)},
        samples=torch.arange(count),
    )


def augmented(targets: Targets, seed: int, size_px: int, config: AugmentConfig) -> Batch:
    draws = draw(len(targets.samples), config, torch.Generator().manual_seed(seed))
    return make_batch(targets, draws, size_px=size_px, config=config)


def batch_of(count: int = 4, *, seed: int = 0, size_px: int = SIDE_PX, **changes: Any) -> Batch:
    config = msgspec.structs.replace(NO_AUGMENTATION, **changes)
    return augmented(coordinates(count), seed, size_px, config)


def noise(count: int = 4) -> Targets:
    rng = np.random.default_rng(0)
    return Targets(
        image=torch.from_numpy(rng.integers(0, 256, (count, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)),
        disparity=torch.from_numpy(rng.random((count, SIDE_PX, SIDE_PX), dtype=np.float32)),
        features={"block12": torch.from_numpy(rng.random((count, 8, GRID, GRID), dtype=np.float32))},
        attention={"block12": torch.from_numpy(rng.random((count, 2, GRID, GRID), dtype=np.float32))},
        samples=torch.arange(count),
    )


def noisy_batch(seed: int, config: AugmentConfig = ALL_AT_ONCE) -> Batch:
    return augmented(noise(), seed, 64, config)


def same(a: Batch, b: Batch) -> dict[str, bool]:
    pairs = {name: (getattr(a, name), getattr(b, name)) for name in ("image", "disparity", "valid", "feature_weight")}
    pairs |= {kind: (getattr(a, kind)["block12"], getattr(b, kind)["block12"]) for kind in ("features", "attention")}
    return {name: torch.equal(*pair) for name, pair in pairs.items()}


def test_without_augmentation_the_batch_is_the_view():
    view = coordinates(4)
    batch = batch_of()
    # float32 coordinates of a 64 px grid are exact to some 1e-5 of a pixel; a pixel spans 1/32 here.
    torch.testing.assert_close(batch.image, view.image.permute(0, 3, 1, 2) / 255, atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.disparity, view.disparity.contiguous(), atol=1e-5, rtol=0)
    assert batch.valid.all()
    assert batch.feature_weight.tolist() == [1, 1, 1, 1]


def test_features_without_augmentation_on_their_own_grid_are_the_features():
    features = coordinates(2).features
    batch = batch_of(2, size_px=GRID * 16)
    torch.testing.assert_close(batch.features["block12"], features["block12"].float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size_px", [64, 128, 192])
def test_a_batch_has_the_size_asked_for_and_features_at_stride_16(size_px):
    batch = batch_of(2, size_px=size_px)
    assert batch.image.shape == (2, 3, size_px, size_px)
    assert batch.disparity.shape == batch.valid.shape == (2, size_px, size_px)
    assert batch.features["block12"].shape == (2, 2, size_px // 16, size_px // 16)


@pytest.mark.parametrize("changes", [CROPPED, CROPPED | {"mirror": 1.0}, {"mirror": 1.0}, CROPPED | {"mirror": 0.5}])
def test_crop_and_mirror_move_image_disparity_and_features_together(changes):
    batch = batch_of(16, **changes)
    x, y = batch.image[:, 0] * 2 - 1, batch.image[:, 1] * 2 - 1
    # An 8-bit pixel says where it is to 1/255 of the side, which is 2 wide.
    torch.testing.assert_close(batch.disparity - 2, x, atol=0.01, rtol=0)
    cells = torch.nn.functional.avg_pool2d(torch.stack([x, y], dim=1), 16)
    rim = 1 - 1 / GRID  # beyond the outermost patches' centers features have no more to say
    torch.testing.assert_close(batch.features["block12"], cells.clamp(-rim, rim), atol=0.02, rtol=0)
    inner = (cells.abs() < rim).all(dim=1, keepdim=True).expand_as(cells)
    torch.testing.assert_close(batch.attention["block12"][inner], cells[inner], atol=0.02, rtol=0)


def test_crops_differ_between_samples_and_stay_inside_the_view():
    batch = batch_of(16, **CROPPED)
    assert len({round(value, 4) for value in batch.disparity[:, 0, 0].tolist()}) > 8
    assert batch.valid.all()
    x, y = batch.image[:, 0] * 2 - 1, batch.image[:, 1] * 2 - 1
    spans = [(axis.amax(dim=(1, 2)) - axis.amin(dim=(1, 2))) / 2 * SIDE_PX / (SIDE_PX - 1) for axis in (x, y)]
    area = spans[0] * spans[1]
    assert area.min() > 0.28
    assert area.max() < 0.62
    assert (area.max() - area.min()) > 0.1
    assert (spans[0] / spans[1]).min() > 0.73
    assert (spans[0] / spans[1]).max() < 1.36


def test_a_mirrored_batch_is_the_plain_one_turned_around_and_has_no_feature_weight():
    plain, mirrored = batch_of(**CROPPED), batch_of(**CROPPED, mirror=1.0)
    torch.testing.assert_close(mirrored.image, plain.image.flip(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(mirrored.disparity, plain.disparity.flip(2), atol=1e-4, rtol=0)
    assert plain.feature_weight.tolist() == [1, 1, 1, 1]
    assert mirrored.feature_weight.tolist() == [0, 0, 0, 0]


def test_a_sample_has_feature_weight_exactly_where_it_is_not_mirrored():
    batch = batch_of(32, mirror=0.5)
    runs_backwards = batch.disparity[:, 0, 0] > batch.disparity[:, 0, -1]
    assert 8 < runs_backwards.sum() < 24
    assert torch.equal(batch.feature_weight > 0, ~runs_backwards)
    assert batch.feature_weight.mean().item() == pytest.approx(1)
    assert batch.feature_weight.unique().numel() == 2


def test_rotation_marks_what_came_from_outside_the_view_as_invalid():
    batch = batch_of(8, rotation_deg=45.0)
    corners = batch.valid[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert not corners.all(dim=1).any()
    assert batch.valid[:, 16:48, 16:48].all()
    shares = batch.valid.float().mean(dim=(1, 2))
    assert shares.min() > 0.8  # a square turned by 45 degrees keeps 0.83 of itself
    assert shares.unique().numel() > 4
    x, y = batch.image[:, 0] * 2 - 1, batch.image[:, 1] * 2 - 1
    radius = (x.square() + y.square()).sqrt()
    expected = (centers(64)[None, :].square() + centers(64)[:, None].square()).sqrt().expand_as(radius)
    torch.testing.assert_close(radius[batch.valid], expected[batch.valid], atol=0.03, rtol=0)


def test_rotation_takes_features_along():
    batch = batch_of(8, rotation_deg=20.0)
    cells = torch.nn.functional.avg_pool2d(batch.image[:, :2] * 2 - 1, 16)[:, :, 1:3, 1:3]
    torch.testing.assert_close(batch.features["block12"][:, :, 1:3, 1:3], cells, atol=0.02, rtol=0)


def test_the_same_generator_gives_the_same_batch_and_another_another():
    assert all(same(noisy_batch(3), noisy_batch(3)).values())
    assert not any(value for name, value in same(noisy_batch(3), noisy_batch(4)).items() if name != "feature_weight")


def test_color_changes_the_image_and_nothing_else():
    plain, colored = (noisy_batch(5, msgspec.structs.replace(NO_AUGMENTATION, **c)) for c in ({}, COLORFUL))
    changed = [name for name, equal in same(plain, colored).items() if not equal]
    assert changed == ["image"]
    assert colored.image.min() >= 0
    assert colored.image.max() <= 1


@pytest.mark.parametrize("name", list(COLORFUL))
def test_each_color_change_works_alone(name):
    strength = 1.0 if name in ("gray", "blur", "jpeg") else COLORFUL[name]
    plain, colored = (noisy_batch(5, msgspec.structs.replace(NO_AUGMENTATION, **c)) for c in ({}, {name: strength}))
    assert not torch.equal(plain.image, colored.image)


def test_gray_makes_the_three_channels_equal():
    batch = noisy_batch(5, msgspec.structs.replace(NO_AUGMENTATION, gray=1.0))
    assert torch.equal(batch.image[:, 0], batch.image[:, 1])
    assert torch.equal(batch.image[:, 0], batch.image[:, 2])


def test_each_image_gets_its_own_color():
    count = 8
    image = torch.full((count, 32, 32, 3), 100, dtype=torch.uint8)
    config = msgspec.structs.replace(NO_AUGMENTATION, brightness=0.5)
    view = Targets(
        image=image, disparity=torch.ones(count, 32, 32), features={}, attention={}, samples=torch.arange(count)
    )
    batch = augmented(view, 0, 32, config)
    levels = batch.image.mean(dim=(1, 2, 3))
    assert levels.unique().numel() == count
    assert levels.min() >= 100 / 255 * 0.499
    assert levels.max() <= 100 / 255 * 1.501


@pytest.mark.parametrize(
    "wrong",
    [
        {"mirror": 1.5},
        {"rotation_deg": 90},
        {"hue": 0.6},
        {"crop_scale": [0.0, 1.0]},
        {"crop_scale": [0.5, 1.5]},
        {"crop_ratio": [0.0, 1.0]},
        {"flip": 0.5},
        {"jpeg_quality": [0, 90]},
        {"noise": -0.1},
    ],
)
def test_ranges_that_make_no_view_are_refused(wrong):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, AugmentConfig)


@pytest.mark.parametrize(("limit_deg", "replayed"), [(20.0, 8), (5.0, None), (0.0, 0)])
def test_a_turn_beyond_the_limit_sits_out_of_the_feature_terms(limit_deg, replayed):
    batch = batch_of(8, rotation_deg=20.0, replay_deg=limit_deg)
    kept = int((batch.feature_weight > 0).sum())
    assert kept == replayed if replayed is not None else 0 < kept < 8
    assert batch.valid[:, 16:48, 16:48].all()  # the disparity follows any turn


@pytest.mark.parametrize("parts", [2, 4])
def test_the_parts_of_a_batch_are_made_as_the_whole_of_it(parts):
    config = AugmentConfig(rotation_deg=10, cutmix=0.5, noise=0.1, jpeg=0.5, blur=0.5, gray=0.5)
    targets, draws = noise(8), draw(8, config, torch.Generator().manual_seed(1))
    whole = make_batch(targets, draws, size_px=64, config=config)
    each = 8 // parts
    for index, expected in enumerate(whole.split(parts)):
        rows = slice(index * each, (index + 1) * each)
        share = Targets(
            image=targets.image[rows],
            disparity=targets.disparity[rows],
            features={"block12": targets.features["block12"][rows]},
            attention={"block12": targets.attention["block12"][rows]},
            samples=targets.samples[rows],
        )
        part = make_batch(share, draws.rows(rows), size_px=64, config=config)
        assert all(same(part, expected).values())
        assert torch.equal(part.samples, expected.samples)


@pytest.mark.parametrize(
    ("change", "reference"),
    [
        ("brightness", vision.adjust_brightness),
        ("contrast", vision.adjust_contrast),
        ("saturation", vision.adjust_saturation),
    ],
)
def test_a_jitter_is_torchvisions_with_a_factor_for_each_image(change, reference):
    config = msgspec.structs.replace(NO_AUGMENTATION, **{change: 0.4})
    plain, changed = (noisy_batch(2, c).image for c in (NO_AUGMENTATION, config))
    column = ("brightness", "contrast", "saturation").index(change)
    chances = draw(4, config, torch.Generator().manual_seed(2)).color.chances[:, column]
    for ours, image, chance in zip(changed, plain, chances.tolist(), strict=True):
        torch.testing.assert_close(ours, reference(image, 1 + 0.4 * (2 * chance - 1)), atol=1e-6, rtol=0)


def test_cut_mix_covers_a_box_with_the_neighbor_and_asks_nothing_there():
    plain, mixed = noisy_batch(4, NO_AUGMENTATION), noisy_batch(4, msgspec.structs.replace(NO_AUGMENTATION, cutmix=1.0))
    neighbor = plain.image[[1, 0, 3, 2]]
    covered = ~mixed.valid
    assert ((covered.float().mean(dim=(1, 2)) - 0.3).abs() < 0.22).all()
    assert torch.equal(mixed.image, neighbor.where(covered[:, None], plain.image))
    assert torch.equal(mixed.disparity, plain.disparity)
    assert mixed.feature_weight.tolist() == [0, 0, 0, 0]
    for each in covered:  # a box: its rows are all alike
        rows = each[each.any(dim=1)]
        assert (rows == rows[0]).all()


def test_turning_one_change_off_leaves_the_others_as_they_were():
    config = msgspec.structs.replace(NO_AUGMENTATION, mirror=0.5, brightness=0.4, noise=0.1)
    quiet = msgspec.structs.replace(config, noise=0.0)
    one, two = noisy_batch(3, config), noisy_batch(3, quiet)
    assert torch.equal(one.disparity, two.disparity)
    assert 0.01 < (one.image - two.image).std() < 0.1
