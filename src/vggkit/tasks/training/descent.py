"""The lowest place of a smooth convex function."""

from collections import deque
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

REMEMBERED: Final = 10
"""Steps from which L-BFGS knows how the loss curves."""


def minimize(
    measure: Callable[[Tensor], tuple[float, Tensor]], start: Tensor, *, flat: float, most: int = 500
) -> tuple[Tensor, int]:
    """Where a smooth convex function is least, and the steps that took: L-BFGS with backtracking.

    Nocedal and Wright, Numerical Optimization (2006), algorithm 7.4. torch's own takes seconds to load
    what it does not need.

    Args:
        measure: Gives the value and the gradient.
        start: Near the place, any shape; the function is to be about round there.
        flat: Share of the value that a step must gain for another one; 0: as far as the numbers tell.
        most: Steps.
    """
    place, (value, gradient) = start, measure(start)
    memory: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=REMEMBERED)
    narrow = torch.finfo(start.dtype).eps
    for step in range(most):
        direction = -_precondition(gradient, memory)
        slope = float((gradient * direction).sum())
        length = 1.0
        while True:
            moved = place + length * direction
            reached, pulled = measure(moved)
            if reached <= value + 1e-4 * length * slope:
                break
            length /= 2
            if length < 1e-6:  # rounding is all that is left
                return place, step
        change, bend = moved - place, pulled - gradient
        curve = (change * bend).sum()
        if curve > narrow * bend.square().sum():
            memory.append((change, bend, curve))
        gained = value - reached
        place, value, gradient = moved, reached, pulled
        if gained <= max(flat, narrow) * abs(value):
            return place, step + 1
    return place, most


def _precondition(gradient: Tensor, memory: deque[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The gradient through the inverse curvature that past steps tell of, in two loops over them."""
    found, shares = gradient.clone(), []
    for change, bend, curve in reversed(memory):
        shares.append((change * found).sum() / curve)
        found -= shares[-1] * bend
    if memory:
        _, bend, curve = memory[-1]
        found *= curve / bend.square().sum()
    for (change, bend, curve), share in zip(memory, reversed(shares), strict=True):
        found += (share - (bend * found).sum() / curve) * change
    return found
