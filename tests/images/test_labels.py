"""Labels and paths are in a table what they are in a folder, and what looks odd about them is said."""

import csv
import json
import os
import sys
import unicodedata
from pathlib import Path

import pytest
from test_skipped import pack

from conftest import draw_class, fill_folder
from vggkit.data_checks.clean_table import write_clean_table
from vggkit.data_checks.rules import find_combined_labels
from vggkit.errors import BadData
from vggkit.images.dataset import ImageDataset, ImageSample
from vggkit.images.sources.open_dataset import list_images, open_dataset
from vggkit.images.sources.tables import Columns
from vggkit.images.splits import divide
from vggkit.workflows.check import check, check_training_data

ODD = (
    *(" cat", "cat ", "cat", "\tcat", "007", "7", "NA", "nan", "None", "null", "1e5", "true", "False", "0", "-"),
    *(
        "a,b",
        "a;b",
        'say "x"',
        "'q'",
        '"',
        "two\nlines",
        "cr\rhere",
        "cr\r\nlf",
        "Café",
        "人",
        "=1+1",
        "#1",
        "a\\b",
    ),
    *("label", "[x]", "{1..2}", "*"),
)
posix = pytest.mark.skipif(sys.platform == "win32", reason="such names are not allowed there")


@pytest.fixture
def odd(tmp_path) -> Path:
    """A folder for each odd name, with images of odd names."""
    for number, label in enumerate(ODD):
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        for index, name in enumerate(("0.png", " 1.png", "2 .png", "3,x\ny.png")):
            (folder / name).write_bytes(image(10 * number + index))
    return tmp_path / "data"


def image(seed: int) -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(draw_class("red", seed)).save(stream, "PNG")
    return stream.getvalue()


def entries(images: ImageDataset) -> set[tuple[str, str | None]]:
    return {(os.path.realpath(p.path), p.label) for part in images.splits.values() for p in part}


@posix
def test_a_cleaned_table_says_what_the_folder_says(odd, tmp_path):
    found = open_dataset(odd)
    assert set(found.labels) == set(ODD)
    write_clean_table(found, check(found, image_size=32), tmp_path / "deeper" / "t.csv")
    again = open_dataset(tmp_path / "deeper" / "t.csv")
    assert again.labels == found.labels
    assert entries(again) == entries(found)
    assert again.fingerprint() == found.fingerprint()
    divided = [divide(each, validation_share=0.25, seed=0) for each in (found, again)]
    assert entries(divided[0].keep({"val": divided[0].split("val")})) == entries(
        divided[1].keep({"val": divided[1].split("val")})
    )


