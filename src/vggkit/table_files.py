"""Tables of any length as files: rows are written in blocks, and the file appears only when it is complete.

Each file has a record of how it was made: in Parquet's metadata, or in a small file beside others.

Shape letters: N rows, F numbers of a vector.
"""

import codecs
import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, TextIO

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadData, BadOutput, MissingExtra
from vggkit.escaping import defuse_cell, restore_cell
from vggkit.files import whole_file, write_text

ENDINGS: Final = (".parquet", ".csv", ".jsonl", ".json")
"""Of tables; vectors go into Parquet alone, or into an .npy file."""
GROUP_ROWS: Final = 8192
"""Rows of a group of Parquet at most, however the rows came: the same rows give the same file."""
GROUP_BYTES: Final = 32_000_000
"""Bytes of a group's vectors, about."""
METADATA_KEY: Final = b"vggkit"

Column = Sequence[Any] | NDArray[Any]
Kind = Literal["path", "text", "number", "count"] | int
"""The type of a column: a file's path, other text, a float or an integer, each may be None; or a vector of so many
float32, where NaN is none."""
MARKS: Final[Mapping[Kind, str]] = {"path": "./", "text": "'"}
"""Prefix in CSV of a path that a spreadsheet would read as a formula; `./` names the same file."""
Append = Callable[[Mapping[str, Column]], None]
"""Takes the next rows, as columns of equal length."""


@contextmanager
def stream_columns(
    path: str | Path, kinds: Mapping[str, Kind], *, about: Mapping[str, Any] | None = None
) -> Iterator[Append]:
    """Give what takes a table's rows, some at a time; when the body ends they are one file.

    Args:
        path: .parquet, .csv, .jsonl (a JSON object a line) or .json (one array of these objects).
        kinds: The columns, in order.
        about: A record of how it was made, for `read_about`; any JSON values; None: no record.

    Raises BadOutput, and MissingExtra for Parquet without pyarrow.
    """
    path = Path(path)
    demand_table(path)
    writers: dict[str, Callable[[Path, Mapping[str, Kind]], AbstractContextManager[Append]]] = {
        ".csv": _stream_csv,
        ".jsonl": _stream_lines,
        ".json": _stream_array,
    }
    ending = path.suffix.lower()
    with whole_file(path) as beside:
        if ending == ".parquet":
            with _stream_parquet(beside, kinds, about) as append:
                yield append
        else:
            with writers[ending](beside, kinds) as append:
                yield append
    if about is not None and ending != ".parquet":
        write_about(path, about)


@contextmanager
def stream_matrix(
    path: str | Path, shape: tuple[int, int], *, about: Mapping[str, Any]
) -> Iterator[Callable[[NDArray[np.float32]], None]]:
    """Give what takes the rows of an .npy file of float32 (N, F), some at a time; raises BadOutput."""
    with whole_file(path) as beside, open(beside, "wb") as out:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)

        def append(rows: NDArray[np.float32]) -> None:
            out.write(np.ascontiguousarray(rows, "<f4").data)

        yield append
    write_about(Path(path), about)


def demand_table(path: Path) -> None:
    """Raise BadOutput for a name that is no table's, and MissingExtra where its kind cannot be written."""
    if path.suffix.lower() not in ENDINGS:
        raise BadOutput(f"{path}: the name of a table ends in {', '.join(ENDINGS)}")
    if path.suffix.lower() == ".parquet":
        check_parquet()


