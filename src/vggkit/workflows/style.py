"""Style transfer: from images and a trunk to an image.

Shape letters: H and W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import torch

from vggkit.arguments import demand_count, is_number, plain_number
from vggkit.errors import BadConfiguration, BadInput, UnknownName
from vggkit.features.style_loss import StyleLoss, choose_style_layers
from vggkit.features.style_transfer import StyleOptimizer, StyleStep, plan_sizes, transfer
from vggkit.hardware import choose_device, computes_bf16, derive_seed
from vggkit.images.colours import combine_luminance, match_colours, match_luminance
from vggkit.images.decoding import Pixels
from vggkit.images.given import ImageSource, list_sources, take_one
from vggkit.images.resizing import resize
from vggkit.images.writing import write_image
from vggkit.models.vgg import VGG
from vggkit.weights.model import Model
from vggkit.weights.open_model import open_model

KeepColours = Literal["none", "luminance", "matching"]
StartImage = Literal["content", "noise"]
StylePrecision = Literal["auto", "fp32", "bf16"]
LEAST_SIDE: Final = 32
"""Pixels of the shorter side of an image that has a style, or is given one."""
MOST_SIDE: Final = 4096
"""Pixels of the longer side of a result: a square of them takes some 30 GB of memory."""


@dataclass(frozen=True, slots=True)
class StyleTransfer:
    """An image made by style transfer, and how."""

    pixels: Pixels = field(repr=False)
    """RGB (H, W, 3), uint8."""
    trunk: str
    """The network whose layers were compared, such as `vgg19`."""
    trunk_until: str
    """The last layer of its trunk."""
    content_layer: str
    """The layer compared place by place."""
    style_layers: tuple[str, ...]
    """The layers compared by their Gram matrices."""
    strength: float
    """Weight of the style beside the content."""
    precision: str
    """fp32 or bf16."""
    steps: tuple[StyleStep, ...] = field(repr=False)
    """Size and losses of each step, in order."""

    def save(self, path: str | Path) -> Path:
        """Write the image as .png, .jpg or .webp, by the ending; raises BadOutput."""
        write_image(path, self.pixels)
        return Path(path)

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON: everything but the pixels, and of the steps the last one."""
        last = self.steps[-1]
        return {
            "height": self.pixels.shape[0],
            "width": self.pixels.shape[1],
            "trunk": self.trunk,
            "trunk_until": self.trunk_until,
            "content_layer": self.content_layer,
            "style_layers": list(self.style_layers),
            "strength": self.strength,
            "precision": self.precision,
            "steps": len(self.steps),
            "loss": last.loss,
            "content_loss": last.content_loss,
            "style_loss": last.style_loss,
        }


