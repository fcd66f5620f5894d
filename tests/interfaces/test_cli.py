import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vggkit.images.preprocessing import Preprocessing
from vggkit.interfaces import cli, commands
from vggkit.networks.classifier import Classifier

GOLDEN = Path(__file__).with_name("surface.json")


def call(*arguments, capsys=None):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


@pytest.fixture
def model(tiny, tmp_path):
    path = tmp_path / "m.safetensors"
    Classifier.create(
        tiny, labels=["across", "down", "red"], preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32)
    ).save(path)
    return path


def read_surface() -> dict[str, list[str]]:
    """Every verb with its options, as tyro lays them out."""
    import re

    surface = {}
    for verbs in cli.VERBS.values():
        for verb in verbs:
            found = subprocess.run(
                [sys.executable, "-m", "vggkit", verb, "--help"],
                capture_output=True,
                text=True,
                env={**os.environ, "COLUMNS": "200"},
                timeout=60,
                check=True,
            )
            surface[verb] = sorted(set(re.findall(r"(?<![\w`-])--[a-z][a-z0-9-]*", found.stdout)))
    return surface


def test_the_surface_is_the_golden_list():
    """A new option is meant: write it into surface.json."""
    assert read_surface() == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_every_verb_has_its_command_and_help_explains_each(capsys):
    verbs = [name for group in cli.VERBS.values() for name in group]
    assert all(callable(getattr(commands, verb)) for verb in verbs)
    code, out, _ = call("--help", capsys=capsys)
    assert code == 0
    assert all(f"  {verb} " in out for verb in verbs)
    assert call(capsys=capsys)[1] == out
    assert call("--version", capsys=capsys)[1].startswith("vggkit ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["--hepl"], "no option"),
        (["summary", "vgg12"], "Did you mean 'vgg1"),
        (["summary", "vgg11", "--input", "16"], "32"),
        (["summary", "vgg11", "--input", "big"], "--input"),
        (["summary", "vgg11", "--until", "relu3_3"], "relu3_2"),
        (["code", "vgg11", "--classes", "0"], "num_classes"),
        (["train", "no-such-set"], "digits"),
        (["train", "digits", "--model", "resnet18"], "vgg11"),
        (["train", "digits", "--device", "tpu"], "tpu"),
        (["evaluate", "none.safetensors", "digits"], "none.safetensors"),
        (["predict", "none.safetensors", "x.jpg"], "none.safetensors"),
        (["predict", "none.safetensors"], "picture"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*arguments, capsys=capsys)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert err.strip().count("\n") == 0
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_wrong_options_are_explained_by_the_parser(capsys):
    for arguments in (["train", "--epoch", "3"], ["train", "--epochs", "x"], ["summary", "--head", "poll"]):
        code, _, err = call(*arguments, capsys=capsys)
        assert code == 2
        assert "epochs" in err or "--head" in err
        assert "Traceback" not in err


def test_summary_and_models_as_json(capsys):
    code, out, _ = call("summary", "vgg11", "--input", "224", "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0
    assert found["totals"]["parameters"] == 132_863_336
    assert len(json.loads(call("models", "--json", capsys=capsys)[1])) == 10
    assert "vgg16_c" in call("models", capsys=capsys)[1]


def test_code_prints_a_listing(capsys):
    code, out, _ = call("code", "vgg11", "--style", "explicit", "--classes", 10, capsys=capsys)
    assert code == 0
    assert "self.conv1_1" in out
    compile(out, "listing", "exec")


def test_predict_as_json_is_an_object_a_picture(model, photos, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_text("x")
    code, out, err = call("predict", model, photos / "val", broken, "--json", "--top", 2, capsys=capsys)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert len(rows) == 16
    assert all(set(row) == {"path", "labels", "probabilities"} and len(row["labels"]) == 2 for row in rows[:-1])
    assert "broken.jpg" in rows[-1]["problem"]
    assert "broken.jpg" in err
    code, out, err = call("predict", model, broken, capsys=capsys)
    assert (code, out) == (2, "")


def test_evaluate_as_json_and_as_text(model, photos, capsys):
    code, out, _ = call("evaluate", model, photos, "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0
    assert {"top1", "top5", "loss", "n"} <= set(found)
    assert found["n"] == 15
    text = call("evaluate", model, photos, capsys=capsys)[1]
    assert f"top-1 {found['top1']:.4f}" in text
    assert "n = 15" in text


def test_train_through_a_real_process_then_predict(photos, tmp_path):
    def vggkit(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "vggkit", *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )

    trained = vggkit(
        "train", photos, "--until", "relu2_1", "--image-size", 32, "--epochs", 2, "--out", "r", "--json"
    )
    assert trained.returncode == 0, trained.stderr
    found = json.loads(trained.stdout)
    assert found["directory"] == "r"
    assert "epoch 2" in trained.stderr
    measured = json.loads(vggkit("evaluate", "r", photos, "--json").stdout)
    assert measured["top1"] == found["top1"]
    answers = vggkit("predict", "r/best.safetensors", photos / "val", "--json", "--top", 1)
    rows = [json.loads(line) for line in answers.stdout.splitlines()]
    right = sum(Path(row["path"]).parent.name == row["labels"][0] for row in rows)
    assert found["top1"] == pytest.approx(right / 15)
    again = vggkit("train", photos, "--out", "r")
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_identify_and_convert(model, tmp_path, capsys):
    code, out, _ = call("identify", model, capsys=capsys)
    assert code == 0
    assert str(model) in out
    target = tmp_path / "blocks.pth"
    code, out, _ = call("convert", model, target, "--to", "blocks", capsys=capsys)
    assert code == 0
    assert "blocks" in out
    code, out, _ = call("identify", target, model, "--json", capsys=capsys)
    rows = [json.loads(line) for line in out.splitlines()]
    asked = "configuration dialect batch_norm num_classes in_channels complete missing unexpected input_convention"
    assert all(set(asked.split()) <= row.keys() for row in rows)
    assert [row["dialect"] for row in rows] == ["blocks", "torchvision"]
    assert all((row["num_classes"], row["batch_norm"], row["complete"]) == (3, True, True) for row in rows)
    broken = tmp_path / "broken.pth"
    broken.write_text("<html>")
    code, out, err = call("identify", broken, target, capsys=capsys)
    assert code == 2
    assert "broken.pth" in err
    assert "blocks.pth" in out
    code, _, err = call("convert", broken, tmp_path / "x.pth", "--to", "timm", capsys=capsys)
    assert code == 2
    assert not (tmp_path / "x.pth").exists()
    assert call("identify", capsys=capsys)[0] == 2
    assert "caffe" in call("convert", model, target, "--to", "timm", "--input-convention", "cafe", capsys=capsys)[2]
