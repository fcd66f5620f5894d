"""How good a Classifier is, on labelled pictures it was not trained on.

Shape letters: N pictures, K classes.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.pytorch import PyTorchEngine
from vggkit.engines.stream import stream_answers
from vggkit.errors import BadData, BadInput
from vggkit.hardware import choose_device
from vggkit.images.pictures import Picture, PictureSet, identify_pictures
from vggkit.images.sources import open_pictures
from vggkit.images.splits import hold_out
from vggkit.networks.classifier import Classifier


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured, and on what."""

    top1: float
    """Share in [0, 1] of pictures whose best class is the right one."""
    top1_interval: tuple[float, float]
    """Wilson's 95 % interval of `top1`."""
    top5: float
    """Share of pictures whose right class is among the best five; 1 where there are five classes or fewer."""
    loss: float
    """Mean cross-entropy in nats."""
    n: int
    """Pictures that count: readable, and of a class the Classifier knows."""
    labels: tuple[str, ...]
    """Class names, in the order of the confusion matrix."""
    confusion: tuple[tuple[int, ...], ...]
    """Pictures by right class (row) and given class (column)."""
    data: str
    """Where the pictures come from, and which part of it."""
    unreadable: tuple[str, ...] = ()
    """Pictures left out because they cannot be read, each with its reason."""
    notes: tuple[str, ...] = ()
    """What the reader of the numbers must know."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return asdict(self)


def evaluate(
    classifier: Classifier,
    data: str | Path | PictureSet,
    *,
    split: str | None = None,
    batch_size: int = 32,
    device: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Compare a Classifier's answers with the labels of pictures.

    Args:
        classifier: The Classifier to measure; classes are matched by name.
        data: What `open_pictures` takes, or labelled pictures already opened.
        split: `train`, `val`, `test` or `all`. None: the test part, else the validation part, else
            everything; of a place the Classifier was trained on without parts, the share that
            was held out then.
        batch_size: Pictures that pass through the network together.
        device: `auto`, `cpu`, `cuda`, `mps`.
        on_progress: Called with the number of pictures done and of all.

    Raises BadData where no class of the pictures is known to the Classifier, and BadInput.
    """
    if batch_size < 1:
        raise BadInput(f"batch_size must be 1 or more, got {batch_size}")
    opened = data if isinstance(data, PictureSet) else open_pictures(data)
    part, pictures, notes = _choose(classifier, opened, split)
    unknown = sorted({str(p.label) for p in pictures} - set(classifier.labels))
    if len(unknown) == len({p.label for p in pictures}):
        raise BadData(
            f"{opened.name}: none of its classes ({', '.join(unknown[:5])}) is known to this Classifier "
            f"({', '.join(classifier.labels[:5])})"
        )
    known = [picture for picture in pictures if picture.label in set(classifier.labels)]
    if unknown:
        notes.append(
            f"{len(pictures) - len(known)} pictures of classes unknown to the Classifier were left out: "
            + ", ".join(unknown)
        )
    if absent := sorted(set(classifier.labels) - {str(p.label) for p in known}):
        notes.append(f"no pictures of {', '.join(absent)}: nothing is measured of them")
    engine = PyTorchEngine(classifier.network, choose_device(device))
    rows, targets, unreadable = [], [], []
    index = {label: position for position, label in enumerate(classifier.labels)}
    answers = stream_answers(engine, classifier.preprocessing, known, batch_size=batch_size)
    for done, answer in enumerate(answers, start=1):
        if answer.output is None:
            unreadable.append(str(answer.problem))
        else:
            rows.append(answer.output)
            targets.append(index[str(answer.picture.label)])
        if on_progress:
            on_progress(done, len(known))
    if not rows:
        raise BadData(f"{opened.name}: none of its {len(known)} pictures can be read; the first: {unreadable[0]}")
    return score(
        np.stack(rows),
        np.asarray(targets),
        labels=classifier.labels,
        data=f"{opened.name}, part {part}",
        unreadable=tuple(unreadable),
        notes=tuple(notes),
    )


def _choose(
    classifier: Classifier, opened: PictureSet, split: str | None
) -> tuple[str, tuple[Picture, ...], list[str]]:
    """The part to measure on, its pictures, and what to say about the choice."""
    trained_on = classifier.provenance.get("data", {})
    trained_on = trained_on if isinstance(trained_on, dict) else {}
    same = trained_on.get("fingerprint") == opened.fingerprint()
    notes: list[str] = []
    fold = trained_on.get("fold")
    if same and ("val" not in opened.splits or fold) and split in (None, "val", "train"):
        parts = hold_out(
            opened, validation_share=trained_on["validation_share"], seed=trained_on["seed"], fold=fold
        )
        part = split or ("test" if "test" in parts.splits else "val")
        if split is None and part == "val":
            notes.append(f"of {opened.name} only the part {part} counts: the Classifier was trained on the rest")
    else:
        parts = opened
        part = split or next((name for name in ("test", "val", "all") if name in opened.splits), "")
        if not part:
            raise BadData(
                f"{opened.name}: has only the part train; say --split train to measure on it all the same"
            )
    pictures = parts.part(part)
    held_out = trained_on.get("held_out")
    learnt = part in ("train", "all") if held_out is None else identify_pictures(pictures) not in held_out.values()
    if same and learnt:
        # The same pictures by another way may be divided otherwise than when they were learnt from.
        if split is None and part not in ("train", "all"):
            raise BadData(
                f"{opened.name}: the Classifier was trained on these very pictures, divided otherwise. Give them "
                f"as they were given to train ({trained_on.get('name')}, with the same columns), or say --split to "
                "measure all the same"
            )
        notes = ["the Classifier was trained on these very pictures: the figures say nothing about new ones"]
    return part, pictures, notes


def score(
    logits: NDArray[np.floating[Any]],
    targets: NDArray[np.int_],
    *,
    labels: tuple[str, ...],
    data: str,
    unreadable: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Evaluation:
    """The figures for logits (N, K) and right classes (N,), 0 to K - 1; the rest as in `Evaluation`."""
    n, classes = logits.shape
    wide = logits.astype(np.float64)
    peak = wide.max(axis=1, keepdims=True)
    log_sum = peak[:, 0] + np.log(np.exp(wide - peak).sum(axis=1))
    # Stable, as in prediction: of equal logits the first class counts as the answer.
    order = np.argsort(-wide, axis=1, kind="stable")
    right = order == targets[:, None]
    confusion = np.zeros((classes, classes), dtype=int)
    np.add.at(confusion, (targets, order[:, 0]), 1)
    hits = int(right[:, 0].sum())
    return Evaluation(
        top1=hits / n,
        top1_interval=proportion_interval(hits, n),
        top5=float(right[:, :5].any(axis=1).mean()),
        loss=float((log_sum - wide[np.arange(n), targets]).mean()),
        n=n,
        labels=labels,
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        data=data,
        unreadable=unreadable,
        notes=notes,
    )


def proportion_interval(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share of `hits` in `n`."""
    z = 1.959963984540054  # the normal distribution's 97.5 % quantile; scipy.stats takes 4 s to import
    share, weight = hits / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * ((share * (1 - share) + weight / 4) / n) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
