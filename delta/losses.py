"""What a student is trained to minimize: pure functions of tensors that know neither networks nor a cache.

Every loss computes in float32 even for half inputs and inside autocast (float64 stays float64) and returns a scalar,
the mean over the images of the batch. Value and gradient stay finite where an image has nothing to teach: every pixel
masked or, for the losses that normalize, either map constant; such an image counts as 0. `valid` marks the pixels that
count (None: all); what lies under the mask is never read, be it NaN.

S and T are the disparities of student and teacher, and N(x) = (x - median x) / mean|x - median x| per image (MiDaS,
Depth Anything V2; the lower median of an even count). The terms of the recipe `seed` are those of
CombinedDistillationLoss in k3rnel-paN1c5/Delta, kept as published.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

# The seed counts a pixel in SILog only where both disparities exceed this.
SILOG_FLOOR = 1e-8
# A shorter feature vector has no direction (the gradient of a cosine grows as 1 / length); a standardized one is about
# sqrt(channels) long.
SHORTEST_FEATURE = 1e-3
# A spread below this, or below the rounding of the median, is that of a constant map.
SMALLEST_SPREAD = 1e-12
# A disparity this near below the border of two segments counts as on it, and so in the upper, whatever its rounding.
BORDER_SHARE = 1e-4

Disparity = Float[Tensor, "b h w"]
Mask = Bool[Tensor, "b h w"]
Features = Float[Tensor, "b _ _ _"]
PerImage = Float[Tensor, " b"]
Scalar = Float[Tensor, ""]

P = ParamSpec("P")


def _in_full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run `loss` outside autocast, with half inputs widened to float32."""
    inner: Callable[..., Tensor] = loss

    @functools.wraps(loss)
    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        device = _first_tensor([*args, *kwargs.values()]).device
        with torch.autocast(device.type, enabled=False):
            return inner(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})

    return run


def _first_tensor(values: Iterable[Any]) -> Tensor:
    flat = (item for value in values for item in (value if isinstance(value, list | tuple) else [value]))
    return next(item for item in flat if isinstance(item, Tensor))


def _widened(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_widened(item) for item in value]
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


@_in_full_precision
def affine_invariant(student: Disparity, teacher: Disparity, valid: Mask | None = None, *, trim: float = 0.1) -> Scalar:
    """Average |N(S) - N(T)| over an image's valid pixels without the worst `trim` fraction of them, rounded down."""
    residual, counted = _normalized_residual(student, teacher, valid)
    error = residual.abs().flatten(1)
    return _mean(error, _without_worst(error.detach(), counted.flatten(1), trim)).mean()


@_in_full_precision
def hierarchical(
    student: Disparity, teacher: Disparity, valid: Mask | None = None, *, segments: Sequence[int] = (1, 2, 4)
) -> Scalar:
    """Average |N(S) - N(T)| with N taken inside each of 1, 2 and 4 equal ranges of the teacher's disparity.

    The mean over the three partitions of the mean over an image's pixels (hierarchical normalization, Zhang et al.,
    2022, by depth range; Distill-Any-Depth). A segment in which either map is constant is left out.
    """
    student, teacher, counted = _masked(student, teacher, valid)
    place = _place_in_range(teacher, counted)
    levels = []
    for parts in segments:
        segment = (place * parts + BORDER_SHARE).floor().clamp(max=parts - 1)
        pairs = [_normalized_residual(student, teacher, (counted > 0) & (segment == part)) for part in range(parts)]
        error = torch.stack([residual.abs().sum(dim=(1, 2)) for residual, _ in pairs]).sum(dim=0)
        levels.append(error / torch.stack([kept.sum(dim=(1, 2)) for _, kept in pairs]).sum(dim=0).clamp(min=1))
    return torch.stack(levels).mean()


