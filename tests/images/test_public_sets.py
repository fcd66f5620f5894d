"""torchvision's data sets by name: its own code downloads small made-up archives from a host on 127.0.0.1."""

import bz2
import functools
import gc
import gzip
import hashlib
import inspect
import io
import json
import pickle
import re
import struct
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggkit.errors import BadDownload, BadOutput, MissingExtra
from vggkit.images.preprocessing import Preprocessing
from vggkit.images.sources import public_sets
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.images.sources.public_sets import NAMES, PUBLIC_SETS

sys.path.append(str(Path(__file__).parents[1] / "networks"))
from local_hosts import Host, running, status, whole

datasets = pytest.importorskip("torchvision.datasets")

# torchvision leaves an answer such as 404 to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

RNG = np.random.default_rng(3)


class Mirror(Host):
    """A host of archives; what is not there is a 404."""

    def offer(self, name: str, content: bytes) -> tuple[str, str]:
        """Its address and MD5."""
        self.answers[f"/{name}"] = [whole(content)]
        return f"{self.address}/{name}", digest(content)

    def paths(self) -> set[str]:
        return {path for _, path, _ in self.requests}


@pytest.fixture(scope="module", autouse=True)
def tidy():
    """What torchvision left open goes here, and not in a later test of other things."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def host(monkeypatch, tmp_path):
    monkeypatch.setenv("VGGKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("VGGKIT_OFFLINE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with running(Mirror()) as host:
        yield host


def digest(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def draw(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def photo(kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(draw(24, 30, 3)).save(stream, kind)
    return stream.getvalue()


def pack(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def pack_zip(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def pickle_as_in_2009(value: object) -> bytes:
    """As Python 2 wrote CIFAR's files: dtype's `align` is a number, which numpy complains of today."""
    return pickle.dumps(value, protocol=0).replace(b"I00\nI01\n", b"I0\nI1\n")


def save_mat(**arrays: np.ndarray) -> bytes:
    scipy_io = pytest.importorskip("scipy.io")
    stream = io.BytesIO()
    scipy_io.savemat(stream, arrays)
    return stream.getvalue()


def make_cifar(kind, host, monkeypatch, labels_key, names):
    def batch(count: int) -> bytes:
        wanted = {"data": draw(count, 3072), labels_key: [i % len(names) for i in range(count)]}
        return pickle_as_in_2009(wanted)

    parts = {entry[0]: batch(3) for entry in (*kind.train_list, *kind.test_list)}
    meta = pickle_as_in_2009({kind.meta["key"]: names})
    inside = {**parts, kind.meta["filename"]: meta}
    url, md5 = host.offer(kind.filename, pack({f"{kind.base_folder}/{k}": v for k, v in inside.items()}))
    monkeypatch.setattr(kind, "url", url)
    monkeypatch.setattr(kind, "tgz_md5", md5)
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(kind, part, [[name, digest(parts[name])] for name, _ in getattr(kind, part)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": digest(meta)})


def make_cifar10(host, monkeypatch):
    make_cifar(datasets.CIFAR10, host, monkeypatch, "labels", ["airplane", "automobile", "bird"])


def make_cifar100(host, monkeypatch):
    make_cifar(datasets.CIFAR100, host, monkeypatch, "fine_labels", ["apple", "bee"])


def make_mnist(host, monkeypatch, *, of="MNIST"):
    kind, resources = getattr(datasets, of), []
    for name, _ in kind.resources:
        count = 5 if name.startswith("train") else 3
        if "images" in name:
            content = struct.pack(">IIII", 0x803, count, 28, 28) + draw(count, 28, 28).tobytes()
        else:
            content = struct.pack(">II", 0x801, count) + bytes(9 - i for i in range(count))
        resources.append((name, host.offer(f"{of}/{name}", gzip.compress(content))[1]))
    monkeypatch.setattr(kind, "mirrors", [f"{host.address}/gone/", f"{host.address}/{of}/"])
    monkeypatch.setattr(kind, "resources", resources)


def make_usps(host, monkeypatch):
    listed = {}
    for part, (_, name, _) in datasets.USPS.split_list.items():
        rows = [f"{i + 1} " + " ".join(f"{k + 1}:{v:.4f}" for k, v in enumerate(RNG.uniform(-1, 1, 256)))
                for i in range(4)]  # fmt: skip
        url, md5 = host.offer(name, bz2.compress(("\n".join(rows) + "\n").encode()))
        listed[part] = [url, name, md5]
    monkeypatch.setattr(datasets.USPS, "split_list", listed)


def make_svhn(host, monkeypatch):
    listed = {}
    for part, (_, name, _) in datasets.SVHN.split_list.items():
        content = save_mat(X=draw(32, 32, 3, 4), y=np.array([[10], [1], [2], [9]], np.uint8))
        listed[part] = [*host.offer(name, content)]
        listed[part].insert(1, name)
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)


def make_stl10(host, monkeypatch):
    kind = datasets.STL10
    inside = {
        "train_X.bin": draw(3, 3, 96, 96).tobytes(),
        "train_y.bin": bytes([1, 2, 1]),
        "unlabeled_X.bin": draw(1, 3, 96, 96).tobytes(),
        "test_X.bin": draw(2, 3, 96, 96).tobytes(),
        "test_y.bin": bytes([2, 1]),
    }
    names = {"class_names.txt": b"airplane\nbird\n"}
    content = pack({f"{kind.base_folder}/{k}": v for k, v in {**inside, **names}.items()})
    url, md5 = host.offer(kind.filename, content)
    monkeypatch.setattr(kind, "url", url)
    monkeypatch.setattr(kind, "tgz_md5", md5)
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(kind, part, [[name, digest(inside[name])] for name, _ in getattr(kind, part)])


def make_imagenette(host, monkeypatch):
    files = {
        f"imagenette2-320/{part}/{wnid}/{part}_{i}.JPEG": photo()
        for part, count in (("train", 2), ("val", 1))
        for wnid in datasets.Imagenette._WNID_TO_CLASS
        for i in range(count)
    }
    archives = {"320px": host.offer("imagenette2-320.tgz", pack(files))}
    monkeypatch.setattr(datasets.Imagenette, "_ARCHIVES", archives)


def make_flowers102(host, monkeypatch):
    kind, listed = datasets.Flowers102, {}
    contents = {
        "image": pack({f"jpg/image_{i:05d}.jpg": photo() for i in range(1, 8)}),
        "label": save_mat(labels=np.array([[1, 2, 102, 1, 2, 102, 77]], np.uint8)),
        "setid": save_mat(trnid=np.array([[5, 1, 3]]), valid=np.array([[2, 4]]), tstid=np.array([[7, 6]])),
    }
    for role, (name, _) in kind._file_dict.items():
        listed[role] = (name, host.offer(f"102/{name}", contents[role])[1])
    monkeypatch.setattr(kind, "_download_url_prefix", f"{host.address}/102/")
    monkeypatch.setattr(kind, "_file_dict", listed)


def make_food101(host, monkeypatch):
    listed = {"train": {"ramen": ["ramen/1", "ramen/2"], "pho": ["pho/3"]}, "test": {"pho": ["pho/4"], "ramen": []}}
    files = {f"food-101/meta/{part}.json": json.dumps(names).encode() for part, names in listed.items()}
    for name in ("ramen/1", "ramen/2", "pho/3", "pho/4"):
        files[f"food-101/images/{name}.jpg"] = photo()
    url, md5 = host.offer("food-101.tar.gz", pack(files))
    monkeypatch.setattr(datasets.Food101, "_URL", url)
    monkeypatch.setattr(datasets.Food101, "_MD5", md5)


def make_dtd(host, monkeypatch):
    files = {}
    for part in ("train", "val", "test"):
        names = [f"{of}/{of}_{part}.jpg" for of in ("woven", "banded")]
        files[f"dtd/labels/{part}1.txt"] = "\n".join(names).encode()
        files |= {f"dtd/images/{name}": photo() for name in names}
    url, md5 = host.offer("dtd-r1.0.1.tar.gz", pack(files))
    monkeypatch.setattr(datasets.DTD, "_URL", url)
    monkeypatch.setattr(datasets.DTD, "_MD5", md5)


def make_oxford_pets(host, monkeypatch):
    lines = {"trainval": "great_pyrenees_1 2 2 1\nAbyssinian_1 1 1 1\n", "test": "Abyssinian_2 1 1 1\n"}
    names = ("great_pyrenees_1", "Abyssinian_1", "Abyssinian_2")
    resources = (
        host.offer("images.tar.gz", pack({f"images/{name}.jpg": photo() for name in names})),
        host.offer("annotations.tar.gz", pack({f"annotations/{k}.txt": v.encode() for k, v in lines.items()})),
    )
    monkeypatch.setattr(datasets.OxfordIIITPet, "_RESOURCES", resources)


def make_fgvc_aircraft(host, monkeypatch):
    home = "fgvc-aircraft-2013b/data"
    files = {f"{home}/variants.txt": b"707-320\nA340 200\n"}
    for number, part in enumerate(("train", "val", "test")):
        files[f"{home}/images_variant_{part}.txt"] = f"{number}00 A340 200\n{number}01 707-320\n".encode()
        files |= {f"{home}/images/{number}{i:02d}.jpg": photo() for i in range(2)}
    monkeypatch.setattr(datasets.FGVCAircraft, "_URL", host.offer("fgvc-aircraft-2013b.tar.gz", pack(files))[0])


def make_country211(host, monkeypatch):
    names = [f"country211/{part}/{of}/1.jpg" for part in ("train", "valid", "test") for of in ("AD", "ZW")]
    url, md5 = host.offer("country211.tgz", pack({name: photo() for name in names}))
    monkeypatch.setattr(datasets.Country211, "_URL", url)
    monkeypatch.setattr(datasets.Country211, "_MD5", md5)


def make_rendered_sst2(host, monkeypatch):
    parts, labels = ("train", "valid", "test"), ("negative", "positive")
    names = [f"rendered-sst2/{part}/{label}/1.png" for part in parts for label in labels]
    url, md5 = host.offer("rendered-sst2.tgz", pack({name: photo("PNG") for name in names}))
    monkeypatch.setattr(datasets.RenderedSST2, "_URL", url)
    monkeypatch.setattr(datasets.RenderedSST2, "_MD5", md5)


def make_sun397(host, monkeypatch):
    names = ("a/abbey", "c/church/indoor")
    files = {"SUN397/ClassName.txt": "".join(f"/{name}\n" for name in names).encode()}
    files |= {f"SUN397/{name}/sun_{i}.jpg": photo() for name in names for i in range(2)}
    url, md5 = host.offer("SUN397.tar.gz", pack(files))
    monkeypatch.setattr(datasets.SUN397, "_DATASET_URL", url)
    monkeypatch.setattr(datasets.SUN397, "_DATASET_MD5", md5)


def divert(module: str, host, monkeypatch, contents: dict[str, bytes]):
    """For data sets whose addresses stand inside torchvision's functions: its own download of another address."""
    theirs = datasets.utils.download_and_extract_archive

    def ours(url, download_root, md5):
        name = url.rpartition("/")[2]
        there, md5 = host.offer(name, contents[name]) if name in contents else (f"{host.address}/{name}", "")
        theirs(there, download_root=download_root, md5=md5)

    monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", ours)


