from dataclasses import replace

import pytest
from torch import nn

from vggkit.models.configure import configure
from vggkit.models.vgg import VGG
from vggkit.training.optimizers import open_layers, scale_rates
from vggkit.training.parameter_groups import list_groups, list_learning
from vggkit.training.recipe import Recipe


def names(configuration, epoch=1, **recipe):
    return [group.name for group in list_learning(Recipe(**recipe), configuration, epoch)]


def test_strata_are_the_layers_with_weights_from_the_head_down():
    groups = list_groups(configure("vgg16_bn"))
    assert [group.name for group in groups[:4]] == ["fc8", "fc7", "fc6", "conv5_3"]
    assert groups[-1].name == "conv1_1"
    assert groups[-1].depth == 13
    assert [group.depth for group in groups[:4]] == [0, 0, 0, 1]
    found = {place for group in groups for place in group.modules}
    network = VGG(
        replace(configure("vgg16_bn"), blocks=((4,) * 2, (4,) * 2, (4,) * 3, (4,) * 3, (4,) * 3), hidden=(8, 8))
    )
    assert found == {key.rpartition(".")[0] for key, _ in network.named_parameters()}


def test_what_learns():
    vgg16 = configure("vgg16")
    assert names(vgg16, trainable="head") == ["fc8"]
    assert names(vgg16, trainable="top") == ["fc8", "fc7", "fc6", "conv5_3", "conv5_2", "conv5_1"]
    assert len(names(vgg16, trainable="all")) == 16
    cut = configure("vgg16", until="relu3_1")
    assert names(cut, trainable="top") == ["fc6", "conv3_1"]


@pytest.mark.parametrize(
    ("epochs", "blocks"),
    [(2, [0, 5]), (3, [0, 5, 5]), (4, [0, 2, 5, 5]), (10, [0, 1, 2, 3, 4, 5, 5, 5, 5, 5])],
)
def test_gradual_opens_a_block_after_the_other_and_all_by_half(epochs, blocks):
    vgg11 = configure("vgg11")
    for epoch, opened in enumerate(blocks, start=1):
        groups = list_learning(Recipe(trainable="gradual", epochs=epochs), vgg11, epoch)
        assert {group.block for group in groups} == {0, *range(5, 5 - opened, -1)}


@pytest.mark.parametrize("freeze_norm", [False, True])
@pytest.mark.parametrize("trainable", ["top", "all"])
def test_open_layers_sets_gradients_and_modes(tiny, trainable, freeze_norm):
    network = VGG(tiny).eval()
    recipe = Recipe(trainable=trainable, freeze_norm=freeze_norm)
    open_layers(network, recipe, 1)
    open_places = {place for s in list_learning(recipe, tiny, 1) for place in s.modules}
    for name, module in network.named_modules():
        norm = isinstance(module, nn.BatchNorm2d)
        if norm or isinstance(module, nn.Conv2d | nn.Linear):
            learns = name in open_places and not (norm and freeze_norm)
            assert all(value.requires_grad == learns for value in module.parameters()), name
        assert module.training == (not norm or (name in open_places and not freeze_norm)), name


def test_layer_decay_falls_by_layer(tiny):
    scales = scale_rates(VGG(tiny), Recipe(layer_decay=0.5))
    network = VGG(tiny)
    assert set(scales) == {key for key, _ in network.named_parameters()}
    last = tiny.fully_connected[-1].index
    assert scales[f"classifier.{last}.weight"] == 1
    convolutions = [f"features.{layer.index}.weight" for layer in tiny.trunk if layer.kind == "conv"]
    assert [scales[key] for key in convolutions] == [0.5**depth for depth in range(len(convolutions), 0, -1)]
    norms = [f"features.{layer.index}.bias" for layer in tiny.trunk if layer.kind == "bn"]
    assert [scales[key] for key in norms] == [scales[key] for key in convolutions]
    assert set(scale_rates(network, Recipe()).values()) == {1.0}
