"""Convolutions of a training in float32 on a processor, with fewer multiplications (Winograd's algorithm).

Results and gradients differ from those of the direct algorithm by about 3e-6 of their size, a thousandth of what
bfloat16 rounds away. Which algorithm computes depends on shapes alone, so that the same steps give the same bits.

Shape letters: N images, C channels in, K channels out, H and W places.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from vggkit.engines.winograd import (
    convolve_tiles,
    convolve_tiles_back,
    find_filter_gradient,
    is_worth_learning,
    transform_filters,
)


class TiledConvolutions(TorchFunctionMode):
    """Where it is entered, convolutions that are faster with this algorithm use it; modules and hooks stay as they
    are.

    Each parameter and each map gets its gradient as usual; a second derivative is an error.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, or compute in its place."""
        if func is torch.conv2d and not kwargs and _is_suitable(*args):
            return _TiledConvolution.apply(*args[:3])
        return func(*args, **(kwargs or {}))


def _is_suitable(
    maps: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, *others: Any
) -> bool:
    """Whether it is a convolution 3×3 with padding 1 in float32 on a processor, of a size that gains."""
    return (
        weight.shape[2:] == (3, 3)
        and (tuple(stride), padding, *others) == ((1, 1), (1, 1), (1, 1), 1)
        and maps.device.type == "cpu"
        and maps.dtype == weight.dtype == torch.float32
        and is_worth_learning(maps, weight)
    )


class _TiledConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        filters = transform_filters(weight)
        ctx.save_for_backward(maps, filters)
        return convolve_tiles(maps, filters, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        maps, filters = ctx.saved_tensors
        of_maps, of_weight, of_bias = ctx.needs_input_grad
        return (
            convolve_tiles_back(gradient, filters) if of_maps else None,
            find_filter_gradient(maps, gradient) if of_weight else None,
            gradient.sum((0, 2, 3)) if of_bias else None,
        )
