"""Metrics against independent implementations, and calibration."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from vggkit.errors import BadData, BadInput, BadOutput
from vggkit.evaluation.calibration import find_ece, find_threshold, fit_temperature, reject_below
from vggkit.evaluation.comparison import compare_predictions, fuse, mcnemar_p_value
from vggkit.evaluation.evaluation import proportion_interval
from vggkit.evaluation.metrics import find_intervals, score
from vggkit.evaluation.predictions import Predictions, average
from vggkit.evaluation.resampling import resample_areas
from vggkit.task import log_softmax


def invent(n=300, classes=6, *, seed=0, skill=1.5, labels=None, sureness=1.0):
    """Answers of a Classifier that knows something."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), targets] += skill
    labels = labels or [f"class {number}" for number in range(classes)]
    return Predictions.of(
        (sureness * logits).astype(np.float32), targets, labels=labels, paths=[f"photos/{k}.jpg" for k in range(n)]
    )


@pytest.mark.parametrize("classes", [2, 6])
def test_figures_are_scikit_learns_on_the_table_that_was_written(tmp_path, classes):
    """Every number of an evaluation, computed from the file alone."""
    found = score(invent(classes=classes), data="photos", split="test", model="vgg11", protocol="single")
    found.predictions.save(tmp_path / "results.csv")
    with open(tmp_path / "results.csv", encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    truth, said = [row["label"] for row in rows], [row["prediction"] for row in rows]
    chances = np.array([[float(row[f"p_{label}"]) for label in found.labels] for row in rows])
    numbers = [found.labels.index(label) for label in truth]
    assert found.n == len(rows)
    assert found.top1 == metrics.accuracy_score(truth, said) == np.mean([row["correct"] == "1" for row in rows])
    assert found.top5 == pytest.approx(np.mean([int(row["rank"]) <= 5 for row in rows]))
    if classes > 5:
        assert found.top5 == metrics.top_k_accuracy_score(numbers, chances, k=5)
    assert found.loss == pytest.approx(metrics.log_loss(numbers, chances))
    assert found.loss == pytest.approx(np.mean([float(row["loss"]) for row in rows]))
    assert found.macro_f1 == pytest.approx(metrics.f1_score(truth, said, average="macro"))
    assert found.macro_precision == pytest.approx(metrics.precision_score(truth, said, average="macro"))
    assert found.macro_recall == pytest.approx(metrics.balanced_accuracy_score(truth, said))
    assert np.array_equal(found.confusion, metrics.confusion_matrix(truth, said, labels=found.labels))
    binary = np.eye(classes)[numbers]
    assert found.roc_auc == pytest.approx(metrics.roc_auc_score(binary, chances, average="macro"))
    assert found.average_precision == pytest.approx(metrics.average_precision_score(binary, chances))
    sure, right = chances.max(1), np.array(truth) == np.array(said)
    gaps = [
        abs(right[inside].mean() - sure[inside].mean()) * inside.mean()
        for k in range(15)
        if (inside := (sure > k / 15) & (sure <= (k + 1) / 15)).any()
    ]
    assert found.ece == pytest.approx(sum(gaps))
    assert sum(each.n for each in found.calibration.bins) == found.n
    report = metrics.classification_report(truth, said, output_dict=True)
    for each in found.classes:
        assert (each.precision, each.recall, each.f1, each.support) == pytest.approx(
            tuple(report[each.label][name] for name in ("precision", "recall", "f1-score", "support"))
        )
    read = Predictions.read(tmp_path / "results.csv")
    again = score(read, data=found.data, split=found.split, model="vgg11", protocol="single")
    assert json.dumps(again.to_dict()) == json.dumps(found.to_dict())


def test_the_table_is_the_same_as_parquet_and_holds_any_name(tmp_path):
    labels = ["path", 'a "quoted", name', "vögel"]
    predictions = invent(classes=3, n=20, labels=labels)
    for name in ("results.csv", "results.parquet"):
        predictions.save(tmp_path / name)
        read = Predictions.read(tmp_path / name)
        assert read.labels == tuple(labels)
        assert read.paths == predictions.paths
        assert np.array_equal(read.targets, predictions.targets)
        assert np.array_equal(read.predicted, predictions.predicted)
        np.testing.assert_allclose(read.log_probabilities, predictions.log_probabilities, rtol=1e-14)
    table = pq.read_table(tmp_path / "results.parquet").to_pandas()
    assert table["correct"].mean() == predictions.correct.mean()
    for name in ("results.txt", "results"):
        with pytest.raises(BadOutput, match=r"\.csv or \.parquet"):
            predictions.save(tmp_path / name)


def test_other_tables_are_refused(tmp_path):
    with pytest.raises(BadData, match="no such file"):
        Predictions.read(tmp_path / "none.csv")
    for name, text in (("a.csv", "path,label\nx.jpg,cat\n"), ("b.csv", "\x00\x01"), ("c.parquet", "no")):
        (tmp_path / name).write_text(text)
        with pytest.raises(BadData, match="table"):
            Predictions.read(tmp_path / name)


def test_probabilities_too_small_for_a_float_are_kept_by_the_loss(tmp_path):
    predictions = Predictions.of(np.array([[2000.0, 0.0], [0.0, 900.0]]), np.array([1, 1]), labels=["a", "b"])
    predictions.save(tmp_path / "results.csv")
    assert score(predictions, data="x").loss == 1000
    assert Predictions.read(tmp_path / "results.csv").losses.tolist() == [2000, 0]


@given(st.integers(2, 6), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_ranks_are_those_of_a_stable_sort(classes, n, seed):
    """Of equal logits the first class counts as the better."""
    rng = np.random.default_rng(seed)
    logits, targets = rng.integers(-1, 2, (n, classes)).astype(float), rng.integers(0, classes, n)
    predictions = Predictions.of(logits, targets, labels=list(map(str, range(classes))))
    order = np.argsort(-logits, axis=1, kind="stable")
    assert (predictions.predicted == order[:, 0]).all()
    assert (order[np.arange(n), predictions.ranks - 1] == targets).all()
    np.testing.assert_allclose(predictions.probabilities.sum(1), 1)


def test_a_mean_of_probabilities_is_one_of_probabilities():
    logs = [log_softmax(np.random.default_rng(k).normal(size=(4, 3)) * 5) for k in range(3)]
    np.testing.assert_allclose(np.exp(average(logs)), np.mean(np.exp(logs), axis=0))


@pytest.mark.slow
def test_bootstrap_intervals_are_those_of_resampled_tables():
    """By resampling rows and asking scikit-learn, slowly, for each figure."""
    predictions = invent(n=150, classes=3, seed=4)
    intervals, each_f1 = find_intervals(predictions)
    rng = np.random.default_rng(99)
    drawn = {name: [] for name in ("top1", "loss", "macro_f1", "roc_auc", "average_precision", "f1 of 0")}
    for _ in range(600):
        rows = rng.integers(0, 150, 150)
        targets, given_, chances = (
            predictions.targets[rows],
            predictions.predicted[rows],
            predictions.probabilities[rows],
        )
        binary = np.eye(3)[targets]
        drawn["top1"].append((targets == given_).mean())
        drawn["loss"].append(predictions.losses[rows].mean())
        f1s = metrics.f1_score(targets, given_, average=None)
        drawn["macro_f1"].append(f1s.mean())
        drawn["f1 of 0"].append(f1s[0])
        drawn["roc_auc"].append(metrics.roc_auc_score(binary, chances))
        drawn["average_precision"].append(metrics.average_precision_score(binary, chances))
    for name, values in drawn.items():
        found = each_f1[0] if name == "f1 of 0" else intervals[name]
        np.testing.assert_allclose(found, np.percentile(values, [2.5, 97.5]), atol=np.std(values) / 2)
        low, high = found
        assert low < np.median(values) < high
    assert find_intervals(predictions)[0] == intervals, "the same table gives the same intervals"


def test_resampled_areas_are_scikit_learns_with_ties():
    from vggkit.evaluation.metrics import _resample_classes

    rng = np.random.default_rng(1)
    predictions = Predictions.of(
        rng.integers(0, 3, (60, 3)).astype(float), rng.integers(0, 3, 60), labels=["a", "b", "c"]
    )
    weights = rng.integers(0, 4, (5, 60)).astype(float)
    true = predictions.targets[:, None] == np.arange(3)
    areas, precisions = resample_areas(predictions.probabilities, true, weights)
    _, _, f1 = _resample_classes(predictions, weights)
    for row, weight in enumerate(weights):
        rows = np.repeat(np.arange(60), weight.astype(int))
        binary, chances = np.eye(3)[predictions.targets[rows]], predictions.probabilities[rows]
        assert areas[row] == pytest.approx(metrics.roc_auc_score(binary, chances))
        assert precisions[row] == pytest.approx(metrics.average_precision_score(binary, chances))
        assert f1[row] == pytest.approx(
            metrics.f1_score(predictions.targets[rows], predictions.predicted[rows], average=None)
        )


def test_a_share_of_all_or_none_gets_an_interval_all_the_same():
    predictions = invent(n=30, skill=50)
    assert predictions.correct.all()
    assert find_intervals(predictions)[0]["top1"] == proportion_interval(30, 30)
    assert find_intervals(invent(n=30, classes=9, skill=-50))[0]["top5"] == proportion_interval(0, 30)


def test_a_class_without_images_counts_in_no_mean():
    predictions = invent(classes=4)
    kept = predictions.targets != 3
    fewer = Predictions(
        paths=tuple(np.array(predictions.paths)[kept]),
        targets=predictions.targets[kept],
        log_probabilities=predictions.log_probabilities[kept],
        labels=predictions.labels,
    )
    found = score(fewer, data="x")
    assert found.classes[3].support == 0
    assert found.classes[3].f1_interval is found.classes[3].roc_auc is found.classes[3].average_precision is None
    assert found.macro_f1 == pytest.approx(
        metrics.f1_score(fewer.targets, fewer.predicted, average="macro", labels=[0, 1, 2])
    )
    low, high = found.intervals["macro_f1"]
    assert low < found.macro_f1 < high
    only = Predictions.of(np.zeros((5, 2)), np.zeros(5, int), labels=["a", "b"])
    assert score(only, data="x").roc_auc is None
    assert "roc_auc" not in score(only, data="x").intervals


@pytest.mark.slow
def test_thousands_of_classes_take_seconds():
    found = score(invent(n=500, classes=1000, skill=3), data="x")
    assert len(found.classes) == 1000
    assert set(found.intervals) >= {"top1", "macro_f1", "roc_auc", "average_precision", "ece", "loss"}


@pytest.mark.parametrize("sureness", [0.5, 3.0])
def test_the_temperature_is_found_again(sureness):
    """Logits that were stretched: the temperature is what they were stretched by, to what chance allows."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=(4000, 5)) * 2
    chances = np.exp(log_softmax(true))
    targets = np.array([rng.choice(5, p=row) for row in chances])
    predictions = Predictions.of(sureness * true, targets, labels=list("abcde"))
    fit = fit_temperature(predictions)
    assert fit.temperature == pytest.approx(sureness, rel=0.08)
    assert fit.loss_after < fit.loss_before
    assert fit.ece_after < fit.ece_before
    assert find_ece(predictions.sharpen(fit.temperature)) < 0.03
    losses = [predictions.sharpen(fit.temperature * f).losses.mean() for f in (0.97, 1.0, 1.03)]
    assert losses[1] == min(losses)
    assert "calibration error" in fit.describe()


def test_a_temperature_that_helps_nobody_is_not_taken():
    rng = np.random.default_rng(3)
    true = rng.normal(size=(40, 3))
    targets = np.array([rng.choice(3, p=row) for row in np.exp(log_softmax(true))])
    fit = fit_temperature(Predictions.of(true, targets, labels=list("abc")))
    assert (fit.temperature, fit.loss_after, fit.ece_after) == (1, fit.loss_before, fit.ece_before)
    assert "no other" in fit.describe()
    perfect = fit_temperature(invent(n=20, classes=3, skill=30))
    assert perfect.temperature > 0.2, "images that are all told right do not make it boundlessly sure"
    one = fit_temperature(invent(n=1, classes=3))
    assert one.temperature == 1


def test_a_temperature_that_raises_the_calibration_error_is_not_taken():
    """Most predictions are true to their probabilities, and a few are boundlessly sure and often wrong."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=(400, 3)) * 2
    targets = np.array([rng.choice(3, p=row) for row in np.exp(log_softmax(true))])
    true[:12] = 0
    true[:12, 0], targets[:12] = 40, 1
    fit = fit_temperature(Predictions.of(true, targets, labels=list("abc")))
    assert fit.loss_after < fit.loss_before
    assert fit.ece_after > fit.ece_before
    assert fit.temperature == 1
    assert fit.refused is not None
    assert f"{fit.refused:.3g} would lower" in fit.describe()


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.3, 1.0), st.floats(0.5, 4))
def test_the_threshold_is_the_lowest_that_gives_the_precision(seed, wanted, skill):
    predictions = invent(n=60, classes=3, seed=seed, skill=skill)
    found = find_threshold(predictions, wanted)
    cuts = [
        reject_below(predictions, cut, wanted_precision=None) for cut in [0.0, *np.unique(predictions.confidences)]
    ]
    good = [cut for cut in cuts if cut.precision is not None and cut.precision >= wanted]
    if found is None:
        assert not good
    else:
        assert found.precision >= wanted
        assert found.coverage == max(cut.coverage for cut in good)
        kept = predictions.confidences >= found.threshold
        assert found.n == kept.sum()
        assert found.precision == predictions.correct[kept].mean()


