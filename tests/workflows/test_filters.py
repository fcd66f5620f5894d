"""What channels respond to, with the network's own maps and gradients as oracles."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import vggkit as vk
from vggkit.cli import main as cli
from vggkit.errors import BadConfiguration, BadData, BadInput, BadOutput, UnknownName
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configure import configure
from vggkit.models.graph import Graph
from vggkit.models.receptive_field import find_receptive_field

SEEN = Preprocessing(resize_pixels=32, crop_pixels=32)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    small = replace(configure("vgg11", num_classes=3, head="pool"), blocks=((6,), (8, 8), (8,)))
    return vk.VGG(small)


@pytest.fixture(scope="module")
def model(network):
    return vk.Model(network, labels=["a", "b", "c"], preprocessing=SEEN)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 8, 8, 3), np.uint8)
    return [np.asarray(Image.fromarray(each).resize((48, 40), Image.Resampling.BICUBIC)) for each in coarse]


@pytest.mark.parametrize("layer", ["conv1_1", "pool1", "relu2_2", "conv3_1"])
@pytest.mark.parametrize("place", [(2, 3), (0, 0)])
def test_the_receptive_field_is_where_the_gradient_is(layer, place, network):
    averaging = vk.VGG(replace(network.configuration, pooling="average"))
    with torch.no_grad():
        for value in averaging.parameters():
            value.fill_(0.1)  # no ReLU is silent
    images = torch.ones(1, 3, 40, 40, requires_grad=True)
    vk.Features(averaging, layer)(images)[layer][0, 0][place].backward()
    rows, columns = images.grad[0].sum(0).nonzero(as_tuple=True)
    top, left, bottom, right = find_receptive_field(network.configuration, layer).locate(*place)
    assert (int(rows.min()), int(rows.max()) + 1) == (max(0, top), min(40, bottom))
    assert (int(columns.min()), int(columns.max()) + 1) == (max(0, left), min(40, right))


def test_sides_are_those_of_the_graph():
    configuration = configure("vgg16_c")
    for step in Graph(configuration).trunk:
        assert find_receptive_field(configuration, step.name).side == step.receptive_field
    with pytest.raises(BadConfiguration, match="sees the whole image"):
        find_receptive_field(configuration, "fc6")
    with pytest.raises(UnknownName, match="relu3_3"):
        find_receptive_field(configuration, "relu3_9")


def test_first_filters_are_scaled_and_in_rgb(network):
    found = vk.filters(network)
    weights = network.features[0].weight.detach()
    assert (found.method, found.images.shape, found.values) == ("weights", (6, 1, 3, 3, 3), ())
    for number, image in enumerate(found.images[:, 0]):
        scaled = weights[number] / weights[number].abs().max()
        assert np.abs(image - (127.5 + 127.5 * scaled.permute(1, 2, 0).numpy())).max() <= 0.5001
    flipped = vk.Model(
        network,
        labels=["a", "b", "c"],
        preprocessing=replace(SEEN, channel_order="BGR", mean=SEEN.mean[::-1], std=SEEN.std[::-1]),
    )
    assert np.array_equal(vk.filters(flipped).images, found.images[..., ::-1])
    grey = vk.filters(vk.VGG("vgg11", in_channels=1, until="relu1_1"), channels=[5])
    assert grey.images.shape == (1, 1, 3, 3, 3)
    assert (np.ptp(grey.images, axis=-1) == 0).all()


def test_patches_are_where_the_maps_are_largest(model, network, images):
    """Against the maps of one image after another, by Features."""
    found = vk.filters(model, layer="relu2_2", data=images, channels="1-2,6", top=4, precision="fp32", batch_size=5)
    assert found.channels == (1, 2, 6)
    side = found.receptive_field
    assert found.images.shape == (3, 4, side, side, 3)
    inputs = torch.from_numpy(np.stack([SEEN(each) for each in images]))
    with torch.no_grad():
        maps = vk.Features(network, "relu2_2")(inputs)["relu2_2"]
    field = find_receptive_field(network.configuration, "relu2_2")
    inside = field.list_inside(32, maps.shape[-1])
    assert field.locate(inside.start, 0)[0] >= 0 > field.locate(inside.start - 1, 0)[0]
    assert field.locate(inside.stop - 1, 0)[2] <= 32 < field.locate(inside.stop, 0)[2]
    within = torch.zeros(maps.shape[-2:])
    within[inside, inside] = 1
    maps = maps * within  # after a ReLU the largest are above 0
    for number, channel in enumerate(found.channels):
        largest, order = maps[:, channel].amax((1, 2)).sort(descending=True)
        assert np.allclose(found.values[number], largest[:4], rtol=1e-4)
        assert [each.path for each in found.patches[number]] == [f"image {index}" for index in order[:4].tolist()]
        for patch, pixels, index in zip(found.patches[number], found.images[number], order.tolist(), strict=False):
            row, column = divmod(int(maps[index, channel].argmax()), maps.shape[-1])
            assert patch.box == field.locate(row, column)
            top, left, bottom, right = patch.box
            assert np.array_equal(pixels, SEEN.fit(images[index])[top:bottom, left:right])


def test_a_field_that_reaches_beyond_the_image_is_grey_there(model, images):
    found = vk.filters(model, layer="pool3", data=images[:1], channels=[0], top=1)
    ((patch,),) = found.patches
    top, left, bottom, right = patch.box
    assert min(top, left) < 0 or max(bottom, right) > 32
    fitted = np.pad(SEEN.fit(images[0]), ((64, 64), (64, 64), (0, 0)), constant_values=128)
    assert np.array_equal(found.images[0, 0], fitted[top + 64 : bottom + 64, left + 64 : right + 64])


def test_images_that_cannot_be_read_are_named(model, images, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xffx")
    Image.fromarray(images[0]).save(tmp_path / "whole.png")
    found = vk.filters(model, layer="pool2", data=tmp_path, channels=[0])
    assert found.images.shape[:2] == (1, 1)
    assert len(found.problems) == 1
    assert "broken.jpg" in found.problems[0]
    (tmp_path / "whole.png").unlink()
    with pytest.raises(BadData, match=r"none of the images can be read: .*broken\.jpg"):
        vk.filters(model, layer="pool2", data=tmp_path)


def test_made_images_excite_their_channel_most(model, network):
    network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    seen = []
    found = vk.filters(
        model, layer="conv2_2", channels=[0, 3, 5], steps=25, on_progress=lambda *each: seen.append(each)
    )
    again = vk.filters(model, layer="conv2_2", channels=[0, 3, 5], steps=25)
    assert found.method == "maximize"
    assert np.array_equal(found.images, again.images)
    assert seen[-1] == ("maximising", 25, 25)
    inputs = np.stack([each[0] for each in found.images]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    inputs = (inputs - np.array(SEEN.mean)[:, None, None]) / np.array(SEEN.std)[:, None, None]
    with torch.no_grad():
        maps = vk.Features(network, "conv2_2")(torch.tensor(inputs, dtype=torch.float32))["conv2_2"].mean((2, 3))
    assert np.allclose(maps[range(3), [0, 3, 5]], np.ravel(found.values), rtol=0.05, atol=0.02)  # levels of 255
    for column, channel in enumerate((0, 3, 5)):
        assert maps[:, channel].argmax() == column
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(value.requires_grad and value.grad is None for value in network.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_whatever_mode_the_caller_is_in(model, mode):
    expected = vk.filters(model, layer="conv2_2", channels=[0], steps=2)
    with mode(), torch.autocast("cpu", torch.bfloat16):
        found = vk.filters(model, layer="conv2_2", channels=[0], steps=2)
    assert np.array_equal(found.images, expected.images)


def test_a_network_of_inference_mode(network):
    with torch.inference_mode():
        made = vk.VGG(network.configuration)
    assert vk.filters(made).method == "weights"
    with pytest.raises(BadInput, match="inference_mode"):
        vk.filters(made, layer="conv2_2", steps=2)


def test_a_channel_without_a_value_above_zero_is_excited(network):
    """Where its ReLU gives nothing for the image at the start there is no gradient behind it."""
    silent = vk.VGG(network.configuration)
    with torch.no_grad():
        for value in silent.parameters():
            value.zero_()
        silent.features[0].bias[0] = -0.2
        silent.features[0].weight[0, 0, 1, 1] = 1
    assert vk.filters(silent, layer="relu1_1", channels=[0], steps=1).values == ((0.0,),)
    assert vk.filters(silent, layer="relu1_1", channels=[0], steps=40).values[0][0] > 0


def test_a_class_can_be_maximised(model):
    found = vk.filters(model, layer="fc6", channels=[2], steps=3)
    assert found.receptive_field is None
    assert found.images.shape[0] == 1


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"layer": "conv9_1"}, UnknownName, "layer of this network"),
        ({"layer": "conv2_1", "method": "weights"}, BadConfiguration, "only the weights of conv1_1"),
        ({"method": "patches"}, BadInput, "name them with data"),
        ({"method": "best"}, UnknownName, "weights, patches, maximize"),
        ({"channels": "0-"}, BadInput, "numbers and ranges"),
        ({"channels": "0-99"}, BadInput, "0 to 5"),
        ({"channels": []}, BadInput, "0 to 5"),
        ({"channels": [1.5]}, BadInput, "whole number"),
        ({"layer": "fc6", "data": ["photo.jpg"]}, BadConfiguration, "sees the whole image"),
    ],
)
def test_clear_errors(options, error, said, model):
    with pytest.raises(error, match=said):
        vk.filters(model, **options)


def test_weights_that_are_not_numbers(network):
    broken = vk.VGG(network.configuration)
    with torch.no_grad():
        broken.features[0].weight[0, 0, 0, 0] = float("nan")
    for layer in ("conv1_1", "relu2_1"):
        with pytest.raises(BadInput, match="not finite"):
            vk.filters(broken, layer=layer, steps=2)


def test_the_command_draws_a_sheet(model, images, tmp_path, capsys, real_plots):
    pytest.importorskip("matplotlib")
    model.save(tmp_path / "m.safetensors")
    (tmp_path / "photos").mkdir()
    for number, pixels in enumerate(images[:3]):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    for options, said in (
        ([], "6 filters of conv1_1"),
        (["--layer", "relu2_1", "--data", str(tmp_path / "photos"), "--channels", "0-3"], "patches of 3 images"),
        (
            ["--layer", "relu2_1", "--steps", "2", "--channels", "1"],
            "images made to excite each channel of relu2_1",
        ),
    ):
        out = tmp_path / "sheet.png"
        with pytest.raises(SystemExit) as ended:
            cli.main(["filters", str(tmp_path / "m.safetensors"), "--out", str(out), *options])
        printed = capsys.readouterr()
        assert ended.value.code == 0, printed.err
        assert said in printed.out
        assert out.stat().st_size > 0
        out.unlink()
    for number in range(5):
        (tmp_path / "photos" / f"broken{number}.png").write_bytes(b"no image")
    options = ["--layer", "pool1", "--channels", "0", "--data", str(tmp_path / "photos")]
    with pytest.raises(SystemExit) as ended:
        cli.main(["filters", str(tmp_path / "m.safetensors"), "--out", str(out), *options])
    printed = capsys.readouterr()
    assert ended.value.code == 1
    assert "patches of 3 images" in printed.out
    assert printed.err.count("is not an image") == 3
    assert "and 2 more; 5 of 8 images failed" in printed.err
    with pytest.raises(BadOutput, match="must end in"):
        vk.filters(model).save(tmp_path / "sheet.gif")
