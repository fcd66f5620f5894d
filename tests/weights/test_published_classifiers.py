"""A model's name is a model: `vk.load("vgg16")`, `vggkit predict vgg16 photo.jpg`, `VGG.from_pretrained("vgg16")`.

The published network is a small one in the place of vgg11, served by a host on 127.0.0.1.
"""

import hashlib
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vggkit as vk
from local_hosts import Host, running, whole
from vggkit.cli import main as cli
from vggkit.errors import BadCheckpoint, BadDownload, BadInput, UnknownName
from vggkit.models import configuration as configurations
from vggkit.models.configuration import Configuration
from vggkit.weights import published
from vggkit.weights.classifier_file import read_card
from vggkit.weights.dialects import map_keys, to_layout
from vggkit.weights.locate import locate_model
from vggkit.weights.published import find_published, imagenet_labels
from vggkit.weights.published_classifiers import is_model_name

SMALL = Configuration(blocks=((4,), (6,), (6, 6), (8, 8), (8, 8)), hidden=(10, 10), num_classes=1000)


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = vk.VGG(SMALL).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.01 * torch.randn_like(parameter))  # biases start at zero
    return network


@pytest.fixture(autouse=True)
def host(monkeypatch, tmp_path, network):
    """The small network as vgg11, on a host of its own; nothing of this machine's caches."""
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    content = buffer.getvalue()
    digits = hashlib.sha256(content).hexdigest()[:8]
    record = replace(
        find_published("vgg11"),
        digest_prefix=digits,
        url=f"https://download.pytorch.org/models/vgg11-{digits}.pth",
    )
    rest = tuple(each for each in published.PUBLISHED if each.model != "vgg11")
    monkeypatch.setattr(published, "PUBLISHED", (record, *rest))
    monkeypatch.setattr(configurations, "MODELS", {**configurations.MODELS, "vgg11": SMALL})
    for name in ("VGGKIT_OFFLINE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("VGGKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    with running(Host()) as host:
        monkeypatch.setenv("VGGKIT_TORCHVISION_HOST", host.address)
        host.answers[f"/models/{record.file}"] = [whole(content)]
        yield host


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_a_name_loads_the_imagenet_classifier(network, host):
    classifier = vk.load("vgg11")
    assert classifier.labels == imagenet_labels()
    assert classifier.preprocessing == find_published("vgg11").preprocessing
    images = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(classifier.network.eval()(images), network(images))
    assert classifier.origin.kind == "loaded"
    about = classifier.provenance["weights"]
    assert about["licence"] == "BSD-3-Clause"
    assert about["source"].startswith(host.address)
    assert about["sha256"].startswith(find_published("vgg11").digest_prefix)


def test_it_is_downloaded_and_written_once_and_the_download_may_go(host, monkeypatch, capsys):
    place = locate_model("vgg11")
    record = find_published("vgg11")
    home = place.parents[1]
    assert place == home / "classifiers" / f"vgg11-{record.digest_prefix}.safetensors"
    assert sorted(path.name for path in home.rglob("*") if path.is_file()) == sorted([place.name, record.file])
    said = capsys.readouterr()
    assert said.out == ""
    assert "fetching" in said.err
    assert f"writing vgg11 as a Classifier to {place}" in said.err
    (home / record.file).unlink()
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    before = place.stat().st_mtime_ns
    assert locate_model(Path("vgg11")) == place
    assert place.stat().st_mtime_ns == before
    assert len(host.requests) == 1
    assert capsys.readouterr() == ("", "")


def test_a_file_in_timms_dialect_serves_too(network, host, monkeypatch, tmp_path):
    """As the hub has it: the head's matrices are convolutions."""
    import safetensors.torch

    state, places = network.state_dict(), map_keys(SMALL, "timm")
    values = {place.key: to_layout(state[key], place).contiguous() for key, place in places.items()}
    (tmp_path / "home").mkdir()
    safetensors.torch.save_file(values, tmp_path / "home" / "vgg11.safetensors")
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    found = vk.load("vgg11").network.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
    assert host.requests == []


def test_offline_one_line_says_what_to_put_where(monkeypatch, capsys, photo):
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    record = find_published("vgg11")
    with pytest.raises(BadDownload, match=rf"put {record.file} .*or vgg11\.safetensors into .*home"):
        vk.load("vgg11")
    assert run("predict", "vgg11", photo) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"put {record.file}" in said


def test_models_without_published_weights_name_those_with(capsys, photo):
    with pytest.raises(UnknownName, match=r"vgg11_lrn.*published.*Known: vgg11, vgg11_bn"):
        vk.load("vgg11_lrn")
    with pytest.raises(UnknownName, match="vgg16_c"):
        vk.VGG.from_pretrained("vgg16_c")
    assert run("predict", "vgg16_c", photo) == 2
    assert "published" in capsys.readouterr().err


def test_a_mistyped_name_is_corrected():
    with pytest.raises(BadCheckpoint, match="vgg_16: no such file, nor a model of that name; did you mean vgg16"):
        vk.load("vgg_16")
    with pytest.raises(BadCheckpoint, match=r"vgg16\.pth: no such file$"):
        vk.load("vgg16.pth")


def test_an_existing_path_comes_before_the_model(tiny, host, tmp_path):
    own = vk.Classifier.create(tiny, labels=["a", "b", "c"])
    own.save(tmp_path / "vgg11")
    assert vk.load("vgg11").labels == ("a", "b", "c")
    (tmp_path / "vgg11").unlink()
    own.save(tmp_path / "vgg11" / "best.safetensors")
    assert vk.load("vgg11").labels == ("a", "b", "c")
    assert not is_model_name("vgg11")
    assert host.requests == []


@pytest.mark.parametrize(
    "line",
    [
        ["predict", "vgg11", "photo.png"],
        ["embed", "vgg11", "photo.png", "--out", "vectors.parquet"],
        ["identify", "vgg11"],
        ["convert", "vgg11", "out.pth", "--to", "timm"],
        ["convert", "vgg11", "out.safetensors", "--to", "torchvision"],
    ],
    ids=lambda line: " ".join(line[:1] + line[2:]),
)
def test_the_command_line_takes_a_name_where_it_asks_for_a_model(line, photo, capsys):
    assert run(*line) == 0
    out = capsys.readouterr().out
    if line[0] == "predict":
        assert any(label in out for label in imagenet_labels())


def test_evaluate_takes_a_name(tmp_path, capsys):
    for label in imagenet_labels()[:2]:
        folder = tmp_path / "photos" / "val" / label
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 40), "red").save(folder / "1.png")
    assert run("evaluate", "vgg11", tmp_path / "photos") == 0
    assert "top-1" in capsys.readouterr().out


