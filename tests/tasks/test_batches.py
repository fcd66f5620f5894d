import pickle

import numpy as np
import pytest
import torch

from conftest import draw_class
from vggkit.images.pictures import Picture
from vggkit.images.preprocessing import Preprocessing
from vggkit.tasks.training import batches as batches_module
from vggkit.tasks.training.augmentation import View
from vggkit.tasks.training.batches import TrainingBatches

SMALL = Preprocessing(resize_pixels=32, crop_pixels=32)
PICTURES = [Picture(f"m/{i}", "ab"[i % 2], draw_class("red", i)) for i in range(13)]


def collect(*, epoch=1, batch_size=4, seed=0, augmentation="photo", pictures=PICTURES):
    made = TrainingBatches(
        pictures,
        labels=["a", "b"],
        preprocessing=SMALL,
        view=View.of(augmentation, SMALL),
        batch_size=batch_size,
        seed=seed,
        device=torch.device("cpu"),
    )
    found = list(made.of_epoch(epoch))
    assert len(found) == len(made)
    return found


def test_every_picture_once_an_epoch_and_none_alone():
    for count, size in ((13, 4), (12, 4), (13, 13), (13, 50), (1, 4), (5, 1)):
        found = collect(batch_size=size, augmentation="none", pictures=PICTURES[:count])
        assert sum(len(classes) for _, classes in found) == count
        assert size == 1 or count == 1 or all(len(classes) > 1 for _, classes in found)
    seen = torch.cat([images for images, _ in collect(augmentation="none")])
    expected = torch.stack([torch.from_numpy(SMALL(p.pixels)) for p in PICTURES])
    assert {tuple(x.flatten()[:50].tolist()) for x in seen} == {tuple(x.flatten()[:50].tolist()) for x in expected}


def test_order_and_views_depend_on_seed_and_epoch_alone():
    first = collect()
    torch.rand(7)
    for (images, classes), (again, same) in zip(first, collect(), strict=True):
        assert torch.equal(images, again)
        assert torch.equal(classes, same)
    assert not torch.equal(first[0][0], collect(epoch=2)[0][0])
    assert not torch.equal(first[0][0], collect(seed=1)[0][0])
    state = torch.random.get_rng_state()
    list(collect())
    assert torch.equal(state, torch.random.get_rng_state())


def test_loading_processes_change_nothing(monkeypatch):
    alone = collect()
    monkeypatch.setattr(batches_module, "count_loaders", lambda device: 2)
    for (images, _), (others, _) in zip(alone, collect(), strict=True):
        assert torch.equal(images, others)


@pytest.mark.parametrize("augmentation", ["none", "shift", "photo"])
def test_views_travel_to_other_processes_and_are_seeded(augmentation):
    view = View.of(augmentation, SMALL)
    there = pickle.loads(pickle.dumps(view))
    pixels = draw_class("across", 3)
    assert view(pixels, 5).shape == (32, 32, 3)
    assert np.array_equal(view(pixels, 5), there(pixels, 5))
    differ = any(not np.array_equal(view(pixels, 5), view(pixels, seed)) for seed in range(6, 12))
    assert differ == (augmentation != "none")
    if augmentation == "none":
        assert np.array_equal(view(pixels, 0), SMALL.fit(pixels))
