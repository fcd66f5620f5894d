"""The modules of a weights file by its keys and shapes: their kinds and the places that their names state.

No torch here. Shape letters: O and I channels (or numbers) out and in, K side of a window.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from vggkit.weights.dialects import Shaped

ModuleKind = Literal["conv", "linear", "norm", "lone_bias"]

# A parameter's name at the end of a key, after any separator; longer names first.
_PARAMETERS: Final[Mapping[str, str]] = {
    "num_batches_tracked": "num_batches_tracked",
    "running_mean": "running_mean",
    "moving_mean": "running_mean",
    "running_var": "running_var",
    "moving_variance": "running_var",
    "weights": "weight",
    "weight": "weight",
    "kernel": "weight",
    "gamma": "weight",
    "biases": "bias",
    # 16-bit approximations, as one file in circulation names them.
    "bias_q": "bias",
    "bias": "bias",
    "beta": "bias",
    "W": "weight",
    "w": "weight",
    "b": "bias",
}
_KEY: Final = re.compile(rf"(?P<module>.+?)[./_](?P<parameter>{'|'.join(_PARAMETERS)})(?::0)?")


@dataclass(slots=True)
class Module:
    """The tensors of a file that belong together under one name."""

    name: str
    """`features.0`, `block1_conv1`, `conv2d_10`."""
    keys: dict[str, str] = field(default_factory=dict)
    """The file's key of each parameter: weight, bias, running_mean, running_var, num_batches_tracked."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Its shape in the file."""

    @property
    def kind(self) -> ModuleKind:
        """The kind of module by its shapes; a lone bias is one without its weight."""
        weight = self.shapes.get("weight")
        if weight is not None and len(weight) in (2, 4):
            return "conv" if len(weight) == 4 else "linear"
        if weight is not None or "running_mean" in self.keys:
            return "norm"
        return "lone_bias"


def gather_modules(entries: Mapping[str, Shaped]) -> tuple[list[Module], list[str]]:
    """The modules in the file's order, and the keys that belong to none."""
    modules: dict[str, Module] = {}
    others = []
    for key, entry in entries.items():
        found = _KEY.fullmatch(key)
        if found is None:
            others.append(key)
            continue
        module = modules.setdefault(found["module"], Module(found["module"]))
        parameter = _PARAMETERS[found["parameter"]]
        if parameter in module.keys:
            others.append(key)
            continue
        module.keys[parameter] = key
        module.shapes[parameter] = tuple(entry.shape)
    return list(modules.values()), others


def is_channels_last(modules: Iterable[Module]) -> bool:
    """Whether kernels lie as (H, W, I, O), as Keras and TensorFlow write them."""
    kernels = [module.shapes["weight"] for module in modules if module.kind == "conv"]
    last = [shape[0] == shape[1] <= 11 for shape in kernels]
    first = [shape[2] == shape[3] <= 11 for shape in kernels]
    return all(last) and sum(last) > sum(first)


@dataclass(frozen=True, slots=True)
class Window:
    """A convolution's or matrix's weight, in canonical layout."""

    out: int
    """O."""
    into: int
    """I; of a window, the channels of the map."""
    kernel: int
    """K: side of the window; 1 for a matrix."""


def measure(module: Module, *, channels_last: bool) -> Window | None:
    """The window of a conv or linear module; None where it is not square."""
    shape = module.shapes["weight"]
    if len(shape) == 2:
        out, into = shape[::-1] if channels_last else shape
        return Window(out, into, 1)
    height, width, into, out = shape if channels_last else (*shape[2:], shape[1], shape[0])
    return Window(out, into, height) if height == width else None


Position = tuple[int, ...]
"""The place of a module: (index,) in `features`, or (block, position), or (count,) in order."""

