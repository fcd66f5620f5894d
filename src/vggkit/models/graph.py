"""The forward pass of a VGG as named steps with their shapes, known without building the network.

Engines build from it, the summary prints it, and estimates of memory and arithmetic add it up. Torch is not
imported. Shape letters: C channels, H and W pixels, F features; no N, everything is for one image.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from vggkit.errors import BadInput, UnknownName
from vggkit.models.configuration import Configuration
from vggkit.models.layer_records import FullyConnected, Layer

StepKind = Literal["conv", "bn", "relu", "lrn", "pool", "adaptive_pool", "flatten", "statistics", "fc", "mean"]
Shape = tuple[int, ...]
"""(C, H, W) of a map, (F,) of a vector."""
IMAGES: Final = "images"
"""Name of the input of the first step."""
USUAL_PIXELS: Final = 224
"""Side of the images that the paper trains on."""
_BETWEEN: Final = ("adaptive_pool", "flatten", "statistics", "mean")
"""Kinds of steps that have no name in the literature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the forward pass in evaluation mode; dropout is none."""

    name: str
    """As in the literature: `conv3_2`, `bn3_2`, `relu3_2`, `lrn3_2`, `pool3`, `fc6`, `relu6`; `fc6.0` is the first
    factor of a low-rank `fc6`. `avgpool`, `flatten`, `mean` and `mean+std` lie between these."""
    kind: StepKind
    """The operation. `adaptive_pool` averages the map to the size that the head reads, `statistics` are those of
    the pool head, and `mean` averages the scores of the dense head over the map."""
    reads: str | None
    """Name of the layer whose values it reads, seen through `adaptive_pool` and `flatten`; `images` for the first
    step; None where these values have no name: behind `statistics` and between two factors."""
    input_shape: Shape
    """Shape of what it reads."""
    output_shape: Shape
    """Shape of what it gives; a fully connected layer of a dense head gives a map."""
    kernel: int = 1
    """Side of its window in pixels; of a dense head's fully connected layer too."""
    module: str | None = None
    """Name of the module of `VGG` that computes it, such as `features.5`, `classifier.0`; None where none does."""
    weights: tuple[str, ...] = ()
    """Keys of its tensors in the state dict."""
    parameters: int = 0
    """Trained values."""
    multiply_adds: int = 0
    """Multiply-adds in convolutions and matrices, without biases."""
    receptive_field: int | None = None
    """Side in pixels of the square of the image that a value depends on, padding included; None: all of it."""
    factor: int | None = None
    """0 and 1: first and second factor of a low-rank layer; None: no factor."""


class Graph:
    """The steps of a network for images of one size.

    Args:
        configuration: The network.
        input_pixels: Height and width of the images; None: 224, or the smallest that the network takes if larger.

    Raises BadInput for images smaller than the network's `minimum_side`.

    >>> from vggkit.models.configure import configure
    >>> graph = Graph(configure("vgg16"))
    >>> step = graph.find("relu3_3")
    >>> step.module, step.output_shape
    ('features.15', (256, 56, 56))
    """

    def __init__(self, configuration: Configuration, *, input_pixels: tuple[int, int] | None = None) -> None:
        smallest = configuration.minimum_side
        height, width = input_pixels or (max(USUAL_PIXELS, smallest),) * 2
        if min(height, width) < smallest:
            raise BadInput(
                f"images must be at least {smallest} pixels high and wide, got {height}×{width}: each pool halves "
                "the map; enlarge the images, or cut the trunk earlier with until="
            )
        self.configuration, self.input_pixels = configuration, (height, width)
        self.trunk: tuple[Step, ...] = tuple(_walk_trunk(configuration, (height, width)))
        """Steps of `features`."""
        self.head: tuple[Step, ...] = tuple(_walk_head(configuration, self.trunk[-1]))
        """Steps behind them, up to the logits."""
        self.steps: tuple[Step, ...] = self.trunk + self.head
        """All of them, in order."""
        named = [step for step in self.steps if step.kind not in _BETWEEN and step.factor != 0]
        self.names: tuple[str, ...] = tuple(step.name for step in named)
        """Names of the layers whose output can be requested: those of the literature, in order."""

    def find(self, name: str) -> Step:
        """The step whose output has that name; raises UnknownName with the nearest name."""
        if name not in self.names:
            raise UnknownName.of("layer of this network", name, self.names)
        return next(step for step in self.steps if step.name == name)


