"""Named values inside a network. Peers: torchvision's create_feature_extractor, timm's features_only."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import vggkit as vk
from vggkit.errors import BadInput, UnknownName
from vggkit.models.configure import configure
from vggkit.models.features import Features, list_features
from vggkit.models.vgg import VGG

NETS = ("vgg11", "vgg13", "vgg16", "vgg19")


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return torch.randn(2, 3, 32, 32)


@pytest.fixture(scope="module")
def small():
    """Every kind of layer, narrow: LRN, batch norm, a head of three layers."""
    torch.manual_seed(1)
    configuration = replace(
        configure("vgg11_lrn", num_classes=5),
        blocks=((6,), (8,), (8, 8), (12, 12), (12, 12)),
        batch_norm=True,
        hidden=(20, 16),
        grid=2,
    )
    network = VGG(configuration).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", [*NETS, *(f"{net}_bn" for net in NETS)])
def test_every_layer_is_torchvisions(name, images):
    """Of the trunks alone: the head's matrices take half a gigabyte."""
    vgg = pytest.importorskip("torchvision.models.vgg")
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    letter = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}[name.removesuffix("_bn")]
    network = VGG(name, head="pool", num_classes=2).eval()
    theirs = vgg.make_layers(vgg.cfgs[letter], batch_norm=name.endswith("_bn")).eval()
    theirs.load_state_dict(network.features.state_dict())
    for module in theirs.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    layers = [layer.name for layer in network.configuration.trunk]
    peer = extraction.create_feature_extractor(theirs, {str(place): layer for place, layer in enumerate(layers)})
    with torch.no_grad():
        found, expected = Features(network, layers)(images), peer(images)
    assert list(found) == layers
    for layer in layers:
        assert torch.equal(found[layer], expected[layer]), layer


@pytest.mark.parametrize("name", ["vgg11", pytest.param("vgg16_bn", marks=pytest.mark.slow)])
def test_timms_features_only(name, images):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(name, features_only=True, pretrained=False).eval()
    network = VGG(name, head="pool", num_classes=2).eval()
    weights = network.features.state_dict()
    theirs.load_state_dict({f"features_{key.replace('.', '.', 1)}": value for key, value in weights.items()})
    last = ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"]
    if name == "vgg11":
        last = ["relu1_1", "relu2_1", "relu3_2", "relu4_2", "relu5_2"]
    with torch.no_grad():
        found, expected = Features(network, [*last, "pool5"])(images), theirs(images)
    for ours, peer in zip(found.values(), expected, strict=True):
        assert torch.equal(ours, peer)


def test_the_whole_vgg11_is_torchvisions(images):
    models = pytest.importorskip("torchvision.models")
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    network = VGG("vgg11").eval()
    with torch.device("meta"):
        theirs = models.vgg11(init_weights=False).eval()
    theirs.load_state_dict(network.state_dict(), assign=True)
    for module in theirs.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    places = {"classifier.0": "fc6", "classifier.1": "relu6", "classifier.3": "fc7", "classifier.4": "relu7"}
    peer = extraction.create_feature_extractor(theirs, places | {"classifier.6": "fc8", "features.20": "pool5"})
    with torch.no_grad():
        found, expected = Features(network, ["pool5", *places.values(), "fc8"])(images), peer(images)
    for layer, values in found.items():
        assert torch.equal(values, expected[layer]), layer


@pytest.mark.parametrize("head", ["fc", "dense", "pool"])
def test_the_last_names_are_the_networks_own_results(small, head):
    network = VGG(replace(small.configuration, head=head)).eval()
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        found = Features(network, ["logits", "features", "fc6", "relu6"])(images)
        assert torch.allclose(found["logits"], network(images), atol=1e-5)
        assert torch.allclose(found["features"], network.describe(images), atol=1e-5)
        assert torch.equal(found["fc6"].relu(), found["relu6"])


def test_the_names_are_those_of_every_engine(small):
    from vggkit.engines.outputs import list_outputs

    outputs = set(list_outputs(small.configuration)) - {"probabilities"}
    assert set(list_features(small.configuration)) == outputs


def test_nothing_beyond_the_last_name_is_computed(small, images):
    network = VGG(small.configuration).eval()
    network.features[20] = nn.Identity()  # would break a pass that reached it
    order = [layer.name for layer in small.configuration.trunk]
    ran = []
    for layer, module in zip(order, network.features, strict=True):
        module.register_forward_hook(lambda *_, name=layer: ran.append(name))
    network = VGG(small.configuration).eval()
    weights = network.features[order.index("conv4_1")].weight
    with torch.no_grad():
        weights.fill_(torch.nan)
    found = Features(network, ["relu1_1", "pool3"])(images)
    assert list(found) == ["relu1_1", "pool3"]
    assert all(values.isfinite().all() for values in found.values())


