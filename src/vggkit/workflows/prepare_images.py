"""The images of a training: read once, near duplicates kept together, divided into splits, and checked."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from vggkit.data_checks.copies import find_copies
from vggkit.errors import BadData
from vggkit.images.class_names import hint_at_lookalikes, shorten_names
from vggkit.images.dataset import ImageDataset, ImageSample, identify_image, identify_images
from vggkit.images.lazy_images import LazyImages
from vggkit.images.several_labels import demand_task, demand_whole_names
from vggkit.images.sources.spooling import spool
from vggkit.images.splits import CopyGroups, hold_out, hold_out_with_copies, is_divided
from vggkit.reports.progress import ProgressLine
from vggkit.training.distributed.process_group import SINGLE, ProcessGroup
from vggkit.training.recipe import Recipe
from vggkit.weights.model import Model
from vggkit.workflows.check import MOST_COMPARED, check_training_data
from vggkit.workflows.run_config import RunConfig


@dataclass(frozen=True, slots=True)
class PreparedImages:
    """The images of a training run and of its validation, and what the run records of them."""

    dataset: ImageDataset
    """The readable images in their splits; they can be read in any order."""
    digests: Mapping[str, str]
    """Of each split, by `identify_images`."""
    contents: Mapping[str, str]
    """Of each split, a digest of the contents, labels and order of its readable images."""
    copy_groups: CopyGroups
    """Groups of near duplicates and exact copies that are in one split each."""
    findings: tuple[str, ...]
    """Messages on problems for the training."""


def prepare_images(
    opened: ImageDataset,
    classifier: Model,
    recipe: Recipe,
    *,
    config: RunConfig,
    copy_groups: CopyGroups | None = None,
    stack: ExitStack,
    line: ProgressLine,
    group: ProcessGroup = SINGLE,
) -> PreparedImages:
    """Divide a dataset that is not divided yet, and exclude what cannot be read.

    Near duplicates and exact copies stay in one split, where vggkit divides; the dataset's own splits are used as
    they are, and copies across them are reported.

    Args:
        opened: The dataset as it was opened.
        classifier: Its labels are the classes.
        recipe: Gives the held-out proportion or fold.
        config: The options of the run.
        copy_groups: Those that the run recorded when it began; None: they are searched for.
        stack: Keeps the copies of slow images until it is closed.
        line: For progress and messages.
        group: The processes; the first one examines the images, and each reads its own copies of them afterwards.

    Raises BadData where the dataset cannot be divided, or a split lacks a class.
    """
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="vggkit-")))
    spooled: list[ImageDataset] = []

    def spool_all() -> ImageDataset:
        spooled.append(spool(opened, folder / "images", on_progress=partial(line.show, "copying images")))
        return spooled[0]

    def examine() -> PreparedImages:
        return _examine(opened, spool_all, classifier, recipe, config=config, copy_groups=copy_groups, line=line)

    if group.size == 1 or opened.is_lazy:  # of which nothing is read
        return examine()
    found: list[PreparedImages] = []

    def describe() -> tuple[PreparedImages, dict[str, list[int]]]:
        found.append(examine())
        places = {id(image): place for place, image in enumerate(_list_images(spooled[0]))}
        splits = {name: [places[id(p)] for p in split] for name, split in found[0].dataset.splits.items()}
        return replace(found[0], dataset=opened.keep({})), splits

    shared, splits = group.lead(describe)
    if found:
        return found[0]
    images = _list_images(spool_all())
    placed = replace(opened, labels=classifier.labels).keep(
        {name: [images[place] for place in places] for name, places in splits.items()}
    )
    return replace(shared, dataset=placed)


def _list_images(dataset: ImageDataset) -> list[ImageSample]:
    return [image for split in dataset.splits.values() for image in split]


def _examine(
    opened: ImageDataset,
    spool_all: Callable[[], ImageDataset],
    classifier: Model,
    recipe: Recipe,
    *,
    config: RunConfig,
    copy_groups: CopyGroups | None,
    line: ProgressLine,
) -> PreparedImages:
    """The images of a training; `spool_all` gives the dataset with copies of slow images."""
    share, seed, fold = recipe.validation_share, recipe.seed, recipe.fold
    # Before anything is read: a dataset that cannot be split is refused immediately.
    divided = hold_out(opened, validation_share=share, seed=seed, fold=fold, copy_groups=copy_groups or ())
    _demand_classes(opened, classifier)
    if opened.is_lazy:
        return _take_as_checked(divided, classifier, config=config, line=line)
    spooled, originals = spool_all(), _list_images(opened)
    quick = {id(original): image for original, image in zip(originals, _list_images(spooled), strict=True)}
    preprocessing = classifier.preprocessing
    copies = find_copies(
        spooled,
        most=MOST_COMPARED,
        channels=preprocessing.decoded_channels,
        reduced_decoding=preprocessing.reduced_decoding,
        on_progress=line.show,
    )
    if copy_groups is None:
        found = [[identify_image(originals[number]) for number in group] for group in copies.list_groups()]
        divided, copy_groups = hold_out_with_copies(
            opened, validation_share=share, seed=seed, fold=fold, copy_groups=found
        )
        if found and not is_divided(opened, fold):
            line.log(_describe_copy_groups(found, copy_groups))
    digests = {name: identify_images(split) for name, split in divided.splits.items()}
    placed = divided.keep({name: [quick[id(p)] for p in split] for name, split in divided.splits.items()})
    findings: list[str] = []

    def log(message: str) -> None:
        findings.append(message)
        line.warn(message)

    readable, contents = check_training_data(
        # A class that the Classifier names and the data lacks altogether is missing too.
        replace(placed, name=opened.name, labels=classifier.labels),
        despite_findings=config.despite_findings,
        columns=config.columns,
        copies=copies.place({id(p): name for name, split in placed.splits.items() for p in split}),
        log=log,
        on_progress=line.show,
    )
    return PreparedImages(readable, digests, contents, copy_groups, tuple(findings))


def _take_as_checked(
    divided: ImageDataset, classifier: Model, *, config: RunConfig, line: ProgressLine
) -> PreparedImages:
    """The images of shards with a manifest, which were decoded when that was written: nothing is read here.

    Equal files are searched for by their digests, near duplicates are not. Raises BadData where a split lacks a
    class.
    """
    findings: list[str] = []

    def log(message: str) -> None:
        findings.append(message)
        line.warn(message)

    splits = {name: split for name, split in divided.splits.items() if isinstance(split, LazyImages)}
    named = replace(divided, labels=classifier.labels)
    missing = [
        f"{name} has no images of {shorten_names(absent)}"
        for name in splits
        if (absent := [label for label, count in named.count(name).items() if not count])
    ]
    if missing and not config.despite_findings:
        raise BadData(
            f"{divided.name}: {'; '.join(missing)}; metrics of the split would not cover the class. Write shards "
            "with such images, without the class, or continue with --despite-findings"
        )
    if missing:
        log(f"warning: {'; '.join(missing)}; continuing because of --despite-findings")
    trained = np.unique(splits["train"].list_contents())
    for name, split in splits.items():
        copies = int(np.isin(split.list_contents(), trained).sum()) if name != "train" else 0
        if copies:
            log(f"warning: {copies:,} images of {name} are in train too, as equal files: its metrics are too high")
    return PreparedImages(
        divided,
        {name: identify_images(split) for name, split in splits.items()},
        {name: split.digest_order() for name, split in splits.items()},
        (),
        tuple(findings),
    )


def _describe_copy_groups(found: CopyGroups, used: CopyGroups) -> str:
    """The number of images in groups, and of groups that are divided all the same."""
    images, groups = sum(map(len, used)), _count_groups(len(used))
    sentence = f"near duplicates and copies: {images:,} images in {groups}, each kept in one split"
    if loose := len(found) - len(used):
        sentence += f"; {_count_groups(loose)} could not be: a class would be missing from a split"
    return sentence


def _count_groups(count: int) -> str:
    return f"{count:,} group{'' if count == 1 else 's'}"


def _demand_classes(dataset: ImageDataset, classifier: Model) -> None:
    """Raise BadData for another task, a single class, and classes that the Classifier does not name."""
    demand_task(dataset, classifier.task)
    if len(classifier.labels) < 2 and classifier.task == "single-label":
        raise BadData(
            f"{dataset.name}: has one class, and a classifier needs two or more; "
            "give the folder that holds a subfolder for each class"
        )
    unknown = sorted(set(dataset.labels) - set(classifier.labels))
    if unknown:
        if classifier.task == "multi-label":
            demand_whole_names(dataset.name, unknown, classifier.labels)
        hint = hint_at_lookalikes(unknown, classifier.labels)
        raise BadData(
            f"{dataset.name}: holds classes the Classifier does not name ({shorten_names(unknown)}); "
            f"it names {shorten_names(classifier.labels)}{hint}"
        )
