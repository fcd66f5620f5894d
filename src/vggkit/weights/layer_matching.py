"""The VGGs that have the shapes of a file, the likeliest first: trunk and head. No torch here.

Shape letters: C channels that the head reads, G side of the map it reads, K classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isqrt

from vggkit.errors import BadConfiguration
from vggkit.models.configuration import MODELS, Configuration, Statistics
from vggkit.models.layer_records import Layer
from vggkit.models.statements import Statements
from vggkit.weights.card import Card
from vggkit.weights.entries import HeadPlace, Position, Window
from vggkit.weights.head_reading import PAPER_WIDTH
from vggkit.weights.layer_matches import Sheet, places_of


@dataclass(frozen=True, slots=True)
class Recognition:
    """A network that has the shapes of a sheet."""

    configuration: Configuration
    """The network; with the paper's own head where the file has none."""
    num_classes: int | None
    """Classes; None where the file has no last layer."""
    alike: tuple[str, ...] = ()
    """Other models whose trunk begins with the same layers, where a cut leaves them open."""
    description: str = ""
    """How it differs from the file's other readings; empty where there is no other."""


def list_networks(
    sheets: Sequence[Sheet], card: Card | None, statements: Statements, hint: str | None
) -> list[tuple[Sheet, Recognition]]:
    """The networks that the file may hold, the likeliest first, each with its modules in their places."""
    stated = card.configuration if card is not None else statements.configuration
    if not sheets:
        return []
    if stated is not None:
        sheet = choose_sheet(sheets, stated)
        assert sheet is not None
        if card is not None or _fits(sheet, stated):
            return [(sheet, Recognition(stated, stated.num_classes))]
    found: list[tuple[Sheet, Recognition]] = []
    for sheet in sheets:
        recognitions = recognize(sheet, hint=hint)
        for each in recognitions:
            description = ", ".join(
                part for part in (each.description if len(recognitions) > 1 else "", sheet.description) if part
            )
            known = any(each.configuration == other.configuration for _, other in found)
            if not known:
                found.append((sheet, replace(each, description=description)))
    if len(found) == 1:
        found = [(sheet, replace(each, description="")) for sheet, each in found]
    if stated is not None:
        # Another head was put on a network whose metadata states its trunk.
        found = [
            (sheet, replace(each, configuration=replace(each.configuration, pooling=stated.pooling)))
            for sheet, each in found
        ]
        found.sort(key=lambda pair: pair[1].configuration.trunk != stated.trunk)
    return found


def choose_sheet(sheets: Sequence[Sheet], configuration: Configuration) -> Sheet | None:
    """The one that has a place for most of the network's tensors; the first of equals."""
    expected = configuration.state_shapes()

    def count(sheet: Sheet) -> int:
        return sum(source.shape == expected.get(key) for key, source in sheet.locate(configuration).items())

    return max(sheets, key=count, default=None)


def _fits(sheet: Sheet, configuration: Configuration) -> bool:
    """Whether the file holds every tensor of that network, and no other."""
    located, expected = sheet.locate(configuration), configuration.state_shapes()
    wrong = [
        key
        for key, shape in expected.items()
        if (located[key].shape != shape if key in located else not key.endswith("num_batches_tracked"))
    ]
    used = {key for source in located.values() for key in source.keys}
    return not wrong and used >= set(sheet.keys)