Scheme = Literal["index", "blocks", "units", "names", "keras", "order"]
"""The notation of places in names. index: `features.7`. blocks: `features.4.conv2`. units: `features.4.conv`, a
convolution with its norm and ReLU, and each pool counted as one, as MMPretrain has them. names: `conv3_2`.
keras: `block3_conv2`. order: they do not; the first convolution is the first."""

_TRUNKS: Final[Mapping[Scheme, re.Pattern[str]]] = {
    "index": re.compile(r"(?:.*\.)?features\.(?P<at>\d+)"),
    "blocks": re.compile(r"(?:.*\.)?features\.(?P<even>\d+)\.(?P<kind>conv|bn)(?P<position>\d+)"),
    "units": re.compile(r"(?:.*\.)?features\.(?P<at>\d+)\.(?P<kind>conv|bn)"),
    "names": re.compile(r"(?:.*[./])?(?P<kind>conv|bn)(?P<block>\d+)_(?P<position>\d+)"),
    "keras": re.compile(r"(?:.*[./])?block(?P<block>\d+)_(?P<kind>conv|bn)(?P<position>\d+)"),
}


def place_by_name(name: str, scheme: Scheme) -> Position | None:
    """The place that a module's name states under that scheme; None where it states none."""
    found = _TRUNKS[scheme].fullmatch(name) if scheme in _TRUNKS else None
    if found is None:
        return None
    groups = found.groupdict()
    match scheme:
        case "index" | "units":
            return (int(groups["at"]),)
        case "blocks":
            even = int(groups["even"])
            return (even // 2 + 1, int(groups["position"])) if even % 2 == 0 else None
        case _:
            return (int(groups["block"]), int(groups["position"]))


_HEADS: Final = (
    re.compile(r"(?:.*\.)?classifier\.(?P<third>\d+)(?:\.(?P<factor>[01]))?"),
    re.compile(r"(?:.*[./])?(?:pre_logits\.)?fc(?P<count>\d+)(?:\.(?P<factor>[01]))?"),
    re.compile(r"(?:.*[./])?(?P<last>head\.fc|predictions)"),
)


@dataclass(frozen=True, slots=True)
class HeadPlace:
    """The place of a fully connected layer."""

    position: int
    """From 0."""
    factor: int | None
    """0 or 1 of a low-rank layer's two; None for a full matrix."""


def place_heads(names: Sequence[str]) -> dict[str, HeadPlace] | None:
    """The place of each head module; None where some name does not state it."""
    found = {}
    counted: list[int] = []
    for name in names:
        match = next((each for pattern in _HEADS if (each := pattern.fullmatch(name))), None)
        # `classifier` is a head by itself: an fc beside it is none of its layers.
        if match is None or (match.re is _HEADS[0]) is not (_HEADS[0].fullmatch(names[0]) is not None):
            return None
        groups = match.groupdict()
        if groups.get("count"):
            counted.append(int(groups["count"]))
        found[name] = groups
    # fc1 to fc3, or fc6 to fc8 as the literature counts on from five blocks.
    start = 6 if counted and min(counted) >= 6 else 1
    places: dict[str, HeadPlace] = {}
    for name, groups in found.items():
        factor = int(groups["factor"]) if groups.get("factor") else None
        if groups.get("third"):
            third = int(groups["third"])
            if third % 3:
                return None
            places[name] = HeadPlace(third // 3, factor)
        elif groups.get("count"):
            places[name] = HeadPlace(int(groups["count"]) - start, factor)
        else:
            # Without the layers before it the last one's place is that of the paper's three.
            places[name] = HeadPlace(max((count - start + 1 for count in counted), default=2), None)
    return places if len(set(places.values())) == len(places) else None


def in_natural_order(modules: Iterable[Module]) -> list[Module]:
    """By name, numbers as numbers: some formats keep their entries by letter, conv10 before conv2."""

    def parts(module: Module) -> list[tuple[int, int, str]]:
        split = re.split(r"(\d+)", module.name)
        return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in split if part]

    return sorted(modules, key=parts)
