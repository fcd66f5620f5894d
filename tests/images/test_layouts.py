"""Folders as people have them: splits, classes, and both in each other."""

from pathlib import Path

import pytest
from PIL import Image

from vggkit.errors import BadData
from vggkit.images.sources.open_dataset import open_dataset


def fill(root: Path, *folders: str, count: int = 2) -> Path:
    """A few images in each of these folders."""
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.new("RGB", (4, 4), (number * 20, index * 40, 90)).save(root / folder / f"{number}_{index}.png")
    return root


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("training_set", "test_set", "test"),
        ("Train", "Test", "test"),
        ("TRAIN", "VAL", "val"),
        ("train_images", "val2", "val"),
        ("training", "testing", "test"),
        ("train2017", "val2017", "val"),
        ("images-train", "images-dev", "val"),
        ("TrainSet", "Validation Set", "val"),
        ("train data", "test data", "test"),
        ("train", "eval", "val"),
        ("trn", "tst", "test"),
        ("training", "Evaluation Set", "val"),
        ("train", "held_out", "test"),
        ("train", "hold-out", "test"),
        ("train", "cross-validation", "val"),
        ("train", "unseen", "test"),
    ],
    ids=lambda name: name.replace(" ", "_"),
)
def test_splits_are_known_by_the_spellings_that_people_use(tmp_path, train, other, split):
    fill(tmp_path, f"{train}/cats", f"{train}/dogs", f"{other}/cats", f"{other}/dogs")
    found = open_dataset(tmp_path)
    assert found.labels == ("cats", "dogs")
    assert {name: len(images) for name, images in found.splits.items()} == {"train": 4, split: 4}
    assert not found.skipped


@pytest.mark.parametrize(
    "folders",
    [
        ["training_set/training_set/cats", "training_set/training_set/dogs", "test_set/test_set/cats"],
        ["dataset/train/cats", "dataset/train/dogs", "dataset/test/cats"],
        ["train/images/cats", "train/images/dogs", "test/images/cats"],
        ["pets_v2/train/cats", "pets_v2/train/dogs", "pets_v2/test/cats"],
        [
            "seg_train/seg_train/cats",
            "seg_train/seg_train/dogs",
            "seg_test/seg_test/cats",
            "seg_test/seg_test/dogs",
        ],
        ["cats/train", "dogs/Training", "cats/test"],
    ],
    ids=["unpacked twice", "wrapped", "wrapped inside", "wrapped by any name", "with a prefix", "inside classes"],
)
def test_splits_are_found_where_archives_have_them(tmp_path, folders):
    found = open_dataset(fill(tmp_path, *folders))
    assert found.labels == ("cats", "dogs")
    assert list(found.splits) == ["train", "test"]
    assert len(found.splits["train"]) == 4


@pytest.mark.parametrize("place", ["test", "test/unknown", "Test/images"])
def test_a_test_split_without_classes_is_left_out_and_counted(tmp_path, place):
    fill(tmp_path, "train/cats", "train/dogs", place)
    found = open_dataset(tmp_path)
    assert list(found.splits) == ["train"]
    assert found.labels == ("cats", "dogs")
    assert [(omission.reason, omission.count) for omission in found.skipped] == [("unlabelled", 2)]
    assert "2 images are in a split without class folders" in found.skipped[0].describe()


def test_folders_without_images_beside_splits_are_no_classes(tmp_path):
    fill(tmp_path, "train/cats", "train/dogs")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "boxes.csv").write_text("a,b\n")
    found = open_dataset(tmp_path)
    assert found.labels == ("cats", "dogs")
    assert [omission.reason for omission in found.skipped] == ["without-images"]


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["bus", "car", "train"], r"train beside bus, car.*rename it.*train/train"),
        (["cats", "dogs", "test"], r"holds test beside cats, dogs"),
        (["train/cats", "train/dogs", "extra/cats"], r"holds train beside extra"),
        (["cats/train", "cats/val", "dogs"], r"class cats holds train, which names a split, but dogs is not"),
        (["one/cats", "one/dogs", "two/cats", "two/dogs"], r"one, two hold the same subfolders \(cats, dogs\)"),
        (["PetImages/Cat", "PetImages/Dog"], r"one class.*Cat, Dog, give.*PetImages"),
        (["val/cats", "valid/cats"], r"the split val twice, as val and as valid"),
        (["train"], r"has no subfolders.*2 images lie loose.*a table"),
    ],
    ids=[
        "class called train",
        "loose test",
        "one more",
        "half divided",
        "unknown splits",
        "wrapped",
        "twice",
        "loose",
    ],
)
def test_what_could_be_splits_or_classes_is_refused_with_the_way_out(tmp_path, folders, said):
    with pytest.raises(BadData, match=said):
        open_dataset(fill(tmp_path, *folders))


def test_the_ways_out_that_are_named_work(tmp_path):
    fill(tmp_path / "vehicles", "train/bus", "train/car", "train/train")
    assert open_dataset(tmp_path / "vehicles").labels == ("bus", "car", "train")
    fill(tmp_path / "archive", "PetImages/Cat", "PetImages/Dog")
    assert open_dataset(tmp_path / "archive" / "PetImages").labels == ("Cat", "Dog")


def test_subfolders_of_a_class_belong_to_it(tmp_path):
    fill(tmp_path, "cats/2019", "cats/2020", "dogs/2021", "birds")
    found = open_dataset(tmp_path)
    assert found.count("all") == {"birds": 2, "cats": 4, "dogs": 2}
