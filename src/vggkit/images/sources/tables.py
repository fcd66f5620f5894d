"""Tables that list images: CSV and the like, and Parquet, a row an image.

The columns are found by their usual names, or are stated.
"""

import codecs
import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, TextIO, get_args

from vggkit.errors import BadConfiguration, BadData, UnknownName
from vggkit.escaping import restore_cell
from vggkit.images.dataset import ImageSample
from vggkit.images.omissions import Reading, UnlabelledTable
from vggkit.images.several_labels import split_cell
from vggkit.images.sources.table_columns import lay_out
from vggkit.images.sources.table_paths import choose_way, find_base, keep_written
from vggkit.images.split_names import tell_split
from vggkit.task import Task

ENDINGS: Final = (".csv", ".tsv")
LOOKED_AT: Final = 1000
"""Rows by which it is decided what the columns are and where the files lie."""
USUAL: Final[Mapping[str, tuple[str, ...]]] = {
    "path": (
        *("path", "file", "filename", "file_name", "filepath", "file_path"),
        *("image", "image_path", "img", "img_path", "picture"),
        *("image_name", "image_id", "img_name", "img_id", "id_code", "id"),
    ),
    "label": ("label", "class", "category", "target", "class_name", "label_name", "species", "y"),
    "split": ("split", "subset", "part", "partition", "set"),
    "group": ("group",),
}
"""The usual names of the columns, the likeliest first."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a table; None: the usual names (path, label, split, group and similar)."""

    path_column: str | None = None
    """The table's column with the images' files, or with the images themselves."""
    label_column: str | None = None
    """The table's column with the classes."""
    label_separator: str | None = None
    """Separator of several labels in a cell of that column, such as ; or |. An image then has any number of
    labels, and an empty cell none: multi-label."""
    task: Task | None = None
    """single-label: every image has exactly one class. multi-label: any number of them. Default: multi-label for
    labels with a separator, for lists of labels, and for columns of 0 and 1 where some row has several or none."""
    split_column: str | None = None
    """The table's column with the split: train, val or test."""
    group_column: str | None = None
    """The table's column whose equal values stay in one split: a patient, a place, a burst; None: `group`."""
    root: str | None = None
    """Folder that the table's paths are relative to. Default: the table's own."""
    suffix: str | None = None
    """Ending that the table's paths lack, such as .jpg. Default: files are looked for with any."""

    def __post_init__(self) -> None:
        if self.task not in (None, *get_args(Task)):
            raise BadConfiguration(f"task must be one of {', '.join(get_args(Task))}; got {self.task!r}")
        if self.label_separator == "":
            raise BadConfiguration("label_separator must be a character or more, such as ';'; got an empty text")
        if self.label_separator is not None and self.task == "single-label":
            raise BadConfiguration(
                f"label_separator={self.label_separator!r} separates several labels, and task=single-label has one "
                "for an image; leave either out"
            )

    def read_labels(self, value: object, place: str) -> tuple[str | None, tuple[str, ...] | None]:
        """The label of a cell, or its labels where it may have several; raises BadData."""
        if isinstance(value, list | tuple | set):
            names = tuple(str(name) for name in value if not _is_empty(name))
            return None, names
        if self.label_separator is None and self.task != "multi-label":
            return name_label(value, place), None
        if self.label_separator is None:
            label = name_label(value, place)
            return None, () if label is None else (label,)
        return None, () if _is_empty(value) else split_cell(str(value), self.label_separator)

    def find(self, names: Sequence[str], *, table: str) -> dict[str, str]:
        """The name of each column that there is, by `path`, `label`, `split` and `group`.

        Raises BadData where a stated column is not there.
        """
        found = {}
        by_lower = {name.strip().lower(): name for name in reversed(names)}
        for role in ("path", "label", "split", "group"):
            stated = getattr(self, f"{role}_column")
            if stated is not None:
                if stated not in names:
                    raise BadData(f"{table}: {UnknownName.of('column of this table', stated, names)}")
                found[role] = stated
            elif usual := [by_lower[name] for name in USUAL.get(role, ()) if name in by_lower]:
                found[role] = usual[0]
        return found


@dataclass(frozen=True, slots=True)
class Row:
    """The row of an image in a table."""

    path: str
    label: str | None
    split: str | None
    group: str | None
    labels: tuple[str, ...] | None = None


def read_csv(table: Path, columns: Columns, reading: Reading) -> Iterator[tuple[str | None, ImageSample]]:
    """(Split, image) of each row; paths are relative to the table's folder, Windows' backslashes too.

    Comma, semicolon or tab between the cells; UTF-8, UTF-16 with its mark, or Windows-1252. Spaces around a cell
    are no part of it, unless it is quoted. An apostrophe before what a spreadsheet would read as a formula is
    removed, as `escaping.defuse_cell` puts it there. A first line that is an image's is no header.

    Raises BadData where there is no column of paths, or a row has no path.
    """
    with open_text(table) as text:
        rows = read_rows(text, str(table), columns, reading)
        yield from locate_rows(rows, table.parent, str(table), columns)


def read_rows(text: TextIO, name: str, columns: Columns, reading: Reading) -> Iterator[Row]:
    """The rows of a CSV table's text, its first line the names of the columns; raises BadData."""
    cells = _read_cells(text, name)
    first, names = next(cells, (0, []))
    head = list(islice(cells, LOOKED_AT))
    found = columns.find(names, table=name)
    layout = lay_out(names, found, [row for _, row in head], table=name)
    if "label" not in layout.roles and not layout.one_hot:
        others = [each for at, each in enumerate(names) if at not in layout.roles.values()]
        reading.unlabelled_table = UnlabelledTable(name, tuple(others) if layout.has_header else ())
    reading.classes |= dict.fromkeys(layout.one_hot.values())
    for line, row in chain([] if layout.has_header else [(first, names)], head, cells):
        place = f"{name}, line {line}"
        values: dict[str, Any] = {role: _restore(cell, role) for role, cell in layout.read(row).items()}
        if (ones := layout.read_ones(row, place)) is not None:
            values["label"] = ones
        yield _check_row(values, place, reading, columns)


