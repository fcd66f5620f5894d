"""Maps drawn over the images that they explain.

Shape letters: H and W pixels or places.
"""

import io
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vggkit.escaping import escape_controls
from vggkit.images.decoding import Pixels
from vggkit.images.resizing import resize

if TYPE_CHECKING:
    from vggkit.explanations.explanation import Explanation

SHOWN_PIXELS: Final = 400
"""Long side of the images that a folder of explanations shows."""
LEAST_PIXELS: Final = 224
"""Images whose long side is shorter are enlarged to it, so that the caption fits."""
IMAGE_ENDINGS: Final = (".png", ".jpg", ".jpeg", ".webp")
"""Files that an overlay can be written to."""
BAND_PIXELS: Final = 26
"""Height of the caption's band."""
GAP_PIXELS: Final = 6
HOTTEST_PERCENT: Final = 99
"""Percentile of a map's values above 0 that is the hottest: a few extreme pixels would leave all others dark."""
MOST_PLACES: Final = 56
"""Places a side that a map is drawn with: those of larger maps are averaged, for single pixels cannot be seen."""
OPACITY: Final = 0.85
"""Of the hottest place."""
UNSEEN_LIGHT: Final = 0.4
"""Brightness of pixels outside the crop, which are not part of the network's input."""
INK: Final = (34, 34, 34)
PALE_INK: Final = (118, 118, 118)
QUALITY: Final = 88

_INFERNO: Final = (
    "000004 0a0722 1e0c45 380962 510e6c 69166e 801f6c 982766 b0315b c63d4d d94d3d e9612b f47918 fa9407 fcb014"
    " f8cd37 f2ea69 fcffa4"
)
"""Matplotlib's inferno (CC0), which is perceptually uniform, at 18 of its 256 steps."""


