"""Where weights start: the schemes' spreads, torchvision's weights from the same seed, warm starts, other channels.

Shape letters: O filters, C channels, h and w sides of a filter.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn

from vggkit.errors import BadConfiguration, BadInput, UnknownName
from vggkit.models.configuration import MODELS, Configuration, Scheme
from vggkit.models.initialization import adapt_filters, initialize, warm_start
from vggkit.models.vgg import VGG

# Wide enough for a spread to be measured to a few percent.
MEASURABLE = Configuration(blocks=((64,), (64, 96)), batch_norm=True, hidden=(512,), grid=2, num_classes=128)
TORCHVISIONS = ["vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def narrow(name: str, **changes: object) -> Configuration:
    """A row of the paper's table in widths that cost nothing."""
    widths = (4, 6, 8, 10, 12)
    blocks = tuple((width,) * len(block) for width, block in zip(widths, MODELS[name].blocks, strict=True))
    small = replace(MODELS[name], blocks=blocks, hidden=(16, 14), grid=2, num_classes=5)
    return replace(small, **changes)  # type: ignore[arg-type]


class TestSchemes:
    @pytest.mark.parametrize("scheme", ["kaiming", "glorot", "paper"])
    def test_spread_of_every_layer(self, scheme: Scheme) -> None:
        network = VGG(MEASURABLE, initialization=scheme)
        for module in network.modules():
            if not isinstance(module, nn.Conv2d | nn.Linear):
                continue
            weight = module.weight.detach()
            window = weight[0, 0].numel() if weight.dim() == 4 else 1
            fan_in, fan_out = weight.shape[1] * window, weight.shape[0] * window
            glorot = (2 / (fan_in + fan_out)) ** 0.5
            kaiming = (2 / fan_out) ** 0.5 if weight.dim() == 4 else 0.01
            expected = {"kaiming": kaiming, "glorot": glorot, "paper": 0.1}[scheme]
            assert weight.std().item() == pytest.approx(expected, rel=0.05)
            assert abs(weight.mean().item()) < 4 * expected / weight.numel() ** 0.5
            # Uniform within its bound, normal far beyond two deviations.
            reach = weight.abs().max().item() / expected
            assert reach <= 3**0.5 * 1.0001 if scheme == "glorot" else reach > 2.5
            assert not module.bias.any()

    @pytest.mark.parametrize("scheme", ["kaiming", "glorot", "paper"])
    def test_everything_is_drawn_anew(self, scheme: Scheme) -> None:
        network = VGG(MEASURABLE)
        for value in network.state_dict().values():
            value.fill_(7)
        initialize(network, scheme)
        assert not any((value == 7).all() for value in network.state_dict().values())
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        assert len(norms) == 3
        for norm in norms:
            assert (norm.weight == 1).all()
            assert not norm.bias.any()
            assert not norm.running_mean.any()
            assert (norm.running_var == 1).all()
            assert norm.num_batches_tracked == 0

    def test_two_factors_are_drawn_too(self) -> None:
        torch.manual_seed(1)
        one = VGG(replace(MEASURABLE, ranks=(8, None)))
        assert one.classifier[0][0].weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not one.classifier[0][1].bias.any()

    def test_the_same_seed_gives_the_same_weights(self) -> None:
        states = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            states.append(VGG(MEASURABLE, initialization="glorot").state_dict())
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        assert not torch.equal(states[0]["features.0.weight"], states[2]["features.0.weight"])

    def test_an_unknown_scheme(self) -> None:
        with pytest.raises(UnknownName, match="Did you mean 'kaiming'"):
            initialize(VGG(narrow("vgg11")), "kaming")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "name", [pytest.param(n, marks=() if n == "vgg11_bn" else pytest.mark.slow) for n in TORCHVISIONS]
    )
    def test_the_same_seed_gives_torchvisions_weights(self, name: str) -> None:
        torch.manual_seed(11)
        ours = VGG(name).state_dict()
        torch.manual_seed(11)
        theirs = torchvision.models.get_model(name, weights=None).state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)

    @pytest.mark.slow
    def test_the_papers_scheme_taken_literally_starts_at_a_loss_of_millions(self) -> None:
        network = VGG("vgg11", initialization="paper").eval()
        with torch.inference_mode():
            loss = F.cross_entropy(network(torch.randn(2, 3, 224, 224)), torch.tensor([1, 2]))
        assert loss > 1e5  # ln(1000) = 6.9 is chance; 5e6 was measured


