"""Checks during training that report problems, such as divergence, in a sentence."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Final

from torch import Tensor, nn

from vggkit.models.vgg import VGG
from vggkit.training.checkpoint import Epoch

RISING_EPOCHS: Final = 3
"""Epochs in a row that make a trend."""
MOST_DEAD: Final = 0.5
"""Share of a layer's channels that may be dead before it is reported."""


@contextmanager
def watch_activity(network: VGG, dead: dict[str, float]) -> Iterator[None]:
    """While it lasts, note the share of channels of each ReLU that are zero everywhere in a batch, by layer name.

    A ReLU whose input is never positive gives no gradient, and does not come to life by learning.
    """

    def make_hook(name: str) -> object:
        def hook(_: nn.Module, __: object, maps: Tensor) -> None:
            alive = maps.detach().amax((0, 2, 3)) > 0
            dead[name] = 1 - alive.float().mean().item()

        return hook

    hooks = [
        network.features[layer.index].register_forward_hook(make_hook(layer.name))  # type: ignore[arg-type]
        for layer in network.configuration.trunk
        if layer.kind == "relu"
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class TrainingMonitor:
    """Examines each epoch, and reports each problem once.

    Args:
        train_counts: (K,) training images of each class, counted as often as they are seen.
        val_counts: (K,) number of validation images of each class.
        batch_norm: Whether the network has it.
        images: Where images have several labels: the number of training and of validation images.
    """

    def __init__(
        self,
        *,
        train_counts: Sequence[int],
        val_counts: Sequence[int],
        batch_norm: bool,
        images: tuple[int, int] | None = None,
    ) -> None:
        learnt, count = images or (sum(train_counts), sum(val_counts))
        shares = [count / learnt for count in train_counts if count]
        # The loss of a network that predicts at random, or only the class frequencies.
        entropy = -sum(share * math.log(share) for share in shares)
        self._chance_losses = (math.log(len(train_counts)), entropy)
        if images is not None:
            entropy -= sum((1 - share) * math.log(1 - share) for share in shares if share < 1)
            self._chance_losses = (math.log(2), entropy / len(train_counts))
        # Three standard deviations above the accuracy of always predicting the commonest class.
        share = max(val_counts) / count
        self._chance_top1 = share + 3 * math.sqrt(share * (1 - share) / count) if share < 1 else 1.0
        self._batch_norm = batch_norm
        self._reported: set[str] = set()

    def update(self, history: Sequence[Epoch], dead: Mapping[str, float]) -> list[str]:
        """Warnings about the last epoch of the history that were not reported before.

        Args:
            history: The epochs so far.
            dead: The share of dead channels of each ReLU, see `watch_activity`.
        """
        history = [epoch for epoch in history if epoch.epoch]  # a given start was not trained with augmentation
        if not history:
            return []
        found = {
            "stuck": self._find_stuck(history),
            "dead": self._find_dead(dead),
            "overfitting": _find_overfitting(history),
        }
        new = {kind: sentence for kind, sentence in found.items() if sentence and kind not in self._reported}
        self._reported |= new.keys()
        return list(new.values())

    def _find_stuck(self, history: Sequence[Epoch]) -> str | None:
        last = history[-1]
        near = [chance for chance in self._chance_losses if abs(last.train_loss - chance) < 0.02 * chance]
        if not near or last.val_top1 > self._chance_top1 or last.epoch < 2:
            return None
        advice = "a lower or a higher learning rate (--find-learning-rate looks for one)"
        if not self._batch_norm:
            advice += ", more --warmup-epochs, or the same network with batch norm (its name with _bn)"
        return (
            f"the loss stays at {last.train_loss:.3f}, which is the loss of guessing ({near[0]:.3f} by the number "
            f"of classes or their frequencies): the network does not learn. Try {advice}"
        )

    def _find_dead(self, dead: Mapping[str, float]) -> str | None:
        worst = max(dead, key=lambda name: dead[name], default=None)
        if worst is None or dead[worst] <= MOST_DEAD:
            return None
        return (
            f"{dead[worst]:.0%} of the channels of {worst} are zero for every image of a batch: dead "
            "ReLUs, which no gradient reaches any more. A lower learning rate or a longer warm-up keeps them alive"
        )


def _find_overfitting(history: Sequence[Epoch]) -> str | None:
    recent = history[-RISING_EPOCHS - 1 :]
    if len(recent) <= RISING_EPOCHS:
        return None
    pairs = list(pairwise(recent))
    rising = all(after.val_loss > before.val_loss for before, after in pairs)
    falling = all(after.train_loss < before.train_loss for before, after in pairs)
    if not (rising and falling):
        return None
    return (
        f"the validation loss has risen for {RISING_EPOCHS} epochs while the training loss fell: the network "
        "memorises these images. The best epoch is saved; --patience 3 would stop here, and stronger "
        "augmentation, label smoothing or fewer layers to learn (--trainable) help"
    )
