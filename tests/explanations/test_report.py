"""The report's most confident errors with their heatmaps."""

import numpy as np
import pytest

import vggkit as vk
from conftest import draw_class
from vggkit.evaluation.metrics import score
from vggkit.images.preprocessing import Preprocessing
from vggkit.reports.evaluation_page import Story, write_report
from vggkit.workflows.explain_errors import explain_errors

LABELS = ("across", "down", "red")


def make(tiny, side):
    seen = Preprocessing(resize_pixels=side, crop_pixels=side)
    return vk.Classifier.create(tiny, labels=LABELS, preprocessing=seen, seed=3)


@pytest.fixture(scope="module")
def images():
    return [vk.ImageSample(f"{n}.png", LABELS[n % 3], draw_class(LABELS[n % 3], n, side=72)) for n in range(9)]


@pytest.fixture(scope="module")
def predictions(images):
    """Half of them wrong, whatever a network says of the images."""
    rng = np.random.default_rng(0)
    targets = np.array([LABELS.index(each.label) for each in images])
    logits = rng.normal(size=(9, 3)) + 3 * np.eye(3)[(targets + np.arange(9) % 2) % 3]
    return vk.Predictions.of(logits, targets, labels=LABELS, paths=[each.path for each in images])


def test_errors_are_explained_for_the_predicted_class(tiny, images, predictions, tmp_path):
    classifier = make(tiny, 64)
    found = explain_errors(classifier, predictions, images)
    wrong = {path for path, correct in zip(predictions.paths, predictions.correct, strict=True) if not correct}
    assert found.keys() == wrong
    for place, path in enumerate(predictions.paths):
        if path in wrong:
            label = LABELS[predictions.predicted[place]]
            [expected] = classifier.explain(images[place], label=label)
            assert found[path].label == label
            np.testing.assert_allclose(found[path].map, expected.map, rtol=0.1, atol=0.02 * expected.map.max())
    evaluation = score(predictions, data="photos", split="val", model="m", protocol="single")
    write_report([evaluation], tmp_path / "r.html", images=images, story=Story(provenance={}), explanations=found)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("colour marks what speaks for") == 1 + len(wrong)
    assert "grad-cam at relu5_2" in page
    write_report([evaluation], tmp_path / "r.html", images=images, story=Story(provenance={}))
    assert "colour marks" not in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_maps_of_two_places_a_side_are_left_out(tiny, images, predictions):
    assert explain_errors(make(tiny, 32), predictions, images) == {}