@pytest.mark.parametrize("wanted", [0, -1, 1.5, float("nan")])
def test_a_precision_is_a_share(wanted):
    with pytest.raises(BadInput, match="above 0"):
        find_threshold(invent(), wanted)


def test_a_precision_that_cannot_be_had_is_told():
    predictions = Predictions.of(np.array([[9.0, 0], [1.0, 0]]), np.array([1, 0]), labels=["a", "b"])
    assert find_threshold(predictions, 0.9) is None
    assert "no threshold" in score(predictions, data="x", wanted_precision=0.9).notes[0]


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_test(first, second):
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar_p_value(first, second) == pytest.approx(min(1, expected))


def test_many_images_are_compared_too():
    assert mcnemar_p_value(5000, 5400) == pytest.approx(stats.binomtest(5000, 10400).pvalue)


def measured(predictions, name):
    return score(predictions, data="photos", split="test", model=name, protocol="single")


def test_two_are_compared_image_by_image():
    first, second = invent(seed=1, skill=1.0), invent(seed=1, skill=2.0)
    found = compare_predictions(first, second, names=("A", "B"))
    gain = second.correct.astype(int) - first.correct
    assert found.difference == pytest.approx(second.correct.mean() - first.correct.mean())
    assert (found.only_first, found.only_second) == ((gain < 0).sum(), (gain > 0).sum())
    assert found.both_correct + found.both_wrong + found.only_first + found.only_second == found.n == 300
    rng = np.random.default_rng(5)
    means = [gain[rng.integers(0, 300, 300)].mean() for _ in range(4000)]
    np.testing.assert_allclose(found.interval, np.percentile(means, [2.5, 97.5]), atol=0.01)
    assert found.p_value < 0.001
    assert "significant" in found.describe()
    assert len(found.changes) == found.only_first + found.only_second
    change = found.changes[0]
    place = first.paths.index(change.path)
    assert change.label == first.labels[first.targets[place]]
    assert (change.first, change.second) == (
        first.labels[first.predicted[place]],
        first.labels[second.predicted[place]],
    )
    same = compare_predictions(first, first, names=("A", "A"))
    assert (same.difference, same.p_value, same.changes) == (0, 1, ())
    assert "not significant" in same.describe()
    json.dumps(found.to_dict())


