"""What is to be explained, and how: the method, the layer that it looks at, and the class.

Shape letters: N images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadConfiguration, BadInput, UnknownName
from vggkit.explanations.closed_form import list_closed_layers
from vggkit.models.graph import Graph
from vggkit.weights.card import Card

Method = Literal["grad-cam", "layer-cam", "integrated-gradients", "occlusion", "saliency"]
"""How an explanation is computed: from the map of a layer, or from the pixels of the network's input."""
OF_LAYERS: Final = ("grad-cam", "layer-cam")
"""Methods that look at the map of a layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplanationPlan:
    """What is computed for each image."""

    method: Method
    """How."""
    layer: str | None
    """The layer whose map is explained; None where the pixels are."""
    sides: tuple[int, int]
    """Height and width of each explanation: of that layer's map, or of the network's input."""
    is_closed: bool
    """Whether any engine computes it, without a gradient by PyTorch."""
    label: int | None
    """The number of the class; None: of each image the most probable one."""
    contrast: int | None
    """The number of a class whose score is subtracted; None: of none."""
    classes: int
    """K."""

    @classmethod
    def of(
        cls,
        card: Card,
        *,
        method: Method = "grad-cam",
        layer: str | None = None,
        label: str | None = None,
        contrast: Sequence[str] | None = None,
    ) -> "ExplanationPlan":
        """The plan for a Classifier's images.

        Args:
            card: The Classifier's.
            method: A name of `Method`.
            layer: For grad-cam and layer-cam; None: what the last pool reads, which is the last convolution's map
                after its ReLU, or, of a trunk that ends otherwise, its last map.
            label: The class; None: of each image the most probable one.
            contrast: Two classes, A and B: why A and not B.

        Raises UnknownName with the nearest name, BadInput for a layer without a map, and BadConfiguration for
        options that contradict each other.
        """
        if method not in get_args(Method):
            raise UnknownName.of("method of explanation", method, get_args(Method))
        if label is not None and contrast is not None:
            raise BadConfiguration(
                "label and contrast both say which class is explained: take contrast alone for why A and not B"
            )
        first, second = (label, None) if contrast is None else _demand_pair(contrast)
        numbers = [None if name is None else _find_class(card, name) for name in (first, second)]
        side = card.preprocessing.crop_pixels
        if method in OF_LAYERS:
            closed = list_closed_layers(card.configuration)
            layer = closed[0] if layer is None else layer
            sides = _find_sides(card, layer, method)
        elif layer is not None:
            raise BadConfiguration(
                f"method={method} explains the pixels, and layer={layer} is for {' and '.join(OF_LAYERS)}; leave "
                "layer out, or choose one of these methods"
            )
        else:
            closed, sides = (), (side, side)
        return cls(
            method=method,
            layer=layer,
            sides=sides,
            is_closed=method == "grad-cam" and layer in closed,
            label=numbers[0],
            contrast=numbers[1],
            classes=len(card.labels),
        )

    def choose_directions(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, K) the combination of scores (N, K) that is explained of each image."""
        best = logits.argmax(axis=1) if self.label is None else np.full(len(logits), self.label)
        directions: NDArray[np.float32] = np.eye(self.classes, dtype=np.float32)[best]
        if self.contrast is not None:
            directions[:, self.contrast] -= 1
        return directions


def _demand_pair(contrast: Sequence[str]) -> tuple[str, str]:
    if isinstance(contrast, str) or len(contrast) != 2 or contrast[0] == contrast[1]:
        raise BadInput(f"contrast must be two different classes, A and B: why A and not B; got {contrast!r}")
    return contrast[0], contrast[1]


def _find_class(card: Card, name: str) -> int:
    if name not in card.labels:
        raise UnknownName.of("class of this Classifier", name, card.labels)
    return card.labels.index(name)


def _find_sides(card: Card, layer: str, method: str) -> tuple[int, int]:
    """Height and width of the layer's map."""
    side = card.preprocessing.crop_pixels
    graph = Graph(card.configuration, input_pixels=(side, side))
    shape = graph.find(layer).output_shape
    if len(shape) == 3 and max(shape[1:]) > 1:
        return shape[1], shape[2]
    lying = "has no height and width" if len(shape) < 3 else f"is 1 × 1 for images of {side} × {side} pixels"
    several = [each for each in graph.trunk if each.output_shape[1] > 1]
    last = several[-1].name if several else "none here"
    raise BadInput(
        f"{method} shows where on a layer's map the evidence lies, and {layer} {lying}; choose a layer with a map: "
        f"the last one is {last}"
    )
