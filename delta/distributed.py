"""Several processes that train one student, as torchrun starts them: who is who, and what they have to agree on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from delta.config import Config
from delta.errors import DeltaError


class World(Config, frozen=True, kw_only=True):
    """This process among `size`; the one of rank 0 writes files and speaks."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0


ALONE = World()


@contextmanager
def join(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """Join the other processes where torchrun started this one; on GPUs each takes the one of its local rank.

    Raises:
        DeltaError: more processes than GPUs on this machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE, device
        return
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise DeltaError(
                f"process {local} has no GPU: there are {torch.cuda.device_count()} here",
                "lower --nproc-per-node, or give --device cpu",
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank=distributed.get_rank(), size=distributed.get_world_size()), device
    finally:
        distributed.destroy_process_group()


def parallel(module: nn.Module, world: World, *, find_unused: bool) -> nn.Module:
    """Average gradients between the processes; `find_unused` where parameters may get none."""
    if world.size == 1:
        return module
    return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=find_unused)


def mean_between(values: Float[Tensor, " n"], world: World) -> Float[Tensor, " n"]:
    """Average numbers over the processes."""
    if world.size > 1:
        distributed.all_reduce(values)
    return values / world.size


def gather(values: Tensor, world: World) -> Tensor:
    """Join what all processes hold, in order of rank; every one has as much."""
    if world.size == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world.size)]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def wait_for_all(world: World) -> None:
    """Go on only when every process has come this far."""
    if world.size > 1:
        distributed.barrier()


def broadcast(value: object, world: World) -> object:
    """Tell all processes what the one that leads holds."""
    if world.size == 1:
        return value
    held = [value]
    distributed.broadcast_object_list(held)
    return held[0]


def share_batch_norms(module: nn.Module, world: World) -> nn.Module:
    """Let batch norms see the images of all processes, so that two of them train as one with the doubled batch."""
    if world.size > 1:
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, SharedBatchNorm(child))
            else:
                share_batch_norms(child, world)
    return module


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over all processes, with the parameters and state names of the one it replaces.

    torch's own SyncBatchNorm refuses tensors on a CPU, and timm's norms carry an activation, which is kept here.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=norm.affine)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        after: Any = (norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else ()
        self.after = nn.Sequential(*after)

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalize by the batch of all processes in training, by the running statistics otherwise."""
        return self.after(self._train(input) if self.training else super().forward(input))

    def _train(self, x: Tensor) -> Tensor:
        size = distributed.get_world_size()
        with torch.autocast(x.device.type, enabled=False):
            wide = x if x.dtype == torch.float64 else x.float()
            mean = _Sum.apply(wide.mean(dim=(0, 2, 3))) / size
            centered = wide - mean[:, None, None]
            variance = _Sum.apply(centered.square().mean(dim=(0, 2, 3))) / size
            scale = (variance + self.eps).rsqrt() * self.weight
            normalized = centered * scale[:, None, None] + self.bias[:, None, None]
        self._track(mean.detach(), variance.detach(), size * x.numel() // x.shape[1])
        return normalized.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / max(1, count - 1)), momentum)


class _Sum(torch.autograd.Function):
    """The sum over processes, whose gradient is the sum of theirs; torch's own has been renamed with each release."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0])
