"""How to learn: the `Recipe`, and what is chosen where it is silent. No torch here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, get_args

from vggkit.errors import BadConfiguration, BadInput, UnknownName
from vggkit.images.preprocessing import Preprocessing
from vggkit.images.splits import read_fold
from vggkit.networks.configurations import Configuration

Augmentation = Literal["auto", "none", "shift", "photo"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a Classifier learns: SGD with Nesterov momentum, warm-up, then a cosine down to zero.

    Raises BadConfiguration for values that cannot be.
    """

    epochs: int = 10
    """How often each training picture is seen."""
    batch_size: int = 32
    """Pictures a step."""
    learning_rate: float | None = None
    """Highest learning rate; by default 0.01, with batch norm 0.03, and a tenth of it from given weights."""
    momentum: float = 0.9
    """Nesterov momentum in [0, 1)."""
    weight_decay: float = 5e-4
    """L2 penalty on kernels and matrices; biases and batch norm have none."""
    warmup_epochs: float = 1.0
    """Epochs in which the learning rate rises from near zero; without it a plain VGG may diverge."""
    clip_norm: float = 1.0
    """Longest gradient of a step, all weights together."""
    label_smoothing: float = 0.0
    """Share in [0, 1) of the target spread over all classes."""
    augmentation: Augmentation = "auto"
    """photo: random crops, mirrored. shift: moved a little. auto: photo from 64 pixels on, shift below."""
    validation_share: float = 0.2
    """Share in (0, 1) of each class held out, where the data has no validation part."""
    fold: str | None = None
    """Such as 2/5: learn from all but the second of five folds and check on it; the data's own parts are joined."""
    seed: int = 0
    """Every random draw depends on it, the epoch, the step and the picture, and on nothing else."""

    def __post_init__(self) -> None:
        def demand(holds: bool, name: str, rule: str) -> None:
            if not holds:
                raise BadConfiguration(f"{name} must be {rule}; got {getattr(self, name)!r}")

        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            demand(_is_whole(value) and value >= least, name, f"a whole number of {least} or more")
        rate = self.learning_rate
        demand(rate is None or (_is_number(rate) and rate > 0), "learning_rate", "a number above 0")
        demand(_is_number(self.clip_norm) and self.clip_norm > 0, "clip_norm", "a number above 0")
        for name in ("momentum", "label_smoothing"):
            value = getattr(self, name)
            demand(_is_number(value) and 0 <= value < 1, name, "in [0, 1)")
        for name in ("weight_decay", "warmup_epochs"):
            value = getattr(self, name)
            demand(_is_number(value) and value >= 0, name, "a number of 0 or more")
        share = self.validation_share
        demand(_is_number(share) and 0 < share < 1, "validation_share", "between 0 and 1")
        if self.fold is not None:
            try:
                read_fold(self.fold)
            except BadInput as problem:
                raise BadConfiguration(str(problem)) from problem
        allowed = get_args(Augmentation)
        demand(self.augmentation in allowed, "augmentation", f"one of {', '.join(allowed)}")

    def to_dict(self) -> dict[str, Any]:
        """A value for YAML or JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The recipe that `to_dict` gave; raises BadConfiguration for anything else."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise BadConfiguration(str(UnknownName.of("field of a recipe", name, known)))
        return cls(**values)


def settle(
    recipe: Recipe, configuration: Configuration, preprocessing: Preprocessing, *, pretrained: bool
) -> tuple[Recipe, list[str]]:
    """The recipe with every choice made, and a sentence on each choice that was made here."""
    reasons = []
    if recipe.learning_rate is None:
        normed = configuration.batch_norm
        rate = (0.03 if normed else 0.01) * (0.1 if pretrained else 1.0)
        recipe = replace(recipe, learning_rate=rate)
        reasons.append(
            f"learning rate {rate:g}: {'with' if normed else 'without'} batch norm, "
            f"{'from given weights' if pretrained else 'from random weights'}"
        )
    if recipe.batch_size == 1 and _smallest_normed_side(configuration, preprocessing.crop_pixels) == 1:
        raise BadConfiguration(
            "batch_size must be 2 or more here: batch norm has one value a channel of a single picture "
            f"fed at {preprocessing.crop_pixels} pixels, and nothing to normalise by"
        )
    if recipe.augmentation == "auto":
        side = preprocessing.crop_pixels
        recipe = replace(recipe, augmentation="photo" if side >= 64 else "shift")
        reasons.append(f"augmentation {recipe.augmentation}: pictures are fed at {side} pixels")
    return recipe, reasons


def _smallest_normed_side(configuration: Configuration, pixels: int) -> int:
    """Side of the smallest map that batch norm sees; the picture's own where there is none."""
    side = smallest = pixels
    for layer in configuration.trunk:
        side = side // 2 if layer.kind == "pool" else side
        smallest = side if layer.kind == "bn" else smallest
    return smallest


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_whole(value) or (isinstance(value, float) and abs(value) < float("inf"))
