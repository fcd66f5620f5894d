"""Units of images dealt to folds so that every fold has every class, where the units allow it.

A unit is what must not be parted: a group, or a single image. Units and classes are taken in the order in which
they are given, and draws have a fixed seed, so that the same units give the same folds everywhere.
"""

import random
from collections import Counter
from collections.abc import Mapping
from typing import Final

MOST_MOVES: Final = 20_000
"""Moves of a repair at most. Whether an assignment exists is NP-complete: for two folds it is set splitting."""
LONGEST_BAR: Final = 10
"""Moves during which a unit may not go back, at most, besides half of the needs that are open."""

Units = Mapping[str, Mapping[str, int]]
"""How many images of each class each unit has."""


def deal(units: Units, folds: int) -> dict[str, int] | None:
    """The fold of each unit: the one that has fewest of its classes, repaired where a fold lacks a class then.

    None where no assignment was found that gives every fold every class.
    """
    held: list[Counter[str]] = [Counter() for _ in range(folds)]
    totals = [0] * folds
    dealt: dict[str, int] = {}
    for unit, counts in units.items():
        loads = [sum(count * held[fold][label] for label, count in counts.items()) for fold in range(folds)]
        fold = dealt[unit] = min(range(folds), key=lambda fold: (loads[fold], totals[fold], fold))
        held[fold].update(counts)
        totals[fold] += sum(counts.values())
    return repair(units, dealt, folds)


def repair(units: Units, dealt: Mapping[str, int], folds: int) -> dict[str, int] | None:
    """The assignment with units moved until every fold has every class; None where that was not reached.

    A tabu search: some fold that lacks a class takes the unit whose move leaves the fewest needs open.
    """
    having: dict[str, list[str]] = {}
    for unit, counts in units.items():
        for label in counts:
            having.setdefault(label, []).append(unit)
    held = Counter((label, dealt[unit]) for unit, counts in units.items() for label in counts)
    open_needs = [(label, fold) for label in having for fold in range(folds) if not held[label, fold]]
    if any(len(members) < folds for members in having.values()):
        return None
    found, barred = dict(dealt), dict[tuple[str, int], int]()
    draw = random.Random(0)  # noqa: S311 (no secret)

    def weigh(unit: str, fold: int, move: int) -> tuple[bool, int, float]:
        opened = sum(held[label, found[unit]] == 1 for label in units[unit])
        closed = sum(held[label, fold] == 0 for label in units[unit])
        return barred.get((unit, fold), 0) > move, opened - closed, draw.random()

    for move in range(min(MOST_MOVES, 100 * folds * len(units))):
        open_needs = [need for need in open_needs if not held[need]]
        if not open_needs:
            return found
        label, fold = open_needs[int(draw.random() * len(open_needs))]
        # The need is open, so none of these is in the fold yet.
        unit = min((weigh(unit, fold, move), unit) for unit in having[label])[1]
        left, found[unit] = found[unit], fold
        for each in units[unit]:
            held[each, left] -= 1
            held[each, fold] += 1
            if not held[each, left]:
                open_needs.append((each, left))
        barred[unit, left] = move + 1 + int(draw.random() * LONGEST_BAR) + len(open_needs) // 2
    return None
