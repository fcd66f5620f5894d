import os
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import draw_class
from vggkit.errors import BadImage
from vggkit.images.dataset import ImageSample
from vggkit.images.preprocessing import Preprocessing
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.training import batches as batches_module
from vggkit.training.augmentation import View
from vggkit.training.batches import TrainingBatches
from vggkit.training.objective import weigh_classes
from vggkit.training.recipe import Recipe

SMALL = Preprocessing(resize_pixels=32, crop_pixels=32)
IMAGES = [ImageSample(f"m/{i}", "ab"[i % 2], draw_class("red", i)) for i in range(13)]


def build(*, batch_size=4, seed=0, kind="photo", mirror="random", images=IMAGES, fed=SMALL, labels="ab", **options):
    return TrainingBatches(
        images,
        labels=list(labels),
        preprocessing=fed,
        view=View.of(Recipe(augmentation=kind, mirror=mirror), fed),
        batch_size=batch_size,
        seed=seed,
        device=torch.device("cpu"),
        **options,
    )


def collect(*, epoch=1, start=0, **options):
    made = build(**options)
    found = list(made.of_epoch(epoch, start=start))
    assert len(found) == len(made) - start
    return found


def assert_same(some, others):
    for (images, classes), (again, same) in zip(some, others, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(classes, same)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    found = []
    for i in range(13):
        path = folder / f"{i}.png"
        Image.fromarray(draw_class("red", i)).save(path)
        found.append(ImageSample(str(path), "ab"[i % 2]))
    return found


@pytest.fixture
def decoded(monkeypatch):
    """Paths of the images that are decoded, as it happens."""
    paths, decode = [], ImageSample.decode

    def note(image, **options):
        paths.append(image.path)
        return decode(image, **options)

    monkeypatch.setattr(ImageSample, "decode", note)
    return paths


def test_every_image_once_an_epoch_and_none_alone():
    for count, size in ((13, 4), (12, 4), (13, 13), (13, 50), (1, 4), (5, 1)):
        found = collect(batch_size=size, kind="none", mirror="none", images=IMAGES[:count])
        assert sum(len(classes) for _, classes in found) == count
        assert size == 1 or count == 1 or all(len(classes) > 1 for _, classes in found)
    seen = torch.cat([images for images, _ in collect(kind="none", mirror="none")])
    expected = torch.stack([torch.from_numpy(SMALL(p.pixels)) for p in IMAGES])
    assert {x.numpy().tobytes() for x in seen} == {x.numpy().tobytes() for x in expected}


def test_order_and_views_depend_on_seed_and_epoch_alone():
    first = collect()
    torch.rand(7)
    np.random.seed(5)
    assert_same(first, collect())
    assert not torch.equal(first[0][0], collect(epoch=2)[0][0])
    assert not torch.equal(first[0][0], collect(seed=1)[0][0])
    state = torch.random.get_rng_state()
    collect()
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("kind", ["shift", "photo"])
def test_threads_and_a_later_start_change_nothing(kind, sampling, files):
    whole = collect(kind=kind, sampling=sampling, images=files, threads=1)
    assert_same(whole, collect(kind=kind, sampling=sampling, images=files, threads=4))
    for start in range(4):
        assert_same(whole[start:], collect(kind=kind, sampling=sampling, images=files, threads=3, start=start))


def test_the_second_epoch_is_the_same_begun_anew(files, decoded):
    made = build(kind="shift", images=files)
    list(made.of_epoch(1))
    assert len(decoded) == 13
    second = list(made.of_epoch(2))
    assert len(decoded) == 13  # they were kept
    assert_same(second, collect(kind="shift", images=files, epoch=2))


def test_images_are_kept_only_where_all_of_them_fit(files, decoded, monkeypatch):
    for available in (None, 8 * 12 * 32 * 32 * 3):  # the second holds twelve of the thirteen
        monkeypatch.setattr(batches_module, "find_available_memory", lambda available=available: available)
        made = build(kind="shift", images=files)
        decoded.clear()
        list(made.of_epoch(1))
        list(made.of_epoch(2))
        assert len(decoded) == 26


def test_what_comes_before_the_start_is_not_decoded(files, decoded):
    collect(images=files, start=2)
    assert len(decoded) == 5


@pytest.mark.parametrize("fed", [SMALL, Preprocessing(crop_pixels=32, channel_order="L", mean=(0.4,), std=(0.2,))])
@pytest.mark.parametrize("fields", [{"kind": "shift", "mirror": "random"}, {"kind": "photo", "mirror": "none"}])
def test_a_batch_is_its_images_one_by_one(fed, fields, monkeypatch):
    monkeypatch.setattr(batches_module, "derive_seed", lambda *parts: 7)
    found = collect(fed=fed, **fields)
    view = View.of(Recipe(augmentation=fields["kind"], mirror=fields["mirror"]), fed)
    expected = {fed.normalize(view(p.pixels, seed=7)).tobytes() for p in IMAGES}
    assert {image.numpy().tobytes() for images, _ in found for image in images} == expected


def test_alternating_mirrors_show_both_sides_in_two_epochs():
    made = build(kind="none", mirror="alternating", batch_size=13)
    fitted = [SMALL.normalize(SMALL.fit(p.pixels)) for p in IMAGES]
    sides = []
    for epoch in (1, 2, 3):
        images, _ = next(made.of_epoch(epoch))
        seen = {image.numpy().tobytes() for image in images}
        plain = [image.tobytes() in seen for image in fitted]
        turned = [np.ascontiguousarray(image[..., ::-1]).tobytes() in seen for image in fitted]
        assert [not side for side in plain] == turned
        sides.append(plain)
    assert sides[0] == [not side for side in sides[1]] == sides[2]
    assert 2 < sum(sides[0]) < 11


def test_sampling_draws_every_class_equally_often():
    images = [ImageSample(f"m/{i}", "a" if i < 190 else "b", IMAGES[0].pixels) for i in range(200)]
    made = build(images=images, kind="none", mirror="none", sampling=True, batch_size=50, labels="abc")
    drawn = [Counter(made._draw_order(epoch).tolist()) for epoch in range(1, 31)]
    assert all(order.total() == 200 for order in drawn)
    assert drawn[0] != drawn[1]
    total = sum(drawn, Counter())
    rare = [total[index] for index in range(190, 200)]
    # 6000 draws, half of them among ten images and half among 190.
    assert 2850 < sum(rare) < 3150
    assert 230 < min(rare) <= max(rare) < 370
    assert sum(index in total for index in range(190)) == 190
    classes = torch.cat([classes for _, classes in made.of_epoch(1)])
    assert (classes == 1).sum() == sum(drawn[0][index] for index in range(190, 200))


def test_an_image_drawn_twice_is_seen_in_two_ways():
    seen = torch.cat([images for images, _ in collect(images=IMAGES[:2], sampling=True, epoch=3, batch_size=2)])
    assert not torch.equal(seen[0], seen[1])
    orders = [build(images=IMAGES[:2], sampling=True)._draw_order(epoch).tolist() for epoch in range(1, 9)]
    epoch = next(number for number, order in enumerate(orders, start=1) if order[0] == order[1])
    images, _ = collect(images=IMAGES[:2], sampling=True, epoch=epoch)[0]
    assert not torch.equal(images[0], images[1])


def test_weights_are_inverse_to_frequency_and_one_on_the_mean():
    images = [ImageSample("m", label) for label in "aaaaaab" + "c" * 3]
    weights = weigh_classes(images, ["a", "b", "c", "unseen"])
    torch.testing.assert_close(weights, torch.tensor([10 / 18, 10 / 3, 10 / 9, 1.0]))
    assert weights.dtype == torch.float32
    assert weights[[0] * 6 + [1] + [2] * 3].mean().item() == pytest.approx(1)


def test_a_bad_image_reaches_the_caller_by_its_path(files, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nno more")
    with pytest.raises(BadImage, match=r"broken\.png"):
        collect(images=[*files[:6], ImageSample(str(broken), "a")], threads=2)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("view")]


def test_closing_early_stops_the_threads(files, decoded):
    epoch = build(images=files * 20, threads=2).of_epoch(1)
    next(epoch)
    epoch.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("view")]
    assert len(decoded) <= 4 * (1 + batches_module.AHEAD)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system tells no processors")
def test_threads_are_at_least_one(monkeypatch):
    monkeypatch.setattr(batches_module, "count_threads", lambda: 1)
    assert_same(collect(), collect(threads=2))


def test_real_images_in_a_table(shared):
    found = open_dataset(str(shared / "cifar10" / "train-00000-of-00004.parquet"))
    images = found.split("train", "all")[:40]
    options = {"images": images, "labels": found.labels, "kind": "shift", "batch_size": 16}
    assert_same(collect(threads=1, **options), collect(threads=4, **options))
