"""The code blocks of the README and of the guides run, in a folder with a few images."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import fill_folder
from page_blocks import join_lines

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = ("training", "evaluation", "images", "inference", "weights")
PAGES = "\n".join((ROOT / "docs" / f"guide-{name}.md").read_text(encoding="utf-8") for name in GUIDES)
"""In an order in which each finds the runs that those before it have made."""


def find_blocks(text: str) -> list[tuple[str, str]]:
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.M | re.S)
    return [(kind, join_lines(block)) for kind, block in blocks]


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


PORT = find_port()
INSTEAD = {
    "--image-size 64": "--image-size 32",
    "--image-size 32 --epochs 15": "--image-size 32 --epochs 1",
    "vggkit train photos": "vggkit train photos --until relu2_1",
    "photos/7/IMG_4431.JPG": "photo.jpg",
    "vggkit serve runs/signs": f"vggkit serve runs/signs --port {PORT}",
    "127.0.0.1:8000/predict": f"127.0.0.1:{PORT}/predict",
    'vk.load("vgg16")': 'vk.load("runs/signs")',
}
"""What is written there, and what runs: those networks take minutes, and published weights a network."""
BENCH = """
import sys
from vggkit.cli.main import main
from vggkit.workflows import bench

listed = bench.list_runs
bench.list_runs = lambda *arguments, **options: [
    each for each in listed(*arguments, **options) if each.engine != "onnx" and each.precision != "bf16"
]
main([*sys.argv[1:], "--rounds", "1", "--seconds", "0.01", "--batch-sizes", "1"])
"""


@pytest.mark.parametrize("text", [README, PAGES], ids=["README", "guides"])
def test_every_block_is_of_a_kind_that_is_run_here(text):
    assert {kind for kind, _ in find_blocks(text)} == {"bash", "python", "text"}
    assert text.count("```") == 2 * len(find_blocks(text))


def test_the_readme_fits_on_a_page_or_two():
    assert len(README.splitlines()) <= 130


@pytest.mark.parametrize(
    ("page", "least"),
    [
        pytest.param(README, 7, id="README"),
        pytest.param(PAGES, 15, id="guides", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_the_blocks_run_in_order(page, least, tmp_path, processes):
    """Lines of `vggkit` run, on smaller networks; `make` targets must exist (CI runs them); installing is CI's."""
    fill_folder(tmp_path / "photos" / "train", ("ants", "bees"), 6)
    fill_folder(tmp_path / "photos" / "val", ("ants", "bees"), 3, start=50)
    shutil.copy(tmp_path / "photos" / "val" / "ants" / "050.png", tmp_path / "photo.jpg")
    everything = join_lines(README + PAGES)
    assert all(wanted in everything for wanted in INSTEAD)
    blocks = find_blocks(page)
    ran = 0
    waiting, serving = [], []
    for number, (kind, text) in enumerate(blocks):
        for wanted, smaller in INSTEAD.items():
            text = text.replace(wanted, smaller)
        if kind == "python" and 'load("runs/signs")' in text:
            waiting.append(text)  # trained by a later block
        elif kind == "python":
            running = processes.start_python(text, cwd=tmp_path, strict=True)
            assert running.wait() == 0, text + running.err
            if blocks[number + 1 : number + 2] and blocks[number + 1][0] == "text" and "torch.Size" in running.out:
                assert running.out == blocks[number + 1][1]
            ran += 1
        for line in text.splitlines() if kind == "bash" else ():
            command = shlex.split(line, comments=True)
            if not command or command[:2] in (["git", "clone"], ["pip", "install"]) or command[0] == "cd":
                continue
            if command[0] == "make":
                subprocess.run(["make", "-n", command[1]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            elif command[:2] == ["vggkit", "serve"]:
                serving.append(processes.start(*command[1:], cwd=tmp_path))
            elif command[0] == "curl":
                retries = ["--silent", "--fail", "--retry", "60", "--retry-delay", "1", "--retry-connrefused"]
                found = subprocess.run([*command, *retries], cwd=tmp_path, capture_output=True, check=True)
                assert json.loads(found.stdout)["predictions"][0]["heatmap"]["label"] in ("ants", "bees")
            else:
                assert command[0] == "vggkit", f"{line!r} is to be run, and this test does not know how"
                if command[1] == "bench":
                    running = processes.start_python(BENCH, *command[1:], cwd=tmp_path)
                else:
                    running = processes.start(*command[1:], cwd=tmp_path)
                assert running.wait() == 0, line + running.err
            ran += 1
    for text in waiting:
        running = processes.start_python(text, cwd=tmp_path, strict=True)
        assert running.wait() == 0, text + running.err
        ran += 1
    for running in serving:
        running.send_signal(signal.SIGTERM)
        assert running.wait() == 0
    assert ran >= least


def test_the_first_command_runs_in_a_shell(tmp_path):
    line = "vggkit code vgg16_bn --style explicit"
    assert line in README.replace("\n", " ")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    found = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "nn.Conv2d" in found.stdout


@pytest.mark.parametrize(
    "document", [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), f"{document.name}: {target}"
