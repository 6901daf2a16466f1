"""The training loop: `fit(state, batches, config)` yields a report a step. It does not know where batches come from.

Everything random was decided when the batches were made, and the learning rate is a function of the step alone, so a
run resumed from `save_state` goes on as if it had never stopped.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal, cast

import torch
from msgspec import Meta
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from delta.batch import Batch
from delta.checkpoint import flatten_state, unflatten_state
from delta.config import Config
from delta.errors import DeltaError
from delta.files import write_aside
from delta.objective import Objective
from delta.student import Student


class OptimizerConfig(Config, frozen=True, kw_only=True):
    """AdamW in two groups (encoder; decoder and projectors), warm-up and cosine, clipping, EMA, autocast.

    `ema_decay` is reached by timm's warm-up; 0 keeps no average. `precision` is that of the forward pass; losses are
    always float32.
    """

    lr_encoder: Annotated[float, Meta(gt=0)] = 1e-3
    lr_decoder: Annotated[float, Meta(gt=0)] = 1e-3
    lr_final: Annotated[float, Meta(ge=0)] = 1e-6
    weight_decay: Annotated[float, Meta(ge=0)] = 0.05
    warmup: Annotated[float, Meta(ge=0, lt=1)] = 0.04
    clip_norm: Annotated[float, Meta(gt=0)] = 1.0
    ema_decay: Annotated[float, Meta(ge=0, lt=1)] = 0.998
    precision: Literal["float32", "bfloat16"] = "bfloat16"


class StepReport(Config, frozen=True, kw_only=True):
    """One step's numbers: 1-based `step`, loss terms, gradient norm before clipping, decoder learning rate."""

    step: int
    terms: dict[str, float]
    grad_norm: float
    learning_rate: float


class TrainState:
    """What a run carries from step to step: student, objective, optimizer, average, step."""

    def __init__(self, student: Student, objective: Objective, config: OptimizerConfig, device: torch.device) -> None:
        layout = torch.channels_last
        self.student = student.to(device, memory_format=layout)  # pyright: ignore[reportCallIssue]
        self.objective = objective.to(device)
        self.optimizer = torch.optim.AdamW(_parameter_groups(self.student, self.objective, config))
        self.average = ModelEmaV3(student, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
        self.device = device
        self.step = 0

    @property
    def best_student(self) -> Student:
        """The averaged student, or the student itself where no average is kept."""
        return cast(Student, self.average.module) if self.average else self.student

    def save(self, path: Path) -> None:
        """Write everything a resumed run needs to one safetensors file, aside first."""
        tensors = {"step": torch.tensor(self.step)}
        tensors |= flatten_state("student", self.student.state_dict())
        tensors |= flatten_state("objective", self.objective.state_dict())
        if self.average:
            tensors |= flatten_state("average", self.average.module.state_dict())
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= flatten_state(f"optimizer.{index}", moments)
        with write_aside(path) as aside:
            save_file(tensors, aside)

    def load(self, path: Path) -> None:
        """Restore what `save` wrote.

        Raises:
            DeltaError: the file is damaged.
        """
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise DeltaError(f"{path} is damaged: {error}", "delete it to train from the start") from error
        self.student.load_state_dict(unflatten_state("student", tensors))
        self.objective.load_state_dict(unflatten_state("objective", tensors))
        if self.average:
            self.average.module.load_state_dict(unflatten_state("average", tensors))
        fresh = self.optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in unflatten_state("optimizer", tensors).items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({"state": moments, "param_groups": fresh["param_groups"]})
        self.step = int(tensors["step"])


def fit(state: TrainState, batches: Iterable[Batch], config: OptimizerConfig, total_steps: int) -> Iterator[StepReport]:
    """Train until `total_steps`, taking a batch a step and yielding its report; `state` moves on in place.

    Raises:
        DeltaError: loss or gradient is no longer finite; `state` still holds the last good step's weights.
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
    for batch in itertools.islice(batches, max(0, total_steps - state.step)):
        schedule.step_update(state.step)
        yield _step(state, batch, config)


def _step(state: TrainState, batch: Batch, config: OptimizerConfig) -> StepReport:
    image = batch.image.contiguous(memory_format=torch.channels_last)
    with torch.autocast(state.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        disparity, levels = state.student.forward_with_features(image)
        terms = state.objective(disparity.float(), levels, batch)
    loss = terms["total"]
    _require_finite("loss", loss, state.step + 1, terms)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    _require_finite("gradient", norm, state.step + 1, terms)
    state.optimizer.step()
    state.step += 1
    if state.average:
        state.average.update(state.student, step=state.step)
    return StepReport(
        step=state.step,
        terms={name: value.item() for name, value in terms.items()},
        grad_norm=norm.item(),
        learning_rate=state.optimizer.param_groups[-1]["lr"],
    )


def _require_finite(what: str, value: Tensor, step: int, terms: dict[str, Tensor]) -> None:
    if torch.isfinite(value):
        return
    values = ", ".join(f"{name} {term.item():.3g}" for name, term in terms.items())
    raise DeltaError(
        f"the {what} is not finite at step {step}: {values}",
        "lower the learning rates, or set optimizer.precision to float32; the last checkpoint is kept",
    )


def _parameter_groups(student: Student, objective: Objective, config: OptimizerConfig) -> list[dict[str, object]]:
    """Four groups: encoder and the rest, each with and without weight decay (none on norms and biases)."""
    rest = nn.ModuleList([student.decoder, objective])
    groups = []
    for module, rate in ((student.encoder, config.lr_encoder), (rest, config.lr_decoder)):
        parameters = [p for p in module.parameters() if p.requires_grad]
        for decay, chosen in (
            (config.weight_decay, [p for p in parameters if p.ndim > 1]),
            (0.0, [p for p in parameters if p.ndim <= 1]),
        ):
            groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return groups
