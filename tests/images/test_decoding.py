import io
import itertools
import os
import struct
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from vggkit.errors import BadImage
from vggkit.images import decoding, decoding_limits
from vggkit.images.decoding import decode
from vggkit.images.decoding_limits import demand_room

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 17, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(PIXELS).resize((170, 120), Image.Resampling.BICUBIC))


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.fixture(params=["simplejpeg", "Pillow"])
def route(request, monkeypatch):
    """Both ways to a JPEG's pixels."""
    if request.param == "simplejpeg":
        pytest.importorskip("simplejpeg")
    else:
        monkeypatch.setattr(decoding, "_find_simplejpeg", lambda: None)


def far(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


def test_lossless_files_give_their_pixels(tmp_path):
    path = tmp_path / "päth with space.png"
    path.write_bytes(encode(Image.fromarray(PIXELS)))
    assert np.array_equal(decode(path), PIXELS)
    assert np.array_equal(decode(str(path)), PIXELS)
    assert np.array_equal(decode(path.read_bytes()), PIXELS)
    assert decode(path).flags.writeable


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "TIFF", "PPM", "TGA", "PCX", "GIF", "JPEG2000", "SGI"])
def test_every_lossless_format(form):
    options = {"WEBP": {"lossless": True}}.get(form, {})
    image = Image.fromarray(PIXELS)
    if form == "GIF":
        image = image.quantize(200)
    assert np.array_equal(decode(encode(image, form, **options)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "AVIF"])
def test_every_lossy_format(form):
    assert np.abs(decode(encode(Image.fromarray(SMOOTH), form, quality=95)).astype(int) - SMOOTH).mean() < 4


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, form):
    turned = Image.fromarray(SMOOTH)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    stored = turned if undo is None else turned.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, form, exif=exif, **({"quality": 95} if form in ("JPEG", "WEBP", "AVIF") else {}))
    found = decode(data)
    assert found.shape == SMOOTH.shape
    assert np.abs(found.astype(int) - SMOOTH).mean() < 4
    assert found.flags.c_contiguous
    assert np.array_equal(found, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")))


def test_transparency_is_laid_over_white():
    clear = np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])
    assert (decode(encode(Image.fromarray(clear))) == 255).all()
    half = np.dstack([np.zeros_like(PIXELS), np.full(PIXELS.shape[:2], 128, np.uint8)])
    assert far(decode(encode(Image.fromarray(half))), np.full_like(PIXELS, 127)) <= 1
    palette = Image.fromarray(PIXELS).quantize(8)
    palette.info["transparency"] = 0
    index = np.asarray(palette)
    assert (decode(encode(palette, transparency=0))[index == 0] == 255).all()
    deep = Image.fromarray((PIXELS[..., 0] // 2).astype(np.uint16) * 257)
    value = int(np.asarray(deep)[3, 3])
    found = decode(encode(deep, transparency=value))
    assert (found[np.asarray(deep) == value] == 255).all()
    assert found.max(where=(np.asarray(deep) != value)[..., None], initial=0) <= 128


def test_sixteen_bits_are_scaled_and_not_clipped():
    deep = (PIXELS[..., 0].astype(np.uint16) << 8) + 7
    for form in ("PNG", "TIFF", "PPM"):
        assert far(decode(encode(Image.fromarray(deep), form)), PIXELS[..., :1]) <= 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.linspace(0, 1, 300, dtype=np.float32), "floating-point values"),
        (np.linspace(0, 4e6, 300).astype(np.int32), "values from 0 to 4000000"),
        (np.linspace(-1e6, 1e6, 300).astype(np.int32), "values from -1000000 to 1000000"),
    ],
    ids=["float", "large", "signed"],
)
def test_values_whose_white_is_not_known_are_refused(values, said):
    data = encode(Image.fromarray(values.reshape(15, 20)), "TIFF")
    with pytest.raises(BadImage, match=rf"^ct\.tif: holds {said}, .*save it with 8 or 16 bits"):
        decode(data, name="ct.tif")


