"""Perceptual losses against the packages lpips and piq, and against the published formulas written out.

Most gradients are compared in float64: in float32 the largest value of a pool may be another one after rounding.
"""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vggkit as vk
from vggkit.errors import BadCheckpoint, BadConfiguration, BadInput, UnknownName
from vggkit.features.distances import gram
from vggkit.features.loss_config import PRESETS
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def make_trunk(model: str, until: str) -> VGG:
    torch.manual_seed(0)
    return VGG(model, until=until, head="pool", num_classes=1).eval()


@pytest.fixture(scope="module")
def vgg16():
    return make_trunk("vgg16", "relu5_3")


@pytest.fixture(scope="module")
def vgg19():
    return make_trunk("vgg19", "relu5_4")


@pytest.fixture(scope="module")
def images():
    """Two images and their targets in [-1, 1]."""
    torch.manual_seed(1)
    return torch.rand(2, 3, 40, 48) * 2 - 1, torch.rand(2, 3, 40, 48) * 2 - 1


@pytest.fixture(scope="module")
def linear():
    """Weights of LPIPS's linear layers, as its file has them."""
    torch.manual_seed(2)
    return {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate((64, 128, 256, 512, 512))}


@pytest.fixture(scope="module")
def structure():
    """Alpha and beta of DISTS, adding up to 1 as published."""
    torch.manual_seed(3)
    alpha, beta = torch.rand(1, 1475, 1, 1), torch.rand(1, 1475, 1, 1)
    total = alpha.sum() + beta.sum()
    return {"alpha": alpha / total, "beta": beta / total}


def differentiate(loss, images, *others):
    """Value and gradient, in float64."""
    given = images.double().clone().requires_grad_(True)
    value = loss(given, *(other.double() for other in others))
    value.sum().backward()
    return value.detach(), given.grad


def demand_equal(ours, theirs, *, relative=1e-5):
    for found, expected in zip(ours, theirs, strict=True):
        assert (found.flatten() - expected.flatten()).norm() <= relative * expected.norm()


def as_torchvision(network: VGG, name: str) -> nn.Module:
    """Torchvision's own trunk with the same weights."""
    vgg = pytest.importorskip("torchvision.models.vgg")
    theirs = vgg.make_layers(vgg.cfgs["D" if name == "vgg16" else "E"])
    theirs.load_state_dict(network.features.state_dict(), strict=False)
    holder = nn.Module()
    holder.features = theirs
    return holder


@pytest.fixture
def peer(vgg16, linear, monkeypatch):
    """The package's loss with the same weights."""
    package = pytest.importorskip("lpips")
    pretrained = pytest.importorskip("lpips.pretrained_networks")
    monkeypatch.setattr(pretrained.tv, "vgg16", lambda **_: as_torchvision(vgg16, "vgg16"))
    theirs = package.LPIPS(net="vgg", pretrained=False, verbose=False).eval()
    theirs.load_state_dict(linear, strict=False)
    return theirs


def test_lpips_is_the_packages(vgg16, images, linear, peer):
    ours = vk.PerceptualLoss("lpips", trunk=vgg16, calibration=linear, reduction="none")
    with torch.no_grad():
        assert torch.allclose(ours(*images), peer(*images).flatten(), rtol=1e-5)
    demand_same_gradient(ours, peer, *images)
    demand_equal(differentiate(ours.double(), *images), differentiate(peer.double(), *images))


def demand_same_gradient(ours, peer, images, target):
    """In float32: every convolution, and so every choice of a pool, must be rounded as the package's."""
    mine, peers = (images.clone().requires_grad_(True) for _ in range(2))
    ours(mine, target).sum().backward()
    peer(peers, target).sum().backward()
    demand_equal([mine.grad], [peers.grad])


@pytest.mark.slow
def test_lpips_of_large_images_is_the_packages(vgg16, linear, peer):
    """Where millions of values are compared some are nearly equal."""
    torch.manual_seed(4)
    images, target = torch.rand(2, 3, 256, 256) * 2 - 1, torch.rand(2, 3, 256, 256) * 2 - 1
    demand_same_gradient(
        vk.PerceptualLoss("lpips", trunk=vgg16, calibration=linear, reduction="none"), peer, images, target
    )


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_piq(name, vgg16, images, linear, structure, monkeypatch):
    perceptual = pytest.importorskip("piq.perceptual")
    monkeypatch.setattr(perceptual, "vgg16", lambda **_: as_torchvision(vgg16, "vgg16"))
    weights = list(linear.values()) if name == "lpips" else structure
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: weights)
    theirs = {"lpips": perceptual.LPIPS, "dists": perceptual.DISTS}[name](reduction="none")
    calibration = {"lpips": linear, "dists": structure}[name]
    ours = vk.PerceptualLoss(name, trunk=vgg16, calibration=calibration, input_range=(0, 1), reduction="none")
    images, target = ((each + 1) / 2 for each in images)
    # LPIPS's own shift and scale are ImageNet's mean and deviation, rounded.
    demand_equal(
        differentiate(ours.double(), images, target), differentiate(theirs.double(), images, target), relative=1e-4
    )


