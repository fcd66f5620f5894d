"""Published weights: the table against torchvision and timm, and fetching against hosts on 127.0.0.1."""

import hashlib
import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from local_hosts import Host, Hub, running, status, whole
from vggkit.classifier import Classifier
from vggkit.errors import BadCheckpoint, BadDownload, UnknownName
from vggkit.models.configuration import list_models
from vggkit.weights import downloads, published
from vggkit.weights.pretrained import fetch
from vggkit.weights.published import PUBLISHED, find_published, imagenet_labels, list_published

CONTENT = np.random.default_rng(1).bytes(50_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = f"vgg11-{DIGEST[:8]}.pth"
TIMM = safetensors.numpy.save({"head.fc.weight": np.zeros((2, 3), np.float32)})
BY_HAND = "timm/vgg11.tv_in1k"


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    """Nothing of this machine's caches, and records of a small file."""
    record = replace(
        find_published("vgg11"),
        digest_prefix=DIGEST[:8],
        url=f"https://download.pytorch.org/models/{FILE}",
        size_mib=0.05,
    )
    table = (record, *(r for r in PUBLISHED if (r.model, r.tag) != ("vgg11", "imagenet")))
    monkeypatch.setattr(published, "PUBLISHED", table)
    monkeypatch.setattr(downloads, "STALL_SECONDS", 2)
    for name in ("VGGKIT_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("VGGKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def host(monkeypatch):
    with running(Host()) as host:
        monkeypatch.setenv("VGGKIT_TORCHVISION_HOST", host.address)
        yield host


@pytest.fixture
def hub(monkeypatch):
    with running(Hub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        hub.repositories[BY_HAND] = {"model.safetensors": TIMM}
        yield hub


def test_the_table_is_torchvisions():
    from torchvision.models import get_weight

    names = {"imagenet": "IMAGENET1K_V1", "features": "IMAGENET1K_FEATURES"}
    for record in PUBLISHED:
        kind = record.model.upper() + "_Weights." + names[record.tag]
        theirs = get_weight(kind)
        assert record.url == theirs.url
        assert record.file.removesuffix(".pth").endswith(record.digest_prefix)
        assert len(record.digest_prefix) == 8  # no more was published
        assert record.size_mib == theirs.meta["_file_size"]
        shown = theirs.meta["_metrics"]["ImageNet-1K"]
        if record.tag == "imagenet":
            assert (record.top1, record.top5) == pytest.approx((shown["acc@1"] / 100, shown["acc@5"] / 100))
        else:
            assert record.top1 is record.top5 is None
        assert record.recipe == theirs.meta["recipe"]
        transform = theirs.transforms()
        own = record.preprocessing
        assert list(own.mean) == transform.mean
        assert list(own.std) == transform.std
        assert ([own.resize_pixels], [own.crop_pixels]) == (transform.resize_size, transform.crop_size)
        assert own.interpolation == transform.interpolation.value
    from torchvision.models import VGG11_Weights

    assert list(imagenet_labels()) == VGG11_Weights.IMAGENET1K_V1.meta["categories"]
    assert len(set(imagenet_labels())) == 1000


def test_the_hubs_repositories_are_timms():
    from timm.models import get_pretrained_cfg

    for record in PUBLISHED:
        if record.tag == "features":
            assert record.hub_repository is None
            continue
        theirs = get_pretrained_cfg(record.model)
        assert record.hub_repository == theirs.hf_hub_id
        assert record.licence.lower() == theirs.license
        assert (record.preprocessing.mean, record.preprocessing.std) == (theirs.mean, theirs.std)
        assert round(record.preprocessing.crop_pixels / record.preprocessing.resize_pixels, 3) == theirs.crop_pct


def test_eight_networks_have_weights_and_the_others_say_which_do():
    assert [name for name in list_models() if list_published(name)] == [
        r.model for r in PUBLISHED if r.tag == "imagenet"
    ]
    with pytest.raises(UnknownName, match=r"vgg16_c.*Known: vgg11, vgg11_bn"):
        fetch("vgg16_c")
    with pytest.raises(UnknownName, match="Did you mean 'vgg19'"):
        fetch("vgg12")
    with pytest.raises(UnknownName, match="custom"):
        fetch("custom")


def test_torchvisions_host_is_first_and_asked_once(host, place):
    host.answers[f"/models/{FILE}"] = [whole(CONTENT)]
    found = fetch("vgg11")
    assert found.path == place / "home" / FILE
    assert found.path.read_bytes() == CONTENT
    assert (found.dialect, found.sha256) == ("torchvision", DIGEST)
    assert found.source == f"{host.address}/models/{FILE}"
    assert found.to_dict()["licence"] == "BSD-3-Clause"
    assert [path.name for path in found.path.parent.iterdir()] == [FILE]  # no part, no lock
    again = fetch("vgg11")
    assert (again.path, again.sha256) == (found.path, found.sha256)
    assert len(host.requests) == 1
    other = fetch("vgg11", folder=place / "other")
    assert other.path == place / "other" / FILE


@pytest.mark.parametrize(
    "answer", [status(403), status(404), status(500), whole(b"x" * 50_000), whole(b"<html>", kind="text/html")]
)
def test_the_hub_is_second(host, hub, place, answer):
    host.answers[f"/models/{FILE}"] = [answer]
    found = fetch("vgg11")
    assert found.dialect == "timm"
    assert found.path.read_bytes() == TIMM
    commit = hub.commit_of(BY_HAND)
    assert found.source == f"hf://{BY_HAND}@{commit}"
    assert found.path == place / "home" / "vgg11.safetensors"
    assert [path for path in (place / "home").rglob("*") if path.is_file()] == [found.path]
    assert found.sha256 == hashlib.sha256(TIMM).hexdigest()
    hub.requests.clear()
    host.requests.clear()
    again = fetch("vgg11")
    assert (again.path, again.dialect, again.sha256) == (found.path, "timm", found.sha256)
    assert hub.requests == host.requests == []


def test_a_file_that_version_0_1_brought_from_the_hub_is_found(monkeypatch, place):
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    kept = place / "home" / "hub" / "timm--vgg11.tv_in1k" / "model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(TIMM)
    found = fetch("vgg11")
    assert (found.path, found.dialect) == (kept, "timm")


@pytest.mark.parametrize("second", [False, True])
def test_progress_is_told_on_standard_error_or_not_at_all(host, hub, place, capsys, second):
    host.answers[f"/models/{FILE}"] = [status(404) if second else whole(CONTENT)]
    fetch("vgg11", progress=False)
    assert capsys.readouterr() == ("", "")
    fetch("vgg11", folder=place / "again")
    out, err = capsys.readouterr()
    assert out == ""
    assert f"fetching {host.address}/models/{FILE}" in err


CODE = """
import sys
from dataclasses import replace
from vggkit.weights import published
from vggkit.weights.pretrained import fetch
record = replace(published.find_published("vgg11"), digest_prefix=sys.argv[1], url=sys.argv[2])
published.PUBLISHED = (record,)
print(fetch("vgg11").sha256)
"""


@pytest.mark.slow
def test_two_processes_at_once_bring_it_once(host, place):
    host.answers[f"/models/{FILE}"] = [whole(CONTENT, drip_seconds=0.05)]
    command = [sys.executable, "-c", CODE, DIGEST[:8], f"https://download.pytorch.org/models/{FILE}"]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out.strip()) == (0, DIGEST), err
    assert len(host.requests) == 1


def test_a_hub_that_sends_other_bytes_than_it_says(host, hub, place):
    commit = hub.commit_of(BY_HAND)
    headers = {"X-Repo-Commit": commit, "ETag": f'"{DIGEST}"'}
    hub.answers[f"/{BY_HAND}/resolve/main/model.safetensors"] = [status(200, headers, TIMM)]
    hub.answers[f"/{BY_HAND}/resolve/{commit}/model.safetensors"] = [status(200, headers, TIMM)]
    with pytest.raises(BadDownload, match="the hub states"):
        fetch("vgg11")
    assert not list((place / "home").rglob("*.safetensors"))


def test_both_hosts_down_tells_both(host, hub, place):
    host.answers[f"/models/{FILE}"] = [status(403)]
    hub.repositories.clear()
    with pytest.raises(BadDownload) as caught:
        fetch("vgg11")
    said = str(caught.value)
    assert "responded with 403" in said
    assert "no such repository" in said
    assert f"put {FILE} (from https://download.pytorch.org/models/{FILE}) or vgg11.safetensors into" in said
    assert str(place / "home") in said


def test_nobody_there_at_all(monkeypatch):
    with running(Host()) as gone:
        monkeypatch.setenv("VGGKIT_TORCHVISION_HOST", gone.address)
        monkeypatch.setenv("HF_ENDPOINT", gone.address)
    with pytest.raises(BadDownload, match=r"cannot be reached.*whether there is a network"):
        fetch("vgg11")


def test_without_huggingface_hub_the_first_hosts_answer_is_told_too(host, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BadDownload, match=r"responded with 404.*pip install \"vggkit\[weights\]\""):
        fetch("vgg11")


def test_offline_says_what_to_put_where(host, place, monkeypatch):
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    with pytest.raises(BadDownload) as caught:
        fetch("vgg11")
    said = str(caught.value)
    assert f"put {FILE} (from https://download.pytorch.org/models/{FILE}) or vgg11.safetensors into" in said
    assert "unset VGGKIT_OFFLINE" in said
    assert host.requests == []
    (place / "home").mkdir()
    (place / "home" / FILE).write_bytes(CONTENT)
    assert fetch("vgg11").path.parent == place / "home"


@pytest.mark.parametrize(
    ("content", "dialect"),
    [(TIMM, "timm"), (safetensors.numpy.save({"features.0.weight": np.zeros(1, np.float32)}), "torchvision")],
)
def test_a_safetensors_file_put_there_by_hand(monkeypatch, place, content, dialect):
    monkeypatch.setenv("VGGKIT_OFFLINE", "true")
    (place / "home").mkdir()
    (place / "home" / "vgg11.safetensors").write_bytes(content)
    found = fetch("vgg11")
    assert found.dialect == dialect
    assert found.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\xff" * 40, b"\x02" + bytes(7) + b"[]", b"version https://git"]
)
def test_a_safetensors_file_that_is_none(place, content):
    (place / "home").mkdir()
    (place / "home" / "vgg11.safetensors").write_bytes(content)
    with pytest.raises(BadCheckpoint, match="not a whole safetensors file"):
        fetch("vgg11")


def test_torch_hubs_cache_is_used_and_never_written(host, place):
    cache = place / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(CONTENT)
    assert fetch("vgg11").path == cache / FILE
    assert host.requests == []
    (cache / FILE).write_bytes(b"rotten")
    host.answers[f"/models/{FILE}"] = [whole(CONTENT)]
    assert fetch("vgg11").path == place / "home" / FILE
    assert (cache / FILE).read_bytes() == b"rotten"


def test_a_rotten_file_at_home_is_told_and_left(host, place):
    (place / "home").mkdir()
    (place / "home" / FILE).write_bytes(b"rotten")
    with pytest.raises(BadDownload, match="delete it and run again"):
        fetch("vgg11")
    assert host.requests == []


def test_the_features_have_no_second_host(host):
    with pytest.raises(BadDownload, match=r"responded with 404.*vgg16_features-amdegroot-88682ab5\.pth"):
        fetch("vgg16", tag="features")


def test_it_needs_no_torch():
    code = "import sys\nimport vggkit.weights.pretrained\n"
    code += "print('torch' in sys.modules, 'huggingface_hub' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.split() == ["False", "False"]


def test_create_starts_from_published_weights(host, place, tiny, monkeypatch):
    """The real path from the host to a Classifier, with a small network in vgg11's place."""
    donor = Classifier.create(tiny, labels=["a", "b", "c"])
    torch.save(donor.network.state_dict(), place / "tiny.pth")
    content = (place / "tiny.pth").read_bytes()
    digits = hashlib.sha256(content).hexdigest()[:8]
    record = replace(
        find_published("vgg11"),
        model="custom",
        digest_prefix=digits,
        url=f"https://download.pytorch.org/models/tiny-{digits}.pth",
    )
    monkeypatch.setattr(published, "PUBLISHED", (record,))
    host.answers[f"/models/tiny-{digits}.pth"] = [whole(content)]
    made = Classifier.create(tiny, labels=["d", "e"], weights="imagenet")
    for key, value in made.network.state_dict().items():
        if not key.startswith("classifier."):
            assert torch.equal(value, donor.network.state_dict()[key]), key
    assert made.preprocessing == record.preprocessing
    said = made.provenance["weights"]
    assert said["source"] == f"{host.address}/models/tiny-{digits}.pth"
    assert said["sha256"].startswith(digits)
    assert said["licence"] == "BSD-3-Clause"
    assert "ImageNet" in said["terms"]
    assert said["random"] == ["classifier.0.weight", "classifier.0.bias"]


def test_published_weights_are_of_imagenets_classes(host, place, tiny, monkeypatch):
    """A thousand classes need not be these; where they are, each keeps its row, by either of its names."""
    timm = importlib.util.find_spec("timm").submodule_search_locations[0]  # importing it takes long
    synsets = (Path(timm) / "data" / "_info" / "imagenet_synsets.txt").read_text().split()
    donor = Classifier.create(replace(tiny, num_classes=1000), labels=imagenet_labels(), seed=0)
    torch.save(donor.network.state_dict(), place / "tiny.pth")
    content = (place / "tiny.pth").read_bytes()
    digits = hashlib.sha256(content).hexdigest()[:8]
    url = f"https://download.pytorch.org/models/tiny-{digits}.pth"
    record = replace(find_published("vgg11"), model="custom", digest_prefix=digits, url=url)
    monkeypatch.setattr(published, "PUBLISHED", (record,))
    host.answers[f"/models/tiny-{digits}.pth"] = [whole(content)]
    rows = donor.network.classifier[-1].weight

    def start(labels):
        made = Classifier.create(replace(tiny, num_classes=1000), labels=labels, weights="imagenet")
        return made.network.classifier[-1].weight, made.provenance["weights"]

    found, said = start(imagenet_labels()[::-1])
    assert torch.equal(found, rows.flip(0))
    assert "order" in said["classes"]
    assert torch.equal(start(synsets)[0], rows)
    assert torch.equal(start(synsets[::-1])[0], rows.flip(0))
    found, said = start([f"street {number}" for number in range(1000)])
    assert not torch.equal(found, rows)
    assert "other classes (tench, goldfish" in said["renewed"]
    assert start(["another", *imagenet_labels()[1:]])[1]["renewed"]


def test_the_command_line_starts_from_them(host, place, photos, monkeypatch, capsys):
    from vggkit.classifier import load
    from vggkit.cli import main as cli

    donor = Classifier.create("vgg11", labels=["a", "b"], until="relu2_1")
    torch.save(donor.network.state_dict(), place / "donor.pth")
    content = (place / "donor.pth").read_bytes()
    digits = hashlib.sha256(content).hexdigest()[:8]
    url = f"https://download.pytorch.org/models/vgg11-{digits}.pth"
    record = replace(find_published("vgg11"), digest_prefix=digits, url=url, size_mib=len(content) / 2**20)
    monkeypatch.setattr(published, "PUBLISHED", (record,))
    options = ["--until", "relu2_1", "--image-size", "32", "--epochs", "1", "--out", str(place / "run")]
    arguments = ["train", str(photos), "--weights", "imagenet", *options]
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"put vgg11-{digits}.pth" in said
    monkeypatch.delenv("VGGKIT_OFFLINE")
    host.answers[f"/models/vgg11-{digits}.pth"] = [whole(content)]
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0
    said = capsys.readouterr().err
    assert f"fetching {host.address}" in said
    assert "BSD-3-Clause" in said
    assert "ImageNet" in said
    made = load(place / "run")
    assert made.provenance["weights"]["sha256"].startswith(digits)
    assert host.ranges() == [None]


def test_create_knows_names_before_it_asks_a_host(host):
    with pytest.raises(UnknownName, match="published"):
        Classifier.create("vgg11_lrn", labels=["a", "b"], weights="imagenet")
    assert host.requests == []
