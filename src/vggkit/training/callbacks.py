"""What a training reports: while it runs to its callbacks, and in the end as its result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vggkit.interruption import Signals
from vggkit.models.vgg import VGG
from vggkit.training.checkpoint import Epoch
from vggkit.training.linear_probe import LinearProbe
from vggkit.training.recipe import Monitor, Recipe, rank_epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """The callbacks of a training, and its stop signal."""

    on_step: Callable[[str, int, int | None], None] = lambda what, done, total: None
    """Called with the current task, how much of it is done, and of how much."""
    on_epoch: Callable[[tuple[Epoch, ...], VGG], None] = lambda history, network: None
    """Called after each epoch with all epochs so far and the network, as it is to be saved; before the state of
    the epoch is saved. Of several processes the first one calls it."""
    should_stop: Callable[[Epoch], object] = lambda epoch: False
    """Called after each epoch, when its state is saved; a true value ends the training. Of several processes the
    first one calls it."""
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


def is_over(history: Sequence[Epoch], recipe: Recipe, *, log: Callable[[str], None]) -> bool:
    """Whether a training has no epochs to come; logs a sentence if it stops early."""
    if not history or history[-1].epoch < 1:
        return False
    if history[-1].epoch >= recipe.epochs:
        return True
    best = min(history, key=lambda epoch: epoch.val_loss)
    if recipe.patience is None or history[-1].epoch - best.epoch < recipe.patience:
        return False
    log(f"stopped early: {recipe.patience} epochs without a better validation loss than epoch {best.epoch}'s")
    return True
