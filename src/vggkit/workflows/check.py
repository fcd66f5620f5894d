"""Check a dataset before training: unreadable files, leakage, duplicates, class sizes, label errors."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import numpy as np

from vggkit.arguments import demand_count
from vggkit.data_checks import copy_rules, label_rules, rules
from vggkit.data_checks.copies import Copies, OnProgress, find_copies
from vggkit.data_checks.findings import Diagnosis, Finding, Member, Sides, write_command
from vggkit.data_checks.inspection import ImageRecord
from vggkit.errors import BadData, BadInput, BadOutput
from vggkit.files import demand_apart, demand_writable
from vggkit.images.class_names import shorten_names
from vggkit.images.dataset import ImageDataset
from vggkit.images.labelled import LabelledImages
from vggkit.images.near_duplicates import NearDuplicate
from vggkit.images.preprocessing import Preprocessing
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.images.sources.shards.dataset import verify_shards
from vggkit.images.sources.tables import Columns
from vggkit.weights.card import demand_classifier
from vggkit.weights.locate import locate_model
from vggkit.workflows.evaluate import demand_models

if TYPE_CHECKING:
    from vggkit.weights.model import Model

MOST_NAMED: Final = 3
"""Number of unreadable images that a training names; the others are counted."""

SAMPLES: Final = 4
"""Images of each class that a page shows."""

MOST_COMPARED: Final = 20_000
"""Number of images above which a training does not search for near duplicates, which would take minutes."""


def check(
    data: LabelledImages,
    model: "Model | str | Path | None" = None,
    *,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    image_size: int | None = None,
    reduced_decoding: bool = False,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> Diagnosis:
    """Check a dataset of labelled images.

    Finds unreadable files, exact and near duplicates within a split, across splits and across classes, classes that
    are missing, small or imbalanced, images smaller than the network input, and files whose format differs from
    their name. With a Classifier also labels that are probably wrong, and outliers. Shards with a manifest are
    compared with the SHA-256 that it states of each, first.

    Args:
        data: A folder, table, archive or name or images from Python, as `open_dataset` takes them.
        model: A Classifier whose features are used to find label errors and outliers, or its place, as `predict`
            takes it: trained on such images or on ImageNet. Its labels do not matter.
        columns: The names of a table's columns.
        image_size: Side in pixels of the network input; None: that of the Classifier, or 224.
        reduced_decoding: Whether JPEGs that are too large to be decoded at their full size count as readable, as
            `train` reads them with the same option; always so where the Classifier decodes them so.
        device: Where the Classifier runs: `auto`, `cpu`, `cuda`, `mps`.
        on_progress: Called with the name of a step, how much of it is done, and how much it is in all.

    Raises BadData for a dataset that cannot be opened, BadInput for wrong arguments, and with a Classifier
    MissingExtra where scikit-learn or cleanlab is not installed.
    """
    if image_size is not None:
        image_size = demand_count("image_size", image_size)
    place = model if isinstance(model, str | os.PathLike) else None
    if place is not None:
        demand_models([place])
    elif model is not None:
        demand_classifier(model, "check")
    started = time.perf_counter()
    opened = open_dataset(data, columns=columns)
    if model is not None and opened.task == "multi-label":
        raise BadInput(
            f"{opened.name}: its images have several labels, and label errors are searched for by one label an "
            "image; leave out the model. Images whose predictions differ are in the report of a training"
        )
    verify_shards(opened, on_progress=_about("verifying shards", on_progress))
    classifier = _load(place) if place is not None else cast("Model | None", model)
    preprocessing = Preprocessing() if classifier is None else classifier.preprocessing
    seen_pixels = image_size or preprocessing.crop_pixels
    copies = find_copies(
        opened,
        channels=preprocessing.decoded_channels,
        reduced_decoding=reduced_decoding or preprocessing.reduced_decoding,
        on_progress=on_progress,
    )
    records, pairs = copies.records, copies.pairs
    counts = count_readable(opened, records)
    found = [
        rules.find_unreadable(records),
        rules.find_one_class(opened.labels) if opened.task == "single-label" else None,
        rules.find_missing_classes(opened, records),
        rules.find_placeholders(records),
        rules.find_nested(opened),
        rules.find_similar_names(opened.labels),
        rules.find_few(counts),
        rules.find_imbalance(counts),
        rules.find_small(records, seen_pixels),
        rules.find_wrong_endings(records),
        rules.find_animated(records),
        rules.find_skipped(opened),
        rules.find_combined_labels(opened.labels),
        *copy_rules.find_copies(records, pairs),
    ]
    several = opened.task == "multi-label"
    if several:
        found += [
            label_rules.find_unlabelled(records),
            label_rules.find_unused(opened),
            label_rules.find_inseparable_labels(opened),
        ]
    if classifier is not None:
        found += _check_labels(classifier, records, pairs, device=device, on_progress=on_progress)
    options: dict[str, str | bool] = {**list_stated(columns)}
    options |= {} if image_size is None else {"image_size": str(image_size)}
    options |= {"reduced_decoding": True} if reduced_decoding else {}
    options |= {} if place is None else {"model": str(place)}
    headers = [record.head for record in records if record.head is not None]
    return Diagnosis(
        data=opened.name,
        counts=counts,
        n=len(records),
        sides=_measure([(head.width, head.height) for head in headers]),
        formats=dict(Counter(head.format for head in headers).most_common()),
        modes=dict(Counter(head.mode for head in headers).most_common()),
        turned=sum(head.orientation > 1 for head in headers),
        image_size=seen_pixels,
        model=str(classifier) if classifier else None,
        findings=tuple(sorted(filter(None, found), key=rules.severity_key)),
        seconds=time.perf_counter() - started,
        skipped=opened.skipped,
        options=options,
        samples=choose_samples(records),
        task=opened.task,
        labels_per_image=sum(len(record.image.classes) for record in records) / max(1, len(records)),
    )


def choose_samples(records: Iterable[ImageRecord]) -> dict[str, tuple[Member, ...]]:
    """A few readable images of each class, evenly spaced."""
    readable: dict[str, list[ImageRecord]] = {}
    for record in records:
        if record.problem is None:
            for label in record.image.classes:
                readable.setdefault(label, []).append(record)
    return {
        label: tuple(
            rules.member(found[round(place)]) for place in np.linspace(0, len(found) - 1, min(SAMPLES, len(found)))
        )
        for label, found in readable.items()
    }


def validate_outputs(images: ImageDataset, *, table: Path | None = None, page: Path | None = None) -> None:
    """Refuse output files that cannot be written, before any work is done.

    Args:
        images: The dataset that is going to be checked.
        table: The path of the cleaned table; None for none.
        page: The path of the HTML page; None for none.

    Raises BadOutput where a path cannot be written, is one of the images or their source, or has the wrong ending.
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
        raise BadOutput(
            f"{images.name}: its images are in memory, and a table lists files; --fix needs image files"
        )


