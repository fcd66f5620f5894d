"""Every image gets its row, whatever happens meanwhile: asked, kept in parts, joined to one file.

Nothing of an image stays in memory, and a process that ends too early is gone on with by the same call.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from vggkit.engines.info import EngineInfo
from vggkit.errors import BadOutput, Stopped, VggkitError
from vggkit.files import move_file
from vggkit.images.dataset import ImageSample
from vggkit.images.omissions import Omission, Reading
from vggkit.images.sources.open_dataset import count_images, gather_images
from vggkit.images.sources.tables import Columns
from vggkit.inference.chunks import Parts, demand_same
from vggkit.inference.fingerprint import Chain
from vggkit.interruption import Signals, hear_signals
from vggkit.table_files import Column, Kind, name_about, name_rows, read_about, stream_columns, stream_matrix

MOST_ROWS: Final = 2048
"""Rows that wait in memory at most before they are written."""
VECTOR: Final = "vector"
"""The column of vectors."""
FORMAT_VERSION: Final = 1

Row = tuple[Any, ...]
OnProgress = Callable[[str, int, int | None], None]
"""Hears what is being done, how many images of it are, and of how many where that is known."""


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What came of bulk work."""

    path: str
    """The file."""
    images: int
    """Its rows."""
    unreadable: int
    """Those of images that could not be read, or whose values overflow in the network."""
    found_done: int
    """Those that an earlier call had left."""
    engine: EngineInfo
    """What computed."""
    passed_over: tuple[Omission, ...] = ()
    """What lies among the images and is none of them, counted by reason."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is asked of bulk work."""

    out: Path
    kinds: Mapping[str, Kind]
    """Columns of the file; the last is `problem`."""
    about: Mapping[str, Any]
    """What the file is made with; the same must hold when it goes on."""
    model: str
    """Where the Classifier is, for those who look for it later."""
    engine: EngineInfo
    answer: Callable[[Iterator[ImageSample]], Iterator[Row]]
    """A row for each image, in order."""
    images: Iterable[str | Path | ImageSample]
    columns: Columns
    batch_size: int
    save_seconds: float
    overwrite: bool
    on_progress: OnProgress


def run(job: Job) -> BulkResult:
    """Do it, or what is left of it; raises BadOutput and what finding images raises."""
    parts = Parts(job.out, job.about, job.engine)

    def find_command() -> str:
        again = "the same line, without --overwrite," if job.overwrite else "the same line"
        return f"{again} ({parts.count():,} images are done and kept)"

    with parts.hold(), hear_signals(find_command) as signals:
        if job.overwrite:
            parts.discard()
        elif not parts.are_there() and job.out.exists():
            return _look_at_finished(job, parts.made_with)
        parts.open()
        reading = Reading()
        found_done = _fill(job, parts, signals, reading)
        return _join(job, parts, found_done, reading)


def _fill(job: Job, parts: Parts, signals: Signals, reading: Reading) -> int:
    """Answer every image that no part holds yet; says how many were there."""
    job.on_progress("listing", 0, None)
    total = count_images(job.images, columns=job.columns)
    chain = Chain()
    images = gather_images(job.images, columns=job.columns, reading=reading)
    found_done = done = _pass_over(parts, images, chain)
    job.on_progress("answering", done, total)
    asked: deque[ImageSample] = deque()

    def ask() -> Iterator[ImageSample]:
        for image in images:
            asked.append(image)
            yield image

    rows: list[Row] = []
    saved = time.monotonic()

    def save() -> None:
        nonlocal saved, done
        if rows:
            parts.add(done, _turn(rows, job.kinds), chain.digest())
            done += len(rows)
            rows.clear()
        saved = time.monotonic()

    signals.patient = True
    try:
        for row in job.answer(ask()):
            rows.append(row)
            chain.add(asked.popleft())
            job.on_progress("answering", done + len(rows), total)
            # Parts end where batches do: whoever goes on makes the same batches, and so the same bits.
            if (done + len(rows) - found_done) % job.batch_size:
                continue
            if number := signals.find_stop():
                save()
                signals.patient = False
                raise Stopped(number)
            if len(rows) >= MOST_ROWS or time.monotonic() - saved >= job.save_seconds:
                save()
    except VggkitError as problem:  # between two batches, such as an archive that ends too early
        if not isinstance(problem, BadOutput):
            save()
        raise
    save()
    signals.patient = False
    if number := signals.find_stop():
        raise Stopped(number)
    return found_done


