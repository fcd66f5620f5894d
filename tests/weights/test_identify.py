"""Identification by shapes. Files of half a gigabyte are not needed for it: their keys and shapes are enough."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import vggkit as vk
from vggkit.classifier import Classifier
from vggkit.errors import BadCheckpoint
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration, list_models
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG
from vggkit.weights.card import METADATA_KEY, Card
from vggkit.weights.convert import convert
from vggkit.weights.dialects import map_keys, rename_keys
from vggkit.weights.identify import identify, identify_file
from vggkit.weights.input_conventions import CONVENTIONS


class Outline:
    """An open file of which only keys and shapes are known; its values are zeros."""

    def __init__(self, shapes, *, name="x.pth", container="pytorch", metadata=None, dtype="float32"):
        self.path = Path(name)
        self.container = container
        self.stripped = ()
        self.metadata = metadata or {}
        self.modules = ()
        self.entries = {k: SimpleNamespace(shape=tuple(shape), dtype=dtype) for k, shape in shapes.items()}

    def read(self, key):
        return torch.zeros(self.entries[key].shape)

    def read_array(self, key):
        return np.zeros(self.entries[key].shape, np.float32)


def outline(configuration, dialect="torchvision", **options):
    shapes = configuration.state_shapes()
    places = map_keys(configuration, dialect)
    return Outline({place.key: place.shape_of(shapes[key]) for key, place in places.items()}, **options)


def look(shapes, **options):
    file = shapes if isinstance(shapes, Outline) else Outline(shapes, **options)
    return identify_file(file).identification


@pytest.mark.parametrize("model", list_models())
@pytest.mark.parametrize("dialect", ["torchvision", "timm", "keras", "caffe", "blocks", "explicit"])
def test_every_model_in_every_dialect(model, dialect):
    configuration = configure(model, num_classes=17)
    if configuration.batch_norm and dialect in ("keras", "caffe"):
        pytest.skip("the dialect has no batch norm")
    found = look(outline(configuration, dialect, name="vgg11.pth"))
    if model == "vgg11_lrn" and dialect not in ("torchvision", "timm"):
        configuration = configure("vgg11", num_classes=17)  # normalisation has no weights, only a place
    assert found.configuration == configuration
    assert (found.dialect, found.model) == (dialect, configuration.model)
    assert (found.batch_norm, found.num_classes, found.in_channels) == (configuration.batch_norm, 17, 3)
    assert found.complete
    assert (found.missing, found.unexpected, found.misshapen) == ((), (), ())
    assert found.input_convention is None
    assert ("not VGG11" in found.verdict) is not configuration.model.startswith("vgg11")


@pytest.mark.parametrize("real", ["vgg16", "vgg13"])
@pytest.mark.parametrize("style", ["torchvision", "blocks", "explicit"])
def test_listings_called_vgg11_that_are_not(real, style):
    found = look(outline(configure(real, num_classes=10), style, name="vgg11.pth"))
    assert found.model == real
    convolutions, letter = (13, "D") if real == "vgg16" else (10, "B")
    assert f"VGG{real[3:]} (configuration {letter}), not VGG11: {convolutions} convolutions" in found.verdict
    assert found.to_dict()["configuration"] == real


def names_in_order(model):
    """Ways people name the layers, none of them a dialect: each gives convolutions' and matrices' names."""
    count = sum(map(len, configure(model).blocks))
    yield [f"conv{i}" for i in range(1, count + 1)], ["fc1", "fc2", "fc3"]
    yield [f"layers.{i}.conv" for i in range(count)], ["dense1", "dense2", "out"]
    yield [f"blocks.{i // 3}.{i % 3}" for i in range(count)], ["classifier.0", "classifier.2", "classifier.4"]
    yield [f"c_{i:02}" for i in range(count)], ["head.fc_a", "head.fc_b", "head.fc_c"]
    yield [str(3 * i) for i in range(count)], ["linear1", "linear2", "linear3"]


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("model", ["vgg11", "vgg13", "vgg16", "vgg19", "vgg16_c", "vgg16_bn"])
def test_uninformative_names(model, shuffled):
    configuration = configure(model, num_classes=5)
    for convolutions, matrices in names_in_order(model):
        places = [layer.name for layer in configuration.trunk if layer.kind == "conv"]
        names = dict(zip(places, convolutions, strict=True))
        norms = {name.replace("conv", "bn"): f"{given}_norm" for name, given in names.items()}
        modules = {f"features.{layer.index}": (names | norms).get(layer.name) for layer in configuration.trunk}
        modules |= {f"classifier.{3 * j}": name for j, name in enumerate(matrices)}
        shapes = {}
        for key, shape in configuration.state_shapes().items():
            module, parameter = key.rsplit(".", 1)
            shapes[f"{modules[module]}.{parameter}"] = shape
        keys = sorted(shapes) if shuffled else list(shapes)  # safetensors keep their keys by letter
        found = look({key: shapes[key] for key in keys}, name="vgg11.pth")
        assert found.configuration == configuration, (convolutions[:2], matrices, found.verdict)
        assert found.complete
        assert found.dialect == "ordered"


@pytest.mark.parametrize(
    "names", ["/kernel /bias", "_W _b", ".weight .bias", "_weights _biases", "/weights /biases"]
)
@pytest.mark.parametrize("last", [False, True])
def test_caffe_names(names, last):
    weight, bias = names.split()
    configuration = configure("vgg16")
    shapes = {}
    dialect = "keras" if last else "caffe"
    places = map_keys(configuration, dialect)
    renamed = rename_keys(configuration, "explicit")
    for key, shape in configuration.state_shapes().items():
        module, parameter = renamed[key].rsplit(".", 1)
        module = module.replace("fc3", "fc8").replace("fc2", "fc7").replace("fc1", "fc6")
        shapes[module + (weight if parameter == "weight" else bias)] = places[key].shape_of(shape)
    found = look(shapes, container="npz", name="vgg.npz")
    assert found.configuration == configuration
    assert found.dialect == "caffe"
    assert found.complete


def test_kernels_in_slims_layout():
    """TF-Slim keeps its fully connected layers as convolutions, HWIO."""
    configuration = configure("vgg16")
    shapes = {}
    for layer in configuration.trunk:
        if layer.kind == "conv":
            name = f"vgg_16/conv{layer.name[4]}/{layer.name}"
            shapes[f"{name}/weights"] = (3, 3, layer.in_channels, layer.out_channels)
            shapes[f"{name}/biases"] = (layer.out_channels,)
    for j, (side, into, out) in enumerate([(7, 512, 4096), (1, 4096, 4096), (1, 4096, 1000)], start=6):
        shapes[f"vgg_16/fc{j}/weights"], shapes[f"vgg_16/fc{j}/biases"] = (side, side, into, out), (out,)
    found = look(shapes, container="npz")
    assert (found.model, found.dialect, found.complete) == ("vgg16", "caffe", True)


def heads():
    base = configure("vgg13", num_classes=7)
    yield replace(base, grid=1, hidden=(512, 512))
    yield replace(base, grid=2, hidden=(64,))
    yield replace(base, hidden=())
    yield replace(base, hidden=(100, 90, 80))
    yield replace(base, ranks=(64, None, 8))
    yield replace(base, ranks=(64, 32, 16))
    for channels in (1, 2, 4):
        yield replace(base, in_channels=channels)
    for statistics in ("mean", "mean+std"):
        yield replace(configure("vgg16_bn", num_classes=7, head="pool"), statistics=statistics)
    yield configure("vgg19", num_classes=7, until="relu3_4")
    yield configure("vgg19", num_classes=7, until="relu4_2")
    yield replace(base, blocks=((60, 64), (101, 128), (256, 3), (512, 400), (511, 13)))
    yield replace(base, blocks=((5,), (6, 7, 8), (9,)), batch_norm=True, grid=3, hidden=(11,))
    yield replace(configure("vgg16_bn", num_classes=7, head="pool"), blocks=((3, 4), (5, 6), (7, 8, 9), (2,), (1,)))


@pytest.mark.parametrize("dialect", ["torchvision", "blocks", "explicit"])
@pytest.mark.parametrize(
    "configuration", list(heads()), ids=lambda c: f"{c.model}-{c.until}-{c.head}-{c.hidden}-{c.ranks}"
)
def test_heads_cuts_and_odd_widths(configuration, dialect):
    found = look(outline(configuration, dialect))
    expected = configuration
    if configuration.head == "pool":
        expected = replace(configuration, dropout=0.0)
    assert found.configuration == expected
    assert found.complete
    assert not found.unexpected
    assert found.head == configuration.head


def test_features_alone_and_heads_that_are_not_whole():
    shapes = configure("vgg16", num_classes=9).state_shapes()
    trunk = {key: shape for key, shape in shapes.items() if key.startswith("features.")}
    found = look(trunk)
    assert (found.model, found.head, found.num_classes, found.complete) == ("vgg16", None, None, False)
    assert list(found.missing) == [f"classifier.{i}.{kind}" for i in (0, 3, 6) for kind in ("weight", "bias")]
    found = look({key.removeprefix("features."): shape for key, shape in trunk.items()})
    assert (found.model, found.dialect, found.until) == ("vgg16", "ordered", None)
    headless = {key: shape for key, shape in shapes.items() if not key.startswith("classifier.6")}
    found = look(headless)
    assert (found.model, found.num_classes) == ("vgg16", None)
    assert found.missing == ("classifier.6.weight", "classifier.6.bias")
    timm = outline(configure("vgg16"), "timm")
    timm.entries = {key: entry for key, entry in timm.entries.items() if "head" not in key}
    assert look(timm).missing == ("head.fc.weight", "head.fc.bias")


def test_missing_misshapen_and_unexpected_keys_are_listed():
    shapes = configure("vgg16").state_shapes()
    found = look({key: shape for key, shape in shapes.items() if key != "features.7.weight"})
    assert (found.model, found.missing, found.complete) == ("vgg16", ("features.7.weight",), False)
    found = look(shapes | {"features.7.weight": (128, 127, 3, 3), "extra.weight": (2,), "epoch": ()})
    assert found.model == "vgg16"
    assert found.misshapen == ("features.7.weight (128, 127, 3, 3) in place of (128, 128, 3, 3)",)
    assert found.unexpected == ("extra.weight", "epoch")
    half = list(shapes)
    random.Random(0).shuffle(half)
    found = look({key: shapes[key] for key in shapes if key in half[: len(half) // 2]})
    assert found.model == "vgg16"
    assert set(found.missing) == set(half[len(half) // 2 :])
    cut = look(
        {
            key: shape
            for key, shape in shapes.items()
            if key.startswith("features.") and int(key[9:11].strip(".")) < 5
        }
    )
    assert "which vgg13, vgg16_c, vgg19 begin with too" in cut.verdict


def module_shapes(module):
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def test_other_networks_are_no_vgg():
    models = pytest.importorskip("torchvision").models
    for name in ("resnet18", "resnet50", "alexnet", "squeezenet1_1", "densenet121", "mobilenet_v2", "googlenet"):
        with torch.device("meta"):
            options = {"init_weights": False} if name == "googlenet" else {}
            network = getattr(models, name)(**options)
        found = look(module_shapes(network), name="vgg16.pth")
        assert not found.is_vgg, name
        assert found.verdict.startswith("not a VGG: "), found.verdict
        assert found.to_dict()["configuration"] is None
    lenet = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 16, 3), nn.Flatten(), nn.Linear(400, 10))
    assert not look(module_shapes(lenet)).is_vgg
    assert not look({"weight": (10, 4), "bias": (10,)}).is_vgg
    assert not look({"embedding": (10, 4)}).is_vgg


def test_torchvision_weights(tmp_path):
    models = pytest.importorskip("torchvision").models
    for model in list_models():
        if hasattr(models, model):
            with torch.device("meta"):
                theirs = getattr(models, model)()
            assert look(module_shapes(theirs)).configuration == configure(model)


def test_a_classifier_file(tiny, tmp_path):
    path = tmp_path / "vgg19.safetensors"
    small = Preprocessing(resize_pixels=32, crop_pixels=32)
    Classifier.create(tiny, labels=["a", "b", "c"], preprocessing=small).save(path)
    found = identify(path)
    assert found.configuration == tiny
    assert (found.complete, found.preprocessing, found.evidence) == (True, small, "card")
    assert found.load_line == f'clf = vk.load("{path}")'
    dense = replace(tiny, head="dense", grid=1, hidden=(8,), until=None)
    card = Card(configuration=dense, preprocessing=small, labels=("a", "b", "c"))
    found = look(outline(dense, metadata=card.to_metadata(), container="safetensors"))
    assert found.head == "dense"
    with pytest.raises(BadCheckpoint, match="not JSON"):
        look(outline(dense, metadata={METADATA_KEY: "{"}))


def test_the_load_line_works(tiny, tmp_path):
    def check(state, configuration, name="x.pth"):
        path = tmp_path / name
        torch.save(state, path)
        found = identify(path)
        line = found.load_line.replace("vk.identify(", "identify(")
        scope = {"vk": vk, "identify": identify}
        exec(line, scope)
        assert scope["clf"].configuration == configuration
        assert torch.equal(scope["clf"].network.features[0].weight, state["features.0.weight"])

    check(VGG(tiny).state_dict(), tiny)
    cut = configure("vgg16", until="relu2_2", num_classes=4)
    check(VGG(cut).state_dict(), cut)
    grey = configure("vgg13", until="relu1_2", num_classes=4, in_channels=1)
    check(VGG(grey).state_dict(), grey)
    # Without what a VGG's own state dict states beside its tensors, the model that is cut most often.
    check(dict(VGG(grey).state_dict()), configure("vgg16", until="relu1_2", num_classes=4, in_channels=1))
    headless = {key: value for key, value in VGG(cut).state_dict().items() if key.startswith("features")}
    check(headless, configure("vgg16", until="relu2_2", num_classes=2))


def test_the_real_files(shared):
    weights = shared / "weights"
    partial = identify(weights / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth")
    assert (partial.model, partial.until, partial.dialect) == ("vgg19", "relu3_4", "torchvision")
    assert (partial.complete, partial.num_classes, partial.head) == (False, None, None)
    assert partial.missing == ("classifier.0.weight", "classifier.0.bias")
    assert partial.unexpected == tuple(f"features.{i}.bias" for i in (19, 21, 23, 25, 28, 30, 32, 34))
    assert partial.preprocessing == CONVENTIONS["caffe"]
    assert partial.input_convention.startswith("BGR 0-255, mean (103.939, 116.779, 123.68)")
    assert "8 biases without their kernels" in partial.verdict
    first = identify(weights / "vgg16_oxford_conv1_1-2_1_hwio_bgr.npz")
    assert (first.model, first.until, first.container) == ("vgg16", "relu2_1", "npz")
    assert (first.evidence, first.preprocessing) == ("fingerprint", CONVENTIONS["caffe"])
    other = identify(weights / "vgg_normalised_conv3_1.pth")
    assert not other.is_vgg
    assert "AdaIN" in other.verdict
    for pattern in ("TRUNCATED*", "LFSPOINTER*"):
        (broken,) = weights.glob(pattern)
        with pytest.raises(BadCheckpoint, match=broken.name):
            identify(broken)
    for found in (partial, first, other):
        json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_fingerprint_determines_channel_order_and_range(shared, tmp_path, dtype):
    state = torch.load(shared / "weights" / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth", weights_only=True)
    filters = state["features.0.weight"]
    turned = {
        "caffe": filters,
        "caffe-rgb": filters.flip(1),
        "caffe-unit": filters.flip(1) * 255,
        None: filters * 2,
    }
    path = tmp_path / "x.safetensors"
    for convention, value in turned.items():
        content = {**state, "features.0.weight": value.contiguous()}
        safetensors.torch.save_file({key: value.to(dtype) for key, value in content.items()}, path)
        found = identify(path)
        assert found.preprocessing == (CONVENTIONS[convention] if convention else None)
        assert found.dtype == str(dtype).removeprefix("torch.")
    # With another mean folded into the biases nothing is claimed.
    content = {**state, "features.0.bias": state["features.0.bias"] + 0.3}
    torch.save(content, path)
    assert identify(path).preprocessing is None


def test_random_filters_match_no_fingerprint():
    for model in ("vgg16", "vgg19"):
        network = VGG(configure(model, until="relu1_2"))
        values = {key: value.clone() for key, value in network.state_dict().items()}
        file = Outline(module_shapes(network))
        file.read = values.__getitem__
        assert look(file).input_convention is None


def test_numbers_in_the_file_do_not_matter_and_zero_sized_ones_do_no_harm():
    found = look({"features.0.weight": (0, 3, 3, 3), "features.0.bias": (0,)})
    assert not found.is_vgg or not found.complete
    assert isinstance(
        Configuration.from_dict(look(outline(configure("vgg11"))).to_dict()["settings"]), Configuration
    )
    assert np.isfinite(len(str(found)))


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz", "x.h5", "x.weights.h5"])
def test_files_of_other_programs_are_identified_without_torch(tmp_path, name):
    """A trunk of VGG16's first filters, whose values are compared with the published ones."""
    configuration = configure("vgg16", num_classes=3, until="relu2_2")
    state = {key: torch.zeros(shape) for key, shape in configuration.state_shapes().items()}
    safetensors.torch.save_file(state, tmp_path / "source.safetensors")
    if name != "x.safetensors":
        dialect = "keras" if "h5" in name else "caffe"
        trunk = {key: value for key, value in state.items() if key.startswith("features")}
        safetensors.torch.save_file(trunk, tmp_path / "source.safetensors")
        convert(tmp_path / "source.safetensors", tmp_path / name, to=dialect, allow_partial=True)
    else:
        (tmp_path / "source.safetensors").rename(tmp_path / name)
    code = (
        "import sys\nfrom vggkit.weights.identify import identify\nfound = identify(sys.argv[1])\n"
        "print(found.is_vgg, found.configuration.blocks[0], 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / name)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["True", "(64,", "64)", "False"]


@pytest.mark.parametrize(
    "dialect",
    [
        "torchvision",
        "caffe",
        *(pytest.param(d, marks=pytest.mark.slow) for d in ("timm", "keras", "blocks", "explicit")),
    ],
)
def test_known_files_give_the_same_identification_layer_by_layer(dialect, monkeypatch):
    """A network of the table, each tensor in its shape, is known before its modules are placed."""
    for model in list_models():
        for changes in ({}, {"num_classes": 7, "in_channels": 1}):
            configuration = configure(model, **changes)
            if configuration.batch_norm and dialect in ("keras", "caffe"):
                continue
            file = outline(configuration, dialect, container="npz" if dialect == "caffe" else "pytorch")
            with monkeypatch.context() as patch:
                patch.setattr("vggkit.weights.identify.list_positions", None)
                at_once = identify_file(file)
            with monkeypatch.context() as patch:
                patch.setattr("vggkit.weights.identify.locate_keys", lambda *_: None)
                by_layers = identify_file(file)
            assert at_once.identification == by_layers.identification
            places = [
                {key: (s.place.key, s.place.layout, s.shape) for key, s in each.sources.items()}
                for each in (at_once, by_layers)
            ]
            assert places[0] == places[1]
            assert at_once.positions_for(configuration) == by_layers.positions_for(configuration)
