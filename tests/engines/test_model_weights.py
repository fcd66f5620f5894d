"""A Classifier's file gives its weights without torch, whole and finite, or says what is wrong with it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vggkit.classifier import Classifier
from vggkit.engines.model_weights import ModelFile, NetworkWeights, find_weights
from vggkit.engines.outputs import plan_outputs
from vggkit.engines.pytorch import PyTorchEngine
from vggkit.errors import BadCheckpoint

LABELS = ["across", "down", "red"]


@pytest.fixture
def classifier(tiny):
    return Classifier.create(tiny, labels=LABELS, seed=0)


@pytest.fixture
def path(classifier, tmp_path) -> Path:
    classifier.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def list_keys(classifier) -> tuple[str, ...]:
    return plan_outputs(classifier.configuration, "logits").keys


def rewrite(path: Path, change) -> None:
    """The same file with other tensors."""
    with path.open("rb") as file:
        metadata = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    state = Classifier.load(path).network.state_dict()
    save_file({key: change(key, value).contiguous() for key, value in state.items()}, path, metadata)


def test_a_file_gives_what_the_network_has(classifier, path):
    keys = list_keys(classifier)
    expected = NetworkWeights(classifier.network).read(keys)
    found = ModelFile(path).read(keys)
    assert list(found) == list(keys)
    for key in keys:
        np.testing.assert_array_equal(found[key], expected[key])
        assert found[key].dtype == np.float32


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_widened(classifier, path, kind):
    rewrite(path, lambda key, value: value.to(kind) if value.is_floating_point() else value)
    found = ModelFile(path).read(list_keys(classifier))
    state = classifier.network.state_dict()
    for key, value in found.items():
        np.testing.assert_array_equal(value, state[key].to(kind).float().numpy())


def test_what_is_given_already_is_taken(classifier, path):
    file = ModelFile(path)
    assert find_weights(file) is file
    assert find_weights(classifier.network).load_network() is classifier.network
    assert file.card.labels == tuple(LABELS)
    assert file.load_network().configuration == classifier.configuration


def test_a_runs_folder_means_its_best(path):
    (path.parent / "config.yaml").write_text("", encoding="utf-8")
    with pytest.raises(BadCheckpoint, match=r"without best\.safetensors"):
        ModelFile(path.parent)
    path.rename(path.with_name("best.safetensors"))
    assert ModelFile(path.parent).path.name == "best.safetensors"


class TestRefusing:
    def test_no_file(self, tmp_path):
        with pytest.raises(BadCheckpoint, match="no such file"):
            ModelFile(tmp_path / "none.safetensors")

    @pytest.mark.parametrize("kept", [0, 5, 2000, -1])
    def test_a_file_that_breaks_off(self, path, kept):
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(BadCheckpoint, match=path.name):
            ModelFile(path)

    def test_a_file_that_breaks_off_after_it_was_opened(self, classifier, path):
        file = ModelFile(path)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(BadCheckpoint, match="was changed"):
            file.read(list_keys(classifier))

    def test_a_file_that_was_replaced_after_it_was_opened(self, classifier, path):
        file = ModelFile(path)
        classifier.save(path, provenance={"note": "another"})
        with pytest.raises(BadCheckpoint, match="was changed"):
            file.read(list_keys(classifier))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_not_finite(self, classifier, path, value):
        def spoil(key, values):
            return values.index_fill(0, torch.tensor([1]), value) if key == "classifier.0.bias" else values

        rewrite(path, spoil)
        with pytest.raises(BadCheckpoint, match=r"classifier\.0\.bias.*finite"):
            ModelFile(path).read(list_keys(classifier))

    def test_values_whose_sum_is_too_large_are_finite(self, classifier, path):
        rewrite(path, lambda key, value: torch.full_like(value, 3e38) if key == "classifier.0.bias" else value)
        assert ModelFile(path).read(["classifier.0.bias"])["classifier.0.bias"][0] == np.float32(3e38)

    def test_weights_of_another_network(self, path):
        rewrite(path, lambda key, value: value[:1] if key == "classifier.0.bias" else value)
        with pytest.raises(BadCheckpoint, match=r"do not fit.*classifier\.0\.bias"):
            ModelFile(path)

    def test_types_that_are_no_weights(self, classifier, path):
        rewrite(path, lambda key, value: value.to(torch.int32) if key == "classifier.0.bias" else value)
        with pytest.raises(BadCheckpoint, match="I32"):
            ModelFile(path).read(list_keys(classifier))


@pytest.mark.parametrize(("precision", "count"), [("fp32", 1), ("fp32", 9), ("bf16", 9)])
def test_an_engine_that_answered_needs_the_file_no_more(classifier, path, precision, count):
    """In a process of its own: where the mapped file were read again, the system would end it."""
    pytest.importorskip("openvino")
    code = (
        "import os, numpy\n"
        "from vggkit.engines.openvino import OpenVINOEngine\n"
        "from vggkit.engines.model_weights import ModelFile\n"
        f"path, batch = {str(path)!r}, numpy.ones(({count}, 3, 64, 64), numpy.float32)\n"
        f"engine = OpenVINOEngine(ModelFile(path), precision={precision!r})\n"
        "rows = engine.run(batch)\n"
        "os.truncate(path, 0)\n"
        "print([bool(numpy.allclose(engine.run(batch), rows)) for _ in range(3)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[True, True, True]"


@pytest.mark.parametrize(("engine", "package"), [("openvino", "openvino"), ("onnx", "onnxruntime")])
def test_an_answer_without_torch(classifier, path, engine, package):
    pytest.importorskip(package)
    images = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    given, rows = path.with_name("given.npy"), path.with_name("rows.npy")
    np.save(given, images)
    code = (
        "import sys, numpy\n"
        "from vggkit.engines.select import choose_engine\n"
        "from vggkit.engines.model_weights import ModelFile\n"
        f"engine = choose_engine(ModelFile({str(path)!r}), 'cpu', engine={engine!r})\n"
        f"numpy.save({str(rows)!r}, engine.run(numpy.load({str(given)!r})))\n"
        "print([name for name in ('torch', 'torchvision') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    expected = PyTorchEngine(classifier.network, torch.device("cpu")).run(images)
    np.testing.assert_allclose(np.load(rows), expected, atol=1e-4, rtol=1e-3)
