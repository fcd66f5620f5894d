"""Convolutions 3×3 of constant weights whose gradient is computed by another algorithm than their result.

A gradient takes the path through ReLUs and pools that the results chose. Rounding results changes signs near 0 and
the largest of nearly equal values, and so the path. What is left of the gradient is linear in it: there a rounding
of a few thousandths stays one.

Shape letters: N images, C channels in, K channels out, H and W places.
"""

from dataclasses import dataclass, replace
from typing import Any, Final, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vggkit.engines.winograd import convolve_tiles, convolve_tiles_back

FEW_CHANNELS: Final = 4
"""With as few, torch's gradient takes several times as long as the products that it needs."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """The constants of a convolution with padding 1."""

    weight: Tensor
    """(K, C, 3, 3)."""
    bias: Tensor | None
    """(K,)."""
    tiles: Tensor | None = None
    """`transform_filters` of the weight, for Winograd's algorithm; None: none of it."""
    turned: Tensor | None = None
    """(C, K, 3, 3) `turn` of the weight in bfloat16: gradients are computed in it; None: in the maps' precision."""
    is_direct: bool = True
    """Results are those of torch's own convolution, and Winograd's algorithm is for gradients alone."""

    def without_bias(self) -> Self:
        return replace(self, bias=None)


def turn(weight: Tensor) -> Tensor:
    """(C, K, 3, 3): the gradient of a convolution is the convolution with these filters."""
    return weight.detach().flip(2, 3).transpose(0, 1)


def convolve(maps: Tensor, kernel: Kernel) -> Tensor:
    """The convolution (N, K, H, W) of maps (N, C, H, W). Only the maps get a gradient."""
    result: Tensor = _Convolution.apply(maps, kernel, False)
    return result


class _Convolution(torch.autograd.Function):
    """The convolution, or its transpose. Each is the other's gradient, and so there are second derivatives."""

    @staticmethod
    def forward(maps: Tensor, kernel: Kernel, is_transposed: bool) -> Tensor:
        return _compute_transpose(maps, kernel) if is_transposed else _compute(maps, kernel)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Kernel, bool], output: Tensor) -> None:
        _, ctx.kernel, ctx.is_transposed = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Convolution.apply(gradient, ctx.kernel.without_bias(), not ctx.is_transposed), None, None


def _compute(maps: Tensor, kernel: Kernel) -> Tensor:
    if kernel.tiles is not None and not kernel.is_direct:
        return convolve_tiles(maps, kernel.tiles, kernel.bias)
    return F.conv2d(maps, kernel.weight, kernel.bias, padding=1)


def _compute_transpose(gradient: Tensor, kernel: Kernel) -> Tensor:
    if kernel.turned is not None:
        return F.conv2d(gradient.to(kernel.turned.dtype), kernel.turned, padding=1).to(gradient.dtype)
    if kernel.tiles is not None:
        if not kernel.is_direct:
            return convolve_tiles_back(gradient, kernel.tiles)
        # Results, and what ReLUs and pools keep of them, have their places side by side.
        return _swap(convolve_tiles_back(_swap(gradient), kernel.tiles))
    channels = kernel.weight.shape[1]
    if channels < FEW_CHANNELS and kernel.is_direct:
        columns = kernel.weight.flatten(1).t() @ gradient.flatten(2)
        return F.fold(columns, gradient.shape[2:], 3, padding=1)
    return F.conv_transpose2d(gradient, kernel.weight, padding=1)


def _swap(maps: Tensor) -> Tensor:
    """Maps (N, C, H, W) in channels_last, or those in channels_last with their places side by side.

    Matrices are transposed by blocks, and tensors of more dimensions are not: this takes a third of the time.
    """
    is_last = maps.is_contiguous(memory_format=torch.channels_last)
    found = torch.empty_like(maps, memory_format=torch.contiguous_format if is_last else torch.channels_last)
    for each, result in zip(maps if is_last else maps.contiguous(), found, strict=True):
        if is_last:
            result.flatten(1).copy_(each.permute(1, 2, 0).flatten(0, 1).t())
        else:
            result.permute(1, 2, 0).flatten(0, 1).copy_(each.flatten(1).t())
    return found
