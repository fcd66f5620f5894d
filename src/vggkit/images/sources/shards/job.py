"""A job that writes shards into a folder: it begins, continues after an interruption, or finds all of it done."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vggkit.errors import BadData, BadOutput
from vggkit.files import take_turn
from vggkit.images.sources.shards.manifest import FILE_NAME, Form, Manifest, locate_shard, name_index, read_manifest
from vggkit.images.sources.shards.packing import CLASSES, PLAN, OnProgress, PlannedShard, pack_shards
from vggkit.images.sources.shards.target import PARTS, ShardTarget
from vggkit.interruption import handle_signals

WAIT_SECONDS: Final = 0.1
OWN: Final = re.compile(r"(images|train|val|test)-\d{5}\.(tar|parquet)")
"""Names of the shards that are written here."""


@dataclass(frozen=True, slots=True)
class ShardJob:
    """What is written, and where."""

    planned: Sequence[PlannedShard]
    """All shards."""
    target: ShardTarget
    """The folder."""
    file_name: str
    """The manifest's."""
    form: Form
    """tar or parquet."""
    labels: tuple[str, ...] | None
    """The class names; None: those that are found in the shards."""
    made_with: Mapping[str, Any]
    """The images and options, which must be the same when the job continues; JSON values."""

    @property
    def place(self) -> str:
        """The manifest."""
        return self.target.name(self.file_name)

    def run(self, *, total: int | None, overwrite: bool, on_progress: OnProgress) -> tuple[Manifest, bool]:
        """The manifest, and whether an earlier call had written it.

        Raises BadOutput for a folder that holds something else or cannot be written, and what images raise.
        """
        with ExitStack() as stack:
            stack.enter_context(handle_signals(lambda: "the same line; the shards that are written stay"))
            if self.target.is_local:
                folder = Path(self.target.folder)
                _make_folder(folder)
                lock = folder / ".shards.lock"
                stack.enter_context(take_turn(lock, WAIT_SECONDS, meanwhile=lambda: _refuse_two(folder)))
            there = self.target.list_sizes()
            if overwrite:
                self._discard(there)
            elif self.file_name in there:
                manifest, _ = read_manifest(self.place)
                self._demand_same(manifest.made_with, self.place)
                return manifest, True
            else:
                self._continue(there)
            self.target.write(PLAN, json.dumps(self.made_with).encode())
            manifest = pack_shards(
                self.planned,
                self.target,
                form=self.form,
                labels=self.labels,
                made_with=self.made_with,
                file_name=self.file_name,
                total=total,
                on_progress=on_progress,
            )
        return manifest, False

    def _continue(self, there: Mapping[str, int]) -> None:
        """Refuse a folder that holds something else than a part of this job; remove what a killed process left."""
        plan = self.target.read(PLAN)
        others = [name for name in there if not name.startswith(".")]
        if plan is not None:
            self._demand_same(json.loads(plan), self.target.folder)
        elif others and any(shard.is_written for shard in self.planned):
            raise BadOutput(
                f"{self.target.folder}: holds other files ({others[0]}); name a new folder, or an empty one"
            )
        if self.target.is_local:
            for left in Path(self.target.folder).glob(".shards.*.part"):
                shutil.rmtree(left, ignore_errors=True)

    def _demand_same(self, then: Mapping[str, Any], what: str) -> None:
        names = dict.fromkeys([*self.made_with, *then])
        differing = [name for name in names if then.get(name) != self.made_with.get(name)]
        if differing:
            listed = "; ".join(
                f"{name}: {then.get(name)!s:.60} then, {self.made_with.get(name)!s:.60} now" for name in differing
            )
            raise BadOutput(
                f"{what}: holds shards of other images or options ({listed}); name another folder, or give "
                "--overwrite to replace them"
            )

    def _discard(self, there: Mapping[str, int]) -> None:
        """Remove the shards of a manifest or of an unfinished job, the manifest first; other files stay."""
        own: list[str] = []
        if self.file_name in there:
            with suppress(BadData):
                listed = [shard.file for shard in read_manifest(self.place)[0].shards]
                own = [file for file in listed if locate_shard(self.place, file) == self.target.name(file)]
            for name in (self.file_name, name_index(self.file_name), CLASSES):
                self.target.remove(name)
        elif self.target.read(PLAN) is not None:
            own = list(filter(OWN.fullmatch, there))
        if self.file_name == FILE_NAME:  # a manifest of another name describes shards of others
            for file in own:
                self.target.remove(file)
        self.target.remove(PARTS)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise BadOutput(f"{folder}: cannot be made ({problem.strerror or problem})") from problem


def _refuse_two(folder: Path) -> None:
    raise BadOutput(f"{folder}: another process writes shards there; let it end, or name another folder")
