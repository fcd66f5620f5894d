import random
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import fill_folder
from vggkit.errors import BadData, BadInput
from vggkit.images.dataset import ImageDataset, ImageSample
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.images.split_names import find_split
from vggkit.images.splits import divide, divide_in_folds, hold_out, read_fold


def collect(classes: dict[str, int], *, groups: int | None = None, part: str | None = None) -> ImageDataset:
    """So many images of each class, numbered; with groups the numbers modulo them, over all classes."""
    images = (
        (part, ImageSample(f"{label}/{index}.png", label, group=None if groups is None else f"g{index % groups}"))
        for label, count in classes.items()
        for index in range(count)
    )
    return ImageDataset.of("made", images)


def test_the_test_split_stays_apart(tmp_path):
    fill_folder(tmp_path / "train", ("a", "b"), 10)
    fill_folder(tmp_path / "test", ("a", "b"), 3, start=50)
    divided = divide(open_dataset(tmp_path), validation_share=0.2, seed=0)
    assert {name: len(part) for name, part in divided.splits.items()} == {"train": 16, "val": 4, "test": 6}


def test_splits_are_stratified_seeded_and_independent_of_the_folder(tmp_path):
    for place in ("here", "there"):
        fill_folder(tmp_path / place, ("a", "b", "c"), 11)
    one = open_dataset(tmp_path / "here")
    parts = [divide(one, validation_share=0.3, seed=seed) for seed in (0, 0, 1)]
    names = [[(p.label, Path(p.path).name) for p in d.split("val")] for d in parts]
    assert names[0] == names[1] != names[2]
    assert parts[0].count("val") == {"a": 3, "b": 3, "c": 3}
    assert not {p.path for p in parts[0].split("val")} & {p.path for p in parts[0].split("train")}
    moved = open_dataset(tmp_path / "there")
    again = [(p.label, Path(p.path).name) for p in divide(moved, validation_share=0.3, seed=0).split("val")]
    assert again == names[0]
    assert moved.fingerprint() == one.fingerprint()
    (tmp_path / "there" / "a" / "000.png").unlink()
    assert open_dataset(tmp_path / "there").fingerprint() != one.fingerprint()


def test_splits_never_change_between_versions():
    """Classifiers remember share and seed alone: the held-out images must never change."""
    held_out = divide(collect({"a": 10, "b": 10}), validation_share=0.2, seed=0).split("val")
    assert [p.path for p in held_out] == ["a/1.png", "a/5.png", "b/5.png", "b/8.png"]


def test_one_image_is_too_few():
    with pytest.raises(BadData, match="one image"):
        divide(collect({"a": 1, "b": 4}), validation_share=0.2, seed=0)


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(12, 60), min_size=2, max_size=4),
    groups=st.integers(4, 12),
    share=st.floats(0.1, 0.4),
    seed=st.integers(0, 5),
)
def test_groups_stay_together_and_shares_are_near(counts, groups, share, seed):
    images = collect({f"c{i}": count for i, count in enumerate(counts)}, groups=groups)
    divided = divide(images, validation_share=share, seed=seed)
    train, val = divided.split("train"), divided.split("val")
    assert not {p.group for p in train} & {p.group for p in val}
    assert len(train) + len(val) == sum(counts)
    largest = max(Counter(p.group for p in images.split("all")).values())
    assert abs(len(val) - share * sum(counts)) <= largest + 1
    assert set(divided.count("val").values()).isdisjoint({0})
    assert set(divided.count("train").values()).isdisjoint({0})


def test_a_class_in_one_group_cannot_be_divided():
    images = [(None, ImageSample(f"{i}", "a", group="g")) for i in range(4)]
    images += [(None, ImageSample(f"b{i}", "b", group=f"h{i}")) for i in range(4)]
    with pytest.raises(BadData, match="without dividing a group"):
        divide(ImageDataset.of("made", images), validation_share=0.2, seed=0)


