"""A Classifier's methods are the package's functions, with the same options by the same names."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vggkit as vk
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.models.configuration import Configuration
from vggkit.weights.hub import push


@pytest.fixture(scope="module")
def classifier(tiny: Configuration) -> vk.Classifier:
    return vk.Classifier.create(
        tiny, labels=["across", "down", "red"], preprocessing=choose_preprocessing(32), seed=1
    )


@pytest.mark.parametrize(
    ("method", "function", "left_out"),
    [
        (vk.Classifier.predict, vk.predict, set()),
        (vk.Classifier.embed, vk.embed, set()),
        (vk.Classifier.evaluate, vk.evaluate, {"name"}),
        (vk.Classifier.bench, vk.bench, {"columns"}),
        (vk.Classifier.push_to_hub, push, set()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_options_are_those_of_the_function(
    method: Callable[..., Any], function: Callable[..., Any], left_out: set[str]
) -> None:
    def options(called: Callable[..., Any]) -> dict[str, tuple[object, object]]:
        _, *others = inspect.signature(called).parameters.values()
        return {each.name: (each.default, each.kind) for each in others if each.name not in left_out}

    assert options(method) == options(function)


def test_images_of_every_kind_are_predicted_alike(classifier, photos, tmp_path):
    file = photos / "val" / "red" / "100.png"
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    pixels = np.asarray(image)
    kinds = [file, str(file), image, pixels, file.read_bytes(), [file], [image, pixels], pixels[None]]
    found = [classifier.predict(kind, top=2) for kind in kinds]
    assert [len(predictions) for predictions in found] == [1, 1, 1, 1, 1, 1, 2, 1]
    for predictions in found:
        for prediction in predictions:
            assert prediction.labels == found[0][0].labels
            assert prediction.probabilities == pytest.approx(found[0][0].probabilities, abs=1e-6)
    assert len(classifier.predict(photos / "val")) == 15


def test_vectors(classifier, photos):
    found = classifier.embed(photos / "val" / "red", layer="relu3_1")
    assert isinstance(found, vk.Embeddings)
    assert found.vectors.shape == (5, 8)


def test_metrics_and_a_comparison(classifier, photos, tmp_path):
    evaluation = classifier.evaluate(photos, split="val")
    assert evaluation.n == 15
    classifier.save(tmp_path / "same.safetensors")
    for other in (classifier, tmp_path / "same.safetensors", str(tmp_path / "same.safetensors")):
        compared = classifier.compare(other, photos, split="val", names=("A", "B"))
        assert (compared.first, compared.second, compared.difference) == ("A", "B", 0)
        assert compared.changes == ()
    others = vk.Classifier.create("vgg11", labels=["across", "up"], until="pool1")
    with pytest.raises(vk.VggkitError, match=r"up|down"):
        classifier.compare(others, photos, split="val")


def test_opened_from_a_file_and_a_run(classifier, tmp_path):
    run = tmp_path / "run"
    classifier.save(run / "best.safetensors")
    (run / "config.yaml").write_text("", encoding="utf-8")
    for place in (run / "best.safetensors", run, str(run)):
        for opened in (vk.load(place), vk.Classifier.from_pretrained(place)):
            assert type(opened) is vk.Classifier
            assert opened.labels == classifier.labels


def test_a_model_with_the_verbs_shares_its_network(classifier):
    plain = vk.Model(classifier.network, labels=classifier.labels, preprocessing=classifier.preprocessing)
    plain.calibrate(temperature=2.0, about={})
    made = vk.Classifier.of(plain)
    assert made.network is plain.network
    assert (made.temperature, made.provenance) == (2.0, plain.provenance)
