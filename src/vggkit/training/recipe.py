"""How to learn: the `Recipe`, one frozen value. What it leaves open is chosen in `settling`. No torch here."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args, get_type_hints

from vggkit.arguments import is_number, plain_number
from vggkit.errors import BadConfiguration, BadInput, UnknownName
from vggkit.images.splits import read_fold

Trainable = Literal["auto", "head", "top", "all", "gradual"]
Optimizer = Literal["sgd", "adamw", "muon"]
Schedule = Literal["cosine", "step", "one-cycle", "constant"]
Precision = Literal["auto", "fp32", "bf16", "amp"]
Augmentation = Literal["auto", "none", "shift", "photo"]
Mirror = Literal["auto", "none", "random", "alternating"]
Balance = Literal["none", "weights", "sampling"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a Classifier learns.

    A field that is None or auto is chosen when the network, the data and the machine are known, and the
    choice is said. Raises BadConfiguration for values that cannot be, or contradict each other.
    """

    trainable: Trainable = "auto"
    """What learns. head: the last layer alone, on features computed once. top: the fully connected layers and the
    last block. all. gradual: the head first, then block after block from the top. auto: head for few images
    from given weights, else all."""
    epochs: int = 10
    """How often each training image is seen; head alone needs no epochs."""
    batch_size: int | None = None
    """Images a step; by default what the memory holds and the machine does fast, 32 at most at 224 pixels."""
    optimizer: Optimizer = "sgd"
    """sgd (Nesterov), adamw, or muon: convolutions by Muon, the rest by AdamW."""
    learning_rate: float | None = None
    """Highest learning rate; by default it follows batch norm, the optimizer, the batch and given weights."""
    layer_decay: float = 1.0
    """Each layer below the head learns at this share in (0, 1] of the rate of the one above it."""
    momentum: float = 0.9
    """Of sgd and muon, in [0, 1)."""
    weight_decay: float | None = None
    """Penalty on kernels and matrices, never on biases and norms; by default 5e-4 (added to the gradient) for
    sgd, 0.05 (decoupled) for the others."""
    schedule: Schedule = "cosine"
    """After the warm-up: cosine down to zero, step (see step_epochs), one-cycle (up for 30 % of the time, then
    down), or constant."""
    step_epochs: int | None = None
    """For schedule=step: epochs between divisions by 10; by default a third of all."""
    warmup_epochs: float = 1.0
    """Epochs in which the learning rate rises from near zero, half of all at most; without it a plain VGG may
    diverge."""
    clip_norm: float = 1.0
    """Longest gradient of a step, all weights together; 0: as it comes."""
    accumulate: int = 1
    """Batches whose gradients are added up for one step."""
    precision: Precision = "auto"
    """fp32. bf16: the network computes in bfloat16 and learns in float32. amp: autocast. auto: bf16 where the
    processor or GPU has it."""
    freeze_norm: bool = False
    """Batch norm stays as given: its scales and its running statistics too."""
    ema_decay: float | None = None
    """Keep the exponential moving average of the weights, with this share in (0, 1) of the old ones a step."""
    patience: int | None = None
    """Stop after so many epochs without a better validation loss."""
    label_smoothing: float = 0.0
    """Share in [0, 1) of the target spread over all classes."""
    augmentation: Augmentation = "auto"
    """photo: random crops. shift: moved a little. auto: photo from 64 pixels on, shift below."""
    mirror: Mirror = "auto"
    """random: half the views. alternating: each image one way and the other in turn. auto: random for photos, and
    none for what is shifted, which may be letters."""
    rand_augment: int | None = None
    """Magnitude, 0 to 30, of RandAugment's two random operations a view; 9 is usual."""
    random_erasing: float = 0.0
    """Chance in [0, 1] that a random rectangle of a view is erased."""
    mixup: float = 0.0
    """Alpha of mixup: images of a batch blended with each other; 0.2 is usual, 0 is none."""
    cutmix: float = 0.0
    """Alpha of CutMix: rectangles pasted from each other; 1 is usual, 0 is none. With mixup: either one."""
    balance: Balance = "none"
    """weights: rare classes count more. sampling: they are seen more often."""
    views: int = 1
    """For trainable=head: ways each image is seen; the first as when predicting, the others augmented."""
    validation_share: float = 0.2
    """Share in (0, 1) of each class held out, where the data has no validation split."""
    fold: str | None = None
    """Such as 2/5: train on all but the second of five folds and validate on it; its own splits are joined."""
    seed: int = 0
    """Every random draw depends on it, the epoch, the step and the image, and on nothing else."""

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
        """What each value allows by itself may contradict another's."""

        def refuse(holds: bool, contradiction: str) -> None:
            if holds:
                raise BadConfiguration(contradiction)

        refuse(
            self.step_epochs is not None and self.schedule != "step",
            f"step_epochs={self.step_epochs} belongs to schedule=step, and schedule is {self.schedule}",
        )
        refuse(
            self.views > 1 and self.trainable not in ("auto", "head"),
            f"views={self.views} belongs to trainable=head, and trainable is {self.trainable}; "
            "elsewhere each epoch has views of its own",
        )
        refuse(
            self.trainable == "gradual" and self.epochs < 2,
            f"trainable=gradual unfreezes epoch by epoch, and epochs is {self.epochs}; give it 2 or more",
        )
        refuse(
            self.balance == "weights" and bool(self.mixup or self.cutmix),
            "balance=weights has no class to go by in images that mixup or cutmix blend; take balance=sampling",
        )
        refuse(
            self.optimizer == "adamw" and self.momentum != 0.9,
            f"momentum={self.momentum} belongs to sgd and muon, and optimizer is adamw",
        )
        refuse(
            self.schedule == "one-cycle" and self.warmup_epochs != 1.0,
            f"warmup_epochs={self.warmup_epochs} does not go with schedule=one-cycle, which rises by itself",
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
                    f"{name}={value} belongs to learning by steps, and trainable=head is solved at once; "
                    f"leave {name}, or take trainable=top or all",
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


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_OPTIONAL = {"batch_size", "learning_rate", "weight_decay", "step_epochs", "ema_decay", "patience"}
_OPTIONAL |= {"rand_augment"}
_Rule = tuple[Callable[[Any], bool], str]
_POSITIVE: _Rule = (lambda value: is_number(value) and value > 0, "a number above 0")
_NOT_NEGATIVE: _Rule = (lambda value: is_number(value) and value >= 0, "a number of 0 or more")
_SHARE: _Rule = (lambda value: is_number(value) and 0 <= value < 1, "in [0, 1)")
_INSIDE: _Rule = (lambda value: is_number(value) and 0 < value < 1, "between 0 and 1")
_COUNT: _Rule = (lambda value: _is_whole(value) and value >= 1, "a whole number of 1 or more")
_SWITCH: _Rule = (lambda value: isinstance(value, bool), "true or false")
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("epochs", "batch_size", "step_epochs", "accumulate", "patience", "views"), _COUNT),
    "seed": (lambda value: _is_whole(value) and value >= 0, "a whole number of 0 or more"),
    "learning_rate": _POSITIVE,
    **dict.fromkeys(("clip_norm", "weight_decay", "warmup_epochs", "mixup", "cutmix"), _NOT_NEGATIVE),
    **dict.fromkeys(("momentum", "label_smoothing"), _SHARE),
    **dict.fromkeys(("validation_share", "ema_decay"), _INSIDE),
    "layer_decay": (lambda value: is_number(value) and 0 < value <= 1, "above 0 and at most 1"),
    "random_erasing": (lambda value: is_number(value) and 0 <= value <= 1, "in [0, 1]"),
    "rand_augment": (lambda value: _is_whole(value) and 0 <= value <= 30, "a whole number from 0 to 30"),
    "freeze_norm": _SWITCH,
}
STEPWISE = {
    field.name: field.default
    for field in fields(Recipe)
    if field.name
    in (
        *("learning_rate", "weight_decay", "layer_decay", "accumulate", "ema_decay", "patience"),
        *("mixup", "cutmix", "optimizer", "freeze_norm"),
    )
}
"""Fields that only learning by steps has, with their defaults."""
