"""Ranges are those of what products read, and rounding to 8 bits within them stays near.

Shape letters: N images, C channels, H and W pixels.
"""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import WITHOUT_FEATURES
from vggkit.classifier import Classifier
from vggkit.engines.activation_ranges import measure_ranges
from vggkit.engines.outputs import list_outputs, list_reads
from vggkit.engines.pytorch import PyTorchEngine
from vggkit.errors import BadInput
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG

pytest.importorskip("openvino")
SMALL = Configuration(
    blocks=((8,), (12,), (16, 16), (16,), (20,)), hidden=(24, 18), grid=2, num_classes=5, batch_norm=True
)
KINDS = {
    "fc": SMALL,
    "dense": replace(SMALL, head="dense"),
    "pool": replace(SMALL, head="pool", hidden=()),
    "ranks": replace(SMALL, ranks=(6, None, 4)),
    "normalised responses": replace(SMALL, lrn_after=("relu1_1",)),
    "cut before a pool": replace(SMALL, head="pool", hidden=(), until="relu3_2", statistics="mean+std"),
}


def build(configuration: Configuration) -> VGG:
    torch.manual_seed(0)
    network = VGG(configuration)
    with torch.no_grad():
        for value in network.parameters():
            if value.dim() > 1:
                torch.nn.init.normal_(value, std=(2 / value[0].numel()) ** 0.5)
    return network


def draw(seed: int, count: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.5, 1, size=(count, 3, 64, 64)).astype(np.float32)


def test_names_are_those_that_convolutions_and_matrices_read():
    found = list_reads(configure("vgg11"))
    assert found == ["images", *(f"pool{n}" for n in (1, 2)), "relu3_1", "pool3", "relu4_1", "pool4", "relu5_1",
                     "pool5", "relu6", "relu7"]  # fmt: skip
    assert list_reads(configure("vgg11", head="pool")) == found[:-3]
    assert list_reads(KINDS["normalised responses"])[1] == "pool1"


def test_ranges_hold_almost_every_image():
    network, batches = build(SMALL), [draw(0), draw(1, 2)]
    found = measure_ranges(network, batches)
    assert list(found) == list_reads(SMALL)
    names = [name for name in found if name != "images"]
    engine = PyTorchEngine(network, torch.device("cpu"), output=names)
    for name in found:
        values = np.concatenate([(engine.compute(batch) | {"images": batch})[name] for batch in batches])
        flat = values.reshape(len(values), -1)
        expected = np.quantile(flat.min(1), 0.01), np.quantile(flat.max(1), 0.99)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)
    assert found["images"][0] < 0 < found["images"][1]
    assert all(low == 0 for name, (low, _) in found.items() if name != "images")


def test_no_images():
    with pytest.raises(BadInput, match="few hundred"):
        measure_ranges(build(SMALL), [])


@pytest.mark.parametrize("without_vnni", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_int8_is_near(kind, without_vnni, set_flags):
    from vggkit.engines.openvino import OpenVINOEngine

    if without_vnni:  # otherwise as this machine's processor does it
        set_flags(WITHOUT_FEATURES)
    network = build(KINDS[kind])
    activation_ranges = measure_ranges(network, [draw(seed) for seed in range(3)])
    images = draw(9)
    expected = PyTorchEngine(network, torch.device("cpu")).run(images)
    found = OpenVINOEngine(network, precision="int8", activation_ranges=activation_ranges).run(images)
    error = np.sqrt(np.mean((found - expected) ** 2)) / expected.std()
    # Rounded it is, to 255 steps what is read and to 254 or 126 what multiplies it, a few roundings added up.
    assert 1e-4 < error < 0.1


@pytest.mark.parametrize("head", ["fc", "pool"])
def test_sums_of_bytes_do_not_saturate_without_vnni(head, tmp_path):
    """All weights are near the largest and so is what they multiply: the worst case, computed with AVX2 alone."""
    network = build(
        Configuration(
            blocks=((32,), (64, 64), (64,)), hidden=(64,) if head == "fc" else (), grid=2, num_classes=5, head=head
        )
    )
    with torch.no_grad():
        for value in network.parameters():
            if value.dim() > 1:
                value.copy_((0.9 + 0.1 * torch.rand_like(value)) / value[0].numel())
    images = np.random.default_rng(0).uniform(0.8, 1, size=(2, 3, 16, 16)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    Classifier(network, labels=list("abcde"), preprocessing=Preprocessing()).save(tmp_path / "m.safetensors")
    code = (
        "import numpy as np\n"
        "from vggkit.engines.openvino import OpenVINOEngine\n"
        "from vggkit.engines.model_weights import ModelFile\n"
        f"found = {measure_ranges(network, [images])}\n"
        "engine = OpenVINOEngine(ModelFile('m.safetensors'), precision='int8', activation_ranges=found)\n"
        "np.save('found.npy', engine.run(np.load('images.npy')))\n"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=120)
    exact = PyTorchEngine(network, torch.device("cpu")).run(images)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), exact, rtol=0.03)


