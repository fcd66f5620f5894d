"""What a state dict does not hold: modules without tensors. Each network is built by hand, and is the oracle."""

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from torch import nn

import vggkit as vk
from vggkit.classifier import Classifier
from vggkit.errors import BadCheckpoint, BadConfiguration
from vggkit.models.configuration import Configuration
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG
from vggkit.weights.convert import convert
from vggkit.weights.identification import describe_identification
from vggkit.weights.identify import identify

CHANNELS = (6, "M", 8, "M", 8, 8, "M", 12, 12, "M", 12, 10, "M")
"""VGG11's shape with few channels."""


def features(channels=CHANNELS, *, norm=False):
    layers, into = [], 3
    for out in channels:
        if out == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(into, out, 3, padding=1), *([nn.BatchNorm2d(out)] if norm else []), nn.ReLU()]
            into = out
    return nn.Sequential(*layers)


class Net(nn.Module):
    """As torchvision writes it; what is set on it from outside is not called, but for `behind`."""

    def __init__(self, classifier, *, trunk=None, grid=2, calls=()):
        super().__init__()
        self.features = trunk or features()
        self.avgpool = nn.AdaptiveAvgPool2d(grid)
        self.classifier = classifier
        self.calls = calls

    def forward(self, images):
        rows = self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))
        for name in self.calls:
            rows = torch.relu(rows) if name == "relu" else getattr(self, name)(rows)
        return rows


def paper(*more):
    """The paper's head, narrow, with something behind it."""
    layers = [
        nn.Linear(40, 16),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, 14),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(14, 9),
    ]
    return nn.Sequential(*layers, *more)


def build(module):
    """With values that hide nothing."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return module.eval()


def logits(module, side=64):
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return module.eval()(images)


def same(module, other):
    one, two = logits(module), logits(other)
    return one.shape == two.shape and bool(torch.allclose(one, two, rtol=1e-4, atol=1e-4 * float(one.abs().max())))


def write(module, path, how):
    """`pth` keeps what torch lists beside the tensors; in `plain` and safetensors there are tensors alone."""
    state = {key: value.contiguous() for key, value in module.state_dict().items()}
    if how == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(module.state_dict() if how == "pth" else state, path)
    return path


def run(line):
    scope = {"vk": vk}
    exec(line, scope)
    return scope["clf"]


WAYS = ["pth", *(pytest.param(way, marks=pytest.mark.slow) for way in ("plain", "safetensors"))]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    "head",
    [
        lambda: paper(nn.Linear(9, 3)),  # narrower in the middle than at no end: one matrix
        lambda: paper(nn.Linear(9, 30)),  # a narrow middle: two factors
        lambda: paper(nn.Linear(9, 30, bias=False)),
        lambda: paper(nn.Linear(9, 30), nn.Linear(30, 5)),
        lambda: nn.Sequential(nn.Linear(40, 20), nn.Linear(20, 7)),
        lambda: nn.Sequential(nn.Linear(40, 8), nn.Linear(8, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 5)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(40, 9), nn.Linear(9, 12)),
    ],
)
def test_no_activation_between_adjacent_indices(tmp_path, head, how):
    """`classifier.add_module("7", nn.Linear(1000, 3))`, as many people put their classes behind ImageNet's."""
    net = build(Net(head()))
    path = write(net, tmp_path / "x.bin", how)
    found = identify(path)
    assert found.complete
    assert found.unexpected == ()
    assert len(found.readings) == 1
    assert "without an activation between them, read as one layer" in found.verdict
    assert same(run(found.load_line).network, net)
    done = convert(path, tmp_path / "y.safetensors", to="torchvision")
    assert same(run(identify(done.target).load_line).network, net)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    "head",
    [
        lambda between: paper(between, nn.Linear(9, 3)),
        lambda between: paper(between, nn.Linear(9, 30)),
        lambda between: nn.Sequential(nn.Linear(40, 16), between, nn.Linear(16, 5)),
        lambda between: nn.Sequential(nn.Linear(40, 16, bias=False), between, nn.Linear(16, 20)),
        lambda between: nn.Sequential(
            nn.Dropout(), nn.Linear(40, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16), between, nn.Linear(16, 10)
        ),
    ],
)
def test_a_gap_of_one_module_has_two_readings(tmp_path, head, relu, how):
    net = build(Net(head(nn.ReLU() if relu else nn.Dropout())))
    path = write(net, tmp_path / "x.bin", how)
    found = identify(path)
    assert [reading.description.split(" between ")[0] for reading in found.readings] == ["a ReLU", "no activation"]
    right = 0 if relu else 1
    assert found.configuration == found.readings[0].configuration
    assert f"read as {found.readings[0].description}, which its tensors do not determine" in found.verdict
    assert "readings[0]" in found.load_line
    if found.readings[0].load_line.count("allow_partial"):
        return  # a layer without a bias, which no Configuration has
    assert [same(run(each.load_line).network, net) for each in found.readings] == [relu, not relu]
    done = convert(path, tmp_path / "y.safetensors", to="torchvision", reading=right)
    assert same(run(identify(done.target).load_line).network, net)
    assert f"reading={right}" in str(done)
    told = describe_identification(found)
    assert all(reading.description in told and reading.load_line in told for reading in found.readings)
    with pytest.raises(BadConfiguration, match="reading=2 is none of its readings, which are 0 to 1"):
        convert(path, tmp_path / "z.safetensors", to="torchvision", reading=2)
    assert (
        json.loads(json.dumps(found.to_dict()))["readings"][right]["description"]
        == found.readings[right].description
    )