def features_of(network: VGG, images: torch.Tensor, *layers: str) -> list[torch.Tensor]:
    """Values after each layer, by the network's own modules one after another."""
    found = {}
    for layer, module in zip(network.configuration.trunk, network.features, strict=True):
        images = F.relu(images) if isinstance(module, nn.ReLU) else module(images)
        found[layer.name] = images
    return [found[layer] for layer in layers]


def normalize(images: torch.Tensor) -> torch.Tensor:
    return ((images + 1) / 2 - MEAN) / STD


def matrices(values: torch.Tensor) -> torch.Tensor:
    rows = values.flatten(2)
    return rows @ rows.transpose(1, 2)


def johnson(network, images, target):
    layers = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
    ours, theirs = (features_of(network, normalize(each), *layers) for each in (images, target))
    content = (ours[2] - theirs[2]).square().mean((1, 2, 3))
    style = sum(
        ((matrices(a) - matrices(b)) / a[0].numel()).square().sum((1, 2)) for a, b in zip(ours, theirs, strict=True)
    )
    return content + style


def gatys(network, images, target):
    averaging = VGG(replace(network.configuration, pooling="average"))
    averaging.load_state_dict(network.state_dict())
    layers = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    ours, theirs = (
        features_of(averaging.to(images), normalize(each), *layers, "relu4_2") for each in (images, target)
    )
    total = (ours[-1] - theirs[-1]).square().sum((1, 2, 3)) / 2
    for a, b in zip(ours[:-1], theirs[:-1], strict=True):
        scale = 4 * a.shape[1] ** 2 * (a.shape[2] * a.shape[3]) ** 2
        total = total + (matrices(a) - matrices(b)).square().sum((1, 2)) / scale / 5
    return total


def srgan(layer):
    def loss(network, images, target):
        (ours,), (theirs,) = (features_of(network, normalize(each), layer) for each in (images, target))
        return ((ours - theirs) / 12.75).square().mean((1, 2, 3))

    return loss


def absolute(weights, scaling=normalize):
    def loss(network, images, target):
        ours, theirs = (features_of(network, scaling(each), *weights) for each in (images, target))
        pairs = zip(ours, theirs, weights.values(), strict=True)
        return sum(weight * (a - b).abs().mean((1, 2, 3)) for a, b, weight in pairs)

    return loss


FORMULAS = {
    "johnson": johnson,
    "gatys": gatys,
    "srgan": srgan("relu5_4"),
    "srgan-vgg22": srgan("relu2_2"),
    "esrgan": absolute({"conv5_4": 1}),
    "real-esrgan": absolute({"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1, "conv4_4": 1, "conv5_4": 1}),
    "pix2pixhd": absolute(
        {"relu1_1": 1 / 32, "relu2_1": 1 / 16, "relu3_1": 1 / 8, "relu4_1": 1 / 4, "relu5_1": 1}, lambda each: each
    ),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("srgan-vgg22", "real-esrgan"))) for name in FORMULAS],
)
def test_the_published_formula(name, vgg16, vgg19, images):
    network = vgg16 if PRESETS[name].model == "vgg16" else vgg19
    ours = vk.PerceptualLoss(name, trunk=network, input_range=(-1, 1), reduction="none").double()
    double = VGG(network.configuration).double()
    double.load_state_dict(network.state_dict())
    double.requires_grad_(False)

    def theirs(images, target):
        return FORMULAS[name](double, images, target)

    demand_equal(differentiate(ours, *images), differentiate(theirs, *images), relative=1e-6)


def test_every_preset_is_tested_and_says_where_it_was_published():
    assert PRESETS.keys() == {*FORMULAS, "lpips", "dists"}
    assert all(preset.source for preset in PRESETS.values())


