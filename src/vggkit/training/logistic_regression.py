"""The optimal last layer on given features: logistic regression, multinomial or one-vs-rest.

Shape letters: N rows, F features, R rotated features (R <= N, F), K classes, M problems solved together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vggkit.errors import BadData
from vggkit.hardware import derive_seed
from vggkit.task import Task
from vggkit.training.penalized_problem import FeatureSpace, PenalizedProblem, limit_threads

STRENGTHS: Final = tuple(float(f"{value:.2g}") for value in np.geomspace(10, 1e-5, 13))
"""Penalties that are tried, half a power of ten apart, the strongest first."""
FOLDS: Final = 5
MANY: Final = 200_000_000
"""Rows times features times classes beyond which one fold is measured and not all, for time."""
WORSE: Final = 3
"""Strengths in a row without a better loss after which no weaker ones are tried."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A penalty, and the held-out loss that it gives."""

    strength: float
    """Of the penalty."""
    loss: float
    """Mean cross-entropy in nats, without label smoothing, by classifiers that did not see the image; with class
    weights each image counts as its class does. One-vs-rest: mean of the binary ones of the classes."""
    loss_error: float
    """Standard error of `loss`, images of a group counted once."""
    top1: float
    """Share in [0, 1] of rows whose best class is the right one; one-vs-rest of decisions that are right."""
    top1_error: float
    """Standard error of `top1`."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadSolution:
    """The last layer, and how it was chosen."""

    weight: NDArray[np.float32]
    """(K, F)."""
    bias: NDArray[np.float32]
    """(K,)."""
    strength: float
    """Of the penalty, on standardised features: mean loss + strength / 2 times the squared weights' sum."""
    tried: tuple[Trial, ...]
    """Every strength tried, the strong first; none where no image could be held out."""
    iterations: int
    """Steps of L-BFGS to the solution itself."""
    task: Task = "single-label"
    """Multinomial for single-label, one-vs-rest for multi-label."""

    def compute_logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, K) of features (N, F)."""
        logits: NDArray[np.float32] = features @ self.weight.T + self.bias
        return logits

    def describe(self) -> list[str]:
        """The choice, in sentences."""
        if not self.tried:
            return [f"penalty {self.strength:g}: too few images to hold some out and choose by them"]
        chosen = next(trial for trial in self.tried if trial.strength == self.strength)
        return [
            f"penalty {self.strength:g} of {len(self.tried)} tried: held-out loss {chosen.loss:.4f} ± "
            f"{chosen.loss_error:.4f}, {'top-1' if self.task == 'single-label' else 'labels and absences right'} "
            f"{chosen.top1:.4f} ± {chosen.top1_error:.4f}"
        ]


def solve_head(
    features: NDArray[np.float32],
    targets: NDArray[Any],
    *,
    classes: int,
    groups: NDArray[np.int64],
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    strengths: Sequence[float] | None = None,
) -> HeadSolution:
    """The linear layer of the least cross-entropy with a penalty, chosen by cross-validation.

    The loss is torch's `cross_entropy` with these weights and this smoothing; for targets (N, K) it is the sum over
    the classes of `binary_cross_entropy_with_logits`, so that each class is a logistic regression of its own with
    the same strength (one-vs-rest). The penalty is on the weights
    of standardised features, and not on the bias. Its strength is that of the least mean loss of held-out
    images: the stronger one within a standard error of it, which is often taken, gave 1 to 5 points less
    top-1 on five of seven samples of real photos, and 0.4 more on one. Each fold holds whole groups, and
    each class as evenly as that allows. Where a class is absent from a fold's training part, its held-out
    rows do not count.

    Features are rotated onto their principal axes first, which are no more than the rows: the penalty stays
    what it is, and without correlations L-BFGS ends after a few dozen steps. All folds are solved
    together, for reading the rows costs more than computing with them.

    Args:
        features: (N, F), finite.
        targets: (N,) numbers of classes, 0 to K - 1; or (N, K), 1 for each label of the row and else 0.
        classes: K; those without a row are never given much of a chance.
        groups: (N,) equal numbers for rows that must stay together.
        class_weights: (K,) the weight of each class, one-vs-rest of its positive rows; None: equal weights.
        label_smoothing: Share in [0, 1) of the target spread over all classes.
        seed: The folds depend on it alone.
        on_progress: Called with the number of strengths tried and of all.
        strengths: Penalties to try, each above 0; one alone is taken as it is.

    Raises BadData for features that are not finite.
    """
    if not np.isfinite(features).all():
        raise BadData(
            "features are not finite: values grow too large in this network; check its weights and preprocessing"
        )
    with limit_threads(features.size * classes * FOLDS):
        space = FeatureSpace.of(features)
        task: Task = "single-label" if targets.ndim == 1 else "multi-label"
        goals, against, counts = _spread(targets, classes, class_weights, label_smoothing)
        order = sorted(set(STRENGTHS if strengths is None else strengths), reverse=True)
        tried: tuple[Trial, ...] = ()
        folds = divide(targets, groups, seed=seed)
        if len(order) > 1 and folds.max() > 0:
            # The selection needs low precision.
            measured = 1 if space.rows.numel() * classes > MANY else int(folds.max()) + 1
            held = torch.from_numpy(folds)[:, None] == torch.arange(measured)
            problem = PenalizedProblem(space.rows, goals, _share(counts, ~held), space.scales, against).to(
                torch.float32
            )
            tried = _cross_validate(
                problem, targets, counts=counts.numpy(), groups=groups, strengths=order, on_progress=on_progress
            )
        strength = min(tried, key=lambda trial: trial.loss).strength if tried else order[len(order) // 2]
        everything = _share(counts, torch.ones(len(counts), 1, dtype=torch.bool))
        problem = PenalizedProblem(space.rows, goals, everything, space.scales, against).to(space.rows.dtype)
        solved, iterations = problem.solve(strength, problem.start(), flat=0.0)
        weight, bias = space.unfold(solved[0])
    return HeadSolution(weight, bias, strength, tried, iterations, task)


def _spread(
    targets: NDArray[Any], classes: int, class_weights: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Target shares (N, K) of torch's losses for each row, for and one-vs-rest against, and its divisors (N,)."""
    if targets.ndim == 2:
        weights = (
            torch.ones(classes, dtype=torch.float64) if class_weights is None else class_weights.double().cpu()
        )
        true = torch.from_numpy(targets).double() * (1 - label_smoothing) + label_smoothing / 2
        return true * weights, 1 - true, torch.ones(len(targets), dtype=torch.float64)
    right = torch.nn.functional.one_hot(torch.from_numpy(targets), classes).double()
    weights = torch.ones(classes, dtype=torch.float64) if class_weights is None else class_weights.double().cpu()
    goals = ((1 - label_smoothing) * right + label_smoothing / classes) * weights
    return goals, None, right @ weights


