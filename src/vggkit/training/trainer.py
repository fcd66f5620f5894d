"""The training loop: forward, backward, step, and after each epoch a look at the validation images.

Every draw depends on (seed, epoch, image, step) alone and every state can be written down, so a
training that was killed goes on to the very weights it would have had.

Shape letters: N images, K classes.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vggkit.engines.pytorch import PyTorchEngine
from vggkit.engines.stream import stream_results
from vggkit.errors import BadImage, BadInput, Stopped
from vggkit.hardware import derive_seed
from vggkit.images.dataset import ImageSample
from vggkit.training.batches import TrainingBatches
from vggkit.training.checkpoint import Checkpoints, Epoch, Progress
from vggkit.training.guards import Guards, watch_activity
from vggkit.training.learner import Learner
from vggkit.training.mixing import Mixing
from vggkit.training.recipe import Recipe
from vggkit.training.schedules import learning_rate_at
from vggkit.weights.model import Model

MOST_RETURNS: Final = 3
"""How often a training that diverges goes back before it gives up."""
LOWER: Final = 0.3
"""What the learning rate is multiplied by each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """Who hears of a training, and who may stop it."""

    on_step: Callable[[str, int, int], None] = lambda what, done, total: None
    """Called with what is done (`train`, `validate`), how much of it, and of how much."""
    log: Callable[[str], None] = lambda sentence: None
    """Hears what was noticed."""
    find_stop: Callable[[], int] = lambda: 0
    """Asked after every step: the signal that asks to stop, or 0."""


