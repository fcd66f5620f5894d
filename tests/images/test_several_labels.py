"""Images with several labels, or none: how they are read, divided and described."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from vggkit import BadConfiguration, BadData, Columns, ImageDataset, ImageSample, open_dataset
from vggkit.images.dataset import identify_image
from vggkit.images.several_labels import demand_task, demand_whole_names, find_inseparable
from vggkit.images.splits import divide, divide_in_folds, hold_out_with_copies
from vggkit.images.stratification import stratify

PIXELS = np.full((8, 8, 3), 127, np.uint8)


@pytest.fixture
def table(tmp_path):
    """A function that writes a table of images that need not exist, and returns its path."""
    for name in "abcdef":
        (tmp_path / f"{name}.png").write_bytes(b"")

    def write(text):
        path = tmp_path / "t.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def labels_of(dataset, split="all"):
    return [image.labels for image in dataset.split(split)]


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["sun;sea", "sea", '""', "sun; sea ;"], ";"),
        (["sun|sea", "sea", '""', "sun|sea"], "|"),
        (["sun sea", "sea", '""', "sun sea"], " "),
    ],
    ids=["semicolon", "bar", "space"],
)
def test_a_separator_makes_cells_lists_and_an_empty_cell_none(table, cells, separator):
    rows = "".join(f"{name}.png,{cell}\n" for name, cell in zip("abcd", cells, strict=True))
    found = open_dataset(table(f"path,label\n{rows}"), columns=Columns(label_separator=separator))
    assert (found.task, found.labels) == ("multi-label", ("sea", "sun"))
    assert labels_of(found) == [("sea", "sun"), ("sea",), (), ("sea", "sun")]
    assert [image.label for image in found.split("all")][1:3] == ["sea", "(no label)"]
    assert found.count("all") == {"sea": 3, "sun": 2}
    assert found.notes == ("multi-label: 2 of 4 images have several labels and 1 none, 1.25 on average",)


def test_columns_of_zeros_and_ones_are_single_label_only_where_each_row_has_one(table):
    rows = ["a.png,1,0,0", "b.png,0,1,0", "c.png,1,0,0"]
    exact = table("path,sun,sea,fog\n" + "\n".join(rows))
    found = open_dataset(exact)
    assert (found.task, found.count("all"), found.notes) == ("single-label", {"fog": 0, "sea": 1, "sun": 2}, ())
    asked = open_dataset(exact, columns=Columns(task="multi-label"))
    assert (asked.task, labels_of(asked)) == ("multi-label", [("sun",), ("sea",), ("sun",)])
    for more, expected in (("d.png,1,1,0", ("sea", "sun")), ("d.png,0,0,0", ())):
        path = table("path,sun,sea,fog\n" + "\n".join([*rows, more]))
        found = open_dataset(path)
        assert (found.task, labels_of(found)[-1]) == ("multi-label", expected)
        assert found.labels == ("fog", "sea", "sun"), "a column that no row uses is a class too"
        with pytest.raises(BadData, match=r"d\.png: has (no label|the labels sea, sun), and task=single-label"):
            open_dataset(path, columns=Columns(task="single-label"))


def test_labels_in_memory(table):
    pairs = [(PIXELS, ["sun", "sea"]), (PIXELS, ()), (PIXELS, {"sea"})]
    found = open_dataset(pairs)
    assert (found.task, labels_of(found)) == ("multi-label", [("sea", "sun"), (), ("sea",)])
    assert "multi-label" in repr(found)
    each = open_dataset([(PIXELS, "sun"), (PIXELS, "sea")], columns=Columns(task="multi-label"))
    assert labels_of(each) == [("sun",), ("sea",)]


def test_what_contradicts_is_refused(table, tmp_path):
    with pytest.raises(
        BadConfiguration, match="label_separator=';' separates several labels, and task=single-label"
    ):
        Columns(label_separator=";", task="single-label")
    with pytest.raises(BadConfiguration, match="label_separator must be a character or more"):
        Columns(label_separator="")
    with pytest.raises(BadConfiguration, match="task must be one of single-label, multi-label; got 'many'"):
        Columns(task="many")
    (tmp_path / "folder" / "sun").mkdir(parents=True)
    (tmp_path / "folder" / "sun" / "a.png").write_bytes(b"")
    for columns in (Columns(task="multi-label"), Columns(label_separator=";")):
        with pytest.raises(BadData, match="gives each image one label, and several are listed in a table"):
            open_dataset(tmp_path / "folder", columns=columns)
    assert open_dataset(tmp_path / "folder", columns=Columns(task="single-label")).task == "single-label"
    with pytest.raises(BadData, match="none of its images has a label"):
        open_dataset(table('path,label\na.png,""\nb.png,""\n'), columns=Columns(label_separator=";"))
    with pytest.raises(BadData, match=r"several in one, the first 'sea;sun'.*name their separator"):
        open_dataset(table('path,label\na.png,"sea;sun"\nb.png,sea\nc.png,sun\n'))


def test_a_split_without_any_label_is_left_out(table):
    text = "path,label,split\na.png,sun;sea,train\nb.png,sea,val\nc.png,,test\n"
    found = open_dataset(table(text), columns=Columns(label_separator=";"))
    assert list(found.splits) == ["train", "val"]
    assert "split test is left out: none of its 1 images has a label" in found.notes


def test_a_class_whose_name_contains_the_separator_is_found(table):
    rows = "".join(f"{name}.png,black;white\n" for name in "abc") + "d.png,sea\n"
    found = open_dataset(table(f"path,label\n{rows}"), columns=Columns(label_separator=";"))
    assert find_inseparable(found.split("all")) == {("black", "white"): 3}
    with pytest.raises(BadData, match="pieces of the class 'black;white': the separator"):
        demand_whole_names("t.csv", ["black", "white"], ["black;white", "sea"])
    demand_whole_names("t.csv", ["sea"], ["seaside"])


def test_a_classifier_of_the_other_task_is_refused():
    images = [ImageSample(str(n), "sun", PIXELS) for n in range(2)]
    single = ImageDataset("x", ("sun",), {"all": tuple(images)})
    with pytest.raises(BadData, match=r"predicts any number of them.*--task multi-label"):
        demand_task(single, "multi-label")
    with pytest.raises(BadData, match="this Classifier gives each exactly one"):
        demand_task(replace(single, task="multi-label"), "single-label")


def make_dataset(count=200, *, seed=0, grouped=False):
    draw = np.random.default_rng(seed)
    shares = {"a": 0.6, "b": 0.3, "c": 0.1, "d": 0.04}
    images = []
    for number in range(count):
        labels = tuple(label for label, share in shares.items() if draw.random() < share)
        group = str(number // 4) if grouped else None
        images.append((None, ImageSample(f"{number}.png", pixels=PIXELS, labels=labels, group=group)))
    return ImageDataset.of("drawn", images)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_each_label_and_no_label_is_spread_evenly(grouped, share):
    dataset = make_dataset(grouped=grouped)
    divided = divide(dataset, validation_share=share, seed=3)
    train, val = divided.splits["train"], divided.splits["val"]
    assert {id(p) for p in (*train, *val)} == {id(p) for p in dataset.split("all")}
    assert abs(len(val) - share * 200) <= (10 if grouped else 4)
    for label, total in dataset.count("all").items():
        assert abs(divided.count("val")[label] - share * total) <= (4 if grouped else 1.5), label
    bare = sum(not image.labels for image in dataset.split("all"))
    assert abs(sum(not image.labels for image in val) - share * bare) <= (4 if grouped else 1.5)
    if grouped:
        assert not {image.group for image in train} & {image.group for image in val}
    shuffled = ImageDataset.of("drawn", [(None, image) for image in reversed(dataset.split("all"))])
    again = divide(shuffled, validation_share=share, seed=3)
    assert {p.path for p in again.splits["val"]} == {p.path for p in val}, "in any order of the rows"


def test_folds_and_copies():
    dataset = make_dataset()
    folds = divide_in_folds(dataset, 4, seed=1)
    held = [{image.path for image in fold.splits["val"]} for fold in folds]
    assert sum(map(len, held)) == 200
    assert all(not one & other for one, other in itertools.combinations(held, 2))
    assert max(map(len, held)) - min(map(len, held)) <= 6
    whole = dataset.split("all")
    copies = [[identify_image(whole[0]), identify_image(whole[9]), identify_image(whole[50])]]
    divided, used = hold_out_with_copies(dataset, validation_share=0.3, seed=0, copy_groups=copies)
    assert [list(group) for group in used] == copies
    sides = [{image.path for image in divided.splits[name]} for name in ("train", "val")]
    assert any({"0.png", "9.png", "50.png"} <= side for side in sides)


def test_a_label_of_one_image_is_trained_on():
    images = [
        (None, ImageSample(f"{n}.png", pixels=PIXELS, labels=("a", "rare") if n == 7 else ("a",)))
        for n in range(10)
    ]
    divided = divide(ImageDataset.of("x", images), validation_share=0.2, seed=0)
    assert divided.count("train") == {"a": 8, "rare": 1}
    with pytest.raises(BadData, match="are too few to divide"):
        divide(ImageDataset.of("x", images[:1]), validation_share=0.2, seed=0)


def test_stratification_takes_the_rarest_label_first():
    groups = {"1": {"a": 1}, "2": {"a": 1, "b": 1}, "3": {"a": 1, "b": 1}, "4": {"a": 1}, "5": {}, "6": {}}
    sides = stratify(groups, [0.5, 0.5])
    assert sides["2"] != sides["3"]
    assert sides["5"] != sides["6"]
    assert sides["1"] != sides["4"]


def test_identities_depend_on_the_set_of_labels():
    one, other = (ImageSample("a.png", labels=labels) for labels in (("a", "b"), ("b", "a", "a")))
    assert one.labels == other.labels == ("a", "b")
    assert one.classes == ("a", "b")
    assert ImageSample("a.png").classes == ()
    assert ImageSample("a.png", "a").classes == ("a",)
    with_pixels = [ImageSample("a.png", pixels=PIXELS, labels=labels) for labels in (("a",), ("a", "b"), ())]
    assert len(set(map(identify_image, with_pixels))) == 3
