"""One process of the service: it loads the models, serves until it is told to stop, and drains."""

import asyncio
import gc
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI
from starlette.types import ASGIApp
from uvicorn import Config, Server
from uvicorn.config import STARTUP_FAILURE

from vggkit.errors import VggkitError, describe_problem
from vggkit.hardware import count_threads
from vggkit.serving.app import ROUTES, build_app, list_open_paths
from vggkit.serving.batcher import Batcher, BatchRecord
from vggkit.serving.guard import Guard
from vggkit.serving.logs import Log
from vggkit.serving.metrics import Metrics
from vggkit.serving.named_models import NamedModels
from vggkit.serving.options import BACKLOG, ServeOptions
from vggkit.serving.protocol import LIMITS, LimitedProtocol
from vggkit.serving.service import Service

KEEP_ALIVE_SECONDS: Final = 15
"""How long an idle connection is kept: longer than proxies keep theirs makes them send into closed ones."""
PARENT_SECONDS: Final = 1.0
"""Between two looks at whether the process that started this one is still there."""


@dataclass(frozen=True, slots=True)
class AppFactory:
    """Makes the application in a worker process."""

    options: ServeOptions

    def __call__(self) -> ASGIApp:
        """The application; a model that cannot be loaded ends the process with a status that its parent knows."""
        log = Log(self.options.log_file)
        try:
            return build_service(self.options, log)
        except VggkitError as problem:
            log.write_problem("not started", {"message": describe_problem(problem)})
            log.close()
            sys.exit(STARTUP_FAILURE)


def build_service(options: ServeOptions, log: Log) -> Guard:
    """The application with everything around it, its models loaded; raises VggkitError where one cannot be."""
    metrics = Metrics()
    log.count_lost(metrics.lost_lines.inc)

    def record_reload(name: str, problem: str | None) -> None:
        metrics.reloads.labels(name, "loaded" if problem is None else "problem").inc()
        if problem is None:
            log.write("reloaded", {"model": name, "version": models.find(name).version})
        else:
            log.write_problem("not reloaded", {"model": name, "message": problem})

    models = NamedModels(options.places, options.computing, on_reload=record_reload)

    def record_batch(batch: BatchRecord) -> None:
        metrics.batch_images.observe(batch.images)
        metrics.batch_seconds.observe(batch.seconds)

    batcher = Batcher(
        max_batch=options.computing.max_batch,
        max_wait_ms=options.max_wait_ms,
        max_queue=options.limits.max_queue,
        decoders=count_threads(),
        on_batch=record_batch,
        on_queue=metrics.queue_images.inc,
    )
    service = Service(models, batcher, options.limits, metrics)

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        tasks = [asyncio.create_task(_stop_with_parent())]
        if options.reload_seconds:
            tasks.append(asyncio.create_task(models.watch(options.reload_seconds)))
        for name in models.names:
            model = models.find(name)
            log.write("loaded", {"model": name, "version": model.version, "engine": model.info.describe()})
        yield {LIMITS: options.limits}
        service.is_draining = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(batcher.close)
        models.close()
        gc.collect()
        log.write("stopped")
        log.close()

    title = " and ".join(models.names) if len(models.names) < 4 else f"{len(models.names)} models"
    return Guard(
        build_app(service, live, title=f"vggkit: {title}"),
        limits=options.limits,
        log=log,
        metrics=metrics,
        token=options.token,
        open_paths=list_open_paths(),
        routes=ROUTES,
        allowed_hosts=options.hosts,
    )


def make_config(app: Any, options: ServeOptions, *, is_factory: bool) -> Config:
    """How uvicorn serves it: HTTP/1.1 alone, no headers of proxies trusted, no log of its own."""
    return Config(
        app,
        factory=is_factory,
        http=LimitedProtocol,
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        workers=options.workers,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(options.drain_seconds)),
        h11_max_incomplete_event_size=options.limits.max_header_bytes,
    )


def serve_here(app: ASGIApp, options: ServeOptions, listening: socket.socket) -> None:
    """Serve in this process until SIGTERM or Ctrl-C; requests in progress are finished."""
    server = Server(make_config(app, options, is_factory=False))
    # uvicorn raises the signal again when it is done, and a service that was told to stop has not failed.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run([listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _stop_with_parent() -> None:
    """A worker whose supervisor was killed stops, and leaves the port."""
    parent = multiprocessing.parent_process()
    while parent is not None:
        await asyncio.sleep(PARENT_SECONDS)
        if not parent.is_alive():
            os.kill(os.getpid(), signal.SIGTERM)
            return
