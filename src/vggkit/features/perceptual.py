"""Perceptual losses: distances between images as a VGG sees them.

Shape letters: N images, C channels, H and W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from vggkit.errors import BadInput, UnknownName
from vggkit.features.calibration import Calibrated, read_calibration
from vggkit.features.distances import (
    compare,
    compare_structure,
    gram,
    normalize_channels,
    weigh_normalized,
)
from vggkit.features.loss_config import LossConfig, demand_range, find_preset
from vggkit.features.loss_trunk import LossTrunk, open_trunk
from vggkit.features.range_check import RangeCheck
from vggkit.models.layers import widen
from vggkit.models.vgg import VGG
from vggkit.weights.model import Model

CONTENT, STYLE = "content", "style"


@dataclass(frozen=True, slots=True)
class Reference:
    """What a loss compares images with, computed once by `PerceptualLoss.reference`."""

    content: Mapping[str, Tensor]
    """Values of each layer, as the loss compares them."""
    style: Mapping[str, Tensor]
    """Gram matrices (N, C, C) of each layer."""

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return replace(
            self,
            content={name: values.to(device) for name, values in self.content.items()},
            style={name: values.to(device) for name, values in self.style.items()},
        )


class PerceptualLoss(nn.Module):
    """A distance between images, by what a VGG computes of them.

    A module without trained parameters: its trunk and its calibration are constants, the trunk sharing its tensors
    with the network that was given where they have the same precision. Gradients flow to the images, and to the
    targets where these require them.

    Args:
        config: A published loss, `johnson`, `gatys`, `srgan`, `srgan-vgg22`, `esrgan`, `real-esrgan`, `pix2pixhd`,
            `lpips` or `dists`, or a LossConfig of one's own.
        trunk: The VGG: a network, a Classifier, a file or folder of one, a file of weights, or a model's name for
            the published ImageNet weights. A Classifier's preprocessing and a file's known input convention are
            followed; a bare network is taken to read ImageNet-normalised RGB.
        calibration: For `lpips` the weights of its linear layers, for `dists` alpha and beta: a file in the form
            that their authors publish, or a mapping of its tensors.
        input_range: The range of the images' values, (0, 1), (-1, 1) or (0, 255); None: the loss's own.
        reduction: `mean` over the images, a scalar, or `none`, (N,).
        precision: `fp32`, or `bf16`: the trunk computes in bfloat16, distances in float32.
        style_weight: What the style terms are multiplied by.
        check_range: Raise BadInput for images outside of `input_range` and warn, once, of images that seem to be of
            another range.

    Raises UnknownName, BadConfiguration where trunk or calibration do not fit the loss, and BadCheckpoint.

    >>> import torch, vggkit as vk
    >>> loss = vk.PerceptualLoss("srgan-vgg22", trunk=vk.VGG("vgg19", until="relu2_2"))
    >>> images = torch.rand(2, 3, 32, 32) * 2 - 1  # in [-1, 1], as the loss expects
    >>> loss(images, images)
    tensor(0.)
    """

    def __init__(
        self,
        config: str | LossConfig,
        *,
        trunk: VGG | Model | str | Path,
        calibration: Mapping[str, Tensor] | str | Path | None = None,
        input_range: tuple[float, float] | None = None,
        reduction: Literal["mean", "none"] = "mean",
        precision: Literal["fp32", "bf16"] = "fp32",
        style_weight: float = 1.0,
        check_range: bool = True,
    ) -> None:
        super().__init__()
        self.name = config if isinstance(config, str) else "this loss"
        self.config = find_preset(config) if isinstance(config, str) else config
        self.input_range = demand_range(self.config.input_range if input_range is None else input_range)
        if reduction not in ("mean", "none"):
            raise UnknownName.of("reduction", reduction, ("mean", "none"))
        if precision not in ("fp32", "bf16"):
            raise UnknownName.of("precision", precision, ("fp32", "bf16"))
        self.reduction, self.style_weight = reduction, float(style_weight)
        network, preprocessing = open_trunk(trunk, self.config, self.name)
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self.trunk = LossTrunk(network, preprocessing, self.config, input_range=self.input_range, dtype=dtype)
        widths = {layer.name: layer.out_channels for layer in network.configuration.trunk}
        self.calibration = Calibrated(read_calibration(calibration, self.config, widths))
        self._check = RangeCheck(self.input_range, checks_values=check_range)

    def forward(
        self,
        images: Tensor,
        target: "Tensor | Reference | None" = None,
        *,
        content: "Tensor | Reference | None" = None,
        style: "Tensor | Reference | None" = None,
    ) -> Tensor:
        """The distance: a scalar, or (N,) for `reduction="none"`.

        Args:
            images: (N, C, H, W), floating point, in the declared range.
            target: What they are compared with, (N, C, H, W) or one image for all (1, C, H, W), or a `reference`.
            content: In place of `target`, for the layers of the config's `content` alone.
            style: In place of `target`, for those of its `style` alone; of any size.

        Raises BadInput for images of another range, shape or type.
        """
        terms = self.terms(images, target, content=content, style=style)
        total = torch.stack(list(terms.values())).sum(0)
        total = 1 - total if self.config.metric == "dists" else total
        return total.mean() if self.reduction == "mean" else total

    def terms(
        self,
        images: Tensor,
        target: "Tensor | Reference | None" = None,
        *,
        content: "Tensor | Reference | None" = None,
        style: "Tensor | Reference | None" = None,
    ) -> dict[str, Tensor]:
        """What `forward` adds up, (N,) for each layer, by names such as `content relu4_2` and `style relu1_1`.

        For `dists` they are similarities, whose sum is subtracted from 1.
        """
        wanted_content, wanted_style = self._choose(target, content, style)
        references = [self._refer(images, given) for given in (wanted_content, wanted_style)]
        found = self._compute(self._check(images, "images"))
        terms: dict[str, Tensor] = {}
        if references[0] is not None:
            for name, weight in self._content_weights().items():
                terms[f"{CONTENT} {name}"] = weight * self._compare(name, found[name], references[0].content[name])
        if references[1] is not None:
            for name, weight in self.config.style.items():
                matrices, reduction = gram(found[name] * self.config.feature_scale), self.config.style_reduction
                each = compare(
                    matrices,
                    references[1].style[name],
                    distance=self.config.style_distance,
                    reduction=reduction,
                )
                terms[f"{STYLE} {name}"] = self.style_weight * weight * each
        return terms

    def reference(self, target: Tensor) -> Reference:
        """What images are compared with, computed once: pass it in place of the target.

        Args:
            target: (N, C, H, W) or (1, C, H, W), in the declared range.
        """
        with torch.no_grad():
            return self._make_reference(target)

    def train(self, mode: bool = True) -> Self:
        """The trunk stays in evaluation mode."""
        self.training = mode
        return self

    def _choose(
        self,
        target: "Tensor | Reference | None",
        content: "Tensor | Reference | None",
        style: "Tensor | Reference | None",
    ) -> "tuple[Tensor | Reference | None, Tensor | Reference | None]":
        config = self.config
        if target is not None and (content is not None or style is not None):
            raise BadInput("give target=, or content= and style=, not both")
        chosen = (content if target is None else target) if config.content else None
        for_style = (style if target is None else target) if config.style else None
        if chosen is None and for_style is None:
            raise BadInput(
                f"{self.name} needs what images are compared with: target="
                + (", or content= and style=" if config.style else "")
            )
        return chosen, for_style

    def _refer(self, images: Tensor, given: "Tensor | Reference | None") -> Reference | None:
        if given is None or isinstance(given, Reference):
            return given
        with torch.set_grad_enabled(torch.is_grad_enabled() and given.requires_grad):
            return self._make_reference(given)

    def _make_reference(self, target: Tensor) -> Reference:
        found = self._compute(self._check(target, "the target"))
        content = {}
        for name in self._content_weights():
            values = found[name]
            if self.config.metric == "lpips":
                values = normalize_channels(widen(values))
            content[name] = values
        style = {name: gram(found[name] * self.config.feature_scale) for name in self.config.style}
        return Reference(content, style)

    def _content_weights(self) -> dict[str, float]:
        own = {"image": 1.0} if self.config.metric == "dists" else {}
        return own | dict(self.config.content)

    def _compute(self, images: Tensor) -> dict[str, Tensor]:
        """The layers' values; `image` is the image itself, in [0, 1]."""
        found: dict[str, Tensor] = self.trunk(images)
        if self.config.metric == "dists":
            low, high = self.input_range
            found["image"] = (widen(images) - low) / (high - low)
        return found

    def _compare(self, name: str, values: Tensor, reference: Tensor) -> Tensor:
        config = self.config
        if values.shape[1:] != reference.shape[1:] or reference.shape[0] not in (1, values.shape[0]):
            raise BadInput(
                f"images and target must have one size; their {name} is {tuple(values.shape)} and "
                f"{tuple(reference.shape)}"
            )
        match config.metric:
            case "lpips":
                weights = self.calibration.linear(name)
                if reference.requires_grad or torch.compiler.is_compiling():
                    difference = normalize_channels(widen(values)) - reference
                    return (difference.square() * weights[:, None, None]).sum(1).mean((1, 2))
                return weigh_normalized(values, reference, weights)
            case "dists":
                alpha, beta = self.calibration.structure(name)
                return compare_structure(values, reference, alpha=alpha, beta=beta)
            case "features":
                scale = config.feature_scale
                return compare(
                    widen(values) * scale,
                    widen(reference) * scale,
                    distance=config.content_distance,
                    reduction=config.content_reduction,
                )
