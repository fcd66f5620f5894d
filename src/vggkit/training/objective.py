"""What a training minimises, and the targets of its images, for each kind of classification.

Single-label: the cross-entropy of the softmax with the number of each image's class. Multi-label: the mean binary
cross-entropy of the sigmoid of every logit with 0 or 1 for every class (Boutell et al. 2004, "Learning multi-label
scene classification"), each class a problem of its own.

Shape letters: N images, K classes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vggkit.images.dataset import ImageSample
from vggkit.images.lazy_images import LazyImages
from vggkit.task import USUAL_THRESHOLD, Task
from vggkit.training.recipe import Recipe

MOST_WEIGHT: Final = 100.0
"""Largest weight of a rare label's images: more would make single images decide."""


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """The loss of logits (N, K) and targets, for one task.

    Targets are class numbers (N,), int64, or shares of each class (N, K), float32; multi-label they are 0 or 1 for
    each class (N, K), float32.
    """

    task: Task = "single-label"
    """Softmax or sigmoids."""
    label_smoothing: float = 0.0
    """Share in [0, 1) of the target that is spread over all classes; multi-label over yes and no of each class."""
    weights: Tensor | None = None
    """(K,), float32: what an image of each class counts; multi-label what an image that has the label counts beside
    one that has not. None: all count the same."""

    @classmethod
    def of(cls, recipe: Recipe, images: Sequence[ImageSample], labels: Sequence[str], task: Task) -> Self:
        """The objective of a resolved recipe for these training images."""
        weights = None
        if recipe.balance == "weights":
            weights = weigh_classes(images, labels) if task == "single-label" else weigh_positives(images, labels)
        return cls(task, recipe.label_smoothing, weights)

    def compute(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss in nats, a scalar: with the weights and the smoothing."""
        weights = None if self.weights is None else self.weights.to(logits)
        if self.task == "single-label":
            return F.cross_entropy(logits, targets, weight=weights, label_smoothing=self.label_smoothing)
        smoothed = targets.to(logits) * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights)

    def measure(self, logits: Tensor, targets: Tensor) -> "Measured":
        """The plain loss, without weights and smoothing, and what is measured after an epoch."""
        loss = Objective(self.task).compute(logits, targets).item()
        classes = logits.shape[1]
        best = logits.argmax(1)
        if self.task == "single-label":
            top1 = (best == targets).double().mean().item()
            return Measured(loss, top1, measure_macro_f1(best, targets, classes=classes), None)
        hits = targets.gather(1, best[:, None])[:, 0]
        return Measured(
            loss,
            hits.double().mean().item(),
            _measure_decisions(logits.sigmoid() >= USUAL_THRESHOLD, targets > 0),
            measure_map(logits.numpy(), targets.numpy()),
        )

    def weigh(self, targets: Tensor) -> float:
        """The weight of a batch in a mean over several: its number of images, or the sum of their class weights.

        As in torch's `cross_entropy`, shares of classes (N, K) count alike; so do multi-label targets.
        """
        if self.weights is None or targets.dim() == 2:
            return float(len(targets))
        return float(self.weights.double().cpu()[targets.cpu()].sum())


@dataclass(frozen=True, slots=True)
class Measured:
    """What an epoch's validation images give."""

    loss: float
    """Mean loss in nats, with equal weights and without smoothing."""
    top1: float
    """Share in [0, 1] of images whose most probable class is theirs; multi-label one of theirs."""
    macro_f1: float
    """Mean F1 of the classes that there are images of; multi-label at a probability of 0.5."""
    map: float | None
    """Multi-label: mean average precision of these classes; None for single-label."""


def number_targets(images: Sequence[ImageSample], labels: Sequence[str], task: Task) -> NDArray[Any]:
    """Targets of images: class numbers (N,), int64; multi-label 0 or 1 for each class (N, K), float32."""
    if isinstance(images, LazyImages):
        return images.number_classes(labels)
    numbers = {label: number for number, label in enumerate(labels)}
    if task == "single-label":
        return np.array([numbers[str(image.label)] for image in images], np.int64)
    targets = np.zeros((len(images), len(labels)), np.float32)
    for row, image in enumerate(images):
        for label in image.classes:
            targets[row, numbers[label]] = 1
    return targets


def count_labels(images: Sequence[ImageSample], labels: Sequence[str]) -> list[int]:
    """The number of images of each class, (K,)."""
    if isinstance(images, LazyImages):
        counted: list[int] = np.bincount(images.number_classes(labels), minlength=len(labels)).tolist()
        return counted
    counts = Counter(label for image in images for label in image.classes)
    return [counts[label] for label in labels]


def weigh_classes(images: Sequence[ImageSample], labels: Sequence[str]) -> Tensor:
    """The weight of each class, (K,), float32: inverse to its frequency, with a mean of 1 over the images.

    A class without images counts 1.
    """
    counts = np.bincount(number_targets(images, labels, "single-label"), minlength=len(labels))
    weights = len(images) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.from_numpy(np.where(counts > 0, weights, 1.0).astype(np.float32))


def weigh_positives(images: Sequence[ImageSample], labels: Sequence[str]) -> Tensor:
    """(K,), float32: images without each label by image with it, so that both count as much; at most 100.

    A label that no image or every image has counts 1.
    """
    positives = number_targets(images, labels, "multi-label").sum(0)
    negatives = len(images) - positives
    ratios = np.minimum(negatives / np.maximum(positives, 1), MOST_WEIGHT)
    return torch.from_numpy(np.where((positives > 0) & (negatives > 0), ratios, 1.0).astype(np.float32))


def measure_macro_f1(predicted: Tensor, targets: Tensor, *, classes: int) -> float:
    """Mean F1 in [0, 1] of the classes that there are images of; predicted and targets are (N,) class numbers."""
    return _measure_decisions(F.one_hot(predicted, classes) > 0, F.one_hot(targets, classes) > 0)


def _measure_decisions(decided: Tensor, true: Tensor) -> float:
    """Mean F1 in [0, 1] of the classes that there are images of, of decisions (N, K)."""
    hits = (decided & true).sum(0).double()
    there = true.sum(0)
    f1 = 2 * hits / (decided.sum(0) + there).clamp(min=1)
    return float(f1[there > 0].mean()) if bool((there > 0).any()) else 0.0


def measure_map(scores: NDArray[np.floating[Any]], targets: NDArray[Any]) -> float:
    """Mean average precision in [0, 1] of the classes that occur: scikit-learn's average_precision_score of each.

    Args:
        scores: (N, K), higher for a class that is more probable.
        targets: (N, K), above 0 where the image has the label.
    """
    found = []
    for score, true in zip(scores.T, targets.T > 0, strict=True):
        if not true.any():
            continue
        order = np.argsort(-score, kind="stable")
        last = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)  # of equal scores
        hits = true[order].cumsum()[last]
        found.append(float(np.sum(np.diff(hits, prepend=0) * hits / (last + 1)) / hits[-1]))
    return float(np.mean(found)) if found else 0.0
