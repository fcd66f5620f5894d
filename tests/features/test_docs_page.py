"""The page on perceptual losses: its code runs, its table says what the presets are, its commands exist."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vggkit as vk
from vggkit.cli import main as cli
from vggkit.features.loss_config import PRESETS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "perceptual-losses.md").read_text(encoding="utf-8")
WIDTHS = (64, 128, 256, 512, 512)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two folders of an image each, and the weights that the page names."""
    torch.manual_seed(0)
    torch.save(vk.VGG("vgg16", until="relu5_3", head="pool", num_classes=1).state_dict(), tmp_path / "trunk.pth")
    torch.save(
        {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate(WIDTHS)}, tmp_path / "vgg.pth"
    )
    pixels = np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8)
    for place in ("originals/1.png", "compressed/1.jpg", "a.png", "b.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / place)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find_blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, flags=re.M | re.S)


def test_the_examples_run(folder):
    names = {}
    for block in find_blocks("python"):
        exec(
            block.replace('"vgg16", calib', '"trunk.pth", calib').replace('trunk="vgg16"', 'trunk="trunk.pth"'),
            names,
        )
    assert names["images"].grad.abs().sum() > 0


def test_the_commands_run(folder, capsys):
    for line in "".join(find_blocks("bash")).splitlines():
        with pytest.raises(SystemExit) as ended:
            cli.main([*shlex.split(line)[1:], "--trunk", "trunk.pth"])
        assert ended.value.code == 0
    assert (folder / "distances.csv").is_file()


def test_the_table_has_every_preset():
    rows = {cells[1].strip(" `"): cells for line in PAGE.splitlines() if len(cells := line.split("|")) == 8}
    for name, preset in PRESETS.items():
        _, _, layers, _, trunk, limits, source, _ = rows[name]
        assert trunk.strip().lower() == preset.model
        low, high = preset.input_range
        assert limits.strip() == f"[{low:g}, {high:g}]"
        assert preset.source.split(" ")[0].rstrip(",") in source or source.strip() == "the same"
        for layer in preset.layers:
            assert layer[-3:] in layers, (name, layer)
            assert layer[:-3] in layers, (name, layer)
