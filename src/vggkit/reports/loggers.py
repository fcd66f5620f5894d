"""Who hears of each epoch: `metrics.csv` always, and what people follow trainings with where they ask for it.

Each logger is told the whole history, so that a run that goes on where it stopped tells nothing twice.
One that fails is named once and left out; the training goes on.
"""

import csv
import io
import json
import netrc
import os
import secrets
import socket
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self

from vggkit.errors import MissingExtra, UnknownName, VggkitError
from vggkit.escaping import escape_controls
from vggkit.writing import write_text

if TYPE_CHECKING:
    from vggkit.tasks.training.checkpointing import Epoch

LoggerName = Literal["csv", "tensorboard", "wandb", "mlflow"]
PROJECT: Final = "vggkit"
"""What runs are gathered under at wandb and MLflow, where the environment names no other."""
SECONDS_TO_ANSWER: Final = 3.0
"""How long wandb's host may take before the run is written for a later `wandb sync`."""


class Logger(Protocol):
    """Somebody who hears of each epoch."""

    def log(self, history: "Sequence[Epoch]") -> None:
        """Hear of every epoch until now, the newest last."""

    def close(self, *, ok: bool) -> None:
        """The training is over: it ended as it should, or it did not."""


class Loggers:
    """All loggers of a run; leaving `with` closes them, as failed where an exception passes.

    Args:
        named: Each logger by its name.
        say: Hears, once, of a logger that fails.
    """

    def __init__(self, named: Mapping[str, Logger], *, say: Callable[[str], None]) -> None:
        self._open, self._say = dict(named), say

    def log(self, history: "Sequence[Epoch]") -> None:
        """Tell every epoch until now, the newest last. Raises BadOutput where `metrics.csv` cannot be written."""
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
        except Exception as problem:  # whatever others' code raises
            del self._open[name]
            self._say(f"{name}: hears no more of this run ({_shorten(problem)}); the training goes on")

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
    say: Callable[[str], None] | None = None,
) -> Loggers:
    """The loggers of these names, and `csv` always.

    Args:
        names: Of `LOGGERS`.
        directory: The run's folder; where nothing else is said in the environment, all of them write there.
        config: What the run was asked, for whoever compares runs.
        title: What the run is called.
        say: Hears of a logger that cannot be opened or fails; None: standard error does.

    Raises UnknownName, and MissingExtra for a package that is not installed.
    """
    say = say or _tell
    for name in names:
        if name not in LOGGERS:
            raise UnknownName.of("logger", name, LOGGERS)
        if name != "csv" and not _is_installed(name):
            raise MissingExtra.of(_INSTALLED_AS.get(name, name), f"the logger {name}", "loggers")
    opened: dict[str, Logger] = {}
    for name in dict.fromkeys(("csv", *names)):
        try:
            opened[name] = LOGGERS[name](directory, config, title, say)
        except Exception as problem:  # whatever others' code raises
            say(f"{name}: cannot be opened and hears nothing of this run ({_shorten(problem)})")
    return Loggers(opened, say=say)


class _Csv:
    """`metrics.csv`, written whole each time."""

    def __init__(self, directory: Path, config: Mapping[str, Any], title: str, say: Callable[[str], None]) -> None:
        self._path = directory / "metrics.csv"

    def log(self, history: "Sequence[Epoch]") -> None:
        text = io.StringIO()
        rows = [asdict(epoch) for epoch in history]
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self._path, text.getvalue())

    def close(self, *, ok: bool) -> None:
        pass


