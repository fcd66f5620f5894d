"""Perceptual losses: distances between images as a VGG sees them.

Shape letters: N images, C channels, H and W pixels.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggkit.errors import BadConfiguration, BadInput, UnknownName
from vggkit.features.calibration import Calibrated, read_calibration
from vggkit.features.distances import (
    compare,
    compare_structure,
    gram,
    normalize_channels,
    weigh_normalized,
)
from vggkit.features.loss_config import LossConfig, demand_range, find_preset
from vggkit.images.preprocessing import Preprocessing, choose_preprocessing
from vggkit.models.configuration import Configuration
from vggkit.models.configure import configure
from vggkit.models.features import Features, widen
from vggkit.models.vgg import VGG
from vggkit.weights.identify import identify
from vggkit.weights.locate import locate_model
from vggkit.weights.model import Model
from vggkit.weights.published_models import is_model_name

LPIPS_SHIFT: Final = (-0.030, -0.088, -0.188)
LPIPS_SCALE: Final = (0.458, 0.448, 0.450)
RANGE_TOLERANCE: Final = 0.01
"""Share of the declared range that values may lie outside of it, as resizing makes them."""
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
        self.reduction, self.style_weight, self.check_range = reduction, float(style_weight), check_range
        network, preprocessing = _open_trunk(trunk, self.config, self.name)
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self.trunk = _LossTrunk(network, self.config, dtype)
        shift, scale = _find_scaling(self.config, preprocessing, self.input_range)
        self._flipped = self.config.scaling == "trunk" and preprocessing.channel_order == "BGR"
        self.register_buffer("_shift", shift, persistent=False)
        self.register_buffer("_scale", scale, persistent=False)
        widths = {layer.name: layer.out_channels for layer in network.configuration.trunk}
        held = read_calibration(calibration, self.config, widths)
        self.calibration = Calibrated(held)
        self._is_warned = False

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
        low, high = self.input_range
        scaled = (widen(images) - self.get_buffer("_shift")) * self.get_buffer("_scale")
        scaled = scaled.flip(1) if self._flipped else scaled
        dtype = self.trunk.dtype
        scaled = scaled.to(dtype).contiguous(memory_format=_find_memory_format(dtype))
        found: dict[str, Tensor] = self.trunk(scaled)
        if self.config.metric == "dists":
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

    def _check(self, images: Tensor, what: str) -> Tensor:
        if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
            found = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise BadInput(f"{what} must be a floating point tensor (N, C, H, W); got {found}")
        if images.is_inference():
            raise BadInput(
                f"{what} were made under torch.inference_mode(), where no gradient is recorded; use torch.no_grad()"
            )
        if self.check_range and not torch.compiler.is_compiling() and images.numel():
            self._check_values(images.detach(), what)
        return images

    def _check_values(self, images: Tensor, what: str) -> None:
        low, high = self.input_range
        least, largest = (float(value) for value in torch.aminmax(images))
        declared = f"input_range=({low:g}, {high:g})"
        if not (least > -float("inf") and largest < float("inf")):  # NaN fails both
            raise BadInput(f"{what} hold values that are not finite")
        slack = RANGE_TOLERANCE * (high - low)
        if least < low - slack or largest > high + slack:
            raise BadInput(
                f"{what} lie in [{least:.4g}, {largest:.4g}], outside of {declared}; scale or clamp them, or "
                "declare the range that they have"
            )
        if self._is_warned:
            return
        doubt = ""
        if largest - least <= RANGE_TOLERANCE * (high - low):
            doubt = f"all values lie in [{least:.4g}, {largest:.4g}], a hundredth of the range"
        elif low < 0 <= least:
            doubt = "no value is below 0"
        if doubt:
            self._is_warned = True
            warnings.warn(f"{what} may be of another range than {declared}: {doubt}", UserWarning, stacklevel=4)


def _find_scaling(
    config: LossConfig, preprocessing: Preprocessing, input_range: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Shift and scale (1, 3, 1, 1): what the trunk reads is (images - shift) * scale, in RGB order."""
    low, high = input_range
    match config.scaling:
        case "none":  # the range becomes [-1, 1]
            shift, scale = [(low + high) / 2] * 3, [2 / (high - low)] * 3
        case "lpips":
            shift = [low + (each + 1) / 2 * (high - low) for each in LPIPS_SHIFT]
            scale = [2 / (high - low) / each for each in LPIPS_SCALE]
        case "trunk":
            full = preprocessing.full_value
            mean, std = preprocessing.mean, preprocessing.std
            if preprocessing.channel_order == "BGR":
                mean, std = mean[::-1], std[::-1]
            shift = [low + each / full * (high - low) for each in mean]
            scale = [full / (high - low) / each for each in std]
    return torch.tensor(shift)[None, :, None, None], torch.tensor(scale)[None, :, None, None]


