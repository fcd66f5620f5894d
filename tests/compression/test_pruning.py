"""Channel pruning: one slice in three tensors, ranked and refitted by least squares."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import vggkit as vk
from vggkit.compression.channels import Prunable, keep_channels, list_prunable
from vggkit.compression.layer_inputs import LayerInputs
from vggkit.compression.moments import Moments, measure_moments
from vggkit.compression.pruning import list_prunable_convolutions, prune_channels
from vggkit.compression.ranking import eliminate
from vggkit.compression.rebuild import build_network
from vggkit.compression.rounding import round_by_outputs
from vggkit.compression.sensitivity import divide_budget, measure_sensitivity
from vggkit.errors import BadInput
from vggkit.models.configuration import Configuration
from vggkit.models.configure import configure
from vggkit.models.graph import Graph
from vggkit.weights.storage import choose_codings, round_state

WIDTHS = "8/16/16,16/24,24/24,24"


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def make(configuration: Configuration, pixels: int = 32, count: int = 64) -> tuple[vk.VGG, torch.Tensor]:
    torch.manual_seed(0)
    network = vk.VGG(configuration)
    # Smooth, as images are: neighbouring places and channels then say much the same.
    images = F.interpolate(torch.randn(count, configuration.in_channels, 4, 4), pixels, mode="bicubic")
    network(images)
    # Images whose scores differ by more than the biases.
    network.classifier[-1].weight.mul_(30)
    return network.eval().requires_grad_(False), images


def measure(network: vk.VGG, layer: Prunable, images: torch.Tensor) -> Moments:
    inputs = LayerInputs(network, images.split(16))
    inputs.move_to(layer)
    return measure_moments(inputs, inputs, layer)


def zero(network: vk.VGG, keep: dict[str, torch.Tensor]) -> vk.VGG:
    """The same network with removed channels silenced: their row of every tensor is zero, but for variances."""
    network = copy.deepcopy(network)
    state = network.state_dict()
    for layer in list_prunable(network.configuration):
        for key in layer.rows if layer.name in keep else ():
            gone = torch.ones(layer.channels, dtype=torch.bool)
            gone[keep[layer.name]] = False
            state[key][gone] = 1 if key.endswith("running_var") else 0
    return network


HEADS = {
    "fc": lambda c: replace(c, hidden=(20, 12)),
    "low rank": lambda c: replace(c, hidden=(20, 12), ranks=(6, None, None)),
    "dense": lambda c: replace(c, hidden=(20, 12), head="dense"),
    "pool": lambda c: configure(c, head="pool"),
    "cut, mean and deviation": lambda c: configure(c, until="relu4_2"),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("normed", [True, False])
def test_a_removed_channel_is_one_that_is_silent(head, normed):
    configuration = configure("vgg11_bn" if normed else "vgg11", blocks=WIDTHS, num_classes=3)
    network, images = make(HEADS[head](configuration), count=6)
    keep = {"conv1_1": torch.tensor([0, 3, 7]), "conv3_2": torch.arange(5), "conv4_2": torch.tensor([1, 2, 20])}
    if head in ("fc", "low rank", "dense"):
        keep |= {"conv5_2": torch.tensor([4, 9]), "fc6": torch.arange(7), "fc7": torch.tensor([11])}
    smaller = keep_channels(network, keep)
    expected = zero(network, keep)
    if head == "cut, mean and deviation":
        # The deviation of a silent channel is not quite zero: that of its epsilon, which the slice removes.
        gone = [place for place in range(24) if place not in (1, 2, 20)]
        columns = expected.classifier[0].weight
        columns[:, [24 + place for place in gone]] = 0
    assert torch.allclose(smaller(images), expected(images), atol=1e-4)
    assert smaller.configuration.blocks[0] == (3,)
    assert smaller.configuration.num_classes == 3


@pytest.mark.slow
def test_shapes_are_those_of_torch_pruning():
    pruning = pytest.importorskip("torch_pruning")
    configuration = replace(configure("vgg16_bn", blocks="8,8/16,16/16,16", num_classes=3), hidden=(20, 12), grid=4)
    network, images = make(configuration, count=2)
    keep = {"conv1_2": torch.tensor([0, 2, 5]), "conv3_2": torch.tensor([1, 3, 4, 9]), "fc6": torch.arange(5)}
    ours = keep_channels(network, keep)
    theirs = copy.deepcopy(network).requires_grad_(True)
    with torch.enable_grad():
        graph = pruning.DependencyGraph().build_dependency(theirs, example_inputs=images)
    for layer in list_prunable(configuration):
        if layer.name in keep:
            module = theirs.get_submodule(layer.rows[0].removesuffix(".weight"))
            gone = sorted(set(range(layer.channels)) - set(keep[layer.name].tolist()))
            remove = pruning.prune_linear_out_channels if layer.name == "fc6" else pruning.prune_conv_out_channels
            graph.get_pruning_group(module, remove, idxs=gone).prune()
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for key, value in ours.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_a_convolution_before_response_normalisation_and_the_last_layer_are_not_listed():
    names = [layer.name for layer in list_prunable(configure("vgg11_lrn"))]
    assert names == ["conv2_1", "conv3_1", "conv3_2", "conv4_1", "conv4_2", "conv5_1", "conv5_2", "fc6", "fc7"]
    assert [layer.name for layer in list_prunable(configure("vgg11", until="conv2_1"))] == ["conv1_1", "conv2_1"]


def test_copies_of_channels_are_removed_without_any_error():
    """Half of the channels repeat the others: the weights of the next layer make up for them exactly."""
    network, images = make(configure("vgg11_bn", blocks=WIDTHS, num_classes=3, head="pool"))
    state = network.state_dict()
    layer = next(each for each in list_prunable_convolutions(network.configuration) if each.name == "conv3_1")
    for key in layer.rows:
        state[key][8:] = state[key][:8]
    smaller = prune_channels(network, {"conv3_1": 8}, images.split(16))
    assert smaller.configuration.blocks[2] == (8, 16)
    assert torch.allclose(smaller(images), network(images), atol=5e-2 * float(network(images).std()))
    ranked = eliminate(measure(network, layer, images), least=4)
    assert {number % 8 for number in range(16) if number not in ranked.order[:8]} == set(range(8))
    assert ranked.errors[7] < 3e-3
    assert list(ranked.errors) == sorted(ranked.errors)


def test_the_error_that_is_told_is_the_error_of_the_refit():
    network, images = make(configure("vgg11_bn", blocks=WIDTHS, num_classes=3, head="pool"))
    layer = list_prunable_convolutions(network.configuration)[2]
    moments = measure(network, layer, images)
    ranked = eliminate(moments, least=4)
    kept = ranked.keep(6)
    weights, columns = moments.solve(kept), moments.list_columns(kept)
    whole = torch.cat([network.features[11].weight.flatten(1), network.features[11].bias[:, None]], 1).double()
    change = torch.zeros_like(whole)
    change[:, columns] = weights
    change -= whole
    told = float((change @ moments.gram.double() * change).sum()) / moments.energy
    assert told == pytest.approx(ranked.errors[16 - 6 - 1], rel=0.02)


@pytest.mark.parametrize("head", ["pool", "fc"])
def test_refitted_channels_beat_those_of_the_largest_weights(head):
    configuration = configure("vgg11_bn", blocks=WIDTHS, num_classes=3)
    configuration = (
        configure(configuration, head="pool") if head == "pool" else replace(configuration, hidden=(20,))
    )
    network, images = make(configuration, count=128)
    widths = {"conv1_1": 6, "conv2_1": 10, "conv3_2": 10, "conv4_1": 14, "conv5_2": 14}
    fitted = prune_channels(network, widths, images[:96].split(32))
    sizes = {
        layer.name: network.state_dict()[layer.rows[0]].abs().flatten(1).sum(1)
        for layer in list_prunable(configuration)
    }
    keep = {name: sizes[name].argsort(descending=True)[:width].sort().values for name, width in widths.items()}
    plain = keep_channels(network, keep)
    assert fitted.configuration.blocks == plain.configuration.blocks

    def lose(other: vk.VGG) -> float:
        difference = network(images[96:]) - other(images[96:])
        return float((difference - difference.mean(0)).square().sum())

    assert lose(fitted) < 0.85 * lose(plain)


def test_a_wide_reader_is_fitted_by_a_factor_for_each_channel(monkeypatch):
    monkeypatch.setattr("vggkit.compression.moments.MOST_COLUMNS", 500)
    configuration = replace(configure("vgg11_bn", blocks=WIDTHS, num_classes=3), hidden=(20,))
    network, images = make(configuration, pixels=64)
    layer = list_prunable_convolutions(configuration)[-1]
    moments = measure(network, layer, images)
    assert moments.by_factor
    smaller = prune_channels(network, {"conv5_2": 12}, images.split(16))
    assert smaller.classifier[0].weight.shape == (20, 12 * 49)


@pytest.mark.slow
def test_budgets_follow_what_was_measured_and_reach_the_share():
    network, images = make(configure("vgg11_bn", blocks=WIDTHS, num_classes=3, head="pool"))
    found = measure_sensitivity(network, images.split(16))
    assert [each.layer for each in found][:2] == ["conv1_1", "conv2_1"]
    # A layer that does nothing gives first.
    idle = [replace(each, divergence=(1e-6,) * 3) if each.layer == "conv4_1" else each for each in found]
    widths = divide_budget(network.configuration, idle, removed=0.2, pixels=32)
    assert min(widths, key=lambda name: widths[name] / {e.layer: e.channels for e in found}[name]) == "conv4_1"
    for share in (0.3, 0.7):
        widths = divide_budget(network.configuration, found, removed=share, pixels=32)
        smaller = prune_channels(network, widths, images.split(16))
        costs = [
            sum(step.multiply_adds for step in Graph(each.configuration, input_pixels=(32, 32)).steps)
            for each in (network, smaller)
        ]
        assert share <= 1 - costs[1] / costs[0] < share + 0.12
    with pytest.raises(BadInput, match=r"99\.99 % of the multiply-adds cannot be removed: .* removes 9\d"):
        divide_budget(network.configuration, found, removed=0.9999, pixels=32)


def test_rounding_by_outputs_loses_less_and_storing_changes_nothing_more():
    network, images = make(configure("vgg11_bn", blocks=WIDTHS, num_classes=3, head="pool"), count=320)
    rounded = round_by_outputs(network, images[:256].split(32))
    state = {key: value.numpy() for key, value in rounded.state_dict().items()}
    stored = round_state(state, "int4")
    coarse = [key for key, coding in choose_codings(network.configuration.state_shapes(), "int4").items()]
    for key in coarse[1:-1]:
        assert (state[key] == stored[key]).all(), key
    nearest = round_state({key: value.numpy() for key, value in network.state_dict().items()}, "int4")

    def lose(values: dict) -> float:
        other = build_network(
            network.configuration, {key: torch.from_numpy(value) for key, value in values.items()}
        )
        return float((network(images[256:]) - other(images[256:])).square().sum())

    assert lose(stored) < 0.7 * lose(nearest)
