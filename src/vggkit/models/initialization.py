"""Initial weights: random values, those of a smaller VGG, or filters adapted to other channels."""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from vggkit.arguments import demand_count
from vggkit.errors import BadConfiguration, BadInput, UnknownName
from vggkit.models.configuration import Configuration, Scheme


def initialize(network: nn.Module, scheme: Scheme = "kaiming") -> None:
    """Initialise every weight again from torch's generator; biases 0, batch norm the identity.

    - `kaiming` (default): convolutions from He et al.'s normal distribution, fan out, for ReLU;
      fully connected layers from N(0, 0.01²). It is torchvision's, and with the same seed it
      gives torchvision's weights.
    - `glorot`: uniform with Glorot and Bengio's bound, which the paper's authors found, after
      submission, to make pre-training unnecessary (section 3.1, footnote).
    - `paper`: N(0, variance 0.01), section 3.1, taken literally: a standard deviation of 0.1 in
      every layer. Activations grow with each layer and a vgg11 of 1000 classes starts at a loss of
      millions, where ln(1000) = 6.9 is chance; it is here for study, not for training. (Read as a
      standard deviation of 0.01 the same sentence gives logits of about 2e-5, which hardly
      learn either: the authors started their deeper nets from net A, see `warm_start`.)

    - `dirac`: as kaiming, but a convolution hands its maps on, filter by filter, as far as it has any (Zagoruyko
      and Komodakis, 2017, "DiracNets"), from the second one on: a start for short trainings.

    Raises UnknownName for another scheme, BadInput for anything but a network.
    """
    if not isinstance(network, nn.Module):
        raise BadInput(f"initialize takes a network, got {type(network).__name__}")
    if scheme not in get_args(Scheme):
        raise UnknownName.of("initialisation", scheme, get_args(Scheme))
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
            _draw(module, scheme)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def _draw(module: nn.Conv2d | nn.Linear, scheme: Scheme) -> None:
    match scheme:
        case "glorot":
            nn.init.xavier_uniform_(module.weight)
        case "paper":
            nn.init.normal_(module.weight, std=0.1)
        case "kaiming" | "dirac" if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if scheme == "dirac" and module.in_channels > 4:  # images are not feature maps
                nn.init.dirac_(module.weight[: module.in_channels])
        case _:
            nn.init.normal_(module.weight, std=0.01)


@dataclass(frozen=True, slots=True)
class WarmStart:
    """The result of `warm_start`, by layer name."""

    copied: tuple[str, ...]
    """Layers copied from the smaller network."""
    skipped: tuple[str, ...]
    """Layers that the paper copies and that do not fit here: of another shape, or absent."""


def warm_start(network: nn.Module, smaller: nn.Module) -> WarmStart:
    """Start a deep VGG from a shallow trained one, as the paper did (section 3.1).

    The first four convolutions of the smaller network and its last three fully connected layers
    go to the layers of the same name (net A's are conv1_1, conv2_1, conv3_1, conv3_2); the others
    keep their random values. With batch norm in both, it goes along with its convolution.

    Args:
        network: The VGG to start; changed in place.
        smaller: The VGG to start from.

    Raises BadInput where nothing fits.
    """
    mine, theirs = _layer_keys(network), _layer_keys(smaller)
    convolutions = [name for name in theirs if name.startswith("conv")][:4]
    fully_connected = [name for name in theirs if name.startswith("fc")][-3:]
    target, source = network.state_dict(), smaller.state_dict()
    copied, skipped = [], []
    for name in (*convolutions, *fully_connected):
        together = (name, name.replace("conv", "bn")) if name.startswith("conv") else (name,)
        pairs = [
            (f"{mine[part]}{rest}", f"{theirs[part]}{rest}")
            for part in together
            if part in mine and part in theirs
            for rest in _endings(source, theirs[part])
        ]
        if pairs and all(to in target and target[to].shape == source[of].shape for to, of in pairs):
            for to, of in pairs:
                target[to].copy_(source[of])
            copied.append(name)
        else:
            skipped.append(name)
    if not copied:
        raise BadInput("warm start: no layer of the smaller network fits; both must be VGGs of the paper's widths")
    return WarmStart(tuple(copied), tuple(skipped))


def _layer_keys(network: nn.Module) -> dict[str, str]:
    """The prefix of each named layer's keys."""
    configuration = getattr(network, "configuration", None)
    if not isinstance(configuration, Configuration):
        raise BadInput(f"warm start takes two VGGs, got {type(network).__name__}")
    keys = {layer.name: f"features.{layer.index}." for layer in configuration.trunk}
    return keys | {fc.name: f"classifier.{fc.index}." for fc in configuration.fully_connected}


def _endings(state: dict[str, Tensor], start: str) -> list[str]:
    return [key.removeprefix(start) for key in state if key.startswith(start)]


def adapt_filters(weight: Tensor, in_channels: int) -> Tensor:
    """First filters (O, 3, h, w), trained on three channels, for images of `in_channels`.

    One channel: the three are summed, so that a grey image gives exactly what its copy in three
    equal channels gave. Otherwise they are repeated in order and scaled by 3 / in_channels, which
    keeps the size of the sums (timm's rule). Returns (O, in_channels, h, w); raises BadInput for
    anything but filters and a number of channels, and BadConfiguration for filters of other than three channels.
    """
    in_channels = demand_count("in_channels", in_channels)
    if not isinstance(weight, Tensor) or weight.dim() != 4:
        got = f"shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        raise BadInput(f"first filters are a tensor (O, 3, h, w), got {got}")
    if weight.shape[1] == in_channels:
        return weight
    if weight.shape[1] != 3:
        raise BadConfiguration(
            f"first filters for {weight.shape[1]} channels cannot be adapted to {in_channels}; only those for 3 can"
        )
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    repeated = weight[:, torch.arange(in_channels, device=weight.device) % 3]
    return repeated * (3 / in_channels)