@pytest.mark.parametrize("groups", [None, 10])
def test_folds_hold_each_image_out_once_and_are_stratified(groups):
    images = collect({"a": 50, "b": 30}, groups=groups)
    folds = divide_in_folds(images, 5, seed=3)
    held = Counter(p.path for one in folds for p in one.split("val"))
    assert len(held) == 80
    assert set(held.values()) == {1}
    for one in folds:
        assert one.count("val") == {"a": 10, "b": 6}
        assert not {p.path for p in one.split("train")} & {p.path for p in one.split("val")}
        if groups:
            assert not {p.group for p in one.split("train")} & {p.group for p in one.split("val")}
    assert [p.path for p in divide_in_folds(images, 5, seed=3)[0].split("val")] == [
        p.path for p in folds[0].split("val")
    ]
    assert [p.path for p in divide_in_folds(images, 5, seed=4)[0].split("val")] != [
        p.path for p in folds[0].split("val")
    ]


def test_folds_keep_the_test_split_and_refuse_small_classes():
    images = collect({"a": 6, "b": 6})
    mixed = images.keep({"train": images.split("all")[:8], "val": images.split("all")[8:10], "test": ()})
    for one in divide_in_folds(mixed, 2):
        assert set(one.splits) == {"train", "val", "test"}
        assert len(one.split("train")) + len(one.split("val")) == 10
    with pytest.raises(BadInput, match="2 or more"):
        divide_in_folds(images, 1)
    with pytest.raises(BadData, match="too few for 7 folds"):
        divide_in_folds(images, 7)
    with pytest.raises(BadData, match="nothing to fold"):
        divide_in_folds(images.keep({"test": images.split("all")}), 2)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("data/train-00001-of-00004.parquet", "train"),
        ("imagenet-val-{000..009}.tar", "val"),
        ("validation/0001.tar", "val"),
        ("train/test-0.tar", "test"),
        ("test/photos/0.tar", None),
        ("photos/restrained-0.tar", None),
        ("https://host/x/train-0.tar", "train"),
        ("0001.tar", None),
    ],
)
def test_split_names(path, part):
    assert find_split(path) == part


def test_a_fold_is_parsed():
    images = collect({"a": 10, "b": 10})
    second = hold_out(images, validation_share=0.2, seed=1, fold="2/5")
    assert [p.path for p in second.split("val")] == [
        p.path for p in divide_in_folds(images, 5, seed=1)[1].split("val")
    ]
    share = hold_out(images, validation_share=0.2, seed=1)
    assert share.splits == divide(images, validation_share=0.2, seed=1).splits
    for wrong in ("0/5", "6/5", "1/1", "2", "two/5", "-1/5"):
        with pytest.raises(BadInput, match="second of five"):
            read_fold(wrong)


def make(rows: list[tuple[str, str, str | None]], name: str = "made") -> ImageDataset:
    """Images of (path, label, group)."""
    return ImageDataset.of(name, ((None, ImageSample(path, label, group=group)) for path, label, group in rows))


def list_sides(divided: ImageDataset) -> tuple[set[tuple[str, str | None]], ...]:
    return tuple({(p.path, p.label) for p in divided.split(name)} for name in ("train", "val"))


ROWS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 3), st.one_of(st.none(), st.integers(0, 9))),
    min_size=4,
    max_size=60,
).map(lambda rows: [(f"{n}.png", f"c{label}", None if group is None else f"g{group}") for n, label, group in rows])


@settings(deadline=None, max_examples=100)
@given(rows=ROWS, order=st.randoms(use_true_random=False), share=st.floats(0.05, 0.6), seed=st.integers(0, 3))
def test_splits_do_not_depend_on_the_order_of_rows(rows, order, share, seed):
    """Also where one image has several rows, of other labels and groups; refusals are the same too."""
    mixed = list(rows)
    order.shuffle(mixed)
    for of in (
        lambda images: [divide(images, validation_share=share, seed=seed)],
        lambda images: divide_in_folds(images, 3, seed=seed),
    ):
        found: list[object] = []
        for given_rows in (rows, mixed):
            try:
                found.append([list_sides(one) for one in of(make(given_rows))])
            except BadData as problem:
                found.append(str(problem))
        assert found[0] == found[1]


