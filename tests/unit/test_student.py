"""A student has the shape its config names, answers at the image's size, and wastes no parameter."""

from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import _builder
from torch.utils.flop_counter import FlopCounterMode

from delta import hub
from delta.checkpoint import StudentCard, save_student
from delta.encoder import HubUnreachable, load_encoder_weights
from delta.errors import DeltaError
from delta.student import Student, StudentConfig, build_student

SEED = StudentConfig(encoder="mobilevit_xs", decoder="seed")
FAMILIES = ("mobilevit_xxs", "mobilevitv2_050", "mobilenetv4_conv_small_050", "tf_efficientnet_lite0")


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))


LITE = StudentConfig(encoder="tf_efficientnet_lite0", width=16, context=(16, 32))
LITE_XS = StudentConfig(encoder="tf_efficientnet_lite0", width=16, context=(16,), stage32="mobilevit")


def shaken(config: StudentConfig) -> Student:
    """A student whose weights are all away from zero: timm starts some norms there, which hides what is behind them."""
    torch.manual_seed(0)
    student = build_student(config)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return student.train()


def without_gradient(student: Student, image: torch.Tensor) -> list[str]:
    student(image).square().mean().backward()
    return [
        name
        for name, parameter in student.named_parameters()
        # A bias under a softmax or a norm may rightly get zero; a weight may not.
        if parameter.grad is None or (parameter.ndim > 1 and not parameter.grad.abs().max() > 0)
    ]


def test_the_seed_has_the_number_of_parameters_of_its_report():
    assert sum(parameter.numel() for parameter in build_student(SEED).parameters()) == 3_373_265


def test_the_light_student_is_a_third_of_the_seed():
    light = sum(parameter.numel() for parameter in build_student(StudentConfig()).parameters())
    assert light < 3_373_265 / 2.5


@pytest.mark.parametrize("encoder", FAMILIES)
def test_each_encoder_family_builds_and_answers_at_the_size_of_the_image(encoder, image):
    student = build_student(StudentConfig(encoder=encoder, width=16)).eval()
    with torch.inference_mode():
        assert student(image).shape == (2, 64, 128)
        assert student(image[:1].transpose(2, 3)).shape == (1, 128, 64)
    assert list(student.channels) == [2, 4, 8, 16, 32]


def test_the_levels_have_strides_2_to_32_and_the_channels_the_student_says(image):
    student = build_student(StudentConfig(width=16)).eval()
    with torch.inference_mode():
        disparity, levels = student.forward_with_features(image)
    shapes = [(level.shape[1], 64 // level.shape[2], 128 // level.shape[3]) for level in levels.values()]
    assert list(levels) == [2, 4, 8, 16, 32]
    assert shapes == [(channels, stride, stride) for stride, channels in student.channels.items()]
    assert disparity.shape == (2, 64, 128)


@pytest.mark.parametrize("config", [LITE, LITE_XS])
def test_mobilevit_blocks_add_nothing_before_training_and_let_every_pixel_see_the_image_after(config, image):
    student = build_student(config).eval()
    plain = build_student(msgspec.structs.replace(LITE, context=())).eval()
    plain.load_state_dict(student.state_dict() if config is LITE else plain.state_dict(), strict=False)
    if config is LITE:
        assert torch.equal(student(image), plain(image))
    levels = shaken(config).eval().forward_with_features
    other = image.clone()
    other[:, :, :2, :2] += 0.5
    moved = (levels(image)[1][32] - levels(other)[1][32]).abs().amax(dim=(0, 1))
    assert (moved > 0).all()


def test_an_encoder_cut_at_stride_16_runs_and_keeps_nothing_behind_it(image):
    whole, cut = build_student(LITE), build_student(LITE_XS)
    parameters = [sum(p.numel() for p in student.encoder.parameters()) for student in (whole, cut)]
    assert parameters[1] < 0.3 * parameters[0]
    assert list(cut.channels) == [2, 4, 8, 16, 32]
    assert {key: cut.encoder.state_dict()[key].shape for key in cut.encoder.state_dict()}.items() <= {
        key: value.shape for key, value in whole.encoder.state_dict().items()
    }.items()


def test_blocks_on_a_level_that_the_encoder_lacks_are_refused():
    with pytest.raises(DeltaError, match="no level of stride 8 for a MobileViT block"):
        build_student(StudentConfig(encoder="vit_tiny_patch16_224", context=(8,)))


def test_the_light_decoder_is_as_wide_as_asked():
    narrow, wide = (build_student(StudentConfig(width=width)).decoder for width in (16, 32))
    assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in wide.parameters())


def test_the_seed_answers_between_0_and_1_and_the_light_student_has_no_such_bound(image):
    seed, light = shaken(SEED), shaken(StudentConfig(width=16))
    with torch.no_grad():
        light.decoder.head[-1].bias.fill_(7.0)
        bounded, free = seed(image), light(image)
    assert bounded.min() > 0
    assert bounded.max() < 1
    assert free.max() > 1


def test_the_encoder_gets_pixels_as_it_was_trained_on_them(image):
    student = build_student(StudentConfig(width=16)).eval()
    assert student.mean.flatten().tolist() == [0, 0, 0]  # MobileViT's: not ImageNet's
    assert student.std.flatten().tolist() == [1, 1, 1]
    with torch.inference_mode():
        levels = student.encoder(image)
        seen = student.forward_with_features(image)[1]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(levels, seen.values(), strict=True))


