"""The training loop: `fit(state, batches, config)` yields a report a step. It does not know where batches come from.

Everything random was decided when the batches were made, and the learning rate is a function of the step alone, so a
run resumed from `TrainState.save` goes on as if it had never stopped.
"""

import itertools
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor, nn

from delta.batch import Batch
from delta.config import Config
from delta.distributed import gather, mean_between
from delta.errors import DeltaError
from delta.optimizer import OptimizerConfig
from delta.train_state import TrainState

SMALLEST_LOSS_SCALE = 1.0  # fp16 gradients that overflow even unscaled are not a matter of scale


class StepReport(Config, frozen=True, kw_only=True):
    """One step's numbers: 1-based `step`, loss terms, gradient norm before clipping, decoder learning rate.

    The terms are means over all processes. `step_s` is the time from the end of the step before, `wait_s` the part of
    it spent waiting for the batch; `images` those of all processes.
    """

    step: int
    terms: dict[str, float]
    grad_norm: float
    learning_rate: float
    images: int
    step_s: float
    wait_s: float


class NotFinite(DeltaError):
    """Loss or gradient is not a number; `samples` are the sample numbers of the batch, of all processes."""

    def __init__(self, message: str, hint: str, *, step: int, samples: list[int]) -> None:
        super().__init__(message, hint)
        self.step, self.samples = step, samples


def fit(state: TrainState, batches: Iterable[Batch], config: OptimizerConfig, total_steps: int) -> Iterator[StepReport]:
    """Train until `total_steps`, taking a batch a step and yielding its report; `state` moves on in place.

    Raises:
        NotFinite: loss or gradient is no longer finite; `state` still holds the last good step's weights.
        DeltaError: the memory does not suffice, or torch.compile fails.
    """
    schedule = CosineLRScheduler(
        state.optimizer,
        t_initial=total_steps,
        lr_min=config.lr_final,
        warmup_t=math.ceil(config.warmup * total_steps),
        warmup_lr_init=config.lr_final,
        t_in_epochs=False,
    )
    state.student.train()
    stream = itertools.islice(batches, max(0, total_steps - state.step))
    while True:
        start = time.perf_counter()
        batch = next(stream, None)
        if batch is None:
            return
        waited = time.perf_counter()
        schedule.step_update(state.step)
        with _mendable(batch, config):
            terms, norm = _step(state, batch, config)
        yield StepReport(
            step=state.step,
            terms=terms,
            grad_norm=norm,
            learning_rate=state.optimizer.param_groups[-1]["lr"],
            images=len(batch.samples) * state.world.size,
            step_s=time.perf_counter() - start,
            wait_s=waited - start,
        )


def _step(state: TrainState, batch: Batch, config: OptimizerConfig) -> tuple[dict[str, float], float]:
    state.optimizer.zero_grad(set_to_none=True)
    terms = _backward(state, batch, config)
    state.scaler.unscale_(state.optimizer)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    # one transfer from the device a step
    *values, norm_value = torch.cat([mean_between(torch.stack([*terms.values()]), state.world), norm[None]]).tolist()
    numbers = dict(zip(terms, values, strict=True))
    _require_finite(state, batch, numbers, norm_value)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.step += 1
    if state.average and math.isfinite(norm_value):
        state.average.update(state.student, step=state.step)
    return numbers, norm_value


def _backward(state: TrainState, batch: Batch, config: OptimizerConfig) -> dict[str, Tensor]:
    """Add up the gradients of the batch's parts; return their mean terms."""
    sums: dict[str, Tensor] = {}
    parts = batch.split(config.accumulate)
    for index, part in enumerate(parts):
        with state.gradients_kept_apart() if index + 1 < len(parts) else nullcontext():
            terms = state.forward(part)
            state.scaler.scale(terms["total"] / len(parts)).backward()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value.detach().float() / len(parts)
    return sums


def _require_finite(state: TrainState, batch: Batch, terms: dict[str, float], norm: float) -> None:
    overflow = state.scaler.is_enabled() and state.scaler.get_scale() > SMALLEST_LOSS_SCALE
    what = "loss" if not math.isfinite(terms["total"]) else "gradient"
    if what == "gradient" and (math.isfinite(norm) or overflow):
        return  # an fp16 gradient out of range skips its step and lowers the scale
    values = ", ".join(f"{name} {value:.3g}" for name, value in terms.items())
    raise NotFinite(
        f"the {what} is not finite at step {state.step + 1}: {values}",
        "lower the learning rates, or set optimizer.precision to float32; the last checkpoint is kept",
        step=state.step + 1,
        samples=gather(batch.samples, state.world).tolist(),
    )


@contextmanager
def _mendable(batch: Batch, config: OptimizerConfig) -> Iterator[None]:
    """Turn what a person can mend in the recipe into a sentence."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__module__.startswith("torch._dynamo"):  # whose import takes a second that most runs can spare
            reason = str(error).strip().splitlines()[0]
            raise DeltaError(f"torch.compile failed: {reason}", "set optimizer.compile to false") from error
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        side, images = batch.image.shape[-1], len(batch.samples)
        where = "GPU" if batch.image.device.type == "cuda" else "machine"
        raise DeltaError(
            f"the {where} ran out of memory on {images} images of {side} px in {config.accumulate} part(s)",
            f"raise optimizer.accumulate to {2 * config.accumulate} (the same step in smaller parts), or lower"
            " batch_size or size_px; on a GPU optimizer.precision=bfloat16 needs about half",
        ) from error