class _TensorBoard:
    """Events below `tensorboard/`; `tensorboard --logdir runs` shows every run beside the others."""

    def __init__(self, directory: Path, config: Mapping[str, Any], title: str, say: Callable[[str], None]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make = SummaryWriter
        self._folder, self._config = directory / "tensorboard", config
        self._writer: Any = None
        self._told = 0

    def log(self, history: "Sequence[Epoch]") -> None:
        if self._writer is None:
            newest = history[-1].epoch
            # What a run that was killed told of this epoch and later ones does not count.
            self._writer = self._make(str(self._folder), purge_step=newest if len(history) > 1 else None)
            self._told = len(history) - 1
            if len(history) == 1:
                rows = "\n".join(f"| {name} | {value} |" for name, value in self._config.items())
                self._writer.add_text("recipe", f"| field | value |\n|---|---|\n{rows}")
        for epoch in history[self._told :]:
            for name, value in _values(epoch).items():
                self._writer.add_scalar(_GROUPS.get(name, name), value, epoch.epoch)
        self._told = len(history)
        self._writer.flush()

    def close(self, *, ok: bool) -> None:
        if self._writer is not None:
            self._writer.close()


class _Wandb:
    """Weights & Biases; offline below `wandb/` where there is no key, or its host does not answer."""

    def __init__(self, directory: Path, config: Mapping[str, Any], title: str, say: Callable[[str], None]) -> None:
        with _environment(WANDB_ERROR_REPORTING="false"):
            import wandb

            mode = _choose_wandb_mode()
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=title,
                id=_recall(directory, "wandb") or secrets.token_hex(4),
                dir=str(directory),
                config=dict(config),
                mode=mode,
                resume="allow" if mode == "online" else None,
                settings=wandb.Settings(silent=True, console="off", init_timeout=20.0, disable_git=True),
            )
        _remember(directory, "wandb", self._run.id)
        # A run that is written here is told whole, for `wandb sync` takes one file for the run.
        self._told = self._run.step - 1 if self._run.resumed else -1
        if mode == "offline":
            say(f"wandb: written to {directory / 'wandb'} for `wandb sync`, for there is no key or no answer")

    def log(self, history: "Sequence[Epoch]") -> None:
        for epoch in history:
            if epoch.epoch > self._told:
                self._run.log(_values(epoch), step=epoch.epoch)
                self._told = epoch.epoch

    def close(self, *, ok: bool) -> None:
        self._run.finish(exit_code=0 if ok else 1)


class _MLflow:
    """MLflow at MLFLOW_TRACKING_URI, else in files below `mlruns/`, which need no database."""

    def __init__(self, directory: Path, config: Mapping[str, Any], title: str, say: Callable[[str], None]) -> None:
        with self._quiet():
            from mlflow.tracking import MlflowClient

            place = os.environ.get("MLFLOW_TRACKING_URI") or (directory / "mlruns").resolve().as_uri()
            self._client = MlflowClient(tracking_uri=place)
            number = _recall(directory, "mlflow")
            self._number = number or self._begin(config, title)
            if number:
                self._client.update_run(number, status="RUNNING")
            known = self._client.get_metric_history(self._number, "val_loss")
        _remember(directory, "mlflow", self._number)
        self._told = max((metric.step for metric in known), default=-1)

    def _begin(self, config: Mapping[str, Any], title: str) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        run: str = self._client.create_run(number, run_name=title).info.run_id
        for field, value in config.items():
            self._client.log_param(run, field, value)
        return run

    def log(self, history: "Sequence[Epoch]") -> None:
        with self._quiet():
            for epoch in history:
                if epoch.epoch <= self._told:
                    continue
                for name, value in _values(epoch).items():
                    self._client.log_metric(self._number, name, value, step=epoch.epoch)
                self._told = epoch.epoch

    def close(self, *, ok: bool) -> None:
        with self._quiet():
            self._client.set_terminated(self._number, "FINISHED" if ok else "FAILED")

    @staticmethod
    @contextmanager
    def _quiet() -> Iterator[None]:
        """No report to its makers, files allowed, and a server that is gone costs seconds and no minutes."""
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
}
"""What TensorBoard shows in one card."""


def _values(epoch: "Epoch") -> dict[str, float]:
    return {name: float(value) for name, value in asdict(epoch).items() if name != "epoch"}


def _is_installed(name: str) -> bool:
    found = find_spec(name)
    return found is not None and found.origin is not None  # a folder `wandb` of results is no package


def _recall(directory: Path, name: str) -> str | None:
    """The number that this run has with a logger, where it was told of before."""
    with suppress(OSError, ValueError, AttributeError):
        number = json.loads((directory / "loggers.json").read_text(encoding="utf-8")).get(name)
        return str(number) if number else None
    return None


def _remember(directory: Path, name: str, number: str) -> None:
    others = {other: found for other in LOGGERS if (found := _recall(directory, other))}
    write_text(directory / "loggers.json", json.dumps({**others, name: number}) + "\n")


def _choose_wandb_mode() -> Literal["online", "offline", "disabled"]:
    """Online only with a key and a host that answers: never a prompt, and never a long wait."""
    asked = os.environ.get("WANDB_MODE", "online")
    if asked in ("offline", "dryrun"):
        return "offline"
    if asked == "disabled":
        return "disabled"
    address = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    host = address.hostname or ""
    if not os.environ.get("WANDB_API_KEY") and not _has_password(host):
        return "offline"
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((host, port), timeout=SECONDS_TO_ANSWER).close()
    except OSError:
        return "offline"
    return "online"


def _has_password(host: str) -> bool:
    """Whether `wandb login` left a key, which it does where other programs keep passwords."""
    stated = os.environ.get("NETRC")
    for path in [Path(stated)] if stated else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(str(path)).authenticators(host):
                return True
    return False


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


def _tell(sentence: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(escape_controls(sentence) + "\n")
