"""Runs the code blocks of a page of the documentation, in order, in the current folder.

- `python`: executed in this process; all blocks of a page share one namespace.
- `bash`: each line is a command. `vggkit` runs in this process; `python -m` and `torchrun` in one of their own;
  `vggkit serve` in the background, until the page ends; `curl` waits until its service is there. Lines that
  install something (`git`, `pip`, `uv`, `docker`, `make`) do not run: the extras, files and targets that they name
  must exist.
- `text`: what the block directly above printed; elsewhere it is shown only. A line `…` matches any lines, and `…`
  within a line any characters. With `title="measured"` decimal numbers may differ as measurements of another
  machine do: by 0.15, or by 15 %.
- `json`: has the names and kinds of values of the JSON that the block directly above printed.
"""

import contextlib
import io
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vggkit.cli import main as cli

DOCS = Path(__file__).resolve().parents[1] / "docs"
ROOT = DOCS.parent
INSTALLING = ("docker", "git", "make", "pip", "uv")
BLOCK = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```", flags=re.M | re.S)


def read_blocks(page: str) -> list[tuple[str, str]]:
    """Kind and text of each block of a page under docs/, without its indent; `shown` is one that nothing prints."""
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks, end = [], 0
    for found in BLOCK.finditer(text):
        indent, kind, title, body = found.groups()
        printed = blocks and not text[end : found.start()].strip()
        kind = "shown" if kind == "text" and not printed else kind
        body = join_lines(body) if kind == "bash" else body
        kind = "measured" if kind == "text" and "measured" in title else kind
        blocks.append((kind, re.sub(rf"^{indent}", "", body, flags=re.M)))
        end = found.end()
    assert 2 * len(blocks) == len(re.findall(r"^ *```", text, flags=re.M)), f"{page}: a block without a language"
    return blocks


def matches(expected: str, printed: str) -> bool:
    """Whether a `text` block says what was printed."""
    parts = [re.escape(part.strip("\n")) for part in re.split(r"^…\n?", expected, flags=re.M)]
    pattern = r"(?:.*\n)*?".join(f"{part}\n" if part else "" for part in parts)
    return re.fullmatch(pattern.replace("…", ".*"), printed) is not None


DECIMAL = re.compile(r"\d+\.\d+")


def is_near(expected: str, printed: str) -> bool:
    """Whether a block of measurements has the words that were printed, and about the same numbers."""
    pairs = zip(DECIMAL.findall(expected), DECIMAL.findall(printed), strict=False)
    near = all(abs(float(a) - float(b)) <= 0.15 * max(1, float(a)) for a, b in pairs)
    return near and matches(DECIMAL.sub("0.0", expected), DECIMAL.sub("0.0", printed))


class PageRun:
    """Runs blocks one after another.

    Args:
        page: Name of the page, for errors.
        instead: What is written there, and what runs: a smaller network, weights that are here. Each must occur.
    """

    def __init__(self, page: str, instead: Mapping[str, str]) -> None:
        self.page, self.instead = page, instead
        self.names: dict[str, Any] = {"__name__": "page"}
        self.printed = ""
        self.serving: list[tuple[subprocess.Popen[bytes], int]] = []

    def run(self) -> None:
        """Run all blocks; raises AssertionError where one fails or prints something else."""
        blocks = read_blocks(self.page)
        everything = "\n".join(text for _, text in blocks)
        missing = [written for written in self.instead if written not in everything]
        assert not missing, f"{self.page} does not contain {missing}"
        try:
            for number, (kind, text) in enumerate(blocks, start=1):
                self._run_block(kind, text, f"{self.page}, block {number}")
            for process, port in self.serving:
                wait_until_ready(process, port)
        finally:
            for process, _ in self.serving:
                process.send_signal(signal.SIGTERM)
            ended = [process.wait(60) for process, _ in self.serving]
        assert set(ended) <= {0}, f"{self.page}: services ended with {ended}"

    def _run_block(self, kind: str, text: str, place: str) -> None:
        if kind in ("text", "measured"):
            compare = matches if kind == "text" else is_near
            assert compare(text, self.printed), f"{place} should be:\n{self.printed}"
            return
        if kind == "shown":
            return
        if kind == "json":
            assert outline(json.loads(text)) == outline(json.loads(self.printed)), place
            return
        assert kind in ("python", "bash"), f"{place}: {kind} is not known here"
        for written, smaller in self.instead.items():
            text = text.replace(written, smaller)
        if kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(text, place, "exec"), self.names)
            self.printed = out.getvalue()
        else:
            self.printed = "".join(self._run_line(line, place) for line in text.splitlines())

    def _run_line(self, line: str, place: str) -> str:
        command, *arguments = shlex.split(line.rstrip(" &"), comments=True) or ("",)
        if not command or arguments[:2] == ["-m", "http.server"]:  # it does not end
            return ""
        if command in INSTALLING:
            check_installing(command, arguments, place)
            return ""
        if command == "export":
            name, _, value = arguments[0].partition("=")
            assert os.environ[name] == value, f"{place}: the test sets {name}"
            return ""
        if arguments[:2] == ["-m", "venv"]:
            line += " --without-pip"
        if command == "vggkit" and arguments[0] == "serve":
            port = int(arguments[arguments.index("--port") + 1]) if "--port" in arguments else 8000
            self.serving.append((subprocess.Popen([sys.executable, "-m", "vggkit", *arguments]), port))
            return ""
        if command == "vggkit":
            return run_command(arguments, place)
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        if command == "curl":
            line = f"{line.partition('  #')[0]} --silent --fail --retry 60 --retry-delay 1 --retry-all-errors"
        done = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True, check=False)
        right = (0, 1) if "lessons.exercises" in line else (0,)  # 1: not solved yet
        assert done.returncode in right, f"{place}: {line}\n{done.stdout}{done.stderr}"
        return done.stdout


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    """Until the service has loaded its models; a signal before that would end it at once."""
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
            return
        time.sleep(0.1)
    raise AssertionError(f"the service at port {port} does not become ready")


def join_lines(text: str) -> str:
    """A block with a command on each line; a backslash continues a line."""
    return re.sub(r" *\\\n *", " ", text)


def check_installing(command: str, arguments: list[str], place: str) -> None:
    """Whether the extras, files and targets that a command names exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for argument in arguments:
        for names in re.findall(r"^(?:\.|vggkit)\[(.*)\]$", argument):
            assert set(names.split(",")) <= set(project["optional-dependencies"]), f"{place}: {names}"
    for option, name in itertools.pairwise(arguments):
        assert option not in ("-r", "-f") or (ROOT / name).is_file(), f"{place}: {name}"
    if command == "make":
        subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def outline(value: Any) -> Any:
    """A JSON value with the kinds of its values in their place; of a list only the first."""
    if isinstance(value, dict):
        return {name: outline(each) for name, each in value.items()}
    if isinstance(value, list):
        return [outline(each) for each in value[:1]]
    return "number" if type(value) in (int, float) else type(value).__name__


def run_command(arguments: list[str], place: str) -> str:
    """What `vggkit` prints with these arguments."""
    out, problems = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(problems), pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code in (0, None), f"{place}: vggkit {' '.join(arguments)}\n{problems.getvalue()}"
    return out.getvalue()
