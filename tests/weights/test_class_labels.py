"""Class names in every form that people have them in: in the order of the logits, or refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vggkit
from vggkit.classifier import Classifier, load
from vggkit.errors import BadConfiguration
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration
from vggkit.models.vgg import VGG

SMALL = Preprocessing(resize_pixels=32, crop_pixels=32)
NAMES = ("b", "a c", "Käfer 🐞")


class Named:
    """A row of names as pandas has them: an index beside the values."""

    ndim = 1

    def __iter__(self):
        return iter(NAMES)

    def __len__(self) -> int:
        return 3


def create(labels: object) -> Classifier:
    return Classifier.create(
        Configuration(blocks=((3,),), head="pool", hidden=()), labels=labels, preprocessing=SMALL
    )


@pytest.mark.parametrize(
    "labels",
    [
        NAMES,
        list(NAMES),
        np.array(NAMES),
        np.array(NAMES, object),
        [np.str_(name) for name in NAMES],
        (name for name in NAMES),
        dict.fromkeys(NAMES).keys(),
        Named(),
        {"a c": 1, "b": 0, "Käfer 🐞": 2},
        {"a c": np.int64(1), "b": np.uint8(0), "Käfer 🐞": torch.tensor(2)},
        {2: "Käfer 🐞", 0: "b", 1: "a c"},
        {np.int64(2): np.str_("Käfer 🐞"), 0: "b", 1: "a c"},
    ],
    ids=lambda value: type(value).__name__,
)
def test_names_stand_in_the_order_of_the_logits(labels: object, tmp_path: Path) -> None:
    classifier = create(labels)
    assert classifier.labels == NAMES
    assert all(type(label) is str for label in classifier.labels)
    classifier.save(tmp_path / "x.safetensors")
    assert load(tmp_path / "x.safetensors").labels == NAMES


@given(st.permutations(list("abcdefghijkl")))
def test_mappings_both_ways_agree_with_the_list(names: list[str]) -> None:
    network = VGG(Configuration(blocks=((3,),), head="pool", hidden=(), num_classes=12))
    numbered = sorted(enumerate(names), key=lambda pair: pair[1])
    for labels in (names, {name: number for number, name in numbered}, dict(numbered)):
        assert Classifier(network, labels=labels, preprocessing=SMALL).labels == tuple(names)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("ant", r"labels=\['ant'\].*read_text"),
        (Path("names.txt"), "read_text"),
        (b"ant", r"labels=\['ant', 'bee'\]"),
        (3, r"range\(3\)"),
        (np.int64(3), r"range\(3\)"),
        (2.5, r"labels=\['ant', 'bee'\]"),
        (True, "got True"),
        ([0, 1, 2], r"\[str\(label\) for label in labels\]"),
        (np.arange(3), r"\[str\(label\) for label in labels\]"),
        (torch.arange(3), r"\[str\(label\) for label in labels\]"),
        ([b"a", b"b"], "write names as text"),
        ([Path("a")], "write names as text"),
        (["a", float("nan")], "write names as text"),
        (["a", None], "write names as text"),
        ([["a"], ["b"]], "write names as text"),
        (np.array([["a", "b"]]), "labels must be the names"),
        (np.array("a"), "labels must be the names"),
        ({"a"}, r"sorted\(labels\)"),
        (frozenset("a"), r"sorted\(labels\)"),
        ({"a": 0, "b": 2}, "0 to 1, each once"),
        ({"a": 1, "b": 2}, "0 to 1, each once"),
        ({"a": 0, "b": 0}, "0 to 1, each once"),
        ({"a": -1, "b": 0}, "0 to 1, each once"),
        ({1: "a", 2: "b"}, "0 to 1, each once"),
        ({0: 1, 1: 0}, "a mapping is of names"),
        ({"a": "0", "b": "1"}, "a mapping is of names"),
        ({"0": "a", "1": "b"}, "a mapping is of names"),
        ({"a": 0.0, "b": 1.0}, "a mapping is of names"),
        ({"a": False, "b": True}, "a mapping is of names"),
        ({}, "a mapping is of names"),
        ({0: "a", 1: b"b"}, "write names as text"),
        ([], "num_classes"),
        (["a", "a"], "differ"),
        (["a", ""], "not empty"),
        (["a", " "], "not be empty"),
        (["ant", " ant"], "outer spaces"),
        (["ant\n", "ant", "bee"], "outer spaces"),
    ],
    ids=repr,
)
def test_what_is_no_row_of_names_is_refused(labels: object, said: str) -> None:
    with pytest.raises(BadConfiguration, match=said):
        create(labels)


def test_spaces_of_a_single_name_are_its_own() -> None:
    assert create(["ant ", "bee"]).labels == ("ant ", "bee")


def test_without_labels_those_of_the_weights_are_taken(tmp_path: Path) -> None:
    small = Configuration(blocks=((3,),), head="pool", hidden=(), num_classes=2)
    state = VGG(small).state_dict()
    torch.save({"state_dict": state, "class_to_idx": {"tulip": 1, "rose": 0}}, tmp_path / "x.pth")
    for options in ({}, {"labels": None}):
        found = Classifier.create(small, weights=tmp_path / "x.pth", preprocessing=SMALL, **options)
        assert found.labels == ("rose", "tulip")
        assert not found.origin.random_keys
    scope = {"vk": vggkit}
    exec(str(vggkit.identify(tmp_path / "x.pth").load_line), scope)
    assert scope["clf"].labels == ("rose", "tulip")
    with pytest.raises(BadConfiguration, match="the weights state no classes; write labels="):
        Classifier.create(small, weights=state, preprocessing=SMALL)
    with pytest.raises(BadConfiguration, match="no weights that state classes; write labels="):
        Classifier.create(small, preprocessing=SMALL)
