"""How each image is looked at: once in its middle, or as the paper tested (Simonyan and Zisserman, section 3.2).

Shape letters: N inputs, C channels, H and W pixels, K classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from vggkit.arguments import demand_counts
from vggkit.engines.info import WantedEngine
from vggkit.engines.outputs import WantedPrecision
from vggkit.engines.select import choose_engine
from vggkit.engines.stream import Engine, NamedEngine, stream_rows
from vggkit.errors import BadConfiguration, BadImage, BadInput, UnknownName
from vggkit.evaluation.evaluation import ProtocolName
from vggkit.evaluation.predictions import average, log_softmax
from vggkit.images.dataset import ImageSample
from vggkit.images.decoding import Pixels
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration
from vggkit.models.vgg import VGG
from vggkit.weights.model import Model

Way = Literal["middle", "whole", "grid"]
"""The preprocessing's own input; the whole image, with the head slid over it; a grid of crops."""
GRID: Final = 5
"""Crops along each side, 25 a scale (section 4.3)."""
STEP: Final = 1 / 8
"""How far the outer scales lie from a fixed training scale: 32 from 256 (section 4.2)."""
MOST_PIXELS: Final = 2**21
"""Of a whole image: a thread of an image would take all memory, and its ends are left out."""

Said = tuple[ImageSample, NDArray[np.float64] | None, str | None]
"""An image, the logarithms (K,) of its probabilities, or why it cannot be read."""
Engines = Mapping[Way, NamedEngine]
"""What computes each way."""


@dataclass(frozen=True, slots=True)
class Look:
    """One way of looking at an image."""

    way: Way
    """How."""
    scale: int
    """Pixels of the resized image's short side, Q in the paper."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """Looks at an image whose probabilities are averaged."""

    name: ProtocolName
    """What it is asked for by."""
    looks: tuple[Look, ...]
    """As many of each way."""
    mirror: bool
    """Whether the mirror image is looked at each time too."""
    crop_pixels: int
    """Side of a crop."""

    def __str__(self) -> str:
        """For people, so that no figure stands without it."""
        told = []
        for way, looks in groupby(self.looks, key=lambda look: look.way):
            scales = ", ".join(str(look.scale) for look in looks)
            told.append(
                {
                    "middle": f"one view of {self.crop_pixels} pixels",
                    "whole": f"the whole image, short side {scales}",
                    "grid": f"{GRID * GRID} crops of {self.crop_pixels} pixels, short side {scales}",
                }[way]
            )
        return f"{self.name}: {' and '.join(told)}{', mirrored too' if self.mirror else ''}"


def plan_protocol(
    name: ProtocolName,
    preprocessing: Preprocessing,
    *,
    scales: Sequence[int] = (),
    train_scales: Sequence[int] = (),
    mirror: bool | None = None,
) -> Protocol:
    """The looks of a protocol.

    `single` is the preprocessing's own view. `dense` slides the head over the uncropped image at the
    training scale S, or in the middle of two; `multi-scale` does at S and an eighth to either side, or at
    both ends and the middle; `multi-crop` takes 25 crops at these three; `dense+crops` is both.

    Args:
        name: Of the protocol.
        preprocessing: What the Classifier is fed; says S where nothing else does.
        scales: Short sides in pixels, in place of those that follow from S.
        train_scales: S, or its ends where it varied, as (256, 512).
        mirror: Whether mirror images count too; None: in all but `single`, as in the paper.

    Raises UnknownName, and BadInput for scales that cannot be.
    """
    if name not in get_args(ProtocolName):
        raise UnknownName.of("protocol", name, get_args(ProtocolName))
    crop = preprocessing.crop_pixels
    if name == "single":
        if scales or train_scales:
            raise BadInput("single looks as the preprocessing says and takes no scales; dense or multi-scale do")
        own = preprocessing.resize_pixels if preprocessing.fit_mode == "crop" else crop
        return Protocol(name, (Look("middle", own),), bool(mirror), crop)
    scales, train_scales = demand_counts("scales", scales), demand_counts("train_scales", train_scales)
    if len(train_scales) > 2:
        raise BadInput(
            "scales are short sides in pixels, and a training has one or the two ends of a range; "
            f"got scales {tuple(scales)}, train_scales {tuple(train_scales)}"
        )
    for scale in scales:
        if scale < crop:
            raise BadInput(f"a scale of {scale} is smaller than what the network sees, {crop} pixels")
    found = tuple(scales) or _find_scales(name, preprocessing, train_scales)
    ways: dict[str, tuple[Way, ...]] = {"multi-crop": ("grid",), "dense+crops": ("whole", "grid")}
    looks = tuple(Look(way, scale) for way in ways.get(name, ("whole",)) for scale in found)
    return Protocol(name, looks, mirror is not False, crop)


def _find_scales(name: str, preprocessing: Preprocessing, train_scales: Sequence[int]) -> tuple[int, ...]:
    """Q from S, as in the paper's tables 3, 4 and 5; never below what the network sees."""
    crop = preprocessing.crop_pixels
    own = preprocessing.resize_pixels if preprocessing.fit_mode == "crop" else crop
    low, *high = sorted(set(train_scales)) or [own]
    middle = (low + high[0]) // 2 if high else low
    if name == "dense":
        return (max(crop, middle),)
    step = round(low * STEP)
    ends = (low, high[0]) if high else (low - step, low + step)
    return tuple(sorted({max(crop, scale) for scale in (ends[0], middle, ends[1])}))


