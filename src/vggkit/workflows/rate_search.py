"""The learning rate looked for before a training, with an image of the search."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vggkit.errors import BadConfiguration
from vggkit.hardware import derive_seed
from vggkit.images.dataset import ImageSample
from vggkit.reports.lr_plot import plot_rate_search
from vggkit.reports.progress import ProgressLine
from vggkit.training.batches import TrainingBatches, weigh_classes
from vggkit.training.by_hand import SetByHand
from vggkit.training.lr_finder import find_learning_rate
from vggkit.training.mixing import Mixing
from vggkit.training.recipe import Recipe
from vggkit.weights.model import Model


def search_rate(
    classifier: Model,
    images: Sequence[ImageSample],
    recipe: Recipe,
    *,
    device: torch.device,
    by_hand: SetByHand,
    image: Path,
    line: ProgressLine,
) -> Recipe:
    """The settled recipe with the learning rate that a search suggests, where it suggests one.

    Args:
        classifier: About to be trained; it stays as it is.
        images: To learn from.
        recipe: Settled.
        device: Where to learn.
        by_hand: What the caller set on the network.
        image: A file for the image of the search.
        line: Hears what was found.

    Raises BadConfiguration where nothing learns by steps.
    """
    if recipe.trainable == "head":
        raise BadConfiguration(
            "trainable=head is solved at once and has no learning rate to look for; "
            "leave --find-learning-rate, or take --trainable top or all"
        )
    batches = TrainingBatches.of(
        recipe, images, labels=classifier.labels, preprocessing=classifier.preprocessing, device=device
    )
    search = find_learning_rate(
        classifier.network,
        _Mixed(batches, Mixing.of(recipe, len(classifier.labels)), recipe.seed),
        recipe,
        device=device,
        class_weights=weigh_classes(images, classifier.labels) if recipe.balance == "weights" else None,
        by_hand=by_hand,
        on_step=lambda done, total: line.show("looking for a learning rate", done, total),
    )
    plot_rate_search(search, image, title=f"{classifier.configuration.model}: looking for a learning rate")
    line.log(f"{search.why}; see {image}")
    return recipe if search.suggested is None else replace(recipe, learning_rate=search.suggested)


@dataclass(frozen=True, slots=True)
class _Mixed:
    """The first epoch's batches as the training will see them, as often as they are asked for."""

    batches: TrainingBatches
    mixing: Mixing | None
    seed: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number, (images, classes) in enumerate(self.batches.of_epoch(1)):
            if self.mixing is None:
                yield images, classes
            else:
                yield self.mixing(images, classes, seed=derive_seed(self.seed, "mix", number))
