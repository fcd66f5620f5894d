import pytest
import torch

from conftest import draw_class
from vggkit.classifier import Classifier
from vggkit.images.dataset import ImageSample
from vggkit.images.preprocessing import Preprocessing
from vggkit.training import linear_probe
from vggkit.training.linear_probe import fit_probe
from vggkit.training.recipe import Recipe

LABELS = ("across", "down", "red")


@pytest.mark.parametrize("views", [1, 3])
def test_the_time_that_is_announced_is_that_of_all_features(tiny, tmp_path, monkeypatch, views):
    """By a clock that goes on 0.1 s for each view of an image."""
    monkeypatch.setenv("VGGKIT_HOME", str(tmp_path))
    classifier = Classifier.create(
        tiny, labels=LABELS, preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32), seed=0
    )
    splits = {
        split: [ImageSample(f"{split}/{n}", LABELS[n % 3], draw_class(LABELS[n % 3], n)) for n in range(*span)]
        for split, span in (("train", (0, 40)), ("val", (40, 70)))
    }
    clock, logged = [0.0], []
    monkeypatch.setattr(linear_probe.time, "monotonic", lambda: clock[0])

    def show(what: str, done: int, total: int) -> None:
        clock[0] += 0.1 * (views if "train" in what else 1)

    fit_probe(
        classifier,
        splits,
        Recipe(trainable="head", precision="fp32", augmentation="shift", mirror="none", views=views),
        device=torch.device("cpu"),
        epoch=1,
        on_progress=show,
        log=lambda message: logged.append((clock[0], message)),
    )
    whole = 0.1 * (40 * views + 30)
    [(at, announced)] = [(at, message) for at, message in logged if "left" in message]
    assert announced.startswith(f"features of {40 * views + 30} views of images: about ")
    assert float(announced.split("about ")[1].split()[0]) == pytest.approx(whole - at, rel=0.1)
