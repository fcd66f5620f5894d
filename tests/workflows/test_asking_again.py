"""What was asked of a run is asked again by --config, and all else is chosen anew, whatever option changes."""

import typing
from dataclasses import fields, replace

import pytest
import yaml

from conftest import fill_folder
from vggkit.classifier import Classifier, load
from vggkit.cli import main as cli
from vggkit.cli.defaults import find_defaults
from vggkit.errors import BadConfiguration
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.models.configure import configure
from vggkit.training import linear_probe
from vggkit.training.presets import PRESETS
from vggkit.training.recipe import Recipe
from vggkit.training.resolve_recipe import Situation, resolve_recipe
from vggkit.weights.origin import WeightsOrigin
from vggkit.workflows.compare import compare
from vggkit.workflows.run_config import NetworkChoice, RunConfig

FEW = NetworkChoice(weights="/w.pth", image_size=96)
BASES = {
    "nothing": RunConfig(),
    "few photos from weights": RunConfig(network=FEW),
    "many photos from weights": RunConfig(network=replace(FEW, image_size=224)),
    "small": RunConfig(network=NetworkChoice(model="vgg11_bn", image_size=32)),
    "head": RunConfig(network=FEW, recipe=Recipe(trainable="head")),
    "views": RunConfig(network=FEW, recipe=Recipe(views=3)),
    "adamw": RunConfig(network=FEW, recipe=Recipe(optimizer="adamw", batch_size=8)),
    "unaugmented": RunConfig(network=FEW, recipe=Recipe(augmentation="none", learning_rate=0.1)),
    "mixed": RunConfig(recipe=Recipe(mixup=0.2, precision="fp32")),
    **{f"preset {name}": RunConfig(recipe=preset.recipe) for name, preset in PRESETS.items()},
}
NUMBERS = {
    **{"epochs": 7, "batch_size": 16, "learning_rate": 0.02, "layer_decay": 0.8, "momentum": 0.8},
    **{"weight_decay": 0.01, "step_epochs": 2, "warmup_epochs": 0.5, "clip_norm": 0.3, "accumulate": 2},
    **{"freeze_norm": True, "ema_decay": 0.9, "patience": 3, "label_smoothing": 0.2, "rand_augment": 9},
    **{"random_erasing": 0.3, "mixup": 0.4, "cutmix": 0.5, "views": 4, "validation_share": 0.3, "fold": "2/5"},
    **{"sync_norm": True, "split_head": True, "seed": 5, "whitening": True, "bias_rate_factor": 4.0},
    **{"batch_norm_momentum": 0.4, "shift_pixels": 2},
}
RECIPE_CHANGES = [
    (field.name, value)
    for field in fields(Recipe)
    for kind in [typing.get_type_hints(Recipe)[field.name]]
    for value in (typing.get_args(kind) if field.name not in NUMBERS else [NUMBERS[field.name]])
]
NETWORK_CHANGES = [
    *(
        ("model", "vgg16_bn"),
        ("blocks", "8/8,8"),
        ("weights", "/w.pth"),
        ("head", "pool"),
        ("until", "relu2_1"),
        ("image_size", 64),
    ),
    *(("fit_mode", "pad"), ("reduced_decoding", True), ("in_channels", 1), ("dropout", 0.1)),
    *(("initialization", "glorot"), ("input_convention", "caffe"), ("allow_partial", True)),
    *(("mean", (0.1, 0.2, 0.3)), ("std", (0.4, 0.5, 0.6))),
]


def resolve(config, changes, *, bf16=True, images=300):
    """The recipe that `train` would settle on, or why it refuses."""
    kinds = {field.name: "recipe" for field in fields(Recipe)}
    kinds |= {field.name: "network" for field in fields(NetworkChoice)}
    try:
        for name, value in changes.items():
            section = replace(getattr(config, kinds[name]), **{name: value})
            config = replace(config, **{kinds[name]: section})
        network = config.network
        configuration = configure(network.model, num_classes=3, head=network.head, until=network.until)
        last = configuration.fully_connected[-1].index
        situation = Situation(
            configuration=configuration,
            preprocessing=choose_preprocessing(network.image_size or 224),
            origin=WeightsOrigin(
                kind="loaded", random_keys=(f"classifier.{last}.weight", f"classifier.{last}.bias")
            )
            if network.weights
            else WeightsOrigin(),
            images=images if network.image_size != 224 else 5000,
            bf16=bf16,
        )

        def choose(known):
            return (8 if known.trainable == "all" else 32), "it is the rule here"

        return resolve_recipe(config.recipe, situation, choose_batch_size=choose)[0]
    except BadConfiguration as refused:
        return str(refused)


