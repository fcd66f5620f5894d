"""What the command shows in a real terminal, and that results in a file or a pipe stay there."""

import contextlib
import io
import json
import os
import re
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import draw_class, fill_folder
from vggkit.classifier import Classifier
from vggkit.cli import main as cli
from vggkit.escaping import is_unseen
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.vgg import VGG
from vggkit.training.recipe import Recipe
from vggkit.workflows import demo as demonstration

pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals")

LABELS = ("across", "down", "red")


class PseudoTerminal:
    """A terminal of the system's, and what stands on its screen."""

    def __init__(self) -> None:
        self._own, self.given = pty.openpty()
        self.heard = bytearray()
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # how Linux says that nobody writes any more
            while heard := os.read(self._own, 1 << 16):
                self.heard += heard

    def open(self) -> io.TextIOWrapper:
        return open(os.dup(self.given), "w", encoding="utf-8", errors="backslashreplace", buffering=1)

    def close(self) -> str:
        """All that was written to it."""
        os.close(self.given)
        self._listener.join(10)
        os.close(self._own)
        return self.heard.decode()


def draw_screen(written: str) -> list[str]:
    """The lines that stand in the end; fails for anything that a terminal would obey and the bar does not need."""
    lines, row, column = [[]], 0, 0
    for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.", written, re.DOTALL):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            row, lines = row + 1, lines if row + 1 < len(lines) else [*lines, []]
        elif piece.startswith("\x1b["):
            command, number = piece[-1], piece[2:-1]
            if command == "A":
                row = max(0, row - int(number or 1))
            elif command == "K":
                assert number == "2"
                lines[row] = []
            else:
                assert command == "m" or piece in ("\x1b[?25l", "\x1b[?25h"), f"{piece!r} is obeyed"
        else:
            assert piece.isprintable(), f"{piece!r} is obeyed"
            lines[row] += [" "] * (column + 1 - len(lines[row]))
            lines[row][column] = piece
            column += 1
    return ["".join(line).rstrip() for line in lines]


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Runs the command with standard error in a terminal; gives its exit code, its output, and the terminal's."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments, stdout: str) -> tuple[int, str, str]:
        terminal = PseudoTerminal()
        ends = os.pipe() if stdout == "pipe" else None
        place = ends[1] if ends is not None else tmp_path / "out.txt"
        opened = terminal.open() if stdout == "terminal" else open(place, "w", encoding="utf-8")  # noqa: SIM115
        with opened as out, terminal.open() as errors, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", out)
            patched.setattr(sys, "stderr", errors)
            with pytest.raises(SystemExit) as ended:
                cli.main([str(argument) for argument in arguments])
        written = terminal.close()
        if ends is not None:
            with open(ends[0], encoding="utf-8") as pipe:
                return ended.value.code, pipe.read(), written
        found = (tmp_path / "out.txt").read_text(encoding="utf-8") if stdout == "file" else ""
        return ended.value.code, found, written

    return run


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory) -> Path:
    """A folder with a model, a run, photos, vectors of them, and weights."""
    folder = tmp_path_factory.mktemp("place")
    fill_folder(folder / "photos" / "train", LABELS, 4)
    fill_folder(folder / "photos" / "val", LABELS, 2, start=100)
    classifier = Classifier.create(
        tiny, labels=LABELS, preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32)
    )
    classifier.save(folder / "m.safetensors")
    for arguments in (
        ("embed", folder / "m.safetensors", folder / "photos", "--out", folder / "v.npy", "--quiet"),
        ("train", folder / "photos", "--out", folder / "run", *TRAINING, "--quiet"),
    ):
        with pytest.raises(SystemExit) as ended, contextlib.redirect_stdout(io.StringIO()):
            cli.main([str(argument) for argument in arguments])
        assert ended.value.code in (0, 1)  # 1: an image cannot be read
    return folder


