"""Data sets of the Hugging Face hub, through its own library, which keeps them memory-mapped on the disk."""

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from vggkit.errors import BadData, BadDownload, BadImage, MissingExtra
from vggkit.images.dataset import ImageSample
from vggkit.images.decoding import read_file
from vggkit.images.omissions import Reading
from vggkit.images.sources.tables import USUAL, Columns, name_group, name_split
from vggkit.paths import is_offline

if TYPE_CHECKING:
    import datasets

ADDRESS: Final = re.compile(
    r"hf:/+(?:datasets/)?(?!datasets/)(\w[\w.-]*/\w[\w.-]*)(?:@([^#@]+))?(?:#([\w.-]+))?", re.ASCII
)
"""owner/name, revision, configuration. A pathlib.Path has one slash of the two."""

INSIDE: Final = re.compile("hf://(?:datasets|buckets)/[^/]+/[^/]+/.+")
"""A file or folder in a repository, which fsspec reaches as at any other address."""

COMMIT: Final = re.compile("[0-9a-f]{40}")

PATIENCE_SECONDS: Final = 10.0
"""Longest wait for the hub's first response."""


@dataclass(frozen=True)
class HubStorage:
    """A column of images of one split, not decoded."""

    split: "datasets.Dataset"
    """Its table, memory-mapped."""
    column: str
    """The column of images."""
    quick: bool = True

    def read(self, key: int) -> bytes:
        """The file in that row, counted from 0."""
        held = self.split[key][self.column]
        if isinstance(held, Mapping):
            if held.get("bytes") is None and held.get("path"):
                return read_file(held["path"])
            held = held.get("bytes")
        if held is None:
            raise BadImage("the row has no image")
        return bytes(held)

    def weigh(self, key: int) -> str:
        """The row, and the library's own digest of the table."""
        return f"{self.split._fingerprint}/{key}"


def read_hub_set(address: str, columns: Columns, reading: Reading) -> Iterator[tuple[str | None, ImageSample]]:
    """(Split, image) of the data set at `hf://datasets/owner/name`, `@` a revision, `#` a configuration.

    Images are its column of images, classes its column of class labels, or the columns that are
    stated; a row without a class is an image without a label. What was downloaded once is taken
    from the library's cache with `VGGKIT_OFFLINE=1`, and where the hub cannot be reached.

    Raises BadData where it has no images, BadDownload where it cannot be had, MissingExtra.
    """
    found = ADDRESS.fullmatch(address)
    if found is None:
        raise BadData(
            f"{address}: is not a data set's address, which is hf://datasets/owner/name, "
            "with @revision and #configuration where they are wanted"
        )
    for name, split in _load(address, *found.groups()).items():
        yield from _read_split(address, name, split, columns, reading)


def _read_split(
    address: str, name: str, split: "datasets.Dataset", columns: Columns, reading: Reading
) -> Iterator[tuple[str | None, ImageSample]]:
    image = _find_image(split.features, columns, address)
    others = {column: kind for column, kind in split.features.items() if column != image}
    roles = columns.find(list(split.features), table=address) | {"path": image}
    if columns.label_column is None:
        classes = [column for column, kind in others.items() if type(kind).__name__ == "ClassLabel"]
        roles |= {"label": classes[0]} if classes else {}
    roles = {role: column for role, column in roles.items() if column in others}
    kind = others.get(roles.get("label", ""))
    names = getattr(getattr(kind, "feature", kind), "names", None)  # in it, where labels are lists
    storage = HubStorage(_undecoded(split, image), image)
    wanted = sorted(set(roles.values()))
    rows = split.select_columns(wanted) if wanted else ({} for _ in range(split.num_rows))
    for row, values in enumerate(rows):
        cells = {role: values[column] for role, column in roles.items()}
        value = cells.get("label")
        if names and isinstance(value, list):
            value = [names[number] for number in value]
        elif names:
            value = names[value] if value is not None and value >= 0 else None
        label, labels = columns.read_labels(value, f"{address}, row {row + 1}")
        if label is not None and not names:
            reading.written_labels.add(label)
        yield (
            name_split(cells.get("split", name)),
            ImageSample(
                f"{address}/{name}#{row}",
                label,
                storage=storage,
                key=row,
                group=name_group(cells.get("group")),
                labels=labels,
            ),
        )


def _load(
    address: str, repository: str, revision: str | None, configuration: str | None
) -> "Mapping[str, datasets.Dataset]":
    try:
        import datasets
    except ImportError as problem:
        raise MissingExtra.of("datasets", "a data set of the Hugging Face hub", "data") from problem
    unreached = "VGGKIT_OFFLINE is set" if is_offline() else _ask(datasets.config)
    # The library would open a local folder that is called owner/name instead.
    place = f"hf://datasets/{repository}" if Path(repository).exists() else repository
    try:
        with _quiet(offline=unreached is not None):
            builder = datasets.load_dataset_builder(place, name=configuration, revision=revision)
            if type(builder).__module__.startswith("datasets.packaged_modules.cache"):
                builder = _turn_to_revision(builder, repository, revision)
            builder.download_and_prepare()
            return dict(builder.as_dataset())
    except Exception as problem:  # its own errors, the hub's, the HTTP library's, a full disk
        raise _explain(problem, address, unreached) from problem


