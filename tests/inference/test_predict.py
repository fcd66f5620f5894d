import csv
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import WITHOUT_FEATURES, draw_class, fill_folder
from vggkit.classifier import Classifier
from vggkit.errors import BadConfiguration, BadData, BadInput
from vggkit.evaluation.evaluation import proportion_interval
from vggkit.evaluation.measure import evaluate
from vggkit.evaluation.predictions import Predictions
from vggkit.hardware import computes_bf16, multiplies_bytes
from vggkit.images.dataset import ImageDataset, ImageSample
from vggkit.images.preprocessing import Preprocessing, choose_preprocessing
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.inference.embed import embed
from vggkit.inference.predict import predict
from vggkit.models.vgg import VGG
from vggkit.training.feature_cache import extract_features
from vggkit.training.recipe import Recipe
from vggkit.workflows.check import check
from vggkit.workflows.predict import embed_into, predict_into

LABELS = ("across", "down", "red")


@pytest.fixture
def classifier(tiny):
    return Classifier.create(
        tiny, labels=LABELS, preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32), seed=0
    )


def test_predictions_are_the_softmax_of_the_networks_logits(classifier, photos):
    import torch

    paths = [str(p) for p in sorted((photos / "val").rglob("*.png"))]
    found = predict(classifier, paths, batch_size=4)
    assert [p.path for p in found] == paths
    for prediction in found:
        pixels = np.asarray(__import__("PIL.Image").Image.open(prediction.path))
        with torch.no_grad():
            logits = classifier.network.eval()(torch.from_numpy(classifier.preprocessing(pixels)[None]))[0]
        expected = torch.softmax(logits.double(), 0)
        best = expected.argsort(descending=True)
        assert list(prediction.labels) == [LABELS[i] for i in best]
        assert np.allclose(prediction.probabilities, expected[best], atol=1e-6)
        assert sum(prediction.probabilities) == pytest.approx(1)
    assert [p.labels for p in predict(classifier, photos / "val")] == [p.labels for p in found]


def test_predicting_leaves_the_network_as_it_was(classifier, photos):
    classifier.network.train()
    before = {k: v.clone() for k, v in classifier.network.state_dict().items()}
    predict(classifier, photos / "val", top=1)
    assert classifier.network.training
    assert all((before[k] == v).all() for k, v in classifier.network.state_dict().items())


def test_a_bad_image_becomes_a_prediction_with_its_problem(classifier, tmp_path):
    (tmp_path / "x.jpg").write_text("no")
    found = predict(classifier, [tmp_path / "x.jpg", ImageSample("memory", None, draw_class("red", 1))])
    assert found[0].labels == ()
    assert "x.jpg" in found[0].problem
    assert json.loads(json.dumps(found[0].to_dict()))["problem"] == found[0].problem
    assert "problem" not in found[1].to_dict()
    for options in ({"top": 0}, {"batch_size": 0}, {"device": "abacus"}):
        with pytest.raises(BadInput):
            predict(classifier, tmp_path / "x.jpg", **options)


def test_evaluation_equals_scikit_learn_on_the_predictions(classifier, photos):
    metrics = pytest.importorskip("sklearn.metrics")
    found = evaluate(classifier, photos)
    images = open_dataset(photos).split("val")
    predictions = predict(classifier, images, top=3)
    truth = [p.label for p in images]
    answer = [p.labels[0] for p in predictions]
    table = [[dict(zip(p.labels, p.probabilities, strict=True))[label] for label in LABELS] for p in predictions]
    assert found.n == 15
    assert found.top1 == pytest.approx(metrics.accuracy_score(truth, answer))
    assert found.loss == pytest.approx(metrics.log_loss(truth, table, labels=list(LABELS)), abs=1e-6)
    assert np.array_equal(found.confusion, metrics.confusion_matrix(truth, answer, labels=list(LABELS)))
    assert found.top5 == 1
    assert (found.data, found.split) == (str(photos), "val")
    assert found.source.endswith(", split val")
    json.dumps(found.to_dict())


