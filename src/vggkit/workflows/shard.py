"""Pack labelled images into shards that a training streams, from this machine or from anywhere."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

from vggkit.arguments import demand_count, demand_path, demand_share
from vggkit.errors import BadConfiguration, BadData, BadOutput
from vggkit.images.dataset import ImageDataset
from vggkit.images.labelled import LabelledImages
from vggkit.images.omissions import Omission
from vggkit.images.sources.locations import Place, expand, is_address
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.images.sources.shards.describing import describe_shard
from vggkit.images.sources.shards.job import ShardJob
from vggkit.images.sources.shards.manifest import ENDINGS, FILE_NAME, Form, Manifest
from vggkit.images.sources.shards.packing import OnProgress, PlannedShard, plan_shards
from vggkit.images.sources.shards.target import ShardTarget
from vggkit.images.sources.tables import Columns
from vggkit.images.splits import divide

PER_SHARD: Final = 2048


@dataclass(frozen=True, slots=True)
class ShardResult:
    """Shards that were written."""

    manifest: str
    """The manifest, `shards.json`."""
    shards: int
    """Number of files."""
    counts: Mapping[str, Mapping[str, int]]
    """Number of images of each class in each split."""
    excluded: int
    """Images that could not be read, and are in no shard."""
    examples: tuple[str, ...]
    """The first reasons."""
    found_done: bool
    """Whether an earlier call had written all of it."""
    skipped: tuple[Omission, ...] = ()
    """Files among the images that are no images, counted by reason."""

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(sum(counts.values()) for counts in self.counts.values())

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return {**asdict(self), "images": self.images, "examples": list(self.examples)}


def shard(
    data: LabelledImages,
    out: str | Path,
    *,
    to: Form = "tar",
    images_per_shard: int = PER_SHARD,
    validation_share: float | None = None,
    seed: int = 0,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> ShardResult:
    """Pack labelled images into shards, with a manifest by which `train`, `evaluate` and `check` read them.

    The files of the images are copied as they are, in random order, and each is decoded once: what cannot be read
    is left out and reported. Several threads write shards. A call that was interrupted in any way is repeated, and
    continues with the shards that are missing; the same images and options give the same bytes.

    Args:
        data: A folder, table, archive or name, or images from Python, as `open_dataset` takes them.
        out: The folder of the shards, new or empty, or an address of one (`s3://bucket/photos`). Or the name of a
            manifest, such as `photos.json`: then `data` are shards already, which stay where they are, and are read
            once for their manifest.
        to: tar (as WebDataset writes them: `000012.jpg` beside `000012.cls`) or parquet (as Hugging Face's datasets
            have them: columns `image` and `label`).
        images_per_shard: Number of images in each file.
        validation_share: Hold out this fraction in (0, 1) of each class, in shards of their own; images of one
            group stay together. None: shards of an undivided dataset are divided when a training begins.
        seed: Of the order of the images, and of what is held out.
        columns: Names of a table's columns.
        overwrite: Replace shards of other images or options.
        on_progress: Called with the current task, the number of images that are done, and of all if it is known.

    Raises BadData where the images cannot be opened, or have groups and no splits; BadOutput where the folder
    cannot be written to, or holds something else; MissingExtra.

    >>> import numpy as np, tempfile
    >>> images = (np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8), ["a", "b"] * 3)
    >>> folder = tempfile.mkdtemp()
    >>> shard(images, folder, images_per_shard=4).shards
    2
    >>> open_dataset(folder)
    ImageDataset(..., 2 classes, all: 6)
    """
    on_progress = on_progress or _ignore
    images_per_shard = demand_count("images_per_shard", images_per_shard)
    seed = demand_count("seed", seed, least=0)
    if validation_share is not None and demand_share("validation_share", validation_share) == 1:
        raise BadConfiguration("validation_share must be below 1, so that images are left for training; got 1")
    if to not in get_args(Form):
        raise BadConfiguration(f"to must be one of {', '.join(get_args(Form))}; got {to!r}")
    place = str(out) if is_address(str(out)) else str(demand_path(out))
    on_progress("opening", 0, None)
    if place.endswith(".json"):
        if validation_share is not None:
            raise BadConfiguration(
                "validation_share is for new shards; a training divides those that are described"
            )
        return _describe(data, place, columns=columns, overwrite=overwrite, on_progress=on_progress)
    opened = open_dataset(data, columns=columns)
    if opened.task == "multi-label":
        raise BadData(
            f"{opened.name}: its images have several labels or none, and shards hold one label an image; train on "
            "the table itself"
        )
    _demand_apart(opened.name, place)
    if validation_share is not None:
        opened = divide(opened, validation_share=validation_share, seed=seed)
    elif "all" in opened.splits and any(image.group is not None for image in opened.splits["all"]):
        raise BadData(
            f"{opened.name}: its images have groups, which shards do not keep; give validation_share, and the "
            "groups stay together"
        )
    planned = plan_shards(opened, form=to, images_per_shard=images_per_shard, seed=seed)
    made_with = {
        "data": Path(opened.name).name,
        "images": _digest(opened),
        "to": to,
        "images_per_shard": images_per_shard,
        "validation_share": validation_share,
        "seed": seed,
    }
    job = ShardJob(planned, ShardTarget(place), FILE_NAME, to, opened.labels, made_with)
    total = sum(len(split) for split in opened.splits.values())
    manifest, found_done = job.run(total=total, overwrite=overwrite, on_progress=on_progress)
    return _report(job, manifest, found_done=found_done, skipped=opened.skipped)


def _describe(
    data: LabelledImages, manifest: str, *, columns: Columns, overwrite: bool, on_progress: OnProgress
) -> ShardResult:
    """The manifest of shards that are there already."""
    if not isinstance(data, str | Path):
        raise BadData(
            "a manifest is made of shards that are files: give their pattern, such as train-{000..009}.tar"
        )
    pattern = str(data)
    if not is_address(pattern) and Path(pattern).is_dir():
        files = [Place(str(path)) for end in ENDINGS.values() for path in sorted(Path(pattern).rglob(f"*{end}"))]
    else:
        files = expand(pattern)
    forms = [
        form for form, end in ENDINGS.items() if files and all(str(file).lower().endswith(end) for file in files)
    ]
    if not forms:
        raise BadData(
            f"{pattern}: shards that get a manifest are all .tar or all .parquet; found "
            f"{', '.join(map(str, files[:3])) or 'none'}"
        )
    folder = manifest.rpartition("/")[0] if is_address(manifest) else str(Path(manifest).parent)
    planned = [
        PlannedShard(
            _name_from(folder, file),
            "all",
            partial(describe_shard, place=file, form=forms[0], columns=columns),
            is_written=False,
        )
        for file in files
    ]
    made_with = {"shards": [f"{file}/{file.size()}" for file in files]}
    file_name = manifest.rpartition("/")[2] if is_address(manifest) else Path(manifest).name
    job = ShardJob(planned, ShardTarget(folder), file_name, forms[0], None, made_with)
    written, found_done = job.run(total=None, overwrite=overwrite, on_progress=on_progress)
    return _report(job, written, found_done=found_done)


def _report(
    job: ShardJob, manifest: Manifest, *, found_done: bool, skipped: tuple[Omission, ...] = ()
) -> ShardResult:
    return ShardResult(
        job.place,
        len(manifest.shards),
        manifest.counts,
        manifest.excluded,
        manifest.examples,
        found_done=found_done,
        skipped=skipped,
    )


def _demand_apart(data: str, out: str) -> None:
    """Raise BadOutput for a folder inside that of the images: it would be read as images the next time."""
    if is_address(out) or is_address(data) or not Path(data).is_dir():
        return
    if Path(out).resolve().is_relative_to(Path(data).resolve()):
        raise BadOutput(f"{out}: lies in {data}, whose images are packed; name a folder beside it")


def _name_from(folder: str, file: Place) -> str:
    """A shard's name in a manifest of that folder: relative where it lies in it."""
    if not file.is_local:
        return file.address.removeprefix(f"{folder}/")
    whole, base = Path(file.address).resolve(), Path(folder).resolve()
    inside = not is_address(folder) and whole.is_relative_to(base)
    return whole.relative_to(base).as_posix() if inside else str(whole)


def _digest(images: ImageDataset) -> str:
    """A digest of the images in their order: splits, classes, file names and sizes."""
    found = hashlib.sha256()
    for split, held in images.splits.items():
        for image in held:
            text = f"{split}\0{image.label}\0{Path(image.path).name}\0{image.weigh()}\n"
            found.update(text.encode(errors="surrogateescape"))
    return found.hexdigest()[:32]


def _ignore(what: str, done: int, total: int | None) -> None:
    pass
