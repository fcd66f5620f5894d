"""Small networks of three classes: one as it is made, and one that has learnt them."""

from dataclasses import replace
from pathlib import Path

import pytest

import vggkit as vk
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.models.configuration import Configuration
from vggkit.models.configure import configure

WIDTHS = "8/16/16,16/24,24/24,24"


@pytest.fixture(scope="session")
def fully_connected() -> Configuration:
    """VGG11's shape with few channels and the paper's head."""
    return replace(configure("vgg11_bn", blocks=WIDTHS, num_classes=3), hidden=(48, 32), dropout=0.1)


@pytest.fixture
def made(fully_connected: Configuration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a Classifier with random weights."""
    classifier = vk.Classifier.create(
        fully_connected, labels=["across", "down", "red"], preprocessing=choose_preprocessing(32), seed=0
    )
    path = tmp_path_factory.mktemp("made") / "made.safetensors"
    classifier.save(path)
    return path


@pytest.fixture(scope="session")
def trained(photos: Path, fully_connected: Configuration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a Classifier, not as deep, that was trained on `photos` for some epochs."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run = vk.train(
        photos,
        model=replace(fully_connected, blocks=((8,), (16, 16), (24,))),
        head="fc",
        image_size=32,
        recipe=vk.Recipe(epochs=6, batch_size=8, optimizer="adamw", learning_rate=3e-3, augmentation="shift"),
        out=folder,
        quiet=True,
    )
    assert run.evaluation.top1 > 0.8
    return folder / "best.safetensors"
