"""A linear probe: the last layer alone, fitted to the features of every image, which are computed once.

Fine-tuning from loaded weights begins with it where the last layer is random, which would else distort the
features before it knows anything (LP-FT: Kumar et al. 2022, "Fine-tuning can distort pretrained features",
arXiv:2202.10054).

Shape letters: N images, K classes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from vggkit.images.dataset import ImageSample
from vggkit.training.caller_settings import CallerSettings
from vggkit.training.checkpoint import Epoch
from vggkit.training.distributed.process_group import SINGLE, ProcessGroup
from vggkit.training.durations import spell_duration
from vggkit.training.feature_cache import Features, extract_features
from vggkit.training.logistic_regression import HeadSolution, solve_head
from vggkit.training.objective import Objective
from vggkit.training.recipe import Recipe
from vggkit.weights.model import Model


@dataclass(frozen=True, slots=True, eq=False)
class LinearProbe:
    """The fitted last layer, and its logits of each split."""

    solution: HeadSolution
    """The layer, and how its penalty was chosen."""
    features: Mapping[str, Features]
    """The features, by split; several rows an image in `train`, where it is seen in several views. Of several
    processes the first one has them."""
    epoch: Epoch
    """Its losses and its validation accuracy, as those of an epoch."""
    feature_scale: float
    """Root mean square of what the last layer reads of the training images."""

    def compute_logits(self, split: str) -> NDArray[np.float32]:
        """Logits (N, K) of a split's rows."""
        return self.solution.compute_logits(self.features[split].rows)

    def to_provenance(self) -> dict[str, float | int]:
        """The entry on the solution in the provenance of the Classifier's file."""
        return {"l2_penalty": self.solution.strength, "tried": len(self.solution.tried)}


def needs_probe(classifier: Model, caller_settings: CallerSettings) -> bool:
    """Whether fine-tuning begins with a linear probe: the last layer alone is random, and free to learn."""
    last, origin = classifier.configuration.fully_connected[-1], classifier.origin
    if origin.kind != "loaded" or last.rank is not None:
        return False
    place = f"classifier.{last.index}."
    if any(key.startswith(place) for key in caller_settings.frozen):
        return False
    return bool(origin.random_keys) and all(key.startswith(place) for key in origin.random_keys)


def fit_probe(
    classifier: Model,
    splits: Mapping[str, Sequence[ImageSample]],
    recipe: Recipe,
    *,
    device: torch.device,
    epoch: int,
    on_progress: Callable[[str, int, int], None],
    log: Callable[[str], None],
    group: ProcessGroup = SINGLE,
) -> LinearProbe:
    """Fit the last layer of a Classifier, in place.

    Args:
        classifier: Its last layer is replaced; it must be a full matrix.
        splits: `train`, whose images the layer is solved on, `val`, and perhaps `test`.
        recipe: Resolved.
        device: Where features are computed.
        epoch: The number under which its losses are reported.
        on_progress: Called with the current task, how much of it is done, and of how much.
        log: Called with messages, as sentences.
        group: The processes; each computes features of its part of the images, and the first one solves the layer.

    Raises what `extract_features` and `solve_head` raise.
    """
    started = time.monotonic()
    views = {split: recipe.views if split == "train" else 1 for split in splits}
    counts = {split: len(group.take_share(images)) * views[split] for split, images in splits.items()}
    pace = _Pace(counts, on_progress, log)
    features = {
        split: extract_features(
            classifier,
            images,
            recipe=recipe,
            device=device,
            # Evaluated images are computed as by `evaluate`.
            precision="auto" if split == "train" else "fp32",
            views=views[split],
            on_progress=partial(pace.show, split),
            log=log,
            group=group,
        )
        for split, images in splits.items()
    }

    def solve() -> LinearProbe:
        return _solve(
            Objective.of(recipe, splits["train"], classifier.labels, classifier.task),
            features,
            recipe,
            classes=len(classifier.labels),
            started=started,
            epoch=epoch,
            on_progress=on_progress,
            log=log,
        )

    probe = group.lead(lambda: replace(solve(), features={})) if group.size > 1 else solve()
    probe = replace(probe, features=features)
    last = classifier.network.classifier[-1]
    assert isinstance(last, torch.nn.Linear), "a last layer of two factors is not solved"
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(probe.solution.weight))
        last.bias.copy_(torch.from_numpy(probe.solution.bias))
    return probe


def _solve(
    objective: Objective,
    features: Mapping[str, Features],
    recipe: Recipe,
    *,
    classes: int,
    started: float,
    epoch: int,
    on_progress: Callable[[str, int, int], None],
    log: Callable[[str], None],
) -> LinearProbe:
    """The layer for the features of all images."""
    solution = solve_head(
        features["train"].rows,
        features["train"].targets,
        classes=classes,
        groups=features["train"].groups,
        class_weights=objective.weights,
        label_smoothing=recipe.label_smoothing,
        seed=recipe.seed,
        on_progress=lambda done, total: on_progress("solving the last layer", done, total),
    )
    for sentence in solution.describe():
        log(sentence)

    def measure(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.from_numpy(solution.compute_logits(features[split].rows))
        return logits.double(), torch.from_numpy(features[split].targets)

    measured = objective.measure(*measure("val"))
    return LinearProbe(
        solution,
        features,
        Epoch(
            epoch=epoch,
            learning_rate=0.0,
            # The loss that was minimised, without the penalty.
            train_loss=objective.compute(*measure("train")).item(),
            val_loss=measured.loss,
            val_top1=measured.top1,
            seconds=time.monotonic() - started,
            val_macro_f1=measured.macro_f1,
            val_map=measured.map,
        ),
        feature_scale=float(np.sqrt(np.mean(np.square(features["train"].rows, dtype=np.float64)))),
    )


class _Pace:
    """Shows how many features there are, and logs after the first ones how long those of all splits will take.

    Args:
        counts: Features of each split, in order.
        show: Called with the current task, how much of it is done, and of how much.
        log: Called with a sentence for people.
    """

    def __init__(
        self, counts: Mapping[str, int], show: Callable[[str, int, int], None], log: Callable[[str], None]
    ) -> None:
        self._counts, self._show, self._log = counts, show, log
        self._started, self._first, self._is_logged = 0.0, 0.0, False

    def show(self, split: str, done: int, total: int) -> None:
        """`done` of the `total` images of a split are over."""
        names = list(self._counts)
        before = sum(self._counts[name] for name in names[: names.index(split)])
        over, every = before + self._counts[split] * done / total, sum(self._counts.values())
        if not self._first:  # with these came the engine
            self._started, self._first = time.monotonic(), over
        elapsed = time.monotonic() - self._started
        if elapsed > 1 and over > self._first and not self._is_logged:
            about = elapsed / (over - self._first) * (every - over)
            if about > 2:
                self._log(f"features of {every:,} views of images: about {spell_duration(about)} left")
            self._is_logged = True
        self._show(f"features of {split}, images", done, total)