def check_parquet() -> None:
    """Raise MissingExtra where Parquet cannot be written, before work is spent on its rows."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as absent:
        raise MissingExtra.of("pyarrow", "Parquet", "data") from absent


def name_about(path: str | Path) -> Path:
    """The file with the record of how a table was made, unless it is Parquet."""
    return Path(f"{path}.about.json")


def name_rows(path: str | Path) -> Path:
    """The table that describes the rows of an .npy file."""
    return Path(f"{path}.csv")


def write_about(path: Path, about: Mapping[str, Any]) -> None:
    """Write the record of how a file was made into one beside it; raises BadOutput."""
    write_text(name_about(path), json.dumps(about, ensure_ascii=True, indent=1) + "\n")


def read_about(path: str | Path) -> dict[str, Any] | None:
    """The record of how a file was made, None if there is none; raises MissingExtra for Parquet without pyarrow."""
    path = Path(path)
    try:
        if path.suffix.lower() == ".parquet":
            check_parquet()
            import pyarrow.parquet as pq

            text = (pq.read_schema(path).metadata or {}).get(METADATA_KEY, b"")
        else:
            text = name_about(path).read_bytes() if path.is_file() else b""
        about = json.loads(text)
    except (OSError, ValueError, RecursionError):  # pyarrow's errors are such too
        return None
    return about if isinstance(about, dict) else None


def read_table(path: str | Path) -> dict[str, list[Any]]:
    """The columns of a .csv or .parquet file, whole in memory; of CSV all is text.

    Raises BadData, and MissingExtra for Parquet without pyarrow.
    """
    path = Path(path)
    if not path.is_file():
        raise BadData(f"{path}: no such file")
    try:
        if path.suffix.lower() == ".parquet":
            check_parquet()
            import pyarrow.parquet as pq

            return dict(pq.read_table(path).to_pydict())
        with _open_csv(path) as lines:
            names, *rows = csv.reader(lines)
        columns = zip(names, zip(*rows, strict=True), strict=True)
        return {name: [_restore(value, name) for value in values] for name, values in columns}
    except (ValueError, OSError, csv.Error) as problem:  # pyarrow's errors are such too
        raise BadData(f"{path}: is not a whole table ({problem})") from problem


def read_vectors(
    path: str | Path, *, name: str, vector: str, rows: int
) -> Iterator[tuple[list[str], NDArray[Any]]]:
    """Names and vectors (n, F) of a table, up to so many rows at a time; a row of NaN where there is none.

    Args:
        path: A .parquet file with both, or an .npy file with the table that `name_rows` names.
        name: The column of names.
        vector: The column of vectors.
        rows: As many are in memory together.

    Raises BadData, and MissingExtra for Parquet without pyarrow.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".parquet":
            check_parquet()
            import pyarrow.parquet as pq

            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):  # over several it keeps what it has read
                    for batch in file.iter_batches(rows, row_groups=[group], columns=[name, vector]):
                        yield batch.column(name).to_pylist(), _read_arrow(batch.column(vector))
        else:
            matrix = np.load(path, mmap_mode="r", allow_pickle=False)
            with _open_csv(name_rows(path)) as lines:
                names = (_restore(row[name], name) for row in csv.DictReader(lines))
                for first in range(0, len(matrix), rows):
                    part = np.array(matrix[first : first + rows])
                    yield list(islice(names, len(part))), part
    except (OSError, ValueError, KeyError, csv.Error) as problem:
        raise BadData(f"{path}: is not a whole file of vectors ({problem})") from problem


