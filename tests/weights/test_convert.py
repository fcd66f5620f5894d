"""Conversion between dialects, with the real peers on random weights."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import vggkit as vk
from vggkit.classifier import Classifier
from vggkit.engines.activation_ranges import measure_ranges
from vggkit.engines.openvino import OpenVINOEngine
from vggkit.errors import BadCheckpoint, BadConfiguration, BadOutput, UnknownName
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG
from vggkit.weights import convert as conversion
from vggkit.weights.canonical import CanonicalWeights, build_network
from vggkit.weights.convert import convert
from vggkit.weights.formats.detect import open_weights
from vggkit.weights.identify import identify, identify_file
from vggkit.weights.input_conventions import CONVENTIONS, turn_convention

SUFFIX = {"torchvision": ".pth", "timm": ".safetensors", "keras": ".weights.h5", "caffe": ".npz"}
# VGG11's shape with few channels; the grid is not 1, so that the order of the map matters.
SLIM = replace(
    configure("vgg11", num_classes=5),
    blocks=((6,), (8,), (8, 8), (12, 12), (12, 10)),
    hidden=(16, 14),
    grid=2,
)


def save(network, path):
    for name, value in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value)  # zeros would hide what is confused
    torch.save(network.state_dict(), path)
    return path


def read_back(path):
    with open_weights(path) as file:
        return build_network(file, identify_file(file))


@pytest.mark.sweep(5)
@pytest.mark.parametrize("to", ["torchvision", "timm", "keras", "caffe", "blocks", "explicit"])
@pytest.mark.parametrize("grid", [7, 1, 2])
def test_there_and_back_bit_for_bit(tmp_path, to, grid):
    configuration = replace(SLIM, grid=grid)
    network = VGG(configuration)
    source = save(network, tmp_path / "a.pth")
    there = convert(source, tmp_path / f"b{SUFFIX.get(to, '.safetensors')}", to=to)
    assert (there.difference, there.compared, there.preprocessing) == (0, "logits", None)
    assert identify(there.target).dialect == to
    assert identify(there.target).configuration == configuration
    back = convert(there.target, tmp_path / "c.safetensors", to="torchvision")
    state = safetensors.torch.load_file(back.target)
    assert list(network.state_dict()) == sorted(state, key=list(network.state_dict()).index)
    for key, value in network.state_dict().items():
        assert torch.equal(state[key], value), key


@pytest.mark.parametrize("suffix", [".h5", ".npz", ".weights.h5"])
def test_each_of_keras_files(tmp_path, suffix):
    source = save(VGG(SLIM), tmp_path / "a.pth")
    done = convert(source, tmp_path / f"b{suffix}", to="keras")
    assert identify(done.target).dialect == "keras"
    assert done.difference == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("to", ["timm", "keras", "caffe", "explicit"])
def test_other_types(tmp_path, dtype, to):
    network = VGG(SLIM).to(dtype)
    source = save(network, tmp_path / "a.pth")
    done = convert(source, tmp_path / f"b{SUFFIX.get(to, '.pth')}", to=to, input_convention="imagenet")
    assert done.difference <= done.tolerance
    # Neither NumPy nor HDF5 has bfloat16.
    kept = "float32" if dtype == torch.bfloat16 and to in ("keras", "caffe") else str(dtype).removeprefix("torch.")
    assert identify(done.target).dtype == kept


def test_batch_norm_low_ranks_and_pools(tmp_path, tiny):
    for number, configuration in enumerate(
        (tiny, replace(SLIM, ranks=(4, None, 2)), replace(SLIM, batch_norm=True))
    ):
        network = VGG(configuration)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.running_mean)
        source = save(network, tmp_path / f"{number}.pth")
        for to in ("blocks", "explicit"):
            done = convert(source, tmp_path / f"{number}-{to}.safetensors", to=to)
            again = convert(done.target, tmp_path / f"{number}-{to}-back.pth", to="torchvision")
            state = torch.load(again.target, weights_only=True)
            assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
        with pytest.raises(BadConfiguration, match=r"pool head|low-rank|batch norm"):
            convert(source, tmp_path / "no.weights.h5", to="keras")
    assert not (tmp_path / "no.weights.h5").exists()


# The input convention


def test_the_real_weights_keep_their_activations_at_the_borders(shared, tmp_path):
    source = shared / "weights" / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth"
    with pytest.raises(BadCheckpoint, match="allow_partial"):
        convert(source, tmp_path / "x.safetensors", to="torchvision")
    done = convert(source, tmp_path / "x.safetensors", to="torchvision", allow_partial=True)
    assert len(done.dropped) == 8
    assert (done.turned_input, done.compared) == (True, "maps of relu3_4")
    assert done.preprocessing == CONVENTIONS["caffe-unit"]
    found = identify(done.target)
    assert (found.preprocessing, found.evidence) == (CONVENTIONS["caffe-unit"], "metadata")
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    maps = {}
    for path, preprocessing in ((source, CONVENTIONS["caffe"]), (done.target, found.preprocessing)):
        network = read_back(path)
        trunk = network.features[:12]  # up to relu3_1
        maps[path] = trunk(torch.from_numpy(preprocessing.normalize(pixels))[None])
    border = torch.ones(16, 16, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    difference = (maps[source] - maps[done.target]).abs()
    assert float(maps[source].abs().max()) > 100
    assert float(difference[..., border].max() / maps[source].abs().max()) < 1e-6
    assert float(difference.max() / maps[source].abs().max()) < 1e-6
    # Caffe's mean replaced by ImageNet's with the bias corrected, as is often done, is wrong there.
    wrong = read_back(done.target)
    other = CONVENTIONS["imagenet"]
    shift = torch.tensor(other.mean) - torch.tensor(CONVENTIONS["caffe-unit"].mean)
    first = wrong.features[0]
    first.bias += (first.weight.sum((2, 3)) * shift).sum(1)
    given = wrong.features[:12](torch.from_numpy(replace(other, std=(1.0,) * 3).normalize(pixels))[None])
    assert float((maps[source] - given).abs()[..., border].max()) > 1
    # And back to Caffe's: the same numbers but for the rounding of a multiplication there and back.
    back = convert(done.target, tmp_path / "y.npz", to="caffe", allow_partial=True)
    assert back.preprocessing == CONVENTIONS["caffe"]
    assert identify(back.target).preprocessing == CONVENTIONS["caffe"]
    state = torch.load(source, weights_only=True)
    given = torch.from_numpy(np.load(back.target)["conv1_1/weights"])
    torch.testing.assert_close(given, state["features.0.weight"], rtol=3e-7, atol=0)


@pytest.mark.parametrize("name", list(CONVENTIONS))
@pytest.mark.parametrize("caffe", [False, True])
def test_turning_a_convention_changes_no_sum(name, caffe):
    fed = CONVENTIONS[name]
    turned, factors = turn_convention(fed, caffe=caffe)
    assert turned.channel_order == ("BGR" if caffe else "RGB")
    assert turned.full_value == (255 if caffe else 1)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    before, after = fed.normalize(pixels), turned.normalize(pixels)
    if fed.channel_order != turned.channel_order:
        before = before[::-1]
    np.testing.assert_allclose(after * np.array(factors)[:, None, None], before, rtol=1e-5, atol=1e-5)
    again, _ = turn_convention(turned, caffe=caffe)
    assert again == turned
    # What means zero before means zero after: padding stays what it was.
    np.testing.assert_allclose(
        np.array(turned.mean) / turned.full_value,
        np.array(fed.mean if fed.channel_order == turned.channel_order else fed.mean[::-1]) / fed.full_value,
    )


def test_grey_images_are_scaled_and_have_no_order(tmp_path):
    source = save(VGG(replace(SLIM, in_channels=1)), tmp_path / "a.pth")
    grey = Preprocessing(channel_order="L", mean=(0.449,), std=(0.226,))
    done = convert(source, tmp_path / "b.npz", to="caffe", input_convention=grey)
    assert (done.preprocessing.channel_order, done.preprocessing.full_value) == ("L", 255)
    with pytest.raises(BadConfiguration, match="1 channels"):
        convert(source, tmp_path / "b.npz", to="caffe", input_convention="imagenet")


def test_unknown_stays_unknown_and_untouched(tmp_path):
    source = save(VGG(SLIM), tmp_path / "a.pth")
    done = convert(source, tmp_path / "b.npz", to="caffe")
    assert (done.preprocessing, done.turned_input) == (None, False)
    assert "unknown" in str(done)
    kept = convert(source, tmp_path / "c.npz", to="caffe", input_convention="imagenet", keep_input=True)
    assert (kept.preprocessing, kept.turned_input) == (CONVENTIONS["imagenet"], False)
    with pytest.raises(UnknownName, match="caffe"):
        convert(source, tmp_path / "b.npz", to="caffe", input_convention="cafe")
    json.dumps(done.to_dict())
    json.dumps(kept.to_dict())


def test_what_the_file_says_is_not_overruled(shared, tmp_path):
    source = shared / "weights" / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth"
    with pytest.raises(BadConfiguration, match="fingerprint says BGR"):
        convert(source, tmp_path / "x.pth", to="timm", allow_partial=True, input_convention="imagenet")


def test_a_classifier_stays_one(tmp_path):
    labels = ["a", "b", "c", "d", "é"]
    Classifier.create(SLIM, labels=labels).save(tmp_path / "a.safetensors")
    there = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="explicit")
    assert there.preprocessing == CONVENTIONS["imagenet"]
    with safetensors.safe_open(there.target, "pt") as file:
        assert json.loads(file.metadata()["vggkit.labels"]) == labels
    same = convert(tmp_path / "a.safetensors", tmp_path / "c.safetensors", to="torchvision")
    found = vk.load(same.target)
    assert found.labels == tuple(labels)
    assert found.provenance["converted"]["file"] == "a.safetensors"


# What holds of the input alone


def keep_measured(network, preprocessing, path):
    """A Classifier's file with ranges for int8, and images (N, H, W, 3) that they were measured on."""
    pytest.importorskip("openvino")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    classifier = Classifier(network, labels=list("abcde"), preprocessing=preprocessing, temperature=1.5)
    activation_ranges = measure_ranges(network, [np.stack([preprocessing.normalize(each) for each in pixels])])
    classifier.keep_ranges(activation_ranges, about={"pictures": 16})
    classifier.save(path, provenance={"metrics": {"top1": 0.5}})
    return pixels