TRAINING = (
    *("--model", "vgg11_bn", "--until", "pool1", "--image-size", "32", "--epochs", "1", "--batch-size", "4"),
    *("--device", "cpu"),
)
VERBS = {
    "models": ("models", "--json"),
    "summary": ("summary", "vgg11", "--json"),
    "code": ("code", "vgg11"),
    "identify": ("identify", "m.safetensors", "--json"),
    "convert": ("convert", "m.safetensors", "OUT.pth", "--to", "torchvision", "--json"),
    "check": ("check", "photos", "--json"),
    "check as a table": ("check", "photos", "--html", "OUT.html", "--fix", "OUT.csv"),
    "train": ("train", "photos", "--out", "OUT", *TRAINING, "--json"),
    "train as text": ("train", "photos", "--out", "OUT", *TRAINING),
    "evaluate": ("evaluate", "m.safetensors", "photos", "--results", "OUT.csv", "--json"),
    "evaluate as a table": ("evaluate", "m.safetensors", "photos"),
    "compare": ("compare", "run", "--json"),
    "predict": ("predict", "m.safetensors", "photos", "--json"),
    "predict as text": ("predict", "m.safetensors", "photos"),
    "predict to a file": ("predict", "m.safetensors", "photos", "--out", "OUT.csv", "--json"),
    "embed": ("embed", "m.safetensors", "photos", "--out", "OUT.npy", "--json"),
    "search": ("search", "v.npy", "photos/val/red", "--json"),
    "bench": ("bench", "m.safetensors", "--rounds", "1", "--seconds", "0.01", "--batch-sizes", "1", "--json"),
    "demo": ("demo", "--out", "OUT", "--device", "cpu"),
}
SLOW = {"bench", "demo"}
"""A process for each engine; 1,797 images."""
WITHOUT_BAR = {"models", "summary", "code", "identify", "convert", "compare"}
SAID = {
    "code": "nn.Sequential",
    "check as a table": "val",
    "train as text": "report:",
    "evaluate as a table": "top-1",
    "predict as text": "101.png: ",
    "demo": "results: ",
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("stdout", ["file", pytest.param("pipe", marks=pytest.mark.slow), "terminal"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in VERBS])
def test_results_go_where_they_are_sent(name, stdout, call, place, tiny, tmp_path, monkeypatch):
    if name == "demo":  # the real one takes minutes
        small = replace(tiny, num_classes=10)
        monkeypatch.setattr(
            demonstration,
            "build_classifier",
            lambda digits, *_, **__: Classifier.create(
                small, labels=digits.labels, preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32)
            ),
        )
        monkeypatch.setattr(demonstration, "Recipe", lambda **_: Recipe(epochs=1, learning_rate=0.01))
    monkeypatch.chdir(place)
    arguments = [each.replace("OUT", str(tmp_path / "made")) for each in VERBS[name]]
    code, out, written = call(*arguments, stdout=stdout)
    assert code == 0, written
    screen = draw_screen(written)
    assert not any("━" in line for line in screen)
    if name not in WITHOUT_BAR:
        assert "\x1b[?25l" in written  # a bar was there
    if stdout == "terminal":
        out = "\n".join(screen)
    else:
        assert "\x1b" not in out
        assert SAID.get(name, '": ') not in "\n".join(screen)
    if name in SAID:
        assert SAID[name] in out
    elif stdout != "terminal":
        for value in out.splitlines() if name in ("predict", "search") else [out]:
            assert json.loads(value)
    if name == "predict":
        found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        assert len(found) == 18
        assert all(len(each["labels"]) == 3 for each in found)
    elif name == "predict as text":
        assert sum(": " in line and line.endswith(" %") for line in out.splitlines()) == 18


