import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from vggkit.classifier import Classifier, load
from vggkit.errors import BadCheckpoint, BadConfiguration, BadOutput, UnknownName
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG
from vggkit.weights.card import METADATA_KEY, Card
from vggkit.weights.classifier_file import read_card

LABELS = ("ant", "bee", "Käfer 🐞")
SMALL = Preprocessing(resize_pixels=32, crop_pixels=32)


@pytest.fixture
def classifier(tiny):
    return Classifier.create(tiny, labels=LABELS, preprocessing=SMALL)


def logits(network):
    with torch.no_grad():
        return network.eval()(torch.linspace(-2, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32))


def test_round_trip_bit_for_bit(classifier, tmp_path):
    path = tmp_path / "new" / "folder" / "best.safetensors"
    before = logits(classifier.network)
    classifier.network.to(memory_format=torch.channels_last)
    classifier.save(path, provenance={"data": {"name": "bees"}, "metrics": {"top1": 0.1 + 0.2}})
    found = load(path)
    assert found.labels == LABELS
    assert found.card == classifier.card
    assert found.provenance["metrics"]["top1"] == 0.1 + 0.2
    for key, value in classifier.network.state_dict().items():
        assert torch.equal(found.network.state_dict()[key], value), key
    assert torch.equal(logits(found.network), before)
    assert all(parameter.requires_grad for parameter in found.network.parameters())
    assert [entry.name for entry in path.parent.iterdir()] == ["best.safetensors"]
    assert load(path.parent).labels == LABELS


@pytest.mark.slow
def test_keys_are_plain_torchvisions_and_other_tools_can_read_them(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    classifier = Classifier.create("vgg11", labels=[str(i) for i in range(7)])
    classifier.save(tmp_path / "x.safetensors")
    theirs = torchvision.models.vgg11(num_classes=7)
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "x.safetensors"))
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(theirs.eval()(images), classifier.network.eval()(images))


def test_the_card_is_readable_without_the_weights(classifier, tmp_path):
    path = tmp_path / "x.safetensors"
    classifier.save(path)
    assert read_card(path) == classifier.card


def test_writing_is_whole_or_not_at_all(classifier, tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    classifier.save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BadOutput, match="No space left"):
        classifier.save(path, provenance={"x": 1})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


def test_an_unwritable_place_is_an_error_for_people(classifier, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadOutput, match="cannot be written"):
        classifier.save(tmp_path / "file" / "x.safetensors")
    with pytest.raises(BadOutput, match="is a folder"):
        classifier.save(tmp_path)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [(("a", "a", "b"), "differ"), (("a", "", "b"), "not empty"), ((1, 2, 3), "names"), ((), "num_classes")],
)
def test_labels_must_make_sense(tiny, labels, reason):
    with pytest.raises(BadConfiguration, match=reason):
        Classifier.create(tiny, labels=labels, preprocessing=SMALL)


def test_parts_must_fit_together(tiny):
    with pytest.raises(BadConfiguration, match="as many labels"):
        Classifier(VGG(tiny), labels=("a", "b"), preprocessing=SMALL)
    with pytest.raises(BadConfiguration, match="channel"):
        Classifier.create(tiny, labels=LABELS, in_channels=1, preprocessing=SMALL)
    with pytest.raises(BadConfiguration, match="32"):
        Classifier.create(tiny, labels=LABELS, preprocessing=Preprocessing(resize_pixels=16, crop_pixels=16))
    assert Classifier.create(tiny, labels=LABELS, in_channels=1).preprocessing.channel_order == "L"
    with pytest.raises(UnknownName, match="vgg11"):
        Classifier.create("vg11", labels=LABELS)


