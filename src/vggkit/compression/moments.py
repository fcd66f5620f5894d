"""Second moments of what a layer reads, from which the best weights for fewer channels follow in closed form.

Shape letters: N samples (places of images), C channels, B columns of a channel (a kernel's places), O outputs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from vggkit.compression.channels import Prunable
from vggkit.compression.layer_inputs import LayerInputs
from vggkit.models.vgg import VGG

MOST_COLUMNS: Final = 5_000
"""Columns up to which each weight is fitted anew; above them one factor for each channel is."""
SAMPLES: Final = 3
"""Samples for each column that are aimed at."""
_LEAST_RIDGE: Final = 1e-3
"""Weight of the given weights as a prior, in units of the mean square of a column."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """A quadratic form: the squared error of the reader's output, as a function of its weights W (O, C·B + 1).

    The error is tr(W A Wᵀ) - 2 tr(W Gᵀ) + constant; the last column is the bias.
    """

    gram: Tensor
    """A (C·B + 1, C·B + 1), with the ridge."""
    cross: Tensor
    """G (O, C·B + 1), with the ridge's pull towards the given weights."""
    energy: float
    """Sum of squares of the deviations of the wanted outputs, in whose units errors are told."""
    channels: int
    """C."""
    by_factor: bool
    """Whether W is one factor for each channel (O is 1) and not the weights themselves."""

    @property
    def block(self) -> int:
        """B."""
        return (len(self.gram) - 1) // self.channels

    def list_columns(self, chosen: Tensor) -> Tensor:
        """The columns of these channels, and that of the bias."""
        places = (chosen[:, None] * self.block + torch.arange(self.block)).flatten()
        return torch.cat([places, torch.tensor([len(self.gram) - 1])])

    def solve(self, chosen: Tensor) -> Tensor:
        """The weights (O, columns) with the least error from these channels alone, the bias last."""
        columns = self.list_columns(chosen)
        factor = torch.linalg.cholesky(self.gram[columns][:, columns].double())
        return torch.cholesky_solve(self.cross[:, columns].double().T, factor).T


@torch.no_grad()
def measure_moments(inputs: LayerInputs, originals: LayerInputs, layer: Prunable, *, seed: int = 0) -> Moments:
    """The moments of what reads a layer's channels.

    The network may have lost channels before: its inputs are to give the outputs of the original network, which is
    how He et al. (2017, arXiv:1707.06168, section 3.2) keep errors from adding up.

    Args:
        inputs: Of the network as it is, where the layer's channels are read.
        originals: Of the network whose outputs are wanted, at the same place.
        layer: A layer that is whole in both.
        seed: Places of maps are drawn by it.
    """
    columns = layer.channels * layer.block * layer.repeats
    by_factor = columns > MOST_COLUMNS or layer.repeats > 1
    size = (layer.channels if by_factor else columns) + 1
    weight, bias = _read_reader(inputs.network, layer)
    outputs = 1 if by_factor else len(weight)
    gram, cross = torch.zeros(size, size), torch.zeros(outputs, size)
    total, squares, count = torch.zeros(len(weight), dtype=torch.float64), 0.0, 0
    wanted_samples = SAMPLES * columns if not by_factor else SAMPLES * layer.channels
    images = sum(map(len, inputs.maps))
    places = max(1, -(-wanted_samples // images))
    draws = torch.Generator().manual_seed(seed)
    for read, wanted in _sample(inputs, originals, layer, places=places, draws=draws):
        count += len(read)
        total += wanted.double().sum(0)
        squares += float(wanted.double().square().sum())
        if by_factor:
            for shares, output in _list_contributions(read, wanted - bias, weight, layer):
                gram[:-1, :-1].addmm_(shares, shares.T)
                cross[0, :-1] += shares @ output
            gram[-1, -1] += 1.0
        else:
            extended = torch.cat([read, read.new_ones(len(read), 1)], dim=1)
            gram.addmm_(extended.T, extended)
            cross.addmm_(wanted.T, extended)
    ridge = _LEAST_RIDGE * gram.diagonal()[:-1].mean().clamp(min=1e-12)
    gram.diagonal().add_(ridge)
    prior = torch.ones(1, size) if by_factor else torch.cat([weight, bias[:, None]], dim=1)
    if by_factor:
        prior[:, -1] = 0
    cross.add_(ridge * prior)
    energy = max(squares - float(total.square().sum()) / count, 1e-12)
    return Moments(gram, cross, energy, layer.channels, by_factor)


def _list_contributions(
    inputs: Tensor, wanted: Tensor, weight: Tensor, layer: Prunable
) -> Iterator[tuple[Tensor, Tensor]]:
    """What each channel contributes to the outputs of a sample (C, O), and the wanted outputs (O,)."""
    columns = weight.reshape(len(weight), layer.repeats, layer.channels, layer.block)
    for row, output in zip(inputs, wanted, strict=True):
        values = row.reshape(layer.repeats, layer.channels, layer.block)
        yield torch.einsum("orcb,rcb->co", columns, values), output


def _sample(
    inputs: LayerInputs, originals: LayerInputs, layer: Prunable, *, places: int, draws: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the reader reads (N, C·B) in the network, and what it gives (N, O) in the original."""
    weight, bias = _read_reader(originals.network, layer)
    for mine, theirs in zip(inputs.maps, originals.maps, strict=True):
        if layer.reader.startswith("features"):
            chosen = torch.randint(mine.shape[-2] * mine.shape[-1], (len(mine), places), generator=draws)
            rows = [_cut_patches(each, chosen, math.isqrt(layer.block)) for each in (mine, theirs)]
        else:
            rows = [inputs.read_rows(mine), originals.read_rows(theirs)]
        yield rows[0], rows[1] @ weight.T + bias


def _cut_patches(maps: Tensor, chosen: Tensor, side: int) -> Tensor:
    """Windows of some places of each image: (N, places) numbers to (N · places, C · side²)."""
    width = maps.shape[-1]
    padded = F.pad(maps, [side // 2] * 4)
    windows = padded.unfold(2, side, 1).unfold(3, side, 1)  # a view (N, C, H, W, side, side)
    images = torch.arange(len(maps))[:, None].expand_as(chosen)
    patches = windows[images, :, chosen // width, chosen % width]
    return patches.flatten(0, 1).flatten(1)


def _read_reader(network: VGG, layer: Prunable) -> tuple[Tensor, Tensor]:
    """The reader's weights as a matrix (O, columns), and its bias; of two factors the first, which has none."""
    state = network.state_dict()
    weight = state[layer.columns].flatten(1)
    return weight, state.get(layer.columns.removesuffix("weight") + "bias", torch.zeros(len(weight)))
