"""The main job from end to end, on data that comes along: train, evaluate, predict, show."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from vggkit.errors import BadOutput
from vggkit.images.dataset import ImageSample
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.inference.predict import Prediction, predict
from vggkit.reports.run_plots import plot_answers
from vggkit.training.recipe import Recipe
from vggkit.workflows.fit_and_record import TrainingRun
from vggkit.workflows.train import train

RECIPE: Final = Recipe(
    epochs=4,
    batch_size=64,
    learning_rate=0.06,
    schedule="one-cycle",  # Smith and Topin 2018, arXiv:1708.07120: it goes furthest in few epochs
    label_smoothing=0.1,
)
"""Chosen on the validation digits."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What the demonstration made."""

    run: TrainingRun
    """The training and its measure on held-out digits."""
    images: tuple[ImageSample, ...]
    """The digits that were asked about, held out too."""
    predictions: tuple[Prediction, ...]
    """The answers, in the same order."""
    sheet: Path
    """An image of both."""


def demonstrate(
    out: str | Path = "runs/demo", *, device: str = "auto", seed: int = 0, quiet: bool = False
) -> Demonstration:
    """Train vgg11_bn on scikit-learn's digits and ask it about one held-out digit of each class.

    Args:
        out: Folder of the run; what an earlier demonstration left there is replaced.
        device: `auto`, `cpu`, `cuda`, `mps`.
        seed: Every random draw depends on it.
        quiet: No progress on standard error.

    Raises BadOutput where the folder holds something else, MissingExtra without scikit-learn.
    """
    out = Path(out)
    _clear(out)
    digits = open_dataset("digits")
    run = train(digits, model="vgg11_bn", recipe=RECIPE, seed=seed, out=out, device=device, quiet=quiet)
    asked = []
    for label in digits.labels:
        image = next(image for image in digits.split("test") if image.label == label)
        path = out / "pictures" / f"digit_{image.path.rsplit('/', 1)[1]}.png"
        path.parent.mkdir(exist_ok=True)
        assert image.pixels is not None, "digits are in memory"
        Image.fromarray(image.pixels).save(path)
        asked.append(ImageSample(str(path), label))
    predictions = predict(run.classifier, asked, top=3, device=device)
    sheet = out / "answers.png"
    plot_answers(asked, predictions, sheet)
    return Demonstration(run, tuple(asked), tuple(predictions), sheet)


def _clear(out: Path) -> None:
    """Make room where a finished demonstration was; never remove anything else, a training run least of all."""
    if not out.is_dir() or not any(out.iterdir()):
        return
    run = {"config.yaml", "metrics.csv", "best.safetensors", "last.ckpt"}
    drawn = {"learning_curve.png", "confusion_matrix.png", "reliability.png", "classes.png", "answers.png"}
    known = {*run, *drawn, "report.html", "results.csv", "pictures"}
    asked = out / "pictures"
    finished = (out / "answers.png").is_file() and asked.is_dir()  # what a training run does not have
    if (
        not finished
        or any(entry.name not in known for entry in out.iterdir())
        or any(not entry.match("digit_*.png") for entry in asked.iterdir())
    ):
        raise BadOutput(
            f"{out}: holds files that no finished demonstration wrote; remove it, or name another folder with --out"
        )
    shutil.rmtree(out)
