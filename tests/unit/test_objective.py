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

CHANNELS = {2: 4, 4: 6, 8: 8, 16: 10, 32: 12}
SIDE_PX, WIDTH, HEADS = 64, 5, 3
TAPS = ("block03", "block06", "block09", "block12")
DISPARITY_TERMS = {
    "affine_invariant": "affine_invariant",
    "hierarchical": "hierarchical",
    "raw": "raw",
    "gradient": "gradient_matching",
    "silog": "silog",
    "sobel": "sobel_l1",
    "mse": "disparity_mse",
}
FEATURE_TERMS = {
    "features": "feature_distance",
    "relational": "relational",
    "attention_transfer": "attention_transfer",
    "feature_l1": "feature_l1",
    "attention_l2": "attention_l2",
}
ALL_TERMS = DISPARITY_TERMS | FEATURE_TERMS | {"cls_attention": "cls_attention"}


def statistics(*taps: str) -> TargetStatistics:
    generator = torch.Generator().manual_seed(9)
    return TargetStatistics(
        disparity_scale=2.0,
        feature_mean={tap: torch.randn(WIDTH, generator=generator) for tap in taps},
        feature_std={tap: torch.rand(WIDTH, generator=generator) + 0.5 for tap in taps},
        heads=dict.fromkeys(taps, HEADS),
    )


def objective(*taps: str, **weights: Any) -> Objective:
    torch.manual_seed(1)
    return Objective(LossConfig(**weights), CHANNELS, statistics(*taps))


def inputs(seed: int = 0) -> tuple[Tensor, dict[int, Tensor], Batch]:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    levels = {s: noise(2, c, SIDE_PX // s, SIDE_PX // s) for s, c in CHANNELS.items()}
    batch = Batch(
        image=noise(2, 3, SIDE_PX, SIDE_PX),
        disparity=noise(2, SIDE_PX, SIDE_PX) + 0.1,
        valid=noise(2, SIDE_PX, SIDE_PX) > 0.1,
        features={tap: noise(2, WIDTH, 4, 4) for tap in TAPS},
        attention={tap: noise(2, HEADS, 4, 4) for tap in TAPS},
        feature_weight=torch.tensor([2.0, 0.0]),
        samples=torch.arange(2),
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
def test_only_the_terms_that_look_at_features_or_attention_have_them_read(name):
    assert LossConfig(**{name: 1.0}).uses_features == (name in FEATURE_TERMS)
    assert LossConfig(**{name: 1.0}).uses_attention == (name == "cls_attention")
    arrays = objective(*TAPS, **{name: 1.0}).arrays
    kind = "features" if name in FEATURE_TERMS else "attention"
    assert arrays == ([] if name in DISPARITY_TERMS else [f"{kind}/block09", f"{kind}/block12"])


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
    attention = {tap: value.index_fill(0, torch.tensor([1]), 7.0) for tap, value in batch.attention.items()}
    changed = msgspec.structs.replace(batch, features=features, attention=attention)
    matching = objective(*TAPS, **dict.fromkeys([*FEATURE_TERMS, "cls_attention"], 1.0))
    assert torch.equal(matching(disparity, levels, changed)["total"], matching(disparity, levels, batch)["total"])
    none = msgspec.structs.replace(batch, feature_weight=torch.zeros(2))
    assert matching(disparity, levels, none)["total"].item() == 0


@pytest.mark.parametrize("trained", [True, False])
def test_projectors_learn_only_where_they_are_trained_but_always_pass_gradients_on(trained):
    disparity, levels, batch = inputs()
    levels = {stride: level.requires_grad_() for stride, level in levels.items()}
    matching = objective(*TAPS, features=1.0, levels=(16, 32), train_projectors=trained)
    matching(disparity, levels, batch)["total"].backward()
    gradients = [parameter.grad for parameter in matching.projectors.parameters()]
    assert len(gradients) == 4
    if trained:
        assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    else:
        assert gradients == [None] * 4
    reached = [level.grad is not None and bool(level.grad.abs().sum() > 0) for level in levels.values()]
    assert reached == [False, False, False, True, True]


def test_the_relations_of_the_student_are_those_of_its_own_levels():
    disparity, levels, batch = inputs()
    matching = objective(*TAPS, relational=1.0)
    assert len(matching.projectors) == 0
    expected = [
        losses.relational(torch.nn.functional.avg_pool2d(levels[16], 1), matching._teacher_features("block09", batch)),
        losses.relational(
            torch.nn.functional.interpolate(levels[32], size=(4, 4), mode="bilinear"),
            matching._teacher_features("block12", batch),
        ),
    ]
    even = msgspec.structs.replace(batch, feature_weight=torch.ones(2))
    assert matching(disparity, levels, even)["relational"].item() == pytest.approx(
        sum(map(float, expected)) / 2, rel=1e-5
    )


def test_the_attention_projectors_learn():
    disparity, levels, batch = inputs()
    matching = objective(*TAPS, cls_attention=0.1)
    matching(disparity, levels, batch)["total"].backward()
    assert [projector.out_channels for projector in matching.attention_projectors] == [HEADS, HEADS]
    assert all(projector.weight.grad.abs().sum() > 0 for projector in matching.attention_projectors)


def test_a_store_without_attention_is_refused_by_the_term_that_needs_it():
    bare = msgspec.structs.replace(statistics(*TAPS), heads={})
    with pytest.raises(DeltaError, match="pairs 2 student levels with taps of attention; the store has 0"):
        Objective(LossConfig(cls_attention=0.1), CHANNELS, bare)


def test_a_level_that_the_student_lacks_is_refused_by_its_stride():
    channels = {stride: width for stride, width in CHANNELS.items() if stride > 2}
    with pytest.raises(DeltaError, match="the student has no level of stride 2, which") as caught:
        Objective(LossConfig(features=1.0, levels=(2, 4)), channels, statistics(*TAPS))
    assert "4, 8, 16, 32" in caught.value.hint


def test_the_statistics_are_no_part_of_the_state():
    assert {name.split(".")[0] for name in objective(*TAPS, features=1.0).state_dict()} == {"projectors"}


@pytest.mark.parametrize("wrong", [{"raw": -1.0}, {"levels": [64]}, {"target": "metres"}, {"silogg": 1.0}])
def test_a_weight_or_name_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, LossConfig)
