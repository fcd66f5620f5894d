"""No image of a tar archive is lost silently: truncated, damaged, joined, linked and sparse ones are refused."""

import bz2
import gc
import gzip
import io
import lzma
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vggkit.errors import BadData
from vggkit.images.dataset import ImageSample
from vggkit.images.omissions import Reading
from vggkit.images.sources.locations import Place
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


@WAYS
@pytest.mark.parametrize("squeeze", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_an_archive_that_is_cut_between_two_files_is_refused(read, squeeze, tmp_path):
    whole = bare(pack("a.png", "b.png", LONG, "d.png"))
    assert len(whole) == 10 * BLOCK  # a long name takes two blocks more
    ending = {bytes: "", gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}[squeeze]
    for blocks in range(1, 11):
        with pytest.raises(BadData, match=r"t\.tar.*cannot be read as a tar archive \("):
            found(read, tmp_path / f"t.tar{ending}", squeeze(whole[: blocks * BLOCK]))
    with pytest.raises(BadData, match=r"ends at byte 1,024 without the zeros.*truncated copy.*1,024 zero bytes"):
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
    with pytest.raises(BadData, match="cannot be read as a tar archive"):
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
@given(place=st.integers(0, 15 * BLOCK - 1), value=st.integers(0, 255), layout=st.sampled_from([1, 2]))
def test_a_damaged_byte_loses_no_other_image(read, place, value, layout, tmp_path_factory):
    data = bytearray(pack("a.png", LONG, "c.png", "d.cls", "e.png", layout=layout))
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
        with pytest.raises(
            BadData, match=r"(there is no valid header at byte (1,024|1,536|2,048|2,560)|bytes follow its end mark)"
        ):
            found(read, tmp_path / "t.tar", broken)


@WAYS
@pytest.mark.parametrize("size", [-512, -1024, -1, 1 << 50, (1 << 63) - 5000, 1 << 70])
def test_a_length_that_cannot_be_is_refused_at_once(read, size, tmp_path):
    first, second = entry("a.png"), entry("b.png")
    first.size, second.size = 0, size
    data = b"".join(member.tobuf(tarfile.GNU_FORMAT) for member in (first, second))
    with pytest.raises(BadData, match="cannot be read as a tar archive"):
        found(read, tmp_path / "t.tar", data + bytes(1024))
    with pytest.raises(BadData, match="cannot be read as a tar archive"):
        found(read, tmp_path / "t.tar.gz", gzip.compress(data + bytes(1024)))


@WAYS
def test_a_header_that_says_nonsense_is_refused(read, tmp_path):
    member = entry("a.png")
    member.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "a,b"}
    with pytest.raises(BadData, match="no valid header"):
        found(read, tmp_path / "t.tar", pack(member, layout=tarfile.PAX_FORMAT))


@WAYS
def test_bytes_after_the_end_mark_are_refused(read, tmp_path):
    first, second = pack("a.png", "b.png"), pack("c.png")
    for more in (second, bare(second), b"junk" * 200):
        with pytest.raises(BadData, match=r"t\.tar: .*bytes follow its end mark.*joined by cat"):
            found(read, tmp_path / "t.tar", first + more)
    joined = gzip.compress(first) + gzip.compress(second)
    with pytest.raises(BadData, match="bytes follow its end mark"):
        found(read, tmp_path / "t.tar.gz", joined)


@WAYS
def test_several_compressed_streams_are_one_archive(read, tmp_path):
    data = pack("a.png", "b.png")
    halves = gzip.compress(data[:700]) + gzip.compress(data[700:])  # as parallel compressors write
    assert list(found(read, tmp_path / "t.tar.gz", halves)) == ["a.png", "b.png"]


@WAYS
@pytest.mark.parametrize("link", [hard, soft])
@pytest.mark.parametrize("name", ["b.png", "b", "b.cls"])
def test_links_that_may_be_images_or_labels_are_refused(read, link, name, tmp_path):
    with pytest.raises(BadData, match=rf"t\.tar: .*\({name} is a link to a\.png.*--dereference"):
        found(read, tmp_path / "t.tar", pack("a.png", link(name, "a.png"), "c.png"))


@WAYS
def test_links_that_are_no_images_are_skipped(read, tmp_path):
    reading = Reading()
    (tmp_path / "t.tar").write_bytes(pack("a.png", hard("b.csv", "a.png")))
    assert len(list(read([Place(str(tmp_path / "t.tar"))], reading))) == 1
    assert [omission.reason for omission in reading.list_omissions()] == ["not-an-image"]


@WAYS
def test_sparse_files_are_refused(read, tmp_path):
    member = entry("a.bmp")
    member.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.numblocks": "0", "GNU.sparse.map": "0,0"}
    with pytest.raises(BadData, match=r"t\.tar: .*a\.bmp is a sparse file.*without --sparse"):
        found(read, tmp_path / "t.tar", pack(member, "b.png", layout=tarfile.PAX_FORMAT))


@WAYS
def test_archives_at_an_address(read):
    fsspec = pytest.importorskip("fsspec")
    plain = pack("a.png", "b.png")
    for name, data in (("t.tar", plain), ("t.tar.gz", gzip.compress(plain)), ("cut.tar", bare(plain))):
        with fsspec.open(f"memory://tars/{name}", "wb") as file:
            file.write(data)
    for name in ("t.tar", "t.tar.gz"):
        images = [image for _, image in read([Place(f"memory://tars/{name}")])]
        assert [image.read() for image in images] == [b"a.png", b"b.png"]
    with pytest.raises(BadData, match="truncated copy"):
        list(read([Place("memory://tars/cut.tar")]))


def test_the_copy_of_a_compressed_archive_goes_with_its_images(tmp_path):
    images = found(read_shards, tmp_path / "t.tar.gz", gzip.compress(pack("a.png", "b.png")))
    last = images.pop("b.png")
    copy = Path(str(last.storage.place))
    del images
    gc.collect()
    assert last.read() == b"b.png"
    del last
    gc.collect()
    assert not copy.exists()


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
