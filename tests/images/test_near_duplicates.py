import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from vggkit.images import near_duplicates as similarity
from vggkit.images.decoding import decode
from vggkit.images.near_duplicates import (
    DESCRIPTOR_SIZE,
    LEAST_SIMILARITY,
    NearDuplicate,
    compute_descriptor,
    find_near_duplicates,
    group,
)


def draw_scene(seed: int, width: int = 240, height: int = 180) -> Image.Image:
    """Seeded noise with a photo's structure: coarse parts strong, fine parts weak, in colour."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.float32)
    for side in (3, 6, 12, 24, 48, 96):
        part = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        pixels += (np.asarray(part.resize((width, height), Image.Resampling.BICUBIC), np.float32) - 128) / side**0.5
    return Image.fromarray(np.clip(pixels + 128, 0, 255).astype(np.uint8))


def describe(*images: Image.Image) -> np.ndarray:
    return np.stack([compute_descriptor(np.asarray(image.convert("RGB"))) for image in images])


def recode(image: Image.Image, kind: str, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return Image.open(file)


def crop(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    return image.crop((int(left * width), int(top * height), int(width * (1 - right)), int(height * (1 - bottom))))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG": lambda image: recode(image, "JPEG", 30),
    "WebP": lambda image: recode(image, "WEBP", 50),
    "smaller": lambda image: image.resize((image.width // 4, image.height // 4), Image.Resampling.LANCZOS),
    "larger": lambda image: image.resize((image.width * 2, image.height * 2)),
    "flatter": lambda image: image.resize((image.width, image.height * 9 // 10)),
    "grey": lambda image: image.convert("L"),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "gamma": lambda image: image.point([round(255 * (value / 255) ** 1.5) for value in range(256)] * 3),
    "mirrored": ImageOps.mirror,
    "turned left": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "upside down": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "turned right": lambda image: image.transpose(Image.Transpose.ROTATE_270),
    "turned and mirrored": lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    "cropped": lambda image: crop(image, 0.05, 0.05, 0.05, 0.05),
    "cropped aside": lambda image: crop(image, 0.05, 0.03, 0, 0),
    "bordered": lambda image: ImageOps.expand(image, 5, "white"),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
    "all at once": lambda image: recode(
        ImageOps.mirror(crop(image, 0.03, 0.02, 0.03, 0.02)).convert("L"), "JPEG", 50
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_copies_are_paired_with_their_originals_and_nothing_else(change: Callable) -> None:
    originals = [draw_scene(seed) for seed in range(6)]
    alike = find_near_duplicates(describe(*originals, *map(change, originals)))
    assert [(pair.first, pair.second) for pair in alike] == [(row, row + 6) for row in range(6)]
    assert all(LEAST_SIMILARITY <= pair.similarity <= 1 for pair in alike)


@pytest.mark.parametrize("change", ["JPEG", "mirrored", "turned left", "grey", "cropped", "gamma"])
def test_copies_of_real_photos_are_found_and_no_two_photos_taken_for_one(shared: Path, change: str) -> None:
    paths = sorted((shared / "hymenoptera/train/bees").glob("*.jpg"))[:40]
    originals = [Image.fromarray(decode(path)) for path in paths]
    alike = find_near_duplicates(describe(*originals, *map(CHANGES[change], originals)))
    assert {(pair.second - pair.first) for pair in alike} == {40}
    assert len(alike) >= 38


def test_hands_of_the_same_sign_are_different_images(shared: Path) -> None:
    paths = sorted((shared / "sign_digits").glob("[0-3]/*"))[:200]
    assert find_near_duplicates(describe(*(Image.fromarray(decode(path)) for path in paths))) == []


def test_plain_images_are_like_nothing_not_even_their_equals() -> None:
    sky = np.linspace(120, 180, 200).astype(np.uint8)[:, None, None] * np.ones((1, 200, 3), np.uint8)
    plain = [Image.new("RGB", (90, 60), colour) for colour in ("white", "white", "black", "#888")]
    assert find_near_duplicates(describe(*plain, Image.fromarray(sky), Image.fromarray(sky[::-1] - 3))) == []


def test_tiny_images_are_like_nothing() -> None:
    tiny = draw_scene(1).resize((28, 40))
    assert not describe(tiny).any()
    assert find_near_duplicates(describe(tiny, tiny)) == []


def test_what_little_is_seen_in_a_clear_sky_must_fit_more_exactly() -> None:
    def draw_bird(outline: str) -> Image.Image:
        sky = Image.new("RGB", (200, 200), "#aaccee")
        getattr(ImageDraw.Draw(sky), outline)((80, 86, 120, 114), fill="#333333")
        return sky

    assert find_near_duplicates(describe(draw_bird("rectangle"), draw_bird("ellipse"))) == []
    assert find_near_duplicates(describe(draw_bird("ellipse"), draw_bird("ellipse"))) == [NearDuplicate(0, 1, 1.0)]


@pytest.mark.parametrize("shape", [(40, 4000, 3), (4000, 40, 3), (32, 32, 3), (1500, 2000, 3)])
def test_every_shape_gets_a_descriptor_of_one_size(shape: tuple[int, int, int]) -> None:
    described = compute_descriptor(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    assert described.shape == (DESCRIPTOR_SIZE,)
    assert described.dtype == np.uint8


def test_none_one_and_the_progress() -> None:
    assert find_near_duplicates(np.empty((0, DESCRIPTOR_SIZE), np.uint8)) == []
    assert find_near_duplicates(describe(draw_scene(0))) == []
    told: list[tuple[int, int]] = []
    scenes = describe(*(draw_scene(seed, 40, 40) for seed in range(70)))
    find_near_duplicates(
        np.concatenate([scenes, scenes[:9]]), on_progress=lambda done, whole: told.append((done, whole))
    )
    assert told == [(32, 70), (64, 70), (70, 70)]


@settings(max_examples=15, deadline=None)
@given(count=st.integers(2, 90), seed=st.integers(0, 99), rows=st.integers(1, 40), columns=st.integers(1, 50))
def test_search_in_blocks_proposes_what_comparing_each_with_each_does(
    count: int, seed: int, rows: int, columns: int
) -> None:
    rng = np.random.default_rng(seed)
    waves = rng.normal(size=(count // 4 + 1, 8, 8)).astype(np.float32)[rng.integers(0, count // 4 + 1, count)]
    waves += rng.normal(scale=0.4, size=waves.shape).astype(np.float32)
    waves /= np.linalg.norm(waves, axis=(1, 2), keepdims=True)
    wanted = set()
    for first in range(count):
        scores = [
            (
                -float((similarity._turn_waves(waves[first : first + 1], position) * waves[second]).sum()),
                second,
                position,
            )
            for second in range(first + 1, count)
            for position in range(8)
        ]
        likely = sorted(score for score in scores if -score[0] > similarity._LEAST_CORRELATION)
        wanted |= {(first, second, position) for _, second, position in likely[: similarity.MOST_PARTNERS]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "_ROWS", rows)
        patch.setattr(similarity, "_COLUMNS", columns)
        found = [triple for _, block in similarity._propose(waves) for triple in zip(*block, strict=True)]
    assert len(found) == len(wanted)
    assert {tuple(map(int, triple)) for triple in found} == wanted


@pytest.mark.parametrize("position", range(8))
def test_waves_of_a_turned_image_are_turned_waves(position: int) -> None:
    thumbnails = similarity._unfold(describe(draw_scene(3), draw_scene(4)))
    turned = similarity._measure_waves(np.ascontiguousarray(similarity._turn(thumbnails, position)))
    np.testing.assert_allclose(
        turned, similarity._turn_waves(similarity._measure_waves(thumbnails), position), atol=1e-5
    )


@pytest.mark.parametrize("motion", [(0.06, 0.02, -0.04, 0.05), (-0.05, 0.0, 0.08, -0.03)])
def test_images_are_laid_over_each_other_to_a_tenth_of_a_pixel(motion: tuple[float, ...]) -> None:
    thumbnail = similarity._unfold(describe(draw_scene(5)))
    wanted = np.array([motion], np.float32)
    target, _ = similarity._warp(thumbnail, wanted)
    found, _ = similarity._align(thumbnail, target, np.zeros((1, 4), np.float32), scale=2.0)
    found, fit = similarity._align(thumbnail, target, found, scale=1.2)
    assert fit > 0.95
    np.testing.assert_allclose(found, wanted, atol=0.1 * 2 / similarity.SIDE)


def test_the_order_of_rows_does_not_matter() -> None:
    originals = [draw_scene(seed) for seed in range(5)]
    described = describe(*originals, *map(CHANGES["cropped"], originals))
    forth = {(pair.first, pair.second) for pair in find_near_duplicates(described)}
    back = {(9 - pair.second, 9 - pair.first) for pair in find_near_duplicates(described[::-1])}
    assert forth == back == {(row, row + 5) for row in range(5)}


def test_a_thousand_equal_images_are_as_many_pairs_not_their_square() -> None:
    described = np.repeat(describe(draw_scene(0), draw_scene(1)), 1000, axis=0)
    alike = find_near_duplicates(described)
    assert len(alike) == 2 * 999
    assert group(alike) == [list(range(1000)), list(range(1000, 2000))]


def test_groups_do_not_chain() -> None:
    film = [NearDuplicate(row, row + 1, 0.8) for row in range(6)]
    assert group(film) == [[0, 1, 2], [3, 4], [5, 6]]


def test_equals_go_where_their_first_goes() -> None:
    assert group([NearDuplicate(0, 2, 0.7), NearDuplicate(2, 5, 1.0), NearDuplicate(2, 6, 1.0)]) == [[0, 2, 5, 6]]
    assert group([]) == []


@settings(max_examples=60, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda pair: pair[0] < pair[1])))
def test_each_row_is_in_one_group_at_most_beside_one_it_is_like(pairs: set[tuple[int, int]]) -> None:
    groups = group(NearDuplicate(*pair, 0.7) for pair in pairs)
    rows = [row for members in groups for row in members]
    assert len(rows) == len(set(rows))
    for members in groups:
        assert any(all((min(a, b), max(a, b)) in pairs or a == b for b in members) for a in members)


def test_torch_is_not_imported() -> None:
    code = "import sys, vggkit.images.near_duplicates; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