def answer(path, pixels, precision):
    classifier = vk.load(path)
    activation_ranges = classifier.activation_ranges if precision == "int8" else None
    engine = OpenVINOEngine(classifier.network, precision=precision, activation_ranges=activation_ranges)
    return engine.compute(np.stack([classifier.preprocessing.normalize(each) for each in pixels]))["logits"]


@pytest.mark.sweep(3)
@pytest.mark.parametrize("convention", ["caffe", "caffe-rgb", "imagenet", "caffe-unit"])
def test_ranges_are_turned_with_the_input(tmp_path, convention):
    """One factor for all channels turns them exactly: int8 gives what it gave before."""
    torch.manual_seed(1)
    fed = replace(CONVENTIONS[convention], resize_pixels=32, crop_pixels=32)
    network = VGG(replace(SLIM, hidden=(), head="pool", grid=7)).eval()
    if fed.full_value == 255:
        with torch.no_grad():
            network.features[0].weight /= 255
    pixels = keep_measured(network, fed, tmp_path / "a.safetensors")
    done = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="torchvision")
    before, after = vk.load(tmp_path / "a.safetensors"), vk.load(done.target)
    low, high = after.activation_ranges["images"]
    scale = 255 if fed.full_value == 255 else 1
    assert (low * scale, high * scale) == pytest.approx(before.activation_ranges["images"])
    assert {**after.activation_ranges, "images": 0} == {**before.activation_ranges, "images": 0}
    assert (after.temperature, after.provenance["metrics"]) == (1.5, {"top1": 0.5})
    assert done.notes == (() if scale == 1 else done.notes[:1])
    assert ("ranges for int8" in str(done)) is (scale == 255)
    expected = answer(tmp_path / "a.safetensors", pixels, "int8")
    np.testing.assert_allclose(answer(done.target, pixels, "int8"), expected, atol=0.02 * np.abs(expected).max())
    whole = answer(done.target, pixels, "fp32")
    np.testing.assert_allclose(expected, whole, atol=0.1 * np.abs(whole).max())
    kept = convert(tmp_path / "a.safetensors", tmp_path / "c.safetensors", to="torchvision", keep_input=True)
    assert vk.load(kept.target).activation_ranges == before.activation_ranges