def make_eurosat(host, monkeypatch):
    names = ("Forest", "River")
    archive = pack_zip({f"2750/{name}/{name}_{i}.jpg": photo() for name in names for i in range(2)})
    divert("eurosat", host, monkeypatch, {"EuroSAT.zip": archive})


def make_gtsrb(host, monkeypatch):
    train = {f"GTSRB/Training/{of:05d}/{i:05d}.ppm": photo("PPM") for of in (0, 1) for i in range(2)}
    test = {f"GTSRB/Final_Test/Images/{i:05d}.ppm": photo("PPM") for i in range(2)}
    table = b"Filename;Width;ClassId\n00000.ppm;30;1\n00001.ppm;30;0\n"
    archives = {
        "GTSRB-Training_fixed.zip": pack_zip(train),
        "GTSRB_Final_Test_Images.zip": pack_zip(test),
        "GTSRB_Final_Test_GT.zip": pack_zip({"GT-final_test.csv": table}),
    }
    divert("gtsrb", host, monkeypatch, archives)


MAKERS = {
    "cifar10": make_cifar10,
    "cifar100": make_cifar100,
    "country211": make_country211,
    "dtd": make_dtd,
    "eurosat": make_eurosat,
    "fashion_mnist": functools.partial(make_mnist, of="FashionMNIST"),
    "fgvc_aircraft": make_fgvc_aircraft,
    "flowers102": make_flowers102,
    "food101": make_food101,
    "gtsrb": make_gtsrb,
    "imagenette": make_imagenette,
    "kmnist": functools.partial(make_mnist, of="KMNIST"),
    "mnist": make_mnist,
    "oxford_pets": make_oxford_pets,
    "rendered_sst2": make_rendered_sst2,
    "stl10": make_stl10,
    "sun397": make_sun397,
    "svhn": make_svhn,
    "usps": make_usps,
}
LABELS = {
    "cifar10": ("airplane", "automobile", "bird"),
    "country211": ("AD", "ZW"),
    "flowers102": ("blackberry lily", "hard-leaved pocket orchid", "passion flower", "pink primrose"),
    "food101": ("pho", "ramen"),
    "gtsrb": ("0", "1"),
    "mnist": ("5 - five", "6 - six", "7 - seven", "8 - eight", "9 - nine"),
    "oxford_pets": ("Abyssinian", "Great Pyrenees"),
    "stl10": ("airplane", "bird"),
    "sun397": ("abbey", "church/indoor"),
    "svhn": ("0", "1", "2", "9"),
    "usps": ("0", "1", "2", "3"),
}
PARTS = {"valid": "val"}


