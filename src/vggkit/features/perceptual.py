"""Perceptual losses: distances between images as a VGG sees them.

Shape letters: N images, C channels, H and W pixels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, Self

import torch
from torch import Tensor, nn

from vggkit.arguments import demand_count
from vggkit.errors import BadInput, UnknownName
from vggkit.features.calibration import Calibrated, read_calibration
from vggkit.features.distances import (
    compare,
    compare_structure,
    gram,
    normalize_channels,
    weigh_normalized,
)
from vggkit.features.image_by_image import compute_in_parts
from vggkit.features.loss_config import LossConfig, demand_calibration, demand_range, find_preset
from vggkit.features.loss_trunk import LossTrunk, open_trunk
from vggkit.features.range_check import RangeCheck
from vggkit.features.reference import (
    Compared,
    Pair,
    Reference,
    change_pair,
    is_batch,
    join_references,
    take_images,
)
from vggkit.features.side_by_side import compute_side_by_side
from vggkit.models.layers import widen
from vggkit.models.vgg import VGG
from vggkit.weights.model import Model

PIXELS_AT_ONCE: Final = 256 * 256
"""Of images that are computed together on a CPU: batches are no faster there, and take more memory."""


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
        precision: `fp32`, or `bf16`: layers are computed in float32, on a CPU by Winograd's algorithm as below, and
            the gradients of convolutions in bfloat16, where the device multiplies it natively. Distances then
            differ by about 1e-6 and gradients by about 1 %. On a GPU only gradients are faster.
        convolution: `direct`, whose layers are those of the published implementations to the last bit, or
            `winograd`, on a CPU in float32: faster. Distances then differ by about 1e-6, and gradients by up to
            1 %, where two values of a pool are nearly equal. Either computes gradients by Winograd's algorithm on a
            CPU, for four times the memory of the weights.
        images_at_once: How many images' values of all layers are in memory together; None: on a CPU as many as make
            256×256 pixels, on other devices all. Where they are fewer than the batch, the gradient is computed in
            the forward pass, and cannot be differentiated again.
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
        convolution: Literal["direct", "winograd"] = "direct",
        images_at_once: int | None = None,
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
        if convolution not in ("direct", "winograd"):
            raise UnknownName.of("convolution", convolution, ("direct", "winograd"))
        self.reduction, self.style_weight = reduction, float(style_weight)
        self.images_at_once = None if images_at_once is None else demand_count("images_at_once", images_at_once)
        demand_calibration(calibration, self.config)  # before a trunk is downloaded
        network, preprocessing = open_trunk(trunk, self.config, self.name)
        self.trunk = LossTrunk(
            network,
            preprocessing,
            self.config,
            input_range=self.input_range,
            dtype=torch.float32,
            winograd="everything" if convolution == "winograd" or precision == "bf16" else "gradients",
            rounds_gradients=precision == "bf16",
        )
        widths = {layer.name: layer.out_channels for layer in network.configuration.trunk}
        self.calibration = Calibrated(read_calibration(calibration, self.config, widths))
        self._check = RangeCheck(self.input_range, checks_values=check_range)

    def forward(
        self,
        images: Tensor,
        target: Compared = None,
        *,
        content: Compared = None,
        style: Compared = None,
    ) -> Tensor:
        """The distance: a scalar, or (N,) for `reduction="none"`.

        Args:
            images: (N, C, H, W), floating point, in the declared range.
            target: What they are compared with, (N, C, H, W) or one image for all (1, C, H, W), or a `reference`.
            content: In place of `target`, for the layers of the config's `content` alone.
            style: In place of `target`, for those of its `style` alone; of any size.

        Raises BadInput for images of another range, shape or type.
        """
        compared = self._choose(images, target, content, style)
        at_once = self._count_at_once(images, compared)
        if at_once >= len(images):
            total = self._add_up(images, compared)
        else:
            # One image for all is computed once.
            prepared = change_pair(compared, lambda each: each if is_batch(each) else self._refer(each))

            def compute(part: Tensor, rows: slice) -> Tensor:
                return self._add_up(part, change_pair(prepared, lambda each: take_images(each, rows)))

            total = compute_in_parts(compute, images, at_once=at_once)
        return total.mean() if self.reduction == "mean" else total

    def terms(
        self,
        images: Tensor,
        target: Compared = None,
        *,
        content: Compared = None,
        style: Compared = None,
    ) -> dict[str, Tensor]:
        """What `forward` adds up, (N,) for each layer, by names such as `content relu4_2` and `style relu1_1`.

        For `dists` they are similarities, whose sum is subtracted from 1.
        """
        return self._find_terms(images, self._choose(images, target, content, style))

    def reference(self, target: Tensor) -> Reference:
        """What images are compared with, computed once: pass it in place of the target.

        It holds no graph: gradients do not reach the target.

        Args:
            target: (N, C, H, W) or (1, C, H, W), in the declared range.
        """
        self._check(target, "the target")
        at_once = self._count_at_once(target, (None, None))
        with torch.no_grad():
            return join_references([self._make_reference(each) for each in target.split(at_once)])

    def train(self, mode: bool = True) -> Self:
        """The trunk stays in evaluation mode."""
        self.training = mode
        return self

    def _choose(self, images: Tensor, target: Compared, content: Compared, style: Compared) -> Pair:
        """What the layers of `content` and those of `style` are compared with; all that is given is checked."""
        self._check(images, "images")
        for each, what in ((target, "the target"), (content, "content"), (style, "style")):
            if each is not None and not isinstance(each, Reference):
                self._check(each, what)
        if target is not None and (content is not None or style is not None):
            raise BadInput("give target=, or content= and style=, not both")
        chosen = (content if target is None else target) if self.config.content else None
        for_style = (style if target is None else target) if self.config.style else None
        if chosen is None and for_style is None:
            raise BadInput(
                f"{self.name} needs what images are compared with: target="
                + (", or content= and style=" if self.config.style else "")
            )
        if isinstance(chosen, Tensor) and chosen.shape[1:] != images.shape[1:]:
            ours, theirs = (f"{each.shape[3]}×{each.shape[2]}" for each in (images, chosen))
            raise BadInput(
                f"images and target must have one size: the images have {ours} pixels, the target {theirs}"
            )
        counts = {len(each) for each in (chosen, for_style) if isinstance(each, Tensor)} - {1, len(images)}
        if counts:
            raise BadInput(f"{len(images)} images are compared with as many or with one, not with {counts.pop()}")
        return chosen, for_style

    def _count_at_once(self, images: Tensor, compared: Pair) -> int:
        """How many images are computed together."""
        needs_graph = any(isinstance(each, Tensor) and each.requires_grad for each in compared)
        if torch.compiler.is_compiling() or (needs_graph and torch.is_grad_enabled()):
            return len(images)
        if self.images_at_once is not None:
            return self.images_at_once
        return max(1, PIXELS_AT_ONCE // images[0, 0].numel()) if images.device.type == "cpu" else len(images)

    def _add_up(self, images: Tensor, compared: Pair) -> Tensor:
        """The distance (N,)."""
        total = torch.stack(list(self._find_terms(images, compared).values())).sum(0)
        return 1 - total if self.config.metric == "dists" else total

    def _find_terms(self, images: Tensor, compared: Pair) -> dict[str, Tensor]:
        config = self.config
        if self._computes_side_by_side(images, compared):
            (for_content, for_style), found = compute_side_by_side(
                lambda: change_pair(compared, self._refer), lambda: self._compute(images)
            )
        else:
            for_content, for_style = change_pair(compared, self._refer)
            found = self._compute(images)
        terms: dict[str, Tensor] = {}
        if isinstance(for_content, Reference):
            for name, weight in self._content_weights().items():
                terms[f"content {name}"] = weight * self._compare(name, found[name], for_content.content[name])
        if isinstance(for_style, Reference):
            for name, weight in config.style.items():
                each = compare(
                    gram(found[name] * config.feature_scale),
                    for_style.style[name],
                    distance=config.style_distance,
                    reduction=config.style_reduction,
                )
                terms[f"style {name}"] = self.style_weight * weight * each
        return terms

    def _computes_side_by_side(self, images: Tensor, compared: Pair) -> bool:
        """Whether layers of the images and of the target are computed at the same time.

        Not for `direct`, nor beside a reference: which algorithm is faster, and so the last bits, depends on the
        number of threads, and those of an image and its target must be equal.
        """
        if any(isinstance(each, Reference) for each in compared) or not self.trunk.is_faster_side_by_side(images):
            return False
        targets = [each for each in compared if isinstance(each, Tensor)]
        return not (torch.is_grad_enabled() and any(each.requires_grad for each in targets))

    def _refer(self, given: Compared) -> Reference | None:
        if given is None or isinstance(given, Reference):
            return given
        with torch.set_grad_enabled(torch.is_grad_enabled() and given.requires_grad):
            return self._make_reference(given)

    def _make_reference(self, target: Tensor) -> Reference:
        found = self._compute(target)
        style = {name: gram(found[name] * self.config.feature_scale) for name in self.config.style}
        content = {}
        for name in self._content_weights():
            values = found.pop(name)
            if self.config.metric == "lpips":
                values = normalize_channels(widen(values), in_place=True)
            content[name] = values
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
