"""Each loss is its formula, written here once more with loops over images in float64 numpy, and never NaN."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from delta import losses

Loss = Callable[..., Tensor]

# Exact up to the order of sums in float64, and in float32.
EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
SINGLE: dict[str, Any] = {"rtol": 2e-5, "atol": 1e-6}

DISPARITY_LOSSES: dict[str, Loss] = {
    "affine_invariant": losses.affine_invariant,
    "affine_invariant untrimmed": partial(losses.affine_invariant, trim=0.0),
    "hierarchical": losses.hierarchical,
    "raw": partial(losses.raw, scale=3.0),
    "gradient_matching": losses.gradient_matching,
    "silog": losses.silog,
    "silog alpha 0.85": partial(losses.silog, alpha=0.85),
    "sobel_l1": losses.sobel_l1,
    "disparity_mse": losses.disparity_mse,
}
FEATURE_LOSSES: dict[str, Loss] = {
    "feature_distance": losses.feature_distance,
    "attention_transfer": losses.attention_transfer,
    "relational": losses.relational,
    "cls_attention": losses.cls_attention,
    "feature_l1": lambda ours, theirs, weight=None: losses.feature_l1([ours, 2 * ours], [theirs, theirs], weight),
    "attention_l2": lambda ours, theirs, weight=None: losses.attention_l2([ours, 2 * ours], [theirs, theirs], weight),
}
disparity_losses = pytest.mark.parametrize("name", DISPARITY_LOSSES)
feature_losses = pytest.mark.parametrize("name", FEATURE_LOSSES)


def maps(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Three images of 11 x 14, masked by blocks, so that wide pairs and whole neighborhoods remain."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.rand(3, 11, 14, generator=generator, dtype=torch.float64) + 0.1 for _ in range(2))
    valid = torch.ones(3, 11, 14, dtype=torch.bool)
    valid[:, :3, 5:] = False
    valid[1, 8:, :6] = False
    valid[2, 5, 5] = False
    return student.to(dtype), teacher.to(dtype), valid


def features(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = (torch.randn(3, 5, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return ours.to(dtype), theirs.to(dtype)


def value_and_gradient(loss: Loss, student: Tensor, *rest: Tensor | None) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    value = loss(student, *rest)
    value.backward()
    assert student.grad is not None
    return value.detach(), student.grad


# References: x, y and mask of one image, except where the whole batch is coupled.


def normalized(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    inside = sorted(x[mask].tolist())
    median = inside[(len(inside) - 1) // 2]
    return (x - median) / (sum(abs(value - median) for value in inside) / len(inside))


def affine_reference(x: np.ndarray, y: np.ndarray, mask: np.ndarray, trim: float) -> float:
    errors = sorted(np.abs(normalized(x, mask) - normalized(y, mask))[mask].tolist())
    return float(np.mean(errors[: len(errors) - int(trim * len(errors))]))


def hierarchical_reference(x: np.ndarray, y: np.ndarray, mask: np.ndarray) -> float:
    low, high = y[mask].min(), y[mask].max()
    levels = []
    for parts in (1, 2, 4):
        errors: list[float] = []
        for part in range(parts):
            above = y >= low + (high - low) * part / parts
            below = y < low + (high - low) * (part + 1) / parts if part < parts - 1 else y <= high
            inside = mask & above & below
            if inside.sum() > 1:  # a single pixel is a constant map
                errors += np.abs(normalized(x, inside) - normalized(y, inside))[inside].tolist()
        levels.append(np.mean(errors))
    return float(np.mean(levels))


def gradient_reference(x: np.ndarray, y: np.ndarray, mask: np.ndarray) -> float:
    residual = normalized(x, mask) - normalized(y, mask)
    total = 0.0
    for step in (1, 2, 4, 8):
        for down, right in ((0, step), (step, 0)):
            slopes = [
                abs(residual[row + down, column + right] - residual[row, column])
                for row in range(0, x.shape[0] - down, step)
                for column in range(0, x.shape[1] - right, step)
                if mask[row, column] and mask[row + down, column + right]
            ]
            total += float(np.mean(slopes)) if slopes else 0.0
    return total


def sobel_reference(x: np.ndarray, y: np.ndarray, mask: np.ndarray) -> float:
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    x, y, mask = (np.pad(z, 1, mode="edge") for z in (x, y, mask))
    differences = [
        abs(abs((k * x[i : i + 3, j : j + 3]).sum()) - abs((k * y[i : i + 3, j : j + 3]).sum()))
        for i in range(x.shape[0] - 2)
        for j in range(x.shape[1] - 2)
        for k in (kernel, kernel.T)
        if mask[i : i + 3, j : j + 3].all()
    ]
    return float(np.mean(differences))


def reference(name: str, student: Tensor, teacher: Tensor, valid: Tensor) -> float:
    images = list(zip(student.double().numpy(), teacher.double().numpy(), valid.numpy(), strict=True))
    if name.startswith("silog"):
        g = np.concatenate([np.log(x[mask]) - np.log(y[mask]) for x, y, mask in images])
        return float((g * g).mean() - (0.85 if "0.85" in name else 1.0) * g.mean() ** 2)
    one: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
        "affine_invariant": partial(affine_reference, trim=0.1),
        "affine_invariant untrimmed": partial(affine_reference, trim=0.0),
        "hierarchical": hierarchical_reference,
        "raw": lambda x, y, mask: float(np.abs(x[mask] - y[mask] / 3).mean()),
        "gradient_matching": gradient_reference,
        "sobel_l1": sobel_reference,
        "disparity_mse": lambda x, y, mask: float(((x[mask] - y[mask]) ** 2).mean()),
    }
    return float(np.mean([one[name](*image) for image in images]))


def feature_reference(name: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    """The loss of one image, c x h x w."""
    a, b = ours.reshape(len(ours), -1).T, theirs.reshape(len(theirs), -1).T
    if name == "feature_distance":
        cosines = [p @ q / np.sqrt((p @ p) * (q @ q)) for p, q in zip(a, b, strict=True)]
        distance = np.abs(a - b)
        huber = np.where(distance < 1, distance**2 / 2, distance - 0.5)
        return float(0.9 * (1 - np.mean(cosines)) + 0.1 * huber.mean())
    if name == "attention_transfer":
        p, q = (a**2).mean(axis=1), (b**2).mean(axis=1)
        return float(((p / np.linalg.norm(p) - q / np.linalg.norm(q)) ** 2).sum())
    if name == "relational":
        cosines = [[[p @ q / np.sqrt((p @ p) * (q @ q)) for q in rows] for p in rows] for rows in (a, b)]
        return float(np.square(np.subtract(*cosines)).mean())
    if name == "cls_attention":
        divergences = []
        for logits, attention in zip(a.T, b.T, strict=True):
            p = attention.clip(min=0) / attention.clip(min=0).sum()
            q = np.exp(logits) / np.exp(logits).sum()
            divergences.append(sum(pi * np.log(pi / qi) for pi, qi in zip(p, q, strict=True) if pi > 0))
        return float(np.mean(divergences))
    if name == "feature_l1":
        return float(np.abs(a - b).mean() + np.abs(2 * a - b).mean())
    maps_of = [np.abs(z).mean(axis=1) for z in (a, 2 * a, b)]
    return float(((maps_of[0] - maps_of[2]) ** 2).mean() + ((maps_of[1] - maps_of[2]) ** 2).mean())


# Disparity terms.


@disparity_losses
@pytest.mark.parametrize("masked", [True, False])
def test_a_disparity_loss_is_its_formula(name: str, masked: bool) -> None:
    student, teacher, valid = maps()
    valid = valid if masked else torch.ones_like(valid)
    expected = reference(name, student, teacher, valid)
    loss = DISPARITY_LOSSES[name]
    in_double = loss(student, teacher, valid if masked else None)
    in_single = loss(student.float(), teacher.float(), valid if masked else None)
    assert expected > 0.01
    assert in_double.dtype == torch.float64
    assert in_single.dtype == torch.float32
    np.testing.assert_allclose(in_double.item(), expected, **EXACT)
    np.testing.assert_allclose(in_single.item(), expected, **SINGLE)


@disparity_losses
def test_the_gradient_is_that_of_the_value(name: str) -> None:
    student, teacher, valid = maps()
    student, teacher, valid = student[:2, :5, :6], teacher[:2, :5, :6], valid[:2, :5, :6]
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: DISPARITY_LOSSES[name](x, teacher, valid), student)


@disparity_losses
def test_a_batch_is_the_mean_of_its_images_except_for_silog(name: str) -> None:
    student, teacher, valid = maps()
    loss = DISPARITY_LOSSES[name]
    whole = loss(student, teacher, valid).item()
    singles = [loss(student[i : i + 1], teacher[i : i + 1], valid[i : i + 1]).item() for i in range(3)]
    assert (whole == pytest.approx(np.mean(singles), rel=1e-10)) != name.startswith("silog")


@disparity_losses
def test_masked_images_count_as_zero_and_teach_nothing(name: str) -> None:
    student, teacher, valid = maps(dtype=torch.float32)
    value, gradient = value_and_gradient(DISPARITY_LOSSES[name], student, teacher, torch.zeros_like(valid))
    assert value == 0
    assert (gradient == 0).all()
    valid[1] = False
    value, gradient = value_and_gradient(DISPARITY_LOSSES[name], student, teacher, valid)
    assert value > 0
    assert gradient.isfinite().all()
    assert (gradient[1] == 0).all()
    assert (gradient[0] != 0).any()


@disparity_losses
def test_an_image_with_a_single_valid_pixel_is_harmless(name: str) -> None:
    student, teacher, valid = maps(dtype=torch.float32)
    valid[1] = False
    valid[1, 4, 4] = True
    value, gradient = value_and_gradient(DISPARITY_LOSSES[name], student, teacher, valid)
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["affine_invariant", "hierarchical", "gradient_matching"])
@pytest.mark.parametrize("level", [0.0, 0.3, -7.7e4])
@pytest.mark.parametrize("role", ["student", "teacher", "both"])
def test_a_constant_map_teaches_nothing_where_maps_are_normalized(name: str, level: float, role: str) -> None:
    student, teacher, _ = maps(dtype=torch.float32)
    if role in ("student", "both"):
        student[1] = level
    if role in ("teacher", "both"):
        teacher[1] = level
    loss = DISPARITY_LOSSES[name]
    value, gradient = value_and_gradient(loss, student, teacher)
    others = loss(student[::2], teacher[::2])
    assert value.item() == pytest.approx(others.item() * 2 / 3, rel=1e-5)
    assert gradient.isfinite().all()
    assert (gradient[1] == 0).all()


@pytest.mark.parametrize("name", ["silog", "sobel_l1"])
def test_a_constant_student_of_a_constant_teacher_has_nothing_to_learn(name: str) -> None:
    value, gradient = value_and_gradient(DISPARITY_LOSSES[name], torch.full((2, 6, 7), 0.3), torch.full((2, 6, 7), 1.7))
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max().item() < 1e-6  # silog's mean is rounded in float32


def test_a_map_that_varies_less_than_its_rounding_is_constant() -> None:
    student, teacher, _ = maps(dtype=torch.float32)
    flat = torch.full_like(student, 1e6)
    flat[:, 0, 0] = torch.nextafter(torch.tensor(1e6), torch.tensor(2e6))
    value, gradient = value_and_gradient(losses.affine_invariant, flat, teacher)
    assert value == 0
    assert (gradient == 0).all()


@disparity_losses
def test_what_lies_under_the_mask_is_never_read(name: str) -> None:
    student, teacher, valid = maps(dtype=torch.float32)
    expected = value_and_gradient(DISPARITY_LOSSES[name], student, teacher, valid)
    for poison in (torch.nan, torch.inf, -1e30):
        poisoned = value_and_gradient(
            DISPARITY_LOSSES[name], student.where(valid, poison), teacher.where(valid, poison), valid
        )
        assert poisoned[0] == expected[0]
        assert torch.equal(poisoned[1], expected[1])


@disparity_losses
def test_a_diverged_student_is_not_hidden(name: str) -> None:
    student, teacher, valid = maps(dtype=torch.float32)
    student[0, 6, 6] = torch.nan
    assert DISPARITY_LOSSES[name](student, teacher, valid).isnan()


@disparity_losses
def test_autocast_changes_nothing_but_the_rounding_of_the_inputs(name: str) -> None:
    student, teacher, valid = maps(dtype=torch.float32)
    loss = DISPARITY_LOSSES[name]
    exact = loss(student, teacher, valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(student, teacher, valid) == exact
        halves = loss(student.bfloat16(), teacher.bfloat16(), valid)
    assert halves.dtype == torch.float32
    assert halves == loss(student.bfloat16().float(), teacher.bfloat16().float(), valid)
    # bfloat16 rounds each input by at most 2^-9 of it; the normalized maps amplify that by about mean / spread.
    assert halves.item() == pytest.approx(exact.item(), rel=0.03)


def test_a_loss_with_a_product_of_matrices_would_not_run_in_bfloat16_either() -> None:
    x = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        product = losses._in_full_precision(lambda a, b: a @ b)(x, b=x)
    assert torch.equal(product, x @ x)


def test_trimming_leaves_out_the_worst_pixels() -> None:
    teacher = torch.arange(100, dtype=torch.float64).reshape(1, 10, 10)
    for swapped, forgiven in ((5, True), (6, False)):
        # Exchanging lowest and highest values leaves median and spread alone, so only these pixels are wrong.
        student = teacher.clone()
        student[0, 0, :swapped] = teacher[0, 9, :swapped]
        student[0, 9, :swapped] = teacher[0, 0, :swapped]
        assert losses.affine_invariant(student, teacher, trim=0.0) > 0.1
        assert (losses.affine_invariant(student, teacher).item() < 1e-12) == forgiven


def test_the_median_is_found_alike_by_selection_and_by_sorting() -> None:
    values = torch.randint(0, 9, (40, 31), generator=torch.Generator().manual_seed(0)).float()
    rank = torch.arange(40) % 31
    selected, ranked = (find(values, rank) for find in (losses._ranked_by_selection, losses._ranked_by_sort))
    assert torch.equal(values.gather(1, selected), values.gather(1, ranked))
    assert torch.equal(values.gather(1, ranked)[:, 0], values.sort(dim=1).values[torch.arange(40), rank])


def test_silog_leaves_out_what_has_no_logarithm() -> None:
    student, teacher, valid = maps()
    expected = losses.silog(student, teacher, valid)
    student[0, ~valid[0]] = 0.0
    teacher[1, ~valid[1]] = -1.0
    student[2, ~valid[2]] = 1e-8
    value, gradient = value_and_gradient(losses.silog, student, teacher)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert (gradient[~valid] == 0).all()


def test_silog_with_nothing_positive_is_zero() -> None:
    value, gradient = value_and_gradient(losses.silog, torch.zeros(2, 3, 3), torch.ones(2, 3, 3))
    assert value == 0
    assert (gradient == 0).all()


def test_an_inverted_edge_costs_nothing_in_sobel_l1_but_does_in_gradient_matching() -> None:
    edge = torch.zeros(1, 8, 8, dtype=torch.float64)
    edge[:, :, 4:] = 1
    assert losses.sobel_l1(1 - edge, edge) == 0
    # Normalized, the edge is 2 high and the inverted one 4 off, in one of 7, 3 and 1 pairs of a row.
    assert losses.gradient_matching(1 - edge, edge).item() == pytest.approx(4 / 7 + 4 / 3 + 4, rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (2, 3, 1), (1, 2, 2)])
@disparity_losses
def test_the_smallest_images_are_harmless(name: str, shape: tuple[int, int, int]) -> None:
    student = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.1
    teacher = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.1
    value, gradient = value_and_gradient(DISPARITY_LOSSES[name], student, teacher)
    assert value.isfinite()
    assert gradient.isfinite().all()


# Feature terms.


@feature_losses
def test_a_feature_loss_is_its_formula(name: str) -> None:
    ours, theirs = features()
    singles = [feature_reference(name, a, b) for a, b in zip(ours.numpy(), theirs.numpy(), strict=True)]
    weight = torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64)
    loss = FEATURE_LOSSES[name]
    np.testing.assert_allclose(loss(ours, theirs).item(), np.mean(singles), **EXACT)
    np.testing.assert_allclose(loss(ours, theirs, weight).item(), np.mean(weight.numpy() * singles), **EXACT)
    np.testing.assert_allclose(loss(ours.float(), theirs.float()).item(), np.mean(singles), **SINGLE)


@feature_losses
def test_the_gradient_of_a_feature_loss_is_that_of_its_value(name: str) -> None:
    ours, theirs = features()
    weight = torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64)
    ours.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: FEATURE_LOSSES[name](x, theirs, weight), ours)


@feature_losses
def test_an_image_of_weight_zero_is_never_read(name: str) -> None:
    ours, theirs = features(dtype=torch.float32)
    weight = torch.tensor([1.5, 0.0, 1.5])
    expected, _ = value_and_gradient(FEATURE_LOSSES[name], ours[::2], theirs[::2])
    theirs[1] = torch.nan
    value, gradient = value_and_gradient(FEATURE_LOSSES[name], ours, theirs, weight)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (gradient[1] == 0).all()
    assert (gradient[0] != 0).any()
    value, gradient = value_and_gradient(FEATURE_LOSSES[name], ours, theirs * torch.nan, torch.zeros(3))
    assert value == 0
    assert (gradient == 0).all()


@feature_losses
@pytest.mark.parametrize("level", [0.0, 1e-20, 1.0])
def test_constant_features_are_harmless(name: str, level: float) -> None:
    ours, theirs = features(dtype=torch.float32)
    ours[1] = level
    theirs[2] = level
    value, gradient = value_and_gradient(FEATURE_LOSSES[name], ours, theirs)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1 / losses.SHORTEST_FEATURE


@feature_losses
def test_autocast_only_rounds_the_features(name: str) -> None:
    ours, theirs = features(dtype=torch.float32)
    loss = FEATURE_LOSSES[name]
    exact = loss(ours, theirs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(ours, theirs) == exact
        halves = loss(ours.bfloat16(), theirs.bfloat16(), torch.ones(3))
    assert halves.dtype == torch.float32
    assert halves.item() == pytest.approx(exact.item(), rel=0.02)  # bfloat16 rounds each feature by at most 2^-9


def test_a_head_without_attention_teaches_nothing() -> None:
    logits, attention = features(dtype=torch.float32)
    attention = attention.abs()
    attention[:, 2] = 0
    value, gradient = value_and_gradient(losses.cls_attention, logits, attention)
    assert value > 0
    assert (gradient[:, 2] == 0).all()
    assert (gradient[:, 0] != 0).any()


def test_cls_attention_is_zero_where_the_student_attends_as_its_teacher() -> None:
    attention = features()[1].abs() + 0.1
    assert losses.cls_attention((0.3 * attention).log() + 5, attention).item() == pytest.approx(0, abs=1e-12)


def test_relations_do_not_change_when_the_student_turns_and_scales_its_features() -> None:
    ours, theirs = features()
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
    turned = torch.einsum("dc,bchw->bdhw", 7 * turn, ours)
    assert losses.relational(turned, theirs).item() == pytest.approx(losses.relational(ours, theirs).item(), rel=1e-9)
    assert losses.relational(turned, ours).item() == pytest.approx(0, abs=1e-12)


def test_the_hierarchical_loss_sees_what_the_global_one_hides() -> None:
    # Near things are ten times as far apart as distant ones: an error in the distance is small beside the whole.
    teacher = torch.cat([torch.linspace(0, 1, 50), torch.linspace(90, 100, 50)]).double().reshape(1, 10, 10)
    student = teacher.clone()
    student[0, :5] = student[0, :5].flip(0, 1)
    whole = losses.affine_invariant(student, teacher, trim=0.0)
    assert losses.hierarchical(student, teacher) > 10 * whole
    assert losses.hierarchical(student, teacher, segments=(1,)).item() == pytest.approx(whole.item(), rel=1e-12)


def test_attention_terms_compare_different_numbers_of_channels() -> None:
    ours, theirs = features()
    wide = theirs.repeat(1, 3, 1, 1)
    assert losses.attention_transfer(ours, wide).item() == pytest.approx(losses.attention_transfer(ours, theirs).item())
    assert losses.attention_l2([ours], [wide]).item() == pytest.approx(losses.attention_l2([ours], [theirs]).item())


@pytest.mark.parametrize("loss", [losses.feature_l1, losses.attention_l2])
def test_a_missing_pair_is_an_error(loss: Loss) -> None:
    ours, theirs = features()
    with pytest.raises(ValueError, match="shorter"):
        loss([ours, ours], [theirs])


@pytest.mark.gpu
@disparity_losses
def test_a_gpu_gives_what_the_cpu_gives(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("NOT TESTED: no CUDA device")
    student, teacher, valid = maps(dtype=torch.float32)
    expected = value_and_gradient(DISPARITY_LOSSES[name], student, teacher, valid)
    measured = value_and_gradient(DISPARITY_LOSSES[name], student.cuda(), teacher.cuda(), valid.cuda())
    for ours, theirs in zip(measured, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-6)
