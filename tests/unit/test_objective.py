"""The objective is the weighted sum of the terms that were asked for, and computes no other."""

from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from delta import losses
from delta.batch import Batch
from delta.errors import DeltaError
from delta.objective import LossConfig, Objective, TargetStatistics

CHANNELS = [4, 6, 8, 10, 12]
SIDE_PX, WIDTH = 64, 5
TAPS = ("block03", "block06", "block09", "block12")
DISPARITY_TERMS = {
    "affine_invariant": "affine_invariant",
    "raw": "raw",
    "gradient": "gradient_matching",
    "silog": "silog",
    "sobel": "sobel_l1",
    "mse": "disparity_mse",
}
FEATURE_TERMS = {
    "features": "feature_distance",
    "attention_transfer": "attention_transfer",
    "feature_l1": "feature_l1",
    "attention_l2": "attention_l2",
}
ALL_TERMS = DISPARITY_TERMS | FEATURE_TERMS


def statistics(*taps: str) -> TargetStatistics:
    generator = torch.Generator().manual_seed(9)
    return TargetStatistics(
        disparity_scale=2.0,
        feature_mean={tap: torch.randn(WIDTH, generator=generator) for tap in taps},
        feature_std={tap: torch.rand(WIDTH, generator=generator) + 0.5 for tap in taps},
    )


def objective(*taps: str, **weights: Any) -> Objective:
    torch.manual_seed(1)
    return Objective(LossConfig(**weights), CHANNELS, statistics(*taps))


