"""The demonstration: train, evaluate and predict on handwritten digits that come with scikit-learn."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from vggkit.errors import BadOutput
from vggkit.files import write_text
from vggkit.images.dataset import ImageSample
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.inference.predict import Prediction, predict
from vggkit.reports.run_plots import plot_predictions
from vggkit.training.recipe import Recipe
from vggkit.workflows.fit_and_record import TrainingRun
from vggkit.workflows.train import train

RECIPE: Final = Recipe(
    epochs=3,
    batch_size=32,
    learning_rate=0.06,
    schedule="one-cycle",  # Smith and Topin 2018, arXiv:1708.07120: it reaches the highest accuracy in few epochs
    label_smoothing=0.1,
    ema_decay=0.9,
    augmentation="none",
    mirror="none",
)
"""Chosen by cross-validation on the training and validation digits, see docs/decisions/demo.md."""
IMAGES: Final = "images"
RECORD: Final = "demo.json"
"""Written last, with the names of all files: a folder that contains it is a finished demonstration."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """The results of the demonstration."""

    run: TrainingRun
    """The training, and its evaluation on the digits of the test split."""
    images: tuple[ImageSample, ...]
    """One digit of each class, from the test split too."""
    predictions: tuple[Prediction, ...]
    """Their predictions, in the same order."""
    sheet: Path
    """A figure of both."""


def demonstrate(
    out: str | Path = "runs/demo", *, device: str = "auto", seed: int = 0, quiet: bool = False
) -> Demonstration:
    """Train vgg11_bn on scikit-learn's digits, evaluate it, and classify one test digit of each class.

    Args:
        out: Folder of the run; a finished demonstration that is there is replaced.
        device: `auto`, `cpu`, `cuda`, `mps`.
        seed: Every random draw depends on it.
        quiet: No progress on standard error.

    Raises BadOutput where the folder holds something else, MissingExtra without scikit-learn.
    """
    out = Path(out)
    _clear(out)
    digits = open_dataset("digits")
    run = train(digits, model="vgg11_bn", recipe=RECIPE, seed=seed, out=out, device=device, quiet=quiet)
    chosen = []
    for label in digits.labels:
        image = next(image for image in digits.split("test") if image.label == label)
        path = out / IMAGES / f"digit_{image.path.rsplit('/', 1)[1]}.png"
        path.parent.mkdir(exist_ok=True)
        assert image.pixels is not None, "digits are in memory"
        Image.fromarray(image.pixels).save(path)
        chosen.append(ImageSample(str(path), label))
    predictions = predict(run.classifier, chosen, top=3, device=device)
    sheet = out / "predictions.png"
    plot_predictions(chosen, predictions, sheet)
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    write_text(out / RECORD, json.dumps({"schema_version": 1, "files": [*written, RECORD]}, indent=2) + "\n")
    return Demonstration(run, tuple(chosen), tuple(predictions), sheet)


def _clear(out: Path) -> None:
    """Remove a finished demonstration and nothing else: every file must be one that its record names."""
    if not out.is_dir() or not any(out.iterdir()):
        return
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    if not found <= _read_record(out):
        raise BadOutput(
            f"{out}: holds files that no finished demonstration wrote; remove it, or name another folder with --out"
        )
    shutil.rmtree(out)


def _read_record(out: Path) -> set[str]:
    """The files that a finished demonstration wrote; none where there was none."""
    try:
        files = json.loads((out / RECORD).read_text(encoding="utf-8"))["files"]
        return set(map(str, files))
    except (OSError, ValueError, KeyError, TypeError):
        return set()
