"""The places of a file's modules in a VGG, by their names or by their order. No torch here.

Shape letters: O and I channels (or numbers) out and in, G side of the map that the head reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt

from vggkit.models.configuration import Configuration
from vggkit.models.layer_records import Layer
from vggkit.weights.dialects import Layout, Place, Shaped, Source
from vggkit.weights.entries import (
    HeadPlace,
    Module,
    Position,
    Scheme,
    Window,
    gather_modules,
    in_natural_order,
    is_channels_last,
    measure,
    place_by_name,
)
from vggkit.weights.head_reading import HeadLayer, HeadReading, read_heads


@dataclass(frozen=True, kw_only=True)
class LayerPositions:
    """A file's modules in their places, before any network is decided on."""

    scheme: Scheme
    """The notation by which the trunk's places are known."""
    channels_last: bool
    """Kernels are (H, W, I, O)."""
    trunk: Mapping[Position, Module]
    """Convolutions."""
    norms: Mapping[Position, Module]
    """Batch norms."""
    head: Mapping[HeadPlace, HeadLayer]
    """Fully connected layers, as matrices or as convolutions."""
    description: str = ""
    """The reading of the head, where there are several; else empty."""
    merged: str = ""
    """The matrices that are read as one layer, in words; empty where none are."""
    layers: int | None = None
    """Modules in `features`, where the file lists them."""
    lone_biases: Mapping[Position | HeadPlace, Module]
    """Biases without their weights, if names give their places."""
    n_unplaced_convs: int
    """Number of convolutions that have no place."""
    keys: tuple[str, ...]
    """Every key of the file, in its order."""

    def window(self, module: Module) -> Window:
        """The window of one of the modules placed here."""
        window = measure(module, channels_last=self.channels_last)
        assert window is not None, module.name
        return window

    def span(self, layer: HeadLayer) -> Window:
        """The window of a layer of the head; of several matrices that of their product."""
        first, last = self.window(layer.modules[0]), self.window(layer.modules[-1])
        return Window(last.out, first.into, first.kernel)

    @property
    def trunk_channels(self) -> int:
        """Channels that leave the last convolution there is."""
        return self.window(self.trunk[max(self.trunk)]).out

    @property
    def first(self) -> tuple[Place, str] | None:
        """The place of the first convolution's filters, and the key of its bias; None where it has no bias."""
        keys = self.trunk[min(self.trunk)].keys
        filters = Place(keys["weight"], "hwio" if self.channels_last else "same")
        return (filters, keys["bias"]) if "bias" in keys else None

    def locate(self, configuration: Configuration) -> dict[str, Source]:
        """For each canonical key of that network whose place is occupied in the file, its source; of any shape."""
        found: dict[str, Source] = {}
        convolutions = places_of(configuration, self.scheme)
        for layer in configuration.trunk:
            if layer.kind in ("conv", "bn"):
                place = convolutions[layer.name.replace("bn", "conv")]
                module = (self.trunk if layer.kind == "conv" else self.norms).get(place)
                own = (layer.index,) if self.scheme == "index" else place
                module = module or (self.lone_biases.get(own) if layer.kind == "conv" or own != place else None)
                if module is not None:
                    found |= self._sources(module, f"features.{layer.index}", "hwio")
        for position, fc in enumerate(configuration.fully_connected):
            for factor in (None,) if fc.rank is None else (0, 1):
                place_in_head = HeadPlace(position, factor)
                name = f"classifier.{fc.index}" + ("" if factor is None else f".{factor}")
                first = position == 0 and factor in (None, 0)
                if place_in_head in self.head:
                    found |= self._head_sources(self.head[place_in_head], name, factor, first=first)
                elif (module := self.lone_biases.get(place_in_head)) is not None:
                    found |= self._sources(module, name, "io", first=first)
        order = {key: number for number, key in enumerate(configuration.state_shapes())}
        return {key: found[key] for key in sorted(found, key=lambda key: order.get(key, len(order)))}

    def _sources(self, module: Module, name: str, turned: Layout, *, first: bool = False) -> dict[str, Source]:
        sources = {}
        for parameter, key in module.keys.items():
            layout: Layout = "same"
            grid, shape = 1, module.shapes[parameter]
            if parameter == "weight" and module.kind in ("conv", "linear"):
                window = self.window(module)
                if turned == "hwio":
                    layout = "hwio" if self.channels_last else "same"
                    shape = (window.out, window.into, window.kernel, window.kernel)
                else:
                    shape = (window.out, window.into * window.kernel**2)
                    grid = self._grid_of(module) if first else window.kernel
                    layout = self._find_layout(module, grid)
            sources[f"{name}.{parameter}"] = Source(Place(key, layout, grid), shape)
        return sources

    def _head_sources(self, layer: HeadLayer, name: str, factor: int | None, *, first: bool) -> dict[str, Source]:
        """Of one matrix where it lies; of several their product, and what becomes of their biases."""
        parts = [
            self._sources(module, name, "io", first=first and module is layer.modules[0])
            for module in layer.modules
        ]
        sources = parts[-1]
        weight, bias = f"{name}.weight", f"{name}.bias"
        chain = tuple((part[weight].place, part[bias].place if bias in part else None) for part in parts)
        window = self.span(layer)
        if layer.is_product:
            shape = (window.out, window.into * window.kernel**2)
            sources = {weight: Source(chain[-1][0], shape, chain)}
        carried = chain
        if layer.before is not None:
            own = self._sources(layer.before, name, "io")
            carried = ((own[weight].place, own[bias].place if bias in own else None), *chain)
        if len(carried) > 1 and any(place is not None for _, place in carried):
            place = next(place for _, place in reversed(carried) if place is not None)
            sources[bias] = Source(place, (window.out,), carried, is_bias=True)
        if factor == 0:  # its bias is a part of the second one's
            sources = {weight: sources[weight]}
        return sources

    def _find_layout(self, module: Module, grid: int) -> Layout:
        if module.kind == "conv":
            return "fc_hwio" if self.channels_last else "oihw"
        if not self.channels_last:
            return "same"
        return "hwc_io" if grid > 1 else "io"

    def _grid_of(self, module: Module) -> int:
        """G of the head's first layer; 1 where its numbers are no square map of the trunk's channels."""
        window = self.window(module)
        if window.kernel > 1:
            return window.kernel
        side = isqrt(window.into // self.trunk_channels)
        return side if side and side * side * self.trunk_channels == window.into else 1


def places_of(configuration: Configuration, scheme: Scheme) -> dict[str, Position]:
    """The place of each convolution, by its name, and under `index` of each batch norm too, as `conv` names."""
    convolutions = [layer for layer in configuration.trunk if layer.kind == "conv"]
    if scheme == "index":
        return {layer.name: (layer.index,) for layer in convolutions}
    if scheme == "order":
        return {layer.name: (number,) for number, layer in enumerate(convolutions)}
    if scheme == "units":
        units = [layer for layer in configuration.trunk if layer.kind in ("conv", "pool")]
        return {layer.name: (number,) for number, layer in enumerate(units) if layer.kind == "conv"}
    return {layer.name: _block_and_position(layer) for layer in convolutions}


def _block_and_position(layer: Layer) -> Position:
    block, position = layer.name.removeprefix(layer.kind).split("_")
    return (int(block), int(position))


def list_positions(entries: Mapping[str, Shaped], listed: Sequence[str] = ()) -> list[LayerPositions]:
    """The file's modules in their places: one for each reading of its head, the likeliest first.

    None at all where there is no chain of convolutions.

    Args:
        entries: The file's tensors.
        listed: Paths of all of the network's modules, where the file lists them.
    """
    modules, _ = gather_modules(entries)
    if not any(module.kind == "conv" for module in modules):
        return []
    last = is_channels_last(modules)
    square = [m for m in modules if m.kind not in ("conv", "linear") or measure(m, channels_last=last)]
    keys = tuple(entries)
    return _position_by_names(square, keys, last, listed) or _position_by_order(square, keys, last, listed)


def _position_by_names(
    modules: Sequence[Module], keys: tuple[str, ...], last: bool, listed: Sequence[str]
) -> list[LayerPositions]:
    """By the places that the names state; none where a convolution of the trunk has no such place."""
    schemes: tuple[Scheme, ...] = ("index", "blocks", "units", "names", "keras")
    for scheme in schemes:
        trunk, norms, rest = {}, {}, []
        lone_biases: dict[Position | HeadPlace, Module] = {}
        for module in modules:
            place = place_by_name(module.name, scheme)
            if place is None or module.kind == "linear":
                rest.append(module)
            elif module.kind == "lone_bias":
                lone_biases[place] = module
            elif module.kind == "conv":
                trunk[place] = module
            else:
                # In a Sequential each batch norm follows its convolution.
                norms[(place[0] - 1,) if scheme == "index" else place] = module
        if not trunk:
            continue
        connected = [module for module in rest if module.kind in ("conv", "linear")]
        if sum(module.kind == "conv" for module in connected) > len(trunk):
            continue
        lone = [module for module in rest if module.kind == "lone_bias"]
        out = _out_of(trunk[max(trunk)], last)
        readings = read_heads([*connected, *lone], channels=out, channels_last=last, listed=listed)
        all_positions = []
        for reading in readings or [HeadReading({})]:
            alone: dict[Position | HeadPlace, Module] = {
                place: layer.modules[0]
                for place, layer in reading.layers.items()
                if layer.modules[0].kind == "lone_bias"
            }
            all_positions.append(
                LayerPositions(
                    scheme=scheme,
                    channels_last=last,
                    trunk=trunk,
                    norms=norms,
                    head={place: layer for place, layer in reading.layers.items() if place not in alone},
                    lone_biases=lone_biases | alone,
                    n_unplaced_convs=_count_unplaced_convs(connected, reading),
                    keys=keys,
                    description=reading.description,
                    merged=reading.merged,
                    layers=_count_layers(trunk, listed) if scheme == "index" else None,
                )
            )
        return all_positions
    return []


def _out_of(module: Module, last: bool) -> int:
    window = measure(module, channels_last=last)
    assert window is not None, module.name
    return window.out


def _count_layers(trunk: Mapping[Position, Module], listed: Sequence[str]) -> int | None:
    """The number of modules in the Sequential of the first convolution; None where the file lists none."""
    start = trunk[min(trunk)].name.rpartition(".")[0] + "."
    places = [name.removeprefix(start) for name in listed if name.startswith(start)]
    numbers = [int(place) for place in places if place.isdigit()]
    return max(numbers) + 1 if numbers else None


def _count_unplaced_convs(connected: Sequence[Module], reading: HeadReading) -> int:
    placed = [module.name for layer in reading.layers.values() for module in layer.modules]
    return sum(module.kind == "conv" and module.name not in placed for module in connected)


def _position_by_order(
    modules: Sequence[Module], keys: tuple[str, ...], last: bool, listed: Sequence[str]
) -> list[LayerPositions]:
    """By the order of the file, or by number where that makes the longer chain."""
    found: list[tuple[int, list[Module], list[Module]]] = []
    for ordered in (list(modules), in_natural_order(modules)):
        convolutions = [module for module in ordered if module.kind == "conv"]
        length = _length_of_chain([measure(module, channels_last=last) for module in convolutions])
        found.append((length, convolutions, ordered))
    length, convolutions, ordered = max(found, key=lambda each: each[0])
    if length == 0:
        return []
    chain = convolutions[:length]
    norms = [module for module in ordered if module.kind == "norm"]
    connected = [m for m in ordered if m.kind == "linear"] + convolutions[length:]
    # Matrices that are no head of this trunk keep their place, and are reported as unexpected.
    readings = read_heads(connected, channels=_out_of(chain[-1], last), channels_last=last, listed=listed)
    return [
        LayerPositions(
            scheme="order",
            channels_last=last,
            trunk={(number,): module for number, module in enumerate(chain)},
            norms={(number,): module for number, module in enumerate(norms)} if len(norms) == length else {},
            head=reading.layers,
            lone_biases={},
            n_unplaced_convs=_count_unplaced_convs(connected, reading),
            keys=keys,
            description=reading.description,
            merged=reading.merged,
        )
        for reading in readings or [HeadReading({})]
    ]


def _length_of_chain(windows: Sequence[Window | None]) -> int:
    """Number of convolutions, from the first, that read the output of the one before, with a VGG's kernel sizes."""
    length = 0
    for number, window in enumerate(windows):
        fits = window is not None and window.kernel in (1, 3)
        if not fits or (number and windows[number - 1].out != window.into):  # type: ignore[union-attr]
            break
        length += 1
    return length