def prepare_engines(
    classifier: Model,
    protocol: Protocol,
    *,
    device: torch.device | str = "auto",
    precision: WantedPrecision = "fp32",
    engine: WantedEngine = "auto",
) -> Engines:
    """What computes each way of a protocol; device, precision and engine as for `evaluate`.

    Raises BadConfiguration where the network cannot be looked at so, and what `choose_engine` does.
    """
    ranges = classifier.ranges if precision == "int8" else None
    engines = {}
    for way in dict.fromkeys(look.way for look in protocol.looks):
        # Whole images have many sizes: OpenVINO, no sooner then, would compile a model for each, and keep
        # several with their own weights. int8 is its alone.
        steady = engine == "auto" and way == "whole" and precision != "int8"
        engines[way] = choose_engine(
            _suit(classifier, way),
            device,
            precision=precision,
            ranges=ranges,
            engine="pytorch" if steady else engine,
        )
    return engines


def look_at(
    classifier: Model,
    images: Sequence[ImageSample],
    protocol: Protocol,
    engines: Engines,
    *,
    batch_size: int = 32,
) -> Iterator[Said]:
    """Each image in order, with the logarithms (K,) of its probabilities, or why it cannot be read.

    Of each look the logits become probabilities, at the Classifier's temperature, and these are averaged.
    The engines are `prepare_engines`'.
    """
    sliced = {way: _Sliced(engine, batch_size) for way, engine in engines.items()}
    found = [
        _answer(classifier, images, look, sliced[look.way], mirror=protocol.mirror, batch_size=batch_size)
        for look in protocol.looks
    ]
    for each in zip(*found, strict=True):
        several = [logs for _, logs, _ in each if logs is not None]
        problem = next((said for _, _, said in each if said is not None), None)
        yield each[0][0], None if problem else average(several), problem


def _answer(
    classifier: Model,
    images: Sequence[ImageSample],
    look: Look,
    engine: Engine,
    *,
    mirror: bool,
    batch_size: int,
) -> Iterator[Said]:
    """One look at each image."""
    preprocessing = classifier.preprocessing

    def prepare(image: ImageSample) -> tuple[list[NDArray[np.float32]], str | None]:
        try:
            inputs = see(image, preprocessing, look)
        except BadImage as problem:
            return [], str(problem)
        return [*inputs, *(each[..., ::-1] for each in inputs if mirror)], None

    # Whole images have shapes of their own, and a grid is a batch.
    together = batch_size if look.way == "middle" else 1
    for image, problem, rows in stream_rows(engine, images, prepare, batch_size=together):
        logs = None if problem else average(list(log_softmax(rows, classifier.temperature)))
        yield image, logs, problem


def see(image: ImageSample, preprocessing: Preprocessing, look: Look) -> list[NDArray[np.float32]]:
    """The inputs (C, H, W) of one look at an image; raises BadImage."""
    if look.way == "middle":
        return [preprocessing.see(image)]
    fed = replace(preprocessing, fit_mode="crop", resize_pixels=look.scale)
    whole = fed.resize(image.decode(least_side=fed.least_side), most_pixels=MOST_PIXELS)
    parts = [whole] if look.way == "whole" else list_crops(whole, preprocessing.crop_pixels)
    return [fed.normalize(part) for part in parts]


def list_crops(pixels: Pixels, side: int) -> list[Pixels]:
    """Squares of RGB pixels (H, W, 3) on a regular grid from edge to edge, row by row."""
    height, width = pixels.shape[:2]
    tops, lefts = ([round(place) for place in np.linspace(0, length - side, GRID)] for length in (height, width))
    return [pixels[top : top + side, left : left + side] for top in tops for left in lefts]


def _suit(classifier: Model, way: Way) -> VGG:
    """The network that looks so; for whole images the paper's head slides."""
    network, configuration = classifier.network, classifier.configuration
    if way != "whole" or configuration.head != "fc":
        return network
    _check_grid(configuration, classifier.preprocessing.crop_pixels)
    with torch.device("meta"):
        sliding = VGG(replace(configuration, head="dense"))
    sliding.load_state_dict(network.state_dict(), assign=True)
    return sliding


def _check_grid(configuration: Configuration, crop_pixels: int) -> None:
    side = crop_pixels // configuration.minimum_side
    if side != configuration.grid:
        raise BadConfiguration(
            f"at {crop_pixels} pixels this network's last map is {side}×{side} and its head reads "
            f"{configuration.grid}×{configuration.grid}, pooled to that: it cannot slide. Take multi-crop, or a "
            "network with head pool"
        )


class _Sliced:
    """An engine that takes no more than so many inputs at once."""

    def __init__(self, engine: Engine, most: int) -> None:
        self._engine, self._most = engine, most

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows (N, K) of inputs (N, C, H, W)."""
        starts = range(0, len(batch), self._most)
        return np.concatenate([self._engine.run(batch[start : start + self._most]) for start in starts])
