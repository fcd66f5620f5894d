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
from torch import Tensor

from vggkit.engines.pytorch import PyTorchEngine
from vggkit.engines.stream import stream_results
from vggkit.errors import BadImage, BadInput, Stopped
from vggkit.hardware import derive_seed
from vggkit.images.dataset import ImageSample
from vggkit.interruption import Signals
from vggkit.models.vgg import VGG
from vggkit.training.augmentation import Mixing
from vggkit.training.batches import TrainingBatches
from vggkit.training.caller_settings import NO_SETTINGS, CallerSettings
from vggkit.training.checkpoint import Checkpoints, Epoch, Progress
from vggkit.training.distillation import Teacher
from vggkit.training.durations import Estimate, describe, estimate_seconds, spell_duration
from vggkit.training.estimates import estimate_memory
from vggkit.training.linear_probe import LinearProbe, fit_probe, needs_probe
from vggkit.training.objective import Objective, number_targets
from vggkit.training.optimizers import learning_rate_at
from vggkit.training.recipe import Monitor, Recipe, rank_epoch
from vggkit.training.train_state import TrainState
from vggkit.training.training_monitor import TrainingMonitor, watch_activity
from vggkit.weights.model import Model

MAX_ROLLBACKS: Final = 3
"""Number of rollbacks to the start of an epoch after which a training that diverges again fails."""
ESTIMATE_TOLERANCE: Final = 1.3
"""Ratio of measured to estimated time above which the remaining time is re-estimated, and its inverse below."""
MIN_REPORTED_SECONDS: Final = 5.0
"""Remaining time below which a new estimate is not logged."""
LR_DECAY_ON_DIVERGENCE: Final = 0.3
"""Factor of the learning rate after each rollback."""

