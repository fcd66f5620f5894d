import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vggkit.errors import BadConfiguration
from vggkit.images import resizing as resampling
from vggkit.images.decoding import decode
from vggkit.images.preprocessing import Preprocessing, choose_preprocessing

SIZES = [(500, 375), (375, 500), (224, 224), (256, 256), (333, 100), (31, 33), (700, 20)]


def random_image(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def apart(ours: Preprocessing, pixels: np.ndarray, theirs) -> float:
    """The largest difference from torchvision's transform, in levels of 255."""
    scale = 255 * np.asarray(ours.std)[:, None, None] / ours.full_value
    return float((np.abs(ours(pixels) - theirs(Image.fromarray(pixels)).numpy()) * scale).max())


@pytest.mark.parametrize("model", ["VGG11", "VGG16_BN"])
def test_equals_torchvisions_own_transforms_to_a_level(model):
    torchvision = pytest.importorskip("torchvision")
    theirs = getattr(torchvision.models, f"{model}_Weights").IMAGENET1K_V1.transforms()
    for size in SIZES:
        pixels = random_image(*size)
        assert apart(Preprocessing(), pixels, theirs) < 1.01, size


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(5, 90),  # of so few that they may be channels, people are asked which they are
    height=st.integers(5, 90),
    resize=st.integers(1, 80),
    crop=st.integers(1, 80),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_equals_torchvision_at_any_size(width, height, resize, crop, interpolation):
    presets = pytest.importorskip("torchvision.transforms._presets")
    from torchvision.transforms import InterpolationMode

    theirs = presets.ImageClassification(
        crop_size=crop, resize_size=resize, interpolation=InterpolationMode(interpolation)
    )
    ours = Preprocessing(resize_pixels=resize, crop_pixels=crop, interpolation=interpolation)
    pixels = random_image(width, height)
    assert apart(ours, pixels, theirs) < 1.01


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_without_the_quick_resizer_images_are_pillows_own(monkeypatch, interpolation):
    monkeypatch.setattr(resampling, "_find_quick", lambda: None)
    ours = Preprocessing(resize_pixels=40, crop_pixels=32, interpolation=interpolation)
    pixels = random_image(100, 61)
    whole = Image.fromarray(pixels).resize((65, 40), Image.Resampling[interpolation.upper()])
    assert np.array_equal(ours.fit(pixels), np.asarray(whole)[4:36, 16:48])


@settings(max_examples=150, deadline=None)
@given(
    sides=st.tuples(*[st.integers(1, 60)] * 2),
    factors=st.tuples(*[st.floats(1, 20)] * 2),
    part=st.tuples(*[st.floats(0, 1)] * 4),
    flat=st.booleans(),
)
def test_a_part_shrunk_quickly_is_within_a_level_of_pillows(sides, factors, part, flat):
    pytest.importorskip("cykooz_resizer")
    pixels = random_image(*(int(side * factor) for side, factor in zip(sides, factors, strict=True)))
    pixels = pixels // 128 * 255 if flat else pixels  # black and white: the sharpest there is
    columns, rows = (
        (int(low * (side - 1)), int(low * (side - 1)) + 1 + int(share * (side - 1 - int(low * (side - 1)))))
        for side, low, share in zip(sides, part[::2], part[1::2], strict=True)
    )
    found = resampling.resize_part(pixels, sides, "bilinear", columns, rows)
    whole = np.asarray(Image.fromarray(pixels).resize(sides, Image.Resampling.BILINEAR))
    assert np.abs(found.astype(int) - whole[slice(*rows), slice(*columns)]).max() <= 1


def test_images_of_the_right_size_are_torchvisions_bit_for_bit():
    theirs = pytest.importorskip("torchvision").models.VGG11_Weights.IMAGENET1K_V1.transforms()
    pixels = random_image(256, 256)
    assert np.array_equal(Preprocessing()(pixels), theirs(Image.fromarray(pixels)).numpy())


def test_the_input_convention_of_caffe():
    caffe = Preprocessing(
        channel_order="BGR",
        full_value=255,
        mean=(103.939, 116.779, 123.68),
        std=(1, 1, 1),
        resize_pixels=32,
        crop_pixels=32,
    )
    pixels = random_image(32, 32)
    expected = pixels[..., ::-1].astype(np.float32).transpose(2, 0, 1) - np.float32(
        [[[103.939]], [[116.779]], [[123.68]]]
    )
    assert np.allclose(caffe(pixels), expected, atol=1e-5)


def test_features_convention_of_torchvision():
    weights = pytest.importorskip("torchvision").models.VGG16_Weights.IMAGENET1K_FEATURES.transforms()
    ours = Preprocessing(mean=tuple(weights.mean), std=tuple(weights.std))
    pixels = random_image(300, 260)
    assert apart(ours, pixels, weights) < 1.01


def test_grey_is_one_channel_and_keeps_grey_values():
    grey = choose_preprocessing(32, in_channels=1)
    level = np.random.default_rng(1).integers(0, 256, (32, 32), dtype=np.uint8)
    found = grey(np.repeat(level[..., None], 3, axis=2))
    assert found.shape == (1, 32, 32)
    assert np.allclose(found[0], (level / 255 - 0.449) / 0.226, atol=1e-6)


@given(
    st.builds(
        Preprocessing,
        resize_pixels=st.integers(1, 999),
        crop_pixels=st.integers(1, 999),
        channel_order=st.sampled_from(["RGB", "BGR"]),
        full_value=st.floats(0.1, 255),
        std=st.tuples(*[st.floats(1e-3, 300)] * 3),
        mean=st.tuples(*[st.floats(-300, 300)] * 3),
    )
)
def test_round_trip(record):
    assert Preprocessing.from_dict(record.to_dict()) == record


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resize_pixels", 0),
        ("crop_pixels", 2.5),
        ("crop_pixels", True),
        ("interpolation", "linear"),
        ("fit_mode", "squash"),
        ("reduced_decoding", "yes"),
        ("channel_order", "GBR"),
        ("full_value", 0),
        ("mean", (0.5, 0.5)),
        ("mean", "half"),
        ("mean", (0.1, 0.2, float("nan"))),
        ("std", (0.2, 0.2, 0)),
        ("std", None),
    ],
)
def test_bad_values_name_their_field(field, value):
    with pytest.raises(BadConfiguration, match=field):
        Preprocessing(**{field: value})
    with pytest.raises(BadConfiguration):
        Preprocessing.from_dict({**Preprocessing().to_dict(), field: value})


