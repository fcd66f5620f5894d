"""Bulk jobs: a row for every image is computed, saved in chunks, and at the end written to one file.

Images are not held in memory, and a job whose process ends early is continued by the same call.
"""

import time
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
from vggkit.images.sources.open_dataset import gather_images
from vggkit.images.sources.tables import Columns
from vggkit.inference.bulk_work import Compute, Row
from vggkit.inference.chunks import Chunk, Chunks
from vggkit.inference.fingerprint import FORMAT_VERSION, ImageDigest, demand_same
from vggkit.interruption import Signals, handle_signals
from vggkit.table_files import Column, Kind, name_about, name_rows, read_about, stream_columns, stream_matrix

MOST_ROWS: Final = 2048
"""Rows that wait in memory at most before they are written."""
VECTOR: Final = "vector"
"""The column of vectors."""

OnProgress = Callable[[str, int, int | None], None]
"""Called with the current task, the number of images that are done, and of all images if that is known."""


@dataclass(frozen=True, slots=True)
class BulkResult:
    """The result of a bulk job."""

    path: str
    """The file."""
    images: int
    """Its rows."""
    unreadable: int
    """Rows of images that cannot be read, or whose values overflow in the network."""
    found_done: int
    """Rows that an earlier call had computed."""
    engine: EngineInfo
    """The engine."""
    skipped: tuple[Omission, ...] = ()
    """Files among the images that are no images, counted by reason."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The specification of a bulk job."""

    out: Path
    """The file."""
    kinds: Mapping[str, Kind]
    """Its columns; the last is `problem`."""
    about: Mapping[str, Any]
    """The model, images and options, which must be the same when the job is continued."""
    model: str
    """The place of the Classifier, recorded in the file."""
    engine: EngineInfo
    """The engine."""
    compute: Compute
    """Gives each image with its row, in order."""
    images: Iterable[str | Path | ImageSample]
    columns: Columns
    total: int | None
    """Number of images, where that is known."""
    batch_size: int
    save_seconds: float
    overwrite: bool
    on_progress: OnProgress


def run_job(job: Job, *, write_chunks: "WriteChunks | None" = None) -> BulkResult:
    """Compute all rows, or those that are missing, and write the file; raises BadOutput and what images raise.

    Args:
        job: The specification.
        write_chunks: Computes and writes the chunks that are missing; None: in this process.
    """
    chunks = Chunks(job.out, {**job.about, "engine": asdict(job.engine)})

    def find_command() -> str:
        again = "the same line, without --overwrite," if job.overwrite else "the same line"
        return f"{again} ({chunks.count():,} images are done and saved)"

    with chunks.hold(), handle_signals(find_command) as signals:
        if job.overwrite:
            chunks.discard()
        elif not chunks.exist() and job.out.exists():
            return _check_finished(job, chunks)
        chunks.open()
        reading = Reading(is_own=chunks.owns)
        n_already_done = (write_chunks or _write_chunks)(job, chunks, signals, reading)
        return _join_chunks(job, chunks, n_already_done, reading)


WriteChunks = Callable[[Job, Chunks, Signals, Reading], int]
"""Computes what no chunk holds; returns the number of rows that earlier calls had computed."""


def _write_chunks(job: Job, chunks: Chunks, signals: Signals, reading: Reading) -> int:
    """Compute the row of every image that no chunk holds; returns how many were computed before."""
    total = job.total
    digest = ImageDigest()
    images = gather_images(job.images, columns=job.columns, reading=reading)
    n_already_done = written = skip_done(chunks, images, digest)
    # A job on Ray leaves chunks beyond gaps, which would be found among those that are written now.
    chunks.keep(chunks.list_names())
    job.on_progress("computing", written, total)
    rows: list[Row] = []
    saved = time.monotonic()

    def save() -> None:
        nonlocal saved, written
        if rows:
            chunks.add(written, transpose(rows, job.kinds), digest.hex())
            written += len(rows)
            rows.clear()
        saved = time.monotonic()

    signals.defers_signals = True
    try:
        for image, row in job.compute(images):
            rows.append(row)
            digest.add(image)
            job.on_progress("computing", written + len(rows), total)
            # Chunks end where batches do: a later call makes the same batches, and so the same bits.
            if (written + len(rows) - n_already_done) % job.batch_size:
                continue
            if signals.find_stop():
                break
            if len(rows) >= MOST_ROWS or time.monotonic() - saved >= job.save_seconds:
                save()
    except VggkitError as problem:  # between two batches, such as an archive that ends too early
        if not isinstance(problem, BadOutput):
            save()
        raise
    save()
    signals.defers_signals = False
    if number := signals.find_stop():
        raise Stopped(number)
    return n_already_done


