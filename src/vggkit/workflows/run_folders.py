"""The folder of a run: made, and filled with what came of it.

It holds `config.yaml`, `metrics.csv`, `best.safetensors`, `last.ckpt`, `report.html`, the answers to
the pictures that it was measured on in `results.csv` (or `.parquet`), `confusion_matrix.png`,
`reliability.png`, `classes.png`, and `learning_curve.png` or `regularisation.png`.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from vggkit.arguments import demand_path
from vggkit.errors import BadOutput
from vggkit.networks.classifier import Classifier
from vggkit.reports.evaluation_page import Story, suggest_steps, write_report
from vggkit.reports.plots import PlotEnding
from vggkit.reports.run_plots import plot_history, write_plots
from vggkit.tasks.evaluation.figures import Evaluation
from vggkit.workflows.courses import Course, Outcome

LARGE_TABLE: Final = 1_000_000
"""Probabilities beyond which the table of answers is Parquet, where that can be written."""


def new_folder(out: str | Path | None, classifier: Classifier) -> Path:
    """A new or empty folder; None: the next free `runs/<model>-<n>`. Raises BadOutput."""
    if out is None:
        names = (Path("runs") / f"{classifier.configuration.model}-{count}" for count in range(1, 100_000))
        directory = next(path for path in names if not path.exists())
    else:
        directory = demand_path(out)
        if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
            raise BadOutput(f"{directory}: is there already; a run takes a new folder, name another with --out")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise BadOutput(f"{directory}: cannot be made ({problem.strerror or problem})") from problem
    return directory


@contextmanager
def emptied(directory: Path) -> Iterator[None]:
    """A folder that nothing was written to goes again when something fails."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            directory.rmdir()
        raise


def fill_folder(course: Course, outcome: Outcome) -> None:
    """The table of the answers, the page, and the pictures."""
    evaluation, directory = outcome.evaluation, course.directory
    large = evaluation.n * len(evaluation.labels) > LARGE_TABLE and find_spec("pyarrow") is not None
    evaluation.answers.save(directory / f"results.{'parquet' if large else 'csv'}")
    write_report(
        [evaluation],
        directory / "report.html",
        pictures=course.parts.part(course.measured),
        story=Story(
            history=[asdict(epoch) for epoch in outcome.history],
            best_epoch=outcome.best_epoch,
            provenance=course.classifier.provenance,
            steps=suggest_steps(directory, course.parts.name, is_head_alone=course.recipe.trainable == "head"),
        ),
    )
    write_plots(evaluation, directory, "png")  # the last of them says that the run is finished
    if course.plots is not None:
        _draw_again(course, outcome, course.plots)


def _draw_again(course: Course, outcome: Outcome, ending: PlotEnding) -> None:
    """The run's pictures as a paper takes them."""
    folder = course.directory / "plots"
    write_plots(outcome.evaluation, folder, ending)
    if len(outcome.history) > 1:
        curve = folder / f"learning_curve.{ending}"
        plot_history(outcome.history, curve, best_epoch=outcome.best_epoch, title=course.title)


def list_metrics(evaluation: Evaluation, part: str, epoch: int) -> dict[str, Any]:
    """The headline figures, for the Classifier's own file."""
    return {
        "part": part,
        "top1": evaluation.top1,
        "top1_interval": list(evaluation.top1_interval),
        "top5": evaluation.top5,
        "macro_f1": evaluation.macro_f1,
        "ece": evaluation.ece,
        "loss": evaluation.loss,
        "n": evaluation.n,
        "epoch": epoch,
        "chosen_on": "val",
    }
