import csv
import io
import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import vggkit as vk
from vggkit.classifier import Classifier
from vggkit.errors import BadCheckpoint, BadConfiguration, BadOutput
from vggkit.evaluation.evaluation import proportion_interval
from vggkit.evaluation.predictions import Predictions
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration
from vggkit.reports.comparison import describe_seconds, draw_comparison, plot_comparison
from vggkit.training.recipe import Recipe
from vggkit.workflows.compare import compare
from vggkit.workflows.run_config import NetworkChoice, RunConfig

LABELS = ("across", "down", "red")


def write_run(
    folder: Path,
    tiny: Configuration,
    *,
    recipe: Recipe,
    network: NetworkChoice = NetworkChoice(model="vgg11_bn", head="pool"),  # noqa: B008
    epochs: int | None = None,
    end: float = 0.95,
    images: str = "0123456789abcdef",
    finished: bool = True,
    split: str = "val",
) -> Path:
    """What a training leaves: its configuration, its curve, its best Classifier."""
    folder.mkdir(parents=True)
    about = {"images": {"train": 600, "val": 153}, "held_out": {split: images, "val": images}}
    RunConfig(data="/photos", network=network, recipe=recipe, found={"data": about}).write(folder / "config.yaml")
    count = recipe.epochs if epochs is None else epochs
    rows = [
        {
            "epoch": epoch,
            "learning_rate": 0.01,
            "train_loss": 1.1 * math.exp(-0.35 * epoch) + 0.02,
            "val_loss": 1.1 * math.exp(-0.25 * epoch) + 0.2 * (1 - end) + 0.1,
            "val_top1": end - (end - 1 / 3) * math.exp(-0.4 * epoch) * (1.3 if epoch % 3 == 2 else 1),
            "seconds": 11.5 + 2 * (network.model == "vgg16"),
        }
        for epoch in range(1, count + 1)
    ]
    if rows:
        with open(folder / "metrics.csv", "w", encoding="utf-8", newline="") as lines:
            writer = csv.DictWriter(lines, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    best = max(rows, key=lambda row: row["val_top1"], default=None)
    if best is not None:
        top1 = best["val_top1"]
        metrics = {
            "split": split,
            "top1": top1,
            "top1_interval": list(proportion_interval(round(153 * top1), 153)),
            "loss": best["val_loss"],
            "n": 153,
            "epoch": best["epoch"],
        }
        finish = {"metrics": metrics, "seconds": 12.0 * count, "peak_memory_bytes": 2_100_000_000}
        fed = Preprocessing(resize_pixels=32, crop_pixels=32)
        classifier = Classifier.create(tiny, labels=LABELS, preprocessing=fed)
        classifier.save(
            folder / "best.safetensors", provenance={"epoch": best["epoch"], **(finish if finished else {})}
        )
    if finished:
        Image.new("RGB", (8, 8)).save(folder / "confusion_matrix.png")
    return folder


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    slow = Recipe(epochs=10, batch_size=32, learning_rate=0.01, trainable="all")
    return [
        write_run(folder / "vgg11_bn-1", tiny, recipe=slow),
        write_run(
            folder / "vgg11_bn-2", tiny, recipe=replace(slow, learning_rate=0.03, optimizer="adamw"), end=0.97
        ),
        write_run(folder / "vgg11_bn-10", tiny, recipe=slow, epochs=4, finished=False),
    ]


def show(comparison, width=80):
    text = io.StringIO()
    Console(width=width, color_system=None, file=text, highlight=False).print(
        draw_comparison(comparison, width=width)
    )
    return text.getvalue()


def test_figures_are_those_of_the_folders(runs):
    found = compare(runs)
    first, second, third = found.runs
    assert [run.name for run in found.runs] == ["vgg11_bn-1", "vgg11_bn-2", "vgg11_bn-10"]
    kept = json.loads(json.dumps(vk.load(runs[0]).provenance["metrics"]))
    assert (first.top1, first.loss, first.n, first.best_epoch) == (
        kept["top1"],
        kept["loss"],
        kept["n"],
        kept["epoch"],
    )
    assert first.top1_interval == tuple(kept["top1_interval"])
    assert (first.seconds, first.peak_memory_bytes, first.is_finished) == (120.0, 2_100_000_000, True)
    assert (first.model, first.head, first.trainable, first.epochs) == ("vgg11_bn", "pool", "all", 10)
    assert not third.is_finished
    assert (len(third.history), third.epochs, third.n) == (4, 10, 153)
    assert third.top1 == max(row["val_top1"] for row in third.history)
    assert third.top1_interval == proportion_interval(round(153 * third.top1), 153)
    assert third.seconds == pytest.approx(4 * 11.5)
    assert found.differing == {"learning_rate": (0.01, 0.03, 0.01), "optimizer": ("sgd", "adamw", "sgd")}
    assert len(found.notes) == 1
    assert "by chance" in found.notes[0]
    assert json.loads(json.dumps(found.to_dict()))["runs"][1]["top1"] == second.top1


def test_a_folder_of_runs_stands_for_them_in_their_order(runs):
    names = ["vgg11_bn-1", "vgg11_bn-2", "vgg11_bn-10"]
    assert [run.name for run in compare([runs[0].parent]).runs] == names
    assert [run.name for run in compare([runs[2], runs[0].parent]).runs] == [names[2], *names[:2]]


def test_the_table_says_it_all_at_80_and_120_columns(runs):
    for width in (80, 120):
        text = show(compare(runs), width)
        assert all(len(line) <= width for line in text.splitlines())
        rows = [line for line in text.splitlines() if line.startswith("vgg11_bn-")]
        assert len(rows) == 3
        assert f"{100 * compare(runs).runs[0].top1:.1f}" in rows[0]
        assert "153" in rows[0]
        assert "2.1" in rows[0]
        assert ("GB" in rows[0], "vgg11_bn, pool" in rows[0]) == (width > 100, width > 100)
        assert "2 min" in rows[0]
        assert "10/10" in rows[0]
        assert "unfinished: vgg11_bn-10, 4 of 10 epochs" in text
        assert "learning rate" in text
        assert "batch size" not in text
        assert "…" not in text


def test_figures_on_different_images_are_not_compared(tiny, runs, tmp_path):
    other = write_run(tmp_path / "other", tiny, recipe=Recipe(epochs=10), images="f" * 16)
    notes = compare([runs[0], other]).notes
    assert len(notes) == 1
    assert "different images" in notes[0]
    tested = write_run(tmp_path / "tested", tiny, recipe=Recipe(epochs=10), split="test")
    assert "vgg11_bn-1 on val" in compare([runs[0], tested]).notes[0]
    assert "tested on test" in compare([runs[0], tested]).notes[0]
    assert compare([runs[0]]).notes == ()


def test_a_difference_beyond_chance_has_no_note(tiny, runs, tmp_path):
    worse = write_run(tmp_path / "worse", tiny, recipe=Recipe(epochs=10), end=0.6)
    assert compare([runs[0], worse]).notes == ()


def test_a_run_before_its_first_epoch_and_one_that_learns_on(tiny, runs, tmp_path):
    begun = write_run(tmp_path / "begun", tiny, recipe=Recipe(epochs=10), epochs=0, finished=False)
    (run,) = compare([begun]).runs
    assert (run.top1, run.best_epoch, run.is_finished, run.seconds) == (None, None, False, 0)
    assert "0 of 10 epochs" in show(compare([begun]))
    # Its Classifier still has the metrics of the training before.
    on = write_run(tmp_path / "on", tiny, recipe=Recipe(epochs=10), epochs=3)
    (on / "confusion_matrix.png").unlink()
    (run,) = compare([on]).runs
    assert not run.is_finished
    assert run.best_epoch == 3
    os.utime(on / "config.yaml", (time.time() + 5, time.time() + 5))
    assert compare([on]).runs[0].idle_seconds == 0
    plot_comparison(compare([begun, runs[0]]), tmp_path / "two.png")
    plot_comparison(compare([begun]), tmp_path / "none.png")


def test_runs_of_one_name_are_told_apart(tiny, tmp_path):
    folders = [write_run(tmp_path / place / "same", tiny, recipe=Recipe(epochs=2)) for place in ("a", "b")]
    assert [run.name for run in compare(folders).runs] == [str(folder) for folder in folders]
    assert compare(folders).differing == {}
    assert "the configurations are the same" in show(compare(folders), 200)


def test_what_is_no_run_is_refused(runs, tmp_path):
    with pytest.raises(BadCheckpoint, match="neither"):
        compare([tmp_path])
    with pytest.raises(BadCheckpoint, match="nowhere"):
        compare([tmp_path / "nowhere"])
    (tmp_path / "config.yaml").write_text("recipe: 3")
    with pytest.raises(BadConfiguration, match=r"config\.yaml"):
        compare([tmp_path])
    (tmp_path / "config.yaml").write_text("recipe: {}")
    (tmp_path / "metrics.csv").write_text("epoch,loss\n1,\n")
    with pytest.raises(BadCheckpoint, match=r"metrics\.csv"):
        compare([tmp_path])
    with pytest.raises(BadOutput, match="must end in"):
        plot_comparison(compare(runs), tmp_path / "x.txt")


def test_the_curves_are_drawn(runs, tmp_path, real_plots):
    plot_comparison(compare(runs), tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert min(image.size) > 800
        colours = {colour for _, colour in image.convert("RGB").getcolors(10**6)}
    assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73)} <= colours
    plot_comparison(compare(runs), tmp_path / "y.png")
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "y.png").read_bytes()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (119.4, "119 s"), (119.6, "2 min"), (7169, "119 min"), (7170, "2.0 h"), (9000, "2.5 h")],
)
def test_durations(seconds, said):
    assert describe_seconds(seconds) == said


