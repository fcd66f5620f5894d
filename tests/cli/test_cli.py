import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vggkit.classifier import Classifier
from vggkit.cli import main as cli
from vggkit.cli.spelling import list_options, spell_options
from vggkit.cli.train import train
from vggkit.engines.model_weights import ModelFile
from vggkit.engines.select import resolve_choice
from vggkit.hardware import computes_bf16
from vggkit.images.preprocessing import Preprocessing
from vggkit.training.presets import PRESETS
from vggkit.training.recipe import Recipe
from vggkit.workflows.run_config import NetworkChoice, RunConfig, read_field_texts

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


def test_the_surface_is_the_golden_list(monkeypatch, capsys):
    """Every verb with its options, as tyro lays them out. A new option is meant: write it into surface.json."""
    monkeypatch.setenv("COLUMNS", "120")
    surface = {}
    for verbs in cli.VERBS.values():
        for verb in verbs:
            code, out, _ = call(verb, "--help", capsys=capsys)
            assert code == 0
            surface[verb] = sorted(set(re.findall(r"^\W? ?(?:-h, )?(--[a-z][a-z0-9-]*)", out, flags=re.M)))
    assert surface == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_every_verb_has_its_command_and_help_explains_each(capsys):
    verbs = [name for group in cli.VERBS.values() for name in group]
    code, out, _ = call("--help", capsys=capsys)
    assert code == 0
    assert all(f"  {verb} " in out for verb in verbs)
    assert call(capsys=capsys)[1] == out
    assert "Exit codes" in out
    assert call("help", "train", capsys=capsys) == call("train", "--help", capsys=capsys)
    assert call("--version", capsys=capsys)[1].startswith("vggkit ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["--hepl"], "the verb comes first"),
        (["summary", "vgg12"], "Did you mean 'vgg1"),
        (["summary", "vgg11", "--input", "16"], "32"),
        (["summary", "vgg11", "--input", "big"], "--input"),
        (["summary", "vgg11", "--until", "relu3_3"], "relu3_2"),
        (["code", "vgg11", "--num-classes", "0"], "--num-classes"),
        (["train", "no-such-set"], "digits"),
        (["train"], "vggkit train FOLDER"),
        (["help", "trian"], "Did you mean 'train'?"),
        (["train", "digits", "--batch-size", "0"], "--batch-size must be"),
        (["train", "digits", "--epochs", "0"], "--epochs must be"),
        (["train", "digits", "--model", "resnet18"], "vgg11"),
        (["train", "digits", "--device", "tpu"], "tpu"),
        (["train", "digits", "--preset", "modren"], "Did you mean 'modern'"),
        (["train", "digits", "--preset=paper", "--trainable", "head"], "--trainable head"),
        (["train", "--preset", "paper", "--config", "x.yaml"], "--config and --preset"),
        (["train", "--config", "x.yaml"], "x.yaml: cannot be read"),
        (["train", "--config=x.yaml"], "x.yaml: cannot be read"),
        (["train", "--resume", "r"], "is not a run's folder"),
        (["train", "--resume", "r", "--seed", "3"], "--seed does not go with --resume"),
        (["train", "--resume=r", "--batch_size=3"], "--batch-size does not go with --resume"),
        (["train", "--out", "q", "--resume", "r"], "--out does not go with --resume"),
        (["compare"], "RUN RUN"),
        (["compare", "r", "q"], "r: is neither"),
        (["evaluate", "none.safetensors", "digits"], "none.safetensors"),
        (["predict", "none.safetensors", "x.jpg"], "none.safetensors"),
        (["predict", "none.safetensors"], "image"),
        (["predict", "none.safetensors", "x.jpg", "--out", "r.csv"], "none.safetensors"),
        (["predict", "none.safetensors", "x.jpg", "--out", "r.xlsx"], "r.xlsx: the name of such a file ends in"),
        (["predict", "none.safetensors", "x.jpg", "--overwrite"], "--overwrite is for --out"),
        (["embed", "none.safetensors", "--out", "v.npy"], "image"),
        (["embed", "none.safetensors", "x.jpg", "--out", "v.csv"], ".parquet or .npy"),
        (["search", "none.npy"], "image"),
        (["search", "none.npy", "x.jpg"], "vggkit embed"),
        (["search", "none.npy", "x.jpg", "--sheet", "s.gif"], ".png"),
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


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "train digits --epoch 3",
            "--epoch is not an option of train. Did you mean --epochs? `vggkit train --help`",
        ),
        ("train digits --epochs x", "--epochs must be a whole number; got 'x'"),
        ("train digits --epochs", "--epochs needs a value"),
        ("train digits --batch-size 1.5", "--batch-size must be a whole number; got '1.5'"),
        ("train digits --learning-rate fast", "--learning-rate must be a number; got 'fast'"),
        ("train digits --monitor f1", "--monitor must be top1, loss, macro-f1 or map; got 'f1'"),
        ("train digits --plots bmp", "--plots must be pdf, png or svg; got 'bmp'"),
        ("train digits --image-size 3", "--image-size must be 32 or more for this network; got 3"),
        ("train digits --until relu9_9", "--until must be a layer of this network; 'relu9_9' is not"),
        ("train digits --mean 0.5", "--mean must be 3 numbers, one for each channel (RGB); got 0.5"),
        ("train digits --mean 0.1,0.2,0.3,0.4", "one for each channel (RGB); got 0.1 0.2 0.3 0.4"),
        ("train digits --mean 0.1,x", "--mean must be numbers with spaces or commas between them; got '0.1,x'"),
        ("train digits --std", "--std must be numbers with spaces or commas between them; got none"),
        ("train digits --std 0 0 0", "--std must be above 0; got 0 0 0"),
        ("train digits more", "train does not take the argument 'more' too"),
        ("summary vgg11 --head poll", "--head must be dense, fc or pool; got 'poll'. Did you mean pool?"),
        ("summary vgg11 --input 3", "cut the trunk earlier with --until"),
        ("bench vgg11 --batch-sizes 1,x", "--batch-sizes must be whole numbers with spaces or commas between them"),
        ("predict", "predict needs MODEL: A model's name"),
        ("embed vgg11 x.jpg", "embed needs --out: Write the vectors to this file"),
        ("explain vgg11 x.jpg --contrast cat", "--contrast needs 2 values"),
    ],
)
def test_wrong_values_are_explained_in_one_line_with_the_options_as_they_are_typed(
    line, said, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*line.split(), capsys=capsys)
    assert (code, out) == (2, "")
    assert err.startswith("vggkit: error: ")
    assert said in err
    assert err.count("\n") == 1


