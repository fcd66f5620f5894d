"""What a bulk job computes of images, as a value that can be sent to other processes and machines.

Shape letters: F numbers of a vector.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vggkit.engines.averaged_views import Views, average_over
from vggkit.engines.info import EngineInfo, WantedEngine
from vggkit.engines.model_weights import ModelFile
from vggkit.engines.outputs import WantedPrecision
from vggkit.engines.select import choose_engine
from vggkit.images.dataset import ImageSample
from vggkit.inference.embed import Embedding, find_width, iterate_embeddings
from vggkit.inference.predict import Prediction, iterate_predictions

Row = tuple[Any, ...]
Compute = Callable[[Iterator[ImageSample]], Iterator[tuple[ImageSample, Row]]]
"""Gives each image with its row, in order."""


@dataclass(frozen=True, slots=True)
class OpenedWork:
    """A model that is ready to compute."""

    info: EngineInfo
    """The engine."""
    compute: Compute
    """Gives each image with its row."""


class BulkWork(Protocol):
    """The specification of what is computed; it can be pickled."""

    def open(self) -> OpenedWork:
        """Load the model; raises what `choose_engine` raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictWork:
    """Predictions of a Classifier's file."""

    model: str
    top: int
    batch_size: int
    device: str
    precision: WantedPrecision
    engine: WantedEngine
    reduced_decoding: bool
    views: Views

    def open(self) -> OpenedWork:
        """Load the model."""
        model = ModelFile(self.model)
        card = model.card.with_reduced_decoding(self.reduced_decoding)
        computing = choose_engine(model, self.device, precision=self.precision, engine=self.engine)
        computing = average_over(computing, card.activation, self.views)

        def compute(images: Iterator[ImageSample]) -> Iterator[tuple[ImageSample, Row]]:
            found = iterate_predictions(computing, card, images, top=self.top, batch_size=self.batch_size)
            return list_prediction_rows(found, top=self.top)

        return OpenedWork(computing.info, compute)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedWork:
    """Vectors of a Classifier's file."""

    model: str
    layer: str
    batch_size: int
    device: str
    precision: WantedPrecision
    engine: WantedEngine
    reduced_decoding: bool

    def open(self) -> OpenedWork:
        """Load the model."""
        model = ModelFile(self.model)
        card = model.card.with_reduced_decoding(self.reduced_decoding)
        width = find_width(card.configuration, self.layer)
        computing = choose_engine(
            model, self.device, output=self.layer, precision=self.precision, engine=self.engine
        )

        def compute(images: Iterator[ImageSample]) -> Iterator[tuple[ImageSample, Row]]:
            found = iterate_embeddings(computing, card, images, batch_size=self.batch_size)
            return list_vector_rows(found, width=width)

        return OpenedWork(computing.info, compute)


def list_prediction_rows(
    found: Iterable[tuple[ImageSample, Prediction]], *, top: int
) -> Iterator[tuple[ImageSample, Row]]:
    """Each image with its row: path, prediction, `top` labels with their probabilities, problem."""
    for image, each in found:
        pairs = zip(each.labels, each.probabilities, strict=True)
        cells: list[str | float | None] = [cell for pair in pairs for cell in pair]
        cells += [None] * (2 * top - len(cells))
        yield image, (each.path, each.label, *cells, each.problem)


def list_vector_rows(
    found: Iterable[tuple[ImageSample, Embedding]], *, width: int
) -> Iterator[tuple[ImageSample, Row]]:
    """Each image with its row: path, vector (F,) or NaN where there is a problem, problem."""
    missing = np.full(width, np.nan, np.float32)
    for image, each in found:
        yield image, (each.path, missing if each.vector is None else each.vector, each.problem)
