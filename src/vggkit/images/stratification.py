"""Iterative stratification: groups of images with several labels are divided so that each label is spread evenly.

Sechidis, Tsoumakas and Vlahavas 2011, "On the stratification of multi-label data", ECML PKDD: the label of the
fewest remaining images comes first, and each of its images goes where that label is most wanted. Here a unit is a
group of images, which stays whole.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

UNLABELLED = ""
"""The label by which images without labels are spread too."""


def stratify(groups: Mapping[str, Mapping[str, int]], shares: Sequence[float]) -> dict[str, int]:
    """The side of each group, 0 to as many as there are shares.

    Args:
        groups: Number of images of each label in each group, in the order in which equals are taken.
        shares: Share of the images that each side is to have, positive; they sum to 1.

    >>> stratify({"a": {"sun": 1}, "b": {"sea": 1}, "c": {"sun": 1}, "d": {"sea": 1}}, [0.5, 0.5])
    {'b': 0, 'd': 1, 'a': 0, 'c': 1}
    """
    groups = {group: counts or {UNLABELLED: 1} for group, counts in groups.items()}
    totals: Counter[str] = Counter()
    members: dict[str, dict[str, None]] = defaultdict(dict)
    for group, counts in groups.items():
        totals.update(counts)
        for label in counts:
            members[label][group] = None
    wanted = [{label: share * total for label, total in totals.items()} for share in shares]
    room = [share * sum(totals.values()) for share in shares]
    assigned: dict[str, int] = {}
    while members:
        label = min(members, key=lambda each: (len(members[each]), each))
        for group in list(members[label]):
            side = max(range(len(shares)), key=lambda each: (wanted[each][label], room[each], -each))
            assigned[group] = side
            for each, count in groups[group].items():
                wanted[side][each] -= count
                room[side] -= count
                del members[each][group]
                if not members[each]:
                    del members[each]
    return assigned
