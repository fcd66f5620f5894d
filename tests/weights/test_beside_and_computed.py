"""Files whose weights are all there, in other words: beside other tensors, computed from two, or left out as zeros.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

import warnings
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import vggkit
from vggkit.classifier import Classifier
from vggkit.errors import BadCheckpoint
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG
from vggkit.weights.convert import convert
from vggkit.weights.identify import identify

SLIM = replace(
    configure("vgg11", num_classes=3),
    blocks=((6,), (8,), (8, 8), (12, 12), (12, 10)),
    hidden=(16, 14),
    grid=1,
)
NORMED = replace(SLIM, batch_norm=True)
LABELS = ["a", "b", "c"]


def build(configuration=SLIM) -> VGG:
    torch.manual_seed(0)
    network = VGG(configuration).eval()
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            nn.init.normal_(value, std=0.3)
            value.abs_().add_(0.5) if key.endswith("running_var") else None
    return network


def compute(network: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network.eval()(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    return logits


def each_layer(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def check(path, network: nn.Module, configuration=SLIM) -> None:
    """The file is whole, and gives the network's logits; so does what is converted of it."""
    found = identify(path)
    assert found.is_vgg, found.verdict
    assert (found.complete, found.unexpected, found.model) == (True, (), "custom")
    assert found.configuration == configuration
    loaded = Classifier.create(configuration, labels=found.labels or LABELS, weights=path)
    assert loaded.provenance["weights"]["random"] == []
    torch.testing.assert_close(compute(loaded.network), compute(network), atol=1e-5, rtol=1e-4)
    written = convert(path, path.with_name("converted.pth"), to="torchvision").target
    state = torch.load(written, weights_only=True)
    assert list(state) == list(configuration.state_shapes())
    again = VGG(configuration)
    again.load_state_dict(state)
    torch.testing.assert_close(compute(again), compute(network), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "beside",
    [
        {"n_averaged": torch.tensor(7)},
        {"criterion.weight": torch.ones(3)},
        {"criterion.pos_weight": torch.ones(3), "loss_fn.centers": torch.randn(3, 16), "val_acc.tp": torch.ones(3)},
        {"optimizer.state.0.exp_avg": torch.randn(6, 3, 3, 3), "epoch": torch.tensor(3)},
    ],
    ids=lambda beside: ", ".join(beside),
)
@pytest.mark.parametrize(
    "prefix", [pytest.param("", marks=pytest.mark.slow), "module.", pytest.param("model.", marks=pytest.mark.slow)]
)
def test_what_trains_the_network_is_left_beside(beside, prefix, tmp_path):
    network = build()
    state = {f"{prefix}{key}": value for key, value in network.state_dict().items()}
    path = tmp_path / "x.pth"
    for order in ({**state, **beside}, {**beside, **state}):
        torch.save(order, path)
        check(path, network)
        assert set(identify(path).stripped) >= {key.split(".")[0] for key in beside}
    safetensors.torch.save_file(state | beside, tmp_path / "x.safetensors")
    check(tmp_path / "x.safetensors", network)


@pytest.mark.parametrize("head", ["fc", "pool"])
def test_an_averaged_model(head, tmp_path):
    network = build(configure(SLIM, head=head))
    averaged = torch.optim.swa_utils.AveragedModel(network)
    torch.save(averaged.state_dict(), tmp_path / "x.pth")
    check(tmp_path / "x.pth", network, network.configuration)


