"""The data doctor: a collection looked at before an hour is spent on it."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vggkit.arguments import demand_count
from vggkit.data_checks import rules
from vggkit.data_checks.findings import Diagnosis, Finding, Sides
from vggkit.data_checks.survey import Sighting, survey
from vggkit.errors import BadData, BadOutput
from vggkit.files import demand_apart, demand_writable
from vggkit.images.class_names import shorten_names
from vggkit.images.dataset import ImageDataset
from vggkit.images.near_duplicates import NearDuplicate, find_near_duplicates
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.images.sources.tables import Columns
from vggkit.weights.card import demand_classifier

if TYPE_CHECKING:
    from vggkit.weights.model import Model

MOST_COMPARED: Final = 20_000
"""Images up to which a training looks for near duplicates; beyond it would take minutes."""

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it, and of how much."""


def check(
    data: str | Path | ImageDataset,
    classifier: "Model | None" = None,
    *,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    image_size: int | None = None,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> Diagnosis:
    """What a collection of labelled images holds, and what is wrong with it.

    Unreadable files, copies (inside a split, across splits, across classes), classes that are
    missing, small or uneven, images smaller than the network sees, files that are not what their
    names say. With a Classifier also labels that are likely wrong and images unlike all others.

    Args:
        data: What `open_dataset` takes, or labelled images already opened.
        classifier: A network that knows such images: trained on them, or with given weights. Its
            own labels do not matter.
        columns: What a table's columns are called.
        image_size: Side of the square that the network is to see; None: the Classifier's, or 224.
        device: Where the Classifier runs: `auto`, `cpu`, `cuda`, `mps`.
        on_progress: Hears what is being done.

    Raises BadData, BadInput, and with a Classifier MissingExtra.
    """
    if image_size is not None:
        image_size = demand_count("image_size", image_size)
    if classifier is not None:
        demand_classifier(classifier, "check")
    started = time.perf_counter()
    opened = data if isinstance(data, ImageDataset) else open_dataset(data, columns=columns)
    seen_pixels = image_size or (classifier.preprocessing.crop_pixels if classifier else 224)
    sightings = list(survey(opened, on_progress=_about("looking at the images", on_progress)))
    counts = count_readable(opened, sightings)
    alike = find_near_copies(sightings, on_progress=on_progress)
    found = [
        rules.find_unreadable(sightings),
        rules.find_missing_classes(opened, sightings),
        rules.find_similar_names(opened.labels),
        rules.find_few(counts),
        rules.find_imbalance(counts),
        rules.find_small(sightings, seen_pixels),
        rules.find_wrong_endings(sightings),
        rules.find_animated(sightings),
        rules.find_passed_over(opened),
        *rules.find_remarks(opened),
        *rules.find_copies(sightings, alike),
    ]
    if classifier is not None:
        found += _hold_against(classifier, sightings, alike, device=device, on_progress=on_progress)
    heads = [sighting.head for sighting in sightings if sighting.head is not None]
    return Diagnosis(
        data=opened.name,
        counts=counts,
        n=len(sightings),
        sides=_measure([(head.width, head.height) for head in heads]),
        formats=dict(Counter(head.format for head in heads).most_common()),
        modes=dict(Counter(head.mode for head in heads).most_common()),
        turned=sum(head.orientation > 1 for head in heads),
        image_size=seen_pixels,
        model=str(classifier) if classifier else None,
        findings=tuple(sorted(filter(None, found), key=rules.weigh_finding)),
        seconds=time.perf_counter() - started,
        passed_over=opened.passed_over,
        remarks=opened.remarks,
    )


def guard_outputs(images: ImageDataset, *, table: Path | None = None, page: Path | None = None) -> None:
    """See that what is to be written can be, before anything is looked at, and takes nothing's place.

    Args:
        images: What is going to be checked.
        table: Where the cleaned table is to be, None where none is wanted.
        page: The same of the page.

    Raises BadOutput where a place cannot be written to, is an image or what images come from, or has
    the wrong ending.
    """
    every = [image for split in images.splits.values() for image in split]
    for path, endings in ((table, (".csv",)), (page, (".html", ".htm"))):
        if path is None:
            continue
        if path.suffix.lower() not in endings:
            raise BadOutput(f"{path}: must end in {' or '.join(endings)}")
        demand_apart(path, images.list_sources())
        demand_writable(path)
    if table is not None and any(image.pixels is not None for image in every):
        raise BadOutput(f"{images.name}: its images have no files, and a table lists files; --fix needs them")


def vet(
    images: ImageDataset,
    *,
    despite_findings: bool,
    log: Callable[[str], None],
    on_progress: OnProgress | None = None,
) -> tuple[ImageDataset, dict[str, str]]:
    """The images that can be trained on and measured with; what was found is said, the cheap part of `check`.

    Beside them, what tells the images of each split, their contents, labels and order, from any others.

    Args:
        images: In the splits `train` and `val`, perhaps more.
        despite_findings: Go on where figures would lie.
        log: Hears a sentence for each finding that matters to a training.
        on_progress: Hears what is being done.

    Unreadable images are left out. Above MOST_COMPARED images only exact copies are found.

    Raises BadData where a class is missing from a split, and in any case where a split has no readable image.
    """
    for omission in images.passed_over:
        log(f"passed over: {omission.describe()}")
    for finding in rules.find_remarks(images):
        more = f" (and {len(finding.cases) - 1:,} more)" if len(finding.cases) > 1 else ""
        log(f"warning: {finding.cases[0].detail}{more}; {finding.advice}")
    sightings = list(survey(images, on_progress=_about("looking at the images", on_progress)))
    for sighting in sightings:
        if sighting.problem is not None:
            log(f"left out: {sighting.problem}")
    _demand_readable(images, sightings)
    missing, similar = rules.find_missing_classes(images, sightings), rules.find_similar_names(images.labels)
    names = "; ".join(case.detail for case in similar.cases[:5]) if similar is not None else ""
    if missing is not None:
        said = "; ".join(case.detail for case in missing.cases[:5]) + (f"; {names}" if names else "")
        if not despite_findings:
            raise BadData(
                f"{images.name}: {said}; what is measured would say nothing of that. Add images, or remove the "
                "class everywhere, or go on with --despite-findings"
            )
        log(f"warning: {said}; going on all the same")
    elif names:
        log(f"warning: {names}, and are learnt as different classes")
    if single := [
        label for label, count in count_readable(images, sightings).get("train", {}).items() if count == 1
    ]:
        log(f"warning: one image alone to learn {shorten_names(single)} from")
    pairs = find_near_copies(sightings, on_progress=on_progress) if len(sightings) <= MOST_COMPARED else []
    for finding in rules.find_copies(sightings, pairs):
        if finding.kind in ("leakage", "contradiction"):
            first = " = ".join(f"{member.path} ({member.label})" for member in finding.cases[0].members[:2])
            log(f"warning: {finding.summary}, the first {first}; `vggkit check` lists them and --fix removes them")
    readable = [sighting for sighting in sightings if sighting.problem is None]
    contents = {name: hashlib.sha256() for name in images.splits}
    for sighting in readable:
        contents[sighting.split].update(sighting.digest + sighting.label.encode(errors="surrogateescape") + b"\n")
    return (
        images.keep({name: [s.image for s in readable if s.split == name] for name in images.splits}),
        {name: content.hexdigest()[:32] for name, content in contents.items()},
    )


def _demand_readable(images: ImageDataset, sightings: Iterable[Sighting]) -> None:
    """Raise BadData for a split of which no image can be read: nothing can be learnt from it or measured on it."""
    problems: dict[str, str | None] = {}
    for sighting in sightings:
        problems.setdefault(sighting.split, sighting.problem)
    readable = {sighting.split for sighting in sightings if sighting.problem is None}
    for name, split in images.splits.items():
        if name not in readable:
            said = (
                f"none of its {len(split):,} images can be read (the first: {problems[name]})"
                if split
                else "it is empty"
            )
            raise BadData(
                f"{images.name}: the split {name} cannot be used: {said}. Replace its images, or leave the split "
                "out; --despite-findings does not help here"
            )


def count_readable(images: ImageDataset, sightings: Iterable[Sighting]) -> dict[str, dict[str, int]]:
    """Readable images of each class in each split."""
    counts = {split: dict.fromkeys(images.labels, 0) for split in images.splits}
    for sighting in sightings:
        if sighting.problem is None:
            counts[sighting.split][sighting.label] += 1
    return counts


def find_near_copies(
    sightings: Sequence[Sighting], *, on_progress: OnProgress | None = None
) -> list[NearDuplicate]:
    """Near duplicates by number among the sightings; of exact copies the first stands for all."""
    numbers = sorted(copies[0] for copies in rules.group_exact(sightings).values())
    if not numbers:
        return []
    descriptions = np.stack([sightings[number].description for number in numbers])  # type: ignore[misc]
    found = find_near_duplicates(descriptions, on_progress=_about("comparing images", on_progress))
    return [NearDuplicate(numbers[pair.first], numbers[pair.second], pair.similarity) for pair in found]


def _hold_against(
    classifier: "Model",
    sightings: Sequence[Sighting],
    pairs: Sequence[NearDuplicate],
    *,
    device: str,
    on_progress: OnProgress | None,
) -> list[Finding | None]:
    # Heavy packages, which the rest does without.
    from vggkit.data_checks.label_errors import extract_features, find_mislabelled, find_outliers, number_units

    readable = [number for number, sighting in enumerate(sightings) if sighting.problem is None]
    chosen = [sightings[number] for number in readable]
    if not chosen:
        return []
    units = number_units(sightings, alike)[readable]
    features = extract_features(
        classifier, chosen, device=device, on_progress=_about("asking the network", on_progress)
    )
    return [find_mislabelled(chosen, features, units), find_outliers(chosen, features)]


def _measure(sides: list[tuple[int, int]]) -> Sides | None:
    if not sides:
        return None
    widths, heights = zip(*sides, strict=True)
    return Sides(
        smallest=min(sides, key=min),
        median=(int(np.median(widths)), int(np.median(heights))),
        largest=max(sides, key=lambda side: side[0] * side[1]),
    )


def _about(what: str, on_progress: OnProgress | None) -> Callable[[int, int], None] | None:
    return None if on_progress is None else lambda done, total: on_progress(what, done, total)
