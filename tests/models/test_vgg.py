"""The network against torchvision's, timm's and the formulas.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

import copy
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from vggkit.errors import BadInput, UnknownName
from vggkit.models.configuration import MODELS, STD_EPSILON, Configuration
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG

TORCHVISIONS = ["vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"]
# Five pools, as the paper's, in widths that cost nothing; 64 pixels leave a 2×2 map.
TINY = Configuration(blocks=((4,), (6,), (8, 8), (8,), (10,)), hidden=(12, 9), grid=2, num_classes=5, dropout=0.0)
STATE = dict[str, Tensor]


def draw_state(configuration: Configuration, *, like: STATE | None = None, seed: int = 0) -> STATE:
    """Weights that let signals through, statistics of batch norm that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    state: STATE = {}
    for key, shape in configuration.state_shapes().items():
        if like and key.startswith("classifier"):
            state[key] = like[key]
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(3)
        elif key.endswith("running_var"):
            state[key] = torch.rand(shape, generator=generator) + 0.5
        else:
            fan_in = shape[1] * 9 if len(shape) == 4 else shape[-1]
            spread = (2 / fan_in) ** 0.5 if len(shape) > 1 else 0.1
            state[key] = torch.randn(shape, generator=generator) * spread
            if key.endswith("weight") and len(shape) == 1:
                state[key] += 1
    return state


def build(configuration: Configuration, state: STATE) -> VGG:
    """A network that shares `state`, without drawing weights first."""
    with torch.device("meta"):
        network = VGG(configuration)
    network.load_state_dict(state, assign=True)
    return network.eval()


def build_torchvision(name: str, state: STATE) -> nn.Module:
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None)
    network.load_state_dict(state, assign=True)
    return network.eval()


def tiny(**changes: object) -> VGG:
    """A small network with weights that matter, in evaluation."""
    configuration = replace(TINY, **changes)  # type: ignore[arg-type]
    return build(configuration, draw_state(configuration))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def paper_head() -> Iterator[STATE]:
    """The paper's three matrices, 495 MB, drawn once for all."""
    whole = draw_state(replace(MODELS["vgg11"], blocks=((512,),)))
    yield {key: value for key, value in whole.items() if key.startswith("classifier")}
    whole.clear()


