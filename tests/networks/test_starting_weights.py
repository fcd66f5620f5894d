"""Classifiers that start from files in any dialect: what is taken, what is told, and what the pictures become."""

from dataclasses import replace

import pytest
import torch

from vggkit.errors import BadCheckpoint
from vggkit.images.preprocessing import Preprocessing
from vggkit.networks.classifier import Classifier
from vggkit.networks.configurations import configure
from vggkit.networks.conventions import CONVENTIONS
from vggkit.networks.conversion import convert
from vggkit.networks.vgg import VGG

SLIM = replace(
    configure("vgg11", num_classes=5),
    blocks=((6,), (8,), (8, 8), (12, 12), (12, 10)),
    hidden=(16, 14),
    grid=2,
)
LABELS = list("abcde")
FILES = {"timm": "x.safetensors", "keras": "x.weights.h5", "caffe": "x.npz", "blocks": "x.pth", "explicit": "x.pth"}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.pth"
    torch.save({"state_dict": VGG(SLIM).state_dict()}, path)
    return path


@pytest.mark.parametrize("dialect", list(FILES))
def test_every_dialect_gives_the_same_network(source, tmp_path, dialect):
    path = convert(source, tmp_path / FILES[dialect], to=dialect).target
    found = Classifier.create(SLIM, labels=LABELS, weights=path)
    state = torch.load(source, weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[key]) for key, value in found.network.state_dict().items())
    told = found.provenance["weights"]
    assert (told["dialect"], told["random"], told["missing"], told["ignored"]) == (dialect, [], [], [])
    assert told["used"] == list(state)
    assert found.preprocessing == Preprocessing()


def test_preprocessing_comes_with_the_file(source, tmp_path):
    path = convert(source, tmp_path / "x.safetensors", to="timm", input_convention="caffe").target
    assert Classifier.create(SLIM, labels=LABELS, weights=path).preprocessing == CONVENTIONS["caffe-unit"]
    own = Preprocessing(resize_pixels=80, crop_pixels=64)
    assert Classifier.create(SLIM, labels=LABELS, weights=path, preprocessing=own).preprocessing == own
    grey = Classifier.create(SLIM, labels=LABELS, weights=path, in_channels=1).preprocessing
    assert (grey.channel_order, grey.std) == ("L", (1.0,))
    assert grey.mean == pytest.approx((sum(CONVENTIONS["caffe-unit"].mean) / 3,))


def test_a_changed_class_count_renews_the_last_layer_and_says_so(source):
    found = Classifier.create(SLIM, labels=["a", "b"], weights=source)
    told = found.provenance["weights"]
    assert told["renewed"] == "the last layer: 5 classes in the file, 2 here"
    assert told["random"] == ["classifier.6.weight", "classifier.6.bias"]
    assert told["ignored"] == ["classifier.6.weight", "classifier.6.bias"]
    assert told["missing"] == []
    cut = Classifier.create(SLIM, labels=["a", "b"], weights=source, until="relu3_1").provenance["weights"]
    assert cut["renewed"] == "the head, new with 2 classes"
    assert "features.11.weight" not in cut["used"]
    assert "features.11.weight" in cut["ignored"]


def test_a_part_is_taken_only_when_asked_for_and_told(source, tmp_path):
    state = torch.load(source, weights_only=True)["state_dict"]
    del state["features.3.weight"]
    state |= {"features.8.bias": torch.zeros(9), "extra.weight": torch.zeros(2)}
    path = tmp_path / "part.pth"
    torch.save(state, path)
    with pytest.raises(
        BadCheckpoint, match=r"missing: features\.3\.weight.*misshapen: features\.8\.bias.*extra"
    ) as caught:
        Classifier.create(SLIM, labels=LABELS, weights=path)
    assert "allow_partial" in str(caught.value)
    assert str(path) in str(caught.value)
    found = Classifier.create(SLIM, labels=LABELS, weights=path, allow_partial=True)
    told = found.provenance["weights"]
    assert told["missing"] == ["features.3.weight", "features.8.bias"]
    assert told["random"] == ["features.3.weight", "features.8.bias"]
    assert set(told["ignored"]) == {"features.8.bias", "extra.weight"}
    assert len(told["used"]) == told["taken"] == len(SLIM.state_shapes()) - 2


def test_another_network_is_refused_with_what_it_is(shared, tmp_path):
    adain = shared / "weights" / "vgg_normalised_conv3_1.pth"
    for options in ({}, {"until": "relu3_1"}, {"allow_partial": True}, {"until": "relu3_1", "allow_partial": True}):
        with pytest.raises(BadCheckpoint, match="AdaIN"):
            Classifier.create("vgg19", labels=["a"], weights=adain, **options)
    torch.save(VGG(SLIM).state_dict(), tmp_path / "vgg13.pth")
    with pytest.raises(BadCheckpoint, match="it holds a custom VGG, not VGG13: 8 convolutions"):
        Classifier.create("vgg13", labels=["a"], weights=tmp_path / "vgg13.pth")


def test_real_caffe_weights_bring_their_preprocessing(shared):
    weights = shared / "weights"
    found = Classifier.create(
        "vgg19", labels=["a"], until="relu3_4", weights=weights / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth"
    )
    assert found.preprocessing == CONVENTIONS["caffe"]
    assert len(found.provenance["weights"]["ignored"]) == 8
    first = Classifier.create(
        "vgg16", labels=["a"], until="relu2_1", weights=weights / "vgg16_oxford_conv1_1-2_1_hwio_bgr.npz"
    )
    assert first.preprocessing == CONVENTIONS["caffe"]
    assert tuple(first.network.features[0].weight.shape) == (64, 3, 3, 3)