def check_training_data(
    images: ImageDataset,
    *,
    despite_findings: bool,
    channels: int = 3,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    copies: Copies | None = None,
    log: Callable[[str], None],
    on_progress: OnProgress | None = None,
) -> tuple[ImageDataset, dict[str, str]]:
    """Select the readable images of a dataset, and check what matters for a training.

    Unreadable images are excluded. Near duplicates are searched for in up to 20,000 images, exact ones always.

    Args:
        images: A dataset with the splits `train` and `val`, perhaps more.
        despite_findings: Continue where a class is missing from a split.
        channels: As for `inspect_images`.
        columns: As for `check`; the command that a message recommends repeats them.
        copies: The result of `find_copies` for these images, in these splits; None: it is computed.
        log: Called with a sentence for each finding that matters for a training.
        on_progress: Called with the name of a step, how much of it is done, and how much it is in all.

    Returns the dataset of the readable images, and for each split a digest of their contents, labels and order.
    Raises BadData where a class is missing from a split, and in any case where a split has no readable image.
    """
    for omission in images.skipped:
        log(f"skipped: {omission.describe()}")
    if (finding := rules.find_combined_labels(images.labels)) is not None:
        more = f" (and {len(finding.cases) - 1:,} more)" if len(finding.cases) > 1 else ""
        log(f"warning: {finding.cases[0].detail}{more}; {finding.advice}")
    if (finding := rules.find_nested(images)) is not None:
        listed = "; ".join(case.detail for case in finding.cases[:MOST_NAMED])
        log(f"note: {finding.summary}: {listed}. {finding.advice}")
    copies = copies or find_copies(images, most=MOST_COMPARED, channels=channels, on_progress=on_progress)
    records = copies.records
    unreadable = [record.problem for record in records if record.problem is not None]
    for problem in unreadable[:MOST_NAMED]:
        log(f"excluded: {problem}")
    if len(unreadable) > MOST_NAMED:
        log(f"excluded: {len(unreadable) - MOST_NAMED:,} more images that cannot be read")
    _demand_readable(images, records)
    missing, similar = rules.find_missing_classes(images, records), rules.find_similar_names(images.labels)
    names = "; ".join(case.detail for case in similar.cases[:5]) if similar is not None else ""
    if missing is not None:
        problem = "; ".join(case.detail for case in missing.cases[:5]) + (f"; {names}" if names else "")
        if not despite_findings and images.task == "single-label":
            raise BadData(
                f"{images.name}: {problem}; metrics of the split would not cover the class. Add images, remove the "
                "class from all splits, or continue with --despite-findings"
            )
        why = "; continuing because of --despite-findings" if images.task == "single-label" else ""
        log(f"warning: {problem}{why}")
    elif names:
        log(f"warning: {names}, and are treated as different classes")
    finding = label_rules.find_inseparable_labels(images) if images.task == "multi-label" else None
    if finding is not None:
        log(f"warning: {finding.cases[0].detail}. {finding.advice}")
    if single := [label for label, count in count_readable(images, records).get("train", {}).items() if count == 1]:
        log(f"warning: only one training image of {shorten_names(single)}")
    for finding in copy_rules.find_copies(records, copies.pairs):
        if finding.kind in ("leakage", "contradiction"):
            first = " = ".join(f"{member.path} ({member.label})" for member in finding.cases[0].members[:2])
            advice = finding.advice
            if all(image.pixels is None for split in images.splits.values() for image in split):
                fix = write_command("check", images.name, {**list_stated(columns), "fix": "clean.csv"})
                advice = f"`{fix}` writes a table by which no copies are in two splits or two classes"
            log(f"warning: {finding.summary}, the first {first}; {advice}")
    digests = {id(s.image): s.digest + s.label.encode(errors="surrogateescape") for s in records if not s.problem}
    readable = {name: [p for p in split if id(p) in digests] for name, split in images.splits.items()}
    contents = {name: hashlib.sha256() for name in images.splits}
    for name, split in readable.items():
        for image in split:
            contents[name].update(digests[id(image)] + b"\n")
    return images.keep(readable), {name: content.hexdigest()[:32] for name, content in contents.items()}


