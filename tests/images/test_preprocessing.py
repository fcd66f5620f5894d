import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vggkit.errors import BadConfiguration
from vggkit.images.preprocessing import Preprocessing, suit_preprocessing

SIZES = [(500, 375), (375, 500), (224, 224), (256, 256), (333, 100), (31, 33), (700, 20)]


def random_picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("model", ["VGG11", "VGG16_BN"])
def test_equals_torchvisions_own_transforms_bit_for_bit(model):
    torchvision = pytest.importorskip("torchvision")
    theirs = getattr(torchvision.models, f"{model}_Weights").IMAGENET1K_V1.transforms()
    for size in SIZES:
        pixels = random_picture(*size)
        assert np.array_equal(Preprocessing()(pixels), theirs(Image.fromarray(pixels)).numpy()), size


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
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
    pixels = random_picture(width, height)
    assert np.array_equal(ours(pixels), theirs(Image.fromarray(pixels)).numpy())


def test_the_input_convention_of_caffe():
    caffe = Preprocessing(
        channel_order="BGR",
        full_value=255,
        mean=(103.939, 116.779, 123.68),
        std=(1, 1, 1),
        resize_pixels=32,
        crop_pixels=32,
    )
    pixels = random_picture(32, 32)
    expected = pixels[..., ::-1].astype(np.float32).transpose(2, 0, 1) - np.float32(
        [[[103.939]], [[116.779]], [[123.68]]]
    )
    assert np.allclose(caffe(pixels), expected, atol=1e-5)


def test_features_convention_of_torchvision():
    weights = pytest.importorskip("torchvision").models.VGG16_Weights.IMAGENET1K_FEATURES.transforms()
    ours = Preprocessing(mean=tuple(weights.mean), std=tuple(weights.std))
    pixels = random_picture(300, 260)
    assert np.array_equal(ours(pixels), weights(Image.fromarray(pixels)).numpy())


def test_grey_is_one_channel_and_keeps_grey_values():
    grey = suit_preprocessing(32, in_channels=1)
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
    with pytest.raises(BadConfiguration, match="in_channels=4"):
        suit_preprocessing(in_channels=4)
    assert dataclasses.is_dataclass(suit_preprocessing(300))


def test_a_thread_of_a_picture_costs_no_gigabytes():
    import tracemalloc

    tracemalloc.start()
    assert Preprocessing()(np.zeros((20_000, 1, 3), np.uint8)).shape == (3, 224, 224)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