@given(st.integers(0, 500), st.integers(1, 500))
def test_the_interval_is_wilsons(hits, n):
    stats = pytest.importorskip("scipy.stats")
    hits = min(hits, n)
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert proportion_interval(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_classes_are_matched_by_name_and_strangers_are_told(classifier, tmp_path):
    fill_folder(tmp_path, ("down", "zebra"), 3)
    found = evaluate(classifier, tmp_path)
    assert found.n == 3
    assert sum(map(sum, found.confusion)) == sum(found.confusion[1]) == 3
    assert any("zebra" in note for note in found.notes)
    assert any("across" in note and "red" in note for note in found.notes)
    fill_folder(tmp_path / "only", ("zebra",), 2)
    with pytest.raises(BadData, match="zebra"):
        evaluate(classifier, tmp_path / "only")


def test_unreadable_images_are_counted_out_and_named(classifier, tmp_path):
    fill_folder(tmp_path, LABELS, 2)
    (tmp_path / "red" / "broken.jpg").write_text("x")
    found = evaluate(classifier, tmp_path)
    assert found.n == 6
    assert len(found.unreadable) == 1
    assert "broken.jpg" in found.unreadable[0]
    with pytest.raises(BadData, match="split test"):
        evaluate(classifier, tmp_path, split="test")


def test_a_frozen_batch_norm_stays_frozen(classifier, photos):
    classifier.network.train()
    classifier.network.features[1].eval()
    predict(classifier, photos / "val")
    assert not classifier.network.features[1].training
    assert classifier.network.features[2].training


def test_a_classifier_in_half_precision_answers(classifier, photos):
    expected = predict(classifier, photos / "val")
    classifier.network.bfloat16()
    found = predict(classifier, photos / "val")
    for one, other in zip(expected, found, strict=True):
        there = dict(zip(other.labels, other.probabilities, strict=True))
        assert all(
            abs(there[label] - chance) < 0.05 for label, chance in zip(one.labels, one.probabilities, strict=True)
        )


def read_rows(path) -> list[dict[str, str]]:
    with open(path, newline="") as lines:
        return list(csv.DictReader(lines))


def test_images_come_in_any_way(classifier, photos, tmp_path):
    path = photos / "val" / "red" / "100.png"
    image = Image.open(path)
    pixels = np.asarray(image)
    one = predict(classifier, path, engine="pytorch")[0]
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    alike = {
        "image 0": [pixels, path.read_bytes(), tensor, [pixels], iter([pixels]), pixels[None], tensor[None]],
        "mine": [ImageSample("mine", pixels=image), [ImageSample("mine", pixels=tensor)]],
        str(path): [
            str(path),
            [path],
            np.array([str(path)]),
            np.array([path]),
            image,
            Image.open(path),
            (each for each in [image]),
        ],
    }
    for name, several in alike.items():
        for each in several:
            assert predict(classifier, each, engine="pytorch") == [replace(one, path=name)]
    vector = embed(classifier, path).vectors
    for each in (pixels, image, tensor, path.read_bytes(), [ImageSample("mine", pixels=pixels)]):
        assert np.array_equal(embed(classifier, each).vectors, vector)
    heard = []
    predict(classifier, [pixels] * 3, on_progress=lambda done, total: heard.append((done, total)))
    assert heard == [(1, 3), (2, 3), (3, 3)]
    # As many as go to another engine.
    batch = np.stack([pixels, pixels[::-1]] * 10)
    several = predict(classifier, batch)
    assert [each.path for each in several] == [f"image {number}" for number in range(20)]
    assert np.allclose(several[18].probabilities, one.probabilities, atol=1e-5)
    # Bulk work reads what it is given more than once.
    with open(path, "rb") as file:
        once = iter([file, pixels, Image.open(path)])
        assert predict_into(classifier, once, tmp_path / "found.csv").images == 3
    rows = read_rows(tmp_path / "found.csv")
    assert [row["path"] for row in rows] == [str(path), "image 1", str(path)]
    assert {row["label_1"] for row in rows} == {one.labels[0]}


@pytest.mark.parametrize("give", [lambda pixels: pixels, lambda pixels: [pixels], lambda pixels: iter([pixels])])
def test_pixels_that_could_mean_several_things_are_refused(classifier, give):
    pixels = draw_class("red", 1)
    for wrong in (pixels / 255, pixels.transpose(2, 0, 1), pixels.astype(np.uint16), pixels.astype(object)):
        for ask in (predict, embed):
            with pytest.raises(BadInput, match=r"image 0: array"):
                ask(classifier, give(wrong))
    for nothing in ([], iter(()), np.zeros((0, 40, 40, 3), np.uint8), None):
        for ask in (predict, embed):
            with pytest.raises(BadInput):
                ask(classifier, nothing)


def test_a_network_of_grey_images_takes_them(tiny):
    grey = Classifier.create(
        tiny, labels=LABELS, in_channels=1, preprocessing=choose_preprocessing(32, in_channels=1), seed=0
    )
    plane = draw_class("red", 1)[..., 0]
    found = predict(grey, [plane, plane[..., None], np.repeat(plane[..., None], 3, 2), Image.fromarray(plane)])
    assert len({each.probabilities for each in found}) == 1
    for channels in (2, 5):
        with pytest.raises(BadConfiguration, match=f"in_channels={channels}"):
            Classifier.create(tiny, labels=LABELS, in_channels=channels)
        network = VGG(tiny, in_channels=channels)
        with pytest.raises(BadConfiguration, match="channels"):
            Classifier(network, labels=LABELS, preprocessing=Preprocessing())


def overflow(classifier: Classifier, value: float) -> Classifier:
    """Each of its kernels is full of a value, by turns negative."""
    with torch.no_grad():
        for module in classifier.network.features:
            if isinstance(module, torch.nn.Conv2d):
                module.weight.fill_(value)[1::2] *= -1
    return classifier


ENGINES = [("pytorch", "fp32"), ("pytorch", "bf16"), ("openvino", "bf16"), ("onnx", "fp32")]
ENGINES += [pytest.param("openvino", "fp32", marks=pytest.mark.slow)]


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("engine", "precision"), ENGINES)
@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_values_that_overflow_are_said(classifier, photos, tmp_path, engine, precision, value):
    for package in {"openvino": ("openvino",), "onnx": ("onnx", "onnxruntime")}.get(engine, ()):
        pytest.importorskip(package)
    options = {"engine": engine, "precision": precision}
    overflow(classifier, value)
    for count in (1, 15):
        paths = sorted((photos / "val").rglob("*.png"))[:count]
        for each in predict(classifier, paths, **options):
            assert (each.labels, each.probabilities, each.label, each.unknown) == ((), (), None, False)
            assert each.problem.startswith(f"{each.path}: the network's values overflow or are not numbers: 3 of 3")
    for layer in ("features", "probabilities", "relu3_1"):
        found = embed(classifier, photos / "val", layer=layer, **options)
        assert np.isnan(found.vectors).all()
        assert all("overflow" in problem for problem in found.problems)
    with pytest.raises(BadInput, match=r"^15 of 15 images have no finite probabilities.*overflow"):
        evaluate(classifier, photos, **options)
    result = predict_into(classifier, photos / "val", tmp_path / "found.csv", **options)
    assert (result.images, result.unreadable) == (15, 15)
    rows = read_rows(tmp_path / "found.csv")
    assert all("overflow" in row["problem"] and not row["label_1"] and not row["prediction"] for row in rows)
    embed_into(classifier, photos / "val", tmp_path / "found.parquet", **options)


