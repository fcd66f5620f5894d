"""The verb compare."""

from pathlib import Path

from vggkit.cli.printing import print_json
from vggkit.errors import BadInput
from vggkit.reports.terminal import open_terminal, print_line


def compare(
    runs: tuple[Path, ...],
    /,
    *,
    plot: Path | None = None,
    json: bool = False,
) -> None:
    """Compare training runs: how their settings differ, and their accuracy, with confidence intervals.

    Runs that are still training, or were stopped, are shown up to their last epoch. To compare classifiers image by
    image on the same data, use `vggkit evaluate MODEL MODEL DATA`.

    Args:
        runs: Folders of runs, or a folder that holds several.
        plot: Also draw the learning curves in this file (.png, .pdf or .svg).
        json: Print a JSON object in place of the table.
    """
    from vggkit.workflows.compare import compare as put_side_by_side

    if not runs:
        raise BadInput("compare needs the folders of runs: vggkit compare RUN RUN…")
    found = put_side_by_side(runs)
    if plot is not None:
        from vggkit.reports.comparison import plot_comparison

        plot_comparison(found, plot)
    if json:
        print_json(found.to_dict())
        return
    from vggkit.reports.comparison import draw_comparison

    console = open_terminal()
    console.print(draw_comparison(found, width=console.width))
    if plot is not None:
        print_line(f"drawn: {plot}")
