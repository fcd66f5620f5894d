"""Every kind of place gives the same images: one fixture, stored in each way."""

import bz2
import csv
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import draw_class, fill_folder
from vggkit.errors import BadData, BadDownload, BadImage, BadOutput, UnknownName
from vggkit.images.dataset import ImageDataset, ImageSample, typical_side
from vggkit.images.sources.locations import expand, is_address
from vggkit.images.sources.open_dataset import is_streamed, iterate_images, list_images, open_dataset
from vggkit.images.sources.spooling import spool
from vggkit.images.sources.tables import Columns
from vggkit.images.splits import divide

PARTS = {"train": 4, "val": 2}
LABELS = ("ants", "bees")


def encode(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def samples() -> list[tuple[str, str, str, bytes]]:
    """(Split, label, name, file) of a small collection."""
    return [
        (part, label, f"{part}_{label}_{index:02d}", encode(draw_class(label, 100 * len(part) + index)))
        for part, count in PARTS.items()
        for label in LABELS
        for index in range(count)
    ]


def write_folder(folder: Path) -> Path:
    for part, label, name, data in samples():
        path = folder / part / label / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_csv(folder: Path, *, windows: bool = False, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    write_folder(folder / "files")
    table = folder / "table.csv"
    with open(table, "w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["path", "label", "split"])
        for part, label, name, _ in samples():
            path = f"files/{part}/{label}/{name}.png"
            writer.writerow([path.replace("/", "\\") if windows else path, label, part])
    return table


def write_tar(path: Path, wanted: str | None = None, *, mode: str = "w", label: str = "cls") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for part, of, name, data in samples():
            if wanted in (None, part):
                said = {"cls": str(LABELS.index(of)), "json": json.dumps({"label": of, "split": part})}
                for ending, content in (("png", data), (label, said.get(label, of).encode())):
                    member = tarfile.TarInfo(f"{name}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return path


def write_parquet(path: Path, wanted: str | None = None, *, named: bool = True, group_rows: int = 3) -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    chosen = [sample for sample in samples() if wanted in (None, sample[0])]
    table = pa.table(
        {
            "image": [{"bytes": data, "path": f"{name}.png"} for _, _, name, data in chosen],
            "label": [LABELS.index(label) for _, label, _, _ in chosen],
            **({} if wanted else {"split": [part for part, *_ in chosen]}),
        }
    )
    if named:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(LABELS)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=group_rows)
    return path


def write_webdataset(folder: Path) -> Path:
    wds = pytest.importorskip("webdataset")
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        with wds.ShardWriter(str(folder / f"photos-{part}-%04d.tar"), maxcount=3, verbose=0) as writer:
            for of, label, name, data in samples():
                if of == part:
                    writer.write({"__key__": name, "png": data, "cls": LABELS.index(label)})
    (folder / "classes.txt").write_text("\n".join(LABELS))
    return folder


def write_shards(folder: Path, **options) -> Path:
    for part in PARTS:
        write_tar(folder / f"{part}-0000.tar{options.get('ending', '')}", part, **options)
    return folder


def write_gzip(folder: Path) -> Path:
    for part in PARTS:
        plain = write_tar(folder / "plain.tar", part, label="json")
        (folder / f"{part}.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
        (folder / f"{part}.tar.bz2").unlink(missing_ok=True)
        plain.unlink()
    return folder


def write_parquet_parts(folder: Path) -> Path:
    for part in PARTS:
        write_parquet(folder / f"{part}-00000-of-00001.parquet", part)
    return folder


PLACES = {
    "folder": write_folder,
    "csv": write_csv,
    "csv with Windows' paths": lambda folder: write_csv(folder, windows=True, encoding="cp1252"),
    "csv as a spreadsheet writes it": lambda folder: write_csv(folder, delimiter=";", encoding="utf-8-sig"),
    "csv in UTF-16, tabs": lambda folder: write_csv(folder, delimiter="\t", encoding="utf-16"),
    "shards with json": lambda folder: write_tar(folder / "all.tar", label="json").parent,
    "one shard": lambda folder: write_tar(folder / "all.tar", label="json"),
    "gzipped shards": write_gzip,
    "webdataset's own": write_webdataset,
    "parquet": lambda folder: write_parquet(folder / "all.parquet"),
    "parquet by split": write_parquet_parts,
}


@pytest.mark.parametrize("kind", PLACES)
def test_every_kind_of_place_holds_the_same_images(kind, tmp_path):
    found = open_dataset(PLACES[kind](tmp_path / "place"))
    assert found.labels == LABELS
    assert {name: len(part) for name, part in found.splits.items()} == {"train": 8, "val": 4}
    expected = {encode(draw_class(label, 100 * len(part) + 1)): (part, label) for part in PARTS for label in LABELS}
    seen = {p.read(): (name, p.label) for name, part in found.splits.items() for p in part}
    assert {data: seen[data] for data in expected} == expected
    for image in found.split("val"):
        assert image.decode().shape == (40, 48, 3)
        assert image.short_side() == 40
    assert typical_side(found.split("train")) == 40


@pytest.mark.parametrize("kind", PLACES)
def test_images_of_every_place_travel_to_other_processes_and_can_be_had_in_any_order(kind, tmp_path):
    images = open_dataset(PLACES[kind](tmp_path / "place")).split("train")
    whole = [image.read() for image in images]
    there = pickle.loads(pickle.dumps(images))
    order = np.random.default_rng(0).permutation(len(images))
    assert [there[index].read() for index in order] == [whole[index] for index in order]
    assert len({image.path for image in images}) == len(images)
    assert len({image.weigh() for image in images}) > 1


@pytest.mark.parametrize("kind", PLACES)
def test_every_place_can_be_asked_about(kind, tmp_path):
    place = PLACES[kind](tmp_path / "place")
    assert len(list(iterate_images([place]))) == 12
    assert sorted(p.read() for p in iterate_images([place])) == sorted(data for *_, data in samples())


@pytest.mark.filterwarnings("ignore")  # it leaves its files open
def test_webdataset_reads_the_same_of_the_same_shards(tmp_path):
    wds = pytest.importorskip("webdataset")
    folder = write_webdataset(tmp_path / "shards")
    shards = sorted(map(str, folder.glob("*.tar")))
    theirs = {s["png"]: int(s["cls"]) for s in wds.WebDataset(shards, shardshuffle=False)}
    ours = {p.read(): LABELS.index(p.label) for p in iterate_images([folder])}
    assert ours == theirs


def test_patterns(tmp_path):
    write_webdataset(tmp_path)
    assert len(open_dataset(f"{tmp_path}/photos-train-{{0000..0002}}.tar").split("train")) == 8
    assert len(open_dataset(f"{tmp_path}/photos-*.tar").split("val")) == 4
    assert [str(p) for p in expand(f"{tmp_path}/x{{a,b}}.tar")] == [f"{tmp_path}/xa.tar", f"{tmp_path}/xb.tar"]
    with pytest.raises(BadData, match="no file is named"):
        open_dataset(f"{tmp_path}/none-*.tar")
    with pytest.raises(BadData, match="braces"):
        open_dataset(f"{tmp_path}/none-{{00.tar")
    with pytest.raises(BadData, match="no such file"):
        open_dataset(f"{tmp_path}/none-{{00..01}}.tar")
    assert not is_address("C:\\photos")
    assert not is_address("photos/a:b")
    assert is_address("simplecache::https://host/x.tar")


def test_shards_of_plain_folders(tmp_path):
    folder = write_folder(tmp_path / "photos")
    with tarfile.open(tmp_path / "backup.tar", "w") as archive:
        archive.add(folder, arcname="./photos")
    found = open_dataset(tmp_path / "backup.tar")
    assert {name: len(part) for name, part in found.splits.items()} == {"train": 8, "val": 4}
    assert found.labels == LABELS
    assert found.split("val")[0].path == f"{tmp_path}/backup.tar#photos/val/ants/val_ants_00.png"


def test_a_folder_of_images_with_an_archive_beside_them_is_a_folder_of_images(tmp_path):
    folder = write_folder(tmp_path / "photos")
    write_tar(folder / "train" / "old.tar")
    assert len(open_dataset(folder).split("train")) == 8


def test_addresses(tmp_path):
    """Fsspec's own file system in memory stands for a bucket."""
    fsspec = pytest.importorskip("fsspec")
    for part in PARTS:
        with fsspec.open(f"memory://bucket/{part}-0.tar", "wb") as file:
            file.write(write_tar(tmp_path / "x.tar", part, label="json").read_bytes())
        with fsspec.open(f"memory://bucket/{part}.parquet", "wb") as file:
            file.write(write_parquet(tmp_path / "x.parquet", part).read_bytes())
    for place in ("memory://bucket/{train,val}-0.tar", "memory://bucket/*.tar", "memory://bucket/*.parquet"):
        found = open_dataset(place)
        assert {name: len(part) for name, part in found.splits.items()} == {"train": 8, "val": 4}
        assert {p.read() for part in found.splits.values() for p in part} == {data for *_, data in samples()}
        assert not any(p.storage.quick for p in found.split("train")) or "parquet" in place
        assert {p.read() for p in iterate_images([place])} == {data for *_, data in samples()}
    assert is_streamed("memory://bucket/*.tar")
    for place in ("memory://bucket/none.tar", "memory://nowhere/*.tar", "memory://bucket/none.parquet"):
        with pytest.raises((BadData, BadDownload)):
            open_dataset(place)
    with pytest.raises(BadDownload, match="nosuch"):
        open_dataset("nosuch://bucket/x.tar")


@pytest.fixture
def plain_host(tmp_path):
    """A host that sends a whole file whatever part of it is asked for, as Python's own does."""
    folder = tmp_path / "host"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.filterwarnings("ignore")  # of fsspec's HTTP library
def test_hosts_that_give_no_ranges_are_copied_once(plain_host):
    pytest.importorskip("aiohttp")
    folder, address = plain_host
    write_tar(folder / "all.tar", label="json")
    write_parquet(folder / "all.parquet")
    (folder / "one.png").write_bytes(samples()[0][3])
    for name in ("all.tar", "all.parquet"):
        found = open_dataset(f"{address}/{name}")
        assert {p.read() for part in found.splits.values() for p in part} == {data for *_, data in samples()}
        assert {p.read() for p in iterate_images([f"{address}/{name}"])} == {data for *_, data in samples()}
    (one,) = iterate_images([f"{address}/one.png"])
    assert one.decode().shape == (40, 48, 3)
    (none,) = iterate_images([f"{address}/none.png"])
    with pytest.raises(BadImage, match="is not there"):
        none.decode()
    with pytest.raises(BadDownload, match="is not there"):
        open_dataset(f"{address}/none.tar")


def test_parts_whose_labels_are_kept_secret_are_left_out(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write_parquet_parts(tmp_path)
    data = [data for *_, data in samples()[:2]]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(LABELS)}}
    hidden = pa.table({"image": [{"bytes": d, "path": "x.png"} for d in data], "label": [-1, -1]})
    hidden = hidden.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(hidden, tmp_path / "test-00000-of-00001.parquet")
    assert set(open_dataset(tmp_path).splits) == {"train", "val"}
    assert len(list(iterate_images([tmp_path]))) == 14
    with pytest.raises(BadData, match="no label"):
        open_dataset(tmp_path / "test-00000-of-00001.parquet")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_pipes_are_not_waited_for(tmp_path):
    for name in ("x.tar", "x.parquet", "x.tar.gz"):
        os.mkfifo(tmp_path / name)
        for read in (open_dataset, list_images):
            with pytest.raises(BadData, match="not a file"):
                read(tmp_path / name if read is open_dataset else [tmp_path / name])


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are text there")
def test_names_that_are_not_text(tmp_path):
    for label in (b"ants", b"b\xe9es"):
        folder = os.fsencode(tmp_path) + b"/" + label
        Path(os.fsdecode(folder)).mkdir()
        for index in range(4):
            with open(folder + b"/caf\xe9%d.png" % index, "wb") as file:
                file.write(samples()[index][3])
    found = open_dataset(tmp_path)
    assert len(found.fingerprint()) == 16
    assert len(divide(found, validation_share=0.25, seed=0).split("val")) == 2
    assert found.split("all")[0].decode().shape == (40, 48, 3)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_what_cannot_be_read_in_a_folder_is_not_skipped(tmp_path):
    fill_folder(tmp_path, ("a", "b"), 2)
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    gone = next(p for p in open_dataset(tmp_path).split("all") if "gone" in p.path)
    with pytest.raises(BadImage, match="no such file"):
        gone.decode()
    (tmp_path / "b" / "closed").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "b" / "closed" / "x.png")
    (tmp_path / "b" / "closed").chmod(0)
    try:
        if os.access(tmp_path / "b" / "closed", os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(BadData, match="closed: cannot be read"):
            open_dataset(tmp_path)
    finally:
        (tmp_path / "b" / "closed").chmod(0o755)


def test_columns_are_of_tables(tmp_path):
    for place in (write_folder(tmp_path / "photos"), write_tar(tmp_path / "x.tar"), "digits"):
        with pytest.raises(BadData, match="no columns"):
            open_dataset(place, columns=Columns(label_column="species"))
    with pytest.raises(BadData, match="must be named"):
        open_dataset("")


def test_columns_by_other_names_and_groups(tmp_path):
    write_folder(tmp_path / "files")
    rows = [f"files/{p}/{lab}/{n}.png,{lab},{p},p{i % 3}" for i, (p, lab, n, _) in enumerate(samples())]
    (tmp_path / "t.csv").write_text("\n".join(["Foto,Art,Teil,Patient", *rows]))
    with pytest.raises(BadData, match=r"path.*--path-column"):
        open_dataset(tmp_path / "t.csv")
    columns = Columns(path_column="Foto", label_column="Art", split_column="Teil", group_column="Patient")
    found = open_dataset(tmp_path / "t.csv", columns=columns)
    assert found.split("train")[1].group == "p1"
    with pytest.raises(BadData, match="Did you mean 'Patient'"):
        open_dataset(tmp_path / "t.csv", columns=Columns(path_column="Foto", group_column="Patent"))


def test_tables_in_parquet_and_numbers_without_names(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write_folder(tmp_path / "files")
    chosen = samples()
    parquet.write_table(
        pa.table(
            {
                "file_name": [f"files/{p}/{label}/{n}.png" for p, label, n, _ in chosen],
                "class": [12 if label == "ants" else 3 for _, label, _, _ in chosen],
            }
        ),
        tmp_path / "t.parquet",
    )
    found = open_dataset(tmp_path / "t.parquet")
    assert found.labels == ("3", "12")
    assert found.split("all")[0].decode().shape == (40, 48, 3)
    parquet.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(BadData, match="--path-column"):
        open_dataset(tmp_path / "x.parquet")
    two = pa.table({"left": [b"x"], "right": [b"y"], "label": ["a"]})
    parquet.write_table(two, tmp_path / "two.parquet")
    with pytest.raises(BadData, match="left, right"):
        open_dataset(tmp_path / "two.parquet")
    right = open_dataset(tmp_path / "two.parquet", columns=Columns(path_column="right"))
    assert right.split("all")[0].read() == b"y"


def test_parquet_keeps_the_last_row_groups_only(tmp_path, monkeypatch):
    from vggkit.images.sources import parquet as room

    monkeypatch.setattr(room, "MOST_HELD_BYTES", 1)
    images = open_dataset(write_parquet(tmp_path / "p.parquet", group_rows=2)).split("train")
    storage = images[0].storage
    assert not storage.quick
    for image in (*images, *reversed(images)):
        assert image.read().startswith(b"\x89PNG")
        assert len(storage._cached) <= 2


def test_lists_of_files_and_standard_input(tmp_path, monkeypatch):
    write_folder(tmp_path / "files")
    names = [f"files/{part}/{label}/{name}.png" for part, label, name, _ in samples()]
    (tmp_path / "list.txt").write_text("\n".join([*names, "", "files\\none.png"]))
    found = list_images([tmp_path / "list.txt"])
    assert len(found) == 13
    assert found[0].decode().shape == (40, 48, 3)
    with pytest.raises(BadImage, match=r"none\.png"):
        found[-1].decode()

    def pipe(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    monkeypatch.chdir(tmp_path)
    pipe("\n".join(names).encode())
    assert [p.path for p in list_images(["-"])] == [str(Path(name)) for name in names]
    pipe(samples()[0][3])
    (one,) = list_images(["-"])
    assert (one.path, one.decode().shape, one.short_side()) == ("standard input", (40, 48, 3), 40)
    pipe(("path;label\n" + "\n".join(f"{name};x{i % 2}" for i, name in enumerate(names))).encode())
    assert open_dataset("-").labels == ("x0", "x1")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(BadData, match="closed"):
        list_images(["-"])
    pipe(b" \n")
    with pytest.raises(BadData, match="empty"):
        list_images(["-"])
    pipe(names[0].encode())
    with pytest.raises(BadData, match="no label"):
        open_dataset("-")


def test_broken_archives_and_tables_are_refused_with_their_name(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", label="json").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.tar").write_text("hello " * 200)
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(whole)[:-400])
    (tmp_path / "plain.tar.bz2").write_bytes(whole)
    (tmp_path / "whole.tar.bz2").write_bytes(bz2.compress(whole))
    (tmp_path / "text.parquet").write_text("hello")
    for name in ("cut.tar", "text.tar", "empty.tar", "cut.tar.gz", "text.parquet"):
        with pytest.raises(BadData, match=name):
            open_dataset(tmp_path / name)
        with pytest.raises(BadData, match=name):
            list(iterate_images([tmp_path / name]))
    for name in ("whole.tar.bz2", "plain.tar.bz2"):
        assert len(open_dataset(tmp_path / name).split("train")) == 8
        assert len(list(iterate_images([tmp_path / name]))) == 12
    image = open_dataset(tmp_path / "whole.tar").split("train")[0]
    (tmp_path / "whole.tar").write_bytes(whole[:600])
    with pytest.raises(BadImage, match=r"whole\.tar#train_ants_00\.png: its archive ends"):
        image.decode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column of images"),
        ("name,label\na.png,x", "'name', 'label'"),
        ("path,label\nb.png,x", "none of its images exists.*--root"),
        ("path,label\nC:\\Users\\me\\b.png,x", r"first is C:\\Users\\me\\b\.png;"),
        ("path,label\n,x", "line 2: has no path"),
        ("path,label\nfiles/a.png,", "line 2: has no label"),
        ("path\nfiles/a.png", "no label.*--label-column"),
        ('path,label\n"files/a.png,x', "not a table that can be read"),
        ("path,label,split\nfiles/a.png,x,train\nfiles/a.png,x,", "some to no split"),
        ("path,label\n", "holds no images"),
    ],
)
def test_tables_that_cannot_be_used_are_explained(tmp_path, text, said):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.png").write_bytes(samples()[0][3])
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(BadData, match=said):
        open_dataset(tmp_path / "t.csv")


def test_real_parquet_of_cifar10(shared):
    pytest.importorskip("pyarrow")
    found = open_dataset(shared / "cifar10")
    assert {name: len(part) for name, part in found.splits.items()} == {"train": 50_000}
    assert found.labels[:3] == ("airplane", "automobile", "bird")
    assert set(found.count("train").values()) == {5000}
    assert found.split("train")[34_567].decode().shape == (32, 32, 3)


def test_parts_and_classes_of_a_folder(photos):
    found = open_dataset(photos)
    assert found.labels == ("across", "down", "red")
    assert {name: len(part) for name, part in found.splits.items()} == {"train": 48, "val": 15}
    assert found.count("val") == {"across": 5, "down": 5, "red": 5}
    assert typical_side(found.split("train")) == 40


@pytest.mark.parametrize("name", ["valid", "validation", "Val", "dev"])
def test_other_names_of_the_validation_part(tmp_path, name):
    fill_folder(tmp_path / "train", ("a", "b"), 2)
    fill_folder(tmp_path / name, ("a", "b"), 1)
    assert set(open_dataset(tmp_path).splits) == {"train", "val"}


def test_digits_are_real_fixed_and_disjoint():
    digits = open_dataset("digits")
    assert {name: len(part) for name, part in digits.splits.items()} == {"train": 1259, "val": 179, "test": 359}
    names = [image.path for part in digits.splits.values() for image in part]
    assert len(set(names)) == 1797
    image = digits.split("test")[0]
    assert image.decode().shape == (8, 8, 3)
    assert min(digits.count("test").values()) >= 35


def test_files_that_are_no_images_are_skipped(tmp_path):
    fill_folder(tmp_path, ("a", "b"), 2)
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / ".hidden.png").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "b" / "deeper").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "b" / "deeper" / "UPPER.JPG")
    assert len(open_dataset(tmp_path).split("all")) == 5


