"""Tables as people have them: of another machine, without endings, without a header, one column a class."""

from pathlib import Path

import pytest
from PIL import Image

from vggkit.errors import BadData
from vggkit.images.sources.open_dataset import list_images, open_dataset
from vggkit.images.sources.tables import Columns


@pytest.fixture
def table(tmp_path):
    """Writes a table beside `train/cats/000.jpg`, `train/dogs/001.jpg` and `flat/002.jpg`."""
    for number, folder in enumerate(("train/cats", "train/dogs", "flat")):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (4, 4), (number * 50, 0, 0)).save(tmp_path / folder / f"{number:03d}.jpg")

    def write(text: str) -> Path:
        (tmp_path / "t.csv").write_text(text)
        return tmp_path / "t.csv"

    return write


def find(table: Path, **columns: str) -> dict[str, str | None]:
    """The label of each image by its path below the table's folder; every image can be read."""
    images = [image for split in open_dataset(table, columns=Columns(**columns)).splits.values() for image in split]
    assert all(image.decode().shape == (4, 4, 3) for image in images)
    return {Path(image.path).relative_to(table.parent).as_posix(): image.label for image in images}


BOTH = {"train/cats/000.jpg": "cat", "train/dogs/001.jpg": "dog"}


@pytest.mark.parametrize(
    "text",
    [
        "path,label\nC:\\Users\\Ann\\pets\\train\\cats\\000.jpg,cat\nC:\\Users\\Ann\\pets\\train\\dogs\\001.jpg,dog\n",
        "path,label\nD:/pets/train/cats/000.jpg,cat\nD:/pets/train/dogs/001.jpg,dog\n",
        "path,label\n\\\\host\\share\\train\\cats\\000.jpg,cat\n\\\\host\\share\\train\\dogs\\001.jpg,dog\n",
        "path,label\n/home/ann/train/cats/000.jpg,cat\n/home/ann/train/dogs/001.jpg,dog\n",
        "path,label\npets/train/cats/000.jpg,cat\npets/train/dogs/001.jpg,dog\n",
        "path,label\nD:\\data\\elsewhere\\000.jpg,cat\nD:\\data\\elsewhere\\001.jpg,dog\n",
        "id,label\n000,cat\n001,dog\n",
        "id,breed\n000,cat\n001,dog\n",
        "image_id,label\ncats/000,cat\ndogs/001,dog\n",
        "filename,label\n000.jpg,cat\n001.jpg,dog\n",
        "train/cats/000.jpg,cat\ntrain/dogs/001.jpg,dog\n",
        "cat;train/cats/000.jpg\ndog;train/dogs/001.jpg\n",
        "image,cat,dog\ntrain/cats/000.jpg,1,0\ntrain/dogs/001.jpg,0,1\n",
        "image,age,cat,dog\n000,7,1.0,0.0\n001,8,0.0,1.0\n",
    ],
    ids=[
        "windows",
        "windows with slashes",
        "windows share",
        "another machine",
        "the folder's own name",
        "windows with folders that are not here",
        "ids",
        "ids and a label by another name",
        "ids in folders",
        "names alone",
        "no header",
        "no header and labels first",
        "one-hot",
        "one-hot with another column",
    ],
)
def test_tables_that_people_have_are_understood(table, text):
    assert find(table(text)) == BOTH


def test_a_root_and_a_suffix_may_be_stated(table):
    assert find(table("id,label\n000,cat\n"), root="train/cats", suffix=".jpg") == {"train/cats/000.jpg": "cat"}
    assert find(table("path,label\ndogs/001.jpg,dog\n"), root="train") == {"train/dogs/001.jpg": "dog"}
    assert find(table("id,label\n000,cat\n"), root="train/cats", suffix="jpg") == {"train/cats/000.jpg": "cat"}
    with pytest.raises(BadData, match="no folder nowhere"):
        open_dataset(table("id,label\n000,cat\n"), columns=Columns(root="nowhere"))


def test_splits_of_a_table_without_header_and_by_other_spellings(table):
    found = open_dataset(
        table("train/cats/000.jpg,cat,Train\ntrain/dogs/001.jpg,dog,Train\nflat/002.jpg,cat,Test_Set\n")
    )
    assert {name: len(images) for name, images in found.splits.items()} == {"train": 2, "test": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train/cats/000.jpg,cat,7\ntrain/dogs/001.jpg,dog,8\n", "its 3 columns have no names; write a line"),
        ("000,cat\n001,dog\n", "no column of images' paths.*write path,label above it"),
        ("photo,kind\n000.jpg,cat\n", "'photo' seems to be it.*--path-column"),
        ("image,sex,age\n000,f,3\n", "no label.*'sex', 'age'.*--label-column"),
    ],
    ids=[
        "three columns",
        "ids without header",
        "column by another name",
        "no label",
    ],
)
def test_the_way_forward_is_said(table, text, said):
    with pytest.raises(BadData, match=said):
        open_dataset(table(text))


def test_later_rows_of_one_hot_columns_are_checked(table):
    rows = "".join("000,1,0\n" for _ in range(1000))
    with pytest.raises(BadData, match=r"line 1002: the columns cat, dog are classes, each 1 .* 'dog' is '-1'"):
        open_dataset(table(f"image,cat,dog\n{rows}001,0,-1\n"))


def test_names_of_several_files_are_not_guessed(table):
    (table("").parent / "flat" / "000.jpg").write_bytes(b"another")
    with pytest.raises(BadData, match=r"000 could be .*--root"):
        open_dataset(table("id,label\n000,cat\n"))
    with pytest.raises(BadData, match=r"could be either.*--root"):
        open_dataset(
            table("path,label\nC:\\a\\cats\\002.jpg,cat\nC:\\a\\dogs\\002.jpg,dog\n"), columns=Columns(root="flat")
        )


def test_a_name_in_two_folders_is_ambiguous_where_the_folders_of_another_machine_are_not_here(table):
    (table("").parent / "flat" / "000.jpg").write_bytes(b"another")
    with pytest.raises(BadData, match=r"000.jpg could be .*--root"):
        open_dataset(table("path,label\nD:\\elsewhere\\000.jpg,cat\nD:\\elsewhere\\001.jpg,dog\n"))
    with pytest.raises(BadData, match="none of its images exists"):
        open_dataset(table("path,label\nelsewhere/000.jpg,cat\nelsewhere/001.jpg,dog\n"))


def test_tables_and_lists_without_labels_can_be_predicted(table):
    named = table("id\n000\n001\n")
    assert [Path(image.path).name for image in list_images([named])] == ["000.jpg", "001.jpg"]
    listed = named.with_suffix(".txt")
    listed.write_text("C:\\pets\\train\\cats\\000.jpg\nC:\\pets\\train\\cats\\gone.jpg\n")
    paths = [image.path for image in list_images([listed])]
    assert paths == [str(named.parent / "train/cats/000.jpg"), "C:\\pets\\train\\cats\\gone.jpg"]
    assert [image.name for image in list_images([listed])] == listed.read_text().split()
    assert [image.name for image in list_images([named])] == [image.path for image in list_images([named])]