class TestWarmStart:
    @pytest.mark.parametrize("deeper", ["vgg13", "vgg16", "vgg19"])
    def test_net_a_starts_the_deeper_ones(self, deeper: str) -> None:
        network, smaller = VGG(narrow(deeper)), VGG(narrow("vgg11"))
        for value in smaller.parameters():
            nn.init.normal_(value)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        report = warm_start(network, smaller)
        assert report.copied == ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")
        assert report.skipped == ()
        theirs = smaller.state_dict()
        pairs = {}
        for name, source in zip(report.copied[:4], (0, 3, 6, 8), strict=True):
            index = next(layer.index for layer in network.configuration.trunk if layer.name == name)
            pairs |= {f"features.{index}.{part}": f"features.{source}.{part}" for part in ("weight", "bias")}
        pairs |= {
            f"classifier.{i}.{part}": f"classifier.{i}.{part}" for i in (0, 3, 6) for part in ("weight", "bias")
        }
        for key, value in network.state_dict().items():
            assert torch.equal(value, theirs[pairs[key]] if key in pairs else before[key]), key
            assert key not in pairs or not torch.equal(value, before[key])

    def test_batch_norm_goes_along_where_both_have_it(self) -> None:
        network, smaller = VGG(narrow("vgg16_bn")), VGG(narrow("vgg11_bn"))
        for value in smaller.state_dict().values():
            value.copy_(torch.randint(2, 9, value.shape))
        warm_start(network, smaller)
        mine, theirs = network.state_dict(), smaller.state_dict()
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(mine[f"features.1.{part}"], theirs[f"features.1.{part}"])
            # bn1_2, which net A does not have, stays the identity.
            assert not torch.equal(mine[f"features.4.{part}"], theirs[f"features.1.{part}"])

    def test_batch_norm_in_one_alone_stays_as_it_is(self) -> None:
        network, smaller = VGG(narrow("vgg13_bn")), VGG(narrow("vgg11"))
        assert "conv1_1" in warm_start(network, smaller).copied
        assert (network.state_dict()["features.1.running_var"] == 1).all()
        assert "conv1_1" in warm_start(VGG(narrow("vgg13")), VGG(narrow("vgg11_bn"))).copied

    def test_what_does_not_fit_is_said(self) -> None:
        network = VGG(narrow("vgg16", num_classes=9, in_channels=1, ranks=(None, 3, None)))
        report = warm_start(network, VGG(narrow("vgg11")))
        assert report.copied == ("conv2_1", "conv3_1", "conv3_2", "fc6")
        assert report.skipped == ("conv1_1", "fc7", "fc8")

    def test_a_cut_network_has_fewer_layers(self) -> None:
        network = VGG(narrow("vgg19"), until="relu3_1")
        report = warm_start(network, VGG(narrow("vgg11")))
        assert report.copied == ("conv1_1", "conv2_1", "conv3_1")
        assert report.skipped == ("conv3_2", "fc6", "fc7", "fc8")

    def test_nothing_fits(self) -> None:
        with pytest.raises(BadInput, match="no layer of the smaller network fits"):
            warm_start(VGG(MEASURABLE), VGG(narrow("vgg11", in_channels=1)))

    def test_only_between_vggs(self) -> None:
        with pytest.raises(BadInput, match="takes two VGGs, got Linear"):
            warm_start(VGG(narrow("vgg11")), nn.Linear(2, 2))


class TestOtherChannels:
    @pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 7])
    def test_filters_are_timms(self, channels: int) -> None:
        weight = torch.randn(8, 3, 3, 3)
        expected = adapt_input_conv(channels, weight)
        assert adapt_filters(weight, channels).shape == (8, channels, 3, 3)
        torch.testing.assert_close(adapt_filters(weight, channels), expected)

    def test_a_grey_image_gives_what_its_three_copies_gave(self) -> None:
        # Whole numbers are summed without rounding.
        weight, grey = torch.randint(-9, 9, (8, 3, 3, 3)).float(), torch.randint(0, 255, (2, 1, 9, 9)).float()
        expected: Tensor = F.conv2d(grey.expand(-1, 3, -1, -1), weight)
        assert torch.equal(F.conv2d(grey, adapt_filters(weight, 1)), expected)

    def test_only_filters_for_three_channels_are_adapted(self) -> None:
        weight = torch.randn(8, 4, 3, 3)
        assert adapt_filters(weight, 4) is weight
        with pytest.raises(BadConfiguration, match="for 4 channels cannot be adapted to 3"):
            adapt_filters(weight, 3)


def test_dirac_convolutions_hand_their_maps_on():
    torch.manual_seed(0)
    network = VGG("vgg11_bn", num_classes=3, head="pool", initialization="dirac")
    first, second = network.features[0], network.features[4]
    maps = torch.randn(1, 64, 6, 5)
    torch.testing.assert_close(second(maps).detach()[:, :64], maps)
    assert second.weight.detach()[64:].std() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.05)
    assert first.weight.detach().std() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)
    assert second.weight.requires_grad
