"""The training loop: forward, backward, step, and after each epoch the validation images.

Every random draw depends on (seed, epoch, image, step) alone and every state can be saved, so a training that was
killed continues to the very weights it would have had.

Shape letters: N images, K classes.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
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
from vggkit.interruption import Signals
from vggkit.models.vgg import VGG
from vggkit.training.augmentation import Mixing
from vggkit.training.batches import TrainingBatches, weigh_classes
from vggkit.training.caller_settings import NO_SETTINGS, CallerSettings
from vggkit.training.checkpoint import Checkpoints, Epoch, Progress, measure_macro_f1
from vggkit.training.distillation import Teacher
from vggkit.training.durations import Estimate, describe, estimate_seconds, spell_duration
from vggkit.training.estimates import estimate_memory
from vggkit.training.guards import Guards, watch_activity
from vggkit.training.linear_probe import LinearProbe, fit_probe, needs_probe
from vggkit.training.optimizers import learning_rate_at
from vggkit.training.recipe import Monitor, Recipe, rank_epoch
from vggkit.training.train_state import TrainState
from vggkit.weights.model import Model

MOST_RETURNS: Final = 3
"""How often a training that diverges returns to the start of the epoch before training fails."""
TOLERATED: Final = 1.3
"""Factor by which an epoch may differ from the estimate before the remaining time is estimated again."""
MENTIONED_SECONDS: Final = 5.0
"""Time left below which that is not worth a line."""
LOWER: Final = 0.3
"""Factor of the learning rate after each return."""

State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """The callbacks of a training, and its stop signal."""

    on_step: Callable[[str, int, int | None], None] = lambda what, done, total: None
    """Called with the current task, how much of it is done, and of how much."""
    on_epoch: Callable[[tuple[Epoch, ...], VGG], None] = lambda history, network: None
    """Called after each epoch with all epochs so far and the network, as it is to be saved; before the state of
    the epoch is saved."""
    is_enough: Callable[[Epoch], object] = lambda epoch: False
    """Called after each epoch, when its state is saved; a true value ends the training."""
    log: Callable[[str], None] = lambda sentence: None
    """Called with messages, as sentences."""
    warn: Callable[[str], None] = lambda sentence: None
    """Called with warnings about the training, as sentences."""
    signals: Signals = field(default_factory=Signals)
    """A training that is requested to stop saves its state between two steps, and raises Stopped."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """The result of a training."""

    history: tuple[Epoch, ...]
    """Every epoch; a linear probe alone is one epoch."""
    best_epoch: int
    """The number of the best one, by the recipe's `monitor`."""
    probe: LinearProbe | None = None
    """The linear probe, with the logits of each split, where the last layer alone was trained."""


def find_best(history: Sequence[Epoch], monitor: Monitor) -> Epoch:
    """The epoch of the best monitored figure, of these of the lowest validation loss, and of these the first."""
    return max(
        history,
        key=lambda epoch: rank_epoch(
            monitor, val_top1=epoch.val_top1, val_loss=epoch.val_loss, val_macro_f1=epoch.val_macro_f1
        ),
    )


