"""Convolutions 3×3 with fewer multiplications, by Winograd's algorithm (Lavin and Gray 2016, arXiv 1509.09308).

F(4×4, 3×3): 16 places of a channel take 36 products in place of 144. Additions before and after them cost part of
what is saved, so it pays from about 256 channels on, and on one processor from 128. Sums are rounded differently:
results differ by about 3e-6 of their size from those of other algorithms.

Shape letters: N images, C channels in, K channels out, H and W places, T tiles of 4×4 places, h and w of them.
"""

from typing import Final

import torch
from torch import Tensor

BLOCK_VALUES: Final = 1 << 13
"""Of each of the 36 places of a tile, that are transformed together: they stay in a cache of 2 MB and less."""
LEAST_CHANNELS: Final = 128
"""With fewer, the direct algorithm is as fast."""
LEAST_CHANNELS_SHARED: Final = 256
"""The same of constant filters on several processors, between which the direct algorithm divides better."""
LEAST_TILES: Final = 128
"""With fewer, reading the filters, four times as many numbers as usual, takes the time that is saved."""
MOST_PADDING: Final = 1.4
"""Largest ratio of the places of whole tiles to those of the maps."""

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


def is_worth_it(weight: Tensor, *, threads: int) -> bool:
    """Whether a convolution 3×3 by a weight (K, C, 3, 3), of which no gradient is needed, is faster so."""
    return min(weight.shape[:2]) >= (LEAST_CHANNELS if threads == 1 else LEAST_CHANNELS_SHARED)


