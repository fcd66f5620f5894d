"""Where the lines and bars of a page's charts lie; `charts.html` draws them in the page's own colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

WIDTH: Final = 400
HEIGHT: Final = 250
LEFT: Final = 44
RIGHT: Final = 388
TOP: Final = 14
BOTTOM: Final = 212


class Tick(NamedTuple):
    """A value beside an axis."""

    place: float
    """On the page."""
    text: str


class Line(NamedTuple):
    """A curve."""

    kind: str
    """Its CSS class: `train`, `val`, `other`, `ideal`."""
    path: str
    """An SVG path."""
    dots: tuple[tuple[float, float], ...] = ()
    """Where its points are, while they are few."""
    name: str = ""
    """For the legend."""


class Bar(NamedTuple):
    """A bar upwards from the axis, with a whisker."""

    left: float
    width: float
    top: float
    height: float
    whisker: tuple[float, float] | None
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart, `WIDTH` by `HEIGHT`."""

    title: str
    across: str
    """What the axis below measures."""
    across_ticks: tuple[Tick, ...]
    up_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    mark: tuple[float, float] | None = None
    """A point to look at,"""
    mark_text: str = ""
    """and what it is."""
    note: str = ""
    """Said below."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from low to high on the page from start to end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        span = self.high - self.low or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 2)

    def ticks(self, *, percent: bool = False, most: int = 6, whole: bool = False) -> tuple[Tick, ...]:
        """A few round values."""
        step = find_step(self.high - self.low, most)
        step = max(1.0, round(step)) if whole else step
        first = math.ceil(self.low / step - 1e-9)
        values = [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]
        digits = max(0, -math.floor(math.log10(step * (100 if percent else 1)) + 1e-9))
        return tuple(
            Tick(self(value), f"{100 * value:.{digits}f}" if percent else f"{value:.{digits}f}") for value in values
        )


def find_step(span: float, most: int) -> float:
    """The smallest of 1, 2, 5, 10 … that divides a span in no more than so many parts."""
    raw = (span or 1.0) / most
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= raw * (1 - 1e-9))


def across(low: float, high: float) -> Scale:
    """The scale from left to right."""
    return Scale(low, high, LEFT, RIGHT)


def up(low: float, high: float) -> Scale:
    """The scale from the axis to the top."""
    return Scale(low, high, BOTTOM, TOP)


def draw_line(
    kind: str, points: Sequence[tuple[float, float]], x: Scale, y: Scale, *, name: str = "", dots: bool = False
) -> Line:
    """A curve through points, with a dot at each where that is asked."""
    placed = tuple((x(across), y(up)) for across, up in points)
    path = "M" + "L".join(f"{across} {up}" for across, up in placed)
    return Line(kind, path, placed if dots else (), name)