def folder_of(tmp_path: Path, name: str) -> Path:
    return tmp_path / "home" / "data" / name


def name_class(theirs, number: int) -> str:
    """The class as people write it, by torchvision's own list."""
    classes = getattr(theirs, "classes", None)
    if classes is None:
        return str(number)
    return classes[number] if isinstance(classes[number], str) else classes[number][0]


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_torchvision_knows_what_it_is_told(name):
    public = PUBLIC_SETS[name]
    kind = getattr(datasets, public.home)
    signature = inspect.signature(kind.__init__)
    for told in public.splits.values():
        bound = signature.bind(None, "root", **public.options, **told, download=True)
        assert "kwargs" not in bound.arguments
    assert set(public.splits) in ({"train", "val", "test"}, {"train", "test"}, {"train", "val"}, {"all"})


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_torchvision_has_the_parts(name, tmp_path):
    """Without files it says that they are missing, and not that the split is none of its own."""
    public = PUBLIC_SETS[name]
    for told in public.splits.values():
        with pytest.raises((RuntimeError, FileNotFoundError), match=r"[Nn]ot found|No such file"):
            getattr(datasets, public.home)(tmp_path, **public.options, **told, download=False)
    if public.splits.keys() != {"all"} and "split" in told:
        with pytest.raises(ValueError, match="Unknown value 'half'"):
            getattr(datasets, public.home)(tmp_path, **{**public.options, "split": "half"})