def test_twelve_and_signed_sixteen_bits_are_scaled_by_what_they_can_say(shared):
    folder = shared / "odd_images/pillow/images"
    for name, full in (("12bit.cropped.tif", 4095), ("12in16bit.tif", 65535), ("16bit.s.tif", 32767)):
        with Image.open(folder / name) as image:
            values = np.asarray(image).astype(float)
        assert far(decode(folder / name), np.round(values / full * 255)[..., None]) <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "LAB"])
def test_every_mode_becomes_rgb(mode):
    image = Image.fromarray(PIXELS).convert("RGB" if mode == "LAB" else mode)
    if mode == "LAB":
        image = Image.merge("LAB", image.split())
    form = "TIFF" if mode in ("CMYK", "YCbCr", "LAB") else "PNG"
    found = decode(encode(image, form))
    assert found.shape == PIXELS.shape
    assert far(found, np.asarray(image.convert("RGB"))) <= 2


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L", "I;16"])
def test_strips_are_not_seen(mode, monkeypatch):
    if mode == "I;16":
        image = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 200)
    else:
        image = Image.fromarray(np.dstack([PIXELS, PIXELS[..., 0]])).convert("RGB" if mode == "P" else mode)
        image = image.convert(mode)
    whole = decoding.to_rgb(image)
    monkeypatch.setattr(decoding, "STRIP_PIXELS", 50)
    assert np.array_equal(decoding.to_rgb(image), whole)


def test_an_animation_gives_its_first_frame():
    frames = [Image.fromarray(PIXELS[..., ::-1].copy()), Image.fromarray(PIXELS)]
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(decode(data), PIXELS[..., ::-1]), form


