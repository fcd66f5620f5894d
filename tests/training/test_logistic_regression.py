"""The head that is solved at once, against scikit-learn's logistic regression and torch's own loss.

Shape letters: N rows, F features, K classes.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from vggkit.errors import BadData
from vggkit.training.logistic_regression import HeadSolution, divide, solve_head


def draw(count: int, width: int, classes: int, *, apart: float = 1.0, seed: int = 0):
    """Rows (N, F) of classes that overlap, on scales and correlations of all kinds; and their classes (N,)."""
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % classes
    middles = rng.normal(size=(classes, width)) * apart
    mixed = (middles[targets] + rng.normal(size=(count, width))) @ (
        np.eye(width) + 0.3 * rng.normal(size=(width, width))
    )
    features = mixed * rng.uniform(0.1, 30, width) + rng.normal(size=width) * 20
    return features.astype(np.float32), targets.astype(np.int64)


def solve(features, targets, *, classes: int, **options) -> HeadSolution:
    options.setdefault("groups", np.arange(len(targets)))
    return solve_head(features, targets, classes=classes, **options)


@pytest.mark.parametrize(("count", "width"), [(90, 8), (60, 150), (40, 40)], ids=["long", "wide", "square"])
@pytest.mark.parametrize("strength", [1.0, 0.03, 0.001])
def test_it_is_scikit_learns(count, width, strength):
    features, targets = draw(count, width, 3, apart=0.5)
    scaler = StandardScaler().fit(features.astype(np.float64))
    peer = LogisticRegression(C=1 / (strength * count), tol=1e-10, max_iter=20_000)
    peer.fit(scaler.transform(features.astype(np.float64)), targets)
    found = solve(features, targets, classes=3, strengths=[strength])
    expected = peer.coef_ / scaler.scale_
    np.testing.assert_allclose(found.weight, expected, atol=1e-4 * np.abs(expected).max())
    ours = features.astype(np.float64) @ found.weight.T + found.bias
    ours -= ours.mean(1, keepdims=True)
    theirs = peer.decision_function(scaler.transform(features.astype(np.float64)))
    theirs -= theirs.mean(1, keepdims=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_weights_and_smoothing_are_those_of_torchs_cross_entropy():
    features, targets = draw(80, 5, 3, apart=0.3)
    class_weights, smoothing, strength = torch.tensor([0.5, 1.0, 3.0]), 0.2, 0.05
    found = solve(
        features, targets, classes=3, class_weights=class_weights, label_smoothing=smoothing, strengths=[strength]
    )
    rows, right = torch.from_numpy(features).double(), torch.from_numpy(targets)
    weight = torch.from_numpy(found.weight).double().requires_grad_()
    bias = torch.from_numpy(found.bias).double().requires_grad_()
    loss = F.cross_entropy(rows @ weight.T + bias, right, weight=class_weights.double(), label_smoothing=smoothing)
    deviation = rows.std(0, correction=0)
    total = loss + strength / 2 * (weight * deviation).square().sum()
    pull, lean = torch.autograd.grad(total, [weight, bias])
    # Nothing moves at the lowest place, in units of standardised features.
    assert ((pull - lean[:, None] * rows.mean(0)) / deviation).abs().max() < 1e-5
    assert lean.abs().max() < 1e-5


def test_the_strength_is_that_of_the_least_held_out_loss_and_near_the_best():
    every, classes = draw(3_120, 200, 3, apart=0.12)
    features, targets, fresh, right = every[:120], classes[:120], every[120:], classes[120:]
    found = solve(features, targets, classes=3)
    losses = {trial.strength: trial.loss for trial in found.tried}
    assert found.strength == min(losses, key=losses.__getitem__)
    assert min(losses) < found.strength < max(losses)
    loss = {
        strength: F.cross_entropy(
            torch.from_numpy(fresh @ solved.weight.T + solved.bias), torch.from_numpy(right)
        ).item()
        for strength in losses
        for solved in [solve(features, targets, classes=3, strengths=[strength])]
    }
    assert loss[found.strength] < min(loss.values()) + 0.1
    assert found.describe()[0].startswith(f"penalty {found.strength:g}")


def test_held_out_figures_are_scikit_learns():
    features, targets = draw(60, 10, 3, apart=0.5)
    folds = divide(targets, np.arange(60), seed=3)
    found = solve(features, targets, classes=3, strengths=[0.1, 0.05], seed=3)
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    losses = np.empty(60)
    for fold in range(5):
        held = folds == fold
        peer = LogisticRegression(C=1 / (0.1 * (~held).sum()), tol=1e-9, max_iter=10_000)
        chances = peer.fit(scaled[~held], targets[~held]).predict_proba(scaled[held])
        losses[held] = -np.log(chances[np.arange(held.sum()), targets[held]])
    trial = found.tried[0]
    assert trial.strength == 0.1
    assert trial.loss == pytest.approx(losses.mean(), abs=2e-3)
    assert trial.loss_error == pytest.approx(losses.std(ddof=1) / 60**0.5, rel=0.02)


def test_the_strength_is_chosen_by_the_loss_that_is_made_small():
    """Held-out images count by their classes too; their mean is a weighted one, and so is its error."""
    features, targets = draw(60, 10, 3, apart=0.5)
    targets[targets == 2] = np.where(np.arange(20) < 6, 2, 0)
    class_weights = torch.tensor([0.5, 1.0, 4.0])
    folds = divide(targets, np.arange(60), seed=3)
    found = solve(features, targets, classes=3, strengths=[0.1, 0.05], seed=3, class_weights=class_weights)
    weights = class_weights.double().numpy()[targets]
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    losses = np.empty(60)
    for fold in range(5):
        held = folds == fold
        peer = LogisticRegression(
            C=1 / (0.1 * weights[~held].sum()), class_weight={0: 0.5, 1: 1.0, 2: 4.0}, tol=1e-9, max_iter=10_000
        )
        chances = peer.fit(scaled[~held], targets[~held]).predict_proba(scaled[held])
        losses[held] = -np.log(chances[np.arange(held.sum()), targets[held]])
    mean = (losses * weights).sum() / weights.sum()
    error = np.sqrt(60 / 59 * (weights**2 * (losses - mean) ** 2).sum()) / weights.sum()
    trial = found.tried[0]
    assert trial.loss == pytest.approx(mean, abs=2e-3)
    assert trial.loss_error == pytest.approx(error, rel=0.02)
    assert abs(losses.mean() - mean) > 0.05 * mean, "else either would do"


class TestFolds:
    def test_groups_stay_whole_and_classes_are_spread(self):
        targets, groups = np.repeat(np.arange(4), 30), np.arange(120) // 3
        folds = divide(targets, groups, seed=1)
        assert all(len(set(folds[groups == group])) == 1 for group in range(40))
        counts = np.array([[((folds == f) & (targets == c)).sum() for c in range(4)] for f in range(5)])
        assert (counts == 6).all()
        assert (folds != divide(targets, groups, seed=2)).any()
        assert (folds == divide(targets, groups, seed=1)).all()

    def test_copies_across_folds_would_look_better_than_they_are(self):
        features, targets = draw(40, 60, 2, apart=0.0)  # nothing to learn but by heart
        copies, classes = np.repeat(features, 4, axis=0), np.repeat(targets, 4)
        honest = solve(copies, classes, classes=2, groups=np.repeat(np.arange(40), 4))
        fooled = solve(copies, classes, classes=2)
        assert max(trial.top1 for trial in honest.tried) < 0.75
        assert max(trial.top1 for trial in fooled.tried) > 0.95
        # Four copies tell no more than one.
        single = solve(features, targets, classes=2, strengths=[1.0, 0.5]).tried[0]
        many = solve(copies, classes, classes=2, groups=np.repeat(np.arange(40), 4), strengths=[1.0, 0.5]).tried[0]
        assert many.top1_error == pytest.approx(single.top1_error, rel=0.3)


class TestOddData:
    def test_constant_features_have_no_weight(self):
        features, targets = draw(30, 4, 2)
        features[:, 1], features[:, 2] = 7.3, 0.0
        found = solve(features, targets, classes=2)
        assert (found.weight[:, 1:3] == 0).all()
        assert np.abs(found.weight[:, [0, 3]]).min() > 0

    def test_all_features_constant_leave_the_frequencies(self):
        targets = np.array([0] * 30 + [1] * 10)
        found = solve(np.ones((40, 3), np.float32), targets, classes=2, strengths=[0.1])
        assert np.exp(found.bias - np.log(np.exp(found.bias).sum())) == pytest.approx([0.75, 0.25], abs=1e-4)

    def test_separable_classes_are_told_apart(self):
        features, targets = draw(60, 6, 3, apart=20.0)
        found = solve(features, targets, classes=3)
        assert np.isfinite(found.weight).all()
        assert ((features @ found.weight.T + found.bias).argmax(1) == targets).all()

    def test_a_class_of_one_image(self):
        features, targets = draw(41, 6, 2, apart=3.0)
        targets[40] = 2
        features[40] += 1000
        found = solve(features, targets, classes=3)
        assert all(np.isfinite(trial.loss) and trial.loss < 2 for trial in found.tried)
        assert ((features @ found.weight.T + found.bias).argmax(1) == targets).mean() > 0.9

    @pytest.mark.parametrize("count", [1, 2, 3, 4])
    def test_fewer_images_than_folds(self, count):
        features, targets = draw(count, 6, 2, apart=5.0)
        found = solve(features, targets, classes=2)
        assert np.isfinite(found.weight).all()
        assert ((features @ found.weight.T + found.bias).argmax(1) == targets).all()
        assert found.describe()

    def test_a_class_without_images_is_hardly_ever_given(self):
        features, targets = draw(40, 6, 2, apart=3.0)
        found = solve(features, targets, classes=4)
        assert found.weight.shape == (4, 6)
        assert set((features @ found.weight.T + found.bias).argmax(1)) == {0, 1}

    def test_features_that_are_not_finite_are_refused(self):
        features, targets = draw(10, 3, 2)
        features[3, 1] = np.inf
        with pytest.raises(BadData, match="not finite"):
            solve(features, targets, classes=2)

    def test_large_matrices_are_solved_in_float32(self, monkeypatch):
        features, targets = draw(90, 30, 3)
        exact = solve(features, targets, classes=3, strengths=[0.1])
        monkeypatch.setattr("vggkit.training.penalized_problem.WIDE", 10)
        rough = solve(features, targets, classes=3, strengths=[0.1])
        assert not (rough.weight == exact.weight).all()
        np.testing.assert_allclose(rough.weight, exact.weight, atol=0.02 * np.abs(exact.weight).max())


def test_progress_and_repetition():
    features, targets = draw(50, 8, 2)
    heard = []
    first = solve(features, targets, classes=2, on_progress=lambda done, total: heard.append((done, total)))
    again = solve(features, targets, classes=2)
    assert heard == [(done, 13) for done in range(1, len(first.tried) + 1)]
    assert (first.weight == again.weight).all()
