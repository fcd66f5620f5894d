"""The order in which channels go: those first without which the next layer's output is still reconstructed.

ThiNet (Luo et al. 2017, arXiv:1707.06342) and channel pruning (He et al. 2017, arXiv:1707.06168) remove the
channels whose absence the next layer's weights, fitted anew by least squares, make up for best. Here the error of
that fit is known in closed form at each removal, as in Optimal Brain Surgeon (Hassibi and Stork 1993).

Shape letters: C channels, B columns of a channel, O outputs.
"""

from dataclasses import dataclass
from typing import Final

import torch

from vggkit.compression.moments import Moments

STEPS: Final = 64
"""Removals of all channels are done in about so many steps, a few channels in each."""


@dataclass(frozen=True, slots=True)
class Elimination:
    """The channels of a layer in the order of their removal."""

    order: tuple[int, ...]
    """Numbers of channels, the most dispensable first."""
    errors: tuple[float, ...]
    """Relative squared error of the next layer's output after each of these removals, with its weights refitted."""
    channels: int
    """C."""

    def keep(self, count: int) -> torch.Tensor:
        """Numbers of the channels that stay where `count` of them do, ascending."""
        gone = set(self.order[: self.channels - count])
        return torch.tensor([number for number in range(self.channels) if number not in gone])


def eliminate(moments: Moments, *, least: int) -> Elimination:
    """Remove channels until only `least` are left, those first that add the least error.

    Args:
        moments: Of the layer that reads the channels.
        least: Channels that stay, 1 or more.
    """
    block, channels = moments.block, moments.channels
    inverse = torch.linalg.inv(moments.gram.double()).float()
    weights = moments.cross @ inverse  # (O, C·B + 1), the refit with all channels
    there = list(range(channels))
    order: list[int] = []
    errors: list[float] = []
    error = 0.0
    batch = max(1, channels // STEPS)
    while len(there) > least:
        numbers = torch.tensor(there)
        columns = (numbers[:, None] * block + torch.arange(block)).reshape(len(there), block)
        # What the error grows by without a channel: tr(w h⁻¹ wᵀ), h its block of the inverse.
        blocks = inverse[columns[:, :, None], columns[:, None, :]]
        own = weights[:, columns.flatten()].reshape(len(weights), len(there), block)
        products = torch.einsum("ocb,ocd->cbd", own, own)
        growth = torch.linalg.solve(blocks, products).diagonal(dim1=1, dim2=2).sum(1)
        going = growth.argsort()[: min(batch, len(there) - least)]
        gone = columns[going].flatten()
        lost, square = weights[:, gone], inverse[gone][:, gone]
        error += float((lost.T * torch.linalg.solve(square, lost.T)).sum())
        crossing = torch.linalg.solve(square, inverse[gone])
        weights = weights - lost @ crossing
        inverse = inverse - inverse[:, gone] @ crossing
        removed = [there[place] for place in going.tolist()]
        order += removed
        errors += [max(error, 0.0) / moments.energy] * len(removed)
        there = [number for number in there if number not in set(removed)]
    return Elimination(tuple(order), tuple(errors), channels)