def test_a_phones_file_of_several_images_gives_its_first(route):
    frames = [Image.fromarray(SMOOTH), Image.fromarray(SMOOTH[::-1].copy())]
    data = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    alone = decode(encode(frames[0], "JPEG"))
    assert np.array_equal(decode(data), alone)
    end = data.index(b"\xff\xd9") + 2
    assert np.array_equal(decode(data[:end]), alone)  # the second is lost
    with pytest.raises(BadImage):
        decode(data[: end // 2])


def test_both_ways_to_a_jpeg_agree(monkeypatch):
    pytest.importorskip("simplejpeg")
    for mode, progressive, sampling in itertools.product(("RGB", "L", "CMYK"), (False, True), (0, 2)):
        data = encode(Image.fromarray(SMOOTH).convert(mode), "JPEG", progressive=progressive, subsampling=sampling)
        for least_side in (None, 100, 50, 20, 15, 1):
            quick = decode(data, least_side=least_side)
            with monkeypatch.context() as patch:
                patch.setattr(decoding, "_find_simplejpeg", lambda: None)
                assert np.array_equal(decode(data, least_side=least_side), quick), (mode, least_side)


def test_least_side_takes_the_smallest_scale_that_leaves_it(route):
    data = encode(Image.fromarray(SMOOTH), "JPEG")  # 170×120
    for least_side, short in (
        (None, 120),
        (121, 120),
        (120, 120),
        (61, 120),
        (60, 60),
        (31, 60),
        (30, 30),
        (15, 15),
    ):
        assert min(decode(data, least_side=least_side).shape[:2]) == short
    assert min(decode(data, least_side=1).shape[:2]) == 15
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encode(Image.fromarray(SMOOTH), "JPEG", exif=exif), least_side=60).shape == (85, 60, 3)
    assert decode(encode(Image.fromarray(SMOOTH)), least_side=60).shape == SMOOTH.shape


def test_heic_is_decoded_as_a_person_sees_it():
    heif = pytest.importorskip("pillow_heif")
    for orientation, shape in ((1, (120, 170, 3)), (6, (170, 120, 3))):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stream = io.BytesIO()
        heif.from_pillow(Image.fromarray(SMOOTH)).save(stream, quality=95, exif=exif.tobytes())
        found = decode(stream.getvalue())
        assert found.shape == shape
        upright = SMOOTH if orientation == 1 else np.rot90(SMOOTH, -1)
        assert np.abs(found.astype(int) - upright).mean() < 8  # noise has no colour left at half its resolution
    with pytest.raises(BadImage):
        decode(stream.getvalue()[:300])


def test_heic_without_its_package_names_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(100)
    with pytest.raises(BadImage, match=r'pip install "vggkit\[heic\]"'):
        decode(data, name="beach.heic")


def test_bad_files_are_named_with_their_reason(tmp_path):
    whole = encode(Image.fromarray(PIXELS), "JPEG")
    cases = {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"hello, I am a text", "known format"),
        "cut.jpg": (whole[: len(whole) // 2], "cannot be decoded"),
        "page.eps": (encode(Image.fromarray(PIXELS), "EPS"), "known format"),
    }
    for name, (data, reason) in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(BadImage, match=reason) as caught:
            decode(path)
        assert str(caught.value).startswith(str(path))
        with pytest.raises(BadImage, match=r"^photos\.tar#1\.jpg: "):
            decode(data, name="photos.tar#1.jpg")
    for path, reason in ((tmp_path, "folder"), (tmp_path / "none.png", "no such file"), ("a\0b.png", "name")):
        with pytest.raises(BadImage, match=reason):
            decode(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(BadImage, match="not a file"):
        decode(tmp_path / "pipe.jpg")


def claim_png(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000)))


def claim_jpeg(side: int) -> bytes:
    data = encode(Image.fromarray(PIXELS), "JPEG")
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", side, side) + data[place + 4 :]


@pytest.mark.parametrize("claim", [claim_png(60_000), claim_png(12_000), claim_jpeg(20_000), claim_jpeg(65_000)])
def test_an_image_that_claims_too_much_is_refused_before_it_is_decoded(claim, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    monkeypatch.setattr(decoding, "_find_simplejpeg", lambda: None)
    with pytest.raises(BadImage, match=r"pixels"):
        decode(claim)


def test_reduced_decoding_lets_larger_images_in():
    assert decoding._choose_scale(20_000, 256) == 8
    demand_room("JPEG", (20_000, 20_000), 0, scale=8)
    with pytest.raises(BadImage, match="1 GB"):
        demand_room("JPEG", (20_000, 20_000), 0)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "AVIF", "TIFF", "PPM", "JPEG2000", "TGA"])
@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 700), noise=st.binary(max_size=40), end=st.booleans())
def test_damaged_files_decode_or_are_refused(form, cut, noise, end):
    whole = encode(Image.fromarray(PIXELS), form)
    damaged = whole[:cut] + noise + (b"" if end else whole[cut + len(noise) :])
    try:
        found = decode(damaged)
    except BadImage:
        return
    assert found.dtype == np.uint8
    assert found.ndim == 3
    assert found.shape[2] == 3


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(150, 3000), noise=st.binary(max_size=6))
def test_both_ways_say_the_same_of_a_damaged_jpeg(cut, noise):
    pytest.importorskip("simplejpeg")
    whole = encode(Image.fromarray(SMOOTH), "JPEG")
    damaged = whole[:cut] + noise + whole[cut + len(noise) :]
    said = []
    for find in (decoding._find_simplejpeg, lambda: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoding, "_find_simplejpeg", find)
            try:
                said.append(decode(damaged).tobytes())
            except BadImage as problem:
                said.append(str(problem))
    assert said[0] == said[1]


