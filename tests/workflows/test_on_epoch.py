"""What a caller hears of a training while it runs, and how the caller ends it."""

import json
import logging

import pytest
import torch

import vggkit as vk
from vggkit.images.preprocessing import choose_preprocessing

LABELS = ["across", "down", "red"]
RECIPE = vk.Recipe(epochs=3, batch_size=16, learning_rate=0.1, precision="fp32", trainable="all")


@pytest.fixture
def start(tiny, photos, tmp_path):
    """Begins a training, always the same, in a folder."""

    def begin(name: str, **options) -> vk.TrainingRun:
        model = vk.Classifier.create(tiny, labels=LABELS, preprocessing=choose_preprocessing(32), seed=0)
        options = {"recipe": RECIPE, "quiet": True, **options}
        return vk.train(photos, model=model, out=tmp_path / name, device="cpu", **options)

    return begin


def test_each_epoch_is_told_and_a_true_value_ends_the_training(start, caplog):
    caplog.set_level(logging.INFO, logger="vggkit")
    told: list[vk.Epoch] = []

    def hear(epoch: vk.Epoch) -> bool:
        told.append(epoch)
        return epoch.epoch == 2

    run = start("ended", on_epoch=hear)
    assert tuple(told) == run.history
    assert [epoch.epoch for epoch in told] == [1, 2]
    assert (run.directory / "report.html").is_file()
    assert json.loads((run.directory / "run.json").read_text())["state"] == "finished"
    assert "stopped after epoch 2, as on_epoch requested" in caplog.messages
    assert any(message.startswith("epoch 1  train loss") for message in caplog.messages)

    # What was ended so goes on as if it had not been.
    told.clear()
    resumed = vk.train(resume=run.directory, device="cpu", quiet=True, on_epoch=told.append)
    assert [epoch.epoch for epoch in told] == [3]
    whole = start("whole", on_epoch=lambda epoch: None)
    assert [epoch.val_loss for epoch in resumed.history] == [epoch.val_loss for epoch in whole.history]
    weights = (run.classifier.network.state_dict() for run in (resumed, whole))
    for one, other in zip(*(each.values() for each in weights), strict=True):
        assert torch.equal(one, other)


def test_what_it_raises_reaches_the_caller_and_the_run_can_be_resumed(start, tmp_path):
    def fail(epoch: vk.Epoch) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        start("failed", on_epoch=fail)
    assert json.loads((tmp_path / "failed" / "run.json").read_text())["state"] == "failed"
    run = vk.train(resume=tmp_path / "failed", device="cpu", quiet=True)
    assert [epoch.epoch for epoch in run.history] == [1, 2, 3]


def test_a_linear_probe_is_told_too(tiny, photos, tmp_path):
    """With the last layer alone it is the only epoch; else it is epoch 0, and may be enough."""
    weights = tmp_path / "weights.safetensors"
    seen = choose_preprocessing(32)
    vk.Classifier.create(tiny, labels=["a", "b", "c"], preprocessing=seen, seed=0).save(weights)
    for trainable, number in (("head", 1), ("all", 0)):
        told: list[vk.Epoch] = []
        run = vk.train(
            photos,
            model=vk.Classifier.create(tiny, labels=LABELS, weights=weights, preprocessing=seen, seed=0),
            recipe=vk.Recipe(trainable=trainable),
            out=tmp_path / trainable,
            device="cpu",
            quiet=True,
            on_epoch=lambda epoch, told=told: told.append(epoch) or True,
        )
        assert [epoch.epoch for epoch in told] == [run.best_epoch] == [number]
        assert tuple(told) == run.history
        assert run.evaluation.n == 15


def test_what_cannot_be_called_is_refused(start):
    with pytest.raises(vk.BadConfiguration, match=r"^on_epoch must be a function of an Epoch, .*; got 3"):
        start("refused", on_epoch=3)
