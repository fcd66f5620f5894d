"""Counters for Prometheus, of all worker processes together."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The variable by which prometheus_client knows, when it is imported, that several processes count together."""
REQUEST_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_IMAGES: Final = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """What the service counts."""

    def __init__(self) -> None:
        self._together = FOLDER in os.environ
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "vggkit_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "vggkit_request_seconds",
            "Seconds from a request's headers to the end of its response.",
            ["route"],
            buckets=REQUEST_SECONDS,
            registry=registry,
        )
        self.images = Counter(
            "vggkit_images",
            "Images by model and result: computed or problem.",
            ["model", "result"],
            registry=registry,
        )
        self.batch_images = Histogram(
            "vggkit_batch_images", "Images that were computed together.", buckets=BATCH_IMAGES, registry=registry
        )
        self.batch_seconds = Histogram(
            "vggkit_batch_seconds", "Seconds of the engine for a batch.", buckets=REQUEST_SECONDS, registry=registry
        )
        self.queue_images = Gauge(
            "vggkit_queue_images",
            "Images that wait or are computed.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.reloads = Counter(
            "vggkit_reloads",
            "Changed model files by result: loaded or problem.",
            ["model", "result"],
            registry=registry,
        )
        self.lost_lines = Counter("vggkit_log_lines_lost", "Lines of the log not written.", registry=registry)
        if not self._together:
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)

    def write(self) -> bytes:
        """The text that Prometheus reads."""
        if not self._together:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


@contextmanager
def counting_together() -> Iterator[Callable[[int], None]]:
    """Processes that are started meanwhile count together; call what is given with each process that ended."""
    folder = tempfile.mkdtemp(prefix="vggkit-metrics-")
    os.environ[FOLDER] = folder
    try:
        yield lambda process: mark_process_dead(process, path=folder)  # type: ignore[no-untyped-call]
    finally:
        del os.environ[FOLDER]
        shutil.rmtree(Path(folder), ignore_errors=True)
