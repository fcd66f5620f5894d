"""Images of collections whose names are not letters of the alphabet."""

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from vggkit.evaluation.metrics import score
from vggkit.evaluation.predictions import Predictions
from vggkit.images.dataset import ImageSample
from vggkit.inference.predict import Prediction
from vggkit.reports.comparison import plot_comparison
from vggkit.reports.plots import write_name
from vggkit.reports.run_plots import plot_history, plot_predictions, write_plots
from vggkit.training.checkpoint import Epoch
from vggkit.training.recipe import Recipe
from vggkit.workflows.compare import compare
from vggkit.workflows.run_config import RunConfig

pytest.importorskip("matplotlib")
NAMES = (
    "$x_$",
    "$\\frac{$",
    "a\nb\x1b[1m\r",
    "W" * 300,
    "猫ü",
    "_y",
    "\udcff\u202e",
    "日本" * 80,
    "",
    " ",
    "--><script>",
)


def evaluate(labels):
    n = 6 * len(labels)
    logits = np.random.default_rng(0).normal(size=(n, len(labels))).astype(np.float32)
    predictions = Predictions.of(logits, np.arange(n) % len(labels), labels=labels)
    return score(predictions, data=labels[0], split="test", model="vgg11", protocol="single")


@pytest.mark.sweep(5)
@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
@pytest.mark.parametrize("labels", [NAMES, ("W" * 300, "猫" * 300)], ids=["all", "two long ones"])
def test_every_name_can_be_drawn(labels, ending, tmp_path):
    """Warnings are errors here: no glyph is missing, no formula is read, no axes vanish."""
    paths = write_plots(evaluate(labels), tmp_path, ending)
    assert all(path.stat().st_size > 1000 for path in paths)
    if ending == "png":
        for path in paths:
            with Image.open(path) as image:
                assert min(image.size) > 200


@pytest.mark.sweep(5)
@pytest.mark.parametrize("name", NAMES)
def test_titles_and_sheets_take_every_name(name, tmp_path):
    history = [Epoch(epoch=1, train_loss=1.0, val_loss=1.0, val_top1=0.5, learning_rate=0.1, seconds=1.0)]
    history.append(replace(history[0], epoch=2))
    plot_history(history, tmp_path / "h.png", best_epoch=2, title=f"vgg11 on {name}")
    image = ImageSample(name, name, pixels=np.zeros((8, 8, 3), np.uint8))
    said = Prediction(path=name, labels=("ant", name), probabilities=(0.6, 0.4))
    plot_predictions([image], [said], tmp_path / "a.svg")
    shown = write_name(name)
    assert len(shown) <= 40
    assert shown.isprintable()


def test_a_run_whose_name_begins_with_an_underscore_is_in_the_legend(tmp_path):
    header = "epoch,learning_rate,train_loss,val_loss,val_top1,seconds\n"
    for name in ("_a", "$b_$", "--><script>"):
        RunConfig(recipe=Recipe()).write(tmp_path / name / "config.yaml")
        (tmp_path / name / "metrics.csv").write_text(header + "1,0.1,1.0,0.9,0.5,3.0\n", encoding="utf-8")
    plot_comparison(compare([tmp_path]), tmp_path / "c.svg")
    drawn = (tmp_path / "c.svg").read_text(encoding="utf-8")
    assert "<!-- _a (unfinished) -->" in drawn
    assert "<!-- $b_$ (unfinished) -->" in drawn
    assert ElementTree.fromstring(drawn).find(".//{*}script") is None
