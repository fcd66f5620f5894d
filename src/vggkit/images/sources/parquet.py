"""Parquet files: tables of paths, or images in the table itself, as Hugging Face's data sets have them."""

import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vggkit.errors import BadData, BadImage, MissingExtra, VggkitError
from vggkit.images.dataset import ImageSample
from vggkit.images.decoding import read_file
from vggkit.images.omissions import Reading
from vggkit.images.sources.locations import Place, copy_whole
from vggkit.images.sources.tables import Columns, locate_rows, name_group, name_split, read_records
from vggkit.images.split_names import find_split

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ENDINGS: Final = (".parquet", ".pq")
MOST_HELD_BYTES: Final = 64_000_000
"""Bytes of a file that are cached in memory; a smaller file is fast to read in any order."""


def read_parquet(
    files: Sequence[Place], columns: Columns, reading: Reading
) -> Iterator[tuple[str | None, ImageSample]]:
    """(Split, image) of every row of Parquet files.

    Images are a column of bytes, or of Hugging Face's (bytes, path), or paths relative to the
    file's folder. The split is that of its column of splits, else that of the file's name
    (`train-00000-of-00004.parquet`); classes by number get their names from Hugging Face's metadata.

    Raises BadData where a file cannot be read or has no images, MissingExtra without pyarrow.
    """
    for file in files:
        rows = ParquetImages(file, columns)
        if rows.column is None:
            read = read_records(rows.records(), str(file), rows.found, reading, columns)
            yield from locate_rows(read, Path(str(file)).parent, str(file), columns)
        else:
            yield from rows.images(reading, columns)


class ParquetImages:
    """The images inside one Parquet file; groups of rows are read as they are needed, the last ones cached."""

    def __init__(self, file: Place, columns: Columns) -> None:
        self.file = file
        # A file on a host without range requests is copied once.
        self._copy = None if file.gives_ranges() else copy_whole(file)
        self._lock = threading.Lock()
        self._cached: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self.size_bytes = file.size()
        self.quick = self.size_bytes <= MOST_HELD_BYTES
        schema = self._opened.schema_arrow
        self.column = _image_column(schema, columns, str(file))
        self.found = columns.find(schema.names, table=str(file))
        if self.column is not None:
            self.found.pop("path", None)
        elif "path" not in self.found:
            raise BadData(
                f"{file}: has no column of images or of their paths, but {', '.join(schema.names)}; "
                "name it with --path-column"
            )
        self._names = _class_names(schema, self.found.get("label"))
        metadata = self._opened.metadata
        self._starts = [0]
        for group in range(metadata.num_row_groups):
            self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)

    @cached_property
    def _opened(self) -> "pq.ParquetFile":
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as problem:
            raise MissingExtra.of("pyarrow", "a Parquet file", "data") from problem
        try:
            place = self.file if self._copy is None else self._copy.place
            return pq.ParquetFile(str(place) if place.is_local else place.open())
        except (pa.ArrowException, OSError, ValueError) as problem:
            if isinstance(problem, VggkitError):
                raise
            raise BadData(f"{self.file}: is not a Parquet file that can be read ({problem})") from problem

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_opened", "_lock", "_cached")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._cached = threading.Lock(), OrderedDict()

    def records(self) -> Iterator[dict[str, Any]]:
        """The values of the columns that are used, row by row, images left out."""
        wanted = sorted(set(self.found.values()))
        if not wanted:
            yield from ({} for _ in range(self._starts[-1]))
            return
        for batch in self._opened.iter_batches(batch_size=4096, columns=wanted):
            for values in batch.to_pylist():
                if self._names:
                    values[self.found["label"]] = self._name(values[self.found["label"]])
                yield values

    def _name(self, value: Any) -> Any:
        """The names of classes that are given by number, one or a list; None for a number of none."""
        if isinstance(value, list):
            return [self._name(each) for each in value]
        if not isinstance(value, int):
            return value
        return self._names[value] if 0 <= value < len(self._names) else None

    def images(self, reading: Reading, columns: Columns) -> Iterator[tuple[str | None, ImageSample]]:
        """(Split, image) of each row."""
        of_file = find_split(str(self.file))
        for number, values in enumerate(self.records()):
            cells = {role: values[column] for role, column in self.found.items()}
            label, labels = columns.read_labels(cells.get("label"), f"{self.file}, row {number + 1}")
            if label is not None:
                reading.written_labels.add(label)
            yield (
                name_split(cells["split"]) if "split" in cells else of_file,
                ImageSample(
                    f"{self.file}#{number}",
                    label,
                    storage=self,
                    key=number,
                    group=name_group(cells.get("group")),
                    labels=labels,
                ),
            )

    def read(self, key: int) -> bytes:
        """The file of the image in that row, counted from 0."""
        group = bisect_right(self._starts, key) - 1
        try:
            value = self._load(group)[key - self._starts[group]].as_py()
        except OSError as problem:  # pyarrow's errors of broken files are such
            raise BadImage(f"the table cannot be read there ({problem})") from problem
        if isinstance(value, dict):
            if value.get("bytes") is None and value.get("path"):
                return read_file(Path(str(self.file)).parent / value["path"])
            value = value.get("bytes")
        if value is None:
            raise BadImage("the row has no image")
        return bytes(value)

    def weigh(self, key: int) -> str:
        """The row and the file's size."""
        return f"{self.size_bytes}/{key}"

    def _load(self, group: int) -> "pa.ChunkedArray":
        with self._lock:
            if group not in self._cached:
                # One group too many is still one group; threads read two neighbouring ones in turn.
                while (
                    len(self._cached) > 1 and sum(held.nbytes for held in self._cached.values()) > MOST_HELD_BYTES
                ):
                    self._cached.popitem(last=False)
                self._cached[group] = self._opened.read_row_group(group, columns=[self.column]).column(0)
            self._cached.move_to_end(group)
            return self._cached[group]


def _image_column(schema: "pa.Schema", columns: Columns, name: str) -> str | None:
    """The column that holds images themselves: bytes, or Hugging Face's struct with bytes in it."""
    import pyarrow as pa

    def holds_bytes(kind: "pa.DataType") -> bool:
        if pa.types.is_struct(kind):
            return any(kind.field(place).name == "bytes" for place in range(kind.num_fields))
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    stated = columns.path_column
    holding: list[str] = [field.name for field in schema if holds_bytes(field.type)]
    if stated is not None:
        return stated if stated in holding else None  # then it is a column of paths
    if len(holding) > 1:
        usual = [
            column for column in holding if column.lower() in ("image", "img", "picture", "bytes", "jpg", "png")
        ]
        if len(usual) != 1:
            raise BadData(f"{name}: holds images in {', '.join(holding)}; name one with --path-column")
        return usual[0]
    return holding[0] if holding else None


def _class_names(schema: "pa.Schema", column: str | None) -> tuple[str, ...]:
    """Names of classes that are stored by number, from Hugging Face's metadata."""
    try:
        feature = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]
        return tuple(map(str, feature.get("feature", feature)["names"]))  # in it, where labels are lists
    except (KeyError, TypeError, ValueError, AttributeError):
        return ()