def list_stated(columns: Columns) -> dict[str, str]:
    """The given columns of a table, by the option's name."""
    return {name: str(value) for name, value in asdict(columns).items() if value is not None}


def _demand_readable(images: ImageDataset, records: Iterable[ImageRecord]) -> None:
    """Raise BadData for a split without any readable image."""
    problems: dict[str, str | None] = {}
    for record in records:
        problems.setdefault(record.split, record.problem)
    readable = {record.split for record in records if record.problem is None}
    for name, split in images.splits.items():
        if name not in readable:
            reason = (
                f"none of its {len(split):,} images can be read (the first: {problems[name]})"
                if split
                else "it is empty"
            )
            raise BadData(
                f"{images.name}: the split {name} cannot be used: {reason}. Replace its images or remove "
                "the split; --despite-findings does not apply here"
            )


def count_readable(images: ImageDataset, records: Iterable[ImageRecord]) -> dict[str, dict[str, int]]:
    """Number of readable images of each class in each split."""
    counts = {split: dict.fromkeys(images.labels, 0) for split in images.splits}
    for record in records:
        if record.problem is None:
            for label in record.image.classes:
                counts[record.split][label] += 1
    return counts


def _load(place: str | Path) -> "Model":
    # Imports torch, which the checks above do not need.
    from vggkit.weights.model import Model

    return Model.load(locate_model(place))


def _check_labels(
    classifier: "Model",
    records: Sequence[ImageRecord],
    pairs: Sequence[NearDuplicate],
    *,
    device: str,
    on_progress: OnProgress | None,
) -> list[Finding | None]:
    # Imports SciPy and cleanlab, which a check without a Classifier does not need.
    from vggkit.data_checks.label_errors import extract_features, find_mislabelled, find_outliers, group_copies

    readable = [number for number, record in enumerate(records) if record.problem is None]
    chosen = [records[number] for number in readable]
    if not chosen:
        return []
    units = group_copies(records, pairs)[readable]
    features = extract_features(
        classifier, chosen, device=device, on_progress=_about("computing features", on_progress)
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
