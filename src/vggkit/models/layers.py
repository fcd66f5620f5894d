"""The modules that a network is built from, one for each layer of its `Configuration`."""

import torch
from torch import Tensor, fx, nn

from vggkit.models.configuration import Configuration, FullyConnected, Layer


class ResponseNorm(nn.LocalResponseNorm):
    """Computed in float32 at least: squares overflow float16, and torch has no bfloat16 of it on processors."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if isinstance(input, fx.Proxy) or input.dtype not in (torch.float16, torch.bfloat16):
            return super().forward(input)
        return super().forward(input.float()).to(input.dtype)


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
