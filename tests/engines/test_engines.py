"""Every engine gives what the network gives, in float32 and in bfloat16.

Shape letters: N images, C channels, H and W pixels, K classes, F features.
"""

import gc
import subprocess
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vggkit.engines.outputs import ROWS, list_outputs
from vggkit.engines.pytorch import PyTorchEngine
from vggkit.errors import BadInput, UnknownName
from vggkit.models.configuration import Configuration
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG

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


def build_onnx(*arguments, **options):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from vggkit.engines.onnx import ONNXEngine

    return ONNXEngine(*arguments, **options)


def build_ncnn(*arguments, **options):
    pytest.importorskip("ncnn")
    from vggkit.engines.ncnn import NCNNEngine

    return NCNNEngine(*arguments, **options)


def build_pytorch(network, **options):
    return PyTorchEngine(network, CPU, **options)


OTHERS = pytest.mark.parametrize("make", [build_openvino, build_onnx, build_ncnn], ids=["openvino", "onnx", "ncnn"])
ALL = pytest.mark.parametrize(
    "make", [build_pytorch, build_openvino, build_onnx, build_ncnn], ids=["pytorch", "openvino", "onnx", "ncnn"]
)


def measure_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference as a share of the spread."""
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    return float(np.abs(found - expected).max() / expected.std())


@pytest.mark.sweep(5)
@OTHERS
@pytest.mark.parametrize("kind", KINDS)
def test_engines_give_what_the_network_gives(kind, make):
    network = build(KINDS[kind])
    engine, exact = make(network, output=OUTPUTS), build_pytorch(network, output=OUTPUTS)
    for sizes in ((64, 64), (75, 100), (32, 49)):
        images = draw(network.configuration, *sizes)
        found, expected = engine.compute(images), exact.compute(images)
        for output in OUTPUTS:
            assert measure_error(found[output], expected[output]) < 1e-4, (output, sizes)


@pytest.mark.parametrize("kind", KINDS)
def test_pytorchs_rows_are_the_networks(kind):
    """Asked for by name among others, and asked for alone, which takes the network's own way."""
    network = build(KINDS[kind])
    images = draw(network.configuration, 75, 100)
    together = build_pytorch(network, output=OUTPUTS).compute(images)
    for output in OUTPUTS:
        np.testing.assert_allclose(
            together[output], build_pytorch(network, output=output).run(images), atol=1e-5, rtol=1e-4
        )


@pytest.mark.sweep(5)
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [build_pytorch, build_openvino], ids=["pytorch", "openvino"])
def test_bfloat16_is_near(make, kind, output):
    network = build(KINDS[kind])
    engine = make(network, output=output, precision="bf16")
    images = draw(network.configuration, 64, 64)
    expected = build_pytorch(network, output=output).run(images)
    # 8 bits are kept of each number, and a few roundings add up.
    assert measure_error(engine.run(images), expected) < 0.1


@OTHERS
@pytest.mark.parametrize("count", [1, 2, 9, 33])
def test_any_number_of_images(count, make):
    network = build(POOL)
    images = np.random.default_rng(2).normal(size=(count, 3, 32, 32)).astype(np.float32)
    expected = build_pytorch(network).run(images)
    assert measure_error(make(network).run(images), expected) < 1e-4


@OTHERS
def test_many_sizes_in_any_order(make):
    """More of them than compiled models are kept."""
    network = build(POOL)
    engine, exact = make(network), build_pytorch(network)
    for side in (*range(32, 43), 32, 37):
        images = draw(POOL, side, side)
        assert measure_error(engine.run(images), exact.run(images)) < 1e-4, side


@pytest.mark.parametrize(
    ("processors", "alone", "together"), [(1, (1,), (2, 5)), (2, (1,), (2, 5)), (16, (1, 3), (4, 5))]
)
def test_a_few_images_have_all_processors(monkeypatch, processors, alone, together):
    engine = build_openvino(build(POOL))
    monkeypatch.setattr("vggkit.engines.openvino.count_threads", lambda: processors)
    images = draw(POOL, 32, 32)
    for counts, haste in ((alone, "LATENCY"), (together, "THROUGHPUT")):
        for count in counts:
            engine.run(images[:count])
            assert next(reversed(engine._models)) == ((32, 32), haste, False)


def test_the_rest_of_many_images_is_compiled_for_only_when_more_singles_come(monkeypatch):
    engine = build_openvino(build(POOL))
    monkeypatch.setattr("vggkit.engines.openvino.count_threads", lambda: 2)
    images = draw(POOL, 32, 32)
    hastes = []
    for count in (5, 5, 1, 5, 1, 1, 1, 5):
        engine.run(images[:count])
        hastes.append(next(reversed(engine._models))[1][0])
    assert "".join(hastes) == "TTTTTLLT"


@OTHERS
def test_an_engine_that_is_let_go_is_freed(make):
    network = build(POOL)
    engine = make(network)
    engine.run(draw(POOL, 32, 32))
    kept = {build_openvino: "_models", build_onnx: "_sessions", build_ncnn: "_nets"}[make]
    inside = next(iter(getattr(engine, kept).values()))
    watched = weakref.ref(inside)
    del engine, inside
    gc.collect()
    assert watched() is None


