"""`.npy` files that hold a dict of arrays, as Oxford's networks are handed on."""

import io
import pickle
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vggkit.classifier import Classifier
from vggkit.errors import BadCheckpoint
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG
from vggkit.weights.convert import convert
from vggkit.weights.formats.detect import open_weights
from vggkit.weights.identify import identify

RNG = np.random.default_rng(0)
ARRAYS = {
    "conv1_1": [RNG.normal(size=(3, 3, 3, 4)).astype("<f4"), RNG.normal(size=4).astype("<f4")],
    "fc6": [np.asfortranarray(RNG.normal(size=(8, 5))).astype("<f4", order="K"), RNG.normal(size=5).astype(">f8")],
}


def npy(value, protocol):
    """As np.save writes it, with any protocol of pickle."""
    array = np.empty((), dtype=object)
    array[()] = value
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": ()})
    return buffer.getvalue() + pickle.dumps(array, protocol)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("form", ["pairs", "named", "flat"])
def test_every_form_and_protocol_is_read_bit_for_bit(tmp_path, protocol, form):
    kinds = ("weights", "biases")
    value = {
        "pairs": ARRAYS,
        "named": {name: dict(zip(kinds, pair, strict=True)) for name, pair in ARRAYS.items()},
        "flat": {f"{name}/{kind}": a for name, pair in ARRAYS.items() for kind, a in zip(kinds, pair, strict=True)},
    }[form]
    (tmp_path / "x.npy").write_bytes(npy(value, protocol))
    with open_weights(tmp_path / "x.npy") as file:
        assert file.container == "npy"
        for name, pair in ARRAYS.items():
            for kind, array in zip(kinds, pair, strict=True):
                found = file.read(f"{name}/{kind}")
                assert torch.equal(found, torch.from_numpy(array.astype(array.dtype.newbyteorder("="))))


def test_bytes_as_python_2_wrote_them(tmp_path):
    """Its pickles hold bytes as strings; made here from the bytes that Python 3 writes."""
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    data = npy({"conv1_1": [array, np.zeros(2, "<f4")]}, 3)
    for raw in (array.tobytes(), np.zeros(2, "<f4").tobytes()):
        short = b"C" + bytes([len(raw)]) + raw  # SHORT_BINBYTES
        assert short in data
        data = data.replace(short, b"T" + struct.pack("<i", len(raw)) + raw)  # BINSTRING
    (tmp_path / "x.npy").write_bytes(data)
    with open_weights(tmp_path / "x.npy") as file:
        assert torch.equal(file.read("conv1_1/weights"), torch.from_numpy(array))


def test_an_oxford_file_is_identified_and_converted(tmp_path):
    small = replace(
        configure("vgg11", num_classes=7),
        blocks=((4,), (6,), (8, 8), (8, 8), (8, 8)),
        hidden=(16, 16),
        grid=7,
    )
    network = VGG(small).eval()
    state = network.state_dict()
    content = {}
    for layer in small.trunk:
        if layer.kind == "conv":
            kernel, bias = state[f"features.{layer.index}.weight"], state[f"features.{layer.index}.bias"]
            content[layer.name] = [kernel.permute(2, 3, 1, 0).contiguous().numpy(), bias.numpy()]
    for fc in small.fully_connected:
        matrix, bias = state[f"classifier.{fc.index}.weight"], state[f"classifier.{fc.index}.bias"]
        if fc.name == "fc6":
            matrix = matrix.view(-1, 8, 7, 7).permute(0, 2, 3, 1).reshape(16, -1)
        content[fc.name] = [matrix.T.contiguous().numpy(), bias.numpy()]
    path = tmp_path / "vgg.npy"
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    found = identify(path)
    assert found.configuration == small
    assert found.complete
    convert(path, tmp_path / "x.pth", to="torchvision")
    again = VGG(small).eval()
    again.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True))
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(again(images), network(images))
    taken = Classifier.create(small, labels=list("abcdefg"), weights=path)
    assert torch.equal(taken.network.features[0].weight, network.features[0].weight)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('exploded')",))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"conv1_1": [Bomb(), np.ones(1)]}, "would run code"),
        ({}, "without arrays"),
        ({"a": "text"}, "without arrays"),
        ({"a": np.ones(2, "c8")}, "not read"),
        ({"a": np.array([{}], dtype=object)}, "without arrays"),
        ([np.ones(2)], "without arrays"),
    ],
)
def test_what_is_no_dict_of_numbers_is_refused(tmp_path, value, reason):
    (tmp_path / "x.npy").write_bytes(npy(value, 4))
    with pytest.raises(BadCheckpoint, match=reason):
        open_weights(tmp_path / "x.npy")


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 900), noise=st.binary(min_size=1, max_size=12), protocol=st.integers(0, 4))
def test_damaged_files_are_read_or_refused(tmp_path_factory, position, noise, protocol):
    data = npy(ARRAYS, protocol)
    path = tmp_path_factory.mktemp("npy") / "x.npy"
    path.write_bytes(data[:position] + noise + data[position + len(noise) :])
    try:
        with open_weights(path) as file:
            for key in file.entries:
                file.read(key)
    except BadCheckpoint:
        pass