State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """The callbacks of a training, and its stop signal."""

    on_step: Callable[[str, int, int | None], None] = lambda what, done, total: None
    """Called with the current task, how much of it is done, and of how much."""
    on_epoch: Callable[[tuple[Epoch, ...], VGG], None] = lambda history, network: None
    """Called after each epoch with all epochs so far and the network, as it is to be saved; before the state of
    the epoch is saved."""
    should_stop: Callable[[Epoch], object] = lambda epoch: False
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
            monitor,
            val_top1=epoch.val_top1,
            val_loss=epoch.val_loss,
            val_macro_f1=epoch.val_macro_f1,
            val_map=epoch.val_map,
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
            state: Every tensor of a training to continue, as `Checkpoints` saves them; None: a new one.
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
                self._save_initial_weights()
            state = None
            self.callbacks.log(
                "a linear probe first, as the last layer is random: it is solved on the loaded weights' features, "
                "and then all layers are fine-tuned"
            )
            probe = self._probe(("train", "val"), epoch=0)
            self.progress = replace(progress, history=(probe.epoch,))
            self.callbacks.on_epoch(self.progress.history, self.classifier.network)
            if self._should_stop():
                self.checkpoints.close()
                return FitResult(self.progress.history, probe.epoch.epoch)
            feature_scale = probe.feature_scale
        elif state is not None:
            feature_scale = float(state.get("feature_scale", torch.tensor(1.0)))
        self._prepare(feature_scale)
        if state is not None:
            self.train_state.restore(state)
        write_seconds = self._save_epoch_start()
        if state is None:
            self._log_estimate(write_seconds)
        self.callbacks.signals.defers_signals = True
        try:
            self._fit_by_steps()
        finally:
            self.callbacks.signals.defers_signals = False
        return FitResult(self.progress.history, find_best(self.progress.history, self.recipe.monitor).epoch)

    def _fit_last_layer(self) -> FitResult:
        """The last layer alone, on features of every image that are computed once."""
        self._save_initial_weights()  # its whole initial state; the features are cached on disk
        self.callbacks.log(describe(None, memory_bytes=self._estimate_memory()))
        probe = self._probe([split for split in self.splits if split in ("train", "val", "test")], epoch=1)
        self.callbacks.on_epoch((probe.epoch,), self.classifier.network)
        self.callbacks.should_stop(probe.epoch)  # it is the last one, whatever the callback returns
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
        """Set up everything that training steps need: batches, the state, the monitor."""
        classifier, recipe, train = self.classifier, self.recipe, self.splits["train"]
        self.train_state = TrainState(
            classifier.network,
            recipe,
            device=self.device,
            objective=Objective.of(recipe, train, classifier.labels, classifier.task),
            feature_scale=feature_scale,
            caller_settings=self.caller_settings,
            teacher=self.teacher,
        )
        self.batches = TrainingBatches.of(
            recipe,
            train,
            labels=classifier.labels,
            preprocessing=classifier.preprocessing,
            device=self.device,
            task=classifier.task,
        )
        self.mixing = Mixing.of(recipe, len(classifier.labels))
        counts = [Counter(label for image in split for label in image.classes) for split in (train, self.val)]
        train_counts, val_counts = ([count[label] for label in classifier.labels] for count in counts)
        self.monitor = TrainingMonitor(
            train_counts=train_counts if recipe.balance == "none" else [1] * len(train_counts),
            val_counts=val_counts,
            batch_norm=classifier.configuration.batch_norm,
            images=(len(train), len(self.val)) if classifier.task == "multi-label" else None,
        )

    def _estimate_memory(self) -> int:
        assert self.recipe.batch_size is not None, "the recipe is resolved"
        return estimate_memory(
            self.classifier.configuration,
            self.recipe,
            crop_pixels=self.classifier.preprocessing.crop_pixels,
            batch_size=self.recipe.batch_size,
        )

    def _save_epoch_start(self) -> float:
        """Save the state before an epoch, for a rollback if it diverges; returns the seconds of writing."""
        started, history = time.monotonic(), self.progress.history
        if self.progress.batches == 0 and (not history or history[-1].epoch < self.recipe.epochs):
            self._save()
        return time.monotonic() - started

    def _log_estimate(self, write_seconds: float) -> None:
        """Log the duration and the memory that trial steps give."""
        self.callbacks.on_step("estimating the duration", 0, None)
        preprocessing = self.classifier.preprocessing
        estimate = self._estimate = estimate_seconds(
            self.train_state, self.batches, self.val, preprocessing=preprocessing, write_seconds=write_seconds
        )
        self.callbacks.log(describe(estimate, memory_bytes=self._estimate_memory()))

    def _correct_estimate(self, epoch: Epoch) -> None:
        """After the first epoch, log the remaining time if the estimate was wrong."""
        estimate, self._estimate = self._estimate, None
        if estimate is None:
            return
        ratio = epoch.seconds / estimate.first_seconds
        left = (self.recipe.epochs - epoch.epoch) * estimate.later_seconds * ratio
        if left >= MIN_REPORTED_SECONDS and not 1 / ESTIMATE_TOLERANCE < ratio < ESTIMATE_TOLERANCE:
            self.callbacks.log(
                f"by this epoch's {spell_duration(epoch.seconds)}: about {spell_duration(left)} left"
            )

    def _fit_by_steps(self) -> None:
        """Epoch by epoch, from where `progress` is."""
        for epochs in range(1, len(self.progress.history) + 1):
            self.monitor.update(self.progress.history[:epochs], {})  # logged before the training was stopped
        while not self._is_over():
            try:
                dead = self._train_epoch()
                epoch = self._validate()
            except _Diverged as problem:
                self._roll_back(problem)
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
            self._save()
            for sentence in self.monitor.update(history, dead):
                self.callbacks.warn(sentence)
            if self._should_stop():
                break
        self.checkpoints.close()

    def _should_stop(self) -> bool:
        """Whether the caller ends the training with the epoch that is over."""
        epoch = self.progress.history[-1]
        enough = bool(self.callbacks.should_stop(epoch))
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

    def _train_epoch(self) -> dict[str, float]:
        """Train on the remaining batches of the epoch; returns each ReLU's share of dead channels at its end."""
        dead: dict[str, float] = {}
        self._clock = self._last_saved = time.monotonic()
        self._clock -= self.progress.seconds
        self.train_state.start_epoch(self.progress.epoch)
        for images, classes in self.batches.of_epoch(self.progress.epoch, start=self.progress.batches):
            is_last = self.progress.batches + 1 == len(self.batches)
            with watch_activity(self.train_state.compute_copy, dead) if is_last else nullcontext():
                self._train_batch(images, classes)
            self.callbacks.on_step("train", self.progress.batches, len(self.batches))
            self._pause()
        return dead

    def _train_batch(self, images: Tensor, classes: Tensor) -> None:
        """Train on one batch; a step follows it, or with accumulation the last of some batches."""
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

    def _validate(self) -> Epoch:
        """Evaluate the validation images in the precision of training; returns the metrics of the epoch."""
        progress = self.progress
        engine = PyTorchEngine(
            self.train_state.evaluated,
            self.device,
            precision="bf16" if self.recipe.precision == "bf16" else "fp32",
        )
        logits = []
        predictions = stream_results(
            engine, self.classifier.preprocessing, self.val, batch_size=self.recipe.batch_size or 32
        )
        for done, prediction in enumerate(predictions, start=1):
            if prediction.overflows:
                raise _Diverged(math.nan)
            if prediction.output is None:
                raise BadImage(f"{prediction.problem}; it could be read when the training began")
            logits.append(prediction.output)
            self.callbacks.on_step("validate", done, len(self.val))
            self._pause()
        targets = number_targets(self.val, self.classifier.labels, self.classifier.task)
        measured = Objective(self.classifier.task).measure(
            torch.from_numpy(np.stack(logits)).double(), torch.from_numpy(targets)
        )
        if not math.isfinite(measured.loss):
            raise _Diverged(measured.loss)
        return Epoch(
            epoch=progress.epoch,
            learning_rate=self._rate_at(progress.steps - 1),
            train_loss=progress.loss_sum / progress.weight,
            val_loss=measured.loss,
            val_top1=measured.top1,
            seconds=time.monotonic() - self._clock,
            val_macro_f1=measured.macro_f1,
            val_map=measured.map,
        )

    def _rate_at(self, step: int) -> float:
        steps_per_epoch = math.ceil(len(self.batches) / self.recipe.accumulate)
        return self.progress.rate_scale * learning_rate_at(
            step, recipe=self.recipe, steps_per_epoch=steps_per_epoch
        )

    def _pause(self) -> None:
        """Save the state if it is due, and stop if that is requested; between steps only."""
        stop = self.callbacks.signals.find_stop()
        if self.progress.batches % self.recipe.accumulate and self.progress.batches < len(self.batches):
            return
        now = time.monotonic()
        if stop or now - self._last_saved >= self.save_seconds:
            self.progress = replace(self.progress, seconds=now - self._clock)
            self._save()
            self._last_saved = time.monotonic()
        if stop:
            raise Stopped(stop)

    def _save_initial_weights(self) -> None:
        """Save the network alone, before anything is trained."""
        weights = self.classifier.network.state_dict()
        self.checkpoints.save({f"network/{key}": value for key, value in weights.items()}, Progress())

    def _save(self) -> None:
        self.checkpoints.save(self.train_state.state(), self.progress)

    def _roll_back(self, problem: "_Diverged") -> None:
        """Restore the state of the start of the epoch, and continue at a lower learning rate."""
        lower = self.progress.rate_scale * LR_DECAY_ON_DIVERGENCE
        epoch, done = self.progress.epoch, self.progress.batches
        rate = self._rate_at(max(0, self.progress.steps - (done == len(self.batches))))
        place = f"epoch {epoch}, after {done} of {len(self.batches)} batches"
        if done == len(self.batches):
            place = f"validation after epoch {epoch}"
        if self.progress.returns == MAX_ROLLBACKS:
            raise BadInput(
                f"the loss became {problem.loss} in {place}, at learning rate {rate:.2g}, "
                f"after {MAX_ROLLBACKS} rollbacks to lower rates: start again with --learning-rate "
                f"{rate * LR_DECAY_ON_DIVERGENCE:.1g}, or with the same network with batch norm, "
                "and check the images with `vggkit check`"
            ) from problem
        state, before = self.checkpoints.read_epoch()
        self.train_state.restore(state)
        self.progress = replace(before, rate_scale=lower, returns=self.progress.returns + 1)
        self._save()
        self.callbacks.warn(
            f"the loss became {problem.loss} in {place}: back to the start of the epoch, to continue at "
            f"{LR_DECAY_ON_DIVERGENCE:g} times the learning rate of {rate:.2g} "
            f"(rollback {self.progress.returns} of at most {MAX_ROLLBACKS})"
        )


class _Diverged(Exception):
    """The loss or its gradient is not finite."""

    def __init__(self, loss: float) -> None:
        super().__init__(loss)
        self.loss = loss
