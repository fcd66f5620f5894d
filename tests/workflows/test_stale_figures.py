"""What a Classifier's card says of its weights goes when they are trained further."""

from dataclasses import replace

import pytest

import vggkit as vk
from vggkit.classifier import Classifier
from vggkit.images.preprocessing import Preprocessing
from vggkit.training.recipe import Recipe
from vggkit.weights.origin import WeightsOrigin
from vggkit.workflows.train import train


@pytest.mark.parametrize("trainable", ["all", "head"])
def test_training_from_a_measured_classifier(photos, tiny, tmp_path, trainable):
    small = Preprocessing(resize_pixels=32, crop_pixels=32)
    source = Classifier.create(tiny, labels=["across", "down", "red"], preprocessing=small, seed=0)
    source.card = replace(source.card, origin=WeightsOrigin(kind="trained"))
    source.calibrate(temperature=7.0, threshold=0.99, about={"pictures": 12345})
    source.keep_ranges({"images": (-99.0, 99.0)}, about={"pictures": 12345})
    source.save(tmp_path / "a.safetensors", provenance={"metrics": {"top1": 0.123}, "epoch": 77})
    run = train(
        photos,
        model=vk.load(tmp_path / "a.safetensors"),
        recipe=Recipe(epochs=1, trainable=trainable, batch_size=24),
        out=tmp_path / "run",
        quiet=True,
    )
    for classifier in (run.classifier, vk.load(run.directory)):
        assert classifier.activation_ranges == {}
        assert classifier.temperature != 7
        assert classifier.threshold == 0
        told = str(classifier.provenance)
        assert "12345" not in told
        assert "0.123" not in told
        assert "77" not in str(classifier.provenance.get("epoch"))
