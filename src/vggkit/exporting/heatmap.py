"""Grad-CAM of the most probable class as nodes of an ONNX model: `explanations.closed_form` in the graph.

Shape letters: N images, C channels, H and W places, K classes, F features.
"""

from collections.abc import Mapping
from typing import Protocol

from vggkit.engines.graph_builder import Values
from vggkit.engines.model_weights import Weights
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


class HeatmapOperations(Protocol):
    """The operations of a graph; nodes are known by name, maps are (N, C, H, W), rows (N, F)."""

    def choose_largest(self, logits: str) -> str:
        """The number (N,) of each row's largest value."""

    def take_rows(self, matrix: Values, places: str) -> str:
        """The rows of a matrix (K, F) at places (N,)."""

    def apply(self, rows: str, matrix: Values) -> str:
        """Rows times a matrix (F, F)."""

    def gate(self, rows: str, by: str) -> str:
        """Rows, 0 where another value (N, F) or (N, F, 1, 1) is not above 0."""

    def combine(self, maps: str, rows: str) -> str:
        """Maps (N, H, W): the channels' sum, weighted by rows (N, C)."""

    def rectify(self, values: str, watched: bool) -> str:
        """ReLU."""


def add_heatmap(operations: HeatmapOperations, weights: Weights, found: Mapping[Output, str]) -> str:
    """Add the nodes; the name of the heatmap.

    Args:
        operations: Of the model that is built.
        weights: The network's.
        found: The outputs of `list_needs`.
    """
    (_, [last, *factors]), *below = HeadGradient(weights).layers
    # The class's row is what a product with a one for it would give.
    rows = operations.take_rows(last, operations.choose_largest(found["logits"]))
    for factor in factors:
        rows = operations.apply(rows, factor)
    for relu, matrices in below:
        assert relu is not None
        rows = operations.gate(rows, found[relu])
        for matrix in matrices:
            rows = operations.apply(rows, matrix)
    maps = found[list_closed_layers(weights.configuration)[0]]
    return operations.rectify(operations.combine(maps, rows), False)
