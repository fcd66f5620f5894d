"""Make it fast and take it elsewhere."""

from pathlib import Path
from typing import Final

from vggkit.cli.printing import print_json
from vggkit.files import demand_apart
from vggkit.images.sources.tables import Columns
from vggkit.reports.progress import ProgressLine
from vggkit.reports.terminal import open_terminal, print_line

WIDTH: Final = 120
"""Of what is not for a terminal."""


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
    """Measure how fast each engine and precision is on this machine with a Classifier, and how true.

    Each is a process of its own; they have turns, so that what slows the machine down meanwhile meets all. About
    two minutes for VGG11 on two processors.

    Args:
        model: A Classifier's file, or a run's folder.
        images: Files, folders (every image below), lists (.txt), tables or archives: up to 256 of their
            images are shown to every engine, and its answers compared with those of PyTorch in fp32. Without
            any, images are made up, and only the speed says something.
        batch_sizes: How many images pass together; 1 is always among them.
        rounds: Turns of each engine.
        seconds: Of a turn, for each number of images.
        columns: What a table's columns are called.
        device: auto: all there are; cpu, cuda or mps.
        keep_ranges: Keep in the Classifier's file what int8 must know, between which values the network's layers
            lie, measured on up to 128 other images.
        plot: Also draw it, to this .png, .pdf or .svg.
        json: One JSON object in place of the table.
        quiet: No progress on standard error.
    """
    from vggkit.reports.bench_table import draw_bench, plot_bench, suggest
    from vggkit.reports.plots import demand_drawable
    from vggkit.weights.card import read_card
    from vggkit.weights.locate import locate_model
    from vggkit.workflows.bench import bench as measure

    if plot is not None:
        demand_apart(plot, images)
        demand_drawable(plot)
    ranges_kept = keep_ranges or bool(read_card(locate_model(model)).ranges)
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
        # A file or a pipe takes rows whole.
        open_terminal(width=None if open_terminal().is_terminal else WIDTH).print(draw_bench(found))
        for sentence in suggest(found, ranges_kept=ranges_kept):
            print_line(sentence)
    if keep_ranges:
        print_line(f"what int8 must know is kept in {locate_model(model)}", to_stderr=True)
    if plot is not None:
        plot_bench(found, plot)
        print_line(f"drawn: {plot}", to_stderr=True)
    return 0 if any(each.problem is None for each in found.engines) else 2
