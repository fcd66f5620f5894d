"""The last layer alone, at once: features of every image, computed once, and the best linear classifier on them.

Learning by steps from given weights begins with it.
"""

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from vggkit.evaluation.predictions import Predictions
from vggkit.reports.progress import ProgressLine
from vggkit.reports.run_plots import plot_strengths
from vggkit.training.batches import weigh_classes
from vggkit.training.checkpoint import Epoch, Progress
from vggkit.training.estimates import describe, spell_duration
from vggkit.training.feature_cache import Features, extract_features
from vggkit.training.linear_probe import HeadSolution, solve_head
from vggkit.workflows.courses import (
    Course,
    Outcome,
    describe_epoch,
    estimate_memory_of,
    keep,
    list_weights,
    measure,
)


def learn_at_once(course: Course) -> Outcome:
    """The last layer alone: features of every image once, and the best linear classifier on them."""
    classifier, line = course.classifier, course.line
    started = time.monotonic()
    # All that it begins with; what is computed is kept with the features.
    course.checkpoints.keep(list_weights(classifier.network), Progress())
    line.log(describe(None, memory_bytes=estimate_memory_of(course)))
    found, solution = _solve(
        course, [split for split in course.dataset.splits if split in ("train", "val", "test")]
    )
    predictions = _answer(course, found, solution)
    epoch = _describe_solution(course, predictions, epoch=1, since=started)
    course.loggers.log((epoch,))
    line.log(describe_epoch(epoch, 1))
    classifier.card = keep(course, classifier.network, epoch=1).card
    course.checkpoints.close()
    plot_strengths(solution, course.directory / "regularisation.png", title=course.title)
    return Outcome((epoch,), 1, measure(course, predictions.__getitem__, chosen_from=1))


def begin_solved(course: Course) -> tuple[Epoch, float]:
    """The head solved and kept as epoch 0; gives that, and the root mean square of what the head reads."""
    course.line.log("the head begins solved on the given weights' features, and the layers below follow")
    begun = time.monotonic()
    found, solution = _solve(course, ["train", "val"])
    start = _describe_solution(course, _answer(course, found, solution), epoch=0, since=begun)
    keep(course, course.classifier.network, epoch=0)
    course.loggers.log((start,))
    course.line.log(describe_epoch(start, course.recipe.epochs) + "  kept")
    return start, float(np.sqrt(np.mean(np.square(found["train"].rows, dtype=np.float64))))


def _solve(course: Course, splits: Sequence[str]) -> tuple[dict[str, Features], HeadSolution]:
    """Features of some splits, and the last layer solved on those of `train` and put into the network."""
    classifier, recipe, line = course.classifier, course.recipe, course.line
    found = {
        split: extract_features(
            classifier,
            course.dataset.splits[split],
            recipe=recipe,
            device=course.device,
            # What figures are measured on is computed as `evaluate` does.
            precision="auto" if split == "train" else "fp32",
            views=recipe.views if split == "train" else 1,
            on_progress=_Pace(line, split).show,
            log=line.log,
        )
        for split in splits
    }
    train = found["train"]
    solution = solve_head(
        train.rows,
        train.targets,
        classes=len(classifier.labels),
        groups=train.groups,
        class_weights=_weigh(course),
        label_smoothing=recipe.label_smoothing,
        seed=recipe.seed,
        on_progress=lambda done, total: line.show("solving the head", done, total),
    )
    for sentence in solution.describe():
        line.log(sentence)
    last = classifier.network.classifier[-1]
    assert isinstance(last, torch.nn.Linear), "a last layer of two factors is not solved"
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(solution.weight))
        last.bias.copy_(torch.from_numpy(solution.bias))
    return found, solution


def _answer(course: Course, found: Mapping[str, Features], solution: HeadSolution) -> dict[str, Predictions]:
    """What the solved head makes of the features of each split; of `train` there may be several rows an image."""
    return {
        split: Predictions.of(
            features.rows @ solution.weight.T + solution.bias,
            features.targets,
            labels=course.classifier.labels,
            paths=None if split == "train" else [image.path for image in course.dataset.split(split)],
        )
        for split, features in found.items()
    }


def _weigh(course: Course) -> torch.Tensor | None:
    """What each class counts (K,); None: alike."""
    if course.recipe.balance != "weights":
        return None
    return weigh_classes(course.dataset.split("train"), course.classifier.labels)


def _describe_solution(
    course: Course, predictions: Mapping[str, Predictions], *, epoch: int, since: float
) -> Epoch:
    """A solved head as an epoch; its training loss is the one that was made small, but for the penalty."""
    train, weights = predictions["train"], _weigh(course)
    loss = F.cross_entropy(
        torch.from_numpy(train.log_probabilities).double(),
        torch.from_numpy(train.targets),
        weight=None if weights is None else weights.double(),
        label_smoothing=course.recipe.label_smoothing,
    )
    return Epoch(
        epoch=epoch,
        learning_rate=0.0,
        train_loss=loss.item(),
        val_loss=float(predictions["val"].losses.mean()),
        val_top1=float(predictions["val"].correct.mean()),
        seconds=time.monotonic() - since,
    )


class _Pace:
    """Shows how many features there are, and says after the first ones how long all of them will take."""

    def __init__(self, line: ProgressLine, split: str) -> None:
        self.line, self.split = line, split
        self.started, self.first = time.monotonic(), 0

    def show(self, done: int, total: int) -> None:
        """`done` images of `total` are over."""
        if not self.first:  # with these came the engine
            self.started, self.first = time.monotonic(), done
        elapsed = time.monotonic() - self.started
        if elapsed > 1 and self.first > 0:
            about = elapsed / (done - self.first) * (total - done)
            if about > 2:
                self.line.log(f"features of {self.split}: about {spell_duration(about)} left")
            self.first = -1
        self.line.show(f"features of {self.split}", done, total)
