"""A Checkup for the terminal: one screen of 80 columns, to paste into a bug report."""

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vggkit.benchmarking.checkup import Checkup, EngineStatus, EngineTrial, PackageState
from vggkit.reports.terminal import stack_lines, write_line

STYLES: Final[dict[EngineStatus, str]] = {
    "works": "green",
    "not installed": "dim",
    "not on this machine": "dim",
    "fails": "bold red",
}


def draw_checkup(checkup: Checkup) -> RenderableType:
    """A Checkup for `rich.print`: the machine, the engines, the packages, the folders, and what does not work."""
    return Group(
        write_line(
            (f"vggkit {checkup.vggkit}", "bold"), f", Python {checkup.python}, {checkup.system}", overflow="fold"
        ),
        _draw_facts(checkup),
        write_line(),
        write_line(("engines", "bold"), (": seconds to the first result, difference from PyTorch fp32", "dim")),
        _draw_engines(checkup.engines),
        write_line(),
        write_line(("packages", "bold")),
        _draw_packages(checkup),
        write_line(),
        _draw_verdict(checkup),
    )


def _open_table() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    return table


def _draw_facts(checkup: Checkup) -> Table:
    table = _open_table()
    table.add_column(overflow="fold")
    features = ", ".join(checkup.processor_features) or "no fast bfloat16 or int8 known"
    table.add_row("processor", write_line(f"{checkup.processor}: {features}"))
    if checkup.memory_bytes is not None:
        table.add_row("memory", write_line(f"{checkup.memory_bytes / 2**30:.1f} GiB available"))
    table.add_row("devices", write_line("; ".join(checkup.devices)))
    for folder in checkup.folders:
        free = "" if folder.free_bytes is None else f", {folder.free_bytes / 2**30:.0f} GiB free"
        there = "" if folder.exists else " (not there yet)"
        table.add_row(f"{folder.purpose} files", write_line(f"{folder.path}{there}{free}"))
    if checkup.variables:
        shown = (f"{name}: {value}" for name, value in checkup.variables.items())
        table.add_row("variables", write_line(", ".join(shown)))
    return table


def _draw_engines(engines: Sequence[EngineTrial]) -> Table:
    table = _open_table()
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in engines:
        detail = each.problem or ""
        if each.status == "works":
            compared = "" if each.error is None else f"  {each.error:.0e}"
            detail = f"{each.start_seconds or 0:.1f} s{compared}"
        status = write_line((each.status, STYLES[each.status]))
        table.add_row(each.engine, each.precision, each.device, stack_lines(status), write_line(detail))
    return table


def _draw_packages(checkup: Checkup) -> Table:
    table = _open_table()
    table.add_column(overflow="fold")
    for extra, packages in {"(core)": checkup.core, **checkup.extras}.items():
        if packages:
            table.add_row(extra, _list_packages(packages))
    lacking = [extra for extra, found in checkup.extras.items() if any(each.version is None for each in found)]
    if lacking:
        text = f'pip install "vggkit[{lacking[0]}]"'
        if len(lacking) > 1:
            text = f'pip install "vggkit[all]", or in place of all some of {", ".join(lacking)}'
        table.add_row("to add", write_line(text))
    if not checkup.core:
        table.add_row("", write_line("unknown: vggkit is not installed as a package, but found on the path"))
    return table


def _list_packages(packages: Sequence[PackageState]) -> Text:
    parts: list[tuple[str, str]] = []
    for package in packages:
        parts.append((", " if parts else "", ""))
        if package.version is None:
            parts.append((f"{package.name} missing", "dim"))
        else:
            fails = package.problem is not None
            parts.append(
                (f"{package.name} {package.version}{' FAILS' if fails else ''}", "bold red" if fails else "")
            )
    return write_line(*parts)


def _draw_verdict(checkup: Checkup) -> Text:
    if not checkup.problems:
        return write_line(("everything that is installed works", "green"))
    return stack_lines(*(write_line((f"✗ {problem}", "bold red"), overflow="fold") for problem in checkup.problems))