def test_every_set_is_tried():
    assert MAKERS.keys() == PUBLIC_SETS.keys()
    assert ("digits", *MAKERS) == NAMES


@pytest.mark.parametrize("name", MAKERS)
def test_downloaded_once_and_as_torchvision_has_it(name, host, monkeypatch, tmp_path):
    MAKERS[name](host, monkeypatch)
    found = open_dataset(name)
    assert host.requests
    public, folder = PUBLIC_SETS[name], folder_of(tmp_path, name)
    assert set(found.splits) == set(public.splits)
    for part, told in public.splits.items():
        theirs = getattr(datasets, public.home)(folder, **public.options, **told)
        ours = found.split(part)
        assert len(ours) == len(theirs) > 0
        for sample, (image, number) in zip(ours, theirs, strict=True):
            assert sample.label == name_class(theirs, number)
            pixels = sample.decode()
            assert np.array_equal(pixels, np.asarray(image.convert("RGB")))
            assert Preprocessing(crop_pixels=32)(pixels).shape == (3, 32, 32)
            assert sample.short_side() == min(image.size)
            assert np.array_equal(pickle.loads(pickle.dumps(sample)).decode(), pixels)
    if name in LABELS:
        assert found.labels == LABELS[name]
    assert not list(folder.parent.glob("*.unfinished"))
    host.requests.clear()
    assert open_dataset(name).fingerprint() == found.fingerprint()
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    assert open_dataset(name).fingerprint() == found.fingerprint()
    assert host.requests == []


