import sys
from types import SimpleNamespace

import pytest

from vggkit import hardware
from vggkit.classifier import Classifier
from vggkit.cli import main as cli
from vggkit.errors import BadData
from vggkit.images.preprocessing import Preprocessing
from vggkit.training.recipe import Recipe
from vggkit.workflows import demo as demonstration
from vggkit.workflows import resume_run, training_run
from vggkit.workflows.run_config import RunConfig
from vggkit.workflows.train import train

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's mallopt is Linux's")


@pytest.fixture
def asked(monkeypatch):
    """What the C library is asked about the memory of this process."""
    calls = []
    library = SimpleNamespace(mallopt=lambda *options: calls.append(options) or 1)
    monkeypatch.setattr(hardware, "ctypes", SimpleNamespace(CDLL=lambda _: library))
    return calls


def test_a_training_from_python_leaves_its_caller_s_memory_alone(asked, tiny, photos, tmp_path):
    classifier = Classifier.create(
        tiny, labels=("across", "down", "red"), preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32)
    )
    recipe = Recipe(epochs=1, learning_rate=0.1)
    run = train(photos, model=classifier, recipe=recipe, out=tmp_path / "run", device="cpu", quiet=True)
    train(resume=run.directory, device="cpu", quiet=True)
    assert asked == []


@pytest.mark.parametrize(
    "arguments", [("train", "digits", "--device", "cpu"), ("train", "--resume", "r"), ("demo", "--device", "cpu")]
)
def test_the_commands_that_train_keep_freed_memory(arguments, asked, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise BadData("enough")

    monkeypatch.chdir(tmp_path)
    RunConfig().write(tmp_path / "r" / "config.yaml")
    monkeypatch.setattr(training_run, "start_run", stop)
    monkeypatch.setattr(resume_run, "resume_run", stop)
    monkeypatch.setattr(demonstration, "demonstrate", stop)
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--quiet"])
    assert len(asked) == 2
    asked.clear()
    with pytest.raises(SystemExit):
        cli.main(["predict", "no.safetensors", "x.jpg"])
    assert asked == []
