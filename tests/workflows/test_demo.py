import pytest

from vggkit.classifier import Classifier
from vggkit.errors import BadOutput
from vggkit.images.preprocessing import Preprocessing
from vggkit.training.recipe import Recipe
from vggkit.workflows.demo import _clear, demonstrate
from vggkit.workflows.train import train


@pytest.mark.slow
def test_the_demonstration_reaches_what_it_promises_and_repeats(tmp_path):
    first = demonstrate(tmp_path / "demo", quiet=True, device="cpu")
    assert first.run.evaluation.top1 >= 0.98
    assert first.run.evaluation.n == 359
    assert first.sheet.is_file()
    assert demonstrate(tmp_path / "demo", quiet=True, device="cpu").run.evaluation == first.run.evaluation


def test_it_removes_nothing_that_it_did_not_write(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    (tmp_path / "config.yaml").write_text("x")
    with pytest.raises(BadOutput, match="--out"):
        demonstrate(tmp_path, quiet=True)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("extra", [None, "pictures/holiday.png"])
def test_it_removes_no_training_run_and_no_image_of_others(tmp_path, extra):
    names = ["config.yaml", "metrics.csv", "best.safetensors", "learning_curve.png", "confusion_matrix.png"]
    names += ["answers.png", "pictures/digit_0030.png", extra] if extra else []
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(BadOutput, match="--out"):
        demonstrate(tmp_path, quiet=True)
    assert all((tmp_path / name).exists() for name in names)


def test_what_a_finished_demonstration_left_makes_room(tmp_path):
    for name in ("config.yaml", "best.safetensors", "answers.png", "pictures/digit_0030.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    _clear(tmp_path)
    assert not tmp_path.exists()


def test_whatever_a_training_writes_makes_room_too(tiny, photos, tmp_path):
    """A second demonstration replaces the first, whose folder is a run's with a sheet and images."""
    classifier = Classifier.create(
        tiny, labels=("across", "down", "red"), preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32)
    )
    recipe = Recipe(epochs=1, batch_size=16, learning_rate=0.1)
    run = train(photos, model=classifier, recipe=recipe, out=tmp_path / "demo", device="cpu", quiet=True)
    for name in ("answers.png", "pictures/digit_0030.png"):
        (run.directory / name).parent.mkdir(exist_ok=True)
        (run.directory / name).write_text("x")
    _clear(run.directory)
    assert not run.directory.exists()
