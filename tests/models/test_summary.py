"""The table's figures against the networks themselves: torch's own counter, hooks and gradients.

Shape letters: C channels, H and W pixels, K classes.
"""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vggkit.errors import BadInput
from vggkit.models.configuration import MODELS, Configuration
from vggkit.models.configure import configure
from vggkit.models.summary import LayerSummary, summarize
from vggkit.models.vgg import VGG

TINY = Configuration(blocks=((4,), (6, 6), (8,)), hidden=(12, 9), grid=3, num_classes=5)

NETWORKS = {
    "paper": (MODELS["vgg11"], (224, 224)),
    "larger image": (MODELS["vgg16_bn"], (320, 256)),
    "smaller image": (MODELS["vgg13"], (32, 40)),
    "LRN": (MODELS["vgg11_lrn"], (64, 64)),
    "1×1 kernels": (MODELS["vgg16_c"], (224, 160)),
    "dense at 224": (configure("vgg11", head="dense"), (224, 224)),
    "dense at other sizes": (configure("vgg16", head="dense"), (384, 256)),
    "dense, map one side too small": (configure("vgg11", head="dense"), (96, 320)),
    "dense, low rank": (replace(TINY, head="dense", ranks=(2, None, 3)), (40, 64)),
    "low rank": (replace(TINY, ranks=(2, 3, None)), (24, 24)),
    "pool": (configure("vgg19", head="pool"), (64, 96)),
    "cut": (configure("vgg19_bn", until="relu3_4", num_classes=10), (50, 61)),
    "cut at a convolution": (configure("vgg16", until="conv4_2"), (64, 64)),
    "cut in the head": (configure("vgg16", until="fc6", in_channels=1), (224, 224)),
    "grid and no hidden layer": (replace(TINY, grid=2, hidden=(), kernels=((5,), (1, 3), (7,))), (17, 30)),
}


def of_kind(layers: tuple[LayerSummary, ...], *kinds: str) -> list[LayerSummary]:
    return [layer for layer in layers if layer.kind in kinds]


@pytest.mark.parametrize(("configuration", "sides"), NETWORKS.values(), ids=NETWORKS)
class TestAgainstTheNetwork:
    def test_multiply_adds_are_half_of_torchs_flops(
        self, configuration: Configuration, sides: tuple[int, int]
    ) -> None:
        with torch.device("meta"):
            network, images = VGG(configuration).eval(), torch.empty(1, configuration.in_channels, *sides)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network(images)
        summary = summarize(configuration, input=sides)
        assert 2 * summary.totals.multiply_adds == counter.get_total_flops()
        assert summary.totals.multiply_adds == sum(layer.multiply_adds for layer in summary.layers)

    def test_parameters_of_each_layer(self, configuration: Configuration, sides: tuple[int, int]) -> None:
        with torch.device("meta"):
            network = VGG(configuration)
        sizes = [
            sum(value.numel() for value in module.parameters())
            for module in network.modules()
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear)
        ]
        summary = summarize(configuration, input=sides)
        assert [layer.parameters for layer in summary.layers if layer.parameters] == sizes
        assert summary.totals.parameters == configuration.parameters
        assert summary.totals.weight_bytes == 4 * configuration.parameters

    def test_shapes_of_each_output(self, configuration: Configuration, sides: tuple[int, int]) -> None:
        seen: list[tuple[int, ...]] = []

        def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            seen.append(tuple(output.shape[1:]))

        with torch.device("meta"):
            network, images = VGG(configuration).eval(), torch.empty(1, configuration.in_channels, *sides)
        for module in network.features:
            if not isinstance(module, nn.ReLU):
                module.register_forward_hook(note)
        with torch.no_grad():
            logits = network(images)
        layers = summarize(configuration, input=sides).layers
        assert [layer.output_shape for layer in of_kind(layers, "conv", "bn", "lrn", "pool")] == seen
        assert layers[0].output_shape == images.shape[1:]
        assert layers[-1].output_shape[:1] == logits.shape[1:]
        for layer in layers:
            assert layer.activation_bytes == 4 * math.prod(layer.output_shape)

    def test_shares_are_parts_of_one(self, configuration: Configuration, sides: tuple[int, int]) -> None:
        summary = summarize(configuration, input=sides)
        assert sum(layer.parameter_share for layer in summary.layers) == pytest.approx(1)
        assert sum(layer.multiply_add_share for layer in summary.layers) == pytest.approx(1)
        assert summary.totals.activation_bytes == sum(layer.activation_bytes for layer in summary.layers)

    def test_json(self, configuration: Configuration, sides: tuple[int, int]) -> None:
        summary = summarize(configuration, input=sides)
        values = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
        assert values == summary.to_dict()
        assert Configuration.from_dict(values["configuration"]) == configuration
        assert values["input_pixels"] == list(sides)
        assert [row["name"] for row in values["layers"]] == [layer.name for layer in summary.layers]


