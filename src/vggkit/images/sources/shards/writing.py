"""Writing a shard: images, as they are, into a tar or Parquet file; each is decoded once, to see that it can be.

The same images give the same bytes: no times, no names of users, and one order.
"""

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePath
from typing import Final, Protocol

from vggkit.errors import BadImage, MissingExtra
from vggkit.images.dataset import ImageSample
from vggkit.images.decoding import decode
from vggkit.images.file_kinds import SUFFIXES
from vggkit.images.image_header import read_head
from vggkit.images.sources.shards.manifest import Form
from vggkit.images.sources.shards.records import Entries, WrittenShard, digest_file
from vggkit.images.writing import pack_png

LEAST_SIDE: Final = 128
"""Pixels of the short side at which a JPEG is decoded to see that it can be; all of its file is read."""
GROUP_BYTES: Final = 16_000_000
"""Bytes of a group of Parquet rows, about: what is read together."""
GROUP_ROWS: Final = 1000
"""Rows of such a group at most."""
LONGEST_STEM: Final = 60
USUAL_ENDINGS: Final = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}
"""Of formats whose name is not their ending."""


class _Out(Protocol):
    def add(self, name: str, data: bytes, label: int, *, source: str) -> tuple[int, str]:
        """Write an image; returns its offset or row, and its name in the index."""


def write_shard(
    path: Path,
    images: Sequence[ImageSample],
    labels: Sequence[str],
    form: Form,
    *,
    first: int,
    on_image: Callable[[], None] = lambda: None,
) -> WrittenShard:
    """Write images into a file.

    Args:
        path: The file.
        images: Labelled images; pixels in memory are written as PNG.
        labels: The class names.
        form: tar (WebDataset's: `00000012-name.jpg` beside `00000012-name.cls`, the number of its class) or parquet
            (Hugging Face's: a column `image` of bytes and path, and a column `label` of class numbers).
        first: Number of the first image, counted over all shards of the split.
        on_image: Called after each image.

    Raises MissingExtra for Parquet without pyarrow, and OSError.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    entries = Entries()
    with _open(path, labels, form) as out:
        for number, image in enumerate(images, start=first):
            try:
                data, side, suffix = examine(image)
            except BadImage as problem:
                entries.excluded.append(str(problem))
            else:
                stem = re.sub(r"[^\w-]+", "_", PurePath(image.path.rpartition("#")[2]).stem, flags=re.ASCII)
                label = numbers[str(image.label)]
                name = f"{number:08d}-{stem[-LONGEST_STEM:]}{suffix}"
                offset, name = out.add(name, data, label, source=image.path)
                entries.add(data, offset=offset, label=label, side=side, name=name)
            on_image()
    sha256, size_bytes = digest_file(path)
    return entries.close(labels, sha256=sha256, size_bytes=size_bytes)


def examine(image: ImageSample) -> tuple[bytes, int, str]:
    """The file of an image, its short side in pixels, and the ending for its name; raises BadImage."""
    if image.pixels is not None:
        return pack_png(image.pixels), int(min(image.pixels.shape[:2])), ".png"
    data = image.read()
    head = read_head(data, name=image.path)
    decode(data, name=image.path, least_side=LEAST_SIDE)
    # By the contents: readers of tar shards look for `jpg`, whatever the files were called.
    suffix = USUAL_ENDINGS.get(head.format, f".{head.format.lower()}")
    return data, min(head.width, head.height), suffix if suffix in SUFFIXES else PurePath(image.path).suffix.lower()


def _open(path: Path, labels: Sequence[str], form: Form) -> AbstractContextManager[_Out]:
    return _open_tar(path) if form == "tar" else _open_parquet(path, labels)


class _Tar:
    def __init__(self, archive: tarfile.TarFile) -> None:
        self.archive = archive

    def add(self, name: str, data: bytes, label: int, *, source: str) -> tuple[int, str]:
        self._write(f"{name.partition('.')[0]}.cls", str(label).encode())
        return self._write(name, data), name

    def _write(self, name: str, data: bytes) -> int:
        """Returns the place of the first byte."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self.archive.addfile(member, io.BytesIO(data))
        padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return int(self.archive.offset) - padded


@contextmanager
def _open_tar(path: Path) -> Iterator[_Out]:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        yield _Tar(archive)


@contextmanager
def _open_parquet(path: Path, labels: Sequence[str]) -> Iterator[_Out]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as problem:
        raise MissingExtra.of("pyarrow", "Parquet", "data") from problem
    features = {"image": {"_type": "Image"}, "label": {"names": list(labels), "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    # Images are compressed already.
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False, write_statistics=False) as writer:
        waiting: list[dict[str, object]] = []
        written = waiting_bytes = 0

        class Rows:
            def add(self, name: str, data: bytes, label: int, *, source: str) -> tuple[int, str]:
                nonlocal waiting_bytes
                text = source.encode(errors="surrogateescape").decode(errors="replace")
                waiting.append({"image": {"bytes": data, "path": text}, "label": label})
                waiting_bytes += len(data)
                row = written + len(waiting) - 1
                if waiting_bytes >= GROUP_BYTES or len(waiting) >= GROUP_ROWS:
                    flush()
                return row, str(row)

        def flush() -> None:
            nonlocal written, waiting_bytes
            if waiting:
                writer.write_table(pa.Table.from_pylist(waiting, schema=schema), row_group_size=len(waiting))
                written += len(waiting)
                waiting_bytes = 0
                waiting.clear()

        yield Rows()
        flush()
