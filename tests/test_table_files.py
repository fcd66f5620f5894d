import json
import sys

import numpy as np
import pytest

from vggkit.errors import BadData, MissingExtra
from vggkit.table_files import (
    GROUP_ROWS,
    name_rows,
    read_about,
    read_table,
    read_vectors,
    stream_columns,
    stream_matrix,
)

KINDS = {"path": "path", "chance": "number", "problem": "text"}
ROWS = [
    ("a.jpg", 0.1, None),
    ('b, "c"\nd.jpg', 1 / 3, None),
    ("ü.jpg", None, "is broken"),
    ("e.jpg", 5e-324, None),
]


def write(path, kinds, rows, *, pieces, about=None):
    with stream_columns(path, kinds, about={"n": len(rows)} if about is None else about) as append:
        for first in range(0, len(rows), pieces):
            append(dict(zip(kinds, zip(*rows[first : first + pieces], strict=True), strict=True)))


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl", "json"])
def test_pandas_reads_what_was_streamed(ending, tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / f"t.{ending}"
    write(path, KINDS, ROWS, pieces=3)
    read = {
        "csv": lambda: pandas.read_csv(path),
        "parquet": lambda: pandas.read_parquet(path),
        "jsonl": lambda: pandas.DataFrame([json.loads(line) for line in path.read_text("utf-8").splitlines()]),
        "json": lambda: pandas.DataFrame(json.loads(path.read_text("utf-8"))),
    }[ending]()
    assert list(read.columns) == list(KINDS)
    chances = [None if pandas.isna(each) else each for each in read.chance]
    # Of CSV the last bit is read by whoever reads it.
    assert chances == pytest.approx([row[1] for row in ROWS]) if ending == "csv" else [row[1] for row in ROWS]
    assert list(read.path) == [row[0] for row in ROWS]
    assert [None if pandas.isna(each) else each for each in read.problem] == [row[2] for row in ROWS]
    assert read_about(path) == {"n": 4}


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl", "json"])
def test_the_same_rows_give_the_same_bytes_however_they_came(ending, tmp_path):
    rows = [(f"{number}.jpg", number / 7, None) for number in range(GROUP_ROWS + 500)]
    found = set()
    for pieces in (37, 5000, len(rows)):
        write(tmp_path / f"t.{ending}", KINDS, rows, pieces=pieces)
        found.add((tmp_path / f"t.{ending}").read_bytes())
    assert len(found) == 1


FORMULAS = ("=1+1", "+x", "-x", "@x", "\t=1", "\r=1", "＝1")


def test_a_table_holds_no_formula_and_is_read_as_it_was(tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = [(f"{name}.jpg", -0.5, name) for name in FORMULAS] + [("-1", -1e-9, "+1"), ("'-x", 0.0, "'=1+1")]
    for ending in ("csv", "parquet"):
        write(tmp_path / f"t.{ending}", KINDS, rows, pieces=3)
        table = read_table(tmp_path / f"t.{ending}")
        assert [(path, float(chance), text) for path, chance, text in zip(*table.values(), strict=True)] == rows
    found = pandas.read_csv(tmp_path / "t.csv", dtype={"path": str, "problem": str})
    for path, text in zip(found["path"][: len(FORMULAS)], found["problem"], strict=False):
        assert path.startswith("./")  # the same file
        assert text.startswith("'")
    assert list(found["chance"]) == [row[1] for row in rows]


@pytest.mark.parametrize("name", ["ü.jpg", "猫.jpg", "a.jpg"])
def test_excel_knows_letters_beyond_ascii_by_their_mark(name, tmp_path):
    pandas = pytest.importorskip("pandas")
    write(tmp_path / "t.csv", KINDS, [(name, 0.5, None)] * 3, pieces=2)
    data = (tmp_path / "t.csv").read_bytes()
    assert data.count(b"\xef\xbb\xbf") == (not name.isascii())
    assert data.startswith(b"path" if name.isascii() else b"\xef\xbb\xbfpath")
    assert list(pandas.read_csv(tmp_path / "t.csv").path) == [name] * 3
    assert read_table(tmp_path / "t.csv")["path"] == [name] * 3
    (tmp_path / "t.csv").write_bytes(data.removeprefix(b"\xef\xbb\xbf"))
    assert read_table(tmp_path / "t.csv")["path"] == [name] * 3
    write(tmp_path / "t.jsonl", KINDS, [(name, 0.5, None)], pieces=1)
    assert (tmp_path / "t.jsonl").read_bytes().startswith(b"{")
    assert [path.name for path in tmp_path.iterdir() if "csv" in path.name] == ["t.csv", "t.csv.about.json"]


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl", "json"])
def test_no_rows_are_a_whole_file_too(ending, tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / f"t.{ending}"
    write(path, KINDS, [], pieces=1)
    if ending in ("csv", "parquet"):
        assert list(getattr(pandas, f"read_{ending}")(path).columns) == list(KINDS)
    else:
        assert path.read_text() == {"jsonl": "", "json": "[]\n"}[ending]


def test_paths_that_are_no_text_are_written(tmp_path):
    name = b"\xff.jpg".decode("utf-8", "surrogateescape")
    for ending in ("csv", "jsonl", "json", "parquet"):
        write(tmp_path / f"t.{ending}", KINDS, [(name, 0.5, None)], pieces=1)
    assert b"\xff.jpg,0.5,\n" in (tmp_path / "t.csv").read_bytes()
    assert json.loads((tmp_path / "t.jsonl").read_text("utf-8"))["path"] == name
    assert json.loads((tmp_path / "t.json").read_text("utf-8"))[0]["path"] == name


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl", "json"])
def test_what_fails_leaves_nothing(ending, tmp_path):
    def fail():
        with stream_columns(tmp_path / f"t.{ending}", KINDS, about={}) as append:
            append({"path": ["a"], "chance": [0.5], "problem": [None]})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_vectors_come_back_in_chunks_from_both_kinds_of_files(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    matrix = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    matrix[[0, 13, 49]] = np.nan
    names = [f"{number}.jpg" for number in range(50)]
    kinds = {"path": "text", "vector": 6, "problem": "text"}
    with stream_columns(tmp_path / "v.parquet", kinds, about={"x": 1}) as append:
        for part in (slice(0, 7), slice(7, 50)):
            append({"path": names[part], "vector": matrix[part], "problem": [None] * len(names[part])})
    with stream_matrix(tmp_path / "v.npy", (50, 6), about={"x": 1}) as append_rows:
        for part in (matrix[:7], matrix[7:]):
            append_rows(part)
    with stream_columns(name_rows(tmp_path / "v.npy"), {"path": "text"}) as append:
        append({"path": names})
    assert np.array_equal(np.load(tmp_path / "v.npy"), matrix, equal_nan=True)
    assert [each is None for each in pq.read_table(tmp_path / "v.parquet")["vector"].to_pylist()] == [
        bool(missing) for missing in np.isnan(matrix[:, 0])
    ]
    for ending in ("parquet", "npy"):
        path = tmp_path / f"v.{ending}"
        found = list(read_vectors(path, name="path", vector="vector", rows=9))
        assert [len(part) for _, part in found] == [9, 9, 9, 9, 9, 5]
        assert [name for held, _ in found for name in held] == names
        assert np.array_equal(np.concatenate([part for _, part in found]), matrix, equal_nan=True)
        assert read_about(path) == {"x": 1}


def test_what_is_no_such_file_says_so(tmp_path):
    (tmp_path / "v.parquet").write_text("x")
    (tmp_path / "v.npy").write_text("x")
    for ending in ("parquet", "npy"):
        with pytest.raises(BadData, match="whole"):
            list(read_vectors(tmp_path / f"v.{ending}", name="path", vector="vector", rows=9))
        assert read_about(tmp_path / f"v.{ending}") is None
        assert read_about(tmp_path / f"none.{ending}") is None


def test_parquet_without_pyarrow_names_the_line_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"vggkit\[data\]"):
        write(tmp_path / "t.parquet", KINDS, ROWS, pieces=1)
    assert list(tmp_path.iterdir()) == []


def test_reading_vectors_keeps_nothing_of_what_was_read(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    from vggkit import table_files

    monkeypatch.setattr(table_files, "GROUP_BYTES", 100_000)
    rng = np.random.default_rng(0)
    with stream_columns(tmp_path / "v.parquet", {"path": "text", "vector": 100}, about={}) as append:
        for _ in range(40):
            append({"path": ["x"] * 250, "vector": rng.normal(size=(250, 100))})
    before = pa.total_allocated_bytes()
    found = []
    for names, rows in read_vectors(tmp_path / "v.parquet", name="path", vector="vector", rows=250):
        assert rows.shape == (len(names), 100)
        found.append(pa.total_allocated_bytes() - before)
    assert len(found) == 40
    assert max(found[20:]) < 1.5 * max(found[:5])