def _pass_over(parts: Parts, images: Iterator[ImageSample], chain: Chain) -> int:
    """Leave out the images that parts hold; raises BadOutput where they are others by now."""
    done = 0
    for part in parts.list():
        for image in islice(images, part.stop - part.first):
            chain.add(image)
            done += 1
        if done < part.stop or chain.digest() != part.digest:
            raise BadOutput(
                f"{parts.folder}: holds results of other images: among the first {part.stop:,} some came, went "
                "or changed. Name another file with --out, or say --overwrite to begin anew"
            )
    return done


def _turn(rows: Sequence[Row], kinds: Mapping[str, Kind]) -> dict[str, Column]:
    """Rows as columns."""
    turned = dict(zip(kinds, zip(*rows, strict=True), strict=True))
    return {name: np.stack(turned[name]) if isinstance(kind, int) else turned[name] for name, kind in kinds.items()}


def _join(job: Job, parts: Parts, found_done: int, reading: Reading) -> BulkResult:
    """Make the one file of the parts, and let them go."""
    listed = parts.list()
    total = listed[-1].stop if listed else 0
    unreadable = 0

    def read() -> Iterator[dict[str, Column]]:
        for part in listed:
            job.on_progress("writing", part.first, total)
            yield part.read()

    for part in listed:
        unreadable += sum(problem is not None for problem in part.read_lists()["problem"])
    about = {
        "format_version": FORMAT_VERSION,
        **parts.made_with,
        "classifier": job.model,
        "pictures": total,
        "unreadable": unreadable,
        "digest": listed[-1].digest if listed else "",
    }
    # Made among the parts: what a kill leaves there goes with them.
    made = parts.folder / job.out.name
    if job.out.suffix.lower() == ".npy":
        _join_matrix(made, job.kinds, read, about)
    else:
        with stream_columns(made, job.kinds, about=about) as append:
            for columns in read():
                append(columns)
    for name in (lambda path: path, name_rows, name_about):
        if name(made).is_file():
            move_file(name(made), name(job.out))
    parts.discard()
    return BulkResult(str(job.out), total, unreadable, found_done, job.engine, reading.list_omissions())


def _join_matrix(
    made: Path,
    kinds: Mapping[str, Kind],
    read: Callable[[], Iterator[dict[str, Column]]],
    about: Mapping[str, Any],
) -> None:
    width = kinds[VECTOR]
    assert isinstance(width, int)
    with stream_columns(name_rows(made), {"path": "path", "problem": "text"}) as append:
        for columns in read():
            append(columns)
    with stream_matrix(made, (about["pictures"], width), about=about) as append_rows:
        for columns in read():
            append_rows(np.asarray(columns[VECTOR], np.float32))


def _look_at_finished(job: Job, made_with: Mapping[str, Any]) -> BulkResult:
    """What a file that is there holds, where it is of the same images and options; raises BadOutput."""
    about = read_about(job.out)
    if about is None or "digest" not in about:
        raise BadOutput(
            f"{job.out}: is there already, and is no file that this wrote; name another with --out, or say "
            "--overwrite to replace it"
        )
    then = {name: about.get(name) for name in made_with}
    demand_same(then, made_with, f"{job.out}: holds other results", engine=job.engine)
    chain, count, reading = Chain(), 0, Reading()
    for image in gather_images(job.images, columns=job.columns, reading=reading):
        chain.add(image)
        count += 1
    if (count, chain.digest()) != (about["pictures"], about["digest"]):
        raise BadOutput(
            f"{job.out}: holds results of other images: {about['pictures']:,} then, {count:,} now; some "
            "came, went or changed. Name another file with --out, or say --overwrite to begin anew"
        )
    return BulkResult(str(job.out), count, about["unreadable"], count, job.engine, reading.list_omissions())