def test_several_numbers_may_have_commas_between_them(asked):
    for given in (["0.5", "0.25", "0.125"], ["0.5,0.25,0.125"], ["0.5,", "0.25", ",0.125"]):
        (config, *_), _ = asked("train", "digits", "--mean", *given)
        assert config.network.mean == (0.5, 0.25, 0.125)


def test_help_has_no_two_blank_lines(capsys):
    for verb in ("train", "explain", "evaluate"):
        assert "\n\n\n" not in call(verb, "--help", capsys=capsys)[1]


class Asked(Exception):
    """Ends a training before it begins."""


@pytest.fixture
def asked(monkeypatch):
    """What the command asks of the workflow; nothing is trained."""
    from vggkit.workflows import resume_run, training_run

    calls = []

    def take(*arguments, **options):
        assert options.pop("group").size == 1
        assert not options.pop("may_be_unstarted", False)
        calls.append((arguments, options))
        raise Asked

    monkeypatch.setattr(training_run, "start_run", take)
    monkeypatch.setattr(resume_run, "resume_run", take)

    def ask(*arguments):
        with pytest.raises(Asked):
            cli.main([str(argument) for argument in arguments])
        return calls[-1]

    return ask


def test_what_train_was_asked_is_told_whole(asked, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos.parent)
    (config, images), options = asked(
        *("train", photos.name, "--until", "pool1", "--image-size", 32, "--epochs", 2, "--batch-size", 4),
        *("--loggers", "tensorboard", "wandb", "--despite-findings", "--find-learning-rate", "--save-seconds", 7),
        *("--out", "r", "--device", "cpu", "--quiet"),
    )
    assert images.name == photos.name
    written = RunConfig(
        data=str(photos),
        despite_findings=True,
        loggers=("tensorboard", "wandb"),
        find_learning_rate=True,
        network=NetworkChoice(until="pool1", image_size=32),
        recipe=Recipe(epochs=2, batch_size=4),
    )
    assert config == written
    assert options == {"out": Path("r"), "device": "cpu", "quiet": True, "save_seconds": 7.0, "plots": None}
    # Asked again by what was written, from another folder, it is asked the same.
    written.write(tmp_path / "run" / "config.yaml")
    monkeypatch.chdir(tmp_path)
    for config in ("run", "run/config.yaml"):
        assert asked("train", "--config", config, "--quiet")[0][0] == written
    # Explicit options win, flags too, and whether they say the same or not.
    (again, images), _ = asked(
        *("train", photos / "train", "--config=run", "--epochs=5", "--no-despite-findings", "--model", "vgg13"),
        *("--no-reduced-decoding", "--loggers", "csv", "--quiet"),
    )
    assert images.name == str(photos / "train")
    assert again == RunConfig(
        data=str(photos / "train"),
        loggers=("csv",),
        find_learning_rate=True,
        network=NetworkChoice(until="pool1", image_size=32, model="vgg13"),
        recipe=Recipe(epochs=5, batch_size=4),
    )
    assert asked("train", "--config", "run", "--despite-findings", "--quiet")[0][0] == written