@_in_full_precision
def raw(student: Disparity, teacher: Disparity, valid: Mask | None = None, *, scale: float) -> Scalar:
    """Average |S - T / scale|; `scale`, a constant of the cache, keeps the output steady from frame to frame."""
    student, teacher, counted = _masked(student, teacher, valid)
    return _mean((student - teacher / scale).abs(), counted).mean()


@_in_full_precision
def gradient_matching(student: Disparity, teacher: Disparity, valid: Mask | None = None, *, scales: int = 4) -> Scalar:
    """Average the slope of N(S) - N(T), in x plus in y, summed over `scales` grids that each keep every second pixel.

    Signed, so an inverted edge costs twice a missing one. A pair of neighbors counts where both are valid (MegaDepth,
    MiDaS); each direction is divided by its own number of pairs.
    """
    residual, counted = _normalized_residual(student, teacher, valid)
    total = residual.new_zeros(residual.shape[0])
    for _ in range(scales):
        total = total + _mean(residual.diff(dim=2).abs(), counted[:, :, 1:] * counted[:, :, :-1])
        total = total + _mean(residual.diff(dim=1).abs(), counted[:, 1:] * counted[:, :-1])
        residual, counted = residual[:, ::2, ::2], counted[:, ::2, ::2]
    return total.mean()


@_in_full_precision
def silog(student: Disparity, teacher: Disparity, valid: Mask | None = None, *, alpha: float = 1.0) -> Scalar:
    """Compute mean(g^2) - alpha mean(g)^2 with g = log S - log T over the whole batch, as the seed does.

    The images are coupled: with alpha 1 it forgives one scale for the batch, not one per image. A pixel where either
    disparity is at most 1e-8 is left out, as in the seed's code.
    """
    student, teacher, counted = _masked(student, teacher, valid)
    # Asked this way round, a NaN is not left out but reaches the loss.
    usable = (counted > 0) & ~(student <= SILOG_FLOOR) & ~(teacher <= SILOG_FLOOR)
    g = student.where(usable, 1).log() - teacher.where(usable, 1).log()
    count = usable.sum().clamp(min=1)
    mean = g.sum() / count
    # The variance directly: the difference of two large means would lose float32's digits.
    return ((g - mean) * usable).square().sum() / count + (1 - alpha) * mean.square()


@_in_full_precision
def sobel_l1(student: Disparity, teacher: Disparity, valid: Mask | None = None) -> Scalar:
    """Average the L1 distance of the absolute Sobel gradients, in x and in y, as the seed does.

    Absolute, so an inverted edge costs nothing. The border is replicated; a pixel counts where its whole 3 x 3
    neighborhood is valid.
    """
    student, teacher, counted = _masked(student, teacher, valid)
    whole = 1 - functional.max_pool2d(1 - counted, kernel_size=3, stride=1, padding=1)
    across, along = (
        (ours.abs() - theirs.abs()).abs() for ours, theirs in zip(_sobel(student), _sobel(teacher), strict=True)
    )
    return _mean((across + along) / 2, whole).mean()


@_in_full_precision
def disparity_mse(student: Disparity, teacher: Disparity, valid: Mask | None = None) -> Scalar:
    """Average (S - T)^2: the seed's plain alternative."""
    student, teacher, counted = _masked(student, teacher, valid)
    return _mean((student - teacher).square(), counted).mean()


@_in_full_precision
def feature_l1(
    student_features: Sequence[Features], teacher_features: Sequence[Features], weight: PerImage | None = None
) -> Scalar:
    """Sum over the pairs the L1 distance of projected student features to the teacher's, as the seed does.

    `weight` says how much an image counts, here and in the other feature terms: its loss is multiplied by it before the
    mean over the images is taken. At 0 the teacher's values are not read.
    """
    pairs = zip(student_features, teacher_features, strict=True)
    distances = [(ours - _used(theirs, weight)).abs().mean(dim=(1, 2, 3)) for ours, theirs in pairs]
    return torch.stack([_weighted_mean(distance, weight) for distance in distances]).sum()


