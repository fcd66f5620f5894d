"""The operations of a VGG as layers of ncnn: the text that it reads, and the weights in that order.

ncnn computes one image at a time. What follows the first matrix is a second net, for all images together, so that
its weights, which are most of a VGG's, are read once for all of them. No torch here.

Shape letters: N images, C channels, H and W pixels, F features.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.graph_builder import Sides, Values
from vggkit.models.configuration import Pooling

MAGIC: Final = 7767517
"""The first line of ncnn's text."""
_MEAN, _SUBTRACT, _ADD, _SQUARE, _ROOT = 3, 1, 0, 4, 5
"""Numbers of ncnn's operations: of Reduction, BinaryOp (two) and UnaryOp (two)."""


class Blob(NamedTuple):
    """A value in one of the two nets."""

    name: str
    together: bool
    """Whether it is of the second net, of all images."""


@dataclass(slots=True)
class _Layer:
    kind: str
    given: tuple[str, ...]
    gives: str
    settings: dict[int, int | float | str]
    weights: tuple[NDArray[np.generic], ...] = ()


@dataclass(slots=True)
class NetLayers:
    """The layers of one net, in order."""

    reads: str
    """The name of its input."""
    layers: list[_Layer] = field(default_factory=list)

    def write(self, outputs: Sequence[str]) -> tuple[str, list[str]]:
        """The text of the net for ncnn, and the names of the outputs in it.

        A value that is read or given several times is copied by a Split, once for each.
        """
        uses = Counter(outputs) + Counter(name for layer in self.layers for name in layer.given)
        taken, lines, blobs = Counter[str](), list[str](), 0

        def take(name: str) -> str:
            taken[name] += 1
            return name if uses[name] < 2 else f"{name}/{taken[name]}"

        for layer in (_Layer("Input", (), self.reads, {}), *self.layers):
            settings = (f"{key}={value}" for key, value in layer.settings.items())
            count, copies = uses[layer.gives], list[str]()
            words = [layer.kind, layer.gives, str(len(layer.given)), "1", *map(take, layer.given), layer.gives]
            lines.append(" ".join([*words, *settings]))
            if count > 1:
                copies = [f"{layer.gives}/{number}" for number in range(1, count + 1)]
                lines.append(" ".join(["Split", f"{layer.gives}/0", "1", str(count), layer.gives, *copies]))
            blobs += 1 + len(copies)
        return "\n".join([str(MAGIC), f"{len(lines)} {blobs}", *lines, ""]), [take(name) for name in outputs]

    def list_weights(self) -> list[NDArray[np.generic]]:
        """The arrays that ncnn reads, in its order."""
        return [values for layer in self.layers for values in layer.weights]