def test_the_network_is_left_as_found(small, images):
    network = VGG(small.configuration).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    features = Features(network, ["bn1_1", "relu7", "logits"])
    first, second = features(images), features(images)
    assert all(torch.equal(first[name], second[name]) for name in first)  # no dropout, no batch statistics
    assert network.training
    assert all(module.training for module in network.modules())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_training_mode_is_the_networks_training(small, images):
    network = VGG(small.configuration)
    features = Features(network, ["bn1_1", "relu7"]).train()
    before = network.features[1].running_mean.clone()
    features(images)
    assert not torch.equal(before, network.features[1].running_mean)
    assert not torch.equal(features(images)["relu7"], features(images)["relu7"])


def test_gradients_reach_the_images_and_stop_at_a_frozen_network(small, images):
    given = images.clone().requires_grad_(True)
    network = VGG(small.configuration)
    loss = Features(network, ["conv2_1", "pool4"], frozen=True)(given)["conv2_1"].square().sum()
    loss.backward()
    assert given.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())
    Features(network, ["conv2_1"])(given)["conv2_1"].square().sum().backward()
    assert network.features[0].weight.grad is not None


def test_the_gradient_is_that_of_the_plain_network(small, images):
    ours, theirs = images.clone().requires_grad_(True), images.clone().requires_grad_(True)
    Features(small, ["relu1_1", "logits"])(ours)["logits"].square().sum().backward()
    small(theirs).square().sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def test_transformations_of_torch(small, images):
    features = Features(small, ["conv1_1", "relu3_2"])
    expected = features(images)
    compiled = torch.compile(features, backend="aot_eager", fullgraph=True)(images)
    last = features(images.contiguous(memory_format=torch.channels_last))
    each = torch.func.vmap(lambda image: features(image[None]))(images)
    given = dict(small.named_parameters())
    called = torch.func.functional_call(features, {f"network.{key}": value for key, value in given.items()}, images)
    for name, values in expected.items():
        for other in (compiled[name], last[name], each[name][:, 0], called[name]):
            assert torch.allclose(values, other, atol=1e-5), name
    with torch.autocast("cpu", torch.bfloat16):
        rounded = features(images)["conv1_1"]
    assert rounded.dtype == torch.bfloat16
    gradient = torch.func.grad(lambda given: features(given)["relu3_2"].sum())(images)
    assert gradient.shape == images.shape


@pytest.mark.parametrize("side", [32, 33, 50, 97])
def test_any_size(small, side):
    found = Features(small, ["pool5", "conv5_2"])(torch.zeros(1, 3, side, side + 31))
    assert found["pool5"].shape == (1, 12, side // 32, (side + 31) // 32)


def test_cut_networks_and_classifiers(tiny, images):
    network = VGG("vgg11", until="relu3_2", head="pool", num_classes=2)
    assert Features(network, "relu3_2")(images)["relu3_2"].shape == (2, 256, 8, 8)
    assert Features(network, "relu1_1")(images[..., :1, :1])["relu1_1"].shape == (2, 64, 1, 1)
    with pytest.raises(UnknownName, match=r"pool4.*relu3_2"):
        Features(network, "pool4")
    classifier = vk.Classifier.create(tiny, labels=["a", "b", "c"])
    with torch.no_grad():
        assert torch.equal(Features(classifier, "logits")(images)["logits"], classifier.network.eval()(images))


def test_what_is_asked_wrongly(small, images):
    with pytest.raises(UnknownName, match="relu3_2"):
        Features(small, ["relu3_3"])
    with pytest.raises(BadInput, match="name one layer"):
        Features(small, [])
    with pytest.raises(UnknownName, match="None is not a layer"):
        Features(small, None)
    with pytest.raises(BadInput, match="VGG or a Classifier"):
        Features(nn.Linear(2, 2), ["relu1_1"])
    with pytest.raises(BadInput, match="at least 32"):
        Features(small, ["pool5"])(images[..., :31])
    with pytest.raises(BadInput, match="floating point"):
        Features(small, ["pool1"])(images.to(torch.uint8))
    with pytest.raises(BadInput, match=r"\(N, 3, H, W\)"):
        Features(small, ["pool1"])(images[0])
    assert np.isfinite(Features(small, ["pool1"])(images)["pool1"].detach().numpy()).all()
