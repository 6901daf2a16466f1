"""What a run carries from step to step, and how it reaches the disk and comes back bit for bit."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

import safetensors
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from delta.batch import Batch
from delta.checkpoint import flatten_state, unflatten_state
from delta.distributed import ALONE, World, parallel, share_batch_norms
from delta.errors import DeltaError
from delta.files import write_aside
from delta.objective import Objective
from delta.optimizer import PRECISIONS, OptimizerConfig, parameter_groups
from delta.student import Student


class TrainState:
    """Student, objective, optimizer, average, loss scale and step."""

    def __init__(
        self,
        student: Student,
        objective: Objective,
        config: OptimizerConfig,
        device: torch.device,
        world: World = ALONE,
    ) -> None:
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        student = cast(Student, share_batch_norms(student, world))
        self.student = student.to(device, memory_format=self.layout)  # pyright: ignore[reportCallIssue]
        self.objective = objective.to(device)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.student, self.objective, config))
        self.average = ModelEmaV3(student, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        forward = _Forward(self.student, self.objective, config, self.layout)
        has_dead_stage = student.config.decoder == "seed"
        self.forward = parallel(forward, world, find_unused=has_dead_stage)
        self.device, self.world = device, world
        self.step = 0

    @property
    def best_student(self) -> Student:
        """The averaged student, or the student itself where no average is kept."""
        return cast(Student, self.average.module) if self.average else self.student

    def gradients_kept_apart(self) -> AbstractContextManager[None]:
        """Inside, gradients add up in each process; the next backward pass outside averages them between all."""
        return self.forward.no_sync() if isinstance(self.forward, DistributedDataParallel) else nullcontext()

    def save(self, path: Path, metadata: dict[str, str] | None = None) -> None:
        """Write everything a resumed run needs to one safetensors file, aside first; `metadata` into its header."""
        tensors = {"step": torch.tensor(self.step)}
        tensors |= flatten_state("student", self.student.state_dict())
        tensors |= flatten_state("objective", self.objective.state_dict())
        if self.average:
            tensors |= flatten_state("average", self.average.module.state_dict())
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= flatten_state(f"optimizer.{index}", moments)
        scaler = {name: torch.tensor(value) for name, value in self.scaler.state_dict().items()}
        with write_aside(path) as aside:
            save_file(tensors | flatten_state("scaler", scaler), aside, metadata=metadata)

    def load(self, path: Path) -> None:
        """Restore what `save` wrote.

        Raises:
            DeltaError: the file is damaged, or of another student.
        """
        try:
            tensors = load_file(path)
            self._restore(tensors)
        except SafetensorError as error:
            raise DeltaError(f"{path} is damaged: {error}", "delete it to train from the start") from error
        except (KeyError, RuntimeError, ValueError) as error:
            raise DeltaError(
                f"{path} is not the state of this student and recipe", "delete it to train from the start"
            ) from error

    def _restore(self, tensors: dict[str, Tensor]) -> None:
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
        self.scaler.load_state_dict({name: value.item() for name, value in unflatten_state("scaler", tensors).items()})
        self.step = int(tensors["step"])


def read_metadata(path: Path) -> dict[str, str]:
    """Read what was written into the header of a saved state.

    Raises:
        DeltaError: the file is damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            return opened.metadata() or {}
    except SafetensorError as error:
        raise DeltaError(f"{path} is damaged: {error}", "delete it to train from the start") from error


class _Forward(nn.Module):
    """A batch -> its loss terms: one module, so that the gradients of student and projectors travel together."""

    def __init__(
        self, student: Student, objective: Objective, config: OptimizerConfig, layout: torch.memory_format
    ) -> None:
        super().__init__()
        self.student, self.objective = student, objective
        self._dtype, self._layout = PRECISIONS[config.precision], layout
        whole = student.forward_with_features
        self._predict = torch.compile(whole) if config.compile else whole

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        image = batch.image.contiguous(memory_format=self._layout)
        half = self._dtype != torch.float32
        with torch.autocast(image.device.type, self._dtype if half else None, enabled=half):
            disparity, levels = self._predict(image)
            return self.objective(disparity, levels, batch)
