"""Every kind of network in every dialect and format: read back to the same logits, or refused in one sentence."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import vggkit as vk
from vggkit.classifier import Classifier
from vggkit.errors import VggkitError
from vggkit.models.configuration import Configuration
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG
from vggkit.weights.convert import convert
from vggkit.weights.identify import identify
from vggkit.weights.writers import SUFFIXES

NARROW = Configuration(
    blocks=((4,), (5,), (6, 6), (7, 7), (7, 5)), hidden=(9, 8), grid=2, num_classes=3, dropout=0.0
)
"""VGG11's shape."""
OURS = ("torchvision", "blocks", "explicit")
"""Dialects that hold every network."""
FORMS = [
    ("torchvision", ".safetensors"),
    ("torchvision", ".pth"),
    ("blocks", ".pth"),
    ("explicit", ".safetensors"),
    ("timm", ".pth"),
    *(("keras", suffix) for suffix in SUFFIXES["keras"]),
    ("caffe", ".npz"),
]


def networks():
    for until in ("conv1_1", "relu1_1", "pool1", "conv2_1", "relu2_1", "pool2", "conv3_2", "relu3_2", "pool3"):
        yield configure("vgg11", until=until, num_classes=3)
    for until in ("conv1_1", "bn1_1", "relu1_1", "pool1", "bn2_1"):
        yield configure("vgg11_bn", until=until, num_classes=3)
    for until in ("lrn1_1", "pool1", "relu2_1"):
        yield configure("vgg11_lrn", until=until, num_classes=3)
    yield configure("vgg16", until="relu1_2", num_classes=3, in_channels=1)
    for grid in (1, 2, 7):
        yield replace(NARROW, grid=grid)
    for hidden in ((), (8,), (9, 8, 7)):
        yield replace(NARROW, hidden=hidden)
        yield replace(NARROW, head="pool", hidden=hidden)
        yield replace(NARROW, head="pool", hidden=hidden, statistics="mean+std")
        yield replace(NARROW, head="pool", hidden=hidden, until="relu3_1")
        yield replace(NARROW, head="pool", hidden=hidden, until="pool4", statistics="mean+std")
    yield replace(NARROW, ranks=(4, None, 2))
    yield replace(NARROW, pooling="average")
    yield replace(NARROW, pooling="average", head="pool", hidden=(), until="relu2_1")
    yield replace(NARROW, head="dense")
    yield replace(NARROW, batch_norm=True)
    yield replace(NARROW, in_channels=1)
    yield replace(NARROW, lrn_after=("relu1_1",))
    yield replace(NARROW, lrn_after=("relu3_2", "relu5_2"))
    yield replace(NARROW, kernels=((3,), (3,), (3, 1), (3, 1), (3, 1)))
    yield replace(NARROW, kernels=((5,), (3,), (3, 3), (3, 3), (1, 7)))
    for blocks in (
        ((4,),),
        ((4, 5), (6,)),
        ((4,), (5,), (6,), (7,), (5,), (6,), (5,)),
        ((4, 4, 4), (5,), (6, 5, 4)),
    ):
        yield replace(NARROW, blocks=blocks)
        yield replace(NARROW, blocks=blocks, hidden=())
        yield replace(NARROW, blocks=blocks, head="pool", hidden=())


def build(configuration):
    torch.manual_seed(0)
    network = VGG(configuration)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
    return network.eval()


def logits(network):
    side = max(32, network.configuration.minimum_side * 2)
    shape = (2, network.configuration.in_channels, side, side)
    with torch.inference_mode():
        return network.eval()(torch.randn(shape, generator=torch.Generator().manual_seed(1)))


def load(path):
    """As `identify` says."""
    scope = {"vk": vk}
    exec(identify(path).load_line, scope)
    return scope["clf"].network