class NCNNOperations:
    """Layers of ncnn: of `each` image, and from the first matrix on of all images `together`.

    Args:
        several: The second net reads the rows of several images as maps (F, 1, N) and multiplies them by
            convolutions 1×1, which ncnn divides better than the products of rows; otherwise one row (F,).
    """

    def __init__(self, *, several: bool) -> None:
        self._several = several
        self.each, self.together = NetLayers("images"), NetLayers("rows")
        self.images = Blob("images", False)
        self.joined: Blob | None = None
        """What `together` reads of each image: a row (F,)."""
        self.watched: list[Blob] = []
        """Values that are finite where nothing overflowed."""
        self._kept: set[str] = set()

    def convolve(self, maps: Blob, weight: Values, bias: Values | None, padding: int, reads: str | None) -> Blob:
        height, width = weight.shape[2:]
        settings = {0: len(weight), 1: width, 11: height, 4: padding, 5: int(bias is not None), 6: weight.size}
        return self._add("Convolution", [maps], settings, _list_arrays(weight, bias))

    def scale(self, maps: Blob, factor: Values, shift: Values) -> Blob:
        return self._add("Scale", [maps], {0: len(factor), 1: 1}, (factor, shift))

    def rectify(self, values: Blob, watched: bool) -> Blob:
        if watched:  # its ReLU and its pooling may turn NaN into zeros
            self.watched.append(values)
        before = self._layers(values).layers[-1]
        if before.weights and before.gives == values.name and not watched and values.name not in self._kept:
            before.settings[9] = 1  # computed with the product
            return values
        return self._add("ReLU", [values])

    def normalize_responses(self, maps: Blob, watched: bool) -> Blob:
        if watched:
            self.watched.append(self._add("UnaryOp", [maps], {0: _SQUARE}))
        # As in `models.layers`: alpha is divided by the window here too.
        return self._add("LRN", [maps], {0: 0, 1: 5, 2: 5e-4, 3: 0.75, 4: 2.0})

    def pool(self, maps: Blob, pooling: Pooling, gives: str) -> Blob:
        return self._add("Pooling", [maps], {0: int(pooling != "max"), 1: 2, 2: 2, 5: 1})

    def give(self, values: Blob, name: str) -> Blob:
        self._kept.add(values.name)
        return values

    def fit(self, maps: Blob, sides: Sides, wanted: Sides) -> Blob:
        return self._add("Pooling", [maps], {0: 1, 7: 1, 8: wanted[1], 18: wanted[0]})

    def average_windows(self, maps: Blob, places: Sides) -> Blob:
        return self._add("Pooling", [maps], {0: 1, 1: places[1], 11: places[0], 2: 1, 5: 1})

    def flatten(self, maps: Blob) -> Blob:
        return self._add("Flatten", [maps])

    def connect(self, rows: Blob, weight: Values, bias: Values | None, reads: str | None) -> Blob:
        if not rows.together:
            self.joined, rows = rows, Blob("rows", True)
        arrays = _list_arrays(weight, bias)
        if self._several:
            settings = {0: len(weight), 1: 1, 5: len(arrays) - 2, 6: weight.size}
            return self._add("Convolution", [rows], settings, arrays)
        return self._add("InnerProduct", [rows], {0: len(weight), 1: len(arrays) - 2, 2: weight.size}, arrays)

    def average(self, maps: Blob) -> Blob:
        return self._add("Pooling", [maps], {0: 1, 4: 1})

    def summarize(self, maps: Blob, epsilon: float) -> Blob:
        mean = self._average_sides(maps, keep=True)
        apart = self._add("BinaryOp", [maps, mean], {0: _SUBTRACT})
        variance = self._average_sides(self._add("UnaryOp", [apart], {0: _SQUARE}), keep=False)
        if epsilon:
            variance = self._add("BinaryOp", [variance], {0: _ADD, 1: 1, 2: epsilon})
        deviation = self._add("UnaryOp", [variance], {0: _ROOT})
        return self._add("Concat", [self.flatten(mean), deviation], {0: 0})

    def _average_sides(self, maps: Blob, *, keep: bool) -> Blob:
        return self._add("Reduction", [maps], {0: _MEAN, 1: 0, -23303: "2,1,2", 4: int(keep), 5: 1})

    def _layers(self, blob: Blob) -> NetLayers:
        return self.together if blob.together else self.each

    def _add(
        self,
        kind: str,
        given: Sequence[Blob],
        settings: Mapping[int, int | float | str] = MappingProxyType({}),
        weights: tuple[NDArray[np.generic], ...] = (),
    ) -> Blob:
        net = self._layers(given[0])
        name = f"{kind}_{len(net.layers)}"
        net.layers.append(_Layer(kind, tuple(blob.name for blob in given), name, dict(settings), weights))
        return Blob(name, given[0].together)


def _list_arrays(weight: Values, bias: Values | None) -> tuple[NDArray[np.generic], ...]:
    """As ncnn reads them: a mark for float32, the kernels or the matrix, and the bias."""
    mark = np.zeros(1, np.int32)
    return (mark, weight) if bias is None else (mark, weight, bias)