def read_again(folder, changes):
    """What `train --config` begins with beside such options."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    found = find_defaults(["--config", str(folder), *options])
    return RunConfig(network=found["network"], recipe=found["recipe"])


def test_every_option_is_swept():
    assert {name for name, _ in RECIPE_CHANGES} == {field.name for field in fields(Recipe)}
    assert {name for name, _ in NETWORK_CHANGES} == {field.name for field in fields(NetworkChoice)}


@pytest.mark.parametrize(
    "base",
    [
        base
        if base in ("nothing", "few photos from weights", "preset modern")
        else pytest.param(base, marks=pytest.mark.slow)
        for base in BASES
    ],
)
def test_a_changed_option_gives_what_a_fresh_run_would_choose(base, tmp_path):
    asked = BASES[base]
    settled = resolve(asked, {})
    assert isinstance(settled, Recipe)
    asked.record(settled, {"labels": ["a", "b", "c"]}).write(tmp_path / "config.yaml")
    refused = 0
    for name, value in [*RECIPE_CHANGES, *NETWORK_CHANGES]:
        fresh = resolve(asked, {name: value})
        assert resolve(read_again(tmp_path, {name: value}), {name: value}) == fresh, (name, value)
        refused += isinstance(fresh, str)
    assert refused < len(RECIPE_CHANGES) / 2
    assert resolve(read_again(tmp_path, {}), {}) == settled
    # And on another machine, with other data.
    other = resolve(asked, {}, bf16=False, images=9)
    assert resolve(read_again(tmp_path, {}), {}, bf16=False, images=9) == other


@pytest.mark.sweep(3)
@pytest.mark.parametrize("base", list(BASES))
def test_a_run_of_a_run_of_a_run_still_knows_what_was_asked(base, tmp_path):
    asked = BASES[base]
    for _ in range(3):
        config = read_again(tmp_path, {}) if (tmp_path / "config.yaml").exists() else asked
        config.record(resolve(config, {}), {}).write(tmp_path / "config.yaml")
    assert RunConfig.read(tmp_path).recipe == asked.recipe
    assert RunConfig.read(tmp_path).resolved == resolve(asked, {})


def test_a_file_that_is_edited_is_chosen_for_anew(tmp_path):
    asked = BASES["few photos from weights"]
    asked.record(resolve(asked, {}), {}).write(tmp_path / "config.yaml")
    path = tmp_path / "config.yaml"
    assert resolve(asked, {}).augmentation == "none"
    path.write_text(path.read_text(encoding="utf-8").replace("  views: 1", "  views: 4"), encoding="utf-8")
    assert resolve(read_again(tmp_path, {}), {}) == resolve(asked, {"views": 4})


def write_old(folder, asked, settled):
    """As runs were written that kept the settled recipe, and only the names of what was chosen."""
    chosen = [name for name, value in settled.to_dict().items() if value != getattr(asked.recipe, name)]
    replace(asked, recipe=settled, found={"labels": ["a"], "chosen": chosen}).write(folder / "config.yaml")
    text = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert text["recipe"] == settled.to_dict()


@pytest.mark.parametrize("base", list(BASES))
def test_runs_of_earlier_versions_are_understood(base, tmp_path):
    asked = BASES[base]
    settled = resolve(asked, {})
    write_old(tmp_path, asked, settled)
    found = RunConfig.read(tmp_path)
    assert (found.recipe, found.resolved) == (asked.recipe, settled)
    assert found.found["labels"] == ["a"]
    changes = {"views": 4} if asked.network.weights else {"optimizer": "muon"}
    assert resolve(read_again(tmp_path, changes), changes) == resolve(asked, changes)


def test_runs_that_tell_nothing_of_choices_were_asked_all_that_they_say(tmp_path):
    recipe = Recipe(learning_rate=0.3, augmentation="none")
    RunConfig(recipe=recipe).write(tmp_path / "config.yaml")
    found = RunConfig.read(tmp_path)
    assert found.recipe == found.resolved == recipe
    for nonsense in ("[nonsense, 3]", "{nonsense: 1}", "3"):
        (tmp_path / "config.yaml").write_text(f"recipe: {{learning_rate: 0.3}}\nfound: {{chosen: {nonsense}}}\n")
        found = RunConfig.read(tmp_path)
        assert found.recipe.learning_rate == found.resolved.learning_rate == 0.3


def test_a_rate_that_was_looked_for_is_looked_for_again_unless_one_is_given(tmp_path):
    asked = RunConfig(find_learning_rate=True)
    settled = replace(resolve(asked, {}), learning_rate=0.123)
    asked.record(settled, {}).write(tmp_path / "config.yaml")
    assert RunConfig.read(tmp_path).resolved.learning_rate == 0.123
    again = find_defaults(["--config", str(tmp_path), "--epochs", "3"])
    assert (again["find_learning_rate"], again["recipe"].learning_rate) == (True, None)
    again = find_defaults(["--config", str(tmp_path), "--learning_rate=0.1"])
    assert not again["find_learning_rate"]
    RunConfig(recipe=Recipe(learning_rate=0.2)).write(tmp_path / "config.yaml")
    again = find_defaults(["--config", str(tmp_path), "--find-learning-rate"])
    assert again["recipe"].learning_rate is None
    assert find_defaults(["--config", str(tmp_path), "--epochs=3"])["recipe"].learning_rate == 0.2


def test_what_was_chosen_is_what_is_compared(tmp_path):
    for name, base in (("a", "few photos from weights"), ("b", "adamw")):
        BASES[base].record(resolve(BASES[base], {}), {}).write(tmp_path / name / "config.yaml")
    found = compare([tmp_path])
    assert [run.trainable for run in found.runs] == ["head", "all"]
    assert found.differing["optimizer"] == ("sgd", "adamw")
    assert found.differing["augmentation"] == ("none", "photo")


def test_what_is_edited_into_a_file_is_not_hidden_by_what_was_chosen(tmp_path):
    asked = BASES["small"]
    asked.record(resolve(asked, {}), {}).write(tmp_path / "config.yaml")
    path = tmp_path / "config.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("learning_rate: null", "learning_rate: 0.77"), encoding="utf-8")
    assert RunConfig.read(path).resolved == replace(resolve(asked, {}), learning_rate=0.77)


@pytest.mark.slow
def test_views_of_a_run_that_had_none_differ_from_each_other(tmp_path, monkeypatch):
    """The head of a run that saw each image once, and then by --config --views 3."""
    monkeypatch.setenv("VGGKIT_HOME", str(tmp_path / "home"))
    fill_folder(tmp_path / "photos", ("across", "down"), 5)
    Classifier.create("vgg11", labels=("a", "b"), until="pool1", seed=0).save(tmp_path / "w.safetensors")
    told = []
    extract = linear_probe.extract_features

    def listen(*arguments, **options):
        found = extract(*arguments, **options)
        told.append((options["views"], found.rows))
        return found

    monkeypatch.setattr(linear_probe, "extract_features", listen)
    again = ["--config", tmp_path / "1", "--views", 3]
    network = ["--weights", tmp_path / "w.safetensors", "--until", "pool1", "--image-size", 32]
    for number, options in enumerate(([tmp_path / "photos", *network], again)):
        given = ["train", *options, "--out", tmp_path / str(number + 1), "--quiet", "--device", "cpu", "--json"]
        with pytest.raises(SystemExit) as ended:
            cli.main([str(option) for option in given])
        assert ended.value.code == 0
    rows = [rows.reshape(-1, 3, rows.shape[1]) for views, rows in told if views == 3]
    assert all((rows[0][:, 0] != rows[0][:, view]).any(1).all() for view in (1, 2)), "by what is usual they differ"
    assert load(tmp_path / "2").provenance["recipe"]["augmentation"] == "shift"