@pytest.mark.parametrize("name", ["lpips", "dists", "johnson", "real-esrgan"])
def test_a_reference_is_computed_once(name, vgg16, vgg19, images, linear, structure):
    network = vgg16 if PRESETS[name].model == "vgg16" else vgg19
    calibration = {"lpips": linear, "dists": structure}.get(name)
    loss = vk.PerceptualLoss(name, trunk=network, calibration=calibration, input_range=(-1, 1), reduction="none")
    given = images[0].clone().requires_grad_(True)
    assert torch.equal(loss(given, images[1]), loss(given, loss.reference(images[1])))
    one = loss(given, loss.reference(images[1][:1]))
    assert torch.allclose(one, loss(given, images[1][:1].expand(2, -1, -1, -1)), rtol=1e-5)
    assert torch.allclose(loss(images[1], images[1]), torch.zeros(2), atol=1e-6)


def test_content_and_style_from_two_images(vgg19, images):
    loss = vk.PerceptualLoss("gatys", trunk=vgg19, input_range=(-1, 1), style_weight=10)
    style = torch.rand(1, 3, 64, 33) * 2 - 1
    terms = loss.terms(images[0], content=images[1], style=style)
    assert list(terms) == ["content relu4_2", *(f"style relu{k}_1" for k in range(1, 6))]
    both = loss(images[0], content=loss.reference(images[1]), style=loss.reference(style))
    assert torch.allclose(both, sum(terms.values()).mean())
    assert loss(images[0], style=style) < both
    with pytest.raises(BadInput, match="not both"):
        loss(images[0], images[1], style=style)
    with pytest.raises(BadInput, match="needs what images are compared with"):
        loss(images[0])


def test_gradients_reach_a_target_that_asks_for_them(vgg16, images, linear):
    loss = vk.PerceptualLoss("lpips", trunk=vgg16, calibration=linear).double()
    ours, theirs = (each.double().clone().requires_grad_(True) for each in images)
    loss(ours, theirs).backward()
    swapped = [each.double().clone().requires_grad_(True) for each in images]
    loss(swapped[1], swapped[0]).backward()
    assert torch.allclose(ours.grad, swapped[0].grad)
    assert torch.allclose(theirs.grad, swapped[1].grad)


def test_places_of_zeros_have_a_gradient(vgg16, linear):
    """The root of a sum of squares has none at zero."""
    trunk = VGG(vgg16.configuration)
    trunk.load_state_dict(vgg16.state_dict())
    with torch.no_grad():
        trunk.features[0].bias.fill_(-100)
    given = torch.zeros(1, 3, 32, 32, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vk.PerceptualLoss("lpips", trunk=trunk, calibration=linear)(given, torch.ones(1, 3, 32, 32)).backward()
    assert given.grad.isfinite().all()


def distort(image, kind):
    """Another image that is near (1, 3, H, W)."""
    match kind:
        case "noise":
            return (image + 0.02 * torch.randn_like(image)).clamp(-1, 1)
        case "blur":
            return F.avg_pool2d(F.pad(image, (1, 1, 1, 1), "replicate"), 3, 1)
        case "flat":  # squares of one colour, whose values in a pool are equal
            return F.avg_pool2d(image, 16).repeat_interleave(16, 2).repeat_interleave(16, 3)


def test_the_fast_ones_are_near(linear):
    """Distance within 1 %, gradient within 2 %, whatever the processor.

    Of squares of one colour torch's own gradient in float32 is 2 % away from that in float64.
    """
    trunk = make_trunk("vgg16", "relu3_3")
    config = vk.LossConfig(
        model="vgg16", content={"relu1_2": 1, "relu2_2": 1, "relu3_3": 1}, metric="lpips", scaling="lpips"
    )
    exact, rounded, winograd = (
        vk.PerceptualLoss(
            config, trunk=trunk, calibration=dict(list(linear.items())[:3]), input_range=(-1, 1), **options
        )
        for options in ({"images_at_once": 1}, {"precision": "bf16"}, {"convolution": "winograd"})
    )
    exact.double()
    torch.manual_seed(5)
    target = F.interpolate(torch.rand(1, 3, 8, 8) * 2 - 1, (64, 64), mode="bicubic").clamp(-1, 1)
    for kind, relative in {"noise": 0.02, "blur": 0.02, "flat": 0.04}.items():
        images = distort(target, kind)
        value, gradient = differentiate(exact, images, target)
        for fast in (rounded, winograd):
            for compared in (target, fast.reference(target)):
                given = images.clone().requires_grad_(True)
                found = fast(given, compared)
                found.backward()
                demand_equal([found.detach()], [value], relative=0.01)
                demand_equal([given.grad], [gradient], relative=relative)


def test_the_given_network_is_left_alone_and_shared(vgg16, images, linear):
    vgg16.train()
    loss = vk.PerceptualLoss("lpips", trunk=vgg16, calibration=linear)
    loss(images[0].clone().requires_grad_(True), images[1]).backward()
    assert vgg16.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in vgg16.parameters())
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert not loss.train().trunk.network.training
    vgg16.eval()


