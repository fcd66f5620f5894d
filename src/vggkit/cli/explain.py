"""The verb explain."""

from pathlib import Path

from vggkit.cli.failures import Failures
from vggkit.cli.printing import print_json
from vggkit.engines.info import WantedEngine
from vggkit.engines.outputs import WantedPrecision
from vggkit.errors import BadInput
from vggkit.explanations.plan import Method
from vggkit.images.sources.tables import Columns
from vggkit.reports.progress import ProgressLine
from vggkit.reports.terminal import print_line


def explain(
    model: str,
    images: tuple[str, ...],
    /,
    *,
    out: Path = Path("explanations"),
    method: Method = "grad-cam",
    label: str | None = None,
    contrast: tuple[str, str] | None = None,
    layer: str | None = None,
    check: bool = False,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    batch_size: int = 32,
    device: str = "auto",
    precision: WantedPrecision = "auto",
    engine: WantedEngine = "auto",
    reduced_decoding: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Show which places of images speak for a class: overlays, maps, a table and a contact sheet in a folder.

    Grad-CAM is computed by any engine, beside the prediction. The other methods are computed by PyTorch;
    integrated-gradients, occlusion and saliency need captum: pip install "vggkit[explain]".

    Exit code: 0, 1 where some of the images failed, 2 where all of them did or the command was refused.

    Args:
        model: A model's name such as vgg16 (the published ImageNet weights), a classifier's file, a run's folder,
            or hf://owner/name.
        images: Image files, folders (every image below them), lists of paths (.txt), tables (.csv), archives, or -
            for standard input.
        out: Folder of the results: for each image an overlay (NAME.jpg) and its map (NAME.npy), explanations.csv,
            explanations.json, and for several images contact_sheet.jpg.
        method: How an explanation is computed. grad-cam: the channels of a layer, each weighted by the mean
            gradient of the class score. layer-cam: the same with a weight for each place, which is finer in early
            layers. integrated-gradients, occlusion and saliency explain the pixels.
        label: The class to explain. Without it: of each image the most probable class.
        contrast: Two classes, A and B: explain what speaks for A and not for B.
        layer: For --method grad-cam and layer-cam: the layer to explain. Without it: the last convolution before
            the last pool, such as relu5_3.
        check: Also measure on the first 32 images whether the explanations are right, and write it to check.json:
            deletion and insertion against a random order, the grid pointing game, and the correlation with the
            explanations of a network with random weights.
        columns: Names of a table's columns.
        batch_size: Number of images that pass through the network together.
        device: auto, cpu, cuda or mps.
        precision: Precision of the computation where an engine explains. auto: bf16 where the device supports it
            natively, else fp32. int8: on a CPU, for a classifier whose file holds activation ranges.
        engine: Library that computes. auto: PyTorch on CUDA and MPS; on a CPU ncnn (fp32 on x86 from 112 pixels
            on), OpenVINO, ONNX Runtime or PyTorch, the first of them that is installed.
        reduced_decoding: Decode large JPEGs at a smaller scale, even where the classifier does not: it is faster,
            reads some that are too large otherwise, and changes pixels slightly.
        json: Print a JSON object in place of the text.
        quiet: Show no progress.
    """
    from vggkit.workflows.explain import explain_into

    if not images:
        raise BadInput("explain needs an image: vggkit explain MODEL IMAGE…")
    with ProgressLine(quiet=quiet, rate="images/s") as line:
        result = explain_into(
            model,
            images,
            out,
            method=method,
            label=label,
            contrast=contrast,
            layer=layer,
            columns=columns,
            batch_size=batch_size,
            device=device,
            precision=precision,
            engine=engine,
            reduced_decoding=reduced_decoding,
            on_progress=line.show,
        )
        with Failures(line, all_are_in=f"Column problem of {out / 'explanations.csv'} says why.") as failures:
            for problem in result.problems:
                failures.count(problem)
            failures.failed, failures.done = result.unreadable, result.images - result.unreadable
        for omission in result.skipped:
            line.log(f"skipped: {omission.describe()}")
        checked = None
        if check:
            from vggkit.workflows.explain import check_into

            checked = check_into(
                model, images, out, method=method, layer=layer, batch_size=batch_size, device=device,
                reduced_decoding=reduced_decoding, on_progress=line.show,
            )  # fmt: skip
    if json:
        print_json(result.to_dict() | ({} if checked is None else {"check": checked.to_dict()}))
    else:
        at = f" at {result.layer}" if result.layer else ""
        how = f"{result.method}{at}; computed by {result.engine.describe()}"
        title = f"{result.title}; " if result.title else ""
        some = f"{result.images - result.unreadable:,} of " if result.unreadable else ""
        print_line(f"{out}: {title}{some}{result.images:,} image{'s' * (result.images != 1)}, {how}")
        if (look := result.sheet or result.overlay) is not None:
            print_line(f"look at: {look}")
        for sentence in [] if checked is None else checked.describe():
            print_line(sentence)
    return failures.exit_code
