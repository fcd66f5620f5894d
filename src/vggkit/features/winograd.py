"""Convolutions 3×3 with fewer multiplications, by Winograd's algorithm (Lavin and Gray 2016, arXiv 1509.09308).

F(4×4, 3×3): 16 places of a channel take 36 products in place of 144. Additions before and after them cost part of
what is saved, so it pays from about 128 channels on. Sums are rounded differently: results differ by about 3e-6 of
their size from those of other algorithms.

Shape letters: N images, C channels in, K channels out, H and W places, T tiles of 4×4 places, h and w of them.
"""

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEAST_CHANNELS: Final = 128
"""With fewer, the direct algorithm is as fast."""

# The matrices B, G and A of Lavin and Gray, section 4.3.
_INPUT: Final = torch.tensor(
    [
        [4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
        [0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
        [0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
        [0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
        [0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
        [0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
    ],
    dtype=torch.float64,
)
_FILTER: Final = (
    torch.tensor(
        [
            [6.0, 0.0, 0.0],
            [-4.0, -4.0, -4.0],
            [-4.0, 4.0, -4.0],
            [1.0, 2.0, 4.0],
            [1.0, -2.0, 4.0],
            [0.0, 0.0, 24.0],
        ],
        dtype=torch.float64,
    )
    / 24
)
_OUTPUT: Final = torch.tensor(
    [
        [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
        [0.0, 1.0, -1.0, 2.0, -2.0, 0.0],
        [0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
        [0.0, 1.0, -1.0, 8.0, -8.0, 1.0],
    ],
    dtype=torch.float64,
)


def is_worth_it(module: nn.Conv2d) -> bool:
    """Whether a convolution is of the kind that `convolve` computes, and of enough channels to be faster."""
    return module.kernel_size == (3, 3) and min(module.in_channels, module.out_channels) >= LEAST_CHANNELS


def transform_filters(weight: Tensor) -> Tensor:
    """(36, C, K) of a convolution's weight (K, C, 3, 3), for `convolve`."""
    flat = weight.detach().double().permute(2, 3, 1, 0).flatten(0, 1).flatten(1)
    both = torch.kron(_FILTER, _FILTER).to(weight.device)
    return (both @ flat).to(weight.dtype).view(36, weight.shape[1], weight.shape[0])


def convolve(maps: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution 3×3 with padding 1 of maps (N, C, H, W) in channels_last; (N, K, H, W).

    Filters and bias are constants: only the maps get a gradient, computed by the same algorithm.
    """
    result: Tensor = _Convolution.apply(maps, filters, bias)
    return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(maps: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
        found = _multiply_tiles(maps, filters, is_flipped=False)
        return found if bias is None else found.add_(bias[:, None, None])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (filters,) = ctx.saved_tensors
        # The gradient's convolution is with the filters turned round: equal to turning round each tile.
        return _multiply_tiles(gradient, filters.transpose(1, 2), is_flipped=True), None, None


def _multiply_tiles(maps: Tensor, filters: Tensor, *, is_flipped: bool) -> Tensor:
    """The convolution; with `is_flipped` by filters turned by 180 degrees."""
    count, channels, height, width = maps.shape
    out_channels = filters.shape[2]
    down, across = -(-height // 4), -(-width // 4)
    before = _INPUT.flip(1) if is_flipped else _INPUT
    after = _OUTPUT.flip(0) if is_flipped else _OUTPUT
    before, after = (torch.kron(each, each).to(maps) for each in (before, after))
    rows = F.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 4 * across - width + 1, 1, 4 * down - height + 1)).contiguous()
    of_image, of_row, of_place, _ = rows.stride()
    found = torch.empty(
        (count, out_channels, 4 * down, 4 * across),
        dtype=maps.dtype,
        device=maps.device,
        memory_format=torch.channels_last,
    )
    last = found.permute(0, 2, 3, 1)
    # As many tiles at a time as have about as many values as the filters: both stay in the processor's cache.
    step = max(1, max(channels, out_channels) // (count * across))
    for first in range(0, down, step):
        now = min(step, down - first)
        tiles = rows[:, 4 * first :].as_strided(
            (6, 6, count, now, across, channels), (of_row, of_place, of_image, 4 * of_row, 4 * of_place, 1)
        )
        spread = (before @ tiles.reshape(36, -1)).view(36, -1, channels)
        products = torch.bmm(spread, filters)
        places = (after @ products.view(36, -1)).view(4, 4, count, now, across, out_channels)
        part = last[:, 4 * first : 4 * (first + now)].view(count, now, 4, across, 4, out_channels)
        part.copy_(places.permute(2, 3, 0, 4, 1, 5))
    is_whole = found.shape[2:] == maps.shape[2:]
    return found if is_whole else found[..., :height, :width].contiguous(memory_format=torch.channels_last)
