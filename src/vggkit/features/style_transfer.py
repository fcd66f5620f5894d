"""Style transfer from coarse to fine: the images' pixels are what is optimised.

Shape letters: H and W pixels. Batches hold one image.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vggkit.features.style_coordinates import Coordinates
from vggkit.features.style_loss import StyleLoss

StyleOptimizer = Literal["lbfgs", "adam"]
SMALLEST_SIDE: Final = 128
"""Long side in pixels that the first of the sizes is not below."""
STYLE_BALANCE: Final = 20.0
"""Weight of the style term for strength=1: values of the terms are relative, so that it suits every trunk."""
HISTORY: Final = 20
"""Earlier steps that L-BFGS estimates curvature from."""
ADAM_RATE: Final = 0.02
"""Learning rate of Adam, for values in [0, 1]."""
FIRST_CHANGE: Final = 0.01
"""Mean change of a pixel's value by the first step of L-BFGS, which knows no curvature yet."""
MOST_CHANGE: Final = 0.1
"""Mean change of a pixel's value by any step, at most."""
MARGIN: Final = 12
"""Pixels around the image that are optimised and cut off: zeros beyond the edge leave a frame in them."""
WORSE: Final = 2.0
"""A loss so many times the best one has left the region where L-BFGS's estimate holds."""
LOSS_SCALE: Final = 1e4
"""torch's L-BFGS leaves out curvature below 1e-10, whatever the loss's scale."""


@dataclass(frozen=True, slots=True)
class StyleStep:
    """One evaluation of the loss."""

    number: int
    """Its number over all sizes, from 1."""
    height: int
    """Height of the image in pixels."""
    width: int
    """Width of the image in pixels."""
    loss: float
    """What was minimised: content, style times its weight, and total variation times its own."""
    content_loss: float
    """Relative squared difference of the content layer's values."""
    style_loss: float
    """Mean relative squared difference of the style layers' Gram matrices."""


def plan_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Heights and widths from coarse to fine: halved as long as the long side is not below 128 pixels."""
    sizes = [size]
    while max(sizes[0]) // 2 >= SMALLEST_SIDE and min(sizes[0]) // 2 >= 32:
        sizes.insert(0, (round(sizes[0][0] / 2), round(sizes[0][1] / 2)))
    return sizes


def resize_tensor(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (1, 3, H, W) at another size."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


class Iterate(NamedTuple):
    """An evaluation, and the best one up to it."""

    images: Tensor
    """What was evaluated."""
    loss: float
    """Its loss."""
    best: Tensor
    """The images with the lowest loss so far."""


def minimize(
    evaluate: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    steps: int,
    optimizer: StyleOptimizer,
) -> Iterator[Iterate]:
    """Each of so many evaluations of a loss and its gradient.

    A loss that is not finite, or far above the best one, sends L-BFGS back to the best images without its memory.
    """
    coordinates = Coordinates(images)
    values = torch.zeros(images.shape, device=images.device, requires_grad=True)
    best, best_loss, best_images = values.detach().clone(), float("inf"), images
    stepper, first, is_first = _build_optimizer(values, optimizer), FIRST_CHANGE, True
    found, seen = 0.0, images

    def close() -> Tensor:
        nonlocal found, seen
        stepper.zero_grad()
        made = coordinates.to_images(values)
        loss = LOSS_SCALE * evaluate(made)
        loss.backward()
        found, seen = float(loss.detach()), made.detach()
        return loss

    for _ in range(steps):
        before = values.detach().clone()
        if optimizer == "lbfgs":  # torch divides its first step by the sum of the gradient's absolute values
            stepper.param_groups[0]["lr"] = values.numel() if is_first else 1.0
        stepper.step(close)  # type: ignore[arg-type]
        if found < best_loss:
            best, best_loss, best_images = before, found, seen
        if optimizer == "lbfgs":
            if found < WORSE * best_loss:
                _shorten(stepper, values, before, coordinates, first if is_first else MOST_CHANGE)
                is_first = False
            else:
                with torch.no_grad():
                    values.copy_(best)
                stepper, first, is_first = _build_optimizer(values, optimizer), first / 4, True
        yield Iterate(seen, found / LOSS_SCALE, best_images)


@torch.no_grad()
def _shorten(
    stepper: torch.optim.Optimizer, values: Tensor, before: Tensor, coordinates: Coordinates, most: float
) -> None:
    """Where little curvature was seen yet L-BFGS's step may be far too long; its memory holds the length in `t`."""
    change = float(coordinates.filter(values - before).abs().mean())
    if change > most:
        values.lerp_(before, 1 - most / change)
        stepper.state[values]["t"] *= most / change


