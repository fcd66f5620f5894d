"""A course: a training that is ready to begin or to go on, and what both ways of learning share."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from vggkit.evaluation.calibration import fit_temperature
from vggkit.evaluation.evaluation import Evaluation
from vggkit.evaluation.measure import CALIBRATED_HERE
from vggkit.evaluation.metrics import score
from vggkit.evaluation.predictions import Predictions
from vggkit.evaluation.protocols import plan_protocol
from vggkit.images.class_names import shorten_names
from vggkit.images.dataset import ImageDataset, identify_images
from vggkit.models.vgg import VGG
from vggkit.reports.loggers import Loggers
from vggkit.reports.plots import PlotEnding
from vggkit.reports.progress import ProgressLine
from vggkit.training.by_hand import SetByHand
from vggkit.training.checkpoint import Checkpoints, Epoch
from vggkit.training.estimates import estimate_memory
from vggkit.training.recipe import Recipe
from vggkit.weights.model import Model

BEST: Final = "best.safetensors"
"""The Classifier of the epoch that is kept, in the run's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A training that is ready to begin, or to go on."""

    classifier: Model
    """Its network learns."""
    dataset: ImageDataset
    """Readable images in `train`, `val` and perhaps `test`."""
    recipe: Recipe
    """Settled."""
    directory: Path
    """The run's folder."""
    device: torch.device
    """Where to learn."""
    checkpoints: Checkpoints
    """The run's states."""
    provenance: Mapping[str, Any]
    """What the Classifier's file is to say of the run."""
    line: ProgressLine
    """Shows what goes on."""
    loggers: Loggers
    """Hear of each epoch."""
    save_seconds: float
    """How often the middle of an epoch is kept."""
    plots: PlotEnding | None
    """What files the report's images are drawn to besides."""
    by_hand: SetByHand
    """What the caller set on the network, and learning keeps."""
    solve_first: bool
    """Whether learning by steps begins with the head solved: a random one would bend given weights before it
    knows anything (Kumar et al., 2022, "Fine-tuning can distort pretrained features")."""

    @property
    def measured(self) -> str:
        """The split that the headline is measured on."""
        return "test" if "test" in self.dataset.splits else "val"

    @property
    def title(self) -> str:
        """The run in a line."""
        return f"{self.classifier.configuration.model} on {self.dataset.name}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a course led to; the Classifier holds the weights that were kept."""

    history: tuple[Epoch, ...]
    """Every epoch."""
    best_epoch: int
    """The one that was kept: highest validation accuracy, then lowest validation loss."""
    evaluation: Evaluation
    """The kept weights on the split that is measured."""


def measure(course: Course, find: Callable[[str], Predictions], *, chosen_from: int) -> Evaluation:
    """The headline, with probabilities made true on the validation images first.

    Args:
        course: Its Classifier has the weights that were kept.
        find: The answers of a split, at a temperature of 1.
        chosen_from: States of the network, one an epoch, that the kept one is the best of.
    """
    classifier, split = course.classifier, course.measured
    # All that is asked is asked before the Classifier is told how sure to be.
    val = find("val")
    headline = val if split == "val" else find(split)
    fit = fit_temperature(val, seed=course.recipe.seed)
    course.line.log(fit.describe())
    classifier.calibrate(
        temperature=fit.temperature,
        about={**asdict(fit), "split": "val", "images": identify_images(course.dataset.split("val"))},
    )
    notes = []
    counts = {name: course.dataset.count(name) for name in ("train", split)}
    if absent := [label for label, count in counts[split].items() if not count]:
        notes.append(f"no images of {shorten_names(absent, most=12)}: nothing is measured of them")
    if unlearnt := [label for label, count in counts["train"].items() if not count and counts[split][label]]:
        notes.append(
            f"no images of {shorten_names(unlearnt, most=12)} were learnt from, and theirs are measured on"
        )
    if split == "val":
        if chosen_from > 1:
            notes.append(
                f"the best of {chosen_from} states was chosen by these very images, which flatters the figures a "
                "little; images in a split test would not"
            )
        if fit.temperature != 1:
            notes.append(CALIBRATED_HERE)
    return score(
        headline.sharpen(fit.temperature),
        data=course.dataset.name,
        split=split,
        model=classifier.configuration.model,
        protocol=str(plan_protocol("single", classifier.preprocessing)),
        temperature=fit.temperature,
        images=identify_images(course.dataset.split(split)),
        notes=tuple(notes),
    )


def keep(course: Course, network: VGG, *, epoch: int) -> Model:
    """The best weights so far, written as a Classifier that says what it is."""
    classifier = course.classifier
    kept = Model(
        network,
        labels=classifier.labels,
        preprocessing=classifier.preprocessing,
        origin=replace(classifier.origin, kind="trained", random_keys=()),
        provenance={**classifier.provenance, **course.provenance, "epoch": epoch},
    )
    kept.save(course.directory / BEST)
    return kept


def list_weights(network: VGG) -> dict[str, torch.Tensor]:
    """The network's tensors, by the keys that they have in a state."""
    return {f"network/{key}": value for key, value in network.state_dict().items()}


def estimate_memory_of(course: Course) -> int:
    recipe = course.recipe
    assert recipe.batch_size is not None, "the recipe is settled"
    return estimate_memory(
        course.classifier.configuration,
        recipe,
        crop_pixels=course.classifier.preprocessing.crop_pixels,
        batch_size=recipe.batch_size,
    )


def describe_epoch(epoch: Epoch, epochs: int) -> str:
    return (
        f"epoch {epoch.epoch:>{len(str(epochs))}}  train loss {epoch.train_loss:.4f}  "
        f"val loss {epoch.val_loss:.4f}  val top-1 {epoch.val_top1:.4f}  {epoch.seconds:5.1f} s"
    )
