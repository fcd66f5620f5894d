"""The verb filters."""

from pathlib import Path
from typing import Literal

from vggkit.cli.failures import Failures, choose_exit_code
from vggkit.cli.printing import print_json
from vggkit.engines.outputs import WantedPrecision
from vggkit.reports.plots import demand_drawable
from vggkit.reports.progress import ProgressLine
from vggkit.reports.terminal import print_line


def filters(
    model: str,
    /,
    *,
    out: Path,
    layer: str = "conv1_1",
    data: str | None = None,
    method: Literal["auto", "weights", "patches", "maximize"] = "auto",
    channels: str | None = None,
    top: int = 8,
    steps: int = 128,
    smoothness: float = 1.0,
    batch_size: int = 8,
    seed: int = 0,
    device: str = "auto",
    precision: WantedPrecision = "auto",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Show what the channels of a layer respond to, on a contact sheet.

    For conv1_1 the filters themselves; with --data the patches of images that excite each channel most; else images
    made to excite each channel.

    Exit code: 0, 1 where some of the images of --data failed, 2 where all of them did or the command was refused.

    Args:
        model: A model's name such as vgg16 (the published ImageNet weights), a classifier's file, a run's folder,
            hf://owner/name, or a file of weights, also of a part of a network.
        out: The contact sheet to draw (.png, .pdf or .svg).
        layer: A layer of the trunk, such as conv1_1, relu3_2 or pool5; for --method maximize also one of the head,
            such as fc8.
        data: Images to search for the patches that excite each channel most: an image, a folder, a list of paths
            (.txt), a table (.csv) or an archive.
        method: weights: the first convolution's filters, for conv1_1. patches: the patches of --data that excite
            each channel most. maximize: images made to excite each channel. auto: patches with --data; without it
            weights for conv1_1, and maximize for other layers.
        channels: Channels to show, such as 0-15,30. Without it: all for --method weights, else the first 16.
        top: For --method patches: number of patches of each channel.
        steps: For --method maximize: number of steps.
        smoothness: For --method maximize: weight of the total variation, against noise.
        batch_size: Number of images that pass through the network together.
        seed: For --method maximize: seed of the images at the start, and of their shifts.
        device: auto, cpu, cuda or mps.
        precision: For --method patches: precision of the computation. auto: bf16 where the device supports it
            natively.
        json: Print a JSON object in place of the text.
        quiet: Show no progress.
    """
    from vggkit.workflows.filters import filters as look

    demand_drawable(out)
    with ProgressLine(quiet=quiet) as line:
        found = look(
            model,
            layer=layer,
            data=data,
            method=method,
            channels=channels,
            top=top,
            steps=steps,
            smoothness=smoothness,
            batch_size=batch_size,
            seed=seed,
            device=device,
            precision=precision,
            on_progress=line.show,
        )
        reasons = "With --json each has its reason."
        with Failures(line, all_are_in=reasons) as failures:
            for problem in found.problems:
                failures.count(problem)
            failures.done = found.searched
        line.show("drawing", 0, None)
        found.save(out)
    if json:
        print_json({"path": str(out), **found.to_dict()})
    else:
        print_line(f"{out}: {found.describe()}")
    return choose_exit_code(done=1, failed=failures.failed)
