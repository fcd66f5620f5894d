"""Figures of several labels an image, against scikit-learn, and the thresholds that decide."""

import csv

import numpy as np
import pytest
from sklearn import metrics

from vggkit import BadData, BadInput, compare_predictions, fuse
from vggkit.evaluation.calibration import fit_temperature
from vggkit.evaluation.label_predictions import MultiLabelPredictions, choose_thresholds, read_predictions
from vggkit.evaluation.metrics import score
from vggkit.evaluation.predictions import Predictions
from vggkit.evaluation.resampling import resample_areas
from vggkit.task import Activation

LABELS = ["sun", "sea", "fog", "unseen"]


def invent(n=240, *, seed=0, skill=2.0, thresholds=(0.4, 0.6, 0.3, 0.5), paths=None):
    """Predictions of a Classifier that knows something; the last class has no image."""
    rng = np.random.default_rng(seed)
    targets = np.random.default_rng(99).random((n, 4)) < (0.5, 0.3, 0.06, 0)
    logits = rng.normal(size=(n, 4)) + skill * (targets - 0.5)
    found = MultiLabelPredictions.of(
        logits, targets, labels=LABELS, paths=paths or [f"photos/{number}.jpg" for number in range(n)]
    )
    return MultiLabelPredictions(**{**vars_of(found), "thresholds": thresholds})


def vars_of(found):
    names = ("paths", "targets", "log_probabilities", "labels", "thresholds")
    return {name: getattr(found, name) for name in names}


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_figures_are_scikit_learns_on_the_table_that_was_written(tmp_path, ending):
    predictions = invent()
    found = score(predictions, data="photos", split="test")
    path = tmp_path / f"results.{ending}"
    predictions.save(path)
    read = read_predictions(path)
    assert isinstance(read, MultiLabelPredictions)
    true, decided, chances = read.targets, read.predicted, read.probabilities
    np.testing.assert_array_equal(decided, predictions.predicted)
    np.testing.assert_allclose(chances, predictions.probabilities, rtol=1e-6)
    seen = [0, 1, 2]
    expected = {
        "average_precision": metrics.average_precision_score(true[:, seen], chances[:, seen], average="macro"),
        "roc_auc": metrics.roc_auc_score(true[:, seen], chances[:, seen], average="macro"),
        "macro_f1": metrics.f1_score(true[:, seen], decided[:, seen], average="macro"),
        "macro_precision": metrics.precision_score(true[:, seen], decided[:, seen], average="macro"),
        "macro_recall": metrics.recall_score(true[:, seen], decided[:, seen], average="macro"),
        "micro_f1": metrics.f1_score(true, decided, average="micro"),
        "exact_match": metrics.accuracy_score(true, decided),
        "loss": np.mean([metrics.log_loss(true[:, k], chances[:, k], labels=[False, True]) for k in range(4)]),
        "top1": np.mean(true[np.arange(len(true)), chances.argmax(1)]),
    }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-6), name
        low, high = found.intervals[name]
        assert low < value < high, name
    assert found.task == "multi-label"
    assert found.main_figure == "average_precision"
    assert found.confusion == ()
    by_label = {each.label: each for each in found.classes}
    unseen = by_label["unseen"]
    assert unseen.average_precision is unseen.roc_auc is unseen.f1_interval is None
    assert by_label["sea"].f1 == pytest.approx(metrics.f1_score(true[:, 1], decided[:, 1]))
    assert [each.threshold for each in found.classes] == [0.4, 0.6, 0.3, 0.5]
    assert score(read, data="photos").micro_f1 == pytest.approx(found.micro_f1)
    if ending == "csv":
        with open(path, encoding="utf-8", newline="") as lines:
            first = next(csv.DictReader(lines))
        assert first["label"] == predictions.name_target(0)
        assert first["y_sun"] in "01"


def test_intervals_hold_the_figures_of_resampled_images():
    predictions = invent(n=120)
    found = score(predictions, data="x").intervals
    rng, drawn = np.random.default_rng(5), {"macro_f1": [], "average_precision": []}
    for _ in range(300):
        rows = rng.integers(0, 120, 120)
        true, decided, chances = (
            each[rows] for each in (predictions.targets, predictions.predicted, predictions.probabilities)
        )
        seen = true.any(0)
        drawn["macro_f1"].append(metrics.f1_score(true[:, seen], decided[:, seen], average="macro"))
        drawn["average_precision"].append(metrics.average_precision_score(true[:, seen], chances[:, seen]))
    for name, values in drawn.items():
        np.testing.assert_allclose(found[name], np.percentile(values, [2.5, 97.5]), atol=np.std(values) / 2)


