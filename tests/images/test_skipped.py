"""Every image of a folder is found, whatever it is called and however it is linked; the rest is counted."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from conftest import draw_class, fill_folder
from vggkit.errors import BadData, BadImage
from vggkit.images.file_kinds import SUFFIXES, is_image_start
from vggkit.images.omissions import Reading
from vggkit.images.sources.open_dataset import gather_images, iterate_images, list_images, open_dataset
from vggkit.workflows.check import check, check_training_data

links = pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")


def encode(format_: str, seed: int = 0, label: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(draw_class(label, seed)).save(stream, format_)
    return stream.getvalue()


def omitted(found) -> dict[str, tuple[int, list[str]]]:
    """Count and names of the examples by reason."""
    return {
        each.reason: (each.count, [Path(name.partition(" -> ")[0]).name for name in each.examples])
        for each in found
    }


def names(images) -> list[str]:
    return sorted(Path(image.path).name for image in images)


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")


@pytest.mark.parametrize("format_", FORMATS)
def test_an_image_is_known_by_its_first_bytes(format_):
    assert is_image_start(encode(format_)[:32])


def test_heic_is_known_by_its_first_bytes():
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(draw_class("red", 0))).save(stream)
    assert is_image_start(stream.getvalue()[:32])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"BMW drivers of the world, unite!",
        b"P5 is a text",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"\x7fELF",
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"<?xml version='1.0'?><svg/>",
        b"\0\0\1\0\1\0\x10\x10",
        bytes(32),
    ],
)
def test_what_is_no_image_is_not_taken_for_one(data):
    assert not is_image_start(data)


def test_real_images_are_known_by_their_first_bytes(shared):
    from vggkit.images.image_header import read_head

    known = 0
    for path in sorted((shared / "odd_images" / "pillow").rglob("*")):
        if path.is_file() and path.suffix.lower() in SUFFIXES - {".tga", ".pcx"}:
            try:
                read_head(path)
            except BadImage:
                continue
            known += 1
            assert is_image_start(path.read_bytes()[:32]), path
    assert known > 100


UNNAMED = ("001", "photo", "a.jpg_large", "b.jpeg!d", "c.JPG~", "image.php", "d.jpg?w=200", "2019.12.31", "e.")


@pytest.fixture
def unnamed(tmp_path):
    """Class folders whose images have endings that tell nothing, beside files that are none."""
    for label in ("a", "b"):
        (tmp_path / label / "deeper").mkdir(parents=True)
        for number, name in enumerate(UNNAMED):
            place = tmp_path / label / "deeper" if number % 2 else tmp_path / label
            (place / name).write_bytes(encode(FORMATS[number % len(FORMATS)], number, label))
    for name in ("notes.txt", "x.xml", "README", "empty", "raw.NEF"):
        (tmp_path / "a" / name).write_bytes(b"" if name == "empty" else b"II*\0 what a camera writes")
    (tmp_path / "a" / "README").write_text("BMW")
    return tmp_path


def test_files_whose_endings_tell_nothing_are_known_by_what_is_inside(unnamed):
    found = open_dataset(unnamed)
    assert found.count("all") == {"a": len(UNNAMED), "b": len(UNNAMED)}
    assert omitted(found.skipped) == {"not-an-image": (5, ["README", "empty", "notes.txt"])}
    assert all(image.decode().shape == (40, 48, 3) for image in found.split("all"))
    reading = Reading()
    assert len(list(iterate_images([unnamed], reading=reading))) == 2 * len(UNNAMED)
    assert omitted(reading.list_omissions()) == {"not-an-image": (5, ["README", "empty", "notes.txt"])}


def test_only_files_whose_names_tell_nothing_are_opened(unnamed, monkeypatch):
    opened = []
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *given, **more: opened.append(self.name) or real(self, *given, **more)
    )
    fill_folder(unnamed, ("a",), 3)
    list_images([unnamed])
    assert {*UNNAMED, "README", "empty"} >= set(opened) > {"001"}


def test_archives_beside_images_without_endings_do_not_hide_them(unnamed):
    with tarfile.open(unnamed / "a" / "old.tar", "w"):
        pass
    assert len(open_dataset(unnamed).split("all")) == 2 * len(UNNAMED)
    assert len(list_images([unnamed])) == 2 * len(UNNAMED)


JUNK = (
    *("@eaDir", "__MACOSX", ".git", ".thumbnails", ".ipynb_checkpoints", "#recycle", "@Recycle", "lost+found"),
    *("$RECYCLE.BIN", "System Volume Information", "@EADIR"),
)


@pytest.mark.parametrize("junk", JUNK)
def test_known_junk_is_no_class_and_no_image(junk, tmp_path):
    for place in (tmp_path, tmp_path / "a"):
        fill_folder(place, ("a", "b"), 2)
        (place / junk / "001.png").mkdir(parents=True)
        (place / junk / "001.png" / "SYNOPHOTO_THUMB_M.jpg").write_bytes(encode("JPEG"))
        (place / junk / "x.jpg").write_bytes(encode("JPEG"))
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._001.png"):
            (place / name).write_bytes(b"\0\5\x16\7")
    found = open_dataset(tmp_path)
    assert found.labels == ("a", "b")
    assert found.count("all") == {"a": 6, "b": 2}
    assert found.skipped == ()
    assert len(list_images([tmp_path])) == 8


def test_junk_beside_parts_is_neither(tmp_path):
    for part in ("train", "val"):
        fill_folder(tmp_path / part, ("a", "b"), 2)
    (tmp_path / "@eaDir").mkdir()
    assert set(open_dataset(tmp_path).splits) == {"train", "val"}


def test_what_is_hidden_or_beside_the_classes_is_counted_and_named(tmp_path):
    fill_folder(tmp_path, ("a", "b", ".old"), 2)
    for number in range(5):
        (tmp_path / f"loose{number}").write_bytes(encode("PNG", number))
    (tmp_path / "a" / ".hidden.png").write_bytes(encode("PNG"))
    (tmp_path / "classes.csv").write_text("a\nb\n")
    found = open_dataset(tmp_path)
    assert found.count("all") == {"a": 2, "b": 2}
    assert omitted(found.skipped) == {
        "beside-classes": (5, ["loose0", "loose1", "loose2"]),
        "hidden": (2, [".old", ".hidden.png"]),
        "not-an-image": (1, ["classes.csv"]),
    }
    finding = check(found).find("skipped")
    assert finding.severity == "warning"
    assert len(finding.cases) == 3
    assert "loose2, …" in finding.cases[0].detail
    assert check(found).to_dict()["skipped"][2]["reason"] == "not-an-image"
    assert json.loads(json.dumps(found.skipped[0].to_dict()))["count"] == 5


def test_images_beside_the_classes_of_a_part_are_counted(tmp_path):
    for part in ("train", "val"):
        fill_folder(tmp_path / part, ("a", "b"), 2)
    (tmp_path / "top.png").write_bytes(encode("PNG"))
    (tmp_path / "val" / "x.png").write_bytes(encode("PNG"))
    assert omitted(open_dataset(tmp_path).skipped) == {"beside-classes": (2, ["top.png", "x.png"])}


def test_a_class_of_other_files_alone_is_refused_with_their_names(tmp_path):
    fill_folder(tmp_path, ("a",), 2)
    (tmp_path / "boxes").mkdir()
    (tmp_path / "boxes" / "1.xml").write_text("<x/>")
    with pytest.raises(BadData, match=r"boxes: holds no images.*1 file is not an image.*1\.xml"):
        open_dataset(tmp_path)
    with pytest.raises(BadData, match=r"holds no images.*1\.xml"):
        list_images([tmp_path / "boxes"])


@pytest.fixture
def store(tmp_path):
    """Images outside the data, which links lead to."""
    fill_folder(tmp_path / "store", ("a", "b"), 3, start=50)
    fill_folder(tmp_path / "data", ("a", "b"), 2)
    return tmp_path / "store"


@links
def test_linked_files_and_folders_are_followed(tmp_path, store):
    data = tmp_path / "data"
    (data / "a" / "more").symlink_to(store / "a")
    (data / "b" / "x.png").symlink_to(store / "b" / "050.png")
    (data / "b" / "y").symlink_to(store / "b" / "051.png")
    (data / "c").symlink_to(store / "b", target_is_directory=True)
    found = open_dataset(data)
    assert found.count("all") == {"a": 5, "b": 4, "c": 3}
    assert found.skipped == ()
    assert len(list_images([data])) == 12
    assert all(image.decode().shape == (40, 48, 3) for image in found.split("all"))


@links
def test_links_that_lead_back_are_noticed(tmp_path, store):
    data = tmp_path / "data"
    (data / "a" / "self").symlink_to(data / "a")
    (data / "a" / "up").symlink_to("..")
    (data / "all").symlink_to(data)
    (data / "a" / "round").symlink_to(data / "a" / "round")
    (data / "b" / "root").symlink_to(data.anchor)
    (store / "a" / "home").symlink_to(data / "b")
    (data / "b" / "away").symlink_to(store / "a")
    found = open_dataset(data)
    assert found.count("all") == {"a": 2, "b": 5}
    assert omitted(found.skipped) == {
        "link-loop": (5, ["all", "round", "self"]),
        "seen-again": (1, ["home"]),
    }
    assert names(list_images([data])) == [
        "000.png",
        "000.png",
        "001.png",
        "001.png",
        "050.png",
        "051.png",
        "052.png",
    ]


@links
def test_a_folder_that_is_reached_twice_counts_once_and_by_its_own_name(tmp_path, store):
    data = tmp_path / "data"
    (data / "a" / "again").symlink_to(data / "a" / "zzz")
    fill_folder(data / "a", ("zzz",), 2, start=9)
    for name in ("first", "second"):
        (data / "b" / name).symlink_to(store / "b")
    found = open_dataset(data)
    assert found.count("all") == {"a": 4, "b": 5}
    assert omitted(found.skipped) == {"seen-again": (2, ["again", "second"])}
    assert not any("again" in image.path for image in found.split("all"))
    reading = Reading()
    assert len(list(gather_images(data, reading=reading))) == 9
    assert omitted(reading.list_omissions())["seen-again"][0] == 2


@links
def test_links_that_lead_nowhere_are_named(tmp_path, store):
    data = tmp_path / "data"
    (data / "a" / "gone.png").symlink_to(store / "gone.png")
    (data / "a" / "gone").symlink_to(store / "gone")
    (data / "lost").symlink_to(store / "lost")
    found = open_dataset(data)
    assert found.count("all") == {"a": 3, "b": 2}
    assert omitted(found.skipped) == {"broken-link": (2, ["lost", "gone"])}
    assert f"gone -> {store / 'gone'}" in found.skipped[0].describe()
    case = check(found).find("unreadable").cases[0]
    assert "gone.png" in case.detail
    assert "no such file" in case.detail


@links
def test_a_file_of_two_names_counts_once_in_a_class(tmp_path, store):
    data = tmp_path / "data"
    (data / "a" / "soft.png").symlink_to(data / "a" / "000.png")
    os.link(data / "b" / "000.png", data / "b" / "hard.png")
    found = open_dataset(data)
    assert found.count("all") == {"a": 2, "b": 2}
    assert omitted(found.skipped) == {"listed-twice": (2, ["soft.png", "hard.png"])}


@links
def test_one_folder_in_two_classes_is_said_to_be_so(tmp_path, store):
    data = tmp_path / "data"
    (data / "a" / "more").symlink_to(store / "a")
    (data / "b" / "more").symlink_to(store / "a")
    found = check(data)
    assert found.counts == {"all": {"a": 5, "b": 5}}
    assert len(found.find("contradiction").cases) == 3


@links
def test_linked_archives_are_read_and_those_of_two_names_once(tmp_path):
    import test_sources

    write = test_sources.write_tar
    write(tmp_path / "store" / "train.tar", "train", label="json")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shards").symlink_to(tmp_path / "store")
    (tmp_path / "data" / "train.tar").symlink_to(tmp_path / "store" / "train.tar")
    (tmp_path / "data" / "val.tar").symlink_to(tmp_path / "store" / "val.tar")
    with pytest.raises(BadData, match=r"val\.tar"):
        open_dataset(tmp_path / "data")
    (tmp_path / "data" / "val.tar").unlink()
    found = open_dataset(tmp_path / "data")
    assert {name: len(part) for name, part in found.splits.items()} == {"train": 8}
    assert [each.reason for each in found.skipped] == ["seen-again"]


def pack(members: dict[str, bytes | str]) -> bytes:
    """A tar archive; a text is where a symbolic link leads."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(data, str):
                member.type, member.linkname = tarfile.SYMTYPE, data
                archive.addfile(member)
            else:
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_archives_are_read_by_the_same_rules(ending, tmp_path):
    import gzip

    data = pack(
        {
            "photos/a/001": encode("JPEG", 1),
            "photos/a/b.jpg_large": encode("PNG", 2),
            "photos/a/notes.xml": b"<x/>",
            "photos/a/README": b"x" * 100,
            "photos/a/@eaDir/001/thumb.jpg": encode("JPEG"),
            "photos/a/._001.jpg": b"\0\5\x16\7",
            "photos/a/.old.png": encode("PNG"),
            "photos/a/gone.txt.bak.csv": "nowhere",
            "photos/b/1.png": encode("PNG", 3),
        }
    )
    place = tmp_path / f"x{ending}"
    place.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    expected = {
        "hidden": (1, [".old.png"]),
        "not-an-image": (3, ["notes.xml", "README", "gone.txt.bak.csv"]),
    }
    found = open_dataset(place)
    assert found.count("all") == {"a": 2, "b": 1}
    assert omitted(found.skipped) == expected
    assert all(image.decode().shape == (40, 48, 3) for image in found.split("all"))
    reading = Reading()
    assert [p.decode().shape for p in iterate_images([place], reading=reading)] == [(40, 48, 3)] * 3
    assert omitted(reading.list_omissions()) == expected


