"""The gradient of a loss with respect to its images, some images at a time.

The loss of an image does not depend on the other images of the batch. Therefore the values of all layers, which the
gradient needs, are stored for a few images at a time, until these have their gradients.

Shape letters: N images, C channels, H and W pixels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vggkit.features.first_derivative import forbid_second

Distance = Callable[[Tensor, slice], Tensor]
"""Takes images (n, C, H, W), and which of the batch they are; gives (n,)."""


def compute_in_parts(distance: Distance, images: Tensor, *, at_once: int) -> Tensor:
    """(N,) distances of images (N, C, H, W), of which `at_once` are computed together.

    Where the images require a gradient it is computed at the same time, and stored for the backward pass; it cannot
    be differentiated again.
    """
    if torch.is_grad_enabled() and images.requires_grad:
        result: Tensor = _Differentiated.apply(images, distance, at_once)[0]
        return result
    return torch.cat([distance(images[rows], rows) for rows in _list_parts(len(images), at_once)])


def _list_parts(count: int, at_once: int) -> list[slice]:
    return [slice(first, first + at_once) for first in range(0, count, at_once)]


class _Differentiated(torch.autograd.Function):
    @staticmethod
    def forward(images: Tensor, distance: Distance, at_once: int) -> tuple[Tensor, Tensor]:
        found, gradients = [], torch.empty_like(images)
        for rows in _list_parts(len(images), at_once):
            part = images[rows].detach().requires_grad_(True)
            with torch.enable_grad():
                each = distance(part, rows)
            (gradients[rows],) = torch.autograd.grad(each, part, torch.ones_like(each))
            found.append(each.detach())
        return torch.cat(found), gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Distance, int], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        gradients, images = ctx.saved_tensors
        found = gradients * gradient[:, None, None, None].to(gradients.dtype)
        return forbid_second(found, images), None, None
