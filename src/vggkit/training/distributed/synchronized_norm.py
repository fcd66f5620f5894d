"""Batch norm by the statistics of every process's images, on any device (torch's own needs a GPU).

Shape letters: N images, C channels, H and W pixels.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def normalize_together(norm: nn.BatchNorm2d, maps: Tensor) -> Tensor:
    """`norm` of maps (N, C, H, W) in training mode, as if the processes' images were one batch."""
    assert norm.training, "in evaluation mode it needs nobody's statistics"
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    normalized, mean, variance, count = cast(
        tuple[Tensor, Tensor, Tensor, Tensor], _Normalize.apply(maps, norm.weight, norm.bias, norm.eps)
    )
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        share = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
        norm.running_mean.lerp_(mean, share)
        norm.running_var.lerp_(variance * (count / (count - 1)), share)
    return normalized


def average_statistics(network: nn.Module, size: int) -> None:
    """Let every process have the mean of all processes' running statistics of batch norm."""
    norms = [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
    moving = [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
    if not moving:
        return
    together = torch.cat(moving)
    dist.all_reduce(together)
    together.div_(size)
    for value, mean in zip(moving, together.split([len(value) for value in moving]), strict=True):
        value.copy_(mean)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = maps.float()
        variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        own = torch.cat([mean, variance, wide.new_full((1,), wide.numel() / wide.shape[1])])
        every = own.new_empty(dist.get_world_size() * len(own))
        dist.all_gather_into_tensor(every, own)
        every = every.view(-1, len(own))
        shares = every[:, -1:] / every[:, -1].sum()
        means, variances = every[:, :-1].chunk(2, dim=1)
        # By differences: a mean of squares less a squared mean loses the digits that count.
        mean = (shares * means).sum(0)
        variance = (shares * (variances + (means - mean).square())).sum(0)
        count = every[:, -1].sum()
        ctx.save_for_backward(maps, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(maps, mean, variance, weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        maps, weight, mean, variance, count = ctx.saved_tensors
        scale = (variance + ctx.eps).rsqrt()
        wide, given = maps.float(), gradient.float()
        centred = (wide - mean[:, None, None]) * scale[:, None, None]
        of_bias, of_weight = given.sum((0, 2, 3)), (given * centred).sum((0, 2, 3))
        sums = torch.cat([of_bias, of_weight])
        dist.all_reduce(sums)
        shift, tilt = (sums / count).chunk(2)
        found = (given - shift[:, None, None] - centred * tilt[:, None, None]) * (weight * scale)[:, None, None]
        return found.to(maps.dtype), of_weight, of_bias, None
