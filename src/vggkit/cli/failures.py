"""Images that failed among others: the first three on standard error and a count, and the command's exit code."""

from types import TracebackType
from typing import Final, Self

from vggkit.reports.progress import ProgressLine

SHOWN: Final = 3
"""Failures that are shown one by one."""
SOME_FAILED: Final = 1
"""Exit code where some of the images failed and others did not."""
NOTHING_DONE: Final = 2
"""Exit code where nothing was done: every image failed, or the command was refused."""


class Failures:
    """Counts the images of a command and the failed ones, and reports failures, `--quiet` or not.

    Args:
        line: Where they are reported.
        all_are_in: The file that contains the reason of each one, for the message that counts the others.
        of: The items that are counted, as a plural.
    """

    def __init__(self, line: ProgressLine, *, all_are_in: str, of: str = "images") -> None:
        self._line, self._all_are_in, self._of = line, all_are_in, of
        self.failed = self.done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self.failed > SHOWN:
            others, count = self.failed - SHOWN, self.failed + self.done
            self._line.warn(
                f"vggkit: error: and {others:,} more; {self.failed:,} of {count:,} {self._of} failed. "
                f"{self._all_are_in}"
            )

    def count(self, problem: str | None) -> None:
        """One more image, with its problem, if it has one."""
        if problem is None:
            self.done += 1
            return
        self.failed += 1
        if self.failed <= SHOWN:
            self._line.warn(f"vggkit: error: {problem}")

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return choose_exit_code(done=self.done, failed=self.failed)


def choose_exit_code(*, done: int, failed: int) -> int:
    """The exit code of a command that worked on so many images, and failed at so many."""
    if not done:
        return NOTHING_DONE
    return SOME_FAILED if failed else 0
