"""A training run from pictures to a measured Classifier: check, fit, evaluate, draw.

The folder of a run: `config.yaml`, `metrics.csv`, `best.safetensors`, `learning_curve.png`,
`confusion_matrix.png`.
"""

import csv
import datetime
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

from vggkit.errors import BadData, BadOutput
from vggkit.hardware import choose_device, describe_machine
from vggkit.images.pictures import PictureSet, identify_pictures
from vggkit.images.sources import open_pictures
from vggkit.images.splits import hold_out
from vggkit.images.spooling import spool
from vggkit.networks.classifier import Classifier, load
from vggkit.reports.progress import ProgressLine
from vggkit.reports.run_plots import plot_confusion, plot_history
from vggkit.tasks.evaluation import Evaluation, evaluate
from vggkit.tasks.training.loop import Epoch, fit
from vggkit.tasks.training.recipe import Recipe, settle
from vggkit.workflows.doctor import vet
from vggkit.writing import write_text

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What a training gave."""

    classifier: Classifier
    """The best epoch's, as in `best.safetensors`."""
    directory: Path
    """The run's folder."""
    history: tuple[Epoch, ...]
    """Every epoch."""
    best_epoch: int
    """The epoch that was kept: highest validation accuracy, then lowest validation loss."""
    evaluation: Evaluation
    """The kept weights on the test part, where the data has one, else on the validation part."""


def train(
    classifier: Classifier,
    data: str | Path | PictureSet,
    recipe: Recipe | None = None,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    despite_findings: bool = False,
    quiet: bool = False,
) -> TrainingRun:
    """Train a Classifier on labelled pictures and keep its best epoch.

    Args:
        classifier: From `Classifier.create` or `load`; its network learns in place.
        data: What `open_pictures` takes. Without a validation part, a share of each class is held out.
        recipe: How to learn; None: `Recipe()`.
        out: The run's folder, new or empty; None: the next free `runs/<model>-<n>`.
        device: `auto`, `cpu`, `cuda`, `mps`.
        despite_findings: Train even where `check` finds what makes figures lie, such as a class
            that is missing from validation.
        quiet: No progress on standard error.

    Pictures are looked at first: unreadable ones are left out, leakage is warned of.

    Raises BadData where classes are missing or unknown, BadOutput, BadInput when the loss diverges.
    """
    opened = data if isinstance(data, PictureSet) else open_pictures(data)
    recipe = recipe or Recipe()
    chosen = choose_device(device)
    directory = _new_folder(out, classifier)
    with (
        ProgressLine(quiet=quiet) as line,
        TemporaryDirectory(prefix="vggkit-") as spooled,
        _emptied(directory),
    ):
        parts = hold_out(opened, validation_share=recipe.validation_share, seed=recipe.seed, fold=recipe.fold)
        held_out = {name: identify_pictures(part) for name, part in parts.splits.items() if name != "train"}
        parts = spool(parts, Path(spooled) / "pictures", on_progress=partial(line.show, "copying pictures"))
        _check_labels(parts, classifier)
        # A class that the Classifier names and the data lacks altogether is missing too.
        parts = replace(parts, labels=classifier.labels)
        parts = vet(parts, despite_findings=despite_findings, say=line.say, on_progress=line.show)
        recipe, reasons = settle(
            recipe,
            classifier.configuration,
            classifier.preprocessing,
            pretrained="weights" in classifier.provenance or "metrics" in classifier.provenance,
        )
        counts = ", ".join(f"{len(part)} {name}" for name, part in parts.splits.items())
        line.say(f"{classifier.configuration.model} on {opened.name}: {counts}, {len(parts.labels)} classes")
        line.say(_describe(classifier))
        for reason in reasons:
            line.say(reason)
        started = time.time()
        about: dict[str, Any] = {
            "data": {
                "name": opened.name,
                "fingerprint": opened.fingerprint(),
                "pictures": {name: len(part) for name, part in parts.splits.items()},
                "validation_share": recipe.validation_share,
                "seed": recipe.seed,
                "fold": recipe.fold,
                "held_out": held_out,
            },
            "recipe": recipe.to_dict(),
            "machine": describe_machine(chosen),
            "started": datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds"),
        }
        _write_config(directory, classifier, about)
        try:
            history, best = _fit_and_keep(
                classifier, parts, recipe, about=about, directory=directory, device=chosen, line=line
            )
        except KeyboardInterrupt:
            _tidy_up(directory, line)
            raise
        kept = load(directory / "best.safetensors")
        classifier.network.load_state_dict(kept.network.state_dict())
        classifier.card = kept.card
        part = "test" if "test" in parts.splits else "val"
        evaluation = evaluate(
            classifier,
            replace(parts, name=opened.name),
            split=part,
            batch_size=recipe.batch_size,
            device=device,
            on_progress=lambda done, total: line.show(f"measuring on {part}", done, total),
        )
        metrics = _metrics(evaluation, part, best)
        classifier.save(
            directory / "best.safetensors",
            provenance={"metrics": metrics, "seconds": round(time.time() - started, 1)},
        )
        title = f"{classifier.configuration.model} on {opened.name}"
        plot_history(history, directory / "learning_curve.png", best_epoch=best, title=title)
        plot_confusion(evaluation, directory / "confusion_matrix.png")
    return TrainingRun(classifier, directory, tuple(history), best, evaluation)


