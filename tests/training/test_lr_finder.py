import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from conftest import draw_class
from vggkit.models.vgg import VGG
from vggkit.reports.lr_plot import plot_rate_search
from vggkit.training.lr_finder import RateSearch, find_learning_rate
from vggkit.training.objective import Objective
from vggkit.training.recipe import Recipe
from vggkit.training.train_state import TrainState

CPU = torch.device("cpu")
RECIPE = Recipe(trainable="all", precision="fp32", weight_decay=5e-4, epochs=4)
LABELS = ("across", "down", "red")


def build(configuration):
    torch.manual_seed(0)
    return VGG(configuration)


@pytest.fixture(scope="module")
def batches():
    """Four batches of images that are easy to tell apart."""
    found = []
    for start in range(4):
        pixels = [torch.from_numpy(draw_class(label, 4 * start + n, side=32)) for n in range(4) for label in LABELS]
        images = torch.stack(pixels)[:, :, :32].permute(0, 3, 1, 2).float() / 64 - 1
        found.append((images, torch.arange(12) % 3))
    return found


def search(network, batches, recipe=RECIPE, **options):
    return find_learning_rate(network, batches, recipe, device=CPU, **{"steps": 60, **options})


def test_the_rate_it_suggests_learns_and_the_network_stays_as_it_is(tiny, batches):
    network = build(tiny).eval().requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    seen = []
    found = search(network, batches, on_step=lambda done, total: seen.append((done, total)))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(module.training for module in network.modules())
    assert not any(value.requires_grad or value.grad is not None for value in network.parameters())
    assert seen == [(done + 1, 60) for done in range(len(found.rates))]

    assert found.suggested is not None
    assert f"{min(found.smoothed[10:]):.3f}" in found.why
    train_state = TrainState(network, replace(RECIPE, learning_rate=found.suggested), device=CPU)
    train_state.start_epoch(1)
    losses = []
    for number in range(40):
        losses.append(train_state.compute(*batches[number % 4], draw=number).item())
        assert train_state.step(found.suggested, number=number)
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4])


def test_the_same_again_is_the_same_whatever_was_drawn_in_between(tiny, batches):
    dropping = replace(tiny, dropout=0.3)
    first = search(build(dropping), batches, steps=25)
    network = build(dropping)
    torch.rand(9)
    state = torch.random.get_rng_state()
    assert search(network, batches, steps=25) == first
    assert torch.equal(torch.random.get_rng_state(), state)


def test_rates_rise_by_one_factor_through_batches_that_repeat(tiny, batches):
    found = search(build(tiny), batches[:1], lowest=1e-5, highest=1e-3, steps=21)
    assert found.rates == pytest.approx([1e-5 * 10 ** (number / 10) for number in range(21)])
    average, expected = 0.0, []
    for number, loss in enumerate(found.losses, start=1):
        average = 0.9 * average + 0.1 * loss
        expected.append(average / (1 - 0.9**number))
    assert found.smoothed == pytest.approx(expected)


def test_a_loss_that_grows_ends_the_search_and_only_numbers_are_kept(tiny, batches):
    plain = build(replace(tiny, batch_norm=False))
    found = search(plain, batches, replace(RECIPE, clip_norm=0.0), highest=1e6)
    assert len(found.rates) < 60
    assert len(found.rates) == len(found.losses) == len(found.smoothed)
    assert all(map(math.isfinite, found.losses))


def test_a_network_that_cannot_learn_gets_no_suggestion(tiny, batches):
    plain = build(replace(tiny, batch_norm=False))
    with torch.no_grad():
        for module in plain.features:
            if isinstance(module, nn.Conv2d):
                module.bias.fill_(-1e3)
    found = search(plain, batches, highest=0.1)
    assert found.suggested is None
    assert "falls at no rate" in found.why


def test_weights_that_are_no_numbers_get_no_suggestion(tiny, batches):
    broken = build(tiny)
    with torch.no_grad():
        broken.features[0].weight.fill_(float("nan"))
    found = search(broken, batches)
    assert found == RateSearch((), (), (), None, found.why)
    assert "diverges from the lowest rates" in found.why


