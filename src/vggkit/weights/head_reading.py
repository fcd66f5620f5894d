"""The fully connected layers of a file in order, and the activations that may lie between them. No torch here.

Indices in a Sequential show how many modules lie between two matrices. Zero: no activation, and both are one layer.
One: a ReLU or a dropout, which tensors do not distinguish. More: the paper's ReLU and dropout. Other names show
nothing, and a custom forward is assumed to have the paper's ReLU.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations, product
from typing import Final

from vggkit.weights.entries import HeadPlace, Module, Window, measure, place_heads

PAPER_WIDTH: Final = 4096
"""Numbers that each hidden layer of the paper gives."""
_LIMIT_PERMUTED: Final = 6
_LIMIT_READINGS: Final = 8


@dataclass(frozen=True, slots=True)
class HeadLayer:
    """One matrix of the head as a file has it."""

    modules: tuple[Module, ...]
    """Its matrix; several where none has an activation behind it, so that their product is the layer's."""
    before: Module | None = None
    """The first factor of a low-rank layer, on the second one: its bias is a part of the layer's."""

    @property
    def is_product(self) -> bool:
        """Whether it is several matrices."""
        return len(self.modules) > 1


@dataclass(frozen=True, slots=True)
class HeadReading:
    """One possible reading of a head."""

    layers: Mapping[HeadPlace, HeadLayer]
    """Its matrices in their places."""
    description: str = ""
    """The difference from the other readings; empty where there is no other."""
    merged: str = ""
    """The matrices that are read as one layer, in words; empty where none are."""


def read_heads(
    connected: Sequence[Module], *, channels: int, channels_last: bool, listed: Sequence[str]
) -> list[HeadReading]:
    """Every reading of a file's head, the likeliest first; none where no order of its matrices chains.

    Modules that no published forward calls, such as a matrix outside a whole `classifier`, stay out of the
    likeliest one, and are then called unexpected.

    Args:
        connected: The file's matrices, the convolutions that may be used in their place, and biases alone.
        channels: C that leave the trunk.
        channels_last: Matrices are (I, O).
        listed: Paths of all of the network's modules, where the file lists them.
    """
    return list(_Heads(channels, channels_last, tuple(listed)).read(connected))[:_LIMIT_READINGS]


@dataclass(frozen=True, slots=True)
class _Link:
    """The readings of the gap between two matrices: with an activation or without, the likelier first."""

    choices: tuple[bool, ...]


_RELU: Final = _Link((True,))
_NOTHING: Final = _Link((False,))
_EITHER: Final = _Link((True, False))
_RATHER_NOTHING: Final = _Link((False, True))


