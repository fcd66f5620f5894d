"""torch.hub.load from a plain clone: a process that has the dependencies, and no vggkit installed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vggkit as vk
from vggkit.classifier import Classifier

ROOT = Path(__file__).resolve().parents[1]

CODE = """
import json, sys
# As if vggkit were not installed: neither its finder nor its path.
sys.path = [path for path in sys.path if path != INSTALLED]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
import torch
net = torch.hub.load(CLONE, "vgg11", source="local", num_classes=3, until="relu2_1")
start = torch.hub.load(CLONE, "vgg11_bn", WEIGHTS, source="local", num_classes=2, until="pool2", in_channels=1)
import vggkit
from vggkit.weights import hub  # what is imported later is found too
entries = torch.hub._import_module("hubconf", CLONE + "/hubconf.py")
print(json.dumps({
    # What torch.hub.list shows; it knows GitHub alone.
    "names": [name for name in dir(entries) if callable(getattr(entries, name)) and not name.startswith("_")],
    "shape": list(net(torch.zeros(1, 3, 32, 32)).shape),
    "first": start.features[0].weight.shape[1],
    "help": entries.vgg16.__doc__,
    "home": vggkit.__file__,
    "left": [path for path in sys.path if path.startswith(CLONE)],
}))
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone")
    shutil.copy(ROOT / "hubconf.py", folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.slow
def test_a_plain_clone_is_enough(clone, tmp_path):
    donor = Classifier.create("vgg11_bn", labels=["a", "b", "c"], until="pool2")
    donor.save(tmp_path / "donor.safetensors")
    given = {"CLONE": str(clone), "WEIGHTS": str(tmp_path / "donor.safetensors"), "INSTALLED": str(ROOT / "src")}
    head = "".join(f"{name} = {value!r}\n" for name, value in given.items())
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", head + CODE],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout)
    assert sorted(said["names"]) == sorted(vk.list_models())
    assert said["shape"] == [1, 3]
    assert said["first"] == 1
    assert "imagenet" in said["help"]
    assert Path(said["home"]).is_relative_to(clone)
    assert said["left"] == []


def test_weights_are_those_of_the_file(tmp_path):
    donor = Classifier.create("vgg11", labels=["a", "b"], until="relu2_1")
    torch.save(donor.network.state_dict(), tmp_path / "w.pth")
    options = {"source": "local", "num_classes": 2, "until": "relu2_1"}
    net = torch.hub.load(str(ROOT), "vgg11", weights=tmp_path / "w.pth", **options)
    for key, value in donor.network.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key
    assert isinstance(net, vk.VGG)


def test_published_weights_are_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    monkeypatch.setenv("VGGKIT_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(vk.VggkitError, match=r"vgg13-19584684\.pth"):
        torch.hub.load(str(ROOT), "vgg13", source="local", weights="imagenet")


def test_mistakes_are_told_as_everywhere():
    with pytest.raises(vk.VggkitError, match="relu3_2"):
        torch.hub.load(str(ROOT), "vgg11", source="local", until="relu3_3")
    with pytest.raises(RuntimeError, match="vgg12"):
        torch.hub.load(str(ROOT), "vgg12", source="local")