def skip_done(chunks: Chunks, images: Iterator[ImageSample], digest: ImageDigest) -> int:
    """Skip the images that chunks hold; raises BadOutput if these have changed."""
    done = 0
    for chunk in chunks.list():
        for image in islice(images, chunk.stop - chunk.first):
            digest.add(image)
            done += 1
        if done < chunk.stop or digest.hex() != chunk.digest:
            raise BadOutput(
                f"{chunks.folder}: holds results of other images: among the first {chunk.stop:,} some were added, "
                "removed or changed. Name another file with --out, or use --overwrite to start again"
            )
    return done


def transpose(rows: Sequence[Row], kinds: Mapping[str, Kind]) -> dict[str, Column]:
    """Rows as columns."""
    columns = zip(kinds.items(), zip(*rows, strict=True), strict=True)
    return {name: np.stack(cells) if isinstance(kind, int) else cells for (name, kind), cells in columns}


def _join_chunks(job: Job, chunks: Chunks, n_already_done: int, reading: Reading) -> BulkResult:
    """Write the results file from all chunks, and remove them."""
    listed = chunks.list()
    total = listed[-1].stop if listed else 0
    unreadable = sum(problem is not None for chunk in listed for problem in chunk.read(arrays=False)["problem"])
    about = {
        "format_version": FORMAT_VERSION,
        **chunks.made_with,
        "classifier": job.model,
        "images": total,
        "unreadable": unreadable,
        "digest": listed[-1].digest if listed else "",
    }

    def read(listed: Sequence[Chunk] = listed) -> Iterator[dict[str, Column]]:
        for chunk in listed:
            job.on_progress("writing", chunk.first, total)
            yield chunk.read()

    # Made among the chunks: what a killed process leaves there is removed with them.
    made = chunks.folder / job.out.name
    width = job.kinds.get(VECTOR)
    if isinstance(width, int) and job.out.suffix.lower() == ".npy":
        with stream_columns(name_rows(made), {"path": "path", "problem": "text"}) as append:
            for columns in read():
                append(columns)
        with stream_matrix(made, (total, width), about=about) as append_rows:
            for columns in read():
                append_rows(np.asarray(columns[VECTOR], np.float32))
    else:
        with stream_columns(made, job.kinds, about=about) as append:
            for columns in read():
                append(columns)
    for name in (lambda path: path, name_rows, name_about):
        if name(made).is_file():
            move_file(name(made), name(job.out))
    chunks.discard()
    return BulkResult(str(job.out), total, unreadable, n_already_done, job.engine, reading.list_omissions())


def _check_finished(job: Job, chunks: Chunks) -> BulkResult:
    """The result of a file that is there already, of the same images and options; raises BadOutput."""
    about = read_about(job.out)
    if about is None or "digest" not in about:
        raise BadOutput(
            f"{job.out}: exists already, and was not written by vggkit; name another file with --out, or give "
            "--overwrite to replace it"
        )
    then = {name: about.get(name) for name in chunks.made_with}
    demand_same(then, chunks.made_with, f"{job.out}: holds other results")
    digest, count, reading = ImageDigest(), 0, Reading(is_own=chunks.owns)
    for image in gather_images(job.images, columns=job.columns, reading=reading):
        digest.add(image)
        count += 1
    before = count_rows(about)
    if (count, digest.hex()) != (before, about["digest"]):
        raise BadOutput(
            f"{job.out}: holds results of other images: {before:,} then, {count:,} now; some were added, removed "
            "or changed. Name another file with --out, or use --overwrite to start again"
        )
    return BulkResult(str(job.out), count, about["unreadable"], count, job.engine, reading.list_omissions())


def count_rows(about: Mapping[str, Any]) -> int:
    """The number of images that a file of results states; raises KeyError where it states none."""
    return int(about["pictures"] if about.get("format_version") == 1 else about["images"])