def style(
    content: ImageSource,
    styles: ImageSource | Sequence[ImageSource],
    *,
    trunk: VGG | Model | str | Path = "vgg19",
    style_weights: Sequence[float] = (),
    strength: float = 1.0,
    keep_colours: KeepColours = "none",
    size: int = 512,
    style_scale: float = 1.0,
    optimizer: StyleOptimizer = "lbfgs",
    steps: int = 132,
    start: StartImage = "content",
    smoothness: float = 1.0,
    seed: int = 0,
    device: str = "auto",
    precision: StylePrecision = "auto",
    on_log: Callable[[str], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_image: Callable[[int, Pixels], None] | None = None,
    image_every: int = 50,
) -> StyleTransfer:
    """An image with the content of one image in the style of others, by optimising its pixels.

    Gatys, Ecker and Bethge, CVPR 2016, with average pooling, from coarse to fine: a small image first, which is
    then enlarged. The terms of the loss are relative, so that a strength means the same for every trunk.

    Args:
        content: The image whose content is kept: a path, a PIL image, pixels uint8 (H, W, 3).
        styles: The image, or images, whose style is taken.
        trunk: The VGG that compares: a network, a Classifier, a file of weights, also of a part of a network, or a
            model's name for the published weights. Its layers relu1_1, relu2_1 … relu5_1 are compared for style,
            and relu4_2 for content, as far as it has them.
        style_weights: Weight of each style image; empty: all equal.
        strength: Weight of the style beside the content, above 0; 1: balanced.
        keep_colours: none: the colours are the style's. luminance: only luminance is transferred, the colours are
            exactly the content's. matching: the style images are given the content's mean and covariance of colours
            first (Gatys et al. 2016, arXiv 1606.05897).
        size: Long side of the result in pixels.
        style_scale: Size of the style images relative to the result: smaller makes finer strokes.
        optimizer: lbfgs or adam.
        steps: Evaluations of the loss, over all sizes, equally many of each.
        start: content, or noise.
        smoothness: Weight of the total variation, against noise; 0: none.
        seed: The noise depends on it.
        device: auto, cpu, cuda, mps.
        precision: fp32; bf16: the trunk computes in bfloat16; auto: bf16 where the device multiplies it natively.
        on_log: Called with a sentence on the layers that are compared.
        on_progress: Called with the number of steps done, and of all.
        on_image: Called with the number of steps done and the image as it is, every `image_every` steps.
        image_every: Steps between two such calls.

    Raises BadInput, BadImage, UnknownName, BadConfiguration, BadCheckpoint and, for published weights,
    BadDownload.

    >>> import numpy as np, vggkit as vk
    >>> rng = np.random.default_rng(0)
    >>> photo, painting = (rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(2))
    >>> result = vk.style(photo, painting, trunk=vk.VGG("vgg11", until="relu2_1"), size=64, steps=2)
    >>> result.pixels.shape, result.content_layer, result.style_layers
    ((64, 64, 3), 'relu2_1', ('relu1_1', 'relu2_1'))
    """
    for name, value, known in (
        ("keep_colours", keep_colours, KeepColours),
        ("optimizer", optimizer, StyleOptimizer),
        ("start", start, StartImage),
        ("precision", precision, StylePrecision),
    ):
        if value not in get_args(known):
            raise UnknownName.of(name, value, get_args(known))
    strength = _demand_number("strength", strength, above=0.0)
    style_scale = _demand_number("style_scale", style_scale, above=0.0)
    smoothness = _demand_number("smoothness", smoothness, least=0.0)
    steps, image_every = demand_count("steps", steps), demand_count("image_every", image_every)
    if demand_count("size", size) > MOST_SIDE:
        raise BadInput(f"size is the long side of the result in pixels, at most {MOST_SIDE}; got {size}")
    photo = _read(content, "the content image")
    paintings = [_read(each, f"style image {number}") for number, each in enumerate(list_sources(styles), start=1)]
    weights = _demand_weights(style_weights, len(paintings))
    height, width = _scale_sides(photo, size)
    if min(height, width) < LEAST_SIDE:
        raise BadInput(
            f"the result would have {width}×{height} pixels, and both sides must be at least {LEAST_SIDE}; "
            "choose a larger size"
        )
    where = choose_device(device)
    chosen = ("bf16" if computes_bf16(where) else "fp32") if precision == "auto" else precision
    opened = open_model(trunk)
    network, preprocessing = opened.network, opened.preprocessing
    if network.configuration.in_channels != 3:
        count = network.configuration.in_channels
        raise BadConfiguration(
            f"style transfer compares colour images, and the trunk reads {count} channel{'s' * (count > 1)}"
        )
    layers = choose_style_layers(network.configuration)
    name, deepest = network.configuration.model, network.configuration.trunk[-1].name
    if on_log is not None:
        on_log(
            f"style: {', '.join(layers.style)}; content: {layers.content}; the trunk, {name}, ends with {deepest}; "
            f"computed in {chosen}"
        )
    if keep_colours == "matching":
        paintings = [match_colours(each, photo) for each in paintings]
    elif keep_colours == "luminance":
        paintings = [match_luminance(each, photo) for each in paintings]
    # All images are grey then, and the colours come back at the end.
    base = match_luminance(photo, photo) if keep_colours == "luminance" else photo
    loss = StyleLoss(network, preprocessing, layers, precision=chosen, device=where)
    history: list[StyleStep] = []

    def note(step: StyleStep, images: torch.Tensor) -> None:
        history.append(step)
        if on_progress is not None:
            on_progress(step.number, steps)
        if on_image is not None and step.number % image_every == 0 and step.number < steps:
            on_image(step.number, finish(_to_pixels(images)))

    def finish(pixels: Pixels) -> Pixels:
        if keep_colours != "luminance":
            return pixels
        return combine_luminance(pixels, _resize(photo, (pixels.shape[0], pixels.shape[1])))

    found = transfer(
        loss,
        _to_tensor(_resize(base, (height, width)), where),
        [_to_tensor(_resize(each, _scale_style(each, size, style_scale)), where) for each in paintings],
        weights,
        strength=strength,
        sizes=plan_sizes((height, width)),
        steps=steps,
        optimizer=optimizer,
        smoothness=smoothness,
        noise_seed=derive_seed(demand_count("seed", seed, least=0), "style") if start == "noise" else None,
        on_step=note,
    )
    return StyleTransfer(
        pixels=finish(_to_pixels(found)),
        trunk=name,
        trunk_until=deepest,
        content_layer=layers.content,
        style_layers=layers.style,
        strength=strength,
        precision=chosen,
        steps=tuple(history),
    )


def _demand_number(name: str, value: object, *, above: float | None = None, least: float | None = None) -> float:
    found = plain_number(value)
    if not is_number(found) or (above is not None and found <= above) or (least is not None and found < least):
        rule = f"above {above:g}" if above is not None else f"of {least:g} or more"
        raise BadInput(f"{name} must be a number {rule}, got {value!r}")
    return float(found)


def _demand_weights(given: Sequence[float], count: int) -> list[float]:
    """A weight for each style image, adding up to 1."""
    weights = [_demand_number("each of style_weights", value, least=0.0) for value in given] or [1.0] * count
    if len(weights) != count:
        raise BadInput(
            f"style_weights must hold a weight for each style image; got {len(weights)} for {count} image"
            f"{'s' * (count > 1)}"
        )
    if not sum(weights) > 0:
        raise BadInput("style_weights must not all be 0")
    return [each / sum(weights) for each in weights]


def _read(given: ImageSource, name: str) -> Pixels:
    sample = take_one(given, name=name)
    pixels = sample.decode()
    if min(pixels.shape[:2]) < LEAST_SIDE:
        raise BadInput(
            f"{sample.path}: has {pixels.shape[1]}×{pixels.shape[0]} pixels, and style transfer needs at least "
            f"{LEAST_SIDE} on each side"
        )
    return pixels


def _scale_sides(pixels: Pixels, long_side: float) -> tuple[int, int]:
    """Height and width with this long side."""
    height, width = pixels.shape[:2]
    scale = long_side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _scale_style(pixels: Pixels, size: int, style_scale: float) -> tuple[int, int]:
    """Height and width of a style image: never below the network's minimum."""
    sides = _scale_sides(pixels, size * style_scale)
    if min(sides) < LEAST_SIDE:
        raise BadInput(
            f"a style image would be shrunk to {sides[1]}×{sides[0]} pixels, and both sides must be at least "
            f"{LEAST_SIDE}; choose a larger style_scale or size"
        )
    return sides


def _resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    return resize(pixels, (size[1], size[0]), "lanczos")


def _to_tensor(pixels: Pixels, device: torch.device) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return torch.tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)), device=device)[None].float() / 255


def _to_pixels(images: torch.Tensor) -> Pixels:
    found: Pixels = (images[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return found