class Trainer:
    """Trains a Classifier's network, in place: call `fit`.

    Args:
        classifier: The network, with its preprocessing and class names.
        splits: Readable images of `train`, `val`, on which each epoch is evaluated, and optionally `test`.
        recipe: A resolved recipe.
        device: Where to train.
        checkpoints: Where states are saved.
        caller_settings: Settings of the network that training preserves.
        teacher: A trained network that it learns from beside the labels; not where the last layer alone is trained.
        save_seconds: How often, in seconds, a state within an epoch is saved.
        callbacks: Functions that are called during the training.
    """

    def __init__(
        self,
        classifier: Model,
        splits: Mapping[str, Sequence[ImageSample]],
        recipe: Recipe,
        *,
        device: torch.device,
        checkpoints: Checkpoints,
        caller_settings: CallerSettings = NO_SETTINGS,
        teacher: Teacher | None = None,
        save_seconds: float = 300.0,
        callbacks: Callbacks = Callbacks(),
    ) -> None:
        self.classifier, self.splits, self.recipe = classifier, splits, recipe
        self.device, self.checkpoints, self.caller_settings = device, checkpoints, caller_settings
        self.teacher, self.save_seconds, self.callbacks = teacher, save_seconds, callbacks
        self.val = splits["val"]
        self.progress = Progress()
        self._estimate: Estimate | None = None

    def fit(self, state: State | None = None, *, progress: Progress = Progress()) -> FitResult:  # noqa: B008 (frozen)
        """Train to the end.

        Args:
            state: Every tensor of a training to continue, as `Checkpoints` keeps them; None: a new one.
            progress: How far that was.

        Raises Stopped when requested to stop, BadInput when the loss diverges again and again, BadImage for an
        image that no longer exists, BadOutput for a disk that is full; the last saved state stays complete.
        """
        self.progress = progress
        if self.recipe.trainable == "head":
            return self._fit_last_layer()
        feature_scale = 1.0
        if progress == Progress() and needs_probe(self.classifier, self.caller_settings):
            if state is None:  # what it begins with, in case it is stopped before the first step
                self._keep_start()
            state = None
            self.callbacks.log(
                "a linear probe first, as the last layer is random: it is solved on the loaded weights' features, "
                "and then all layers are fine-tuned"
            )
            probe = self._probe(("train", "val"), epoch=0)
            self.progress = replace(progress, history=(probe.epoch,))
            self.callbacks.on_epoch(self.progress.history, self.classifier.network)
            if self._is_enough():
                self.checkpoints.close()
                return FitResult(self.progress.history, probe.epoch.epoch)
            feature_scale = probe.feature_scale
        elif state is not None:
            feature_scale = float(state.get("feature_scale", torch.tensor(1.0)))
        self._prepare(feature_scale)
        if state is not None:
            self.train_state.restore(state)
        keep_seconds = self._keep_beginning()
        if state is None:
            self._log_estimate(keep_seconds)
        self.callbacks.signals.patient = True
        try:
            self._fit_by_steps()
        finally:
            self.callbacks.signals.patient = False
        return FitResult(self.progress.history, find_best(self.progress.history, self.recipe.monitor).epoch)

    def _fit_last_layer(self) -> FitResult:
        """The last layer alone, on features of every image that are computed once."""
        self._keep_start()  # its whole initial state; the features are cached on disk
        self.callbacks.log(describe(None, memory_bytes=self._estimate_memory()))
        probe = self._probe([split for split in self.splits if split in ("train", "val", "test")], epoch=1)
        self.callbacks.on_epoch((probe.epoch,), self.classifier.network)
        self.callbacks.is_enough(probe.epoch)  # it is the last one, whatever the callback returns
        self.checkpoints.close()
        return FitResult((probe.epoch,), 1, probe)

    def _probe(self, splits: Sequence[str], *, epoch: int) -> LinearProbe:
        return fit_probe(
            self.classifier,
            {split: self.splits[split] for split in splits},
            self.recipe,
            device=self.device,
            epoch=epoch,
            on_progress=self.callbacks.on_step,
            log=self.callbacks.log,
        )

    def _prepare(self, feature_scale: float) -> None:
        """Set up everything that training steps need: batches, the state, guards."""
        classifier, recipe, train = self.classifier, self.recipe, self.splits["train"]
        self.train_state = TrainState(
            classifier.network,
            recipe,
            device=self.device,
            class_weights=weigh_classes(train, classifier.labels) if recipe.balance == "weights" else None,
            feature_scale=feature_scale,
            caller_settings=self.caller_settings,
            teacher=self.teacher,
        )
        self.batches = TrainingBatches.of(
            recipe, train, labels=classifier.labels, preprocessing=classifier.preprocessing, device=self.device
        )
        self.mixing = Mixing.of(recipe, len(classifier.labels))
        counts = [Counter(str(image.label) for image in split) for split in (train, self.val)]
        learnt, measured = ([count[label] for label in classifier.labels] for count in counts)
        self.guards = Guards(
            learnt=learnt if recipe.balance == "none" else [1] * len(learnt),
            measured=measured,
            batch_norm=classifier.configuration.batch_norm,
        )

    def _estimate_memory(self) -> int:
        assert self.recipe.batch_size is not None, "the recipe is resolved"
        return estimate_memory(
            self.classifier.configuration,
            self.recipe,
            crop_pixels=self.classifier.preprocessing.crop_pixels,
            batch_size=self.recipe.batch_size,
        )

    def _keep_beginning(self) -> float:
        """The state before an epoch, to which one that diverges goes back; gives the seconds that writing took."""
        started, history = time.monotonic(), self.progress.history
        if self.progress.batches == 0 and (not history or history[-1].epoch < self.recipe.epochs):
            self._keep()
        return time.monotonic() - started

    def _log_estimate(self, keep_seconds: float) -> None:
        """How long it will take and how much memory, by some trial steps."""
        self.callbacks.on_step("estimating the duration", 0, None)
        fed = self.classifier.preprocessing
        estimate = self._estimate = estimate_seconds(
            self.train_state, self.batches, self.val, preprocessing=fed, keep_seconds=keep_seconds
        )
        self.callbacks.log(describe(estimate, memory_bytes=self._estimate_memory()))

    def _correct_estimate(self, epoch: Epoch) -> None:
        """After the first epoch, how long the others will take, where that was estimated wrongly."""
        estimate, self._estimate = self._estimate, None
        if estimate is None:
            return
        ratio = epoch.seconds / estimate.first_seconds
        left = (self.recipe.epochs - epoch.epoch) * estimate.later_seconds * ratio
        if left >= MENTIONED_SECONDS and not 1 / TOLERATED < ratio < TOLERATED:
            self.callbacks.log(
                f"by this epoch's {spell_duration(epoch.seconds)}: about {spell_duration(left)} left"
            )

    def _fit_by_steps(self) -> None:
        """Epoch by epoch, from where `progress` is."""
        for epochs in range(1, len(self.progress.history) + 1):
            self.guards.look(self.progress.history[:epochs], {})  # logged before the training was stopped
        while not self._is_over():
            try:
                dead = self._learn()
                epoch = self._measure()
            except _Diverged as problem:
                self._go_back(problem)
                continue
            history = (*self.progress.history, epoch)
            self.callbacks.on_epoch(history, self.train_state.evaluated)
            self._correct_estimate(epoch)
            self.progress = replace(
                Progress(),
                epoch=epoch.epoch + 1,
                steps=self.progress.steps,
                rate_scale=self.progress.rate_scale,
                returns=self.progress.returns,
                history=history,
            )
            self._keep()
            for sentence in self.guards.look(history, dead):
                self.callbacks.warn(sentence)
            if self._is_enough():
                break
        self.checkpoints.close()

    def _is_enough(self) -> bool:
        """Whether the caller ends the training with the epoch that is over."""
        epoch = self.progress.history[-1]
        enough = bool(self.callbacks.is_enough(epoch))
        if enough and epoch.epoch < self.recipe.epochs:
            self.callbacks.log(f"stopped after epoch {epoch.epoch}, as on_epoch requested")
        return enough

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
        """The remaining batches of the epoch; returns the proportion of dead units of each ReLU in the last one."""
        dead: dict[str, float] = {}
        self._clock = self._kept = time.monotonic()
        self._clock -= self.progress.seconds
        self.train_state.start_epoch(self.progress.epoch)
        for images, classes in self.batches.of_epoch(self.progress.epoch, start=self.progress.batches):
            is_last = self.progress.batches + 1 == len(self.batches)
            with watch_activity(self.train_state.compute_copy, dead) if is_last else nullcontext():
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

        loss, weight = self.train_state.compute(images, targets, draw=draw).item(), self.train_state.weigh(targets)
        steps = progress.steps
        if place + 1 == together:
            finite = self.train_state.step(self._rate_at(steps), number=steps)
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
        """The metrics of the epoch, with those of the validation images in the precision of training."""
        progress, labels = self.progress, self.classifier.labels
        engine = PyTorchEngine(
            self.train_state.evaluated,
            self.device,
            precision="bf16" if self.recipe.precision == "bf16" else "fp32",
        )
        numbers = {label: number for number, label in enumerate(labels)}
        logits, targets = [], []
        predictions = stream_results(
            engine, self.classifier.preprocessing, self.val, batch_size=self.recipe.batch_size or 32
        )
        for done, prediction in enumerate(predictions, start=1):
            if prediction.overflows:
                raise _Diverged(math.nan)
            if prediction.output is None:
                raise BadImage(f"{prediction.problem}; it could be read when the training began")
            logits.append(prediction.output)
            targets.append(numbers[str(prediction.image.label)])
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
            val_macro_f1=measure_macro_f1(scores.argmax(1), right, classes=len(labels)),
        )

    def _rate_at(self, step: int) -> float:
        steps_per_epoch = math.ceil(len(self.batches) / self.recipe.accumulate)
        return self.progress.rate_scale * learning_rate_at(
            step, recipe=self.recipe, steps_per_epoch=steps_per_epoch
        )

    def _pause(self) -> None:
        """Save the state where it is due, and stop where that is requested; between steps only."""
        stop = self.callbacks.signals.find_stop()
        if self.progress.batches % self.recipe.accumulate and self.progress.batches < len(self.batches):
            return
        now = time.monotonic()
        if stop or now - self._kept >= self.save_seconds:
            self.progress = replace(self.progress, seconds=now - self._clock)
            self._keep()
            self._kept = time.monotonic()
        if stop:
            raise Stopped(stop)

    def _keep_start(self) -> None:
        """The network alone, before anything is trained."""
        weights = self.classifier.network.state_dict()
        self.checkpoints.keep({f"network/{key}": value for key, value in weights.items()}, Progress())

    def _keep(self) -> None:
        self.checkpoints.keep(self.train_state.state(), self.progress)

    def _go_back(self, problem: "_Diverged") -> None:
        """Return to the start of the epoch, and continue at a lower rate."""
        lower = self.progress.rate_scale * LOWER
        epoch, done = self.progress.epoch, self.progress.batches
        rate = self._rate_at(max(0, self.progress.steps - (done == len(self.batches))))
        place = f"epoch {epoch}, after {done} of {len(self.batches)} batches"
        if done == len(self.batches):
            place = f"validation after epoch {epoch}"
        if self.progress.returns == MOST_RETURNS:
            raise BadInput(
                f"the loss became {problem.loss} in {place}, at learning rate {rate:.2g}, and {MOST_RETURNS} lower "
                f"ones did not help: start again with --learning-rate {rate * LOWER:.1g}, or with the same network "
                "with batch norm, and check the images with `vggkit check`"
            ) from problem
        state, before = self.checkpoints.read_epoch()
        self.train_state.restore(state)
        self.progress = replace(before, rate_scale=lower, returns=self.progress.returns + 1)
        self._keep()
        self.callbacks.warn(
            f"the loss became {problem.loss} in {place}: back to the start of the epoch, to continue at {LOWER:g} "
            f"times the learning rate of {rate:.2g} (return {self.progress.returns} of {MOST_RETURNS} at most)"
        )


class _Diverged(Exception):
    """The loss or its gradient is not finite."""

    def __init__(self, loss: float) -> None:
        super().__init__(loss)
        self.loss = loss
