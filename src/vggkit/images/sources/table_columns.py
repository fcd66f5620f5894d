"""The columns of a text table whose names do not determine them: no header row, one-hot columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from vggkit.errors import BadData
from vggkit.images.class_names import shorten_names
from vggkit.images.file_kinds import tell_by_name
from vggkit.images.split_names import tell_split

ONES: Final = frozenset({"1", "1.0", "1.", "true"})
ZEROS: Final = frozenset({"0", "0.0", "0.", "false"})


@dataclass(frozen=True, slots=True)
class ColumnLayout:
    """The positions of the cells that are used in each row."""

    roles: Mapping[str, int]
    """The place of `path`, and of `label`, `split` and `group` where there are such."""
    has_header: bool = True
    """Whether the first line contains column names and not an image."""
    one_hot: Mapping[int, str] = field(default_factory=dict)
    """The class of each column of zeros and ones, of which ones are the labels; none where there is a label."""

    def read(self, cells: Sequence[str]) -> dict[str, str | None]:
        """The cells of a row by role."""
        return {role: cells[at] if at < len(cells) else None for role, at in self.roles.items()}

    def read_ones(self, cells: Sequence[str], place: str) -> tuple[str, ...] | None:
        """The classes whose columns are 1; None without such columns. Raises BadData for what is no 0 or 1."""
        if not self.one_hot:
            return None
        named = []
        for at, label in self.one_hot.items():
            cell = cells[at].lower() if at < len(cells) else ""
            if cell not in ONES | ZEROS:
                raise BadData(
                    f"{place}: the columns {shorten_names([*self.one_hot.values()], most=3)} are classes, each 1 "
                    f"where the image has it and else 0, and {label!r} is {cell!r}; correct it, or name a column "
                    "of labels with --label-column"
                )
            if cell in ONES:
                named.append(label)
        return tuple(named)


def lay_out(
    names: Sequence[str], found: Mapping[str, str], head: Sequence[Sequence[str]], *, table: str
) -> ColumnLayout:
    """The layout of a table.

    Args:
        names: The cells of the first line.
        found: Names of columns by role, where the names determine it.
        head: The first rows after it.
        table: What errors call the table.

    Raises BadData where no column has the paths of images.
    """
    roles = {role: names.index(name) for role, name in found.items()}
    if "path" not in roles:
        if (bare := _lay_out_bare(names, head, table)) is not None:
            return bare
        listed = ", ".join(map(repr, names)) or "nothing"
        likely = [name for at, name in enumerate(names) if head and all(_is_image(row, at) for row in head)]
        hint = f"{likely[0]!r} seems to be it: " if len(likely) == 1 else ""
        raise BadData(
            f"{table}: has no column of images' paths, but {listed}; {hint}call it path, or name it with "
            "--path-column. Where the first line is an image's, write path,label above it"
        )
    if "label" in roles:
        return ColumnLayout(roles)
    rest = [at for at in range(len(names)) if at not in roles.values()]
    binary = [at for at in rest if head and all(at < len(row) and row[at].lower() in ONES | ZEROS for row in head)]
    if len(binary) > 1:
        return ColumnLayout(roles, one_hot={at: names[at] for at in binary})
    if len(names) == 2 and len(rest) == 1 and head and all(len(row) > 1 and row[rest[0]] for row in head):
        return ColumnLayout(roles | {"label": rest[0]})
    return ColumnLayout(roles)


def _lay_out_bare(names: Sequence[str], head: Sequence[Sequence[str]], table: str) -> ColumnLayout | None:
    """The layout of a table whose first line is an image's; None for another."""
    paths = [at for at, cell in enumerate(names) if tell_by_name(cell) == "image"]
    if len(paths) != 1 or not all(_is_image(row, paths[0]) for row in head):
        return None
    roles = {"path": paths[0]}
    rest = [at for at in range(len(names)) if at != paths[0]]
    rows = [names, *head]
    splits = [at for at in rest if all(at < len(row) and tell_split(row[at]) for row in rows)]
    if len(splits) == 1 and len(rest) <= 2:
        roles["split"] = splits[0]
        rest.remove(splits[0])
    if len(rest) > 1:
        raise BadData(
            f"{table}: its first line is an image's, so its {len(names)} columns have no names; write a line of "
            "names above it, such as path,label"
        )
    return ColumnLayout(roles | ({"label": rest[0]} if rest else {}), has_header=False)


def _is_image(row: Sequence[str], at: int) -> bool:
    return at < len(row) and tell_by_name(row[at]) == "image"
