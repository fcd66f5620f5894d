"""The first convolution from the training images, and the other options of short trainings."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vggkit as vk
from conftest import draw_class
from vggkit.errors import BadConfiguration
from vggkit.images.dataset import ImageSample
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG
from vggkit.training.optimizers import scale_rates
from vggkit.training.parameter_groups import list_learnt
from vggkit.training.recipe import Recipe
from vggkit.training.train_state import TrainState
from vggkit.training.whitening import find_directions, whiten_first_layer

FED = choose_preprocessing(32)
CPU = torch.device("cpu")
LABELS = ("across", "down", "red")
IMAGES = [ImageSample(f"memory/{n}", "red", draw_class(LABELS[n % 3], n)) for n in range(30)]


def build(width, *, in_channels=3):
    configuration = replace(
        configure("vgg11_bn", num_classes=3, head="pool", in_channels=in_channels), blocks=((width, 8), (8, 8))
    )
    torch.manual_seed(0)
    return VGG(configuration)


def covary(network):
    """The second moments of the first maps, inside the border, where no zeros are padded."""
    batch = torch.from_numpy(np.stack([FED.see(image) for image in IMAGES]))
    maps = F.conv2d(batch, network.features[0].weight, network.features[0].bias).double()
    rows = maps.transpose(0, 1).flatten(1)
    return rows @ rows.T / rows.shape[1]


def test_the_first_maps_have_unit_variance_and_are_not_correlated():
    network = build(20)
    whiten_first_layer(network, IMAGES, FED)
    moments = covary(network)
    assert torch.allclose(moments[:10, :10], torch.eye(10, dtype=torch.float64), atol=0.02)
    # The other half is the same with the other sign: the ReLU keeps one side of each.
    kernels = network.features[0].weight
    assert torch.equal(kernels[:10], -kernels[10:])
    assert not network.features[0].bias.any()


def test_directions_are_principal_components():
    variances, directions = find_directions(IMAGES, FED, side=3)
    patches = torch.from_numpy(np.stack([FED.see(image) for image in IMAGES])).unfold(2, 3, 1).unfold(3, 3, 1)
    rows = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 27).double()
    _, singular, _ = torch.linalg.svd(rows, full_matrices=False)
    assert torch.allclose(variances, singular**2 / len(rows), rtol=1e-6)
    assert torch.allclose(directions @ directions.T, torch.eye(27, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize(("width", "in_channels"), [(64, 3), (7, 3), (20, 1)])
def test_any_width_is_filled_with_directions_of_unit_variance(width, in_channels):
    network = build(width, in_channels=in_channels)
    fed = choose_preprocessing(32, in_channels=in_channels)
    whiten_first_layer(network, IMAGES, fed, seed=3)
    kernels = network.features[0].weight.flatten(1)
    assert len({tuple(kernel) for kernel in kernels.tolist()}) == width
    again = build(width, in_channels=in_channels)
    whiten_first_layer(again, IMAGES, fed, seed=3)
    assert torch.equal(again.features[0].weight.flatten(1), kernels)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_the_kernels_stay_while_the_rest_learns(optimizer, precision):
    recipe = Recipe(
        trainable="all",
        optimizer=optimizer,
        precision=precision,
        learning_rate=0.01,
        weight_decay=0.1,
        batch_norm_momentum=0.4,
        bias_rate_factor=8.0,
        whitening=True,
    )
    network = build(20)
    whiten_first_layer(network, IMAGES, FED)
    assert "features.0.weight" not in list_learnt(network.configuration, recipe)
    before = copy.deepcopy(network.state_dict())
    state = TrainState(network, recipe, device=CPU)
    state.start_epoch(1)
    state.compute(torch.randn(6, 3, 32, 32), torch.randint(3, (6,)), draw=0)
    assert state.step(0.01, number=0)
    after = network.state_dict()
    assert torch.equal(before["features.0.weight"], after["features.0.weight"])
    for key in ("features.1.bias", "features.3.weight", "classifier.0.weight"):
        assert not torch.equal(before[key], after[key]), key


def test_biases_learn_faster_by_the_factor():
    network = build(20)
    recipe = Recipe(trainable="all", learning_rate=0.1, weight_decay=0.0, bias_rate_factor=16.0, layer_decay=0.5)
    scales = scale_rates(network, recipe)
    usual = scale_rates(network, replace(recipe, bias_rate_factor=1.0))
    assert {key: scales[key] / usual[key] for key in scales} == {
        key: 16.0 if key.endswith("bias") else 1.0 for key in usual
    }


def test_batch_norms_momentum_is_that_of_the_recipe():
    network = build(20)
    recipe = Recipe(
        trainable="all", precision="fp32", learning_rate=0.1, weight_decay=0.0, batch_norm_momentum=0.25
    )
    peer = copy.deepcopy(network).train()
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.25
    images = torch.randn(6, 3, 32, 32)
    peer(images)
    state = TrainState(network, recipe, device=CPU)
    state.start_epoch(1)
    state.compute(images, torch.zeros(6, dtype=torch.int64), draw=0)
    for mine, theirs in zip(network.buffers(), peer.buffers(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


SHORT = Recipe(
    trainable="all",
    epochs=2,
    batch_size=16,
    learning_rate=0.01,
    optimizer="muon",
    schedule="linear",
    warmup_epochs=0.0,
    whitening=True,
    batch_norm_momentum=0.4,
    bias_rate_factor=4.0,
)


def test_a_run_that_was_stopped_continues_to_the_same_weights(photos, tmp_path):
    blocks = {"model": "vgg11_bn", "blocks": "20,8/8,8", "image_size": 32, "quiet": True, "device": "cpu"}
    whole = vk.train(photos, recipe=SHORT, out=tmp_path / "whole", **blocks)
    vk.train(photos, recipe=SHORT, out=tmp_path / "run", on_epoch=lambda epoch: True, **blocks)
    resumed = vk.train(resume=tmp_path / "run", quiet=True, device="cpu")
    first, second = whole.classifier.network, resumed.classifier.network
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    assert {norm.momentum for norm in first.modules() if isinstance(norm, nn.BatchNorm2d)} == {0.1}
    assert [epoch.val_loss for epoch in whole.history] == [epoch.val_loss for epoch in resumed.history]


def test_loaded_and_frozen_weights_are_not_replaced(photos, tmp_path):
    classifier = vk.Classifier.create(
        build(20).configuration, labels=LABELS, preprocessing=FED, initialization="dirac"
    )
    classifier.save(tmp_path / "net.safetensors")
    with pytest.raises(BadConfiguration, match="whitening sets the first convolution from the training images"):
        vk.train(
            photos,
            recipe=SHORT,
            model="vgg11_bn",
            blocks="20,8/8,8",
            head="pool",
            weights=tmp_path / "net.safetensors",
            out=tmp_path / "a",
            quiet=True,
        )
    classifier.network.features[0].weight.requires_grad_(False)
    with pytest.raises(BadConfiguration, match="frozen"):
        vk.train(photos, recipe=SHORT, model=classifier, out=tmp_path / "b", quiet=True)
    with pytest.raises(BadConfiguration, match="no effect with freeze_norm"):
        replace(SHORT, freeze_norm=True)
