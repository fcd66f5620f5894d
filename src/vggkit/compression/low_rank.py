"""Fully connected layers as two factors of low rank, in closed form.

Without images a matrix W is approximated in itself, by its truncated singular value decomposition (Denton et al.
2014, arXiv:1404.0736). With images what is approximated is its output: of all matrices W' of rank r, the one that
minimises ‖(W - W') X‖ for the layer's inputs X is U Uᵀ W, where U are the r leading eigenvectors of the covariance
of the outputs (Zhang et al. 2016, arXiv:1505.06798, section 3.1). The covariance of the inputs, which has 25,088
rows for fc6, is not needed.

Shape letters: N images, I inputs, O outputs, R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vggkit.compression.rebuild import build_network, copy_state
from vggkit.errors import BadConfiguration, BadInput
from vggkit.models.configuration import Configuration
from vggkit.models.layer_records import FullyConnected
from vggkit.models.vgg import VGG

_PRIOR = 1e-3
"""Share of the covariance that is that of white inputs: directions that few images have not shown stay known."""


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """What a layer's rank is chosen by."""

    values: Tensor
    """(O,) energy of each direction, the largest first."""
    directions: Tensor
    """(O, O) the directions, a column each."""
    matrix: Tensor
    """(O, I) the whole matrix."""
    bias: Tensor
    """(O,)."""
    mean: Tensor
    """(O,) mean of what the matrix gives; zeros without images."""

    def find_rank(self, energy: float) -> int:
        """The smallest rank that keeps this share of the energy."""
        shares = self.values.cumsum(0) / self.values.sum().clamp(min=1e-30)
        return min(int((shares < energy).sum()) + 1, len(self.values))

    def truncate(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """Two factors (R, I) and (O, R), and the bias (O,)."""
        kept = self.directions[:, :rank]
        bias = self.bias + self.mean - kept @ (kept.T @ self.mean)
        return (kept.T @ self.matrix).float(), kept.float(), bias.float()


def list_factorable(configuration: Configuration) -> tuple[FullyConnected, ...]:
    """The fully connected layers but the last one, whose rows are the classes."""
    return configuration.fully_connected[:-1]


def check_ranks(configuration: Configuration, ranks: Sequence[int]) -> tuple[int, ...]:
    """A rank for each fully connected layer but the last; one given rank is that of all.

    Raises BadInput for ranks above a matrix or of another number, BadConfiguration without such layers.
    """
    layers = list_factorable(configuration)
    if not layers:
        raise BadConfiguration("ranks are those of fully connected layers, and this network has only the last one")
    each = tuple(ranks) * len(layers) if len(ranks) == 1 else tuple(ranks)
    if len(each) != len(layers):
        names = ", ".join(layer.name for layer in layers)
        raise BadInput(f"ranks must be one for all or one for each of {names}; got {len(each)}")
    for layer, rank in zip(layers, each, strict=True):
        most = min(layer.in_features, layer.out_features)
        if not 1 <= rank <= most:
            raise BadInput(
                f"a rank of {layer.name} must be from 1 to {most:,}, as its matrix is {layer.out_features:,} × "
                f"{layer.in_features:,}; got {rank:,}"
            )
    return each


def find_spectra(network: VGG, batches: Sequence[Tensor] = ()) -> dict[str, Spectrum]:
    """The spectrum of each fully connected layer but the last, by its name.

    Args:
        network: The network.
        batches: Preprocessed images (N, C, H, W), in batches; none: of the matrices themselves.
    """
    state, layers = copy_state(network), list_factorable(network.configuration)
    sums = {layer.name: [torch.zeros(())] * 2 for layer in layers}
    count = 0
    for batch in batches:
        count += len(batch)
        for layer, outputs in zip(layers, _compute_outputs(network, batch), strict=True):
            wide = outputs.double()
            before, mean = sums[layer.name]
            sums[layer.name] = [before + wide.T @ wide, mean + wide.sum(0)]
    found = {}
    for layer in layers:
        matrix, bias = _read_layer(state, layer)
        wide = matrix.double()
        white = wide @ wide.T
        total, mean = sums[layer.name]
        if count:
            mean = mean / count
            covariance = total / count - torch.outer(mean, mean)
            white = covariance + _PRIOR * white * (covariance.trace() / white.trace())
        else:
            mean = torch.zeros(len(matrix), dtype=torch.float64)
        values, directions = torch.linalg.eigh(white)
        found[layer.name] = Spectrum(values.flip(0).clamp(min=0), directions.flip(1), wide, bias.double(), mean)
    return found


def choose_ranks(spectra: dict[str, Spectrum], energy: float) -> tuple[int, ...]:
    """The smallest ranks that keep this share of each layer's energy."""
    return tuple(spectrum.find_rank(energy) for spectrum in spectra.values())


def factorize(network: VGG, spectra: dict[str, Spectrum], ranks: Sequence[int]) -> VGG:
    """The network with its fully connected layers, but the last, as two factors of these ranks.

    A layer whose factors would hold no fewer weights than its matrix stays a matrix.
    """
    configuration, state = network.configuration, copy_state(network)
    chosen: list[int | None] = []
    for layer, rank in zip(list_factorable(configuration), ranks, strict=True):
        key, spectrum = f"classifier.{layer.index}", spectra[layer.name]
        for name in [name for name in state if name.startswith(f"{key}.")]:
            del state[name]
        if rank * (layer.in_features + layer.out_features) >= layer.in_features * layer.out_features:
            state |= {f"{key}.weight": spectrum.matrix.float(), f"{key}.bias": spectrum.bias.float()}
            chosen.append(None)
            continue
        down, up, bias = spectrum.truncate(rank)
        state |= {f"{key}.0.weight": down, f"{key}.1.weight": up, f"{key}.1.bias": bias}
        chosen.append(rank)
    last = configuration.ranks[-1] if configuration.ranks else None
    return build_network(replace(configuration, ranks=(*chosen, last)), state)


def _read_layer(state: dict[str, Tensor], layer: FullyConnected) -> tuple[Tensor, Tensor]:
    """Matrix (O, I) and bias of a layer; two factors are multiplied."""
    key = f"classifier.{layer.index}"
    if layer.rank is None:
        return state[f"{key}.weight"], state[f"{key}.bias"]
    return state[f"{key}.1.weight"] @ state[f"{key}.0.weight"], state[f"{key}.1.bias"]


@torch.no_grad()
def _compute_outputs(network: VGG, batch: Tensor) -> list[Tensor]:
    """What each matrix but the last gives for a batch, without its bias: (N, O)."""
    found: list[Tensor] = []
    values = network.read(network.features(batch), nn.Sequential())
    for layer in list_factorable(network.configuration):
        module = network.classifier[layer.index]
        last = module if isinstance(module, nn.Linear) else module[1]  # type: ignore[index]
        values = module(values)
        found.append(values - last.bias)
        values = values.relu()
    return found
