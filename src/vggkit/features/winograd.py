"""Convolutions 3×3 with fewer multiplications, by Winograd's algorithm (Lavin and Gray 2016, arXiv 1509.09308).

F(4×4, 3×3): 16 places of a channel take 36 products in place of 144. Additions before and after them cost part of
what is saved, so it pays from about 64 channels on. Sums are rounded differently: results differ by about 3e-6 of
their size from those of other algorithms.

Shape letters: N images, C channels in, K channels out, H and W places, T tiles of 4×4 places, h and w of them.
"""

from typing import Final

import torch
from torch import Tensor, nn

LEAST_CHANNELS: Final = 64
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

_INPUTS, _OUTPUTS = torch.kron(_INPUT, _INPUT), torch.kron(_OUTPUT, _OUTPUT)
_TURNED_INPUT, _TURNED_OUTPUT = (torch.kron(each, each) for each in (_INPUT.flip(1), _OUTPUT.flip(0)))


def is_worth_it(module: nn.Conv2d) -> bool:
    """Whether a convolution is of the kind that this algorithm computes, and of enough channels to be faster."""
    return module.kernel_size == (3, 3) and min(module.in_channels, module.out_channels) >= LEAST_CHANNELS


def transform_filters(weight: Tensor) -> Tensor:
    """(36, C, K) of a convolution's weight (K, C, 3, 3), for `convolve_tiles`."""
    flat = weight.detach().double().permute(2, 3, 1, 0).flatten(0, 1).flatten(1)
    both = torch.kron(_FILTER, _FILTER).to(weight.device)
    return (both @ flat).to(weight.dtype).view(36, weight.shape[1], weight.shape[0])


def convolve_tiles(maps: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution 3×3 with padding 1 of maps (N, C, H, W), fastest in channels_last; (N, K, H, W) in it."""
    return _multiply_tiles(maps, filters, bias, is_turned=False)


def convolve_tiles_back(gradient: Tensor, filters: Tensor) -> Tensor:
    """The gradient (N, C, H, W) with respect to the maps, of that of the result (N, K, H, W)."""
    # The gradient's convolution is with the filters turned by 180 degrees: equal to turning each tile.
    return _multiply_tiles(gradient, filters.transpose(1, 2), None, is_turned=True)


def _multiply_tiles(maps: Tensor, filters: Tensor, bias: Tensor | None, *, is_turned: bool) -> Tensor:
    """The convolution; with `is_turned` by filters turned by 180 degrees."""
    count, channels, height, width = maps.shape
    out_channels = filters.shape[2]
    down, across = -(-height // 4), -(-width // 4)
    matrices = (_TURNED_INPUT, _TURNED_OUTPUT) if is_turned else (_INPUTS, _OUTPUTS)
    before, after = (each.to(maps) for each in matrices)
    rows = maps.new_zeros(count, 4 * down + 2, 4 * across + 2, channels)
    rows[:, 1 : height + 1, 1 : width + 1].copy_(maps.permute(0, 2, 3, 1))
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
        places = after @ products.view(36, -1)
        if bias is not None:
            places.view(-1, out_channels).add_(bias)
        part = last[:, 4 * first : 4 * (first + now)].view(count, now, 4, across, 4, out_channels)
        part.copy_(places.view(4, 4, count, now, across, out_channels).permute(2, 3, 0, 4, 1, 5))
    is_whole = found.shape[2:] == maps.shape[2:]
    return found if is_whole else found[..., :height, :width].contiguous(memory_format=torch.channels_last)
