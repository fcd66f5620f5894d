"""torch's own tools on every head: tracing, scripting, hooks, and the modules that people look for.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from vggkit.errors import BadConfiguration
from vggkit.models.configuration import Configuration
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG

# 64 pixels leave a map of the grid's size, 96 a larger one.
FC = Configuration(
    blocks=((4,), (6,), (8, 8), (8,), (10,)), hidden=(12, 9), grid=2, num_classes=5, lrn_after=("relu1_1",)
)
NETWORKS = {
    "fc": FC,
    "fc, low rank, batch norm": replace(FC, batch_norm=True, lrn_after=(), ranks=(3, None, 2)),
    "dense": replace(FC, head="dense"),
    "dense, low rank": replace(FC, head="dense", ranks=(3, None, 2)),
    "pool": replace(FC, head="pool", hidden=(), dropout=0.25),
    "pool, hidden": replace(FC, head="pool", hidden=(7,), statistics="mean+std"),
    "cut": configure(FC, until="relu3_1"),
    "cut at a pool": configure(FC, until="pool2"),
}
every_network = pytest.mark.parametrize("configuration", NETWORKS.values(), ids=NETWORKS)
SIDES = [(64, 64), (96, 160), (64, 32)]


def build(configuration: Configuration) -> VGG:
    torch.manual_seed(0)
    network = VGG(configuration).eval()
    for value in network.parameters():
        nn.init.normal_(value, std=0.3)
    return network


def draw(*sides: int) -> Tensor:
    return torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(1))


def script(network: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on its future
        return torch.jit.script(network)


@every_network
@pytest.mark.parametrize("trace", [fx.symbolic_trace, script], ids=["fx", "script"])
def test_a_traced_network_gives_the_same_logits_at_every_size(configuration: Configuration, trace) -> None:  # type: ignore[no-untyped-def]
    network = build(configuration)
    traced = trace(network)
    with torch.no_grad():
        for sides in SIDES:
            expected = network(draw(*sides))
            assert expected.std() > 1e-3
            torch.testing.assert_close(traced(draw(*sides)), expected, atol=1e-4, rtol=1e-4)
            if configuration.head != "dense":
                assert torch.equal(traced(draw(*sides)), expected)


@every_network
def test_a_traced_network_can_be_scripted_and_copied(configuration: Configuration) -> None:
    network = build(configuration)
    traced = copy.deepcopy(fx.symbolic_trace(network))
    torch.testing.assert_close(script(traced)(draw(96, 64)), network(draw(96, 64)), atol=1e-4, rtol=1e-4)


@every_network
def test_torchvisions_feature_extraction(configuration: Configuration) -> None:
    network = build(configuration)
    nodes = {"features.2": "inside", "avgpool": "pooled", f"classifier.{3 * len(configuration.hidden)}": "logits"}
    if configuration.ranks:
        nodes["classifier"] = nodes.popitem()[1]
    found = create_feature_extractor(network, nodes)(draw(96, 96))
    assert found["inside"].shape[:2] == (2, 4)
    if configuration.head != "dense":
        assert torch.equal(found["logits"], network(draw(96, 96)))
        assert torch.equal(found["pooled"], network.avgpool(network.features(draw(96, 96))))
    train_nodes, eval_nodes = get_graph_node_names(network)
    assert "features.1" in eval_nodes
    assert "features.1" in train_nodes


@every_network
def test_full_backward_hooks_meet_no_in_place_relu(configuration: Configuration) -> None:
    network = build(configuration)
    expected = network(draw(64, 64))
    seen: list[str] = []
    for name, module in network.named_modules():
        if not list(module.children()):
            module.register_full_backward_hook(lambda *_, name=name: seen.append(name))
    logits = network(draw(64, 64).requires_grad_())
    assert torch.equal(logits, expected)
    logits.sum().backward()
    assert {"features.0", "features.1"} <= set(seen)
    assert all(value.grad is not None for value in network.parameters())


def test_relus_work_in_place_unless_told_otherwise() -> None:
    def modes(network: VGG) -> set[bool]:
        return {module.inplace for module in network.modules() if isinstance(module, nn.ReLU)}

    assert modes(VGG(FC)) == {True}
    network = VGG(FC, inplace=False)
    assert modes(network) == {False}
    assert network.configuration == FC
    kept: list[Tensor] = []
    network.eval().features[0].register_forward_hook(lambda _, __, maps: kept.append(maps))
    network(draw(64, 64))
    assert kept[0].min() < 0, "a hook sees the convolution's output, before its ReLU"
    assert modes(network.set_inplace(True)) == {True}


class TestAvgpool:
    def test_it_stands_where_torchvisions_does(self) -> None:
        with torch.device("meta"):
            theirs, ours = torchvision.models.vgg11(), VGG("vgg11")
        assert [name for name, _ in ours.named_children()] == [name for name, _ in theirs.named_children()]
        assert isinstance(ours.avgpool, nn.AdaptiveAvgPool2d)
        assert ours.avgpool.output_size == theirs.avgpool.output_size
        assert list(ours.state_dict()) == list(theirs.state_dict())

    @pytest.mark.parametrize("name", [name for name in NETWORKS if not name.startswith("dense")])
    def test_the_parts_in_a_row_are_the_network(self, name: str) -> None:
        network = build(NETWORKS[name])
        row = nn.Sequential(network.features, network.avgpool, nn.Flatten(), network.classifier)
        assert torch.equal(row(draw(96, 64)), network(draw(96, 64)))

    def test_another_grid_put_there_by_hand_is_followed(self) -> None:
        network = build(FC)
        network.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        network.classifier[0] = nn.Linear(10, 12)
        assert network.configuration == replace(FC, grid=1)
        assert network(draw(64, 64)).shape == (2, 5)
        network.avgpool = nn.AdaptiveAvgPool2d(1)
        assert network.configuration == replace(FC, grid=1)

    @pytest.mark.parametrize(
        "pool", [nn.Identity(), nn.AdaptiveAvgPool2d((1, 2)), nn.AdaptiveMaxPool2d(2), nn.AdaptiveAvgPool2d(3)]
    )
    def test_what_no_configuration_says_is_refused(self, pool: nn.Module) -> None:
        network = build(FC)
        network.avgpool = pool
        with pytest.raises(BadConfiguration, match=r"avgpool|classifier\.0\.weight"):
            _ = network.configuration

    @pytest.mark.parametrize(("head", "name"), [("pool", "dropout"), ("dense", "only_smaller")])
    def test_its_settings_are_the_configurations(self, head: str, name: str) -> None:
        network = build(configure(FC, head=head))  # type: ignore[arg-type]
        setattr(network.avgpool, name, 0.5 if name == "dropout" else False)
        with pytest.raises(BadConfiguration, match=f"avgpool.*{name}"):
            _ = network.configuration


def test_a_scripted_network_computes_in_bfloat16() -> None:
    network = build(NETWORKS["pool, hidden"]).bfloat16()
    images = draw(64, 64).bfloat16()
    assert torch.equal(script(network)(images), network(images))
