import importlib.util
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from conftest import draw_class
from vggkit.errors import MissingExtra
from vggkit.images.preprocessing import Preprocessing
from vggkit.training import augmentation
from vggkit.training.augmentation import View, apply_operation, draw_erased, draw_part, measure_strength
from vggkit.training.recipe import Recipe

SMALL = Preprocessing(resize_pixels=32, crop_pixels=32)
PIXELS = draw_class("across", 3)


def view(kind="none", mirror="none", preprocessing=SMALL, **fields):
    return View.of(Recipe(augmentation=kind, mirror=mirror, **fields), preprocessing)


def test_an_image_moves_by_the_pixels_of_the_recipe():
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[16, 16] = 255
    for given, farthest in ((None, 4), (2, 2)):
        moves = {
            tuple((np.argwhere(view("shift", shift_pixels=given)(pixels, seed=seed))[0, :2] - 16).tolist())
            for seed in range(1500)
        }
        steps = range(-farthest, farthest + 1)
        assert moves == {(down, right) for down in steps for right in steps}


def compare(ours, theirs):
    """The same distribution, by Kolmogorov and Smirnov's test of 2000 draws each: it fails once in 10,000 seeds."""
    points = np.union1d(ours, theirs)
    below = [np.searchsorted(np.sort(draws), points, side="right") / 2000 for draws in (ours, theirs)]
    assert np.abs(below[0] - below[1]).max() < 2.2 * (2 / 2000) ** 0.5


@pytest.mark.parametrize(
    "asked",
    [
        {"kind": "shift"},
        {"kind": "photo"},
        {"mirror": "random"},
        {"mirror": "alternating"},
        {"rand_augment": 9},
        {"random_erasing": 1.0},
    ],
)
def test_views_are_seeded_and_travel(asked):
    made = view(**asked)
    there = pickle.loads(pickle.dumps(made))
    state, before = torch.random.get_rng_state(), PIXELS.copy()
    seen = [made(PIXELS, seed=seed) for seed in range(12)]
    assert all(pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8 for pixels in seen)
    assert all(np.array_equal(pixels, there(PIXELS, seed=seed)) for seed, pixels in enumerate(seen))
    assert any(not np.array_equal(seen[0], other) for other in seen)
    assert torch.equal(state, torch.random.get_rng_state())
    assert np.array_equal(PIXELS, before)


def test_none_is_what_predicting_sees():
    assert np.array_equal(view()(PIXELS, seed=0), SMALL.fit(PIXELS))


def test_mirrored_as_told_or_half_the_time():
    plain, turned = SMALL.fit(PIXELS), SMALL.fit(PIXELS)[:, ::-1]
    for mirror in ("random", "alternating"):
        made = view(mirror=mirror)
        assert np.array_equal(made(PIXELS, seed=0, mirrored=True), turned)
        assert np.array_equal(made(PIXELS, seed=0, mirrored=False), plain)
        count = sum(np.array_equal(made(PIXELS, seed=seed), turned) for seed in range(400))
        assert 150 < count < 250


def test_shift_shows_every_place_of_a_padded_image():
    padded = np.pad(SMALL.fit(PIXELS), ((4, 4), (4, 4), (0, 0)))
    places = {
        padded[top : top + 32, left : left + 32].tobytes(): (top, left) for top in range(9) for left in range(9)
    }
    made = view("shift")
    found = {places[made(PIXELS, seed=seed).tobytes()] for seed in range(1000)}
    assert found == set(places.values())


@pytest.mark.parametrize("size", [(60, 90), (48, 48), (20, 400), (400, 20)])
def test_parts_are_drawn_as_by_torchvision(size):
    theirs = v2.RandomResizedCrop(32, scale=augmentation.PART_SCALE)
    assert tuple(theirs.ratio) == pytest.approx(augmentation.PART_RATIO)
    draws, image = np.random.default_rng(0), torch.zeros(3, *size, dtype=torch.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = [theirs.make_params([image]) for _ in range(2000)]
    ours = np.array([draw_part(draws, *size) for _ in range(2000)])
    for column, name in enumerate(("top", "left", "height", "width")):
        compare(ours[:, column], np.array([box[name] for box in expected]))
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= size).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (3, 2)])
def test_parts_of_odd_images_are_never_empty(size):
    draws = np.random.default_rng(0)
    for _ in range(50):
        top, left, height, width = draw_part(draws, *size)
        assert 0 <= top < top + height <= size[0]
        assert 0 <= left < left + width <= size[1]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_photos_are_parts_resized(interpolation):
    fed = Preprocessing(resize_pixels=36, crop_pixels=32, interpolation=interpolation)
    pixels = draw_class("down", 1, side=120)
    made = view("photo", preprocessing=fed)
    for seed in range(5):
        top, left, height, width = draw_part(np.random.default_rng(seed), *pixels.shape[:2])
        expected = v2.functional.resized_crop(
            Image.fromarray(pixels), top, left, height, width, [32, 32], v2.InterpolationMode(interpolation)
        )
        # fast_image_resize rounds some values to the level beside.
        difference = made(pixels, seed=seed).astype(int) - np.asarray(expected)
        assert np.abs(difference).max() <= 1


