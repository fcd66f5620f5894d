"""A network as a graph of operations, drawn from its configuration and weights; follows `VGG.forward`.

What the operations are made of is the engine's: OpenVINO's nodes, or ONNX's. No torch here.
Shape letters: N images, C channels, H and W pixels, F features.
"""

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.outputs import IMAGES, Output, Plan, find_relu
from vggkit.models.configuration import (
    BATCH_NORM_EPSILON,
    STD_EPSILON,
    Configuration,
    FullyConnected,
    Layer,
    Pooling,
)

Node = TypeVar("Node")
Values = NDArray[np.float32]
Sides = tuple[int, int]


class Operations(Protocol[Node]):
    """What a graph is made of; maps are (N, C, H, W), rows (N, F)."""

    def convolve(self, maps: Node, weight: Values, bias: Values | None, padding: int, reads: str | None) -> Node:
        """A convolution by kernels (out, in, h, w) of what has the name `reads`, where it has one."""

    def scale(self, maps: Node, factor: Values, shift: Values) -> Node:
        """Each channel times a factor and plus a shift (C)."""

    def rectify(self, values: Node, watched: bool) -> Node:
        """ReLU, of maps or rows; `watched`: that some are not finite must not get lost in it."""

    def normalize_responses(self, maps: Node, watched: bool) -> Node:
        """The paper's local response normalisation, as `networks.vgg` has it; `watched`: as above, squares too."""

    def pool(self, maps: Node, pooling: Pooling, gives: str) -> Node:
        """Of each 2×2 one; what it gives has that name."""

    def fit(self, maps: Node, sides: Sides, wanted: Sides) -> Node:
        """Maps averaged to other sides, as adaptive pooling does."""

    def average_windows(self, maps: Node, places: Sides) -> Node:
        """The mean of a window over so many places, down and across."""

    def flatten(self, maps: Node) -> Node:
        """Rows of all that a map has."""

    def connect(self, rows: Node, weight: Values, bias: Values | None, reads: str | None) -> Node:
        """A matrix (out, in) and a bias (out); `reads` as above."""

    def average(self, maps: Node) -> Node:
        """Rows: the mean of each channel."""

    def summarize(self, maps: Node, epsilon: float) -> Node:
        """Rows: mean and standard deviation of each channel, epsilon added to the variance."""


