import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vggkit.errors import BadImage
from vggkit.images.decoding import MOST_PIXELS, decode

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 17, 3), dtype=np.uint8)


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def test_lossless_files_give_their_pixels(tmp_path):
    path = tmp_path / "päth with space.png"
    path.write_bytes(encode(Image.fromarray(PIXELS)))
    assert np.array_equal(decode(path), PIXELS)
    assert np.array_equal(decode(str(path)), PIXELS)
    assert np.array_equal(decode(path.read_bytes()), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    turned = Image.fromarray(PIXELS)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    stored = turned if undo is None else turned.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(encode(stored, exif=exif)), PIXELS)


def test_transparency_is_laid_over_white():
    clear = np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])
    assert (decode(encode(Image.fromarray(clear))) == 255).all()
    half = np.dstack([np.zeros_like(PIXELS), np.full(PIXELS.shape[:2], 128, np.uint8)])
    assert np.abs(decode(encode(Image.fromarray(half))).astype(int) - 127).max() <= 1
    palette = Image.fromarray(PIXELS).quantize(8)
    palette.info["transparency"] = 0
    index = np.asarray(palette)
    assert (decode(encode(palette, transparency=0))[index == 0] == 255).all()


def test_sixteen_bits_are_scaled_and_not_clipped():
    deep = (PIXELS[..., 0].astype(np.uint16) << 8) + 7
    grey = decode(encode(Image.fromarray(deep)))
    assert np.abs(grey[..., 0].astype(int) - PIXELS[..., 0]).max() <= 1
    floating = decode(encode(Image.fromarray(PIXELS[..., 0].astype(np.float32) / 255), "TIFF"))
    assert np.abs(floating[..., 0].astype(int) - PIXELS[..., 0]).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode):
    image = Image.fromarray(PIXELS).convert(mode)
    form = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    found = decode(encode(image, form))
    assert found.shape == PIXELS.shape
    assert np.abs(found.astype(int) - np.asarray(image.convert("RGB"))).max() <= 2


def test_an_animation_gives_its_first_frame():
    frames = [Image.fromarray(PIXELS[..., ::-1].copy()), Image.fromarray(PIXELS)]
    data = encode(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode(data), PIXELS[..., ::-1])


def test_bad_files_are_named_with_their_reason(tmp_path):
    whole = encode(Image.fromarray(PIXELS), "JPEG")
    cases = {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"hello, I am a text", "known format"),
        "cut.jpg": (whole[: len(whole) // 2], "cannot be decoded"),
    }
    for name, (data, reason) in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(BadImage, match=reason) as caught:
            decode(path)
        assert str(caught.value).startswith(str(path))
    for path, reason in ((tmp_path, "folder"), (tmp_path / "none.png", "no such file")):
        with pytest.raises(BadImage, match=reason):
            decode(path)


def test_a_picture_that_claims_too_much_is_refused_before_it_is_decoded():
    side = 60_000
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    import zlib

    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    assert side * side > MOST_PIXELS
    with pytest.raises(BadImage):
        decode(data)


@settings(max_examples=60, deadline=None)
@given(
    cut=st.integers(0, 400),
    noise=st.binary(max_size=40),
    form=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP"]),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_decode_or_are_refused(cut, noise, form):
    whole = encode(Image.fromarray(PIXELS), form)
    damaged = whole[:cut] + noise + whole[cut + len(noise) :]
    try:
        found = decode(damaged)
    except BadImage:
        return
    assert found.dtype == np.uint8
    assert found.ndim == 3
    assert found.shape[2] == 3


@pytest.mark.filterwarnings("ignore")
def test_real_orientations_look_the_same(shared):
    for kind in ("Landscape", "Portrait"):
        first, *others = [decode(shared / f"odd_images/exif_orientation/{kind}_{n}.jpg") for n in range(9)]
        for other in others:
            assert other.shape == first.shape
            assert np.abs(other.astype(int) - first).mean() < 6
