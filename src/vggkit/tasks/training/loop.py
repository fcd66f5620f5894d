"""The training loop: forward, backward, step, and after each epoch a look at the validation pictures.

Shape letters: N pictures, K classes.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vggkit.engines.pytorch import PyTorchEngine
from vggkit.engines.stream import stream_answers
from vggkit.errors import BadInput
from vggkit.hardware import derive_seed
from vggkit.images.pictures import Picture
from vggkit.networks.classifier import Classifier
from vggkit.tasks.training.augmentation import View
from vggkit.tasks.training.batches import TrainingBatches
from vggkit.tasks.training.optimizers import build_optimizer, learning_rate_at
from vggkit.tasks.training.recipe import Recipe

OnStep = Callable[[str, int, int], None]
"""Called with what is done (`train`, `validate`), how much of it, and of how much."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch gave; the columns of `metrics.csv`."""

    epoch: int
    """Counted from 1."""
    learning_rate: float
    """Rate of its last step."""
    train_loss: float
    """Mean cross-entropy in nats of the training pictures as they were seen, while learning."""
    val_loss: float
    """Mean cross-entropy of the validation pictures, after it."""
    val_top1: float
    """Share in [0, 1] of validation pictures whose best class is right, after it."""
    seconds: float
    """Its duration."""


def fit(
    classifier: Classifier,
    train: Sequence[Picture],
    val: Sequence[Picture],
    recipe: Recipe,
    *,
    device: torch.device,
    on_step: OnStep,
) -> Iterator[Epoch]:
    """Train the Classifier's network in place, giving each Epoch as it ends.

    Args:
        classifier: Its network learns.
        train: Pictures to learn from.
        val: Pictures to measure each epoch on.
        recipe: A settled recipe: its learning rate and augmentation are chosen.
        device: Where to train.
        on_step: Hears of every step.

    Raises BadInput when the loss is not a number any more, and BadImage.
    """
    network = classifier.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = TrainingBatches(
        train,
        labels=classifier.labels,
        preprocessing=classifier.preprocessing,
        view=View.of(recipe.augmentation, classifier.preprocessing),
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        device=device,
    )
    optimizer = build_optimizer(network, recipe)
    step = 0
    for epoch in range(1, recipe.epochs + 1):
        started, total, seen, rate = time.perf_counter(), 0.0, 0, 0.0
        network.train()
        for position, (images, classes) in enumerate(batches.of_epoch(epoch), start=1):
            rate = learning_rate_at(step, recipe=recipe, steps_per_epoch=len(batches))
            for group in optimizer.param_groups:
                group["lr"] = rate
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)  # noqa: PLW2901
            classes = classes.to(device, non_blocking=True)  # noqa: PLW2901

            # Dropout draws from torch's generator; the state around is left as it was.
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(derive_seed(recipe.seed, "dropout", step))
                logits = network(images)
            loss = F.cross_entropy(logits, classes, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
            optimizer.step()

            value = loss.item()
            _check_finite(value, recipe, f"epoch {epoch}, step {position}")
            total, seen, step = total + value * len(classes), seen + len(classes), step + 1
            on_step("train", position, len(batches))
        val_loss, val_top1 = _measure(classifier, val, recipe.batch_size, device, on_step)
        _check_finite(val_loss, recipe, f"validation after epoch {epoch}")
        yield Epoch(epoch, rate, total / seen, val_loss, val_top1, time.perf_counter() - started)


def _check_finite(loss: float, recipe: Recipe, place: str) -> None:
    rate = recipe.learning_rate
    assert rate is not None, "the recipe is settled"
    if not math.isfinite(loss):
        raise BadInput(
            f"the loss became {loss} in {place}, at learning rate {rate:g}: "
            f"start again with a lower one, such as --learning-rate {rate / 3:.1g}"
        )


def _measure(
    classifier: Classifier, pictures: Sequence[Picture], batch_size: int, device: torch.device, on_step: OnStep
) -> tuple[float, float]:
    """Mean cross-entropy and share of right answers."""
    engine = PyTorchEngine(classifier.network, device)
    numbers = {label: number for number, label in enumerate(classifier.labels)}
    logits, targets = [], []
    answers = stream_answers(engine, classifier.preprocessing, pictures, batch_size=batch_size)
    for done, answer in enumerate(answers, start=1):
        if answer.output is not None:
            logits.append(answer.output)
            targets.append(numbers[str(answer.picture.label)])
        on_step("validate", done, len(pictures))
    scores, right = torch.from_numpy(np.stack(logits)), torch.tensor(targets)
    return F.cross_entropy(scores.double(), right).item(), (scores.argmax(1) == right).float().mean().item()
