"""The report: every number on it comes from the predictions table, and a real browser shows it."""

import csv
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn import metrics

from conftest import draw_class
from vggkit.evaluation.comparison import compare_predictions, fuse
from vggkit.evaluation.metrics import score
from vggkit.evaluation.predictions import Predictions
from vggkit.images.dataset import ImageSample
from vggkit.reports.evaluation_charts import Scale, find_step
from vggkit.reports.evaluation_page import (
    Story,
    draw_reliability,
    list_pairs,
    write_report,
)
from vggkit.reports.evaluation_table import draw_evaluation, draw_several
from vggkit.reports.run_plots import write_plots
from vggkit.reports.training_facts import list_facts, list_recipe
from vggkit.training.recipe import Recipe


def invent(classes=6, n=240, *, seed=0, skill=1.5, model="vgg11", **options):
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % classes
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), targets] += skill
    labels = [f"class <{number}>" for number in range(classes)]
    predictions = Predictions.of(
        logits, targets, labels=labels, paths=[f"photos/val/{k:03d}.png" for k in range(n)]
    )
    return score(predictions, data="photos", split="val", model=model, protocol="single: one view", **options)


def album(evaluation):
    return [ImageSample(path, "x", draw_class("red", k)) for k, path in enumerate(evaluation.predictions.paths)]


HISTORY = [
    {"epoch": k, "train_loss": 2 / (k + 1), "val_loss": 1.5 / (k + 1) + 0.1 * k, "val_top1": 0.5 + 0.04 * k}
    for k in range(7)
]
STORY = Story(
    history=HISTORY,
    best_epoch=6,
    provenance={
        "data": {"name": "photos", "images": {"train": 960, "val": 240}},
        "findings": ["warning: 3 images are in several splits"],
        "recipe": {"epochs": 6, "learning_rate": 0.01, "ema_decay": None},
        "machine": {"device": "cpu: Abacus", "system": "Linux", "torch": "2.15", "python": "3.11"},
        "seconds": 4000.0,
        "peak_memory_bytes": 1_500_000_000,
        "weights": {"file": "vgg11.pth", "licence": "MIT"},
    },
    steps=[("Ask it", "vggkit predict run IMAGE…")],
)


