"""Weights out of any file: what other programs wrote is read exactly, and nothing hostile gets through."""

import argparse
import io
import itertools
import json
import math
import os
import pickle
import re
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from vggkit.errors import BadCheckpoint, MissingExtra, UnknownName
from vggkit.models.statements import LABELS_KEY
from vggkit.weights.formats import detect as containers
from vggkit.weights.formats.detect import open_weights
from vggkit.weights.formats.weight_file import DTYPES, TensorEntry
from vggkit.weights.model_file import read_weights

OLD = {"_use_new_zipfile_serialization": False}
FORMATS = [{}, OLD]


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (4, 3, 3, 3), "bias": (4,)}
    keys = itertools.product((0, 3, 10), shapes)
    state = OrderedDict((f"features.{i}.{n}", torch.randn(shapes[n], generator=generator)) for i, n in keys)
    state["features.1.num_batches_tracked"] = torch.tensor(7)
    return state


def read_all(path):
    with open_weights(path) as file:
        values = {key: file.read(key) for key in file.entries}
        for key, entry in file.entries.items():
            assert entry == TensorEntry(tuple(values[key].shape), str(values[key].dtype).removeprefix("torch."))
            assert entry.size_bytes == values[key].nbytes
            assert values[key].is_contiguous()
    return values


def same(found, expected):
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
        assert bytes_of(found[key]) == bytes_of(value), key


def bytes_of(value):
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def refused(path, *words):
    """It is refused in one printable line that names the file and says these words; the line is returned."""
    with pytest.raises(BadCheckpoint) as caught:
        read_all(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 700
    for word in words:
        assert word in message
    return message


# What torch, safetensors and NumPy write


@pytest.mark.parametrize("how", FORMATS)
def test_torchs_own_files_bit_for_bit(state, tmp_path, how):
    path = tmp_path / "misnamed.safetensors"
    torch.save(state, path, **how)
    same(read_all(path), state)
    with open_weights(str(path)) as file:
        assert (file.path, file.container, file.stripped) == (path, "pytorch", ())
        assert file.entries["features.0.weight"] == TensorEntry((4, 3, 3, 3), "float32")
        with pytest.raises(UnknownName, match=r"features\.0\.weight"):
            file.read("features.0.wieght")
    same(read_weights(path), state)


@pytest.mark.parametrize("how", FORMATS)
def test_views_parameters_and_layouts(tmp_path, how):
    numbers = torch.arange(20.0)
    tied = nn.Parameter(torch.randn(2, 3))
    content = {
        "slice": numbers[2:7],
        "turned": numbers.view(4, 5).t(),
        "strided": numbers[::3],
        "whole": numbers,
        "tied.a": tied,
        "tied.b": tied,
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "empty": torch.empty(0, 3),
        "one": torch.tensor(2.5),
        "buffer": nn.Buffer(torch.ones(2)),
    }
    torch.save(content, tmp_path / "x", **how)
    expected = torch.load(tmp_path / "x", weights_only=True)
    same(read_all(tmp_path / "x"), {key: value.detach() for key, value in expected.items()})


@pytest.mark.parametrize("how", FORMATS)
def test_every_dtype(tmp_path, how):
    bits = torch.randint(0, 100, (64,), dtype=torch.uint8)
    # torch itself has no storages of the newest types in its format from before 1.6.
    newest = {name for name in DTYPES if how == OLD and name.startswith(("float8", "uint"))} - {"uint8"}
    names = sorted(set(DTYPES) - {"bool"} - newest)
    content = {name: bits.clone().view(getattr(torch, name)) for name in names} | {"bool": bits > 50}
    torch.save(content, tmp_path / "x.pth", **how)
    same(read_all(tmp_path / "x.pth"), content)
    safetensors.torch.save_file(content, tmp_path / "x.safetensors")
    found = read_all(tmp_path / "x.safetensors")
    same({key: found[key] for key in content}, content)


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "net", "network", "weights", "ema"])
def test_wrappers_and_prefixes(state, tmp_path, wrapper, how):
    content = {wrapper: OrderedDict((f"_orig_mod.module.{key}", value) for key, value in state.items())}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"betas": (0.9, 0.99), "params": [0]}]}
    beside = {"epoch": 3, "loss": 0.5, "optimizer": optimizer, "rng": torch.get_rng_state(), "callbacks": {}}
    torch.save(beside | content, tmp_path / "x.ckpt", **how)
    same(read_all(tmp_path / "x.ckpt"), state)
    with open_weights(tmp_path / "x.ckpt") as file:
        assert file.stripped == (wrapper, "_orig_mod.", "module.")


