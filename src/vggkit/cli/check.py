"""The verb check."""

from pathlib import Path

from vggkit.cli.printing import print_json
from vggkit.files import demand_writable
from vggkit.images.sources.tables import Columns
from vggkit.reports.progress import ProgressLine, only_our_errors
from vggkit.reports.terminal import open_terminal, print_line


def check(
    data: str,
    /,
    *,
    model: str | None = None,
    html: Path | None = None,
    fix: Path | None = None,
    image_size: int | None = None,
    reduced_decoding: bool = False,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    device: str = "auto",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Find problems in a dataset of labelled images before training on it.

    Reported are unreadable files, duplicates within and across splits (leakage) and across classes (contradictory
    labels), missing, small and imbalanced classes, and images smaller than the network's input; with --model also
    likely label errors and outliers. Exits with 1 where a problem would falsify metrics, else with 0.

    Args:
        data: A folder with a subfolder for each class, a table (.csv, .parquet), tar shards,
            hf://datasets/owner/name, or the name of a public dataset such as cifar10.
        model: A classifier that knows such images, to find label errors: a model's name such as vgg16, a
            classifier's file, a run's folder, or hf://owner/name.
        html: Also write a page with the images concerned: one .html file that needs no network.
        fix: Also write a table (.csv) of path, label and split without the images concerned, for `vggkit train`.
        image_size: Side in pixels of the network's input. Without it: the model's, or 224.
        reduced_decoding: Count JPEGs as readable that are too large to be decoded at their full size, as `vggkit
            train` reads them with the same option.
        columns: Names of a table's columns.
        device: Device of --model: auto, cpu, cuda or mps.
        json: Print a JSON object in place of the table.
        quiet: Show no progress.
    """
    from vggkit.images.sources.open_dataset import open_dataset
    from vggkit.workflows.check import check as look
    from vggkit.workflows.check import validate_outputs
    from vggkit.workflows.evaluate import demand_models

    if model is not None:  # refused before torch is imported, and before anything is downloaded
        demand_models([model])
    for path in (fix, html):
        if path is not None:
            demand_writable(path)
    with only_our_errors(), ProgressLine(quiet=quiet) as line:
        line.show(f"opening {data}", 0, None)
        images = open_dataset(data, columns=columns)
        validate_outputs(images, table=fix, page=html)
        found = look(
            images,
            model,
            columns=columns,
            image_size=image_size,
            reduced_decoding=reduced_decoding,
            device=device,
            on_progress=line.show,
        )
        if html is not None:
            from vggkit.reports.check_page import write_check_page

            line.show("drawing the page", 0, None)
            write_check_page(found, html)
    if json:
        print_json(found.to_dict())
    else:
        from vggkit.reports.check_table import draw_check_table

        open_terminal().print(draw_check_table(found))
    if html is not None:
        print_line(f"page: {html}", to_stderr=True)
    if fix is not None:
        from vggkit.data_checks.clean_table import write_clean_table

        left_out = write_clean_table(images, found, fix)
        listed = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "none"
        print_line(f"table: {fix}; left out: {listed}", to_stderr=True)
    return 1 if any(finding.severity == "error" for finding in found.findings) else 0