class Drawing(Generic[Node]):
    """Draws what a plan needs, for images of one size.

    Args:
        configuration: The network.
        plan: What is asked for.
        weights: Values under the plan's keys.
        operations: What to draw with.
        watch_trunk: Whether the trunk's values are watched as the head's are.
    """

    def __init__(
        self,
        configuration: Configuration,
        plan: Plan,
        weights: Mapping[str, Values],
        operations: Operations[Node],
        *,
        watch_trunk: bool = False,
    ) -> None:
        self._configuration, self._plan, self._watch_trunk = configuration, plan, watch_trunk
        self._weights, self._ops = weights, operations
        self._found: dict[Output, Node] = {}

    def draw(self, images: Node, sides: Sides) -> dict[Output, Node]:
        """The plan's outputs of images (N, C, H, W) of that height and width, in its order."""
        names = self._plan.drawn
        with np.errstate(over="ignore", invalid="ignore"):  # it shows in the outputs
            maps, sides = self._draw_trunk(images, sides)
            if "statistics" in names:
                self._found["statistics"] = self._ops.summarize(maps, 0.0)
            if self._plan.fully_connected or "features" in names:
                self._draw_head(maps, sides)
        return {name: self._found[name] for name in names}

    def _draw_trunk(self, maps: Node, sides: Sides) -> tuple[Node, Sides]:
        trunk = self._plan.trunk
        for before, layer, after in zip((None, *trunk), trunk, (*trunk[1:], None), strict=False):
            maps = self._draw_layer(maps, layer, before, after)
            if layer.kind == "pool":
                sides = sides[0] // 2, sides[1] // 2
            self._found[layer.name] = maps
        return maps, sides

    def _draw_layer(self, maps: Node, layer: Layer, before: Layer | None, after: Layer | None) -> Node:
        match layer.kind:
            case "conv":
                weight, bias = (self._weights[f"features.{layer.index}.{name}"] for name in ("weight", "bias"))
                if self._is_folded(layer, after):
                    assert after is not None
                    factor, shift = read_norm(self._weights, after)
                    weight = (weight * factor[:, None, None, None]).astype(np.float32)
                    bias = (bias * factor + shift).astype(np.float32)
                return self._ops.convolve(maps, weight, bias, layer.kernel // 2, before.name if before else IMAGES)
            case "bn":
                assert before is not None
                if self._is_folded(before, layer):
                    return maps
                factor, shift = read_norm(self._weights, layer)
                return self._ops.scale(maps, factor.astype(np.float32), shift.astype(np.float32))
            case "relu":
                return self._ops.rectify(maps, self._watch_trunk)
            case "lrn":
                return self._ops.normalize_responses(maps, self._watch_trunk)
            case "pool":
                return self._ops.pool(maps, self._configuration.pooling, layer.name)

    def _is_folded(self, conv: Layer, after: Layer | None) -> bool:
        """Whether the batch norm behind a convolution is multiplied into it: unless its own maps are asked for."""
        return after is not None and after.kind == "bn" and conv.name not in self._plan.drawn

    def _draw_head(self, maps: Node, sides: Sides) -> None:
        configuration, names = self._configuration, self._plan.drawn
        last = configuration.fully_connected[-1]
        slides, grid = configuration.head == "dense", configuration.grid
        values, places = self._enter_head(maps, sides)
        reads = None if configuration.head == "pool" else configuration.trunk[-1].name
        for count in range(len(self._plan.fully_connected) + 1):
            # What the last layer reads of a map that it slides over, and what it gives, are averaged.
            features = count == len(configuration.fully_connected) - 1 and "features" in names
            if features and slides and not count:
                self._found["features"] = self._ops.flatten(self._ops.average_windows(values, places))
            elif features:
                self._found["features"] = self._ops.average(values) if slides else values
            if count == len(self._plan.fully_connected):
                return
            fc = self._plan.fully_connected[count]
            values = self._connect(values, fc, side=(1 if count else grid) if slides else None, reads=reads)
            self._found[fc.name] = values
            if fc == last:
                self._found["logits"] = self._ops.average(values) if slides else values
                return
            values = self._ops.rectify(values, True)
            reads = find_relu(fc)
            self._found[reads] = values

    def _enter_head(self, maps: Node, sides: Sides) -> tuple[Node, Sides]:
        """What the head's first layer reads; where it slides, a map, and the places of its window."""
        configuration, ops, grid = self._configuration, self._ops, self._configuration.grid
        if configuration.head == "pool":
            if configuration.statistics == "mean+std":
                return ops.summarize(maps, STD_EPSILON), (1, 1)
            return ops.average(maps), (1, 1)
        slides = configuration.head == "dense"
        wanted = (max(sides[0], grid), max(sides[1], grid)) if slides else (grid, grid)
        if wanted != sides:
            maps = ops.fit(maps, sides, wanted)
        return (maps if slides else ops.flatten(maps)), (wanted[0] - grid + 1, wanted[1] - grid + 1)

    def _connect(self, values: Node, fc: FullyConnected, *, side: int | None, reads: str | None) -> Node:
        """A layer, or its two factors, on rows, or as a convolution with a window of that side."""
        key = f"classifier.{fc.index}"
        factors = [(f"{key}.weight", f"{key}.bias")]
        if fc.rank is not None:
            factors = [(f"{key}.0.weight", ""), (f"{key}.1.weight", f"{key}.1.bias")]
        for weight_key, bias_key in factors:
            weight, bias = self._weights[weight_key], self._weights[bias_key] if bias_key else None
            if side is None:
                values = self._ops.connect(values, weight, bias, reads)
            else:
                values = self._ops.convolve(values, weight.reshape(len(weight), -1, side, side), bias, 0, reads)
                side = 1  # only the first one reads a window
            reads = None  # what is between two factors has no name
        return values


def read_norm(weights: Mapping[str, Values], layer: Layer) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factor and shift (C) of each channel, which a batch norm is."""
    scale, shift, mean, variance = (
        weights[f"features.{layer.index}.{name}"].astype(np.float64)
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    factor = scale / np.sqrt(variance + BATCH_NORM_EPSILON)
    return factor, shift - mean * factor
