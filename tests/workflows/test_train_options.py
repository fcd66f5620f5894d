"""Every option of a training has one name: in the shell, in Python, in YAML and in the docstrings."""

import inspect
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml

import vggkit as vk
from vggkit.classifier import Classifier
from vggkit.cli.main import main
from vggkit.errors import BadConfiguration, BadInput, UnknownName
from vggkit.field_texts import read_field_texts
from vggkit.images.sources.tables import Columns
from vggkit.training.presets import PRESETS
from vggkit.training.recipe import Recipe
from vggkit.workflows import train as module
from vggkit.workflows.run_config import NetworkChoice, RunConfig

SURFACE = Path(__file__).parents[1] / "cli" / "surface.json"
PARAMETERS = inspect.signature(vk.train).parameters
OF_THE_SHELL_ALONE = {"help", "json"}
"""What a call from Python has no use for: it gives a TrainingRun."""
OF_PYTHON_ALONE = {"data", "recipe", "on_epoch"}
"""The shell's positional argument; a whole Recipe, whose fields are options of their own; and a function."""


class Enough(Exception):
    """Ends a training before it begins."""


@pytest.fixture
def started(monkeypatch):
    """What `train` begins with; nothing is trained."""
    calls = []

    def take(config, dataset, **options):
        calls.append((config, dataset, options))
        raise Enough

    monkeypatch.setattr(module, "start_run", take)

    def start(*arguments, **options):
        with pytest.raises(Enough):
            vk.train(*arguments, **options)
        return calls[-1]

    return start


def test_the_shell_and_python_have_the_same_options():
    shell = {name.removeprefix("--").replace("-", "_") for name in json.loads(SURFACE.read_text())["train"]}
    assert set(PARAMETERS) - OF_PYTHON_ALONE == shell - OF_THE_SHELL_ALONE
    assert all(p.kind is p.KEYWORD_ONLY for name, p in PARAMETERS.items() if name != "data")


def test_yaml_has_the_same_options(tmp_path):
    RunConfig().write(tmp_path / "config.yaml")
    values = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    names = {name for name in values if name not in ("network", "recipe", "columns", "found")}
    names |= {name for section in ("network", "recipe", "columns") for name in values[section]}
    of_this_call = {
        "out",
        "config",
        "preset",
        "resume",
        "plots",
        "save_seconds",
        "device",
        "quiet",
        "recipe",
        "on_epoch",
    }
    # Written where it was asked for.
    assert names | {"find_learning_rate", "search", "teacher"} == set(PARAMETERS) - of_this_call


def test_the_docstring_says_of_each_option_what_its_field_says():
    text = " ".join(str(vk.train.__doc__).split())
    for kind in (NetworkChoice, Recipe, Columns):
        for name, about in read_field_texts(kind).items():
            assert f"{name}: {about}" in text or name == "model", name
    assert [name for name in PARAMETERS if f" {name}: " not in text] == []


def test_options_by_name_are_those_of_the_shell(started, photos, tmp_path):
    rows = [f"{file},{file.parent.name}" for file in sorted((photos / "train").rglob("*.png"))]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["file,label", *rows]))
    config, dataset, options = started(
        table, model="vgg11_bn", blocks="8/8,8", epochs=3, image_size=32, path_column="file", out="r", quiet=True
    )
    assert config == RunConfig(
        data=str(table),
        columns=Columns(path_column="file"),
        network=NetworkChoice(model="vgg11_bn", blocks="8/8,8", image_size=32),
        recipe=Recipe(epochs=3),
    )
    assert dataset.labels == ("across", "down", "red")
    assert (options["out"], options["model"], options["quiet"]) == ("r", None, True)


