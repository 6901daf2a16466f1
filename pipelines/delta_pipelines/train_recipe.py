"""What a training run can be told, and what of it decides the weights."""

import json
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from delta.augment import AugmentConfig
from delta.config import Config
from delta.errors import DeltaError
from delta.objective import LossConfig
from delta.optimizer import OptimizerConfig
from delta.student import SIDE_MULTIPLE, StudentConfig

SidePx = Annotated[int, Meta(ge=SIDE_MULTIPLE, multiple_of=SIDE_MULTIPLE)]
# How a run is watched and fed: the weights do not depend on it, so a resumed run may change it.
FREE = ("checkpoint_steps", "evaluate_steps", "feed.workers", "feed.method", "feed.ahead")


class FeedConfig(Config, frozen=True, kw_only=True):
    """How the store is read.

    `window_chunks` are shuffled together and in memory at once; `workers` threads, or processes started by `method`,
    read `ahead` chunks each before they are needed (0 workers: none; the stream is the same for any number).
    `holdout` is the share of photos held out, at most `holdout_max`. `live` asks the teacher instead of the store.
    `shards` are the streams a batch is put together from: 0 is one for each process, 2 in one process is what two
    processes see.
    """

    window_chunks: Annotated[int, Meta(ge=1)] = 4
    holdout: Annotated[float, Meta(gt=0, lt=1)] = 0.06
    holdout_max: Annotated[int, Meta(ge=1)] = 256
    workers: Annotated[int, Meta(ge=0, le=64)] = 1
    method: Literal["thread", "fork", "forkserver", "spawn"] = "thread"
    ahead: Annotated[int, Meta(ge=1, le=64)] = 4
    shards: Annotated[int, Meta(ge=0)] = 0
    live: bool = False


class TrainRecipe(Config, frozen=True, kw_only=True):
    """Everything a training run can be told; see recipes/*.toml.

    `size_schedule` lists [share of the steps, side in px]: from that share on, crops have that side; empty trains at
    `size_px` throughout. `batch_size` is that of each process. `init` starts from a run, a checkpoint or a shipped
    student, whole; else `student.encoder_weights` says where the encoder starts. `checkpoint_steps` and
    `evaluate_steps` say when to save, and at which steps the best student is looked for.
    """

    student: StudentConfig
    init: str = ""
    size_px: SidePx
    size_schedule: tuple[tuple[float, SidePx], ...] = ()
    epochs: Annotated[float, Meta(gt=0)]
    batch_size: Annotated[int, Meta(ge=2)]
    seed: Annotated[int, Meta(ge=0)] = 0
    optimizer: OptimizerConfig
    loss: LossConfig
    augment: AugmentConfig
    feed: FeedConfig
    checkpoint_steps: Annotated[int, Meta(ge=1)] = 200
    evaluate_steps: Annotated[int, Meta(ge=1)] = 200

    def size_at(self, step: int, total: int) -> int:
        """The side of the crops at a step, in px."""
        due = [side for share, side in self.size_schedule if step >= share * total]
        return due[-1] if due else self.size_px

    def decisive(self) -> dict[str, Any]:
        """What decides the weights, as plain data."""
        tree = json.loads(msgspec.json.encode(self))
        for key in FREE:
            *parents, last = key.split(".")
            branch = tree
            for parent in parents:
                branch = branch[parent]
            del branch[last]
        return tree

    def require_parts(self, world_size: int) -> None:
        """Check that batches can be cut as asked.

        Raises:
            DeltaError: `batch_size` is no multiple of `optimizer.accumulate`, or shards do not fit the processes.
        """
        parts, shards = self.optimizer.accumulate, self.feed.shards or world_size
        if self.batch_size % parts or self.batch_size // parts < 2:
            raise DeltaError(
                f"a batch of {self.batch_size} cannot be cut into {parts} parts of equal size, at least 2",
                "set batch_size to a multiple of optimizer.accumulate",
            )
        if shards % world_size or (self.batch_size * world_size) % shards:
            raise DeltaError(
                f"{self.batch_size} images a process for {world_size} process(es) do not divide into {shards} shards",
                "set feed.shards to 0, or to a multiple of the processes that divides the batch",
            )
