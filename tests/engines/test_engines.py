"""Every engine gives what the network gives, in float32 and in bfloat16.

Shape letters: N pictures, C channels, H and W pixels, K classes, F features.
"""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vggkit.engines import choosing
from vggkit.engines.choosing import choose_engine
from vggkit.engines.pytorch import PyTorchEngine
from vggkit.errors import MissingExtra
from vggkit.networks.configurations import Configuration, configure
from vggkit.networks.vgg import VGG

CPU = torch.device("cpu")
SMALL = Configuration(blocks=((8,), (12,), (16, 16), (16,), (20,)), hidden=(24, 18), grid=2, num_classes=5)
POOL = replace(SMALL, head="pool", hidden=(), dropout=0.0)
KINDS = {
    "plain": SMALL,
    "batch norm": replace(SMALL, batch_norm=True),
    "normalised responses": replace(SMALL, lrn_after=("relu1_1", "relu2_1")),
    "1x1 kernels": replace(SMALL, kernels=((3,), (3,), (3, 1), (1,), (5,))),
    "average": replace(SMALL, pooling="average"),
    "larger grid": replace(SMALL, grid=7),
    "ranks": replace(SMALL, ranks=(3, None, 4)),
    "no hidden layer": replace(SMALL, hidden=()),
    "dense": replace(SMALL, head="dense"),
    "dense, ranks": replace(SMALL, head="dense", ranks=(3, None, 4)),
    "dense, no hidden layer": replace(SMALL, head="dense", hidden=()),
    "pool": POOL,
    "pool, deviations, cut": replace(POOL, statistics="mean+std", until="relu3_1", batch_norm=True),
    "pool, cut before a batch norm": replace(POOL, statistics="mean+std", until="conv3_1", batch_norm=True),
    "pool, hidden layers": replace(POOL, hidden=(9, 7), ranks=(None, 4, None)),
    "one channel": replace(POOL, in_channels=1),
}
OUTPUTS = ["logits", "features", "statistics"]


def build(configuration: Configuration) -> VGG:
    """Weights that let signals through, and statistics of batch norm that are not the identity."""
    torch.manual_seed(0)
    network = VGG(configuration)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=0.3)
            elif isinstance(module, nn.BatchNorm2d):
                for value in (module.weight, module.running_var):
                    value.uniform_(0.5, 1.5)
                for value in (module.bias, module.running_mean):
                    value.normal_(0, 0.3)
    return network


def draw(configuration: Configuration, *sizes: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(5, configuration.in_channels, *sizes)).astype(np.float32)


def build_openvino(*arguments, **options):
    pytest.importorskip("openvino")
    from vggkit.engines.openvino import OpenVINOEngine

    return OpenVINOEngine(*arguments, **options)


def measure_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference as a share of the spread."""
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    return float(np.abs(found - expected).max() / expected.std())


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_openvino_gives_what_the_network_gives(kind, output):
    network = build(KINDS[kind])
    engine, exact = build_openvino(network, output=output), PyTorchEngine(network, CPU, output=output)
    for sizes in ((64, 64), (75, 100), (32, 49)):
        images = draw(network.configuration, *sizes)
        assert measure_error(engine.run(images), exact.run(images)) < 1e-4, sizes


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [PyTorchEngine, build_openvino], ids=["pytorch", "openvino"])
def test_bfloat16_is_near(make, kind, output):
    network = build(KINDS[kind])
    given = [] if make is build_openvino else [CPU]
    engine = make(network, *given, output=output, precision="bf16")
    images = draw(network.configuration, 64, 64)
    expected = PyTorchEngine(network, CPU, output=output).run(images)
    # 8 bits are kept of each number, and a few roundings add up.
    assert measure_error(engine.run(images), expected) < 0.1


@pytest.mark.parametrize("count", [1, 2, 9, 33])
def test_any_number_of_pictures(count):
    network = build(POOL)
    images = np.random.default_rng(2).normal(size=(count, 3, 32, 32)).astype(np.float32)
    expected = PyTorchEngine(network, CPU).run(images)
    assert measure_error(build_openvino(network).run(images), expected) < 1e-4


def test_pytorchs_bfloat16_leaves_the_network_as_it_is():
    network = build(KINDS["batch norm"]).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    PyTorchEngine(network, CPU, precision="bf16").run(draw(SMALL, 64, 64))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(value.dtype == torch.float32 and value.requires_grad for value in network.parameters())
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(64, 64), (100, 75), (32, 64)])
def test_the_last_layer_of_a_description_gives_the_logits(kind, sizes):
    network = build(KINDS[kind]).eval()
    images = torch.from_numpy(draw(network.configuration, *sizes))
    with torch.no_grad():
        described, logits = network.describe(images), network(images)
        assert described.shape == (5, network.configuration.fully_connected[-1].in_features)
        torch.testing.assert_close(network.classifier[-1](described), logits, atol=1e-5, rtol=1e-4)


class TestChoosing:
    def test_openvino_computes_on_processors_where_it_is_installed(self):
        pytest.importorskip("openvino")
        engine, said = choose_engine(build(POOL), CPU)
        assert type(engine).__name__ == "OpenVINOEngine"
        assert said == "OpenVINO in float32"

    def test_pytorch_computes_elsewhere(self, monkeypatch):
        monkeypatch.setattr(choosing.importlib.util, "find_spec", lambda name: None)
        engine, said = choose_engine(build(POOL), CPU)
        assert isinstance(engine, PyTorchEngine)
        assert "vggkit[fast]" in said

    @pytest.mark.parametrize(("fast", "kind"), [(True, torch.bfloat16), (False, torch.float32)])
    def test_bfloat16_is_taken_where_it_is_fast(self, monkeypatch, fast, kind):
        monkeypatch.setattr(choosing.importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(choosing, "computes_bf16", lambda device: fast)
        engine, said = choose_engine(build(POOL), CPU, precision="auto")
        assert engine.dtype == kind
        assert ("multiplies by itself" if fast else "no fast bfloat16") in said

    def test_without_openvino_the_line_that_installs_it_is_named(self, monkeypatch):
        from vggkit.engines.openvino import OpenVINOEngine

        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(MissingExtra, match=r"vggkit\[fast\]"):
            OpenVINOEngine(build(POOL))


def test_openvino_reports_nothing_to_its_makers():
    pytest.importorskip("openvino")
    pytest.importorskip("openvino_telemetry")
    code = (
        "import sys; from vggkit.engines.openvino import _import_openvino; _import_openvino();"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.slow
def test_the_papers_network_with_its_head():
    torch.manual_seed(0)
    network = VGG(configure("vgg11"))
    images = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    expected = PyTorchEngine(network, CPU).run(images)
    assert measure_error(build_openvino(network).run(images), expected) < 1e-4
