"""Agreement with the teacher is what numpy's least squares and correlation say, image by image."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from delta.errors import DeltaError
from delta.metrics import Agreement, agreement, agreement_per_image, align, mean_agreement

# Integers of which 0 is sky; float64 leaves only the order of sums.
disparities = arrays(np.float64, (2, 4, 5), elements=st.integers(0, 9)).map(torch.from_numpy)
masks = arrays(np.bool_, (2, 4, 5)).map(torch.from_numpy)


def maps(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A teacher with a sky of 0 to 0.5 % and a student that sees it through noise, at another scale and shift."""
    rng = np.random.default_rng(seed)
    teacher = rng.uniform(0.05, 4, (3, 12, 13))
    teacher[:, :2] = rng.uniform(0, 0.005, (3, 2, 13)) * 4
    teacher[:, 5, 5] = 4
    student = 0.3 * teacher - 2 + rng.normal(0, 0.2, teacher.shape)
    return torch.from_numpy(student), torch.from_numpy(teacher), torch.from_numpy(rng.random(teacher.shape) > 0.2)


def reference(student: np.ndarray, teacher: np.ndarray, valid: np.ndarray) -> tuple[float, float, float, int]:
    """Pearson r, delta1, AbsRel and the number of pixels of one image."""
    floor = 0.01 * teacher[valid].max()
    pairs = [(s, t) for s, t, ok in zip(student.flat, teacher.flat, valid.flat, strict=True) if ok and t > floor]
    s, t = np.array(pairs).T
    scale, shift = np.linalg.lstsq(np.stack([s, np.ones_like(s)], axis=1), t, rcond=None)[0]
    a = np.array([max(scale * value + shift, floor) for value in s])
    ratios = np.array([max(x / y, y / x) for x, y in zip(a, t, strict=True)])
    return float(np.corrcoef(s, t)[0, 1]), float((ratios < 1.25).mean()), float((abs(a - t) / t).mean()), len(pairs)


