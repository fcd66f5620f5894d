import os
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from vggkit.errors import BadConfiguration, UnknownName
from vggkit.models.configuration import list_models
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG
from vggkit.weights.dialects import from_layout, map_keys, rename_keys, to_layout
from vggkit.weights.input_conventions import CONVENTIONS


def test_torchvision_is_canonical():
    for model in list_models():
        configuration = configure(model)
        assert rename_keys(configuration, "torchvision") == {key: key for key in configuration.state_shapes()}


def test_vgg11_in_explicit_layers():
    renamed = rename_keys(configure("vgg11"), "explicit")
    names = [f"conv{place}" for place in ("1_1", "2_1", "3_1", "3_2", "4_1", "4_2", "5_1", "5_2")]
    names += ["fc1", "fc2", "fc3"]
    assert list(renamed.values()) == [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    assert renamed["features.8.weight"] == "conv3_2.weight"
    assert renamed["classifier.3.bias"] == "fc2.bias"


def test_vgg13_bn_in_blocks():
    renamed = rename_keys(configure("vgg13_bn"), "blocks")
    assert renamed["features.0.weight"] == "features.0.conv1.weight"
    assert renamed["features.1.running_mean"] == "features.0.bn1.running_mean"
    assert renamed["features.3.weight"] == "features.0.conv2.weight"
    assert renamed["features.7.weight"] == "features.2.conv1.weight"
    assert renamed["features.32.num_batches_tracked"] == "features.8.bn2.num_batches_tracked"
    assert renamed["classifier.6.weight"] == "classifier.6.weight"


def test_low_rank_factors_keep_their_places():
    configuration = replace(configure("vgg11"), ranks=(64, None, 8))
    explicit = rename_keys(configuration, "explicit")
    assert explicit["classifier.0.0.weight"] == "fc1.0.weight"
    assert explicit["classifier.6.1.bias"] == "fc3.1.bias"
    assert rename_keys(configuration, "blocks")["classifier.0.1.weight"] == "classifier.0.1.weight"


def test_vgg16_in_timm():
    configuration = configure("vgg16", num_classes=9)
    places, shapes = map_keys(configuration, "timm"), configuration.state_shapes()
    written = {place.key: place.shape_of(shapes[key]) for key, place in places.items()}
    assert written["features.28.weight"] == (512, 512, 3, 3)
    assert list(written.items())[-6:] == [
        ("pre_logits.fc1.weight", (4096, 512, 7, 7)),
        ("pre_logits.fc1.bias", (4096,)),
        ("pre_logits.fc2.weight", (4096, 4096, 1, 1)),
        ("pre_logits.fc2.bias", (4096,)),
        ("head.fc.weight", (9, 4096)),
        ("head.fc.bias", (9,)),
    ]


def test_vgg16_in_keras_and_caffe():
    shapes = configure("vgg16").state_shapes()
    keras, caffe = map_keys(configure("vgg16"), "keras"), map_keys(configure("vgg16"), "caffe")
    first, fc = "features.0.weight", [f"classifier.{i}.weight" for i in (0, 3, 6)]
    assert keras[first].key == "block1_conv1/kernel"
    assert keras[first].shape_of(shapes[first]) == (3, 3, 3, 64)
    assert [keras[key].key for key in fc] == ["fc1/kernel", "fc2/kernel", "predictions/kernel"]
    assert [keras[key].shape_of(shapes[key]) for key in fc] == [(25088, 4096), (4096, 4096), (4096, 1000)]
    assert [keras[key].layout for key in fc] == ["hwc_io", "io", "io"]
    assert keras["features.28.bias"].key == "block5_conv3/bias"
    assert [caffe[key].key for key in (first, *fc)] == [f"{n}/weights" for n in ("conv1_1", "fc6", "fc7", "fc8")]
    assert {place.layout for place in caffe.values()} == {"same"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"ranks": (8, None, None)}, "low-rank"),
        ({"head": "pool", "hidden": ()}, "pool head"),
        ({"hidden": (64,)}, "only for two"),
        ({"batch_norm": True}, "batch normalisation"),
    ],
)
def test_what_a_dialect_has_no_keys_for_is_refused_with_the_reason(options, reason):
    configuration = replace(configure("vgg11"), **options)
    refusing = {"only for two": ["timm"], "batch normalisation": ["keras", "caffe"]}
    for dialect in refusing.get(reason, ["timm", "keras", "caffe"]):
        with pytest.raises(BadConfiguration, match=reason):
            map_keys(configuration, dialect)
        if reason != "batch normalisation":
            trunk = map_keys(configuration, dialect, trunk_only=True)
            assert set(trunk) == {key for key in configuration.state_shapes() if key.startswith("features.")}


