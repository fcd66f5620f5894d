"""One Classifier or several on the same images: measured, fused, compared, calibrated."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from conftest import fill_folder
from vggkit.classifier import Classifier, load
from vggkit.cli.main import main
from vggkit.errors import BadInput
from vggkit.evaluation.metrics import score
from vggkit.evaluation.predictions import Predictions
from vggkit.hardware import computes_bf16
from vggkit.images.preprocessing import Preprocessing
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.inference.predict import predict
from vggkit.training.recipe import Recipe
from vggkit.workflows.evaluate import measure
from vggkit.workflows.train import train

LABELS = ("across", "down", "red")
FED = Preprocessing(resize_pixels=32, crop_pixels=32)
RECIPE = Recipe(epochs=2, batch_size=8, learning_rate=0.1, precision="fp32")


@pytest.fixture(scope="module")
def runs(tiny, photos, tmp_path_factory):
    """Two trainings: of two epochs, and of one at a low rate with the classes in another order."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    good = Classifier.create(tiny, labels=LABELS, preprocessing=FED)
    train(photos, model=good, recipe=RECIPE, out=folder / "good", device="cpu", quiet=True, plots="pdf")
    torch.manual_seed(1)
    poor = Classifier.create(tiny, labels=LABELS[::-1], preprocessing=FED)
    poor.save(folder / "poor.safetensors")
    return folder


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Images that nothing was learnt from."""
    folder = tmp_path_factory.mktemp("others")
    fill_folder(folder, LABELS, 12, start=500)
    return folder


def call(*arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_a_training_leaves_its_answers_its_report_and_its_images(runs):
    made = {path.name for path in (runs / "good").iterdir()}
    assert {"report.html", "results.csv", "reliability.png", "classes.png", "confusion_matrix.png", "plots"} <= made
    assert {path.name for path in (runs / "good" / "plots").iterdir()} == {
        *("reliability.pdf", "classes.pdf", "confusion_matrix.pdf", "learning_curve.pdf")
    }
    kept = load(runs / "good")
    predictions = Predictions.read(runs / "good" / "results.csv")
    again = score(predictions, data="x")
    assert again.top1 == kept.provenance["metrics"]["top1"]
    assert list(again.top1_interval) == kept.provenance["metrics"]["top1_interval"]
    page = (runs / "good" / "report.html").read_text(encoding="utf-8")
    assert f"{round(again.top1 * 15)} of 15 images classified correctly" in page
    assert kept.provenance["calibration"]["n"] == 15


def test_several_are_compared_and_fused_by_class_names(runs, others):
    found = measure([runs / "good", runs / "poor.safetensors"], open_dataset(others))
    good, poor, fused = found.evaluations
    assert [each.model for each in found.evaluations] == ["good", "poor", "good + poor"]
    assert good.top1 > poor.top1
    (pair,) = found.comparisons
    assert pair.difference == pytest.approx(poor.top1 - good.top1)
    order = [poor.labels.index(label) for label in good.labels]
    np.testing.assert_allclose(
        fused.predictions.probabilities,
        (good.predictions.probabilities + poor.predictions.probabilities[:, order]) / 2,
    )
    assert json.dumps(found.to_dict())


def test_calibrating_keeps_what_predict_speaks_by(runs, others, tmp_path, capsys):
    poor = load(runs / "poor.safetensors")
    poor.save(tmp_path / "c.safetensors")
    before = measure([tmp_path / "c.safetensors"], open_dataset(others)).evaluations[0]
    wanted = 0.5 if before.top1 < 0.5 else 0.99
    options = ("--wanted-precision", wanted, "--calibrate", "--json", "--quiet")
    code, out, _ = call("evaluate", tmp_path / "c.safetensors", others, *options, capsys=capsys)
    if code == 2:
        assert load(tmp_path / "c.safetensors").card == poor.card, "nothing was changed"
        pytest.skip("these random weights are never right that often")
    told = json.loads(out)
    kept = load(tmp_path / "c.safetensors")
    assert kept.temperature == told["calibration"]["temperature"]
    assert kept.threshold == told["rejection"]["threshold"] > 0
    assert kept.provenance["calibration"]["n"] == 36
    after = measure([tmp_path / "c.safetensors"], open_dataset(others)).evaluations[0]
    assert after.rejection.precision >= wanted
    noted = any("fitted on these images" in note for note in after.notes)
    assert noted == (kept.temperature != 1)
    predictions = predict(kept, others)
    assert sum(not each.unknown for each in predictions) == after.rejection.n
    code, out, _ = call(
        "predict", tmp_path / "c.safetensors", others, "--precision", "fp32", "--quiet", capsys=capsys
    )
    assert out.count(": unknown (") == sum(each.unknown for each in predictions) > 0


def test_what_cannot_be_calibrated_is_told_and_nothing_is_changed(runs, others, capsys):
    images = open_dataset(others)
    with pytest.raises(BadInput, match="one Classifier"):
        measure([runs / "good", runs / "poor.safetensors"], images, calibrate=True)
    with pytest.raises(BadInput, match="single"):
        measure([runs / "good"], images, protocol="multi-crop", calibrate=True)
    before = (runs / "poor.safetensors").read_bytes()
    code, _, told = call(
        "evaluate", runs / "poor.safetensors", others, "--wanted-precision", 1, "--calibrate", capsys=capsys
    )
    if code:
        assert "Nothing was changed" in told
        assert (runs / "poor.safetensors").read_bytes() == before


def test_the_command_writes_table_report_and_plots(runs, others, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wanted = ("--results", "out/results.parquet", "--report", "out/report.html", "--plots", "pdf")
    code, out, told = call("evaluate", runs / "good", others, *wanted, capsys=capsys)
    assert code == 0
    assert "single: one view of 32 pixels" in out
    assert "out/report.html" in told
    assert {path.name for path in (tmp_path / "out" / "plots").iterdir()} == {
        *("reliability.pdf", "classes.pdf", "confusion_matrix.pdf")
    }
    assert len(Predictions.read("out/results.parquet")) == 36
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "after epoch" in page, "the run's curve is shown"
    both = ("evaluate", runs / "good", runs / "poor.safetensors", others, "--report", "both.html")
    code, out, _ = call(*both, "--protocol", "multi-scale", capsys=capsys)
    assert code == 0
    told = " ".join(out.split())
    assert told.count("multi-scale: the whole image, short side 32, 36, and mirrored") == 3
    assert "McNemar" in out
    assert "good + poor" in (tmp_path / "both.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--results", "x.xlsx"], ".csv or .parquet"),
        (["--report", "x.pdf"], ".html"),
        (["--wanted-precision", "95"], "above 0 and at most 1"),
        (["--protocol", "single", "--scales", "256"], "takes no scales"),
        (["--split", "test"], "split test"),
    ],
)
def test_wrong_options_are_told_before_any_work(runs, others, options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, told = call("evaluate", runs / "good", others, *options, "--quiet", capsys=capsys)
    assert code == 2
    assert said in told
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ["pytorch", "openvino"])
def test_the_command_measures_what_bfloat16_costs_and_says_so(runs, others, engine, tmp_path, capsys):
    pytest.importorskip({"pytorch": "torch"}.get(engine, engine))
    options = ("--precision", "bf16", "--engine", engine, "--device", "cpu", "--quiet")
    page = tmp_path / "report.html"
    # OpenVINO computes in float32 where the processor has no bfloat16, and this is said too.
    kind = "in bfloat16" if engine == "pytorch" or computes_bf16("cpu") else "in float32, because this processor"
    code, out, _ = call("evaluate", runs / "good", others, *options, "--report", page, capsys=capsys)
    assert code == 0
    assert kind in " ".join(out.split())
    assert kind in page.read_text(encoding="utf-8")
    code, out, _ = call("evaluate", runs / "good", others, *options, "--json", capsys=capsys)
    assert any(kind in note for note in json.loads(out)["notes"])
    code, out, _ = call("evaluate", runs / "good", others, "--json", "--quiet", capsys=capsys)
    assert not any("computed by" in note for note in json.loads(out)["notes"])


def test_int8_without_ranges_names_the_classifier_before_any_work(runs, others, tmp_path, capsys):
    kept = load(runs / "poor.safetensors")
    kept.keep_ranges({"images": (-3.0, 3.0)}, about={})
    kept.save(tmp_path / "kept.safetensors")
    models = (tmp_path / "kept.safetensors", runs / "good")
    code, out, told = call("evaluate", *models, others, "--precision", "int8", "--device", "cpu", capsys=capsys)
    told = " ".join(told.split())
    assert code == 2
    assert f"{runs / 'good'}: int8 needs the activation ranges" in told
    assert "--keep-ranges" in told
    assert "evaluating" not in told
    assert out == ""


def test_the_images_stand_last(runs, capsys):
    code, _, told = call("evaluate", runs / "good", runs / "poor.safetensors", capsys=capsys)
    assert code == 2
    assert "come last" in told


def test_training_images_are_known_wherever_they_are_given(runs, photos):
    for place in (photos / "train", photos / "val"):
        found = measure([runs / "good"], open_dataset(place)).evaluations[0]
        assert any("trained on these images" in note for note in found.notes) == (place.name == "train")


@pytest.mark.sweep(5)
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("evaluate", "missing.safetensors", "digits"), "missing.safetensors: no such file"),
        (("evaluate", "broken.safetensors", "digits"), "broken.safetensors"),
        (("evaluate", "poor.safetensors", "missing-folder"), "missing-folder"),
        (("check", "missing-folder"), "missing-folder"),
        (("check", "good", "--model", "missing.safetensors"), "missing.safetensors"),
        (("compare", "missing-run"), "missing-run"),
    ],
)
def test_a_bad_model_or_place_is_refused_before_heavy_packages_are_imported(runs, arguments, reason):
    (runs / "broken.safetensors").write_bytes(b"no model")
    script = """
import sys
from vggkit.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print([name for name in ("torch", "sklearn", "scipy", "matplotlib", "openvino") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=runs, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert reason in done.stderr
    assert done.stdout == "[]\n"