def test_files_of_the_future_and_strange_cards_are_refused(classifier, tmp_path):
    path = tmp_path / "x.safetensors"
    weights = classifier.network.state_dict()
    good = classifier.card.to_dict()

    def write(card):
        safetensors.torch.save_file(
            weights, path, {METADATA_KEY: card if isinstance(card, str) else json.dumps(card)}
        )

    cases = [
        ({**good, "format_version": 99}, "update vggkit"),
        ({**good, "format_version": "1"}, "format_version"),
        ({**good, "labels": "abc"}, "labels"),
        ({**good, "configuration": {**good["configuration"], "blocks": []}}, "blocks"),
        ({**good, "configuration": {**good["configuration"], "wings": 2}}, "wings"),
        ({**good, "preprocessing": [1]}, "preprocessing"),
        ([], "format_version"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ]
    for card, reason in cases:
        write(card)
        with pytest.raises(BadCheckpoint, match=reason) as caught:
            load(path)
        assert str(path) in str(caught.value)
    wider = replace(classifier.configuration, blocks=((7,), *classifier.configuration.blocks[1:]))
    write({**good, "configuration": wider.to_dict()})
    with pytest.raises(BadCheckpoint, match=r"features\.0\.weight"):
        load(path)
    safetensors.torch.save_file(weights, path)
    with pytest.raises(
        BadCheckpoint, match=r"not a Classifier's file: a custom VGG: .*vk\.Classifier\.create\(.*\.save\("
    ):
        load(path)


def test_broken_files_are_refused(classifier, tmp_path):
    path = tmp_path / "x.safetensors"
    classifier.save(path)
    whole = path.read_bytes()
    for data in (b"", b"text", whole[:100], whole[:-1], b"\xff" * 8 + whole[8:]):
        path.write_bytes(data)
        with pytest.raises(BadCheckpoint, match=r"x\.safetensors"):
            load(path)
    with pytest.raises(BadCheckpoint, match="no such file"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(BadCheckpoint, match="folder"):
        load(tmp_path)


def test_starting_from_weights(tiny, tmp_path):
    source = VGG(replace(tiny, num_classes=5))
    path = tmp_path / "w.pth"
    torch.save({"state_dict": source.state_dict()}, path)
    same = Classifier.create(tiny, labels=list("abcde"), weights=path, preprocessing=SMALL)
    assert torch.equal(logits(same.network), logits(source))
    told = same.provenance["weights"]
    assert (told["file"], told["taken"], told["random"]) == ("w.pth", len(source.state_dict()), [])
    other = Classifier.create(tiny, labels=LABELS, weights=path, preprocessing=SMALL)
    assert other.provenance["weights"]["random"] == ["classifier.0.weight", "classifier.0.bias"]
    assert torch.equal(other.network.features[0].weight, source.features[0].weight)
    grey = Classifier.create(tiny, labels=LABELS, weights=path, in_channels=1)
    assert torch.equal(grey.network.features[0].weight, source.features[0].weight.sum(1, keepdim=True))
    cut = Classifier.create(tiny, labels=LABELS, weights=path, until="relu3_2", preprocessing=SMALL)
    assert torch.equal(cut.network.features[8].weight, source.features[8].weight)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "w.safetensors")
    again = Classifier.create(tiny, labels=list("abcde"), weights=tmp_path / "w.safetensors", preprocessing=SMALL)
    assert torch.equal(logits(again.network), logits(source))


def test_weights_of_another_network_are_refused_with_the_keys(tiny, tmp_path):
    path = tmp_path / "w.pth"
    state = VGG(tiny).state_dict()

    def refused(content, *, match, **options):
        torch.save(content, path)
        with pytest.raises(BadCheckpoint, match=match):
            Classifier.create(tiny, labels=LABELS, weights=path, preprocessing=SMALL, **options)

    refused({k: v for k, v in state.items() if k != "features.0.bias"}, match=r"missing: features\.0\.bias")
    refused({**state, "features.0.weight": torch.zeros(9, 3, 3, 3)}, match="misshapen")
    refused([1, 2], match="no tensors")
    refused({"epoch": 3}, match="no tensors")
    full = replace(tiny, head="fc", grid=1)
    torch.save({**VGG(full).state_dict(), "extra.weight": torch.zeros(1)}, path)
    with pytest.raises(BadCheckpoint, match=r"unexpected: extra\.weight"):
        Classifier.create(full, labels=LABELS, weights=path, preprocessing=SMALL)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb()}, "bomb.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Bomb()))
    torch.save(VGG(tiny), "module.pth")
    for name in ("bomb.pth", "raw.pth", "module.pth"):
        with pytest.raises(BadCheckpoint, match=name):
            Classifier.create(tiny, labels=LABELS, weights=name, preprocessing=SMALL)
    assert not (tmp_path / "exploded").exists()


def test_real_partial_weights_become_a_classifier(shared):
    clf = Classifier.create(
        "vgg19",
        labels=["ants", "bees"],
        until="relu3_4",
        weights=shared / "weights" / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth",
    )
    assert clf.configuration.model == "vgg19"
    assert clf.provenance["weights"]["random"] == ["classifier.0.weight", "classifier.0.bias"]
    assert clf.network.features[0].weight.abs().mean() > 0.05
    with torch.no_grad():
        assert np.isfinite(clf.network.eval()(torch.randn(1, 3, 64, 64)).numpy()).all()
    for broken in sorted((shared / "weights").glob("TRUNCATED*")) + sorted(
        (shared / "weights").glob("LFSPOINTER*")
    ):
        with pytest.raises(BadCheckpoint, match=broken.name):
            Classifier.create(configure("vgg11"), labels=["a"], weights=broken)


def test_ranges_are_kept_and_leave_with_the_weights(classifier, tmp_path):
    path = tmp_path / "x.safetensors"
    assert classifier.activation_ranges == {}
    classifier.keep_ranges({"images": (-2, 2.5), "pool1": [0, 7]}, about={"pictures": 128})
    classifier.save(path)
    again = load(path)
    assert again.activation_ranges == {"images": (-2.0, 2.5), "pool1": (0.0, 7.0)}
    assert again.provenance["ranges"] == {"pictures": 128}
    assert again.card.of_other_weights().activation_ranges == {}
    for wrong in (
        3,
        "ab",
        [1],
        {"a": 1},
        {"a": (0, 1, 2)},
        {"a": (1, 2)},
        {"a": (0, float("inf"))},
        {"a": (0, "1")},
    ):
        with pytest.raises(BadConfiguration, match="ranges must be pairs"):
            classifier.keep_ranges(wrong, about={})
    old = {name: value for name, value in classifier.card.to_dict().items() if name != "ranges"}
    assert Card.from_dict(old | {"format_version": 3}).activation_ranges == {}