@pytest.mark.parametrize("written", ["python", "shell", "yaml"])
def test_weights_that_are_a_models_name_name_the_model_too(started, photos, tmp_path, monkeypatch, written):
    monkeypatch.chdir(tmp_path)

    def begin(**options):
        if written == "python":
            return started(photos, **options)[0].network
        if written == "yaml":
            text = yaml.safe_dump({"data": str(photos), "network": options})
            (tmp_path / "asked.yaml").write_text(text)
            return started(config=tmp_path / "asked.yaml")[0].network
        return from_shell(monkeypatch, photos, options)

    assert begin(weights="vgg16").model == "vgg16"
    assert begin(weights="vgg16", model="vgg13").model == "vgg13"
    assert begin(weights="imagenet").model == begin(until="pool1").model == "vgg11"
    Classifier.create("vgg11", labels=["a", "b"], until="pool1").save(tmp_path / "own.safetensors")
    (tmp_path / "own.safetensors").rename(tmp_path / "vgg16")  # a file comes before the name
    assert begin(weights="vgg16").model == "vgg11"


def from_shell(monkeypatch, photos, options):
    """The network that `vggkit train` with these options begins with."""
    found = []

    def take(config, **_):
        found.append(config.network)
        raise BadInput("enough")

    monkeypatch.setattr("vggkit.cli.train.open_inputs", take)
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    with pytest.raises(SystemExit):
        main(["train", str(photos), *words, "--quiet"])
    return found[0]


def test_what_is_named_wins_over_what_it_begins_with(started, photos, tmp_path):
    assert started(photos, preset="paper", epochs=7)[0].recipe == Recipe.from_dict(
        PRESETS["paper"].recipe.to_dict() | {"epochs": 7}
    )
    assert started(photos, recipe=Recipe(epochs=9, seed=4), seed=5)[0].recipe == Recipe(epochs=9, seed=5)
    base = RunConfig(
        data=str(photos), despite_findings=True, network=NetworkChoice(until="pool1"), recipe=Recipe(epochs=2)
    )
    base.write(tmp_path / "config.yaml")
    assert started(config=tmp_path)[0] == base
    again = started(config=tmp_path, despite_findings=False, until="pool2", batch_size=4)[0]
    assert again == RunConfig(
        data=str(photos), network=NetworkChoice(until="pool2"), recipe=Recipe(epochs=2, batch_size=4)
    )


def test_a_preset_brings_its_network_where_none_is_named(started, photos, tmp_path):
    preset = PRESETS["small-images"]
    assert started(photos, preset="small-images")[0].network == NetworkChoice(**preset.network)
    assert started(photos, preset="small-images", dropout=0.1)[0].network == NetworkChoice(
        **preset.network, dropout=0.1
    )
    named = NetworkChoice(model="vgg13_bn", initialization="dirac")
    assert started(photos, preset="small-images", model="vgg13_bn")[0].network == named
    trained = Classifier.create("vgg11_bn", labels=["a", "b"], head="pool")
    assert started(photos, preset="small-images", model=trained)[0].network == NetworkChoice.of(trained)