def test_areas_of_one_resample_are_scikit_learns():
    predictions = invent(n=60)
    weights = np.random.default_rng(0).integers(0, 4, (3, 60)).astype(float)
    areas, precisions = resample_areas(predictions.probabilities, predictions.targets, weights)
    for row, weight in enumerate(weights):
        rows = np.repeat(np.arange(60), weight.astype(int))
        true, chances = predictions.targets[rows], predictions.probabilities[rows]
        seen = true.any(0)
        assert areas[row] == pytest.approx(metrics.roc_auc_score(true[:, seen], chances[:, seen]))
        assert precisions[row] == pytest.approx(metrics.average_precision_score(true[:, seen], chances[:, seen]))


def test_chosen_thresholds_give_the_highest_f1():
    predictions = invent(thresholds=())
    chosen = choose_thresholds(predictions)
    for k in (0, 1, 2):
        true, chances = predictions.targets[:, k], predictions.probabilities[:, k]
        best = max(metrics.f1_score(true, chances >= cut) for cut in np.unique(chances))
        assert metrics.f1_score(true, chances >= chosen[k]) == pytest.approx(best)
    few = MultiLabelPredictions(
        **{**vars_of(predictions), "targets": predictions.targets & (np.zeros(4) < [[1, 1, 0, 0]])}
    )
    common = choose_thresholds(few)
    assert common[2] == common[3]
    true, chances = few.targets.ravel(), few.probabilities.ravel()
    best = max(metrics.f1_score(true, chances >= cut) for cut in np.unique(chances))
    assert metrics.f1_score(true, chances >= common[2]) == pytest.approx(best)


def test_temperature_scaling_sees_every_decision_and_keeps_those_of_an_image_together():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(800, 3)) * 2
    targets = rng.random((800, 3)) < Activation("multi-label")(logits)
    stretched = MultiLabelPredictions.of(3 * logits, targets, labels=["a", "b", "c"])
    fit = fit_temperature(stretched)
    assert fit.temperature == pytest.approx(3, rel=0.12)
    assert fit.n == 800
    assert fit.ece_after < fit.ece_before / 3
    np.testing.assert_allclose(stretched.sharpen(3).probabilities, Activation("multi-label")(logits), rtol=1e-9)
    assert (
        fit_temperature(MultiLabelPredictions.of(logits[:20], targets[:20], labels=["a", "b", "c"])).temperature
        == 1
    )


def test_extreme_logits_stay_finite():
    logits = np.array([[800.0, -800.0], [40.0, -40.0], [0.0, 1e-3]])
    predictions = MultiLabelPredictions.of(logits, np.array([[1, 0], [0, 1], [1, 1]]), labels=["a", "b"])
    assert predictions.losses[0] == 0
    assert predictions.losses[1] == pytest.approx(40)
    np.testing.assert_allclose(
        predictions.sharpen(2).log_probabilities[1], Activation("multi-label", 2.0).log(logits)[1]
    )
    with pytest.raises(BadInput, match="no finite probabilities"):
        MultiLabelPredictions.of(np.array([[np.nan, 0.0]]), np.zeros((1, 2)), labels=["a", "b"])
    with pytest.raises(BadInput, match=r"targets are 0 or 1 for each class, \(3, 2\)"):
        MultiLabelPredictions.of(logits, np.array([0, 1, 0]), labels=["a", "b"])


def test_comparison_and_ensemble():
    paths = [f"photos/{number}.jpg" for number in range(240)]
    one, other = invent(seed=1, skill=1, paths=paths), invent(seed=2, skill=3, paths=paths)
    found = compare_predictions(one, other.reorder(LABELS[::-1]), names=("a", "b"))
    assert found.difference == pytest.approx(np.mean(other.correct) - np.mean(one.correct))
    assert "points of exact match" in found.describe()
    assert found.changes[0].label == one.name_target(one.paths.index(found.changes[0].path))
    both = fuse([score(one, data="x", model="a"), score(other, data="x", model="b")])
    assert both.predictions.probabilities[0, 0] == pytest.approx(
        (one.probabilities[0, 0] + other.probabilities[0, 0]) / 2
    )
    assert both.average_precision > score(one, data="x").average_precision
    single = Predictions.of(np.zeros((240, 4)), np.zeros(240, int), labels=LABELS, paths=paths)
    with pytest.raises(BadData, match="a is multi-label and b is single-label"):
        compare_predictions(one, single, names=("a", "b"))


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(BadInput, match="a threshold for each class"):
        score(invent(), data="x", wanted_precision=0.9)
    none = MultiLabelPredictions.of(np.zeros((3, 2)), np.zeros((3, 2)), labels=["a", "b"])
    with pytest.raises(BadData, match="none of the evaluated images has a label"):
        score(none, data="x")