def test_ranges_that_cannot_be_turned_are_left_behind_and_said(tmp_path):
    """Channels divided by deviations of their own have no factor in common."""
    fed = Preprocessing(
        channel_order="BGR",
        full_value=255.0,
        mean=(104.0, 117.0, 124.0),
        std=(57.0, 58.0, 60.0),
        resize_pixels=32,
        crop_pixels=32,
    )
    keep_measured(VGG(replace(SLIM, hidden=(), head="pool", grid=7)), fed, tmp_path / "a.safetensors")
    done = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="torchvision")
    after = vk.load(done.target)
    assert after.activation_ranges == {}
    assert "ranges" not in after.provenance
    assert "dropped" in str(done)
    assert "--keep-ranges" in str(done)


def test_what_a_classifier_leaves_behind_is_said(tmp_path):
    fed = replace(CONVENTIONS["imagenet"], resize_pixels=32, crop_pixels=32)
    keep_measured(VGG(replace(SLIM, batch_norm=False)), fed, tmp_path / "a.safetensors")
    done = convert(tmp_path / "a.safetensors", tmp_path / "b.pth", to="timm")
    assert "dropped: temperature, ranges for int8, provenance" in str(done)
    assert json.dumps(done.to_dict())
    done = convert(tmp_path / "a.safetensors", tmp_path / "b.npz", to="caffe")
    assert "dropped: labels, temperature, ranges for int8, provenance" in str(done)
    # A .pth keeps labels and input where torch keeps what belongs to a state dict.
    with open_weights(tmp_path / "b.pth") as file:
        found = identify_file(file)
    assert (found.labels, found.identification.preprocessing) == (tuple("abcde"), fed)
    assert (found.identification.evidence, found.identification.configuration) == ("metadata", SLIM)
    state = torch.load(tmp_path / "b.pth", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())