def test_the_reading_follows_the_requested_configuration(tmp_path):
    net = build(Net(paper(nn.Dropout(), nn.Linear(9, 3))))
    path = write(net, tmp_path / "x.pth", "pth")
    wanted = replace(identify(path).configuration, hidden=(16, 14), ranks=None)
    created = Classifier.create(wanted, labels=["a", "b", "c"], weights=path)
    assert same(created.network, net)
    assert created.provenance["weights"]["reading"].startswith("no activation between classifier.6")


@pytest.mark.sweep(4)
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    "name", ["fc_extra", "fc", "fc1", "fc4", "fc7", "fc9", "head", "last_linear", "predictions"]
)
@pytest.mark.parametrize("into", [9, 40, 5])
def test_a_matrix_outside_the_published_forward(tmp_path, name, into, how):
    net = Net(paper())
    net.add_module(name, nn.Linear(into, 3))
    build(net)
    path = write(net, tmp_path / "x.bin", how)
    found = identify(path)
    assert set(found.unexpected) == {f"{name}.weight", f"{name}.bias"}
    assert "2 unexpected tensors" in found.verdict
    assert "allow_partial=True" in found.load_line
    assert same(run(found.load_line).network, net)
    # Where it would fit behind the head, a forward of somebody's own may call it.
    assert len(found.readings) == (3 if into == 9 else 1)
    for number, calls in ((1, ["relu", name]), (2, [name])) if into == 9 else ():
        called = Net(net.classifier, trunk=net.features, calls=calls)
        called.add_module(name, getattr(net, name))
        assert same(run(found.readings[number].load_line).network, called), found.readings[number]


