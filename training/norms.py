"""Batch norm when there are several processes, and when there is a single value per channel."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from napari_isdnet.model.layers import PooledBatchNorm2d


class _SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over all processes; the gradient is that of the sum of all their losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004 (torch's signature)
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics are those of the batches of all processes together; float32 at least, any device.

    torch's own needs an accelerator, and its conversion drops the activation inside of timm's norms. With one value per
    channel over all processes the running statistics are used, as in :class:`PooledBatchNorm2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if not self.training:
            return super().forward(x)
        # Every process has crops of one size and equally many of them.
        count = x.numel() // x.shape[1] * dist.get_world_size()
        if count == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        values = x if x.dtype == torch.float64 else x.float()
        mean = _SumOverProcesses.apply(values.sum((0, 2, 3))) / count
        centred = values - mean.view(1, -1, 1, 1)
        # In two passes: the variance of large means would drown in the rounding of a sum of squares.
        variance = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / count
        self._remember(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        result = centred * scale.view(1, -1, 1, 1)
        if self.bias is not None:
            result = result + self.bias.view(1, -1, 1, 1)
        return result.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, step)
        self.running_var.lerp_(variance, step)


class SharedBatchNormAct2d(SharedBatchNorm2d):
    """The same in place of timm's batch norm with an activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return self.act(self.drop(super().forward(x)))  # type: ignore[no-any-return]


def prepare_norms(network: nn.Module, processes: int, shared: bool) -> None:
    """Change every batch norm in place for training; parameters, buffers and their names stay.

    With several ``processes`` and ``shared``, statistics are those of the global batch. Else plain batch norms become
    ones that also train where a batch of one leaves a single value per channel.
    """
    for module in network.modules():
        if processes > 1 and shared:
            if isinstance(module, BatchNormAct2d):
                module.__class__ = SharedBatchNormAct2d  # type: ignore[assignment]
            elif isinstance(module, nn.BatchNorm2d):
                module.__class__ = SharedBatchNorm2d
        elif type(module) is nn.BatchNorm2d:
            module.__class__ = PooledBatchNorm2d