class TestReceptiveField:
    @pytest.mark.parametrize("pooling", ["max", "average"])
    def test_it_is_as_far_as_gradients_reach(self, pooling: str) -> None:
        configuration = replace(TINY, pooling="average", kernels=((3,), (3, 1), (5,)), head="pool", hidden=())
        configuration = replace(configuration, pooling=pooling)
        fields = {layer.name: layer.receptive_field_pixels for layer in summarize(configuration).layers}
        side = 128
        for layer in configuration.trunk:
            if layer.kind == "relu":
                continue
            network = VGG(configure(replace(configuration, pooling="average"), until=layer.name)).double().features
            for value in network.parameters():
                nn.init.constant_(value, 0.1)  # every path counts, and no ReLU closes
            image = torch.ones(1, 3, side, side, dtype=torch.float64, requires_grad=True)
            maps = network(image)
            middle = maps.shape[-1] // 2
            [gradient] = torch.autograd.grad(maps[0, 0, middle, middle], image)
            assert int((gradient[0, 0].abs().sum(0) > 0).sum()) == fields[layer.name], layer.name

    def test_of_vgg16(self) -> None:
        # Figures that the literature gives for VGG16's pools.
        fields = {layer.name: layer.receptive_field_pixels for layer in summarize(MODELS["vgg16"]).layers}
        assert [fields[f"pool{block}"] for block in range(1, 6)] == [6, 16, 44, 100, 212]
        assert fields["input"] == 1
        assert fields["fc6"] is fields["fc8"] is None

    def test_a_dense_heads_window_sees_as_far_as_its_scores(self) -> None:
        fields = {
            layer.name: layer.receptive_field_pixels
            for layer in summarize(configure("vgg16", head="dense"), input=(448, 448)).layers
        }
        assert (fields["fc6"], fields["fc7"], fields["fc8"], fields["mean"]) == (404, 404, 404, None)

    def test_a_pooled_map_sees_the_whole_image(self) -> None:
        layers = summarize(configure("vgg16", head="dense"), input=(96, 448)).layers
        assert [layer.receptive_field_pixels for layer in layers[-5:]] == [None] * 5


