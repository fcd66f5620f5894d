"""Paired comparison of Classifiers on the same images, and ensembles of Classifiers.

Shape letters: N images, K classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from vggkit.arguments import demand_count
from vggkit.errors import BadData, BadInput
from vggkit.evaluation.evaluation import Evaluation, Interval
from vggkit.evaluation.label_predictions import MultiLabelPredictions
from vggkit.evaluation.metrics import score
from vggkit.evaluation.predictions import Predictions, average
from vggkit.task import USUAL_THRESHOLD

RESAMPLES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Change:
    """An image that only one of two Classifiers predicts correctly."""

    path: str
    """Path of the image."""
    label: str
    """The true class."""
    first: str
    """The class predicted by the first Classifier."""
    second: str
    """The class predicted by the second Classifier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedComparison:
    """Accuracy of two Classifiers on the same images, with a test of the difference."""

    first: str
    """Name of the first Classifier."""
    second: str
    """Name of the second Classifier."""
    difference: float
    """Top-1 accuracy of the second minus that of the first, in [-1, 1]; multi-label the share of images of which
    exactly the labels are predicted."""
    interval: Interval
    """95 % bootstrap confidence interval of `difference`, with the same resampled images for both."""
    p_value: float
    """Two-sided p-value of McNemar's exact test (McNemar, 1947) of equal accuracy."""
    both_correct: int
    """Number of images that both predict correctly."""
    only_first: int
    """Number of images that only the first predicts correctly."""
    only_second: int
    """Number of images that only the second predicts correctly."""
    both_wrong: int
    """Number of images that both predict wrongly."""
    n: int
    """Number of images."""
    changes: tuple[Change, ...]
    """The images that only one of them predicts correctly."""
    figure: str = "accuracy"
    """What is compared: accuracy, or for multi-label exact match."""

    def describe(self) -> str:
        """The result in one sentence."""
        low, high = self.interval
        verdict = "not significant" if low <= 0 <= high or self.p_value >= 0.05 else "significant"
        return (
            f"{self.second} compared with {self.first}: {100 * self.difference:+.1f} percentage points of "
            f"{self.figure} "
            f"(95 % CI {100 * low:+.1f} to {100 * high:+.1f}), correct only in one: {self.only_second} against "
            f"{self.only_first}, McNemar p {_format_p(self.p_value)}, n = {self.n}: {verdict}"
        )

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return asdict(self) | {"interval": list(self.interval), "changes": [asdict(each) for each in self.changes]}


