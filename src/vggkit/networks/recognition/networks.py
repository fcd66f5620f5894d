"""Which VGG a file's shapes are: its trunk's configuration and its head. No torch here.

Shape letters: C channels that the head reads, G side of the map it reads, K classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isqrt
from typing import Final

from vggkit.errors import BadConfiguration
from vggkit.networks.configurations import MODELS, Configuration, Layer, Statistics
from vggkit.networks.recognition.entries import HeadPlace, Position, Window
from vggkit.networks.recognition.sheets import Sheet, places_of

PAPER_WIDTH: Final = 4096
"""Numbers that each hidden layer of the paper gives."""


@dataclass(frozen=True, slots=True)
class Recognition:
    """The network that a sheet's shapes are."""

    configuration: Configuration
    """It; with the paper's own head where the file has none."""
    num_classes: int | None
    """Classes; None where the file has no last layer."""
    alike: tuple[str, ...] = ()
    """Other models whose trunk begins with the same layers, where a cut leaves them open."""


def recognize(sheet: Sheet, *, hint: str | None = None) -> Recognition | None:
    """The network of that sheet; None where it is not a VGG.

    Args:
        sheet: The file's modules.
        hint: A model whose conv1_1 this is by its fingerprint; it decides between models that
            begin alike.
    """
    if not sheet.trunk:
        return None
    windows = {place: sheet.window(module) for place, module in sorted(sheet.trunk.items())}
    first = windows[min(windows)]
    if first.kernel != 3 or any(window.kernel not in (1, 3) for window in windows.values()):
        return None
    rows = [replace(row, in_channels=first.into) for row in MODELS.values() if row.batch_norm is bool(sheet.norms)]
    if (whole := next((row for row in rows if _compare(row, sheet, windows) == (0, 0)), None)) is not None:
        return _put_head(whole, sheet)
    begun = [row for row in rows if _begins(row, sheet, windows)] if not sheet.strays else []
    # Where models begin alike, the one that is cut most often.
    begun.sort(key=lambda row: (row.model != hint, row.model.removesuffix("_bn") != "vgg16"))
    custom = _build_custom(sheet, windows, first.into)
    if custom is not None and sheet.head and not _is_pooled(sheet):
        return _put_head(custom, sheet)
    if begun and (not sheet.head or _is_pooled(sheet)):
        cut = _cut(begun[0], sheet)
        alike = () if hint else tuple(row.model for row in begun[1:])
        return _put_head(cut, sheet, alike)
    if custom is not None:
        return _put_head(_cut_custom(custom, sheet), sheet)
    near = [(_compare(row, sheet, windows), row) for row in rows]
    wrong, row = min(near, key=lambda each: (each[0][1], each[0][0], each[1].kernels is not None))
    # A convolution or two may be of another shape where the others leave no doubt.
    right = len(windows) - wrong[1]
    enough = right * 3 >= len(places_of(row, sheet.scheme)) and (sheet.scheme != "order" or wrong[0] == 0)
    return _put_head(row, sheet) if enough and wrong[1] <= max(1, right // 7) else None


def _compare(row: Configuration, sheet: Sheet, windows: Mapping[Position, Window]) -> tuple[int, int]:
    """How many convolutions of the row are missing in the file, and how many are of another shape or place."""
    layers = {layer.name: layer for layer in row.trunk}
    expected = {place: layers[name] for name, place in places_of(row, sheet.scheme).items()}
    missing = sum(place not in windows for place in expected)
    wrong = sum(place not in expected or not _same(expected[place], window) for place, window in windows.items())
    return missing, wrong


def _same(layer: Layer, window: Window) -> bool:
    return (layer.out_channels, layer.in_channels, layer.kernel) == (window.out, window.into, window.kernel)


def _begins(row: Configuration, sheet: Sheet, windows: Mapping[Position, Window]) -> bool:
    """Whether the file holds the row's first convolutions, without a gap."""
    beginning = sorted(places_of(row, sheet.scheme).values())[: len(windows)]
    return beginning == sorted(windows) and _compare(row, sheet, windows)[1] == 0


def _is_pooled(sheet: Sheet) -> bool:
    """Whether the head reads a channel's mean, or mean and standard deviation."""
    reads = _head_reads(sheet)
    return reads in (sheet.trunk_channels, 2 * sheet.trunk_channels)


def _head_reads(sheet: Sheet) -> int | None:
    """Numbers that the head's first layer reads; None where it is not there."""
    first = sheet.head.get(HeadPlace(0, None)) or sheet.head.get(HeadPlace(0, 0))
    if first is None:
        return None
    window = sheet.window(first)
    return window.into * window.kernel**2


def _cut(row: Configuration, sheet: Sheet) -> Configuration:
    """The row up to the ReLU of the last convolution in the file."""
    places = places_of(row, sheet.scheme)
    last = next(name for name, place in places.items() if place == max(sheet.trunk))
    statistics: Statistics = "mean" if _head_reads(sheet) == sheet.trunk_channels else "mean+std"
    until = last.replace("conv", "relu")
    return replace(row, until=until, head="pool", hidden=(), dropout=0.0, statistics=statistics)


def _cut_custom(custom: Configuration, sheet: Sheet) -> Configuration:
    """A trunk of no model ends with its last pool, unless its head takes what a cut's does."""
    if _head_reads(sheet) != 2 * sheet.trunk_channels:
        return custom
    blocks = custom.blocks
    return replace(
        custom,
        until=f"relu{len(blocks)}_{len(blocks[-1])}",
        head="pool",
        hidden=(),
        dropout=0.0,
        statistics="mean+std",
    )


def _build_custom(sheet: Sheet, windows: Mapping[Position, Window], in_channels: int) -> Configuration | None:
    """The trunk as the places say it, of whatever widths; None where they leave a gap or do not chain."""
    sizes = list(windows.values())
    if any(one.out != two.into for one, two in pairwise(sizes)):
        return None
    depths = _depths(sheet, sizes)
    if depths is None:
        return None
    remaining = iter(sizes)
    taken = [[next(remaining) for _ in range(depth)] for depth in depths]
    try:
        custom = Configuration(
            blocks=tuple(tuple(window.out for window in block) for block in taken),
            kernels=tuple(tuple(window.kernel for window in block) for block in taken),
            batch_norm=bool(sheet.norms),
            in_channels=in_channels,
        )
    except BadConfiguration:
        return None
    return custom if sorted(places_of(custom, sheet.scheme).values()) == sorted(windows) else None


def _depths(sheet: Sheet, sizes: Sequence[Window]) -> list[int] | None:
    """Convolutions of each block."""
    places = sorted(sheet.trunk)
    match sheet.scheme:
        case "index":
            step = 3 if sheet.norms else 2
            depths = [1]
            for before, after in pairwise(place[0] for place in places):
                if after - before == step:
                    depths[-1] += 1
                else:  # a pool stands between; anything else is found out when the places are compared
                    depths.append(1)
            return depths
        case "order":
            # The paper's networks differ in their number of convolutions; pruning keeps it.
            kernels = tuple(window.kernel for window in sizes)
            for row in MODELS.values():
                if tuple(layer.kernel for layer in row.trunk if layer.kind == "conv") == kernels:
                    return [len(block) for block in row.blocks]
            return None
        case _:
            blocks = [block for block, _ in places]
            return [blocks.count(block) for block in range(1, max(blocks) + 1)] if min(blocks) >= 1 else None


def _put_head(trunk: Configuration, sheet: Sheet, alike: tuple[str, ...] = ()) -> Recognition:
    """The trunk with the head that the file has; with the paper's where it has none that reads this trunk."""
    channels, reads = trunk.trunk_channels, _head_reads(sheet)
    layers = list(_measure_head(sheet, trunk))
    if not layers:
        return Recognition(trunk, None, alike)
    *hidden, classes = [out for out, _ in layers]
    if any(width is None for width in hidden):
        return Recognition(trunk, None, alike)
    ranks = tuple(rank for _, rank in layers)
    changes: dict[str, object] = {"hidden": tuple(hidden), "ranks": ranks}
    if classes is not None:
        changes["num_classes"] = classes
    if reads is not None:
        grid = isqrt(reads // channels)
        if reads == 2 * channels or (reads == channels and (not hidden or trunk.until is not None)):
            changes |= {"head": "pool", "statistics": "mean" if reads == channels else "mean+std", "dropout": 0.0}
        elif grid and grid * grid * channels == reads and trunk.until is None:
            changes |= {"head": "fc", "grid": grid}
        else:
            return Recognition(trunk, None, alike)
    try:
        return Recognition(replace(trunk, **changes), classes, alike)  # type: ignore[arg-type]
    except BadConfiguration:
        return Recognition(trunk, None, alike)


def _measure_head(sheet: Sheet, trunk: Configuration) -> Iterator[tuple[int | None, int | None]]:
    """(numbers out, rank) of each layer of the head, those between that are missing too; None where unknown."""
    if not sheet.head:
        return
    last = max(place.position for place in sheet.head)
    given = {place: sheet.window(module) for place, module in sheet.head.items()}

    def numbers_out(position: int) -> int | None:
        own = given.get(HeadPlace(position, None)) or given.get(HeadPlace(position, 1))
        after = given.get(HeadPlace(position + 1, None)) or given.get(HeadPlace(position + 1, 0))
        return own.out if own else after.into * after.kernel**2 if after else None

    if last < 2 and numbers_out(last) == PAPER_WIDTH and not _is_pooled(sheet):
        last = 2  # the paper's hidden layers without the one behind them
    for position in range(last + 1):
        factor = given.get(HeadPlace(position, 0))
        out = numbers_out(position)
        if out is None and position < 2 and last == 2:
            out = PAPER_WIDTH
        yield out, factor.out if factor else None