def test_prefixes_come_off_only_where_every_key_has_them(state, tmp_path):
    safetensors.torch.save_file({f"model.{key}": value for key, value in state.items()}, tmp_path / "a")
    np.savez(tmp_path / "b.npz", **{f"net.{key}": value.numpy() for key, value in state.items()})
    assert set(read_all(tmp_path / "a")) == set(state)
    same(read_all(tmp_path / "b.npz"), state)
    torch.save({"model.a": torch.ones(1), "loss.b": torch.ones(1)}, tmp_path / "c")
    assert list(read_all(tmp_path / "c")) == ["a"]  # a criterion's state is none of the network's
    torch.save({"model.": torch.ones(1)}, tmp_path / "d")
    assert list(read_all(tmp_path / "d")) == ["model."]


def test_what_scripts_keep_beside_the_weights_is_passed_over(state, tmp_path):
    beside = {
        "args": argparse.Namespace(lr=0.1, out=Path("x")),
        "best": np.float64(0.9),
        "history": np.arange(3.0),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "shape": torch.Size([1, 2]),
        "classes": {"a", "b"},
        (1, 2): frozenset([3]),
    }
    torch.save({"state_dict": state, **beside}, tmp_path / "x.pth")
    same(read_all(tmp_path / "x.pth"), state)


def test_objects_of_packages_that_are_not_installed_are_passed_over(state, tmp_path, monkeypatch):
    """As Lightning and others keep their settings: a dict subclass, and an OrderedDict's."""
    import types

    room = types.ModuleType("lightning_fabric.utilities.data")
    room.AttributeDict = type("AttributeDict", (dict,), {"__module__": room.__name__})
    other = types.ModuleType("easydict")
    other.EasyDict = type("EasyDict", (OrderedDict,), {"__module__": "easydict"})
    rooms = {"lightning_fabric": types.ModuleType("x"), "lightning_fabric.utilities": types.ModuleType("x")}
    for name, module in {**rooms, room.__name__: room, "easydict": other}.items():
        monkeypatch.setitem(sys.modules, name, module)
    settings = other.EasyDict(model="vgg11")
    settings.lr = 0.1  # an attribute of its own
    beside = {"hyper_parameters": room.AttributeDict(lr=0.1), "config": settings, "names": Path("x")}
    torch.save({"state_dict": state, **beside}, tmp_path / "x.ckpt")
    for name in (*rooms, room.__name__, "easydict"):
        monkeypatch.delitem(sys.modules, name)
    same(read_all(tmp_path / "x.ckpt"), state)


def test_a_checkpoint_of_mmpretrain_is_read(state, tmp_path, monkeypatch):
    """It has its history of figures beside the weights, whose class pickles its own methods by name."""
    import types

    room = types.ModuleType("mmengine.logging.history_buffer")
    source = """
class HistoryBuffer:
    def __init__(self):
        self._log_history, self._count_history = np.arange(3.0), np.ones(3)
        self._statistics_methods = OrderedDict(min=HistoryBuffer.min)
    @classmethod
    def min(cls):
        return 0
    def __getstate__(self):
        return {**self.__dict__, "statistics_methods": self._statistics_methods}
"""
    exec(source, {"np": np, "OrderedDict": OrderedDict, "__name__": room.__name__}, vars(room))
    room.HistoryBuffer.__init__.__globals__["HistoryBuffer"] = room.HistoryBuffer
    rooms = {name: types.ModuleType(name) for name in ("mmengine", "mmengine.logging")} | {room.__name__: room}
    for name, module in rooms.items():
        monkeypatch.setitem(sys.modules, name, module)
    content = {
        "meta": {"cfg": "model = dict()", "epoch": 3, "dataset_meta": {"classes": ("ant", "bee"), "palette": None}},
        "state_dict": {f"backbone.{key}": value for key, value in state.items()},
        "message_hub": {
            "log_scalars": OrderedDict({"train/loss": room.HistoryBuffer()}),
            "runtime_info": OrderedDict(epoch=3, lr=np.float64(0.1)),
            "resumed_keys": OrderedDict({"train/loss": True}),
        },
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }
    for how in FORMATS:
        torch.save(content, tmp_path / "x.pth", **how)
        for name in rooms:
            monkeypatch.delitem(sys.modules, name)
        same(read_all(tmp_path / "x.pth"), state)
        with open_weights(tmp_path / "x.pth") as file:
            assert json.loads(file.metadata[LABELS_KEY]) == ["ant", "bee"]
        for name, module in rooms.items():
            monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols_of_pickle(state, tmp_path, protocol, how):
    """Torch's own unpickler reads 2 and 3; of the others the message has the line that saves them again."""
    path = tmp_path / "x.pth"
    torch.save({"state_dict": state, "epoch": 3}, path, pickle_protocol=protocol, **how)
    if protocol > 3:
        message = refused(path, f"a pickle of protocol {protocol}, of which torch reads 2 and 3 alone")
        line = re.search(r"write (torch\.save\(.*\))", message)[1].replace("FILE", repr(str(path)))
        exec(line.replace('"weights.pth"', repr(str(path))))
    same(read_all(path), state)