@posix
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_tables_that_others_write_say_it_too(odd, delimiter, quoting):
    found = open_dataset(odd)
    with open(odd / "t.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting)
        writer.writerow(["path", "label"])
        writer.writerows((os.path.relpath(p.path, odd), p.label) for p in found.split("all"))
    assert entries(open_dataset(odd / "t.csv")) == entries(found)


@posix
def test_parquet_says_it_too(odd):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    found = open_dataset(odd)
    columns = {
        "path": [os.path.relpath(p.path, odd) for p in found.split("all")],
        "label": [p.label for p in found.split("all")],
    }
    parquet.write_table(pa.table(columns), odd / "t.parquet")
    assert entries(open_dataset(odd / "t.parquet")) == entries(found)
    columns["label"] = pa.array(columns["label"]).dictionary_encode()
    parquet.write_table(pa.table(columns), odd / "t.parquet")
    assert entries(open_dataset(odd / "t.parquet")) == entries(found)
    inside = {"image": [p.read() for p in found.split("all")], "label": columns["label"]}
    parquet.write_table(pa.table(inside), odd / "i.parquet")
    assert open_dataset(odd / "i.parquet").labels == found.labels


@posix
def test_lists_keep_names_as_they_are(odd):
    files = [p.path for p in open_dataset(odd).split("all") if "\n" not in p.path and "\r" not in p.path]
    (odd / "list.txt").write_text("\n".join(os.path.relpath(file, odd) for file in files), newline="")
    assert sorted(os.path.realpath(p.path) for p in list_images([odd / "list.txt"])) == sorted(files)


def test_spaces_around_cells_that_are_not_quoted_are_none_of_them(tmp_path):
    fill_folder(tmp_path, ("a",), 4)
    (tmp_path / "t.csv").write_text(
        "path, label ,group\n"
        "a/000.png, cat ,g1\n"
        "a/001.png,cat, g1 \n"
        'a/002.png ," cat",g2\n'
        '"a/003.png","cat ","g2"\n'
    )
    found = open_dataset(tmp_path / "t.csv").split("all")
    assert [p.label for p in found] == ["cat", "cat", " cat", "cat "]
    assert [p.group for p in found] == ["g1", "g1", "g2", "g2"]
    assert all(p.decode().shape == (40, 48, 3) for p in found)


def test_a_row_without_a_label_is_refused_however_it_is_written(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    fill_folder(tmp_path, ("a",), 2)
    for cell in ("", " ", '""'):
        (tmp_path / "t.csv").write_text(f"path,label\na/000.png,x\na/001.png,{cell}\n")
        with pytest.raises(BadData, match="line 3: has no label"):
            open_dataset(tmp_path / "t.csv")
    for missing in (None, float("nan")):
        table = pa.table({"path": ["a/000.png", "a/001.png"], "label": pa.array([1.0, missing])})
        parquet.write_table(table, tmp_path / "t.parquet")
        with pytest.raises(BadData, match="row 2: has no label"):
            open_dataset(tmp_path / "t.parquet")


COMPOSED, DECOMPOSED = unicodedata.normalize("NFC", "Café"), unicodedata.normalize("NFD", "Café")


def test_names_that_macos_writes_are_the_same_class(tmp_path):
    for part, label in (("train", COMPOSED), ("train", "b"), ("val", DECOMPOSED), ("val", "b")):
        fill_folder(tmp_path / part, (label,), 2, start=len(part))
    if len(list((tmp_path / "train").iterdir())) == 2 and (tmp_path / "train" / DECOMPOSED).exists():
        pytest.skip("this file system takes both forms for one name")
    found = open_dataset(tmp_path)
    assert found.labels == (COMPOSED, "b")
    assert found.count("val") == {COMPOSED: 2, "b": 2}


def test_a_table_finds_files_that_macos_named(tmp_path):
    fill_folder(tmp_path, (DECOMPOSED,), 2)
    (tmp_path / "t.csv").write_text(f"path,label\n{COMPOSED}/000.png,x\n{COMPOSED}/001.png,y\n", encoding="utf-8")
    assert all(p.decode().shape == (40, 48, 3) for p in open_dataset(tmp_path / "t.csv").split("all"))


def test_a_classifier_of_the_other_spelling_knows_its_classes(tiny, tmp_path):
    from vggkit.classifier import Classifier
    from vggkit.evaluation.measure import evaluate
    from vggkit.images.preprocessing import Preprocessing

    pytest.importorskip("sklearn")
    fill_folder(tmp_path, (COMPOSED, "b", "c"), 3)
    classifier = Classifier.create(
        tiny,
        labels=["b", "c", DECOMPOSED],
        preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32),
        seed=0,
    )
    found = evaluate(classifier, tmp_path, device="cpu")
    assert found.n == 9
    assert not any("unknown" in note for note in found.notes)


def write_table(folder: Path, labels: list[str], *, delimiter: str = ",") -> Path:
    fill_folder(folder, ("x",), len(labels))
    with open(folder / "t.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["path", "label"])
        writer.writerows((f"x/{index:03d}.png", label) for index, label in enumerate(labels))
    return folder / "t.csv"


@pytest.mark.parametrize(
    "combined", ["cat|dog", "cat;dog", "cat, dog", "dog | cat", "['cat', 'dog']", '["cat","dog"]']
)
def test_labels_that_consist_of_others_are_refused(combined, tmp_path):
    table = write_table(tmp_path, ["cat", "dog", combined, "bird"])
    with pytest.raises(BadData, match=r"several in one.*('cat' and 'dog'|'dog' and 'cat')"):
        open_dataset(table)


@pytest.mark.parametrize("labels", [["cat|dog", "bird"], ["cat;dog", "dog;bird", "x"], ["['a', 'b']", "c"]])
def test_labels_that_look_like_several_are_said(labels, tmp_path):
    table = write_table(tmp_path, labels * 2)
    found = open_dataset(table)
    assert set(found.labels) == set(labels)
    finding = check(found).find("combined-label")
    assert finding.severity == "warning"
    assert len(finding.cases) == len(labels) - 1
    said: list[str] = []
    check_training_data(found, despite_findings=True, log=said.append)
    assert any(labels[0] in line and "looks like 2 labels" in line for line in said)


def test_ordinary_names_stay_ordinary(tmp_path):
    for label in ("tench, Tinca tinca", "salt & pepper", "salt", "pepper", "red fox", "red", "fox", "n/a", "a(b)"):
        table = write_table(tmp_path / "tables" / str(len(label)), [label, "other"])
        assert find_combined_labels(open_dataset(table).labels) is None
    fill_folder(tmp_path / "folders", ("cat", "dog", "cat, dog"), 2)
    assert open_dataset(tmp_path / "folders").labels == ("cat", "cat, dog", "dog")


def test_labels_that_differ_in_spaces_alone_are_said(tmp_path):
    fill_folder(tmp_path / "p", ("cat", "cat ", "polar bear", "Cat"), 2)
    found = open_dataset(tmp_path / "p")
    assert len(found.labels) == 4
    (case,) = check(found).find("similar-names").cases
    assert "'Cat' and 'cat' and 'cat ' differ only in case or spaces" in case.detail


def test_lists_of_labels_in_parquet_and_beside_images_in_archives(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pa.table({"image": [image(0)] * 2, "label": [["cat", "dog"], ["cat"]]}), tmp_path / "t.parquet"
    )
    found = open_dataset(tmp_path / "t.parquet")
    assert (found.task, found.labels) == ("multi-label", ("cat", "dog"))
    with pytest.raises(BadData, match="has the labels cat, dog, and task=single-label"):
        open_dataset(tmp_path / "t.parquet", columns=Columns(task="single-label"))
    parquet.write_table(pa.table({"image": [image(0)] * 2, "label": ["cat|dog", "cat"]}), tmp_path / "u.parquet")
    assert find_combined_labels(open_dataset(tmp_path / "u.parquet").labels) is not None
    members = {"0.png": image(0), "0.json": json.dumps({"label": "cat|dog"}).encode()}
    (tmp_path / "x.tar").write_bytes(pack({**members, "1.png": image(1), "1.cls": b"cat"}))
    assert find_combined_labels(open_dataset(tmp_path / "x.tar").labels) is not None


def test_entries_of_one_image_count_once_and_never_part(tmp_path):
    """The same path twice, in another spelling, through a link, with another label."""
    labels = ["cat", "dog"] * 10
    table = write_table(tmp_path, labels)
    more = ["x/000.png,cat", "./x/001.png,dog", "y/002.png,cat", "x/003.png,cat"]
    if sys.platform != "win32":
        (tmp_path / "y").symlink_to(tmp_path / "x")
    table.write_text(table.read_text() + "\n".join(more))
    found = open_dataset(table)
    assert found.count("all") == {"cat": 11, "dog": 10}
    assert [(each.reason, each.count) for each in found.skipped] == [("listed-twice", 3)]
    assert "3 entries repeat an image" in found.skipped[0].describe()
    for seed in range(8):
        divided = divide(found, validation_share=0.2, seed=seed)
        sides = [{os.path.realpath(p.path) for p in divided.split(name)} for name in ("train", "val")]
        assert not sides[0] & sides[1]
    said: list[str] = []
    check_training_data(divided, despite_findings=True, log=said.append)
    assert any("3 entries repeat" in line for line in said)
    (line,) = [line for line in said if "more than one class" in line]
    assert "003.png (dog)" in line
    assert "003.png (cat)" in line
    assert check(found).find("contradiction").cases[0].detail == "the same file"


def test_images_in_memory_are_told_apart_by_their_pixels():
    pixels = draw_class("red", 0)
    rows = [
        ImageSample("a", "x", pixels),
        ImageSample("a", "x", pixels),
        ImageSample("a", "x", pixels.copy()),
        ImageSample("b", "y", pixels),
    ]
    found = ImageDataset.of("made", [(None, row) for row in rows])
    assert found.count("all") == {"x": 2, "y": 1}
    assert found.skipped[0].count == 1


@pytest.mark.parametrize("reverse", [False, True])
def test_the_same_entry_stays_in_every_order_of_rows(reverse, tmp_path):
    fill_folder(tmp_path, ("x",), 1)
    rows = [ImageSample(str(tmp_path / place / "000.png"), "x") for place in ("x", "x/../x")]
    (one,) = ImageDataset.of("made", [(None, row) for row in (rows[::-1] if reverse else rows)]).split("all")
    assert one.path == min(row.path for row in rows)