def _walk_trunk(configuration: Configuration, sides: tuple[int, int]) -> Iterator[Step]:
    (height, width), channels, reads = sides, configuration.in_channels, IMAGES
    # `stride`: pixels of the image between two neighbours on the map.
    field, stride = 1, 1
    for layer in configuration.trunk:
        before = (channels, height, width)
        field += (layer.kernel - 1) * stride
        if layer.kind == "pool":
            height, width, stride = height // 2, width // 2, 2 * stride
        channels = layer.out_channels
        weights, parameters, multiplied = _weigh_layer(layer)
        yield Step(
            name=layer.name,
            kind=layer.kind,
            reads=reads,
            input_shape=before,
            output_shape=(channels, height, width),
            kernel=layer.kernel,
            module=f"features.{layer.index}",
            weights=weights,
            parameters=parameters,
            multiply_adds=multiplied * height * width,
            receptive_field=field,
        )
        reads = layer.name


def _weigh_layer(layer: Layer) -> tuple[tuple[str, ...], int, int]:
    """Keys, trained values, and multiply-adds of each place of its map."""
    key = f"features.{layer.index}"
    if layer.kind == "conv":
        values = layer.in_channels * layer.out_channels * layer.kernel**2
        return (f"{key}.weight", f"{key}.bias"), values + layer.out_channels, values
    if layer.kind == "bn":
        names = ("weight", "bias", "running_mean", "running_var")
        return tuple(f"{key}.{name}" for name in names), 2 * layer.out_channels, 0
    return (), 0, 0


def _walk_head(configuration: Configuration, last: Step) -> Iterator[Step]:
    """The steps behind the trunk, whose last step is `last`."""
    channels, height, width = last.output_shape
    grid, shape, reads = configuration.grid, last.output_shape, last.name
    field = None
    if configuration.head == "pool":
        rows = (configuration.head_features,)
        yield Step(
            name=configuration.statistics, kind="statistics", reads=reads, input_shape=shape, output_shape=rows
        )
        yield from _walk_fully_connected(configuration, rows, reads=None, field=None)
        return
    dense = configuration.head == "dense"
    wanted = (max(height, grid), max(width, grid)) if dense else (grid, grid)
    if (height, width) != wanted:
        pooled = (channels, *wanted)
        yield Step(name="avgpool", kind="adaptive_pool", reads=reads, input_shape=shape, output_shape=pooled)
        shape = pooled
    elif dense:
        assert last.receptive_field is not None
        stride = 1 << sum(layer.kind == "pool" for layer in configuration.trunk)
        field = last.receptive_field + (grid - 1) * stride
    if dense:
        yield from _walk_fully_connected(configuration, shape, reads=reads, field=field)
        scores = (configuration.num_classes, wanted[0] - grid + 1, wanted[1] - grid + 1)
        name = configuration.fully_connected[-1].name
        yield Step(name="mean", kind="mean", reads=name, input_shape=scores, output_shape=scores[:1])
    else:
        flat = (math.prod(shape),)
        yield Step(name="flatten", kind="flatten", reads=reads, input_shape=shape, output_shape=flat)
        yield from _walk_fully_connected(configuration, flat, reads=reads, field=None)


def _walk_fully_connected(
    configuration: Configuration, shape: Shape, *, reads: str | None, field: int | None
) -> Iterator[Step]:
    """The layers of `classifier` and their ReLUs, on a vector, or slid over a map."""
    for fc in configuration.fully_connected:
        for name, factor, module, (fan_in, fan_out), bias in _list_factors(fc):
            kernel = math.isqrt(fan_in // shape[0])
            places = tuple(side - kernel + 1 for side in shape[1:])
            weights = fan_in * fan_out
            yield Step(
                name=name,
                kind="fc",
                reads=reads,
                input_shape=shape,
                output_shape=(fan_out, *places),
                kernel=kernel,
                module=module,
                weights=(f"{module}.weight", f"{module}.bias") if bias else (f"{module}.weight",),
                parameters=weights + fan_out * bias,
                multiply_adds=weights * math.prod(places),
                receptive_field=field,
                factor=factor,
            )
            shape = (fan_out, *places)
            reads = None if factor == 0 else name
        if fc != configuration.fully_connected[-1]:
            yield Step(
                name=fc.relu,
                kind="relu",
                reads=fc.name,
                input_shape=shape,
                output_shape=shape,
                module=f"classifier.{fc.index + 1}",
                receptive_field=field,
            )
            reads = fc.relu


def _list_factors(fc: FullyConnected) -> list[tuple[str, int | None, str, tuple[int, int], bool]]:
    """Name, factor, module, input and output size, and whether there is a bias, of each matrix."""
    module = f"classifier.{fc.index}"
    if fc.rank is None:
        return [(fc.name, None, module, (fc.in_features, fc.out_features), True)]
    return [
        (f"{fc.name}.0", 0, f"{module}.0", (fc.in_features, fc.rank), False),
        (fc.name, 1, f"{module}.1", (fc.rank, fc.out_features), True),
    ]