class Training:
    """A training that is going on: call `epochs` and take what it gives.

    Args:
        classifier: Says what the network is fed, and names the classes.
        train: Images to learn from.
        val: Images to measure each epoch on.
        recipe: A settled recipe.
        learner: The network, standing where `progress` says.
        progress: Where the training stands; `Progress()` for a new one, with an epoch 0 in its history where the
            start was measured.
        checkpoints: Where its states are kept.
        save_seconds: How often a state of the middle of an epoch is kept.
        callbacks: Who hears of it.
    """

    def __init__(
        self,
        classifier: Model,
        train: Sequence[ImageSample],
        val: Sequence[ImageSample],
        recipe: Recipe,
        *,
        learner: Learner,
        progress: Progress,
        checkpoints: Checkpoints,
        save_seconds: float = 300.0,
        callbacks: Callbacks = Callbacks(),
    ) -> None:
        self.classifier, self.val, self.recipe = classifier, val, recipe
        self.learner, self.progress, self.checkpoints = learner, progress, checkpoints
        self.save_seconds, self.callbacks = save_seconds, callbacks
        self.batches = TrainingBatches.of(
            recipe,
            train,
            labels=classifier.labels,
            preprocessing=classifier.preprocessing,
            device=learner.device,
        )
        self.mixing = Mixing.of(recipe, len(classifier.labels))
        counts = [Counter(str(image.label) for image in part) for part in (train, val)]
        learnt, measured = ([count[label] for label in classifier.labels] for count in counts)
        self.guards = Guards(
            learnt=learnt if recipe.balance == "none" else [1] * len(learnt),
            measured=measured,
            batch_norm=classifier.configuration.batch_norm,
        )

    def epochs(self) -> Iterator[Epoch]:
        """Learn, giving each epoch as it ends; its state is kept when the caller comes back for the next.

        Raises Stopped when asked to stop, BadInput when the loss diverges again and again, BadImage for an
        image that is gone, BadOutput for a disk that is full; the last state that was kept stays whole.
        """
        if replace(self.progress, history=()) == Progress():
            self._keep()
        for epochs in range(1, len(self.progress.history) + 1):
            self.guards.look(self.progress.history[:epochs], {})  # said before the training was stopped
        while not self._is_over():
            try:
                dead = self._learn()
                epoch = self._measure()
            except _Diverged as problem:
                self._go_back(problem)
                continue
            yield epoch
            self.progress = replace(
                Progress(),
                epoch=epoch.epoch + 1,
                steps=self.progress.steps,
                rate_scale=self.progress.rate_scale,
                returns=self.progress.returns,
                history=(*self.progress.history, epoch),
            )
            self._keep()
            for sentence in self.guards.look(self.progress.history, dead):
                self.callbacks.log(sentence)
        self.checkpoints.close()

    def _is_over(self) -> bool:
        history, patience = self.progress.history, self.recipe.patience
        if not history or history[-1].epoch < 1:
            return False
        if history[-1].epoch >= self.recipe.epochs:
            return True
        if patience is None:
            return False
        best = min(history, key=lambda epoch: epoch.val_loss)
        if history[-1].epoch - best.epoch < patience:
            return False
        self.callbacks.log(
            f"stopped early: {patience} epochs without a better validation loss than epoch {best.epoch}'s"
        )
        return True

    def _learn(self) -> dict[str, float]:
        """What is left of the epoch's batches; gives the dead share of each ReLU in the last one."""
        dead: dict[str, float] = {}
        self._clock = self._kept = time.monotonic()
        self._clock -= self.progress.seconds
        self.learner.start_epoch(self.progress.epoch)
        for images, classes in self.batches.of_epoch(self.progress.epoch, start=self.progress.batches):
            is_last = self.progress.batches + 1 == len(self.batches)
            with watch_activity(self.learner.worker, dead) if is_last else nullcontext():
                self._learn_batch(images, classes)
            self.callbacks.on_step("train", self.progress.batches, len(self.batches))
            self._pause()
        return dead

    def _learn_batch(self, images: Tensor, classes: Tensor) -> None:
        """One batch; a step follows it, or with accumulation the last of some batches."""
        progress, recipe = self.progress, self.recipe
        place = progress.batches % recipe.accumulate
        together = min(recipe.accumulate, len(self.batches) - progress.batches + place)
        draw = (progress.epoch - 1) * len(self.batches) + progress.batches
        targets = classes
        if self.mixing is not None:
            images, targets = self.mixing(images, classes, seed=derive_seed(recipe.seed, "mix", draw))

        loss, weight = self.learner.compute(images, targets, draw=draw).item(), self.learner.weigh(targets)
        steps = progress.steps
        if place + 1 == together:
            finite = self.learner.step(self._rate_at(steps), number=steps)
            steps += 1
        else:
            finite = True
        if not (math.isfinite(loss) and finite):
            raise _Diverged(loss)

        self.progress = replace(
            progress,
            batches=progress.batches + 1,
            steps=steps,
            loss_sum=progress.loss_sum + loss * weight,
            weight=progress.weight + weight,
        )

    def _measure(self) -> Epoch:
        """The epoch's figures, with those of the validation images in the precision that is trained in."""
        progress, labels = self.progress, self.classifier.labels
        engine = PyTorchEngine(
            self.learner.kept,
            self.learner.device,
            precision="bf16" if self.recipe.precision == "bf16" else "fp32",
        )
        numbers = {label: number for number, label in enumerate(labels)}
        logits, targets = [], []
        predictions = stream_results(
            engine, self.classifier.preprocessing, self.val, batch_size=self.recipe.batch_size or 32
        )
        for done, answer in enumerate(predictions, start=1):
            if answer.overflows:
                raise _Diverged(math.nan)
            if answer.output is None:
                raise BadImage(f"{answer.problem}; it could be read when the training began")
            logits.append(answer.output)
            targets.append(numbers[str(answer.image.label)])
            self.callbacks.on_step("validate", done, len(self.val))
            self._pause()
        scores, right = torch.from_numpy(np.stack(logits)).double(), torch.tensor(targets)
        val_loss = F.cross_entropy(scores, right).item()
        if not math.isfinite(val_loss):
            raise _Diverged(val_loss)
        return Epoch(
            epoch=progress.epoch,
            learning_rate=self._rate_at(progress.steps - 1),
            train_loss=progress.loss_sum / progress.weight,
            val_loss=val_loss,
            val_top1=(scores.argmax(1) == right).double().mean().item(),
            seconds=time.monotonic() - self._clock,
        )

    def _rate_at(self, step: int) -> float:
        steps_per_epoch = math.ceil(len(self.batches) / self.recipe.accumulate)
        return self.progress.rate_scale * learning_rate_at(
            step, recipe=self.recipe, steps_per_epoch=steps_per_epoch
        )

    def _pause(self) -> None:
        """Keep the state where it is time to, and stop where that is asked; between steps only."""
        stop = self.callbacks.find_stop()
        if self.progress.batches % self.recipe.accumulate and self.progress.batches < len(self.batches):
            return
        now = time.monotonic()
        if stop or now - self._kept >= self.save_seconds:
            self.progress = replace(self.progress, seconds=now - self._clock)
            self._keep()
            self._kept = time.monotonic()
        if stop:
            raise Stopped(stop)

    def _keep(self) -> None:
        self.checkpoints.keep(self.learner.state(), self.progress)

    def _go_back(self, problem: "_Diverged") -> None:
        """To the start of the epoch, and on at a lower rate."""
        lower = self.progress.rate_scale * LOWER
        epoch, done = self.progress.epoch, self.progress.batches
        rate = self._rate_at(max(0, self.progress.steps - (done == len(self.batches))))
        place = f"epoch {epoch}, after {done} of {len(self.batches)} batches"
        if done == len(self.batches):
            place = f"validation after epoch {epoch}"
        if self.progress.returns == MOST_RETURNS:
            raise BadInput(
                f"the loss became {problem.loss} in {place}, at learning rate {rate:.2g}, and {MOST_RETURNS} lower "
                f"ones did not help: begin again with --learning-rate {rate * LOWER:.1g}, or with the same network "
                "with batch norm, and look at the images with `vggkit check`"
            ) from problem
        state, before = self.checkpoints.read_epoch()
        self.learner.restore(state)
        self.progress = replace(before, rate_scale=lower, returns=self.progress.returns + 1)
        self._keep()
        self.callbacks.log(
            f"the loss became {problem.loss} in {place}: back to the start of the epoch, and on at {LOWER:g} times "
            f"the learning rate of {rate:.2g} (return {self.progress.returns} of {MOST_RETURNS} at most)"
        )


class _Diverged(Exception):
    """The loss or its gradient is no number any more."""

    def __init__(self, loss: float) -> None:
        super().__init__(loss)
        self.loss = loss
