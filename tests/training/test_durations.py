import copy
from dataclasses import replace

import pytest
import torch
from PIL import Image

from conftest import draw_class
from vggkit.images.dataset import ImageSample
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.vgg import VGG
from vggkit.training import durations
from vggkit.training.batches import TrainingBatches
from vggkit.training.durations import Estimate, describe, estimate_seconds
from vggkit.training.recipe import Recipe
from vggkit.training.train_state import TrainState

CPU = torch.device("cpu")
RECIPE = Recipe(trainable="all", precision="fp32", learning_rate=0.05, weight_decay=5e-4, epochs=20, batch_size=8)
SMALL = Preprocessing(resize_pixels=32, crop_pixels=32)
IMAGES = [ImageSample(f"m/{number}", "red", draw_class("red", number)) for number in range(81)]


def make_batches(recipe=RECIPE, images=IMAGES):
    recipe = replace(recipe, augmentation="shift", mirror="none")
    return TrainingBatches.of(recipe, images, labels=["red"], preprocessing=SMALL, device=CPU)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adamw", "precision": "bf16", "ema_decay": 0.9},
        {"optimizer": "muon", "precision": "amp"},
        {"trainable": "gradual"},
    ],
    ids=str,
)
@pytest.mark.parametrize("started", [False, True])
def test_trial_steps_leave_everything_bit_for_bit(tiny, changes, started):
    torch.manual_seed(0)
    configuration = replace(tiny, dropout=0.3, hidden=(8,))
    train_state = TrainState(VGG(configuration), replace(RECIPE, **changes), device=CPU)
    images, targets = torch.randn(6, 3, 32, 32), torch.arange(6) % 3

    def step(number):
        loss = train_state.compute(images, targets, draw=number)
        train_state.step(0.01, number=number)
        return loss

    train_state.network.eval()
    if started:
        train_state.start_epoch(1)
        step(0)
    before = copy.deepcopy(train_state.state())
    modes = [module.training for module in train_state.compute_copy.modules()]
    learning = [value.requires_grad for value in train_state.compute_copy.parameters()]
    twin = [value.clone() for value in train_state.compute_copy.parameters()]
    state = torch.random.get_rng_state()
    found = estimate_seconds(train_state, make_batches(), IMAGES[:9], preprocessing=SMALL)

    assert found is not None
    assert 0 < found.later_seconds < found.seconds
    after = train_state.state()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert all(map(torch.equal, twin, train_state.compute_copy.parameters()))
    assert [module.training for module in train_state.compute_copy.modules()] == modes
    assert [value.requires_grad for value in train_state.compute_copy.parameters()] == learning
    assert all(value.grad is None for value in train_state.compute_copy.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)

    train_state.start_epoch(1)
    now = step(1)
    moved = copy.deepcopy(train_state.state())
    train_state.restore(before)
    assert torch.equal(step(1), now)
    assert all(torch.equal(value, moved[key]) for key, value in train_state.state().items())


@pytest.mark.parametrize(("images", "epochs"), [(8, 19), (72, 2)])
def test_no_trial_where_it_would_be_a_large_part_of_the_training(tiny, monkeypatch, images, epochs):
    train_state = TrainState(VGG(tiny), replace(RECIPE, epochs=epochs), device=CPU)
    monkeypatch.setattr(TrainState, "compute", None)
    batches = make_batches(images=IMAGES[:images])
    assert estimate_seconds(train_state, batches, IMAGES[:9], preprocessing=SMALL) is None


