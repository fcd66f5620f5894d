"""Loggers of each epoch: `metrics.csv` always, and TensorBoard, wandb or MLflow where requested.

Each logger receives the whole history, so that a resumed run logs nothing twice.
One that fails is reported once and left out; the training continues.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self

from vggkit.errors import MissingExtra, UnknownName, VggkitError
from vggkit.escaping import escape_controls
from vggkit.files import write_text

if TYPE_CHECKING:
    from vggkit.training.checkpoint import Epoch

LoggerName = Literal["csv", "tensorboard", "wandb", "mlflow"]
PROJECT: Final = "vggkit"
"""The project of runs at wandb and MLflow, unless the environment names another."""
SECONDS_TO_ANSWER: Final = 20.0
"""Longest wait for wandb's host at the start of a run."""


class Logger(Protocol):
    """A logger of epochs."""

    def log(self, history: "Sequence[Epoch]") -> None:
        """Log every epoch until now, the newest last."""

    def close(self, *, ok: bool) -> None:
        """Finish, after a training that succeeded or failed."""


class Loggers:
    """All loggers of a run; leaving `with` closes them, as failed where an exception passes.

    Args:
        named: Each logger by its name.
        warn: Called once for each logger that fails, with the reason.
    """

    def __init__(self, named: Mapping[str, Logger], *, warn: Callable[[str], None]) -> None:
        self._open, self._warn = dict(named), warn

    def log(self, history: "Sequence[Epoch]") -> None:
        """Log every epoch until now, the newest last. Raises BadOutput where `metrics.csv` cannot be written."""
        for name, logger in list(self._open.items()):
            with self._left_out_on_failure(name):
                logger.log(history)

    def close(self, *, ok: bool = True) -> None:
        """The training is over; a second call does nothing."""
        for name, logger in list(self._open.items()):
            with self._left_out_on_failure(name):
                logger.close(ok=ok)
        self._open.clear()

    @contextmanager
    def _left_out_on_failure(self, name: str) -> Iterator[None]:
        try:
            yield
        except VggkitError:
            raise
        except Exception as problem:  # libraries raise many types
            del self._open[name]
            self._warn(f"{name}: logs no more of this run ({_shorten(problem)}); the training continues")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(ok=kind is None)


def open_loggers(
    names: Sequence[str],
    directory: Path,
    *,
    config: Mapping[str, Any],
    title: str,
    log: Callable[[str], None] | None = None,
) -> Loggers:
    """The loggers of these names, and `csv` always.

    Args:
        names: Of `LOGGERS`.
        directory: The run's folder; all loggers write there unless the environment specifies another folder.
        config: The options of the run, for comparisons of runs.
        title: The name of the run.
        log: Called for a logger that cannot be opened or fails; None: prints to standard error.

    Raises UnknownName, and MissingExtra for a package that is not installed.
    """
    log = log or _print_warning
    for name in names:
        if name not in LOGGERS:
            raise UnknownName.of("logger", name, LOGGERS)
        if name != "csv" and not _is_installed(name):
            raise MissingExtra.of(_INSTALLED_AS.get(name, name), f"the logger {name}", "loggers")
    opened: dict[str, Logger] = {}
    for name in dict.fromkeys(("csv", *names)):
        try:
            opened[name] = LOGGERS[name](directory, config, title, log)
        except Exception as problem:  # libraries raise many types
            log(f"{name}: cannot be opened and logs nothing of this run ({_shorten(problem)})")
    return Loggers(opened, warn=log)


class _Csv:
    """`metrics.csv`, written whole each time."""

    def __init__(self, directory: Path, config: Mapping[str, Any], title: str, log: Callable[[str], None]) -> None:
        self._path = directory / "metrics.csv"

    def log(self, history: "Sequence[Epoch]") -> None:
        text = io.StringIO()
        rows = [asdict(epoch) for epoch in history]
        measured = [name for name in rows[0] if any(row[name] is not None for row in rows)]
        writer = csv.DictWriter(text, measured, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self._path, text.getvalue())

    def close(self, *, ok: bool) -> None:
        pass


