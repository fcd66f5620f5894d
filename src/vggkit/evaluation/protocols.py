"""Evaluation protocols: which views of each image are averaged (Simonyan and Zisserman, 2015, section 3.2).

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
from vggkit.engines.averaged_views import Views, demand_views, list_views
from vggkit.engines.info import WantedEngine
from vggkit.engines.model_weights import NetworkWeights
from vggkit.engines.outputs import WantedPrecision
from vggkit.engines.select import choose_engine
from vggkit.engines.stream import Engine, NamedEngine, stream_rows
from vggkit.errors import BadConfiguration, BadImage, BadInput, UnknownName
from vggkit.evaluation.evaluation import ProtocolName
from vggkit.evaluation.predictions import average
from vggkit.images.dataset import ImageSample
from vggkit.images.decoding import Pixels
from vggkit.images.lazy_images import stream_images
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration
from vggkit.models.vgg import VGG
from vggkit.weights.model import Model

Way = Literal["middle", "whole", "grid"]
"""The centre view of the preprocessing; the whole image, evaluated densely; a grid of crops."""
GRID: Final = 5
"""Crops along each side: 25 for each scale (section 4.3)."""
STEP: Final = 1 / 8
"""Relative distance of the outer scales from a fixed training scale: 32 from 256 (section 4.2)."""
MOST_PIXELS: Final = 2**21
"""Most pixels of a whole image; of a very elongated one the ends are cut off."""

ImageResult = tuple[ImageSample, NDArray[np.float64] | None, str | None]
"""An image with the logarithms (K,) of its probabilities, or with the reason why it cannot be read."""
Engines = Mapping[Way, NamedEngine]
"""The engine of each kind of view."""


@dataclass(frozen=True, slots=True)
class Look:
    """One kind of view of an image."""

    way: Way
    """The kind of view."""
    scale: int
    """Short side of the resized image in pixels, Q in the paper."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """The views of an image whose probabilities are averaged."""

    name: ProtocolName
    """Name of the protocol."""
    looks: tuple[Look, ...]
    """The views."""
    mirror: bool
    """Whether the mirror image of each view is averaged too."""
    crop_pixels: int
    """Side of a crop in pixels."""
    shift: bool = False
    """Whether each view moved by one pixel to two sides is averaged too."""

    @property
    def views(self) -> Views:
        """What is averaged of each view."""
        return "mirror-shift" if self.shift else "mirror" if self.mirror else "one"

    def __str__(self) -> str:
        """The protocol in words, such as `single: one view of 224 pixels`."""
        views = []
        for way, looks in groupby(self.looks, key=lambda look: look.way):
            scales = ", ".join(str(look.scale) for look in looks)
            views.append(
                {
                    "middle": f"one view of {self.crop_pixels} pixels",
                    "whole": f"the whole image, short side {scales}",
                    "grid": f"{GRID * GRID} crops of {self.crop_pixels} pixels, short side {scales}",
                }[way]
            )
        moved = f"{', moved by one pixel' if self.shift else ''}{', and mirrored' if self.mirror else ''}"
        return f"{self.name}: {' and '.join(views)}{moved}"


def plan_protocol(
    name: ProtocolName,
    preprocessing: Preprocessing,
    *,
    scales: Sequence[int] = (),
    train_scales: Sequence[int] = (),
    mirror: bool | None = None,
    views: Views = "one",
) -> Protocol:
    """The views of a protocol.

    `single` is the view of the preprocessing. `dense` applies the network to the uncropped image at the
    training scale S, or at the middle of a range; `multi-scale` does so at S and an eighth below and above, or
    at the ends and the middle of a range; `multi-crop` takes 25 crops at each of these; `dense+crops` is both.

    Args:
        name: Name of the protocol.
        preprocessing: The preprocessing of the Classifier; gives S where `train_scales` does not.
        scales: Short sides in pixels, in place of those derived from S.
        train_scales: S in pixels, or both ends of its range, such as (256, 512).
        mirror: Whether mirror images are averaged too; None: in all but `single`, as in the paper.
        views: For `single`, as in prediction: `one`, `mirror`, or `mirror-shift`.

    Raises UnknownName for another name, and BadInput for invalid scales, and for views beside what they exclude.
    """
    views = demand_views(views)
    if views != "one" and (name != "single" or mirror is not None):
        raise BadInput(
            f"views={views} is for the protocol single, and says itself whether images are mirrored; leave out "
            f"{'mirror' if name == 'single' else 'views, or take protocol=single'}"
        )
    if name not in get_args(ProtocolName):
        raise UnknownName.of("protocol", name, get_args(ProtocolName))
    crop = preprocessing.crop_pixels
    if name == "single":
        if scales or train_scales:
            raise BadInput(
                "the protocol single uses the scale of the preprocessing and takes no scales; use dense or "
                "multi-scale"
            )
        own = preprocessing.resize_pixels if preprocessing.fit_mode == "crop" else crop
        look = Look("middle", own)
        return Protocol(name, (look,), bool(mirror) or views != "one", crop, shift=views == "mirror-shift")
    scales, train_scales = demand_counts("scales", scales), demand_counts("train_scales", train_scales)
    if len(train_scales) > 2:
        raise BadInput(
            "scales are short sides in pixels, and a training has one or the two ends of a range; "
            f"got scales {tuple(scales)}, train_scales {tuple(train_scales)}"
        )
    for scale in scales:
        if scale < crop:
            raise BadInput(f"a scale of {scale} pixels is smaller than the network input of {crop} pixels")
    found = tuple(scales) or _find_scales(name, preprocessing, train_scales)
    ways: dict[str, tuple[Way, ...]] = {"multi-crop": ("grid",), "dense+crops": ("whole", "grid")}
    looks = tuple(Look(way, scale) for way in ways.get(name, ("whole",)) for scale in found)
    return Protocol(name, looks, mirror is not False, crop)


def _find_scales(name: str, preprocessing: Preprocessing, train_scales: Sequence[int]) -> tuple[int, ...]:
    """Q from S, as in the paper's tables 3, 4 and 5; never below the network input."""
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
    """The engine of each kind of view of a protocol; device, precision and engine as for `evaluate`.

    Raises BadConfiguration where the network does not support the protocol, and the errors of `choose_engine`.
    """
    activation_ranges = classifier.activation_ranges if precision == "int8" else None
    engines = {}
    for way in dict.fromkeys(look.way for look in protocol.looks):
        # Whole images have many sizes, for each of which OpenVINO would compile a model. Only it has int8.
        steady = engine == "auto" and way == "whole" and precision != "int8"
        engines[way] = choose_engine(
            NetworkWeights(_adapt_network(classifier, way), pixels=classifier.preprocessing.crop_pixels),
            device,
            precision=precision,
            activation_ranges=activation_ranges,
            engine="pytorch" if steady else engine,
        )
    return engines


