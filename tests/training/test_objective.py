"""Losses, targets and the last layer for several labels an image, against torch and scikit-learn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from vggkit import ImageSample, Recipe
from vggkit.training.augmentation import Mixing
from vggkit.training.distillation import diverge
from vggkit.training.logistic_regression import solve_head
from vggkit.training.objective import Objective, measure_map, number_targets, weigh_positives

LABELS = ("a", "b", "c")
IMAGES = [ImageSample(str(n), labels=each) for n, each in enumerate([("a", "b"), ("a",), (), ("a",), ("b", "a")])]


def test_targets_and_weights():
    targets = number_targets(IMAGES, LABELS, "multi-label")
    assert targets.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert targets.dtype == np.float32
    np.testing.assert_allclose(weigh_positives(IMAGES, LABELS), [1 / 4, 3 / 2, 1])
    assert number_targets([ImageSample("x", "c")], LABELS, "single-label").tolist() == [2]
    rare = [ImageSample(str(n), labels=("a",) if n == 0 else ()) for n in range(500)]
    assert weigh_positives(rare, ("a",)).tolist() == [100]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("balance", ["none", "weights"])
def test_the_loss_is_torchs(smoothing, balance):
    objective = Objective.of(Recipe(label_smoothing=smoothing, balance=balance), IMAGES, LABELS, "multi-label")
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.from_numpy(number_targets(IMAGES, LABELS, "multi-label"))
    weight = None if balance == "none" else weigh_positives(IMAGES, LABELS)
    expected = F.binary_cross_entropy_with_logits(
        logits, targets * (1 - smoothing) + smoothing / 2, pos_weight=weight
    )
    torch.testing.assert_close(objective.compute(logits, targets), expected)
    assert objective.weigh(targets) == 5
    measured = objective.measure(logits, targets)
    assert measured.loss == pytest.approx(F.binary_cross_entropy_with_logits(logits, targets).item())
    assert measured.macro_f1 == pytest.approx(
        metrics.f1_score(targets[:, :2], logits[:, :2] >= 0, average="macro", zero_division=0)
    )
    assert measured.map == pytest.approx(metrics.average_precision_score(targets[:, :2], logits[:, :2]))
    assert measured.top1 == pytest.approx(np.mean(targets.numpy()[range(5), logits.argmax(1)]))


def test_map_is_scikit_learns_with_ties_and_without_positives():
    rng = np.random.default_rng(0)
    scores, targets = rng.integers(0, 4, (50, 3)).astype(float), rng.random((50, 3)) < (0.3, 0.6, 0)
    assert measure_map(scores, targets) == pytest.approx(
        metrics.average_precision_score(targets[:, :2], scores[:, :2])
    )
    assert measure_map(scores, np.zeros((50, 3))) == 0


def test_mixed_images_have_shares_of_their_labels():
    targets = torch.from_numpy(number_targets(IMAGES, LABELS, "multi-label"))
    _, mixed = Mixing(0.4, 0.0, 3)(torch.zeros(5, 3, 8, 8), targets, seed=1)
    share = float(mixed[2, 0])  # the image without labels, mixed with one of a
    torch.testing.assert_close(mixed, torch.lerp(targets.roll(1, 0), targets, 1 - share))


def test_divergence_of_sigmoids_is_that_of_bernoulli_distributions():
    draw = torch.Generator().manual_seed(0)
    logits, wanted = torch.randn(4, 3, generator=draw), torch.randn(4, 3, generator=draw)
    pairs = (torch.distributions.Bernoulli(logits=wanted), torch.distributions.Bernoulli(logits=logits))
    expected = torch.distributions.kl_divergence(*pairs).mean()
    torch.testing.assert_close(diverge(logits, wanted, "multi-label"), expected)
    assert diverge(wanted, wanted, "multi-label").item() == pytest.approx(0, abs=1e-7)


def draw_rows(count=160, *, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 6)).astype(np.float32)
    features = (features - features.mean(0)) / features.std(0)
    chances = 1 / (1 + np.exp(-(features @ rng.normal(size=(6, 3)) * 1.5 - (0, 1, 2))))
    return features, (rng.random((count, 3)) < chances).astype(np.float32)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("strength", [0.3, 0.01])
def test_one_vs_rest_is_scikit_learns_for_each_class(strength, weighted):
    features, targets = draw_rows()
    weights = torch.tensor([2.0, 0.5, 4.0]) if weighted else None
    groups = np.arange(len(features))
    found = solve_head(features, targets, classes=3, groups=groups, class_weights=weights, strengths=[strength])
    for k in range(3):
        peer = LogisticRegression(C=1 / (strength * len(features)), tol=1e-10, max_iter=5000)
        counts = np.where(targets[:, k] > 0, 1 if weights is None else float(weights[k]), 1)
        peer.fit(features.astype(np.float64), targets[:, k], sample_weight=counts)
        np.testing.assert_allclose(found.weight[k], peer.coef_[0], atol=2e-3)
        np.testing.assert_allclose(found.bias[k], peer.intercept_[0], atol=2e-3)


def test_the_penalty_is_chosen_by_held_out_images():
    features, targets = draw_rows(400)
    found = solve_head(features, targets, classes=3, groups=np.arange(400), seed=1)
    assert found.task == "multi-label"
    assert len(found.tried) > 3
    chosen = next(trial for trial in found.tried if trial.strength == found.strength)
    assert chosen.loss == min(trial.loss for trial in found.tried)
    assert 0.5 < chosen.top1 < 1
    assert "labels and absences right" in found.describe()[0]
    rare = np.zeros((400, 3), np.float32)
    rare[0, 0] = rare[1:200, 1] = 1
    assert np.isfinite(solve_head(features, rare, classes=3, groups=np.arange(400)).weight).all()
