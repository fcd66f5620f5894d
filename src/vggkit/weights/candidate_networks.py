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
from vggkit.weights.layer_positions import LayerPositions, places_of


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network that has the shapes of the modules in these positions."""

    configuration: Configuration
    """The network; with the paper's own head where the file has none."""
    num_classes: int | None
    """Classes; None where the file has no last layer."""
    similar_models: tuple[str, ...] = ()
    """Other models whose trunk begins with the same layers, where a cut leaves them open."""
    description: str = ""
    """The difference from the file's other readings; empty where there is no other."""


def list_candidates(
    all_positions: Sequence[LayerPositions], card: Card | None, statements: Statements, hint: str | None
) -> list[tuple[LayerPositions, Candidate]]:
    """The networks that the file may hold, the likeliest first, each with its modules in their places."""
    stated = card.configuration if card is not None else statements.configuration
    if not all_positions:
        return []
    if stated is not None:
        positions = choose_positions(all_positions, stated)
        assert positions is not None
        if card is not None or _fits(positions, stated):
            return [(positions, Candidate(stated, stated.num_classes))]
    found: list[tuple[LayerPositions, Candidate]] = []
    for positions in all_positions:
        candidates = find_candidates(positions, hint=hint)
        for each in candidates:
            description = ", ".join(
                part for part in (each.description if len(candidates) > 1 else "", positions.description) if part
            )
            known = any(each.configuration == other.configuration for _, other in found)
            if not known:
                found.append((positions, replace(each, description=description)))
    if len(found) == 1:
        found = [(positions, replace(each, description="")) for positions, each in found]
    if stated is not None:
        # Another head was put on a network whose metadata states its trunk.
        found = [
            (positions, replace(each, configuration=replace(each.configuration, pooling=stated.pooling)))
            for positions, each in found
        ]
        found.sort(key=lambda pair: pair[1].configuration.trunk != stated.trunk)
    return found


def choose_positions(
    all_positions: Sequence[LayerPositions], configuration: Configuration
) -> LayerPositions | None:
    """The positions that hold most of the network's tensors; the first of equals."""
    expected = configuration.state_shapes()

    def count(positions: LayerPositions) -> int:
        return sum(source.shape == expected.get(key) for key, source in positions.locate(configuration).items())

    return max(all_positions, key=count, default=None)


def _fits(positions: LayerPositions, configuration: Configuration) -> bool:
    """Whether the file holds every tensor of that network, and no other."""
    located, expected = positions.locate(configuration), configuration.state_shapes()
    wrong = [
        key
        for key, shape in expected.items()
        if (located[key].shape != shape if key in located else not key.endswith("num_batches_tracked"))
    ]
    used = {key for source in located.values() for key in source.keys}
    return not wrong and used >= set(positions.keys)


