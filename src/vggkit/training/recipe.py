"""The options of a training: the `Recipe`. `resolve_recipe` chooses what it leaves open. No torch here."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args, get_type_hints

from vggkit.arguments import is_number, plain_number
from vggkit.errors import BadConfiguration, BadInput, UnknownName
from vggkit.images.splits import read_fold

Trainable = Literal["auto", "head", "top", "all", "gradual"]
Optimizer = Literal["sgd", "adamw", "muon"]
Schedule = Literal["cosine", "linear", "step", "one-cycle", "constant"]
Precision = Literal["auto", "fp32", "bf16", "amp"]
Augmentation = Literal["auto", "none", "shift", "photo"]
Mirror = Literal["auto", "none", "random", "alternating"]
Balance = Literal["none", "weights", "sampling"]
Monitor = Literal["top1", "loss", "macro-f1", "map"]
GradientCompression = Literal["none", "bf16", "powersgd"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a Classifier is trained.

    A field that is None or auto is chosen by the network, the data and the machine when a training begins, and the
    choice is logged with its reason. Raises BadConfiguration for values out of range, and for values that
    contradict each other.

    >>> Recipe(epochs=3, optimizer="adamw").schedule
    'cosine'
    """

    trainable: Trainable = "auto"
    """Which layers are trained. head: the last layer alone, on features that are computed once. top: the fully
    connected layers and the last block of convolutions. all: all layers. gradual: the fully connected layers first,
    then one more block after another. auto: head for few images and loaded weights, else all."""
    epochs: int = 10
    """Number of passes over the training images; trainable=head needs none."""
    batch_size: int | None = None
    """Images in a batch, of all processes together. Default: as many as fit in memory and the machine computes
    fast, at most 32 at 224 pixels for each process."""
    optimizer: Optimizer = "sgd"
    """sgd (with Nesterov momentum), adamw, or muon (Muon for convolutions and AdamW for the rest)."""
    learning_rate: float | None = None
    """Peak learning rate. Default: chosen by the optimizer, the batch size, batch norm and the origin of the
    weights."""
    layer_decay: float = 1.0
    """Factor in (0, 1] by which the learning rate decreases from each layer to the one below it."""
    momentum: float = 0.9
    """Momentum of sgd and muon, in [0, 1)."""
    weight_decay: float | None = None
    """Weight decay of kernels and matrices; biases and norms have none. Default: 5e-4 (added to the gradient) for
    sgd, 0.05 (decoupled) for the others."""
    schedule: Schedule = "cosine"
    """Learning rate after the warm-up: cosine (decays to zero), linear (decays to zero in a straight line), step
    (divided by 10 every step_epochs), one-cycle (rises for 30 % of the steps, then decays to zero), or constant."""
    step_epochs: int | None = None
    """For schedule=step: number of epochs between divisions by 10. Default: a third of all epochs."""
    warmup_epochs: float = 1.0
    """Number of epochs in which the learning rate rises from near zero, at most half of all. Without a warm-up a
    VGG without batch norm may diverge."""
    clip_norm: float = 1.0
    """Maximum norm of the gradient of all weights together, to which a longer one is scaled; 0: no limit."""
    accumulate: int = 1
    """Number of batches whose gradients are accumulated for one optimizer step."""
    precision: Precision = "auto"
    """fp32. bf16: compute in bfloat16, with master weights in float32. amp: torch's autocast. auto: bf16 where the
    processor or GPU supports it, else fp32."""
    bias_rate_factor: float = 1.0
    """Factor of the learning rate of biases, those of batch norm too. Short trainings learn them faster than
    kernels (Jordan 2024 has 64 with sgd)."""
    whitening: bool = False
    """Set the first convolution to the principal directions of patches of the training images, each scaled to unit
    variance and with both signs, and do not train it (Jordan 2024, section 3.2). For random weights."""
    batch_norm_momentum: float | None = None
    """Weight in (0, 1] of the newest batch in the running statistics of batch norm. Default: 0.1. Short trainings
    of large batches take more, such as 0.4."""
    freeze_norm: bool = False
    """Keep batch norm as it is: its weights, biases and running statistics."""
    ema_decay: float | None = None
    """Evaluate and save an exponential moving average of the weights, with this decay in (0, 1)."""
    patience: int | None = None
    """Stop early, after this number of epochs without a lower validation loss."""
    monitor: Monitor = "top1"
    """Metric of the validation images by which the best epoch is chosen and saved: top1 (then the loss),
    loss, or macro-f1 (then the loss), in which rare classes count as much as frequent ones. For several labels an
    image it is map, the mean average precision, in place of top1."""
    label_smoothing: float = 0.0
    """Probability in [0, 1) of the target that is distributed evenly over all classes."""
    augmentation: Augmentation = "auto"
    """photo: random resized crops. shift: random translations by a few pixels. auto: photo for images of 64 pixels
    or more, else shift."""
    shift_pixels: int | None = None
    """Farthest translation in pixels of augmentation=shift, each way. Default: an eighth of the input's side."""
    mirror: Mirror = "auto"
    """Horizontal flips. random: with probability 0.5. alternating: in every second epoch (Jordan 2024). auto:
    random with augmentation=photo, else none, as small images may be letters or digits."""
    rand_augment: int | None = None
    """Magnitude, 0 to 30, of RandAugment with two operations; 9 is usual."""
    random_erasing: float = 0.0
    """Probability in [0, 1] that a random rectangle of an image is erased."""
    mixup: float = 0.0
    """Alpha of mixup, which blends images of a batch; 0.2 is usual, 0 is none."""
    cutmix: float = 0.0
    """Alpha of CutMix, which pastes rectangles between images of a batch; 1 is usual, 0 is none. With mixup too,
    each batch gets one of the two at random."""
    balance: Balance = "none"
    """For uneven classes. weights: weigh the loss by inverse class frequency; for several labels an image, images
    with a label as much as those without it. sampling: draw rare classes more often, where an image has one
    label."""
    views: int = 1
    """For trainable=head: number of views of each image, the first as in prediction, the others augmented."""
    validation_share: float = 0.2
    """Fraction in (0, 1) of each class that is held out where the data has no validation split."""
    fold: str | None = None
    """Cross-validation, such as 2/5: validate on the second of five folds and train on the others. The data's own
    train and val splits are joined."""
    sync_norm: bool = False
    """On several processes (torchrun): normalise by the statistics of all images of a batch, and not by those of
    each process alone."""
    gradient_compression: GradientCompression = "none"
    """On several processes: how gradients are sent. none: exactly. bf16: rounded to bfloat16, half the bytes.
    powersgd: each matrix as two thin ones, with what is lost added to the next step (Vogels et al. 2019)."""
    split_head: bool = False
    """On several processes: split the fully connected layers over them, and exchange activations in place of their
    gradients, which stay exact (Krizhevsky 2014)."""
    seed: int = 0
    """Seed of every random draw."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain_number(getattr(self, field.name)))
        for name, (holds, rule) in _RULES.items():
            value = getattr(self, name)
            optional = name in _OPTIONAL and value is None
            if not optional and not holds(value):
                raise BadConfiguration(f"{name} must be {rule}; got {value!r}")
        for name, kind in get_type_hints(type(self)).items():
            known = get_args(kind)
            if known and all(isinstance(choice, str) for choice in known) and getattr(self, name) not in known:
                raise BadConfiguration(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}")
        if self.fold is not None:
            try:
                read_fold(self.fold)
            except BadInput as problem:
                raise BadConfiguration(str(problem)) from problem
        self._check_together()

    def _check_together(self) -> None:
        """Raise BadConfiguration for values that contradict each other."""

        def refuse(holds: bool, contradiction: str) -> None:
            if holds:
                raise BadConfiguration(contradiction)

        refuse(
            self.step_epochs is not None and self.schedule != "step",
            f"step_epochs={self.step_epochs} belongs to schedule=step, not to schedule={self.schedule}",
        )
        refuse(
            self.views > 1 and self.trainable not in ("auto", "head"),
            f"views={self.views} belongs to trainable=head, not to trainable={self.trainable}; "
            "elsewhere each epoch has views of its own",
        )
        refuse(
            self.trainable == "gradual" and self.epochs < 2,
            f"trainable=gradual unfreezes epoch by epoch, so epochs={self.epochs} is too few; give 2 or more",
        )
        refuse(
            self.balance == "weights" and bool(self.mixup or self.cutmix),
            "balance=weights cannot weight images that mixup or cutmix blend; use balance=sampling",
        )
        refuse(
            self.optimizer == "adamw" and self.momentum != 0.9,
            f"momentum={self.momentum} belongs to optimizer=sgd and optimizer=muon, not to optimizer=adamw",
        )
        refuse(
            self.schedule == "one-cycle" and self.warmup_epochs != 1.0,
            f"warmup_epochs={self.warmup_epochs} cannot be combined with schedule=one-cycle, which has its own",
        )
        refuse(
            self.shift_pixels is not None and self.augmentation not in ("auto", "shift"),
            f"shift_pixels={self.shift_pixels} belongs to augmentation=shift, not to "
            f"augmentation={self.augmentation}",
        )
        refuse(
            self.batch_norm_momentum is not None and self.freeze_norm,
            f"batch_norm_momentum={self.batch_norm_momentum} has no effect with freeze_norm=true, which keeps the "
            "running statistics",
        )
        drawn = [name for name in ("rand_augment", "random_erasing") if getattr(self, name)]
        refuse(
            self.trainable == "head" and self.views == 1 and bool(drawn),
            f"{' and '.join(drawn)} draws views, and trainable=head sees each image once as it is; give --views",
        )
        if self.trainable == "head":
            for name, usual in STEPWISE.items():
                value = getattr(self, name)
                refuse(
                    value != usual,
                    f"{name}={value} has no effect with trainable=head, whose last layer is solved directly; "
                    f"leave {name} out, or take trainable=top or all",
                )

    def to_dict(self) -> dict[str, Any]:
        """A value for YAML or JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The recipe that `to_dict` gave; raises BadConfiguration for anything else."""
        if not isinstance(values, Mapping):
            raise BadConfiguration(f"a recipe is a mapping of its fields, got {type(values).__name__}")
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise BadConfiguration(str(UnknownName.of("field of a recipe", name, known)))
        return cls(**values)


def rank_epoch(
    monitor: Monitor,
    *,
    val_top1: float,
    val_loss: float,
    val_macro_f1: float | None,
    val_map: float | None = None,
) -> tuple[float, float]:
    """A value that is higher for a better epoch, by the monitored figure and then by the loss."""
    figures = {"top1": val_top1, "loss": -val_loss, "macro-f1": val_macro_f1 or 0.0, "map": val_map or 0.0}
    return figures[monitor], -val_loss


def find_least_share(recipe: Recipe, *, batch_norm: bool) -> int:
    """Images that each process needs of a batch: batch norm on its own ones cannot train on a single image."""
    return 2 if batch_norm and not (recipe.sync_norm or recipe.freeze_norm) else 1


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_OPTIONAL = {"batch_size", "learning_rate", "weight_decay", "step_epochs", "ema_decay", "patience"}
_OPTIONAL |= {"rand_augment", "batch_norm_momentum", "shift_pixels"}
_Rule = tuple[Callable[[Any], bool], str]
_POSITIVE: _Rule = (lambda value: is_number(value) and value > 0, "a number above 0")
_NOT_NEGATIVE: _Rule = (lambda value: is_number(value) and value >= 0, "a number of 0 or more")
_SHARE: _Rule = (lambda value: is_number(value) and 0 <= value < 1, "in [0, 1)")
_INSIDE: _Rule = (lambda value: is_number(value) and 0 < value < 1, "between 0 and 1")
_COUNT: _Rule = (lambda value: _is_whole(value) and value >= 1, "a whole number of 1 or more")
_SWITCH: _Rule = (lambda value: isinstance(value, bool), "true or false")
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(
        ("epochs", "batch_size", "step_epochs", "accumulate", "patience", "views", "shift_pixels"), _COUNT
    ),
    "seed": (lambda value: _is_whole(value) and value >= 0, "a whole number of 0 or more"),
    **dict.fromkeys(("learning_rate", "bias_rate_factor"), _POSITIVE),
    "batch_norm_momentum": (lambda value: is_number(value) and 0 < value <= 1, "above 0 and at most 1"),
    **dict.fromkeys(("clip_norm", "weight_decay", "warmup_epochs", "mixup", "cutmix"), _NOT_NEGATIVE),
    **dict.fromkeys(("momentum", "label_smoothing"), _SHARE),
    **dict.fromkeys(("validation_share", "ema_decay"), _INSIDE),
    "layer_decay": (lambda value: is_number(value) and 0 < value <= 1, "above 0 and at most 1"),
    "random_erasing": (lambda value: is_number(value) and 0 <= value <= 1, "in [0, 1]"),
    "rand_augment": (lambda value: _is_whole(value) and 0 <= value <= 30, "a whole number from 0 to 30"),
    **dict.fromkeys(("freeze_norm", "sync_norm", "split_head", "whitening"), _SWITCH),
}
TOGETHER = {"sync_norm": False, "gradient_compression": "none", "split_head": False}
"""Fields that only training on several processes uses, with their defaults."""
STEPWISE = {
    field.name: field.default
    for field in fields(Recipe)
    if field.name
    in (
        *("learning_rate", "weight_decay", "layer_decay", "accumulate", "ema_decay", "patience"),
        *("mixup", "cutmix", "optimizer", "freeze_norm", *TOGETHER),
        *("bias_rate_factor", "whitening", "batch_norm_momentum"),
    )
}
"""Fields that only training by gradient descent uses, with their defaults."""
