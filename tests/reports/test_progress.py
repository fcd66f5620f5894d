import io
import logging
import sys
import types

import pytest
from rich.console import Console

from vggkit.reports import progress
from vggkit.reports.progress import ProgressLine


def test_a_file_hears_of_the_pace_since_the_work_began(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    line = ProgressLine(rate="images/s")
    line.console.file = sys.stderr
    line.show("answering", 500, 1000)  # what was done before is no pace of ours
    now[0] += 20
    line.show("answering", 600, 1000)
    now[0] += 5
    line.show("answering", 650, 1000)  # too soon to be said
    now[0] += 15
    line.show("answering", 700, None)
    now[0] += 20
    line.show("writing", 0, 1000)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "answering: 600 of 1000, 5 images/s, 80 s left",
        "answering: 700, 5 images/s",
        "writing: 0 of 1000",
    ]


def test_without_a_rate_there_is_none(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    line = ProgressLine()
    line.console.file = sys.stderr
    line.show("train", 0, 10)
    now[0] += 20
    line.show("train", 3, 10)
    assert capsys.readouterr().err == "train: 3 of 10\n"


def test_a_terminal_shows_the_rate(monkeypatch):
    import io

    line = ProgressLine(rate="images/s")
    out = io.StringIO()
    task = line._progress.tasks[0]
    line._progress.update(task.id, total=100, visible=True)
    now = [0.0]
    task._get_time = lambda: now[0]
    line._progress.get_time = lambda: now[0]
    line._progress.start_task(task.id)
    for _ in range(4):
        now[0] += 1
        line._progress.advance(task.id, 10)
    Console(file=out, width=120).print(line._progress.get_renderable())
    assert "10 images/s" in out.getvalue()


def test_a_terminal_forgets_the_count_of_the_task_before():
    line, out = ProgressLine(), io.StringIO()
    for what, done, total, shown in (("val", 8, 8, "8/8"), ("report", 0, None, "report"), ("train", 2, 16, "2/16")):
        line.show(what, done, total)
        Console(file=out, width=120).print(line._progress.get_renderable())
        last = out.getvalue().splitlines()[-1]
        assert what in last
        assert shown in last


class Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append((record.levelno, record.getMessage()))


@pytest.fixture
def logger():
    found = logging.getLogger("vggkit")
    handlers, level, propagate = list(found.handlers), found.level, found.propagate
    yield found
    found.handlers[:], found.propagate = handlers, propagate
    found.setLevel(level)


@pytest.mark.parametrize("quiet", [False, True])
def test_a_logger_carries_what_is_said_and_quiet_hides_progress_alone(logger, capsys, monkeypatch, quiet):
    listener = Listener()
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1)
    line = ProgressLine(quiet=quiet)
    with line:
        line.log("training begins \x1b[2J")
        line.show("train", 1, 2)
        line.warn("a class is missing")
    assert listener.heard == [
        (logging.INFO, r"training begins \x1b[2J"),
        (logging.WARNING, "a class is missing"),
    ]
    said = capsys.readouterr().err.splitlines()
    usual = [r"training begins \x1b[2J", "train: 1 of 2"]
    assert said == [*([] if quiet else usual), "a class is missing"]


def test_nothing_is_said_twice(logger, capsys):
    """Neither by Python's handler of last resort nor by one that the user set up for the same terminal."""
    ProgressLine().warn("once")
    assert capsys.readouterr().err == "once\n"
    logger.addHandler(logging.StreamHandler(sys.stderr))
    ProgressLine().log("said by nobody's handler, whose level is WARNING")
    ProgressLine().warn("twice?")
    logger.setLevel(logging.INFO)
    ProgressLine().log("and this?")
    assert capsys.readouterr().err.splitlines() == [
        "said by nobody's handler, whose level is WARNING",
        "twice?",
        "and this?",
    ]
    logger.handlers[-1] = logging.StreamHandler(io.StringIO())  # somewhere else
    ProgressLine().warn("here and there")
    assert capsys.readouterr().err == "here and there\n"


def test_a_notebook_has_one_line_that_changes(monkeypatch, capsys):
    shown: list[str] = []

    class Display:
        def update(self, data: dict[str, str], *, raw: bool) -> None:
            assert raw
            shown[-1] = data["text/plain"]

    def display(data: dict[str, str], *, raw: bool, display_id: bool) -> Display:
        assert raw
        assert display_id
        shown.append(data["text/plain"])
        return Display()

    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with ProgressLine(rate="images/s") as line:
        seen = []
        for done in range(1, 11):
            now[0] += 0.2
            line.show("train", done, 10)
            seen += shown
        assert len(shown) == 1
        assert shown == ["train: 10 of 10, 5 images/s, 0 s left"]
        assert len(set(seen)) < 8  # not more than four times a second
        line.show("validate", 1, 1)
        assert shown == ["validate: 1 of 1"]
    assert shown == [""]
    assert capsys.readouterr() == ("", "")
    del shell.kernel  # IPython in a terminal
    assert progress.find_notebook() is None
