"""The verb serve."""

from pathlib import Path

from vggkit.engines.info import WantedEngine
from vggkit.engines.outputs import WantedPrecision
from vggkit.errors import BadInput
from vggkit.reports.terminal import print_line
from vggkit.serving.limits import ServeLimits


def serve(
    models: tuple[str, ...],
    /,
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
    allowed_hosts: tuple[str, ...] = (),
    reload_seconds: float = 2.0,
    drain_seconds: float = 30.0,
    log_file: Path | None = None,
    quiet: bool = False,
) -> None:
    """Serve models by HTTP: a page for people at /, and POST /predict and /embed for programs.

    Images of several requests pass through the network together. A changed model file is loaded while the one from
    before computes. SIGTERM or Ctrl-C stops the service when the requests in work are finished. The log, a JSON
    object a line, goes to standard output. /docs describes the addresses, docs/serving.md the rest.

    Exit code: 0 when it was told to stop, 2 if it was refused.

    Args:
        models: A model's name such as vgg16 (the published ImageNet weights), a classifier's file, a run's folder,
            or hf://owner/name; or several of them, each with a name: cats=runs/cats dogs=runs/dogs. The first is
            used where a request names none.
        host: Address to listen at. 127.0.0.1: for this machine alone; 0.0.0.0: for others too.
        port: Port to listen at. 0: any free one.
        workers: Number of processes; each has its own copy of the models, and is replaced when it ends.
        max_batch: Largest number of images that pass through the network together.
        max_wait_ms: Milliseconds that an image waits for others while these are being decoded.
        layer: The layer that /embed computes. features: the input of the last fully connected layer; statistics;
            logits; probabilities; or a layer such as pool5 or relu6, whose maps are averaged over their area.
        device: auto, cpu, cuda or mps.
        precision: Precision of the computation. auto: bf16 where the device supports it natively, else fp32. On a
            processor without AMX, images of 192 pixels and more are computed in fp32 in place of bf16 if ncnn is
            installed, which is faster for batches; --engine openvino keeps bf16. int8: on a CPU, for a classifier
            whose file holds activation ranges (vggkit bench --keep-ranges).
        engine: Library that computes. auto: PyTorch on CUDA and MPS; on a CPU ncnn (fp32 on x86 from 112 pixels
            on), OpenVINO, ONNX Runtime or PyTorch, the first of them that is installed.
        limits: What requests may take.
        token_file: File with the token that requests must hold (Authorization: Bearer). Without it: VGGKIT_TOKEN
            of the environment, and without that no token.
        allowed_hosts: Names by which requests may call the service. Without any: every name, and localhost alone
            where it listens there.
        reload_seconds: Seconds between two looks at the models' files. 0: changed files are not loaded.
        drain_seconds: Seconds that requests have to end when the service is told to stop.
        log_file: Append the log to this file in place of standard output.
        quiet: Print nothing on standard error.
    """
    from vggkit.serving.serve import serve as run

    if not models:
        raise BadInput("serve needs a model: vggkit serve MODEL")

    def show(address: str) -> None:
        if not quiet:
            print_line(f"serving at {address} (description: {address}/docs); Ctrl-C stops", to_stderr=True)

    run(
        models,
        host=host,
        port=port,
        workers=workers,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        layer=layer,
        device=device,
        precision=precision,
        engine=engine,
        limits=limits,
        token_file=token_file,
        allowed_hosts=allowed_hosts,
        reload_seconds=reload_seconds,
        drain_seconds=drain_seconds,
        log_file=log_file,
        on_start=show,
    )
