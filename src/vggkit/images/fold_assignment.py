"""Groups of images assigned to folds, so that every fold has every class."""

import random
from collections import Counter
from collections.abc import Mapping
from typing import Final

MAX_MOVES: Final = 20_000
"""Most moves of the tabu search. Whether an assignment exists is NP-complete: for two folds it is set splitting."""
MAX_TABU_STEPS: Final = 10
"""Moves during which a group may not return to its fold, at most, plus half the number of missing classes."""

GroupCounts = Mapping[str, Mapping[str, int]]
"""Number of images of each class in each group."""


def assign_folds(groups: GroupCounts, folds: int) -> dict[str, int] | None:
    """The fold of each group: the one with fewest of its classes; then groups move where a fold lacks a class.

    None where no assignment was found that gives every fold every class.
    """
    held: list[Counter[str]] = [Counter() for _ in range(folds)]
    totals = [0] * folds
    assigned: dict[str, int] = {}
    for group, counts in groups.items():
        loads = [sum(count * held[fold][label] for label, count in counts.items()) for fold in range(folds)]
        fold = assigned[group] = min(range(folds), key=lambda fold: (loads[fold], totals[fold], fold))
        held[fold].update(counts)
        totals[fold] += sum(counts.values())
    return fill_missing_classes(groups, assigned, folds)


def fill_missing_classes(groups: GroupCounts, assigned: Mapping[str, int], folds: int) -> dict[str, int] | None:
    """The assignment with groups moved until every fold has every class; None where that was not reached.

    A tabu search: some fold that lacks a class takes the group whose move leaves the fewest folds without one.
    """
    groups_with: dict[str, list[str]] = {}
    for group, counts in groups.items():
        for label in counts:
            groups_with.setdefault(label, []).append(group)
    held = Counter((label, assigned[group]) for group, counts in groups.items() for label in counts)
    missing = [(label, fold) for label in groups_with for fold in range(folds) if not held[label, fold]]
    if any(len(members) < folds for members in groups_with.values()):
        return None
    found, tabu_until = dict(assigned), dict[tuple[str, int], int]()
    draw = random.Random(0)  # noqa: S311 (no secret)

    def weigh(group: str, fold: int, move: int) -> tuple[bool, int, float]:
        opened = sum(held[label, found[group]] == 1 for label in groups[group])
        closed = sum(held[label, fold] == 0 for label in groups[group])
        return tabu_until.get((group, fold), 0) > move, opened - closed, draw.random()

    for move in range(min(MAX_MOVES, 100 * folds * len(groups))):
        missing = [pair for pair in missing if not held[pair]]
        if not missing:
            return found
        label, fold = missing[int(draw.random() * len(missing))]
        # The fold lacks the class, so none of these groups is in it yet.
        group = min((weigh(group, fold, move), group) for group in groups_with[label])[1]
        left, found[group] = found[group], fold
        for each in groups[group]:
            held[each, left] -= 1
            held[each, fold] += 1
            if not held[each, left]:
                missing.append((each, left))
        tabu_until[group, left] = move + 1 + int(draw.random() * MAX_TABU_STEPS) + len(missing) // 2
    return None