def check(network, path, target, to):
    """Converted and read back, or refused; True where it was converted."""
    done = refusal = None
    try:
        done = convert(path, target, to=to, keep_input=True)
    except VggkitError as problem:
        refusal = str(problem)
    if done is None:
        assert "\n" not in refusal
        assert not target.exists()
        return False
    expected, given = logits(network), logits(load(done.target))
    assert done.difference <= done.tolerance
    assert torch.allclose(expected, given, rtol=1e-4, atol=1e-4 * float(expected.abs().max())), str(done)
    return True


@pytest.mark.sweep(5)
@pytest.mark.parametrize(
    "configuration",
    [
        pytest.param(each, marks=pytest.mark.slow)
        if len(each.hidden) > 2 or (each.head == "pool" and each.hidden)
        else each
        for each in networks()
    ],
    ids=lambda c: f"{c.model}-{c.until}-{c.head}-{c.hidden}-{c.blocks[:2]}",
)
def test_every_dialect_and_format(tmp_path, configuration):
    network = build(configuration)
    preprocessing = vk.Preprocessing(resize_pixels=256, crop_pixels=256) if configuration.in_channels == 3 else None
    grey = vk.Preprocessing(channel_order="L", mean=(0.5,), std=(0.5,), resize_pixels=256, crop_pixels=256)
    path = tmp_path / "source.safetensors"
    Classifier(network, labels=["a", "b", "c"], preprocessing=preprocessing or grey).save(path)
    done = {form for form in FORMS if check(network, path, tmp_path / f"to-{form[0]}{form[1]}", form[0])}
    assert {form for form in FORMS if form[0] in OURS} <= done
    plain = configuration.head == "fc" and configuration.pooling == "max" and configuration.ranks is None
    plain = plain and not configuration.batch_norm and not configuration.lrn_after and configuration.kernels is None
    if plain:
        assert ("keras", ".h5") in done
        assert ("caffe", ".npz") in done
        assert ("keras", ".weights.h5") in done


@pytest.mark.parametrize("hidden", [(), (8,), (9, 8)])
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5", ".npz"])
def test_keras_files_are_recognized_without_what_we_state(tmp_path, hidden, suffix):
    """As Keras itself wrote them: with nothing but tensors."""
    h5py = pytest.importorskip("h5py")
    configuration = replace(NARROW, hidden=hidden)
    network = build(configuration)
    torch.save(network.state_dict(), tmp_path / "a.pth")
    done = convert(tmp_path / "a.pth", tmp_path / f"b{suffix}", to="keras")
    if suffix != ".npz":
        with h5py.File(done.target, "r+") as file:
            for name in [name for name in file.attrs if name.startswith("vggkit.")]:
                del file.attrs[name]
    found = identify(done.target)
    assert found.configuration == replace(configuration, dropout=0.5)
    assert found.complete
    assert torch.equal(logits(load(done.target)), logits(network))


@st.composite
def configurations(draw):
    depths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    blocks = tuple(tuple(draw(st.integers(2, 9)) for _ in range(depth)) for depth in depths)
    whole = Configuration(
        blocks=blocks,
        batch_norm=draw(st.booleans()),
        pooling=draw(st.sampled_from(["max", "max", "average"])),
        grid=draw(st.integers(1, 3)),
        hidden=tuple(draw(st.lists(st.integers(2, 9), max_size=3))),
        num_classes=draw(st.integers(1, 9)),
    )
    if draw(st.booleans()):
        return replace(whole, head=draw(st.sampled_from(["fc", "dense"])))
    return replace(
        whole,
        head="pool",
        until=draw(st.sampled_from([layer.name for layer in whole.trunk])),
        statistics=draw(st.sampled_from(["mean", "mean+std"])),
    )


@settings(max_examples=20)
@given(configurations(), st.sampled_from(FORMS))
def test_any_network(tmp_path_factory, configuration, form):
    to, suffix = form
    folder = tmp_path_factory.mktemp("any")
    network = build(configuration)
    path = folder / "source.pth"
    torch.save(network.state_dict(), path)
    assert torch.equal(logits(load(path)), logits(network))
    assert check(network, path, folder / f"target{suffix}", to) or to not in OURS
