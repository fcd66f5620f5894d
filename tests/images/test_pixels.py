"""Whatever an image is given as, its file's pixels are seen; what could mean several things is refused.

Shape letters: N images, C channels, H and W pixels.
"""

import io
import pathlib
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from vggkit.errors import BadImage, BadInput
from vggkit.images.dataset import ImageSample
from vggkit.images.decoding import decode
from vggkit.images.given import take_sources
from vggkit.images.pixels import read_pixels
from vggkit.images.preprocessing import Preprocessing

SEEN = Preprocessing(resize_pixels=24, crop_pixels=24)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 44, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]
WIDE = RNG.integers(256, 65536, (30, 44, 4), dtype=np.uint16)
ALPHA = np.dstack([PIXELS, GREY])


def write_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits, which Pillow writes of grey images only."""
    channels = 1 if values.ndim == 2 else values.shape[2]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write(image: Image.Image, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read_one(given) -> np.ndarray:
    [image] = take_sources(given)
    return image.decode()


@pytest.mark.parametrize(
    ("array", "file"),
    {
        "RGB": (PIXELS, write(Image.fromarray(PIXELS))),
        "RGB, read backwards": (PIXELS[::-1, ::-1], write(Image.fromarray(PIXELS[::-1, ::-1].copy()))),
        "grey": (GREY, write(Image.fromarray(GREY))),
        "grey with an axis": (GREY[..., None], write(Image.fromarray(GREY))),
        "transparent": (ALPHA, write(Image.fromarray(ALPHA))),
        "16 bits, grey": (WIDE[..., 0], write_png(WIDE[..., 0])),
        "16 bits, grey with an axis": (WIDE[..., :1], write_png(WIDE[..., 0])),
        "16 bits, RGB": (WIDE[..., :3], write_png(WIDE[..., :3])),
        "16 bits, transparent": (WIDE, write_png(WIDE)),
        "16 bits, other end first": (WIDE[..., 0].astype(">u2"), write_png(WIDE[..., 0])),
        "16 bits, black": (np.zeros((9, 9), np.uint16), write_png(np.zeros((9, 9), np.uint16))),
    }.values(),
)
def test_an_array_is_what_its_file_is(array, file):
    expected = decode(file)
    by_hand = array if array.ndim == 3 else array[..., None]
    for found in (read_pixels(array, name="x"), read_one(array), ImageSample("x", pixels=by_hand).decode()):
        assert (found.dtype, found.shape) == (np.uint8, expected.shape)
        assert np.array_equal(found, expected)
    assert np.array_equal(SEEN(array), SEEN(file))
    if array.dtype.byteorder == "=" or array.dtype == np.uint8:
        tensor = torch.from_numpy(np.ascontiguousarray(array if array.ndim == 2 else array.transpose(2, 0, 1)))
        assert np.array_equal(read_one(tensor), expected)
        assert np.array_equal(SEEN(tensor), SEEN(file))


def convert(mode: str) -> Image.Image:
    whole = Image.fromarray(PIXELS)
    match mode:
        case "P, transparent":
            image = whole.quantize(16)
            image.info["transparency"] = 3
            return image
        case "I;16":
            return Image.fromarray(WIDE[..., 0])
        case "I":
            return Image.fromarray(WIDE[..., 0].astype(np.int32))
        case "RGBA" | "LA":
            return Image.fromarray(ALPHA).convert(mode)
        case _:
            return whole.convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "P, transparent", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_a_pil_image_is_what_its_file_is(mode):
    image = convert(mode)
    file = write(image, "tiff" if mode in ("CMYK", "I") else "png")
    expected = decode(file)
    opened = Image.open(io.BytesIO(file))  # whose pixels nobody has asked for yet
    for given in (image, opened, [image]):
        assert np.array_equal(read_one(given), expected)
    assert np.array_equal(ImageSample("x", pixels=image).decode(), expected)
    assert np.array_equal(SEEN(image), SEEN(file))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
def test_a_pil_image_is_upright(kind, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    file = write(Image.fromarray(PIXELS), kind, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    expected = decode(file)
    assert np.array_equal(read_one(Image.open(io.BytesIO(file))), expected)
    assert np.array_equal(read_one(ImageOps.exif_transpose(Image.open(io.BytesIO(file)))), expected)


def test_files_bytes_and_paths(tmp_path):
    path = tmp_path / "an image.png"
    Image.fromarray(PIXELS).save(path)
    data = path.read_bytes()

    class Foreign:
        def __fspath__(self) -> str:
            return str(path)

    with open(path, "rb") as file:
        given = [data, bytearray(data), memoryview(data), io.BytesIO(data), file, path, str(path), Foreign()]
        given += [Image.open(path), ImageSample("mine", pixels=PIXELS), PIXELS]
        found = [
            image if isinstance(image, ImageSample) else ImageSample(str(image)) for image in take_sources(given)
        ]
    assert [image.path for image in found] == [
        *(f"image {number}" for number in range(4)),
        *[str(path)] * 5,
        "mine",
        "image 10",
    ]
    for image in found:
        assert np.array_equal(image.decode(), PIXELS)
    for each in (data, io.BytesIO(data), path, str(path), Image.open(path), ImageSample("mine", pixels=PIXELS)):
        assert np.array_equal(SEEN(each), SEEN(PIXELS))


def test_several_images_in_whatever_they_come():
    batch = np.stack([PIXELS, PIXELS[::-1], 255 - PIXELS])
    planes = torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())
    for given in (
        batch,
        planes,
        list(batch),
        tuple(batch),
        iter(batch),
        (each for each in planes),
        [*batch[:2], planes[2]],
    ):
        found = list(take_sources(given))
        assert [image.path for image in found] == ["image 0", "image 1", "image 2"]
        assert all(np.array_equal(image.decode(), pixels) for image, pixels in zip(found, batch, strict=True))


FLOATS = PIXELS / 255
REFUSED = {
    "floats in [0, 1]": (FLOATS.astype(np.float32), "float32 (30, 44, 3) from 0 to 1", FLOATS * 255),
    "doubles in [0, 255]": (PIXELS.astype(np.float64), "float64 (30, 44, 3) from 0 to 255", PIXELS),
    "half": (PIXELS.astype(np.float16), "float16 (30, 44, 3)", PIXELS),
    "whole numbers": (PIXELS.astype(np.int64), "int64 (30, 44, 3) from 0 to 255", PIXELS),
    "bytes in 16 bits": (PIXELS.astype(np.uint16), "uint16 (30, 44, 3) from 0 to 255", PIXELS),
    "true and false": (GREY > 127, "bool (30, 44)", (GREY > 127) * 255),
    "channels first": (PIXELS.transpose(2, 0, 1), "(3, 30, 44)", PIXELS),
    "grey, channel first": (GREY[None], "(1, 30, 44)", GREY),
    "a tensor, channels last": (torch.from_numpy(PIXELS.copy()), "(30, 44, 3)", PIXELS),
    "a tensor of floats": (torch.from_numpy(FLOATS.transpose(2, 0, 1)), "float64 (3, 30, 44)", FLOATS * 255),
    "a tensor of bfloat16": (
        torch.from_numpy(PIXELS.transpose(2, 0, 1).copy()).bfloat16(),
        "bfloat16 (3, 30, 44)",
        None,
    ),
}


@pytest.mark.parametrize(("given", "received", "meant"), REFUSED.values(), ids=REFUSED)
def test_what_could_mean_several_things_is_refused_with_the_line_that_converts_it(given, received, meant):
    for take in (SEEN, lambda each: list(take_sources(each)), lambda each: ImageSample("x", pixels=each)):
        with pytest.raises(BadInput) as caught:
            take(given)
        assert received in str(caught.value)
    line = re.search(r"[Cc]onvert (?:it|them): (.+?)(?:\. For|$)", str(caught.value)).group(1)
    converted = eval(line, {"pixels": given, "torch": torch, "np": np})
    found = read_one(converted)
    if meant is not None:
        assert np.array_equal(found, np.broadcast_to(meant.reshape(30, 44, -1), found.shape).round())
    # What went through several conversions comes out too.
    if not torch.is_tensor(given):
        with pytest.raises(BadInput, match=r"^image 0: "):
            list(take_sources([given]))


def test_a_batch_with_channels_first_says_its_line():
    batch = np.stack([PIXELS] * 2)
    with pytest.raises(BadInput, match=r"\(2, 3, 30, 44\).*Convert it: pixels\.transpose\(0, 2, 3, 1\)"):
        list(take_sources(batch.transpose(0, 3, 1, 2)))
    with pytest.raises(BadInput, match=r"\(2, 30, 44, 3\).*Convert it: pixels\.permute\(0, 3, 1, 2\)"):
        list(take_sources(torch.from_numpy(batch)))
    with pytest.raises(BadInput, match=r"float64 \(2, 30, 44, 3\) from 0 to 1.*\(pixels \* 255\)\.round\(\)"):
        list(take_sources(batch / 255))
    with pytest.raises(BadInput, match="several images"):
        list(take_sources([batch]))


@pytest.mark.parametrize(
    "given",
    [
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((0,), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
        torch.zeros((3, 0, 4), dtype=torch.uint8),
        [],
        (),
        Image.new("RGB", (0, 4)),
    ],
)
def test_what_has_no_pixels_is_refused(given):
    with pytest.raises(BadInput, match=r"empty|none|no image"):
        list(take_sources(given))


@pytest.mark.parametrize(
    "given",
    [
        PIXELS - 128.0,
        PIXELS * 300.0,
        np.where(PIXELS > 3, PIXELS, np.nan),
        PIXELS.astype(object),
        np.zeros((5,), np.uint8),
        np.zeros((30, 44, 2), np.uint8),
        np.zeros((30, 44, 5), np.uint8),
        np.zeros((2, 2, 2, 30, 3), np.uint8),
        np.zeros((3, 30, 3), np.uint8),
        torch.zeros((3, 30, 3), dtype=torch.uint8),
        PIXELS.astype(np.complex64),
        {"image": PIXELS},
        [{"image": PIXELS, "label": 1}],
        [[PIXELS]],
        [1, 2],
        None,
        7,
        io.StringIO("text"),
    ],
)
def test_what_is_no_image_is_refused_in_words(given):
    with pytest.raises(BadInput) as caught:
        list(take_sources(given))
    assert len(str(caught.value)) > 40


def test_a_closed_file_and_a_broken_one(tmp_path):
    path = tmp_path / "half.jpg"
    path.write_bytes(write(Image.fromarray(PIXELS), "jpeg")[:-300])
    with open(path, "rb") as file:
        pass
    with pytest.raises(BadInput, match="'rb'"):
        list(take_sources(file))
    with open(path) as text, pytest.raises(BadInput, match="'rb'"):
        list(take_sources(text))
    # It may be one of many, and the others are read.
    with Image.open(path) as image:
        broken, whole = take_sources([image, PIXELS])
    with pytest.raises(BadImage, match=r"half\.jpg: cannot be decoded"):
        broken.decode()
    assert np.array_equal(whole.decode(), PIXELS)
    for given in (b"", b"nothing", io.BytesIO()):
        with pytest.raises(BadImage, match="image 0"):
            read_one(given)


def test_torch_is_not_imported_for_it():
    code = (
        "import sys, numpy as np; from PIL import Image; from vggkit.images import preprocessing as p;"
        "x = np.zeros((40, 50, 3), 'uint8'); p.Preprocessing()(Image.fromarray(x)); print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_pixels_that_are_there_are_not_copied():
    assert ImageSample("x", pixels=PIXELS).pixels is PIXELS
    assert np.shares_memory(ImageSample("x", pixels=GREY[..., None]).pixels, GREY)
    assert pathlib.Path(ImageSample("x", pixels=PIXELS).path) == pathlib.Path("x")


def test_one_channel_alone_is_no_image_of_its_own():
    with pytest.raises(BadInput, match=r"\(30, 44\); for a grey image use np\.stack"):
        ImageSample("x", pixels=GREY)


def test_bytes_without_a_name_are_told_apart_by_all_of_them():
    one, other = (next(iter(take_sources(data))) for data in (b"one", b"two"))
    assert one.path == other.path
    assert one.weigh() != other.weigh()
