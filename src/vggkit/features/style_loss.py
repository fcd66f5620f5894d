"""What style transfer minimises, after Gatys, Ecker and Bethge: values of one image, Gram matrices of others.

Shape letters: C channels, H and W pixels. Batches hold one image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vggkit.errors import BadConfiguration, BadInput
from vggkit.features.distances import gram
from vggkit.features.loss_config import LossConfig
from vggkit.features.loss_trunk import LossTrunk
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration, list_models
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
        self.layers = layers
        model = network.configuration.model
        config = LossConfig(
            model=model if model in list_models() else "vgg19",  # only the layers are read of it
            content={layers.content: 1.0},
            style=dict.fromkeys(layers.style, 1.0),
            pooling="average",
        )
        self._trunk = LossTrunk(
            network,
            preprocessing,
            config,
            input_range=(0.0, 1.0),
            dtype=torch.float32 if precision == "fp32" else torch.bfloat16,
            winograd="everything" if precision == "fp32" and device.type == "cpu" else "nothing",
        ).to(device)
        self.targets: Mapping[str, Tensor] = {}
        self.content: Tensor | None = None

    @torch.no_grad()
    def refer(self, content: Tensor, styles: Sequence[Tensor], weights: Sequence[float]) -> None:
        """Keep what images are compared with; raises BadInput for values that are not finite."""
        total = sum(weights)
        matrices = [{name: gram(found[name]) for name in self.layers.style} for found in map(self._trunk, styles)]
        self.targets = {
            name: torch.stack([each[name] * (w / total) for each, w in zip(matrices, weights, strict=True)]).sum(0)
            for name in self.layers.style
        }
        self.content = widen(self._trunk(content)[self.layers.content])
        for name, values in {**self.targets, self.layers.content: self.content}.items():
            if not bool(values.isfinite().all()):
                raise BadInput(f"the trunk gives values that are not finite at {name}; are its weights whole?")

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The content and the style term, scalars."""
        assert self.content is not None
        found = self._trunk(images)
        values = widen(found[self.layers.content])
        content = (values - self.content).square().mean() / self.content.square().mean().clamp_min(1e-12)
        terms = []
        for name in self.layers.style:
            target = self.targets[name]
            terms.append(
                (_Gram.apply(found[name]) - target).square().sum() / target.square().sum().clamp_min(1e-12)
            )
        return content, torch.stack(terms).mean()


class _Gram(torch.autograd.Function):
    """`gram` of one image, with fewer passes over its maps.

    The product is divided in place of the maps: it is within float32's range, which is bfloat16's, too. The
    gradient is one product: that of a symmetric matrix needs no second one.
    """

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        rows = widen(values).flatten(2)
        return (rows @ rows.transpose(1, 2)) / rows[0].numel()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        both = (gradient + gradient.transpose(1, 2)) / values[0].numel()
        rows = values.flatten(2)
        found: Tensor = both.to(values.dtype) @ rows
        return found.view_as(values)
