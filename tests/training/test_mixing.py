import math

import pytest
import torch
from torchvision.transforms import v2

from vggkit.training.augmentation import Mixing
from vggkit.training.recipe import Recipe

IMAGES = torch.rand(5, 3, 12, 20, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 2, 1, 1, 3])


def mix(seed=0, **fields):
    mixing = Mixing.of(Recipe(**fields), 4)
    assert mixing is not None
    return mixing(IMAGES, TARGETS, seed=seed)


def test_none_where_none_is_asked_for():
    assert Mixing.of(Recipe(), 4) is None


def test_mixup_is_torchvisions_for_the_same_share(monkeypatch):
    for seed in range(20):
        mixed, shares = mix(seed, mixup=0.4)
        kept = shares[0, 0].item()  # classes 0 and 3 meet in the first
        theirs = v2.MixUp(alpha=0.4, num_classes=4)
        monkeypatch.setattr(theirs, "make_params", lambda _, kept=kept: {"lam": kept})
        images, targets = theirs(IMAGES, TARGETS)
        torch.testing.assert_close(mixed, images)
        torch.testing.assert_close(shares, targets)


def test_cutmix_pastes_one_rectangle_and_counts_its_area():
    areas = []
    for seed in range(200):
        mixed, shares = mix(seed, cutmix=1.0)
        pasted = (mixed != IMAGES).any(1)
        assert torch.equal(mixed, torch.where(pasted[:, None], IMAGES.roll(1, 0), IMAGES))
        assert torch.equal(pasted, pasted[:1].expand_as(pasted))
        rows, columns = pasted[0].any(1), pasted[0].any(0)
        assert torch.equal(pasted[0], rows[:, None] & columns)
        area = pasted[0].float().mean().item()
        torch.testing.assert_close(shares[0], torch.tensor([1 - area, 0, 0, area]))
        torch.testing.assert_close(shares.sum(1), torch.ones(5))
        areas.append(area)
    theirs, lost = v2.CutMix(alpha=1.0, num_classes=4), torch.random.get_rng_state()
    torch.manual_seed(0)
    expected = [1 - theirs.make_params([IMAGES])["lam_adjusted"] for _ in range(200)]
    torch.random.set_rng_state(lost)
    # Means of 200 shares whose deviation is about 0.25.
    assert math.isclose(sum(areas) / 200, sum(expected) / 200, abs_tol=0.1)


def test_shares_follow_beta():
    shares = torch.tensor([mix(seed, mixup=0.2)[1][0, 0].item() for seed in range(2000)])
    assert abs(shares.mean() - 0.5) < 0.04
    # Variance of Beta(a, a): 1 / (4 (2a + 1)).
    assert abs(shares.var() - 1 / (4 * 1.4)) < 0.015


def test_with_both_each_batch_gets_one():
    kinds = {"mixup": 0, "cutmix": 0}
    for seed in range(200):
        mixed, _ = mix(seed, mixup=1.0, cutmix=1.0)
        either = ((mixed == IMAGES) | (mixed == IMAGES.roll(1, 0))).all()
        kinds["cutmix" if either else "mixup"] += 1
    assert 70 < kinds["cutmix"] < 130


@pytest.mark.parametrize("fields", [{"mixup": 0.2}, {"cutmix": 1.0}])
def test_seeded_and_left_as_given(fields):
    before, state = IMAGES.clone(), torch.random.get_rng_state()
    first, again, other = mix(3, **fields), mix(3, **fields), mix(4, **fields)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(IMAGES, before)
    assert torch.equal(state, torch.random.get_rng_state())
    assert (first[0].dtype, first[1].dtype) == (torch.float32, torch.float32)
