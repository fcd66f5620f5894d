"""Choices that a recipe leaves open, each with its reason. No torch here."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from vggkit.errors import BadConfiguration
from vggkit.images.class_names import shorten_names
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration
from vggkit.task import Task
from vggkit.training.parameter_groups import WHITENED, list_learnt
from vggkit.training.recipe import STEPWISE, TOGETHER, Recipe, find_least_share
from vggkit.weights.origin import WeightsOrigin

FEW: Final = 2_000
"""Number of images up to which only the head is trained from given weights: more layers would overfit."""
FEW_STEPS: Final = 60
"""Number of steps of a training below which a large batch is pointed out."""
SMALL_BATCH: Final = 64
"""Images a step that are not many."""
RATES: Final[Mapping[str, tuple[float, float]]] = {"sgd": (0.01, 0.03), "adamw": (3e-4, 1e-3), "muon": (1e-3, 4e-3)}
"""Highest learning rates for a batch of 32 from random weights, without and with batch norm."""
FROM_WEIGHTS: Final = 0.1
"""Factor of the learning rate where the weights are loaded, so that they change little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Network, data and machine, on which the choices depend."""

    configuration: Configuration
    """The network."""
    preprocessing: Preprocessing
    """Its preprocessing."""
    origin: WeightsOrigin
    """The origin of its weights, and which of them are random."""
    images: int
    """Number of training images."""
    bf16: bool
    """Whether the machine computes several times as fast in bfloat16."""
    task: Task = "single-label"
    """Whether an image has exactly one class, or any number of them."""
    frozen: frozenset[str] = frozenset()
    """Keys of the parameters that the caller froze (requires_grad=False)."""
    processes: int = 1
    """Number of processes that train together."""


def resolve_recipe(
    recipe: Recipe, situation: Situation, *, choose_batch_size: Callable[[Recipe], tuple[int, str]]
) -> tuple[Recipe, list[str]]:
    """The recipe with every choice made, and a sentence on each choice.

    Args:
        recipe: As it was given.
        situation: Network, data and machine.
        choose_batch_size: Gives the batch size, with its reason, for a recipe that is complete but for it and the
            learning rate.

    Raises BadConfiguration for a recipe that cannot be carried out.
    """
    reasons: list[str] = []

    def choose(name: str, value: Any, reason: str) -> None:
        nonlocal recipe
        recipe = replace(recipe, **{name: value})
        shown = f"{value:g}" if isinstance(value, float) else value
        reasons.append(f"{name.replace('_', ' ')} {shown}: {reason}")

    _check_frozen_by_caller(recipe, situation)
    _check_task(recipe, situation)
    if situation.task == "multi-label" and recipe.monitor == "top1":
        choose("monitor", "map", "images have several labels; the mean average precision chooses the best epoch")
    if recipe.trainable == "auto":
        choose("trainable", *_choose_trainable(recipe, situation))
    _check_frozen(recipe, situation)
    _check_whitening(recipe, situation)
    if recipe.precision == "auto":
        slow = "this processor or GPU has no fast bfloat16"
        fast = "computed in bfloat16, which is fast here, with master weights in float32"
        choose("precision", *(("bf16", fast) if situation.bf16 else ("fp32", slow)))
    side = situation.preprocessing.crop_pixels
    if recipe.augmentation == "auto":
        if recipe.trainable == "head" and recipe.views == 1:
            recipe = replace(recipe, augmentation="none")
        else:
            given = recipe.shift_pixels is not None
            reason = "shift pixels are given" if given else f"the input is {side} pixels wide"
            choose("augmentation", "photo" if side >= 64 and not given else "shift", reason)
    if recipe.mirror == "auto":
        recipe = replace(recipe, mirror="random" if recipe.augmentation == "photo" else "none")
    if recipe.weight_decay is None and recipe.trainable != "head":
        recipe = replace(recipe, weight_decay=5e-4 if recipe.optimizer == "sgd" else 0.05)
    if recipe.batch_size is None and recipe.trainable == "head":
        recipe = replace(recipe, batch_size=32)  # only for measuring
    if recipe.batch_size is None:
        choose("batch_size", *choose_batch_size(recipe))
    if situation.processes > 1 and recipe.trainable != "head":
        reasons.append(_divide_batch(recipe, situation))
    idle = [name.replace("_", " ") for name, usual in TOGETHER.items() if getattr(recipe, name) != usual]
    if idle and situation.processes == 1:
        reasons.append(f"{' and '.join(idle)}: without effect in one process; torchrun starts several")
    _check_batch_norm(recipe, situation)
    if recipe.learning_rate is None and recipe.trainable != "head":
        choose("learning_rate", *_choose_rate(recipe, situation))
    elif recipe.learning_rate is not None and situation.processes > 1:
        reasons.append(
            f"learning rate {recipe.learning_rate:g}, as given, for {_count_together(recipe)} images a step: it is "
            "not scaled by the number of processes"
        )
    steps = recipe.epochs * math.ceil(situation.images / _count_together(recipe))
    if recipe.trainable != "head" and steps < FEW_STEPS and _count_together(recipe) > SMALL_BATCH:
        reasons.append(
            f"{steps} steps in all are few: with a smaller batch_size, and a lower learning_rate where one is "
            "given, there are more of them"
        )
    return recipe, reasons


def demand_divisible(size: int, processes: int) -> None:
    """Raise BadConfiguration where the batches of a run that is continued cannot be divided by its processes."""
    if size % processes:
        raise BadConfiguration(f"{_describe_uneven(size, processes)}; start a number that divides {size}")


def _describe_uneven(size: int, processes: int) -> str:
    return (
        f"batch_size counts the images of all processes together, and {size} cannot be divided by {processes} "
        "processes"
    )


def _divide_batch(recipe: Recipe, situation: Situation) -> str:
    """A sentence on each process's part of a batch; raises BadConfiguration where there is none."""
    size, processes = recipe.batch_size, situation.processes
    assert size is not None, "it was chosen before"
    if size % processes:
        near = sorted({max(1, size // processes) * processes, (size // processes + 1) * processes})
        raise BadConfiguration(f"{_describe_uneven(size, processes)}; take {' or '.join(map(str, near))}")
    least = processes * find_least_share(recipe, batch_norm=situation.configuration.batch_norm)
    if situation.images < least:
        raise BadConfiguration(
            f"{processes} processes need {least} training images or more, and there are {situation.images}; start "
            "fewer of them"
        )
    return f"{processes} processes: batches of {size} images, {size // processes} in each process"


def _choose_trainable(recipe: Recipe, situation: Situation) -> tuple[str, str]:
    chosen, reason = _choose_unfrozen(recipe, situation)
    if chosen == "head" and _find_frozen(Recipe(trainable="head"), situation):
        return "all", "the last layer is frozen, and the others are trained"
    if chosen == "top" and not _find_open(Recipe(trainable="top", freeze_norm=recipe.freeze_norm), situation):
        return "all", "the top layers are frozen, and the others are trained"
    return chosen, reason


def _check_frozen_by_caller(recipe: Recipe, situation: Situation) -> None:
    """Parameters that the caller froze stay so; refuse a recipe that would train them."""
    if recipe.trainable != "auto" and (caught := _find_frozen(recipe, situation)):
        raise BadConfiguration(
            f"trainable={recipe.trainable} would train {shorten_names(caught, most=3)}, which is frozen "
            "(requires_grad=False); call requires_grad_(True) on it, or leave trainable out to keep it frozen"
        )
    if recipe.views > 1 and _find_frozen(Recipe(trainable="head"), situation):
        raise BadConfiguration(
            f"views={recipe.views} are for the last layer alone, which is frozen; leave views out, or call "
            "requires_grad_(True) on it"
        )
    if not _find_open(Recipe(trainable="all", freeze_norm=recipe.freeze_norm), situation):
        raise BadConfiguration(
            "nothing can be trained: every parameter is frozen; network.requires_grad_(True) unfreezes them"
        )


def _check_task(recipe: Recipe, situation: Situation) -> None:
    """Refuse options that have no meaning for the task."""
    if situation.task == "multi-label" and recipe.balance == "sampling":
        raise BadConfiguration(
            "balance=sampling draws images by their one label, and these have several; take balance=weights"
        )
    if situation.task == "single-label" and recipe.monitor == "map":
        raise BadConfiguration(
            "monitor=map is the mean average precision of several labels an image, and these have one; take top1, "
            "loss or macro-f1"
        )


def _find_frozen(recipe: Recipe, situation: Situation) -> list[str]:
    """Parameters that the recipe would train, and that are frozen."""
    return [key for key in list_learnt(situation.configuration, recipe) if key in situation.frozen]


def _find_open(recipe: Recipe, situation: Situation) -> list[str]:
    """Parameters that it would train and that are not frozen."""
    return [key for key in list_learnt(situation.configuration, recipe) if key not in situation.frozen]


def _choose_unfrozen(recipe: Recipe, situation: Situation) -> tuple[str, str]:
    """The layers that are trained where nothing is frozen."""
    if recipe.views > 1:
        return "head", "views of an image are made for it"
    if situation.origin.kind == "random":
        return "all", "the weights are random"
    if situation.origin.kind == "trained":
        return "all", "the weights are a trained Classifier's"
    if any(key.startswith("features.") for key in situation.origin.random_keys):
        return "all", "a part of the trunk is random"
    stepwise = [name for name, usual in STEPWISE.items() if getattr(recipe, name) != usual]
    if stepwise:
        return "all", f"{stepwise[0].replace('_', ' ')} was given, which has effect only with training by steps"
    if situation.images > FEW:
        return "all", f"{situation.images:,} images are enough to fine-tune loaded weights"
    if _find_random_frozen(situation):
        return (
            "top",
            f"{situation.images:,} images and loaded weights, and fully connected layers that are random",
        )
    return "head", f"{situation.images:,} images and loaded weights; --trainable all fine-tunes all layers"


def _find_random_frozen(situation: Situation) -> list[str]:
    """Random tensors below the last layer."""
    last = f"classifier.{situation.configuration.fully_connected[-1].index}."
    return [key for key in situation.origin.random_keys if not key.startswith(last)]


def _check_frozen(recipe: Recipe, situation: Situation) -> None:
    """Refuse to freeze layers that are random."""
    if recipe.trainable not in ("head", "top"):
        return
    if situation.origin.kind == "random":
        raise BadConfiguration(
            f"trainable={recipe.trainable} trains on top of loaded weights, and these are random; "
            "give --weights, or take trainable=all"
        )
    if recipe.trainable == "head" and situation.configuration.fully_connected[-1].rank is not None:
        raise BadConfiguration(
            "trainable=head needs a full matrix as the last layer, and this network's is low-rank; "
            "take trainable=top or all"
        )
    random = _find_random_frozen(situation)
    if recipe.trainable == "top":
        random = [key for key in random if key.startswith("features.")]
    if random:
        more = "all" if random[0].startswith("features.") else "top"
        raise BadConfiguration(
            f"trainable={recipe.trainable} would leave {random[0].rpartition('.')[0]} random, for the weights do "
            f"not hold it; take trainable={more}, or --head pool"
        )


def _check_whitening(recipe: Recipe, situation: Situation) -> None:
    """Refuse to replace the first convolution of loaded weights."""
    if recipe.whitening and situation.origin.kind != "random":
        raise BadConfiguration(
            "whitening sets the first convolution from the training images, which loaded weights do not fit; leave "
            "out whitening, or the weights"
        )
    if recipe.whitening and WHITENED in situation.frozen:
        raise BadConfiguration(
            f"whitening sets {WHITENED} from the training images, and it is frozen (requires_grad=False) with the "
            "values that it has; leave out whitening, or call requires_grad_(True) on it"
        )


def _check_batch_norm(recipe: Recipe, situation: Situation) -> None:
    side = situation.preprocessing.crop_pixels
    frozen = recipe.freeze_norm or recipe.trainable == "head"
    alone = recipe.batch_size is not None and recipe.batch_size // (1 if recipe.sync_norm else situation.processes)
    if alone == 1 and not frozen and _smallest_normed_side(situation.configuration, side) == 1:
        raise BadConfiguration(
            f"batch_size must be {2 * situation.processes} or more here: batch norm has one value a channel of a "
            f"single image with an input of {side} pixels, and nothing to normalise by"
        )


def _choose_rate(recipe: Recipe, situation: Situation) -> tuple[float, str]:
    assert recipe.batch_size is not None, "it was chosen before"
    normed, given = situation.configuration.batch_norm, situation.origin.kind != "random"
    rate = RATES[recipe.optimizer][normed] * (FROM_WEIGHTS if given else 1.0)
    rate = float(f"{rate * (recipe.batch_size * recipe.accumulate / 32) ** 0.5:.2g}")
    norm = "with" if normed else "without"
    start = "given" if given else "random"
    reason = f"{recipe.optimizer} {norm} batch norm, {start} weights, {_count_together(recipe)} images a step"
    if situation.processes > 1:
        reason += " of all processes; it grows with the square root of the images a step (Krizhevsky 2014)"
    return rate, reason


def _count_together(recipe: Recipe) -> int:
    """Images a step, of all processes."""
    return (recipe.batch_size or 1) * recipe.accumulate


def _smallest_normed_side(configuration: Configuration, pixels: int) -> int:
    """Side of the smallest map that batch norm sees; the image's own where there is none."""
    side = smallest = pixels
    for layer in configuration.trunk:
        side = side // 2 if layer.kind == "pool" else side
        smallest = side if layer.kind == "bn" else smallest
    return smallest