@_in_full_precision
def attention_l2(
    student_features: Sequence[Features], teacher_features: Sequence[Features], weight: PerImage | None = None
) -> Scalar:
    """Sum over the pairs the mean squared distance between channel means of absolute features, as the seed does."""
    pairs = zip(student_features, teacher_features, strict=True)
    gaps = [ours.abs().mean(dim=1) - _used(theirs, weight).abs().mean(dim=1) for ours, theirs in pairs]
    return torch.stack([_weighted_mean(gap.square().mean(dim=(1, 2)), weight) for gap in gaps]).sum()


@_in_full_precision
def feature_distance(
    projected: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], weight: PerImage | None = None
) -> Scalar:
    """Average 0.9 (1 - cosine over channels) + 0.1 smooth-L1 over the locations (Theia, RADIO)."""
    target = _used(target, weight)
    cosine = functional.cosine_similarity(projected, target, dim=1, eps=SHORTEST_FEATURE)
    smooth_l1 = functional.smooth_l1_loss(projected, target, reduction="none").mean(dim=1)
    return _weighted_mean((0.9 * (1 - cosine) + 0.1 * smooth_l1).mean(dim=(1, 2)), weight)


@_in_full_precision
def attention_transfer(
    student: Float[Tensor, "b _ h w"], target: Float[Tensor, "b _ h w"], weight: PerImage | None = None
) -> Scalar:
    """Square the L2 distance, 0 to 2, of attention maps: channel means of squares, at length 1 over the locations.

    Zagoruyko & Komodakis, "Paying more attention to attention".
    """
    ours, theirs = (
        functional.normalize(features.square().mean(dim=1).flatten(1), dim=1)
        for features in (student, _used(target, weight))
    )
    return _weighted_mean((ours - theirs).square().sum(dim=1), weight)


@_in_full_precision
def relational(
    student: Float[Tensor, "b _ h w"], target: Float[Tensor, "b _ h w"], weight: PerImage | None = None
) -> Scalar:
    """Average the squared gap between the cosine similarities of all pairs of locations; widths may differ.

    Pair-wise distillation of Liu et al., "Structured knowledge distillation for semantic segmentation", 2019.
    """
    ours, theirs = _similarities(student), _similarities(_used(target, weight))
    return _weighted_mean((ours - theirs).square().mean(dim=(1, 2)), weight)


@_in_full_precision
def cls_attention(
    logits: Float[Tensor, "b heads h w"], attention: Float[Tensor, "b heads h w"], weight: PerImage | None = None
) -> Scalar:
    """Average KL(teacher || student) over the heads of the CLS token's attention to the locations.

    The student's is the softmax of `logits`; the teacher's is made to sum to 1 over the locations that are left of the
    view. A head without any attention there counts as 0.
    """
    target = _used(attention, weight).clamp(min=0).flatten(2)
    mass = target.sum(dim=2, keepdim=True)
    target = target / mass.where(mass > 0, 1)
    divergence = (torch.xlogy(target, target) - target * logits.flatten(2).log_softmax(dim=2)).sum(dim=2)
    return _weighted_mean(divergence.mean(dim=1), weight)


