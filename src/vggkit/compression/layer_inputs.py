"""What the layers of a network read of calibration images, layer after layer, each computed from the one before.

Shape letters: N images, C channels, H and W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vggkit.compression.channels import Prunable
from vggkit.models.vgg import VGG


class LayerInputs:
    """The maps that are read at one place of a network, which moves forward.

    Args:
        network: The network, in evaluation mode.
        batches: Preprocessed images (N, C, H, W), in batches.
    """

    def __init__(self, network: VGG, batches: Sequence[Tensor]) -> None:
        self.network = network
        self.maps = list(batches)
        """(N, C, H, W) of each batch: what the layer there reads; of the head the trunk's last maps."""
        self._index = 0

    @torch.no_grad()
    def move_to(self, layer: Prunable) -> None:
        """Move to where a layer's channels are read; it must not lie behind."""
        index = _find_place(self.network, layer)
        assert index >= self._index, "layers come in order"
        between = self.network.features[self._index : index]
        for place, maps in enumerate(self.maps):
            self.maps[place] = between(maps)
        self._index = index

    def keep(self, smaller: VGG, kept: Tensor) -> None:
        """Go on with a network in which only these channels of the maps here are left."""
        self.network = smaller
        self.maps = [maps[:, kept] for maps in self.maps]

    @torch.no_grad()
    def finish(self, smaller: VGG, kept: Tensor, *, batches: int) -> list[Tensor]:
        """Logits (N, K) of the first batches by a network in which only these channels are left."""
        tail, found = smaller.features[self._index :], []
        for maps in self.maps[:batches]:
            found.append(smaller.read(tail(maps[:, kept]), smaller.classifier))
        return found

    @torch.no_grad()
    def read_rows(self, maps: Tensor) -> Tensor:
        """What the head's first layer reads of the trunk's last maps."""
        return self.network.read(maps, nn.Sequential())


def _find_place(network: VGG, layer: Prunable) -> int:
    place, index = layer.reader.split(".")[:2]
    return int(index) if place == "features" else len(network.features)
