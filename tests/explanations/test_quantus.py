"""The measurements of explanations are those of quantus (Hedström et al., JMLR 2023), where it is installed.

It is not among the development tools: it needs OpenCV, scikit-image and pandas, for three formulas.
Shape letters: N images, H and W pixels.
"""

import numpy as np
import pytest
import torch

import vggkit as vk
from vggkit.explanations.measures import STEPS, build_mosaics, correlate_ranks, find_quarters, measure_areas

SIDE = 32


@pytest.fixture(scope="module")
def quantus():
    return pytest.importorskip(
        "quantus", reason="needs quantus, which is not among the development tools: pip install quantus"
    )


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return vk.VGG(
        vk.Configuration(blocks=((6,), (8,)), in_channels=1, head="pool", hidden=(), dropout=0.0, num_classes=3)
    ).eval()


@pytest.fixture(scope="module")
def fed():
    """Of one channel: of three quantus would delete one after another."""
    return np.random.default_rng(0).normal(size=(6, 1, SIDE, SIDE)).astype(np.float32)


def test_deletion(quantus, network, fed):
    """Pixel flipping to the mean colour, an eighth of the pixels at a time."""
    maps = np.random.default_rng(1).random((6, SIDE, SIDE), np.float32)
    with torch.no_grad():
        before = network(torch.from_numpy(fed)).softmax(1).numpy()
    predicted = before.argmax(1)
    metric = quantus.PixelFlipping(
        features_in_step=SIDE * SIDE // STEPS, perturb_baseline=0.0, normalise=False, disable_warnings=True
    )
    after = metric(
        model=network, x_batch=fed, y_batch=predicted, a_batch=maps[:, None], channel_first=True, device="cpu"
    )
    curves = np.concatenate([before.max(1)[:, None], np.array(after)], axis=1)
    expected = (curves[:, 1:] + curves[:, :-1]).mean(1) / 2

    for number, image in enumerate(fed):

        def ask(batch, place=predicted[number]):
            with torch.no_grad():
                return network(torch.from_numpy(batch)).softmax(1).numpy()[:, place]

        area, _ = measure_areas(image, maps[number], ask)
        assert area == pytest.approx(expected[number], abs=1e-6)


def test_the_grid_pointing_game(quantus, network, fed):
    """Maps of mosaics, with a mask of the quarter that the explained image is in."""
    rng = np.random.default_rng(2)
    mosaics, quarters = build_mosaics(fed, np.arange(6) % 2, rng)
    maps = rng.random((6, 4, 4), np.float32)
    masks = np.zeros((6, 1, SIDE, SIDE), bool)
    for mask, quarter in zip(masks, quarters, strict=True):
        top, left = (place * SIDE // 2 for place in divmod(quarter, 2))
        mask[:, top : top + SIDE // 2, left : left + SIDE // 2] = True
    metric = quantus.PointingGame(normalise=False, disable_warnings=True)
    enlarged = maps.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)[:, None]
    hits = metric(
        model=network,
        x_batch=mosaics,
        y_batch=np.zeros(6, int),
        a_batch=enlarged,
        s_batch=masks,
        channel_first=True,
        device="cpu",
    )
    assert (find_quarters(maps) == quarters).tolist() == [bool(each) for each in hits]
    assert 0 < sum(map(bool, hits)) < 6


def test_the_rank_correlation(quantus):
    rng = np.random.default_rng(3)
    one, other = (rng.integers(0, 20, (14, 14)).astype(np.float32) for _ in range(2))
    expected = quantus.similarity_func.correlation_spearman(one.ravel(), other.ravel())
    assert correlate_ranks(one, other) == pytest.approx(expected)
