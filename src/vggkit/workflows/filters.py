"""Images of what the channels of a layer respond to."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch

from vggkit.arguments import demand_count
from vggkit.engines.cached import find_engine
from vggkit.engines.outputs import WantedPrecision
from vggkit.errors import BadConfiguration, BadData, BadInput, UnknownName
from vggkit.features.filters import cut_patch, draw_first_filters, find_strongest, maximize
from vggkit.hardware import choose_device, derive_seed
from vggkit.images.dataset import ImageSample
from vggkit.images.decoding import Pixels
from vggkit.images.given import ImageSources, list_sources
from vggkit.images.omissions import Reading
from vggkit.images.sources.open_dataset import iterate_samples
from vggkit.models.graph import Graph
from vggkit.models.receptive_field import find_receptive_field
from vggkit.models.vgg import VGG
from vggkit.reports.filter_sheet import join_images, plot_filters
from vggkit.weights.model import Model
from vggkit.weights.open_model import open_model

FilterMethod = Literal["auto", "weights", "patches", "maximize"]
USUAL_CHANNELS: Final = 16
"""Number of channels that are shown, from the first one, unless they are named."""
LEAST_SIDE: Final = 64
"""Side in pixels of images that excite a channel, at least."""
MOST_SIDE: Final = 224
"""And at most."""
JITTER: Final = 4
"""Pixels by which an image is shifted at each step of activation maximisation, at most."""


@dataclass(frozen=True, slots=True)
class Patch:
    """The part of an image that a channel responds to."""

    path: str
    """The image."""
    box: tuple[int, int, int, int]
    """Top, left, bottom and right of the receptive field in pixels of the image as the network sees it, the last
    two exclusive; it may reach beyond the image."""
    value: float
    """The channel's value there."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What the channels of a layer respond to."""

    layer: str
    """The layer."""
    method: str
    """weights, patches or maximize."""
    channels: tuple[int, ...]
    """Numbers of the channels."""
    images: Pixels = field(repr=False)
    """(N, images of each, H, W, 3), uint8: each channel's filter, its patches or the image that excites it."""
    values: tuple[tuple[float, ...], ...]
    """For each channel its value for each of its images; empty for weights."""
    patches: tuple[tuple[Patch, ...], ...] = field(default=(), repr=False)
    """For each channel where its patches come from."""
    receptive_field: int | None = None
    """Side of the layer's receptive field in pixels; None for a layer of the head, which sees the whole image."""
    searched: int = 0
    """Number of images that were searched for patches; 0 for other methods."""
    problems: tuple[str, ...] = field(default=(), repr=False)
    """The reasons why others could not be read."""

    def save(self, path: str | Path) -> Path:
        """Draw the contact sheet as .png, .pdf or .svg, by the ending; raises BadOutput and MissingExtra."""
        smooth = self.images.shape[2] > 8
        plot_filters(self.images, self.channels, path, title=self.layer, subtitle=self.describe(), smooth=smooth)
        return Path(path)

    def describe(self) -> str:
        """The description of the images, in a line."""
        side = self.receptive_field
        seen = "" if side is None else f"; each value sees {side}×{side} pixels"
        match self.method:
            case "weights":
                return f"{len(self.channels)} filters of {self.layer}; grey is 0, each scaled by its largest weight"
            case "patches":
                images = f"{self.searched:,} image{'s' * (self.searched != 1)}"
                return f"patches of {images} that excite each channel of {self.layer} most{seen}"
            case _:
                return f"images made to excite each channel of {self.layer}{seen}"

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON: everything but the pixels."""
        return {
            "layer": self.layer,
            "method": self.method,
            "receptive_field": self.receptive_field,
            "searched": self.searched,
            "channels": [
                {
                    "channel": channel,
                    "values": list(self.values[number]) if self.values else [],
                    "patches": [
                        {"path": each.path, "box": list(each.box), "value": each.value}
                        for each in (self.patches[number] if self.patches else ())
                    ],
                }
                for number, channel in enumerate(self.channels)
            ],
            "problems": list(self.problems),
        }


def filters(
    model: VGG | Model | str | Path,
    *,
    layer: str = "conv1_1",
    data: ImageSources | None = None,
    method: FilterMethod = "auto",
    channels: str | Sequence[int] | None = None,
    top: int = 8,
    steps: int = 128,
    smoothness: float = 1.0,
    batch_size: int = 8,
    seed: int = 0,
    device: str = "auto",
    precision: WantedPrecision = "auto",
    on_progress: Callable[[str, int, int | None], None] | None = None,
) -> Filters:
    """What the channels of a layer respond to, as images.

    Args:
        model: A network, a Classifier, a file of weights, also of a part of a network, or a model's name.
        layer: A layer of the trunk, such as conv1_1, relu3_2 or pool5; to maximise also one of the head, such as
            fc8.
        data: Images, of which the patches are found that excite each channel most.
        method: weights: the first convolution's filters. patches: the strongest patches of the data, one of an
            image, within its edges where the layer sees less than the image. maximize: images made to excite each
            channel (Olah, Mordvintsev and Schubert 2017, "Feature visualization": frequencies of photographs,
            jitter, and a total-variation penalty). auto: weights for conv1_1, patches where there is data, else
            maximize.
        channels: Numbers, or text such as "0-15,30"; None: all for weights, else the first 16.
        top: Patches of each channel.
        steps: Steps of maximisation.
        smoothness: Weight of the total variation in maximisation.
        batch_size: Images that pass through the network together.
        seed: The images that maximisation starts from and their shifts depend on it.
        device: auto, cpu, cuda, mps.
        precision: Precision of the pass over the data: fp32, bf16, int8, auto.
        on_progress: Called with the current task, how much of it is done, and of how much where that is known.

    The model is left as found. Raises UnknownName, BadInput, BadConfiguration, BadData where no image can be read,
    BadCheckpoint and, for published weights, BadDownload.

    >>> import vggkit as vk
    >>> found = vk.filters(vk.VGG("vgg11", num_classes=2, head="pool"), layer="conv1_1")
    >>> found.method, found.images.shape
    ('weights', (64, 1, 3, 3, 3))
    """
    if method not in get_args(FilterMethod):
        raise UnknownName.of("method", method, get_args(FilterMethod))
    top, steps = demand_count("top", top), demand_count("steps", steps)
    batch_size, seed = demand_count("batch_size", batch_size), demand_count("seed", seed, least=0)
    opened = open_model(model)
    configuration = opened.configuration
    if method == "auto":
        method = "patches" if data is not None else "weights" if layer == "conv1_1" else "maximize"
    if method == "patches" and data is None:
        raise BadInput("patches are parts of images: name them with data")
    if method == "weights" and layer != "conv1_1":
        raise BadConfiguration(
            f"only the weights of conv1_1 are images; for {layer} give data for its strongest patches, or choose "
            "method=maximize"
        )
    widths = {each.name: each.out_channels for each in configuration.trunk}
    widths |= {name: fc.out_features for fc in configuration.fully_connected for name in (fc.name, fc.relu)}
    widths.pop(configuration.fully_connected[-1].relu, None)
    if layer not in widths:
        raise UnknownName.of("layer of this network", layer, list(widths))
    chosen = _choose_channels(channels, widths[layer], everything=method == "weights")
    if method == "weights":
        drawn = draw_first_filters(opened.network, opened.preprocessing, chosen)
        return Filters(layer, method, chosen, drawn[:, None], (), receptive_field=drawn.shape[1])

    def show(what: str, done: int, total: int | None) -> None:
        if on_progress is not None:
            on_progress(what, done, total)

    if method == "patches":
        assert data is not None
        return _find_patches(
            opened,
            layer,
            data,
            chosen,
            top=top,
            batch_size=batch_size,
            device=device,
            precision=precision,
            show=show,
        )
    where = choose_device(device)
    in_trunk = any(each.name == layer for each in configuration.trunk)
    field_side = find_receptive_field(configuration, layer).side if in_trunk else None
    side = opened.preprocessing.crop_pixels
    if field_side is not None:
        side = min(MOST_SIDE, max(LEAST_SIDE, 2 * field_side, configuration.minimum_side))
    # Whatever mode the caller is in, gradients are recorded here, in float32.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(where.type, enabled=False):
        images, values = maximize(
            opened.network,
            opened.preprocessing,
            layer,
            chosen,
            side=side,
            steps=steps,
            smoothness=smoothness,
            jitter=JITTER,
            seed=derive_seed(seed, "filters"),
            device=where,
            on_step=lambda step: show("maximising", step, steps),
        )
    return Filters(
        layer, method, chosen, images[:, None], tuple((each,) for each in values), receptive_field=field_side
    )


def _find_patches(
    opened: Model,
    layer: str,
    data: ImageSources,
    chosen: tuple[int, ...],
    *,
    top: int,
    batch_size: int,
    device: str,
    precision: WantedPrecision,
    show: Callable[[str, int, int | None], None],
) -> Filters:
    receptive = find_receptive_field(opened.configuration, layer)
    engine = find_engine(opened, device, output=layer, precision=precision)
    # Zeros beyond the edge excite channels, too, and there is nothing to be seen of them.
    side = opened.preprocessing.crop_pixels
    inside = receptive.list_inside(
        side, Graph(opened.configuration, input_pixels=(side, side)).find(layer).output_shape[1]
    )
    problems: list[str] = []
    done = 0

    def note(_: ImageSample, problem: str | None) -> None:
        nonlocal done
        done += 1
        if problem is not None:
            problems.append(problem)
        show("looking for patches", done, None)

    responses, samples = find_strongest(
        engine,
        opened.preprocessing,
        iterate_samples(list_sources(data), Reading()),
        chosen,
        top=top,
        inside=(inside, inside),
        batch_size=batch_size,
        on_image=note,
    )
    if not samples:
        raise BadData(f"none of the images can be read: {problems[0] if problems else 'there are none'}")
    preprocessing = opened.preprocessing
    by_image: dict[int, list[tuple[int, int]]] = {}
    for number, held in enumerate(responses):
        for rank, response in enumerate(held):
            by_image.setdefault(response.number, []).append((number, rank))
    cut: list[list[Pixels]] = [[None] * len(held) for held in responses]  # type: ignore[list-item]
    for image, places in by_image.items():  # each is decoded once more, and no two are held
        pixels = preprocessing.fit(samples[image].decode(least_side=preprocessing.least_side))
        for number, rank in places:
            cut[number][rank] = cut_patch(pixels, receptive, responses[number][rank])
    return Filters(
        layer,
        "patches",
        chosen,
        join_images(cut, receptive.side),
        tuple(tuple(each.value for each in held) for held in responses),
        patches=tuple(
            tuple(Patch(samples[r.number].path, receptive.locate(r.row, r.column), r.value) for r in held)
            for held in responses
        ),
        receptive_field=receptive.side,
        searched=done - len(problems),
        problems=tuple(problems),
    )


def _choose_channels(given: str | Sequence[int] | None, width: int, *, everything: bool) -> tuple[int, ...]:
    """Numbers of channels; raises BadInput, naming what there is."""
    if given is None:
        return tuple(range(width if everything else min(width, USUAL_CHANNELS)))
    if isinstance(given, str):
        numbers: list[int] = []
        for part in given.split(","):
            found = re.fullmatch(r"\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*", part, flags=re.ASCII)
            if found is None:
                raise BadInput(f'channels are numbers and ranges such as "0-15,30", got {given!r}')
            numbers += range(int(found[1]), int(found[2] or found[1]) + 1)
    else:
        numbers = [demand_count("each of channels", value, least=0) for value in given]
    if not numbers or max(numbers) >= width:
        raise BadInput(f"channels of this layer are 0 to {width - 1}; got {given!r}")
    return tuple(dict.fromkeys(numbers))