def test_wrappers_that_hold_no_tensors_are_no_wrappers(state, tmp_path):
    content = {"model": {"name": "vgg11"}, "net": {}, "ema": {"model": state}, "weights": {"from": "x"}}
    torch.save(content, tmp_path / "x.pth")
    same(read_all(tmp_path / "x.pth"), state)
    content["model"] = content
    torch.save(content, tmp_path / "x.pth")
    same(read_all(tmp_path / "x.pth"), state)
    torch.save({**state, "model": {"name": "vgg11"}}, tmp_path / "x.pth")
    same(read_all(tmp_path / "x.pth"), state)


def repack(source, target, change, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def test_packed_and_big_endian_archives(state, tmp_path):
    torch.save(state, tmp_path / "a.pth")
    repack(tmp_path / "a.pth", tmp_path / "packed", lambda _, data: data, zipfile.ZIP_DEFLATED)
    same(read_all(tmp_path / "packed"), state)

    def turn(name, data):
        if name.endswith("byteorder"):
            return b"big"
        width = 8 if len(data) == 8 else 4
        return np.frombuffer(data, f"V{width}").view(f"u{width}").byteswap().tobytes() if "/data/" in name else data

    repack(tmp_path / "a.pth", tmp_path / "big", turn)
    same(read_all(tmp_path / "big"), state)


def test_safetensors_keeps_its_metadata(state, tmp_path):
    safetensors.torch.save_file(state, tmp_path / "x.pth", {"made": "here"})
    with open_weights(tmp_path / "x.pth") as file:
        assert (file.container, dict(file.metadata)) == ("safetensors", {"made": "here"})
    found = read_all(tmp_path / "x.pth")
    same({key: found[key] for key in state}, state)


def test_values_stay_when_the_file_goes(state, tmp_path):
    for write, name in ((torch.save, "x.pth"), (safetensors.torch.save_file, "x.safetensors")):
        write(state, tmp_path / name)
        with open_weights(tmp_path / name) as file:
            value = file.read("features.0.weight")
        (tmp_path / name).write_bytes(b"\0" * (tmp_path / name).stat().st_size)
        assert torch.equal(value, state["features.0.weight"])


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_numpy_archives(tmp_path, write):
    content = {
        "conv1_1/kernel": np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype("f4"),
        "columns": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
        "big": np.arange(5, dtype=">i4"),
        "flags": np.array([True, False]),
        "one": np.array(3, "u1"),
        "none": np.zeros((0, 2), "f2"),
    }
    write(tmp_path / "x.npz", labels=np.array(["ant", "bee"]), **content)
    found = read_all(tmp_path / "x.npz")
    assert [*found] == [*content]
    for key, value in content.items():
        assert np.array_equal(found[key].numpy(), value)


def test_real_files(shared):
    folder = shared / "weights"
    with open_weights(folder / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth") as file:
        assert len(file.entries) == 24
        assert file.entries["features.34.bias"] == TensorEntry((512,), "float32")
        expected = torch.load(file.path, weights_only=True)
        same({key: file.read(key) for key in file.entries}, expected)
    normalised = folder / "vgg_normalised_conv3_1.pth"
    same(read_all(normalised), torch.load(normalised, weights_only=True))
    with open_weights(folder / "vgg16_oxford_conv1_1-2_1_hwio_bgr.npz") as file:
        layers = ("block1_conv1", "block1_conv2", "block2_conv1")
        assert list(file.entries) == [f"{layer}/{leaf}" for layer in layers for leaf in ("kernel", "bias_q")]
        assert file.entries["block2_conv1/kernel"] == TensorEntry((3, 3, 64, 128), "float32")
    refused(next(folder.glob("TRUNCATED*")), "truncated", "again")
    refused(next(folder.glob("LFSPOINTER*")), "git lfs pull")


# What is no file of weights


def test_what_is_no_file_of_weights(tmp_path):
    def write(data):
        (tmp_path / "x.pth").write_bytes(data)
        return tmp_path / "x.pth"

    refused(tmp_path, "folder")
    refused(tmp_path / "missing.pth", "no such file")
    refused(write(b""), "0 bytes")
    refused(write(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), "git lfs pull")
    refused(write(b"\r\n<!DOCTYPE html><html>\n<b>Log in</b>"), "web page")
    refused(write("Käse\n".encode() * 999), "text", "K\\xe4se")
    refused(write(b"[1, 2]"), "text")
    refused(write(b"\x1f\x8b\x08" + bytes(99)), "gzip", "unpack")
    refused(write(bytes(20)), "no known kind")
    refused(write(b"\x80"), "no known kind")
    refused(write(b"PK\x05\x06" + bytes(18)), "empty zip")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("inside/vgg.pth", b"123")
    refused(tmp_path / "x.zip", "inside/vgg.pth", "unpack")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused(tmp_path / "pipe", "found")


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(2)], ["no tensors", "list"]),
        ((1, 2), ["no tensors", "tuple"]),
        ({}, ["no tensors", "empty"]),
        ({"epoch": 3, "note\n": "x"}, ["no tensors", "'epoch'", "state_dict()"]),
        (torch.ones(2), ["no tensors", "one tensor"]),
        ({"generator": {"a": torch.ones(2)}}, ["no tensors", "'generator'"]),
        ({"a": torch.ones(2, dtype=torch.complex64)}, ["'a'", "complex"]),
        ({"a": torch.eye(3).to_sparse()}, ["'a'", "sparse"]),
        ({"a": torch.empty(3, device="meta")}, ["'a'", "meta"]),
        ({"w": torch.zeros(1).expand(2**20, 2**20)}, ["'w'", "expanded"]),
        ({"\x1b[31mred\n": torch.ones(1)}, ["cannot be printed"]),
        ({"a": torch.tensor([1.0, math.nan, math.inf])}, ["'a'", "2 of 3", "NaN"]),
        ({"a": torch.full((3,), -math.inf).bfloat16()}, ["'a'", "3 of 3"]),
        ({"a": torch.full((3,), math.nan).half()}, ["'a'", "3 of 3"]),
    ],
)
def test_contents_that_are_no_weights(tmp_path, content, words, how):
    torch.save(content, tmp_path / "x.pth", **how)
    refused(tmp_path / "x.pth", *words)