def test_warnings_neither_show_nor_raise_and_other_threads_keep_theirs():
    exif = Image.Exif()
    exif[0x010F] = "maker"
    data = bytearray(encode(Image.fromarray(PIXELS), "TIFF", tiffinfo={305: "x" * 40}))
    place = data.index(struct.pack("<HH", 305, 2)) + 4
    data[place : place + 4] = struct.pack("<I", 10**6)  # a tag longer than the file
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning), Image.open(io.BytesIO(data)) as image:
            image.getexif()
        assert decode(bytes(data)).shape == PIXELS.shape
        with pytest.raises(UserWarning), Image.open(io.BytesIO(data)) as image:  # ours were for us alone
            image.getexif()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=decode, args=(bytes(data),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not caught


def odd_images(shared):
    return [path for path in sorted((shared / "odd_images").rglob("*")) if path.is_file()]


def test_every_odd_image_decodes_or_is_refused_with_a_reason(shared, route):
    refused = {}
    for path in odd_images(shared):
        try:
            assert decode(path).shape[2] == 3
        except BadImage as problem:
            refused[path] = str(problem)
    for path, problem in refused.items():
        assert problem.startswith(f"{path}: ")
        assert len(problem) > len(f"{path}: ") + 8
    # Head and no image: as it came, the file ends where the first scan begins.
    assert "ultrahdr.jpg" in {path.name for path in refused}
    assert len(refused) < 50


def test_real_orientations_look_the_same(shared, route):
    for kind in ("Landscape", "Portrait"):
        first, *others = [decode(shared / f"odd_images/exif_orientation/{kind}_{n}.jpg") for n in range(9)]
        for other in others:
            assert other.shape == first.shape
            assert np.abs(other.astype(int) - first).mean() < 6


@pytest.mark.slow
def test_where_other_decoders_agree_this_one_agrees(shared):
    """Pillow and torchvision, two libraries: where they are within one level of each other."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("torchvision.io")
    agreed = 0
    for path in odd_images(shared):
        data = path.read_bytes()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(data)) as image:
                    if image.mode.startswith(("I", "F")) or image.has_transparency_data:
                        continue  # they lay nothing over white, and clip
                    other = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
                    if image.format not in ("JPEG", "PNG", "GIF", "WEBP"):
                        continue
                # Only what is whole: torchvision ends the process over some broken files.
                tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                one = theirs.decode_image(tensor, mode="RGB", apply_exif_orientation=True)
                one = one[0] if one.ndim == 4 else one
        except (RuntimeError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue
        one = one.numpy().transpose(1, 2, 0)
        if one.dtype == np.uint8 and one.shape == other.shape and far(one, other) <= 1:
            agreed += 1
            assert far(decode(data), other) <= 1, path
    assert agreed > 100


def test_scikit_learn_can_hand_on_the_filters_of_warnings():
    """It reads their patterns whenever it works in parallel."""
    model_selection = pytest.importorskip("sklearn.model_selection")
    from sklearn.linear_model import LogisticRegression

    decode(encode(Image.fromarray(PIXELS)))
    assert any(getattr(entry[3], "pattern", None) == r"PIL\." for entry in warnings.filters)
    features, classes = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20) % 2
    found = model_selection.cross_val_predict(LogisticRegression(), features, classes, cv=2)
    assert found.shape == (20,)


def test_what_is_too_large_names_its_size_and_what_to_do(monkeypatch):
    with pytest.raises(BadImage, match=r"huge.png: claims 20000×20000 pixels in .* first, to 120 mill"):
        decode(claim_png(20_000), name="huge.png")
    with pytest.raises(BadImage, match="to 90,000,000 pixels at most"):
        demand_room("progressive JPEG", (20_000, 20_000), 1000)
    monkeypatch.setattr(decoding_limits, "MOST_BYTES", 200_000)
    stream = io.BytesIO()
    Image.new("RGB", (640, 640)).save(stream, "JPEG")
    with pytest.raises(BadImage, match=r"more than 1 GB; scale it down first, .* --reduced-decoding .* of "):
        decode(stream.getvalue(), name="huge.jpg")
    assert decode(stream.getvalue(), name="huge.jpg", least_side=64).shape == (80, 80, 3)
    stream = io.BytesIO()
    Image.new("RGB", (640, 640)).save(stream, "PNG")
    with pytest.raises(BadImage, match=r"more than 1 GB; scale it down first, to \d+ million pixels at most$"):
        decode(stream.getvalue(), name="huge.png")