def test_a_training_says_what_was_skipped(tmp_path):
    for part in ("train", "val"):
        fill_folder(tmp_path / part, ("across", "down"), 2, start=len(part))
    for number in range(4):
        (tmp_path / "train" / "down" / f"{number}.txt").write_text("x")
    said: list[str] = []
    check_training_data(open_dataset(tmp_path), despite_findings=False, log=said.append)
    (line,) = [line for line in said if line.startswith("skipped")]
    assert "4 files are not images" in line
    assert "2.txt, …" in line
    assert "3.txt" not in line


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vggkit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_commands_say_it(tmp_path, tiny):
    from vggkit.classifier import Classifier
    from vggkit.images.preprocessing import Preprocessing

    fill_folder(tmp_path / "data", ("across", "down", "red"), 2)
    (tmp_path / "data" / "red" / "photo").write_bytes(encode("JPEG", 9))
    (tmp_path / "data" / "red" / "x.txt").write_text("x")
    model = tmp_path / "m.safetensors"
    fed = Preprocessing(resize_pixels=32, crop_pixels=32)
    Classifier.create(tiny, labels=["across", "down", "red"], preprocessing=fed, seed=0).save(model)
    found = run("predict", model, tmp_path / "data", "--json", "--device", "cpu")
    assert len(found.stdout.splitlines()) == 7
    assert f"skipped: 1 file is not an image: {tmp_path / 'data' / 'red' / 'x.txt'}" in found.stderr
    out = tmp_path / "o.csv"
    found = run("predict", model, tmp_path / "data", "--out", out, "--json", "--device", "cpu")
    assert [each["reason"] for each in json.loads(found.stdout)["skipped"]] == ["not-an-image"]
    found = run("check", tmp_path / "data", "--quiet")
    assert "1 file is not an image: red/x.txt" in found.stdout