def test_a_copy_is_a_classifier_of_its_own(capsys, tmp_path):
    assert run("convert", "vgg11", "mine.safetensors", "--to", "torchvision") == 0
    assert read_card(tmp_path / "mine.safetensors").labels == imagenet_labels()


def test_nothing_is_stored_in_a_published_models_file(photo, capsys, tmp_path):
    assert run("bench", "vgg11", photo, "--keep-ranges") == 2
    said = capsys.readouterr().err
    assert "vggkit convert vgg11 my-model.safetensors --to torchvision" in said
    from vggkit.workflows.bench import bench

    with pytest.raises(BadInput, match="published model"):
        bench("vgg11", [photo], keep_ranges=True)


def test_from_pretrained_is_a_plain_network_with_those_weights(network):
    made = vk.VGG.from_pretrained("vgg11")
    assert made.training
    assert all(parameter.requires_grad for parameter in made.parameters())
    state = network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in made.state_dict().items())


@pytest.mark.parametrize(
    ("options", "renewed"),
    [
        ({"num_classes": 7}, "classifier.6."),
        ({"until": "fc6", "num_classes": 10}, "classifier.3."),
        ({"until": "relu3_2"}, "classifier.0."),
        ({"head": "pool"}, "classifier.0."),
        ({"head": "dense"}, "none"),
        ({"in_channels": 1}, "features.0.weight"),
    ],
    ids=str,
)
def test_from_pretrained_keeps_all_but_what_was_asked_to_differ(network, options, renewed):
    torch.manual_seed(1)
    made = vk.VGG.from_pretrained("vgg11", **options)
    state = network.state_dict()
    for key, value in made.state_dict().items():
        assert torch.isfinite(value).all()
        assert torch.equal(value, state.get(key, torch.zeros(()))) is not key.startswith(renewed), key
    if "in_channels" in options:
        assert torch.allclose(made.features[0].weight, state["features.0.weight"].sum(1, keepdim=True))
    made.eval()(torch.rand(1, made.configuration.in_channels, 64, 64))


def test_a_name_gives_a_training_its_weights(network, host):
    made = vk.Classifier.create("vgg11", labels=["a", "b"], weights="vgg11")
    state = network.state_dict()
    for key, value in made.network.state_dict().items():
        assert torch.equal(value, state[key]) is not key.startswith("classifier.6."), key
    with pytest.raises(BadCheckpoint, match="does not contain the weights of vgg13"):
        vk.Classifier.create("vgg13", labels=["a", "b"], weights="vgg11")
    with pytest.raises(UnknownName, match="published"):
        vk.Classifier.create("vgg11", labels=["a", "b"], weights="vgg11_lrn")


def test_weights_of_another_network_are_refused(monkeypatch, tmp_path):
    import safetensors.torch

    (tmp_path / "home").mkdir()
    state = {f"features.{n}.weight": torch.zeros(4, 4, 3, 3) for n in range(3)}
    safetensors.torch.save_file(state, tmp_path / "home" / "vgg11.safetensors")
    with pytest.raises(BadCheckpoint, match="does not contain the weights of vgg11"):
        vk.load("vgg11")
    assert not list((tmp_path / "home" / "classifiers").glob("*"))


def test_finding_a_published_file_needs_no_torch():
    place = locate_model("vgg11")
    code = (
        "import sys\nfrom dataclasses import replace\nfrom vggkit.weights import published\n"
        "record = published.find_published('vgg11')\n"
        f"published.PUBLISHED = (replace(record, digest_prefix={find_published('vgg11').digest_prefix!r}),)\n"
        "from vggkit.weights.locate import locate_model\nprint(locate_model('vgg11'))\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == str(place)
