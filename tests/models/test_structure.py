"""Networks changed by hand: what is saved, and what engines compute, is what they compute, or they are refused.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from vggkit.classifier import Classifier, load
from vggkit.engines.select import choose_engine
from vggkit.errors import BadConfiguration, BadInput, VggkitError
from vggkit.images.preprocessing import Preprocessing
from vggkit.inference.predict import predict
from vggkit.models.configuration import Configuration
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG
from vggkit.training.recipe import Recipe
from vggkit.training.train_state import TrainState
from vggkit.workflows.train import train

SMALL = Preprocessing(resize_pixels=32, crop_pixels=32)
BASE = Configuration(blocks=((4, 4), (6,)), batch_norm=True, grid=2, hidden=(10, 8), num_classes=3)
POOLED = Configuration(blocks=((4,), (6,)), head="pool", hidden=(), num_classes=3, dropout=0.0)
LOW_RANK = replace(BASE, batch_norm=False, ranks=(3, None, 2), lrn_after=("relu1_1",))
Edit = Callable[[VGG], object]


def create(configuration: Configuration = BASE) -> Classifier:
    classifier = Classifier.create(configuration, labels=["a", "b", "c"], preprocessing=SMALL, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # a signal that reaches the logits, and statistics that matter
        for key, value in classifier.network.state_dict().items():
            if value.is_floating_point():
                drawn = torch.randn(value.shape, generator=generator) * 0.5
                value.copy_(drawn.abs() + 0.5 if key.endswith("running_var") else drawn)
    return classifier


def compute(network: nn.Module, images: Tensor) -> Tensor:
    """In one layout: another one sums in another order."""
    with torch.no_grad():
        logits: Tensor = copy.deepcopy(network).eval().to(memory_format=torch.contiguous_format)(images)
    return logits


def images_for(network: nn.Module) -> Tensor:
    dtype = next(network.parameters()).dtype
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3)).to(dtype)


class Other(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values * 2


class Sharper(nn.ReLU):
    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values) - 0.1


class LowRank(nn.Linear):
    """As adapters are written: a layer of the same name with more parameters."""

    def __init__(self, reads: int, gives: int) -> None:
        super().__init__(reads, gives)
        self.lora_a, self.lora_b = nn.Parameter(torch.randn(2, reads)), nn.Parameter(torch.randn(gives, 2))

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows) + rows @ self.lora_a.T @ self.lora_b.T


def put(place: str, make: Callable[[], nn.Module | None]) -> Edit:
    """Another module at a place."""

    def edit(network: VGG) -> None:
        above, _, name = place.rpartition(".")
        setattr(network.get_submodule(above), name, make())

    return edit


def change(place: str, **values: object) -> Edit:
    """Attributes of a module."""

    def edit(network: VGG) -> None:
        for name, value in values.items():
            setattr(network.get_submodule(place), name, value)

    return edit


def on(place: str, do: Callable[[nn.Module], object]) -> Edit:
    def edit(network: VGG) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's of its own older functions
            do(network.get_submodule(place))

    return edit


def each_pool(make: Callable[[], nn.Module]) -> Edit:
    def edit(network: VGG) -> None:
        for index, module in enumerate(network.features):
            if isinstance(module, nn.MaxPool2d):
                network.features[index] = make()

    return edit


def each_dropout(chance: float) -> Edit:
    def edit(network: VGG) -> None:
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = chance

    return edit


def fill(key: str, value: float) -> Edit:
    def edit(network: VGG) -> None:
        network.state_dict()[key].view(-1)[1] = value

    return edit


def tie(network: VGG) -> None:
    network.features[1].weight = network.features[4].weight
    network.features[1].running_mean = network.features[4].running_mean


def hook(network: VGG) -> None:
    network.features[2].register_forward_hook(lambda module, args, output: output * 2)


def drop_weight(module: nn.Module) -> None:
    weight = module.weight.detach()
    del module.weight
    module.weight = weight  # a tensor, and no parameter


def leave_out(module: nn.Module) -> None:
    module.register_buffer("running_mean", module.running_mean.clone(), persistent=False)


def sparse(module: nn.Module) -> None:
    module.weight = nn.Parameter(module.weight.detach().to_sparse(), requires_grad=False)


def narrow_by_hand(network: VGG) -> None:
    """The first convolution and all that reads it lose a channel, as pruning does."""
    first, norm, second = network.features[0], network.features[1], network.features[3]
    first.weight, first.bias = nn.Parameter(first.weight[:3]), nn.Parameter(first.bias[:3])
    norm.weight, norm.bias = nn.Parameter(norm.weight[:3]), nn.Parameter(norm.bias[:3])
    norm.running_mean, norm.running_var = norm.running_mean[:3], norm.running_var[:3]
    second.weight = nn.Parameter(second.weight[:, :3])


# Of BASE: features 0 conv 1 bn 2 relu 3 conv 4 bn 5 relu 6 pool 7 conv 8 bn 9 relu 10 pool;
# classifier 0 fc 1 relu 2 dropout 3 fc 4 relu 5 dropout 6 fc, 24 numbers in.
FOLLOWED: dict[str, Edit] = {
    "nothing": lambda network: None,
    "a new last layer": put("classifier.6", lambda: nn.Linear(8, 3)),
    "other hidden widths": put(
        "classifier",
        lambda: nn.Sequential(
            nn.Linear(24, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 3)
        ),
    ),
    "one hidden layer": put(
        "classifier", lambda: nn.Sequential(nn.Linear(24, 7), nn.ReLU(), nn.Dropout(0.0), nn.Linear(7, 3))
    ),
    "no hidden layer": put("classifier", lambda: nn.Sequential(nn.Linear(24, 3))),
    "two factors": put("classifier.3", lambda: nn.Sequential(nn.Linear(10, 2, bias=False), nn.Linear(2, 8))),
    "all pools average": each_pool(lambda: nn.AvgPool2d(2)),
    "another dropout": each_dropout(0.2),
    "no dropout": each_dropout(0.0),
    "one dropout": change("classifier.2", p=0.1),
    "momentum": change("features.1", momentum=0.5),
    "ReLU not in place": put("features.2", nn.ReLU),
    "a pool written otherwise": put("features.6", lambda: nn.MaxPool2d((2, 2))),
    "a narrower layer": narrow_by_hand,
    "half": lambda network: network.half(),
    "double": lambda network: network.double(),
    "bfloat16": lambda network: network.to(torch.bfloat16),
    "channels last": lambda network: network.to(memory_format=torch.channels_last),
    "tied": tie,
    "frozen": lambda network: network.requires_grad_(False),
    "an attribute": lambda network: setattr(network, "note", "mine"),
    "evaluation": lambda network: network.eval(),
}
REFUSED: dict[str, tuple[Edit, str]] = {
    "AvgPool for one MaxPool": (put("features.6", lambda: nn.AvgPool2d(2)), r"features\.6 is AvgPool2d\("),
    "LeakyReLU": (put("features.2", lambda: nn.LeakyReLU(0.2)), r"features\.2 is LeakyReLU\(.*ReLU belongs"),
    "SiLU": (put("classifier.1", nn.SiLU), r"classifier\.1 is SiLU"),
    "a class derived from ReLU": (put("features.5", Sharper), r"features\.5 is Sharper"),
    "Identity for a batch norm": (put("features.4", nn.Identity), r"features\.4 is Identity"),
    "Identity for dropout": (put("classifier.2", nn.Identity), r"classifier\.2 is Identity"),
    "no module": (put("features.2", lambda: None), r"features\.2 is None"),
    "an adapter": (put("classifier.3", lambda: LowRank(10, 8)), r"classifier\.3 is LowRank"),
    "more parameters": (
        on("classifier.3", lambda m: m.register_parameter("lora", nn.Parameter(torch.zeros(2)))),
        r"classifier\.3 has one more of its parameters: lora",
    ),
    "a quantised layer": (
        on("", put("classifier.3", lambda: torch.ao.nn.quantized.dynamic.Linear(10, 8))),
        r"classifier\.3 is DynamicQuantizedLinear",
    ),
    "a lazy layer": (put("classifier.3", lambda: nn.LazyLinear(8)), r"classifier\.3 is LazyLinear"),
    "padding": (change("features.0", padding=(0, 0)), r"features\.0 \(Conv2d\) has padding=\(0, 0\)"),
    "stride": (put("features.3", lambda: nn.Conv2d(4, 4, 3, 2, 1)), r"features\.3 .*stride=\(2, 2\)"),
    "dilation": (put("features.3", lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2)), r"features\.3 .*padding"),
    "groups": (put("features.3", lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2)), r"features\.3 .*groups=2"),
    "reflection": (
        put("features.3", lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
        r"padding_mode='reflect'",
    ),
    "a larger kernel": (put("features.3", lambda: nn.Conv2d(4, 4, 5, padding=2)), r"kernel_size=\(5, 5\)"),
    "no bias": (
        put("features.3", lambda: nn.Conv2d(4, 4, 3, padding=1, bias=False)),
        r"none of its parameters: bias",
    ),
    "eps": (change("features.1", eps=1e-3), r"features\.1 \(BatchNorm2d\) has eps=0\.001 in place of 1e-05"),
    "a norm without statistics": (
        put("features.1", lambda: nn.BatchNorm2d(4, track_running_stats=False)),
        r"features\.1",
    ),
    "a larger pool": (put("features.6", lambda: nn.MaxPool2d(3, 2, 1)), r"features\.6 .*kernel_size=3"),
    "ceil mode": (change("features.6", ceil_mode=True), r"ceil_mode=True"),
    "a width that does not fit": (
        put("classifier.3", lambda: nn.Linear(9, 8)),
        r"classifier\.3\.weight has the shape",
    ),
    "one channel": (put("features.0", lambda: nn.Conv2d(1, 4, 3, padding=1)), r"features\.0\.weight.*in_channels="),
    "a head in another order": (
        put("classifier", lambda: nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))),
        r"nn\.Sequential\(nn\.Linear\(24, 16\), nn\.ReLU\(\), nn\.Dropout\(0\), nn\.Linear\(16, 3\)\)",
    ),
    "dropout first": (
        put("classifier", lambda: nn.Sequential(nn.Dropout(0.3), nn.Linear(24, 3))),
        r"classifier is Dropout, Linear",
    ),
    "a norm in the head": (
        put("classifier", lambda: nn.Sequential(nn.Linear(24, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3))),
        r"classifier\.1 is BatchNorm1d",
    ),
    "a layer for a head": (put("classifier", lambda: nn.Linear(24, 3)), r"classifier is Linear.*nn\.Sequential"),
    "another module for a head": (put("classifier", Other), r"classifier is Other"),
    "no head": (put("classifier", lambda: None), r"classifier is None"),
    "an empty head": (put("classifier", nn.Sequential), r"classifier is empty"),
    "a shorter trunk": (
        lambda network: setattr(network, "features", network.features[:7]),
        r"features has 7 layers",
    ),
    "one more layer": (lambda network: network.features.append(Other()), r"features has 12 layers"),
    "one more module": (
        lambda network: setattr(network, "extra", nn.Linear(2, 2)),
        r"one more of its modules: extra",
    ),
    "one more buffer": (lambda network: network.register_buffer("mean", torch.zeros(3)), r"its buffers: mean"),
    "a module fewer": (lambda network: delattr(network, "classifier"), r"none of its modules: classifier"),
    "a hook": (hook, r"features\.2 has a forward hook.*handle\.remove"),
    "a hook of the network": (
        lambda network: network.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
        r"the network has a forward pre hook",
    ),
    "a hook of what is written": (
        lambda network: network.features.register_state_dict_post_hook(lambda *args: None),
        r"features has a state dict hook",
    ),
    "forward replaced": (
        lambda network: setattr(network, "forward", lambda images: torch.zeros(len(images), 3)),
        r"the network has its forward replaced",
    ),
    "a layer's forward replaced": (
        change("features.5", forward=lambda maps: maps),
        r"del network\.features\[5\]\.forward",
    ),
    "weight_norm": (
        on("classifier.3", parametrizations.weight_norm),
        r"remove_parametrizations\(network\.classifier\[3\]",
    ),
    "spectral_norm": (on("features.3", parametrizations.spectral_norm), r"remove_parametrizations"),
    "the older weight_norm": (
        on("features.3", nn.utils.weight_norm),
        r"remove_weight_norm\(network\.features\[3\]\)",
    ),
    "the older spectral_norm": (on("features.3", nn.utils.spectral_norm), r"remove_spectral_norm"),
    "pruned": (
        on("features.3", lambda module: prune.l1_unstructured(module, "weight", amount=0.5)),
        r"prune\.remove\(network\.features\[3\], 'weight'\)",
    ),
    "a weight that is no parameter": (
        on("features.3", drop_weight),
        r"features\.3 has none of its parameters: weight",
    ),
    "a buffer that is not saved": (on("features.1", leave_out), r"running_mean"),
    "a sparse matrix": (on("classifier.3", sparse), r"classifier\.3\.weight is no ordinary tensor"),
}
BAD_VALUES: dict[str, tuple[Edit, str]] = {
    "NaN": (fill("classifier.6.weight", float("nan")), r"classifier\.6\.weight holds values that are not finite"),
    "infinity": (fill("features.0.bias", float("inf")), r"features\.0\.bias holds values"),
    "a statistic": (fill("features.1.running_var", float("-inf")), r"features\.1\.running_var"),
    "no values": (lambda network: network.to("meta"), r"has a shape and no values"),
    "several types": (lambda network: network.features[3].half(), r"features\.3\.weight torch\.float16"),
    "whole numbers": (
        on(
            "classifier.3",
            lambda m: setattr(m, "weight", nn.Parameter(m.weight.to(torch.int8), requires_grad=False)),
        ),
        r"classifier\.3\.weight is of type torch\.int8",
    ),
}


@pytest.mark.parametrize("edit", FOLLOWED.values(), ids=FOLLOWED.keys())
def test_what_a_configuration_can_say_is_saved_as_it_is(edit: Edit, tmp_path: Path) -> None:
    classifier = create()
    edit(classifier.network)
    expected = compute(classifier.network, images_for(classifier.network))
    assert expected.float().std() > 0.01
    classifier.save(tmp_path / "x.safetensors")
    found = load(tmp_path / "x.safetensors")
    assert torch.equal(compute(found.network, images_for(found.network)), expected)
    assert found.configuration == classifier.configuration == classifier.network.configuration
    assert found.configuration.state_shapes() == {k: tuple(v.shape) for k, v in found.network.state_dict().items()}


@pytest.mark.parametrize(("edit", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_none_can_say_is_refused_by_name_everywhere(edit: Edit, message: str, tmp_path: Path) -> None:
    classifier = create()
    edit(classifier.network)
    engines = ("pytorch", "openvino", "onnx")
    for ask in (
        lambda: classifier.save(tmp_path / "x.safetensors"),
        lambda: classifier.configuration,
        lambda: Classifier(classifier.network, labels=["a", "b", "c"], preprocessing=SMALL),
        lambda: classifier.push_to_hub("me/mine"),
        lambda: predict(classifier, image(tmp_path)),
        *(lambda engine=engine: choose_engine(classifier.network, engine=engine) for engine in engines),
        lambda: choose_engine(classifier.network, engine="pytorch", precision="bf16"),
    ):
        with pytest.raises(BadConfiguration, match=message):
            ask()
    assert not (tmp_path / "x.safetensors").exists()
    assert "Classifier(" in repr(classifier)


@pytest.mark.parametrize(("edit", "message"), BAD_VALUES.values(), ids=BAD_VALUES.keys())
def test_values_that_no_file_should_hold_are_refused_by_name(edit: Edit, message: str, tmp_path: Path) -> None:
    classifier = create()
    classifier.save(tmp_path / "x.safetensors")
    before = (tmp_path / "x.safetensors").read_bytes()
    edit(classifier.network)
    with pytest.raises(BadInput, match=message):
        classifier.save(tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").read_bytes() == before


EDITS = [
    *FOLLOWED.values(),
    *(edit for edit, _ in REFUSED.values()),
    *(edit for edit, _ in BAD_VALUES.values()),
    put("classifier.0", lambda: nn.Linear(24, 10)),
    put("features.7", lambda: nn.Conv2d(4, 6, 3, padding=1)),
    put("features.7", lambda: nn.Conv2d(4, 9, 3, padding=1)),
    put("features.8", lambda: nn.BatchNorm2d(6, eps=1e-5)),
]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(EDITS), min_size=2, max_size=4), st.sampled_from([BASE, POOLED, LOW_RANK]))
def test_saving_refuses_or_keeps_the_function(
    tmp_path: Path, edits: Sequence[Edit], configuration: Configuration
) -> None:
    classifier = create(configuration)
    for edit in edits:
        try:
            edit(classifier.network)
        except Exception:
            return
    try:
        expected = compute(classifier.network, images_for(classifier.network))
    except Exception:
        expected = None
    try:
        classifier.save(tmp_path / "x.safetensors")
    except VggkitError:
        return
    assert expected is not None
    found = load(tmp_path / "x.safetensors")
    assert torch.equal(compute(found.network, images_for(found.network)), expected)


def image(folder: Path) -> Path:
    from PIL import Image

    path = folder / "p.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("engine", ["pytorch", "openvino", "onnx"])
@pytest.mark.parametrize(
    "name", ["one hidden layer", "two factors", "all pools average", "a narrower layer", "tied"]
)
def test_engines_compute_a_changed_network(engine: str, name: str) -> None:
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
    classifier = create()
    FOLLOWED[name](classifier.network)
    images = images_for(classifier.network)
    found = choose_engine(classifier.network, "cpu", engine=engine, precision="fp32", output=["logits", "pool1"])
    logits, maps = found.compute(images.numpy()).values()
    expected = compute(classifier.network, images)
    torch.testing.assert_close(
        torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )
    torch.testing.assert_close(
        torch.from_numpy(maps), compute(classifier.network.features[:7], images), rtol=1e-4, atol=1e-4
    )


def test_reading_a_configuration_draws_nothing() -> None:
    network = create().network
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    _ = network.configuration
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("configuration", [BASE, POOLED, LOW_RANK, configure("vgg19_bn", until="pool2")])
def test_an_unchanged_network_is_what_it_was_built_from(configuration: Configuration) -> None:
    for head in {configuration.head, "dense" if configuration.head == "fc" else "pool"}:
        built = replace(configuration, head=head)
        with torch.device("meta"):
            assert VGG(built).configuration == built


def test_the_habit_of_another_last_layer() -> None:
    with torch.device("meta"):
        network = VGG("vgg11")
        network.classifier[6] = nn.Linear(4096, 5)
    assert network.configuration == configure("vgg11", num_classes=5)
    classifier = Classifier(network, labels=list("abcde"), preprocessing=Preprocessing())
    assert classifier.configuration.num_classes == 5


def test_other_classes_ask_for_labels_with_a_line_that_works(tmp_path: Path) -> None:
    clf = create()
    clf.calibrate(temperature=2.0, about={})
    clf.network.classifier[6] = nn.Linear(8, 5)
    with pytest.raises(
        BadConfiguration, match=r"5 classes now, and there are 3 labels.*Classifier\(clf\.network"
    ) as e:
        clf.save(tmp_path / "x.safetensors")
    assert clf.labels == ("a", "b", "c")
    line = str(e.value).split("clf = ")[1].replace("[…]", "list('vwxyz')")
    again = eval(line, {"vggkit": __import__("vggkit"), "clf": clf})
    again.save(tmp_path / "x.safetensors")
    found = load(tmp_path / "x.safetensors")
    assert (found.labels, found.temperature) == (tuple("vwxyz"), 1.0)
    assert torch.equal(
        compute(found.network, images_for(found.network)), compute(clf.network, images_for(clf.network))
    )


def test_what_held_of_other_weights_leaves_with_their_widths() -> None:
    classifier = create()
    classifier.calibrate(temperature=2.0, threshold=0.5, about={})
    classifier.keep_ranges({"images": (-1, 1)}, about={})
    each_dropout(0.1)(classifier.network)
    assert (classifier.card.temperature, classifier.card.activation_ranges) == (2.0, {"images": (-1.0, 1.0)})
    FOLLOWED["one hidden layer"](classifier.network)
    card = classifier.card
    assert (card.temperature, card.threshold, card.activation_ranges, card.configuration.hidden) == (
        1.0,
        0.0,
        {},
        (7,),
    )


def test_wrapped_networks_are_refused_at_the_door() -> None:
    classifier = create()
    network = classifier.network
    compiled = nn.Module()  # as torch.compile gives it
    compiled._orig_mod = network
    wrapped = (nn.DataParallel(network), compiled, torchvision.models.alexnet)
    for other, hint in zip(wrapped, (r"its \.module", r"its \._orig_mod", "got function"), strict=True):
        with pytest.raises(BadConfiguration, match=hint):
            classifier.network = other
        with pytest.raises(BadConfiguration, match=hint):
            Classifier(other, labels=["a"], preprocessing=SMALL)
    assert classifier.network is network
    classifier.network = create(POOLED).network
    assert classifier.configuration == POOLED


def test_a_derived_class_may_add_to_a_vgg_and_not_change_it() -> None:
    class Named(VGG):
        def name(self) -> str:
            return "mine"

    class Doubled(VGG):
        def forward(self, images: Tensor) -> Tensor:
            return 2 * super().forward(images)

    assert Named(BASE).configuration == BASE
    with pytest.raises(BadConfiguration, match="Doubled has a forward of its own"):
        _ = Doubled(BASE).configuration


def test_training_refuses_what_it_could_not_save(photos: Path, tmp_path: Path) -> None:
    classifier = Classifier(create().network, labels=["across", "down", "red"], preprocessing=SMALL)
    classifier.network.features[2] = nn.LeakyReLU()
    with pytest.raises(BadConfiguration, match=r"features\.2 is LeakyReLU"):
        train(photos, model=classifier, recipe=Recipe(epochs=1), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_changed_network_learns() -> None:
    network = create().network
    FOLLOWED["one hidden layer"](network)
    before = copy.deepcopy(network.state_dict())
    recipe = Recipe(trainable="all", batch_size=3, learning_rate=0.1, precision="fp32", weight_decay=0.0)
    learner = TrainState(network, recipe, device=torch.device("cpu"))
    learner.start_epoch(1)
    learner.compute(images_for(network), torch.tensor([0, 1, 2]), draw=0)
    assert learner.step(0.1, number=0)
    moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert {"features.0.weight", "classifier.0.weight", "classifier.3.weight"} <= moved


def test_half_a_network_loads_back_and_starts_others_in_float32(tmp_path: Path) -> None:
    classifier = create()
    whole = compute(classifier.network, images_for(classifier.network))
    classifier.network.half()
    classifier.save(tmp_path / "x.safetensors")
    assert {value.dtype for value in load(tmp_path / "x.safetensors").network.parameters()} == {torch.float16}
    again = Classifier.create(BASE, labels=["a", "b", "c"], weights=tmp_path / "x.safetensors", preprocessing=SMALL)
    assert {value.dtype for value in again.network.parameters()} == {torch.float32}
    torch.testing.assert_close(compute(again.network, images_for(again.network)), whole, rtol=0.02, atol=0.1)


def test_tied_parameters_are_written_in_full(tmp_path: Path) -> None:
    classifier = create()
    tie(classifier.network)
    classifier.save(tmp_path / "x.safetensors")
    state = load(tmp_path / "x.safetensors").network.state_dict()
    assert torch.equal(state["features.1.weight"], state["features.4.weight"])
    assert classifier.network.features[1].weight is classifier.network.features[4].weight


@pytest.mark.parametrize("value", [float("nan"), {1}, Path("x"), np.zeros(3), "\udc80"], ids=repr)
def test_provenance_that_no_file_can_hold_is_refused(value: object, tmp_path: Path) -> None:
    classifier = create()
    before = classifier.provenance
    with pytest.raises(BadConfiguration, match="JSON"):
        classifier.save(tmp_path / "x.safetensors", provenance={"x": value})
    assert classifier.provenance == before
    assert not list(tmp_path.iterdir())