def _fit_and_keep(
    classifier: Classifier,
    parts: PictureSet,
    recipe: Recipe,
    *,
    about: dict[str, Any],
    directory: Path,
    device: "torch.device",
    line: ProgressLine,
) -> tuple[list[Epoch], int]:
    """Fit, and after each epoch write what is known: the table always, the weights where they are the best yet."""
    history: list[Epoch] = []
    best: Epoch | None = None

    def on_step(what: str, done: int, total: int) -> None:
        line.show(f"epoch {len(history) + 1} of {recipe.epochs}, {what}", done, total)

    epochs = fit(classifier, parts.part("train"), parts.part("val"), recipe, device=device, on_step=on_step)
    for record in epochs:
        history.append(record)
        _write_metrics(directory, history)
        better = best is None or (record.val_top1, -record.val_loss) > (best.val_top1, -best.val_loss)
        if better:
            best = record
            classifier.save(directory / "best.safetensors", provenance={**about, "epoch": record.epoch})
        line.say(
            f"epoch {record.epoch:>{len(str(recipe.epochs))}}  train loss {record.train_loss:.4f}  "
            f"val loss {record.val_loss:.4f}  val top-1 {record.val_top1:.4f}  {record.seconds:5.1f} s"
            + ("  kept" if better else "")
        )
    assert best is not None, "a recipe has one epoch or more"
    return history, best.epoch


def _new_folder(out: str | Path | None, classifier: Classifier) -> Path:
    if out is None:
        names = (Path("runs") / f"{classifier.configuration.model}-{count}" for count in range(1, 100_000))
        directory = next(path for path in names if not path.exists())
    else:
        directory = Path(out)
        if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
            raise BadOutput(f"{directory}: is there already; a run takes a new folder, name another with --out")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise BadOutput(f"{directory}: cannot be made ({problem.strerror or problem})") from problem
    return directory


def _tidy_up(directory: Path, line: ProgressLine) -> None:
    """After an interruption: say what is kept, or make room where there is nothing worth keeping."""
    if (directory / "best.safetensors").is_file():
        line.say(f"interrupted: the best epoch so far is in {directory / 'best.safetensors'}")
        return
    for name in ("config.yaml", "metrics.csv"):
        (directory / name).unlink(missing_ok=True)
    if not any(directory.iterdir()):
        directory.rmdir()
    line.say("interrupted before the first epoch ended: nothing is kept")


def _describe(classifier: Classifier) -> str:
    """What is about to be trained, where it may differ from what was asked for by default."""
    configuration, pixels = classifier.configuration, classifier.preprocessing.crop_pixels
    cut = f" until {configuration.until}" if configuration.until else ""
    text = f"{configuration.model}{cut}, head {configuration.head}, pictures fed at {pixels} pixels"
    start = classifier.provenance.get("weights")
    if isinstance(start, dict) and "taken" in start and "random" in start:
        taken, random = start["taken"], start["random"]
        count = taken if isinstance(taken, int) else len(taken)
        text += f"; {count} tensors taken from the weights, {len(random)} random"
    return text


def _check_labels(pictures: PictureSet, classifier: Classifier) -> None:
    """There are two classes or more, and none that the Classifier does not name."""
    if len(classifier.labels) < 2:
        raise BadData(f"{pictures.name}: has one class, and telling classes apart takes two")
    unknown = sorted(set(pictures.labels) - set(classifier.labels))
    if unknown:
        raise BadData(
            f"{pictures.name}: holds classes the Classifier does not name ({', '.join(unknown[:5])}); "
            f"it names {', '.join(classifier.labels[:5])}"
        )


@contextmanager
def _emptied(directory: Path) -> Iterator[None]:
    """A folder that nothing was written to goes again when something fails."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            directory.rmdir()
        raise


def _write_config(directory: Path, classifier: Classifier, about: dict[str, Any]) -> None:
    content = {
        "model": classifier.configuration.model,
        **about,
        "configuration": classifier.configuration.to_dict(),
        "preprocessing": classifier.preprocessing.to_dict(),
        "labels": list(classifier.labels),
    }
    write_text(directory / "config.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _write_metrics(directory: Path, history: Sequence[Epoch]) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in fields(Epoch)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) for record in history)
    write_text(directory / "metrics.csv", table.getvalue())


def _metrics(evaluation: Evaluation, part: str, epoch: int) -> dict[str, Any]:
    """The headline figures, for the Classifier's own file."""
    return {
        "part": part,
        "top1": evaluation.top1,
        "top1_interval": list(evaluation.top1_interval),
        "top5": evaluation.top5,
        "loss": evaluation.loss,
        "n": evaluation.n,
        "epoch": epoch,
        "chosen_on": "val",
    }
