"""The steps of a compression, each a Classifier made of another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from vggkit.compression.fine_tuning import FineTuning, fine_tune
from vggkit.compression.folding import find_folded_grid, fold
from vggkit.compression.images import RoleImages, prepare_calibration
from vggkit.compression.low_rank import choose_ranks, factorize, find_spectra
from vggkit.compression.measuring import count_multiply_adds
from vggkit.compression.pool_head import fit_pool_head
from vggkit.compression.pruning import prune_channels
from vggkit.compression.records import CompressionStep, FineTune, Fold, LowRank, PoolHead, Prune
from vggkit.compression.rounding import round_by_outputs
from vggkit.compression.sensitivity import Sensitivity, divide_budget, measure_sensitivity
from vggkit.engines.activation_ranges import measure_ranges
from vggkit.errors import MissingExtra
from vggkit.interruption import Signals
from vggkit.models.configuration import Configuration
from vggkit.models.vgg import VGG
from vggkit.weights.model import Model

MEASURED: Final = 500
"""Number of images, at most, on which sensitivities are measured; activation ranges need 128."""
OnProgress = Callable[[str, int, int | None], None]


@dataclass(slots=True)
class Compressed:
    """A Classifier, and the steps that made it."""

    model: Model
    """The Classifier."""
    steps: tuple[CompressionStep, ...] = ()
    """The steps, in order."""


@dataclass(slots=True, kw_only=True)
class Compressor:
    """Carries out the steps: on which images, on which device, and how progress is reported."""

    original: Model
    """The Classifier before any step, and the teacher of fine-tuning."""
    images: RoleImages | None
    """Images by role, or None without data."""
    fine_tuning: FineTuning
    """How networks are fine-tuned."""
    device: torch.device
    """Where features are computed and networks trained."""
    folder: Path
    """For temporary files."""
    on_progress: OnProgress
    """Called with the current task, how much of it is done, and of how much."""
    log: Callable[[str], None]
    """Called with messages, as sentences."""
    signals: Signals = field(default_factory=Signals)
    """Requests to stop."""
    _batches: tuple[Tensor, ...] | None = None
    _rounded: tuple[Model, VGG] | None = None
    _sensitivity: tuple[Configuration, tuple[Sensitivity, ...]] | None = None

    @property
    def pixels(self) -> int:
        """Height and width of the images."""
        return self.original.preprocessing.crop_pixels

    @property
    def batches(self) -> tuple[Tensor, ...]:
        """Preprocessed images that layers are fitted on; none without data."""
        if self.images is None:
            return ()
        if self._batches is None:
            self.on_progress("preparing images", 0, None)
            self._batches = prepare_calibration(self.images.fit, self.original.preprocessing)
        return self._batches

    def fold(self, made: Compressed) -> Compressed:
        """Fold fc6 where the images leave a smaller map than the head reads; else a copy."""
        grid = find_folded_grid(made.model.configuration, self.pixels)
        if grid is None:
            copied = Model(
                made.model.network,
                labels=made.model.labels,
                preprocessing=made.model.preprocessing,
                task=made.model.task,
            )
            copied.card = made.model.card
            return Compressed(copied, made.steps)
        return self._change(made, fold(made.model.network, pixels=self.pixels), Fold(grid=grid))

    def put_pool_head(self, made: Compressed) -> Compressed:
        """Put a pool head in place of the fully connected layers."""
        assert self.images is not None
        fitted = fit_pool_head(
            made.model,
            self.images.fit,
            self.images.choose,
            device=self.device,
            seed=self.fine_tuning.seed,
            on_progress=self.on_progress,
            log=self.log,
        )
        # Folding was of the layers that are gone.
        steps = tuple(step for step in made.steps if not isinstance(step, Fold))
        return self._change(Compressed(made.model, steps), fitted.network, PoolHead())

    def prune(self, made: Compressed, removed: float) -> Compressed:
        """Remove channels until a share of the multiply-adds of the whole Classifier is gone.

        How many channels each layer loses follows from sensitivities measured before the first was removed.
        """
        whole = count_multiply_adds(self.original.configuration, self.pixels)
        if self._sensitivity is None or not any(isinstance(step, Prune) for step in made.steps):
            measured = len(_take(self.batches, MEASURED))
            found = measure_sensitivity(
                made.model.network,
                self.batches,
                measured=measured,
                task=made.model.task,
                on_layer=self.on_progress,
            )
            self._sensitivity = made.model.configuration, found
        start, sensitivities = self._sensitivity
        share = 1 - (1 - removed) * whole / count_multiply_adds(start, self.pixels)
        if share <= 0:
            return made
        widths = divide_budget(start, sensitivities, removed=share, pixels=self.pixels)
        smaller = prune_channels(
            made.model.network, widths, self.batches, seed=self.fine_tuning.seed, on_layer=self.on_progress
        )
        steps = tuple(step for step in made.steps if not isinstance(step, Prune))
        reached = 1 - count_multiply_adds(smaller.configuration, self.pixels) / whole
        return self._change(Compressed(made.model, steps), smaller, Prune(removed=round(reached, 4)))

    def factorize(self, made: Compressed, *, energy: float | None = None, ranks: Sequence[int] = ()) -> Compressed:
        """Make two factors of each fully connected layer but the last, by the share of energy or by ranks."""
        self.on_progress("factorising fully connected layers", 0, None)
        spectra = find_spectra(made.model.network, self.batches)
        chosen = tuple(ranks) if energy is None else choose_ranks(spectra, energy)
        smaller = factorize(made.model.network, spectra, chosen)
        return self._change(made, smaller, LowRank(ranks=chosen))

    def fine_tune(self, made: Compressed) -> Compressed:
        """Train all layers further, with the Classifier as it was as the teacher."""
        if self.images is None or not self.fine_tuning.epochs:
            return made
        trained = fine_tune(
            made.model,
            self.original.network,
            self.images.fit,
            self.images.choose,
            options=self.fine_tuning,
            device=self.device,
            folder=self.folder / "fine-tuning",
            on_progress=self.on_progress,
            log=self.log,
            signals=self.signals,
        )
        earlier = sum(step.epochs for step in made.steps if isinstance(step, FineTune))
        steps = tuple(step for step in made.steps if not isinstance(step, FineTune))
        total = FineTune(epochs=earlier + self.fine_tuning.epochs)
        return self._change(Compressed(made.model, steps), trained.network, total)

    def round(self, made: Compressed) -> Model:
        """The Classifier with its weights rounded to 4 bits by what that does to each layer's output."""
        if not self.batches:
            return made.model
        if self._rounded is None or self._rounded[0] is not made.model:
            network = round_by_outputs(
                made.model.network, self.batches, seed=self.fine_tuning.seed, on_layer=self.on_progress
            )
            self._rounded = made.model, network
        model = Model(
            self._rounded[1], labels=made.model.labels, preprocessing=made.model.preprocessing, task=made.model.task
        )
        model.card = made.model.card
        return model

    def find_ranges(self, model: Model) -> str | None:
        """Measure the activation ranges for int8 and keep them in the Classifier; gives the reason where not."""
        if not self.batches:
            return "int8 is computed by activation ranges, which are measured on images"
        self.on_progress("measuring activation ranges", 0, None)
        some = _take(self.batches, 128)
        try:
            found = measure_ranges(model.network, (batch.numpy() for batch in some))
        except MissingExtra as missing:
            return str(missing)
        model.keep_ranges(found, about={"data": "images that layers were fitted on", "images": sum(map(len, some))})
        return None

    def _change(self, made: Compressed, network: VGG, step: CompressionStep) -> Compressed:
        """The Classifier with another network, without what was fitted to the weights before."""
        before = made.model
        model = Model(
            network,
            labels=before.labels,
            preprocessing=before.preprocessing,
            task=before.task,
            origin=replace(before.origin, kind="trained", random_keys=()),
            provenance=before.provenance,
        )
        return Compressed(model, (*made.steps, step))


def _take(batches: Sequence[Tensor], most: int) -> tuple[Tensor, ...]:
    """The first batches, so many images at most."""
    found: list[Tensor] = []
    for batch in batches:
        left = most - sum(map(len, found))
        if left <= 0:
            break
        found.append(batch[:left])
    return tuple(found)
