"""The classes of images, by a Classifier.

Shape letters: N images, K classes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vggkit.arguments import demand_count
from vggkit.engines.averaged_views import Views, average_over, demand_views
from vggkit.engines.cached import find_engine
from vggkit.engines.info import WantedEngine
from vggkit.engines.model_weights import ModelFile, open_for_engine
from vggkit.engines.outputs import WantedPrecision
from vggkit.engines.stream import Engine, StreamResult, stream_results
from vggkit.images.dataset import ImageSample
from vggkit.images.given import ImageSources, count_sources, list_sources
from vggkit.images.omissions import Reading, warn_of_omissions
from vggkit.images.sources.open_dataset import iterate_samples
from vggkit.task import ROUNDING, decide, join_labels
from vggkit.weights.card import Card

if TYPE_CHECKING:
    from vggkit.weights.model import Model

UNKNOWN: Final = "unknown"
"""The label where the most probable class is below the Classifier's threshold."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable classes of one image."""

    path: str
    """The image's file, or its name; a path of another machine as the table has it."""
    labels: tuple[str, ...]
    """The most probable classes, best first; empty where there is a problem."""
    probabilities: tuple[float, ...]
    """Their probabilities in [0, 1]; over all classes of a single-label Classifier they sum to 1."""
    unknown: bool = False
    """Whether the highest probability is below the Classifier's threshold; never so for multi-label."""
    problem: str | None = None
    """The reason why the image cannot be read, or that the network's values for it overflow."""
    predicted: tuple[str, ...] | None = None
    """The labels that a multi-label Classifier predicts: every class whose probability reaches its threshold, the
    most probable first; perhaps none. None for a single-label Classifier."""

    @property
    def label(self) -> str | None:
        """The most probable class; `unknown` where its probability is below the threshold; None for no image.

        Of a multi-label Classifier its predicted labels, joined for people.
        """
        if self.predicted is not None:
            return join_labels(self.predicted)
        return UNKNOWN if self.unknown else self.labels[0] if self.labels else None

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON; `unknown` and `problem` only where they are so, `predicted` for multi-label."""
        values = {"path": self.path, "labels": list(self.labels), "probabilities": list(self.probabilities)}
        unknown: dict[str, Any] = {"unknown": True} if self.unknown else {}
        unknown |= {} if self.predicted is None else {"predicted": list(self.predicted)}
        return values | unknown | ({"problem": self.problem} if self.problem else {})


def predict(
    model: "Model | ModelFile | str | Path",
    images: ImageSources,
    *,
    top: int = 5,
    batch_size: int = 32,
    device: str = "auto",
    precision: WantedPrecision = "fp32",
    engine: WantedEngine = "auto",
    reduced_decoding: bool = False,
    views: Views = "one",
    on_progress: Callable[[int, int | None], None] | None = None,
) -> list[Prediction]:
    """The most probable classes of each image, in the order of the images.

    Args:
        model: A Classifier; or its place: a file, a run's folder, a published model's name such as `vgg16`, or
            `hf://owner/name`. Of a place torch is imported only where PyTorch computes.
        images: An image or several: a path, also of a folder (every image below it), a table, archives … as
            `iterate_images` takes them; the bytes of a file, an open file, a PIL image of any mode, pixels uint8
            as an array (H, W, 3) or a tensor (3, H, W), or an ImageSample; or an iterable of
            these, an array (N, H, W, 3) or a tensor (N, 3, H, W). An image without a name gets its number as its
            name: `image 0`.
        top: How many classes to name; fewer where the Classifier has fewer.
        batch_size: Images that pass through the network together.
        device: `auto`, `cpu`, `cuda`, `mps`.
        precision: The precision of the computation; auto: bf16 where the device multiplies it natively. int8 is
            for processors, and needs the Classifier's activation ranges.
        engine: The engine; auto: PyTorch on CUDA and MPS, on processors ncnn (fp32 on x86 from 112 pixels on),
            OpenVINO, ONNX Runtime or PyTorch, the first that is installed and supports the precision.
        reduced_decoding: Decode large JPEGs at a smaller scale, even where the Classifier does not: it is faster,
            reads some that are too large otherwise, and changes pixels slightly.
        views: The views of each image whose probabilities are averaged. `one`: the image. `mirror`: also its mirror
            image, for images whose sides have no meaning. `mirror-shift`: both, and both moved by one pixel to two
            sides, six views in all, for small images. The time grows with their number.
        on_progress: Called with the number of images done, and of all where ImageSamples are given.

    The first call compiles an engine, which is cached with the Classifier and used by every later call with the
    same options, as long as the weights do not change. Threads may share it.

    An image that cannot be read, or whose values overflow in the network, becomes a Prediction with its
    `problem`. Files of a folder that look like forgotten images, such as broken links, are named in a warning.
    Raises BadInput, also for ambiguous pixel values, with the code that converts them; and BadData for a place
    without images.
    """
    top, batch_size = demand_count("top", top), demand_count("batch_size", batch_size)
    views = demand_views(views)
    opened = open_for_engine(model, "predict")
    card = opened.card.with_reduced_decoding(reduced_decoding)
    given = list_sources(images)
    total = count_sources(given)
    reading = Reading()
    samples = iterate_samples(given, reading)  # a place without images is refused before an engine is built
    computing = find_engine(opened, device, precision=precision, engine=engine, card=card)
    averaged = average_over(computing, card.activation, views)
    found = []
    for _, each in iterate_predictions(averaged, card, samples, top=top, batch_size=batch_size):
        found.append(each)
        if on_progress:
            on_progress(len(found), total)
    warn_of_omissions(reading.list_omissions())
    return found


def iterate_predictions(
    engine: Engine,
    card: Card,
    images: Iterable[ImageSample],
    *,
    top: int = 5,
    batch_size: int = 32,
) -> Iterator[tuple[ImageSample, Prediction]]:
    """Each image with its prediction as soon as it is computed, from an engine for logits and the model's card."""
    top, batch_size = demand_count("top", top), demand_count("batch_size", batch_size)
    for result in stream_results(engine, card.preprocessing, images, batch_size=batch_size):
        yield result.image, describe_prediction(result, card, top=top)


def describe_prediction(
    result: StreamResult, card: Card, *, top: int = 5, threshold: float | None = None
) -> Prediction:
    """The most probable classes, `top` of them, from what an engine for logits gave for an image.

    The prediction is unknown below the threshold; None: below the Classifier's own. For a multi-label Classifier it
    is the threshold of every class.
    """
    if result.output is None:
        return Prediction(result.image.name, (), (), problem=result.problem)
    probabilities = card.activation(result.output)
    order = np.argsort(-probabilities, kind="stable")
    best, predicted, unknown = order[:top], None, False
    if card.task == "multi-label":
        decided = decide(probabilities, card.thresholds if threshold is None else (threshold,))
        predicted = tuple(card.labels[index] for index in order if decided[index])
    else:
        threshold = card.threshold if threshold is None else threshold
        unknown = bool(probabilities[best[0]] < (1 - ROUNDING) * threshold)
    return Prediction(
        result.image.name,
        tuple(card.labels[index] for index in best),
        tuple(float(probabilities[index]) for index in best),
        unknown=unknown,
        predicted=predicted,
    )
