"""Labelled images as programs hold them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

import vggkit as vk
from vggkit.errors import BadInput
from vggkit.images.given import list_sources
from vggkit.images.sources.open_dataset import open_dataset

CLASSES = ["ant", "bee"]


def paint(number: int) -> np.ndarray:
    return np.full((16, 16, 3), (250 * (number % 2), 10 * number, 90), np.uint8)


class Photos(Dataset):
    """As torchvision's: an item is an image of Pillow's and a number."""

    classes = CLASSES

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Image.Image, int]:
        return Image.fromarray(paint(number)), number % 2


def pairs(count: int = 6) -> list[tuple[np.ndarray, str]]:
    return [(paint(number), CLASSES[number % 2]) for number in range(count)]


@pytest.mark.parametrize(
    "given",
    [
        pairs(),
        iter(pairs()),
        [(Image.fromarray(image), label) for image, label in pairs()],
        Photos(6),
        Subset(Photos(9), range(6)),
        TensorDataset(
            torch.from_numpy(np.stack([image for image, _ in pairs()])).permute(0, 3, 1, 2), torch.arange(6) % 2
        ),
        (np.stack([image for image, _ in pairs()]), [label for _, label in pairs()]),
        (np.stack([image for image, _ in pairs()]), np.array([label for _, label in pairs()])),
    ],
    ids=["pairs", "iterator", "PIL", "dataset", "subset", "tensors", "arrays", "arrays of names"],
)
def test_labelled_images_in_memory_are_a_dataset(given):
    found = open_dataset(given)
    assert found.labels in (("ant", "bee"), ("0", "1"))
    images = found.split("all")
    assert len(images) == 6
    assert all(np.array_equal(image.decode(), paint(number)) for number, image in enumerate(images))


def test_folders_of_torchvision_are_read_when_they_are_needed(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    for number, label in enumerate(CLASSES):
        (tmp_path / label).mkdir()
        Image.fromarray(paint(number)).save(tmp_path / label / "0.png")
    images = open_dataset(torchvision.datasets.ImageFolder(tmp_path)).split("all")
    assert [image.label for image in images] == CLASSES
    assert all(image.pixels is None for image in images)


def test_splits_are_given_by_name():
    found = open_dataset({"train": pairs(4), "validation": Photos(2)})
    assert {name: len(images) for name, images in found.splits.items()} == {"train": 4, "val": 2}
    with pytest.raises(BadInput, match=r"by split.*got 'extra'"):
        open_dataset({"extra": pairs()})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([paint(0)], "item 0: labelled images are .* pairs"),
        (paint(0), "labelled images are .* pairs"),
        ((np.stack([paint(0)]), ["a", "b"]), "1 images and 2 labels"),
        ([(paint(0), 1.5)], "a label is a name or a whole number; got 1.5"),
        ([(torch.rand(3, 8, 8), "ant")], "float32"),
        (7, "labelled images are"),
    ],
)
def test_what_is_no_labelled_image_is_refused_with_the_rule(given, said):
    with pytest.raises(BadInput, match=said):
        open_dataset(given)


def test_a_list_goes_from_training_to_answer(tmp_path):
    run = vk.train(
        {"train": pairs(8), "val": Photos(4)},
        out=tmp_path / "run",
        model="vgg11",
        until="pool1",
        image_size=32,
        epochs=6,
        quiet=True,
    )
    assert run.classifier.labels == ("ant", "bee")
    assert run.classifier.evaluate(Photos(4)).top1 == 1
    assert vk.check(pairs()).n == 6


def test_a_data_loader_is_refused_with_its_dataset_named():
    loader = torch.utils.data.DataLoader(pairs(4))
    with pytest.raises(BadInput, match=r"give the Dataset itself, which is its \.dataset"):
        open_dataset(loader)
    with pytest.raises(BadInput, match="a DataLoader makes batches"):
        list_sources(loader)
    assert len(open_dataset(loader.dataset).splits["all"]) == 4