def test_what_is_wrong_with_a_place_is_said(tmp_path):
    with pytest.raises(UnknownName, match="digits"):
        open_dataset("digitz")
    with pytest.raises(UnknownName, match="Did you mean 'imagenette'"):
        open_dataset("imagenet")
    with pytest.raises(BadData, match="no such folder"):
        open_dataset(tmp_path / "none")
    with pytest.raises(BadData, match="no such file"):
        open_dataset(tmp_path / "none.csv")
    file = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(file)
    with pytest.raises(BadData, match="subfolder for each class"):
        open_dataset(file)
    with pytest.raises(BadData, match=r"no subfolders.*1 images lie loose"):
        open_dataset(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadData, match=r"empty.*holds no images"):
        open_dataset(tmp_path)
    fill_folder(tmp_path / "mixed" / "train", ("a",), 1)
    fill_folder(tmp_path / "mixed", ("cats",), 1)
    with pytest.raises(BadData, match="beside cats"):
        open_dataset(tmp_path / "mixed")
    for name in ("val", "valid"):
        fill_folder(tmp_path / "twice" / name, ("a",), 1)
    with pytest.raises(BadData, match="twice, as val and as valid"):
        open_dataset(tmp_path / "twice")


def test_a_class_that_is_empty_in_one_part_is_still_a_class(tmp_path):
    fill_folder(tmp_path / "train", ("a", "b"), 2)
    fill_folder(tmp_path / "val", ("a",), 1)
    (tmp_path / "val" / "b").mkdir()
    assert open_dataset(tmp_path).count("val") == {"a": 1, "b": 0}


