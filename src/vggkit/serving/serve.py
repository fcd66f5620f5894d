"""The function behind `vggkit serve`: it looks at what is to be served, takes the port, and serves."""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vggkit.engines.info import WantedEngine
from vggkit.engines.model_weights import ModelFile
from vggkit.engines.outputs import WantedPrecision
from vggkit.errors import BadInput, MissingExtra
from vggkit.inference.embed import find_width
from vggkit.serving.limits import ServeLimits
from vggkit.serving.loaded_model import Computing
from vggkit.serving.named_models import name_models
from vggkit.serving.options import BACKLOG, ServeOptions, read_token


def serve(
    models: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    max_batch: int = 16,
    max_wait_ms: float = 5.0,
    layer: str = "features",
    device: str = "auto",
    precision: WantedPrecision = "auto",
    engine: WantedEngine = "auto",
    limits: ServeLimits = ServeLimits(),  # noqa: B008 (frozen)
    token_file: Path | None = None,
    allowed_hosts: Sequence[str] = (),
    reload_seconds: float = 2.0,
    drain_seconds: float = 30.0,
    log_file: Path | None = None,
    on_start: Callable[[str], None] | None = None,
) -> None:
    """Serve models by HTTP until the process is told to stop: SIGTERM, or Ctrl-C. Requests in work are finished.

    Args:
        models: A Classifier's file, a run's folder, a published model's name such as `vgg16`, or `hf://owner/name`;
            or several of them, each with a name, `cats=runs/cats`, or as a mapping from names. The first is used
            where a request names none.
        host: The address to listen at; 127.0.0.1 is reached from this machine alone, 0.0.0.0 from others.
        port: The port to listen at; 0: any free one.
        workers: Processes; each has its own copy of the models, and is replaced when it ends.
        max_batch: Largest number of images that pass through the network together.
        max_wait_ms: Milliseconds that an image waits for others while these are being decoded.
        layer: The layer of `POST /embed`, as for `embed`.
        device: `auto`, `cpu`, `cuda`, `mps`.
        precision: The precision of the computation; auto: bf16 where the device multiplies it natively. On a
            processor without AMX, images of 192 pixels and more are computed in fp32 in place of bf16 if ncnn is
            installed, which is faster for batches; engine `openvino` keeps bf16.
        engine: The engine; auto: the fastest that is installed. Torch is imported only where PyTorch computes.
        limits: What requests may take.
        token_file: A file with the token that requests must hold; without it VGGKIT_TOKEN of the environment is
            used, and without that no token.
        allowed_hosts: Names by which requests may call the service. Empty: any, and localhost alone where it
            listens there.
        reload_seconds: Seconds between two looks at the files of the models; a changed one is loaded, and where
            it cannot be, the one from before is kept. 0: never.
        drain_seconds: Seconds that requests have to end when the service is told to stop.
        log_file: Append the log, a JSON object a line, to this file; None: standard output.
        on_start: Called with the address when the service responds there; of several workers, when they start.

    Raises BadInput, BadConfiguration, BadCheckpoint, BadDownload, UnknownName, and MissingExtra.
    """
    try:
        from vggkit.serving.process import build_service, serve_here
        from vggkit.serving.supervisor import serve_in_workers
    except ImportError as problem:
        if (problem.name or "").startswith("vggkit"):
            raise
        raise MissingExtra.of(str(problem.name), "serving", "serve") from problem
    from vggkit.serving.logs import Log

    given = [models] if isinstance(models, str | Path) else models
    options = ServeOptions(
        places=name_models(given),
        computing=Computing(device=device, precision=precision, engine=engine, layer=layer, max_batch=max_batch),
        max_wait_ms=max_wait_ms,
        limits=limits,
        host=host,
        port=port,
        workers=workers,
        reload_seconds=reload_seconds,
        drain_seconds=drain_seconds,
        token=read_token(token_file),
        allowed_hosts=tuple(allowed_hosts),
        log_file=log_file,
    )
    for place in options.places.values():  # what is to be downloaded, and refused, is so here
        find_width(ModelFile(place).configuration, layer)
    with _listen(options) as listening:
        address = f"http://{options.shown_host}:{listening.getsockname()[1]}"
        if workers > 1:
            if on_start:
                on_start(address)
            serve_in_workers(options, listening)
            return
        log = Log(log_file)
        try:
            app = build_service(options, log)
            if on_start:
                on_start(address)
            serve_here(app, options, listening)
        finally:
            log.close()


def _listen(options: ServeOptions) -> socket.socket:
    """A socket at the address; raises BadInput where it cannot be had."""
    host, port = options.host or "0.0.0.0", options.port  # noqa: S104 (as requested)
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if os.name == "posix":  # elsewhere it would let two services listen at one port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)  # who connects now waits until the models are loaded
    except OSError as problem:
        listening.close()
        raise BadInput(
            f"cannot listen at {host}:{port} ({problem.strerror or problem}); choose another --port, such as 0"
        ) from problem
    listening.set_inheritable(True)
    return listening
