"""Data sets of the hub by name: the `datasets` library itself, against a stand-in of the hub on 127.0.0.1."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

from conftest import draw_class

sys.path.append(str(Path(__file__).parents[1] / "networks"))
from local_hosts import Host, Hub, running, send, status
from vggkit.errors import BadData, BadDownload, BadImage, MissingExtra
from vggkit.images.sources import hub_sets
from vggkit.images.sources.open_dataset import iterate_images, open_dataset
from vggkit.images.sources.tables import Columns

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")

LABELS = ("ants", "bees")
SET = "hf://datasets/me/bees"


class DataHub(Hub):
    """The routes that `datasets` asks: the repository, its tree, its files."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, dict[str, dict[str, bytes]]] = {}
        """Of each repository, files by the revision's name."""

    def offer(self, name: str, files: dict[str, bytes], tag: str = "main") -> str:
        """Its commit."""
        self.tags.setdefault(f"datasets/{name}", {})[tag] = files
        return self.commit(files)

    def commit(self, files):
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

    def find(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        for tag, files in self.tags[repository].items():
            if revision in (tag, self.commit(files)):
                return self.commit(files), files
        return None

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.requests]

    def resolve(self, request, path):
        repository, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repository not in self.tags:
            return self.missing(request, "RepoNotFound")
        if (found := self.find(repository, revision)) is None:
            return self.missing(request, "RevisionNotFound")
        commit, files = found
        if name not in files:
            return self.say(request, 404, {}, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        tag = hashlib.sha1(files[name]).hexdigest()
        return send(request, 200, {"X-Repo-Commit": commit, "ETag": f'"{tag}"'}, files[name])

    def write(self, request, path, body):
        if not path.startswith("/api/datasets/"):
            return self.missing(request, "RepoNotFound")
        owner, name, *rest = path.removeprefix("/api/datasets/").split("/")
        repository = f"datasets/{owner}/{name}"
        if repository not in self.tags:
            return self.missing(request, "RepoNotFound")
        verb, revision, *inner = [*rest, "", "main"][:2] + rest[2:] if rest else ["revision", "main"]
        if (found := self.find(repository, unquote(revision))) is None:
            return self.missing(request, "RevisionNotFound")
        commit, files = found
        if verb == "revision":
            siblings = [{"rfilename": file} for file in files]
            return self.say(request, 200, {"id": f"{owner}/{name}", "sha": commit, "siblings": siblings})
        if verb == "tree":
            folder = "/".join(inner)
            query = parse_qs(urlsplit(request.path).query)
            deep = query.get("recursive", ["false"])[0].lower() == "true"
            return self.say(request, 200, self.list(files, folder, deep=deep))
        if verb == "paths-info":
            asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            known = {entry["path"]: entry for entry in self.list(files, "", deep=True)}
            return self.say(request, 200, [known[path] for path in asked if path in known])
        return self.missing(request, "EntryNotFound")

    def list(self, files, folder, *, deep):
        entries = {}
        for name, content in files.items():
            inside = name.removeprefix(f"{folder}/") if folder else name
            if folder and inside == name:
                continue
            above = Path(name).parents
            for parent in (p.as_posix() for p in above if p != Path()):
                if len(parent) > len(folder) and (deep or parent.count("/") == folder.count("/") + bool(folder)):
                    entries[parent] = {"type": "directory", "path": parent, "oid": "0" * 40, "size": 0}
            if deep or "/" not in inside:
                oid = hashlib.sha1(content).hexdigest()
                entries[name] = {"type": "file", "path": name, "oid": oid, "size": len(content)}
        return [entries[name] for name in sorted(entries)]


def point(monkeypatch, address: str, folder: Path) -> None:
    """The libraries read the environment when they are imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "".join(template[1:]))
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, folder / name)
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_ASSETS_CACHE"):
        monkeypatch.setattr(constants, name, str(folder / name))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    monkeypatch.setattr(datasets.config, "USE_PARQUET_EXPORT", False)  # another host would be asked


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import close_session

    for name in ("VGGKIT_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    with running(DataHub()) as hub:
        point(monkeypatch, hub.address, tmp_path / "hub")
        yield hub
        close_session()


def encode(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def pixels_of(label: str, index: int) -> np.ndarray:
    return draw_class(label, index, side=24)


def write_table(columns: dict[str, list], features: dict[str, object] | None = None) -> bytes:
    from pyarrow import parquet

    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()


CLASSES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(LABELS)}}


def write_part(count: int, *, start: int = 0, labels: tuple[str, ...] = LABELS) -> bytes:
    wanted = [(label, start + i) for i in range(count) for label in labels]
    images = [{"bytes": encode(pixels_of(*each)), "path": f"{each[1]}.png"} for each in wanted]
    return write_table({"image": images, "label": [LABELS.index(label) for label, _ in wanted]}, CLASSES)


def offer_bees(hub: DataHub, *, count: int = 3, tag: str = "main") -> str:
    files = {
        "README.md": b"# bees\n",
        "data/train-00000-of-00002.parquet": write_part(count),
        "data/train-00001-of-00002.parquet": write_part(1, start=50),
        "data/validation-00000-of-00001.parquet": write_part(1, start=80),
        "data/test-00000-of-00001.parquet": write_part(2, start=100),
    }
    return hub.offer("me/bees", files, tag)


def test_parts_labels_and_images(hub, tmp_path):
    offer_bees(hub)
    found = open_dataset(SET)
    assert found.labels == LABELS
    assert {name: len(part) for name, part in found.splits.items()} == {"train": 8, "val": 2, "test": 4}
    train = found.split("train")
    assert [image.label for image in train] == list(LABELS) * 4
    assert train[3].path == f"{SET}/train#3"
    expected = [pixels_of(label, i) for i in (0, 1, 2, 50) for label in LABELS]
    again = pickle.loads(pickle.dumps(train))
    for order in (range(8), [5, 0, 7, 2, 5]):
        for index in order:
            assert np.array_equal(train[index].decode(), expected[index])
            assert np.array_equal(again[index].decode(), expected[index])
    assert train[0].short_side() == 24
    assert len(pickle.dumps(train)) < 8_000  # the table's place, not the table
    assert (tmp_path / "hub" / "HF_DATASETS_CACHE").is_dir()


def test_the_same_collection_each_time(hub, monkeypatch):
    offer_bees(hub)
    first = open_dataset(SET).fingerprint()
    assert open_dataset(SET).fingerprint() == first
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    assert open_dataset(SET).fingerprint() == first
    monkeypatch.delenv("VGGKIT_OFFLINE")
    offer_bees(hub, count=4)
    assert open_dataset(SET).fingerprint() != first


def test_a_folder_of_images_in_the_repository(hub):
    files = {
        f"{part}/{label}/{i}.png": encode(pixels_of(label, i))
        for part, count in (("train", 3), ("test", 1))
        for label in LABELS
        for i in range(count)
    }
    hub.offer("me/folder", files)
    found = open_dataset("hf://datasets/me/folder")
    assert found.labels == LABELS
    assert {name: len(part) for name, part in found.splits.items()} == {"train": 6, "test": 2}
    for image, label, i in zip(found.split("train"), ["ants"] * 3 + ["bees"] * 3, [0, 1, 2] * 2, strict=True):
        assert image.label == label
        assert np.array_equal(pickle.loads(pickle.dumps(image)).decode(), pixels_of(label, i))


def test_revisions(hub, monkeypatch):
    first, second = offer_bees(hub, tag="v1"), offer_bees(hub, count=5)
    assert len(open_dataset(SET).split("train")) == 12
    assert len(open_dataset(f"{SET}@v1").split("train")) == 8
    assert len(open_dataset(f"{SET}@{first}").split("train")) == 8
    with pytest.raises(BadDownload, match=r"bees@v9: Revision 'v9' doesn't exist"):
        open_dataset(f"{SET}@v9")
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    assert len(open_dataset(f"{SET}@{first}").split("train")) == 8
    assert len(open_dataset(f"{SET}@{second}").split("train")) == 12
    assert len(open_dataset(f"{SET}@v1").split("train")) == 8  # the last one brought is another
    assert len(open_dataset(SET).split("train")) == 12
    for unknown in ("v2", "0" * 40):
        with pytest.raises(BadDownload, match=rf"bees@{unknown}: VGGKIT_OFFLINE is set.*does not hold it"):
            open_dataset(f"{SET}@{unknown}")


def test_configurations(hub, monkeypatch):
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*.parquet\n"
        for name in ("small", "large")
    )
    files = {f"{name}/train-0.parquet": write_part(count) for name, count in (("small", 1), ("large", 4))}
    hub.offer("me/sizes", {"README.md": f"{card}---\n# sizes\n".encode(), **files})
    address = "hf://datasets/me/sizes"
    with pytest.raises(BadData, match=r"sizes: .*small.*large.*a configuration is named after a #") as raised:
        open_dataset(address)
    assert "\n" not in str(raised.value)
    assert len(open_dataset(f"{address}#large").split("train")) == 8
    assert len(open_dataset(f"{address}@main#small").split("train")) == 2
    with pytest.raises(BadData, match="huge"):
        open_dataset(f"{address}#huge")
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    assert len(open_dataset(f"{address}#large").split("train")) == 8
    with pytest.raises(BadDownload, match=r"VGGKIT_OFFLINE is set.*huge.*large.*unset it once") as raised:
        open_dataset(f"{address}#huge")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "address",
    ["hf://bees", "hf://", "hf://datasets/me", "hf://datasets/../bees", "hf://a/b/c", f"{SET}@", f"{SET}#"],
)
def test_addresses_that_are_none(hub, address):
    with pytest.raises(BadData, match="is not a data set's address, which is hf://datasets/owner/name"):
        open_dataset(address)
    assert hub.requests == []


def test_a_path_with_one_slash(hub):
    offer_bees(hub)
    assert open_dataset(Path(SET)).labels == LABELS


def offer_table(hub: DataHub, columns: dict[str, list], features: dict[str, object] | None = None) -> str:
    hub.offer("me/table", {"data/train-00000-of-00001.parquet": write_table(columns, features)})
    return "hf://datasets/me/table"


FILES = [encode(pixels_of("ants", i)) for i in range(4)]


@pytest.mark.parametrize(
    ("column", "declared"),
    [
        ([{"bytes": data, "path": None} for data in FILES], {"_type": "Image"}),
        ([{"bytes": data, "path": "a.png"} for data in FILES], None),
        (FILES, None),
    ],
)
@pytest.mark.parametrize("labels", [["b", "a", "b", "a"], [10, 2, 10, 2]])
def test_columns_of_every_kind(column, declared, labels, hub):
    kind = "string" if labels[0] == "b" else "int64"
    features = {"image": declared, "label": {"_type": "Value", "dtype": kind}} if declared else None
    found = open_dataset(offer_table(hub, {"image": column, "label": labels}, features))
    assert found.labels == (("a", "b") if kind == "string" else ("2", "10"))
    assert [image.label for image in found.split("train")] == list(map(str, labels))
    for i, image in enumerate(found.split("train")):
        assert np.array_equal(image.decode(), pixels_of("ants", i))


def test_stated_columns(hub):
    columns = {
        "before": [{"bytes": b"", "path": None}] * 4,
        "after": [{"bytes": data, "path": None} for data in FILES],
        "kind": ["x", "y", "x", "y"],
        "use": ["training", "dev", "test", "train"],
        "patient": [1, 2, 3, 1],
    }
    features = {
        **{name: {"_type": "Image"} for name in ("before", "after")},
        **{name: {"_type": "Value", "dtype": "string"} for name in ("kind", "use")},
        "patient": {"_type": "Value", "dtype": "int64"},
    }
    address = offer_table(hub, columns, features)
    with pytest.raises(BadData, match=r"holds images in before, after; name one with --path-column"):
        open_dataset(address)
    stated = Columns(path_column="after", label_column="kind", split_column="use", group_column="patient")
    found = open_dataset(address, columns=stated)
    assert {name: len(part) for name, part in found.splits.items()} == {"train": 2, "val": 1, "test": 1}
    assert [image.group for image in found.split("train")] == ["1", "1"]
    assert np.array_equal(found.split("val")[0].decode(), pixels_of("ants", 1))
    with pytest.raises(BadData, match="'where' is not a column of this table"):
        open_dataset(address, columns=Columns(path_column="after", label_column="where"))
    with pytest.raises(BadData, match="its column kind does not hold images"):
        open_dataset(address, columns=Columns(path_column="kind"))


def test_without_labels_it_can_be_asked_about(hub):
    address = offer_table(hub, {"image": FILES})
    images = list(iterate_images([address]))
    assert [image.label for image in images] == [None] * 4
    assert np.array_equal(images[3].decode(), pixels_of("ants", 3))
    with pytest.raises(BadData, match=r"table/train#0: has no label"):
        open_dataset(address)


def test_a_hidden_label_is_none(hub):
    images = [{"bytes": data, "path": None} for data in FILES]
    address = offer_table(hub, {"image": images, "label": [0, -1, 1, None]}, CLASSES)
    assert [image.label for image in iterate_images([address])] == ["ants", None, "bees", None]
    with pytest.raises(BadData, match=r"table/train#1: has no label"):
        open_dataset(address)


def test_what_holds_no_images(hub):
    address = offer_table(hub, {"text": ["a", "b"], "label": [0, 1]})
    with pytest.raises(BadData, match="has no column of images, but text, label"):
        open_dataset(address)
    address = offer_table(hub, {"image": FILES, "label": [["a"], ["a", "b"], [], ["b"]]})
    found = open_dataset(address)
    assert (found.task, [image.labels for image in found.split("train")]) == (
        "multi-label",
        [("a",), ("a", "b"), (), ("b",)],
    )
    hub.offer("me/empty", {"README.md": b"# nothing\n"})
    with pytest.raises(BadData, match=r"me/empty: holds no data"):
        open_dataset("hf://datasets/me/empty")


def test_broken_images_and_empty_rows(hub):
    images = [{"bytes": b"no image", "path": None}, None, {"bytes": None, "path": None}]
    found = open_dataset(offer_table(hub, {"image": images, "label": [0, 1, 1]}, CLASSES))
    for image, said in zip(found.split("train"), ["", "the row has no image", "the row has no image"], strict=True):
        with pytest.raises(BadImage, match=f"^hf://datasets/me/table/train#.*{said}"):
            image.decode()


def test_a_file_that_is_broken(hub):
    hub.offer("me/broken", {"data/train-00000-of-00001.parquet": b"PAR1 no PAR1"})
    with pytest.raises(BadDownload, match=r"me/broken: cannot be downloaded \(") as raised:
        open_dataset("hf://datasets/me/broken")
    assert "\n" not in str(raised.value)
    hub.offer("me/broken", {"data/train-00000-of-00001.parquet": write_part(1)})
    assert open_dataset("hf://datasets/me/broken").labels == LABELS


def test_no_such_data_set(hub):
    with pytest.raises(BadDownload, match=r"hf://datasets/me/wasps: .*doesn't exist.*hf auth login") as raised:
        open_dataset("hf://datasets/me/wasps")
    assert "\n" not in str(raised.value)


def test_no_hub_at_all(hub, monkeypatch, tmp_path):
    offer_bees(hub)
    first = open_dataset(SET).fingerprint()
    with running(Host()) as gone:
        pass
    point(monkeypatch, gone.address, tmp_path / "hub")
    assert open_dataset(SET).fingerprint() == first  # what is there serves
    with pytest.raises(BadDownload, match=r"wasps: .*cannot be reached: .*refused.*whether there is a network"):
        open_dataset("hf://datasets/me/wasps")


def test_a_hub_that_is_silent(hub, monkeypatch):
    monkeypatch.setattr(hub_sets, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(hub, "answer", lambda _: hub.closing.wait(5))
    with pytest.raises(BadDownload, match=r"cannot be reached: .*timed out"):
        open_dataset(SET)


def test_a_hub_that_is_ill(hub):
    offer_bees(hub)
    first = open_dataset(SET).fingerprint()
    hub.answers["/"] = [status(503)]
    hub.answers[""] = hub.answers["/"]
    assert open_dataset(SET).fingerprint() == first
    with pytest.raises(BadDownload, match=r"wasps: .*cannot be reached: .*503"):
        open_dataset("hf://datasets/me/wasps")


@pytest.mark.parametrize("code", [401, 403])
def test_a_hub_that_refuses(code, hub):
    hub.answers["/datasets/me/bees/resolve/main/README.md"] = [status(code)]
    with pytest.raises(BadDownload, match=SET) as raised:
        open_dataset(SET)
    assert "\n" not in str(raised.value)


def state() -> tuple[object, ...]:
    import logging

    from huggingface_hub import constants

    levels = [logging.getLogger(name).level for name in ("datasets", "huggingface_hub")]
    return datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE, datasets.are_progress_bars_disabled(), levels


def test_offline(hub, monkeypatch):
    offer_bees(hub)
    before = state()
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    with pytest.raises(BadDownload, match=r"bees: VGGKIT_OFFLINE is set, and its cache .* unset it once"):
        open_dataset(SET)
    assert hub.requests == []
    monkeypatch.delenv("VGGKIT_OFFLINE")
    found = open_dataset(SET)
    hub.requests.clear()
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    again = open_dataset(SET)
    assert np.array_equal(again.split("val")[1].decode(), found.split("val")[1].decode())
    assert hub.requests == []
    assert state() == before


def test_the_libraries_own_word_for_offline(hub, monkeypatch):
    offer_bees(hub)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadDownload, match=r"HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set.*unset it once"):
        open_dataset(SET)
    assert hub.requests == []


def test_a_folder_here_of_that_name_is_not_meant(hub, monkeypatch, tmp_path):
    offer_bees(hub)
    (tmp_path / "me" / "bees").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert open_dataset(SET).labels == LABELS


def test_without_the_extra(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r'pip install "vggkit\[data\]"'):
        open_dataset(SET)
    assert hub.requests == []


@pytest.mark.slow
def test_as_people_run_it(hub, tmp_path):
    """Through the environment, in a process of its own: nothing on standard error, nothing outside HF_HOME."""
    offer_bees(hub)
    code = "import vggkit.images.sources.open_dataset as s\nfound = s.open_dataset('hf://datasets/me/bees')\n"
    code += "print(found.labels, found.split('test')[0].decode().shape)"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "VGGKIT_"))},
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "home"),
        "HOME": str(tmp_path / "user"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    }
    for offline in ("0", "1"):
        hub.requests.clear()
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "VGGKIT_OFFLINE": offline},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stderr == ""
        assert done.stdout == "('ants', 'bees') (24, 32, 3)\n"
        assert bool(hub.requests) == (offline == "0")
    assert not (tmp_path / "user" / ".cache" / "huggingface").exists()
