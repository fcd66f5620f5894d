"""The modules that a network is built from, one for each layer of its `Configuration`."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from vggkit.models.configuration import STD_EPSILON, Configuration
from vggkit.models.layer_records import FullyConnected, Layer


class ResponseNorm(nn.LocalResponseNorm):
    """Computed in float32 at least: squares overflow float16, and torch has no bfloat16 of it on processors."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return normalize_responses(input, self.size, self.alpha, self.beta, self.k)


class GridPool(nn.AdaptiveAvgPool2d):
    """Averages maps (N, C, H, W) to the grid×grid places that fully connected layers read, as torchvision does.

    A map that has this size already passes as it is: the average is the identity there, and its backward is not
    deterministic on CUDA.

    Args:
        grid: Side of the map that leaves it.
        only_smaller: Sides above `grid` stay as they are, for the head that slides over the map.
    """

    def __init__(self, grid: int, *, only_smaller: bool = False) -> None:
        super().__init__((grid, grid))
        self.grid = grid
        self.only_smaller = only_smaller

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return pool_to_grid(input, self.grid, self.only_smaller)


class ChannelStatistics(nn.Module):
    """Each channel's mean over maps (N, C, H, W), and behind these the standard deviations: (N, C) or (N, 2 C).

    Args:
        deviation: Give standard deviations too.
        dropout: Chance in [0, 1) that a number is dropped in training.
    """

    def __init__(self, *, deviation: bool, dropout: float) -> None:
        super().__init__()
        self.deviation, self.dropout = deviation, dropout

    def forward(self, maps: Tensor) -> Tensor:
        return F.dropout(summarize_channels(maps, self.deviation), self.dropout, self.training)

    def extra_repr(self) -> str:
        return f"deviation={self.deviation}, dropout={self.dropout}"


# What follows branches on shapes and types. torch.fx keeps each call whole, so that a traced network is right for
# every size, and torch.jit.script compiles them, which is why their arguments have positions.
def pool_to_grid(maps: Tensor, grid: int, only_smaller: bool) -> Tensor:
    """The map averaged to grid×grid places; see GridPool."""
    height, width = maps.shape[-2], maps.shape[-1]
    if only_smaller:
        if height < grid or width < grid:
            return F.adaptive_avg_pool2d(maps, (max(height, grid), max(width, grid)))
    elif height != grid or width != grid:
        return F.adaptive_avg_pool2d(maps, (grid, grid))
    return maps


def summarize_channels(maps: Tensor, deviation: bool, epsilon: float = STD_EPSILON) -> Tensor:
    """Mean, or mean and standard deviation, of each channel; summed in float32 at least."""
    wide = widen(maps)
    statistics = wide.mean((2, 3))
    if deviation:
        variance = wide.var((2, 3), correction=0)
        statistics = torch.cat([statistics, (variance + epsilon).sqrt()], dim=1)
    return statistics.to(maps.dtype)


def widen(values: Tensor) -> Tensor:
    """In float32 at least: sums of many values lose too much in 16 bits, or overflow."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def normalize_responses(maps: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Local response normalisation over `size` neighbouring channels; torch divides `alpha` by `size`."""
    if maps.dtype in (torch.float16, torch.bfloat16):
        return F.local_response_norm(maps.float(), size, alpha, beta, k).to(maps.dtype)
    return F.local_response_norm(maps, size, alpha, beta, k)


fx.wrap("pool_to_grid")
fx.wrap("summarize_channels")
fx.wrap("normalize_responses")


def build_trunk(configuration: Configuration) -> nn.Sequential:
    """The convolutional layers up to `until`, as one Sequential."""
    return nn.Sequential(*(build_layer(layer, configuration) for layer in configuration.trunk))


def build_layer(layer: Layer, configuration: Configuration) -> nn.Module:
    """One layer of the trunk."""
    match layer.kind:
        case "conv":
            return nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel, padding=layer.kernel // 2)
        case "bn":
            return nn.BatchNorm2d(layer.out_channels)
        case "relu":
            return nn.ReLU(inplace=True)
        case "lrn":
            # Krizhevsky's constants; torch divides alpha by the window, as he does not.
            return ResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0)
        case "pool":
            return nn.MaxPool2d(2, 2) if configuration.pooling == "max" else nn.AvgPool2d(2, 2)


def build_pool(configuration: Configuration) -> nn.Module:
    """The pooling between trunk and fully connected layers; it has no weights."""
    match configuration.head:
        case "fc":
            return GridPool(configuration.grid)
        case "dense":
            return GridPool(configuration.grid, only_smaller=True)
        case "pool":
            deviation = configuration.statistics == "mean+std"
            return ChannelStatistics(deviation=deviation, dropout=configuration.dropout)


def build_head(configuration: Configuration) -> nn.Sequential:
    """The fully connected layers, ReLU and dropout after each but the last."""
    layers: list[nn.Module] = []
    for fc in configuration.fully_connected:
        layers += [build_fully_connected(fc), nn.ReLU(inplace=True), nn.Dropout(configuration.dropout)]
    return nn.Sequential(*layers[:-2])


def build_fully_connected(fc: FullyConnected) -> nn.Module:
    """One layer of the head: a matrix, or its two factors."""
    if fc.rank is None:
        return nn.Linear(fc.in_features, fc.out_features)
    down, up = nn.Linear(fc.in_features, fc.rank, bias=False), nn.Linear(fc.rank, fc.out_features)
    return nn.Sequential(down, up)