def test_the_line_that_loads_weights_is_one_line(call, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    torch.save(VGG(tiny).state_dict(), tmp_path / "w.pth")
    code, _, written = call("identify", tmp_path / "w.pth", stdout="terminal")
    assert code == 0
    lines = written.replace("\r", "").split("\n")
    [load] = [line for line in lines if line.startswith("  load ")]
    assert load.endswith(")")
    compile(load.split(maxsplit=1)[1], "load", "exec")
    [start] = [number for number, line in enumerate(lines) if line.startswith("  input ")]
    assert lines[start + 1].startswith(" " * 17)


def test_long_lines_break_between_words_and_commands_stay_whole(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, _, written = call("train", "no-such-folder/" + 9 * "deep-", "--model", "vgg11", stdout="file")
    assert code == 2
    screen = [line for line in draw_screen(written) if line]
    assert len(screen) > 1
    assert all(len(line) <= 80 for line in screen)
    words = " ".join(screen).split()
    assert any("no-such-folder/" + 9 * "deep-" in word for word in words)


HOSTILE = "e\x1b[2J\x9b1m\u202e\r\n[bold]:smile:z"
SHOWN = r"e\x1b[2J\x9b1m\u202e\r\n[bold]:smile:z"


@pytest.fixture(scope="module")
def hostile(tiny, tmp_path_factory) -> Path:
    """A class, files, a run and metadata whose names a terminal would obey."""
    folder = tmp_path_factory.mktemp("hostile")
    for part, count in (("train", 4), ("val", 2)):
        fill_folder(folder / "photos" / part, ("across", "red"), count, start=100 * (part == "val"))
        (folder / "photos" / part / "red").rename(folder / "photos" / part / HOSTILE)
        Image.fromarray(draw_class("red", 7)).save(folder / "photos" / part / "across" / f"{HOSTILE}.png")
    (folder / "photos" / "val" / "across" / f"{HOSTILE} broken.png").write_bytes(b"\x89PNG")
    classifier = Classifier.create(
        replace(tiny, num_classes=2),
        labels=("across", HOSTILE),
        preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32),
    )
    classifier.save(folder / f"{HOSTILE}.safetensors", provenance={"data": {"name": HOSTILE}, "licence": HOSTILE})
    tensors = {f"features.0.{HOSTILE}": torch.zeros(2)} | classifier.network.state_dict()
    torch.save(tensors, folder / "m.pth")
    for arguments in (
        ("embed", folder / f"{HOSTILE}.safetensors", folder / "photos", "--out", folder / "v.npy", "--quiet"),
        ("train", folder / "photos", "--out", folder / HOSTILE, *TRAINING, "--despite-findings", "--quiet"),
    ):
        with pytest.raises(SystemExit) as ended, contextlib.redirect_stdout(io.StringIO()):
            cli.main([str(argument) for argument in arguments])
        assert ended.value.code in (0, 1)  # one image is broken
    return folder


@pytest.mark.sweep(5)
@pytest.mark.parametrize("stdout", ["file", "terminal"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "photos"),
        ("check", "photos", "--json"),
        ("check", HOSTILE),
        ("train", "photos", "--out", "OUT", *TRAINING, "--despite-findings"),
        ("train", "photos", "--out", HOSTILE),
        ("train", HOSTILE),
        ("compare", HOSTILE),
        ("compare", HOSTILE, "--json"),
        ("evaluate", f"{HOSTILE}.safetensors", "photos", "--results", f"OUT{HOSTILE}.csv"),
        ("evaluate", f"{HOSTILE}.safetensors", HOSTILE, "photos"),
        ("predict", f"{HOSTILE}.safetensors", "photos"),
        ("predict", f"{HOSTILE}.safetensors", "photos", "--json"),
        ("predict", f"{HOSTILE}.safetensors", "photos", "--out", f"OUT{HOSTILE}.csv"),
        ("predict", HOSTILE, HOSTILE),
        ("search", "v.npy", f"photos/val/{HOSTILE}"),
        ("search", "v.npy", f"photos/val/{HOSTILE}", "--json"),
        ("identify", f"{HOSTILE}.safetensors", "m.pth"),
        ("identify", f"photos/val/across/{HOSTILE}.png"),
        ("identify", f"{HOSTILE}.safetensors", "--json"),
        ("convert", f"{HOSTILE}.safetensors", f"OUT{HOSTILE}.pth", "--to", "torchvision"),
        ("embed", f"{HOSTILE}.safetensors", "photos", "--out", f"OUT{HOSTILE}.txt"),
    ],
)
def test_names_are_shown_and_never_obeyed(arguments, stdout, call, hostile, tmp_path, monkeypatch):
    monkeypatch.chdir(hostile)
    given = [each.replace("OUT", str(tmp_path / "made")) for each in arguments]
    _, out, written = call(*given, stdout=stdout)
    screen = draw_screen(written)  # fails for what is obeyed
    assert not any(is_unseen(each) for each in out.replace("\n", ""))
    if "--json" not in arguments:
        assert SHOWN[:12] in out + "".join(screen)
        assert "☺" not in out + "".join(screen)
        return
    said = out if stdout == "file" else "\n".join(line for line in screen if not line.startswith("computed"))
    values = said.splitlines() if arguments[0] in ("predict", "search", "identify") else [said]
    assert any(HOSTILE in text for value in values for text in list_texts(json.loads(value)))


def list_texts(value: object) -> list[str]:
    """Every string of a JSON value."""
    if isinstance(value, dict):
        return [*value, *(text for each in value.values() for text in list_texts(each))]
    if isinstance(value, list):
        return [text for each in value for text in list_texts(each)]
    return [value] if isinstance(value, str) else []