def test_a_state_dict_holds_everything_once(vgg16, images, linear):
    loss = vk.PerceptualLoss("lpips", trunk=vgg16, calibration=linear)
    state = loss.state_dict()
    tensors = [value.data_ptr() for value in state.values() if value.numel()]
    assert len(tensors) == len(set(tensors))
    other = VGG("vgg16", until="relu5_3", head="pool", num_classes=1)
    again = vk.PerceptualLoss("lpips", trunk=other, calibration={k: v * 2 for k, v in linear.items()})
    again.load_state_dict(state)
    assert torch.equal(again(*images), loss(*images))


@pytest.fixture(scope="module")
def loss():
    trunk = make_trunk("vgg19", "relu2_2")
    return lambda **options: vk.PerceptualLoss("srgan-vgg22", trunk=trunk, **options)


class TestRange:
    @pytest.mark.parametrize(
        ("declared", "low", "high"),
        [((0, 1), 0, 255), ((0, 1), -1, 1), ((-1, 1), 0, 255), ((0, 1), -0.2, 1)],
    )
    def test_outside_is_an_error(self, loss, declared, low, high):
        images = torch.linspace(low, high, 3 * 32 * 32).view(1, 3, 32, 32)
        good = torch.linspace(*declared, 3 * 32 * 32).view(1, 3, 32, 32)
        made = loss(input_range=declared)
        with pytest.raises(BadInput, match=r"images lie in .* outside of input_range"):
            made(images, good)
        with pytest.raises(BadInput, match="the target lie"):
            made(good, images)
        loss(input_range=declared, check_range=False)(images, good)

    @pytest.mark.parametrize(
        ("declared", "low", "high"), [((0, 255), 0, 1), ((0, 255), -1, 1), ((-1, 1), 0, 1), ((0, 1), 0, 1 / 255)]
    )
    def test_suspicious_is_a_warning_once(self, loss, declared, low, high):
        images = torch.linspace(low, high, 3 * 32 * 32).view(1, 3, 32, 32)
        made = loss(input_range=declared)
        with pytest.warns(UserWarning, match="may be of another range"):
            made(images, images)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made(images, images)

    def test_the_range_changes_nothing_else(self, loss, images):
        values = []
        for low, high in ((0, 1), (-1, 1), (0, 255)):
            moved = [(each + 1) / 2 * (high - low) + low for each in images]
            values.append(loss(input_range=(low, high))(*moved))
        assert torch.allclose(values[0], values[1], rtol=1e-4)
        assert torch.allclose(values[1], values[2], rtol=1e-4)

    def test_what_are_no_images(self, loss, images):
        made = loss()
        for wrong in (images[0][0], images[0].to(torch.int32), "photo.jpg", None):
            with pytest.raises(BadInput):
                made(wrong, images[1])
        with pytest.raises(BadInput, match="not finite"):
            made(images[0].clone().fill_(torch.nan), images[1])
        with pytest.raises(BadInput, match="at least"):
            made(images[0][..., :1], images[1][..., :1])
        with pytest.raises(BadInput, match="one size"):
            made(images[0], images[1][..., :40])
        with torch.inference_mode():
            frozen = images[0] + 0
        with pytest.raises(BadInput, match="no_grad"):
            made(frozen, images[1])
        with pytest.raises(BadConfiguration, match="input_range must be one of"):
            loss(input_range=(0, 2))