def test_a_preset_is_where_a_recipe_begins(asked, photos, capsys):
    (config, _), _ = asked("train", photos, "--image-size", 32, "--preset", "paper", "--epochs", 7)
    assert config.recipe == replace(PRESETS["paper"].recipe, epochs=7)
    assert PRESETS["paper"].about[:40] in capsys.readouterr().err
    assert config.network == NetworkChoice(model="vgg11", image_size=32)
    chain = PRESETS["small-images"].network
    for options, network in (
        ((), NetworkChoice(**chain)),
        (("--dropout", 0.1), NetworkChoice(**chain, dropout=0.1)),
        (("--model", "vgg13_bn"), NetworkChoice(model="vgg13_bn", initialization="dirac")),
        (("--model=vgg13", "--initialization", "glorot"), NetworkChoice(model="vgg13", initialization="glorot")),
    ):
        (config, _), _ = asked("train", photos, "--preset", "small-images", *options)
        assert config.network == network


def test_weights_of_a_run_are_held_against_the_classes_of_the_data(photos, tmp_path, capsys):
    before = Classifier.create("vgg11", labels=("red", "down", "across"), until="pool1", seed=1)
    RunConfig().write(tmp_path / "run" / "config.yaml")
    before.save(tmp_path / "run" / "best.safetensors")
    for number, place in enumerate((tmp_path / "run", tmp_path / "run" / "best.safetensors")):
        out = tmp_path / str(number)
        code, _, _ = call(
            *("train", photos, "--weights", place, "--until", "pool1", "--image-size", 32, "--quiet", "--out", out),
            *("--epochs", 1, "--learning-rate", "1e-12", "--trainable", "all", "--device", "cpu"),
            *("--precision", "fp32"),
            capsys=capsys,
        )
        assert code == 0
        found = Classifier.load(out / "best.safetensors")
        assert found.labels == ("across", "down", "red")
        expected = before.network.classifier[-1].weight
        torch.testing.assert_close(found.network.classifier[-1].weight, expected.flip(0), rtol=0, atol=1e-5)
        assert RunConfig.read(out).network.weights == str(place)


