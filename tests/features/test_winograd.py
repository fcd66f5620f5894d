"""Winograd's algorithm against torch's convolution, in values, gradients and the loss that uses it."""

import pytest
import torch
import torch.nn.functional as F

import vggkit as vk
from vggkit.engines.winograd import transform_filters
from vggkit.features.convolution import Kernel, convolve


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (7, 13), (16, 9)])
@pytest.mark.parametrize("channels", [(3, 5), (16, 8)])
def test_a_convolution_and_its_gradient(size, channels):
    torch.manual_seed(0)
    weight, bias = torch.randn(channels[1], channels[0], 3, 3), torch.randn(channels[1])
    maps = torch.randn(2, channels[0], *size).contiguous(memory_format=torch.channels_last)
    towards = torch.randn(2, channels[1], *size)
    found = []
    for dtype in (torch.float32, torch.float64):
        ours = maps.to(dtype).requires_grad_(True)
        theirs = maps.double().requires_grad_(True)
        filters = transform_filters(weight.to(dtype))
        value = convolve(ours, Kernel(weight.to(dtype), bias.to(dtype), tiles=filters, is_direct=False))
        expected = F.conv2d(theirs, weight.double(), bias.double(), padding=1)
        (gradient,) = torch.autograd.grad(value, ours, towards.to(dtype))
        (wanted,) = torch.autograd.grad(expected, theirs, towards.double())
        found.append(max((value - expected).norm() / expected.norm(), (gradient - wanted).norm() / wanted.norm()))
    assert found[0] < 1e-5
    assert found[1] < 1e-13


def test_the_loss_that_uses_it():
    """Its distance is the direct one's; near ties a gradient goes elsewhere, and nothing else changes."""
    torch.manual_seed(0)
    trunk = vk.VGG("vgg16", until="relu3_3", head="pool", num_classes=1)
    config = vk.LossConfig(model="vgg16", content={"relu2_2": 1, "relu3_3": 1}, style={"relu3_1": 10})
    images, target = torch.rand(2, 3, 36, 44), torch.rand(2, 3, 36, 44)
    found = []
    for convolution in ("direct", "winograd"):
        loss = vk.PerceptualLoss(config, trunk=trunk, convolution=convolution)
        given = images.clone().requires_grad_(True)
        value = loss(given, target)
        value.backward()
        assert loss(target, target) == 0
        kept = [f"trunk.network.{name}" for name in trunk.state_dict() if name.startswith("features")]
        assert list(loss.state_dict()) == kept
        found.append((value.detach(), given.grad))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-5)
    assert (found[0][1] - found[1][1]).norm() < 0.01 * found[0][1].norm()