def test_one_image_that_overflows_is_one_of_many(tiny):
    """Only the brightest of them does."""
    images = [np.full((40, 40, 3), level, np.uint8) for level in (9, 10, 11, 12, 13, 255, 14, 15, 16, 17)]
    torch.manual_seed(0)
    network = VGG(replace(tiny, batch_norm=False, statistics="mean"))
    seen = Preprocessing(resize_pixels=32, crop_pixels=32, mean=(0, 0, 0), std=(1, 1, 1))
    with torch.no_grad():
        for module in network.features:
            if isinstance(module, torch.nn.Conv2d):
                module.weight.abs_()
                module.bias.zero_()
        largest = network.features(torch.from_numpy(seen(images[5])[None])).max()
        network.features[0].weight.mul_(1e39 / largest.double())
    picky = Classifier(network, labels=LABELS, preprocessing=seen)
    for engine in ("pytorch", "openvino", "onnx", "ncnn"):
        pytest.importorskip({"pytorch": "torch", "onnx": "onnxruntime"}.get(engine, engine))
        found = predict(picky, images, engine=engine)
        assert [number for number, each in enumerate(found) if each.problem] == [5]
    held = ImageDataset.of("held", ((None, ImageSample(f"{n}", "red", image)) for n, image in enumerate(images)))
    with pytest.raises(BadInput, match=r"^1 of 10 images have no finite probabilities; the first is 5\. "):
        evaluate(picky, held)


