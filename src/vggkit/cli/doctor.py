"""The verb doctor."""

from vggkit.cli.printing import print_json
from vggkit.reports.progress import ProgressLine
from vggkit.reports.terminal import open_terminal


def doctor(*, json: bool = False, quiet: bool = False) -> int:
    """Say what is installed on this machine and what of it works, in one screen to paste into a bug report.

    Every installed package is imported, and every engine computes a small network in each precision, in processes
    of their own: about half a minute. Nothing is downloaded. Exits with 1 where something that is installed does
    not work. The home folder is written as ~, and of hosts and tokens only that they are set.

    Args:
        json: Print a JSON object in place of the text.
        quiet: Show no progress.
    """
    from vggkit.reports.checkup_table import draw_checkup
    from vggkit.workflows.doctor import doctor as examine

    with ProgressLine(quiet=quiet) as line:
        found = examine(on_progress=line.show)
    if json:
        print_json(found.to_dict())
    else:
        open_terminal().print(draw_checkup(found))
    return 1 if found.problems else 0