def _build_optimizer(values: Tensor, optimizer: StyleOptimizer) -> torch.optim.Optimizer:
    if optimizer == "adam":
        return torch.optim.Adam([values], lr=ADAM_RATE)
    return torch.optim.LBFGS([values], max_iter=1, history_size=HISTORY, tolerance_grad=0, tolerance_change=0)


def transfer(
    loss: StyleLoss,
    content: Tensor,
    styles: Sequence[Tensor],
    weights: Sequence[float],
    *,
    strength: float,
    sizes: Sequence[tuple[int, int]],
    steps: int,
    optimizer: StyleOptimizer,
    smoothness: float,
    noise_seed: int | None,
    on_step: Callable[[StyleStep, Tensor], None],
) -> Tensor:
    """The image (1, 3, H, W) in [0, 1] of the last of the sizes.

    Args:
        loss: What is minimised.
        content: The content image (1, 3, H, W) in [0, 1], of the last size.
        styles: The style images, each as large as it is to be beside the last size.
        weights: A weight of each.
        strength: Weight of the style term.
        sizes: Heights and widths from coarse to fine.
        steps: Evaluations over all sizes.
        optimizer: lbfgs or adam.
        smoothness: Weight of the total variation.
        noise_seed: Start from noise of this seed; None: from the content.
        on_step: Called after each step with what it was and the image before it.

    Raises BadInput where the network gives values that are not finite.
    """
    images, number = content, 0
    for size, count in zip(sizes, share_steps(steps, len(sizes)), strict=True):
        scale = max(size) / max(sizes[-1])
        reference = extend(resize_tensor(content, size))
        loss.refer(reference, [_shrink(each, scale) for each in styles], weights)
        if number:
            images = extend(resize_tensor(images, size))
        elif noise_seed is not None:
            generator = torch.Generator().manual_seed(noise_seed)
            images = torch.rand(reference.shape, generator=generator).to(reference.device)
        else:
            images = reference
        energy = _Energy(loss, strength=strength, smoothness=smoothness)
        for values in minimize(energy, images, steps=count, optimizer=optimizer):
            number += 1
            images = values.best
            on_step(StyleStep(number, *size, values.loss, *energy.terms), crop_margin(values.images))
        images = crop_margin(images).clamp(0, 1)
    return images


class _Energy:
    """What is minimised: the terms times their weights."""

    def __init__(self, loss: StyleLoss, *, strength: float, smoothness: float) -> None:
        self._loss, self._weight, self._smoothness = loss, strength * STYLE_BALANCE, smoothness
        self.terms = (0.0, 0.0)

    def __call__(self, images: Tensor) -> Tensor:
        content, style = self._loss(images)
        self.terms = float(content.detach()), float(style.detach())
        total = content + self._weight * style
        if self._smoothness:
            total = total + self._smoothness * measure_variation(images)
        return total


def share_steps(steps: int, sizes: int) -> list[int]:
    """Steps for each size, from coarse to fine: equally many, a few more of them fine."""
    ends = [steps * number // sizes for number in range(sizes + 1)]
    return [end - start for start, end in itertools.pairwise(ends)]


def measure_variation(images: Tensor) -> Tensor:
    """Mean squared difference of neighbours, down and across."""
    down, across = images[..., 1:, :] - images[..., :-1, :], images[..., 1:] - images[..., :-1]
    return down.square().mean() + across.square().mean()


def extend(images: Tensor) -> Tensor:
    """Continued on all sides as in a mirror: what is added is optimised, too, and cut off in the end."""
    return F.pad(images, (MARGIN,) * 4, mode="reflect")


def crop_margin(images: Tensor) -> Tensor:
    """What `extend` continued."""
    return images[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


def _shrink(images: Tensor, scale: float) -> Tensor:
    height, width = (max(32, round(side * scale)) for side in images.shape[-2:])
    return resize_tensor(images, (height, width))
