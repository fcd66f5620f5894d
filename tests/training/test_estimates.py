import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from conftest import draw_class
from vggkit.errors import BadInput
from vggkit.images.dataset import ImageSample
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configure import configure
from vggkit.training import estimates as sizing
from vggkit.training.batches import TrainingBatches
from vggkit.training.estimates import (
    choose_batch_size,
    estimate_memory,
    search_batch_size,
)
from vggkit.training.recipe import Recipe
from vggkit.training.train_state import TrainState

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RECIPE = Recipe(trainable="all", precision="fp32", learning_rate=0.05, weight_decay=5e-4, epochs=20, batch_size=8)
SMALL = Preprocessing(resize_pixels=32, crop_pixels=32)
POOL, FC = configure("vgg11", num_classes=10, head="pool"), configure("vgg11")


STEPS = """
import sys
import torch
from vggkit.models.vgg import VGG
from vggkit.training.train_state import TrainState
from vggkit.training.recipe import Recipe

def find_peak():  # what getrusage tells may be the peak of the process that started this one
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

model, until, precision, batch = sys.argv[1], sys.argv[2] or None, sys.argv[3], int(sys.argv[4])
before = find_peak()
recipe = Recipe(trainable="all", precision=precision, learning_rate=0.01, weight_decay=5e-4)
train_state = TrainState(VGG(model, num_classes=10, head="pool", until=until), recipe, device=torch.device("cpu"))
train_state.start_epoch(1)
for number in range(2):
    train_state.compute(torch.randn(batch, 3, 64, 64), torch.randint(10, (batch,)), draw=number)
    train_state.step(0.01, number=number)
print(before, find_peak())
"""


def memory(configuration=POOL, *, pixels=64, batch=32, **changes):
    return estimate_memory(configuration, replace(RECIPE, **changes), crop_pixels=pixels, batch_size=batch)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the share of the libraries is Linux's")
@pytest.mark.parametrize(
    ("model", "until", "precision", "batch"),
    # Without its deeper layers: a processor that does not multiply bfloat16 takes minutes to do as if.
    [
        pytest.param("vgg11", None, "fp32", 64, marks=pytest.mark.slow),
        pytest.param("vgg11_bn", "pool2", "bf16", 96, marks=pytest.mark.slow),
    ],
)
def test_memory_is_about_what_a_process_of_its_own_holds(model, until, precision, batch):
    command = [sys.executable, "-c", STEPS, model, until or "", precision, str(batch)]
    before, peak = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    configuration = configure(model, num_classes=10, head="pool", until=until)
    expected = memory(configuration, batch=batch, precision=precision)
    assert expected == pytest.approx(peak, rel=0.25)
    # Without the libraries, which are the larger part here.
    assert expected - sizing.LIBRARIES == pytest.approx(peak - before, rel=0.35)


def test_memory_of_what_is_learnt_is_counted_by_the_number():
    every = POOL.parameters
    kernels = sum(math.prod(shape) for shape in POOL.state_shapes().values() if len(shape) == 4)
    sgd = memory()
    assert sgd - memory(momentum=0.0) == 4 * every
    assert memory(optimizer="adamw") - sgd == 4 * every
    assert memory(optimizer="muon") - sgd == 4 * (every - kernels)
    assert memory(ema_decay=0.9) - sgd == 4 * every
    top = sum(math.prod(shape) for key, shape in POOL.state_shapes().items() if int(key.split(".")[1]) >= 16)
    top += 512 * 10 + 10  # the head, at classifier.0
    tiny_maps = {"pixels": 32, "batch": 1}
    less = memory(**tiny_maps) - memory(**tiny_maps, trainable="top")
    assert less == pytest.approx(3 * 4 * (every - top), rel=0.05)  # gradients of the batch and the step, momentum


def test_what_does_not_learn_keeps_no_maps():
    def of_an_image(**changes):
        return memory(pixels=224, batch=2, **changes) - memory(pixels=224, batch=1, **changes)

    assert of_an_image(trainable="top") < 0.7 * of_an_image()
    assert of_an_image(trainable="gradual") == of_an_image()
    assert of_an_image(precision="bf16") < 0.7 * of_an_image()
    normed = replace(POOL, batch_norm=True)
    assert memory(normed, batch=64) > memory(batch=64)
    assert memory(replace(POOL, pooling="average"), batch=64) < memory(batch=64)


def choose(configuration=POOL, *, pixels=32, images=100_000, device=CPU, **changes):
    recipe = replace(RECIPE, batch_size=None, learning_rate=None, **changes)
    return choose_batch_size(configuration, recipe, crop_pixels=pixels, images=images, device=device)


@pytest.fixture
def roomy(monkeypatch):
    monkeypatch.setattr(sizing, "find_available_memory", lambda: 64_000_000_000)


