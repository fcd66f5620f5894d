"""The lesson `docs/three-ways.md`: its code runs as it stands, and what it prints is what it says."""

import re
from pathlib import Path

import torch

LESSON = Path(__file__).parents[1] / "docs" / "three-ways.md"


def test_the_lesson_runs_from_top_to_bottom(capsys):
    text = LESSON.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    namespace = {"__name__": "lesson"}
    torch.manual_seed(0)
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"three-ways.md, block {number}", "exec"), namespace)
    assert capsys.readouterr().out.startswith(
        "torch.Size([1, 512, 7, 7])\n"
        "torch.Size([1, 512, 7, 7])\n"
        "torch.Size([1, 128, 56, 56])\n"
        "blocks True\n"
        "explicit True\n"
        "132,863,336 parameters, 93% in the head\n"
        "VGG11\n"
        "VGG16\n"
        '"""VGG16BN in PyTorch'
    )


def test_the_files_it_points_to_are_there():
    targets = re.findall(r"\]\((\.\.?/[^)]+)\)", LESSON.read_text(encoding="utf-8"))
    assert len(targets) == 3
    for target in targets:
        assert (LESSON.parent / target).is_file(), target


def test_the_cores_it_shows_are_those_of_the_files():
    text = LESSON.read_text(encoding="utf-8")
    folder = LESSON.parents[1] / "src/vggkit/models/lessons"
    for style in ("sequential", "blocks"):
        shown = text.split(f"lessons/{style}.py")[1].split("print(")[0]
        written = (folder / f"{style}.py").read_text(encoding="utf-8").split("self.classifier")[0]
        assert _layers(shown) == _layers(written)
        assert len(_layers(shown)) > 10


def _layers(source):
    return re.findall(r"(?:nn\.(?:Conv2d|ReLU|MaxPool2d)|conv_block)\(.*?\)", source)