def inputs(seed: int = 0) -> tuple[Tensor, list[Tensor], Batch]:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    levels = [noise(2, c, SIDE_PX // s, SIDE_PX // s) for c, s in zip(CHANNELS, (2, 4, 8, 16, 32), strict=True)]
    batch = Batch(
        image=noise(2, 3, SIDE_PX, SIDE_PX),
        disparity=noise(2, SIDE_PX, SIDE_PX) + 0.1,
        valid=noise(2, SIDE_PX, SIDE_PX) > 0.1,
        features={tap: noise(2, WIDTH, 4, 4) for tap in TAPS},
        feature_weight=torch.tensor([1.0, 0.0]),
    )
    return (noise(2, SIDE_PX, SIDE_PX) + 0.1).requires_grad_(), levels, batch


def test_more_levels_than_taps_is_an_error_that_names_both_numbers():
    with pytest.raises(DeltaError, match="pairs 4 student levels with taps; the store has 2") as caught:
        objective("block09", "block12", features=1.0, levels=(2, 4, 8, 16))
    assert "loss.levels" in caught.value.hint


def test_levels_do_not_matter_where_no_term_looks_at_features():
    plain = objective(raw=1.0, levels=(2, 4, 8, 16))
    assert plain.taps == []
    assert len(plain.projectors) == 0


@pytest.mark.parametrize("weights", [{"raw": 0.0}, {"features": 1.0, "levels": []}])
def test_an_objective_of_nothing_is_refused(weights):
    with pytest.raises((DeltaError, msgspec.ValidationError), match=r"loss|levels|length"):
        Objective(msgspec.convert(weights, LossConfig), CHANNELS, statistics(*TAPS))


def test_levels_pair_in_order_with_the_deepest_taps():
    paired = objective(*TAPS, features=1.0, levels=(16, 32))
    assert paired.taps == ["block09", "block12"]
    assert [projector.in_channels for projector in paired.projectors] == [10, 12]


def test_the_total_is_the_weighted_sum_of_the_terms():
    weights = {name: 0.1 * index for index, name in enumerate(ALL_TERMS, start=1)}
    terms = objective(*TAPS, **weights)(*inputs())
    assert terms.keys() == ALL_TERMS.keys() | {"total"}
    expected = sum(weights[name] * terms[name].item() for name in ALL_TERMS)
    assert terms["total"].item() == pytest.approx(expected, rel=1e-5)
    assert all(terms[name].item() > 0 for name in ALL_TERMS)


@pytest.mark.parametrize("name", list(ALL_TERMS))
def test_one_term_alone_is_computed_alone(name, monkeypatch):
    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError("a term of weight 0 was computed")

    for other, function in ALL_TERMS.items():
        if other != name:
            monkeypatch.setattr(losses, function, refuse)
    terms = objective(*TAPS, **{name: 2.0})(*inputs())
    assert terms.keys() == {name, "total"}
    assert terms["total"].item() == pytest.approx(2 * terms[name].item())


@pytest.mark.parametrize("name", list(ALL_TERMS))
def test_only_the_four_feature_terms_use_features(name):
    assert LossConfig(**{name: 1.0}).uses_features == (name in FEATURE_TERMS)


def test_without_feature_terms_no_features_are_read():
    disparity, levels, batch = inputs()
    bare = msgspec.structs.replace(batch, features={})
    assert objective(**dict.fromkeys(DISPARITY_TERMS, 1.0))(disparity, levels, bare)["total"].item() > 0
    with pytest.raises(KeyError):  # and with them they would be
        objective(*TAPS, features=1.0)(disparity, levels, bare)


@pytest.mark.parametrize("name", list(DISPARITY_TERMS))
def test_each_disparity_term_is_the_loss_of_its_name_on_the_scaled_target(name):
    disparity, levels, batch = inputs()
    options = {"raw": {"scale": 1.0}, "silog": {"alpha": 0.85}}.get(name, {})
    expected = getattr(losses, DISPARITY_TERMS[name])(disparity, batch.disparity / 2.0, batch.valid, **options)
    terms = objective(**{name: 1.0}, silog_alpha=0.85)(disparity, levels, batch)
    assert terms[name].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_target_is_in_units_of_the_store_or_of_the_image():
    disparity = torch.stack([torch.full((2, 2), 4.0), torch.tensor([[1.0, 2.0], [0.0, 8.0]])])
    assert torch.equal(objective(raw=1.0).target(disparity), disparity / 2)
    scaled = objective(raw=1.0, target="image_max").target(disparity)
    assert scaled.amax(dim=(1, 2)).tolist() == [1, 1]
    assert scaled[1].tolist() == [[0.125, 0.25], [0, 1]]
    assert objective(raw=1.0, target="image_max").target(torch.zeros(1, 2, 2)).tolist() == [[[0, 0], [0, 0]]]


def test_features_are_standardized_unless_the_recipe_wants_them_raw():
    _, levels, batch = inputs()
    means, deviations = (getattr(statistics("block12"), f"feature_{name}")["block12"] for name in ("mean", "std"))
    shifted = batch.features["block12"] * deviations.view(-1, 1, 1) + means.view(-1, 1, 1)
    moved = msgspec.structs.replace(batch, features={"block12": shifted})
    plain = {"feature_l1": 1.0, "levels": (32,)}
    standardized, raw = objective("block12", **plain), objective("block12", **plain, standardize=False)
    disparity = inputs()[0]
    ours, theirs = standardized(disparity, levels, moved), raw(disparity, levels, batch)
    assert ours["feature_l1"].item() == pytest.approx(theirs["feature_l1"].item(), rel=1e-5)
    assert raw(disparity, levels, moved)["feature_l1"].item() != pytest.approx(theirs["feature_l1"].item(), rel=1e-2)


def test_a_mirrored_sample_teaches_no_features():
    disparity, levels, batch = inputs()
    features = {tap: value.clone() for tap, value in batch.features.items()}
    for value in features.values():
        value[1] = 1e6  # of the sample whose weight is 0
    changed = msgspec.structs.replace(batch, features=features)
    matching = objective(*TAPS, **dict.fromkeys(FEATURE_TERMS, 1.0))
    assert torch.equal(matching(disparity, levels, changed)["total"], matching(disparity, levels, batch)["total"])
    none = msgspec.structs.replace(batch, feature_weight=torch.zeros(2))
    assert matching(disparity, levels, none)["total"].item() == 0


@pytest.mark.parametrize("trained", [True, False])
def test_projectors_learn_only_where_they_are_trained_but_always_pass_gradients_on(trained):
    disparity, levels, batch = inputs()
    levels = [level.requires_grad_() for level in levels]
    matching = objective(*TAPS, features=1.0, levels=(16, 32), train_projectors=trained)
    matching(disparity, levels, batch)["total"].backward()
    gradients = [parameter.grad for parameter in matching.projectors.parameters()]
    assert len(gradients) == 4
    if trained:
        assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    else:
        assert gradients == [None] * 4
    reached = [level.grad is not None and bool(level.grad.abs().sum() > 0) for level in levels]
    assert reached == [False, False, False, True, True]


def test_the_statistics_are_no_part_of_the_state():
    assert {name.split(".")[0] for name in objective(*TAPS, features=1.0).state_dict()} == {"projectors"}


@pytest.mark.parametrize("wrong", [{"raw": -1.0}, {"levels": [64]}, {"target": "metres"}, {"silogg": 1.0}])
def test_a_weight_or_name_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, LossConfig)