@dataclass(frozen=True, slots=True)
class _Heads:
    channels: int
    channels_last: bool
    listed: tuple[str, ...]

    def read(self, connected: Sequence[Module]) -> Iterator[HeadReading]:
        weighty = [module for module in connected if module.kind != "lone_bias"]
        placed = self._place(connected) or self._place(weighty)
        main = weighty if placed else self._find_main(weighty)
        rest = [module for module in weighty if module not in main]
        placed = placed or self._place(main)
        chain = self._chain(main) if rest or not placed else []
        if placed and not chain:
            yield HeadReading(placed)
        if not chain:
            return
        start = min(place.position for place in placed) if placed else 0
        behind = self._chain(rest, behind=chain[-1]) if rest else []
        whole = [chain, [*chain, *behind]] if behind else [chain]
        if behind and len(chain) < 3 and self._window(chain[-1]).out == PAPER_WIDTH:
            whole.reverse()  # the paper's hidden layers, whose last one has another name
        several = len(whole) > 1
        for modules in whole:
            outside = ""
            if several:
                names = " and ".join(module.name for module in behind)
                outside = f"{names} {'behind the head' if len(modules) > len(chain) else 'unused'}"
            yield from self._read_chain(modules, outside=outside, start=start, own=len(chain))

    def _place(self, modules: Sequence[Module]) -> dict[HeadPlace, HeadLayer] | None:
        """By names that state the places, all of one kind."""
        named = place_heads([module.name for module in modules])
        if named is None:
            return None
        layers = {named[module.name]: HeadLayer((module,)) for module in modules}
        # A first factor has no bias: with one it is a matrix like others.
        if any(place.factor == 0 and "bias" in layer.modules[0].keys for place, layer in layers.items()):
            return None
        if list(layers) == [HeadPlace(2, None)]:
            # The last layer alone, by its name: of a head without hidden layers where it reads the map.
            (module,) = modules
            if module.kind != "lone_bias" and self._reads_map(module):
                return {HeadPlace(0, None): HeadLayer((module,))}
        return layers

    def _reads_map(self, module: Module) -> bool:
        window = self._window(module)
        reads = window.into * window.kernel**2
        side = round((reads / self.channels) ** 0.5)
        return reads == 2 * self.channels or (side > 0 and side * side * self.channels == reads)

    def _find_main(self, modules: Sequence[Module]) -> list[Module]:
        """Those that the published forward calls: `classifier`, or a whole head by its names; else all."""
        inside = [module for module in modules if "classifier" in module.name.split(".")]
        if inside:
            return inside
        named = [module for module in modules if place_heads([module.name]) is not None]
        return named if len(named) >= 3 and self._place(named) is not None else list(modules)

    def _window(self, module: Module) -> Window:
        window = measure(module, channels_last=self.channels_last)
        assert window is not None, module.name
        return window

    def _chain(self, modules: Sequence[Module], *, behind: Module | None = None) -> list[Module]:
        """The modules in the order in which each reads what the one before gives; empty where there is none."""
        if len(modules) > _LIMIT_PERMUTED or not modules:
            return []
        # Formats that keep entries by letter shuffle them; indices, where there are some, are in order.
        start = sorted(modules, key=_index_of) if all(_index_of(module) for module in modules) else modules
        for ordered in permutations(start):
            linked = [behind, *ordered] if behind is not None else list(ordered)
            if all(self._window(one).out == self._reads(two) for one, two in pairwise(linked)):
                return list(ordered)
        return []

    def _reads(self, module: Module) -> int:
        window = self._window(module)
        return window.into * window.kernel**2

    def _read_chain(
        self, modules: Sequence[Module], *, outside: str, start: int, own: int
    ) -> Iterator[HeadReading]:
        """The readings of matrices in this order, from the position `start` on; the first `own` are the head's."""
        pairs = list(pairwise(modules))
        rooms = [self._measure_room(one, two) for one, two in pairs]
        crowded = bool(rooms) and all(room == (0, True) for room in rooms)
        links = [
            self._link(one, two, room, crowded=crowded) if number < own else _EITHER
            for number, ((one, two), room) in enumerate(zip(pairs, rooms, strict=True), start=1)
        ]
        for choice in sorted(product(*(range(len(link.choices)) for link in links)), key=sum):
            active = [link.choices[at] for link, at in zip(links, choice, strict=True)]
            open_ones = [
                f"{'a ReLU' if relu else 'no activation'} between {one.name} and {two.name}"
                for (one, two), link, relu in zip(pairs, links, active, strict=True)
                if len(link.choices) > 1
            ]
            closed = [
                f"{one.name} and {two.name} without an activation between them"
                for (one, two), link in zip(pairs, links, strict=True)
                if link == _NOTHING and "bias" in one.keys
            ]
            description = ", ".join([outside, *open_ones] if outside else open_ones)
            yield HeadReading(self._group(modules, active, start), description, ", ".join(closed))

    def _link(self, one: Module, two: Module, room: tuple[int | None, bool], *, crowded: bool) -> _Link:
        places, indexed = room
        if not indexed:
            # A matrix without a bias is the first factor of a low-rank layer, or a layer by itself.
            return _RELU if "bias" in one.keys else _RATHER_NOTHING
        if places == 0:
            # Indices without any room are a list's too, whose forward puts a ReLU between.
            classifier = "classifier" in one.name.split(".")[:-1]
            return _EITHER if crowded and not classifier else _NOTHING
        return _EITHER if places is None or places == 1 else _RELU

    def _measure_room(self, one: Module, two: Module) -> tuple[int | None, bool]:
        """Number of modules that fit between two, None where unknown, and whether it follows from indices."""
        first, second = one.name.split("."), two.name.split(".")
        shared = next((at for at, pair in enumerate(zip(first, second, strict=False)) if len(set(pair)) > 1), None)
        if shared is None:
            return None, False
        before, after = first[shared:], second[shared:]
        if not all(part.isdigit() for part in (*before, *after)):
            return None, False
        if one.name in self.listed and two.name in self.listed:
            between = self.listed[self.listed.index(one.name) + 1 : self.listed.index(two.name)]
            return sum(not any(other.startswith(f"{name}.") for other in self.listed) for name in between), True
        if len(before) > 1:  # what follows within its own Sequential
            return None, True
        return int(after[0]) - int(before[0]) - 1 + sum(map(int, after[1:])), True

    def _group(self, modules: Sequence[Module], active: Sequence[bool], start: int) -> dict[HeadPlace, HeadLayer]:
        """Matrices without an activation between them as one layer: of low rank where the middle is narrow."""
        runs: list[list[Module]] = [[modules[0]]]
        for module, relu in zip(modules[1:], active, strict=True):
            if relu:
                runs.append([module])
            else:
                runs[-1].append(module)
        layers: dict[HeadPlace, HeadLayer] = {}
        for position, run in enumerate(runs, start=start):
            if len(run) == 2 and self._window(run[0]).out < min(self._reads(run[0]), self._window(run[1]).out):
                layers[HeadPlace(position, 0)] = HeadLayer((run[0],))
                layers[HeadPlace(position, 1)] = HeadLayer((run[1],), before=run[0])
            else:
                layers[HeadPlace(position, None)] = HeadLayer(tuple(run))
        return layers


def _index_of(module: Module) -> tuple[int, ...]:
    """The numbers at the end of its path; empty where there are none."""
    numbers: list[int] = []
    for part in reversed(module.name.split(".")):
        if not part.isdigit():
            break
        numbers.insert(0, int(part))
    return tuple(numbers)
