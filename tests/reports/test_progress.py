import sys

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

    from rich.console import Console

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
