from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import vggkit as vk
from conftest import draw_class, fill_folder
from vggkit.data_checks.inspection import ImageRecord
from vggkit.data_checks.label_errors import (
    FOLDS,
    assign_folds,
    estimate_labels,
    extract_features,
    find_mislabelled,
    find_outliers,
    group_copies,
)
from vggkit.engines.pytorch import PyTorchEngine
from vggkit.images.dataset import ImageSample
from vggkit.images.near_duplicates import NearDuplicate
from vggkit.models.configuration import Configuration
from vggkit.workflows.check import check

pytest.importorskip("cleanlab")


def make_records(labels: np.ndarray | list[int]) -> list[ImageRecord]:
    return [ImageRecord("all", ImageSample(str(number), f"c{label:03d}")) for number, label in enumerate(labels)]


def draw_blobs(counts: list[int], *, size: int = 32, apart: float = 2.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = apart * rng.standard_normal((len(counts), size))
    return (centres[labels] + rng.standard_normal((len(labels), size)) + 10).astype(np.float32), labels


def flagged(finding) -> list[int]:
    return [int(case.members[0].path) for case in finding.cases] if finding else []


def test_only_swapped_labels_are_flagged():
    features, truth = draw_blobs([60] * 4)
    given = truth.copy()
    wrong = np.random.default_rng(1).choice(len(truth), 12, replace=False)
    given[wrong] = (given[wrong] + 1) % 4
    finding = find_mislabelled(make_records(given), features, np.arange(len(truth)))
    assert set(flagged(finding)) == set(wrong)
    assert all(case.suggestion == f"c{truth[int(case.members[0].path)]:03d}" for case in finding.cases)
    assert finding.cases[0].detail.startswith("labelled c")


def test_correct_labels_are_not_flagged():
    features, labels = draw_blobs([60] * 4)
    assert find_mislabelled(make_records(labels), features, np.arange(len(labels))) is None


def test_uninformative_features_flag_nothing():
    features, labels = draw_blobs([60] * 4, apart=0.0)
    assert len(flagged(find_mislabelled(make_records(labels), features, np.arange(len(labels))))) <= 2


def test_hard_classes_flag_few_labels():
    features, labels = draw_blobs([100] * 4, apart=0.2)
    estimate = estimate_labels(features, labels, np.arange(len(labels)))
    assert 0.3 < (estimate.probabilities.argmax(1) == labels).mean() < 0.8
    assert len(flagged(find_mislabelled(make_records(labels), features, np.arange(len(labels))))) <= 8


def test_groups_stay_in_one_fold():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 5, 300), rng.integers(0, 90, 300)
    folds = assign_folds(labels, groups)
    assert set(folds) == set(range(FOLDS))
    assert all(len(set(folds[groups == group])) == 1 for group in groups)


def test_each_class_is_spread_over_the_folds():
    labels = np.repeat([0, 1, 2], [7, 60, 200])
    folds = assign_folds(labels, np.arange(len(labels)))
    for label, most in ((0, 1), (1, 7), (2, 21)):
        assert max(Counter(folds[labels == label]).values()) <= most


def test_copies_are_held_out_together():
    features, labels = draw_blobs([40] * 3)
    features = np.concatenate([features, np.repeat(features[:1], 8, axis=0)])
    given = np.concatenate([labels, np.full(8, 2)])
    groups = np.concatenate([np.arange(len(labels)), np.zeros(8, int)])
    found = flagged(find_mislabelled(make_records(given), features, groups))
    assert set(found) == set(range(len(labels), len(given)))


def test_groups_join_copies_near_copies_and_named_groups():
    images = [ImageSample(str(number), "a", group="g" if number in (3, 4) else None) for number in range(7)]
    digests = [b"1", b"2", b"1", b"3", b"4", b"5", b""]
    records = [ImageRecord("all", p, digest=d) for p, d in zip(images, digests, strict=True)]
    numbers = group_copies(records, [NearDuplicate(1, 5, 0.9)])
    assert numbers[0] == numbers[2]
    assert numbers[1] == numbers[5]
    assert numbers[3] == numbers[4]
    assert len(set(numbers)) == 4


@pytest.mark.parametrize(
    "counts",
    [[1, 1, 1], [3], [5, 5], [4, 4], [6, 100, 3], [1, 50], [2] * 10, [6] * 100, [5, 1000]],
    ids=lambda counts: f"{len(counts)} classes, {min(counts)} to {max(counts)}",
)
def test_degenerate_class_sizes_give_no_error(counts: list[int]):
    features, labels = draw_blobs(counts)
    for some in (features, np.zeros_like(features), np.full_like(features, np.nan), features[:, :1]):
        find_mislabelled(make_records(labels), some, np.arange(len(labels)))
        find_outliers(make_records(labels), some)


