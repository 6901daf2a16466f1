"""What each loss must not see, for any small maps: ties, constants and masks of every shape among them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from delta import losses

SHAPE = (2, 5, 6)
# float64 on values of about 1 to 100: what remains is the rounding of a shift of at most 100.
CLOSE: dict[str, Any] = {"rel": 1e-8, "abs": 1e-9}

# Integers, since ties at the median and at the trimming threshold are where a selection goes wrong.
disparities = arrays(np.float64, SHAPE, elements=st.integers(1, 12)).map(torch.from_numpy)
masks = arrays(np.bool_, SHAPE).map(torch.from_numpy)
scales = st.floats(0.01, 100)
shifts = st.floats(-100, 100)
anything = arrays(np.float64, SHAPE, elements=st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -1e300, 7.0]))

normalizing = pytest.mark.parametrize("loss", [losses.affine_invariant, losses.hierarchical, losses.gradient_matching])
few = settings(max_examples=40, deadline=None)

Loss = Callable[..., Tensor]


@normalizing
@few
@given(student=disparities, teacher=disparities, valid=masks, scale=scales, shift=shifts)
def test_scale_and_shift_of_either_map_are_invisible(
    loss: Loss, student: Tensor, teacher: Tensor, valid: Tensor, scale: float, shift: float
) -> None:
    expected = pytest.approx(loss(student, teacher, valid).item(), **CLOSE)
    assert loss(scale * student + shift, teacher, valid).item() == expected
    assert loss(student, scale * teacher + shift, valid).item() == expected


@normalizing
@few
@given(student=disparities, scale=scales, shift=shifts)
def test_an_affine_image_of_the_teacher_is_perfect_and_its_negative_is_not(
    loss: Loss, student: Tensor, scale: float, shift: float
) -> None:
    assert loss(scale * student + shift, student).item() == pytest.approx(0, abs=1e-9)
    edge = torch.arange(30, dtype=torch.float64).reshape(1, 5, 6)
    assert loss(-scale * edge + shift, edge) > 0.1


@normalizing
@few
@given(student=disparities, teacher=disparities, valid=masks)
def test_student_and_teacher_may_be_swapped_or_mirrored_together(
    loss: Loss, student: Tensor, teacher: Tensor, valid: Tensor
) -> None:
    expected = loss(student, teacher, valid).item()
    assert expected >= 0
    if loss is not losses.hierarchical:  # whose segments are the teacher's
        assert loss(teacher, student, valid).item() == pytest.approx(expected, **CLOSE)
    if loss is losses.affine_invariant:  # the coarse grids of gradient_matching start at the left
        assert loss(student.flip(2), teacher.flip(2), valid.flip(2)).item() == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize(
    "loss",
    [
        losses.affine_invariant,
        losses.hierarchical,
        losses.gradient_matching,
        losses.silog,
        losses.sobel_l1,
        losses.disparity_mse,
        lambda *maps: losses.raw(*maps, scale=2.0),
    ],
    ids=["affine_invariant", "hierarchical", "gradient_matching", "silog", "sobel_l1", "disparity_mse", "raw"],
)
@few
@given(student=disparities, teacher=disparities, valid=masks, poison=anything.map(torch.from_numpy))
def test_nothing_under_the_mask_reaches_value_or_gradient(
    loss: Loss, student: Tensor, teacher: Tensor, valid: Tensor, poison: Tensor
) -> None:
    def value_and_gradient(student: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
        student = student.clone().requires_grad_()
        value = loss(student, teacher, valid)
        (gradient,) = torch.autograd.grad(value, student)
        return value.item(), gradient

    expected, gradient = value_and_gradient(student, teacher)
    poisoned, poisoned_gradient = value_and_gradient(student.where(valid, poison), teacher.where(valid, poison))
    assert np.isfinite(expected)
    assert poisoned == expected
    assert gradient.isfinite().all()
    assert (gradient[~valid] == 0).all()
    assert torch.equal(poisoned_gradient, gradient)


@few
@given(student=disparities, teacher=disparities, valid=masks, less=st.floats(0, 0.9), more=st.floats(0, 0.9))
def test_trimming_more_never_costs_more(
    student: Tensor, teacher: Tensor, valid: Tensor, less: float, more: float
) -> None:
    less, more = sorted((less, more))
    trimmed, kept = (losses.affine_invariant(student, teacher, valid, trim=trim).item() for trim in (more, less))
    assert trimmed <= kept + 1e-12


@few
@given(student=disparities, teacher=disparities, valid=masks, scale=scales)
def test_silog_forgives_one_scale_for_the_batch_only_at_alpha_1(
    student: Tensor, teacher: Tensor, valid: Tensor, scale: float
) -> None:
    expected = pytest.approx(losses.silog(student, teacher, valid).item(), **CLOSE)
    assert losses.silog(scale * student, teacher, valid).item() == expected
    assert losses.silog(student, scale * teacher, valid).item() == expected
    perfect = losses.silog(scale * teacher, teacher, valid, alpha=0.5).item()
    assert perfect == pytest.approx(0.5 * np.log(scale) ** 2 * bool(valid.any()), **CLOSE)


@few
@given(teacher=disparities, scale=st.floats(2, 100))
def test_silog_does_not_forgive_one_scale_for_each_image(teacher: Tensor, scale: float) -> None:
    student = teacher * torch.tensor([1.0, scale], dtype=torch.float64)[:, None, None]
    # Half of the log ratios are 0 and half log(scale): their variance, where a per-image loss would be 0.
    assert losses.silog(student, teacher).item() == pytest.approx(np.log(scale) ** 2 / 4, rel=1e-8)
    assert losses.affine_invariant(student, teacher).item() == pytest.approx(0, abs=1e-9)


@few
@given(student=disparities, teacher=disparities, shift=shifts)
def test_sobel_l1_sees_neither_a_shift_nor_a_sign(student: Tensor, teacher: Tensor, shift: float) -> None:
    expected = losses.sobel_l1(student, teacher).item()
    assert losses.sobel_l1(shift - student, teacher).item() == pytest.approx(expected, **CLOSE)


@few
@given(
    features=arrays(np.float64, (2, 3, 2, 2), elements=st.integers(-4, 4)).map(torch.from_numpy),
    scale=st.floats(0.1, 10),
    weight=arrays(np.float64, 2, elements=st.floats(0, 1)).map(torch.from_numpy),
)
def test_feature_terms_are_zero_only_at_the_target_and_stay_in_their_range(
    features: Tensor, scale: float, weight: Tensor
) -> None:
    assert losses.feature_l1([features], [features], weight) == 0
    assert losses.attention_l2([features], [-features], weight) == 0
    assert losses.attention_transfer(-scale * features, features, weight).item() == pytest.approx(0, abs=1e-9)
    other = torch.ones_like(features)
    assert 0 <= losses.attention_transfer(features, other, weight).item() <= 2 + 1e-9
    nonzero = features + 5  # a direction everywhere
    assert losses.feature_distance(nonzero, nonzero, weight).item() == pytest.approx(0, abs=1e-9)
    assert losses.feature_distance(-nonzero, nonzero).item() > 1.8
