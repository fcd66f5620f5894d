"""The rules on copies: leakage between splits, contradictory classes, and duplicates within a split."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

from vggkit.data_checks.findings import Case, Finding
from vggkit.data_checks.inspection import ImageRecord, group_exact
from vggkit.data_checks.rules import count_cases, make_finding, member, members
from vggkit.images.near_duplicates import NearDuplicate, group


def find_copies(records: Sequence[ImageRecord], pairs: Sequence[NearDuplicate]) -> list[Finding]:
    """Leakage between splits, contradictions between classes, duplicates and near duplicates inside a split.

    Args:
        records: The records of the images.
        pairs: Near duplicates by index in `records`; exact copies are represented by the first.
    """
    exact = group_exact(records)
    near, copied = [], set[int]()
    for firsts, similarity in _gather(records, pairs):
        numbers = sorted(number for first in firsts for number in exact[records[first].digest])
        near.append(
            Case(members(records, numbers), _describe_likeness(firsts, exact, records, similarity), similarity)
        )
        copied.update(numbers)
    # What holds equal files first: they are certain.
    near.sort(key=lambda case: ("same file" not in case.detail, -(case.similarity or 0)))
    repeated = [numbers for numbers in exact.values() if len(numbers) > 1]
    same = [Case(members(records, numbers), "the same file", 1.0) for numbers in repeated]
    every = [*(case for case, numbers in zip(same, repeated, strict=True) if numbers[0] not in copied), *near]
    groups = find_divided_groups(records)
    leaked = [case for case in (*every, *groups) if len({m.split for m in case.members}) > 1]
    contradicting = [case for case in every if len({m.label for m in case.members}) > 1]
    repeating = [case for case in same if max(Counter(m.split for m in case.members).values()) > 1]
    within = [case for case in repeating if case not in contradicting]
    near_within = [case for case in near if case not in leaked and case not in contradicting]
    found = (
        make_finding(
            "leakage",
            "error",
            leaked,
            f"{count_cases(leaked, 'image or group', 'images or groups')} in more than one split",
            "The network is evaluated on images that it was trained on, so the metrics are too optimistic. "
            "Keep each in one split; --fix keeps the copies in test, else those in val, and removes the others.",
        ),
        make_finding(
            "contradiction",
            "warning",
            contradicting,
            f"{count_cases(contradicting, 'image')} in more than one class",
            "At most one label is correct. Decide which; --fix removes all copies.",
        ),
        make_finding(
            "duplicate",
            "warning",
            within,
            f"{count_cases(within, 'image')} more than once in a split, byte for byte",
            "Copies are counted as if they were independent. Keep one of each; --fix does.",
        ),
        make_finding(
            "near-duplicate",
            "note",
            near_within,
            f"{count_cases(near_within, 'image')} more than once in a split, nearly the same",
            "Resized, re-encoded, cropped or mirrored copies, or shots of one burst, which count as if they were "
            "independent. `vggkit train` keeps them in one split where it divides the images itself; --fix writes "
            "their groups as a column.",
        ),
    )
    return [finding for finding in found if finding is not None]


def _describe_likeness(
    firsts: Sequence[int], exact: Mapping[bytes, Sequence[int]], records: Sequence[ImageRecord], similarity: float
) -> str:
    """The similarity of a group in words; equal files in it are counted separately."""
    alike = f"{math.floor(100 * similarity)} % similar"
    copies = [len(exact[records[first].digest]) for first in firsts]
    if max(copies) == 1:
        return alike
    same = " and ".join(str(count) for count in copies if count > 1)
    single = copies.count(1)
    rest = {0: f"{alike} to each other", 1: f"the other {alike}"}.get(single, f"the others {alike}")
    return f"{same} of {sum(copies)} are the same file, {rest}"


def _gather(records: Sequence[ImageRecord], pairs: Sequence[NearDuplicate]) -> list[tuple[list[int], float]]:
    """Groups of near duplicates with their lowest similarity, and further pairs across splits or classes."""
    similarity = {frozenset(pair[:2]): pair.similarity for pair in pairs}
    groups = group(pairs)
    gathered = [
        (numbers, min(similarity.get(frozenset(pair), 1.0) for pair in combinations(numbers, 2)))
        for numbers in groups
    ]
    place = {number: index for index, numbers in enumerate(groups) for number in numbers}
    for pair in pairs:
        one, two = records[pair.first], records[pair.second]
        apart = place.get(pair.first, -1) != place.get(pair.second, -2)
        if apart and (one.split, one.label) != (two.split, two.label):
            gathered.append(([pair.first, pair.second], pair.similarity))
    return gathered


def find_divided_groups(records: Sequence[ImageRecord]) -> list[Case]:
    """Groups whose images are in more than one split."""
    groups: dict[str, list[ImageRecord]] = defaultdict(list)
    for record in records:
        if record.image.group is not None:
            groups[record.image.group].append(record)
    return [
        Case(tuple(map(member, group)), f"the group {name} is in {', '.join(sorted({s.split for s in group}))}")
        for name, group in groups.items()
        if len({s.split for s in group}) > 1
    ]
