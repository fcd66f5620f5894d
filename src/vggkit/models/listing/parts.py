"""Shared by the three styles of listings: blocks, comments, and each layer's source. No torch here.

All text is without indentation, which `write_class` adds. `ruff format` leaves the result unchanged
at 88 columns and at any wider setting.
"""

import math
from dataclasses import dataclass
from itertools import groupby
from string import ascii_lowercase
from textwrap import fill, indent
from typing import Final

from vggkit.models.configuration import Configuration
from vggkit.models.layer_records import FullyConnected, Layer

LRN: Final = "size=5, alpha=5 * 1e-4, beta=0.75, k=2.0"
"""Krizhevsky's constants; torch divides alpha by the window, as he does not."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a trunk, which may be cut within it."""

    number: int
    """From 1."""
    layers: tuple[Layer, ...]
    """In order; its pool is the last, unless the trunk is cut before it."""
    side: int
    """Side in pixels of the map it reads, for an image of `image_side`."""

    @property
    def convolutions(self) -> list[Layer]:
        """Its convolutions in order."""
        return [layer for layer in self.layers if layer.kind == "conv"]

    @property
    def pixels(self) -> str:
        """`112x112 pooled to 56x56`, or the size alone where there is no pool."""
        half = self.side // 2
        pooled = f" pooled to {half}x{half}" if self.layers[-1].kind == "pool" else ""
        return f"{self.side}x{self.side}{pooled}"

    @property
    def heading(self) -> str:
        """`# Block 2: 64 -> 128 channels, 112x112 pooled to 56x56`; the widths one by one where they differ."""
        widths = [
            self.layers[0].in_channels,
            *(width for width, _ in groupby(c.out_channels for c in self.convolutions)),
        ]
        last = self.layers[-1]
        cut = "" if last.kind == "pool" else f", up to {last.name}"
        return comment(
            f"Block {self.number}{cut}: {' -> '.join(map(str, widths))} channels, {self.pixels}", width=76
        )


def image_side(configuration: Configuration) -> int:
    """Side in pixels of the example image of a listing: the paper's 224, or what a deeper network needs."""
    return max(224, configuration.minimum_side)


def split_blocks(configuration: Configuration) -> list[Block]:
    """The blocks of the trunk in order, found by the numbers in their layers' names."""
    side = image_side(configuration)
    by_number = groupby(configuration.trunk, lambda layer: int(layer.name.lstrip(ascii_lowercase).split("_")[0]))
    return [Block(number, tuple(layers), side >> (number - 1)) for number, layers in by_number]


def write_layer(layer: Layer, configuration: Configuration) -> str:
    """A layer of the trunk as a torch module."""
    match layer.kind:
        case "conv":
            padding = f", padding={layer.kernel // 2}" if layer.kernel > 1 else ""
            return f"nn.Conv2d({layer.in_channels}, {layer.out_channels}, kernel_size={layer.kernel}{padding})"
        case "bn":
            return f"nn.BatchNorm2d({layer.out_channels})"
        case "relu":
            return "nn.ReLU(inplace=True)"
        case "lrn":
            return f"nn.LocalResponseNorm({LRN})"
        case "pool":
            return f"nn.{'Max' if configuration.pooling == 'max' else 'Avg'}Pool2d(kernel_size=2, stride=2)"


def write_linear(fc: FullyConnected, configuration: Configuration) -> str:
    """A fully connected layer as a torch module: one matrix, or two factors."""
    reads, gives = str(fc.in_features), str(fc.out_features)
    if fc.index == 0 and configuration.head != "pool" and configuration.grid > 1:
        reads = f"{configuration.trunk_channels} * {configuration.grid} * {configuration.grid}"
    elif fc.index == 0 and configuration.head_features == 2 * configuration.trunk_channels:
        reads = f"2 * {configuration.trunk_channels}"
    if fc == configuration.fully_connected[-1]:
        gives = "num_classes"
    if fc.rank is None:
        return f"nn.Linear({reads}, {gives})"
    factors = f"nn.Linear({reads}, {fc.rank}, bias=False),\nnn.Linear({fc.rank}, {gives}),\n"
    return f"nn.Sequential(\n{indent(factors, '    ')})"


def write_classifier(configuration: Configuration) -> str:
    """`self.classifier` as one Sequential: ReLU and dropout after each layer but the last."""
    between = f",\nnn.ReLU(inplace=True),\nnn.Dropout({configuration.dropout}),\n"
    layers = between.join(write_linear(fc, configuration) for fc in configuration.fully_connected)
    return write_sequence("self.classifier", f"{layers},")