def test_photos_that_are_padded_are_padded_first():
    made = view("photo", preprocessing=Preprocessing(fit_mode="pad", crop_pixels=32))
    assert made.prepare(PIXELS).shape == (32, 32, 3)
    assert view("photo").prepare(PIXELS) is PIXELS


def test_rand_augment_has_torchvisions_operations_and_magnitudes():
    space = v2.RandAugment._AUGMENTATION_SPACE
    assert tuple(space) == augmentation.OPERATIONS
    assert {name for name, (_, signed) in space.items() if signed} == augmentation.SIGNED
    for name, (magnitudes, _) in space.items():
        bins = magnitudes(31, 40, 56)
        for magnitude in range(31):
            expected = 0.0 if bins is None else float(bins[magnitude])
            assert measure_strength(name, magnitude, 40, 56) == pytest.approx(expected, abs=1e-4), name


@pytest.mark.parametrize("name", augmentation.OPERATIONS)
def test_rand_augment_operations_are_torchvisions(name):
    image, theirs = Image.fromarray(PIXELS), v2.RandAugment()
    for magnitude in (0, 9, 17, 30):
        strength = measure_strength(name, magnitude, *PIXELS.shape[:2])
        for way in (strength, -strength) if name in augmentation.SIGNED else (strength,):
            expected = theirs._apply_image_or_video_transform(
                image, name, way, interpolation=theirs.interpolation, fill=theirs._fill
            )
            assert np.array_equal(apply_operation(image, name, way), expected), (magnitude, way)


def test_rand_augment_draws_two_of_all_operations(monkeypatch):
    done = []
    monkeypatch.setattr(
        augmentation, "apply_operation", lambda image, name, strength: done.append((name, strength)) or image
    )
    made = view(rand_augment=30)
    for seed in range(1400):
        made(PIXELS, seed=seed)
    assert len(done) == 2800
    counts = [sum(name == each for name, _ in done) for each in augmentation.OPERATIONS]
    assert 140 < min(counts) <= max(counts) < 260
    ways = [strength > 0 for name, strength in done if name in augmentation.SIGNED]
    assert 0.45 < np.mean(ways) < 0.55
    assert all(strength >= 0 for name, strength in done if name not in augmentation.SIGNED)


def test_rectangles_are_erased_as_by_torchvision():
    theirs = v2.RandomErasing(p=1.0)
    assert (tuple(theirs.scale), tuple(theirs.ratio)) == (augmentation.ERASED_SCALE, augmentation.ERASED_RATIO)
    draws = np.random.default_rng(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = [theirs.make_params([torch.zeros(3, 64, 48)]) for _ in range(2000)]
    ours = np.array([draw_erased(draws, 64, 48) for _ in range(2000)])
    for column, name in enumerate("ijhw"):
        compare(ours[:, column], np.array([box[name] for box in expected]))


def test_what_is_erased_has_the_mean_colour():
    plain = SMALL.fit(PIXELS)
    erased = view(random_erasing=1.0)(PIXELS, seed=1)
    changed = (erased != plain).any(-1)
    assert 0.01 < changed.mean() < 0.4
    assert {tuple(colour) for colour in erased[changed].tolist()} == {(124, 116, 104)}
    assert np.abs(SMALL.normalize(erased)[:, changed]).max() < 0.01
    some = [np.array_equal(view(random_erasing=0.25)(PIXELS, seed=seed), plain) for seed in range(400)]
    assert 0.68 < np.mean(some) < 0.82


def test_only_rand_augment_needs_torchvision(monkeypatch):
    code = (
        "import sys, numpy as np; sys.modules['torchvision'] = None\n"
        "from vggkit.images.preprocessing import Preprocessing\n"
        "from vggkit.training.augmentation import View\n"
        "from vggkit.training.recipe import Recipe\n"
        "for kind in ('none', 'shift', 'photo'):\n"
        "    recipe = Recipe(augmentation=kind, mirror='random', random_erasing=0.5)\n"
        "    View.of(recipe, Preprocessing())(np.zeros((300, 300, 3), np.uint8), seed=1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="RandAugment needs torchvision"):
        view(rand_augment=9)
