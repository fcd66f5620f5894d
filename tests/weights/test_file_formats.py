"""What a file is, by its first bytes: any length of a safetensors header, and all that can be taken for one."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

import vggkit as vk
from vggkit.classifier import Classifier
from vggkit.errors import BadCheckpoint
from vggkit.weights.classifier_file import read_card
from vggkit.weights.formats.detect import open_weights, tell_format

MIBIBYTE = 2**20


def write_safetensors(path, header_bytes, *, lead=""):
    """A safetensors file of one tensor whose header takes so many bytes, padded as the format allows."""
    header = lead + json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
    assert len(header) <= header_bytes
    values = np.array([1.0, 2.0], np.float32).tobytes()
    path.write_bytes(header_bytes.to_bytes(8, "little") + header.ljust(header_bytes).encode() + values)
    return path


def test_a_safetensors_header_of_any_length():
    """From the shortest header to 16 MiB, and ten thousand lengths of every size up to there."""
    lengths = {*range(2, 150_000), *(int(2 ** (17 + k / 700)) for k in range(4901)), 16 * MIBIBYTE}
    for length in lengths:
        head = length.to_bytes(8, "little") + b'{"__metadata__":'
        assert tell_format(head) == "safetensors", length


@pytest.mark.parametrize(
    "header_bytes",
    # 80 02 to 80 05 begin pickles; the others gzip, bzip2, zip, HDF5, NumPy, JPEG and PDF files.
    [0x280, 0x380, 0x480, 0x580, 0x10280, 0x8B1F, 0x5A42, 0x4B50, 0x4889, 0x4E93, 0xD8FF, 0x5025],
)
@pytest.mark.parametrize("lead", ["", " ", "\n\t  "])
def test_safetensors_files_that_begin_like_others(tmp_path, header_bytes, lead):
    path = write_safetensors(tmp_path / "x.pth", header_bytes, lead=lead)
    with open_weights(path) as file:
        assert file.container == "safetensors"
        assert file.read("a").tolist() == [1, 2]


@pytest.mark.parametrize("first", [b"\x80\x02", b"\x80\x05"])
def test_a_classifier_with_any_number_of_labels(tmp_path, tiny, first):
    """A label is made so long that the header's length begins as a pickle does."""
    path = tmp_path / "many.safetensors"
    Classifier.create(tiny, labels=["a", "b", "c"], seed=0).save(path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    wanted = next(n for n in range(length, length + 2 * 65536, 8) if n.to_bytes(8, "little")[:2] == first)
    labels = ["a", "b", "c" * (1 + wanted - length)]
    Classifier.create(tiny, labels=labels, seed=0).save(path)
    assert path.read_bytes()[:2] == first
    assert vk.load(path).labels == tuple(labels)
    assert vk.identify(path).evidence == "card"


def legacy(path):
    torch.save({"features.0.weight": torch.ones(2, 2)}, path, _use_new_zipfile_serialization=False)


def zipped(path):
    torch.save({"features.0.weight": torch.ones(2, 2)}, path)


def npz(path):
    with open(path, "wb") as out:
        np.savez(out, **{"data.pkl": np.ones((2, 2)), "conv1_1/weights": np.ones((2, 2))})


def npy(path):
    with open(path, "wb") as out:
        np.save(out, {"conv1_1": [np.ones((2, 2)), np.ones(2)]}, allow_pickle=True)


def hdf5(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/conv2d/vars/0", data=np.ones((3, 3, 3, 4), np.float32))


def keras(path):
    hdf5(path.with_name("inner"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_name("inner"), "model.weights.h5")
        archive.writestr("config.json", "{}")


def plain(path):
    safetensors.torch.save_file({"a": torch.ones(2)}, path)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.npz", "x.npy", "x.h5", "x.keras", "x.txt", "x"])
@pytest.mark.parametrize(
    ("write", "container"),
    [
        (legacy, "pytorch"),
        (zipped, "pytorch"),
        (npz, "npz"),
        (npy, "npy"),
        (hdf5, "keras-3"),
        (keras, "keras-archive"),
        (plain, "safetensors"),
    ],
)
def test_names_decide_nothing(tmp_path, write, container, name):
    write(tmp_path / name)
    with open_weights(tmp_path / name) as file:
        assert file.container == container


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize(
    "value",
    [{}, {"{": 1}, {"a": [1.5] * 20}, "{" * 600, 0x7B, -1, 2**70, ("{",), [{}], {"a" * 300: "{"}, 1.5, None],
)
def test_pickles_are_never_taken_for_safetensors(protocol, value):
    content = pickle.dumps(value, protocol)
    assert tell_format(content) == "pickle"


def test_what_is_none_of_them():
    for head in (
        b"",
        b"{",
        b'{"a": 1,{"b": 2}}',
        b"[      {",
        b"<html>  {",
        bytes(7),
        b"\x80\x02",
        b"\xff" * 8 + b"{",
    ):
        assert tell_format(head) in (None, "pickle")
    assert tell_format(b'[\n      {"a": 1}]') is None  # JSON with its brace where a header has it
    assert tell_format(bytes(8) + b"{}") is None  # a header of no bytes


def test_what_breaks_off_is_told_by_what_it_was(tmp_path):
    whole = write_safetensors(tmp_path / "x.safetensors", 640).read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:300])
    with pytest.raises(BadCheckpoint, match=r"safetensors header that claims 640 bytes in a file of 300"):
        open_weights(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(whole[:-4])
    with pytest.raises(BadCheckpoint, match=r"broken or truncated safetensors"):
        open_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (legacy, "PyTorch"),
        (zipped, "PyTorch"),
        (hdf5, "HDF5"),
        (npy, "NumPy"),
        (lambda path: path.write_text("<!doctype html><p>log in"), "web page"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(99)), "gzip"),
        (lambda path: path.write_text("labels: a, b"), "text"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
    ],
)
def test_no_classifier_is_called_what_it_is(tmp_path, write, words):
    """Where a Classifier is wanted, a file of another format is named, with what can be done with it."""
    write(tmp_path / "mine.pth")
    with pytest.raises(BadCheckpoint, match=words) as caught:
        read_card(tmp_path / "mine.pth")
    said = str(caught.value)
    assert "\n" not in said
    assert "not a Classifier's" in said
    if write in (legacy, zipped, hdf5, npy):
        assert "not a VGG" in said


def test_archives_of_several_kinds(tmp_path):
    """Torch's pickle is looked for before arrays, and two of them are nobody's."""
    buffer = io.BytesIO()
    np.save(buffer, np.ones(2))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
        archive.writestr("b/data.pkl", pickle.dumps({}, 2))
    with pytest.raises(BadCheckpoint, match=r"other things \('a/data.pkl', 'b/data.pkl'\)"):
        open_weights(tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        archive.writestr("conv1_1.npy", buffer.getvalue())
        archive.writestr("notes.txt", "hello")
    with open_weights(tmp_path / "y.zip") as file:
        assert (file.container, list(file.entries)) == ("npz", ["conv1_1"])
