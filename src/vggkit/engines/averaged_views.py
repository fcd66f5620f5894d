"""Predictions that are averages over small variations of each image: its mirror image, and moved by one pixel.

Krizhevsky et al. 2012, section 4.1, average crops and their mirror images; Jordan 2024, arXiv:2404.00498, section
3.7, the image, moves by one pixel and the mirror images of these. No torch here.

Shape letters: N images, C channels, H and W pixels, K classes, V views.
"""

from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.stream import NamedEngine
from vggkit.errors import UnknownName
from vggkit.task import Activation, log_complement

Views = Literal["one", "mirror", "mirror-shift"]
"""one: the image. mirror: also its mirror image. mirror-shift: also both, moved by one pixel up and to the left,
and down and to the right."""
SHIFTS: Final = ((-1, -1), (1, 1))
"""Rows and columns by which images are moved, besides not at all."""


def demand_views(views: object) -> Views:
    """The name of views; raises UnknownName for another one."""
    for known in get_args(Views):
        if views == known:
            return known  # type: ignore[no-any-return]
    raise UnknownName.of("views", str(views), get_args(Views))


def list_views(inputs: NDArray[np.float32], views: Views) -> list[NDArray[np.float32]]:
    """The views of inputs (..., C, H, W), each of that shape; the pixels at a border that moves in are reflected.

    >>> [view.tolist() for view in list_views(np.arange(2.0, dtype=np.float32).reshape(1, 1, 2), "mirror")]
    [[[[0.0, 1.0]]], [[[1.0, 0.0]]]]
    """
    moved = [inputs]
    if views == "mirror-shift":
        height, width = inputs.shape[-2:]
        edges = [(0, 0)] * (inputs.ndim - 2) + [(1, 1), (1, 1)]
        wide = np.pad(inputs, edges, mode="reflect")
        moved += [wide[..., 1 - down : 1 - down + height, 1 - right : 1 - right + width] for down, right in SHIFTS]
    return [view for each in moved for view in ((each,) if views == "one" else (each, each[..., ::-1]))]


class AveragedViews(NamedEngine):
    """An engine for logits whose results are those of averaged probabilities.

    The logits of each view become probabilities, as `activation` says, and the result is the logits of their mean:
    code that reads logits reads these alike.

    Args:
        engine: Computes the logits (N, K) of images (N, C, H, W).
        activation: The Classifier's.
        views: The views.
    """

    def __init__(self, engine: NamedEngine, activation: Activation, views: Views) -> None:
        self._engine, self._activation, self._views = engine, activation, views
        self.info, self.outputs = engine.info, engine.outputs[:1]

    def compute(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """The logits (N, K) by their name."""
        several = list_views(batch, self._views)
        logits = [self._engine.run(np.ascontiguousarray(view)) for view in several]
        return {self.outputs[0]: average_logits(logits, self._activation)}


def average_logits(logits: list[NDArray[np.float32]], activation: Activation) -> NDArray[np.float32]:
    """The logits (N, K) of the mean probabilities of V logits (N, K); not finite where one of them is not."""
    logs: NDArray[Any] = np.stack([activation.log(each) for each in logits])
    peak = logs.max(axis=0)
    mean = peak + np.log(np.exp(logs - peak).mean(axis=0))
    if activation.task == "multi-label":
        mean = mean - log_complement(mean)
    found: NDArray[np.float32] = (activation.temperature * mean).astype(np.float32)
    return found


def average_over(engine: NamedEngine, activation: Activation, views: Views) -> NamedEngine:
    """The engine, averaged over views; itself for a single view."""
    return engine if views == "one" else AveragedViews(engine, activation, views)