SHAPES = [{"encoder": encoder} for encoder in FAMILIES] + [
    {"fusion": "concat"},
    {"head": "stride1"},
    {"head": "stride4"},
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(shape.values()))
def test_every_parameter_of_the_light_student_gets_a_gradient_from_the_disparity(image, shape):
    assert without_gradient(shaken(StudentConfig(width=16, **shape)), image) == []


def gmac_at_384(config: StudentConfig) -> float:
    """Multiplications of convolutions and matrix products, as torch counts them."""
    student = build_student(config).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        student(torch.zeros(1, 3, 384, 384))
    return counter.get_total_flops() / 2e9


def test_the_default_keeps_its_budget_and_the_seed_is_as_costly_as_reported():
    assert gmac_at_384(StudentConfig()) <= 4.8
    assert gmac_at_384(SEED) == pytest.approx(15.07, rel=0.02)


@pytest.mark.parametrize(("head", "cheaper"), [("stride4", True), ("stride1", False)])
def test_the_head_says_at_which_stride_it_predicts(image, head, cheaper):
    at_two, other = (StudentConfig(width=16, head=h) for h in ("stride2", head))
    assert (gmac_at_384(other) < gmac_at_384(at_two)) == cheaper
    assert build_student(other)(image).shape == (2, 64, 128)
    assert build_student(other).state_dict().keys() == build_student(at_two).state_dict().keys()


def test_fusion_by_concatenation_mixes_where_addition_only_adds():
    added, mixed = (build_student(StudentConfig(width=16, fusion=f)).decoder.state_dict() for f in ("add", "concat"))
    assert {key.split(".")[0] for key in mixed.keys() - added.keys()} == {"mix"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoder",
    [
        "mobilevit_xs",
        "mobilevit_s",
        "mobilevitv2_075",
        "mobilevitv2_100",
        "mobilenetv4_conv_small",
        "mobilenetv4_conv_medium",
        "mobilenetv4_hybrid_medium",
        "efficientnet_lite0",
        "resnet18",
        "convnext_atto",
        "fastvit_t8",
        "edgenext_xx_small",
        "vgg11",
    ],
)
def test_other_encoders_of_timm_build_learn_and_answer(encoder, image):
    student = build_student(StudentConfig(encoder=encoder))
    student(image).square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.encoder.parameters())


def test_the_seed_leaves_its_last_stage_without_a_gradient(image):
    dead = without_gradient(shaken(SEED), image)
    assert dead
    assert {name.split(".")[1] for name in dead} <= {"stages_4", "final_conv"}


@pytest.mark.parametrize(
    ("encoder", "hint"),
    [("mobilevit_huge", "mobilevit_s"), ("mobilevitv2_50", "mobilevitv2_050"), ("", "try one of mobilevit")],
)
def test_an_unknown_encoder_is_an_error_that_names_the_nearest(encoder, hint):
    with pytest.raises(DeltaError, match="timm has no encoder named") as caught:
        build_student(StudentConfig(encoder=encoder))
    assert repr(encoder) in str(caught.value)
    assert hint in caught.value.hint


def test_an_encoder_without_a_pyramid_is_refused_with_the_strides_it_has():
    with pytest.raises(DeltaError, match=r"light decoder needs levels of strides 4, 8, 16, 32; vit_tiny\S+ has 16"):
        build_student(StudentConfig(encoder="vit_tiny_patch16_224"))