def test_unknown_fields_are_refused_with_the_nearest():
    with pytest.raises(BadConfiguration, match="crop_pixels"):
        Preprocessing.from_dict({"crop_pixel": 3})
    with pytest.raises(BadConfiguration, match="in_channels=5"):
        choose_preprocessing(in_channels=5)
    assert dataclasses.is_dataclass(choose_preprocessing(300))


def test_a_thread_of_an_image_costs_no_gigabytes():
    import tracemalloc

    tracemalloc.start()
    assert Preprocessing()(np.zeros((20_000, 1, 3), np.uint8)).shape == (3, 224, 224)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


def test_a_long_image_within_reason_is_torchvisions_too():
    theirs = pytest.importorskip("torchvision").models.VGG11_Weights.IMAGENET1K_V1.transforms()
    for size in ((1, 89), (4, 700), (2000, 9)):
        pixels = random_image(*size)
        assert apart(Preprocessing(), pixels, theirs) < 1.01, size


@pytest.mark.parametrize("size", [(60, 30), (30, 60), (31, 7), (1, 90), (5, 5), (200, 199)])
def test_pad_shows_the_whole_image_on_the_mean_colour(size):
    ours = Preprocessing(fit_mode="pad", crop_pixels=20, mean=(0.2, 0.5, 0.9), resize_pixels=3)
    found = ours.fit(random_image(*size))
    longest = max(size)
    width, height = (max(1, round(20 * side / longest)) for side in size)
    left, top = (20 - width) // 2, (20 - height) // 2
    expected = np.full((20, 20, 3), (51, 128, 230), np.uint8)
    expected[top : top + height, left : left + width] = np.asarray(
        Image.fromarray(random_image(*size)).resize((width, height), Image.Resampling.BILINEAR)
    )
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("fields", "colour"),
    [
        ({"channel_order": "BGR", "full_value": 255, "mean": (103.939, 116.779, 123.68)}, (124, 117, 104)),
        ({"channel_order": "L", "mean": (0.449,), "std": (0.226,)}, (114, 114, 114)),
        ({"mean": (-1, 0.5, 7)}, (0, 128, 255)),
    ],
)
def test_padding_is_nearly_zero_once_normalised(fields, colour):
    ours = Preprocessing(fit_mode="pad", crop_pixels=8, **fields)
    wide = random_image(16, 4)
    assert tuple(ours.fit(wide)[0, 0]) == colour
    if all(0 <= mean <= ours.full_value for mean in ours.mean):
        level = ours.full_value / 255 / min(ours.std)
        assert np.abs(ours(wide)[:, 0]).max() <= 0.51 * level


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_stretch_takes_both_sides_to_the_crop(interpolation):
    ours = Preprocessing(fit_mode="stretch", crop_pixels=24, interpolation=interpolation)
    pixels = random_image(50, 31)
    expected = Image.fromarray(pixels).resize((24, 24), Image.Resampling[interpolation.upper()])
    assert np.abs(ours.fit(pixels).astype(int) - np.asarray(expected)).max() <= (interpolation == "bilinear")


def test_records_from_before_the_fit_modes_still_load():
    old = {"resize_pixels": 32, "crop_pixels": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    loaded = Preprocessing.from_dict(old)
    assert (loaded.fit_mode, loaded.reduced_decoding, loaded.least_side) == ("crop", False, None)


@pytest.mark.parametrize("fit_mode", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(700, 500), (333, 801), (256, 256), (90, 100)])
def test_reduced_decoding_never_leaves_less_than_is_fed(fit_mode, size):
    import io

    ours = Preprocessing(fit_mode=fit_mode, resize_pixels=64, crop_pixels=56, reduced_decoding=True)
    stream = io.BytesIO()
    smooth = Image.fromarray(random_image(8, 8)).resize(size, Image.Resampling.BICUBIC)
    smooth.save(stream, "JPEG", quality=95)
    full = decode(stream.getvalue())
    reduced = decode(stream.getvalue(), least_side=ours.least_side)
    assert ours.least_side <= min(reduced.shape[:2]) <= min(full.shape[:2])
    if min(size) >= 128:
        assert reduced.shape < full.shape
    assert np.abs(ours.fit(reduced).astype(int) - ours.fit(full)).mean() < 5