def test_the_cheaper_an_image_beside_a_step_the_larger_the_batch(roomy):
    assert [choose(pixels=pixels)[0] for pixels in (32, 64, 224)] == [128, 32, 8]
    assert [choose(FC, pixels=pixels)[0] for pixels in (32, 224)] == [256, 32]
    assert choose()[1] == "larger batches are barely faster on this machine"
    assert choose() == choose()


@pytest.mark.parametrize(
    ("images", "size"),
    [(1, 1), (2, 2), (8, 8), (9, 8), (81, 8), (100, 8), (161, 16), (700, 64), (10_000, 128)],
)
def test_an_epoch_keeps_about_ten_steps_and_few_images_are_taken_together(roomy, images, size):
    found, reason = choose(images=images)
    assert found == size
    recipe = replace(RECIPE, batch_size=found, augmentation="shift", mirror="none")
    samples = [ImageSample("m", "red", draw_class("red", 0))] * images
    batches = TrainingBatches.of(recipe, samples, labels=["red"], preprocessing=SMALL, device=CPU)
    announced = f"{len(batches)} batch{'es' if len(batches) > 1 else ''} an epoch"
    assert (announced in reason) == (8 < images < 1280)


def test_half_of_the_memory_is_the_most(monkeypatch):
    sizes = []
    for available in (1_000_000_000, 4_000_000_000, 8_000_000_000, 10_000_000_000, 64_000_000_000, None):
        monkeypatch.setattr(sizing, "find_available_memory", lambda available=available: available)
        size, reason = choose(FC, pixels=224)
        sizes.append(size)
        fits = available is None or memory(FC, pixels=224, batch=size) <= available / 2
        assert fits or size == 2
        assert ("GB of memory" in reason) == (size < 32)
    assert sizes == sorted(sizes)
    assert sizes[0] == 2, "batch norm needs two"
    assert sizes[-1] == 32


def test_a_head_that_is_solved_at_once_has_no_steps(roomy):
    assert choose(trainable="head", weight_decay=None, images=244, pixels=224)[0] >= 8
    assert choose(trainable="head", weight_decay=None, images=3)[0] == 3


def give(limit, *, seconds, error=None):
    """A stand-in for a GPU that holds `limit` images a step."""
    tried = []

    def time_step(size):
        tried.append(size)
        if size > limit:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return seconds(size)

    return time_step, tried


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("MPS: Out of memory")]
)
def test_doubling_ends_below_what_does_not_fit(error):
    time_step, tried = give(100, seconds=lambda size: 1.0, error=error)
    size, reason = search_batch_size(time_step, largest=1024)
    assert size == 64
    assert "memory" in reason
    assert tried == [8, 16, 32, 64, 128]


def test_doubling_ends_where_it_brings_nothing():
    time_step, tried = give(10_000, seconds=lambda size: max(1.0, size / 60))
    assert search_batch_size(time_step, largest=1024) == (64, "larger batches are barely faster on this machine")
    assert tried[-1] == 128


def test_doubling_ends_at_the_most():
    time_step, tried = give(10_000, seconds=lambda size: 1.0)
    assert search_batch_size(time_step, largest=32) == (32, "larger batches would leave an epoch too few steps")
    assert tried == [8, 16, 32]


def test_where_eight_do_not_fit_fewer_are_tried_and_none_is_an_error():
    time_step, tried = give(3, seconds=lambda size: 1.0)
    assert search_batch_size(time_step, largest=64)[0] == 2
    assert tried == [8, 4, 2]
    with pytest.raises(BadInput, match="not even one image"):
        search_batch_size(give(0, seconds=lambda size: 1.0)[0], largest=64)


def test_other_errors_of_torch_are_not_taken_for_it():
    time_step, _ = give(0, seconds=lambda size: 1.0, error=RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="device-side"):
        search_batch_size(time_step, largest=64)


def test_on_cuda_real_steps_are_tried(tiny, monkeypatch):
    """On the processor in place of a GPU; what is drawn elsewhere stays as it is."""
    compute, sizes = TrainState.compute, []

    def narrow(self, images, targets, **options):
        sizes.append(len(images))
        if len(images) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(self, images, targets, **options)

    trial = sizing._Trial
    monkeypatch.setattr(
        sizing, "_Trial", lambda configuration, recipe, pixels, _: trial(configuration, recipe, pixels, CPU)
    )
    monkeypatch.setattr(sizing, "GROWTH", 0.0)  # how fast the processor is plays no part in it
    monkeypatch.setattr(TrainState, "compute", narrow)
    state = torch.random.get_rng_state()
    assert choose(tiny, images=1000, device=CUDA)[0] == 16
    assert choose(tiny, images=3, device=CUDA)[0] == 3
    assert set(sizes) == {8, 16, 32}
    assert torch.equal(torch.random.get_rng_state(), state)