def compare_predictions(
    first: Predictions, second: Predictions, *, names: tuple[str, str] = ("the first", "the second"), seed: int = 0
) -> PairedComparison:
    """Compare the accuracy of two Classifiers on the images that both predictions tables have.

    Args:
        first: The predictions of the first, such as `Evaluation.predictions` or `Predictions.read(path)`.
        second: The predictions of the second; its classes may be in another order.
        names: The names of the two Classifiers.
        seed: Determines the bootstrap resamples.

    Raises BadData where the tables have no common images or different classes, BadInput for other arguments.
    """
    for predictions in (first, second):
        if not isinstance(predictions, Predictions):
            got = type(predictions).__name__
            raise BadInput(f"compare_predictions takes two Predictions, such as Evaluation.predictions; got {got}")
    seed = demand_count("seed", seed, least=0)
    one, two = _align([first, second], names)
    gain = two.correct.astype(np.int64) - one.correct.astype(np.int64)
    n = len(gain)
    generator = np.random.default_rng(seed)
    # A resample is fully described by how many images of each kind it has.
    only_second, only_first = int((gain > 0).sum()), int((gain < 0).sum())
    kinds = generator.multinomial(
        n, [only_second / n, only_first / n, 1 - (only_second + only_first) / n], RESAMPLES
    )
    low, high = np.percentile((kinds[:, 0] - kinds[:, 1]) / n, [2.5, 97.5])
    return PairedComparison(
        first=names[0],
        second=names[1],
        difference=float(gain.mean()),
        interval=(float(low), float(high)),
        p_value=mcnemar_p_value(only_first, only_second),
        figure="accuracy" if one.task == "single-label" else "exact match",
        both_correct=int((one.correct & two.correct).sum()),
        only_first=only_first,
        only_second=only_second,
        both_wrong=int((~one.correct & ~two.correct).sum()),
        n=n,
        changes=tuple(
            Change(
                path=one.paths[place],
                label=one.name_target(place),
                first=one.name_predicted(place),
                second=two.name_predicted(place),
            )
            for place in np.flatnonzero(gain).tolist()
        ),
    )


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test; the arguments are images that only one of two predicts correctly.

    The same as `scipy.stats.binomtest(only_first, only_first + only_second).pvalue`.

    >>> round(mcnemar_p_value(2, 10), 4)
    0.0386
    """
    n, least = only_first + only_second, min(only_first, only_second)
    ways = tail = 1
    for k in range(least):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    return float(min(1.0, 2 * tail / 2**n))


def fuse(evaluations: Sequence[Evaluation], *, wanted_precision: float | None = None) -> Evaluation:
    """Evaluate the ensemble of several Classifiers, by averaged probabilities (paper, section 4.5).

    Args:
        evaluations: Two or more evaluations on the same images and classes.
        wanted_precision: Search for the confidence threshold that gives this precision, above 0 and at most 1.

    Raises BadData where the images or classes differ, BadInput where the arguments are no evaluations.
    """
    found = list(evaluations) if isinstance(evaluations, Iterable) else []
    if not found or not all(isinstance(each, Evaluation) for each in found):
        raise BadInput("fuse takes a list of two Evaluations or more, as evaluate returns them")
    names = [each.model for each in evaluations]
    aligned = _align([each.predictions for each in evaluations], names)
    protocols = list(dict.fromkeys(each.protocol for each in evaluations))
    return score(
        _join(aligned),
        data=evaluations[0].data,
        split=evaluations[0].split,
        model=" + ".join(names),
        protocol=f"ensemble, averaged probabilities; {'; '.join(protocols)}",
        wanted_precision=wanted_precision,
        unreadable=tuple(dict.fromkeys(problem for each in evaluations for problem in each.unreadable)),
        images=evaluations[0].images,
        averaged=True,
        notes=tuple(dict.fromkeys(note for each in evaluations for note in each.notes)),
    )


def _join(aligned: Sequence[Predictions]) -> Predictions:
    """The predictions of the ensemble: mean probabilities, and of several labels mean thresholds."""
    logs = average([each.log_probabilities for each in aligned])
    first = aligned[0]
    if not isinstance(first, MultiLabelPredictions):
        return replace(first, log_probabilities=logs)
    usual = (USUAL_THRESHOLD,) * len(first.labels)
    thresholds = [each.thresholds or usual for each in aligned if isinstance(each, MultiLabelPredictions)]
    return replace(first, log_probabilities=logs, thresholds=tuple(np.mean(thresholds, axis=0).tolist()))


def _align(several: Sequence[Predictions], names: Sequence[str]) -> list[Predictions]:
    """The common images of all, in the order of images and classes of the first."""
    first = several[0]
    for predictions, name in zip(several, names, strict=True):
        if predictions.task != first.task:
            raise BadData(
                f"{names[0]} is {first.task} and {name} is {predictions.task}: their predictions cannot be compared"
            )
        if set(predictions.labels) != set(first.labels):
            other = sorted(set(predictions.labels) ^ set(first.labels))
            raise BadData(
                f"{names[0]} and {name} have different classes ({', '.join(other[:5])}), and "
                "their predictions cannot be compared"
            )
    if all(predictions.paths == first.paths for predictions in several):
        return [predictions.reorder(first.labels) for predictions in several]
    for predictions, name in zip(several, names, strict=True):
        if len(set(predictions.paths)) < len(predictions):
            raise BadData(f"{name}: an image is listed twice, and cannot be matched by its path")
    shared = set(first.paths).intersection(*(predictions.paths for predictions in several))
    if not shared:
        raise BadData(f"{' and '.join(names)} were not measured on the same images")
    aligned = []
    for predictions in several:
        places = {path: place for place, path in enumerate(predictions.paths)}
        rows = np.asarray([places[path] for path in first.paths if path in shared])
        aligned.append(predictions.take(rows).reorder(first.labels))
    return aligned


def _format_p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