class _Scripted:
    """A train_state whose losses are told beforehand."""

    def __init__(self, losses):
        self.losses = losses

    def __call__(self, network, recipe, *, device, objective, caller_settings, group):
        return self

    def start_epoch(self, epoch):
        pass

    def weigh(self, targets):
        return float(len(targets))

    def compute(self, images, targets, *, draw, is_last):
        return torch.tensor(self.losses[draw], dtype=torch.float64)

    def step(self, rate, *, number):
        return True


def _fall(number, *, at, over):
    return 2 / (1 + math.exp((number - at) / over))


@pytest.mark.parametrize(("grows_at", "lowest_at", "bound"), [(95, 90, False), (65, 60, True)])
def test_the_suggestion_is_where_it_falls_steepest_or_a_tenth_of_the_lowest(
    tiny, batches, monkeypatch, grows_at, lowest_at, bound
):
    """The logarithm of the rate rises by 7 in 100 steps; a smoothed loss lags behind by about ten."""
    losses = [_fall(n, at=50, over=4) + (0.8 * (n - grows_at) if n > grows_at else 0) for n in range(100)]
    monkeypatch.setattr("vggkit.training.lr_finder.TrainState", _Scripted(losses))
    found = search(build(tiny), batches, steps=100)
    assert found.suggested is not None
    lowest = found.rates[min(range(100), key=lambda n: found.smoothed[n] if n < len(found.smoothed) else 9)]
    assert ("a tenth of that" in found.why) == bound
    if bound:
        assert found.suggested == pytest.approx(lowest / 10, rel=0.06)
    else:
        place = math.log(found.suggested / 1e-6) / math.log(1e7) * 99
        assert 48 < place < 62
        assert found.suggested < lowest / 10


def test_batches_that_are_added_up_count_as_one(tiny, batches, monkeypatch):
    monkeypatch.setattr("vggkit.training.lr_finder.TrainState", _Scripted([float(n) for n in range(80)]))
    found = search(build(tiny), batches, replace(RECIPE, accumulate=2), steps=2)
    assert found.losses == (0.5, 2.5)


def test_batches_of_rare_classes_count_more(tiny, monkeypatch):
    """The loss of a step is the mean over its images as they count, and not over its batches."""
    network, weights = build(replace(tiny, batch_norm=False)), torch.tensor([0.1, 1.0, 10.0])
    draws = torch.Generator().manual_seed(0)
    given = [(torch.randn(4, 3, 32, 32, generator=draws), torch.full((4,), number)) for number in range(3)]
    recipe = replace(RECIPE, accumulate=3)
    found = search(network, given, recipe, steps=2, objective=Objective(weights=weights))
    with torch.no_grad():
        logits, targets = network(torch.cat([images for images, _ in given])), torch.cat([t for _, t in given])
        expected = F.cross_entropy(logits.double(), targets, weight=weights.double()).item()
    assert found.losses[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("suggested", [3e-2, None])
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_image(tmp_path, suggested, suffix):
    rates = tuple(1e-6 * 10 ** (number / 14) for number in range(99))
    losses = tuple(2.3 - 0.5 * (n > 60) + 9 * (n > 90) for n in range(99))
    path = tmp_path / f"rates{suffix}"
    plot_rate_search(RateSearch(rates, losses, losses, suggested, ""), path, title="vgg11 on photos")
    if suffix == ".png":
        with Image.open(path) as image:
            assert min(image.size) > 300
    else:
        drawn = path.read_text(encoding="utf-8")
        assert ("suggested: 0.03" in drawn) == (suggested is not None)
        assert ("no suggestion" in drawn) == (suggested is None)


def test_a_search_that_saw_nothing_has_an_image_too(tmp_path):
    plot_rate_search(RateSearch((), (), (), None, ""), tmp_path / "rates.png", title="nothing")
    assert (tmp_path / "rates.png").stat().st_size > 1000
