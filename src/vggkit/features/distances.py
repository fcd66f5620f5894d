"""Distances between the values of a layer for images and for their references.

Shape letters: N images, C channels, H and W places, M = H·W.
"""

from typing import Any, Final

import torch
from torch import Tensor

from vggkit.features.first_derivative import forbid_second
from vggkit.models.layers import widen

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
    rows = widen(values).flatten(2)
    rows = rows / (rows.shape[1] * rows.shape[2]) ** 0.5
    matrices: Tensor = rows @ rows.transpose(1, 2)
    return matrices


def normalize_channels(values: Tensor, *, in_place: bool = False) -> Tensor:
    """Maps (N, C, H, W) whose channels have length 1 at each place; places of zeros stay zeros.

    With `in_place` the maps may be overwritten, and are where no gradient needs them.
    """
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and values.requires_grad):
        # The gradient of the other form is not defined at zeros.
        lengths: Tensor = torch.linalg.vector_norm(values, dim=1, keepdim=True)
        return values / lengths.add(NORM_EPSILON)
    if not (values.is_contiguous() or values.is_contiguous(memory_format=torch.channels_last)):
        values = values.contiguous()
    found = values if in_place else torch.empty_like(values)
    for columns, result in zip(values.flatten(2), found.flatten(2), strict=True):
        for first, stop in _blocks(columns):
            ours = columns[:, first:stop]
            torch.div(ours, _find_lengths(ours).add_(NORM_EPSILON), out=result[:, first:stop])
    return found


def weigh_normalized(values: Tensor, unit: Tensor, weights: Tensor) -> Tensor:
    """LPIPS's distance (N,) at one layer: mean over the places of the weighted squared differences of channels.

    Args:
        values: Maps (N, C, H, W).
        unit: `normalize_channels` of the reference's maps, of the same shape, or of one image for all.
        weights: (C,).

    One kernel in place of the ten that its formula takes, and only `values` and `unit` are saved for the backward
    pass. The gradient at a place of zeros is 0; the formula's own is not defined there.
    """
    result: Tensor = _NormalizedDistance.apply(values, unit, weights)
    return result


class _NormalizedDistance(torch.autograd.Function):
    """Works on blocks of places, in whatever memory order the maps have."""

    @staticmethod
    def forward(values: Tensor, unit: Tensor, weights: Tensor) -> Tensor:
        found = unit.new_empty(len(values))
        for number, columns in enumerate(values.flatten(2)):
            of_unit = unit[number if len(unit) > 1 else 0].flatten(1)
            sums = []
            for first, stop in _blocks(columns):
                ours = widen(columns[:, first:stop])
                lengths = _find_lengths(ours).add_(NORM_EPSILON)
                difference = (ours / lengths).sub_(of_unit[:, first:stop])
                sums.append((weights @ difference.square_()).sum())
            found[number] = torch.stack(sums).sum() / columns.shape[1]
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        saved, unit, weights = ctx.saved_tensors
        values = saved.detach()
        gradient, found = gradient.detach(), torch.empty_like(values)
        for number, columns in enumerate(values.flatten(2)):
            of_unit, result = unit[number if len(unit) > 1 else 0].flatten(1), found[number].flatten(1)
            scaled = (weights * (gradient[number] * 2 / columns.shape[1]))[:, None]
            for first, stop in _blocks(columns):
                ours = widen(columns[:, first:stop])
                norms = _find_lengths(ours)
                lengths = norms + NORM_EPSILON
                normed = ours / lengths
                pull = (normed - of_unit[:, first:stop]).mul_(scaled)
                # Of x / (|x| + e): what lies along x changes its length alone.
                along = (pull * normed).sum(0).div_(norms.clamp_min_(1e-30).mul_(lengths))
                result[:, first:stop] = pull.div_(lengths).addcmul_(ours, along, value=-1)
        return forbid_second(found, saved), None, None


def _find_lengths(columns: Tensor) -> Tensor:
    """(M,) lengths of columns (C, M); `vector_norm` takes several times as long where places lie side by side."""
    return columns.square().sum(0).sqrt_()


def _blocks(columns: Tensor) -> list[tuple[int, int]]:
    """Ranges of the columns (C, M) of about BLOCK_VALUES values."""
    step = max(1, BLOCK_VALUES // columns.shape[0])
    return [(first, min(first + step, columns.shape[1])) for first in range(0, columns.shape[1], step)]


def compare_structure(values: Tensor, reference: Tensor, *, alpha: Tensor, beta: Tensor) -> Tensor:
    """DISTS's weighted similarity (N,) at one layer; the sum over layers, subtracted from 1, is the distance.

    Args:
        values: Maps (N, C, H, W).
        reference: The reference's.
        alpha: (C,) weights of the similarity of means (texture).
        beta: (C,) weights of the similarity of covariances (structure).
    """
    ours, theirs = widen(values), widen(reference)
    mean, other = ours.mean((2, 3)), theirs.mean((2, 3))
    texture = (2 * mean * other + SIMILARITY_EPSILON) / (mean.square() + other.square() + SIMILARITY_EPSILON)
    centred, against = ours - mean[:, :, None, None], theirs - other[:, :, None, None]
    covariance = (centred * against).mean((2, 3))
    variances = centred.square().mean((2, 3)) + against.square().mean((2, 3))
    structure = (2 * covariance + SIMILARITY_EPSILON) / (variances + SIMILARITY_EPSILON)
    return texture @ alpha + structure @ beta