class _TensorBoard:
    """Events below `tensorboard/`; `tensorboard --logdir runs` shows every run beside the others."""

    def __init__(self, directory: Path, config: Mapping[str, Any], title: str, log: Callable[[str], None]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make, self._folder, self._config = SummaryWriter, directory / "tensorboard", config
        self._writer: Any = None

    def log(self, history: "Sequence[Epoch]") -> None:
        newest = history[-1]
        if self._writer is None:
            # Entries of a killed run for this epoch and later ones are replaced.
            self._writer = self._make(str(self._folder), purge_step=newest.epoch if len(history) > 1 else None)
            if len(history) == 1:
                rows = "\n".join(f"| {name} | {value} |" for name, value in self._config.items())
                self._writer.add_text("recipe", f"| field | value |\n|---|---|\n{rows}")
        for name, value in _values(newest).items():
            self._writer.add_scalar(_GROUPS.get(name, name), value, newest.epoch)
        self._writer.flush()

    def close(self, *, ok: bool) -> None:
        if self._writer is not None:
            self._writer.close()


class _Wandb:
    """Weights & Biases; offline below `wandb/` if WANDB_MODE requests it or nobody is logged in."""

    def __init__(self, directory: Path, config: Mapping[str, Any], title: str, log: Callable[[str], None]) -> None:
        with _environment(WANDB_ERROR_REPORTING="false", WANDB_SILENT="true"):
            import wandb

            # Without an explicit mode, wandb would prompt a user who is not logged in.
            known = "WANDB_MODE" in os.environ or wandb.login(prompt=False, verify=False)
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=title,
                id=_recall(directory).get("wandb"),
                dir=str(directory),
                config=dict(config),
                mode=None if known else "offline",
                resume="allow",
                settings=wandb.Settings(console="off", init_timeout=SECONDS_TO_ANSWER, disable_git=True),
            )
        _remember(directory, "wandb", self._run.id)
        # An offline run is written completely, since `wandb sync` takes one file for a run.
        self._told = self._run.step - 1 if self._run.resumed else -1
        if self._run.settings.mode == "offline":
            why = "WANDB_MODE says so" if "WANDB_MODE" in os.environ else "nobody is logged in"
            log(f"wandb: written to {directory / 'wandb'} for `wandb sync`, for {why}")

    def log(self, history: "Sequence[Epoch]") -> None:
        for epoch in history:
            if epoch.epoch > self._told:
                self._run.log(_values(epoch), step=epoch.epoch)
                self._told = epoch.epoch

    def close(self, *, ok: bool) -> None:
        self._run.finish(exit_code=0 if ok else 1)


class _MLflow:
    """MLflow at MLFLOW_TRACKING_URI, else in files below `mlruns/`, which need no database."""

    def __init__(self, directory: Path, config: Mapping[str, Any], title: str, log: Callable[[str], None]) -> None:
        with self._quiet():
            from mlflow.tracking import MlflowClient

            place = os.environ.get("MLFLOW_TRACKING_URI") or (directory / "mlruns").resolve().as_uri()
            self._client = client = MlflowClient(tracking_uri=place)
            number = _recall(directory).get("mlflow")
            if number is None:
                name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
                found = client.get_experiment_by_name(name)
                experiment = found.experiment_id if found is not None else client.create_experiment(name)
                number = client.create_run(experiment, run_name=title).info.run_id
                for field, value in config.items():
                    client.log_param(number, field, value)
            client.update_run(number, status="RUNNING")
            self._number = number
            self._told = max((m.step for m in client.get_metric_history(number, "val_loss")), default=-1)
        _remember(directory, "mlflow", number)

    def log(self, history: "Sequence[Epoch]") -> None:
        with self._quiet():
            for epoch in history:
                if epoch.epoch > self._told:
                    for name, value in _values(epoch).items():
                        self._client.log_metric(self._number, name, value, step=epoch.epoch)
                    self._told = epoch.epoch

    def close(self, *, ok: bool) -> None:
        with self._quiet():
            self._client.set_terminated(self._number, "FINISHED" if ok else "FAILED")

    @staticmethod
    @contextmanager
    def _quiet() -> Iterator[None]:
        """No telemetry, files allowed, and an unreachable server costs seconds and not minutes."""
        with _environment(
            MLFLOW_DISABLE_TELEMETRY="true",
            MLFLOW_ALLOW_FILE_STORE="true",
            MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
            MLFLOW_HTTP_REQUEST_TIMEOUT="10",
        ):
            yield


LOGGERS: Final[Mapping[str, Callable[[Path, Mapping[str, Any], str, Callable[[str], None]], Logger]]] = {
    "csv": _Csv,
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _MLflow,
}
"""By name; `csv` is always there."""
_INSTALLED_AS: Final = {"mlflow": "mlflow-skinny"}
_GROUPS: Final = {
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "val_top1": "accuracy/val_top1",
    "val_macro_f1": "accuracy/val_macro_f1",
    "val_map": "accuracy/val_map",
}
"""The charts of TensorBoard's overview."""


def _values(epoch: "Epoch") -> dict[str, float]:
    return {name: float(value) for name, value in asdict(epoch).items() if name != "epoch" and value is not None}


def _is_installed(name: str) -> bool:
    found = find_spec(name)
    return found is not None and found.origin is not None  # a folder `wandb` of results is no package


def _recall(directory: Path) -> dict[str, str]:
    """The numbers of this run at loggers that logged it before."""
    try:
        found = json.loads((directory / "loggers.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: str(number) for name, number in found.items()} if isinstance(found, dict) else {}


def _remember(directory: Path, name: str, number: str) -> None:
    write_text(directory / "loggers.json", json.dumps({**_recall(directory), name: number}) + "\n")


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Variables that the environment does not state itself, for the time of a call."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _shorten(problem: Exception) -> str:
    text = " ".join(str(problem).split()) or type(problem).__name__
    return text if len(text) <= 160 else text[:159] + "…"


def _print_warning(sentence: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(escape_controls(sentence) + "\n")