def hook_modules(network: VGG, images: np.ndarray) -> dict[str, np.ndarray]:
    """What each module of a network gives, by the layer's name, with nothing done in place."""
    found: dict[str, np.ndarray] = {}
    configuration = network.configuration
    named = [(layer.name, network.features[layer.index]) for layer in configuration.trunk]
    for fc in configuration.fully_connected:
        named.append((fc.name, network.classifier[fc.index]))
        if fc != configuration.fully_connected[-1]:
            named.append((fc.name.replace("fc", "relu"), network.classifier[fc.index + 1]))
    for name, module in named:
        if isinstance(module, nn.ReLU):
            module.inplace = False
        module.register_forward_hook(lambda _m, _i, given, name=name: found.update({name: given.numpy().copy()}))
    with torch.no_grad():
        network.eval()(torch.from_numpy(images))
    return found


@pytest.mark.sweep(5)
@ALL
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "dense" not in kind])
def test_every_layer_can_be_asked_for(kind, make):
    network = build(KINDS[kind])
    images = draw(network.configuration, 64, 64)
    names = [name for name in list_outputs(network.configuration) if name not in ROWS]
    expected = hook_modules(build(KINDS[kind]), images)
    assert set(names) == set(expected)
    found = make(network, output=names).compute(images)
    assert list(found) == names
    for name in names:
        assert measure_error(found[name], expected[name]) < 1e-4, name
    for name in names[::4]:
        alone = make(network, output=name)
        assert alone.outputs == (name,)
        assert measure_error(alone.run(images), expected[name]) < 1e-4, name


@ALL
@pytest.mark.parametrize("kind", ["dense", "dense, ranks", "dense, no hidden layer"])
def test_layers_of_a_sliding_head_are_maps(kind, make):
    """Each place of a map is what the paper's head gives of the window there."""
    sliding = build(KINDS[kind])
    still = VGG(replace(KINDS[kind], head="fc"))
    still.load_state_dict(sliding.state_dict())
    images = draw(SMALL, 128, 160)
    names = [name for name in list_outputs(SMALL) if name.startswith("fc") or name in ("relu6", "relu7")]
    names = [name for name in names if name in list_outputs(sliding.configuration)]
    found = make(sliding, output=["pool5", *names, "logits"]).compute(images)
    window = torch.from_numpy(found["pool5"][..., 1:3, 2:4].copy())
    with torch.no_grad():
        expected, row = {}, window.flatten(1)
        for fc in still.configuration.fully_connected:
            row = expected[fc.name] = still.classifier[fc.index](row)
            row = expected[fc.name.replace("fc", "relu")] = row.relu()
    for name in names:
        assert found[name].shape[2:] == (3, 4), name
        assert measure_error(found[name][..., 1, 2], expected[name].numpy()) < 1e-4, name
    last = sliding.configuration.fully_connected[-1].name
    assert measure_error(found["logits"], found[last].mean((2, 3))) < 1e-5


@ALL
class TestRefusing:
    def test_a_name_that_the_network_has_not(self, make):
        with pytest.raises(UnknownName, match=r"relu3_2.*Known: logits, probabilities"):
            make(build(POOL), output="relu3_l")

    def test_a_layer_behind_the_cut(self, make):
        with pytest.raises(UnknownName, match="conv4_1"):
            make(build(KINDS["pool, deviations, cut"]), output=["logits", "conv4_1"])

    def test_no_name(self, make):
        with pytest.raises(BadInput, match="one output or several"):
            make(build(POOL), output=[])

    @pytest.mark.parametrize("shape", [(0, 3, 32, 32), (3, 32, 32), (1, 1, 32, 32), (1, 3, 31, 64)])
    def test_what_are_no_images_of_this_network(self, make, shape):
        with pytest.raises(BadInput, match=r"\(N, 3, H, W\).*32 pixels"):
            make(build(POOL)).run(np.zeros(shape, np.float32))


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


def test_openvino_reports_nothing_to_its_makers():
    pytest.importorskip("openvino")
    pytest.importorskip("openvino_telemetry")
    code = (
        "import sys; from vggkit.engines.openvino import import_openvino; found = import_openvino();"
        "print([name for name in sys.modules if name.startswith(('openvino_telemetry', 'openvino.tools'))]);"
        "sys.modules['openvino_telemetry'] = None;"
        "import openvino; print(openvino.convert_model.__name__, hasattr(openvino, 'convert_modal'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.split("\n")[:2], done.stderr) == (["[]", "convert_model False"], "")


@pytest.mark.slow
@OTHERS
def test_the_papers_network_with_its_head(make):
    torch.manual_seed(0)
    network = VGG(configure("vgg11"))
    images = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    expected = build_pytorch(network).run(images)
    assert measure_error(make(network).run(images), expected) < 1e-4


@ALL
@pytest.mark.parametrize("kind", ["plain", "pool", "dense"])
def test_probabilities_are_the_softmax_of_the_logits(kind, make):
    network, images = build(KINDS[kind]), draw(KINDS[kind], 64, 64)
    found = make(network, output=["pool5", "probabilities", "logits"]).compute(images)
    assert list(found) == ["pool5", "probabilities", "logits"]
    expected = torch.from_numpy(found["logits"]).double().softmax(1).numpy()
    np.testing.assert_allclose(found["probabilities"], expected, rtol=1e-6)
    alone = make(network, output="probabilities").run(images)
    np.testing.assert_allclose(alone, expected, atol=1e-5)


def test_batch_norms_of_half_precision_are_widened_in_bfloat16():
    network, images = build(KINDS["batch norm"]).half(), draw(KINDS["batch norm"], 64, 64)
    expected = build_pytorch(network.float(), precision="bf16").run(images)
    found = build_pytorch(network.half(), precision="bf16").run(images)
    assert measure_error(found, expected) < 0.05