class TestRows:
    def test_of_the_papers_net(self) -> None:
        rows = [(layer.name, layer.kind, layer.output_shape) for layer in summarize(MODELS["vgg11_lrn"]).layers]
        assert rows == [
            ("input", "input", (3, 224, 224)),
            ("conv1_1", "conv", (64, 224, 224)),
            ("lrn1_1", "lrn", (64, 224, 224)),
            ("pool1", "pool", (64, 112, 112)),
            ("conv2_1", "conv", (128, 112, 112)),
            ("pool2", "pool", (128, 56, 56)),
            ("conv3_1", "conv", (256, 56, 56)),
            ("conv3_2", "conv", (256, 56, 56)),
            ("pool3", "pool", (256, 28, 28)),
            ("conv4_1", "conv", (512, 28, 28)),
            ("conv4_2", "conv", (512, 28, 28)),
            ("pool4", "pool", (512, 14, 14)),
            ("conv5_1", "conv", (512, 14, 14)),
            ("conv5_2", "conv", (512, 14, 14)),
            ("pool5", "pool", (512, 7, 7)),
            ("fc6", "fc", (4096,)),
            ("fc7", "fc", (4096,)),
            ("fc8", "fc", (1000,)),
        ]

    @pytest.mark.parametrize(
        ("configuration", "sides", "rows"),
        [
            (TINY, (24, 24), [("pool3", (8, 3, 3)), ("fc6", (12,)), ("fc7", (9,)), ("fc8", (5,))]),
            (TINY, (32, 24), [("avgpool", (8, 3, 3)), ("fc6", (12,)), ("fc7", (9,)), ("fc8", (5,))]),
            (
                replace(TINY, hidden=(), ranks=(2,)),
                (24, 24),
                [("pool3", (8, 3, 3)), ("fc6.0", (2,)), ("fc6.1", (5,))],
            ),
            (
                replace(TINY, head="dense", hidden=(12,)),
                (40, 24),
                [("pool3", (8, 5, 3)), ("fc6", (12, 3, 1)), ("fc7", (5, 3, 1)), ("mean", (5,))],
            ),
            (
                replace(TINY, head="dense", hidden=()),
                (40, 8),
                [("pool3", (8, 5, 1)), ("avgpool", (8, 5, 3)), ("fc6", (5, 3, 1)), ("mean", (5,))],
            ),
            (configure(TINY, head="pool"), (24, 8), [("pool3", (8, 3, 1)), ("mean", (8,)), ("fc6", (5,))]),
            (
                configure(TINY, until="relu2_2"),
                (9, 9),
                [("conv2_2", (6, 4, 4)), ("mean+std", (12,)), ("fc6", (5,))],
            ),
        ],
    )
    def test_of_every_head(
        self, configuration: Configuration, sides: tuple[int, int], rows: list[tuple[str, tuple[int, ...]]]
    ) -> None:
        layers = summarize(configuration, input=sides).layers
        assert [(layer.name, layer.output_shape) for layer in layers[-len(rows) :]] == rows

    @pytest.mark.parametrize(
        ("configuration", "said"),
        [
            (MODELS["vgg11"], "vgg11, 1,000 classes"),
            (configure("vgg16_bn", head="dense", num_classes=1), "vgg16_bn, dense head, 1 class"),
            (configure("vgg19", until="relu3_4"), "vgg19 until relu3_4, pool head (mean+std), 1,000 classes"),
            (replace(TINY, ranks=(2, None, None)), "custom, low-rank, 5 classes"),
        ],
    )
    def test_the_description(self, configuration: Configuration, said: str) -> None:
        summary = summarize(configuration)
        assert summary.description == said
        assert summary.model == configuration.model


class TestRefusals:
    @pytest.mark.parametrize("sides", [(31, 224), (224, 31), (0, 0), (-5, 40)])
    def test_too_small_an_image(self, sides: tuple[int, int]) -> None:
        with pytest.raises(BadInput, match=rf"at least 32 pixels high and wide, got {sides[0]}×{sides[1]}"):
            summarize(MODELS["vgg11"], input=sides)

    def test_the_smallest_image_is_the_networks(self) -> None:
        cut = configure("vgg11", until="pool2")
        assert summarize(cut, input=(4, 4)).layers[-3].output_shape == (128, 1, 1)
        with pytest.raises(BadInput, match="at least 4 pixels"):
            summarize(cut, input=(3, 4))

    @pytest.mark.parametrize("sides", [224, (224,), (224.0, 224.0), ("224", "224"), None, (True, 64), (1, 2, 3)])
    def test_what_is_not_two_whole_numbers(self, sides: object) -> None:
        with pytest.raises(BadInput, match="height and width in whole pixels"):
            summarize(MODELS["vgg11"], input=sides)  # type: ignore[arg-type]


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; from vggkit.models.summary import summarize; from vggkit.reports.tables import draw_summary;"
        "from vggkit.reports import plots; from vggkit.models.configuration import MODELS;"
        "draw_summary(summarize(MODELS['vgg11'])); print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
