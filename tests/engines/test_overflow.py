"""What float32 cannot hold is not taken for an answer, whichever engine computed it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_engines import KINDS, build, build_ncnn, build_onnx, build_openvino, build_pytorch, draw
from torch import nn

from vggkit.engines.activation_ranges import measure_ranges
from vggkit.engines.graph_builder import LIMIT, bound_trunk, can_overflow
from vggkit.engines.model_weights import NetworkWeights
from vggkit.engines.outputs import plan_outputs
from vggkit.errors import BadInput
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG

MAKES = {
    "pytorch": build_pytorch,
    "pytorch bf16": lambda network: build_pytorch(network, precision="bf16"),
    "openvino": build_openvino,
    "openvino bf16": lambda network: build_openvino(network, precision="bf16"),
    "onnx": build_onnx,
    "ncnn": build_ncnn,
}


def list_products(network: VGG) -> list[nn.Parameter]:
    return [module.weight for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


@pytest.mark.sweep(7)
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("place", [0, 3, -2])
@pytest.mark.parametrize("kind", ["plain", "batch norm", "dense", "normalised responses", "pool, hidden layers"])
def test_no_output_looks_like_an_answer(make, factor, place, kind):
    """A ReLU makes zeros of NaN in some engines, and the logits that follow are finite."""
    network, images = build(KINDS[kind]), draw(KINDS[kind], 32, 32)
    with torch.no_grad():
        list_products(network)[place].mul_(factor)
    assert not np.isfinite(make(network).run(images)).all(axis=1).any()


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_only_the_images_that_overflow_are_lost(make):
    network, images = build(KINDS["plain"]), draw(KINDS["plain"], 32, 32)
    with torch.no_grad():
        list_products(network)[0].mul_(1e3)
    images[[1, 3]] *= 1e36
    found = make(network).run(images)
    assert np.isfinite(found).all(axis=1).tolist() == [True, False, True, False, True]
    assert np.allclose(found[[0, 2, 4]], make(network).run(images[[0, 2, 4]]), rtol=1e-2, atol=1e-2)


def test_large_values_that_float32_holds_are_an_answer():
    network, images = build(KINDS["plain"]), draw(KINDS["plain"], 32, 32)
    with torch.no_grad():
        for number, weight in enumerate(list_products(network)):
            weight.mul_(1e17 if number % 2 else 1e-17)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.bias.zero_()
    expected = build_pytorch(network).run(images)
    assert np.isfinite(expected).all()
    for make in (build_openvino, build_onnx, build_ncnn):
        assert np.abs(make(network).run(images) - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn"])
def test_no_value_of_a_trunk_exceeds_its_bound(name):
    configuration = replace(KINDS["normalised responses"], batch_norm=name.endswith("bn"))
    network = build(configuration).eval()
    plan = plan_outputs(configuration, "logits")
    bound = bound_trunk(configuration, plan, NetworkWeights(network).read(plan.keys))
    assert np.isfinite(bound)
    with torch.no_grad():
        maps = torch.rand(4, 3, 32, 32) * 2 - 1
        for module in network.features:
            maps = module(maps)
            assert maps.abs().max() <= bound


@pytest.mark.parametrize("name", ["vgg16", "vgg19", "vgg16_bn"])
def test_ordinary_networks_are_below_the_limit(name):
    """Those that are watched are slower."""
    torch.manual_seed(0)
    network = VGG(configure(name, head="pool"))
    plan = plan_outputs(network.configuration, "logits")
    bound = bound_trunk(network.configuration, plan, NetworkWeights(network).read(plan.keys))
    assert not can_overflow(bound, np.full((1, 3, 32, 32), 150, np.float32))
    assert can_overflow(float("nan"), np.ones((1, 3, 2, 2), np.float32))
    assert can_overflow(LIMIT, np.ones((1, 3, 2, 2), np.float32))


def test_int8_says_that_it_cannot():
    network, images = build(KINDS["plain"]), draw(KINDS["plain"], 32, 32)
    activation_ranges = measure_ranges(network, [images])
    for factor in (float("nan"), 1e38):
        broken = build(KINDS["plain"])
        with torch.no_grad():
            list_products(broken)[1].mul_(factor)
        with pytest.raises(BadInput, match="of 5 of 5 images the network's values overflow"):
            measure_ranges(broken, [images])
        with pytest.raises(BadInput, match="reads pool1 has weights"):
            build_openvino(broken, precision="int8", activation_ranges=activation_ranges).run(images)
