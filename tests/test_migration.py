"""Every block of docs/migration.md runs, with random weights where real ones would be downloaded."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "migration.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^## (\w+)\n\n```python\n(.*?)^```", PAGE, flags=re.M | re.S))

# What would be downloaded, and what stands in its place.
OFFLINE = {
    "torchvision": ("vgg16(weights=weights)", "vgg16(weights=None)"),
    "timm": ("pretrained=True", "pretrained=False"),
    "Keras": ('weights="imagenet"', "weights=None"),
    "vggkit": ('weights="imagenet"', "weights=None"),
}
# What the block leaves behind has two classes.
CHECK = {
    "torchvision": "assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2)",
    "timm": "assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 2)",
    "Keras": "assert model(keras.ops.zeros((1, 64, 64, 3))).shape == (1, 2)",
    "vggkit": "assert clf.labels == ('ants', 'bees') and model.classifier[6].out_features == 1000",
}


def test_every_block_is_known_and_of_about_ten_lines():
    assert set(BLOCKS) == set(OFFLINE)
    assert PAGE.count("```python") == len(BLOCKS)
    for name, text in BLOCKS.items():
        lines = [line for line in text.splitlines() if line and not line.startswith(("import", "from"))]
        assert len(lines) <= 10, name


@pytest.fixture
def random_weights_at_once(monkeypatch):
    """Values that cost nothing: 138 million normal draws take seconds, and none is looked at here."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "trunc_normal_"):
        monkeypatch.setattr(f"torch.nn.init.{name}", lambda tensor, *_, **__: tensor.detach().fill_(1e-3))


@pytest.mark.sweep(2)
@pytest.mark.filterwarnings("ignore")  # the peers' own
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "vggkit")) for name in OFFLINE]
)
def test_the_block_runs(name, tmp_path, monkeypatch, capsys, random_weights_at_once):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "bee.jpg")
    if name == "Keras":
        import keras
        from keras.src.applications import imagenet_utils
        from keras.src.initializers.random_initializers import VarianceScaling

        fill = lambda _, shape, dtype=None: keras.ops.full(shape, 1e-3, dtype)  # noqa: E731
        monkeypatch.setattr(VarianceScaling, "__call__", fill)
        names = {str(index): (f"n{index}", f"class {index}") for index in range(1000)}
        monkeypatch.setattr(imagenet_utils, "CLASS_INDEX", names)
    text, (online, offline) = BLOCKS[name], OFFLINE[name]
    assert online in text
    exec(compile(text.replace(online, offline) + CHECK[name], f"migration.md: {name}", "exec"), {})
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 5
    chances = [float(line.rsplit(maxsplit=1)[1]) for line in lines]
    assert chances == sorted(chances, reverse=True)
    assert all(re.search("[a-z]", line) for line in lines)