def _ask(settings: Any) -> str | None:
    """The reason why the hub cannot be reached, or None. Its own library would retry for half a minute."""
    if settings.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set"
    endpoint = settings.HF_ENDPOINT
    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=PATIENCE_SECONDS).close()  # noqa: S310 (http or https)
    except HTTPError as response:
        response.close()
        return f"{endpoint} cannot be reached: {response}" if response.code >= 500 else None
    except (OSError, ValueError) as problem:
        return f"{endpoint} cannot be reached: {getattr(problem, 'reason', None) or problem}"
    return None


@contextmanager
def _quiet(*, offline: bool) -> Iterator[None]:
    """Only errors of the library, no progress bars outside a terminal; offline, no requests.

    The library has its own note of being offline, beside huggingface_hub's; both are put back.
    """
    import datasets

    settings, hub = datasets.config, datasets.config.constants
    before = settings.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("datasets", "huggingface_hub"))}
    bars = datasets.are_progress_bars_disabled()
    if offline:
        settings.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = True
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        settings.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE = before
        for logger, level in loggers.items():
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


def _turn_to_revision(
    cached: "datasets.DatasetBuilder", repository: str, revision: str | None
) -> "datasets.DatasetBuilder":
    """The cache's data set of that revision: on its own the library uses the latest download of any revision.

    Raises FileNotFoundError where the cache does not hold it.
    """
    import datasets

    commit = revision
    if revision is None or not COMMIT.fullmatch(revision):
        folder = Path(datasets.config.constants.HF_HUB_CACHE) / f"datasets--{repository.replace('/', '--')}"
        note = folder / "refs" / (revision or "main")
        commit = note.read_text().strip() if revision or note.is_file() else str(cached.hash)
    if commit == cached.hash:
        return cached
    turned = type(cached)(
        repo_id=repository,
        dataset_name=cached.dataset_name,
        config_name=cached.config.name,
        version=str(cached.config.version),
        hash=commit,
    )
    if not Path(turned.cache_dir).is_dir():
        raise FileNotFoundError(f"the cache does not hold {commit}")
    return turned


def _explain(problem: Exception, address: str, unreached: str | None) -> BadData | BadDownload:
    """The error of the library, with a message for users."""
    cause = problem
    while type(cause).__name__ == "DatasetGenerationError" and isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    message = " ".join(str(cause).split()) or type(cause).__name__
    if unreached is not None:
        more = f" ({message})" if isinstance(problem, ValueError) else ""  # configurations
        return BadDownload(
            f"{address}: {unreached}, and its cache on this machine does not hold it{more}; "
            f"{'look whether there is a network' if 'reached' in unreached else 'unset it once'}"
        )
    match type(problem).__name__:
        case "DatasetNotFoundError":
            return BadDownload(f"{address}: {message} For a private or gated one, `hf auth login` first")
        case "EmptyDatasetError" | "DataFilesNotFoundError":
            return BadData(f"{address}: holds no data that can be read ({message})")
        case "ValueError":  # configurations
            return BadData(f"{address}: {message.rstrip('.')}; a configuration is named after a #: {address}#name")
    return BadDownload(f"{address}: cannot be downloaded ({message})")


def _find_image(features: Mapping[str, Any], columns: Columns, address: str) -> str:
    """The column of images: of images, else of bytes or of structures with bytes."""

    def is_image(kind: Any) -> bool:
        return type(kind).__name__ == "Image"

    def holds_bytes(kind: Any) -> bool:
        return "bytes" in kind if isinstance(kind, Mapping) else getattr(kind, "dtype", "").endswith("binary")

    columns.find(list(features), table=address)
    if (stated := columns.path_column) is not None:
        if is_image(features[stated]) or holds_bytes(features[stated]):
            return stated
        raise BadData(f"{address}: its column {stated} does not hold images")
    for is_candidate in (is_image, holds_bytes):
        held = [column for column, kind in features.items() if is_candidate(kind)]
        usual = [column for column in held if column.lower() in USUAL["path"]]
        if len(held) == 1 or len(usual) == 1:
            return (usual or held)[0]
        if held:
            raise BadData(f"{address}: holds images in {', '.join(held)}; name one with --path-column")
    raise BadData(f"{address}: has no column of images, but {', '.join(features)}")


def _undecoded(split: "datasets.Dataset", column: str) -> "datasets.Dataset":
    import datasets

    alone = split.select_columns([column])
    if type(split.features[column]).__name__ == "Image":
        return alone.cast_column(column, datasets.Image(decode=False))
    return alone