def test_a_rate_that_is_given_and_one_that_is_searched_exclude_each_other(started, photos, tmp_path):
    RunConfig(data=str(photos), find_learning_rate=True).write(tmp_path / "searched" / "config.yaml")
    RunConfig(data=str(photos), recipe=Recipe(learning_rate=0.2)).write(tmp_path / "given" / "config.yaml")
    config = started(config=tmp_path / "searched", learning_rate=0.1)[0]
    assert (config.find_learning_rate, config.recipe.learning_rate) == (False, 0.1)
    config = started(config=tmp_path / "given", find_learning_rate=True)[0]
    assert (config.find_learning_rate, config.recipe.learning_rate) == (True, None)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"preset": "paper", "config": "x"}, BadConfiguration, "config and preset"),
        ({"preset": "papr"}, UnknownName, "paper"),
        ({"model": "vgg12"}, UnknownName, "vgg11"),
        ({"model": 3}, BadConfiguration, "list_models"),
        ({"epochs": 0}, BadConfiguration, "epochs must be"),
        ({"blocks": "64-64"}, BadConfiguration, "blocks"),
        ({"resume": "r", "epochs": 3}, BadConfiguration, "does not go with resume"),
        ({"loggers": "wandb"}, BadConfiguration, "loggers"),
        ({"recipe": {"epochs": 3}}, BadConfiguration, "Recipe"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(options, error, match, photos, tmp_path):
    with pytest.raises(error, match=match):
        vk.train(photos, out=tmp_path / "run", quiet=True, **options)
    assert not (tmp_path / "run").exists()


def test_a_classifier_comes_as_model(tiny, photos):
    classifier = Classifier.create(tiny, labels=("across", "down", "red"))
    with pytest.raises(BadInput, match=r"train\(data, model=classifier\)"):
        vk.train(classifier)
    with pytest.raises(BadConfiguration, match="head is an option of a new network"):
        vk.train(photos, model=classifier, head="pool")


def test_a_network_of_ones_own_learns_in_one_line(photos, tmp_path):
    run = vk.train(
        photos,
        model="vgg11_bn",
        blocks="8/8,8",
        epochs=2,
        batch_size=16,
        image_size=32,
        precision="fp32",
        out=tmp_path / "run",
        device="cpu",
        quiet=True,
    )
    assert isinstance(run.classifier, vk.Classifier)
    assert run.classifier.configuration.blocks == ((8,), (8, 8))
    assert run.classifier.configuration.batch_norm
    assert len(run.history) == 2
    assert RunConfig.read(run.directory).network.blocks == "8/8,8"
    again = vk.train(resume=run.directory, device="cpu", quiet=True)
    assert again.history == run.history
    assert {field.name for field in fields(again)} >= {"classifier", "directory", "history", "evaluation"}


def test_a_state_dict_in_memory_is_as_its_file(photos, tmp_path):
    network = vk.VGG(vk.configure("vgg11_bn", blocks="8/8,8", num_classes=3, head="pool"))
    torch.save(network.state_dict(), tmp_path / "w.pth")
    options = {"model": "vgg11_bn", "blocks": "8/8,8", "image_size": 32, "epochs": 1, "batch_size": 16}
    options |= {"head": "pool", "device": "cpu", "quiet": True, "precision": "fp32"}
    runs = [
        vk.train(photos, weights=weights, out=tmp_path / name, **options)
        for name, weights in (
            ("file", tmp_path / "w.pth"),
            ("memory", network.state_dict()),
            ("checkpoint", {"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}),
        )
    ]
    for run in runs:
        assert run.classifier.origin.kind == "trained" or run.classifier.origin.random_keys == ()
        assert run.history == runs[0].history or run.evaluation.loss == runs[0].evaluation.loss
        assert run.classifier.provenance["weights"]["missing"] == []
    config = RunConfig.read(runs[1].directory)
    assert (config.network.weights, config.from_python) == (None, True)
    for wrong, error, said in (
        ({"fc.weight": torch.zeros(3, 3)}, vk.BadCheckpoint, "state dict in memory: .*not a VGG"),
        ({}, vk.BadCheckpoint, "state dict in memory"),
        (network, BadInput, "got VGG"),
    ):
        with pytest.raises(error, match=said):
            vk.train(photos, weights=wrong, out=tmp_path / "no", **options)
    assert not (tmp_path / "no").exists()


def test_the_order_of_version_0_1_still_works(tiny, photos, tmp_path):
    made = [vk.Classifier.create(tiny, labels=["across", "down", "red"], seed=1) for _ in range(2)]
    recipe = vk.Recipe(epochs=1, batch_size=8)
    with pytest.warns(DeprecationWarning, match=r"train\(data, model=classifier\)"):
        earlier = vk.train(made[0], photos, recipe, out=tmp_path / "a", device="cpu", quiet=True)
    now = vk.train(photos, model=made[1], recipe=recipe, out=tmp_path / "b", device="cpu", quiet=True)
    assert earlier.history[-1].train_loss == now.history[-1].train_loss
    with pytest.raises(vk.BadInput, match="takes the data first"):
        vk.train(made[0])