def turn(predictions, order):
    """The same answers of a Classifier that has its classes in another order, images too."""
    rows = np.random.default_rng(0).permutation(len(predictions))
    return Predictions(
        paths=tuple(predictions.paths[row] for row in rows),
        targets=np.argsort(order)[predictions.targets[rows]],
        log_probabilities=predictions.log_probabilities[rows][:, order],
        labels=tuple(predictions.labels[k] for k in order),
    )


def test_classes_and_images_are_matched_by_name_not_by_place():
    predictions = invent(classes=4)
    other = turn(predictions, [2, 0, 3, 1])
    assert compare_predictions(predictions, other, names=("A", "B")).difference == 0
    fused = fuse([measured(predictions, "A"), measured(other, "B")])
    assert fused.model == "A + B"
    assert "averaged" in fused.protocol
    np.testing.assert_allclose(fused.predictions.probabilities, predictions.probabilities)
    assert fused.predictions.paths == predictions.paths


def test_fusing_averages_probabilities():
    one, two = invent(seed=1), invent(seed=1, skill=0.5, sureness=2)
    fused = fuse([measured(one, "A"), measured(two, "B")])
    np.testing.assert_allclose(fused.predictions.probabilities, (one.probabilities + two.probabilities) / 2)


def test_what_has_nothing_in_common_is_not_compared():
    one = measured(invent(classes=3), "A")
    with pytest.raises(BadData, match=r"A and B have different classes \(class 3\)"):
        compare_predictions(one.predictions, invent(classes=4), names=("A", "B"))
    elsewhere = invent(classes=3)
    moved = Predictions(
        paths=tuple(f"other/{k}" for k in range(300)),
        targets=elsewhere.targets,
        log_probabilities=elsewhere.log_probabilities,
        labels=elsewhere.labels,
    )
    with pytest.raises(BadData, match="same images"):
        fuse([one, measured(moved, "B")])


def test_an_image_that_is_listed_twice_counts_twice():
    once = invent(n=10, classes=2, skill=0.5)
    twice = Predictions(
        paths=(*once.paths, once.paths[0]),
        targets=np.append(once.targets, 1 - once.targets[0]),
        log_probabilities=np.vstack([once.log_probabilities, once.log_probabilities[:1]]),
        labels=once.labels,
    )
    assert fuse([measured(twice, "A"), measured(twice, "B")]).top1 == twice.correct.mean()
    with pytest.raises(BadData, match="listed twice"):
        compare_predictions(twice, once)


def test_few_images_fit_no_temperature_and_show_no_false_intervals():
    few = invent(n=12, classes=3, skill=30)
    assert fit_temperature(few).temperature == 1
    assert "at least 30 needed" in fit_temperature(few).describe()
    found = score(few, data="x")
    assert "macro_f1" not in found.intervals
    assert found.classes[0].f1_interval is None
    assert found.intervals["top1"] == proportion_interval(12, 12)
