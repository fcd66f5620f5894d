import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from vggkit.models.vgg import VGG
from vggkit.training.checkpoint import Epoch
from vggkit.training.recipe import Recipe
from vggkit.training.train_state import TrainState
from vggkit.training.training_monitor import TrainingMonitor, watch_activity


def history(*losses, top1=0.1):
    """Epochs of (training loss, validation loss)."""
    return [Epoch(number, 0.1, train, val, top1, 1.0) for number, (train, val) in enumerate(losses, start=1)]


def make_monitor(*, classes=10, validation=1000, batch_norm=False):
    return TrainingMonitor(
        train_counts=[50] * classes, val_counts=[validation // classes] * classes, batch_norm=batch_norm
    )


def test_chance_loss_is_reported_once_and_not_in_the_first_epoch():
    monitor, chance = make_monitor(), math.log(10)
    assert monitor.update(history((chance, chance)), {}) == []
    (sentence,) = monitor.update(history((chance, chance), (chance, chance)), {})
    assert "2.303" in sentence
    assert "does not learn" in sentence
    assert "batch norm" in sentence
    assert monitor.update(history(*[(chance, chance)] * 3), {}) == []
    (other,) = make_monitor(batch_norm=True).update(history(*[(chance, chance)] * 2), {})
    assert "batch norm" not in other


@pytest.mark.parametrize(("loss", "top1"), [(2.303, 0.2), (2.2, 0.1), (2.4, 0.1)])
def test_a_network_that_learns_a_little_is_not_reported(loss, top1):
    assert make_monitor().update(history((2.3, 2.3), (loss, 2.3), top1=top1), {}) == []


def test_accuracy_above_chance_is_not_reported():
    # 13 % of 1,000 are beyond three standard deviations of guessing among ten; of 100 they are not.
    losses = [(2.303, 2.303)] * 2
    assert make_monitor(validation=1000).update(history(*losses, top1=0.13), {}) == []
    assert make_monitor(validation=100).update(history(*losses, top1=0.13), {}) != []


def test_the_loss_of_class_frequencies_is_reported():
    monitor = TrainingMonitor(train_counts=[75, 25], val_counts=[30, 10], batch_norm=True)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    (sentence,) = monitor.update(history(*[(entropy, entropy)] * 2, top1=0.75), {})
    assert "0.562" in sentence
    assert (
        TrainingMonitor(train_counts=[50, 50], val_counts=[30, 10], batch_norm=True).update(
            history(*[(entropy, entropy)] * 2, top1=0.75), {}
        )
        == []
    )


def test_overfitting_is_reported_after_three_epochs():
    worse = [(1.0, 1.0), (0.8, 1.1), (0.6, 1.2), (0.4, 1.3)]
    (sentence,) = make_monitor().update(history(*worse, top1=0.7), {})
    assert "memorises" in sentence
    for bent in (worse[:3], [*worse[:2], (0.6, 1.05), worse[3]], [*worse[:2], (0.9, 1.2), worse[3]]):
        assert make_monitor().update(history(*bent, top1=0.7), {}) == []


def test_the_worst_layer_of_dead_relus_is_named():
    fine = history((1.0, 1.0), top1=0.7)
    assert make_monitor().update(fine, {"relu1_1": 0.5}) == []
    monitor = make_monitor()
    (sentence,) = monitor.update(fine, {"relu1_1": 0.6, "relu3_2": 0.9})
    assert "90% of the channels of relu3_2" in sentence
    assert monitor.update(fine, {"relu1_1": 1.0}) == []


def test_activity_is_the_share_of_channels_that_are_zero_everywhere(tiny):
    torch.manual_seed(0)
    network = VGG(replace(tiny, batch_norm=False))
    (layer,) = [layer for layer in network.configuration.trunk if layer.name == "conv3_1"]
    convolution = network.features[layer.index]
    assert isinstance(convolution, nn.Conv2d)
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        convolution.bias[:6] = -1e3
        dead: dict[str, float] = {}
        with watch_activity(network, dead):
            network(images)
        assert dead["relu3_1"] >= 6 / 8
        assert set(dead) == {layer.name for layer in network.configuration.trunk if layer.kind == "relu"}
        convolution.bias[:] = -1e3
        with watch_activity(network, dead):
            network(images)
        assert dead["relu3_1"] == 1
        convolution.bias[:] = 1e3
        with watch_activity(network, dead):
            network(images)
        assert dead["relu3_1"] == 0
        dead.clear()
        network(images)
    assert dead == {}, "nothing listens after it"


def test_dead_relus_of_a_trained_network_are_reported(tiny):
    """Really trained: no gradient passes, so that the loss stays what guessing gives."""
    torch.manual_seed(0)
    network = VGG(replace(tiny, batch_norm=False))
    with torch.no_grad():
        for module in network.features:
            if isinstance(module, nn.Conv2d):
                module.bias.fill_(-1e3)
    recipe = Recipe(trainable="all", precision="fp32", learning_rate=0.01, weight_decay=0.0)
    train_state = TrainState(network, recipe, device=torch.device("cpu"))
    images, classes = torch.rand(12, 3, 32, 32), torch.arange(12) % 3
    dead: dict[str, float] = {}
    losses = []
    train_state.start_epoch(1)
    for number in range(20):
        with watch_activity(train_state.compute_copy, dead):
            losses.append(train_state.compute(images, classes, draw=number).item())
        train_state.step(0.01, number=number)
    warnings = make_monitor(classes=3, validation=12).update(
        history((losses[0], 1.1), (losses[-1], 1.1), top1=1 / 3), dead
    )
    assert any("does not learn" in sentence for sentence in warnings)
    assert any("100% of the channels" in sentence for sentence in warnings)