@cache
def list_colours() -> Pixels:
    """(256, 3) RGB of heat from 0 to 1."""
    stops = np.array([list(bytes.fromhex(each)) for each in _INFERNO.split()], np.float32)
    places = np.linspace(0, len(stops) - 1, 256)
    columns = [np.interp(places, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return np.stack(columns, axis=1).round().astype(np.uint8)


def show_pixels(pixels: Pixels, long_side: int = SHOWN_PIXELS) -> Pixels:
    """RGB pixels (H, W, 3) as they are shown: the long side at most `long_side`, and `LEAST_PIXELS` at least."""
    pixels = pixels[..., :3]
    height, width = pixels.shape[:2]
    longest = max(height, width)
    wanted = min(max(longest, LEAST_PIXELS), long_side)
    if wanted == longest:
        return pixels
    size = max(1, round(width * wanted / longest)), max(1, round(height * wanted / longest))
    return resize(pixels, size, "bilinear" if wanted < longest else "nearest")


def scale_map(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Heat in [0, 1] of a map (H, W): its values by the 99th percentile of those above 0; 0 for what is below 0."""
    height, width = (min(side, MOST_PLACES) for side in values.shape)
    if (height, width) != values.shape:
        values = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))
    positive = np.maximum(values, 0)
    if not positive.any():
        return positive
    scaled: NDArray[np.float32] = positive / np.percentile(positive[positive > 0], HOTTEST_PERCENT)
    return scaled.clip(0, 1)


def lay_map(
    values: NDArray[np.float32], box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[NDArray[np.float32], tuple[int, int, int, int]]:
    """Heat (H, W) in [0, 1] of a map over an image, smoothly enlarged, and the part of the image that it covers.

    Args:
        values: The map.
        box: Where it lies: left, top, right and bottom edge in pixels of the image.
        size: H and W of the image.
    """
    height, width = size
    left, top, right, bottom = (round(edge) for edge in box)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    inside = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    # Of the map only what lies on the image is enlarged: a crop may be far larger than it.
    scaled = scale_map(values)
    across, down = scaled.shape[1] / (right - left), scaled.shape[0] / (bottom - top)
    part = (
        (inside[0] - left) * across,
        (inside[1] - top) * down,
        (inside[2] - left) * across,
        (inside[3] - top) * down,
    )
    shape = max(1, inside[2] - inside[0]), max(1, inside[3] - inside[1])
    enlarged = Image.fromarray(scaled).resize(shape, Image.Resampling.BICUBIC, box=part)
    heat = np.zeros(size, np.float32)
    heat[inside[1] : inside[3], inside[0] : inside[2]] = np.asarray(enlarged).clip(0, 1)
    return heat, inside


def encode_heat(values: NDArray[np.float32], side: int) -> bytes:
    """A PNG of a map alone (H, W), to be laid over an image: colours by heat, and clear where there is none.

    Args:
        values: The map.
        side: Height and width of the PNG in pixels; the map is smoothly enlarged to it.
    """
    heat, _ = lay_map(values, (0, 0, side, side), (side, side))
    image = Image.frombytes("P", (side, side), (heat * 255).astype(np.uint8).tobytes())
    image.putpalette(list_colours().tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", transparency=(OPACITY * np.arange(256)).astype(np.uint8).tobytes(), compress_level=1)
    return file.getvalue()


def draw_heat(pixels: Pixels, explanation: "Explanation") -> Pixels:
    """The image under its map: hot places in colour, cold ones as they are, what lies outside the crop darker.

    Args:
        pixels: The image (H, W, 3) at any size.
        explanation: With a map.
    """
    assert explanation.map is not None
    height, width = pixels.shape[:2]
    down, across = height / explanation.size[0], width / explanation.size[1]
    left, top, right, bottom = explanation.box
    box = left * across, top * down, right * across, bottom * down
    heat, inside = lay_map(explanation.map, box, (height, width))
    levels = (heat * 255).astype(np.uint8)
    mask = Image.fromarray((OPACITY * np.arange(256)).astype(np.uint8)[levels])
    grey = Image.fromarray(pixels).convert("L")
    drawn = Image.composite(Image.fromarray(list_colours()[levels]), grey.convert("RGB"), mask)
    if inside != (0, 0, width, height):
        dark = grey.point(lambda level: int(level * UNSEEN_LIGHT)).convert("RGB")
        dark.paste(drawn.crop(inside), inside[:2])
        drawn = dark
    return np.asarray(drawn)


def draw_panel(pixels: Pixels, explanation: "Explanation") -> Pixels:
    """The image, beside it the image under its map, and below the class, its probability, method and layer."""
    height, width = pixels.shape[:2]
    panel = Image.new("RGB", (2 * width + GAP_PIXELS, height + BAND_PIXELS), "white")
    panel.paste(Image.fromarray(pixels), (0, 0))
    panel.paste(Image.fromarray(draw_heat(pixels, explanation)), (width + GAP_PIXELS, 0))
    write_caption(panel, explanation.title, explanation.source)
    return np.asarray(panel)


def write_caption(image: Image.Image, title: str, source: str = "") -> None:
    """Write into the band below an image: the title from the left, where there is room the source to the right."""
    draw, font, width = ImageDraw.Draw(image), find_font(14), image.width
    middle = image.height - BAND_PIXELS / 2
    title = _shorten(_spell(title), width - 8)
    draw.text((4, middle), title, INK, font, anchor="lm")
    source = _spell(source)
    if source and font.getlength(title) + font.getlength(source) + 28 <= width:
        draw.text((width - 4, middle), source, PALE_INK, font, anchor="rm")


@cache
def find_font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    """Pillow's own font."""
    return ImageFont.load_default(size)


def encode_image(pixels: Pixels, ending: str) -> bytes:
    """The file of RGB pixels (H, W, 3), by its ending."""
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    match ending.lower():
        case ".png":
            image.save(file, "PNG", compress_level=4)
        case ".webp":
            image.save(file, "WEBP", quality=QUALITY)
        case _:
            image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _spell(text: str) -> str:
    r"""Text on one line, with what Pillow's font lacks as `\u732b`."""
    return escape_controls(text).encode("latin-1", "backslashreplace").decode("latin-1")


def _shorten(text: str, width: float) -> str:
    """The text, its end cut off where it is too wide."""
    font = find_font(14)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