@pytest.mark.parametrize("dialect", ["torchvision", "timm", "keras", "caffe", "blocks", "explicit"])
def test_layouts_there_and_back(dialect):
    configuration = replace(configure("vgg13", num_classes=3), grid=2, hidden=(9, 4), blocks=((2, 3), (4,), (5, 6)))
    places = map_keys(configuration, dialect)
    for key, shape in configuration.state_shapes().items():
        value = torch.randn(shape)
        turned = to_layout(value, places[key])
        assert tuple(turned.shape) == places[key].shape_of(shape)
        assert torch.equal(from_layout(turned, places[key]), value)


def test_fc1_reads_the_map_in_keras_order():
    configuration = replace(configure("vgg11"), blocks=((5,),), grid=3, hidden=(7,))
    place = map_keys(configuration, "keras")["classifier.0.weight"]
    matrix, maps = torch.randn(7, 45), torch.randn(2, 5, 3, 3)
    in_keras = maps.permute(0, 2, 3, 1).flatten(1) @ to_layout(matrix, place)
    torch.testing.assert_close(in_keras, maps.flatten(1) @ matrix.t())


def draw_network(model, num_classes):
    """A network of random weights and biases, without the time of drawing them twice."""
    with torch.device("meta"):
        network = VGG(model, num_classes=num_classes)
    state = {}
    for key, value in network.state_dict().items():
        if not value.is_floating_point():
            state[key] = torch.zeros(value.shape, dtype=value.dtype)
        elif value.dim() > 1:
            bound = (6 / value[0].numel()) ** 0.5
            state[key] = torch.empty(value.shape).uniform_(-bound, bound)
        else:
            state[key] = torch.rand(value.shape) * 0.2 + 0.1
    network.load_state_dict(state, assign=True)
    return network.eval()


def logits(network, images):
    with torch.inference_mode():
        return network.eval()(images)


@pytest.mark.parametrize("model", ["vgg11_bn", pytest.param("vgg16", marks=pytest.mark.slow)])
def test_torchvision_and_timm_give_our_logits(model):
    """Torchvision bit for bit, timm within 1e-5 of logits of size 1 at 224 pixels; and timm's weights here."""
    models, timm = pytest.importorskip("torchvision").models, pytest.importorskip("timm")
    network = draw_network(model, 11)
    state = network.state_dict()
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    given = logits(network, images)
    with torch.device("meta"):
        torchvisions = getattr(models, model)(num_classes=11)
        timms = timm.create_model(model, pretrained=False, num_classes=11)
    torchvisions.load_state_dict(state, assign=True)
    assert torch.equal(logits(torchvisions, images), given)
    places = map_keys(network.configuration, "timm")
    timms.load_state_dict({place.key: to_layout(state[key], place) for key, place in places.items()}, assign=True)
    scale = float(given.abs().max())
    torch.testing.assert_close(logits(timms, images), given, rtol=0, atol=1e-5 * max(1, scale))
    theirs = timms.state_dict()
    for key, place in places.items():
        assert torch.equal(from_layout(theirs[place.key], place), state[key])


# Keras hands torch's tensors to NumPy in a way that NumPy 2 warns of.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.slow
def test_keras_vgg16_gives_our_logits_with_its_own_preprocessing():
    os.environ["KERAS_BACKEND"] = "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras = pytest.importorskip("keras")
    network = draw_network("vgg16", 1000)
    state = network.state_dict()
    theirs = keras.applications.VGG16(weights=None, classifier_activation=None)
    variables = {variable.path: variable for variable in theirs.weights}
    for key, place in map_keys(network.configuration, "keras").items():
        variables.pop(place.key).assign(to_layout(state[key], place))
    assert not variables
    pixels = np.random.default_rng(5).integers(0, 256, (224, 224, 3), np.uint8)
    fed = keras.applications.vgg16.preprocess_input(pixels[None].astype(np.float32))
    with torch.inference_mode():
        expected = theirs(fed, training=False).cpu()
    given = logits(network, torch.from_numpy(CONVENTIONS["caffe"].normalize(pixels))[None])
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-4 * max(1, float(expected.abs().max())))


@pytest.mark.parametrize("dialect", ["torchvision", "blocks", "explicit"])
@pytest.mark.parametrize("model", list_models())
def test_every_key_has_one_name(model, dialect):
    for configuration in (configure(model), configure(model, until="conv3_2"), configure(model, head="dense")):
        renamed = rename_keys(configuration, dialect)
        assert list(renamed) == list(configuration.state_shapes())
        assert len(set(renamed.values())) == len(renamed)


def test_another_dialect_is_refused():
    with pytest.raises(UnknownName, match="'explicit'"):
        rename_keys(configure("vgg11"), "explicitly")