def _read_cells(text: TextIO, name: str) -> Iterator[tuple[int, list[str]]]:
    """(Line number, cells) of each row that is not empty; raises BadData."""
    header = next((line for line in text if line.strip()), "")
    text.seek(0)
    delimiter = max(",;\t", key=header.count)
    lines: list[str] = []
    try:
        # Before a quote, too, a space is no part of the cell.
        rows = csv.reader(_keep(text, lines), delimiter=delimiter, skipinitialspace=True, strict=True)
        for row in rows:
            written = "".join(lines)
            lines.clear()
            if row:
                yield rows.line_num, [_trim(cell, written) for cell in row]
    except csv.Error as problem:
        raise BadData(f"{name}: is not a table that can be read ({problem})") from problem


def _restore(cell: str | None, role: str) -> str | None:
    return cell if cell is None or role == "path" else restore_cell(cell)


def read_records(
    records: Iterator[Mapping[str, Any]],
    name: str,
    found: Mapping[str, str],
    reading: Reading,
    columns: Columns = Columns(),
) -> Iterator[Row]:
    """The rows of a table that is not text, by its columns' values; raises BadData."""
    for number, values in enumerate(records, start=1):
        cells = {role: values[column] for role, column in found.items()}
        yield _check_row(cells, f"{name}, row {number}", reading, columns)


def _keep(text: Iterable[str], lines: list[str]) -> Iterator[str]:
    for line in text:
        lines.append(line)
        yield line


def _trim(cell: str, written: str) -> str:
    """A cell without trailing spaces, unless in the row as it is written a quote follows them."""
    if cell == cell.rstrip() or '{}"'.format(cell.replace('"', '""')) in written:
        return cell
    return cell.rstrip()


def locate_rows(
    rows: Iterator[Row],
    folder: Path,
    name: str,
    columns: Columns = Columns(),
) -> Iterator[tuple[str | None, ImageSample]]:
    """(Split, image) of each row; raises BadData where of the first thousand files none exists."""
    head = list(islice(rows, LOOKED_AT))
    base = find_base(folder, columns.root, name=name)
    find = choose_way([row.path for row in head], base, name=name, suffix=columns.suffix)
    for row in chain(head, rows):
        path = find(row.path)
        written = keep_written(row.path, path)
        yield row.split, ImageSample(path, row.label, group=row.group, labels=row.labels, written=written)


def locate_lines(lines: Iterable[str], folder: Path, name: str) -> Iterator[ImageSample]:
    """The images of a list of files, including files that do not exist, which decoding reports."""
    paths = read_lines(lines)
    head = list(islice(paths, LOOKED_AT))
    find = choose_way(head, folder, name=name, needed=False)
    return (ImageSample(find(path), written=keep_written(path, find(path))) for path in chain(head, paths))


def read_lines(lines: Iterable[str]) -> Iterator[str]:
    """The paths of a list, a line each, with the spaces that are in it; empty lines are skipped."""
    for line in lines:
        if line.strip():
            yield line.rstrip("\r\n")


def name_split(value: object) -> str | None:
    """The split that a cell names; a name that is not usual stays as it is."""
    text = "" if value is None else str(value).strip()
    # A number distinguishes splits, such as test1 and test2.
    known = None if any(map(str.isdigit, text)) else tell_split(text)
    return known or text or None


def name_label(value: object, place: str) -> str | None:
    """The class that a cell names, as it is written; None where it is empty. Raises BadData for a mapping."""
    if _is_empty(value):
        return None
    if isinstance(value, list | dict | set | tuple):
        raise BadData(f"{place}: names more than one class ({value}), and an image has one label here")
    return str(value)


def name_group(value: object) -> str | None:
    """The group that a cell names; outer spaces do not make another one."""
    return None if _is_empty(value) else str(value).strip() or None


def _is_empty(value: object) -> bool:
    # NaN is how pandas writes that there is none.
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _check_row(values: Mapping[str, Any], place: str, reading: Reading, columns: Columns) -> Row:
    path = values.get("path")
    if path is None or not str(path).strip():
        raise BadData(f"{place}: has no path; fill it in, or remove the line")
    label, labels = columns.read_labels(values.get("label"), place) if "label" in values else (None, None)
    if "label" in values and label is None and labels is None:
        raise BadData(f"{place}: has no label ({path}); fill it in, or remove the line")
    if label is not None:
        reading.written_labels.add(label)
    return Row(str(path), label, name_split(values.get("split")), name_group(values.get("group")), labels)


def read_text(path: Path) -> str:
    """As `open_text`, all at once."""
    with open_text(path) as text:
        return text.read()


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A text file in a common encoding: UTF-8, UTF-16 with its mark, or Windows-1252; line by line."""
    encoding, errors = _find_encoding(path)
    with open(path, encoding=encoding, errors=errors, newline="") as text:
        yield text


def _find_encoding(path: Path) -> tuple[str, str]:
    """The encoding, and what becomes of bytes that are not of it."""
    with open(path, "rb") as file:
        begins = file.read(3)
        if begins.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16", "replace"
        if begins == codecs.BOM_UTF8:  # a path whose bytes are no text keeps them, as in our own tables
            return "utf-8-sig", "surrogateescape"
        file.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while block := file.read(1 << 20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "cp1252", "replace"
    return "utf-8", "replace"
