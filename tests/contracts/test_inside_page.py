"""The code blocks of docs/inside.md run in order, with a network trained there in place of published weights."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
import torch

import vggkit as vk
from page_blocks import join_lines
from vggkit.cli import main as cli

PAGE = join_lines((Path(__file__).resolve().parents[2] / "docs" / "inside.md").read_text(encoding="utf-8"))
INSTEAD = {
    "--until relu3_2 --epochs 3": "--until pool2 --epochs 1 --image-size 32",
    "filters vgg19": "filters runs/digits",
    "--channels 0-5": "--channels 0-1 --steps 2",
    "--trunk vgg19 --size 512": "--trunk runs/digits --size 64 --steps 3",
    'trunk="vgg19", size=512': 'trunk="runs/digits", size=64, steps=3',
    "--model vgg19 --weights imagenet --until relu3_4": (
        "--model vgg11_bn --weights runs/digits/best.safetensors --until pool2 --image-size 32"
    ),
    "--metric content --trunk vgg19": "--metric content --trunk random.pth",
    "relu3_3": "relu2_1",
    "relu2_2": "relu2_1",
    "relu1_2": "relu1_1",
}
"""What is written there, and what runs: the published weights need a network, and minutes."""


def write_random_weights(path: Path) -> None:
    """In place of the published weights of VGG16's first three blocks."""
    torch.save(vk.VGG("vgg16", until="relu3_3", head="pool", num_classes=1).state_dict(), path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_blocks_run_in_order(tmp_path, monkeypatch):
    """In this process, which has imported torch already."""
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    write_random_weights(tmp_path / "random.pth")
    assert all(written in PAGE for written in INSTEAD)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, flags=re.M | re.S)
    assert {kind for kind, _ in blocks} == {"bash", "python", "text"}
    printed, names = "", {}
    for kind, text in blocks:
        if kind == "text":
            assert printed == text
            continue
        for written, smaller in INSTEAD.items():
            text = text.replace(written, smaller)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            if kind == "python":
                exec(compile(text, "docs/inside.md", "exec"), names)
            for line in text.splitlines() if kind == "bash" else ():
                command, *arguments = shlex.split(line, comments=True)
                assert command == "vggkit"
                with pytest.raises(SystemExit) as ended:
                    cli.main([*arguments, *([] if arguments[0] == "summary" else ["--quiet"])])
                assert ended.value.code == 0, line
        printed = out.getvalue()
    made = ("filters.png", "patches.png", "made-3.png", "china-flower.png", "china-strong.png")
    for name in (*made, "why-flower/joined.png.jpg", "why-china/joined.png.npy", "why-tiles/check.json"):
        assert (tmp_path / name).stat().st_size > 0