def write_sequence(name: str, lines: str) -> str:
    """`name` as a Sequential of those lines."""
    return f"{name} = nn.Sequential(\n{indent(lines, '    ')}\n)"


def write_fc_reading(configuration: Configuration, maps: str) -> str:
    """Code that pools the map to the size that the fully connected layers read."""
    grid = configuration.grid
    return f"""\
# The head reads {grid}x{grid} maps: one of another size is averaged to that.
if {maps}.shape[-2:] != ({grid}, {grid}):
    {maps} = F.adaptive_avg_pool2d({maps}, {grid})"""


def write_map_shape(configuration: Configuration) -> str:
    """Shape of the map that leaves the trunk: `(N, 512, 7, 7) for 224x224 pixels`."""
    side = image_side(configuration)
    left = side // configuration.minimum_side
    return f"(N, {configuration.trunk_channels}, {left}, {left}) for {side}x{side} pixels"


def write_class(configuration: Configuration, *, init: str, forward: str) -> str:
    """The class of the network, named after the model (`VGG16BN`; `VGG` for a trunk of no model)."""
    side = configuration.minimum_side
    sides = f"; H and W from {side} pixels" if side > 1 else ""
    margin = " " * 8
    return f'''\
class {name_class(configuration)}(nn.Module):
    """Images (N, {configuration.in_channels}, H, W) to logits (N, num_classes){sides}."""

    def __init__(self, num_classes: int = {configuration.num_classes}) -> None:
        super().__init__()
{indent(init, margin)}
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
{indent(forward, margin)}'''


def name_class(configuration: Configuration) -> str:
    """`vgg16_bn` is `VGG16BN`."""
    return "VGG" if configuration.model == "custom" else configuration.model.replace("_", "").upper()


def remark_on_convolutions(configuration: Configuration) -> str:
    """Comments that explain the convolutions and the layers that follow them."""
    sides = sorted({layer.kernel for layer in configuration.trunk if layer.kind == "conv"}, reverse=True)
    kinds = {layer.kind for layer in configuration.trunk}
    windows = [f"padding={side // 2} with a {side}x{side} window" for side in sides if side > 1]
    remarks = []
    if windows:
        remarks.append(f"{' and '.join(windows)} keep{'s' if len(windows) == 1 else ''} the size of the map.")
    if 1 in sides:
        remarks.append("A 1x1 window sees one pixel: it mixes the channels, and needs no padding.")
    if "bn" in kinds:
        remarks.append("Batch norm scales each channel to mean 0 and variance 1, then as learned.")
    if "lrn" in kinds:
        remarks.append("PyTorch divides LRN's alpha by size: 5 * 1e-4 here is AlexNet's 1e-4.")
    return "\n".join(map(comment, remarks))


def remark_on_sizes(configuration: Configuration) -> str:
    """Comments that explain the sizes of the maps, written once above the blocks."""
    side = image_side(configuration)
    kind = " (average, not the paper's max)" if configuration.pooling == "average" else ""
    pools = f"Each pool{kind} halves the map. " if configuration.minimum_side > 1 else ""
    return comment(f"{pools}Sizes are those of a {side}x{side} image.")


def remark_on_head(configuration: Configuration) -> str:
    """Comments that explain the head, written above it."""
    channels, grid, numbers = configuration.trunk_channels, configuration.grid, f"{configuration.head_features:,}"
    if configuration.head == "pool":
        what = "the mean and standard deviation" if configuration.statistics == "mean+std" else "the mean"
        remarks = [f"The head reads {what} of {channels} channels: {numbers} numbers."]
    else:
        remarks = [f"The first layer reads a {grid}x{grid} map of {channels} channels: {numbers} numbers."]
    shapes = configuration.state_shapes().items()
    share = (
        sum(math.prod(shape) for key, shape in shapes if key.startswith("classifier.")) / configuration.parameters
    )
    if share > 0.5:
        remarks.append(f"{share:.0%} of all parameters are from here on.")
    if configuration.ranks:
        remarks.append("Two thin matrices in a row stand for a large one of low rank.")
    if configuration.hidden and configuration.dropout:
        remarks.append("Dropout works in training only, against overfitting.")
    return "\n".join(map(comment, remarks))


def comment(text: str, *, width: int = 80) -> str:
    """`text` as comment lines that fit `width` columns; 80 are left inside a function of the class."""
    return fill(text, width, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
