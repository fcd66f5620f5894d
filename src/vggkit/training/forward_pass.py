"""The forward pass of a training step: of a network alone, or with layers that processes compute together.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

import torch
from torch import Tensor, nn

from vggkit.models.vgg import VGG
from vggkit.training.distributed.split_head import SplitHead
from vggkit.training.distributed.synchronized_norm import normalize_together
from vggkit.training.tiled_convolution import TiledConvolutions


class ForwardPass(nn.Module):
    """Calls a network in parts, so that some of them can be others' too.

    Args:
        network: The network that computes.
        split: Its head, where processes have a part of it each; None: the network's own.
        sync_norm: Whether batch norms that learn use the statistics of all processes.
        keeps_maps: Whether the trunk's last maps are returned.
    """

    def __init__(
        self, network: VGG, *, split: SplitHead | None = None, sync_norm: bool = False, keeps_maps: bool = False
    ) -> None:
        super().__init__()
        self.network, self.split = network, split
        self._sync_norm, self._keeps_maps = sync_norm, keeps_maps

    @property
    def own(self) -> frozenset[str]:
        """Names of the parameters that are each process's own, and of the whole matrices that they replace."""
        if self.split is None:
            return frozenset()
        parts = {f"split.{name}" for name, _ in self.split.named_parameters()}
        return frozenset(parts | {f"network.{key}" for key in self.split.axes})

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The trunk's last maps, or the images in their place, and logits (N, K) of images (N, C, H, W)."""
        with TiledConvolutions():
            return self._compute(images)

    def _compute(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if not (self._sync_norm or self._keeps_maps or self.split):
            return images, self.network(images)
        maps = self._extract(images) if self._sync_norm else self.network.features(images)
        if self.split is None:
            return maps, self.network.read(maps, self.network.classifier)
        return maps, self.split(torch.flatten(self.network.avgpool(maps), 1))

    def _extract(self, images: Tensor) -> Tensor:
        maps = images
        for layer in self.network.features:
            if isinstance(layer, nn.BatchNorm2d) and layer.training:
                maps = normalize_together(layer, maps)
            else:
                maps = layer(maps)
        return maps
