"""Predictions averaged over an image, its mirror image and moves by one pixel."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import draw_class
from vggkit.classifier import Classifier
from vggkit.cli.main import main
from vggkit.engines.averaged_views import average_logits, list_views
from vggkit.errors import BadInput, UnknownName
from vggkit.images.dataset import ImageSample
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.inference.predict import predict
from vggkit.task import Activation
from vggkit.workflows.predict import predict_into

LABELS = ("across", "down", "red")
IMAGES = [ImageSample(f"memory/{n}", LABELS[n % 3], draw_class(LABELS[n % 3], n)) for n in range(6)]


@pytest.fixture
def classifier(tiny):
    return Classifier.create(tiny, labels=LABELS, preprocessing=choose_preprocessing(32), seed=0)


def average_with_torch(classifier, views):
    """Probabilities (N, K), by torch's own padding and flips."""
    inputs = torch.from_numpy(np.stack([classifier.preprocessing.see(image) for image in IMAGES]))
    wide = F.pad(inputs, (1, 1, 1, 1), mode="reflect")
    moved = [inputs]
    if views == "mirror-shift":
        moved += [wide[..., 2:, 2:], wide[..., :-2, :-2]]
    if views != "one":
        moved += [each.flip(-1) for each in moved]
    with torch.no_grad():
        network = classifier.network.eval()
        return torch.stack([network(each).double().softmax(1) for each in moved]).mean(0)


@pytest.mark.parametrize("engine", ["pytorch", "openvino", "onnx"])
@pytest.mark.parametrize("views", ["one", "mirror", "mirror-shift"])
def test_probabilities_are_means_over_the_views(classifier, views, engine):
    pytest.importorskip({"pytorch": "torch", "openvino": "openvino", "onnx": "onnxruntime"}[engine])
    expected = average_with_torch(classifier, views)
    for row, found in zip(expected, classifier.predict(IMAGES, views=views, engine=engine), strict=True):
        order = [LABELS.index(label) for label in found.labels]
        assert np.allclose(found.probabilities, row[order], atol=1e-5)


@pytest.mark.parametrize("views", ["mirror", "mirror-shift"])
def test_evaluation_averages_what_prediction_does(classifier, views, photos):
    found = classifier.evaluate(photos / "val", views=views)
    predicted = predict(classifier, [photos / "val"], views=views)
    rows = found.predictions
    assert views == "mirror" or "moved by one pixel, and mirrored" in found.protocol
    assert [prediction.labels[0] for prediction in predicted] == [rows.labels[n] for n in rows.predicted]
    if views == "mirror":
        same = classifier.evaluate(photos / "val", mirror=True)
        assert (same.top1, same.loss) == (found.top1, found.loss)


@pytest.mark.parametrize("task", ["single-label", "multi-label"])
def test_the_averages_logits_are_those_of_the_mean_probability(task):
    draws = np.random.default_rng(0)
    logits = [draws.normal(0, 5, (4, 3)).astype(np.float32) for _ in range(3)]
    activation = Activation(task, temperature=1.7)
    mean = np.mean([activation(each) for each in logits], axis=0)
    assert np.allclose(activation(average_logits(logits, activation)), mean, atol=1e-6)


def test_values_that_overflow_stay_visible():
    logits = [np.array([[1.0, np.inf]], np.float32), np.zeros((1, 2), np.float32)]
    assert not np.isfinite(average_logits(logits, Activation())).all()


def test_views_are_of_the_shape_of_the_inputs():
    inputs = np.arange(48, dtype=np.float32).reshape(1, 3, 4, 4)
    one, mirrored, up, _, down, _ = list_views(inputs, "mirror-shift")
    assert one is inputs
    assert np.array_equal(mirrored, inputs[..., ::-1])
    assert np.array_equal(up[..., :-1, :-1], inputs[..., 1:, 1:])
    assert np.array_equal(down[..., 1:, 1:], inputs[..., :-1, :-1])


def test_what_cannot_be_is_refused(classifier, photos, tmp_path, capsys):
    with pytest.raises(UnknownName, match="mirror"):
        classifier.predict(IMAGES, views="miror")
    with pytest.raises(BadInput, match="leave out mirror"):
        classifier.evaluate(photos / "val", views="mirror", mirror=True)
    with pytest.raises(BadInput, match="protocol=single"):
        classifier.evaluate(photos / "val", views="mirror", protocol="dense")
    with pytest.raises(BadInput, match="explain explains one"):
        predict_into(classifier, [photos / "val"], tmp_path / "a.csv", views="mirror", explain=tmp_path / "why")
    classifier.save(tmp_path / "net.safetensors")
    with pytest.raises(SystemExit, match="2"):
        main(["predict", str(tmp_path / "net.safetensors"), str(photos / "val"), "--views", "five"])
    assert "--views must be one, mirror or mirror-shift" in capsys.readouterr().err


def test_a_file_of_predictions_is_of_its_views(classifier, photos, tmp_path):
    classifier.save(tmp_path / "net.safetensors")
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    predict_into(classifier, [photos / "val"], files[0], top=1, views="mirror", precision="fp32")
    given = [str(tmp_path / "net.safetensors"), str(photos / "val"), "--views", "mirror", "--precision", "fp32"]
    with pytest.raises(SystemExit, match="0"):
        main(["predict", *given, "--top", "1", "--out", str(files[1]), "--quiet"])
    expected = [each.probabilities[0] for each in classifier.predict(photos / "val", views="mirror")]
    for file in files:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert [row["probability_1"] for row in rows] == pytest.approx(expected, abs=1e-6)
