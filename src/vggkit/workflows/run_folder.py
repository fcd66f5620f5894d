"""The folder of a run: made, and filled with what came of it.

It holds `config.yaml`, `metrics.csv`, `best.safetensors`, `last.ckpt`, `report.html`, the answers to
the images that it was measured on in `results.csv` (or `.parquet`), `confusion_matrix.png`,
`reliability.png`, `classes.png`, and `learning_curve.png` or `regularisation.png`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from vggkit.arguments import demand_path
from vggkit.errors import BadOutput
from vggkit.evaluation.evaluation import Evaluation
from vggkit.file_locks import take_turn
from vggkit.files import demand_writable
from vggkit.reports.evaluation_page import Story, suggest_steps, write_report
from vggkit.reports.plots import PlotEnding
from vggkit.reports.run_plots import plot_history, write_plots
from vggkit.weights.model import Model
from vggkit.workflows.courses import Course, Outcome

LOCK: Final = ".lock"
"""Held by the process that trains in the folder."""
LARGE_TABLE: Final = 1_000_000
"""Probabilities beyond which the table of answers is Parquet, where that can be written."""


def demand_new_folder(out: str | Path | None) -> None:
    """Raise BadOutput where a run could not have this folder, see `new_folder`, before work is spent on it."""
    if out is None:
        demand_writable(Path("runs") / "config.yaml")
        return
    out = demand_path(out)
    if out.is_file() or (out.is_dir() and not _is_empty(out)):
        raise BadOutput(f"{out}: is there already; a run takes a new folder, name another with --out")
    demand_writable(out / "config.yaml")


@contextmanager
def new_folder(out: str | Path | None, classifier: Model) -> Iterator[Path]:
    """A new or empty folder that no other process has; None: the next free `runs/<model>-<n>`.

    Where something fails and nothing was written to it, it goes again. Raises BadOutput.
    """
    demand_new_folder(out)
    directory = _make_next(classifier) if out is None else demand_path(out)
    try:
        with hold_folder(directory):
            if not _is_empty(directory):  # another process was faster
                raise BadOutput(f"{directory}: is there already; a run takes a new folder, name another with --out")
            yield directory
    except BaseException:
        with suppress(OSError):
            directory.rmdir()
        raise


@contextmanager
def hold_folder(directory: Path) -> Iterator[None]:
    """Be the only process that trains in a folder, which is made where it is not there; raises BadOutput."""

    def refuse() -> None:
        raise BadOutput(f"{directory}: another training is at work there; let it end, or name another with --out")

    with ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(take_turn(directory / LOCK, 60, meanwhile=refuse))
        except BadOutput:
            raise
        except OSError as problem:
            raise BadOutput(f"{directory}: cannot be written to ({problem.strerror or problem})") from problem
        yield


def _make_next(classifier: Model) -> Path:
    """The first of `runs/<model>-1`, `-2` and so on that this process is the one to make."""
    for count in range(1, 100_000):
        directory = Path("runs") / f"{classifier.configuration.model}-{count}"
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as problem:
            raise BadOutput(f"{directory}: cannot be made ({problem.strerror or problem})") from problem
        return directory
    raise BadOutput("runs: is full; name a folder with --out")


def _is_empty(directory: Path) -> bool:
    """But for what a training that was killed before it wrote anything left."""
    return all(entry.name == LOCK for entry in directory.iterdir())


def fill_folder(course: Course, outcome: Outcome) -> None:
    """The table of the answers, the page, and the images."""
    evaluation, directory = outcome.evaluation, course.directory
    large = evaluation.n * len(evaluation.labels) > LARGE_TABLE and find_spec("pyarrow") is not None
    evaluation.predictions.save(directory / f"results.{'parquet' if large else 'csv'}")
    write_report(
        [evaluation],
        directory / "report.html",
        images=course.dataset.split(course.measured),
        story=Story(
            history=[asdict(epoch) for epoch in outcome.history],
            best_epoch=outcome.best_epoch,
            provenance=course.classifier.provenance,
            steps=suggest_steps(directory, course.dataset.name, is_head_alone=course.recipe.trainable == "head"),
        ),
    )
    write_plots(evaluation, directory, "png")  # the last of them says that the run is finished
    if course.plots is not None:
        _draw_again(course, outcome, course.plots)


def _draw_again(course: Course, outcome: Outcome, ending: PlotEnding) -> None:
    """The run's images as a paper takes them."""
    folder = course.directory / "plots"
    write_plots(outcome.evaluation, folder, ending)
    if len(outcome.history) > 1:
        curve = folder / f"learning_curve.{ending}"
        plot_history(outcome.history, curve, best_epoch=outcome.best_epoch, title=course.title)


def list_metrics(evaluation: Evaluation, split: str, epoch: int) -> dict[str, Any]:
    """The headline figures, for the Classifier's own file."""
    return {
        "part": split,
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
