"""Sums, gathers and batch norms over all processes of a run, with gradients: N processes equal one.

Each process takes the mean of its own part of the loss; the gradients here are those of the sum of these
over the processes. Averaging parameter gradients over processes, as DistributedDataParallel does, then gives
the gradient of the mean over the union of their batches. Every process must hold equally much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; by default there is no other."""

    rank: int = 0  # 0..size-1
    size: int = 1

    def share(self, count: int) -> slice:
        """This process's part of a batch in which each holds `count`, in the order of ranks."""
        return slice(self.rank * count, (self.rank + 1) * count)

    def sum(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The sum over processes, the same on each."""
        if self.size == 1:
            return values
        total: Tensor = _Sum.apply(values)
        return total

    def gather(self, part: Float[Tensor, "part ..."]) -> Float[Tensor, "whole ..."]:
        """The parts of all processes along the first axis, in the order of ranks, the same on each."""
        own = self.share(len(part))
        return self.sum(pad(part, [0, 0] * (part.ndim - 1) + [own.start, self.size * len(part) - own.stop]))


ALONE = Ranks()


class _Sum(torch.autograd.Function):
    """All-reduce; its adjoint is itself, since every process uses the sum."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(gradient)
        return total


def batch_norm(
    images: Float[Tensor, "b c h w"],
    weight: Float[Tensor, " c"],
    bias: Float[Tensor, " c"],
    epsilon: float,
    ranks: Ranks,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " c"], Float[Tensor, " c"]]:
    """(normalised images, mean, unbiased variance), the moments those of the batches of all processes.

    In float32 or better, whatever the images are in.
    """
    exact = images.to(torch.promote_types(images.dtype, torch.float32))
    variances, means = torch.var_mean(exact, dim=(0, 2, 3), correction=0)
    means, variances = ranks.gather(torch.stack([means, variances])[None]).unbind(1)
    mean = means.mean(0)
    variance = (variances + (means - mean) ** 2).mean(0)
    scale = weight * (variance + epsilon).rsqrt()
    normal = (exact - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)
    count = ranks.size * (images.numel() // images.shape[1])
    return normal.to(images.dtype), mean.detach(), variance.detach() * (count / max(count - 1, 1))


class SharedBatchNorm(nn.BatchNorm2d):
    """A BatchNorm2d whose batch, in training, is that of all processes; same parameters and state.

    (Torch's SyncBatchNorm refuses CPU tensors.)
    """

    def __init__(self, norm: nn.BatchNorm2d, ranks: Ranks) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.load_state_dict(norm.state_dict())
        self.train(norm.training)
        self.ranks = ranks

    def forward(self, images: Tensor) -> Tensor:
        """Normalise; the running statistics stay the same on all processes."""
        if not self.training:
            return super().forward(images)
        normal, mean, variance = batch_norm(images, self.weight, self.bias, self.eps, self.ranks)
        assert self.momentum is not None
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(value.to(running), self.momentum)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        return normal


def share_batch_norms(module: nn.Module, ranks: Ranks) -> None:
    """Put a SharedBatchNorm in the place of every BatchNorm2d within `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, SharedBatchNorm(child, ranks))
        else:
            share_batch_norms(child, ranks)