# Failing


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    source = save(VGG(SLIM), tmp_path / "a.pth")
    before = sorted(tmp_path.iterdir())

    def refused(error, match, target="b.pth", **options):
        with pytest.raises(error, match=match):
            convert(source, tmp_path / target, **({"to": "timm"} | options))
        assert sorted(tmp_path.iterdir()) == before

    refused(UnknownName, "torchvision", to="tochvision")
    refused(BadConfiguration, r"\.safetensors or \.pth", "b.h5")
    refused(BadConfiguration, r"\.npz", to="caffe")
    refused(BadOutput, "source itself", "a.pth")
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "to_layout", lambda value, place: torch.zeros(place.shape_of(value.shape)))
        refused(BadOutput, "differ from the source")
    with monkeypatch.context() as patch:

        def fill(*_):
            raise OSError(28, "No space left on device")

        patch.setattr(os, "fsync", fill)
        refused(BadOutput, "No space left")
    source.write_bytes(source.read_bytes()[:-100])
    refused(BadCheckpoint, r"a\.pth")
    torch.save({"fc.weight": torch.zeros(3, 3)}, source)
    refused(BadCheckpoint, "not a VGG")
    state = VGG(SLIM).state_dict()
    torch.save({key: value for key, value in state.items() if key != "features.8.bias"}, source)
    refused(BadCheckpoint, r"features\.8\.bias")
    refused(BadCheckpoint, r"features\.8\.bias", allow_partial=True)
    torch.save(state | {"features.8.bias": state["features.8.bias"] * float("nan")}, source)
    refused(BadCheckpoint, "NaN")


