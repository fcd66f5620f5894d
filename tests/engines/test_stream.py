import threading

import numpy as np
import pytest
from PIL import Image

from vggkit.engines.stream import stream_results, stream_rows
from vggkit.images.dataset import ImageSample
from vggkit.images.preprocessing import Preprocessing

SMALL = Preprocessing(resize_pixels=8, crop_pixels=8, mean=(0, 0, 0), std=(1, 1, 1))


class Brightness:
    """An engine that needs no network."""

    def __init__(self):
        self.batches = []

    def run(self, batch):
        self.batches.append(len(batch))
        return batch.mean(axis=(2, 3))


def grey(level: int) -> ImageSample:
    return ImageSample(f"memory/{level}", "x", np.full((9, 9, 3), level, np.uint8))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_every_image_is_answered_in_order(batch_size):
    engine = Brightness()
    predictions = list(stream_results(engine, SMALL, [grey(level) for level in range(20)], batch_size=batch_size))
    assert [answer.image.path for answer in predictions] == [f"memory/{level}" for level in range(20)]
    for level, answer in enumerate(predictions):
        assert np.allclose(answer.output, level / 255, atol=1e-6)
    assert max(engine.batches) <= batch_size
    assert sum(engine.batches) == 20


def test_bad_images_get_their_reason_and_the_others_go_on(tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (9, 9), "white").save(good)
    bad.write_text("no image")
    predictions = list(
        stream_results(Brightness(), SMALL, [ImageSample(str(p)) for p in (bad, good, bad)], batch_size=1)
    )
    assert [answer.output is None for answer in predictions] == [True, False, True]
    assert "bad.png" in predictions[0].problem
    assert list(stream_results(Brightness(), SMALL, [], batch_size=4)) == []


def test_memory_is_bounded_and_threads_end_when_the_reader_stops():
    decoded = []

    class Counted:
        path, label, pixels = "x", None, None

        def decode(self, **options):
            decoded.append(1)
            return np.zeros((9, 9, 3), np.uint8)

    predictions = stream_results(Brightness(), SMALL, [Counted()] * 1000, batch_size=5)
    next(predictions)
    assert len(decoded) <= 15
    predictions.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_things_have_none_or_several_inputs():
    def prepare(number):
        return [np.full((1, 2, 2), 10 * number + each, np.float32) for each in range(number % 3)], -number

    engine = Brightness()
    found = [
        (number, known, rows[:, 0].tolist() if len(rows) else [])
        for number, known, rows in stream_rows(engine, range(10), prepare, batch_size=4)
    ]
    assert found == [(n, -n, [10 * n + each for each in range(n % 3)]) for n in range(10)]
    assert sum(engine.batches) == sum(n % 3 for n in range(10))


def test_an_engine_is_not_asked_for_nothing():
    engine = Brightness()
    assert len(list(stream_rows(engine, range(10), lambda number: ([], None)))) == 10
    assert engine.batches == []


def test_what_preparing_raises_reaches_the_reader():
    def prepare(number):
        if number == 7:
            raise ValueError("the seventh")
        return [], None

    with pytest.raises(ValueError, match="the seventh"):
        list(stream_rows(Brightness(), range(100), prepare, batch_size=5))
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]