def test_an_encoder_without_stride_2_cannot_have_the_decoder_of_the_seed():
    with pytest.raises(
        DeltaError, match="the seed decoder needs levels of strides 2, 4, 8, 16; convnext_atto has 4, 8"
    ):
        build_student(StudentConfig(encoder="convnext_atto", decoder="seed"))


# Where an encoder starts.


def timm_file(folder: Path, encoder: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file of timm's whole model, and what its features compute."""
    torch.manual_seed(5)
    whole = timm.create_model(encoder)
    path = folder / f"{encoder}.safetensors"
    save_file(whole.state_dict(), path)
    return path, whole.state_dict()


@pytest.mark.parametrize("encoder", ["mobilevitv2_050", "mobilenetv4_conv_small_050"])
def test_a_local_file_of_timms_model_starts_the_encoder(tmp_path, encoder, image):
    path, whole = timm_file(tmp_path, encoder)
    student = build_student(StudentConfig(encoder=encoder, width=16))
    first = next(iter(student.encoder.state_dict()))
    assert not torch.equal(student.encoder.state_dict()[first], whole[first])
    load_encoder_weights(student.encoder, encoder, str(path))
    own = {key.replace(".", "_"): value for key, value in student.encoder.state_dict().items()}
    common = {key.replace(".", "_"): value for key, value in whole.items() if key.replace(".", "_") in own}
    assert len(common) == len(own)
    assert all(torch.equal(own[key], value) for key, value in common.items())


def test_a_delta_student_starts_the_encoder_of_another_with_a_different_decoder(tmp_path):
    donor, taker = build_student(StudentConfig(width=16)), build_student(StudentConfig(width=32))
    card = StudentCard(config=donor.config, size_px=64, teacher="t", fingerprint="ab")
    load_encoder_weights(taker.encoder, "mobilevitv2_050", str(save_student(tmp_path / "s.safetensors", donor, card)))
    pairs = zip(donor.encoder.parameters(), taker.encoder.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_a_file_of_another_model_is_refused_and_changes_nothing(tmp_path):
    path, _ = timm_file(tmp_path, "mobilevitv2_050")
    student = build_student(StudentConfig(encoder="mobilevitv2_075", width=16))
    before = next(student.encoder.parameters()).clone()
    with pytest.raises(DeltaError, match=r"does not hold the weights of mobilevitv2_075: \d+ of \d+ tensors"):
        load_encoder_weights(student.encoder, "mobilevitv2_075", str(path))
    assert torch.equal(next(student.encoder.parameters()), before)


@pytest.mark.parametrize(("content", "reason"), [(None, "there is no such file"), (b"no tensors", "rror|eader")])
def test_a_file_that_is_none_is_refused(tmp_path, content, reason):
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DeltaError, match=f"cannot be read: .*{reason}"):
        load_encoder_weights(build_student(StudentConfig(width=16)).encoder, "mobilevitv2_050", str(path))


def test_imagenet_weights_are_those_that_timm_names_on_the_hub(tmp_path, monkeypatch):
    _, whole = timm_file(tmp_path, "mobilevitv2_050")
    asked: list[str] = []
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda name, *_, **__: asked.append(name) or dict(whole))
    monkeypatch.setattr(hub, "without_waiting", nullcontext)
    student = build_student(StudentConfig(width=16))
    load_encoder_weights(student.encoder, "mobilevitv2_050", "imagenet")
    assert asked == ["timm/mobilevitv2_050.cvnets_in1k"]
    assert torch.equal(student.encoder.state_dict()["stem.conv.weight"], whole["stem.conv.weight"])


def test_without_the_hub_imagenet_weights_are_refused_in_a_sentence(monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise OSError("no line")

    monkeypatch.setattr(_builder, "load_state_dict_from_hf", offline)
    monkeypatch.setattr(hub, "without_waiting", nullcontext)
    with pytest.raises(HubUnreachable, match="the hub cannot be reached for the ImageNet weights of mobilevitv2_050"):
        load_encoder_weights(build_student(StudentConfig(width=16)).encoder, "mobilevitv2_050", "imagenet")


def test_an_encoder_that_timm_has_no_weights_for_is_refused():
    with pytest.raises(DeltaError, match="timm has no ImageNet weights for mobilenetv4_conv_small_035"):
        load_encoder_weights(torch.nn.Identity(), "mobilenetv4_conv_small_035", "imagenet")


def test_two_students_of_one_seed_are_equal_and_of_two_seeds_are_not():
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build_student(StudentConfig(width=16)).parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
