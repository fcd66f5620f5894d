"""Perceptual distances of image files.

Shape letters: N images, H and W pixels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from vggkit.arguments import demand_count
from vggkit.errors import BadConfiguration, BadImage, BadInput, UnknownName
from vggkit.features.image_pairs import Distances, ImageDistance, pair_images
from vggkit.features.loss_config import METRICS, LossConfig
from vggkit.features.perceptual import PerceptualLoss
from vggkit.hardware import choose_device
from vggkit.images.dataset import ImageSample
from vggkit.images.decoding import Pixels
from vggkit.images.given import ImageSources
from vggkit.models.configuration import Configuration
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG
from vggkit.weights.identify import identify
from vggkit.weights.locate import locate_model
from vggkit.weights.model import Model
from vggkit.weights.published_classifiers import is_model_name

TRUNK: Final = "vgg16"
"""The default: the published ImageNet weights."""
BATCHES_WAITING: Final = 4
"""As many pairs as so many batches have are in memory, waiting for others of their size."""
LEAST_SIDE: Final = 32
"""Pixels a side of images that no network is too deep for."""

Size = tuple[int, ...]
Decoded = tuple[int, tuple[Pixels, Pixels]]
"""The number of a pair, and its images."""


def distance(
    first: ImageSources,
    second: ImageSources,
    *,
    metric: Literal["lpips", "dists", "gram", "content"] = "lpips",
    trunk: VGG | Model | str | Path = TRUNK,
    calibration: Mapping[str, Tensor] | str | Path | None = None,
    batch_size: int = 8,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    on_progress: Callable[[int, int], None] | None = None,
) -> Distances:
    """The perceptual distance of images, pair by pair.

    Args:
        first: An image, a list of images, or a folder: every image below it is compared with the one of `second`
            that has the same name, regardless of the extension.
        second: As many.
        metric: `lpips` (Zhang et al. 2018) and `dists` (Ding et al. 2020) approximate how different people find two
            images; `gram` compares textures and colours wherever they are, `content` what is where (the style and
            the content term of Johnson et al. 2016).
        trunk: A VGG16: its published ImageNet weights, with which the metrics were made, or a network, a Classifier
            or a file of weights. For `gram` and `content` also another VGG that has their layers, relu1_2, relu2_2,
            relu3_3 and relu4_3, and relu3_3; distances by different networks cannot be compared.
        calibration: For lpips and dists their trained weights: a file as their authors publish it.
        batch_size: Pairs that pass through the network together, where they have one size.
        device: `auto`, `cpu`, `cuda`, `mps`.
        precision: `fp32`, or `bf16`: on a CPU faster; distances differ by about 1e-6.
        on_progress: Called with the number of pairs that are done, and of all.

    A pair that cannot be compared has the reason as its `problem`: an image that cannot be read, or, except for
    `gram`, images of two sizes. Raises UnknownName, BadData for folders without common names, BadInput,
    BadConfiguration where trunk or calibration do not fit, BadDownload and BadCheckpoint.
    """
    if metric not in METRICS:
        raise UnknownName.of("metric", metric, tuple(METRICS))
    batch_size = demand_count("batch_size", batch_size)
    found = pair_images(first, second)
    loss = PerceptualLoss(
        _choose_loss(metric, trunk),
        trunk=trunk,
        calibration=calibration,
        input_range=(0, 1),
        precision=precision,
        reduction="none",
        check_range=False,  # of an image file it is known
    ).to(choose_device(device))
    results: dict[int, ImageDistance] = {}
    compared = _compare(found.pairs, loss, batch_size=batch_size, needs_one_size=metric != "gram")
    for done, (number, value) in enumerate(compared, start=1):
        first_path, second_path = (each.path for each in found.pairs[number])
        if isinstance(value, str):
            results[number] = ImageDistance(first_path, second_path, None, problem=value)
        else:
            results[number] = ImageDistance(first_path, second_path, value)
        if on_progress is not None:
            on_progress(done, len(found.pairs))
    in_order = tuple(results[number] for number in range(len(found.pairs)))
    return Distances(metric, in_order, found.only_first, found.only_second)


def _choose_loss(metric: str, trunk: VGG | Model | str | Path) -> str | LossConfig:
    """The loss: of `gram` and `content` the layers in the network that is given."""
    config = METRICS[metric]
    if config.metric != "features":
        return metric
    if isinstance(trunk, VGG | Model):
        configuration: Configuration | None = trunk.configuration
    elif is_model_name(trunk):
        configuration = configure(str(trunk))
    else:
        configuration = identify(locate_model(trunk)).configuration
    if configuration is None:  # the loss says why
        return config
    layers = [layer.name for layer in configuration.trunk]
    absent = [layer for layer in config.layers if layer not in layers]
    if absent:
        raise BadConfiguration(
            f"{metric} compares {', '.join(config.layers)}, and the trunk, a {configuration.model} that ends with "
            f"{layers[-1]}, lacks {', '.join(absent)}"
        )
    return replace(config, model=configuration.model)


def _compare(
    pairs: Sequence[tuple[ImageSample, ImageSample]], loss: PerceptualLoss, *, batch_size: int, needs_one_size: bool
) -> Iterator[tuple[int, float | str]]:
    """The number of each pair, in any order, with its distance or its problem."""
    waiting: dict[tuple[Size, Size], list[Decoded]] = {}
    for number, pair in enumerate(pairs):
        try:
            first, second = (each.decode() for each in pair)
        except BadImage as problem:
            yield number, str(problem)
            continue
        if needs_one_size and first.shape != second.shape:
            ours, theirs = (f"{pixels.shape[1]}×{pixels.shape[0]}" for pixels in (first, second))
            yield (
                number,
                f"{pair[0].path} has {ours} pixels and {pair[1].path} has {theirs}; they must have one size",
            )
            continue
        waiting.setdefault((first.shape, second.shape), []).append((number, (first, second)))
        fullest = max(waiting, key=lambda sizes: len(waiting[sizes]))
        is_crowded = sum(map(len, waiting.values())) >= BATCHES_WAITING * batch_size
        if len(waiting[fullest]) >= batch_size or is_crowded:
            yield from _compute(waiting.pop(fullest), pairs, loss)
    for batch in waiting.values():
        yield from _compute(batch, pairs, loss)


def _compute(
    batch: Sequence[Decoded], pairs: Sequence[tuple[ImageSample, ImageSample]], loss: PerceptualLoss
) -> Iterator[tuple[int, float | str]]:
    device = next(loss.parameters()).device
    numbers = [number for number, _ in batch]
    try:
        # Whatever mode the caller is in.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            found = loss(*(_to_tensor([pair[side] for _, pair in batch], device) for side in (0, 1))).tolist()
    except BadInput:
        smaller = [int(min(pair[1].shape[:2]) < min(pair[0].shape[:2])) for _, pair in batch]
        sizes = [pair[side].shape[:2] for side, (_, pair) in zip(smaller, batch, strict=True)]
        if min(map(min, sizes)) >= LEAST_SIDE:
            raise
        found = [
            f"{pairs[number][side].path}: has {width}×{height} pixels, which is too small: each pool of the "
            "network halves it"
            for number, side, (height, width) in zip(numbers, smaller, sizes, strict=True)
        ]
    yield from zip(numbers, found, strict=True)


def _to_tensor(images: Sequence[Pixels], device: torch.device) -> Tensor:
    """(N, 3, H, W), in [0, 1]."""
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float() / 255
