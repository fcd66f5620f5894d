"""The exit codes that docs/shell.md lists, each in a case of its own."""

import re
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggkit.cli import main as cli
from vggkit.cli import models
from vggkit.errors import Stopped

PAGE = (Path(__file__).parents[2] / "docs" / "shell.md").read_text(encoding="utf-8")
LISTED = set(map(int, re.findall(r"^\| (\d+) \|", PAGE, flags=re.M)))


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "good.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return folder


def find_code(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(list(map(str, arguments)))
    return ended.value.code


def test_the_page_lists_those_of_this_test():
    assert {0, 1, 2, 130, 143} == LISTED


def test_0_and_1_and_2_by_how_many_images_failed(photos, capsys):
    assert find_code("predict", "digits", photos / "good.png") == 0
    assert find_code("predict", "digits", photos) == 1
    assert find_code("predict", "digits", photos / "broken.png") == 2
    assert "broken.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-verb",),
        ("summary", "vgg12"),
        ("summary", "vgg11", "--no-such-option"),
        ("predict", "no-such-file.safetensors", "photo.png"),
        ("--tyro-print-completion", "cmd"),
    ],
)
def test_2_where_nothing_was_done(arguments, capsys):
    assert find_code(*arguments) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("stop", "code"),
    [
        (KeyboardInterrupt(), 130),
        (Stopped(signal.SIGINT, "vggkit train --resume run"), 130),
        (Stopped(signal.SIGTERM, "vggkit train --resume run"), 143),
        (BrokenPipeError(), 0),
    ],
)
def test_signals_and_closed_pipes(stop, code, monkeypatch, capfd):
    def code_verb() -> None:
        """Stop."""
        raise stop

    monkeypatch.setattr(models, "code", code_verb)
    monkeypatch.setattr(cli.os, "dup2", lambda *_: None)  # standard output stays open for the other tests
    assert find_code("code") == code
    assert ("continue with: vggkit train --resume run" in capfd.readouterr().err) == isinstance(stop, Stopped)
