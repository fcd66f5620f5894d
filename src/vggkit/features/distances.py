"""Distances between the values of a layer for images and for their references.

Shape letters: N images, C channels, H and W places, M = H·W.
"""

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NORM_EPSILON: Final = 1e-10
"""Added to the norm of the channels of a place, as LPIPS does."""
SIMILARITY_EPSILON: Final = 1e-6
"""The constants of the similarities of DISTS."""
BLOCK_VALUES: Final = 1 << 18
"""Values that are computed together, so that what lies between two steps stays in the processor's cache."""


def compare(values: Tensor, reference: Tensor, *, distance: str, reduction: str) -> Tensor:
    """(N,) mean or sum of the absolute (`l1`) or squared (`l2`) differences of (N, …)."""
    difference = values - reference
    each = difference.abs() if distance == "l1" else difference.square()
    each = each.flatten(1)
    return each.mean(1) if reduction == "mean" else each.sum(1)


def gram(values: Tensor) -> Tensor:
    """Gram matrices (N, C, C) of maps (N, C, H, W), divided by C·H·W; in float32 at least.

    The maps are divided before they are multiplied: sums of products of undivided ones overflow in float16.
    """
    rows = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    rows = rows.flatten(2)
    rows = rows / (rows.shape[1] * rows.shape[2]) ** 0.5
    return rows @ rows.transpose(1, 2)


def normalize_channels(values: Tensor) -> Tensor:
    """Maps (N, C, H, W) whose channels have length 1 at each place; places of zeros stay zeros."""
    return values / (torch.linalg.vector_norm(values, dim=1, keepdim=True) + NORM_EPSILON)


def weigh_normalized(values: Tensor, unit: Tensor, weights: Tensor) -> Tensor:
    """LPIPS's distance (N,) at one layer: mean over the places of the weighted squared differences of channels.

    Args:
        values: Maps (N, C, H, W).
        unit: `normalize_channels` of the reference's maps, of the same shape, or of one image for all.
        weights: (C,).

    One kernel in place of the ten that its formula takes, and in the backward pass nothing is kept but `values` and
    `unit`. The gradient at a place of zeros is 0; the formula's own is not defined there.
    """
    result: Tensor = _NormalizedDistance.apply(values, unit, weights)
    return result


class _NormalizedDistance(torch.autograd.Function):
    """Works on blocks of places, in the memory order of `channels_last`, in float32."""

    @staticmethod
    def forward(values: Tensor, unit: Tensor, weights: Tensor) -> Tensor:
        rows, units = _as_rows(values), _as_rows(unit)
        found = values.new_empty(len(rows), dtype=torch.float32)
        for number in range(len(rows)):
            of_unit = units[number if len(units) > 1 else 0]
            total = torch.zeros((), dtype=torch.float64, device=values.device)
            for first, stop in _blocks(rows[number]):
                ours = rows[number, first:stop].float()
                lengths = torch.linalg.vector_norm(ours, dim=1, keepdim=True).add_(NORM_EPSILON)
                difference = (ours / lengths).sub_(of_unit[first:stop])
                total += (difference.square_() @ weights).sum(dtype=torch.float64)
            found[number] = total / rows.shape[1]
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        values, unit, weights = ctx.saved_tensors
        rows, units = _as_rows(values), _as_rows(unit)
        found = torch.empty_like(rows)
        for number in range(len(rows)):
            of_unit, scale = units[number if len(units) > 1 else 0], gradient[number] * 2 / rows.shape[1]
            scaled = weights * scale
            for first, stop in _blocks(rows[number]):
                ours = rows[number, first:stop].float()
                norms = torch.linalg.vector_norm(ours, dim=1, keepdim=True)
                lengths = norms + NORM_EPSILON
                normed = ours / lengths
                pull = (normed - of_unit[first:stop]).mul_(scaled)
                # Of x / (|x| + e): what lies along x changes its length alone.
                along = (pull * normed).sum(1, keepdim=True).div_(norms.clamp_min(1e-30).mul_(lengths))
                found[number, first:stop] = pull.div_(lengths).addcmul_(ours, along, value=-1)
        shape = values.shape
        maps = found.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2)
        return maps, None, None


def _as_rows(maps: Tensor) -> Tensor:
    """(N, M, C) of maps (N, C, H, W); a view where they are `channels_last`."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def _blocks(rows: Tensor) -> list[tuple[int, int]]:
    """Ranges of the rows (M, C) of about BLOCK_VALUES values."""
    step = max(1, BLOCK_VALUES // rows.shape[1])
    return [(first, min(first + step, len(rows))) for first in range(0, len(rows), step)]


def compare_structure(values: Tensor, reference: Tensor, *, alpha: Tensor, beta: Tensor) -> Tensor:
    """DISTS's weighted similarity (N,) at one layer; the sum over layers, subtracted from 1, is the distance.

    Args:
        values: Maps (N, C, H, W).
        reference: The reference's.
        alpha: (C,) weights of the similarity of means (texture).
        beta: (C,) weights of the similarity of covariances (structure).
    """
    ours, theirs = values.float(), reference.float()
    mean, other = ours.mean((2, 3)), theirs.mean((2, 3))
    texture = (2 * mean * other + SIMILARITY_EPSILON) / (mean.square() + other.square() + SIMILARITY_EPSILON)
    centred, against = ours - mean[:, :, None, None], theirs - other[:, :, None, None]
    covariance = (centred * against).mean((2, 3))
    variances = centred.square().mean((2, 3)) + against.square().mean((2, 3))
    structure = (2 * covariance + SIMILARITY_EPSILON) / (variances + SIMILARITY_EPSILON)
    return texture @ alpha + structure @ beta
