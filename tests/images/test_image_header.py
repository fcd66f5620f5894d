import io

import numpy as np
import pytest
from PIL import Image

from vggkit.errors import BadImage
from vggkit.images.decoding import decode
from vggkit.images.image_header import Head, read_head

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8))


def encode(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM"])
def test_format_and_sides(form, tmp_path):
    (tmp_path / "x").write_bytes(encode(IMAGE, form))
    found = read_head(tmp_path / "x")
    assert (found.format, found.width, found.height) == (form, 17, 12)
    assert read_head((tmp_path / "x").read_bytes()) == found


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sides_are_those_of_the_decoded_image(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(IMAGE, form, exif=exif)
    found = read_head(data)
    assert (found.height, found.width) == decode(data).shape[:2]
    assert found.orientation == orientation


def test_frames_and_heic():
    frames = [IMAGE, IMAGE.transpose(Image.Transpose.ROTATE_180)]
    assert read_head(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])).animated
    assert not read_head(encode(IMAGE, "GIF")).animated
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    pillow_heif.from_pillow(IMAGE.resize((64, 48))).save(stream)
    assert read_head(stream.getvalue()) == Head("HEIC", 64, 48, "RGB", 1, animated=False)


def test_what_has_no_head(tmp_path):
    (tmp_path / "x.jpg").write_text("text")
    for source in (tmp_path / "x.jpg", tmp_path / "none.jpg", tmp_path):
        with pytest.raises(BadImage, match=source.name):
            read_head(source)
    with pytest.raises(BadImage, match="mine"):
        read_head(b"\xff\xd8\xff", name="mine")
