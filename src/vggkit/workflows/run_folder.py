"""The folder of a run: its creation, its results, and its state, `run.json`. No torch here.

It holds `config.yaml`, `run.json`, `metrics.csv`, `best.safetensors`, `last.ckpt`, `report.html`, the predictions
on the images that it was measured on in `results.csv` (or `.parquet`), `confusion_matrix.png`,
`reliability.png`, `classes.png`, and `learning_curve.png` or `regularisation.png`.
"""

import datetime
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, get_args

from vggkit import __version__
from vggkit.arguments import demand_path, is_number
from vggkit.errors import BadCheckpoint, BadOutput, VggkitError
from vggkit.evaluation.evaluation import Evaluation
from vggkit.explanations.explanation import Explanation
from vggkit.files import demand_writable, take_turn, write_text
from vggkit.images.dataset import ImageSample
from vggkit.reports.evaluation_page import Story, write_report
from vggkit.reports.plots import PlotEnding
from vggkit.reports.run_plots import plot_history, plot_strengths, write_plots
from vggkit.weights.classifier_file import read_card

if TYPE_CHECKING:
    from vggkit.training.checkpoint import Epoch
    from vggkit.training.logistic_regression import HeadSolution
    from vggkit.weights.model import Model

RUN_FILE: Final = "run.json"
SCHEMA_VERSION: Final = 1
"""Of `run.json`."""
RunStatus = Literal["running", "stopped", "finished", "failed"]
LOCK: Final = ".lock"
"""Held by the process that trains in the folder."""
LARGE_TABLE: Final = 1_000_000
"""Probabilities beyond which the predictions table is Parquet, where that can be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The state of a run, as in its `run.json`."""

    state: RunStatus
    """`running`: training, or killed without time to write more, see `updated`. `stopped`: by Ctrl-C or SIGTERM; it
    can be resumed. `failed`: by an error. `finished`: with its evaluation and its report."""
    epoch: int = 0
    """Epochs that are complete."""
    epochs: int | None = None
    """Epochs of the whole training; None where it is unknown."""
    best_epoch: int | None = None
    """The best epoch so far; None before the first one is complete."""
    started: str | None = None
    """Time at which the run began, ISO 8601 in UTC; None where it is unknown."""
    updated: str | None = None
    """Time at which this was written, likewise."""
    seconds: float = 0.0
    """Time that was spent on training, in seconds, over all times that it was resumed."""
    problem: str | None = None
    """The error's message of a run that failed."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of Python, torch and vggkit that wrote this."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "versions": dict(self.versions)}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The state that `to_dict` gave; raises ValueError for anything else."""
        if not isinstance(values, Mapping) or not isinstance(values.get("schema_version"), int):
            raise ValueError("it states no schema_version")  # noqa: TRY004 (a file holds anything)
        if values["schema_version"] > SCHEMA_VERSION:
            raise ValueError(f"it has schema_version {values['schema_version']}; update vggkit")
        if values.get("state") not in get_args(RunStatus) or not is_number(values.get("seconds", 0.0)):
            raise ValueError(f"its state is {values.get('state')!r}, not one of {', '.join(get_args(RunStatus))}")
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def read_run_state(folder: str | Path) -> RunState:
    """The state of the run in a folder.

    Runs of versions that wrote no `run.json` are finished where their best Classifier has metrics and their
    confusion matrix is drawn, and stopped else.

    Raises BadCheckpoint where `run.json` cannot be read, or the folder holds no run.
    """
    folder = demand_path(folder)
    path = folder / RUN_FILE
    if path.is_file():
        try:
            return RunState.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as problem:
            raise BadCheckpoint(f"{path}: is not the state of a run ({problem})") from problem
    if not (folder / "config.yaml").is_file():
        raise BadCheckpoint(f"{folder}: is not a run's folder, it has no config.yaml")
    best = folder / "best.safetensors"
    provenance = read_card(best).provenance if best.is_file() else {}
    metrics = provenance.get("metrics")
    finished = isinstance(metrics, Mapping) and (folder / "confusion_matrix.png").is_file()
    rows = folder / "metrics.csv"
    epoch = max(0, len(rows.read_text(encoding="utf-8").splitlines()) - 1) if rows.is_file() else 0
    return RunState(
        state="finished" if finished else "stopped",
        epoch=epoch,
        best_epoch=metrics.get("epoch") if finished and isinstance(metrics, Mapping) else provenance.get("epoch"),
        started=provenance.get("started"),
        seconds=float(provenance.get("seconds", 0.0)),
    )


class RunTracker:
    """Keeps `run.json` up to date while a training runs, each time written whole or not at all.

    Args:
        directory: The run's folder; a state that is there already is continued.
        epochs: Of the whole training.
    """

    def __init__(self, directory: Path, *, epochs: int) -> None:
        self._path, self._clock = directory / RUN_FILE, time.monotonic()
        before = read_run_state(directory)
        self._spent = before.seconds
        versions = {"python": platform.python_version(), "torch": version("torch"), "vggkit": __version__}
        self._state = replace(
            before, epochs=epochs, started=before.started or _now(), versions=versions, problem=None
        )
        self.write("running")

    def advance(self, *, epoch: int, best_epoch: int) -> None:
        """Record that an epoch is complete."""
        self._state = replace(self._state, epoch=epoch, best_epoch=best_epoch)
        self.write("running")

    def write(self, state: RunStatus, *, problem: str | None = None) -> None:
        """Write the state of this moment; raises BadOutput."""
        seconds = round(self._spent + time.monotonic() - self._clock, 1)
        self._state = replace(self._state, state=state, problem=problem, seconds=seconds, updated=_now())
        write_text(self._path, json.dumps(self._state.to_dict(), indent=2) + "\n")


