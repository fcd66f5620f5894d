"""Each image has one role, and none that the Classifier learnt from is chosen by or reported on."""

from pathlib import Path

import numpy as np
import pytest

import vggkit as vk
from vggkit.compression import images
from vggkit.compression.images import divide_roles, prepare_calibration
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.weights.model import Model


def make_data(count: int, *splits: str) -> vk.ImageDataset:
    """Images of two classes, so many of each in each split."""
    samples = []
    for split in splits or (None,):
        for number in range(count):
            for label in ("a", "b"):
                pixels = np.full((8, 8, 3), number, np.uint8)
                samples.append((split, vk.ImageSample(f"{split}/{label}{number}", label, pixels)))
    return vk.ImageDataset.of("data", samples)


@pytest.fixture
def model(tiny) -> Model:
    labels = ["a", "b", "c"]
    return Model.create(tiny, labels=labels, preprocessing=choose_preprocessing(32), seed=0)


def paths(*roles: tuple[vk.ImageSample, ...]) -> list[set[str]]:
    return [{image.path for image in role} for role in roles]


@pytest.mark.parametrize(
    ("splits", "sizes", "names"),
    [
        (("train", "val", "test"), (40, 40, 40), ("train", "val", "test")),
        (("train", "val"), (40, 20, 20), ("train", "half of val", "the other half of val")),
        ((), (24, 8, 8), ("train", "half of val", "the other half of val")),
        (("train", "test"), (24, 16, 40), ("train", "val", "test")),
    ],
)
def test_roles_do_not_share_images(model, splits, sizes, names):
    found = divide_roles(make_data(20, *splits), model)
    roles = paths(found.fit, found.choose, found.report)
    assert tuple(map(len, roles)) == sizes
    assert len(set().union(*roles)) == sum(sizes)
    assert tuple(role.split for role in found.roles) == names
    for role in (found.fit, found.choose, found.report):
        assert {image.label for image in role} == {"a", "b"}
    again = divide_roles(make_data(20, *splits), model)
    assert paths(again.fit, again.choose, again.report) == roles


@pytest.mark.slow
def test_data_that_was_trained_on_is_divided_as_then(photos: Path, tiny, tmp_path):
    run = vk.train(
        photos / "train", model=tiny, image_size=32, epochs=1, batch_size=16, quiet=True, out=tmp_path / "run"
    )
    dataset = vk.open_dataset(photos / "train")
    found = divide_roles(dataset, run.classifier)
    data = run.classifier.provenance["data"]
    assert found.roles[0].digest == data["learnt"]
    assert len(found.choose) + len(found.report) == data["images"]["val"]


def test_choosing_takes_no_more_images_than_it_needs(model, monkeypatch):
    monkeypatch.setattr(images, "MOST_CHOSEN_BY", 10)
    found = divide_roles(make_data(20, "train", "val", "test"), model)
    assert len(found.choose) == 10
    assert len(found.report) == 40
    assert found.roles[1].split == "10 images of val"


def test_calibration_images_come_from_everywhere_in_batches(model):
    data = make_data(50).split("all")
    batches = prepare_calibration(data, model.preprocessing, most=40)
    assert sum(map(len, batches)) == 40
    assert max(map(len, batches)) == 32
    assert batches[0].shape[1:] == (3, 32, 32)
    assert len({float(image.mean()) for batch in batches for image in batch}) > 15
