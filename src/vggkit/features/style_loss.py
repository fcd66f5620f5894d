"""What style transfer minimises, after Gatys, Ecker and Bethge: values of one image, Gram matrices of others.

Shape letters: C channels, H and W pixels. Batches hold one image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vggkit.errors import BadConfiguration, BadInput
from vggkit.features.distances import gram
from vggkit.features.normalization import normalize_images
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration
from vggkit.models.features import Features
from vggkit.models.layers import widen
from vggkit.models.vgg import VGG


@dataclass(frozen=True, slots=True)
class StyleLayers:
    """The layers that style transfer compares."""

    content: str
    """Compared place by place."""
    style: tuple[str, ...]
    """Compared by their Gram matrices."""


def choose_style_layers(configuration: Configuration) -> StyleLayers:
    """Those of Gatys et al. as far as the network has them.

    Style: the first ReLU of each block, `relu1_1` to `relu5_1`. Content: `relu4_2`, else the second ReLU of the
    deepest block that has two, else the deepest ReLU.
    """
    names = [layer.name for layer in configuration.trunk if layer.kind == "relu"]
    if not names:
        raise BadConfiguration("style transfer compares values after ReLUs, and this trunk ends before the first")
    second = [name for name in names if name.endswith("_2")]
    content = "relu4_2" if "relu4_2" in names else second[-1] if second else names[-1]
    return StyleLayers(content, tuple(name for name in names if name.endswith("_1"))[:5])


class StyleLoss:
    """The loss of one size: relative squared differences of values and of Gram matrices.

    content is mean((F - P)²) / mean(P²) at the content layer. style is the mean over the style layers of
    ‖G - A‖² / ‖A‖², where A is the weighted mean of the style images' Gram matrices. Gatys's terms (CVPR 2016,
    equations 1 and 4) are these times constants of the images; divided by them, one strength suits every trunk.

    Args:
        network: A trunk; pooling is averaged, as in the paper.
        preprocessing: How the network's images are normalised.
        layers: What is compared.
        precision: `fp32`, or `bf16`: the trunk computes in bfloat16, Gram matrices and sums in float32.
    """

    def __init__(
        self,
        network: VGG,
        preprocessing: Preprocessing,
        layers: StyleLayers,
        *,
        precision: Literal["fp32", "bf16"],
        device: torch.device,
    ) -> None:
        self.layers, self.device = layers, device
        self._dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        averaging = average_pools(network, until=_find_deepest(network.configuration, layers))
        averaging.to(device, self._dtype).to(memory_format=torch.channels_last)
        self._features = Features(averaging, (*layers.style, layers.content), frozen=True)
        self._preprocessing = preprocessing
        self.targets: Mapping[str, Tensor] = {}
        self.content: Tensor | None = None

    def look(self, images: Tensor) -> dict[str, Tensor]:
        """The layers' values of images (1, 3, H, W) in [0, 1]."""
        images = normalize_images(images, self._preprocessing)
        found: dict[str, Tensor] = self._features(
            images.to(self._dtype).contiguous(memory_format=torch.channels_last)
        )
        return found

    @torch.no_grad()
    def refer(self, content: Tensor, styles: Sequence[Tensor], weights: Sequence[float]) -> None:
        """Keep what images are compared with; raises BadInput for values that are not finite."""
        total = sum(weights)
        matrices = [{name: gram(found[name]) for name in self.layers.style} for found in map(self.look, styles)]
        self.targets = {
            name: torch.stack([each[name] * (w / total) for each, w in zip(matrices, weights, strict=True)]).sum(0)
            for name in self.layers.style
        }
        self.content = widen(self.look(content)[self.layers.content])
        for name, values in {**self.targets, self.layers.content: self.content}.items():
            if not bool(values.isfinite().all()):
                raise BadInput(f"the trunk gives values that are not finite at {name}; are its weights whole?")

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The content and the style term, scalars."""
        assert self.content is not None
        found = self.look(images)
        values = widen(found[self.layers.content])
        content = (values - self.content).square().mean() / self.content.square().mean().clamp_min(1e-12)
        terms = []
        for name in self.layers.style:
            target = self.targets[name]
            terms.append((gram(found[name]) - target).square().sum() / target.square().sum().clamp_min(1e-12))
        return content, torch.stack(terms).mean()


def average_pools(network: VGG, *, until: str) -> VGG:
    """The trunk up to a layer with the network's values, shared, and with average pooling in place of max."""
    whole = network.configuration
    cut = replace(
        whole,
        until=until,
        head="pool",
        statistics="mean",
        hidden=(),
        ranks=None,
        num_classes=1,
        pooling="average",
    )
    with torch.device("meta"):
        copy = VGG(cut)
    values = network.features.state_dict()
    shared = {key: values[key].detach() for key in copy.features.state_dict()}
    copy.features.load_state_dict(shared, assign=True)
    copy.classifier.to_empty(device="cpu")  # never read
    return copy.requires_grad_(False).eval()


def _find_deepest(configuration: Configuration, layers: StyleLayers) -> str:
    order = [layer.name for layer in configuration.trunk]
    return max((layers.content, *layers.style), key=order.index)
