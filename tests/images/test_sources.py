from pathlib import Path

import pytest
from PIL import Image

from conftest import fill_folder
from vggkit.errors import BadData, UnknownName
from vggkit.images.sources import divide, list_pictures, open_pictures, typical_side


def test_parts_and_classes_of_a_folder(photos):
    found = open_pictures(photos)
    assert found.labels == ("across", "down", "red")
    assert {name: len(part) for name, part in found.splits.items()} == {"train": 48, "val": 15}
    assert found.count("val") == {"across": 5, "down": 5, "red": 5}
    assert typical_side(found.part("train")) == 40


@pytest.mark.parametrize("name", ["valid", "validation", "Val"])
def test_other_names_of_the_validation_part(tmp_path, name):
    fill_folder(tmp_path / "train", ("a", "b"), 2)
    fill_folder(tmp_path / name, ("a", "b"), 1)
    assert set(open_pictures(tmp_path).splits) == {"train", "val"}


def test_a_test_part_is_kept_apart_when_validation_is_divided_off(tmp_path):
    fill_folder(tmp_path / "train", ("a", "b"), 10)
    fill_folder(tmp_path / "test", ("a", "b"), 3, start=50)
    divided = divide(open_pictures(tmp_path), validation_share=0.2, seed=0)
    assert {name: len(part) for name, part in divided.splits.items()} == {"train": 16, "val": 4, "test": 6}


def test_division_is_stratified_seeded_and_moves_with_the_folder(tmp_path):
    for place in ("here", "there"):
        fill_folder(tmp_path / place, ("a", "b", "c"), 11)
    one = open_pictures(tmp_path / "here")
    parts = [divide(one, validation_share=0.3, seed=seed) for seed in (0, 0, 1)]
    names = [[(p.label, Path(p.path).name) for p in d.part("val")] for d in parts]
    assert names[0] == names[1] != names[2]
    assert parts[0].count("val") == {"a": 3, "b": 3, "c": 3}
    assert not {p.path for p in parts[0].part("val")} & {p.path for p in parts[0].part("train")}
    moved = open_pictures(tmp_path / "there")
    assert [(p.label, Path(p.path).name) for p in divide(moved, validation_share=0.3, seed=0).part("val")] == names[
        0
    ]
    assert moved.fingerprint() == one.fingerprint()
    (tmp_path / "there" / "a" / "000.png").unlink()
    assert open_pictures(tmp_path / "there").fingerprint() != one.fingerprint()


def test_digits_are_real_fixed_and_disjoint():
    digits = open_pictures("digits")
    assert {name: len(part) for name, part in digits.splits.items()} == {"train": 1259, "val": 179, "test": 359}
    names = [picture.path for part in digits.splits.values() for picture in part]
    assert len(set(names)) == 1797
    picture = digits.part("test")[0]
    assert picture.decode().shape == (8, 8, 3)
    assert min(digits.count("test").values()) >= 35


def test_files_that_are_no_pictures_are_passed_over(tmp_path):
    fill_folder(tmp_path, ("a", "b"), 2)
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / ".hidden.png").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "b" / "deeper").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "b" / "deeper" / "UPPER.JPG")
    assert len(open_pictures(tmp_path).part("all")) == 5


def test_what_is_wrong_with_a_place_is_said(tmp_path):
    with pytest.raises(UnknownName, match="digits"):
        open_pictures("digitz")
    with pytest.raises(BadData, match="no such folder"):
        open_pictures(tmp_path / "none")
    file = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(file)
    with pytest.raises(BadData, match="is a file"):
        open_pictures(file)
    with pytest.raises(BadData, match=r"no subfolders.*1 pictures lie loose"):
        open_pictures(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadData, match=r"empty.*holds no pictures"):
        open_pictures(tmp_path)
    fill_folder(tmp_path / "mixed" / "train", ("a",), 1)
    fill_folder(tmp_path / "mixed", ("cats",), 1)
    with pytest.raises(BadData, match="beside cats"):
        open_pictures(tmp_path / "mixed")
    fill_folder(tmp_path / "single", ("a", "b"), 1)
    with pytest.raises(BadData, match="one picture"):
        divide(open_pictures(tmp_path / "single"), validation_share=0.2, seed=0)


def test_listing_pictures_to_ask_about(tmp_path, photos):
    assert len(list_pictures([photos])) == 63
    assert [p.path for p in list_pictures(["none.png"])] == ["none.png"]
    with pytest.raises(BadData, match="no pictures"):
        list_pictures([tmp_path])