class Text(HTMLParser):
    """What a page says, outside its style."""

    def __init__(self, page):
        super().__init__()
        self.pieces, self._skipped = [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self._skipped = tag == "style"

    def handle_endtag(self, tag):
        self._skipped = False

    def handle_data(self, data):
        if not self._skipped:
            self.pieces.append(data)


def read(path):
    return re.sub(r"\s+", " ", " ".join(Text(path.read_text(encoding="utf-8")).pieces))


def write(evaluations, tmp_path, story=STORY, **options):
    path = tmp_path / "report.html"
    write_report(evaluations, path, images=album(evaluations[-1]), story=story, **options)
    return read(path)


def test_every_number_can_be_computed_again_from_the_table(tmp_path):
    found = invent(wanted_precision=0.9)
    text = write([found], tmp_path)
    found.predictions.save(tmp_path / "results.csv")
    with open(tmp_path / "results.csv", encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    labels = [name.removeprefix("p_") for name in rows[0] if name.startswith("p_")]
    truth, predicted = [row["label"] for row in rows], [row["prediction"] for row in rows]
    chances = np.array([[float(row[f"p_{label}"]) for label in labels] for row in rows])
    correct = np.array(truth) == np.array(predicted)

    def percent(share):
        return f"{100 * share:.1f} %"

    assert f"{correct.sum()} of 240 images classified correctly" in text
    assert percent(correct.mean()) in text
    binary = np.eye(6)[[labels.index(label) for label in truth]]
    for name, value in (
        ("Macro F1", metrics.f1_score(truth, predicted, average="macro")),
        ("Balanced accuracy", metrics.balanced_accuracy_score(truth, predicted)),
        ("ROC AUC", metrics.roc_auc_score(binary, chances)),
        ("Average precision", metrics.average_precision_score(binary, chances)),
        ("Top-5 accuracy", np.mean([int(row["rank"]) <= 5 for row in rows])),
    ):
        assert f"{name} {percent(value)}" in text
    assert f"Cross-entropy loss {metrics.log_loss(truth, chances, labels=labels):.4f}" in text
    report = metrics.classification_report(truth, predicted, output_dict=True)
    for label in labels:
        figures = (report[label][name] for name in ("precision", "recall", "f1-score"))
        assert f"{label} 40 {' '.join(f'{100 * figure:.1f}' for figure in figures)}" in text
    counts = metrics.confusion_matrix(truth, predicted, labels=labels)
    for label, row in zip(labels, counts, strict=True):
        assert f"{label} {' '.join(str(n or '·') for n in row)}" in text
    threshold = float(re.search(r"At a confidence threshold of ([\d.]+) %", text)[1]) / 100
    accepted = chances.max(1) >= threshold - 5e-4
    assert f"the coverage is {percent(accepted.mean())}" in text
    first = max((row for row in rows if row["correct"] == "0"), key=lambda row: float(row["probability"]))
    assert f"predicted {first['prediction']} {percent(float(first['probability']))} true {first['label']}" in text


def test_training_details_are_shown(tmp_path):
    text = write([invent(notes=("no images of zebra",), unreadable=("x.jpg: is empty",))], tmp_path)
    for said in (
        "No images of zebra",
        "1 unreadable image excluded",
        "x.jpg: is empty",
        "Best: 74.0 % after epoch 6",
        "960 train , 240 val",
        "3 images are in several splits",
        "cpu: Abacus",
        "67 min",
        "1.50 GB",
        "Initial weights vgg11.pth",
        "learning rate 0.01",
        "ema decay –",
        "vggkit predict run IMAGE…",
        "single: one view",
    ):
        assert said in text, said


def test_a_linear_probe_lists_what_it_used(tmp_path):
    recipe = Recipe(trainable="head").to_dict()
    known = {"recipe": recipe, "linear_probe": {"l2_penalty": 0.01, "tried": 9}}
    listed = dict(list_recipe(known))
    assert listed["L2 penalty"] == 0.01
    assert not {"epochs", "optimizer", "schedule", "momentum", "augmentation"} & listed.keys()
    assert "augmentation" in dict(list_recipe({"recipe": {**recipe, "views": 3}}))
    assert dict(list_recipe({"recipe": Recipe().to_dict()}))["optimizer"] == "sgd"


def test_of_many_errors_it_says_how_many_are_shown(tmp_path):
    evaluation = invent(skill=0.3)
    wrong = int((~evaluation.predictions.correct).sum())
    assert wrong > 36
    write_report([evaluation], tmp_path / "r.html", images=(), story=STORY)
    said = " ".join("".join(Text((tmp_path / "r.html").read_text(encoding="utf-8")).pieces).split())
    assert f"{wrong} predictions are wrong. Shown are 36 of them" in said


def test_what_is_not_known_is_left_out(tmp_path):
    text = write([invent()], tmp_path, Story(provenance={}))
    for section in ("Training curves", "Training details", "Hyperparameters", "Next steps"):
        assert section not in text
    assert list_facts({"weights": None}) == []


def test_several_models_stand_beside_each_other(tmp_path):
    one, two = invent(model="A"), invent(model="B", skill=2.5, seed=3)
    pair, fused = compare_predictions(one.predictions, two.predictions, names=("A", "B")), fuse([one, two])
    text = write([one, two, fused], tmp_path, Story(provenance={}), comparisons=[pair])
    assert "A + B on photos" in text
    assert pair.describe() in text
    assert f"{len(pair.changes)} images classified correctly by only one of the two" in text
    assert text.count("single: one view") >= 3


def test_many_classes_fold_and_the_worst_come_first(tmp_path):
    found = invent(classes=60, n=600, skill=2)
    text = write([found], tmp_path)
    assert "All 60 classes" in text
    assert "true ↓" not in text
    worst = min((each for each in found.classes if each.support), key=lambda each: each.f1)
    assert text.index(worst.label + " ") < text.index("All 60 classes")
    pairs = list_pairs(found)
    counts = np.array(found.confusion)
    np.fill_diagonal(counts, 0)
    assert pairs[0].n == counts.max()
    assert [pair.n for pair in pairs] == sorted((pair.n for pair in pairs), reverse=True)


def test_perfect_predictions_have_no_errors(tmp_path):
    text = write([invent(skill=60)], tmp_path)
    assert "There are no errors." in text
    assert "All images were classified correctly." in text


def test_an_image_that_is_gone_leaves_a_placeholder(tmp_path):
    found = invent()
    path = tmp_path / "report.html"
    write_report([found], path, images=[], story=STORY)
    assert "image no longer readable" in read(path)


def test_bars_show_the_accuracy():
    found = invent()
    chart = draw_reliability(found)
    filled = [each for each in found.calibration.bins if each.n]
    assert len(chart.bars) == len(filled)
    for bar, each in zip(chart.bars, filled, strict=True):
        assert bar.height == pytest.approx((212 - 14) * each.accuracy, abs=0.02)
        assert bar.whisker[0] >= bar.top >= bar.whisker[1]


def test_ticks_are_round():
    assert find_step(1, 5) == pytest.approx(0.2)
    assert find_step(7, 8) == 1
    assert [tick.text for tick in Scale(0, 1, 0, 10).ticks(percent=True, most=5)] == [
        "0",
        "20",
        "40",
        "60",
        "80",
        "100",
    ]
    assert [tick.text for tick in Scale(1, 3, 0, 1).ticks(whole=True)] == ["1", "2", "3"]
    assert [tick.text for tick in Scale(0.93, 1, 0, 1).ticks(percent=True, most=5)] == ["94", "96", "98", "100"]


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_the_same_as_files_for_papers(tmp_path, ending):
    made = write_plots(invent(), tmp_path, ending)
    assert [path.name for path in made] == [
        f"{name}.{ending}" for name in ("reliability", "classes", "confusion_matrix")
    ]
    for path in made:
        start = path.read_bytes()[:5]
        assert start == {"png": b"\x89PNG\r", "pdf": b"%PDF-", "svg": b"<?xml"}[ending]


def test_the_terminal_shows_the_same_at_80_columns():
    import io

    from rich.console import Console

    one, two = invent(model="A", wanted_precision=0.9, notes=("no images of zebra",)), invent(model="B", seed=3)
    several = draw_several([one, two, fuse([one, two])], [compare_predictions(one.predictions, two.predictions)])
    for drawn in (draw_evaluation(one), draw_evaluation(invent(classes=60, n=600)), several):
        out = io.StringIO()
        Console(file=out, width=80).print(drawn)
        assert max(len(line) for line in out.getvalue().splitlines()) <= 80
    out = io.StringIO()
    Console(file=out, width=80).print(draw_evaluation(one))
    text = out.getvalue()
    assert f"{100 * one.top1:.1f} %" in text
    assert "single: one view" in text
    assert "are rejected as unknown" in " ".join(text.split())
    assert "! no images of zebra" in text


def test_a_browser_shows_it_at_360_pixels_and_says_nothing(tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"needs a browser on the PATH ({', '.join(names)}), and there is none")
    pages = {
        "few": [invent(wanted_precision=0.9, notes=("no images of zebra",))],
        "many": [invent(classes=60, n=600)],
        "several": [invent(model="A" * 60), invent(model="B", seed=3), invent(model="C", seed=4)],
    }
    for name, evaluations in pages.items():
        pairs = (
            [compare_predictions(evaluations[0].predictions, evaluations[1].predictions)]
            if len(evaluations) > 1
            else []
        )
        path = tmp_path / f"{name}.html"
        write_report(evaluations, path, images=album(evaluations[-1]), story=STORY, comparisons=pairs)
    frames = "".join(
        f'<iframe src="{name}.html" style="width:360px;height:640px;border:0"></iframe>' for name in pages
    )
    measure = """<script>onload = () => { for (const frame of document.querySelectorAll("iframe")) {
        const page = frame.contentDocument, images = [...page.images];
        page.querySelectorAll("details").forEach(details => details.open = true);
        const charts = [...page.querySelectorAll(".chart > svg")].map(svg => svg.getBoundingClientRect().height);
        document.body.append(`<${page.documentElement.clientWidth} ${page.documentElement.scrollWidth} ` +
            `${images.length} ${Math.min(...charts)} ${charts.length}>`); } }</script>"""
    (tmp_path / "phones.html").write_text(f"<!doctype html><body>{measure}{frames}", encoding="utf-8")
    flags = "--headless=new --no-sandbox --disable-gpu --allow-file-access-from-files --enable-logging=stderr"
    command = [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command, (tmp_path / "phones.html").as_uri()], capture_output=True, text=True, timeout=90
    )
    measured = re.findall(r"&lt;(\d+) (\d+) (\d+) ([\d.]+) (\d+)&gt;", done.stdout)
    assert len(measured) == len(pages), done.stderr
    for client, scroll, images, height, charts in measured:
        assert int(scroll) <= int(client) <= 360
        assert int(images) >= 12
        assert float(height) > 150
        assert int(charts) == 4
    assert "CONSOLE" not in done.stderr, done.stderr
