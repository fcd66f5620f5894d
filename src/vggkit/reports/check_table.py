"""A Diagnosis for the terminal: class sizes, image properties, and the findings."""

from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vggkit.data_checks.findings import Case, Diagnosis, Finding, Severity
from vggkit.reports.tables import EIGHTHS
from vggkit.reports.terminal import stack_lines, write_line

MARKS: Final[dict[Severity, tuple[str, str]]] = {
    "error": ("✗ error", "bold red"),
    "warning": ("! warning", "yellow"),
    "note": ("· note", "dim"),
}
CASES_SHOWN: Final = 3
CLASSES_SHOWN: Final = 24
BAR_CELLS: Final = 16


def draw_check_table(diagnosis: Diagnosis) -> RenderableType:
    """A Diagnosis for `rich.print`: class sizes, image properties, then each finding with its first cases."""
    return Group(
        write_line((diagnosis.data, "bold"), f": {diagnosis.n:,} images, {_describe_size(diagnosis)}"),
        write_line(),
        _draw_counts(diagnosis),
        write_line(),
        _draw_facts(diagnosis),
        write_line(),
        *(_draw_finding(finding, diagnosis.data) for finding in diagnosis.findings),
        _draw_verdict(diagnosis),
    )


def _describe_size(diagnosis: Diagnosis) -> str:
    splits = ", ".join(f"{sum(classes.values()):,} {split}" for split, classes in diagnosis.counts.items())
    classes = len(next(iter(diagnosis.counts.values()), {}))
    counted = f"{classes:,} class{'es' * (classes != 1)}"
    if diagnosis.task == "multi-label":
        return f"{counted}, {diagnosis.labels_per_image:.2f} labels an image"
    return f"{counted} ({splits})" if "all" not in diagnosis.counts else counted


def _draw_counts(diagnosis: Diagnosis) -> Table:
    """Readable images of each class in each split; of many classes only the largest and the smallest."""
    splits = list(diagnosis.counts)
    totals = {
        label: sum(diagnosis.counts[split][label] for split in splits) for label in diagnosis.counts[splits[0]]
    }
    labels = list(totals)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("class", no_wrap=True, overflow="ellipsis", max_width=32)
    for split in splits:
        table.add_column("images" if split == "all" else split, justify="right")
    table.add_column(width=BAR_CELLS, no_wrap=True, style="blue")
    if len(labels) > CLASSES_SHOWN:
        ordered = sorted(labels, key=lambda label: -totals[label])
        half = CLASSES_SHOWN // 2
        labels = [*ordered[:half], "", *ordered[-half:]]
    most = max(totals.values(), default=0) or 1
    for label in labels:
        if not label:
            table.add_row(write_line(f"… {len(totals) - CLASSES_SHOWN} more", style="dim"))
            continue
        counts = [diagnosis.counts[split][label] for split in splits]
        cells = [write_line(f"{count:,}", style="bold red" if not count else "") for count in counts]
        table.add_row(write_line(label), *cells, _bar(totals[label] / most))
    return table


def _draw_facts(diagnosis: Diagnosis) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    if diagnosis.sides:
        small, median, large = (
            f"{width}×{height}"
            for width, height in (diagnosis.sides.smallest, diagnosis.sides.median, diagnosis.sides.largest)
        )
        table.add_row("sizes", f"smallest {small}, median {median}, largest {large} pixels")
    table.add_row("formats", ", ".join(f"{count:,} {name}" for name, count in diagnosis.formats.items()))
    table.add_row("modes", ", ".join(f"{count:,} {name}" for name, count in diagnosis.modes.items()))
    if diagnosis.turned:
        table.add_row("orientation", f"{diagnosis.turned:,} are rotated according to their EXIF orientation")
    table.add_row("network input", f"{diagnosis.image_size}×{diagnosis.image_size} pixels")
    if diagnosis.model:
        table.add_row("labels checked by", write_line(diagnosis.model))
    return table


def _draw_finding(finding: Finding, data: str) -> RenderableType:
    mark, style = MARKS[finding.severity]
    lines = [write_line((finding.summary, "bold"))]
    # Of omitted files there is one case for each reason, and all are shown.
    shown = len(finding.cases) if finding.kind == "skipped" else CASES_SHOWN
    lines += [write_line(_describe(case, data)) for case in finding.cases[:shown]]
    if len(finding.cases) > shown:
        lines.append(write_line((f"… and {len(finding.cases) - shown:,} more", "dim")))
    lines.append(write_line((finding.advice, "dim")))
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style=style, min_width=max(len(text) for text, _ in MARKS.values()))
    grid.add_column(overflow="fold")
    grid.add_row(mark, stack_lines(*lines, ""))
    return grid


def _describe(case: Case, data: str) -> str:
    """The first images of a case and its detail, with paths relative to the dataset."""
    shown = [member.path.removeprefix(f"{data}/") for member in case.members[:3]]
    more = f" and {len(case.members) - 3} more" if len(case.members) > 3 else ""
    detail = case.detail
    if case.members and detail.startswith(case.members[0].path):  # a reason that names its file
        return detail.removeprefix(f"{data}/")
    return f"{' = '.join(shown)}{more}: {detail}" if shown else detail.replace(f"{data}/", "")


def _draw_verdict(diagnosis: Diagnosis) -> Text:
    if not diagnosis.findings:
        return write_line(f"no findings, in {diagnosis.seconds:.1f} s", style="bold green")
    counts = dict.fromkeys(MARKS, 0)
    for finding in diagnosis.findings:
        counts[finding.severity] += 1
    listed = ", ".join(f"{n} {name}{'s' * (n > 1)}" for name, n in counts.items() if n)
    invalid = "; metrics would be invalid until the errors are corrected" if counts["error"] else ""
    return write_line(f"{listed} in {diagnosis.seconds:.1f} s{invalid}", style="bold")


def _bar(share: float) -> str:
    whole, eighth = divmod(round(share * BAR_CELLS * 8), 8)
    return "█" * whole + EIGHTHS[eighth].strip()
