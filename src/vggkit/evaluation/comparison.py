"""Two Classifiers on the same images, and several as one.

Shape letters: N images, K classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vggkit.arguments import demand_count
from vggkit.errors import BadData, BadInput
from vggkit.evaluation.evaluation import Evaluation, Interval
from vggkit.evaluation.metrics import score
from vggkit.evaluation.predictions import Predictions, average

RESAMPLES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Change:
    """An image that one of two Classifiers has right and the other has not."""

    path: str
    """The image."""
    label: str
    """What it shows."""
    first: str
    """What the first said."""
    second: str
    """What the second said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedComparison:
    """Whether the second of two Classifiers is better than the first, or only luckier."""

    first: str
    """What the first is called."""
    second: str
    """What the second is called."""
    difference: float
    """Top-1 of the second less that of the first, in [-1, 1]."""
    interval: Interval
    """95 % bootstrap interval of it; both are measured on the same resampled images."""
    p_value: float
    """McNemar's exact test: chance of a split at least as uneven between images that only one of them has right,
    were both equally good."""
    both_right: int
    """Images."""
    only_first: int
    """Images that the first alone has right."""
    only_second: int
    """Images that the second alone has right."""
    both_wrong: int
    """Images."""
    n: int
    """All of them."""
    changes: tuple[Change, ...]
    """Those that only one of them has right."""

    def describe(self) -> str:
        """In a sentence, for people."""
        low, high = self.interval
        verdict = "the difference may be chance" if low <= 0 <= high or self.p_value >= 0.05 else "more than chance"
        return (
            f"{self.second} against {self.first}: {100 * self.difference:+.1f} points (95 % interval "
            f"{100 * low:+.1f} to {100 * high:+.1f}), right alone {self.only_second} to {self.only_first}, "
            f"McNemar p {_say_p(self.p_value)}, n = {self.n}: {verdict}"
        )

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return asdict(self) | {"interval": list(self.interval), "changes": [asdict(each) for each in self.changes]}


def compare_predictions(
    first: Predictions, second: Predictions, *, names: tuple[str, str] = ("the first", "the second"), seed: int = 0
) -> PairedComparison:
    """Two Classifiers on the images that both were asked about.

    Args:
        first: `Evaluation.answers`, or `Predictions.read` of a table.
        second: The same of another Classifier; its classes may stand in another order.
        names: What the Classifiers are called.
        seed: The interval's resamples depend on it.

    Raises BadData where there are no such images, or the classes have other names.
    """
    for predictions in (first, second):
        if not isinstance(predictions, Predictions):
            got = type(predictions).__name__
            raise BadInput(f"compare_predictions takes two Answers, such as Evaluation.answers; got {got}")
    seed = demand_count("seed", seed, least=0)
    one, two = _align([first, second], names)
    gain = two.correct.astype(np.int64) - one.correct.astype(np.int64)
    n = len(gain)
    generator = np.random.default_rng(seed)
    # How often each kind of image is drawn says all of a resample.
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
        both_right=int((one.correct & two.correct).sum()),
        only_first=only_first,
        only_second=only_second,
        both_wrong=int((~one.correct & ~two.correct).sum()),
        n=n,
        changes=tuple(
            Change(
                path=one.paths[place],
                label=one.labels[one.targets[place]],
                first=one.labels[one.predicted[place]],
                second=one.labels[two.predicted[place]],
            )
            for place in np.flatnonzero(gain)
        ),
    )


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test for images that only one of two has right."""
    n, least = only_first + only_second, min(only_first, only_second)
    ways = tail = 1
    for k in range(least):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    return float(min(1.0, 2 * tail / 2**n))


def fuse(evaluations: Sequence[Evaluation], *, wanted_precision: float | None = None) -> Evaluation:
    """Several Classifiers as one: their probabilities averaged image by image (paper, section 4.5).

    Args:
        evaluations: Two or more, of the same images and classes.
        wanted_precision: As in `evaluate`.

    Raises BadData where they are of other images or classes, BadInput where they are no Evaluations.
    """
    found = list(evaluations) if isinstance(evaluations, Iterable) else []
    if not found or not all(isinstance(each, Evaluation) for each in found):
        raise BadInput("fuse takes a list of what evaluate gave: two Evaluations or more")
    names = [each.model for each in evaluations]
    aligned = _align([each.predictions for each in evaluations], names)
    protocols = list(dict.fromkeys(each.protocol for each in evaluations))
    return score(
        Predictions(
            paths=aligned[0].paths,
            targets=aligned[0].targets,
            log_probabilities=average([each.log_probabilities for each in aligned]),
            labels=aligned[0].labels,
        ),
        data=evaluations[0].data,
        split=evaluations[0].split,
        model=" + ".join(names),
        protocol=f"probabilities averaged, of {'; '.join(protocols)}",
        wanted_precision=wanted_precision,
        unreadable=tuple(dict.fromkeys(problem for each in evaluations for problem in each.unreadable)),
        images=evaluations[0].images,
        averaged=True,
        notes=tuple(dict.fromkeys(note for each in evaluations for note in each.notes)),
    )


def _align(several: Sequence[Predictions], names: Sequence[str]) -> list[Predictions]:
    """The same images and classes of each, in the first one's order."""
    first = several[0]
    for predictions, name in zip(several, names, strict=True):
        if set(predictions.labels) != set(first.labels):
            other = sorted(set(predictions.labels) ^ set(first.labels))
            raise BadData(
                f"{names[0]} and {name} do not name the same classes ({', '.join(other[:5])}), "
                "and their answers cannot be held against each other"
            )
    if all(predictions.paths == first.paths for predictions in several):
        return [_keep(predictions, np.arange(len(first)), first) for predictions in several]
    for predictions, name in zip(several, names, strict=True):
        if len(set(predictions.paths)) < len(predictions):
            raise BadData(f"{name}: an image is listed twice, and cannot be found in another's answers by its name")
    shared = set(first.paths).intersection(*(predictions.paths for predictions in several))
    if not shared:
        raise BadData(f"{' and '.join(names)} were not measured on the same images")
    aligned = []
    for predictions in several:
        places = {path: place for place, path in enumerate(predictions.paths)}
        rows = np.asarray([places[path] for path in first.paths if path in shared])
        aligned.append(_keep(predictions, rows, first))
    return aligned


def _keep(predictions: Predictions, rows: NDArray[np.int64], like: Predictions) -> Predictions:
    """Some rows, with the classes in another's order."""
    columns = _order(predictions.labels, like.labels)
    return Predictions(
        paths=tuple(predictions.paths[row] for row in rows),
        targets=np.argsort(columns)[predictions.targets[rows]],
        log_probabilities=predictions.log_probabilities[rows][:, columns],
        labels=like.labels,
    )


def _order(labels: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int64]:
    """(K,) where each of the wanted labels is."""
    numbers = {label: number for number, label in enumerate(labels)}
    return np.asarray([numbers[label] for label in wanted], np.int64)


def _say_p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