@pytest.mark.parametrize("name", ["cifar10", "mnist", "svhn", "stl10", "usps"])
def test_pixels_are_torchvisions_own(name, host, monkeypatch):
    MAKERS[name](host, monkeypatch)
    opened = []
    theirs = public_sets._read
    monkeypatch.setattr(public_sets, "_read", lambda held: theirs(opened.append(held) or held))
    found = open_dataset(name)
    for held, part in zip(opened, PUBLIC_SETS[name].splits, strict=True):
        assert all(np.shares_memory(image.pixels, np.asarray(held.data)) for image in found.split(part))


def test_imagenettes_classes_are_their_first_names(host, monkeypatch):
    make_imagenette(host, monkeypatch)
    assert {"tench", "chain saw", "cassette player", "golf ball"} < set(open_dataset("imagenette").labels)


def test_offline_asks_nobody(host, monkeypatch, tmp_path):
    make_cifar10(host, monkeypatch)
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    with pytest.raises(BadDownload, match=r"cifar10 is not in .*VGGKIT_OFFLINE is set; unset it once, or copy"):
        open_dataset("cifar10")
    assert host.requests == []
    assert not folder_of(tmp_path, "cifar10").parent.exists()


def is_one_line(problem: Exception) -> bool:
    return "\n" not in str(problem) and "Traceback" not in str(problem)


@pytest.mark.parametrize("name", ["cifar10", "mnist", "flowers102", "oxford_pets", "usps"])
def test_a_file_that_is_gone(name, host, monkeypatch, tmp_path):
    MAKERS[name](host, monkeypatch)
    *_, last = host.answers
    kept = host.answers.pop(last)
    with pytest.raises(
        BadDownload, match=rf"{name} cannot be downloaded \(.*404.*with a network, try again"
    ) as raised:
        open_dataset(name)
    assert is_one_line(raised.value)
    assert not folder_of(tmp_path, name).exists()
    host.answers[last] = kept
    assert open_dataset(name).labels


def test_nobody_is_there(host, monkeypatch, tmp_path):
    make_food101(host, monkeypatch)
    make_mnist(host, monkeypatch)
    with running(Host()) as gone:
        pass
    monkeypatch.setattr(datasets.Food101, "_URL", f"{gone.address}/food-101.tar.gz")
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{gone.address}/"])
    for name in ("food101", "mnist"):
        with pytest.raises(BadDownload, match=r"refused.*copy .* from a machine that has it") as raised:
            open_dataset(name)
        assert is_one_line(raised.value)


@pytest.mark.parametrize("name", ["cifar10", "imagenette", "svhn", "usps", "fgvc_aircraft", "flowers102"])
@pytest.mark.parametrize("harm", [{"break_after": 200, "lie": 5}, {"body": b"<html>Sign in</html>"}], ids=str)
def test_another_file_than_the_published_one(name, harm, host, monkeypatch, tmp_path):
    """A broken download, or the page of a hotel's network; the next try begins anew and is whole."""
    MAKERS[name](host, monkeypatch)
    published = dict(host.answers)
    for path in published:
        host.answers[path] = [status(200, **harm) if "body" in harm else whole(bytes(400), **harm)]
    with pytest.raises(
        BadDownload, match=rf"{name} cannot be downloaded \(.*\); with a network, try again"
    ) as raised:
        open_dataset(name)
    assert is_one_line(raised.value)
    assert not folder_of(tmp_path, name).exists()
    host.answers = published
    found = open_dataset(name)
    assert all(image.decode().size for part in found.splits.values() for image in part)


