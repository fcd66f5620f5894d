"""The trunk of a listing: its blocks, what is said of them, and each layer's line of source."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from vggkit.networks.configurations import Configuration, Layer
from vggkit.networks.styles.layout import lay_call, lay_comment

LRN = "size=5, alpha=5 * 1e-4, beta=0.75, k=2.0"
"""Krizhevsky's constants; torch divides alpha by the window, as he does not."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a trunk, as far as the trunk goes."""

    number: int
    """From 1."""
    layers: tuple[Layer, ...]
    """All but the pool."""
    pool: Layer | None
    """None where the trunk is cut before it."""
    side: int
    """Side in pixels of the map it reads, for a picture of `picture_side`."""

    @property
    def convolutions(self) -> tuple[Layer, ...]:
        """Its convolutions in order."""
        return tuple(layer for layer in self.layers if layer.kind == "conv")

    @property
    def heading(self) -> str:
        """`Block 2: 64 -> 128 channels, 112x112 pooled to 56x56`; the widths one by one where they differ."""
        widths = [self.convolutions[0].in_channels]
        widths += [width for width, _ in groupby(conv.out_channels for conv in self.convolutions)]
        channels = " -> ".join(map(str, widths))
        cut = "" if self.pool else f", up to {self.layers[-1].name}"
        return f"Block {self.number}{cut}: {channels} channels, {self.pixels}"

    @property
    def pixels(self) -> str:
        """`112x112 pooled to 56x56`, or the size alone where there is no pool."""
        half = self.side // 2
        return f"{self.side}x{self.side} pooled to {half}x{half}" if self.pool else f"{self.side}x{self.side}"


def picture_side(configuration: Configuration) -> int:
    """Side in pixels of the picture that a listing speaks of: the paper's 224, or what a deeper network needs."""
    return max(224, configuration.minimum_side)


def walk_blocks(configuration: Configuration) -> Iterator[Block]:
    """The blocks of the trunk in order."""
    layers: list[Layer] = []
    number, side = 1, picture_side(configuration)
    for layer in configuration.trunk:
        if layer.kind == "pool":
            yield Block(number, tuple(layers), pool=layer, side=side)
            layers, number, side = [], number + 1, side // 2
        else:
            layers.append(layer)
    if layers:
        yield Block(number, tuple(layers), pool=None, side=side)


def lay_layer(
    layer: Layer, configuration: Configuration, *, start: str = "", end: str = "", depth: int
) -> list[str]:
    """The layer as a torch module, with `start` before it and `end` behind it."""
    match layer.kind:
        case "conv":
            name, arguments = "Conv2d", f"{layer.in_channels}, {layer.out_channels}, {window(layer.kernel)}"
        case "bn":
            name, arguments = "BatchNorm2d", f"{layer.out_channels}"
        case "relu":
            name, arguments = "ReLU", "inplace=True"
        case "lrn":
            name, arguments = "LocalResponseNorm", LRN
        case "pool":
            pool = "MaxPool2d" if configuration.pooling == "max" else "AvgPool2d"
            name, arguments = pool, "kernel_size=2, stride=2"
    return lay_call(f"{start}nn.{name}", arguments.split(", "), end=end, depth=depth)


def window(kernel: int) -> str:
    """Arguments of a convolution that keeps the size of its map."""
    return f"kernel_size={kernel}, padding={kernel // 2}" if kernel > 1 else "kernel_size=1"


def lay_convolution_remarks(configuration: Configuration, *, depth: int) -> list[str]:
    """What a learner asks about a convolution and what follows it, said once."""
    layers = configuration.trunk
    sides = sorted({layer.kernel for layer in layers if layer.kind == "conv"}, reverse=True)
    kinds = {layer.kind for layer in layers}
    remarks = []
    if sides != [1]:
        windows = [f"padding={side // 2} with a {side}x{side} window" for side in sides if side > 1]
        remarks.append(f"{' and '.join(windows)} keep{'s' if len(windows) == 1 else ''} the size of the map.")
    if 1 in sides:
        remarks.append("A 1x1 window sees one pixel: it mixes the channels, and needs no padding.")
    if "bn" in kinds:
        remarks.append("Batch norm scales each channel to mean 0 and variance 1, then as learned.")
    if "lrn" in kinds:
        remarks.append("PyTorch divides LRN's alpha by size: 5 * 1e-4 here is AlexNet's 1e-4.")
    return [line for remark in remarks for line in lay_comment(remark, depth=depth)]


def lay_pool_remarks(configuration: Configuration, *, depth: int) -> list[str]:
    """What a learner asks about the sizes of the maps, said once above the blocks."""
    side = picture_side(configuration)
    remarks = []
    if any(layer.kind == "pool" for layer in configuration.trunk):
        kind = " (average, not the paper's max)" if configuration.pooling == "average" else ""
        remarks.append(f"Each pool{kind} halves the map.")
    remarks.append(f"Sizes are those of a {side}x{side} picture.")
    return lay_comment(" ".join(remarks), depth=depth)


def write_map_shape(configuration: Configuration) -> str:
    """Shape of the map that leaves the trunk: `(N, 512, 7, 7) for 224x224 pixels`."""
    side = picture_side(configuration)
    left = side // configuration.minimum_side
    return f"(N, {configuration.trunk_channels}, {left}, {left}) for {side}x{side} pixels"
