"""A student has the shape its config names, answers at the image's size, and wastes no parameter."""

import pytest
import torch

from delta.errors import DeltaError
from delta.student import Student, StudentConfig, build_student

SEED = StudentConfig(encoder="mobilevit_xs", decoder="seed")
FAMILIES = ("mobilevit_xxs", "mobilevitv2_050")


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))


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
    assert len(student.channels) == 5


def test_the_levels_have_strides_2_to_32_and_the_channels_the_student_says(image):
    student = build_student(StudentConfig(width=16)).eval()
    with torch.inference_mode():
        disparity, levels = student.forward_with_features(image)
    shapes = [(level.shape[1], 64 // level.shape[2], 128 // level.shape[3]) for level in levels]
    assert shapes == [(c, stride, stride) for c, stride in zip(student.channels, (2, 4, 8, 16, 32), strict=True)]
    assert disparity.shape == (2, 64, 128)


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
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(levels, seen, strict=True))


def test_every_parameter_of_the_light_student_gets_a_gradient_from_the_disparity(image):
    assert without_gradient(shaken(StudentConfig(width=16)), image) == []


def test_the_seed_leaves_its_last_stage_without_a_gradient(image):
    dead = without_gradient(shaken(SEED), image)
    assert dead
    assert {name.split(".")[1] for name in dead} <= {"stages_4", "final_conv"}


@pytest.mark.parametrize("encoder", ["resnet18", "mobilevit_huge", "", "mobilevitv2"])
def test_an_unknown_encoder_is_an_error_that_lists_the_known(encoder):
    with pytest.raises(DeltaError, match="no MobileViT encoder named") as caught:
        build_student(StudentConfig(encoder=encoder))
    assert repr(encoder) in str(caught.value)
    assert all(name in caught.value.hint for name in ("mobilevit_xs", "mobilevitv2_050", "mobilevitv2_200"))
    assert "resnet18" not in caught.value.hint


def test_two_students_of_one_seed_are_equal_and_of_two_seeds_are_not():
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build_student(StudentConfig(width=16)).parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
