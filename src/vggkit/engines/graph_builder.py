"""Builds a network as a graph of operations from its configuration and weights.

The operations are the engine's: OpenVINO's nodes, ONNX's, or ncnn's layers. No torch here.
Shape letters: N images, C channels, H and W pixels, F features.
"""

from collections.abc import Mapping
from typing import Final, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.outputs import Output, Plan, select_steps
from vggkit.models.configuration import BATCH_NORM_EPSILON, STD_EPSILON, Configuration, Pooling
from vggkit.models.graph import Graph, Step

Node = TypeVar("Node")
Values = NDArray[np.float32]
Sides = tuple[int, int]


class Operations(Protocol[Node]):
    """The operations of a graph; maps are (N, C, H, W), rows (N, F)."""

    def convolve(self, maps: Node, weight: Values, bias: Values | None, padding: int, reads: str | None) -> Node:
        """A convolution by kernels (out, in, h, w) of what has the name `reads`, where it has one."""

    def scale(self, maps: Node, factor: Values, shift: Values) -> Node:
        """Each channel times a factor and plus a shift (C)."""

    def rectify(self, values: Node, watched: bool) -> Node:
        """ReLU, of maps or rows; `watched`: values that are not finite must still be detected after it."""

    def normalize_responses(self, maps: Node, watched: bool) -> Node:
        """The paper's local response normalisation, as `models.layers` has it; `watched`: as above, squares too."""

    def pool(self, maps: Node, pooling: Pooling, gives: str) -> Node:
        """Pooling of 2×2 windows; `gives` is the name of the result."""

    def give(self, values: Node, name: str) -> Node:
        """The values of a layer, which the next one reads, as they are given as an output too."""

    def fit(self, maps: Node, sides: Sides, wanted: Sides) -> Node:
        """Maps averaged to other sides, as adaptive pooling does."""

    def average_windows(self, maps: Node, places: Sides) -> Node:
        """The mean of a window over so many places, down and across."""

    def flatten(self, maps: Node) -> Node:
        """Maps flattened to rows."""

    def connect(self, rows: Node, weight: Values, bias: Values | None, reads: str | None) -> Node:
        """A matrix (out, in) and a bias (out); `reads` as above."""

    def average(self, maps: Node) -> Node:
        """Rows: the mean of each channel."""

    def summarize(self, maps: Node, epsilon: float) -> Node:
        """Rows: mean and standard deviation of each channel, epsilon added to the variance."""


class GraphBuilder(Generic[Node]):
    """Builds the graph of a plan, for images of one size.

    Args:
        configuration: The network.
        plan: The steps and outputs.
        weights: Values under the plan's keys.
        operations: The operations of the engine.
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
        given = {*self._plan.computed, *self._find_sources(graph)}
        found: dict[Output, Node] = {}
        values = images
        with np.errstate(over="ignore", invalid="ignore"):  # the outputs show it
            for before, step, after in zip((None, *steps), steps, (*steps[1:], None), strict=False):
                values = self._add(step, values, before, after)
                if step.name in given:
                    values = self._ops.give(values, step.name)
                found[step.name] = values
            found["logits"] = values
            if "features" in self._plan.computed:
                found["features"] = self._read_features(graph, found)
            if "statistics" in self._plan.computed:
                found["statistics"] = self._ops.summarize(found[graph.trunk[-1].name], 0.0)
        return {name: found[name] for name in self._plan.computed}

    def _find_sources(self, graph: Graph) -> list[Output]:
        """Names of the layers that outputs without a layer of their own are made of."""
        computed = self._plan.computed
        features = [select_steps(graph, ["features"])[-1].name] if "features" in computed else []
        return [*features, *([graph.trunk[-1].name] if "statistics" in computed else [])]

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
        """Whether the batch norm after a convolution is folded into it: unless its own maps are requested."""
        return after is not None and after.kind == "bn" and conv.name not in self._plan.computed

    def _read_features(self, graph: Graph, found: Mapping[Output, Node]) -> Node:
        """The input of the last layer, as rows; its average if that layer slides over a map."""
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
    """Factor and shift (C) of each channel, equivalent to a batch norm."""
    scale, shift, mean, variance = (weights[key].astype(np.float64) for key in step.weights)
    factor = scale / np.sqrt(variance + BATCH_NORM_EPSILON)
    return factor, shift - mean * factor


LIMIT: Final = 1e36
"""Below it nothing overflows in float32 or bfloat16, in any order and by any algorithm of summation."""


def bound_trunk(configuration: Configuration, plan: Plan, weights: Mapping[str, Values]) -> float:
    """An upper bound of all values of a plan's trunk, for images within [-1, 1]; NaN if weights are NaN.

    For images within [-a, a], a above 1, it is at most a² times as much. Each channel of each layer is bounded by
    the magnitudes of its weights times the bounds of what they read.
    """
    # In float32, which is faster: a bound beyond its range means that overflow is possible.
    bounds: NDArray[np.float32] = np.ones(configuration.in_channels, np.float32)
    most = np.float32(1)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        graph = Graph(configuration)
        for step in select_steps(graph, plan.computed)[: len(graph.trunk)]:
            match step.kind:
                case "conv":
                    weight, bias = (weights[key] for key in step.weights)
                    rows = np.abs(weight).reshape(len(weight), -1)
                    bounds = rows @ np.repeat(bounds, rows.shape[1] // len(bounds)) + np.abs(bias)
                case "bn":
                    factor, shift = read_norm(weights, step)
                    bounds = (bounds * np.abs(factor) + np.abs(shift)).astype(np.float32)
                case "lrn":  # squares what it reads
                    most = np.maximum(most, bounds.max() ** 2)
                case "relu" | "pool":
                    pass
            bounds = np.maximum(bounds, 1)  # a batch norm folded into kernels may be larger than their output
            most = np.maximum(most, bounds.max())
    return float(most)


def can_overflow(bound: float, batch: NDArray[np.float32]) -> bool:
    """Whether a trunk of that bound may meet values that float32 cannot hold, for these images."""
    reach = max(1.0, float(np.abs(batch).max()))
    return not bound * reach**2 < LIMIT  # so that NaN may


def describe_overflow(values: NDArray[np.float32]) -> str | None:
    """The problem of an image whose outputs are not all finite; None where they are."""
    wrong = int(np.count_nonzero(~np.isfinite(values)))
    if not wrong:
        return None
    return (
        f"the network's values overflow or are not numbers: {wrong:,} of {values.size:,} that it gave are NaN or "
        "infinite. Its weights are broken or far too large: take an earlier checkpoint, or train it again at a "
        "lower learning rate"
    )