@pytest.mark.parametrize("how", WAYS)
def test_a_last_layer_beside_the_papers_hidden_ones(tmp_path, how):
    hidden = nn.Sequential(nn.Linear(40, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU())
    net = Net(hidden, calls=["fc"])
    net.fc = nn.Linear(4096, 3)
    build(net)
    found = identify(write(net, tmp_path / "x.bin", how))
    assert (found.num_classes, found.complete, found.unexpected) == (3, True, ())
    assert same(run(found.load_line).network, net)


def test_lists_of_layers_may_have_activations_between(tmp_path):
    """A ModuleList's indices are adjacent, and its forward puts the ReLUs in."""

    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = features()
            self.fcs = nn.ModuleList([nn.Linear(10, 8), nn.Linear(8, 8), nn.Linear(8, 3)])

        def forward(self, images):
            rows = self.features(images).mean((2, 3))
            for layer in self.fcs[:-1]:
                rows = torch.relu(layer(rows))
            return self.fcs[-1](rows)

    net = build(Listed())
    found = identify(write(net, tmp_path / "x.pth", "pth"))
    right = [same(run(each.load_line).network, net) for each in found.readings]
    assert right[0]
    assert right.count(True) == 1 < len(right)


# Cuts


def ends():
    for model, until in (
        ("vgg11", "conv1_1 relu1_1 pool1 conv2_1 relu2_1 pool2 conv3_1 relu3_1 conv3_2 relu3_2 pool3"),
        ("vgg16", "conv1_1 relu1_2 pool1 relu2_1 pool2"),
        ("vgg11_bn", "conv1_1 bn1_1 relu1_1 pool1 conv2_1 bn2_1 relu2_1 pool2"),
        ("vgg11_lrn", "conv1_1 relu1_1 lrn1_1 pool1 relu2_1"),
        ("vgg13", "relu1_2"),
    ):
        for name in until.split():
            yield configure(model, until=name, num_classes=3)
    narrow = replace(configure("vgg11", num_classes=3), blocks=((6,), (8,), (8, 8), (12, 12), (12, 10)))
    for name in ("conv1_1", "relu2_1", "pool2", "relu5_2", "conv5_2"):
        yield configure(narrow, until=name)
        yield replace(configure(narrow, until=name), statistics="mean")
    yield configure(narrow, head="pool")
    yield replace(configure(narrow, head="pool"), statistics="mean+std")


@pytest.mark.sweep(5)
@pytest.mark.parametrize("configuration", list(ends()), ids=lambda c: f"{c.model}-{c.until}-{c.statistics}")
@pytest.mark.parametrize("how", WAYS)
def test_wherever_a_trunk_is_cut(tmp_path, configuration, how):
    """Our own state dicts say it; of tensors alone every end is given, and each line is what it says."""
    net = build(VGG(configuration))
    found = identify(write(net, tmp_path / "x.bin", how))
    assert found.complete
    assert found.until == found.configuration.until
    networks = [run(reading.load_line).network for reading in found.readings]
    assert any(same(network, net) for network in networks), [reading.description for reading in found.readings]
    assert [network.configuration for network in networks] == [each.configuration for each in found.readings]
    assert same(run(found.load_line).network, networks[0])
    if how == "pth":
        assert found.configuration == configuration
        assert len(found.readings) == 1
    elif len(found.readings) == 1:  # a convolution without the batch norm that the others have
        assert found.until == configuration.until == "conv2_1"
    else:
        assert len({reading.description for reading in found.readings}) == len(found.readings)
        taken = configuration.until or f"pool{len(configuration.blocks)}"
        assert any(taken in reading.description for reading in found.readings)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("channels", [(6, "M", 8, "M"), (6, 6, "M", 8, 8), (64, "M", 128), (64, "M", 128, "M")])
@pytest.mark.parametrize("how", WAYS)
def test_trunks_written_by_others_with_global_pooling(tmp_path, channels, norm, how):
    classifier = nn.Sequential(nn.Linear([c for c in channels if c != "M"][-1], 3))
    net = build(Net(classifier, trunk=features(channels, norm=norm), grid=1))
    found = identify(write(net, tmp_path / "x.bin", how))
    right = [same(run(reading.load_line).network, net) for reading in found.readings]
    assert right.count(True) == 1
    # torch's own list of modules says how many there are; without it the pool is the likelier end.
    assert right[0] is True or (how != "pth" and channels[-1] != "M")


def test_a_missing_last_pool_is_reported(tmp_path):
    net = build(Net(nn.Sequential(nn.Linear(8 * 16, 3)), trunk=features((6, "M", 8)), grid=4))
    assert "without pool2 in its features" in identify(write(net, tmp_path / "x.pth", "pth")).verdict


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("head", ["fc", "dense"])
def test_metadata_of_vggkit_state_dicts(tmp_path, pooling, head):
    configuration = Configuration(
        blocks=((4,), (5, 6)), pooling=pooling, head=head, grid=2, hidden=(7,), num_classes=3, dropout=0.1
    )
    for wrapped in (lambda net: net.state_dict(), lambda net: {"state_dict": nn.DataParallel(net).state_dict()}):
        torch.save(wrapped(build(VGG(configuration))), tmp_path / "x.pth")
        found = identify(tmp_path / "x.pth")
        assert found.configuration == configuration
        assert torch.load(tmp_path / "x.pth", weights_only=True)


def test_layers_exchanged_by_hand_are_not_stated(tmp_path):
    configuration = configure(Configuration(blocks=((4,), (5, 6)), num_classes=3, grid=2, hidden=()), until="pool1")
    net = VGG(configuration)
    net.classifier[0] = nn.Linear(8, 5)  # other classes: the trunk is still the one that was stated
    found = identify(write(build(net), tmp_path / "x.pth", "pth"))
    assert (found.num_classes, found.configuration.trunk) == (5, configuration.trunk)
    assert same(run(found.load_line).network, net)
    net.features[1] = nn.LeakyReLU()  # no configuration has it
    found = identify(write(build(net), tmp_path / "x.pth", "pth"))
    assert len(found.readings) > 1
    torch.save({"x": torch.ones(2)} | dict(net.state_dict()), tmp_path / "y.pth")
    assert "1 unexpected" in identify(tmp_path / "y.pth").verdict


# What starts from such files


@pytest.mark.parametrize(
    "head",
    [
        lambda: nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3)),
        lambda: nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3)),
    ],
)
def test_an_unknown_module_in_the_head_is_reported(tmp_path, head):
    net = build(Net(head(), trunk=features((6, "M", 8, "M")), grid=1))
    path = write(net, tmp_path / "x.pth", "pth")
    found = identify(path)
    assert "classifier.1.running_mean" in found.unexpected
    assert "allow_partial=True" in found.load_line
    run(found.load_line)
    with pytest.raises(BadCheckpoint, match=r"unexpected: classifier\.1"):
        Classifier.create(found.configuration, labels=["a", "b", "c"], weights=path)