def _share(counts: Tensor, learnt: Tensor) -> Tensor:
    """The weight (N, M) of each row's loss in the mean over the training rows (N, M)."""
    return learnt / (learnt * counts[:, None]).sum(0)


def divide(targets: NDArray[Any], groups: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """The fold (N,) of each row: groups stay whole, and each class is spread as evenly as that allows.

    There are five, or as many as there are groups. Of rows with several labels the rarest is spread.
    """
    _, members = np.unique(groups, return_inverse=True)
    if targets.ndim == 2:
        rarity = np.where(targets > 0, 1 / np.maximum(targets.sum(0), 1), 0)
        targets = np.where(targets.any(1), rarity.argmax(1), targets.shape[1])
    votes = np.zeros((members.max() + 1, targets.max() + 1), np.int64)
    np.add.at(votes, (members, targets), 1)
    order = np.random.default_rng(derive_seed(seed, "folds")).permutation(len(votes))
    order = order[np.argsort(votes.argmax(1)[order], kind="stable")]
    folds = np.empty(len(votes), np.int64)
    folds[order] = np.arange(len(votes)) % FOLDS
    found: NDArray[np.int64] = folds[members]
    return found


def _cross_validate(
    problem: PenalizedProblem,
    targets: NDArray[Any],
    *,
    counts: NDArray[np.float64],
    groups: NDArray[np.int64],
    strengths: Sequence[float],
    on_progress: Callable[[int, int], None] | None,
) -> tuple[Trial, ...]:
    """Each strength measured on held-out rows, from the strong to the weak, each starting at the one before."""
    held, own = problem.shares == 0, torch.from_numpy(targets)
    right = own.float() if problem.against is not None else F.one_hot(own, problem.goals.shape[1]).float()
    learnt = ((~held).float().T @ right).T  # (K, M): training rows of each class
    known = right @ learnt > 0  # (N, M): others of its class are training rows
    if problem.against is not None:
        known = torch.ones_like(held)
    measured = (held & known).numpy()
    counted = measured.any(1)
    if not counted.any():
        return ()
    solved, tried = problem.start(), list[Trial]()
    for done, strength in enumerate(strengths, start=1):
        solved, _ = problem.solve(strength, solved, flat=1e-4)
        logits = problem.score(solved).double()
        if problem.against is None:
            logs = logits.log_softmax(2)
            losses = -logs.take_along_dim(own[:, None, None], 2)[:, :, 0].numpy()
            hits = (logs.argmax(2) == own[:, None]).double().numpy()
        else:
            # A label that no training row has counts for nothing there.
            counted_labels = 1 - right[:, None] * (learnt == 0).float().T
            signed = F.softplus(torch.where(own[:, None] > 0, -logits, logits)) * counted_labels
            losses = (signed.sum(2) / counted_labels.sum(2).clamp(min=1)).numpy()
            hits = ((logits > 0) == (own[:, None] > 0)).double().mean(2).numpy()
        loss, top1 = (
            _average((each * measured).sum(1)[counted], weights[counted], groups[counted])
            for each, weights in ((losses, counts), (hits, np.ones(len(hits))))
        )
        tried.append(Trial(strength, *loss, *top1))
        if on_progress:
            on_progress(done, len(strengths))
        best = min(range(len(tried)), key=lambda place: tried[place].loss)
        if len(tried) - 1 - best >= WORSE:
            break
    return tuple(tried)


def _average(
    values: NDArray[np.float64], counts: NDArray[np.float64], groups: NDArray[np.int64]
) -> tuple[float, float]:
    """Mean of values that count so much each, and its standard error as whole groups are drawn."""
    _, members = np.unique(groups, return_inverse=True)
    mean, total = float(np.average(values, weights=counts)), counts.sum()
    strayed = np.bincount(members, counts * (values - mean))
    units = len(strayed)
    return mean, float(np.sqrt((strayed**2).sum() * units / max(1, units - 1)) / total)
