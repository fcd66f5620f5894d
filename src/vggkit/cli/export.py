"""The verb export."""

from pathlib import Path

from vggkit.cli.printing import print_json
from vggkit.exporting.formats import FormatName
from vggkit.exporting.plan import StoredPrecision
from vggkit.images.sources.tables import Columns
from vggkit.reports.progress import ProgressLine
from vggkit.reports.terminal import print_line


def export(
    model: str,
    out: Path,
    /,
    *,
    to: FormatName | None = None,
    data: tuple[str, ...] = (),
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    resize: bool = False,
    precision: StoredPrecision = "fp32",
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Export a classifier to ONNX, torch.export, OpenVINO, torchvision, timm or Keras.

    The first three are programs from uint8 RGB images to calibrated probabilities, with the labels in the file.
    Before the file gets its name, its own runtime is checked on images, at two batch sizes and, if height and width
    are dynamic, at two sizes; beyond the tolerance nothing is kept. Prints code that runs the file without vggkit.

    Args:
        model: A model's name such as vgg16 (the published ImageNet weights), a classifier's file, a run's folder,
            or hf://owner/name.
        out: The file; its ending says the format: .onnx, .pt2 (torch.export), .xml (OpenVINO, with a .bin beside
            it), .pth, .pt or .safetensors (torchvision's weights), .h5, .weights.h5 or .npz (Keras'). With
            --to web a folder.
        to: The format, where several have the ending, such as timm. web: a folder for any static host, whose page
            classifies images in the browser; no image leaves the device.
        data: Image files, folders, lists of paths, tables or archives that a program is checked on; up to 16 of
            their images. Without any: four synthetic images.
        columns: Names of a table's columns.
        resize: Resize and crop in the program, which then takes images of any size; its pixels differ from Pillow's
            by a level of 255 or two. Without it the program takes images in the network's size.
        precision: Precision of the stored weights; computed in float32 in any case. fp16: half the bytes. int8: a
            quarter, for ONNX and web.
        json: Print a JSON object in place of the text.
        quiet: Show no progress.
    """
    from vggkit.workflows.export import export as write

    with ProgressLine(quiet=quiet) as line:
        found = write(
            model,
            out,
            to=to,
            data=data,
            columns=columns,
            resize=resize,
            precision=precision,
            on_progress=line.show,
        )
    if json:
        print_json(found.to_dict())
        return
    for sentence in str(found).splitlines():
        print_line(sentence)
    print_line("")
    print_line("# without vggkit:")
    for code in found.snippet.splitlines():
        print_line(code)
