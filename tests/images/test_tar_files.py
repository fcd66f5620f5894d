"""No image of a tar archive is lost without a word: cut, damaged, joined, linked and sparse ones."""

import bz2
import gc
import gzip
import io
import lzma
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vggkit.errors import BadData, BadImage
from vggkit.images.dataset import ImageSample
from vggkit.images.sources.locations import Place
from vggkit.images.sources.tar_files import MOST_SPARSE_BYTES
from vggkit.images.sources.tar_shards import read_shards, stream_shards

WAYS = pytest.mark.parametrize("read", [read_shards, stream_shards])
BLOCK = 512
LONG = "ants/" + "a" * 120 + ".png"
"""A name that needs a header of its own."""


def entry(name: str, kind: bytes = tarfile.REGTYPE, *, to: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def hard(name: str, to: str) -> tarfile.TarInfo:
    return entry(name, tarfile.LNKTYPE, to=to)


def soft(name: str, to: str) -> tarfile.TarInfo:
    return entry(name, tarfile.SYMTYPE, to=to)


def pack(*members: str | tarfile.TarInfo | tuple[str, bytes], layout: int = tarfile.GNU_FORMAT) -> bytes:
    """An archive; a file that is only named holds its name."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=layout) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                name, data = (member, member.encode()) if isinstance(member, str) else member
                file = entry(name)
                file.size = len(data)
                archive.addfile(file, io.BytesIO(data))
    return stream.getvalue()


def bare(data: bytes) -> bytes:
    """An archive without the zeros at its end."""
    return data[: -(-len(data.rstrip(b"\0")) // BLOCK) * BLOCK]


def found(read, file: Path, data: bytes) -> dict[str, ImageSample]:
    file.write_bytes(data)
    images = [image for _, image in read([Place(str(file))])]
    names = [image.path.partition("#")[2] for image in images]
    assert len(set(names)) == len(names)
    return dict(zip(names, images, strict=True))


def said(image: ImageSample) -> bytes | str:
    try:
        return image.read()
    except BadImage as problem:
        return str(problem).partition(": ")[2]


@WAYS
@pytest.mark.parametrize("squeeze", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_an_archive_that_is_cut_between_two_files_is_refused(read, squeeze, tmp_path):
    whole = bare(pack("a.png", "b.png", LONG, "d.png"))
    assert len(whole) == 10 * BLOCK  # a long name takes two blocks more
    ending = {bytes: "", gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}[squeeze]
    for blocks in range(1, 11):
        with pytest.raises(BadData, match=r"t\.tar.*is not a whole tar archive \("):
            found(read, tmp_path / f"t.tar{ending}", squeeze(whole[: blocks * BLOCK]))
    with pytest.raises(BadData, match=r"ends at byte 1,024 without the zeros.*cut short.*1,024 zero bytes"):
        found(read, tmp_path / f"t.tar{ending}", squeeze(whole[: 2 * BLOCK]))
    marked = found(read, tmp_path / f"t.tar{ending}", squeeze(whole + bytes(1024)))
    assert {name: image.read() for name, image in marked.items()} == {
        name: name.encode() for name in ("a.png", "b.png", LONG, "d.png")
    }


@WAYS
@settings(max_examples=60)
@given(length=st.integers(0, 10 * BLOCK))
def test_an_archive_that_is_cut_anywhere_is_refused(read, length, tmp_path_factory):
    whole = bare(pack("a.png", "b.png", LONG, "d.png"))
    with pytest.raises(BadData, match="not a whole tar archive"):
        found(read, tmp_path_factory.getbasetemp() / "cut.tar", whole[:length])


@WAYS
@pytest.mark.parametrize("zeros", [BLOCK, BLOCK + 3, 2 * BLOCK, 2 * BLOCK + 7, 100 * BLOCK])
def test_any_mark_of_the_end_will_do(read, zeros, tmp_path):
    assert list(found(read, tmp_path / "t.tar", bare(pack("a.png", "b.png")) + bytes(zeros))) == ["a.png", "b.png"]
    assert found(read, tmp_path / "t.tar", bytes(zeros)) == {}


@WAYS
def test_an_empty_file_is_no_archive(read, tmp_path):
    for name, data in (("t.tar", b""), ("t.tar.gz", gzip.compress(b"")), ("s.tar", bytes(100))):
        with pytest.raises(BadData, match=r"\(it ends before its first header does\)"):
            found(read, tmp_path / name, data)


@WAYS
@settings(max_examples=150)
@given(place=st.integers(0, 14 * BLOCK - 1), value=st.integers(0, 255), layout=st.sampled_from([1, 2]))
def test_a_damaged_byte_loses_no_other_image(read, place, value, layout, tmp_path_factory):
    data = bytearray(pack("a.png", LONG, "c.png", "d.cls", hard("e.png", "a.png"), layout=layout))
    data[place] = value
    try:
        images = found(read, tmp_path_factory.getbasetemp() / "damaged.tar", bytes(data))
    except BadData:
        return
    # a name that is no part of a header is not checked, so it may have lost its ending
    assert len(images) >= 3


@WAYS
def test_a_damaged_header_is_not_the_end(read, tmp_path):
    whole = pack("a.png", "b.png", "c.png")
    for start, block in ((2, b"x" * BLOCK), (2, bytes(BLOCK)), (4, bytes(BLOCK)), (4, b"\0x" * 256)):
        broken = whole[: start * BLOCK] + block + whole[(start + 1) * BLOCK :]
        with pytest.raises(BadData, match=r"what stands at byte (1,024|1,536|2,048|2,560) is no header"):
            found(read, tmp_path / "t.tar", broken)


@WAYS
@pytest.mark.parametrize("size", [-512, -1024, -1, 1 << 50, (1 << 63) - 5000, 1 << 70])
def test_a_length_that_cannot_be_is_refused_at_once(read, size, tmp_path):
    first, second = entry("a.png"), entry("b.png")
    first.size, second.size = 0, size
    data = b"".join(member.tobuf(tarfile.GNU_FORMAT) for member in (first, second))
    with pytest.raises(BadData, match="not a whole tar archive"):
        found(read, tmp_path / "t.tar", data + bytes(1024))
    with pytest.raises(BadData, match="not a whole tar archive"):
        found(read, tmp_path / "t.tar.gz", gzip.compress(data + bytes(1024)))


@WAYS
def test_a_header_that_says_nonsense_is_refused(read, tmp_path):
    member = entry("a.png")
    member.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "a,b"}
    with pytest.raises(BadData, match="no header"):
        found(read, tmp_path / "t.tar", pack(member, layout=tarfile.PAX_FORMAT))


@WAYS
def test_archives_that_were_joined_are_read_to_the_end(read, tmp_path):
    first, second = pack("a.png", "b.png"), pack("c.png")
    assert list(found(read, tmp_path / "t.tar", first + second)) == ["a.png", "b.png", "c.png"]
    assert list(found(read, tmp_path / "t.tar", bare(first) + second)) == ["a.png", "b.png", "c.png"]
    parts = gzip.compress(first) + gzip.compress(second)
    assert list(found(read, tmp_path / "t.tar.gz", parts)) == ["a.png", "b.png", "c.png"]
    halves = gzip.compress(first[:700]) + gzip.compress(first[700:])  # as parallel packers write one archive
    assert list(found(read, tmp_path / "t.tar.gz", halves)) == ["a.png", "b.png"]
    for junk in (b"junk" * 200, bare(second)):
        with pytest.raises(BadData, match="not a whole tar"):
            found(read, tmp_path / "t.tar", first + junk)


@WAYS
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_links_have_the_bytes_of_what_they_point_at(read, ending, tmp_path):
    data = pack(
        "train/ants/a.png",
        hard("train/bees/b.png", "train/ants/a.png"),
        hard("./train/bees/c.png", "train/bees/b.png"),
        soft("val/ants/d.png", "../../train/ants/a.png"),
        soft("val/ants/e.png", "../../blobs/later"),
        soft("val/bees/f.png", "g.png"),
        hard("val/bees/g.png", "blobs/later"),
        hard("val/bees/h.png", "val/ants/d.png"),
        "blobs/later",
    )
    file = tmp_path / f"t.tar{ending}"
    images = found(read, file, gzip.compress(data) if ending else data)
    a, later = b"train/ants/a.png", b"blobs/later"
    assert {name: image.read() for name, image in images.items()} == {
        "train/ants/a.png": a,
        "train/bees/b.png": a,
        "train/bees/c.png": a,
        "val/ants/d.png": a,
        "val/ants/e.png": later,
        "val/bees/f.png": later,
        "val/bees/g.png": later,
        "val/bees/h.png": a,
    }
    labels = [image.label for image in images.values()]
    assert labels == ["ants", "bees", "bees", "ants", "ants", "bees", "bees", "bees"]
    assert [part for part, _ in read([Place(str(file))])] == ["train"] * 3 + ["val"] * 5
    assert {image.weigh() for image in images.values()} == {str(len(a)), str(len(later))}


@WAYS
def test_a_link_that_leads_nowhere_is_an_image_that_says_so(read, tmp_path):
    (tmp_path / "outside.png").write_bytes(b"secret")
    data = pack(
        "a.png",
        hard("b.png", "none.png"),
        soft("c.png", str(tmp_path / "outside.png")),
        soft("d.png", "outside.png"),
        soft("e.png", "f.png"),
        soft("f.png", "e.png"),
        hard("g.png", "g.png"),
        soft("h.png", "folder"),
        entry("folder", tarfile.DIRTYPE),
        "i.png",
    )
    images = found(read, tmp_path / "t.tar", data)
    assert list(images) == [f"{letter}.png" for letter in "abcdefghi"]
    for name in "bcdefgh":
        assert f"is a link to {'none.png' if name == 'b' else ''}" in said(images[f"{name}.png"])
        assert "its archive holds no such file" in said(images[f"{name}.png"])
        assert images[f"{name}.png"].weigh() == "missing"
        assert pickle.loads(pickle.dumps(images[f"{name}.png"])).short_side() is None
        with pytest.raises(BadImage, match=rf"t\.tar#{name}\.png: is a link"):
            images[f"{name}.png"].decode()
    assert said(images["i.png"]) == b"i.png"


@WAYS
def test_a_hard_link_means_the_last_file_of_the_name_before_it(read, tmp_path):
    data = pack(("x/a", b"old"), hard("b.png", "x/a"), ("x/a", b"new"), hard("c.png", "x/a"), soft("d.png", "x/a"))
    images = found(read, tmp_path / "t.tar", data)
    assert {name: image.read() for name, image in images.items()} == {
        "b.png": b"old",
        "c.png": b"new",
        "d.png": b"new",
    }


@WAYS
def test_what_stands_beside_an_image_may_be_a_link(read, tmp_path):
    data = pack(
        "0.png",
        ("0.cls", b"ants"),
        hard("1.png", "0.png"),
        hard("1.cls", "0.cls"),
        "2.png",
        soft("2.json", "1.cls"),
        "3.png",
        soft("3.cls", "none"),
        "4.png",
        hard("4.cls", "huge"),
        ("huge", b"x" * 1_000_001),
    )
    images = found(read, tmp_path / "t.tar", data)
    assert [image.label for image in images.values()] == ["ants", "ants", None, None, None]


def test_linked_images_alone_keep_the_copy_of_a_compressed_archive(tmp_path):
    images = found(read_shards, tmp_path / "t.tar.gz", gzip.compress(pack("a.png", hard("b.png", "a.png"))))
    linked = images.pop("b.png")
    copy = Path(str(linked.storage.place))
    del images
    gc.collect()
    assert linked.read() == b"a.png"
    del linked
    gc.collect()
    assert not copy.exists()


@WAYS
def test_links_in_archives_at_an_address(read):
    fsspec = pytest.importorskip("fsspec")
    plain = pack("a.png", hard("b.png", "a.png"))
    for name, data in (("links.tar", plain), ("links.tar.gz", gzip.compress(plain)), ("cut.tar", bare(plain))):
        with fsspec.open(f"memory://tars/{name}", "wb") as file:
            file.write(data)
    for name in ("links.tar", "links.tar.gz"):
        images = [image for _, image in read([Place(f"memory://tars/{name}")])]
        assert [image.read() for image in images] == [b"a.png", b"a.png"]
    with pytest.raises(BadData, match="cut short"):
        list(read([Place("memory://tars/cut.tar")]))


@WAYS
def test_an_archive_without_links_is_gone_through_once(read, tmp_path, monkeypatch):
    opened = []
    before = Place.open
    monkeypatch.setattr(Place, "open", lambda self: opened.append(self) or before(self))
    found(read, tmp_path / "t.tar", pack(*(f"{number}.png" for number in range(9))))
    once = len(opened)
    found(read, tmp_path / "t.tar", pack("a.png", *(hard(f"{number}.png", "a.png") for number in range(9))))
    assert len(opened) - once <= once + 3  # however many links there are


@WAYS
def test_kinds_that_nobody_knows_are_files(read, tmp_path):
    data = bytearray(pack("a.png", "b.png", "c.png"))
    for block, kind in ((0, tarfile.CONTTYPE), (2, b"Z")):
        header = tarfile.TarInfo.frombuf(bytes(data[block * BLOCK : (block + 1) * BLOCK]), "utf-8", "strict")
        header.type = kind
        data[block * BLOCK : (block + 1) * BLOCK] = header.tobuf(tarfile.GNU_FORMAT)
    images = found(read, tmp_path / "t.tar", bytes(data))
    assert {name: image.read() for name, image in images.items()} == {
        name: name.encode() for name in ("a.png", "b.png", "c.png")
    }


@WAYS
def test_a_sparse_file_that_claims_any_size_is_an_image_that_says_so(read, tmp_path):
    member = entry("a.bmp")
    member.pax_headers = {
        "GNU.sparse.size": str(MOST_SPARSE_BYTES + 1),
        "GNU.sparse.numblocks": "0",
        "GNU.sparse.map": "0,0",
    }
    images = found(read, tmp_path / "t.tar", pack(member, "b.png", layout=tarfile.PAX_FORMAT))
    assert said(images["a.bmp"]) == "is a sparse file of 1,073,741,825 bytes; no more than 1,073,741,824 are read"
    assert said(images["b.png"]) == b"b.png"


@WAYS
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("tar"), reason="needs GNU tar")
@pytest.mark.parametrize("options", ["gnu", "posix 0.0", "posix 0.1", "posix 1.0"])
def test_what_gnu_tar_packs(read, options, tmp_path):
    (tmp_path / "in").mkdir()
    holes = tmp_path / "in" / "a.bmp"
    with open(holes, "wb") as file:
        for start in range(0, 1 << 20, 1 << 17):  # more pieces than fit into one header
            file.seek(start)
            file.write(b"%06d" % start)
        file.truncate(3 << 20)
    (tmp_path / "in" / "b.bmp").hardlink_to(holes)
    (tmp_path / "in" / "c.bmp").symlink_to("b.bmp")
    (tmp_path / "in" / "d.png").write_bytes(b"d")
    layout, *version = options.split()
    sparse = [f"--sparse-version={version[0]}"] if version else []
    command = ["tar", "-S", *sparse, f"--format={layout}", "--sort=name", "-C", str(tmp_path / "in"), "-cf"]
    made = tmp_path / "made.tar"
    if subprocess.run([*command, str(made), "."], capture_output=True, check=False).returncode:
        pytest.skip("needs GNU tar")
    if made.stat().st_size > 1 << 20:
        pytest.skip("the file system here keeps no holes")
    images = found(read, tmp_path / "t.tar", made.read_bytes())
    whole = holes.read_bytes()
    assert {name: image.read() == whole for name, image in images.items()} == {
        "a.bmp": True,
        "b.bmp": True,
        "c.bmp": True,
        "d.png": False,
    }
    assert images["a.bmp"].weigh() == images["c.bmp"].weigh() == str(3 << 20)
