"""The verb bench."""

from pathlib import Path
from typing import Final

from vggkit.cli.printing import print_json
from vggkit.files import demand_apart
from vggkit.images.sources.tables import Columns
from vggkit.reports.progress import ProgressLine
from vggkit.reports.terminal import open_terminal, print_line

WIDTH: Final = 120
"""Columns for output that is not a terminal."""


def bench(
    model: str,
    images: tuple[str, ...] = (),
    /,
    *,
    batch_sizes: tuple[int, ...] = (1, 8, 32),
    rounds: int = 5,
    seconds: float = 1.0,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    device: str = "auto",
    keep_ranges: bool = False,
    plot: Path | None = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Measure the speed of inference: every engine and precision that runs on this machine.

    Each engine runs in a separate process, and the engines take turns, so that other load on the machine affects
    all of them equally. With images, predictions are compared with those of PyTorch in fp32. About two minutes for
    VGG11 on two cores.

    Args:
        model: A model's name such as vgg16 (the published ImageNet weights), a classifier's file, a run's folder,
            or hf://owner/name.
        images: Image files, folders, lists of paths, tables or archives; up to 256 of their images are used.
            Without any, noise is used, and only the speed is meaningful.
        batch_sizes: Numbers of images that pass through the network together; 1 is always among them.
        rounds: Number of turns of each engine; the table shows the median.
        seconds: Length of a turn, for each batch size.
        columns: Names of a table's columns.
        device: auto (all there are), cpu, cuda or mps.
        keep_ranges: Measure the activation ranges that int8 needs, on up to 128 other images, and store them in the
            classifier's file.
        plot: Also draw the results in this file (.png, .pdf or .svg).
        json: Print a JSON object in place of the table.
        quiet: Show no progress.
    """
    from vggkit.reports.bench_table import draw_bench, plot_bench, suggest
    from vggkit.reports.plots import demand_drawable
    from vggkit.weights.classifier_file import read_card
    from vggkit.weights.locate import locate_model
    from vggkit.workflows.bench import bench as measure

    if plot is not None:
        demand_apart(plot, images)
        demand_drawable(plot)
    ranges_kept = keep_ranges or bool(read_card(locate_model(model)).activation_ranges)
    with ProgressLine(quiet=quiet) as line:
        found = measure(
            model,
            images,
            columns=columns,
            batch_sizes=batch_sizes,
            rounds=rounds,
            seconds=seconds,
            device=device,
            keep_ranges=keep_ranges,
            on_progress=line.show,
        )
    if json:
        print_json(found.to_dict())
    else:
        # Rows are not broken in a file or a pipe.
        open_terminal(width=None if open_terminal().is_terminal else WIDTH).print(draw_bench(found))
        for sentence in suggest(found, ranges_kept=ranges_kept):
            print_line(sentence)
    if keep_ranges:
        print_line(f"activation ranges for int8: stored in {locate_model(model)}", to_stderr=True)
    if plot is not None:
        plot_bench(found, plot)
        print_line(f"drawn: {plot}", to_stderr=True)
    return 0 if any(each.problem is None for each in found.engines) else 2