def test_without_vnni_weights_have_seven_bits(able, monkeypatch):
    from vggkit.engines import openvino, openvino_graph

    largest, round_weights = [], openvino_graph._round_weights

    def note(weight, most):
        largest.append(most)
        return round_weights(weight, most)

    monkeypatch.setattr(openvino_graph, "_round_weights", note)
    activation_ranges = dict.fromkeys(list_reads(SMALL), (-1.0, 9.0))
    openvino.OpenVINOEngine(build(SMALL), precision="int8", activation_ranges=activation_ranges).run(draw(9))
    assert set(largest) == {127 if able else 63}
    assert 2 * 255 * 63 < 2**15 <= 2 * 255 * 127


@pytest.mark.parametrize("largest", [127, 63])
@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (300, 1100), (1, 4), (7, 2, 1, 1)])
def test_weights_are_rounded_to_the_nearest_step_of_their_channel(shape, largest):
    from vggkit.engines.openvino_graph import _round_weights

    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weight[-1] *= 1e-3
    weight[0] = 0
    rounded, steps = _round_weights(weight, largest)
    assert rounded.dtype == np.int8
    assert steps.shape == (shape[0], *(1 for _ in shape[1:]))
    most = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    assert np.abs(rounded.astype(int)).reshape(len(weight), -1).max(axis=1)[1:].tolist() == [largest] * (
        shape[0] - 1
    )
    assert (np.abs(rounded * steps - weight).reshape(len(weight), -1).max(axis=1) <= 0.5001 * most / largest).all()


def test_what_is_asked_for_is_not_rounded_where_it_is_read():
    from vggkit.engines.openvino import OpenVINOEngine

    network, images = build(SMALL), draw(9)
    activation_ranges = measure_ranges(network, [draw(0)])
    engine = OpenVINOEngine(
        network, precision="int8", activation_ranges=activation_ranges, output=["pool3", "logits"]
    )
    found = engine.compute(images)
    alone = OpenVINOEngine(network, precision="int8", activation_ranges=activation_ranges).run(images)
    assert len(np.unique(found["pool3"])) > 256
    assert np.abs(found["logits"] - alone).max() < 0.1 * alone.std()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [kind if kind in ("fc", "pool") else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_every_output_among_all_is_what_it_is_alone(kind):
    from vggkit.engines.openvino import OpenVINOEngine

    network, images = build(KINDS[kind]), draw(9)
    names = list_outputs(network.configuration)
    activation_ranges = measure_ranges(network, [draw(seed) for seed in range(3)])
    found = OpenVINOEngine(network, precision="int8", activation_ranges=activation_ranges, output=names).compute(
        images
    )
    exact = PyTorchEngine(network, torch.device("cpu"), output=names).compute(images)
    assert list(found) == names
    for name in names:
        error = np.sqrt(np.mean((found[name] - exact[name]) ** 2)) / exact[name].std()
        assert error < 0.15, name


@pytest.mark.parametrize("kind", ["fc", "pool", "dense"])
def test_several_outputs_of_one_pass_are_rounded_as_they_are_read(kind):
    from vggkit.engines.openvino import OpenVINOEngine

    network, images = build(KINDS[kind]), draw(9)
    activation_ranges = measure_ranges(network, [draw(seed) for seed in range(3)])
    options = {"precision": "int8", "activation_ranges": activation_ranges}
    read = [name for name in activation_ranges if name != "images"]
    together = OpenVINOEngine(network, output=[*read, "logits", "features"], as_read=True, **options).compute(
        images
    )
    for name in (*read, "features", "logits"):
        alone = OpenVINOEngine(network, output=name, **options).run(images)
        error = np.sqrt(np.mean((together[name] - alone) ** 2)) / alone.std()
        assert error < 0.05, name
        if name in read:
            assert len(np.unique(together[name])) <= 256