@settings(max_examples=60, deadline=None)
@given(student=disparities, teacher=disparities, valid=masks, scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_an_affine_map_of_the_student_is_forgiven(
    student: Tensor, teacher: Tensor, valid: Tensor, scale: float, shift: float
) -> None:
    before = agreement_per_image(student, teacher, valid)
    after = agreement_per_image(scale * student + shift, teacher, valid)
    inverted = agreement_per_image(shift - scale * student, teacher, valid)
    close = {"rtol": 1e-8, "atol": 1e-8, "equal_nan": True}
    torch.testing.assert_close(after.pearson_r, before.pearson_r, **close)
    torch.testing.assert_close(inverted.pearson_r, -before.pearson_r, **close)
    for other in (after, inverted):
        torch.testing.assert_close(other.abs_rel, before.abs_rel, **close)
        assert torch.equal(other.pixels, before.pixels)


@settings(max_examples=60, deadline=None)
@given(student=disparities, teacher=disparities, valid=masks)
def test_every_number_is_in_its_range_and_nan_only_without_pixels(
    student: Tensor, teacher: Tensor, valid: Tensor
) -> None:
    found = agreement_per_image(student, teacher, valid)
    used = found.pixels > 0
    for values, low, high in ((found.pearson_r, -1, 1), (found.delta1, 0, 1), (found.abs_rel, 0, np.inf)):
        assert torch.equal(values.isnan(), ~used)
        assert ((values[used] >= low) & (values[used] <= high)).all()


@settings(max_examples=60, deadline=None)
@given(student=disparities, teacher=disparities, valid=masks, poison=st.sampled_from([np.nan, np.inf, -1e300]))
def test_nothing_under_the_mask_is_read(student: Tensor, teacher: Tensor, valid: Tensor, poison: float) -> None:
    assume(((teacher > 0) & valid).any())
    expected = agreement(student, teacher, valid)
    assert agreement(student.where(valid, poison), teacher.where(valid, poison), valid) == expected


@pytest.mark.parametrize("masked", [True, False])
def test_each_image_is_measured_as_the_reference_does(masked: bool) -> None:
    student, teacher, valid = maps()
    valid = valid if masked else torch.ones_like(valid)
    found = agreement_per_image(student, teacher, valid if masked else None)
    expected = np.array(
        [reference(*image) for image in zip(student.numpy(), teacher.numpy(), valid.numpy(), strict=True)]
    )
    measured = torch.stack([found.pearson_r, found.delta1, found.abs_rel, found.pixels.double()], dim=1)
    np.testing.assert_allclose(measured.numpy(), expected, rtol=1e-10)
    assert 0.1 < expected[:, 1].min() < expected[:, 1].max() < 1
    mean = agreement(student, teacher, valid if masked else None)
    assert mean.n == 3
    np.testing.assert_allclose([mean.pearson_r, mean.delta1, mean.abs_rel], expected[:, :3].mean(axis=0), rtol=1e-10)


def test_scale_and_shift_are_those_of_least_squares() -> None:
    prediction, target, valid = maps()
    scale, shift = align(prediction, target, valid)
    for i in range(3):
        x, y = prediction[i][valid[i]].numpy(), target[i][valid[i]].numpy()
        np.testing.assert_allclose([scale[i], shift[i]], np.polyfit(x, y, 1), rtol=1e-10)
    assert scale.dtype == shift.dtype == torch.float64


def test_a_constant_prediction_is_aligned_to_the_mean_and_no_pixels_to_nothing() -> None:
    prediction, target, valid = maps()
    prediction[0] = 0.1
    valid[1] = False
    scale, shift = align(prediction, target, valid)
    assert scale[:2].tolist() == [0, 0]
    assert shift[0].item() == pytest.approx(target[0][valid[0]].mean().item(), rel=1e-12)
    assert shift[1] == 0


@pytest.mark.parametrize("level", [0.0, 0.1, -3e5])
def test_a_constant_student_has_no_correlation(level: float) -> None:
    _, teacher, _ = maps()
    found = agreement_per_image(torch.full_like(teacher, level), teacher)
    assert found.pearson_r.tolist() == [0, 0, 0]
    assert found.abs_rel.isfinite().all()


def test_a_constant_teacher_is_met_exactly_and_correlates_with_nothing() -> None:
    student, teacher, _ = maps()
    found = agreement(student, torch.full_like(teacher, 0.7))
    assert found.pearson_r == 0
    assert found.delta1 == 1
    assert found.abs_rel == pytest.approx(0, abs=1e-12)


def test_a_perfect_student_agrees_perfectly() -> None:
    _, teacher, _ = maps()
    found = agreement((7 * teacher - 3).float(), teacher.float())
    assert found.pearson_r == pytest.approx(1, abs=1e-9)  # the student was rounded to float32
    assert found.delta1 == 1
    assert found.abs_rel == pytest.approx(0, abs=1e-5)


def test_the_sky_is_left_out() -> None:
    student, teacher, _ = maps()
    expected = agreement(student, teacher)
    student[:, :2] = 1e6
    assert agreement(student, teacher) == expected


def test_an_aligned_disparity_below_the_floor_is_raised_to_it() -> None:
    teacher = torch.tensor([[[1.0, 1.0, 1.0, 1.0, 100.0, 40.0]]], dtype=torch.float64) + 0.5
    student = torch.tensor([[[1.0, 0.0, 0.0, 0.0, 9.0, 9.0]]], dtype=torch.float64)
    scale, shift = align(student, teacher)
    assert shift.item() < 0.01 * teacher.max().item()
    found = reference(student[0].numpy(), teacher[0].numpy(), np.ones((1, 6), dtype=bool))
    assert agreement(student, teacher).abs_rel == pytest.approx(found[2], rel=1e-12)
    assert scale.item() > 0


def test_an_image_without_pixels_is_counted_out_and_a_batch_without_any_is_refused() -> None:
    student, teacher, valid = maps()
    teacher[1] = 0
    valid[2] = False
    found = agreement(student, teacher, valid)
    assert found == agreement(student[:1], teacher[:1], valid[:1])
    assert found.n == 1
    with pytest.raises(DeltaError, match="none of 3 images has a pixel to compare") as caught:
        agreement(student, torch.zeros_like(teacher))
    assert "check the cache and the mask" in caught.value.hint


def test_batches_add_up_to_the_whole() -> None:
    student, teacher, valid = maps()
    parts = [agreement_per_image(student[i:j], teacher[i:j], valid[i:j]) for i, j in ((0, 1), (1, 3))]
    whole = agreement(student, teacher, valid)
    assert mean_agreement(parts) == whole
    assert isinstance(whole, Agreement)
    many = agreement(*(z.repeat(7, 1, 1) for z in (student, teacher, valid)))
    assert many.n == 21
    assert [many.pearson_r, many.delta1, many.abs_rel] == pytest.approx(
        [whole.pearson_r, whole.delta1, whole.abs_rel], rel=1e-12
    )


def test_half_precision_maps_are_measured_in_float64() -> None:
    student, teacher, valid = maps()
    halves = agreement(student.bfloat16(), teacher.bfloat16(), valid)
    assert halves == agreement(student.bfloat16().double(), teacher.bfloat16().double(), valid)
