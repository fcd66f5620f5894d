"""Embeddings of images: the values of a Classifier's network before the last layer, or of another layer.

Shape letters: N images, F numbers of a vector.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vggkit.arguments import demand_count
from vggkit.engines.cached import find_engine
from vggkit.engines.graph_builder import describe_overflow
from vggkit.engines.info import WantedEngine
from vggkit.engines.model_weights import ModelFile, open_for_engine
from vggkit.engines.outputs import WantedPrecision, list_outputs, plan_outputs
from vggkit.engines.stream import Engine, stream_results
from vggkit.errors import UnknownName
from vggkit.images.dataset import ImageSample
from vggkit.images.given import ImageSources, count_sources, list_sources
from vggkit.images.omissions import Omission, Reading
from vggkit.images.sources.open_dataset import iterate_samples
from vggkit.models.configuration import Configuration
from vggkit.models.graph import Graph
from vggkit.weights.card import Card

if TYPE_CHECKING:
    from vggkit.weights.model import Model

FEATURES: Final = "features"
STATISTICS: Final = "statistics"


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """An image as a vector."""

    path: str
    """The image's file."""
    vector: NDArray[np.float32] | None = field(repr=False)
    """(F,), all finite; None where there is a problem."""
    problem: str | None = None
    """The reason why it cannot be read, or that the network's values for it overflow."""


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """Images as vectors, in the order of the images."""

    paths: tuple[str, ...]
    """N files."""
    vectors: NDArray[np.float32] = field(repr=False)
    """(N, F); a row of NaN where there is a problem."""
    problems: tuple[str | None, ...]
    """Reasons why images cannot be read, or that the network's values for them overflow; None beside a vector."""
    layer: str
    """The layer: `features`, `statistics`, `logits`, `probabilities`, or a layer's name."""
    skipped: tuple[Omission, ...] = ()
    """Files among the images that are no images, counted by reason."""

    def __repr__(self) -> str:
        count, width = self.vectors.shape
        return f"Embeddings({self.layer} of {count:,} images, {width:,} numbers each)"


def find_width(configuration: Configuration, layer: str) -> int:
    """F, the numbers of a vector; raises UnknownName.

    Args:
        configuration: Of the network.
        layer: `features`, what the last fully connected layer reads; `statistics`, mean and standard deviation of
            each channel of the trunk's last map; `logits`; `probabilities`; or a layer's name, such as relu7 or
            pool5, of whose maps each channel's mean is taken.
    """
    if not isinstance(layer, str):
        raise UnknownName.of("layer or output of this network", layer, list_outputs(configuration))
    plan_outputs(configuration, layer)
    *_, last = configuration.fully_connected
    widths = {FEATURES: last.in_features, STATISTICS: 2 * configuration.trunk_channels}
    widths |= {"logits": last.out_features, "probabilities": last.out_features}
    return widths[layer] if layer in widths else Graph(configuration).find(layer).output_shape[0]


def embed(
    model: "Model | ModelFile | str | Path",
    images: ImageSources,
    *,
    layer: str = FEATURES,
    batch_size: int = 32,
    device: str = "auto",
    precision: WantedPrecision = "fp32",
    engine: WantedEngine = "auto",
    reduced_decoding: bool = False,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Embeddings:
    """The vector of each image, in the order of the images.

    Args:
        model: A Classifier; or its place: a file, a run's folder, a published model's name such as `vgg16`, or
            `hf://owner/name`. For a place torch is imported only where PyTorch computes.
        images: Images, as `predict` takes them.
        layer: The layer, see `find_width`.
        batch_size: Images that pass through the network together.
        device: `auto`, `cpu`, `cuda`, `mps`.
        precision: The precision of the computation; auto: bf16 where the device multiplies it natively. int8 is
            for processors, and needs the Classifier's activation ranges.
        engine: The engine, see `predict`.
        reduced_decoding: Decode large JPEGs at a smaller scale, even where the Classifier does not: it is faster,
            reads some that are too large otherwise, and changes pixels slightly.
        on_progress: Called with the number of images done, and of all where ImageSamples are given.

    Raises UnknownName, BadInput, BadData and BadConfiguration.
    """
    opened = open_for_engine(model, "embed")
    width = find_width(opened.card.configuration, layer)
    batch_size = demand_count("batch_size", batch_size)
    given = list_sources(images)
    total = count_sources(given)
    reading = Reading()
    samples = iterate_samples(given, reading)  # a place without images is refused before an engine is built
    computing = find_engine(opened, device, output=layer, precision=precision, engine=engine)
    found = []
    card = opened.card.with_reduced_decoding(reduced_decoding)
    for _, each in iterate_embeddings(computing, card, samples, batch_size=batch_size):
        found.append(each)
        if on_progress:
            on_progress(len(found), total)
    missing = np.full(width, np.nan, np.float32)
    return Embeddings(
        tuple(each.path for each in found),
        np.stack([missing if each.vector is None else each.vector for each in found]),
        tuple(each.problem for each in found),
        layer,
        reading.list_omissions(),
    )


def iterate_embeddings(
    engine: Engine,
    card: Card,
    images: Iterable[ImageSample],
    *,
    batch_size: int = 32,
) -> Iterator[tuple[ImageSample, Embedding]]:
    """Each image with its vector as soon as it is computed, from an engine for one output and the model's card."""
    batch_size = demand_count("batch_size", batch_size)
    for result in stream_results(engine, card.preprocessing, images, batch_size=batch_size):
        vector = None if result.output is None else _pool(result.output)
        problem = result.problem
        if vector is not None and (overflow := describe_overflow(vector)):
            vector, problem = None, f"{result.image.path}: {overflow}"
        yield result.image, Embedding(result.image.path, vector, problem)


def _pool(row: NDArray[np.float32]) -> NDArray[np.float32]:
    """A map (C, H, W) as the mean of each channel."""
    with np.errstate(over="ignore"):
        return row.mean(axis=(1, 2)) if row.ndim == 3 else row
