"""Pools of 2×2 places that take the largest of four values.

Shape letters: N images, C channels, H and W places.
"""

from typing import Any, Final

import torch
from torch import Tensor

from vggkit.features.first_derivative import forbid_second

TIE: Final = 1e-5
"""Values that differ by less, relative to the mean of all, may be equal but for rounding.

With 3e-6 gradients of images of flat squares are 10 % off, with 1e-5 no more than torch's own, and with 1e-4 those
of other images are 4 % off."""
BLOCK_VALUES: Final = 1 << 18
"""Of the gradient, that are distributed together: what lies between two steps stays in the processor's cache."""


def pool_largest(values: Tensor) -> Tensor:
    """What max-pool gives of maps (N, C, H, W), without the places that its gradient would need."""
    height, width = (side // 2 * 2 for side in values.shape[2:])
    upper, lower = (values[..., row:height:2, :width] for row in (0, 1))
    rows = torch.maximum(upper, lower)
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


def pool_first_largest(values: Tensor) -> Tensor:
    """The same of values after a ReLU; the gradient goes to the first of values that are equal but for rounding.

    Where an image is flat all four are equal, and max-pool's gradient goes to the first. Winograd's algorithm
    rounds them differently, and would send it anywhere.
    """
    result: Tensor = _FirstLargest.apply(values)
    return result


class _FirstLargest(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return pool_largest(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        values, largest = ctx.saved_tensors
        found = torch.empty_like(values)
        height, width = (side // 2 * 2 for side in values.shape[2:])
        found[..., height:, :], found[..., width:] = 0, 0
        tie = TIE * largest.mean((1, 2, 3), keepdim=True)
        step = max(1, BLOCK_VALUES // largest[:, :, 0].numel())
        for first in range(0, height // 2, step):
            left = gradient.detach()[:, :, first : first + step]
            least = largest[:, :, first : first + step] - tie
            chosen = torch.empty_like(least)
            for row, column in ((0, 0), (0, 1), (1, 0)):
                places = (..., slice(2 * first + row, 2 * first + 2 * left.shape[2], 2), slice(column, width, 2))
                # Comparing into floating point makes the product several times as fast.
                here = torch.ge(values[places], least, out=chosen).mul(left)
                found[places] = here
                left = left - here
            found[..., 2 * first + 1 : 2 * first + 2 * left.shape[2] : 2, 1:width:2] = left
        return forbid_second(found, values)