@contextmanager
def track_run(directory: Path, *, epochs: int) -> Iterator[RunTracker]:
    """Keep `run.json` while the body trains: in the end the run is finished, stopped or failed."""
    tracker = RunTracker(directory, epochs=epochs)
    try:
        yield tracker
    except BaseException as problem:
        with suppress(BadOutput):  # the disk may be full, and the original error is more important
            if isinstance(problem, KeyboardInterrupt):
                tracker.write("stopped")
            else:
                text = str(problem) if isinstance(problem, VggkitError) else repr(problem)
                tracker.write("failed", problem=text)
        raise
    tracker.write("finished")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def demand_new_folder(out: str | Path | None) -> None:
    """Raise BadOutput where a run could not have this folder, see `new_folder`, before work is spent on it."""
    if out is None:
        demand_writable(Path("runs") / "config.yaml")
        return
    out = demand_path(out)
    if out.is_file() or (out.is_dir() and not _is_empty(out)):
        raise BadOutput(f"{out}: exists already; a run takes a new folder, name another with --out")
    demand_writable(out / "config.yaml")


@contextmanager
def new_folder(out: str | Path | None, classifier: "Model", *, may_be_unstarted: bool = False) -> Iterator[Path]:
    """A new or empty folder that no other process has; None: the next free `runs/<model>-<n>`.

    After an error it is removed again if it is empty. Raises BadOutput.

    Args:
        out: The folder.
        classifier: The Classifier that is trained.
        may_be_unstarted: Whether it may be the folder of a run that has no state yet.
    """
    if not may_be_unstarted:
        demand_new_folder(out)
    directory = _make_next(classifier) if out is None else demand_path(out)
    try:
        with hold_folder(directory):
            if not (
                _is_empty(directory) or (may_be_unstarted and not (directory / "last.ckpt").exists())
            ):  # another process was faster
                raise BadOutput(f"{directory}: exists already; a run takes a new folder, name another with --out")
            yield directory
    except BaseException:
        with suppress(OSError):
            directory.rmdir()
        raise


@contextmanager
def hold_folder(directory: Path) -> Iterator[None]:
    """Be the only process that trains in a folder, which is made where it is not there; raises BadOutput."""

    def refuse() -> None:
        raise BadOutput(f"{directory}: another training is running there; let it end, or name another with --out")

    with ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(take_turn(directory / LOCK, 60, meanwhile=refuse))
        except BadOutput:
            raise
        except OSError as problem:
            raise BadOutput(f"{directory}: cannot be written to ({problem.strerror or problem})") from problem
        yield


def _make_next(classifier: "Model") -> Path:
    """The first of `runs/<model>-1`, `-2` and so on that this process can create."""
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
    """Whether a folder is empty, except for the lock of a training that was killed before it wrote anything."""
    return all(entry.name == LOCK for entry in directory.iterdir())


def fill_folder(
    directory: Path,
    evaluation: Evaluation,
    *,
    images: Sequence[ImageSample],
    history: "Sequence[Epoch]",
    best_epoch: int,
    provenance: Mapping[str, Any],
    steps: Sequence[tuple[str, str]],
    plots: PlotEnding | None,
    solution: "HeadSolution | None",
    explain: Callable[[], Mapping[str, Explanation]],
) -> None:
    """Write the predictions table, the report and the figures of a training into its run's folder.

    Args:
        directory: The run's folder.
        evaluation: Of the best epoch's weights.
        images: The images that it was evaluated on.
        history: Every epoch.
        best_epoch: The number of the best one.
        provenance: The trained Classifier's.
        steps: Suggested next steps, each with its command.
        plots: The ending of further files of each figure, in the folder `plots`; None: none.
        solution: The linear probe, where the last layer alone was trained.
        explain: Gives explanations of the most confident errors, by their images' paths; it is called in a thread,
            while figures are drawn.
    """
    title = f"{evaluation.model} on {evaluation.data}"
    with ThreadPoolExecutor(1, thread_name_prefix="explain") as pool:
        explaining = pool.submit(explain)
        large = evaluation.n * len(evaluation.labels) > LARGE_TABLE and find_spec("pyarrow") is not None
        evaluation.predictions.save(directory / f"results.{'parquet' if large else 'csv'}")
        write_plots(evaluation, directory, "png")
        if solution is not None:
            plot_strengths(solution, directory / "regularisation.png", title=title)
        if len(history) > 1 or history[0].learning_rate > 0:
            plot_history(history, directory / "learning_curve.png", best_epoch=best_epoch, title=title)
        if plots is not None:
            write_plots(evaluation, directory / "plots", plots)
            if len(history) > 1:
                curve = directory / "plots" / f"learning_curve.{plots}"
                plot_history(history, curve, best_epoch=best_epoch, title=title)
    story = Story(
        history=[asdict(epoch) for epoch in history], best_epoch=best_epoch, provenance=provenance, steps=steps
    )
    write_report(
        [evaluation], directory / "report.html", images=images, story=story, explanations=explaining.result()
    )


def list_metrics(evaluation: Evaluation, split: str, epoch: int) -> dict[str, Any]:
    """The main metrics, for the Classifier's own file."""
    return {
        "split": split,
        "top1": evaluation.top1,
        "top1_interval": list(evaluation.top1_interval),
        "top5": evaluation.top5,
        "macro_f1": evaluation.macro_f1,
        "ece": evaluation.ece,
        "loss": evaluation.loss,
        **(
            {}
            if evaluation.task == "single-label"
            else {
                "map": evaluation.average_precision,
                "map_interval": list(evaluation.intervals.get("average_precision", ())),
                "micro_f1": evaluation.micro_f1,
                "exact_match": evaluation.exact_match,
            }
        ),
        "n": evaluation.n,
        "epoch": epoch,
        "chosen_on": "val",
    }