@pytest.mark.parametrize("kept", ["pth", "card"])
def test_a_head_is_not_kept_on_another_cut(tmp_path, kept):
    """It fits by its shape, and reads other numbers."""
    labels = ["a", "b", "c"]
    source = Classifier.create("vgg11", labels=labels, until="pool2", seed=0)
    path = tmp_path / "x.safetensors"
    source.save(path) if kept == "card" else torch.save(source.network.state_dict(), path)
    same_cut = Classifier.create("vgg11", labels=labels, until="pool2", weights=path)
    assert torch.equal(same_cut.network.classifier[0].weight, source.network.classifier[0].weight)
    grey = Classifier.create("vgg11", labels=labels, until="pool2", in_channels=1, weights=path)
    assert torch.equal(grey.network.classifier[0].weight, source.network.classifier[0].weight)
    for until in ("relu2_1", "conv2_1"):
        other = Classifier.create("vgg11", labels=labels, until=until, weights=path)
        assert other.provenance["weights"]["renewed"] == "the head, new with 3 classes"
        assert not torch.equal(other.network.classifier[0].weight, source.network.classifier[0].weight)
        assert torch.equal(other.network.features[3].weight, source.network.features[3].weight)
    # Of tensors alone either may be meant.
    torch.save(dict(source.network.state_dict()), path)
    either = Classifier.create("vgg11", labels=labels, until="relu2_1", weights=path)
    assert torch.equal(either.network.classifier[0].weight, source.network.classifier[0].weight)


@pytest.mark.parametrize(
    "names",
    [
        {"class_to_idx": {"rose": 2, "iris": 0, "tulip": 1}},
        {"idx_to_class": {0: "iris", 2: "rose", 1: "tulip"}},
        {"classes": ["iris", "tulip", "rose"]},
        {"class_names": ("iris", "tulip", "rose")},
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_class_names_that_training_scripts_keep(tmp_path, names, inside):
    state = dict(VGG("vgg11", until="pool1", num_classes=3).state_dict())
    content = {"model": {"state_dict": state} | names} if inside else {"state_dict": state} | names
    torch.save(content | {"epoch": 3}, tmp_path / "x.pth")
    found = identify(tmp_path / "x.pth")
    assert found.labels == ("iris", "tulip", "rose")
    assert "iris, tulip, rose" in describe_identification(found)
    assert run(found.load_line).labels == found.labels
    done = convert(tmp_path / "x.pth", tmp_path / "y.safetensors", to="explicit")
    assert identify(done.target).labels == found.labels


@pytest.mark.parametrize(
    "names",
    [
        {"class_to_idx": {"rose": 1, "iris": 0}},
        {"class_to_idx": {"rose": 3, "iris": 1, "tulip": 2}},
        {"class_to_idx": {"rose": 0, "iris": 0, "tulip": 1}},
        {"classes": ["iris", "iris", "rose"]},
        {"classes": 3},
        {"labels": [0, 1, 2]},
        {"idx_to_class": {0: None, 1: "a", 2: "b"}},
    ],
)
def test_what_are_no_class_names(tmp_path, names):
    state = dict(VGG("vgg11", until="pool1", num_classes=3).state_dict())
    torch.save({"state_dict": state} | names, tmp_path / "x.pth")
    found = identify(tmp_path / "x.pth")
    assert found.labels is None
    assert run(found.load_line).labels == ("0", "1", "2")
