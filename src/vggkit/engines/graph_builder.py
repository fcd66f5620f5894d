"""Builds a network as a graph of operations from its configuration and weights.

The operations are the engine's: OpenVINO's nodes, or ONNX's. No torch here.
Shape letters: N images, C channels, H and W pixels, F features.
"""

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.outputs import Output, Plan, select_steps
from vggkit.models.configuration import BATCH_NORM_EPSILON, STD_EPSILON, Configuration, Pooling
from vggkit.models.graph import Graph, Step

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


class GraphBuilder(Generic[Node]):
    """Builds what a plan needs, for images of one size.

    Args:
        configuration: The network.
        plan: What is computed.
        weights: Values under the plan's keys.
        operations: What the graph is made of.
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

    def build(self, images: Node, sides: Sides) -> dict[Output, Node]:
        """The plan's outputs of images (N, C, H, W) of that height and width, in its order."""
        graph = Graph(self._configuration, input_pixels=sides)
        steps = select_steps(graph, self._plan.computed)
        found: dict[Output, Node] = {}
        values = images
        with np.errstate(over="ignore", invalid="ignore"):  # it shows in the outputs
            for before, step, after in zip((None, *steps), steps, (*steps[1:], None), strict=False):
                values = self._add(step, values, before, after)
                found[step.name] = values
            found["logits"] = values
            if "features" in self._plan.computed:
                found["features"] = self._read_features(graph, found)
            if "statistics" in self._plan.computed:
                found["statistics"] = self._ops.summarize(found[graph.trunk[-1].name], 0.0)
        return {name: found[name] for name in self._plan.computed}

    def _add(self, step: Step, values: Node, before: Step | None, after: Step | None) -> Node:
        ops = self._ops
        match step.kind:
            case "conv":
                weight, bias = (self._weights[key] for key in step.weights)
                if self._is_folded(step, after):
                    assert after is not None
                    factor, shift = read_norm(self._weights, after)
                    weight = (weight * factor[:, None, None, None]).astype(np.float32)
                    bias = (bias * factor + shift).astype(np.float32)
                return ops.convolve(values, weight, bias, step.kernel // 2, step.reads)
            case "bn":
                assert before is not None
                if self._is_folded(before, step):
                    return values
                factor, shift = read_norm(self._weights, step)
                return ops.scale(values, factor.astype(np.float32), shift.astype(np.float32))
            case "relu":
                return ops.rectify(values, self._watch_trunk or str(step.module).startswith("classifier"))
            case "lrn":
                return ops.normalize_responses(values, self._watch_trunk)
            case "pool":
                return ops.pool(values, self._configuration.pooling, step.name)
            case "adaptive_pool":
                return ops.fit(values, _sides(step.input_shape), _sides(step.output_shape))
            case "flatten":
                return ops.flatten(values)
            case "statistics" if self._configuration.statistics == "mean+std":
                return ops.summarize(values, STD_EPSILON)
            case "statistics" | "mean":
                return ops.average(values)
            case "fc":
                matrix, *biases = (self._weights[key] for key in step.weights)
                offset = biases[0] if biases else None  # the first of two factors has none
                if len(step.output_shape) == 1:
                    return ops.connect(values, matrix, offset, step.reads)
                window = matrix.reshape(len(matrix), -1, step.kernel, step.kernel)
                return ops.convolve(values, window, offset, 0, step.reads)

    def _is_folded(self, conv: Step, after: Step | None) -> bool:
        """Whether the batch norm behind a convolution is multiplied into it: unless its own maps are requested."""
        return after is not None and after.kind == "bn" and conv.name not in self._plan.computed

    def _read_features(self, graph: Graph, found: Mapping[Output, Node]) -> Node:
        """What the last layer reads, as rows; the average of it where that layer slides over a map."""
        last = select_steps(graph, ["features"])[-1]
        values = found[last.name]
        if self._configuration.head != "dense":
            return values
        if self._configuration.hidden:
            return self._ops.average(values)
        height, width = _sides(last.output_shape)
        grid = self._configuration.grid
        return self._ops.flatten(self._ops.average_windows(values, (height - grid + 1, width - grid + 1)))


def _sides(shape: tuple[int, ...]) -> Sides:
    _, height, width = shape
    return height, width


def read_norm(weights: Mapping[str, Values], step: Step) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factor and shift (C) of each channel, which a batch norm is."""
    scale, shift, mean, variance = (weights[key].astype(np.float64) for key in step.weights)
    factor = scale / np.sqrt(variance + BATCH_NORM_EPSILON)
    return factor, shift - mean * factor