def test_a_class_of_copies_alone_is_not_checked():
    features, labels = draw_blobs([30, 30, 12])
    groups = np.where(labels == 2, 0, np.arange(len(labels)) + 1)
    assert not set(flagged(find_mislabelled(make_records(labels), features, groups))) & set(
        np.flatnonzero(labels == 2)
    )
    assert find_mislabelled(make_records(labels[30:]), features[30:], groups[30:]) is None


def test_fewer_images_than_features_and_equal_features_stay_finite():
    for features, labels in (draw_blobs([8, 8], size=300), (np.ones((16, 40), np.float32), np.repeat([0, 1], 8))):
        estimate = estimate_labels(features, labels, np.arange(16))
        assert np.isfinite(estimate.probabilities).all()
        assert np.isfinite(estimate.wrong).all()
        assert np.allclose(estimate.probabilities.sum(1), 1)


def test_held_out_predictions_are_those_of_scikit_learn():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    from vggkit.data_checks.label_errors import predict_held_out

    features, labels = draw_blobs([30, 50, 40], apart=0.3)
    wide = (features - features.mean(0)) / features.std(0)
    wide = wide.astype(np.float64)
    folds = assign_folds(labels, np.arange(len(labels)))
    logits = predict_held_out(wide, labels, folds, weights=np.ones(len(labels)), shrinkages=[1e-9])[1e-9]
    ours = np.exp(logits - logits.max(1, keepdims=True))
    theirs = np.empty_like(ours)
    for fold in range(FOLDS):
        model = LinearDiscriminantAnalysis(solver="lsqr").fit(wide[folds != fold], labels[folds != fold])
        theirs[folds == fold] = model.predict_proba(wide[folds == fold])
    np.testing.assert_allclose(ours / ours.sum(1, keepdims=True), theirs, atol=1e-6)


def test_outliers_are_found_even_several_of_one_kind():
    features, labels = draw_blobs([150] * 4, apart=0.5)
    strange = np.random.default_rng(2).standard_normal((6, 32)).astype(np.float32) * 0.1 + 30
    found = flagged(find_outliers(make_records([*labels, 0, 1, 2, 3, 0, 1]), np.concatenate([features, strange])))
    assert set(range(600, 606)) <= set(found)
    assert len(found) <= 6 + 6


def test_a_small_distinct_class_is_no_outlier():
    features, labels = draw_blobs([300, 300, 14], apart=0.5)
    features[labels == 2] += 15
    assert not set(flagged(find_outliers(make_records(labels), features))) & set(np.flatnonzero(labels == 2))


def test_features_come_one_row_an_image(tiny: Configuration):
    classifier = vk.Classifier.create(tiny, labels=["across", "down", "red"], seed=1)
    records = [ImageRecord("all", ImageSample(f"{n}", "red", pixels=draw_class("red", n))) for n in range(5)]
    heard: list[tuple[int, int]] = []
    features = extract_features(classifier, records, batch_size=2, on_progress=lambda *done: heard.append(done))
    assert features.shape == (5, 24)
    assert heard[-1] == (5, 5)
    assert np.isfinite(features).all()
    fed = np.stack([classifier.preprocessing(record.image.decode()) for record in records])
    expected = PyTorchEngine(classifier.network, torch.device("cpu"), output="statistics").run(fed)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_check_of_a_dataset_too_small_for_label_checks(tiny: Configuration, tmp_path: Path):
    fill_folder(tmp_path, ("across", "down"), 2)
    classifier = vk.Classifier.create(tiny, labels=["across", "down", "red"], seed=1)
    diagnosis = check(tmp_path, classifier, device="cpu")
    assert diagnosis.find("few") is not None
    assert diagnosis.find("mislabelled") is None


@pytest.mark.slow
def test_swapped_photographs_are_found(shared: Path):
    weights = shared / "weights" / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth"
    classifier = vk.Classifier.create("vgg19", labels=["a", "b"], until="relu3_4", head="pool", weights=weights)
    paths = [path for label in range(10) for path in sorted((shared / "sign_digits" / str(label)).iterdir())[:30]]
    labels = np.array([int(path.parent.name) for path in paths])
    rng = np.random.default_rng(0)
    wrong = rng.choice(len(labels), 15, replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, 15)) % 10
    records = [ImageRecord("all", ImageSample(str(p), str(n))) for p, n in zip(paths, labels, strict=True)]
    features = extract_features(classifier, records, device="cpu")
    finding = find_mislabelled(records, features, np.arange(len(labels)))
    found = {int(np.flatnonzero([str(p) == case.members[0].path for p in paths])[0]) for case in finding.cases}
    assert len(found & set(wrong)) >= 9
    assert len(found) <= 25