def test_quantized_tensors_are_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "'a'", "quantized")


# What would run code


class Bomb:
    def __init__(self, function=os.mkdir, *arguments):
        self.call = function, arguments or ("exploded",)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize(
    "function",
    [os.mkdir, os.system, eval, exec, __import__, getattr, subprocess.run, torch.load, torch.nn.init.zeros_],
)
def test_pickles_that_would_run_code(state, tmp_path, monkeypatch, function, how):
    monkeypatch.chdir(tmp_path)
    for content in (
        Bomb(function),
        {"state_dict": state, "x": Bomb(function)},
        {Bomb(function).call: 1, 2: Bomb(function)},
    ):
        torch.save(content, tmp_path / "x.pth", **how)
        message = refused(tmp_path / "x.pth", "nothing of it was run")
        assert "would run code" in message
    assert names_in(tmp_path) == ["x.pth"]


def test_raw_pickles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "x.pth").write_bytes(pickle.dumps(Bomb(), protocol))
        refused(tmp_path / "x.pth", "torch did not write" if protocol > 1 else "found")
        (tmp_path / "x.pth").write_bytes(pickle.dumps({"a": [1.5] * 20, "b": np.ones(3)}, protocol))
        refused(tmp_path / "x.pth", "torch did not write" if protocol > 1 else "found")
    # Instances, extension codes, and writing into the stand-ins themselves.
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    for body in (
        b"\x80\x02(V1\nios\nmkdir\n.",
        b"\x80\x02(cos\nmkdir\nV1\no.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02ccollections\nOrderedDict\n}V__class__\nNs\x86b.",
        b"\x80\x02ccollections\nOrderedDict.__init__\n.",
        b"\x80\x04\x8c\x0bcollections\x8c\x17OrderedDict.__class__\x93.",
        b"\x80\x02ctorch\nfloat32.__class__\n.",
        b"\x80\x02}r\xff\xff\xff\x7f.",
        b"\x80\x02" + b"]" * 100 + b".",
        b"\x80\x02.",
    ):
        (tmp_path / "x.pth").write_bytes(magic + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + body + b"\x80\x02].")
        refused(tmp_path / "x.pth")
    assert names_in(tmp_path) == ["x.pth"]


@pytest.mark.parametrize("how", FORMATS)
def test_whole_modules_have_their_own_sentence(tmp_path, how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"model": nn.Sequential(nn.Conv2d(1, 1, 1))}, tmp_path / "x.pth", **how)
    refused(tmp_path / "x.pth", "whole pickled module", "torch.nn.modules.container.Sequential", "state_dict()")


def test_torchscript_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        for name in ("x/data.pkl", "x/constants.pkl", "x/code/__torch__.py"):
            archive.writestr(name, pickle.dumps({}, 2))
    refused(tmp_path / "x.pt", "TorchScript")


def test_objects_in_numpy_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objects = np.array({"conv1_1": [Bomb()]}, dtype=object)
    np.savez(tmp_path / "x.npz", a=np.ones(2), b=objects)
    refused(tmp_path / "x.npz", "'b'", "would run code", "savez")
    np.save(tmp_path / "x.npy", objects)
    refused(tmp_path / "x.npy", "would run code", "savez")
    np.save(tmp_path / "x.npy", np.ones(3))
    refused(tmp_path / "x.npy", "names no layer", "savez")
    np.savez(tmp_path / "x.npz", a=np.ones(2, "c8"))
    refused(tmp_path / "x.npz", "complex64")
    assert names_in(tmp_path) == ["x.npy", "x.npz"]