class _LossTrunk(Features):
    """The layers that are compared and those below, with the given network's tensors as constants."""

    def __init__(self, network: VGG, config: LossConfig, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        whole = network.configuration
        cut = replace(
            whole,
            until=_deepest(config, whole),
            head="pool",
            statistics="mean",
            hidden=(),
            ranks=None,
            num_classes=1,
            pooling="average" if config.pooling == "average" else "max",
        )
        with torch.device("meta"):
            copy = VGG(cut)
        values = network.features.state_dict()
        shared = {key: values[key].detach() for key in copy.features.state_dict()}
        copy.features.load_state_dict(shared, assign=True)
        copy.classifier = nn.Sequential()  # never read
        copy.requires_grad_(False)
        copy.to(dtype).to(memory_format=_find_memory_format(dtype)).eval()
        self._prepare(copy, cut, config.layers, frozen=True)
        self._pools_roots = config.pooling == "l2"

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.features.parameters()).dtype

    def _apply_layer(self, module: nn.Module, values: Tensor, *, in_place: bool) -> Tensor:
        if self._pools_roots and isinstance(module, nn.MaxPool2d):
            return _pool_roots(values)
        return super()._apply_layer(module, values, in_place=in_place)


def _find_memory_format(dtype: torch.dtype) -> torch.memory_format:
    """In full precision that of the published implementations.

    Another one rounds differently, and where two values of a pool are nearly equal the gradient takes another way.
    """
    return torch.channels_last if dtype == torch.bfloat16 else torch.contiguous_format


def _pool_roots(values: Tensor) -> Tensor:
    """The root of the mean of squares, weighted by a Hann window of 3×3, at every other place."""
    window = torch.tensor([0.25, 0.5, 0.25], dtype=values.dtype, device=values.device)
    kernel = (window[:, None] * window).expand(values.shape[1], 1, 3, 3)
    squares = F.conv2d(values.square(), kernel, stride=2, padding=1, groups=values.shape[1])
    return (squares + 1e-12).sqrt()


def _open_trunk(given: VGG | Model | str | Path, config: LossConfig, name: str) -> tuple[VGG, Preprocessing]:
    """The network and what its images must be normalised to."""
    if isinstance(given, VGG):
        preprocessing = choose_preprocessing(in_channels=given.configuration.in_channels)
        model: VGG = given
    elif isinstance(given, Model):
        model, preprocessing = given.network, given.preprocessing
    elif isinstance(given, str | Path):
        opened = load_trunk(given, config, name)
        model, preprocessing = opened.network, opened.preprocessing
    else:
        raise BadInput(f"trunk= is a VGG, a Classifier, a file or a model's name, got {type(given).__name__}")
    _demand_layers(model.configuration, config, name)
    if model.configuration.in_channels != 3:
        raise BadConfiguration(f"{name} compares colour images, and the trunk reads one channel")
    return model, preprocessing


def load_trunk(place: str | Path, config: LossConfig, name: str) -> Model:
    """The trunk of published weights, of a Classifier's file or of a file of weights, up to the deepest layer.

    Raises BadConfiguration where the file's network is another one, or ends before a layer that is compared, and
    BadCheckpoint.
    """
    if not is_model_name(place):
        found = identify(locate_model(place))
        if found.configuration is not None:
            _demand_layers(found.configuration, config, name)
    whole = configure(config.model, head="pool")
    return Model.create(
        config.model, labels=["unused"], weights=place, until=_deepest(config, whole), head="pool", seed=0
    )


def _demand_layers(configuration: Configuration, config: LossConfig, name: str) -> None:
    held = [layer.name for layer in configuration.trunk]
    absent = [layer for layer in config.layers if layer not in held]
    if configuration.model != config.model:
        raise BadConfiguration(f"{name} compares layers of {config.model}; the trunk is a {configuration.model}")
    if absent:
        raise BadConfiguration(f"{name} compares {', '.join(absent)}, and the trunk ends with {held[-1]}")


def _deepest(config: LossConfig, configuration: Configuration) -> str:
    order = [layer.name for layer in configuration.trunk]
    return max(config.layers, key=order.index)