@settings(deadline=None, max_examples=80)
@given(rows=ROWS, share=st.floats(0.05, 0.6), seed=st.integers(0, 3))
def test_no_image_and_no_group_is_on_both_sides(rows, share, seed):
    for of in (
        lambda images: [divide(images, validation_share=share, seed=seed)],
        lambda images: divide_in_folds(images, 2, seed=seed),
    ):
        try:
            found = of(make(rows))
        except BadData:
            continue
        for one in found:
            train, val = one.split("train"), one.split("val")
            assert not {p.path for p in train} & {p.path for p in val}
            assert not {p.group for p in train if p.group} & {p.group for p in val if p.group}
            assert len(train) + len(val) == len(make(rows).split("all"))


def deal_by_trial(groups: list[frozenset[str]], folds: int) -> bool:
    """Whether some way to deal the groups gives every fold every class: all of them are tried."""
    labels = frozenset().union(*groups)
    return any(
        all(
            labels == frozenset().union(*(g for g, place in zip(groups, places, strict=True) if place == fold))
            for fold in range(folds)
        )
        for places in product(range(folds), repeat=len(groups))
    )


def make_groups(groups: list[frozenset[str]], sizes: random.Random) -> ImageDataset:
    return make(
        [
            (f"{number}/{label}{index}.png", label, f"g{number}")
            for number, labels in enumerate(groups)
            for label in sorted(labels)
            for index in range(sizes.randint(1, 6))
        ]
    )


def test_grouped_folds_hold_every_class_where_possible():
    """Against all divisions there are, in a thousand small collections."""
    draw = random.Random(0)
    possible = 0
    for _ in range(1000):
        folds, labels = draw.choice([2, 2, 3]), draw.randint(2, 4)
        groups = [
            frozenset(f"c{label}" for label in range(labels) if draw.random() < 0.45) or frozenset({"c0"})
            for _ in range(draw.randint(folds, 7))
        ]
        images = make_groups(groups, draw)
        feasible = deal_by_trial(groups, folds)
        possible += feasible
        if feasible:
            for one in divide_in_folds(images, folds, seed=draw.randint(0, 9)):
                assert 0 not in one.count("val").values()
                assert 0 not in one.count("train").values()
        else:
            with pytest.raises(BadData, match="folds"):
                divide_in_folds(images, folds)
        if folds == 2:
            if feasible:
                one = divide(images, validation_share=draw.choice([0.1, 0.2, 0.4]), seed=draw.randint(0, 9))
                assert 0 not in one.count("val").values()
                assert 0 not in one.count("train").values()
            else:
                with pytest.raises(BadData, match="without dividing a group"):
                    divide(images, validation_share=0.2, seed=0)
    assert 200 < possible < 900


def test_grouped_folds_of_larger_collections_hold_every_class():
    """Where each class has no more groups than there are folds, and a way to deal them is known to exist."""
    draw = random.Random(1)
    for trial in range(150):
        folds, labels, width = draw.randint(2, 6), draw.randint(3, 12), draw.randint(1, 4)
        groups = []
        for _ in range(folds):
            names = [f"c{label}" for label in range(labels)]
            draw.shuffle(names)
            groups += [frozenset(names[start : start + width]) for start in range(0, labels, width)]
        draw.shuffle(groups)
        for one in divide_in_folds(make_groups(groups, draw), folds, seed=trial):
            assert 0 not in one.count("val").values()
            assert 0 not in one.count("train").values()


def test_grouped_splits_never_change_between_versions():
    """Those that were right before every fold was promised every class."""
    images = collect({"a": 40, "b": 25, "c": 12}, groups=11)
    folds = divide_in_folds(images, 4, seed=2)
    assert [sorted({p.group for p in one.split("val")}) for one in folds] == [
        ["g0", "g7", "g8"],
        ["g1", "g3", "g9"],
        ["g2", "g5"],
        ["g10", "g4", "g6"],
    ]
    held_out = divide(images, validation_share=0.3, seed=2).split("val")
    assert sorted({p.group for p in held_out}) == ["g0", "g2", "g6"]
