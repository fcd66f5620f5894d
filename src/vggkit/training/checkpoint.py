"""Checkpoints of a training on disk: the process may end at any moment without loss.

Two files in the run's folder, each written atomically: `last.ckpt`, from which a training continues, and
during the training `epoch.ckpt`, the end of the last complete epoch, to which a training that diverges
returns. A state of the middle of an epoch replaces only the first.
"""

import json
import os
import secrets
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from vggkit.errors import BadCheckpoint, BadOutput
from vggkit.weights.card import Card
from vggkit.weights.model_file import read_state, write_weights

_EARLIER: Final = {"images": "pictures"}
"""Entries of a state's identity, with the names that earlier versions wrote."""
_RENAMED: Final = {"channels": "in_channels"}
"""Options of a network that earlier versions wrote, with their names of today."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """The results of an epoch; the columns of `metrics.csv`."""

    epoch: int
    """Counted from 1; 0 is the linear probe before fine-tuning."""
    learning_rate: float
    """Rate of its last step."""
    train_loss: float
    """Mean cross-entropy in nats of the training images as augmented, during training: with label smoothing and
    class weights; multi-label the mean of the binary ones of all classes."""
    val_loss: float
    """Mean cross-entropy of the validation images after it, with equal weights and without smoothing."""
    val_top1: float
    """Share in [0, 1] of validation images whose best class is right, after it; multi-label is one of theirs."""
    seconds: float
    """Its duration, validation included."""
    val_macro_f1: float | None = None
    """Unweighted mean F1 in [0, 1] of the classes that the validation images have, multi-label at a probability of
    0.5; None in epochs of versions that did not measure it."""
    val_map: float | None = None
    """Multi-label: mean average precision in [0, 1] of the classes that the validation images have; else None."""

    @property
    def figure(self) -> str:
        """The name of the figure that people look at: val top-1, or val mAP."""
        return "val top-1" if self.val_map is None else "val mAP"

    @property
    def val_figure(self) -> float:
        """The value of that figure, in [0, 1]."""
        return self.val_top1 if self.val_map is None else self.val_map


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a training; together with the seed it determines every later random draw."""

    epoch: int = 1
    """The current epoch, counted from 1."""
    batches: int = 0
    """Number of batches that were trained on."""
    steps: int = 0
    """Steps of all epochs."""
    loss_sum: float = 0.0
    """Loss of the epoch's images so far, added up, each times what it counts."""
    weight: float = 0.0
    """The sum of their weights: 1 for each, or with class weights that of its class."""
    seconds: float = 0.0
    """Duration of the epoch so far."""
    rate_scale: float = 1.0
    """Factor of the recipe's learning rate, below 1 after a rollback."""
    returns: int = 0
    """Number of rollbacks to the start of an epoch after the loss diverged."""
    history: tuple[Epoch, ...] = ()
    """The epochs that are over."""

    def to_json(self) -> str:
        """Text that `from_json` makes the same value of, to the last bit."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Progress":
        """The value that `to_json` wrote; raises BadCheckpoint."""
        try:
            values: dict[str, Any] = json.loads(text)
            if "pictures" in values:  # the name before images were weighted by their classes
                values["weight"] = float(values.pop("pictures"))
            history = tuple(Epoch(**record) for record in values.pop("history"))
            if set(values) | {"history"} != {field.name for field in fields(cls)}:
                raise ValueError("other fields")
            return cls(history=history, **values)
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            raise BadCheckpoint(f"the training's state is of another version of vggkit ({problem})") from problem


class Checkpoints:
    """The states of one run.

    Args:
        directory: The run's folder.
        card: The description of the network, for readers of the file.
        identity: The run's recipe, images and other inputs, by name; a state of other inputs is refused.
        usual: Values of fields of the identity that a state does not name, as the version that wrote it had no such
            fields.
        changeable: Fields of the identity, by its names, that may differ from the state's.
    """

    def __init__(
        self,
        directory: Path,
        *,
        card: Card,
        identity: Mapping[str, Mapping[str, Any]],
        usual: Mapping[str, Mapping[str, Any]] | None = None,
        changeable: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self._last, self._epoch = directory / "last.ckpt", directory / "epoch.ckpt"
        self._card, self._identity = card, identity
        self._usual, self._changeable = usual or {}, changeable or {}

    def save(self, state: Mapping[str, Tensor], progress: Progress) -> None:
        """Write the state of the training; raises BadOutput, and then the earlier states are still there."""
        between = progress.batches == 0
        target = self._epoch if between else self._last
        identity = {name: json.dumps(value) for name, value in self._identity.items()}
        write_weights(target, state, {**self._card.to_metadata(), **identity, "progress": progress.to_json()})
        if between:
            _double(self._epoch, self._last)

    def read_last(self) -> tuple[dict[str, Tensor], Progress]:
        """The last state of the training; raises BadCheckpoint."""
        return self._read(self._last)

    def read_epoch(self) -> tuple[dict[str, Tensor], Progress]:
        """The end of the last whole epoch, or the start; raises BadCheckpoint."""
        return self._read(self._epoch)

    def close(self) -> None:
        """Remove the state that is not needed after the last epoch."""
        with suppress(OSError):
            self._epoch.unlink(missing_ok=True)

    def _read(self, path: Path) -> tuple[dict[str, Tensor], Progress]:
        if not path.is_file():
            raise BadCheckpoint(f"{path}: is not there; this run was stopped before its first step; start it again")
        state, metadata = read_state(path)
        for name, now in self._identity.items():
            before = json.loads(metadata.get(name) or metadata.get(_EARLIER.get(name, ""), "{}"))
            before = {_RENAMED.get(key, key): value for key, value in before.items()}
            before = {**json.loads(json.dumps(self._usual.get(name, {}))), **before}
            changed = [
                key
                for key in now
                if key not in self._changeable.get(name, ()) and before.get(key) != json.loads(json.dumps(now[key]))
            ]
            if changed:
                raise BadCheckpoint(
                    f"{path}: was written with other {name} than the run has now ({', '.join(changed)} changed), "
                    "and a run continues only with what it started with. Undo the change, or start a new run with "
                    "--config"
                )
        return state, Progress.from_json(metadata.get("progress", "null"))


def _double(path: Path, other: Path) -> None:
    """Give a file a second name, in one step; a copy where the system has no second names."""
    beside = other.with_name(f".{other.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            os.link(path, beside)
        except OSError:
            shutil.copyfile(path, beside)
        beside.replace(other)
    except OSError as problem:
        raise BadOutput(f"{other}: cannot be written ({problem.strerror or problem})") from problem
    finally:
        beside.unlink(missing_ok=True)
