"""Style transfer: the published formulas, what each option promises, and clear errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import vggkit as vk
from vggkit.cli import main as cli
from vggkit.errors import BadConfiguration, BadImage, BadInput, BadOutput, UnknownName
from vggkit.features.style_loss import StyleLayers, StyleLoss, choose_style_layers
from vggkit.features.style_transfer import plan_sizes, share_steps
from vggkit.images.colours import TO_YIQ, combine_luminance, match_colours, match_luminance
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configure import configure

CAFFE = Preprocessing(channel_order="BGR", full_value=255, mean=(103.939, 116.779, 123.68), std=(1, 1, 1))


@pytest.fixture(scope="module")
def trunk():
    torch.manual_seed(0)
    small = replace(configure("vgg11", num_classes=2, head="pool"), blocks=((8,), (8, 8), (8, 8)))
    return vk.VGG(small)


@pytest.fixture(scope="module")
def photo():
    """A smooth image of 48×64 pixels."""
    across, down = np.meshgrid(np.linspace(0, 1, 64), np.linspace(0, 1, 48))
    return (np.stack([across, down, 1 - across], axis=2) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def painting():
    """Red and dark stripes of 56×56 pixels."""
    pixels = np.zeros((56, 56, 3), np.uint8)
    pixels[::7], pixels[1::7] = (250, 60, 20), (200, 30, 30)
    return pixels


def test_the_terms_are_gatys_formulas_made_relative(trunk):
    """Equations 1 to 4 on values computed layer by layer, in BGR as the trunk reads."""
    layers = StyleLayers("relu2_2", ("relu1_1", "relu2_1"))
    loss = StyleLoss(trunk, CAFFE, layers, precision="fp32", device=torch.device("cpu"))
    torch.manual_seed(1)
    images, content, first, second = (torch.rand(1, 3, 40, 48) for _ in range(4))
    images.requires_grad_(True)

    def look(images):
        values = images.flip(1) * 255 - torch.tensor(CAFFE.mean)[:, None, None]
        found = {}
        for layer, module in zip(trunk.configuration.trunk, trunk.features, strict=True):
            pools = layer.kind == "pool"
            values = (
                F.avg_pool2d(values, 2) if pools else F.relu(values) if layer.kind == "relu" else module(values)
            )
            found[layer.name] = values
        return found

    def gram(values):
        rows = values[0].flatten(1)
        return rows @ rows.T

    ours, theirs, styles = look(images), look(content), [look(first), look(second)]
    expected = (ours["relu2_2"] - theirs["relu2_2"]).square().sum() / theirs["relu2_2"].square().sum()
    terms = []
    for name in layers.style:
        target = 0.25 * gram(styles[0][name]) + 0.75 * gram(styles[1][name])
        terms.append((gram(ours[name]) - target).square().sum() / target.square().sum())
    loss.refer(content, [first, second], [0.25, 0.75])
    found = loss(images)
    both = torch.stack(found), torch.stack([expected, torch.stack(terms).mean()])
    assert torch.allclose(*both, rtol=1e-4)
    mine, formulas = (torch.autograd.grad(each.sum(), images)[0] for each in both)
    assert (mine - formulas).norm() < 1e-4 * formulas.norm()
    assert float(loss(content)[0]) == 0


@pytest.mark.parametrize(
    ("model", "until", "content", "style"),
    [
        ("vgg19", None, "relu4_2", ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")),
        ("vgg11_bn", None, "relu4_2", ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")),
        ("vgg19", "relu3_4", "relu3_2", ("relu1_1", "relu2_1", "relu3_1")),
        ("vgg11", "relu2_1", "relu2_1", ("relu1_1", "relu2_1")),
    ],
)
def test_layers_follow_what_the_trunk_has(model, until, content, style):
    assert choose_style_layers(configure(model, until=until)) == StyleLayers(content, style)


def test_sizes_and_steps_go_from_coarse_to_fine():
    assert plan_sizes((512, 512)) == [(128, 128), (256, 256), (512, 512)]
    assert plan_sizes((100, 200)) == [(100, 200)]
    assert share_steps(300, 3) == [100, 100, 100]
    assert share_steps(7, 3) == [2, 2, 3]


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_the_loss_falls_and_the_model_is_left_as_found(optimizer, trunk, photo, painting):
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    trunk.train()
    seen = []
    found = vk.style(
        photo,
        painting,
        trunk=trunk,
        size=64,
        steps=20,
        optimizer=optimizer,
        precision="fp32",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert found.pixels.shape == (48, 64, 3)
    assert found.pixels.dtype == np.uint8
    assert seen == [(step, 20) for step in range(1, 21)]
    assert found.steps[-1].loss < 0.5 * found.steps[0].loss
    assert trunk.training
    assert all(value.requires_grad and value.grad is None for value in trunk.parameters())
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items())


def test_the_same_call_gives_the_same_image_and_noise_has_its_seed(trunk, photo, painting):
    first, again, other = (
        vk.style(photo, painting, trunk=trunk, size=64, steps=4, start="noise", seed=seed, precision="fp32").pixels
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_strength_weighs_style_against_content(trunk, photo, painting):
    weak, strong = (
        vk.style(photo, painting, trunk=trunk, size=64, steps=25, strength=strength, precision="fp32").steps[-1]
        for strength in (0.01, 10)
    )
    assert strong.style_loss < weak.style_loss
    assert weak.content_loss < strong.content_loss


def test_bf16_leads_to_nearly_the_same_loss(trunk, photo, painting):
    full, half = (
        vk.style(photo, painting, trunk=trunk, size=64, steps=20, precision=precision)
        for precision in ("fp32", "bf16")
    )
    assert (full.precision, half.precision) == ("fp32", "bf16")
    assert half.steps[-1].loss < 1.2 * full.steps[-1].loss


def test_luminance_keeps_the_colours_of_the_content(trunk, photo, painting):
    mild = (photo // 3 + 80).astype(np.uint8)  # nothing is clipped
    found = vk.style(mild, painting, trunk=trunk, size=64, steps=3, strength=0.1, keep_colours="luminance").pixels
    assert np.abs(combine_luminance(found, mild).astype(int) - found).max() <= 1
    assert np.abs(((found - mild.astype(float)) @ TO_YIQ.T)[..., 1:]).max() < 2
    grey = match_luminance(painting, photo)
    assert (np.ptp(grey, axis=2) == 0).all()
    expected = (photo @ TO_YIQ[0]).mean()
    assert abs(float(grey[..., 0].mean()) - expected) < 6  # some values are clipped


def test_matching_gives_mean_and_covariance(photo):
    rng = np.random.default_rng(0)
    noise = rng.integers(90, 160, (40, 40, 3), np.uint8)
    mild = (photo // 3 + 80).astype(np.uint8)  # nothing is clipped
    matched = match_colours(noise, mild).reshape(-1, 3).astype(float)
    theirs = mild.reshape(-1, 3).astype(float)
    assert np.abs(matched.mean(0) - theirs.mean(0)).max() < 1
    assert np.abs(np.cov(matched.T) - np.cov(theirs.T)).max() < 0.05 * np.cov(theirs.T).max()
    flat = np.full((40, 40, 3), 7, np.uint8)
    assert match_colours(flat, mild).shape == flat.shape


def test_intermediate_images_and_files(trunk, photo, painting, tmp_path):
    seen = {}
    found = vk.style(
        photo, painting, trunk=trunk, size=64, steps=9, image_every=3, on_image=seen.__setitem__, precision="fp32"
    )
    assert list(seen) == [3, 6]
    assert seen[3].shape == found.pixels.shape
    for name in ("a.png", "b.jpg", "c.webp"):
        with Image.open(found.save(tmp_path / name)) as image:
            assert image.size == (64, 48)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), found.pixels)
    with pytest.raises(BadOutput, match=r"must end in \.png"):
        found.save(tmp_path / "a.gif")
    assert found.to_dict()["steps"] == 9


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"strength": 0}, BadInput, "strength must be a number above 0"),
        ({"strength": float("nan")}, BadInput, "strength must be a number above 0"),
        ({"style_weights": (1.0, 2.0)}, BadInput, "got 2 for 1 image"),
        ({"style_weights": (0.0,)}, BadInput, "must not all be 0"),
        ({"style_weights": (-1.0,)}, BadInput, "of 0 or more"),
        ({"size": 40}, BadInput, "choose a larger size"),
        ({"size": 10**6}, BadInput, "at most 4096"),
        ({"style_scale": 0.1}, BadInput, "larger style_scale"),
        ({"steps": 0}, BadInput, "steps must be"),
        ({"keep_colours": "luminence"}, UnknownName, "Did you mean 'luminance'"),
        ({"optimizer": "sgd"}, UnknownName, "lbfgs, adam"),
    ],
)
def test_clear_errors(options, error, said, trunk, photo, painting):
    with pytest.raises(error, match=said):
        vk.style(photo, painting, **{"trunk": trunk, "size": 64, "steps": 2} | options)


def test_images_and_trunks_that_cannot_be(trunk, photo, painting, tmp_path):
    with pytest.raises(BadInput, match="at least 32"):
        vk.style(photo, np.zeros((20, 90, 3), np.uint8), trunk=trunk, size=64, steps=2)
    with pytest.raises(BadImage, match="no such file"):
        vk.style(tmp_path / "none.png", painting, trunk=trunk)
    with pytest.raises(BadInput, match="float"):
        vk.style(photo.astype(float), painting, trunk=trunk)
    with pytest.raises(BadConfiguration, match="before the first"):
        vk.style(photo, painting, trunk=vk.VGG("vgg11", until="conv1_1"))
    with pytest.raises(BadConfiguration, match="1 channel"):
        vk.style(photo, painting, trunk=vk.VGG("vgg11", until="relu1_1", in_channels=1))
    broken = vk.VGG(trunk.configuration)
    with torch.no_grad():
        broken.features[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(BadInput, match="not finite at relu1_1"):
        vk.style(photo, painting, trunk=broken, size=64, steps=2)


def test_the_command(trunk, photo, painting, tmp_path, capsys):
    vk.Model(trunk, labels=["a", "b"], preprocessing=Preprocessing()).save(tmp_path / "trunk.safetensors")
    for name, pixels in (("photo", photo), ("one", painting), ("two", painting[:, ::-1])):
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / f"{name}.png") for name in ("photo", "one", "two")]
    options = ["--trunk", str(tmp_path / "trunk.safetensors"), "--size", "64", "--steps", "4", "--image-every", "2"]
    out = tmp_path / "new" / "image.png"
    with pytest.raises(SystemExit) as ended:
        cli.main(["style", *paths, "--out", str(out), *options, "--style-weights", "3", "1"])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert "64×48 pixels; loss" in said.out
    assert "style: relu1_1, relu2_1, relu3_1; content: relu3_2" in said.err
    with Image.open(out) as image, Image.open(out.with_name("image-0002.png")) as between:
        assert image.size == between.size == (64, 48)
    with pytest.raises(SystemExit) as ended:
        cli.main(["style", *paths, "--out", paths[0], *options])
    assert ended.value.code == 2
    assert "would be overwritten" in capsys.readouterr().err


def test_real_weights_reach_block_3(shared, photo, painting):
    file = shared / "weights" / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth"
    found = vk.style(photo, painting, trunk=file, size=64, steps=12, precision="fp32")
    assert (found.content_layer, found.style_layers) == ("relu3_2", ("relu1_1", "relu2_1", "relu3_1"))
    assert found.steps[-1].style_loss < 0.2 * found.steps[0].style_loss
