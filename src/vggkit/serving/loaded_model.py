"""A model as the service computes with it: its card, its engine, and the gradient of its head. No torch here.

Shape letters: N images, K classes, C channels, H and W pixels or places.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Flag, auto
from functools import reduce
from operator import or_
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.info import EngineInfo, WantedEngine
from vggkit.engines.model_weights import ModelFile, Values
from vggkit.engines.outputs import WantedPrecision
from vggkit.engines.select import choose_engine, resolve_for_batches
from vggkit.engines.stream import NamedEngine
from vggkit.errors import BadConfiguration, BadInput
from vggkit.explanations.closed_form import HeadGradient, grad_cam
from vggkit.explanations.plan import ExplanationPlan
from vggkit.inference.embed import find_width
from vggkit.inference.fingerprint import digest_weights
from vggkit.serving.batcher import Computes
from vggkit.weights.card import Card

Rows = NDArray[np.float32]
LOGITS = "logits"
VERSION_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Computing:
    """What models are computed with; the same for every model of a service."""

    device: str = "auto"
    precision: WantedPrecision = "auto"
    engine: WantedEngine = "auto"
    layer: str = "features"
    """The layer whose values `POST /embed` gives."""
    max_batch: int = 16


class Wanted(Flag):
    """What is wanted of an image."""

    CLASSES = auto()
    """Logits."""
    VECTOR = auto()
    """Values of the layer for embeddings."""
    MAP = auto()
    """Grad-CAM of the most probable class."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ComputedImage:
    """What a model gives for one image; None for what was not wanted."""

    logits: Rows | None
    """(K,); NaN where values overflow."""
    vector: Rows | None
    """(F,), of a map each channel's mean."""
    map: Rows | None
    """(H, W), 0 or more, not scaled."""


class LoadedModel(Computes):
    """A model, ready: everything of its file that is needed is in memory, and the file may be replaced.

    Args:
        name: What requests call it.
        path: The file of a Classifier.
        computing: How.

    Raises what `ModelFile` and `choose_engine` do, and UnknownName for a layer that it does not have.
    """

    def __init__(self, name: str, path: str | Path, computing: Computing) -> None:
        file = _HeldFile(path)
        self.name, self.path, self.card, self.layer = name, file.path, file.card, computing.layer
        find_width(self.card.configuration, self.layer)
        self.plan, self._gradient = _plan_explanation(self.card), None
        needed: tuple[str, ...] = ()
        if self.plan is not None:
            self._gradient = HeadGradient(file)
            needed = (str(self.plan.layer), *self._gradient.needs)
        self._engines = _build_engines(file, computing, needed, self.layer)
        self.info: EngineInfo = self._engines[0][1].info
        self._warm_up(computing.max_batch)
        self.version = _digest(file)
        file.let_go()
        self.loaded_at = datetime.now(UTC)

    def compute(self, inputs: Rows, wanted: Sequence[Wanted]) -> list[ComputedImage]:
        """What is wanted of each input (N, C, H, W)."""
        together = reduce(or_, wanted)
        computed: dict[str, Rows] = {}
        for serves, engine in self._engines:
            if serves & together:
                computed = engine.compute(inputs) | computed
        vectors = _pool(computed[self.layer]) if Wanted.VECTOR in together else None
        maps = self._explain(computed, [place for place, each in enumerate(wanted) if Wanted.MAP in each])
        # Copies, so that a result does not hold the whole batch.
        return [
            ComputedImage(
                logits=computed[LOGITS][place].copy() if Wanted.CLASSES in each else None,
                vector=vectors[place].copy() if vectors is not None and Wanted.VECTOR in each else None,
                map=maps.get(place),
            )
            for place, each in enumerate(wanted)
        ]

    def _explain(self, computed: Mapping[str, Rows], places: list[int]) -> dict[int, Rows]:
        """The maps of these images of a batch."""
        if self.plan is None or self._gradient is None or not places:
            return {}
        chosen = {name: computed[name][places] for name in (LOGITS, str(self.plan.layer), *self._gradient.needs)}
        with np.errstate(over="ignore", invalid="ignore"):  # of logits that are not finite there is no map
            sums = self._gradient.sum_over_places(self.plan.choose_directions(chosen[LOGITS]), chosen)
            return dict(zip(places, grad_cam(chosen[str(self.plan.layer)], sums), strict=True))

    def _warm_up(self, max_batch: int) -> None:
        """Compile for one image and for several, with the smallest and largest inputs that images have.

        An engine compiles at its first batch of a kind, and reads the file then.
        """
        preprocessing = self.card.preprocessing
        side, channels = preprocessing.crop_pixels, preprocessing.decoded_channels
        black, white = (np.full((side, side, channels), level, np.uint8) for level in (0, 255))
        grey = np.zeros((self.card.configuration.in_channels, side, side), np.float32)
        everything = Wanted.CLASSES | Wanted.VECTOR | Wanted.MAP
        for each in (preprocessing.normalize(black), preprocessing.normalize(white), grey):
            for count in (1, 2) if max_batch > 1 else (1,):
                self.compute(np.stack([each] * count), [everything] * count)


class _HeldFile(ModelFile):
    """A file whose values are copied into memory once.

    On processors without AVX-512 OpenVINO reads weights from where they were mapped, also later: a file that is
    truncated meanwhile would end the process.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._held: dict[str, Values] = {}

    def read(self, keys: Sequence[str]) -> dict[str, Values]:
        missing = [key for key in keys if key not in self._held]
        if missing:
            self._held |= {key: np.array(values) for key, values in super().read(missing).items()}
        return {key: self._held[key] for key in keys}

    def let_go(self) -> None:
        """Keep the values no longer: the engines have theirs."""
        self._held = {}


def _build_engines(
    file: ModelFile, computing: Computing, needed: tuple[str, ...], layer: str
) -> list[tuple[Wanted, NamedEngine]]:
    """One engine for everything, in one pass; with int8 a second one for vectors, in the precision of `auto`."""
    device, name, precision = resolve_for_batches(
        computing.device,
        precision=computing.precision,
        engine=computing.engine,
        pixels=file.card.preprocessing.crop_pixels,
    )
    vectors = () if precision == "int8" else (layer,)
    names = tuple(dict.fromkeys((LOGITS, *vectors, *needed)))
    first = choose_engine(file, device, output=names, precision=precision, engine=name, as_read=True)
    if vectors:
        return [(Wanted.CLASSES | Wanted.VECTOR | Wanted.MAP, first)]
    second = choose_engine(file, device, output=layer, engine=name)
    return [(Wanted.CLASSES | Wanted.MAP, first), (Wanted.VECTOR, second)]


def _plan_explanation(card: Card) -> ExplanationPlan | None:
    """The plan of Grad-CAM in closed form; None for a network whose last map has a single place."""
    try:
        plan = ExplanationPlan.of(card)
    except (BadInput, BadConfiguration):
        return None
    return plan if plan.is_closed else None


def _pool(values: Rows) -> Rows:
    """Rows (N, F), of maps (N, C, H, W) the mean of each channel."""
    with np.errstate(over="ignore"):
        pooled: Rows = values.mean(axis=(2, 3)) if values.ndim == 4 else values
    return pooled


def _digest(file: ModelFile) -> str:
    """A text that is the same for files that give the same results: of weights and card."""
    card = json.dumps(file.card.to_dict(), sort_keys=True)
    return hashlib.sha256(f"{digest_weights(file)} {card}".encode()).hexdigest()[:VERSION_DIGITS]
