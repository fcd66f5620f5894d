"""The training loop: forward, backward, step, and after each epoch the validation images.

Every random draw depends on (seed, epoch, image, step) alone and every state can be saved, so a training that was
killed continues to the very weights it would have had.

Shape letters: N images, K classes.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from vggkit.errors import BadInput, Stopped
from vggkit.images.dataset import ImageSample
from vggkit.training.callbacks import Callbacks, FitResult, find_best, is_over
from vggkit.training.caller_settings import NO_SETTINGS, CallerSettings
from vggkit.training.checkpoint import Checkpoints, Epoch, Progress
from vggkit.training.distillation import Teacher
from vggkit.training.distributed.process_group import SINGLE, ProcessGroup
from vggkit.training.durations import Estimate, describe, estimate_seconds
from vggkit.training.estimates import estimate_memory
from vggkit.training.linear_probe import LinearProbe, fit_probe, needs_probe
from vggkit.training.objective import count_labels
from vggkit.training.recipe import Recipe
from vggkit.training.training_monitor import TrainingMonitor, watch_activity
from vggkit.training.training_steps import TrainingSteps
from vggkit.training.validation import Diverged, validate
from vggkit.weights.model import Model

MAX_ROLLBACKS: Final = 3
"""Number of rollbacks to the start of an epoch after which a training that diverges again fails."""
LR_DECAY_ON_DIVERGENCE: Final = 0.3
"""Factor of the learning rate after each rollback."""

State = Mapping[str, Tensor]


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
        group: The processes that train together; the first one saves states, and calls `on_epoch` and
            `should_stop`.
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
        callbacks: Callbacks = Callbacks(),  # noqa: B008 (frozen)
        group: ProcessGroup = SINGLE,
    ) -> None:
        self.classifier, self.splits, self.recipe = classifier, splits, recipe
        self.device, self.checkpoints, self.caller_settings = device, checkpoints, caller_settings
        self.teacher, self.save_seconds, self.callbacks = teacher, save_seconds, callbacks
        self.group, self.val = group, splits["val"]
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
            if self.group.is_first:
                self.callbacks.on_epoch(self.progress.history, self.classifier.network)
            if self._should_stop():
                self._close()
                return FitResult(self.progress.history, probe.epoch.epoch)
            feature_scale = probe.feature_scale
        elif state is not None:
            feature_scale = float(state.get("feature_scale", torch.tensor(1.0)))
        self._prepare(feature_scale, begins=state is None)
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
        if self.group.is_first:
            self.callbacks.on_epoch((probe.epoch,), self.classifier.network)
            self.callbacks.should_stop(probe.epoch)  # it is the last one, whatever the callback returns
        self._close()
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
            group=self.group,
        )

    def _prepare(self, feature_scale: float, *, begins: bool) -> None:
        """Set up everything that training steps need: batches, the state, the monitor."""
        classifier, recipe, train = self.classifier, self.recipe, self.splits["train"]
        self.steps = TrainingSteps(
            classifier,
            train,
            recipe,
            device=self.device,
            feature_scale=feature_scale,
            caller_settings=self.caller_settings,
            teacher=self.teacher,
            group=self.group,
            begins=begins,
        )
        self.train_state, self.batches = self.steps.state, self.steps.batches
        train_counts, val_counts = (count_labels(split, classifier.labels) for split in (train, self.val))
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
            batch_size=self.recipe.batch_size // self.group.size,
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
            self.train_state,
            self.batches,
            self.val,
            preprocessing=preprocessing,
            write_seconds=write_seconds,
            processes=self.group.size,
        )
        self.callbacks.log(describe(estimate, memory_bytes=self._estimate_memory()))

    def _fit_by_steps(self) -> None:
        """Epoch by epoch, from where `progress` is."""
        for epochs in range(1, len(self.progress.history) + 1):
            self.monitor.update(self.progress.history[:epochs], {})  # logged before the training was stopped
        while not is_over(self.progress.history, self.recipe, log=self.callbacks.log):
            try:
                dead = self._train_epoch()
                epoch = self._validate()
            except Diverged as problem:
                self._roll_back(problem)
                continue
            history = (*self.progress.history, epoch)
            if self.group.is_first:
                self.callbacks.on_epoch(history, self.train_state.evaluated)
            if self._estimate is not None and (left := self._estimate.describe_left(epoch.seconds)):
                self.callbacks.log(left)
            self._estimate = None
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
        self._close()

    def _should_stop(self) -> bool:
        """Whether the caller ends the training with the epoch that is over."""
        epoch = self.progress.history[-1]
        enough = self.group.lead(lambda: bool(self.callbacks.should_stop(epoch)))
        if enough and epoch.epoch < self.recipe.epochs:
            self.callbacks.log(f"stopped after epoch {epoch.epoch}, as on_epoch requested")
        return enough

    def _train_epoch(self) -> dict[str, float]:
        """Train on the remaining batches of the epoch; returns each ReLU's share of dead channels at its end."""
        dead: dict[str, float] = {}
        self._clock = self._last_saved = time.monotonic()
        self._clock -= self.progress.seconds
        self.train_state.start_epoch(self.progress.epoch)
        for images, classes in self.batches.of_epoch(self.progress.epoch, start=self.progress.batches):
            is_last = self.progress.batches + 1 == len(self.batches)
            with watch_activity(self.train_state.compute_copy, dead) if is_last else nullcontext():
                self.progress = self.steps.train_batch(self.progress, images, classes)
            self.callbacks.on_step("train", self.progress.batches, len(self.batches))
            self._pause()
        return dead

    def _validate(self) -> Epoch:
        """Evaluate the validation images in the precision of training; returns the metrics of the epoch."""
        progress = self.progress
        self.train_state.join_parts()

        def on_image(done: int, total: int) -> None:
            self.callbacks.on_step("validate", done, total)
            if self.group.size == 1:  # several ones stop together
                self._pause()

        found = validate(
            self.train_state.evaluated,
            self.classifier,
            self.val,
            self.recipe,
            device=self.device,
            group=self.group,
            on_image=on_image,
        )
        if self.group.size > 1:
            self._pause()
        return Epoch(
            epoch=progress.epoch,
            learning_rate=self.steps.rate_at(progress.steps - 1, progress),
            train_loss=progress.loss_sum / progress.weight,
            val_loss=found.loss,
            val_top1=found.top1,
            seconds=time.monotonic() - self._clock,
            val_macro_f1=found.macro_f1,
            val_map=found.map,
        )

    def _pause(self) -> None:
        """Save the state if it is due, and stop if that is requested; between steps only."""
        requested = self.callbacks.signals.find_stop()
        if self.progress.batches % self.recipe.accumulate and self.progress.batches < len(self.batches):
            return
        now = time.monotonic()
        is_due = self.group.is_first and now - self._last_saved >= self.save_seconds
        stop, due = map(int, self.group.maximum(requested, is_due))
        if stop or due:
            self.progress = replace(self.progress, seconds=now - self._clock)
            self._save()
            self._last_saved = time.monotonic()
        if stop:
            raise Stopped(stop)

    def _save_initial_weights(self) -> None:
        """Save the network alone, before anything is trained."""
        if not self.group.is_first:
            return
        weights = self.classifier.network.state_dict()
        self.checkpoints.save({f"network/{key}": value for key, value in weights.items()}, Progress())

    def _close(self) -> None:
        if self.group.is_first:
            self.checkpoints.close()

    def _save(self) -> None:
        state = self.train_state.state()
        if self.group.is_first:
            self.checkpoints.save(state, self.progress)

    def _roll_back(self, problem: "Diverged") -> None:
        """Restore the state of the start of the epoch, and continue at a lower learning rate."""
        lower = self.progress.rate_scale * LR_DECAY_ON_DIVERGENCE
        epoch, done = self.progress.epoch, self.progress.batches
        rate = self.steps.rate_at(max(0, self.progress.steps - (done == len(self.batches))), self.progress)
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
        state, before = self.group.lead_tensors(self.checkpoints.read_epoch)
        self.train_state.restore(state)
        self.progress = replace(before, rate_scale=lower, returns=self.progress.returns + 1)
        self._save()
        self.callbacks.warn(
            f"the loss became {problem.loss} in {place}: back to the start of the epoch, to continue at "
            f"{LR_DECAY_ON_DIVERGENCE:g} times the learning rate of {rate:.2g} "
            f"(rollback {self.progress.returns} of at most {MAX_ROLLBACKS})"
        )
