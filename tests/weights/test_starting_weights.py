"""Classifiers that start from files in any dialect: what is taken, what is told, and what the images become."""

from dataclasses import replace

import pytest
import torch

from vggkit.classifier import Classifier
from vggkit.errors import BadCheckpoint
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG
from vggkit.weights.convert import convert
from vggkit.weights.input_conventions import CONVENTIONS

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
    with pytest.raises(BadCheckpoint, match="it contains a custom VGG, not VGG13: 8 convolutions"):
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


def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def save_classifier(path, configuration=SLIM, labels=LABELS, **options):
    """A Classifier's file, and the Classifier."""
    made = Classifier.create(configuration, labels=labels, seed=3, **options)
    with torch.no_grad():
        for value in made.network.parameters():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(4)), alpha=0.1)
    made.save(path)
    return made


def logits_by_name(classifier):
    with torch.inference_mode():
        return dict(zip(classifier.labels, classifier.network.eval()(images()).T, strict=True))


HEADS = {
    "fc": {},
    "dense": {"head": "dense"},
    "pool": {"head": "pool"},
    "cut": {"until": "relu2_1"},
    "fc6": {"until": "fc6"},
    "rank": {},
}


@pytest.mark.parametrize("head", list(HEADS))
def test_the_same_classes_in_another_order_keep_their_own_rows(head, tmp_path):
    network = replace(SLIM, ranks=(4, None, 5)) if head == "rank" else SLIM
    source = save_classifier(tmp_path / "x.safetensors", network, **HEADS[head])
    found = Classifier.create(network, labels=list("ecabd"), weights=tmp_path / "x.safetensors", **HEADS[head])
    expected, now = logits_by_name(source), logits_by_name(found)
    for label in LABELS:
        torch.testing.assert_close(now[label], expected[label], msg=label)
    told = found.provenance["weights"]
    assert told["random"] == []
    assert told["renewed"] is None
    assert "order" in told["classes"]


@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("labels", ["vwxyz", "abcdz", "bcdez"])
def test_as_many_other_classes_renew_the_last_layer_and_say_so(head, labels, tmp_path):
    network = replace(SLIM, ranks=(4, None, 5)) if head == "rank" else SLIM
    source = save_classifier(tmp_path / "x.safetensors", network, **HEADS[head])
    found = Classifier.create(network, labels=list(labels), weights=tmp_path / "x.safetensors", **HEADS[head])
    told = found.provenance["weights"]
    last = f"classifier.{found.configuration.fully_connected[-1].index}."
    assert told["random"]
    assert all(key.startswith(last) for key in told["random"])
    assert "a, b, c, d, e" in told["renewed"]
    state = source.network.state_dict()
    for key, value in found.network.state_dict().items():
        assert torch.equal(value, state[key]) != key.startswith(last), key


def test_names_that_differ_in_case_and_spaces_only_are_the_same_class_and_it_is_said(tmp_path):
    source = save_classifier(tmp_path / "x.safetensors", labels=["Ant", "bee ", "caf\u00e9", "d", "e"])
    near = ["bee", "ant", "cafe\u0301", "e", "d"]
    found = Classifier.create(SLIM, labels=near, weights=tmp_path / "x.safetensors")
    assert found.labels == tuple(near)
    expected, now = logits_by_name(source), logits_by_name(found)
    for theirs, ours in {"Ant": "ant", "bee ": "bee", "caf\u00e9": "cafe\u0301", "d": "d"}.items():
        torch.testing.assert_close(now[ours], expected[theirs])
    assert "'Ant' for 'ant'" in found.provenance["weights"]["classes"]
    # Where two would be the same class, none is.
    save_classifier(tmp_path / "y.safetensors", labels=["a", "A", "b", "c", "d"])
    other = Classifier.create(SLIM, labels=["a ", " A", "b", "c", "d"], weights=tmp_path / "y.safetensors")
    assert other.provenance["weights"]["renewed"]


def test_the_labels_that_a_converted_file_keeps_are_compared_too(tmp_path):
    source = save_classifier(tmp_path / "x.safetensors")
    path = convert(tmp_path / "x.safetensors", tmp_path / "t.safetensors", to="timm").target
    found = Classifier.create(SLIM, labels=list("badce"), weights=path)
    torch.testing.assert_close(logits_by_name(found)["a"], logits_by_name(source)["a"])
    assert Classifier.create(SLIM, labels=list("vwxyz"), weights=path).provenance["weights"]["renewed"]


def test_weights_that_name_no_classes_keep_their_head_and_it_is_said(source):
    found = Classifier.create(SLIM, labels=list("vwxyz"), weights=source)
    told = found.provenance["weights"]
    assert (told["renewed"], told["random"]) == (None, [])
    assert "state no classes" in told["classes"]
    assert "v, w, x, y, z" in told["classes"]


def test_a_layer_that_was_not_the_last_one_is_none_here(tmp_path):
    """Its rows are features, were they as many as the classes."""
    save_classifier(tmp_path / "x.safetensors")
    names = [f"n{number}" for number in range(14)]  # as many as fc7 has outputs
    found = Classifier.create(
        SLIM, labels=names, weights=tmp_path / "x.safetensors", until="fc6", allow_partial=True
    )
    assert set(found.provenance["weights"]["random"]) == {"classifier.3.weight", "classifier.3.bias"}