def test_optimizer_states_beside_the_network(tmp_path):
    network = build()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    network.eval()
    torch.save({**network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, tmp_path / "flat.pth")
    torch.save({"net": network.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "nested.pth")
    check(tmp_path / "flat.pth", network)
    check(tmp_path / "nested.pth", network)


def test_a_network_that_is_called_so_is_no_loss(tmp_path):
    network = build()
    torch.save({f"criterion.{key}": value for key, value in network.state_dict().items()}, tmp_path / "x.pth")
    assert identify(tmp_path / "x.pth").is_vgg


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("configuration", [SLIM, NORMED])
def test_pruned_by_masks(structured, configuration, tmp_path):
    network = build(configuration)
    for module in each_layer(network):
        if structured:
            prune.ln_structured(module, "weight", 0.3, n=2, dim=0)
        else:
            prune.l1_unstructured(module, "weight", 0.3)
            prune.l1_unstructured(module, "bias", 0.3)
    torch.save(network.state_dict(), tmp_path / "x.pth")
    check(tmp_path / "x.pth", network, configuration)


def test_one_layer_pruned_in_half_precision(tmp_path):
    network = build()
    prune.l1_unstructured(network.features[3], "weight", 0.3)
    state = {f"module.{key}": value.half() for key, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    loaded = Classifier.create(SLIM, labels=LABELS, weights=tmp_path / "x.pth")
    zeros = (loaded.network.features[3].weight == 0).float().mean()
    assert 0.25 < zeros < 0.35


def _old_weight_norm(module: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on its successor
        weight_norm(module)


@pytest.mark.parametrize("norm", [_old_weight_norm, parametrizations.weight_norm], ids=["old", "parametrization"])
@pytest.mark.parametrize("configuration", [SLIM, NORMED])
def test_weight_norm(norm, configuration, tmp_path):
    network = build(configuration)
    for module in each_layer(network):
        norm(module)
    with torch.no_grad():
        for key, value in network.named_parameters():
            if key.endswith(("_g", "original0")):
                value.mul_(1.5)
    torch.save(network.state_dict(), tmp_path / "x.pth")
    check(tmp_path / "x.pth", network, configuration)


def _old_spectral_norm(module: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on its successor
        spectral_norm(module)


@pytest.mark.parametrize(
    "norm", [_old_spectral_norm, parametrizations.spectral_norm], ids=["old", "parametrization"]
)
def test_spectral_norm(norm, tmp_path):
    network = build(NORMED)
    for module in each_layer(network):
        norm(module)
    torch.save(network.state_dict(), tmp_path / "x.pth")
    check(tmp_path / "x.pth", network, NORMED)


@pytest.mark.parametrize("dim", [None, 0, 1])
def test_weight_norm_along_other_sides(dim, tmp_path):
    network = build()
    parametrizations.weight_norm(network.features[3], dim=dim)
    torch.save(network.state_dict(), tmp_path / "x.pth")
    check(tmp_path / "x.pth", network)


class TestZeroBiases:
    @pytest.mark.parametrize("configuration", [SLIM, NORMED])
    def test_convolutions_without_biases_have_zeros(self, configuration, tmp_path):
        network = build(configuration)
        for module in network.features:
            if isinstance(module, nn.Conv2d):
                nn.init.zeros_(module.bias)
        state = network.state_dict()
        norms = {key.rpartition(".")[0] for key in state if key.endswith("running_mean")}
        kept = {
            key: value
            for key, value in state.items()
            if not (key.startswith("features") and key.endswith("bias") and key.rpartition(".")[0] not in norms)
        }
        assert len(kept) == len(state) - 8
        torch.save(kept, tmp_path / "x.pth")
        check(tmp_path / "x.pth", network, configuration)
        written = convert(tmp_path / "x.pth", tmp_path / "timm.safetensors", to="timm").target
        assert identify(written).complete

    def test_one_bias_alone_is_missing(self, tmp_path):
        state = build(NORMED).state_dict()
        del state["features.4.bias"]
        torch.save(state, tmp_path / "x.pth")
        assert identify(tmp_path / "x.pth").missing == ("features.4.bias",)


class TestHeadWithoutValues:
    @pytest.fixture
    def path(self, tmp_path):
        state = OrderedDict(
            (key, torch.full_like(value, np.nan) if key.startswith("classifier") else value)
            for key, value in build().state_dict().items()
        )
        torch.save(state, tmp_path / "features.pth")
        return tmp_path / "features.pth"

    @pytest.mark.parametrize(
        "options", [{"head": "pool"}, {"until": "relu3_1"}, {"head": "pool", "allow_partial": True}]
    )
    def test_what_is_not_taken_is_not_read(self, options, path):
        found = Classifier.create(SLIM, labels=["x", "y"], weights=path, **options)
        assert all(value.isfinite().all() for value in found.network.state_dict().values())
        assert all(key.startswith("features") for key in found.provenance["weights"]["used"])

    def test_the_load_line_leaves_it(self, path):
        found = identify(path)
        assert "fc head without values (NaN)" in found.verdict
        assert 'head="pool"' in str(found.load_line)
        scope = {"vk": vggkit}
        exec(str(found.load_line), scope)
        assert scope["clf"].network.configuration.head == "pool"

    def test_a_last_layer_of_other_classes_is_not_read(self, tmp_path):
        state = build().state_dict()
        state["classifier.6.weight"].fill_(np.nan)
        torch.save(state, tmp_path / "x.pth")
        Classifier.create(SLIM, labels=["x", "y"], weights=tmp_path / "x.pth")
        with pytest.raises(BadCheckpoint, match="NaN"):
            Classifier.create(SLIM, labels=LABELS, weights=tmp_path / "x.pth")

    def test_the_refusal_says_the_way_out(self, path):
        with pytest.raises(BadCheckpoint, match=r"NaN.*head='pool'"):
            Classifier.create(SLIM, labels=["x", "y"], weights=path)


class TestInMemory:
    def test_it_is_identified(self):
        state = build().state_dict()
        found = identify(state)
        assert (found.complete, found.configuration) == (True, SLIM)
        scope = {"vk": vggkit, "state_dict": state}
        exec(str(found.load_line), scope)
        assert torch.equal(compute(scope["clf"].network), compute(build()))

    @pytest.mark.parametrize("wrap", [dict, OrderedDict, lambda state: {"model": state, "epoch": 3}])
    def test_a_state_dict_is_taken_and_copied(self, wrap):
        network = build()
        loaded = Classifier.create(SLIM, labels=LABELS, weights=wrap(network.state_dict()))
        assert torch.equal(compute(loaded.network), compute(network))
        assert loaded.origin.source == "state dict in memory"
        with torch.no_grad():
            network.features[0].weight.zero_()
        assert loaded.network.features[0].weight.abs().sum() > 0

    def test_another_networks_is_refused(self):
        with pytest.raises(BadCheckpoint, match="state dict in memory"):
            Classifier.create(SLIM, labels=LABELS, weights=build(replace(SLIM, grid=2)).state_dict())
        with pytest.raises(BadCheckpoint, match="no tensors"):
            Classifier.create(SLIM, labels=LABELS, weights={"a": 1})


class Unit(nn.Module):
    """A convolution with its norm and ReLU, under MMCV's names."""

    def __init__(self, into: int, out: int, *, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, 3, padding=1)
        if norm:
            self.bn = nn.BatchNorm2d(out)
        self.activate = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.conv(maps)
        return self.activate(self.bn(maps) if hasattr(self, "bn") else maps)


@pytest.mark.parametrize("configuration", [SLIM, NORMED])
@pytest.mark.parametrize("stated", [True, False], ids=["modules listed", "keys alone"])
def test_mmpretrains_vgg(configuration, stated, tmp_path):
    torch.manual_seed(0)
    units, channels = [], 3
    for block in configuration.blocks:
        for width in block:
            units.append(Unit(channels, width, norm=configuration.batch_norm))
            channels = width
        units.append(nn.MaxPool2d(2, 2))
    head = [
        nn.Linear(10, 16),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, 14),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(14, 3),
    ]
    backbone = nn.Module()
    backbone.features, backbone.classifier = nn.Sequential(*units), nn.Sequential(*head)
    whole = nn.Module()
    whole.backbone = backbone
    state = whole.state_dict()
    meta = {"dataset_meta": {"classes": ("ant", "bee", "cow")}}
    torch.save({"meta": meta, "state_dict": state if stated else dict(state)}, tmp_path / "x.pth")
    theirs = nn.Sequential(backbone.features, nn.Flatten(), backbone.classifier)
    check(tmp_path / "x.pth", theirs, configuration)
    found = identify(tmp_path / "x.pth")
    assert (found.dialect, found.labels) == ("mmpretrain", ("ant", "bee", "cow"))


@pytest.mark.parametrize(("width", "side", "grey"), [(10, 13, 3), (10, 7, 1), (32, 16, 3)])
def test_tinyvgg_is_named(width, side, grey, tmp_path):
    def block(into: int) -> nn.Sequential:
        layers = [nn.Conv2d(into, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers)

    network = nn.Module()
    network.block_1, network.block_2 = block(grey), block(width)
    network.classifier = nn.Sequential(nn.Flatten(), nn.Linear(width * side**2, 3))
    torch.save(network.state_dict(), tmp_path / "x.pth")
    found = identify(tmp_path / "x.pth")
    assert not found.is_vgg
    assert f"TinyVGG, as CNN Explainer has it and courses teach it: four 3×3 convolutions of width {width}" in str(
        found
    )
    assert f"images of {4 * side + 12} pixels where the convolutions are unpadded" in str(found)


@pytest.mark.parametrize("text", ['{"format": "layers-model", "modelTopology": {}}', '{"weightsManifest": []}'])
def test_tensorflow_js(text, tmp_path):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(BadCheckpoint, match=r"TensorFlow\.js' model\.json.*tensorflowjs_converter"):
        identify(tmp_path / "model.json")
