"""Publishing to and loading from a stand-in of the Hugging Face hub on 127.0.0.1, and the model card."""

import html
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

import vggkit as vk
from local_hosts import Host, Hub, running, status
from vggkit.classifier import Classifier
from vggkit.errors import BadCheckpoint, BadDownload, BadOutput, MissingExtra
from vggkit.escaping import escape_controls
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configure import configure
from vggkit.weights.card import Card
from vggkit.weights.hub import is_address, pull
from vggkit.weights.model_card import is_torchvisions, write_model_card

# huggingface_hub's own call of its HTTP library, for uploads without Xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

PROVENANCE = {
    "data": {"name": "/home/somebody/photos: of bees", "fingerprint": "abc", "pictures": {"train": 40, "val": 15}},
    "recipe": {"epochs": 3, "learning_rate": 0.01, "momentum": 0.9},
    "metrics": {"part": "test", "top1": 0.8667, "top1_interval": [0.6212, 0.9626], "top5": 1.0, "n": 15},
    "weights": {"published": "vgg11, imagenet", "licence": "BSD-3-Clause", "terms": "its terms"},
}


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in speaks the hub's older way
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running(Hub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        yield hub


@pytest.fixture
def classifier(tiny):
    return Classifier.create(tiny, labels=["ant", "bee", "wasp"], preprocessing=Preprocessing(crop_pixels=64))


def test_there_and_back_bit_for_bit(hub, classifier, tmp_path):
    classifier.save(tmp_path / "own.safetensors", provenance=PROVENANCE)
    address = classifier.push_to_hub("me/bees", message="the first")
    assert address == f"{hub.address}/me/bees"
    files = hub.repositories["me/bees"]
    assert set(files) == {"model.safetensors", "README.md"}
    (commit,) = hub.commits
    assert commit["lines"][0]["value"]["summary"] == "the first"
    back = vk.load("hf://me/bees")
    assert back.card == classifier.card
    for key, value in classifier.network.state_dict().items():
        assert torch.equal(value, back.network.state_dict()[key]), key
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(classifier.network.eval()(images), back.network.eval()(images))
    assert pull(f"hf://me/bees@{hub.commit_of('me/bees')}").read_bytes() == files["model.safetensors"]


def test_the_names_of_huggingface_hub(hub, classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classifier.save_pretrained("bees/first")
    assert sorted(path.name for path in Path("bees/first").iterdir()) == ["README.md", "model.safetensors"]
    assert Classifier.from_pretrained("bees/first").card == classifier.card  # a folder comes before the hub
    assert vk.load("bees/first").card == classifier.card
    classifier.push_to_hub("me/bees")
    assert sorted(hub.repositories["me/bees"]) == ["README.md", "model.safetensors"]
    assert Classifier.from_pretrained("me/bees").card == classifier.card
    commit = hub.commit_of("me/bees")
    assert Classifier.from_pretrained("me/bees", revision=commit).card == classifier.card
    assert Classifier.from_pretrained("hf://me/bees", revision=commit).card == classifier.card
    for place in ("bees/first", "digits", f"hf://me/bees@{commit}"):
        with pytest.raises(BadCheckpoint, match="revision='v1' is of a repository"):
            Classifier.from_pretrained(place, revision="v1")
    with pytest.raises(BadCheckpoint, match="no such file"):
        vk.load("me/wasps")  # which asks no host: it may be a mistyped path
    with pytest.raises(BadDownload, match="me/wasps"):
        Classifier.from_pretrained("me/wasps")


def test_again_onto_what_is_there(hub, classifier):
    classifier.push_to_hub("me/bees")
    with torch.no_grad():
        next(classifier.network.parameters()).add_(1)
    classifier.push_to_hub("me/bees")
    assert len(hub.commits) == 2
    key = next(iter(classifier.network.state_dict()))
    assert torch.equal(vk.load("hf://me/bees").network.state_dict()[key], classifier.network.state_dict()[key])


def test_a_token_is_given_on_and_its_lack_explained(hub, classifier):
    hub.tokens = {"secret"}
    with pytest.raises(BadOutput, match=r"401.*hf auth login"):
        classifier.push_to_hub("me/bees")
    assert "me/bees" not in hub.repositories
    classifier.push_to_hub("me/bees", token="secret")
    assert "me/bees" in hub.repositories


def test_a_private_repository_is_asked_for(hub, classifier, monkeypatch):
    asked = []
    write = hub.write

    def note(request, path, body):
        asked.append((path, body))
        write(request, path, body)

    monkeypatch.setattr(hub, "write", note)
    classifier.push_to_hub("me/bees", private=True)
    assert b'"private"' in dict(asked)["/api/repos/create"]


@pytest.mark.parametrize("name", ["bees", "me/bees/more", "", "me/", "hf://me/bees", "me/be es"])
def test_names_that_are_none(hub, classifier, name):
    with pytest.raises(BadOutput, match="owner/name"):
        classifier.push_to_hub(name)
    assert hub.requests == []


@pytest.mark.parametrize("address", ["hf://bees", "hf://", "hf://me/bees@", "hf://a/b/c", "hf://me/../x"])
def test_addresses_that_are_none(hub, address):
    with pytest.raises(BadCheckpoint, match="hf://owner/name@revision"):
        vk.load(address)
    assert hub.requests == []


def test_addresses_are_told_from_places():
    assert is_address("hf://me/bees")
    assert is_address(Path("hf://me/bees"))  # as the command line gives it
    assert not is_address("runs/bees")
    assert not is_address("hf")


def test_through_the_command_line(hub, classifier, photos, capsys):
    from vggkit.cli import main as cli

    classifier.push_to_hub("me/bees")
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", "hf://me/bees", str(photos / "val"), "--json", "--top", "1", "--quiet"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) == 15


def test_what_is_not_there_is_said(hub, classifier):
    with pytest.raises(BadDownload, match=r"hf://me/bees: no such repository, or a private one.*hf auth login"):
        vk.load("hf://me/bees")
    classifier.push_to_hub("me/bees")
    with pytest.raises(BadDownload, match="no such revision"):
        vk.load("hf://me/bees@v9")
    hub.repositories["me/other"] = {"pytorch_model.bin": b"x"}
    with pytest.raises(BadDownload, match=r"does not hold.*model\.safetensors"):
        vk.load("hf://me/other")


def test_weights_that_are_not_ours_are_said_to_be(hub):
    content = safetensors.torch.save({"head.fc.weight": torch.zeros(2, 3)})
    hub.repositories["timm/vgg"] = {"model.safetensors": content}
    with pytest.raises(BadCheckpoint, match=r"not a Classifier of vggkit.*Classifier\.create\(weights="):
        vk.load("hf://timm/vgg")
    hub.repositories["me/broken"] = {"model.safetensors": b"no"}
    with pytest.raises(BadCheckpoint, match="safetensors"):
        vk.load("hf://me/broken")


@pytest.mark.parametrize("code", [403, 500, 429])
def test_a_hub_that_refuses(hub, classifier, code):
    hub.answers["/api/repos/create"] = [status(code)]
    with pytest.raises(BadOutput, match=f"the hub responded with {code}"):
        classifier.push_to_hub("me/bees")
    hub.answers["/me/bees/resolve/main/model.safetensors"] = [status(code)]
    with pytest.raises(BadDownload, match=f"the hub responded with {code}"):
        vk.load("hf://me/bees")


def test_no_network(classifier, monkeypatch):
    with running(Host()) as gone:
        monkeypatch.setenv("HF_ENDPOINT", gone.address)
    with pytest.raises(BadDownload, match="whether there is a network"):
        vk.load("hf://me/bees")
    with pytest.raises(BadOutput, match="whether there is a network"):
        classifier.push_to_hub("me/bees")


def test_what_was_brought_once_serves_without_a_network(hub, classifier, monkeypatch):
    classifier.push_to_hub("me/bees")
    vk.load("hf://me/bees")
    hub.requests.clear()
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    assert vk.load("hf://me/bees").labels == classifier.labels
    with pytest.raises(BadDownload, match="VGGKIT_OFFLINE is set"):
        vk.load("hf://me/wasps")
    assert hub.requests == []
    monkeypatch.delenv("VGGKIT_OFFLINE")
    with running(Host()) as gone:
        monkeypatch.setenv("HF_ENDPOINT", gone.address)
    assert vk.load("hf://me/bees").labels == classifier.labels


def test_a_host_that_is_no_hub(hub):
    hub.answers["/me/bees/resolve/main/model.safetensors"] = [status(200)]
    with pytest.raises(BadDownload, match="does not respond as a Hugging Face hub does"):
        vk.load("hf://me/bees")


def test_without_the_extra(classifier, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: vk.load("hf://me/bees"), lambda: classifier.push_to_hub("me/bees")):
        with pytest.raises(MissingExtra, match=r'pip install "vggkit\[weights\]"'):
            call()


def test_nothing_of_the_hub_is_imported_before_it_is_asked():
    code = "import sys\nimport vggkit.weights.hub\n"
    code += "print(sorted({'torch', 'huggingface_hub'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"


def card_of(configuration, **provenance):
    labels = tuple(f"class {i}" for i in range(configuration.num_classes))
    preprocessing = (
        Preprocessing()
        if configuration.in_channels == 3
        else Preprocessing(channel_order="L", mean=(0.5,), std=(0.5,))
    )
    return Card(configuration=configuration, preprocessing=preprocessing, labels=labels, provenance=provenance)


def test_the_model_card_says_everything():
    said = write_model_card(card_of(configure("vgg11", num_classes=30), **PROVENANCE), repository="me/bees")
    front = yaml.safe_load(said.split("---")[1])
    assert front["license"] == "bsd-3-clause"
    assert front["library_name"] == "vggkit"
    assert front["pipeline_tag"] == "image-classification"
    assert {"vgg", "vgg11"} <= set(front["tags"])
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"] == {"name": "photos: of bees", "type": "other", "split": "test"}
    assert result["metrics"][0]["value"] == 0.8667
    for part in (
        "86.67 % (test split, n = 15, 95 % interval 62.12 % to 96.26 %)",
        'vk.load("hf://me/bees")',
        "from torchvision.models import vgg11",
        "vgg11(num_classes=30)",
        "vggkit convert model.safetensors timm.safetensors --to timm",
        'timm.create_model("vgg11", num_classes=30',
        "0.485, 0.456, 0.406",
        "short side resized to | 256 pixels",
        "bilinear, antialiased",
        "class 19 and 10 more",
        "started from the weights of vgg11, imagenet",
        "its terms",
        "epochs 3",
        "train 40, val 15",
        "Fingerprint",
    ):
        assert part in said, part
    assert "/home/somebody" not in said


MARKDOWN = (
    *("a|b", "`rm -rf`", "*a* _b_ __c__", "[a](https://evil.example)", "![a](x.png)", "<script>alert(1)</script>"),
    *("&lt;b&gt; &amp;", "a\n# b", "\x1b[2J\r", "$x_$", "~~a~~", "\\", "\\|", "no", ": ", "- x", "\"'", "1. a"),
    *("---", "<https://evil.example>", "|---|", "猫 😀 \udcff\x85\U000e0001"),
)


def card_with(name: str, configuration) -> Card:
    """A card that says the name everywhere."""
    card = card_of(
        configuration,
        licence=name,
        data={"name": name.replace("/", ""), "pictures": {name: 3}, "fingerprint": name},
        metrics={"part": name, "top1": 0.5, "n": name, "top1_interval": [0.4, 0.6]},
        weights={"file": name, "licence": name, "terms": name},
        recipe={"preset": name},
    )
    return replace(card, labels=("ant", name))


@pytest.mark.parametrize("name", MARKDOWN)
def test_names_are_no_markdown_and_no_yaml(name, tiny):
    markdown_it = pytest.importorskip("markdown_it")
    renderer = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    small = replace(tiny, num_classes=2)

    def render(said: str) -> tuple[dict, str]:
        said.encode()
        front, text = said.removeprefix("---\n").split("\n---\n", 1)
        return yaml.safe_load(front), renderer.render(text)

    front, page = render(write_model_card(card_with(name, small)))
    shown = escape_controls(name)
    assert front["license"] == escape_controls(name.lower())
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"]["split"] == shown
    assert f"<p>Classes: ant, {shown}.</p>" in html.unescape(page)
    _, ordinary = render(write_model_card(card_with("x", small)))
    tags = re.compile(r"</?[a-z]+[0-9]?")
    assert tags.findall(page) == tags.findall(ordinary)  # no link, no code, no heading came of it


def test_the_hubs_own_reader_takes_the_card():
    from huggingface_hub import ModelCard

    card = ModelCard(write_model_card(card_of(configure("vgg16_bn", num_classes=3), **PROVENANCE)))
    (found,) = card.data.eval_results
    assert (found.task_type, found.metric_value, found.dataset_name) == (
        "image-classification",
        0.8667,
        "photos: of bees",
    )
    assert card.data.license == "bsd-3-clause"


@pytest.mark.parametrize(
    ("changes", "theirs"),
    [
        ({"model": "vgg11"}, True),
        ({"model": "vgg19_bn", "num_classes": 7, "dropout": 0.1}, True),
        ({"model": "vgg16_c"}, False),
        ({"model": "vgg11_lrn"}, False),
        ({"model": "vgg16", "head": "pool"}, False),
        ({"model": "vgg16", "head": "dense"}, False),
        ({"model": "vgg16", "until": "relu3_3"}, False),
        ({"model": "vgg16", "in_channels": 1}, False),
    ],
)
def test_other_libraries_are_named_only_where_they_have_the_network(changes, theirs):
    configuration = configure(**changes)
    assert is_torchvisions(configuration) == theirs
    said = write_model_card(card_of(configuration))
    assert ("from torchvision.models import" in said) == theirs
    assert ("timm.create_model" in said) == theirs
    assert ("cannot load it" in said) == (not theirs)


def test_what_is_not_known_is_not_claimed(tiny):
    said = write_model_card(card_of(replace(tiny, num_classes=2)))
    front = yaml.safe_load(said.split("---")[1])
    assert front["license"] == "unknown"
    assert "model-index" not in front
    assert "not evaluated" in said
    assert "Its publisher stated none" in said
    for odd in ({"metrics": []}, {"metrics": {"top1": "high"}}, {"data": 3, "recipe": "x", "weights": [1]}):
        assert "not evaluated" in write_model_card(card_of(replace(tiny, num_classes=2), **odd))
    mine = write_model_card(card_of(replace(tiny, num_classes=2), licence="MIT"))
    assert yaml.safe_load(mine.split("---")[1])["license"] == "mit"
    chosen = {"metrics": {"part": "val", "top1": 0.5, "n": 4}}
    assert "this estimate is optimistic" in write_model_card(card_of(replace(tiny, num_classes=2), **chosen))


def test_the_cards_torchvision_line_is_true(hub):
    """The state dict that is uploaded is plain torchvision's, by its key list and shapes."""
    import torchvision

    with torch.device("meta"):
        theirs = torchvision.models.vgg11_bn(num_classes=4)
    assert {k: tuple(v.shape) for k, v in theirs.state_dict().items()} == configure(
        "vgg11_bn", num_classes=4
    ).state_shapes()
