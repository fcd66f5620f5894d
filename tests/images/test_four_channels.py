"""Images of four channels: a fourth is transparency, unless a network asks for it."""

import io

import numpy as np
import pytest
from PIL import Image

import vggkit as vk
from vggkit.errors import BadConfiguration, BadImage
from vggkit.images.dataset import ImageSample
from vggkit.images.decoding import decode
from vggkit.images.preprocessing import Preprocessing, choose_preprocessing
from vggkit.workflows.run_config import NetworkChoice, RunConfig

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 48, 4), np.uint8)


def encode(pixels: np.ndarray, format_: str, mode: str = "RGBA", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes()).save(stream, format_, **options)
    return stream.getvalue()


@pytest.mark.parametrize("data", [encode(PIXELS, "PNG"), encode(PIXELS, "TIFF"), encode(PIXELS, "TIFF", "CMYK")])
def test_four_channels_of_a_file_are_kept_where_they_are_asked_for(data):
    assert np.array_equal(decode(data, channels=4), PIXELS)
    assert decode(data).shape == (40, 48, 3)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_image_without_a_fourth_channel_is_refused_where_it_is_needed(mode, format_):
    stream = io.BytesIO()
    Image.new(mode, (4, 4)).save(stream, format_)
    with pytest.raises(BadImage, match=r"one: has [13] channels? \(.*the network takes 4"):
        decode(stream.getvalue(), name="one", channels=4)
    with pytest.raises(BadImage, match="has 3 channels, and the network takes 4"):
        ImageSample("one", pixels=PIXELS[..., :3]).decode(channels=4)


def test_a_jpeg_of_four_channels_keeps_them():
    found = decode(encode(PIXELS, "JPEG", "CMYK", quality=100), channels=4, least_side=20)
    assert found.shape == (20, 24, 4)
    whole = decode(encode(PIXELS, "JPEG", "CMYK", quality=100), channels=4)
    assert np.abs(whole.astype(int) - PIXELS).mean() < 30
    with pytest.raises(BadImage, match="cannot be decoded"):
        decode(b"\xff\xd8\xff\xe0junk", channels=4)


def test_arrays_of_four_channels_are_over_white_unless_four_are_asked_for():
    sample = ImageSample("array", pixels=PIXELS)
    assert np.array_equal(sample.decode(channels=4), PIXELS)
    assert np.array_equal(sample.decode(), decode(encode(PIXELS, "PNG")))
    assert np.array_equal(ImageSample("pil", pixels=Image.fromarray(PIXELS)).decode(channels=4), PIXELS)


@pytest.mark.parametrize("fit_mode", ["crop", "pad", "stretch"])
def test_each_channel_has_its_own_mean_and_std_and_is_resized_by_itself(fit_mode):
    colours = Preprocessing(resize_pixels=24, crop_pixels=20, fit_mode=fit_mode)
    four = Preprocessing(
        resize_pixels=24,
        crop_pixels=20,
        fit_mode=fit_mode,
        channel_order="RGBX",
        mean=(*colours.mean, 0.25),
        std=(*colours.std, 0.5),
    )
    seen = four(PIXELS)
    assert seen.shape == (4, 20, 20)
    assert np.array_equal(seen[:3], colours(np.ascontiguousarray(PIXELS[..., :3])))
    fourth = four.fit(PIXELS)[..., 3]
    np.testing.assert_allclose(seen[3], (fourth / 255 - 0.25) / 0.5, atol=1e-6)
    assert np.array_equal(four(encode(PIXELS, "PNG")), seen)


def test_the_usual_preprocessing_of_four_channels():
    assert choose_preprocessing(in_channels=4).mean == (0.485, 0.456, 0.406, 0.449)
    with pytest.raises(BadConfiguration, match=r"4 numbers, one for each channel \(RGBX\)"):
        Preprocessing(channel_order="RGBX")
    with pytest.raises(BadConfiguration, match="in_channels=5"):
        choose_preprocessing(in_channels=5)


def test_a_classifier_of_four_channels_from_folder_to_answer(tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        for number, label in enumerate(("dry", "wet")):
            (tmp_path / "field" / split / label).mkdir(parents=True)
            for index in range(count):
                pixels = np.random.default_rng(index).integers(90, 110, (32, 32, 4), np.uint8)
                pixels[..., 3] = 40 + 170 * number  # the fourth channel alone tells the classes apart
                (tmp_path / "field" / split / label / f"{index}.tif").write_bytes(encode(pixels, "TIFF"))
    run = vk.train(
        tmp_path / "field",
        out=tmp_path / "run",
        model="vgg11",
        until="pool1",
        in_channels=4,
        image_size=32,
        mean=[0.4, 0.4, 0.4, 0.5],
        std=[0.2, 0.2, 0.2, 0.3],
        epochs=8,
        quiet=True,
    )
    fed = run.classifier.preprocessing
    assert (fed.channel_order, fed.mean, fed.std) == ("RGBX", (0.4, 0.4, 0.4, 0.5), (0.2, 0.2, 0.2, 0.3))
    assert run.classifier.evaluate(tmp_path / "field" / "val").top1 == 1
    wet = np.full((32, 32, 4), (100, 100, 100, 210), np.uint8)
    again = vk.load(tmp_path / "run")
    assert again.predict(wet)[0].label == "wet"
    written = RunConfig.read(tmp_path / "run").network
    assert (written.in_channels, written.mean) == (4, (0.4, 0.4, 0.4, 0.5))
    [refused] = again.predict([wet[..., :3]])
    assert "takes 4" in str(refused.problem)


def test_a_mean_must_have_a_number_for_each_channel(tmp_path):
    with pytest.raises(BadConfiguration, match="mean must be numbers"):
        NetworkChoice(mean="grey")
    with pytest.raises(BadConfiguration, match="mean must be 3 numbers"):
        vk.train(
            "digits", model="vgg11", until="pool1", image_size=32, mean=[0.5], out=tmp_path / "run", quiet=True
        )
