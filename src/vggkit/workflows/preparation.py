"""What a training is prepared with: its images in splits, and a recipe with every choice made."""

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vggkit.errors import BadData
from vggkit.hardware import computes_bf16
from vggkit.images.class_names import hint_at_lookalikes, shorten_names
from vggkit.images.dataset import ImageDataset, identify_images
from vggkit.images.sources.spooling import spool
from vggkit.images.splits import hold_out
from vggkit.reports.progress import ProgressLine
from vggkit.training.by_hand import SetByHand
from vggkit.training.estimates import choose_batch_size
from vggkit.training.recipe import Recipe
from vggkit.training.resolve_recipe import Situation, settle
from vggkit.weights.card import read_entry
from vggkit.weights.model import Model


def divide_images(
    opened: ImageDataset, classifier: Model, recipe: Recipe, *, stack: ExitStack, line: ProgressLine
) -> tuple[ImageDataset, dict[str, str]]:
    """The images in their splits, where they can be read in any order, and what tells each split from others."""
    dataset = hold_out(opened, validation_share=recipe.validation_share, seed=recipe.seed, fold=recipe.fold)
    digests = {name: identify_images(split) for name, split in dataset.splits.items()}
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="vggkit-")))
    dataset = spool(dataset, folder / "pictures", on_progress=partial(line.show, "copying images"))
    _check_labels(dataset, classifier)
    # A class that the Classifier names and the data lacks altogether is missing too.
    return replace(dataset, name=opened.name, labels=classifier.labels), digests


def _check_labels(images: ImageDataset, classifier: Model) -> None:
    """There are two classes or more, and none that the Classifier does not name."""
    if len(classifier.labels) < 2:
        raise BadData(f"{images.name}: has one class, and telling classes apart takes two")
    unknown = sorted(set(images.labels) - set(classifier.labels))
    if unknown:
        hint = hint_at_lookalikes(unknown, classifier.labels)
        raise BadData(
            f"{images.name}: holds classes the Classifier does not name ({shorten_names(unknown)}); "
            f"it names {shorten_names(classifier.labels)}{hint}"
        )


def resolve_recipe(
    recipe: Recipe, classifier: Model, dataset: ImageDataset, device: torch.device, *, by_hand: SetByHand
) -> tuple[Recipe, list[str]]:
    """The recipe with every choice made, and a sentence on each; see `settle`."""
    images, side = len(dataset.split("train")), classifier.preprocessing.crop_pixels
    situation = Situation(
        configuration=classifier.configuration,
        preprocessing=classifier.preprocessing,
        origin=classifier.origin,
        images=images,
        bf16=computes_bf16(device),
        frozen=frozenset(by_hand.frozen),
    )

    def choose(known: Recipe) -> tuple[int, str]:
        return choose_batch_size(classifier.configuration, known, crop_pixels=side, images=images, device=device)

    return settle(recipe, situation, choose_batch_size=choose)


def begins_with_probe(classifier: Model, by_hand: SetByHand) -> bool:
    """Whether fine-tuning begins with a linear probe (LP-FT): the last layer alone is random, and free to learn."""
    last, origin = classifier.configuration.fully_connected[-1], classifier.origin
    if origin.kind != "loaded" or last.rank is not None:
        return False
    place = f"classifier.{last.index}."
    if any(key.startswith(place) for key in by_hand.frozen):
        return False
    return bool(origin.random_keys) and all(key.startswith(place) for key in origin.random_keys)


def describe_start(classifier: Model) -> str:
    """The network that is about to be trained, and where its weights come from."""
    configuration, pixels = classifier.configuration, classifier.preprocessing.crop_pixels
    cut = f" until {configuration.until}" if configuration.until else ""
    text = f"{configuration.model}{cut}, head {configuration.head}, images fed at {pixels} pixels"
    origin, report = classifier.origin, read_entry(classifier.provenance, "weights")
    if origin.kind == "trained":
        return f"{text}; the weights are a trained Classifier's"
    if origin.kind == "loaded":
        random = len(origin.random_keys)
        loaded = len(classifier.network.state_dict()) - random
        text += f"; {loaded} tensors loaded from {origin.source or 'a file'}, {random} random"
        if reason := report.get("renewed"):
            text += f"; new is {reason}"
        elif reason := report.get("classes"):
            text += f"; {reason}"
    return text