class TestAgainstTorchvision:
    @pytest.mark.sweep(3)
    @pytest.mark.parametrize(
        "name",
        [
            pytest.param(n, marks=[pytest.mark.slow] * (n in ("vgg13", "vgg13_bn", "vgg19_bn")))
            for n in TORCHVISIONS
        ],
    )
    def test_logits_are_equal_bit_for_bit(self, name: str, paper_head: STATE) -> None:
        state = draw_state(MODELS[name], like=paper_head)
        ours, theirs = build(MODELS[name], state), build_torchvision(name, state)
        with torch.inference_mode():
            # 7×7 maps, larger and smaller ones; the largest only where they are cheap.
            for sides in ((224, 224), (32, 32), (64, 96), *([(256, 192)] if "11" in name else [])):
                images = torch.randn(1, 3, *sides, generator=torch.Generator().manual_seed(1))
                expected = theirs(images)
                assert expected.std() > 0.1
                assert torch.equal(ours(images), expected), sides

    def test_gradients_are_equal_bit_for_bit_in_training(self, paper_head: STATE) -> None:
        state = draw_state(MODELS["vgg11_bn"], like=paper_head)
        images, labels = torch.randn(2, 3, 64, 96), torch.tensor([3, 700])
        gradients = []
        for network in (build(MODELS["vgg11_bn"], state), build_torchvision("vgg11_bn", copy.deepcopy(state))):
            torch.manual_seed(5)  # dropout draws the same
            logits = network.train()(images)
            # Not only of the last layer, and not all 500 MB of them.
            chosen = {key: value for key, value in network.named_parameters() if "classifier.0" not in key}
            found = torch.autograd.grad(F.cross_entropy(logits, labels), list(chosen.values()))
            gradients.append(dict(zip(chosen, found, strict=True)))
        ours, theirs = gradients
        assert ours.keys() == theirs.keys()
        assert all(value.abs().sum() > 0 for key, value in theirs.items() if key.endswith("weight"))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)

    @pytest.mark.parametrize(
        "name", ["vgg11_bn", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vgg11", "vgg16_bn", "vgg19"))]
    )
    def test_a_trunk_cut_anywhere_gives_torchvisions_activations(self, name: str) -> None:
        state = draw_state(replace(MODELS[name], hidden=(), num_classes=1, grid=1))
        trunk = {key.removeprefix("features."): v for key, v in state.items() if key.startswith("features")}
        with torch.device("meta"):
            theirs = torchvision.models.get_model(name, weights=None).features
        theirs.load_state_dict(trunk, assign=True)
        theirs.eval()
        images = torch.randn(1, 3, 32, 48)
        expected = images
        with torch.inference_mode():
            for layer, module in zip(MODELS[name].trunk, theirs, strict=True):
                expected = module(expected.clone())  # their ReLU writes into what it reads
                with torch.device("meta"):
                    ours = VGG(name, until=layer.name, num_classes=2).features
                ours.load_state_dict({key: trunk[key] for key in ours.state_dict()}, assign=True)
                assert torch.equal(ours.eval()(images), expected), layer.name


class TestDenseHead:
    def test_at_224_pixels_it_is_the_papers_head(self) -> None:
        paper = replace(TINY, grid=7)
        state = draw_state(paper)
        images = torch.randn(2, 3, 224, 224)
        fc, dense = build(paper, state), build(replace(paper, head="dense"), state)
        torch.testing.assert_close(dense(images), fc(images), atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("sides", [(96, 64), (64, 160), (128, 192), (100, 75)])
    @pytest.mark.parametrize("ranks", [None, (3, None, 2)])
    def test_it_is_the_average_over_a_sliding_window(
        self, sides: tuple[int, int], ranks: tuple[int | None, ...] | None
    ) -> None:
        network = tiny(head="dense", ranks=ranks)
        images = torch.randn(2, 3, *sides)
        maps = network.features(images)
        rows, columns = maps.shape[2] - 1, maps.shape[3] - 1
        assert rows * columns > 1
        scores = [
            network.classifier(maps[:, :, row : row + 2, column : column + 2].flatten(1))
            for row in range(rows)
            for column in range(columns)
        ]
        expected = torch.stack(scores).mean(0)
        torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("sides", [(32, 32), (32, 128), (96, 32)])
    def test_a_map_smaller_than_the_grid_is_pooled_up_to_it(self, sides: tuple[int, int]) -> None:
        network = tiny(head="dense")
        images = torch.randn(1, 3, *sides)
        maps = network.features(images)
        larger = [max(side, 2) for side in maps.shape[2:]]
        # Each side of 1 is held twice.
        repeats = [1, 1, *(new // old for new, old in zip(larger, maps.shape[2:], strict=True))]
        held = maps.repeat(repeats) if larger != list(maps.shape[2:]) else maps
        scores = [
            network.classifier(held[:, :, row : row + 2, column : column + 2].flatten(1))
            for row in range(held.shape[2] - 1)
            for column in range(held.shape[3] - 1)
        ]
        torch.testing.assert_close(network(images), torch.stack(scores).mean(0), atol=1e-5, rtol=1e-4)

    def test_it_is_what_timm_computes(self, paper_head: STATE) -> None:
        state = draw_state(MODELS["vgg11"], like=paper_head)
        with torch.device("meta"):
            theirs = timm.create_model("vgg11", pretrained=False)
        timms = {key: value for key, value in state.items() if key.startswith("features")}
        for fc, key, shape in (
            (0, "pre_logits.fc1", (4096, 512, 7, 7)),
            (3, "pre_logits.fc2", (4096, 4096, 1, 1)),
            (6, "head.fc", (1000, 4096)),
        ):
            timms[f"{key}.weight"] = state[f"classifier.{fc}.weight"].view(shape)
            timms[f"{key}.bias"] = state[f"classifier.{fc}.bias"]
        theirs.load_state_dict(timms, assign=True)
        dense = build(configure("vgg11", head="dense"), state)
        with torch.inference_mode():
            images = torch.randn(1, 3, 256, 288)
            torch.testing.assert_close(dense(images), theirs.eval()(images), atol=2e-4, rtol=1e-3)


class TestPoolHead:
    @pytest.mark.parametrize("statistics", ["mean", "mean+std"])
    def test_statistics_are_numpys(self, statistics: str) -> None:
        network = tiny(head="pool", hidden=(), statistics=statistics)
        images = torch.randn(3, 3, 96, 160)
        with torch.no_grad():
            maps = network.features(images).double().numpy()
            logits = network(images).numpy()
        features = [maps.mean((2, 3))]
        if statistics == "mean+std":
            features.append(np.sqrt(maps.var((2, 3)) + STD_EPSILON))
        weight, bias = (value.detach().double().numpy() for value in network.classifier[0].parameters())
        np.testing.assert_allclose(logits, np.concatenate(features, 1) @ weight.T + bias, atol=1e-5)

    def test_a_constant_map_has_a_gradient(self) -> None:
        network = tiny(head="pool", hidden=(), statistics="mean+std")
        images = torch.zeros(1, 3, 32, 32, requires_grad=True)
        network(images).sum().backward()
        assert images.grad is not None
        assert images.grad.isfinite().all()

    @pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
    def test_sums_are_wide_for_narrow_numbers(self, narrow: torch.dtype) -> None:
        network = VGG(replace(TINY, kernels=((1,), (3,), (3, 3), (3,), (3,))), until="relu1_1").eval()
        with torch.no_grad():
            network.features[0].weight.fill_(200.0)
            network.features[0].bias.zero_()
            network.classifier[0].weight.fill_(0.0)
            network.classifier[0].weight[:, 4:] = 0.25  # the four deviations
            network.classifier[0].bias.zero_()
        images = torch.zeros(1, 3, 8, 8, dtype=narrow)
        images[..., 4:] = 1  # the map is 0 and 600: its variance exceeds the largest float16
        assert torch.equal(network.to(narrow)(images), torch.full((1, 5), 300.0, dtype=narrow))

    def test_dropout_falls_on_the_statistics_in_training_only(self) -> None:
        network = tiny(head="pool", hidden=(), dropout=0.5)
        images = torch.randn(1, 3, 32, 32)
        assert torch.equal(network(images), network(images))
        network.train()
        assert not torch.equal(network(images), network(images))


class TestShapes:
    @pytest.mark.parametrize("head", ["fc", "dense", "pool"])
    @pytest.mark.parametrize("channels", [1, 2, 3, 5])
    @pytest.mark.parametrize("sides", [(32, 32), (64, 64), (33, 97), (160, 40)])
    def test_any_image_gives_logits(self, head: str, channels: int, sides: tuple[int, int]) -> None:
        network = VGG(configure(replace(TINY, head="fc"), head=head, in_channels=channels, num_classes=7)).eval()  # type: ignore[arg-type]
        logits = network(torch.randn(2, channels, *sides))
        assert logits.shape == (2, 7)
        assert logits.isfinite().all()

    def test_options_reach_the_configuration(self) -> None:
        network = VGG(TINY, num_classes=2, in_channels=1, head="pool", dropout=0.1, until="relu3_1")
        assert network.configuration == configure(
            TINY, num_classes=2, in_channels=1, head="pool", dropout=0.1, until="relu3_1"
        )

    def test_no_images_give_no_logits(self) -> None:
        assert tiny()(torch.randn(0, 3, 64, 64)).shape == (0, 5)

    @pytest.mark.parametrize("grid", [1, 3])
    @pytest.mark.parametrize("hidden", [(), (7,), (7, 6, 5)])
    def test_hidden_layers_and_grid(self, grid: int, hidden: tuple[int, ...]) -> None:
        network = tiny(grid=grid, hidden=hidden)
        linear = [module for module in network.classifier if isinstance(module, nn.Linear)]
        assert [module.out_features for module in linear] == [*hidden, 5]
        assert linear[0].in_features == 10 * grid**2
        assert network(torch.randn(1, 3, 96, 96)).shape == (1, 5)

    def test_dropout_stands_behind_the_hidden_layers(self) -> None:
        kinds = [type(module).__name__ for module in VGG(replace(TINY, dropout=0.3)).classifier]
        assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
        assert [m.p for m in VGG(replace(TINY, dropout=0.3)).modules() if isinstance(m, nn.Dropout)] == [0.3, 0.3]

    def test_kernels_of_one_pixel_keep_the_size(self) -> None:
        network = tiny(kernels=((5,), (3,), (3, 1), (1,), (3,)))
        assert [m.kernel_size[0] for m in network.features if isinstance(m, nn.Conv2d)] == [5, 3, 3, 1, 1, 3]
        assert network.features(torch.randn(1, 3, 64, 64)).shape == (1, 10, 2, 2)

    def test_average_pooling(self) -> None:
        images = torch.randn(1, 3, 4, 6)
        cut = configure(replace(TINY, pooling="average"), until="pool1")
        network = build(cut, draw_state(cut))
        before = network.features[:2](images)
        expected = before.reshape(1, 4, 2, 2, 3, 2).mean((3, 5))
        torch.testing.assert_close(network.features(images), expected)


class TestRefusals:
    @pytest.mark.parametrize(
        ("images", "said"),
        [
            (torch.zeros(3, 64, 64), r"\(N, 3, H, W\), got \(3, 64, 64\); add the batch with \[None\]"),
            (torch.zeros(1, 1, 64, 64), r"\(N, 3, H, W\), got \(1, 1, 64, 64\).*in_channels="),
            (torch.zeros(1, 64, 64, 3), r"\(N, 3, H, W\), got \(1, 64, 64, 3\)"),
            (torch.zeros(1, 3, 31, 64), "at least 32 pixels high and wide, got 31×64.*until="),
            (torch.zeros(1, 3, 64, 0), "at least 32 pixels high and wide, got 64×0"),
            (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "floating point and normalised, got torch.uint8"),
            (torch.zeros(1, 3, 64, 64, dtype=torch.int64), "floating point"),
            (torch.zeros(()), r"got \(\)"),
        ],
    )
    def test_the_rule_and_what_came_are_named(self, images: Tensor, said: str) -> None:
        with pytest.raises(BadInput, match=said):
            VGG(TINY)(images)

    def test_a_cut_trunk_takes_smaller_images(self) -> None:
        network = VGG(TINY, until="relu3_1")
        assert network(torch.zeros(1, 3, 4, 4)).shape == (1, 5)
        with pytest.raises(BadInput, match="at least 4 pixels"):
            network(torch.zeros(1, 3, 3, 4))

    def test_unknown_names(self) -> None:
        with pytest.raises(UnknownName, match="Did you mean 'vgg16'"):
            VGG("vg16")
        with pytest.raises(UnknownName, match="Did you mean 'glorot'"):
            VGG(TINY, initialization="glorott")  # type: ignore[arg-type]


class TestLayers:
    def test_lrn_is_krizhevskys_formula(self) -> None:
        cut = configure(replace(TINY, blocks=((16,),), lrn_after=("relu1_1",)), until="lrn1_1")
        network = build(cut, draw_state(cut))
        images = 40 * torch.randn(2, 3, 9, 7)
        with torch.no_grad():
            a = network.features[:2](images).double().numpy()
            found = network.features(images).numpy()
        squares = np.pad(a**2, ((0, 0), (2, 2), (0, 0), (0, 0)))
        sums = sum(squares[:, shift : shift + 16] for shift in range(5))
        expected = a / (2 + 1e-4 * sums) ** 0.75
        # The squares must matter, or alpha could be anything.
        assert np.abs(expected - a / 2**0.75).max() > 0.1
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_two_factors_are_their_product(self) -> None:
        ranks = (3, None, 2)
        narrow, full = replace(TINY, ranks=ranks), TINY
        state = draw_state(narrow)
        multiplied = {key: value for key, value in state.items() if key in full.state_shapes()}
        for index in (0, 6):
            down, up = state[f"classifier.{index}.0.weight"], state[f"classifier.{index}.1.weight"]
            multiplied[f"classifier.{index}.weight"] = up @ down
            multiplied[f"classifier.{index}.bias"] = state[f"classifier.{index}.1.bias"]
        images = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(
            build(narrow, state)(images), build(full, multiplied)(images), atol=1e-5, rtol=1e-4
        )

    @pytest.mark.parametrize("head", ["fc", "dense", "pool"])
    def test_double_precision(self, head: str) -> None:
        network = tiny(head=head)
        images = torch.randn(2, 3, 96, 64)
        wide = copy.deepcopy(network).double()(images.double())
        assert wide.dtype == torch.float64
        assert not torch.equal(wide.float().double(), wide)
        torch.testing.assert_close(network(images).double(), wide, atol=1e-5, rtol=1e-4)


class TestTorchsMachinery:
    @pytest.mark.parametrize("head", ["fc", "dense", "pool"])
    def test_channels_last(self, head: str) -> None:
        network = tiny(head=head, batch_norm=True)
        images = torch.randn(2, 3, 64, 96)
        expected = network(images)
        network = network.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
        assert network.features(images).is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("head", ["fc", "dense", "pool"])
    def test_autocast_to_bfloat16(self, head: str) -> None:
        network = tiny(head=head, statistics="mean+std")
        images = torch.randn(2, 3, 64, 96)
        expected = network(images)
        with torch.autocast("cpu", torch.bfloat16):
            narrow = network(images)
            F.cross_entropy(narrow.float(), torch.tensor([0, 1])).backward()
        assert narrow.dtype == torch.bfloat16
        torch.testing.assert_close(narrow.float(), expected, atol=0.05, rtol=0.05)
        assert all(value.grad is not None and value.grad.isfinite().all() for value in network.parameters())

    @pytest.mark.parametrize(
        "head", [pytest.param("fc", marks=pytest.mark.slow), "dense", pytest.param("pool", marks=pytest.mark.slow)]
    )
    @pytest.mark.slow
    def test_compiled_by_aot_eager(self, head: str) -> None:
        torch.compiler.reset()
        network = tiny(head=head, statistics="mean+std")
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
        for sides in ((64, 64), (96, 128)):
            images = torch.randn(2, 3, *sides)
            torch.testing.assert_close(compiled(images), network(images), atol=1e-5, rtol=1e-4)

    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("cc") is None and shutil.which("g++") is None, reason="no C compiler")
    def test_compiled_by_inductor(self) -> None:
        torch.compiler.reset()
        network = tiny(batch_norm=True)
        images = torch.randn(2, 3, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(torch.compile(network)(images), network(images), atol=1e-4, rtol=1e-3)

    def test_gradients_of_each_image(self) -> None:
        network = tiny()
        images, labels = torch.randn(3, 3, 64, 64), torch.tensor([0, 4, 2])
        weights = {key: value.detach() for key, value in network.named_parameters()}

        def loss(weights: STATE, image: Tensor, label: Tensor) -> Tensor:
            logits = torch.func.functional_call(network, weights, (image[None],))
            return F.cross_entropy(logits, label[None])

        found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, images, labels)
        for place in range(3):
            own = loss(dict(network.named_parameters()), images[place], labels[place])
            expected = torch.autograd.grad(own, list(network.parameters()))
            for key, value in zip(weights, expected, strict=True):
                torch.testing.assert_close(found[key][place], value, atol=1e-6, rtol=1e-4)

    def test_a_deep_copy_stands_alone(self) -> None:
        network = tiny()
        images = torch.randn(1, 3, 64, 64)
        before = network(images)
        twin = copy.deepcopy(network)
        assert torch.equal(twin(images), before)
        with torch.no_grad():
            twin.features[0].weight.zero_()
        assert torch.equal(network(images), before)
        assert twin.configuration == network.configuration

    def test_pickle(self) -> None:
        network = tiny(ranks=(2, None, None), batch_norm=True, lrn_after=("relu1_1",))
        twin = pickle.loads(pickle.dumps(network))
        images = torch.randn(1, 3, 64, 64)
        assert twin.configuration == network.configuration
        assert torch.equal(twin(images), network(images))

    def test_a_map_of_the_grids_size_is_not_pooled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Adaptive pooling's backward is not deterministic on CUDA, and 224 pixels do not need it.
        def refuse(*_: object) -> Tensor:
            raise AssertionError("pooled")

        monkeypatch.setattr(F, "adaptive_avg_pool2d", refuse)
        tiny()(torch.randn(1, 3, 64, 64))
        tiny(head="dense")(torch.randn(1, 3, 96, 64))
        with pytest.raises(AssertionError, match="pooled"):
            tiny()(torch.randn(1, 3, 96, 64))

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    @pytest.mark.parametrize("head", ["fc", "dense", "pool"])
    def test_training_at_224_pixels_is_deterministic(
        self, head: str, device: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        network = tiny(grid=7, head=head).to(device)
        images = torch.randn(2, 3, 224, 224, device=device)
        torch.use_deterministic_algorithms(True)
        try:
            runs = [
                torch.autograd.grad(network(images).logsumexp(1).sum(), list(network.parameters()))
                for _ in range(2)
            ]
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