# What claims more than it holds


def claim_in_pickle(shape, stride, numel=1, **how):
    """A torch file whose one tensor claims this shape of a storage of this size."""
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(1)}, buffer)

    class Record:
        def __init__(self, *reduced):
            self.reduced = reduced

        def __reduce__(self):
            return self.reduced

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if thing == "the storage" else None

    data = io.BytesIO()
    arguments = ("the storage", 0, shape, stride, False, OrderedDict())
    Pickler(data, 2).dump({"w": Record(torch._utils._rebuild_tensor_v2, arguments)})
    target = io.BytesIO()
    repack(buffer, target, lambda name, old: data.getvalue() if name.endswith("data.pkl") else old)
    return target.getvalue()


def patch_directory(data, at, value, form="<I"):
    """The zip with a number of its first directory entry changed."""
    start = data.index(b"PK\x01\x02") + at
    return data[:start] + struct.pack(form, value) + data[start + struct.calcsize(form) :]


def zipped(members, compression=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy_header(shape, dtype="<f4"):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def write_claims(folder):
    """Files that claim terabytes, each by another number."""
    tensor = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    header = json.dumps({"w": tensor}).encode()
    old = io.BytesIO()
    torch.save({"w": torch.zeros(4)}, old, **OLD)
    old = old.getvalue()
    npz = zipped({"a.npy": npy_header((2,)) + bytes(8)})
    end = npz.index(b"PK\x05\x06")
    stored = zipped({"a.npy": npy_header((2,)) + bytes(8)}, zipfile.ZIP_STORED)
    claims = {
        "length.safetensors": struct.pack("<Q", 2**60) + b'{"w":1}',
        "shape.safetensors": struct.pack("<Q", len(header)) + header + bytes(64),
        "shape.pth": claim_in_pickle((2**40,), (1,)),
        "storage.pth": claim_in_pickle((2**40,), (1,), 2**40),
        "stride.pth": claim_in_pickle((2,), (2**40,), 2**41),
        "expanded.pth": claim_in_pickle((2**20, 2**20), (0, 0)),
        "old.pth": old[:-24] + struct.pack("<q", 2**58) + old[-16:],
        "memo.pth": b"\x80\x02}r\xff\xff\xff\x7f.",
        "text.pth": b"\x80\x02X\xff\xff\xff\x7f",
        "bytes.pth": b"\x80\x04\x8e" + struct.pack("<Q", 2**40),
        "shape.npz": zipped({"a.npy": npy_header((2**40,)) + bytes(64)}),
        "header.npz": zipped({"a.npy": b"\x93NUMPY\x02\0" + struct.pack("<I", 2**32 - 1) + bytes(64)}),
        "member.npz": patch_directory(npz, 24, 2**32 - 16),
        "stored.npz": patch_directory(stored, 20, 2**32 - 16),
        "directory.npz": npz[: end + 12] + struct.pack("<I", 2**31) + npz[end + 16 :],
        "shape.npy": npy_header((2**40,)),
    }
    for name, data in claims.items():
        (folder / name).write_bytes(data)
    for name, options in (
        ("contiguous.h5", {}),
        ("chunked.h5", {"chunks": (2**20,)}),
        ("packed.h5", {"chunks": (2**20,), "compression": "gzip"}),
        ("onechunk.h5", {"chunks": (2**29,), "compression": "gzip"}),
    ):
        with h5py.File(folder / name, "w") as file:
            file.create_dataset("layers/conv2d/vars/0", (2**40,), "f4", **options)
    archive = zipped({"config.json": "{}", "model.weights.h5": (folder / "contiguous.h5").read_bytes()})
    (folder / "inner.keras").write_bytes(archive)
    with open(folder / "sparse.pth", "wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(2**42)
    return sorted(path for path in folder.iterdir() if path.suffix != ".py")


MEASURE = """
import resource, sys
from vggkit.errors import BadCheckpoint
from vggkit.weights.formats.detect import open_weights
start = None
for path in sys.argv[1:]:
    try:
        with open_weights(path) as file:
            for key in file.entries: file.read(key)
        assert "good" in path, path
    except BadCheckpoint as problem:
        print(problem)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # The good files come first: they load every library.
    if "good" in path: start = peak
    else: assert peak - start < 2**15, (path, peak - start)
"""


def test_claims_of_terabytes_take_no_memory(state, tmp_path):
    pytest.importorskip("resource")
    good = [tmp_path / f"good{number}" for number in range(3)]
    torch.save(state, good[0])
    safetensors.torch.save_file(state, good[1])
    with h5py.File(good[2], "w") as file:
        file["layers/conv2d/vars/0"] = np.ones((2, 2), "f4")
    (tmp_path / "claims").mkdir()
    claims = write_claims(tmp_path / "claims")
    for path in claims:
        refused(path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *good, *claims], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(claims)


def test_bombs_that_do_unpack(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "_PACKED_SLACK_BYTES", 2**20)
    zeros = bytes(2**24)
    (tmp_path / "x.npz").write_bytes(zipped({"a.npy": npy_header((2**22,)) + zeros}))
    refused(tmp_path / "x.npz", "claim", str(2**24))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("layers/conv2d/vars/0", data=np.zeros(2**22, "f4"), compression="gzip")
    refused(tmp_path / "x.h5", "claim", str(2**24))
    torch.save({"a": torch.zeros(2**22)}, tmp_path / "a.pth")
    repack(tmp_path / "a.pth", tmp_path / "x.pth", lambda _, data: data, zipfile.ZIP_DEFLATED)
    refused(tmp_path / "x.pth", "claim")


def test_many_keys_of_one_storage(tmp_path):
    shared_by_all = torch.zeros(2**20)
    torch.save({f"a{number}": shared_by_all for number in range(8)}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "claim", str(2**25))


def test_strange_zips(state, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            for _ in range(2):
                archive.writestr("a.npy", npy_header((1,)) + bytes(4))
    refused(tmp_path / "x.npz", "two members of one name")
    good = zipped({"a.npy": npy_header((1,)) + bytes(4)})
    (tmp_path / "x.npz").write_bytes(patch_directory(good, 8, 1, "<H"))
    refused(tmp_path / "x.npz", "encrypted")
    (tmp_path / "x.npz").write_bytes(zipped({"a.npy": b"123"}, zipfile.ZIP_LZMA))
    refused(tmp_path / "x.npz", "compression")
    np.savez(tmp_path / "x.npz", a=np.arange(99.0))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[300] ^= 1
    (tmp_path / "x.npz").write_bytes(data)
    refused(tmp_path / "x.npz", "CRC")


# Keras


CONVOLUTIONS = 12


@pytest.fixture(scope="module")
def keras_files(tmp_path_factory):
    """A model with more than ten convolutions whose names sort otherwise than they stand, in all three formats."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    folder = tmp_path_factory.mktemp("keras")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras = pytest.importorskip("keras")
        if keras.backend.backend() != "torch":
            pytest.skip("needs Keras on torch")
        keras.utils.clear_session()  # names count what other tests have built in this process
        names = [f"c_{chr(ord('z') - number)}" for number in range(CONVOLUTIONS)]
        model = keras.Sequential([keras.Input((8, 8, 3))])
        for number, name in enumerate(names):
            model.add(keras.layers.Conv2D(2 + number, 3, padding="same", name=name))
        model.add(keras.layers.BatchNormalization(name="norm"))
        model.add(keras.layers.Flatten())
        model.add(keras.layers.Dense(5, name="first", dtype="bfloat16"))
        model.add(keras.layers.Dropout(0.5, seed=1))
        model.add(keras.layers.Dense(3, name="answers", dtype="float16"))
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)
        model.save_weights(folder / "x.weights.h5")
        model.save(folder / "x.keras")
        model.save(folder / "x.h5")
        inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="in1"), keras.layers.Dense(2)])
        outer = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(1, name="out")])
        for name in ("nested.weights.h5", "nested.keras", "nested.h5"):
            outer.save_weights(folder / name) if "weights" in name else outer.save(folder / name)
    leaves = ("kernel", "bias")
    norm = ("gamma", "beta", "moving_mean", "moving_variance")
    values = {
        f"{layer.name}/{leaf}": variable.value.detach().cpu()
        for layer in model.layers
        if layer.weights
        for leaf, variable in zip(norm if layer.name == "norm" else leaves, layer.weights, strict=False)
    }
    return folder, values


def test_keras_archives_and_full_models(keras_files):
    folder, values = keras_files
    for name, container in (("x.keras", "keras-archive"), ("x.h5", "keras-h5")):
        same(read_all(folder / name), values)
        with open_weights(folder / name) as file:
            assert (file.container, file.stripped) == (container, ())


def test_keras_weights_are_ordered_by_number(keras_files):
    folder, values = keras_files
    with open_weights(folder / "x.weights.h5") as file:
        assert file.container == "keras-3"
        kernels = [key for key in file.entries if key.endswith("/kernel")]
        counted = ["conv2d", *(f"conv2d_{number}" for number in range(1, CONVOLUTIONS)), "dense", "dense_1"]
        assert kernels == [f"{name}/kernel" for name in counted]
        for number, name in enumerate(counted[:CONVOLUTIONS]):
            assert torch.equal(file.read(f"{name}/kernel"), values[f"c_{chr(ord('z') - number)}/kernel"])
    # Files of Keras 2.13 call the room otherwise, and name nothing.
    with h5py.File(folder / "x.weights.h5") as old, h5py.File(folder / "y.weights.h5", "w") as new:
        old.copy("layers", new, "_layer_checkpoint_dependencies", without_attrs=True)
    assert list(read_all(folder / "y.weights.h5")) == list(read_all(folder / "x.weights.h5"))


def test_models_within_models(keras_files):
    folder, _ = keras_files
    assert list(read_all(folder / "nested.keras")) == [
        f"{layer}/{leaf}" for layer in ("in1", "dense", "out") for leaf in ("kernel", "bias")
    ]
    legacy = read_all(folder / "nested.h5")
    assert {key.split("/")[0] for key in legacy} == {"in1", "dense", "out"}
    counted = read_all(folder / "nested.weights.h5")
    assert list(counted)[:2] == ["dense/kernel", "dense/bias"] or "sequential/dense/kernel" in counted
    assert sorted(map(len, (legacy, counted))) == [6, 6]


def test_a_packed_keras_archive_leaves_nothing_behind(keras_files, tmp_path, monkeypatch):
    folder, values = keras_files
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    repack(folder / "x.keras", tmp_path / "x.keras", lambda _, data: data, zipfile.ZIP_DEFLATED)
    same(read_all(tmp_path / "x.keras"), values)
    cut = lambda name, data: data[: len(data) // 2] if name.endswith("h5") else data  # noqa: E731
    repack(folder / "x.keras", tmp_path / "y.keras", cut, zipfile.ZIP_DEFLATED)
    refused(tmp_path / "y.keras", "truncated")
    assert names_in(tmp_path / "temporary") == []


def write_legacy(path, layers, *, base="", spell="{layer}/{layer}/kernel:0", listed=None, **how):
    """A file as Keras 1 and 2 wrote it: layers are `(name, kernel, bias)`."""
    with h5py.File(path, "w", **how) as file:
        group = file.require_group(base) if base else file
        group.attrs["layer_names"] = listed or np.array([name.encode() for name, *_ in layers])
        group.attrs["keras_version"] = b"2.0"
        for name, *values in layers:
            layer = group.create_group(name)
            keys = [
                spell.format(layer=name),
                spell.format(layer=name).replace("kernel", "bias").replace("_W", "_b"),
            ]
            layer.attrs["weight_names"] = [key.split("/", 1)[1].encode() for key in keys]
            for key, value in zip(keys, values, strict=True):
                group[key] = value


@pytest.mark.parametrize("how", [{}, {"libver": "latest"}])
@pytest.mark.parametrize("base", ["", "model_weights"])
@pytest.mark.parametrize(
    "spell", ["{layer}/{layer}/kernel:0", "{layer}/{layer}_W_1:0", "{layer}/kernel:0", "{layer}/{layer}_1/kernel:0"]
)
def test_legacy_files(tmp_path, spell, base, how):
    rng = np.random.default_rng(0)
    names = [*(f"block{number}_conv1" for number in (10, 2, 1)), "fc1", "answers"]
    layers = [(name, rng.normal(size=(3, 3, 2, 4)).astype("f4"), rng.normal(size=4).astype("f4")) for name in names]
    write_legacy(tmp_path / "x.h5", layers, base=base, spell=spell, **how)
    found = read_all(tmp_path / "x.h5")
    assert list(found) == [f"{name}/{leaf}" for name in names for leaf in ("kernel", "bias")]
    for name, kernel, bias in layers:
        assert np.array_equal(found[f"{name}/kernel"].numpy(), kernel)
        assert np.array_equal(found[f"{name}/bias"].numpy(), bias)
    with open_weights(tmp_path / "x.h5") as file:
        assert file.container == "keras-h5"


def test_hdf5_that_points_elsewhere(tmp_path):
    kernel = np.ones((3, 3), "f4")
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["secret"] = kernel

    def write(make):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["layers/conv2d/vars/0"] = kernel
            make(file, file["layers/conv2d/vars"])
        return tmp_path / "x.h5"

    def virtual(_, group):
        layout = h5py.VirtualLayout((3, 3), "f4")
        layout[:] = h5py.VirtualSource(secret, "secret", (3, 3))
        group.create_virtual_dataset("1", layout)

    def external(_, group):
        group.create_dataset("1", (3,), "f4", external=[(str(secret), 0, 12)])

    def link(_, group):
        group["1"] = h5py.ExternalLink(str(secret), "secret")

    def soft(_, group):
        group["1"] = h5py.SoftLink("/layers")

    def cycle(file, group):
        group["1"] = file["layers"]

    refused(write(virtual), "'1'", "other files")
    refused(write(external), "'1'", "other files")
    refused(write(link), "'1'", "not followed")
    refused(write(soft), "'1'", "not followed")
    refused(write(cycle), "layers/conv2d/vars/1", "another path")
    refused(
        write(
            lambda _, group: group.create_dataset(
                "1", data=np.array([b"x"], dtype=object), dtype=h5py.string_dtype()
            )
        ),
        "type object",
    )
    refused(secret, "without Keras' layers")


@pytest.mark.parametrize("damage", [b"\0" * 16, b"\1\0\1\0\0\0\0\0" + b"\xff" * 8])
def test_a_broken_heap_of_texts_is_refused_at_once(tmp_path, damage):
    """HDF5's library would look in it for ever."""
    layers = [("a", np.ones((3, 3, 1, 2), "f4"), np.zeros(2, "f4"))]
    write_legacy(tmp_path / "x.h5", layers, listed=["a"])
    assert list(read_all(tmp_path / "x.h5")) == ["a/kernel", "a/bias"]
    data = bytearray((tmp_path / "x.h5").read_bytes())
    place = data.index(b"GCOL") + 16
    data[place : place + 16] = damage
    (tmp_path / "x.h5").write_bytes(data)
    refused(tmp_path / "x.h5", "broken or truncated HDF5 file", "download")


def test_keras_files_need_h5py(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.ones((2, 2), "f4")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtra, match=r"vggkit\[weights\]"):
        open_weights(tmp_path / "x.h5")


# Anything at all


@pytest.fixture(scope="module")
def originals():
    """A small real file of every container, as bytes."""
    state = {"a.weight": torch.randn(2, 1, 3, 3), "a.bias": torch.zeros(2), "n": torch.tensor(1)}
    arrays = {key: value.numpy() for key, value in state.items()}
    files = {}

    def keep(name, write):
        buffer = io.BytesIO()
        write(buffer)
        files[name] = buffer.getvalue()

    keep("zip.pth", lambda buffer: torch.save({"state_dict": state}, buffer))
    keep("old.pth", lambda buffer: torch.save(state, buffer, **OLD))
    keep("a.npz", lambda buffer: np.savez(buffer, **arrays))
    keep("packed.npz", lambda buffer: np.savez_compressed(buffer, **arrays))
    keep("a.npy", lambda buffer: np.save(buffer, arrays["a.weight"]))
    files["a.safetensors"] = safetensors.torch.save(state, {"x": "y"})
    layers = [("a", arrays["a.weight"], arrays["a.bias"])]
    keep("legacy.h5", lambda buffer: write_legacy(buffer, layers, listed=["a"]))

    def write_numbered(buffer):
        with h5py.File(buffer, "w") as file:
            file["layers/conv2d/vars/0"] = arrays["a.weight"]
            file["layers/conv2d/vars"].attrs["name"] = "a"
            file.create_dataset("layers/dense/vars/0", data=arrays["a.bias"], chunks=(2,), compression="gzip")

    keep("numbered.h5", write_numbered)
    config = {"config": {"layers": [{"class_name": "Conv2D", "config": {"name": "a"}}]}}
    members = {"config.json": json.dumps(config), "model.weights.h5": files["numbered.h5"]}
    files["stored.keras"] = zipped(members, zipfile.ZIP_STORED)
    files["packed.keras"] = zipped(members)
    return files


WHOLE = ["zip.pth", "old.pth", "a.npz", "packed.npz", "a.safetensors", "legacy.h5", "stored.keras"]
PATCHES = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([b"\0" * 8, b"\xff" * 8, b"\xff" * 4, b"\x7f", b"\x80", b"(", b".", b"PK\x01\x02"]),
)


@pytest.mark.parametrize(
    "name",
    [*WHOLE, "a.npy", "numbered.h5"],
)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    patches=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), PATCHES), max_size=6),
    keep=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_broken_files_are_read_or_refused(originals, tmp_path, name, patches, keep):
    data = bytearray(originals[name])
    for place, patch in patches:
        start = int(place * len(data))
        data[start : start + len(patch)] = patch
    path = tmp_path / name
    path.write_bytes(data[: math.ceil(keep * len(data))])
    problem = None
    try:
        values = read_all(path)
    except BadCheckpoint as caught:
        problem = str(caught)
    if problem is None:
        assert sum(value.nbytes for value in values.values()) < 2**24
    else:
        assert problem.startswith(f"{path}: ")
        assert problem.isprintable()
    assert names_in(tmp_path) == [name]


@pytest.mark.parametrize("name", WHOLE)
def test_whatever_breaks_off_is_refused(originals, tmp_path, name):
    data = originals[name]
    for length in {1, 7, 9, 100, len(data) // 3, len(data) // 2, len(data) - 30, len(data) - 1}:
        (tmp_path / name).write_bytes(data[:length])
        refused(tmp_path / name)
