"""Values that float32 cannot hold: where a network may have them, and what is said of an image that meets them.

No torch here. Shape letters: N images, C channels.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.graph_builder import Values, read_norm
from vggkit.engines.outputs import Plan, select_steps
from vggkit.models.configuration import Configuration
from vggkit.models.graph import Graph

LIMIT: Final = 1e36
"""Below it nothing overflows in float32 or bfloat16, in whatever order and by whatever algorithm it is summed."""


def bound_trunk(configuration: Configuration, plan: Plan, weights: Mapping[str, Values]) -> float:
    """What no value of a plan's trunk exceeds, for images within [-1, 1]; NaN where weights are no numbers.

    For images within [-a, a], a above 1, it is at most a² times as much. Each channel of each layer is bounded by
    the magnitudes of its weights times the bounds of what they read.
    """
    # In float32, which is quicker: where it does not hold a bound there may well be overflow.
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
            bounds = np.maximum(bounds, 1)  # a batch norm multiplied into kernels may be larger than what they give
            most = np.maximum(most, bounds.max())
    return float(most)


def can_overflow(bound: float, batch: NDArray[np.float32]) -> bool:
    """Whether a trunk of that bound may meet values that float32 cannot hold, for these images."""
    reach = max(1.0, float(np.abs(batch).max()))
    return not bound * reach**2 < LIMIT  # so that NaN may


def describe_overflow(values: NDArray[np.float32]) -> str | None:
    """Why what a network gave for an image is no answer; None where all of it is finite."""
    wrong = int(np.count_nonzero(~np.isfinite(values)))
    if not wrong:
        return None
    return (
        f"the network's values overflow or are not numbers: {wrong:,} of {values.size:,} that it gave are NaN or "
        "infinite. Its weights are broken or far too large: take an earlier checkpoint, or train it again at a "
        "lower learning rate"
    )