@pytest.mark.parametrize("silent_after", [0, 200])
def test_a_host_that_falls_silent(silent_after, host, monkeypatch):
    make_dtd(host, monkeypatch)
    monkeypatch.setattr(public_sets, "PATIENCE_SECONDS", 0.3)
    published, host.answers = host.answers, {path: [whole(bytes(400), stall_after=200)] for path in host.answers}
    if not silent_after:
        host.answers = {path: [lambda _: host.closing.wait(5)] for path in published}
    with pytest.raises(BadDownload, match=r"dtd cannot be downloaded \(.*timed out"):
        open_dataset("dtd")
    host.answers = published
    assert open_dataset("dtd").labels == ("banded", "woven")


def test_patience_is_given_back(host, monkeypatch):
    import socket

    make_cifar10(host, monkeypatch)
    open_dataset("cifar10")
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("name", ["food101", "country211", "oxford_pets", "sun397", "mnist", "gtsrb"])
def test_ended_while_it_unpacks(name, host, monkeypatch, tmp_path):
    """By itself torchvision takes the folders that are there for the whole data set, for ever."""
    MAKERS[name](host, monkeypatch)
    tar, unzip, gunzip = tarfile.TarFile.extractall, zipfile.ZipFile.extractall, datasets.utils._decompress

    def extract_some(archive, path, **_):
        archive.extract(archive.getmembers()[0], path, filter="data")
        raise KeyboardInterrupt

    def unzip_some(archive, path, **_):
        archive.extract(archive.namelist()[0], path)
        raise KeyboardInterrupt

    def decompress_some(_, to_path, **__):
        Path(to_path).write_bytes(b"\0\0")
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, "extractall", extract_some)
    monkeypatch.setattr(zipfile.ZipFile, "extractall", unzip_some)
    monkeypatch.setattr(datasets.utils, "_decompress", decompress_some)
    with pytest.raises(KeyboardInterrupt):
        open_dataset(name)
    assert not folder_of(tmp_path, name).exists()
    first = host.paths()
    host.requests.clear()
    monkeypatch.setattr(tarfile.TarFile, "extractall", tar)
    monkeypatch.setattr(zipfile.ZipFile, "extractall", unzip)
    monkeypatch.setattr(datasets.utils, "_decompress", gunzip)
    found = open_dataset(name)
    assert not {path for path in first if "gone" not in path} & host.paths()  # what was whole is kept
    for part, told in PUBLIC_SETS[name].splits.items():
        kind = getattr(datasets, PUBLIC_SETS[name].home)
        assert len(found.split(part)) == len(kind(folder_of(tmp_path, name), **told))
    assert all(image.decode().size for part in found.splits.values() for image in part)


def test_a_folder_that_was_harmed_later(host, monkeypatch, tmp_path):
    make_cifar10(host, monkeypatch)
    open_dataset("cifar10")
    next(folder_of(tmp_path, "cifar10").rglob("data_batch_1")).write_bytes(b"x")
    host.requests.clear()
    with pytest.raises(BadDownload, match=r"cifar10 cannot be downloaded \(.*\); delete .*data.cifar10, and it is"):
        open_dataset("cifar10")
    assert host.requests == []


def test_a_home_that_cannot_be_written_to(host, monkeypatch, tmp_path):
    make_cifar10(host, monkeypatch)
    (tmp_path / "home").write_text("a file")
    with pytest.raises(BadOutput, match=r"data.cifar10: cannot be written"):
        open_dataset("cifar10")
    assert host.requests == []


def test_without_the_extras(host, monkeypatch):
    make_svhn(host, monkeypatch)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "scipy", None)
        without.setitem(sys.modules, "scipy.io", None)
        with pytest.raises(MissingExtra, match=r"svhn needs scipy: pip install scipy$"):
            open_dataset("svhn")
    assert len(open_dataset("svhn").split("train")) == 4
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingExtra, match=re.escape('pip install "vggkit[train]"')):
        open_dataset("svhn")