def find_candidates(positions: LayerPositions, *, hint: str | None = None) -> list[Candidate]:
    """The networks that modules in these positions may be of, the likeliest first; none where they are not a VGG's.

    There are several where a pool head reads a trunk that may end with a convolution, its ReLU or the pool
    behind it: none of these has tensors.

    Args:
        positions: The file's modules in their positions.
        hint: A model whose conv1_1 this is by its fingerprint; it decides between models that
            begin with the same layers.
    """
    if not positions.trunk:
        return []
    windows = {place: positions.window(module) for place, module in sorted(positions.trunk.items())}
    first = windows[min(windows)]
    if first.kernel != 3 or any(window.kernel not in (1, 3) for window in windows.values()):
        return []
    rows = [
        replace(row, in_channels=first.into) for row in MODELS.values() if row.batch_norm is bool(positions.norms)
    ]
    if (whole := next((row for row in rows if _compare(row, positions, windows) == (0, 0)), None)) is not None:
        return _end([whole], positions)
    partial = [row for row in rows if _begins(row, positions, windows)] if not positions.n_unplaced_convs else []
    # Where models begin with the same layers, the one that is cut most often.
    partial.sort(key=lambda row: (row.model != hint, row.model.removesuffix("_bn") != "vgg16"))
    custom = _build_custom(positions, windows, first.into)
    if custom is not None and positions.head and not _is_pooled(positions):
        return [_put_head(custom, positions)]
    if partial and not positions.head:
        similar_models = () if hint else tuple(row.model for row in partial[1:])
        trunk = _cut(partial[0], _find_relu(partial[0], positions), positions)
        return [_put_head(trunk, positions, similar_models)]
    if partial and _is_pooled(positions):
        return _end(partial, positions, open_models=not hint)
    if custom is not None:
        return _end([custom], positions)
    near = [(_compare(row, positions, windows), row) for row in rows]
    wrong, row = min(near, key=lambda each: (each[0][1], each[0][0], each[1].kernels is not None))
    # A convolution or two may be of another shape where the others leave no doubt.
    right = len(windows) - wrong[1]
    enough = right * 3 >= len(places_of(row, positions.scheme)) and (positions.scheme != "order" or wrong[0] == 0)
    return [_put_head(row, positions)] if enough and wrong[1] <= max(1, right // 7) else []


def _end(rows: Sequence[Configuration], positions: LayerPositions, *, open_models: bool = False) -> list[Candidate]:
    """These trunks with a pool head at every end they may have, the likeliest first; whole with another head."""
    whole = len(places_of(rows[0], positions.scheme)) == len(positions.trunk)
    if whole:
        # Hidden layers on the 1×1 map behind the last pool are the fc head's.
        uncut = _put_head(rows[0], positions)
        if not positions.head or uncut.configuration.head != "pool":
            return [uncut]
    found: dict[tuple[Layer, ...], Candidate] = {}
    similar_models: dict[tuple[Layer, ...], list[str]] = {}
    for row in rows:
        for end in _list_ends(row, positions):
            candidate = _put_head(_cut(row, end, positions), positions)
            trunk = candidate.configuration.trunk
            found.setdefault(trunk, candidate)
            similar_models.setdefault(trunk, []).append(row.model)
    # Means are taken behind the last pool; means and deviations of a map that was cut, as our own cuts are.
    mean = _head_reads(positions) == positions.trunk_channels
    first, second = ("pool", "relu") if mean or (whole and rows[0].model != "custom") else ("relu", "pool")
    likely = (first, second, "lrn", "bn", "conv")

    def rank(candidate: Candidate) -> tuple[bool, int]:
        trunk = candidate.configuration.trunk
        return positions.layers not in (None, len(trunk)), likely.index(trunk[-1].kind)

    ordered = sorted(found.values(), key=rank)
    return [
        replace(
            candidate,
            similar_models=tuple(similar_models[candidate.configuration.trunk][1:]) if open_models else (),
            description=_describe_end(candidate.configuration),
        )
        for candidate in ordered
    ]


def _describe_end(configuration: Configuration) -> str:
    last = configuration.trunk[-1].name
    text = f"cut at {last}" if configuration.until else f"with {last} at its end"
    return f"{text}, after {', '.join(configuration.lrn_after)} normalised" if configuration.lrn_after else text


def _list_ends(row: Configuration, positions: LayerPositions) -> list[str]:
    """Layers that the trunk may end with: from the file's last convolution up to the next one."""
    places = places_of(row, positions.scheme)
    last = next(name for name, place in places.items() if place == max(positions.trunk))
    layers = list(row.trunk)
    start = next(at for at, layer in enumerate(layers) if layer.name == last)
    ends = [layers[start].name]
    for layer in layers[start + 1 :]:
        if layer.kind == "conv":
            break
        ends.append(layer.name)
    if row.batch_norm:
        # The last batch norm is there, or the trunk ends before it.
        return ends[1:] if max(positions.trunk) in positions.norms else ends[:1]
    return ends


def _compare(row: Configuration, positions: LayerPositions, windows: Mapping[Position, Window]) -> tuple[int, int]:
    """Numbers of the row's convolutions that the file lacks, and of the file's that have another shape or place."""
    layers = {layer.name: layer for layer in row.trunk}
    expected = {place: layers[name] for name, place in places_of(row, positions.scheme).items()}
    missing = sum(place not in windows for place in expected)
    wrong = sum(place not in expected or not _same(expected[place], window) for place, window in windows.items())
    return missing, wrong


def _same(layer: Layer, window: Window) -> bool:
    return (layer.out_channels, layer.in_channels, layer.kernel) == (window.out, window.into, window.kernel)


def _begins(row: Configuration, positions: LayerPositions, windows: Mapping[Position, Window]) -> bool:
    """Whether the file holds the row's first convolutions, without a gap."""
    beginning = sorted(places_of(row, positions.scheme).values())[: len(windows)]
    return beginning == sorted(windows) and _compare(row, positions, windows)[1] == 0


def _is_pooled(positions: LayerPositions) -> bool:
    """Whether the head reads a channel's mean, or mean and standard deviation."""
    reads = _head_reads(positions)
    return reads in (positions.trunk_channels, 2 * positions.trunk_channels)


def _head_reads(positions: LayerPositions) -> int | None:
    """Numbers that the head's first layer reads; None where it is not there."""
    first = positions.head.get(HeadPlace(0, None)) or positions.head.get(HeadPlace(0, 0))
    if first is None:
        return None
    window = positions.span(first)
    return window.into * window.kernel**2


def _find_relu(row: Configuration, positions: LayerPositions) -> str:
    """The ReLU of the last convolution in the file."""
    return next(name for name in _list_ends(row, positions)[::-1] if not name.startswith(("pool", "lrn")))


def _cut(row: Configuration, until: str, positions: LayerPositions) -> Configuration:
    """The row up to that layer, with a pool head."""
    statistics: Statistics = "mean" if _head_reads(positions) == positions.trunk_channels else "mean+std"
    return replace(row, until=until, head="pool", hidden=(), dropout=0.0, statistics=statistics)


def _build_custom(
    positions: LayerPositions, windows: Mapping[Position, Window], in_channels: int
) -> Configuration | None:
    """The trunk that the places describe, of any widths; None where they leave a gap or do not chain."""
    sizes = list(windows.values())
    if any(one.out != two.into for one, two in pairwise(sizes)):
        return None
    depths = _depths(positions, sizes)
    if depths is None:
        return None
    remaining = iter(sizes)
    taken = [[next(remaining) for _ in range(depth)] for depth in depths]
    try:
        custom = Configuration(
            blocks=tuple(tuple(window.out for window in block) for block in taken),
            kernels=tuple(tuple(window.kernel for window in block) for block in taken),
            batch_norm=bool(positions.norms),
            in_channels=in_channels,
        )
    except BadConfiguration:
        return None
    return custom if sorted(places_of(custom, positions.scheme).values()) == sorted(windows) else None


def _depths(positions: LayerPositions, sizes: Sequence[Window]) -> list[int] | None:
    """Convolutions of each block."""
    places = sorted(positions.trunk)
    match positions.scheme:
        case "index" | "units":
            step = 1 if positions.scheme == "units" else 3 if positions.norms else 2
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


def _put_head(trunk: Configuration, positions: LayerPositions, similar_models: tuple[str, ...] = ()) -> Candidate:
    """The trunk with the head that the file has; with the paper's where it has none that reads this trunk."""
    channels, reads = trunk.trunk_channels, _head_reads(positions)
    layers = list(_measure_head(positions, trunk))
    if not layers:
        return Candidate(trunk, None, similar_models)
    *hidden, classes = [out for out, _ in layers]
    if any(width is None for width in hidden):
        return Candidate(trunk, None, similar_models)
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
            return Candidate(trunk, None, similar_models)
    try:
        return Candidate(replace(trunk, **changes), classes, similar_models)  # type: ignore[arg-type]
    except BadConfiguration:
        return Candidate(trunk, None, similar_models)


def _measure_head(positions: LayerPositions, trunk: Configuration) -> Iterator[tuple[int | None, int | None]]:
    """(numbers out, rank) of each layer of the head, those between that are missing too; None where unknown."""
    if not positions.head:
        return
    last = max(place.position for place in positions.head)
    given = {place: positions.span(layer) for place, layer in positions.head.items()}

    def numbers_out(position: int) -> int | None:
        own = given.get(HeadPlace(position, None)) or given.get(HeadPlace(position, 1))
        after = given.get(HeadPlace(position + 1, None)) or given.get(HeadPlace(position + 1, 0))
        return own.out if own else after.into * after.kernel**2 if after else None

    if last < 2 and numbers_out(last) == PAPER_WIDTH and not _is_pooled(positions):
        last = 2  # the paper's hidden layers without the one behind them
    for position in range(last + 1):
        factor = given.get(HeadPlace(position, 0))
        out = numbers_out(position)
        if out is None and position < 2 and last == 2:
            out = PAPER_WIDTH
        yield out, factor.out if factor else None
