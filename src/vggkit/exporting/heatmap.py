"""Grad-CAM of the most probable class as nodes of an ONNX model: `explanations.closed_form` in the graph.

Shape letters: N images, C channels, H and W places, K classes, F features.
"""

from collections.abc import Mapping

import numpy as np

from vggkit.engines.model_weights import Weights
from vggkit.engines.onnx_graph import ONNXOperations
from vggkit.engines.outputs import Output
from vggkit.explanations.closed_form import HeadGradient, list_closed_layers
from vggkit.models.configuration import Configuration

HEATMAP = "heatmap"
"""Output (N, H, W): Grad-CAM of each image's most probable class, times the number of places; 0 or more."""


def has_heatmap(configuration: Configuration, crop_pixels: int) -> bool:
    """Whether it can be computed for images of that side: the layers behind the map must be at one place."""
    return configuration.head != "dense" or crop_pixels == configuration.minimum_side * configuration.grid


def list_needs(configuration: Configuration) -> list[Output]:
    """The outputs that the heatmap is computed from."""
    hidden = [fc.relu for fc in configuration.fully_connected[:-1]]
    return ["logits", list_closed_layers(configuration)[0], *hidden]


def add_heatmap(operations: ONNXOperations, weights: Weights, found: Mapping[Output, str]) -> str:
    """Add the nodes; the name of the heatmap.

    Args:
        operations: The model that is built.
        weights: The network's.
        found: The outputs of `list_needs`.
    """
    add, keep = operations.add_node, operations.keep
    maps = found[list_closed_layers(weights.configuration)[0]]
    values = add("ArgMax", [found["logits"]], axis=1, keepdims=0)
    for number, (relu, factors) in enumerate(HeadGradient(weights).layers):
        if relu is not None:
            rows = add("Flatten", [found[relu]], axis=1)
            is_open = add(
                "Cast",
                [add("Greater", [rows, keep(np.array(0, np.float32))])],
                to=operations.onnx.TensorProto.FLOAT,
            )
            values = add("Mul", [values, is_open])
        for place, factor in enumerate(factors):
            matrix = operations.keep_weight(factor)
            # The class's row is what a product with a one for it would give.
            values = add("Gather", [matrix, values]) if number == place == 0 else add("MatMul", [values, matrix])
    weighted = add("Mul", [maps, add("Unsqueeze", [values, keep(np.array([2, 3]))])])
    return add("Relu", [add("ReduceSum", [weighted, keep(np.array([1]))], keepdims=0)])