def test_listing_images_to_ask_about(tmp_path, photos):
    assert len(list_images([photos])) == 63
    assert [p.path for p in list_images(["none.png"])] == ["none.png"]
    assert len(list_images([f"{photos}/train/red/00*.png"])) == 10
    with pytest.raises(BadData, match="no images"):
        list_images([tmp_path])


def test_collections_made_by_hand():
    images = [ImageSample(f"m/{i}", "ab"[i % 2], draw_class("red", i)) for i in range(6)]
    found = ImageDataset.of("mine", (("train" if i < 4 else "val", p) for i, p in enumerate(images)))
    assert found.labels == ("a", "b")
    assert found.fingerprint() == ImageDataset.of("theirs", found_again(found)).fingerprint()
    with pytest.raises(BadData, match="no label"):
        ImageDataset.of("mine", [(None, ImageSample("x.png"))])


def found_again(images: ImageDataset):
    return [(name, image) for name, part in images.splits.items() for image in part]


def test_slow_places_are_spooled_once_and_quick_ones_left(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://slow/all.tar", "wb") as file:
        file.write(write_tar(tmp_path / "all.tar", label="json").read_bytes())
    slow = open_dataset("memory://slow/all.tar")
    seen = []
    quick = spool(slow, tmp_path / "spooled", on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (12, 12)
    for name, part in slow.splits.items():
        for before, after in zip(part, quick.split(name), strict=True):
            assert (before.path, before.label, before.read()) == (after.path, after.label, after.read())
            assert after.storage.quick
    assert quick.fingerprint() == slow.fingerprint()
    assert spool(quick, tmp_path / "again") is quick
    assert not (tmp_path / "again").exists()
    with pytest.raises(BadOutput, match="cannot be copied"):
        spool(slow, tmp_path / "no" / "folder")


def test_sources_import_nothing_heavy(tmp_path):
    code = (
        "import sys; from vggkit.images.sources.open_dataset import open_dataset;"
        "print(open_dataset(sys.argv[1]).labels);"
        "print([m for m in ('torch', 'pyarrow', 'fsspec', 'datasets', 'sklearn') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(write_csv(tmp_path))]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout == "('ants', 'bees')\n[]\n"
