"""Convolutions of a training with fewer multiplications, against torch's in float64."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vggkit.models.configuration import find_configuration
from vggkit.models.vgg import VGG
from vggkit.training.recipe import Recipe
from vggkit.training.tiled_convolution import TiledConvolutions
from vggkit.training.train_state import TrainState

FEW = 128
"""Channels from which the algorithm is chosen."""


def differ(found, expected):
    return float((found.detach() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize(
    ("count", "channels", "size"),
    [(8, (FEW, FEW + 8), (14, 16)), (32, (FEW + 2, FEW), (8, 8)), (3, (FEW, FEW), (28, 31))],
)
def test_values_and_gradients_are_torchs(count, channels, size):
    torch.manual_seed(0)
    layer = nn.Conv2d(*channels, 3, padding=1).to(memory_format=torch.channels_last)
    maps = torch.randn(count, channels[0], *size, requires_grad=True)
    towards = torch.randn(count, channels[1], *size)
    with TiledConvolutions():
        values = layer(maps)
    found = values, *torch.autograd.grad(values, (maps, layer.weight, layer.bias), towards)
    plain = layer(maps.detach())
    assert not torch.equal(plain, values), "it was not chosen"
    exact, wide = nn.Conv2d(*channels, 3, padding=1).double(), maps.detach().double().requires_grad_(True)
    exact.load_state_dict(layer.state_dict())
    result = exact(wide)
    expected = result, *torch.autograd.grad(result, (wide, exact.weight, exact.bias), towards.double())
    assert [each.shape for each in found] == [each.shape for each in expected]
    assert max(map(differ, found, expected)) < 1e-5


@pytest.mark.parametrize(
    "case",
    [
        ((64, FEW, 3), {"padding": 1}, (8, 8)),
        ((FEW, FEW, 3), {"padding": 0}, (16, 16)),
        ((FEW, FEW, 3), {"padding": 1, "stride": 2}, (16, 16)),
        ((FEW, FEW, 3), {"padding": 1, "groups": 1, "padding_mode": "circular"}, (16, 16)),
        ((FEW, FEW, 3), {"padding": 2, "dilation": 2}, (16, 16)),
        ((FEW, FEW, 1), {}, (16, 16)),
        ((FEW, FEW, 3), {"padding": 1}, (5, 5)),
    ],
    ids=str,
)
def test_other_convolutions_stay_as_they_are(case):
    shape, options, size = case
    torch.manual_seed(0)
    layer, maps = nn.Conv2d(*shape, **options), torch.randn(16, shape[0], *size)
    with TiledConvolutions():
        values = layer(maps)
    assert torch.equal(values, layer(maps))
    narrow = layer.bfloat16()
    with TiledConvolutions():
        assert torch.equal(narrow(maps.bfloat16()), narrow(maps.bfloat16()))


def test_a_step_is_that_of_float64():
    """Of a network with layers of both kinds; a hook on one of them sees what it gives."""
    configuration = replace(
        find_configuration("vgg11"), blocks=((16,), (FEW, FEW)), head="pool", hidden=(), num_classes=3, dropout=0.0
    )
    torch.manual_seed(0)
    network = VGG(configuration)
    exact = VGG(configuration).double()
    exact.load_state_dict(network.state_dict())
    images, targets = torch.randn(8, 3, 32, 32), torch.randint(3, (8,))
    recipe = Recipe(trainable="all", precision="fp32", learning_rate=0.1, weight_decay=0.0, clip_norm=0.0)
    train_state = TrainState(network, recipe, device=torch.device("cpu"))
    train_state.start_epoch(1)
    seen = []
    network.features[5].register_forward_hook(lambda module, given, result: seen.append(result.detach().clone()))
    before = {key: value.clone() for key, value in network.named_parameters()}
    found = train_state.compute(images, targets, draw=0)
    train_state.step(0.1, number=0)
    loss = F.cross_entropy(exact(images.double()), targets)
    loss.backward()
    assert float(found) == pytest.approx(loss.item(), rel=1e-5)
    assert seen[0].shape == (8, FEW, 16, 16)
    for key, value in network.named_parameters():
        moved = before[key].double() - value.double()
        expected = 0.1 * 1.9 * exact.get_parameter(key).grad  # Nesterov's first step
        assert differ(moved, expected) < 1e-3, key