def _masked(student: Tensor, teacher: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return both maps, zero under the mask so that nothing there reaches value or gradient, and the mask as 0 and 1.

    As numbers, since a product takes a quarter of the time of `where` on a CPU.
    """
    if valid is None:
        return student, teacher, torch.ones_like(student)
    return student.where(valid, 0), teacher.where(valid, 0), valid.to(student.dtype)


def _mean(values: Tensor, counted: Tensor) -> PerImage:
    """Average the counted values of each image, 0 where there are none."""
    counted = counted.flatten(1)
    return (values.flatten(1) * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def _normalized_residual(student: Tensor, teacher: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return N(S) - N(T), zero where it does not count, and what counts: nothing in an image with a constant map."""
    student, teacher, counted = _masked(student, teacher, valid)
    ours, ours_varies = _normalized(student, counted)
    theirs, theirs_varies = _normalized(teacher, counted)
    counted = counted * (ours_varies & theirs_varies)[:, None, None]
    return (ours - theirs) * counted, counted


def _place_in_range(disparity: Disparity, counted: Disparity) -> Disparity:
    """Say where each counted value lies between its image's lowest and highest, 0 to 1; 0 where nothing counts."""
    low = disparity.where(counted > 0, torch.inf).amin(dim=(1, 2), keepdim=True)
    span = disparity.where(counted > 0, -torch.inf).amax(dim=(1, 2), keepdim=True) - low
    return ((disparity - low) / span.where(span > 0, 1)).where(counted > 0, 0)


def _normalized(disparity: Disparity, counted: Disparity) -> tuple[Disparity, Bool[Tensor, " b"]]:
    """Return N(x), and for each image whether x varies; where it does not, the first is only centered."""
    index = _median_index(disparity.detach().flatten(1), counted.flatten(1))
    median = disparity.flatten(1).gather(1, index)[:, :, None]
    centered = disparity - median
    spread = _mean(centered.abs(), counted)
    rounding = torch.finfo(disparity.dtype).eps * median.detach().abs().flatten()
    varies = spread.detach() > rounding.clamp(min=SMALLEST_SPREAD)
    return centered * spread.where(varies, 1).reciprocal()[:, None, None], varies


def _median_index(values: Float[Tensor, "b n"], counted: Float[Tensor, "b n"]) -> Int[Tensor, "b 1"]:
    """Find where each row's lower median of the counted values stands; anywhere where none is counted."""
    values = values.where(counted > 0, torch.inf)
    middle = ((counted.sum(dim=1) - 1).clamp(min=0) // 2).long()
    # On one CPU core, numpy's selection takes a quarter of the time of torch.nanmedian and a twentieth of a sort's.
    return (_ranked_by_selection if values.device.type == "cpu" else _ranked_by_sort)(values, middle)


def _ranked_by_selection(values: Float[Tensor, "b n"], rank: Int[Tensor, " b"]) -> Int[Tensor, "b 1"]:
    rows = [(row, np.partition(row, k)[k]) for row, k in zip(values.numpy(), rank.tolist(), strict=True)]
    return torch.tensor([[int((row == value).argmax())] for row, value in rows])


def _ranked_by_sort(values: Float[Tensor, "b n"], rank: Int[Tensor, " b"]) -> Int[Tensor, "b 1"]:
    return values.argsort(dim=1).gather(1, rank[:, None])


def _without_worst(error: Float[Tensor, "b n"], counted: Float[Tensor, "b n"], trim: float) -> Float[Tensor, "b n"]:
    """Stop counting each row's largest errors, the fraction `trim` of those counted; errors not counted are zero."""
    most = int(trim * error.shape[1])
    worst = error.topk(most, dim=1).indices
    kept = torch.arange(most, device=error.device) >= (trim * counted.sum(dim=1, keepdim=True)).long()
    return counted.scatter(1, worst, counted.gather(1, worst) * kept)


def _sobel(x: Disparity) -> tuple[Disparity, Disparity]:
    """Differentiate in x and in y; by slices, as a convolution would run in TF32 on a GPU."""
    x = torch.cat([x[:, :1], x, x[:, -1:]], dim=1)
    x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2)
    tall = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]
    wide = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]
    return tall[:, :, 2:] - tall[:, :, :-2], wide[:, 2:] - wide[:, :-2]


def _used(target: Tensor, weight: Tensor | None) -> Tensor:
    return target if weight is None else target.where(weight[:, None, None, None] > 0, 0)


def _similarities(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n n"]:
    directions = functional.normalize(features.flatten(2), dim=1, eps=SHORTEST_FEATURE)
    return directions.transpose(1, 2) @ directions


def _weighted_mean(per_image: PerImage, weight: PerImage | None) -> Scalar:
    return per_image.mean() if weight is None else (per_image * weight).mean()