def is_worth_learning(maps: Tensor, weight: Tensor) -> bool:
    """Whether a convolution 3×3 of maps (N, C, H, W) by a weight (K, C, 3, 3), and its gradients, are faster so."""
    count, _, height, width = maps.shape
    tiles = -(-height // 4) * -(-width // 4)
    return (
        min(weight.shape[:2]) >= LEAST_CHANNELS
        and count * tiles >= LEAST_TILES
        and 16 * tiles <= MOST_PADDING * height * width
    )


def transform_filters(weight: Tensor) -> Tensor:
    """(36, C, K) of a convolution's weight (K, C, 3, 3), for `convolve_tiles`."""
    # As the weight lies in channels_last.
    flat = weight.detach().permute(2, 3, 0, 1).reshape(9, -1)
    both = torch.kron(_FILTER, _FILTER).to(weight)
    return (both @ flat).view(36, *weight.shape[:2]).transpose(1, 2)


def convolve_tiles(maps: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution 3×3 with padding 1 of maps (N, C, H, W), fastest in channels_last; (N, K, H, W) in it."""
    return _multiply_tiles(maps, filters, bias, is_turned=False)


def convolve_tiles_back(gradient: Tensor, filters: Tensor) -> Tensor:
    """The gradient (N, C, H, W) with respect to the maps, of that of the result (N, K, H, W)."""
    # The gradient's convolution is with the filters turned by 180 degrees: equal to turning each tile.
    return _multiply_tiles(gradient, filters.transpose(1, 2), None, is_turned=True)


def find_filter_gradient(maps: Tensor, gradient: Tensor) -> Tensor:
    """The gradient (K, C, 3, 3) with respect to the filters, of maps (N, C, H, W) and that of the result
    (N, K, H, W).
    """
    count, channels, height, width = maps.shape
    out_channels = gradient.shape[1]
    down, across = -(-height // 4), -(-width // 4)
    rows = maps.new_zeros(count, 4 * down + 2, 4 * across + 2, channels)
    rows[:, 1 : height + 1, 1 : width + 1].copy_(maps.permute(0, 2, 3, 1))
    given = gradient.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    if (height, width) != (4 * down, 4 * across):
        given = given.new_zeros(count, 4 * down, 4 * across, out_channels)
        given[:, :height, :width].copy_(gradient.permute(0, 2, 3, 1))
    found = maps.new_zeros(36, out_channels, channels)
    step = max(1, max(channels, out_channels) // (count * across))
    for first in range(0, down, step):
        now = min(step, down - first)
        spread = _spread_tiles(rows, _INPUT.to(maps), first, now)
        pulled = _spread_tiles(given, _OUTPUT.T.to(maps), first, now)
        found.baddbmm_(pulled.transpose(1, 2), spread)
    both = torch.kron(_FILTER, _FILTER).to(maps)
    return (both.T @ found.flatten(1)).view(3, 3, out_channels, channels).permute(2, 3, 0, 1)


def _multiply_tiles(maps: Tensor, filters: Tensor, bias: Tensor | None, *, is_turned: bool) -> Tensor:
    """The convolution; with `is_turned` by filters turned by 180 degrees."""
    count, channels, height, width = maps.shape
    out_channels = filters.shape[2]
    down, across = -(-height // 4), -(-width // 4)
    before, after = (
        each.to(maps) for each in ((_INPUT.flip(1), _OUTPUT.flip(0)) if is_turned else (_INPUT, _OUTPUT))
    )
    rows = maps.new_zeros(count, 4 * down + 2, 4 * across + 2, channels)
    rows[:, 1 : height + 1, 1 : width + 1].copy_(maps.permute(0, 2, 3, 1))
    found = torch.empty(
        (count, out_channels, 4 * down, 4 * across),
        dtype=maps.dtype,
        device=maps.device,
        memory_format=torch.channels_last,
    )
    # As many tiles are multiplied at a time as have about as many values as the filters.
    step = max(1, max(channels, out_channels) // (count * across))
    for first in range(0, down, step):
        now = min(step, down - first)
        spread = _spread_tiles(rows, before, first, now)
        _gather_tiles(torch.bmm(spread, filters), after, bias, found.permute(0, 2, 3, 1)[:, 4 * first :])
    is_whole = found.shape[2:] == maps.shape[2:]
    return found if is_whole else found[..., :height, :width].contiguous(memory_format=torch.channels_last)


def _spread_tiles(rows: Tensor, before: Tensor, first: int, now: int) -> Tensor:
    """Transformed tiles (36, T, C) of `now` rows of tiles, of padded maps (N, H, W, C).

    `before` is (6, S) for tiles of S×S places, each of which begins 4 places after the one before it.
    """
    count, _, width, channels = rows.shape
    side = before.shape[1]
    across = (width - side) // 4 + 1
    spread = rows.new_empty(6, 6, now, count * across * channels)
    of_image, of_row, of_place, _ = rows.stride()
    for start, stop in _blocks(now, spread.shape[3]):
        tiles = rows[:, 4 * (first + start) :].as_strided(
            (side, side, stop - start, count, across, channels),
            (of_row, of_place, 4 * of_row, of_image, 4 * of_place, 1),
        )
        half = (before @ tiles.reshape(side, -1)).view(6, side, -1)
        torch.bmm(before.expand(6, 6, side), half, out=spread[:, :, start:stop].flatten(2))
    return spread.view(36, -1, channels)


def _gather_tiles(products: Tensor, after: Tensor, bias: Tensor | None, maps: Tensor) -> None:
    """Write rows of tiles, transformed back from products (36, T, K), at the top of maps (N, H, W, K)."""
    count, _, width, channels = maps.shape
    across = width // 4
    products = products.view(6, 6, -1, count * across * channels)
    for start, stop in _blocks(products.shape[2], products.shape[3]):
        half = torch.bmm(after.expand(6, 4, 6), products[:, :, start:stop].flatten(2))
        places = after @ half.view(6, -1)
        if bias is not None:
            places.view(-1, channels).add_(bias)
        places = places.view(4, 4, stop - start, count, across, channels)
        part = maps[:, 4 * start : 4 * stop].view(count, stop - start, 4, across, 4, channels)
        part.copy_(places.permute(3, 2, 0, 4, 1, 5))


def _blocks(rows: int, values: int) -> list[tuple[int, int]]:
    """Ranges of rows of tiles, of so many values each at one of the 36 places, that stay in the cache."""
    step = max(1, BLOCK_VALUES // values)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]