def test_a_check_and_a_head_say_that_values_overflow(classifier, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("VGGKIT_HOME", str(tmp_path))
    overflow(classifier, float("nan"))
    with pytest.raises(BadInput, match=r"no finite features of 63 of 63 images.*overflow"):
        check(photos, classifier)
    with pytest.raises(BadInput, match="overflow"):
        extract_features(
            classifier,
            open_dataset(photos).split("val"),
            recipe=Recipe(),
            device=torch.device("cpu"),
            precision="fp32",
        )


def test_answers_are_numbers():
    logits = np.array([[1.0, 2.0], [np.inf, 0.0], [0.0, np.nan]])
    with pytest.raises(BadInput, match=r"^2 of 3 images have no finite probabilities; the first is 1\."):
        Predictions.of(logits, np.array([0, 1, 0]), labels=("a", "b"))


def test_a_temperature_and_a_threshold_speak_in_predictions(classifier, photos, tmp_path):
    plain = predict(classifier, photos / "val", top=3)
    classifier.calibrate(temperature=2.0, threshold=0.5, about={"n": 15})
    classifier.save(tmp_path / "c.safetensors")
    kept = Classifier.load(tmp_path / "c.safetensors")
    assert (kept.temperature, kept.threshold, kept.provenance["calibration"]) == (2.0, 0.5, {"n": 15})
    for before, after in zip(plain, predict(kept, photos / "val", top=3), strict=True):
        assert after.labels == before.labels
        softened = np.sqrt(before.probabilities)
        np.testing.assert_allclose(after.probabilities, softened / softened.sum(), rtol=1e-6)
        assert after.unknown == (after.probabilities[0] < 0.5)
        assert after.label == ("unknown" if after.unknown else after.labels[0])
        assert ("unknown" in after.to_dict()) == after.unknown
    found = evaluate(kept, photos)
    assert found.calibration.temperature == 2.0
    assert found.ece != found.calibration.ece_before
    assert found.rejection.threshold == 0.5
    assert found.rejection.n == sum(not p.unknown for p in predict(kept, photos / "val"))


def test_the_image_that_a_threshold_was_taken_from_is_known_to_every_engine(classifier, photos):
    for found in predict(classifier, photos / "val", top=1):  # by PyTorch or not, as there are more than a few
        classifier.calibrate(threshold=found.probabilities[0] * (1 + 3e-7), about={})
        assert not predict(classifier, found.path)[0].unknown
        classifier.calibrate(threshold=found.probabilities[0] * 1.001, about={})
        assert predict(classifier, found.path)[0].unknown


def test_files_of_earlier_formats_are_as_sure_as_ever(classifier):
    from vggkit.weights.card import Card

    values = classifier.card.to_dict()
    del values["temperature"], values["threshold"]
    old = Card.from_dict(values | {"format_version": 2})
    assert (old.temperature, old.threshold) == (1.0, 0.0)
    for name, wrong in (
        ("temperature", 0),
        ("temperature", "hot"),
        ("threshold", 1.5),
        ("threshold", float("nan")),
    ):
        with pytest.raises(BadConfiguration, match=name):
            Card.from_dict(values | {name: wrong, "format_version": 3})


@pytest.mark.parametrize("engine", ["auto", "openvino", "onnx"])
def test_every_engine_measures_the_same(classifier, photos, engine):
    pytest.importorskip({"auto": "torch", "onnx": "onnxruntime"}.get(engine, engine))
    expected = evaluate(classifier, photos, device="cpu", engine="pytorch")
    found = evaluate(classifier, photos, device="cpu", engine=engine)
    assert found.confusion == expected.confusion
    for name in ("top1", "loss", "macro_f1", "roc_auc", "average_precision", "ece"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-5)
    np.testing.assert_allclose(found.predictions.probabilities, expected.predictions.probabilities, atol=1e-5)
    assert found.notes == expected.notes


@pytest.mark.parametrize("engine", ["pytorch", "openvino"])
def test_what_is_not_computed_in_float32_is_noted(classifier, photos, engine):
    pytest.importorskip({"pytorch": "torch"}.get(engine, engine))
    exact = evaluate(classifier, photos)
    found = evaluate(classifier, photos, device="cpu", precision="bf16", engine=engine)
    said = "computed by PyTorch in bfloat16"
    if engine == "openvino":
        said = "computed by OpenVINO in bfloat16"
        if not computes_bf16("cpu"):
            said = "computed by OpenVINO in float32, because this processor has no fast bfloat16"
    assert [note.partition(";")[0] for note in found.notes if note not in exact.notes] == [said]
    assert said in json.dumps(found.to_dict())
    assert found.loss == pytest.approx(exact.loss, abs=0.02)


def test_auto_notes_bfloat16_where_it_is_taken(classifier, photos, able):
    found = evaluate(classifier, photos, device="cpu", precision="auto", engine="pytorch")
    assert any("PyTorch in bfloat16" in note for note in found.notes) == able


@pytest.mark.parametrize("without_vnni", [True, False])
def test_int8_is_measured_with_ranges_and_says_how_to_find_them(classifier, photos, set_flags, without_vnni):
    pytest.importorskip("openvino")
    from vggkit.engines.activation_ranges import measure_ranges

    with pytest.raises(BadConfiguration, match="--keep-ranges"):
        evaluate(classifier, photos, precision="int8", device="cpu")
    if without_vnni:
        set_flags(WITHOUT_FEATURES)
    fed = np.stack([classifier.preprocessing(p.decode()) for p in open_dataset(photos).split("val")])
    classifier.keep_ranges(measure_ranges(classifier.network, [fed]), about={})
    found = evaluate(classifier, photos, precision="int8", device="cpu")
    kind = "int8" if multiplies_bytes() else "int8 with 7-bit weights"
    assert f"computed by OpenVINO in {kind}; figures in float32 may differ" in found.notes
    assert found.loss == pytest.approx(evaluate(classifier, photos).loss, abs=0.05)
    assert evaluate(classifier, photos).notes == evaluate(classifier, photos, engine="pytorch").notes


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_that_lead_nowhere_are_named_in_python_too(classifier, photos, tmp_path):
    shutil.copytree(photos / "val" / "red", tmp_path / "red")
    (tmp_path / "red" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "red" / "notes.docx").write_text("x")
    with pytest.warns(UserWarning, match=r"skipped: .*gone"):
        predict(classifier, tmp_path / "red")
    found = embed(classifier, tmp_path / "red")
    assert [each.reason for each in found.skipped] == ["broken-link", "not-an-image"]


@pytest.mark.parametrize("verb", ["predict", "embed"])
def test_a_place_without_images_is_refused_before_an_engine_is_built(classifier, verb, tmp_path, monkeypatch):
    import importlib

    module = importlib.import_module(f"vggkit.inference.{verb}")
    monkeypatch.setattr(module, "find_engine", None)
    for place in (tmp_path, str(tmp_path / "nowhere"), []):
        with pytest.raises((BadData, BadInput)):
            getattr(module, verb)(classifier, place)