def test_resume_takes_the_run_s_folder_and_where_its_images_are_now(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RunConfig().write(tmp_path / "runs" / "a" / "config.yaml")
    arguments, options = asked("train", "--resume", "runs/a", "--device", "cpu", "--quiet", "--save-seconds=9")
    assert arguments == (Path("runs/a"), None)
    assert options == {"epochs": 10, "device": "cpu", "quiet": True, "save_seconds": 9.0, "plots": None}
    assert asked("train", "--resume", "runs/a", "--epochs=30")[1]["epochs"] == 30
    assert asked("train", "moved", "--resume=runs/a")[0] == (Path("runs/a"), "moved")


def test_help_shows_what_a_configuration_makes_the_default(tmp_path, capsys):
    RunConfig(data="/my/photos", recipe=Recipe(epochs=77), from_python=True).write(tmp_path / "config.yaml")
    code, out, err = call("train", "--config", tmp_path, "--help", capsys=capsys)
    assert code == 0
    assert "(default: 77)" in out
    assert "/my/photos" in out
    assert "started from Python" in err


def test_the_help_of_an_option_is_the_text_under_its_field(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    _, out, _ = call("train", "--help", capsys=capsys)
    shown = " ".join(out.replace("│", " ").split())
    for kind in (Recipe, NetworkChoice):
        for name, text in read_field_texts(kind).items():
            assert f"--{name.replace('_', '-')}" in shown
            assert spell_options(text, list_options(train)) in shown, name
    assert ">>>" not in out
    assert "Raises" not in out


def test_compare_as_table_json_and_image(tmp_path, capsys):
    for name, rate in (("a", 0.1), ("b", 0.2)):
        RunConfig(recipe=Recipe(learning_rate=rate)).write(tmp_path / name / "config.yaml")
        (tmp_path / name / "metrics.csv").write_text(
            "epoch,learning_rate,train_loss,val_loss,val_top1,seconds\n1,0.1,1.0,0.9,0.5,3.0\n", encoding="utf-8"
        )
    code, out, _ = call("compare", tmp_path / "a", tmp_path / "b", "--plot", tmp_path / "c.png", capsys=capsys)
    assert code == 0
    assert "unfinished: a, 1 of 10 epochs" in out
    assert "learning rate" in out
    assert f"drawn: {tmp_path / 'c.png'}" in out
    assert (tmp_path / "c.png").read_bytes()[1:4] == b"PNG"
    found = json.loads(call("compare", tmp_path, "--json", capsys=capsys)[1])
    assert [run["name"] for run in found["runs"]] == ["a", "b"]
    assert found["differing"] == {"learning_rate": [0.1, 0.2]}


def test_a_stop_exits_with_128_and_its_signal(monkeypatch, capsys):
    class Stopped(KeyboardInterrupt):
        signal_number = 15

    for stop, code in ((Stopped, 143), (KeyboardInterrupt, 130)):

        def end(given, stop=stop):
            raise stop

        monkeypatch.setattr(cli, "_run", end)
        found, out, err = call("train", capsys=capsys)
        assert (found, out) == (code, "")
        assert "interrupted" in err


def test_summary_and_models_as_json(capsys):
    code, out, _ = call("summary", "vgg11", "--input", "224", "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0
    assert found["totals"]["parameters"] == 132_863_336
    assert len(json.loads(call("models", "--json", capsys=capsys)[1])) == 11
    assert "vgg16_c" in call("models", capsys=capsys)[1]


def test_code_prints_a_listing(capsys):
    code, out, _ = call("code", "vgg11", "--style", "explicit", "--num-classes", 10, capsys=capsys)
    assert code == 0
    assert "self.conv1_1" in out
    compile(out, "listing", "exec")


def test_predict_as_json_is_an_object_an_image(model, photos, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_text("x")
    code, out, err = call("predict", model, photos / "val", broken, "--json", "--top", 2, capsys=capsys)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert len(rows) == 16
    assert all(set(row) == {"path", "labels", "probabilities"} and len(row["labels"]) == 2 for row in rows[:-1])
    assert "broken.jpg" in rows[-1]["problem"]
    assert "broken.jpg" in err
    code, out, err = call("predict", model, broken, capsys=capsys)
    assert (code, out) == (2, "")


@pytest.mark.parametrize("quiet", [(), ("--quiet",)], ids=["with progress", "quiet"])
def test_of_many_broken_images_three_are_named_and_the_others_counted(quiet, model, photos, tmp_path, capsys):
    folder = tmp_path / "mixed"
    shutil.copytree(photos / "val", folder)
    for number in range(7):
        (folder / f"broken{number}.jpg").write_text("x")
    code, out, err = call("predict", model, folder, *quiet, capsys=capsys)
    assert (code, len(out.splitlines())) == (1, 15)
    errors = [line for line in err.splitlines() if line.startswith("vggkit: error: ")]
    assert len(errors) == 4
    assert all(f"broken{number}.jpg" in errors[number] for number in range(3))
    assert "and 4 more; 7 of 22 images failed" in errors[3]
    if quiet:
        assert err.splitlines() == errors
    for number in range(7):
        shutil.copy(folder / f"broken{number}.jpg", folder / "red")
    code, _, err = call("evaluate", model, folder, *quiet, "--json", capsys=capsys)
    assert code == 1
    assert "and 4 more; 7 of 22 images failed" in err


def test_train_without_images_trains_on_digits_and_says_so(asked, capsys):
    (config, images), _ = asked("train", "--epochs", 1, "--quiet")
    assert (config.data, images.name) == ("digits", "digits")
    assert "no images were given: training on digits" in capsys.readouterr().err


def test_predict_to_a_file_says_what_is_in_it(model, photos, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_text("x")
    out = tmp_path / "r.csv"
    code, said, err = call("predict", model, photos / "val", broken, "--out", out, "--top", 1, capsys=capsys)
    assert (code, err) == (1, f"vggkit: error: 1 of 16 images failed; column problem of {out} has the reasons\n")
    assert said.startswith(f"{out}: 16 images; computed by ")
    lines = out.read_text().splitlines()
    assert lines[0] == "path,prediction,label_1,probability_1,problem"
    assert len(lines) == 17
    code, said, _ = call(
        "predict", model, photos / "val", broken, "--out", out, "--top", 1, "--json", capsys=capsys
    )
    assert json.loads(said)["found_done"] == 16
    assert call("predict", model, photos / "val", "--out", out, capsys=capsys)[0] == 2
    assert call("predict", model, broken, "--out", tmp_path / "b.csv", capsys=capsys)[0] == 2


def test_embed_then_search(model, photos, tmp_path, capsys):
    pytest.importorskip("faiss")
    index = tmp_path / "v.npy"
    code, said, _ = call("embed", model, photos / "val", "--out", index, capsys=capsys)
    assert code == 0
    assert said.startswith(f"{index}: 15 images; computed by ")
    asked = photos / "val" / "red" / "101.png"
    code, said, _ = call("search", index, os.path.relpath(asked), "--top", 2, "--json", capsys=capsys)
    assert code == 0
    found = json.loads(said)
    assert found["path"] == os.path.relpath(asked)
    code, said, _ = call("search", index, asked, "--top", 1, "--keep-query", "--json", capsys=capsys)
    assert json.loads(said)["similar"][0]["path"] == str(asked)
    assert str(asked) not in [each["path"] for each in found["similar"]]
    assert len(found["similar"]) == 2
    assert str(asked) in call("search", index, asked, capsys=capsys)[1]
    (tmp_path / "x.png").write_text("x")
    code, said, err = call("search", index, tmp_path / "x.png", capsys=capsys)
    assert (code, said) == (2, "")
    assert "x.png" in err


def test_evaluate_as_json_and_as_text(model, photos, capsys):
    code, out, _ = call("evaluate", model, photos, "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0
    assert {"top1", "top5", "loss", "n"} <= set(found)
    assert found["n"] == 15
    text = call("evaluate", model, photos, capsys=capsys)[1]
    assert re.search(rf"top-1 +{100 * found['top1']:.1f} %", text)
    assert "n = 15" in text
    assert found["protocol"] in text


def test_train_through_a_real_process_then_predict(photos, tmp_path, processes, capsys):
    trained = processes.run(
        *("train", photos, "--until", "pool1", "--image-size", 32, "--epochs", 2, "--out", "r", "--json"),
        cwd=tmp_path,
    )
    found = json.loads(trained.out)
    assert found["directory"] == "r"
    assert "epoch 2" in trained.err
    run = tmp_path / "r"
    measured = json.loads(call("evaluate", run, photos, "--json", capsys=capsys)[1])
    assert measured["top1"] == found["top1"]
    asked = "predict", run / "best.safetensors", photos / "val", "--json", "--top", 1, "--precision", "fp32"
    rows = [json.loads(line) for line in call(*asked, capsys=capsys)[1].splitlines()]
    right = sum(Path(row["path"]).parent.name == row["labels"][0] for row in rows)
    assert found["top1"] == pytest.approx(right / 15)
    again = processes.start("train", photos, "--out", "r", cwd=tmp_path)
    assert again.wait() == 2
    assert "exists already" in again.err


@pytest.mark.slow
def test_a_command_ends_in_silence(photos, tmp_path):
    """A whole interpreter, to its exit, where libraries report objects that were not collected."""
    options = ["--until", "pool1", "--image-size", "32", "--epochs", "1", "--out", "r", "--quiet"]
    command = [sys.executable, "-m", "vggkit", "train", str(photos), *options]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0
    assert "leaked" not in ended.stderr


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


def test_asking_a_file_on_a_processor_imports_no_torch(model, photos, tmp_path):
    """A card, mapped weights and OpenVINO are enough; half a process's time is gone otherwise."""
    pytest.importorskip("openvino")
    pytest.importorskip("faiss")
    image = next((photos / "val" / "red").iterdir())

    def ask(*arguments, environment=None):
        code = (
            "import sys, contextlib\n"
            "from vggkit.cli.main import main\n"
            f"with contextlib.suppress(SystemExit): main({list(map(str, arguments))!r})\n"
            "print([name for name in ('torch', 'torchvision', 'sklearn', 'matplotlib') if name in sys.modules])"
        )
        told = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.splitlines()[-1] == "[]", told.stderr
        return told

    told = ask("predict", model, image, "--device", "cpu")
    assert told.stdout.startswith(f"{image}: ")
    chosen = resolve_choice("cpu", precision="fp32", pixels=ModelFile(model).pixels)[1]
    exact = {"openvino": "OpenVINO", "ncnn": "ncnn"}[chosen]
    kind = "OpenVINO in bfloat16, which" if computes_bf16("cpu") else f"{exact} in float32, because"
    assert f"computed by {kind}" in told.stderr
    told = ask("predict", model, image, "--device", "cpu", environment={"ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert f"computed by {exact} in float32, because this processor has no fast bfloat16" in told.stderr
    ask("predict", model, photos / "val", "--device", "cpu", "--out", tmp_path / "answers.csv")
    ask("embed", model, photos / "val", "--device", "cpu", "--out", tmp_path / "vectors.npy")
    assert "100.png" in ask("search", tmp_path / "vectors.npy", image, "--device", "cpu").stdout


def test_every_engine_says_the_same(model, photos, tmp_path, capsys):
    told = [
        call(
            *("predict", model, photos / "val", "--json", "--engine", engine, "--precision", "fp32", "--quiet"),
            capsys=capsys,
        )[1]
        for engine in ("pytorch", "openvino", "onnx", "ncnn")
        if engine != "ncnn" or importlib.util.find_spec("ncnn")
    ]
    found = [[json.loads(line) for line in text.splitlines()] for text in told]
    assert len(found[0]) == 15
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert one["labels"] == other["labels"]
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)
    line = ("predict", model, photos / "val", "--out", tmp_path / "x.csv", "--engine", "onnx", "--quiet")
    code, said, _ = call(*line, capsys=capsys)
    assert code == 0
    assert "computed by ONNX Runtime in float32" in said
    line = ("embed", model, photos / "val", "--out", tmp_path / "x.npy", "--engine", "openvine", "--quiet")
    assert call(*line, capsys=capsys)[0] == 2
