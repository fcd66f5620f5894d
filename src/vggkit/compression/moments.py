"""Second moments of what a layer reads, from which the best weights for fewer channels follow in closed form.

Shape letters: N samples (places of images), C channels, B columns of a channel (a kernel's places), O outputs.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from vggkit.compression.channels import Prunable
from vggkit.models.vgg import VGG

MOST_COLUMNS: Final = 5_000
"""Columns up to which each weight is fitted anew; above them one factor for each channel is."""
SAMPLES: Final = 4
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


def measure_moments(
    network: VGG,
    original: VGG,
    layer: Prunable,
    batches: Sequence[Tensor],
    *,
    seed: int = 0,
) -> Moments:
    """The moments of what reads a layer's channels.

    The network may have lost channels before: its inputs are to give the outputs of the original network, which is
    how He et al. (2017, arXiv:1707.06168, section 3.2) keep errors from adding up.

    Args:
        network: The network as it is.
        original: The network whose outputs are wanted.
        layer: A layer that is whole in both.
        batches: Preprocessed images, in batches.
        seed: Places of maps are drawn by it.
    """
    columns = layer.channels * layer.block * layer.repeats
    by_factor = columns > MOST_COLUMNS or layer.repeats > 1
    size = (layer.channels if by_factor else columns) + 1
    weight, bias = _read_reader(network, layer)
    outputs = 1 if by_factor else len(weight)
    gram, cross = torch.zeros(size, size), torch.zeros(outputs, size)
    total, squares, count = torch.zeros(len(weight), dtype=torch.float64), 0.0, 0
    wanted_samples = SAMPLES * columns if not by_factor else SAMPLES * layer.channels
    images = sum(len(batch) for batch in batches)
    places = max(1, -(-wanted_samples // images))
    draws = torch.Generator().manual_seed(seed)
    for inputs, wanted in _sample(network, original, layer, batches, places=places, draws=draws):
        count += len(inputs)
        total += wanted.double().sum(0)
        squares += float(wanted.double().square().sum())
        if by_factor:
            for shares, output in _list_contributions(inputs, wanted - bias, weight, layer):
                gram[:-1, :-1].addmm_(shares, shares.T)
                cross[0, :-1] += shares @ output
            gram[-1, -1] += 1.0
        else:
            extended = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
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


@torch.no_grad()
def _sample(
    network: VGG,
    original: VGG,
    layer: Prunable,
    batches: Sequence[Tensor],
    *,
    places: int,
    draws: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the reader reads (N, C·B) in the network, and what it gives (N, O) in the original."""
    weight, bias = _read_reader(original, layer)
    for batch in batches:
        mine = _run_to(network, layer.reader, batch)
        theirs = mine if network is original else _run_to(original, layer.reader, batch)
        if mine.dim() == 4:
            side = math.isqrt(layer.block)
            chosen = torch.randint(mine.shape[-2] * mine.shape[-1], (len(batch), places), generator=draws)
            mine, theirs = (_cut_patches(each, chosen, side) for each in (mine, theirs))
        yield mine, theirs @ weight.T + bias


def _run_to(network: VGG, reader: str, batch: Tensor) -> Tensor:
    """What the module reads: maps (N, C, H, W), or rows."""
    place, index = reader.split(".", maxsplit=1)[0], int(reader.split(".")[1])
    if place == "features":
        maps: Tensor = network.features[:index](batch)
        return maps
    return network.read(network.features(batch), network.classifier[:index])


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