def test_runs_with_predictions_tables_are_compared_image_by_image(tiny, tmp_path):
    """Most predictions are the same, so that the difference is certain although the intervals overlap."""
    recipe = Recipe(epochs=3, batch_size=32, learning_rate=0.01, trainable="all")
    folders = [write_run(tmp_path / name, tiny, recipe=recipe, end=end) for name, end in (("a", 0.90), ("b", 0.95))]
    for folder, wrong in zip(folders, (30, 18), strict=True):
        logits = np.tile([4.0, 0.0, 0.0], (153, 1))
        logits[:wrong] = [0.0, 4.0, 0.0]
        paths = [f"photos/{number}.jpg" for number in range(153)]
        Predictions.of(logits, np.zeros(153, int), labels=LABELS, paths=paths).save(folder / "results.csv")
    (note,) = compare(folders).notes
    assert "b compared with a: +7.8 percentage points" in note
    assert "McNemar p < 0.001" in note
    assert note.endswith(": significant")
    (folders[0] / "results.csv").write_text("no table")
    assert "McNemar" not in "".join(compare(folders).notes)


def test_a_run_is_finished_by_its_state_and_not_by_its_plots(tiny, tmp_path):
    old = write_run(tmp_path / "old", tiny, recipe=Recipe(epochs=3))
    assert compare([old]).runs[0].is_finished, "runs of versions without run.json are told by their plots"
    for state, plotted in (("finished", False), ("running", True), ("stopped", True), ("failed", True)):
        folder = write_run(tmp_path / state, tiny, recipe=Recipe(epochs=3))
        if not plotted:
            (folder / "confusion_matrix.png").unlink()
        (folder / "run.json").write_text(json.dumps({"schema_version": 1, "state": state}))
        assert compare([folder]).runs[0].is_finished == (state == "finished")
    (tmp_path / "failed" / "run.json").write_text("{")
    with pytest.raises(BadCheckpoint, match=r"run\.json"):
        compare([tmp_path / "failed"])
