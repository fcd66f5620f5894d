"""Fine-tuning of a compressed network with the network that it was made from as its teacher."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from vggkit.compression.rebuild import build_network, copy_state
from vggkit.errors import VggkitError
from vggkit.hardware import computes_bf16
from vggkit.images.dataset import ImageSample
from vggkit.interruption import Signals
from vggkit.models.vgg import VGG
from vggkit.training.callbacks import Callbacks
from vggkit.training.checkpoint import Checkpoints, Epoch
from vggkit.training.distillation import Teacher
from vggkit.training.estimates import choose_batch_size
from vggkit.training.recipe import Recipe
from vggkit.training.resolve_recipe import Situation, resolve_recipe
from vggkit.training.trainer import Trainer
from vggkit.weights.card import read_entry
from vggkit.weights.model import Model

INHERITED: Final = (
    *("optimizer", "momentum", "weight_decay", "augmentation", "mirror", "rand_augment", "random_erasing"),
    *("mixup", "cutmix", "balance", "batch_size"),
)
"""Fields of the recipe that the Classifier was trained with which fine-tuning keeps."""
RATE_SHARE: Final = 0.5
"""Share of that recipe's learning rate that fine-tuning begins at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuning:
    """How a compressed network is fine-tuned."""

    epochs: int
    """Passes over the training images; 0: none."""
    learning_rate: float | None = None
    """Peak learning rate; None: half of that of the Classifier's own training."""
    seed: int = 0
    """Seed of every random draw."""


def choose_recipe(model: Model, options: FineTuning, *, images: int, device: torch.device) -> Recipe:
    """The recipe of the Classifier's own training with fewer epochs; what is not known of it is chosen anew."""
    stated = read_entry(model.provenance, "recipe")
    known = {field.name for field in fields(Recipe)}
    kept = {name: stated[name] for name in INHERITED if name in known and stated.get(name) is not None}
    rate = options.learning_rate
    if rate is None and isinstance(stated.get("learning_rate"), float) and model.origin.kind == "trained":
        rate = RATE_SHARE * stated["learning_rate"]
    plain = Recipe(trainable="all", epochs=options.epochs, learning_rate=rate, seed=options.seed)
    try:
        recipe = replace(plain, **kept)
    except VggkitError:  # the recipe of another version
        recipe = plain
    situation = Situation(
        configuration=model.configuration,
        preprocessing=model.preprocessing,
        origin=replace(model.origin, kind="trained", random_keys=()),
        images=images,
        task=model.task,
        bf16=computes_bf16(device),
    )
    side = model.preprocessing.crop_pixels
    resolved, _ = resolve_recipe(
        recipe,
        situation,
        choose_batch_size=lambda known: choose_batch_size(
            model.configuration, known, crop_pixels=side, images=images, device=device
        ),
    )
    return resolved


def fine_tune(
    model: Model,
    teacher: VGG,
    train: Sequence[ImageSample],
    val: Sequence[ImageSample],
    *,
    options: FineTuning,
    device: torch.device,
    folder: Path,
    on_progress: Callable[[str, int, int | None], None] = lambda what, done, total: None,
    log: Callable[[str], None] = lambda sentence: None,
    signals: Signals | None = None,
) -> Model:
    """The Classifier with its weights trained further: its best epoch by the validation images.

    Args:
        model: The Classifier; it is not changed.
        teacher: The network that it was made from.
        train: Images to learn from.
        val: Images that epochs are chosen by.
        options: Epochs, learning rate and seed.
        device: Where to train.
        folder: For states of the training, to which one that diverges returns.
        on_progress: Called with the current task, how much of it is done, and of how much.
        log: Called with messages, as sentences.
        signals: Requests to stop.

    Raises Stopped, BadInput where the loss diverges again and again, and BadImage.
    """
    student = Model(
        build_network(model.configuration, copy_state(model.network)),
        labels=model.labels,
        preprocessing=model.preprocessing,
        task=model.task,
        origin=replace(model.origin, kind="trained", random_keys=()),
        provenance=model.provenance,
    )
    recipe = choose_recipe(student, options, images=len(train), device=device)
    best: dict[str, Tensor] = {}

    def keep_best(history: tuple[Epoch, ...], network: VGG) -> None:
        epoch = history[-1]
        if (epoch.val_figure, -epoch.val_loss) >= max((each.val_figure, -each.val_loss) for each in history):
            best.update(copy_state(network))
        log(f"fine-tuning, epoch {epoch.epoch} of {recipe.epochs}: {epoch.figure} {epoch.val_figure:.4f}")

    def show(what: str, done: int, total: int | None) -> None:
        names = {"train": "fine-tuning, batches", "validate": "fine-tuning, validation images"}
        on_progress(names.get(what, what), done, total)

    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    trainer = Trainer(
        student,
        {"train": train, "val": val},
        recipe,
        device=device,
        checkpoints=Checkpoints(folder, card=student.card, identity={"recipe": recipe.to_dict()}),
        teacher=Teacher(teacher, device=device, dtype=dtype, task=model.task),
        callbacks=Callbacks(
            on_step=show,
            on_epoch=keep_best,
            log=log,
            warn=log,
            signals=signals or Signals(),
        ),
    )
    trainer.fit()
    student.network = build_network(model.configuration, best)
    return student
