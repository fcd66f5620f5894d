"""The preparation of images and the softmax or sigmoid of an exported program, described once for every format.

`images.preprocessing` as operations of a graph: of ONNX, of OpenVINO, or of torch during export.
Shape letters: N images, C channels, H and W pixels, K classes.
"""

from typing import Generic, Protocol, TypeVar

from vggkit.exporting.plan import ExportPlan
from vggkit.images.preprocessing import Preprocessing
from vggkit.images.resizing import Interpolation
from vggkit.task import Activation

Node = TypeVar("Node")
Number = TypeVar("Number")
"""A whole number that the program computes, such as an image's height; constants are int."""


class ImageOperations(Protocol[Node, Number]):
    """Operations on maps (N, C, H, W), and on whole numbers."""

    def arrange(self, images: Node) -> Node:
        """Images (N, H, W, C) as maps of bytes."""

    def measure(self, maps: Node) -> tuple[Number, Number]:
        """Height and width."""

    def add(self, number: Number, other: Number | int) -> Number:
        """A sum."""

    def subtract(self, number: Number | int, other: Number) -> Number:
        """A difference."""

    def multiply(self, number: Number, factor: Number | int) -> Number:
        """A product."""

    def divide(self, number: Number, by: Number | int) -> Number:
        """A quotient of numbers that are not negative, rounded down."""

    def smaller(self, number: Number, other: Number | int) -> Number:
        """The smaller of two."""

    def larger(self, number: Number, other: Number | int) -> Number:
        """The larger of two."""

    def resize(self, maps: Node, sides: tuple[Number | int, Number | int], interpolation: Interpolation) -> Node:
        """Maps of bytes at another height and width, antialiased as Pillow does it."""

    def widen(self, maps: Node) -> Node:
        """Maps of bytes in float32."""

    def pad(self, maps: Node, before: tuple[Number, Number], after: tuple[Number, Number]) -> Node:
        """Zeros around float maps: so many rows and columns before and after."""

    def cut(self, maps: Node, first: tuple[Number, Number], side: int, channels: int) -> Node:
        """The square of that side whose first row and column these are."""

    def reverse(self, maps: Node) -> Node:
        """The channels in reverse order."""

    def weigh(self, maps: Node, weights: tuple[float, ...], shift: float, divisor: float) -> Node:
        """One channel: the weighted sum of all, plus a shift, divided, and rounded down."""

    def shift(self, maps: Node, values: tuple[float, ...]) -> Node:
        """Each channel plus a value."""

    def divide_by(self, maps: Node, values: tuple[float, ...]) -> Node:
        """Each channel, or all of them, divided by a value."""

    def activate(self, logits: Node, activation: Activation) -> Node:
        """Probabilities (N, K): the softmax or the sigmoid of logits divided by the temperature."""


GREY: tuple[float, ...] = (19595.0, 38470.0, 7471.0)
"""ITU-R 601 as Pillow has it, in 65536ths: exact in float32, whose whole numbers go to 2²⁴."""


class ImageSteps(Generic[Node, Number]):
    """Adds the steps before the network of a plan to a graph.

    Args:
        plan: The plan.
        operations: The operations of the format.
    """

    def __init__(self, plan: ExportPlan, operations: ImageOperations[Node, Number]) -> None:
        self._plan, self._ops = plan, operations

    def fit(self, images: Node) -> Node:
        """Maps (N, C, H, W) of levels from 0 to 255 in float32, resized and cropped if the plan has `resize`."""
        maps = self._ops.arrange(images)
        return self._resize(maps, self._plan.card.preprocessing) if self._plan.resize else self._ops.widen(maps)

    def normalize(self, maps: Node) -> Node:
        """The network's input from levels, as in `Preprocessing.normalize`."""
        ops, preprocessing = self._ops, self._plan.card.preprocessing
        if preprocessing.channel_order == "L":
            maps = ops.weigh(maps, GREY, 32768.0, 65536.0)
        elif preprocessing.channel_order == "BGR":
            maps = ops.reverse(maps)
        if preprocessing.full_value != 255:
            maps = ops.divide_by(maps, (255 / preprocessing.full_value,))
        maps = ops.shift(maps, tuple(-mean for mean in preprocessing.mean))
        return ops.divide_by(maps, preprocessing.std)

    def _resize(self, maps: Node, preprocessing: Preprocessing) -> Node:
        ops, crop = self._ops, preprocessing.crop_pixels
        match preprocessing.fit_mode:
            case "stretch":
                return ops.widen(ops.resize(maps, (crop, crop), preprocessing.interpolation))
            case "crop":
                return self._crop(maps, preprocessing)
            case "pad":
                sides = ops.measure(maps)
                longest = ops.larger(*sides)
                height, width = (ops.larger(self._round(ops.multiply(side, crop), longest), 1) for side in sides)
                maps = ops.widen(ops.resize(maps, (height, width), preprocessing.interpolation))
                colour = tuple(float(level) for level in preprocessing.mean_colour())
                maps = self._lay_on(ops.shift(maps, tuple(-level for level in colour)), (height, width), crop)
                zero = ops.subtract(height, height)
                return ops.shift(ops.cut(maps, (zero, zero), crop, len(colour)), colour)

    def _crop(self, maps: Node, preprocessing: Preprocessing) -> Node:
        """The middle of the resized image, on black where that is smaller."""
        ops, crop = self._ops, preprocessing.crop_pixels
        height, width = ops.measure(maps)
        short = ops.smaller(height, width)
        sides = (
            ops.divide(ops.multiply(height, preprocessing.resize_pixels), short),
            ops.divide(ops.multiply(width, preprocessing.resize_pixels), short),
        )
        maps = ops.widen(ops.resize(maps, sides, preprocessing.interpolation))
        if preprocessing.resize_pixels < crop:
            maps = self._lay_on(maps, sides, crop)
            sides = (ops.larger(sides[0], crop), ops.larger(sides[1], crop))
        first = self._round(ops.add(sides[0], -crop), 2), self._round(ops.add(sides[1], -crop), 2)
        return ops.cut(maps, first, crop, preprocessing.decoded_channels)

    def _lay_on(self, maps: Node, sides: tuple[Number, Number], wanted: int) -> Node:
        """Zeros around maps that are smaller than a square; an odd one goes to the right and to the bottom."""
        ops = self._ops
        spare = [ops.larger(ops.subtract(wanted, side), 0) for side in sides]
        before = (ops.divide(spare[0], 2), ops.divide(spare[1], 2))
        after = (ops.subtract(spare[0], before[0]), ops.subtract(spare[1], before[1]))
        return ops.pad(maps, before, after)

    def _round(self, number: Number, by: Number | int) -> Number:
        """A quotient rounded to the nearest whole number, ties to the even one, as Python's `round`."""
        ops = self._ops
        double = 2 * by if isinstance(by, int) else ops.multiply(by, 2)
        raised = ops.add(ops.multiply(number, 2), by)
        rounded = ops.divide(raised, double)
        rest = ops.subtract(raised, ops.multiply(rounded, double))
        is_tie = ops.subtract(1, ops.smaller(rest, 1))
        is_odd = ops.subtract(rounded, ops.multiply(ops.divide(rounded, 2), 2))
        return ops.subtract(rounded, ops.multiply(is_tie, is_odd))
