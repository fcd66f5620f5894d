"""What a person sees who types an object's name: in Python, in a notebook, and by `help`."""

import dataclasses
import pydoc
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

import vggkit as vk
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.notebook import write_html
from vggkit.workflows.fit_and_record import TrainingRun

HOSTILE = "<script>alert(1)</script>&\x1b[2J\n"
LABELS = ("across", HOSTILE, "red")


@pytest.fixture(scope="module")
def classifier(tiny):
    return vk.Classifier.create(tiny, labels=LABELS, preprocessing=choose_preprocessing(32), seed=1)


@pytest.fixture(scope="module")
def dataset():
    pixels = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), np.uint8)
    samples = [
        ("train" if number % 2 else "val", vk.ImageSample(f"{number}", LABELS[number % 3], image))
        for number, image in enumerate(pixels)
    ]
    return vk.ImageDataset.of(HOSTILE, samples)


@pytest.fixture(scope="module")
def shown(classifier, dataset):
    """Objects by their classes."""
    evaluation = classifier.evaluate(dataset, split="val")
    epochs = [vk.Epoch(number, 0.1, 1.0, 0.9, 0.5, 3.0) for number in (1, 2)]
    run = TrainingRun(classifier, Path(HOSTILE), tuple(epochs), 2, evaluation)
    summary = vk.summarize(classifier)
    return {type(each): each for each in (classifier, dataset, evaluation, run, summary)}


KINDS = [vk.Classifier, vk.ImageDataset, vk.Evaluation, vk.TrainingRun, vk.Summary]


@pytest.mark.parametrize("kind", KINDS)
def test_a_notebook_shows_a_table_in_which_everything_is_escaped(shown, kind):
    html = shown[kind]._repr_html_()
    found = ET.fromstring(f"<div>{html}</div>")
    assert {each.tag for each in found.iter()} <= {"div", "table", "caption", "tr", "th", "td"}
    assert len(list(found.iter("tr"))) > 3
    assert "\x1b" not in html
    assert kind is vk.Summary or "&lt;script&gt;" in html


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_short(shown, kind):
    said = repr(shown[kind])
    assert said.startswith(f"{kind.__name__}(")
    assert len(said.replace(repr(HOSTILE)[1:-1], "").replace(HOSTILE, "")) < 200
    assert kind is vk.Evaluation or kind is vk.TrainingRun or "\n" not in said


def test_names_of_vectors_and_predictions(shown, classifier, dataset):
    assert repr(shown[vk.Evaluation].predictions) == "Predictions(6 images, 3 classes)"
    vectors = classifier.embed(dataset.split("val"), layer="logits")
    assert repr(vectors) == "Embeddings(logits of 6 images, 3 numbers each)"
    assert (
        repr(vk.ImageDataset("pets", ("cat",), dataset.splits))
        == "ImageDataset('pets', 1 classes, train: 6, val: 6)"
    )


def test_a_summary_is_printed_as_a_table():
    text = str(vk.summarize("vgg11"))
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"^conv1_1 +64x224x224 +1,792 ", text, re.MULTILINE)
    assert re.search(r"^total +132,863,336 ", text, re.MULTILINE)
    assert vk.summarize("vgg11") == vk.summarize(vk.configure("vgg11"))


def test_of_many_rows_some_are_shown():
    html = write_html("many", [(number, number) for number in range(100)])
    assert html.count("<tr>") == 30
    assert "and 71 more" in html


@pytest.mark.parametrize(
    "kind",
    [
        value
        for value in (getattr(vk, name) for name in sorted(vk.__all__))
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    ],
    ids=lambda kind: kind.__name__,
)
def test_help_documents_each_field(kind):
    text = " ".join(pydoc.plain(pydoc.render_doc(kind)).replace("|", " ").split())
    undocumented = [field.name for field in dataclasses.fields(kind) if f" {field.name}: " not in text]
    assert undocumented == []


def test_help_of_a_recipe_says_what_the_shell_says():
    text = " ".join(vk.Recipe.__doc__.split())
    assert "epochs: Number of passes over the training images; trainable=head needs none." in text
    assert "seed: Seed of every random draw." in text
