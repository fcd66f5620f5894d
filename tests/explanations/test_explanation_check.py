"""Whether explanations are right, measured on a network that is known to look at one thing, and on one that is not.

Shape letters: N images, H and W pixels or places.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

import vggkit as vk
from vggkit.cli import main as cli
from vggkit.errors import BadInput
from vggkit.explanations.measures import build_mosaics, correlate_ranks, find_quarters, measure_areas
from vggkit.images.preprocessing import Preprocessing

SIDE = 64
METHODS = ("grad-cam", "layer-cam", "integrated-gradients", "occlusion", "saliency")


@pytest.fixture(scope="module")
def classifier():
    """It sees what is much redder than green, and what is much greener than red, and nothing else."""
    configuration = vk.Configuration(blocks=((2,), (2,)), head="pool", hidden=(), dropout=0.0, num_classes=2)
    network = vk.VGG(configuration)
    with torch.no_grad():
        for value in network.parameters():
            value.zero_()
        network.features[0].weight[0, :2, 1, 1] = torch.tensor([1.0, -1.0])
        network.features[0].weight[1, :2, 1, 1] = torch.tensor([-1.0, 1.0])
        for place in range(2):
            network.features[3].weight[place, place, 1, 1] = 1
            network.features[0].bias[place] = -0.5
            network.classifier[0].weight[place, place] = 100
    seen = Preprocessing(resize_pixels=SIDE, crop_pixels=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3)
    return vk.Classifier(network, labels=["red", "green"], preprocessing=seen)


def draw(count: int) -> tuple[list[np.ndarray], list[tuple[int, int, int, int]]]:
    """A red or a green square on grey noise, larger than what is fed, and where it is."""
    rng, images, boxes = np.random.default_rng(0), [], []
    for number in range(count):
        height, width = (96, 144) if number % 4 < 2 else (144, 96)
        pixels = np.repeat(rng.integers(100, 156, (height, width, 1)), 3, axis=2)
        # Within the crop, which is the middle square.
        top, left = rng.integers((height - 96) // 2, (height + 96) // 2 - 24), 0
        left = rng.integers((width - 96) // 2, (width + 96) // 2 - 24)
        pixels[top : top + 24, left : left + 24, number % 2] += 90
        images.append(pixels.astype(np.uint8))
        boxes.append((left, top, left + 24, top + 24))
    return images, boxes


@pytest.mark.parametrize("method", METHODS)
def test_the_pointing_game(classifier, method):
    """The largest value lies on the object, which is a sixteenth of what the network is fed."""
    is_quick = method in METHODS[:2]
    if not is_quick:
        pytest.importorskip("captum")
    images, boxes = draw(8 if is_quick else 2)
    found = classifier.explain(images, method=method)
    assert [each.label for each in found] == ["red", "green"] * (len(images) // 2)
    for each, (left, top, right, bottom) in zip(found, boxes, strict=True):
        across, down = each.find_peak()
        assert left - 4 <= across <= right + 4, method
        assert top - 4 <= down <= bottom + 4, method


def test_what_is_reported(classifier):
    images, _ = draw(12)
    found = vk.check_explanations(classifier, images, most=10)
    assert (found.n, found.pointing_n, found.method, found.layer) == (10, 10, "grad-cam", "relu2_1")
    assert found.pointing_hits == 10
    assert found.deletion.interval[1] < 0 < found.insertion.interval[0]
    assert found.random_weights_correlation < 0.5
    assert found.random_weights_n > 0
    lines = found.describe()
    assert "n = 10" in lines[0]
    assert "10 of 10 hits" in lines[3]
    same = vk.check_explanations(classifier, images[::2], most=3)
    assert (same.pointing_n, same.pointing_hits) == (0, 0)  # all are red
    assert "one class" in same.describe()[3]


def test_what_knows_nothing_is_found_out(classifier, monkeypatch):
    from vggkit.explanations import closed_explainer

    def invent(maps, sums):
        return np.random.default_rng(len(maps)).random((len(maps), *maps.shape[2:])).astype(np.float32)

    monkeypatch.setattr(closed_explainer, "grad_cam", invent)
    found = vk.check_explanations(classifier, draw(10)[0])
    assert found.deletion.interval[1] > 0
    assert found.insertion.interval[0] < 0
    assert found.pointing_hits < 8
    assert found.random_weights_correlation == pytest.approx(1)  # a map that does not depend on what was learnt


def test_no_image_can_be_read(classifier, tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match="none of these can be read"):
        vk.check_explanations(classifier, tmp_path)


def test_the_shell(classifier, tmp_path, capsys):
    classifier.save(tmp_path / "m.safetensors")
    for number, pixels in enumerate(draw(3)[0]):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    model, photos, out = (str(tmp_path / name) for name in ("m.safetensors", "photos", "why"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["explain", model, photos, "--check", "--out", out])
    assert ended.value.code == 0
    assert "grid pointing game: 3 of 3 hits" in capsys.readouterr().out
    assert json.loads((tmp_path / "why" / "check.json").read_text(encoding="utf-8"))["n"] == 3


def test_areas_under_curves():
    """One pixel in two decides: taken first and in the middle, the area is that of a curve that falls, or rises."""
    image = np.zeros((1, 16, 16), np.float32)
    image[0, :8] = 1

    def ask(batch):
        return batch.mean((1, 2, 3), dtype=np.float64) * 2

    deletion, insertion = measure_areas(image, image[0], ask)
    assert deletion == pytest.approx(0.25)
    assert insertion > 0.9  # the blurred image is as bright as the image
    deletion, _ = measure_areas(image, 1 - image[0], ask)
    assert deletion == pytest.approx(0.75)


def test_mosaics_and_quarters():
    fed = np.arange(6, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 8, 8), np.float32)
    classes = np.array([0, 0, 1, 1, 2, 2])
    mosaics, quarters = build_mosaics(fed, classes, np.random.default_rng(0))
    for number, (mosaic, quarter) in enumerate(zip(mosaics, quarters, strict=True)):
        members = mosaic[0, ::4, ::4].ravel().astype(int)
        assert members[quarter] == number
        assert all(classes[other] != classes[number] for other in np.delete(members, quarter))
    maps = np.zeros((5, 4, 4), np.float32)
    for number, place in enumerate([(0, 0), (1, 2), (3, 1), (2, 2)]):
        maps[number][place] = 1
    assert find_quarters(maps).tolist() == [0, 1, 2, 3, -1]


def test_the_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 9, (14, 14)).astype(np.float32) for _ in range(2))
    assert correlate_ranks(one, other) == pytest.approx(spearmanr(one.ravel(), other.ravel()).statistic)
    assert correlate_ranks(one, one**3) == pytest.approx(1)
    assert correlate_ranks(one, np.zeros_like(one)) is None
