"""The steps of a training: batches of images, the state that they change, and the learning rate of each step.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vggkit.hardware import derive_seed
from vggkit.images.dataset import ImageSample
from vggkit.training.augmentation import Mixing
from vggkit.training.batches import TrainingBatches
from vggkit.training.caller_settings import CallerSettings
from vggkit.training.checkpoint import Progress
from vggkit.training.distillation import Teacher
from vggkit.training.distributed.process_group import ProcessGroup
from vggkit.training.objective import Objective
from vggkit.training.optimizers import learning_rate_at
from vggkit.training.recipe import Recipe, find_least_share
from vggkit.training.train_state import TrainState
from vggkit.training.validation import Diverged
from vggkit.training.whitening import whiten_first_layer
from vggkit.weights.model import Model


class TrainingSteps:
    """Trains a Classifier's network batch by batch.

    The arguments are those of `Trainer` and `TrainState`; `begins` says whether no saved state is restored next.
    """

    def __init__(
        self,
        classifier: Model,
        images: Sequence[ImageSample],
        recipe: Recipe,
        *,
        device: torch.device,
        feature_scale: float,
        caller_settings: CallerSettings,
        teacher: Teacher | None,
        group: ProcessGroup,
        begins: bool,
    ) -> None:
        self._recipe, self._group = recipe, group
        if recipe.whitening and begins:
            whiten_first_layer(classifier.network, images, classifier.preprocessing, seed=recipe.seed, group=group)
        self.state = TrainState(
            classifier.network,
            recipe,
            device=device,
            objective=Objective.of(recipe, images, classifier.labels, classifier.task),
            feature_scale=feature_scale,
            caller_settings=caller_settings,
            teacher=teacher,
            group=group,
        )
        self.batches = TrainingBatches.of(
            recipe,
            images,
            labels=classifier.labels,
            preprocessing=classifier.preprocessing,
            device=device,
            task=classifier.task,
            group=group,
            least_share=find_least_share(recipe, batch_norm=classifier.configuration.batch_norm),
        )
        self._mixing = Mixing.of(recipe, len(classifier.labels))

    def train_batch(self, progress: Progress, images: Tensor, classes: Tensor) -> Progress:
        """Train on one batch (N, C, H, W); a step follows it, or with accumulation the last of some batches.

        Returns the progress after it; raises Diverged for a loss or a gradient that is not finite.
        """
        recipe, group = self._recipe, self._group
        place = progress.batches % recipe.accumulate
        is_last = place + 1 == min(recipe.accumulate, len(self.batches) - progress.batches + place)
        draw = (progress.epoch - 1) * len(self.batches) + progress.batches
        targets = classes
        if self._mixing is not None:
            seed = derive_seed(recipe.seed, "mix", draw, *group.seed_parts)
            images, targets = self._mixing(images, classes, seed=seed)

        loss = self.state.compute(images, targets, draw=draw, is_last=is_last).item()
        own_weight = self.state.weigh(targets)
        loss_sum, weight = group.sum(loss * own_weight, own_weight)
        finite = not is_last or self.state.step(self.rate_at(progress.steps, progress), number=progress.steps)
        if not (math.isfinite(loss_sum) and finite):
            raise Diverged(loss if group.size == 1 else loss_sum / weight)
        return replace(
            progress,
            batches=progress.batches + 1,
            steps=progress.steps + is_last,
            loss_sum=progress.loss_sum + loss_sum,
            weight=progress.weight + weight,
        )

    def rate_at(self, step: int, progress: Progress) -> float:
        """The learning rate of a step, counted from 0."""
        steps_per_epoch = math.ceil(len(self.batches) / self._recipe.accumulate)
        return progress.rate_scale * learning_rate_at(step, recipe=self._recipe, steps_per_epoch=steps_per_epoch)
