"""Shards that others wrote: they stay where they are, and are read once for their manifest."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from vggkit.errors import BadData, BadImage
from vggkit.images.dataset import ImageSample
from vggkit.images.omissions import Reading
from vggkit.images.sources.locations import Place, Ranges
from vggkit.images.sources.parquet import ParquetImages
from vggkit.images.sources.shards.manifest import Form
from vggkit.images.sources.shards.records import Entries, WrittenShard, digest_file
from vggkit.images.sources.shards.writing import examine
from vggkit.images.sources.tables import Columns
from vggkit.images.sources.tar_shards import read_shards
from vggkit.images.split_names import find_split

WRITTEN_AGAIN: Final = "write them into shards of your own: vggkit shard PLACE FOLDER"


def describe_shard(
    path: Path, *, place: Place, form: Form, columns: Columns, on_image: Callable[[], None] = lambda: None
) -> WrittenShard:
    """Read and decode every image of a shard; one at an address is copied to a temporary file meanwhile.

    Args:
        path: In its folder one at an address is copied to a temporary file.
        place: An uncompressed tar file, or a Parquet file with images in it.
        form: Which of the two.
        columns: Names of the table's columns.
        on_image: Called after each image.

    Raises BadData for a shard that is damaged, holds several splits, or whose images cannot be read one by one.
    """
    if place.is_local:
        return _describe(place, place, form, columns, on_image)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        copy = Path(folder) / place.address.rpartition("/")[2]  # its name may name a split
        with place.open() as file, open(copy, "wb") as out:
            shutil.copyfileobj(file, out, 1 << 20)
        return _describe(Place(str(copy)), place, form, columns, on_image)


def _describe(
    copy: Place, place: Place, form: Form, columns: Columns, on_image: Callable[[], None]
) -> WrittenShard:
    entries, numbers, splits = Entries(), dict[str, int](), set[str | None]()
    for split, image in _read(copy, form, columns, shown=place):
        splits.add(split)
        name = image.path.partition("#")[2]
        if image.labels is not None:
            raise BadData(
                f"{place}#{name}: has a list of labels, and shards hold one label an image; train on a table"
            )
        if image.label is None:
            raise BadData(f"{place}#{name}: has no label, and labelled images are required")
        try:
            data, side, _ = examine(image)
        except BadImage as problem:
            entries.excluded.append(str(problem).replace(str(copy), str(place)))
        else:
            offset = image.key[0] if form == "tar" else image.key
            label = numbers.setdefault(image.label, len(numbers))
            entries.add(data, offset=int(offset), label=label, side=side, name=name)
        on_image()
    if len(splits) > 1:
        raise BadData(f"{place}: holds images of several splits, and a shard belongs to one; {WRITTEN_AGAIN}")
    sha256, size_bytes = digest_file(Path(str(copy)))
    split = next(iter(splits), None) or find_split(str(place))
    return entries.close(list(numbers), sha256=sha256, size_bytes=size_bytes, split=split)


def _read(copy: Place, form: Form, columns: Columns, *, shown: Place) -> Iterator[tuple[str | None, ImageSample]]:
    if form == "parquet":
        table = ParquetImages(copy, columns)
        if table.column is None:
            raise BadData(f"{shown}: holds paths of images and not the images; {WRITTEN_AGAIN}")
        yield from table.images(Reading(), columns)
        return
    for split, image in read_shards([copy]):
        storage: Any = image.storage
        if not isinstance(storage, Ranges) or storage.place != copy:
            raise BadData(f"{shown}: is compressed, and its images cannot be read one by one; {WRITTEN_AGAIN}")
        yield split, image