def test_seconds_follow_from_steps_and_images(tiny, monkeypatch):
    monkeypatch.setattr(durations, "time_step", lambda train_state, size, pixels, times: 2.0)
    monkeypatch.setattr(durations, "_time_forward", lambda train_state, size, pixels: 0.5)
    monkeypatch.setattr(durations, "_time_image", lambda images, preprocessing: 0.1)
    monkeypatch.setattr(durations, "count_threads", lambda: 2)
    monkeypatch.setattr("vggkit.training.batches.count_threads", lambda: 2)
    monkeypatch.setattr(TrainingBatches, "time_images", lambda self: (0.3, 0.04))
    train_state = TrainState(VGG(tiny), RECIPE, device=CPU)
    found = estimate_seconds(train_state, make_batches(), IMAGES[:12], preprocessing=SMALL)
    # 10 steps of 8 images, the last with one more; 12 images measured, of a forward pass of 8 each; two threads
    # decode the images of validation in every epoch, and those of training in the first.
    measured = 12 * 0.5 / 8 + 12 * 0.1 / 2
    assert found is not None
    assert found.first_seconds == pytest.approx(10 * 2 + measured + 81 * 0.3 / 2)
    assert found.later_seconds == pytest.approx(10 * 2 + measured + 81 * 0.04 / 2)
    assert found.seconds == pytest.approx(found.first_seconds + 19 * found.later_seconds)
    # One of the two prepares the images that are learnt from: where these take longest, the epoch takes as long.
    monkeypatch.setattr(TrainingBatches, "time_images", lambda self: (1.0, 0.04))
    large = estimate_seconds(train_state, make_batches(), IMAGES[:12], preprocessing=SMALL)
    assert large is not None
    assert large.first_seconds == pytest.approx(81 * 1.0 + measured)
    assert large.later_seconds == found.later_seconds
    slower = estimate_seconds(train_state, make_batches(), IMAGES[:12], preprocessing=SMALL, write_seconds=2.0)
    assert slower is not None
    assert slower.later_seconds == pytest.approx(found.later_seconds + 3)


def test_gradual_training_is_estimated_from_its_first_and_last_epoch(tiny, monkeypatch):
    opened = []

    def time_step(train_state, size, pixels, times):
        learning = sum(value.requires_grad for value in train_state.compute_copy.parameters())
        opened.append(learning)
        return 1.0 if len(opened) == 1 else 3.0

    monkeypatch.setattr(durations, "time_step", time_step)
    monkeypatch.setattr(durations, "_time_forward", lambda train_state, size, pixels: 0.0)
    monkeypatch.setattr(durations, "_time_image", lambda images, preprocessing: 0.0)
    monkeypatch.setattr(TrainingBatches, "time_images", lambda self: (0.0, 0.0))
    recipe = replace(RECIPE, trainable="gradual")
    found = estimate_seconds(
        TrainState(VGG(tiny), recipe, device=CPU), make_batches(recipe), IMAGES[:12], preprocessing=SMALL
    )
    assert opened[0] < opened[1]
    assert found is not None
    assert found.seconds == pytest.approx(20 * 10 * 2.0)


def test_cached_images_are_decoded_once(tmp_path, monkeypatch):
    """Counted by the decodings, not by the clock."""
    Image.fromarray(draw_class("red", 0)).save(tmp_path / "0.png")
    images, decoded, clock = [ImageSample(str(tmp_path / "0.png"), "red")] * 20, [], [0.0]

    def decode(self, **options):
        decoded.append(self)
        clock[0] += 1.0
        return draw_class("red", 0)

    monkeypatch.setattr(ImageSample, "decode", decode)
    monkeypatch.setattr("vggkit.training.batches.time.perf_counter", lambda: clock[0])
    for available, later in ((64_000_000_000, 0.0), (1000, 1.0)):
        monkeypatch.setattr("vggkit.training.batches.find_available_memory", lambda available=available: available)
        assert make_batches(images=images).time_images() == (1.0, later)


@pytest.mark.parametrize(
    ("estimate", "sentence"),
    [
        (Estimate(12.3, 12.3, 10), "about 12 s an epoch, 2 min of training in all, 3.1 GB of memory"),
        (Estimate(0.234, 0.234, 40), "about 0.23 s an epoch, 9.4 s of training in all, 3.1 GB of memory"),
        (Estimate(600.0, 600.0, 100), "about 10 min an epoch, 17 h of training in all, 3.1 GB of memory"),
        (Estimate(40.0, 20.0, 4), "about 25 s an epoch, 2 min of training in all, 3.1 GB of memory"),
        (None, "about 3.1 GB of memory"),
    ],
)
def test_describe(estimate, sentence):
    assert describe(estimate, memory_bytes=3_140_000_000) == sentence
