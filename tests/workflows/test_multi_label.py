"""Several labels an image, from a table to every verb."""

import csv
import json
import runpy
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import vggkit as vk
from ranks import start_ranks, wait_for
from vggkit.cli.main import main
from vggkit.reports.compression import draw_compression
from vggkit.reports.terminal import write_plainly
from vggkit.workflows.evaluate import measure

COLOURS = {"red": (slice(0, 16), slice(0, 32), 0), "blue": (slice(16, 32), slice(0, 32), 2)}
COLOURS["green"] = (slice(0, 32), slice(10, 22), 1)
SEPARATED = vk.Columns(label_separator=";")
OPTIONS = {
    "blocks": "8/12/16",
    "augmentation": "none",
    "batch_size": 8,
    "quiet": True,
    "device": "cpu",
    "precision": "fp32",
}


def call(*arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    return ended.value.code


def paint(labels, seed):
    pixels = np.random.default_rng(seed).integers(0, 50, (32, 32, 3)).astype(np.uint8)
    for label in labels:
        rows, columns, channel = COLOURS[label]
        pixels[rows, columns, channel] += 180
    return pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images with up to three labels in two tables, and a folder of images with one."""
    folder = tmp_path_factory.mktemp("several")
    draw, rows = np.random.default_rng(0), []
    for number in range(90):
        labels = sorted(
            label for label, share in zip(COLOURS, (0.5, 0.4, 0.25), strict=True) if draw.random() < share
        )
        Image.fromarray(paint(labels, number)).save(folder / f"{number:03}.png")
        rows.append((f"{number:03}.png", labels, "test" if number >= 70 else ""))
    with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [("path", "label"), *((path, ";".join(labels)) for path, labels, _ in rows[:70])]
        )
    with open(folder / "test.csv", "w", encoding="utf-8", newline="") as file:
        header = ("path", *COLOURS)
        csv.writer(file).writerows(
            [header, *((path, *(int(name in labels) for name in COLOURS)) for path, labels, _ in rows[70:])]
        )
    for name in ("red", "blue"):
        (folder / "single" / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(paint([name], 100 + number)).save(folder / "single" / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return vk.train(folder / "labels.csv", label_separator=";", epochs=16, learning_rate=0.05, out=out, **OPTIONS)


def test_training_learns_and_its_file_says_the_task(run, folder):
    card = vk.load(run.directory).card
    assert (card.task, card.labels, len(card.thresholds)) == ("multi-label", ("blue", "green", "red"), 3)
    assert card.to_dict()["format_version"] == 7
    assert run.evaluation.average_precision > 0.9
    assert run.evaluation.task == "multi-label"
    assert run.history[-1].val_map > 0.9
    assert {"classes.png", "reliability.png", "report.html"} <= {path.name for path in run.directory.iterdir()}
    assert not (run.directory / "confusion_matrix.png").exists()
    report = (run.directory / "report.html").read_text(encoding="utf-8")
    assert "Mean average precision" in report
    assert "Confusion matrix" not in report
    assert "--label-separator" in report
    found = run.classifier.evaluate(vk.open_dataset(folder / "test.csv"))
    assert found.micro_f1 > 0.8
    assert run.classifier.provenance["metrics"]["map"] == run.evaluation.average_precision
    assert "multi-label" in repr(run.classifier)


def test_a_stopped_training_continues_to_the_same_weights(run, folder, tmp_path):
    options = {"label_separator": ";", "epochs": 2, "learning_rate": 0.03, **OPTIONS}
    whole = vk.train(folder / "labels.csv", out=tmp_path / "whole", **options)
    vk.train(folder / "labels.csv", out=tmp_path / "part", on_epoch=lambda epoch: True, **options)
    rest = vk.train(resume=tmp_path / "part", quiet=True, device="cpu")
    for one, other in zip(whole.classifier.network.parameters(), rest.classifier.network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert rest.classifier.thresholds == whole.classifier.thresholds
    again = vk.train(config=tmp_path / "whole", epochs=1, out=tmp_path / "again", quiet=True, device="cpu")
    assert again.classifier.task == "multi-label"


def test_predictions_are_the_labels_above_their_thresholds(run, folder, capsys):
    both, none = run.classifier.predict([paint(["red", "blue"], 1), paint([], 2)])
    assert set(both.predicted) == {"red", "blue"}
    assert none.predicted == ()
    assert none.label == "(no label)"
    assert both.to_dict()["predicted"] == list(both.predicted)
    assert not both.unknown
    assert sum(both.probabilities) > 1.2
    thresholds = dict(zip(run.classifier.labels, run.classifier.thresholds, strict=True))
    for label, probability in zip(both.labels, both.probabilities, strict=True):
        assert (label in both.predicted) == (probability >= thresholds[label])
    for engine in ("pytorch", "openvino", "onnx"):
        [same] = run.classifier.predict(paint(["red", "blue"], 1), engine=engine)
        np.testing.assert_allclose(same.probabilities, both.probabilities, atol=1e-5)
    assert call("predict", run.directory, folder / "000.png") == 0
    assert "(" in capsys.readouterr().out


def test_bulk_embed_explain_and_bench(run, folder, tmp_path):
    vk.predict_into(run.classifier, folder / "test.csv", tmp_path / "p.csv", top=2)
    with open(tmp_path / "p.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    predicted = run.classifier.predict(str(folder / "test.csv"))
    assert [row["prediction"] for row in rows] == [each.label for each in predicted]
    vectors = run.classifier.embed(str(folder / "test.csv"), layer="probabilities").vectors
    chances = [dict(zip(each.labels, each.probabilities, strict=True)) for each in predicted]
    expected = [[each[label] for label in run.classifier.labels] for each in chances]
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    explained = run.classifier.explain(paint(["red"], 3), label="red")
    assert explained[0].probability > 0.5
    assert explained[0].map is not None


def test_evaluate_calibrates_and_compares(run, folder, tmp_path, capsys):
    place = tmp_path / "best.safetensors"
    shutil.copy(run.directory / "best.safetensors", place)
    data = vk.open_dataset(folder / "test.csv")
    found = measure([place], data, calibrate=True)
    card = vk.load(place).card
    assert card.thresholds != run.classifier.thresholds
    assert any("those of the highest F1 of each class" in sentence for sentence in found.messages)
    assert found.evaluations[0].macro_f1 >= run.classifier.evaluate(data).macro_f1
    both = measure([place, run.directory], data)
    assert "points of exact match" in both.comparisons[0].describe()
    assert both.evaluations[-1].task == "multi-label"
    assert call("evaluate", run.directory, folder / "test.csv", "--results", tmp_path / "r.csv") == 0
    shown = capsys.readouterr().out
    assert "mAP" in shown
    assert "exact match" in shown
    assert (tmp_path / "r.csv").is_file()
    assert call("evaluate", run.directory, folder / "test.csv", "--wanted-precision", "0.9") == 2
    assert "a threshold for each class" in capsys.readouterr().err
    assert call("compare", run.directory) == 0
    assert "mAP" in capsys.readouterr().out


def test_tasks_are_not_mixed(run, folder, tmp_path):
    with pytest.raises(vk.BadData, match="gives each image one label, and this Classifier predicts any number"):
        run.classifier.evaluate(folder / "single")
    single = vk.Classifier.create("vgg11", labels=list(COLOURS), until="pool1", seed=0)
    with pytest.raises(vk.BadData, match="several labels or none, and this Classifier gives each exactly one"):
        single.evaluate(vk.open_dataset(folder / "test.csv"))
    with pytest.raises(vk.BadData, match="several labels or none, and this Classifier"):
        vk.train(folder / "test.csv", model=single, out=tmp_path / "a", quiet=True)
    with pytest.raises(vk.BadData, match=r"gives each image one label.*--label-separator"):
        vk.train(folder / "single", task="multi-label", out=tmp_path / "b", quiet=True)
    with pytest.raises(vk.BadConfiguration, match="balance=sampling draws images by their one label"):
        vk.train(folder / "test.csv", balance="sampling", out=tmp_path / "c", epochs=1, **OPTIONS)
    with pytest.raises(vk.BadConfiguration, match="monitor=map is the mean average precision of several labels"):
        vk.train(folder / "single", monitor="map", out=tmp_path / "d", validation_share=0.4, epochs=1, **OPTIONS)


@pytest.mark.filterwarnings("ignore:No complete tensor found")  # of torch.export, for weights of one memory
@pytest.mark.parametrize("ending", ["onnx", "xml", "pt2"])
def test_an_exported_program_has_sigmoid_and_thresholds_inside(run, tmp_path, monkeypatch, capsys, ending):
    made = run.classifier.export(tmp_path / f"model.{ending}")
    assert made.parity.agreement == 1
    assert "sigmoid, thresholds and labels are inside" in str(made)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(paint(["red", "blue"], 7)).save("image.jpg", quality=98)
    (tmp_path / "snippet.py").write_text(made.snippet, encoding="utf-8")
    capsys.readouterr()
    runpy.run_path("snippet.py")
    printed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert set(printed) == set(run.classifier.predict("image.jpg")[0].predicted) == {"red", "blue"}


def test_a_site_and_a_hub_page_say_the_task(run, tmp_path):
    run.classifier.export(tmp_path / "site", to="web")
    about = json.loads((tmp_path / "site" / "model.json").read_text(encoding="utf-8"))
    assert about["task"] == "multi-label"
    assert about["thresholds"] == list(run.classifier.thresholds)
    from vggkit.weights.model_card import write_model_card

    text = write_model_card(run.classifier.card)
    assert "Mean average precision" in text
    assert "prediction.predicted" in text


def test_compression_and_teaching(run, folder, tmp_path):
    data = vk.open_dataset(folder / "labels.csv", columns=SEPARATED)
    made = vk.compress(run.classifier, data, out=tmp_path / "small.safetensors", prune=0.3, epochs=1)
    small = vk.load(tmp_path / "small.safetensors")
    assert small.task == "multi-label"
    assert len(small.thresholds) == 3
    assert {point.figure for point in made.record.points} == {"micro F1"}
    table = write_plainly(draw_compression(made.record))
    assert "micro F1" in table
    assert "top-1" not in table
    options = {"label_separator": ";", "epochs": 1, "learning_rate": 0.03, **OPTIONS}
    taught = vk.train(folder / "labels.csv", teacher=run.directory, out=tmp_path / "taught", **options)
    assert taught.classifier.task == "multi-label"
    fewer = vk.open_dataset([(paint(["red"], n), ["red"] if n % 2 else ["blue"]) for n in range(12)])
    with pytest.raises(vk.BadConfiguration, match="a teacher names the same classes in the same order"):
        vk.train(fewer, teacher=run.directory, out=tmp_path / "other", epochs=1, **OPTIONS)
    pairs = vk.open_dataset([(paint(["red"], n), "red" if n % 2 else "blue") for n in range(12)])
    with pytest.raises(vk.BadConfiguration, match="it is multi-label, and the images are single-label"):
        vk.train(pairs, teacher=run.directory, out=tmp_path / "third", epochs=1, **OPTIONS)


@pytest.mark.slow
def test_two_processes_end_with_the_weights_and_metrics_of_one(folder, processes, tmp_path):
    options = {**OPTIONS, "label_separator": ";", "balance": "weights", "epochs": 3, "learning_rate": 0.02}
    options |= {"dropout": 0.0}
    listed = [(f"--{name.replace('_', '-')}", value) for name, value in options.items() if name != "quiet"]
    shared = [folder / "labels.csv", *(each for pair in listed for each in pair)]
    wait_for(start_ranks(processes, "train", *shared, "--out", tmp_path / "two", "--quiet"))
    alone = vk.train(folder / "labels.csv", out=tmp_path / "one", **options)
    two = vk.load(tmp_path / "two")
    for key, value in alone.classifier.network.state_dict().items():
        torch.testing.assert_close(two.network.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key)
    assert two.thresholds == pytest.approx(alone.classifier.thresholds, rel=1e-3)
    found, expected = (each.provenance["metrics"] for each in (two, alone.classifier))
    assert found["n"] == expected["n"]
    for name in ("map", "micro_f1", "macro_f1", "exact_match", "loss"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name


def test_a_linear_probe_from_loaded_weights(run, folder, tmp_path):
    weights = run.directory / "best.safetensors"
    table = tmp_path / "others.csv"
    rows = ["path,warm,cold", *(f"{folder}/{n:03}.png,{n % 2},{int(n % 3 == 0)}" for n in range(40))]
    table.write_text("\n".join(rows), encoding="utf-8")
    options = {name: value for name, value in OPTIONS.items() if name not in ("blocks", "precision")}
    options |= {"model": run.classifier.configuration, "weights": weights}
    found = vk.train(table, trainable="head", out=tmp_path / "probe", **options)
    assert found.classifier.task == "multi-label"
    assert found.history[0].val_map is not None
    assert (found.directory / "regularisation.png").is_file()
    tuned = vk.train(table, trainable="all", epochs=1, out=tmp_path / "tuned", **options)
    assert tuned.history[0].epoch == 0, "a linear probe comes first"


def test_check_knows_labels(folder, tmp_path, capsys):
    table = tmp_path / "t.csv"
    rows = ["path,red,blue,never", *(f"{folder}/{n:03}.png,{n % 2},{n % 2},0" for n in range(8))]
    table.write_text("\n".join(rows), encoding="utf-8")
    found = vk.check(table)
    assert (found.task, found.labels_per_image) == ("multi-label", 1.0)
    assert found.find("unlabelled").summary.startswith("4 images without a label, 50.0 % of all")
    assert found.find("unused-label").cases[0].detail == "no image has never"
    assert "blue; red: each of 4 images" in found.find("inseparable-labels").cases[0].detail
    with pytest.raises(vk.BadInput, match="label errors are searched for by one label an image"):
        vk.check(table, model="vgg16")
    assert call("check", table, "--fix", tmp_path / "clean.csv", "--html", tmp_path / "c.html") == 0
    assert "1.00 labels an image" in capsys.readouterr().out
    again = vk.open_dataset(tmp_path / "clean.csv")
    assert (again.task, again.labels) == ("multi-label", ("blue", "never", "red"))