def test_an_older_target_survives_a_failure(tmp_path):
    source = save(VGG(SLIM), tmp_path / "a.pth")
    (tmp_path / "b.pth").write_text("precious")
    torch.save({"fc.weight": torch.zeros(3, 3)}, source)
    with pytest.raises(BadCheckpoint):
        convert(source, tmp_path / "b.pth", to="timm")
    assert (tmp_path / "b.pth").read_text() == "precious"


MEASURE = """
import resource, sys, threading, time
from vggkit.weights.convert import convert
import torch
torch.set_num_threads(1)
source, small, target, to = sys.argv[1:]
def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))
convert(small, target, to=to)  # what torch takes for itself
peak, done = 0, False
start = anonymous()
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous() - start)
        time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
convert(source, target, to=to)
done = True; thread.join()
print(peak)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the kernel's own account of memory")
@pytest.mark.parametrize(
    ("to", "suffix"),
    [
        # The most: fc1 is copied into another order.
        pytest.param("keras", ".weights.h5", marks=pytest.mark.slow),
        pytest.param("timm", ".safetensors", marks=pytest.mark.slow),
        pytest.param("blocks", ".pth", marks=pytest.mark.slow),
    ],
)
def test_at_most_twice_the_file_in_memory(tmp_path, to, suffix):
    wide = replace(SLIM, blocks=((6,), (8,), (8, 8), (12, 12), (12, 256)), hidden=(3072, 4096), grid=7)
    with torch.device("meta"):
        network = VGG(wide)
    torch.save(
        {key: torch.zeros(value.shape) for key, value in network.state_dict().items()}, tmp_path / "wide.pth"
    )
    save(VGG(SLIM), tmp_path / "slim.pth")
    size = (tmp_path / "wide.pth").stat().st_size
    assert size > 200e6  # blocks of memory so large are given back at once
    command = [sys.executable, "-c", MEASURE]
    command += [str(tmp_path / name) for name in ("wide.pth", "slim.pth", f"out{suffix}")] + [to]
    found = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert found.returncode == 0, found.stderr
    print(f"{to}: {int(found.stdout) / size:.2f} times the file")
    assert int(found.stdout) < 2 * size


# The real peers


@pytest.fixture
def images():
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(3))


def logits(network, images):
    with torch.inference_mode():
        return network.eval()(images)


def check_timm_both_ways(build, configuration, folder, images):
    theirs = build()
    given = logits(theirs, images)
    torch.save({"state_dict": theirs.state_dict()}, folder / "timm.pth")
    from_them = convert(folder / "timm.pth", folder / "ours.safetensors", to="torchvision")
    assert (from_them.source.dialect, from_them.source.configuration) == ("timm", configuration)
    assert from_them.difference <= 1e-5
    ours = VGG(configuration)
    ours.load_state_dict(safetensors.torch.load_file(from_them.target))
    torch.testing.assert_close(logits(ours, images), given, rtol=0, atol=1e-5)
    convert(from_them.target, folder / "again.safetensors", to="timm")
    again = build()
    again.load_state_dict(safetensors.torch.load_file(folder / "again.safetensors"))
    assert torch.equal(logits(again, images), given)


@pytest.mark.parametrize("norm", [False, True])
def test_slim_timm_both_ways(tmp_path, images, norm):
    vgg = pytest.importorskip("timm").models.vgg
    # timm's hidden layers are 4096 wide, but for the ratio of the first.
    slim = replace(SLIM, hidden=(16, 4096), grid=7, batch_norm=norm)
    layers = [part for block in slim.blocks for part in (*block, "M")]
    options = {"norm_layer": torch.nn.BatchNorm2d} if norm else {}
    check_timm_both_ways(
        lambda: vgg.VGG(layers, num_classes=5, mlp_ratio=16 / 4096, **options), slim, tmp_path, images
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"]
)
def test_timm_both_ways(tmp_path, images, model):
    timm = pytest.importorskip("timm")
    check_timm_both_ways(
        lambda: timm.create_model(model, pretrained=False, num_classes=11),
        configure(model, num_classes=11),
        tmp_path,
        images,
    )


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vgg11_bn", "vgg16"])
def test_torchvision_bit_for_bit(tmp_path, images, model):
    models = pytest.importorskip("torchvision").models
    theirs = getattr(models, model)(num_classes=11)
    torch.save({"model": theirs.state_dict()}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors", to="explicit")
    convert(tmp_path / "b.safetensors", tmp_path / "c.pth", to="torchvision")
    again = getattr(models, model)(num_classes=11)
    again.load_state_dict(torch.load(tmp_path / "c.pth", weights_only=True))
    assert torch.equal(logits(again, images), logits(theirs, images))
    assert torch.equal(logits(read_back(tmp_path / "b.safetensors"), images), logits(theirs, images))


# Keras hands torch's tensors to NumPy in a way that NumPy 2 warns of.
keras_warns = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def import_keras():
    os.environ["KERAS_BACKEND"] = "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("keras")


def build_keras(keras, configuration, *, side=224, top=True):
    """A small VGG as Keras writes it, with the names of its own applications."""
    layers = keras.layers
    inputs = values = keras.Input((side, side, configuration.in_channels))
    for block, widths in enumerate(configuration.blocks, start=1):
        for position, width in enumerate(widths, start=1):
            name = f"block{block}_conv{position}"
            values = layers.Conv2D(width, 3, padding="same", activation="relu", name=name)(values)
        values = layers.MaxPooling2D(2, name=f"block{block}_pool")(values)
    values = layers.Flatten(name="flatten")(values) if top else values
    for position, width in enumerate(configuration.hidden if top else (), start=1):
        values = layers.Dense(width, activation="relu", name=f"fc{position}")(values)
    values = layers.Dense(configuration.num_classes, name="predictions")(values) if top else values
    model = keras.Model(inputs, values)
    draw_biases(model)
    return model


def draw_biases(model):
    random = np.random.default_rng(0)
    for weight in model.weights:
        if weight.ndim == 1:
            weight.assign(random.normal(0, 0.05, weight.shape).astype(np.float32))


def call(model, batch):
    with torch.inference_mode():
        return np.array(model(batch, training=False).detach().cpu())


def check_keras_both_ways(keras, model, build, configuration, folder, suffix):
    """From Keras' file to ours, and from ours to Keras' again, each fed images by its own preprocessing."""
    pixels = np.random.default_rng(5).integers(0, 256, (224, 224, 3), np.uint8)
    theirs = keras.applications.vgg16.preprocess_input(pixels[None].astype(np.float32))
    expected = call(model, theirs)
    source = folder / f"theirs{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(source) if suffix == ".keras" else model.save_weights(source)
    done = convert(source, folder / "ours.safetensors", to="torchvision", input_convention="caffe")
    assert done.source.dialect == "keras"
    assert done.source.configuration == configuration
    assert done.preprocessing == CONVENTIONS["caffe-unit"]
    with open_weights(done.target) as file:
        identified = identify_file(file)
        network = build_network(file, identified)
    fed = torch.from_numpy(identified.identification.preprocessing.normalize(pixels))[None]
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(logits(network, fed).numpy(), expected, rtol=0, atol=1e-4 * scale)
    del network
    target = folder / ("back.h5" if suffix == ".h5" else "back.weights.h5")
    back = convert(done.target, target, to="keras")
    assert back.preprocessing == CONVENTIONS["caffe"]
    again = build()
    again.load_weights(target)
    np.testing.assert_allclose(call(again, theirs), expected, rtol=0, atol=1e-4 * scale)


@keras_warns
@pytest.mark.parametrize("suffix", [".weights.h5", ".h5", ".keras"])
def test_small_keras_models_both_ways(tmp_path, suffix):
    keras = import_keras()
    # Twelve convolutions and more in a file without names: conv2d_10 stands before conv2d_2 by letter.
    slim = replace(
        configure("vgg16", num_classes=5),
        blocks=((6, 6), (8, 8), (8, 8, 8), (12, 12, 12), (12, 12, 10)),
        hidden=(16, 14),
    )
    build = lambda: build_keras(keras, slim)  # noqa: E731
    if suffix == ".h5":
        pytest.importorskip("h5py")
        model = build()
        (tmp_path / "x").mkdir()
        convert(save(VGG(slim), tmp_path / "x" / "a.pth"), tmp_path / "x" / "b.h5", to="keras")
        model.load_weights(tmp_path / "x" / "b.h5")
        pixels = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32)
        expected = logits(read_back(tmp_path / "x" / "a.pth"), torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
        np.testing.assert_allclose(call(model, pixels), expected, rtol=0, atol=1e-4)
        return
    check_keras_both_ways(keras, build(), build, slim, tmp_path, suffix)


@keras_warns
@pytest.mark.slow
@pytest.mark.parametrize("name", ["VGG16", "VGG19"])
@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_keras_applications_both_ways(tmp_path, name, suffix):
    keras = import_keras()
    build = lambda: getattr(keras.applications, name)(weights=None, classifier_activation=None)  # noqa: E731
    model = build()
    draw_biases(model)
    check_keras_both_ways(keras, model, build, configure(name.lower()), tmp_path, suffix)


@keras_warns
def test_keras_trunk_without_a_top(tmp_path):
    keras = import_keras()
    slim = replace(configure("vgg11"), blocks=SLIM.blocks)
    model = build_keras(keras, slim, side=32, top=False)
    model.save_weights(tmp_path / "a.weights.h5")
    found = identify(tmp_path / "a.weights.h5")
    assert (found.configuration.blocks, found.dialect, found.head) == (slim.blocks, "keras", None)
    with pytest.raises(BadCheckpoint, match="no head"):
        convert(found.path, tmp_path / "b.pth", to="timm", input_convention="caffe")
    done = convert(found.path, tmp_path / "b.pth", to="timm", input_convention="caffe", allow_partial=True)
    assert done.compared == "maps of pool5"
    convert(done.target, tmp_path / "c.weights.h5", to="keras", input_convention="caffe-unit", allow_partial=True)
    again = build_keras(keras, slim, side=32, top=False)
    again.load_weights(tmp_path / "c.weights.h5")
    for one, other in zip(model.weights, again.weights, strict=True):
        torch.testing.assert_close(one.value, other.value, rtol=1e-6, atol=0)


def test_canonical_weights_are_read_when_asked_for(tmp_path):
    source = save(VGG(SLIM), tmp_path / "a.pth")
    done = convert(source, tmp_path / "b.weights.h5", to="keras")
    with open_weights(done.target) as file:
        weights = CanonicalWeights(file, identify_file(file))
        assert set(weights) == set(SLIM.state_shapes())
        assert len(weights) == len(SLIM.state_shapes())
        assert "features.0.weight" in weights
        assert "features.1.weight" not in weights
        assert weights["classifier.0.weight"].shape == (16, 40)
