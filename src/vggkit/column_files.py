"""Tables of named columns as files, CSV or Parquet by the ending, written whole or not at all."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadData, BadOutput, MissingExtra
from vggkit.writing import whole_file

ENDINGS: Final = (".csv", ".parquet")

Column = Sequence[Any] | NDArray[Any]


def check_ending(path: str | Path) -> None:
    """Raise BadOutput where a table cannot have that name."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise BadOutput(f"{path}: a table's name ends in {' or '.join(ENDINGS)}")


def write_columns(path: str | Path, columns: Mapping[str, Column]) -> None:
    """Columns of equal length, in their order; numbers are written so that reading gives the same bits.

    Raises BadOutput, and MissingExtra for Parquet without pyarrow.
    """
    check_ending(path)
    if Path(path).suffix.lower() == ".parquet":
        _write_parquet(path, columns)
        return
    # A path of bytes that are no text keeps them.
    with (
        whole_file(path) as beside,
        open(beside, "w", encoding="utf-8", errors="surrogateescape", newline="") as out,
    ):
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*map(_plain, columns.values()), strict=True))


def _plain(column: Column) -> Sequence[Any]:
    """As Python writes them: the shortest digits that give the same bits."""
    return column.tolist() if isinstance(column, np.ndarray) else column


def _write_parquet(path: str | Path, columns: Mapping[str, Column]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as absent:
        raise MissingExtra.of("pyarrow", "writing Parquet", "data") from absent
    table = pa.table({_readable(name): _to_arrow(column) for name, column in columns.items()})
    with whole_file(path) as beside:
        pq.write_table(table, beside, compression="zstd")


def _to_arrow(column: Column) -> Any:
    return column if isinstance(column, np.ndarray) else [_readable(x) if isinstance(x, str) else x for x in column]


def _readable(text: str) -> str:
    """Parquet's text is Unicode, and a path need not be."""
    return os.fsencode(text).decode("utf-8", "replace")


def read_columns(path: str | Path) -> dict[str, list[Any]]:
    """What `write_columns` wrote: of CSV all is text. Raises BadData, and MissingExtra without pyarrow."""
    path = Path(path)
    if not path.is_file():
        raise BadData(f"{path}: no such file")
    try:
        if path.suffix.lower() == ".parquet":
            try:
                import pyarrow.parquet as pq
            except ImportError as absent:
                raise MissingExtra.of("pyarrow", "reading Parquet", "data") from absent
            return dict(pq.read_table(path).to_pydict())
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as lines:
            names, *rows = csv.reader(lines)
        return {name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
    except (ValueError, OSError, csv.Error) as problem:
        raise BadData(f"{path}: is not a whole table ({problem})") from problem
