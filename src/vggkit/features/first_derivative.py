"""Gradients that have no graph of their own: differentiating them again is an error, and not zero."""

from typing import Any, NoReturn

import torch
from torch import Tensor

from vggkit.errors import BadInput


def forbid_second(gradient: Tensor, values: Tensor) -> Tensor:
    """The gradient with respect to `values`; differentiating it again raises BadInput, in place of giving zero."""
    if not torch.is_grad_enabled():
        return gradient
    result: Tensor = _FirstOnly.apply(gradient, values)
    return result


class _FirstOnly(torch.autograd.Function):
    @staticmethod
    def forward(gradient: Tensor, values: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> NoReturn:
        raise BadInput(
            "this perceptual loss can be differentiated once; for second derivatives give images_at_once= the size "
            "of the batch, and a loss other than lpips"
        )
