"""Grad-CAM in closed form is autograd's, for every head. Peers: autograd, and captum where it is installed.

Shape letters: N images, C channels, H and W places, K classes.
"""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vggkit.engines.model_weights import NetworkWeights
from vggkit.engines.pytorch import PyTorchEngine
from vggkit.explanations.closed_form import HeadGradient, grad_cam, list_closed_layers
from vggkit.models.configuration import Configuration
from vggkit.models.configure import configure
from vggkit.models.features import Features
from vggkit.models.vgg import VGG

SMALL = Configuration(blocks=((8,), (12,), (16, 16), (16,), (20,)), hidden=(24, 18), grid=2, num_classes=5)
POOL = replace(SMALL, head="pool", hidden=(), dropout=0.0)
KINDS = {
    "fc": SMALL,
    "fc, batch norm": replace(SMALL, batch_norm=True),
    "fc, larger grid": replace(SMALL, grid=7),
    "fc, average pooling": replace(SMALL, pooling="average"),
    "fc, normalised responses": replace(SMALL, lrn_after=("relu1_1", "relu5_1")),
    "fc, ranks": replace(SMALL, ranks=(3, None, 4)),
    "fc, cut after fc6": configure(SMALL, until="fc6"),
    "fc, no hidden layer": replace(SMALL, hidden=()),
    "dense": replace(SMALL, head="dense"),
    "dense, batch norm, ranks": replace(SMALL, head="dense", batch_norm=True, ranks=(3, None, 4)),
    "dense, no hidden layer": replace(SMALL, head="dense", hidden=()),
    "pool": POOL,
    "pool, deviations": replace(POOL, statistics="mean+std", batch_norm=True),
    "pool, hidden layers": replace(POOL, statistics="mean+std", hidden=(9, 7), ranks=(None, 4, None)),
    "pool, cut after relu3_1": replace(POOL, statistics="mean+std", until="relu3_1"),
    "pool, cut after conv3_1": replace(POOL, statistics="mean+std", until="conv3_1", batch_norm=True),
    "one channel": replace(POOL, in_channels=1),
}
SIZES = ((64, 64), (96, 128), (75, 230))
"""Whose last maps are 2×2, 3×4 and, with odd maps on the way, 2×7."""


def build(configuration: Configuration) -> VGG:
    """Weights that let signals through, so that many units of the head are on and many are off."""
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
    return network.eval()


def differentiate(network: VGG, images: np.ndarray, layer: str, directions: np.ndarray) -> np.ndarray:
    """Grad-CAM (N, H, W) as its paper defines it, before the ReLU."""
    found = Features(network, [layer, "logits"])(torch.from_numpy(images))
    score = (found["logits"] * torch.from_numpy(directions)).sum()
    (gradient,) = torch.autograd.grad(score, found[layer])
    return (gradient.mean((2, 3), keepdim=True) * found[layer]).sum(1).detach().numpy()


def explain(engine, gradient: HeadGradient, images: np.ndarray, layer: str, directions: np.ndarray, **options):
    computed = engine.compute(images)
    return grad_cam(computed[layer], gradient.sum_over_places(directions, computed), **options)


def demand_same(found: np.ndarray, expected: np.ndarray) -> None:
    """To within 1e-5 of each map's largest value."""
    scale = np.abs(expected).max(axis=(1, 2), keepdims=True)
    assert scale.min() > 0
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-5)


def draw(configuration: Configuration, *sizes: int, count: int = 4) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, configuration.in_channels, *sizes)).astype(np.float32)


def choose(count: int, classes: int) -> np.ndarray:
    """A class of each image, and of the last one the difference of two."""
    directions = np.eye(classes, dtype=np.float32)[np.arange(count) % classes]
    directions[-1, 1] -= 1
    return directions


@pytest.mark.sweep(4)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_autograds(kind):
    network = build(KINDS[kind])
    gradient = HeadGradient(NetworkWeights(network))
    directions = choose(4, 5)
    for layer in list_closed_layers(network.configuration):
        engine = PyTorchEngine(network, torch.device("cpu"), output=["logits", layer, *gradient.needs])
        for sizes in SIZES:
            images = draw(network.configuration, *sizes)
            expected = differentiate(network, images, layer, directions)
            demand_same(explain(engine, gradient, images, layer, directions, relu=False), expected)
            shown = explain(engine, gradient, images, layer, directions)
            demand_same(np.append(shown, expected, axis=1), np.append(np.maximum(expected, 0), expected, axis=1))


@pytest.mark.parametrize("name", ["openvino", "onnx"])
def test_any_engine_gives_it(name):
    pytest.importorskip({"openvino": "openvino", "onnx": "onnxruntime"}[name])
    from vggkit.engines.select import choose_engine

    for kind in ("fc, batch norm", "dense", "pool"):
        network = build(KINDS[kind])
        gradient = HeadGradient(NetworkWeights(network))
        layer, directions = list_closed_layers(network.configuration)[0], choose(4, 5)
        output = ["logits", layer, *gradient.needs]
        images = draw(network.configuration, 75, 230)
        engine = choose_engine(network, "cpu", output=output, precision="fp32", engine=name)
        found = explain(engine, gradient, images, layer, directions, relu=False)
        demand_same(found, differentiate(network, images, layer, directions))


def test_captums_grad_cam():
    attr = pytest.importorskip("captum.attr")
    network = build(KINDS["fc, batch norm"]).set_inplace(False)
    gradient = HeadGradient(NetworkWeights(network))
    images, target = draw(network.configuration, 96, 128), 3
    directions = np.tile(np.eye(5, dtype=np.float32)[target], (len(images), 1))
    for layer in list_closed_layers(network.configuration):
        module = network.get_submodule(
            f"features.{next(each.index for each in network.configuration.trunk if each.name == layer)}"
        )
        peer = attr.LayerGradCam(network, module)
        expected = peer.attribute(torch.from_numpy(images), target, relu_attributions=True)[:, 0].detach().numpy()
        engine = PyTorchEngine(network, torch.device("cpu"), output=["logits", layer, *gradient.needs])
        found = explain(engine, gradient, images, layer, directions)
        np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())


@pytest.mark.slow
def test_the_papers_network_at_full_size():
    network = build(configure("vgg11", num_classes=1000))
    gradient = HeadGradient(NetworkWeights(network))
    images, directions = draw(network.configuration, 224, 224, count=1), choose(1, 1000)
    for layer in list_closed_layers(network.configuration):
        engine = PyTorchEngine(network, torch.device("cpu"), output=["logits", layer, *gradient.needs])
        found = explain(engine, gradient, images, layer, directions, relu=False)
        demand_same(found, differentiate(network, images, layer, directions))


def test_no_torch_is_imported():
    code = "import sys, vggkit.explanations.closed_form; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout == "False\n", found.stderr