def evaluate_views(
    classifier: Model,
    images: Sequence[ImageSample],
    protocol: Protocol,
    engines: Engines,
    *,
    batch_size: int = 32,
    reduced_decoding: bool = False,
) -> Iterator[ImageResult]:
    """Each image in order with the logarithms (K,) of its probabilities, or the reason why it cannot be read.

    The logits of each view become probabilities, at the Classifier's temperature, which are averaged. The
    engines are those of `prepare_engines`. With `reduced_decoding` large JPEGs are decoded at a smaller scale.
    """
    fed = classifier.preprocessing.with_reduced_decoding(reduced_decoding)
    sliced = {way: _Sliced(engine, batch_size) for way, engine in engines.items()}
    found = [
        _evaluate_view(classifier, fed, images, look, sliced[look.way], views=protocol.views, batch_size=batch_size)
        for look in protocol.looks
    ]
    for each in zip(*found, strict=True):
        several = [logs for _, logs, _ in each if logs is not None]
        problem = next((reason for _, _, reason in each if reason is not None), None)
        yield each[0][0], None if problem else average(several), problem


def _evaluate_view(
    classifier: Model,
    preprocessing: Preprocessing,
    images: Sequence[ImageSample],
    look: Look,
    engine: Engine,
    *,
    views: Views,
    batch_size: int,
) -> Iterator[ImageResult]:
    """One kind of view of each image."""

    def prepare(image: ImageSample) -> tuple[list[NDArray[np.float32]], str | None]:
        try:
            inputs = prepare_view(image, preprocessing, look)
        except BadImage as problem:
            return [], str(problem)
        return [view for each in inputs for view in list_views(each, views)], None

    # Whole images have shapes of their own, and a grid is a batch.
    together = batch_size if look.way == "middle" else 1
    for image, problem, rows in stream_rows(engine, stream_images(images), prepare, batch_size=together):
        logs = None if problem else average(list(classifier.card.activation.log(rows)))
        yield image, logs, problem


def prepare_view(image: ImageSample, preprocessing: Preprocessing, look: Look) -> list[NDArray[np.float32]]:
    """The inputs (C, H, W) of one kind of view of an image; raises BadImage."""
    if look.way == "middle":
        return [preprocessing.see(image)]
    scaled = replace(preprocessing, fit_mode="crop", resize_pixels=look.scale)
    decoded = image.decode(least_side=scaled.least_side, channels=scaled.decoded_channels)
    whole = scaled.resize(decoded, most_pixels=MOST_PIXELS)
    parts = [whole] if look.way == "whole" else list_crops(whole, preprocessing.crop_pixels)
    return [scaled.normalize(part) for part in parts]


def list_crops(pixels: Pixels, side: int) -> list[Pixels]:
    """Squares of RGB pixels (H, W, 3) on a regular grid from edge to edge, row by row."""
    height, width = pixels.shape[:2]
    tops, lefts = ([round(place) for place in np.linspace(0, length - side, GRID)] for length in (height, width))
    return [pixels[top : top + side, left : left + side] for top in tops for left in lefts]


def _adapt_network(classifier: Model, way: Way) -> VGG:
    """The network for a kind of view; for whole images with its fully connected layers as convolutions."""
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
            f"at {crop_pixels} pixels the last feature map of this network is {side}×{side}, and its head takes "
            f"{configuration.grid}×{configuration.grid}: it cannot be applied densely. Use the protocol "
            "multi-crop, or a network with a pool head"
        )


class _Sliced:
    """An engine that is given at most so many inputs at once."""

    def __init__(self, engine: Engine, most: int) -> None:
        self._engine, self._most = engine, most

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows (N, K) of inputs (N, C, H, W)."""
        starts = range(0, len(batch), self._most)
        return np.concatenate([self._engine.run(batch[start : start + self._most]) for start in starts])
