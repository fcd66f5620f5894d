"""Weights in fewer bits: what is written is what is read back, by every reader, and damage is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import vggkit as vk
from vggkit.engines.model_weights import ModelFile
from vggkit.errors import BadCheckpoint, BadConfiguration, BadInput
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.models.configuration import Configuration
from vggkit.weights.storage import STORAGE_KEY, encode, pack_state, round_state


def make(tiny: Configuration, storage: str = "fp32") -> vk.Classifier:
    made = vk.Classifier.create(tiny, labels=["a", "b", "c"], preprocessing=choose_preprocessing(32), seed=0)
    made.card = replace(made.card, storage=storage)
    return made


def state_of(classifier: vk.Model) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in classifier.network.state_dict().items()}


@pytest.mark.parametrize("storage", ["fp16", "int8", "int4"])
def test_every_reader_restores_the_same_float32(tiny, tmp_path, storage):
    made = make(tiny, storage)
    made.save(tmp_path / "m.safetensors")
    expected = round_state(state_of(made), storage)
    loaded = vk.load(tmp_path / "m.safetensors")
    keys = [key for key in expected if not key.endswith("num_batches_tracked")]
    read = ModelFile(tmp_path / "m.safetensors").read(keys)
    for key, value in expected.items():
        assert np.array_equal(loaded.network.state_dict()[key].numpy(), value), key
        assert key not in keys or np.array_equal(read[key], value), key
    assert all(value.dtype in (torch.float32, torch.int64) for value in loaded.network.state_dict().values())
    assert loaded.card.storage == storage
    # Written again, nothing changes any more.
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").stat().st_size == (tmp_path / "m.safetensors").stat().st_size
    again = state_of(vk.load(tmp_path / "again.safetensors"))
    assert all(np.array_equal(again[key], value) for key, value in expected.items())
    assert vk.identify(tmp_path / "m.safetensors").configuration == tiny


def test_sizes_and_errors_follow_the_bits(tiny, tmp_path):
    sizes, errors = {}, {}
    for storage in ("fp32", "fp16", "int8", "int4"):
        made = make(tiny, storage)
        made.save(tmp_path / storage)
        with safe_open(tmp_path / storage, "np") as file:
            sizes[storage] = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118
        before = make(tiny).network.features[4].weight.detach()
        after = vk.load(tmp_path / storage).network.features[4].weight.detach()
        errors[storage] = float((after - before).norm() / before.norm())
    assert sizes["fp32"] > 1.8 * sizes["fp16"] > 2.4 * sizes["int8"] > 2.8 * sizes["int4"]
    assert errors["fp32"] == 0
    assert errors["fp16"] < 1e-3 < errors["int8"] < 0.02 < errors["int4"] < 0.2


def test_a_plain_file_is_still_written_for_earlier_versions(tiny):
    assert make(tiny).card.to_dict()["format_version"] == 5
    assert make(tiny, "int4").card.to_dict()["format_version"] == 6
    assert vk.Card.from_dict(make(tiny).card.to_dict()).storage == "fp32"
    with pytest.raises(BadConfiguration, match="storage must be one of fp32, fp16, int8, int4; got 'int3'"):
        replace(make(tiny).card, storage="int3")


def test_changed_weights_are_stored_in_full(tiny):
    made = make(tiny, "int4")
    assert made.card.of_other_weights().storage == "fp32"


def test_rounding_is_the_nearest_code_and_errs_least():
    rows = torch.randn(5, 400, generator=torch.Generator().manual_seed(0)).numpy()
    rows[3] = 0
    for coding, levels in (("int8", 127), ("int4", 7)):
        coded = encode(rows, coding)
        assert np.abs(coded.codes).max() <= levels
        assert (coded.restore()[3] == 0).all()
        again = encode(coded.restore(), coding)
        assert np.array_equal(again.restore(), coded.restore())
    plain = np.abs(rows).max(axis=1, keepdims=True) / 7
    plain[3] = 1
    naive = np.square(np.rint(rows / plain) * plain - rows).sum()
    assert np.square(encode(rows, "int4").restore() - rows).sum() < 0.9 * naive


def test_weights_beyond_16_bits_are_refused(tiny, tmp_path):
    made = make(tiny, "fp16")
    with torch.no_grad():
        made.network.features[4].weight[0] = 1e6
    with pytest.raises(BadInput, match=r"features\.4\.weight holds weights above 65504"):
        made.save(tmp_path / "m.safetensors")
    assert not any(tmp_path.iterdir())


def damage(path: Path, change) -> Path:
    """The file with other tensors or metadata."""
    with safe_open(path, "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    return path


def _cut(tensors, metadata):
    tensors["features.4.weight.codes"] = tensors["features.4.weight.codes"][:-9].clone()


def _lengthen(tensors, metadata):
    listed = json.loads(metadata[STORAGE_KEY])
    listed["features.4.weight"]["shape"][0] += 1
    metadata[STORAGE_KEY] = json.dumps(listed)


def _drop_scale(tensors, metadata):
    del tensors["features.4.weight.scale"]


def _drop_both(tensors, metadata):
    del tensors["features.4.weight.scale"], tensors["features.4.weight.codes"]


def _break_list(tensors, metadata):
    metadata[STORAGE_KEY] = '{"features.4.weight": {"coding": "int3", "shape": [8, 6, 3, 3]}}'


def _claim(tensors, metadata):
    listed = json.loads(metadata[STORAGE_KEY])
    listed["features.4.weight"]["shape"] = [10**6, 10**6]
    metadata[STORAGE_KEY] = json.dumps(listed)


@pytest.mark.parametrize("change", [_cut, _lengthen, _drop_scale, _drop_both, _break_list, _claim])
def test_damage_is_refused_by_every_reader(tiny, tmp_path, change):
    make(tiny, "int4").save(tmp_path / "m.safetensors")
    path = damage(tmp_path / "m.safetensors", change)
    with pytest.raises(BadCheckpoint, match=r"m\.safetensors"):
        vk.load(path)
    with pytest.raises(BadCheckpoint, match=r"m\.safetensors"):
        ModelFile(path).read(["features.4.weight"])


def test_codes_compress_to_less_than_their_bits():
    rows = torch.randn(64, 2048, generator=torch.Generator().manual_seed(0)).numpy()
    first, last = rows[:, :8].copy(), rows[:8, :8].copy()
    packed, _ = pack_state({"a.weight": first, "b.weight": rows, "c.weight": last}, "int4")
    assert 8 * packed["b.weight.codes"].nbytes / rows.size < 3.7
    assert 8 * pack_state({"b.weight": rows}, "int8")[0]["b.weight.codes"].nbytes / rows.size < 7.4
