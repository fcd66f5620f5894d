"""The page's own preparation of images is `Preprocessing`'s, within two of 255 levels."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from page_files import ADDRESS, fulfill_file
from vggkit.images.decoding import decode
from vggkit.images.preprocessing import Preprocessing

FIT = """async ([bytes, preprocessing]) => {
    const { decode, fit, locate } = await import("./preprocess.js");
    const pixels = await decode(new Blob([new Uint8Array(bytes)]));
    const fitted = fit(preprocessing, pixels);
    return [Array.from(fitted.data), locate(preprocessing, pixels.width, pixels.height)];
}"""


@pytest.fixture(scope="module")
def page(browser: Any) -> Iterator[Any]:
    opened = browser.new_page()
    opened.route("**/*", fulfill_file)
    opened.goto(ADDRESS + "icon.svg")
    yield opened
    opened.close()


def draw(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth colours, edges and noise."""
    generator = np.random.default_rng(height * 1000 + width)
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [np.sin(down / (5 + 9 * c)) * np.cos(across / (3 + 7 * c)) for c in range(channels)]
    image = 127 + 80 * np.stack(waves, -1) + generator.normal(0, 20, (height, width, channels))
    image[: height // 3, : width // 4] = 255
    return image.clip(0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    kept = io.BytesIO()
    Image.fromarray(pixels).save(kept, kind, **options)
    return kept.getvalue()


def fit_in_page(page: Any, data: bytes, preprocessing: Preprocessing) -> tuple[np.ndarray, list[float]]:
    values = preprocessing.to_dict() | {"mean_colour": preprocessing.mean_colour()}
    fitted, box = page.evaluate(FIT, [list(data), values])
    crop = preprocessing.crop_pixels
    return np.array(fitted, np.int16).reshape(crop, crop, 3), box


@pytest.mark.sweep(7)
@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(90, 121), (121, 64), (30, 47), (48, 48), (9, 400), (140, 58)], ids=str)
def test_an_image_is_fitted_as_vggkit_does(page, mode, interpolation, size):
    preprocessing = Preprocessing(fit_mode=mode, interpolation=interpolation, resize_pixels=56, crop_pixels=48)
    pixels = draw(*size)
    found, box = fit_in_page(page, encode(pixels), preprocessing)
    expected = preprocessing.fit(pixels).astype(np.int16)
    assert np.abs(found - expected).max() <= (1 if interpolation == "bilinear" else 0)
    assert box == pytest.approx(preprocessing.locate(*size))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 90}),
        ("JPEG", {"quality": 90, "subsampling": 0, "progressive": True}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
    ],
    ids=str,
)
def test_files_are_decoded_as_vggkit_does(page, kind, options):
    data = encode(draw(110, 151), kind, **options)
    preprocessing = Preprocessing(resize_pixels=80, crop_pixels=64)
    found, _ = fit_in_page(page, data, preprocessing)
    expected = preprocessing.fit(decode(data)).astype(np.int16)
    assert np.abs(found - expected).max() <= 2


def test_orientation_and_transparency(page):
    upright = Image.Exif()
    upright[0x0112] = 6
    preprocessing = Preprocessing(resize_pixels=56, crop_pixels=48)
    for data in (encode(draw(60, 90), "JPEG", exif=upright, quality=95), encode(draw(60, 90, 4))):
        found, _ = fit_in_page(page, data, preprocessing)
        expected = preprocessing.fit(decode(data)).astype(np.int16)
        assert np.abs(found - expected).max() <= 2
