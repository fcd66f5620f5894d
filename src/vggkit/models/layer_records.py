"""Records of the layers of a VGG, under the names of the literature. No torch here."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["conv", "bn", "relu", "lrn", "pool"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the trunk, under the name that the literature uses."""

    name: str
    """`conv3_2`, `bn3_2`, `relu3_2`, `lrn3_2`, `pool3`: block and position, from 1."""
    kind: Kind
    """The kind of layer."""
    index: int
    """Its place in `features`: its keys are `features.<index>.*`."""
    in_channels: int
    """Channels of the map it reads."""
    out_channels: int
    """Channels of the map it gives."""
    kernel: int
    """Side of its window in pixels of that map; 1 where it has none."""


@dataclass(frozen=True, slots=True)
class FullyConnected:
    """One fully connected layer of the head; ReLU and dropout follow each but the last."""

    name: str
    """`fc6`, `fc7`, `fc8`: numbered after the five blocks, as in the literature."""
    index: int
    """Its place in `classifier`: its keys are `classifier.<index>.*`."""
    in_features: int
    """Numbers read for one image."""
    out_features: int
    """Numbers given for one image."""
    rank: int | None
    """Width of the narrow middle where the layer is two factors; None: one full matrix."""

    @property
    def relu(self) -> str:
        """Name of the ReLU that follows it, if it is not the last: `relu6` of `fc6`."""
        return self.name.replace("fc", "relu")