class TestTrunk:
    def test_a_trunk_that_ends_early_says_so(self):
        with pytest.raises(BadConfiguration, match=r"gatys compares .*relu4_2.* ends with relu3_1"):
            vk.PerceptualLoss("gatys", trunk=make_trunk("vgg19", "relu3_1"))

    def test_another_network(self):
        with pytest.raises(BadConfiguration, match=r"lpips compares layers of vgg16; the trunk is a vgg19"):
            vk.PerceptualLoss("lpips", trunk=make_trunk("vgg19", "relu3_1"), calibration={})

    def test_a_grey_one(self):
        trunk = VGG("vgg19", until="relu2_2", head="pool", in_channels=1)
        with pytest.raises(BadConfiguration, match="one channel"):
            vk.PerceptualLoss("srgan-vgg22", trunk=trunk)

    def test_a_classifiers_preprocessing_is_followed(self, vgg19, images):
        """BGR in 0 to 255, as Caffe's networks read."""
        plain = vk.PerceptualLoss("srgan-vgg22", trunk=vgg19)
        turned = VGG("vgg19", until="relu2_2", head="pool", num_classes=1)
        own = turned.features.state_dict()
        turned.features.load_state_dict({key: vgg19.features.state_dict()[key] for key in own})
        with torch.no_grad():
            turned.features[0].weight.copy_(turned.features[0].weight.flip(1) / 255)
        preprocessing = vk.Preprocessing(
            channel_order="BGR",
            full_value=255.0,
            mean=tuple(255 * float(each) for each in MEAN.flatten().flip(0)),
            std=tuple(float(each) for each in STD.flatten().flip(0)),
        )
        classifier = vk.Classifier(turned, labels=["a"], preprocessing=preprocessing)
        assert torch.allclose(
            vk.PerceptualLoss("srgan-vgg22", trunk=classifier)(*images), plain(*images), rtol=1e-4
        )

    def test_a_file_of_weights(self, vgg19, images, tmp_path):
        torch.save(vgg19.state_dict(), tmp_path / "vgg19.pth")
        found = vk.PerceptualLoss("srgan", trunk=tmp_path / "vgg19.pth")
        assert torch.equal(found(*images), vk.PerceptualLoss("srgan", trunk=vgg19)(*images))

    def test_the_real_partial_vgg19(self, shared):
        path = shared / "weights" / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth"
        loss = vk.PerceptualLoss("srgan-vgg22", trunk=path)
        low = torch.rand(1, 3, 40, 40) * 2 - 1
        assert loss(low, low.flip(3)) > 0
        with pytest.raises(BadConfiguration, match=r"gatys compares .*relu4_2"):
            vk.PerceptualLoss("gatys", trunk=path)


class TestCalibration:
    def test_it_is_needed_and_read_strictly(self, vgg16, linear, tmp_path):
        with pytest.raises(BadConfiguration, match="needs its trained weights"):
            vk.PerceptualLoss("lpips", trunk=vgg16)
        with pytest.raises(BadCheckpoint, match=r"lin4.model.1.weight"):
            vk.PerceptualLoss("lpips", trunk=vgg16, calibration=dict(list(linear.items())[:-1]))
        wrong = linear | {"lin0.model.1.weight": torch.rand(1, 63, 1, 1)}
        with pytest.raises(BadCheckpoint, match="64 channels"):
            vk.PerceptualLoss("lpips", trunk=vgg16, calibration=wrong)
        with pytest.raises(BadConfiguration, match="this loss has none"):
            vk.PerceptualLoss("srgan-vgg22", trunk=make_trunk("vgg19", "relu2_2"), calibration=linear)

    def test_the_packages_file(self, vgg16, images):
        package = pytest.importorskip("lpips")
        path = Path(package.__file__).parent / "weights" / "v0.1" / "vgg.pth"
        loss = vk.PerceptualLoss("lpips", trunk=vgg16, calibration=path)
        assert loss(*images) > 0


def test_own_combinations(vgg16, images):
    config = vk.LossConfig(model="vgg16", content={"conv2_2": 0.5, "pool3": 2}, style={"relu1_1": 1e3})
    loss = vk.PerceptualLoss(config, trunk=vgg16, input_range=(-1, 1))
    assert list(loss.terms(*images)) == ["content conv2_2", "content pool3", "style relu1_1"]
    for wrong, rule in (
        ({"content": {}}, "compares layers"),
        ({"content": {"relu1_1": 0}}, "above 0"),
        ({"content": {"relu1_1": 1}, "style": {"relu1_1": 1}, "metric": "lpips"}, "no Gram"),
        ({"content": {"relu1_1": 1}, "feature_scale": 0}, "feature_scale"),
    ):
        with pytest.raises(BadConfiguration, match=rule):
            vk.LossConfig(model="vgg16", **wrong)
    with pytest.raises(UnknownName, match="vgg16"):
        vk.LossConfig(model="vgg61", content={"relu1_1": 1})
    with pytest.raises(UnknownName, match="lpips"):
        vk.PerceptualLoss("lpisp", trunk=vgg16)
    with pytest.raises(BadConfiguration, match="relu9_9"):
        vk.PerceptualLoss(vk.LossConfig(model="vgg16", content={"relu9_9": 1}), trunk=vgg16)


def test_gram_matrices_do_not_overflow():
    values = torch.full((1, 8, 64, 64), 300.0, dtype=torch.float16)
    found = gram(values)
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.full((1, 8, 8), 300.0**2 / 8))


def test_a_network_of_the_table_is_meant(vgg16):
    assert configure(PRESETS["lpips"].model).trunk[:30] == vgg16.configuration.trunk