def _open_csv(path: Path) -> TextIO:
    return open(path, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _restore(cell: str, column: str) -> str:
    return restore_cell(cell, mark=MARKS["path" if column == "path" else "text"])


def _read_arrow(column: Any) -> NDArray[np.float32]:
    width = column.type.list_size
    # A missing list still has values in the buffer; dropping such lists would copy all others.
    values = column.values.slice(column.offset * width, len(column) * width)
    found = np.array(values.to_numpy(zero_copy_only=False), np.float32).reshape(-1, width)
    found[~column.is_valid().to_numpy(zero_copy_only=False)] = np.nan
    return found


@contextmanager
def _stream_csv(path: Path, kinds: Mapping[str, Kind]) -> Iterator[Append]:
    marks = [MARKS.get(kind) for kind in kinds.values()]

    def defuse(row: Sequence[Any]) -> list[Any]:
        cells = zip(row, marks, strict=True)
        return [cell if mark is None or cell is None else defuse_cell(cell, mark=mark) for cell, mark in cells]

    # A path of bytes that are no text keeps them.
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as out:
        plain = csv.writer(_Lines(out), lineterminator="\r\n")
        quoted = csv.writer(_Lines(out), lineterminator="\r\n", quoting=csv.QUOTE_ALL)
        plain.writerow(kinds)

        def append(columns: Mapping[str, Column]) -> None:
            for row in map(defuse, _list_rows(columns, kinds)):
                # Readers may strip spaces around a cell, unless it is quoted.
                exact = all(not isinstance(cell, str) or cell == cell.strip() for cell in row)
                (plain if exact else quoted).writerow(row)

        yield append
    _mark_as_unicode(path)


class _Lines:
    """Rows that end in a line feed alone; of a writer that ends them so itself, a carriage return in a cell would
    stand without quotes and end the row.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, row: str) -> int:
        return self._out.write(row.removesuffix("\r\n") + "\n")


def _mark_as_unicode(path: Path) -> None:
    """Put Unicode's mark before a text with letters beyond ASCII, by which Excel knows it."""
    with open(path, "rb") as found:
        if all(block.isascii() for block in iter(lambda: found.read(1 << 20), b"")):
            return
        found.seek(0)
        marked = path.with_name(f"{path.name}.marked")
        try:
            with open(marked, "wb") as out:
                out.write(codecs.BOM_UTF8)
                shutil.copyfileobj(found, out)
        except BaseException:
            marked.unlink(missing_ok=True)
            raise
    marked.replace(path)


@contextmanager
def _stream_lines(path: Path, kinds: Mapping[str, Kind]) -> Iterator[Append]:
    with _open_json(path) as out:
        yield lambda columns: out.writelines(f"{line}\n" for line in _list_objects(columns, kinds))


@contextmanager
def _stream_array(path: Path, kinds: Mapping[str, Kind]) -> Iterator[Append]:
    with _open_json(path) as out:
        before = "[\n"

        def append(columns: Mapping[str, Column]) -> None:
            nonlocal before
            for line in _list_objects(columns, kinds):
                out.write(f"{before}{line}")
                before = ",\n"

        yield append
        out.write("[]\n" if before == "[\n" else "\n]\n")


def _open_json(path: Path) -> TextIO:
    # Bytes of a path that are not text become JSON escapes.
    return open(path, "w", encoding="utf-8", errors="backslashreplace", newline="\n")


def _list_rows(columns: Mapping[str, Column], kinds: Mapping[str, Kind]) -> Iterator[tuple[Any, ...]]:
    return zip(*(columns[name] for name in kinds), strict=True)


def _list_objects(columns: Mapping[str, Column], kinds: Mapping[str, Kind]) -> Iterator[str]:
    for row in _list_rows(columns, kinds):
        yield json.dumps(dict(zip(kinds, row, strict=True)), ensure_ascii=False)


@contextmanager
def _stream_parquet(path: Path, kinds: Mapping[str, Kind], about: Mapping[str, Any] | None) -> Iterator[Append]:
    check_parquet()
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"path": pa.string(), "text": pa.string(), "number": pa.float64(), "count": pa.int64()}
    fields = [
        pa.field(name, pa.list_(pa.float32(), kind) if isinstance(kind, int) else types[kind])
        for name, kind in kinds.items()
    ]
    schema = pa.schema(fields, metadata={METADATA_KEY: json.dumps(about)})
    widest = sum(kind for kind in kinds.values() if isinstance(kind, int))
    group = max(1, min(GROUP_ROWS, GROUP_BYTES // (4 * widest or 1)))
    waiting = schema.empty_table()
    # Numbers seldom come twice.
    texts = [name for name, kind in kinds.items() if kind in ("path", "text")]
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=texts) as writer:

        def append(columns: Mapping[str, Column]) -> None:
            nonlocal waiting
            arrays = [_to_arrow(columns[name], kind, schema.field(name).type) for name, kind in kinds.items()]
            waiting = pa.concat_tables([waiting, pa.table(arrays, schema=schema)])
            while waiting.num_rows >= group:
                writer.write_table(waiting.slice(0, group).combine_chunks(), row_group_size=group)
                waiting = waiting.slice(group)

        yield append
        if waiting.num_rows:
            writer.write_table(waiting.combine_chunks(), row_group_size=group)


def _to_arrow(column: Column, kind: Kind, arrow_type: Any) -> Any:
    import pyarrow as pa

    if isinstance(kind, int):
        matrix = np.asarray(column, np.float32).reshape(-1, kind)
        missing = np.isnan(matrix).any(axis=1)
        return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), kind, mask=pa.array(missing))
    # Parquet's text is Unicode, and a path need not be.
    values = [os.fsencode(each).decode("utf-8", "replace") if isinstance(each, str) else each for each in column]
    return pa.array(values, arrow_type)