def recognize(sheet: Sheet, *, hint: str | None = None) -> list[Recognition]:
    """The networks that sheet may be of, the likeliest first; none where it is not a VGG.

    There are several where a pool head reads a trunk that may end with a convolution, its ReLU or the pool
    behind it: none of these has tensors.

    Args:
        sheet: The file's modules.
        hint: A model whose conv1_1 this is by its fingerprint; it decides between models that
            begin alike.
    """
    if not sheet.trunk:
        return []
    windows = {place: sheet.window(module) for place, module in sorted(sheet.trunk.items())}
    first = windows[min(windows)]
    if first.kernel != 3 or any(window.kernel not in (1, 3) for window in windows.values()):
        return []
    rows = [replace(row, in_channels=first.into) for row in MODELS.values() if row.batch_norm is bool(sheet.norms)]
    if (whole := next((row for row in rows if _compare(row, sheet, windows) == (0, 0)), None)) is not None:
        return _end([whole], sheet)
    partial = [row for row in rows if _begins(row, sheet, windows)] if not sheet.strays else []
    # Where models begin alike, the one that is cut most often.
    partial.sort(key=lambda row: (row.model != hint, row.model.removesuffix("_bn") != "vgg16"))
    custom = _build_custom(sheet, windows, first.into)
    if custom is not None and sheet.head and not _is_pooled(sheet):
        return [_put_head(custom, sheet)]
    if partial and not sheet.head:
        alike = () if hint else tuple(row.model for row in partial[1:])
        return [_put_head(_cut(partial[0], _find_relu(partial[0], sheet), sheet), sheet, alike)]
    if partial and _is_pooled(sheet):
        return _end(partial, sheet, open_models=not hint)
    if custom is not None:
        return _end([custom], sheet)
    near = [(_compare(row, sheet, windows), row) for row in rows]
    wrong, row = min(near, key=lambda each: (each[0][1], each[0][0], each[1].kernels is not None))
    # A convolution or two may be of another shape where the others leave no doubt.
    right = len(windows) - wrong[1]
    enough = right * 3 >= len(places_of(row, sheet.scheme)) and (sheet.scheme != "order" or wrong[0] == 0)
    return [_put_head(row, sheet)] if enough and wrong[1] <= max(1, right // 7) else []


def _end(rows: Sequence[Configuration], sheet: Sheet, *, open_models: bool = False) -> list[Recognition]:
    """These trunks with a pool head at every end they may have, the likeliest first; whole with another head."""
    whole = len(places_of(rows[0], sheet.scheme)) == len(sheet.trunk)
    if whole:
        # Hidden layers on the 1×1 map behind the last pool are the fc head's.
        uncut = _put_head(rows[0], sheet)
        if not sheet.head or uncut.configuration.head != "pool":
            return [uncut]
    found: dict[tuple[Layer, ...], Recognition] = {}
    alike: dict[tuple[Layer, ...], list[str]] = {}
    for row in rows:
        for end in _list_ends(row, sheet):
            recognition = _put_head(_cut(row, end, sheet), sheet)
            trunk = recognition.configuration.trunk
            found.setdefault(trunk, recognition)
            alike.setdefault(trunk, []).append(row.model)
    # Means are taken behind the last pool; means and deviations of a map that was cut, as our own cuts are.
    mean = _head_reads(sheet) == sheet.trunk_channels
    first, second = ("pool", "relu") if mean or (whole and rows[0].model != "custom") else ("relu", "pool")
    likely = (first, second, "lrn", "bn", "conv")

    def rank(recognition: Recognition) -> tuple[bool, int]:
        trunk = recognition.configuration.trunk
        return sheet.layers not in (None, len(trunk)), likely.index(trunk[-1].kind)

    ordered = sorted(found.values(), key=rank)
    return [
        replace(
            recognition,
            alike=tuple(alike[recognition.configuration.trunk][1:]) if open_models else (),
            description=_describe_end(recognition.configuration),
        )
        for recognition in ordered
    ]


def _describe_end(configuration: Configuration) -> str:
    last = configuration.trunk[-1].name
    text = f"cut at {last}" if configuration.until else f"with {last} at its end"
    return f"{text}, after {', '.join(configuration.lrn_after)} normalised" if configuration.lrn_after else text


def _list_ends(row: Configuration, sheet: Sheet) -> list[str]:
    """Layers that the trunk may end with: from the file's last convolution up to the next one."""
    places = places_of(row, sheet.scheme)
    last = next(name for name, place in places.items() if place == max(sheet.trunk))
    layers = list(row.trunk)
    start = next(at for at, layer in enumerate(layers) if layer.name == last)
    ends = [layers[start].name]
    for layer in layers[start + 1 :]:
        if layer.kind == "conv":
            break
        ends.append(layer.name)
    if row.batch_norm:
        # The last batch norm is there, or the trunk ends before it.
        return ends[1:] if max(sheet.trunk) in sheet.norms else ends[:1]
    return ends


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
    window = sheet.span(first)
    return window.into * window.kernel**2


def _find_relu(row: Configuration, sheet: Sheet) -> str:
    """The ReLU of the last convolution in the file."""
    return next(name for name in _list_ends(row, sheet)[::-1] if not name.startswith(("pool", "lrn")))


def _cut(row: Configuration, until: str, sheet: Sheet) -> Configuration:
    """The row up to that layer, with a pool head."""
    statistics: Statistics = "mean" if _head_reads(sheet) == sheet.trunk_channels else "mean+std"
    return replace(row, until=until, head="pool", hidden=(), dropout=0.0, statistics=statistics)


def _build_custom(sheet: Sheet, windows: Mapping[Position, Window], in_channels: int) -> Configuration | None:
    """The trunk that the places describe, of any widths; None where they leave a gap or do not chain."""
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
        case "index" | "units":
            step = 1 if sheet.scheme == "units" else 3 if sheet.norms else 2
            depths = [1]
            for before, after in pairwise(place[0] for place in places):
                if after - before == step:
                    depths[-1] += 1
                else:  # a pool lies between; other causes are found when the places are compared
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
    given = {place: sheet.span(layer) for place, layer in sheet.head.items()}

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
