"""The published figures of VGG, written out: what must stay true whatever else changes.

Sources: Simonyan and Zisserman, arXiv 1409.1556, table 1; torchvision's documentation and its networks.
"""

import pytest
import torch
import torchvision

from vggkit.errors import BadInput
from vggkit.models.configuration import MODELS, find_configuration, list_models
from vggkit.models.summary import summarize
from vggkit.models.vgg import VGG

PARAMETERS = {
    "vgg11": 132_863_336,
    "vgg11_lrn": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16_c": 133_638_952,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
}
# Four as torchvision publishes them, in billions; of the other two nobody does, and both were computed here.
PUBLISHED_MULTIPLY_ADDS = {"vgg11": 7.609, "vgg13": 11.308, "vgg16": 15.470, "vgg19": 19.632}
COMPUTED_MULTIPLY_ADDS = {"vgg11_lrn": 7_609_090_048, "vgg16_c": 11_770_888_192}
PUBLISHED_MIB = {
    "vgg11": 506.84,
    "vgg11_bn": 506.881,
    "vgg13": 507.545,
    "vgg13_bn": 507.59,
    "vgg16": 527.796,
    "vgg16_bn": 527.866,
    "vgg19": 548.051,
    "vgg19_bn": 548.143,
}
CONVOLUTIONS = {"vgg11": 8, "vgg11_lrn": 8, "vgg13": 10, "vgg16_c": 13, "vgg16": 13, "vgg19": 16}
RELUS = {
    "vgg11": "1 | 4 | 7, 9 | 12, 14 | 17, 19",
    "vgg11_bn": "2 | 6 | 10, 13 | 17, 20 | 24, 27",
    "vgg13": "1, 3 | 6, 8 | 11, 13 | 16, 18 | 21, 23",
    "vgg13_bn": "2, 5 | 9, 12 | 16, 19 | 23, 26 | 30, 33",
    "vgg16": "1, 3 | 6, 8 | 11, 13, 15 | 18, 20, 22 | 25, 27, 29",
    "vgg16_bn": "2, 5 | 9, 12 | 16, 19, 22 | 26, 29, 32 | 36, 39, 42",
    "vgg19": "1, 3 | 6, 8 | 11, 13, 15, 17 | 20, 22, 24, 26 | 29, 31, 33, 35",
    "vgg19_bn": "2, 5 | 9, 12 | 16, 19, 22, 25 | 29, 32, 35, 38 | 42, 45, 48, 51",
}


def test_every_model_has_its_figure() -> None:
    assert set(PARAMETERS) == set(list_models())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    with torch.device("meta"):
        network = VGG(name)
    assert sum(value.numel() for value in network.parameters()) == PARAMETERS[name]
    assert find_configuration(name).parameters == PARAMETERS[name]
    assert summarize(find_configuration(name)).totals.parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", list_models())
def test_the_three_fully_connected_layers_alone(name: str) -> None:
    layers = summarize(find_configuration(name)).layers
    assert sum(layer.parameters for layer in layers if layer.kind == "fc") == 123_642_856


def test_vgg11s_convolutions_alone() -> None:
    layers = summarize(find_configuration("vgg11")).layers
    assert sum(layer.parameters for layer in layers if layer.kind == "conv") == 9_220_480
    assert sum(layer.parameter_share for layer in layers if layer.kind == "fc") == pytest.approx(0.93, abs=0.005)


@pytest.mark.parametrize("name", PUBLISHED_MULTIPLY_ADDS)
def test_multiply_adds_are_the_published_ones(name: str) -> None:
    for variant in (name, f"{name}_bn"):
        total = summarize(find_configuration(variant)).totals.multiply_adds
        assert round(total / 1e9, 3) == PUBLISHED_MULTIPLY_ADDS[name]


@pytest.mark.parametrize("name", COMPUTED_MULTIPLY_ADDS)
def test_multiply_adds_that_nobody_published(name: str) -> None:
    assert summarize(find_configuration(name)).totals.multiply_adds == COMPUTED_MULTIPLY_ADDS[name]


@pytest.mark.parametrize("name", PUBLISHED_MIB)
def test_weights_are_as_large_as_the_published_files(name: str) -> None:
    # A file holds the running statistics of batch norm and its own bookkeeping as well.
    mebibytes = summarize(find_configuration(name)).totals.weight_bytes / 2**20
    assert mebibytes == pytest.approx(PUBLISHED_MIB[name], abs=0.1)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_what_the_name_promises(name: str) -> None:
    trunk = find_configuration(name).trunk
    convolutions = [layer for layer in trunk if layer.kind == "conv"]
    assert len(convolutions) == CONVOLUTIONS[name]
    digits = name.removeprefix("vgg")[:2]
    assert len(convolutions) + 3 == int(digits)
    assert [layer.out_channels for layer in trunk if layer.kind == "pool"] == [64, 128, 256, 512, 512]


def test_vgg11s_eight_convolutions() -> None:
    assert MODELS["vgg11"].blocks == ((64,), (128,), (256, 256), (512, 512), (512, 512))


def test_the_1x1_kernels_of_c_end_its_last_three_blocks() -> None:
    ones = [layer.name for layer in MODELS["vgg16_c"].trunk if layer.kind == "conv" and layer.kernel == 1]
    assert ones == ["conv3_3", "conv4_3", "conv5_3"]


@pytest.mark.parametrize("name", RELUS)
def test_where_each_relu_stands(name: str) -> None:
    ours: dict[str, list[str]] = {}
    for layer in find_configuration(name).trunk:
        if layer.kind == "relu":
            ours.setdefault(layer.name[:5], []).append(str(layer.index))
    assert " | ".join(", ".join(block) for block in ours.values()) == RELUS[name]
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None).features
    stand = [index for index, module in enumerate(theirs) if isinstance(module, torch.nn.ReLU)]
    assert stand == [int(number) for number in RELUS[name].replace("|", ",").split(",")]


@pytest.mark.parametrize("name", list_models())
def test_the_smallest_image_is_32_pixels(name: str) -> None:
    assert find_configuration(name).minimum_side == 32
    with torch.device("meta"):
        network = VGG(name)
        assert network(torch.empty(1, 3, 32, 32)).shape == (1, 1000)
        with pytest.raises(BadInput, match="32 pixels"):
            network(torch.empty(1, 3, 31, 32))


@pytest.mark.parametrize("name", RELUS)
def test_keys_and_shapes_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None).state_dict()
    shapes = {key: tuple(value.shape) for key, value in theirs.items()}
    assert list(find_configuration(name).state_shapes().items()) == list(shapes.items())
    with torch.device("meta"):
        ours = VGG(name).state_dict()
    assert {key: (value.shape, value.dtype) for key, value in ours.items()} == {
        key: (value.shape, value.dtype) for key, value in theirs.items()
    }
