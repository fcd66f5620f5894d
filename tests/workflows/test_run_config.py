import subprocess
import sys
import typing
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from vggkit.classifier import Classifier
from vggkit.errors import BadConfiguration, BadOutput
from vggkit.field_texts import read_field_texts
from vggkit.images.preprocessing import FitMode, Preprocessing
from vggkit.images.sources.tables import Columns
from vggkit.models.configuration import Head, Scheme
from vggkit.reports.loggers import LOGGERS
from vggkit.training import recipe as recipes
from vggkit.training.presets import PRESETS
from vggkit.training.recipe import Recipe
from vggkit.workflows.run_config import NetworkChoice, RunConfig, locate

FULL = RunConfig(
    data="/photos",
    columns=Columns(group_column="patient"),
    despite_findings=True,
    loggers=("csv", "wandb"),
    network=NetworkChoice(model="vgg19", head="pool", until="relu3_4", weights="/w.pth", dropout=0.5),
    recipe=Recipe(epochs=3, learning_rate=1e-5, fold="2/5", freeze_norm=True),
    found={"labels": ["ant", "bee"], "data": {"images": {"train": 3}, "held_out": {"val": "12345678e1234567"}}},
)


def test_the_same_comes_back(tmp_path):
    FULL.write(tmp_path / "config.yaml")
    assert RunConfig.read(tmp_path / "config.yaml") == FULL
    assert RunConfig.read(tmp_path) == FULL
    for preset in PRESETS.values():
        RunConfig(recipe=preset.recipe).write(tmp_path / "config.yaml")
        assert RunConfig.read(tmp_path).recipe == preset.recipe


TEXT = st.text(max_size=30)
NAMES = TEXT.filter(bool) | st.sampled_from(
    ["1e3", "5e-4", "null", "yes", "1:30", "- a", "a: b", "#", "~", "0x1f", " ", "\x85", "a\u2028b", "\ufeff"]
)
SHARES = st.floats(0, 1, exclude_min=True, exclude_max=True)
CHOICES = {
    name: st.sampled_from(typing.get_args(kind))
    for name, kind in typing.get_type_hints(Recipe).items()
    if typing.get_origin(kind) is typing.Literal
}
OTHERS = {
    **dict.fromkeys(("epochs", "accumulate"), st.integers(1, 10**6)),
    **dict.fromkeys(("batch_size", "patience"), st.none() | st.integers(1, 10**6)),
    "rand_augment": st.none() | st.integers(0, 30),
    "learning_rate": st.none() | st.floats(1e-300, 1e300),
    "weight_decay": st.none() | st.floats(0, 1e300),
    **dict.fromkeys(("warmup_epochs", "clip_norm", "mixup", "cutmix"), st.floats(0, 1e300) | st.integers(0, 9)),
    **dict.fromkeys(("momentum", "label_smoothing", "validation_share", "layer_decay"), SHARES),
    "ema_decay": st.none() | SHARES,
    "random_erasing": st.floats(0, 1),
    **dict.fromkeys(("freeze_norm", "sync_norm", "split_head"), st.booleans()),
    "fold": st.none() | st.sampled_from(["1/2", "2/5", "10/10"]),
    "seed": st.integers(0, 2**63),
}


@st.composite
def recipes_of_any_kind(draw):
    given = draw(st.fixed_dictionaries({}, optional={**CHOICES, **OTHERS}))
    try:
        return Recipe(**given)
    except BadConfiguration:
        assume(False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(TEXT, below, max_size=4),
    max_leaves=12,
)
CONFIGS = st.builds(
    RunConfig,
    data=NAMES,
    columns=st.builds(Columns, path_column=st.none() | NAMES, label_column=st.none() | NAMES),
    despite_findings=st.booleans(),
    from_python=st.booleans(),
    find_learning_rate=st.booleans(),
    loggers=st.lists(st.sampled_from(sorted(LOGGERS)), unique=True).map(tuple),
    network=st.builds(
        NetworkChoice,
        model=NAMES,
        weights=st.none() | NAMES,
        head=st.none() | st.sampled_from(typing.get_args(Head)),
        until=st.none() | NAMES,
        image_size=st.none() | st.integers(1, 9999),
        fit_mode=st.none() | st.sampled_from(typing.get_args(FitMode)),
        reduced_decoding=st.booleans(),
        dropout=st.none() | st.floats(0, 0.9),
        initialization=st.sampled_from(typing.get_args(Scheme)),
        input_convention=st.none() | NAMES,
    ),
    recipe=recipes_of_any_kind(),
    found=st.dictionaries(TEXT, JSON, max_size=4),
)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=CONFIGS)
def test_whatever_is_written_comes_back(config, tmp_path):
    config.write(tmp_path / "config.yaml")
    found = RunConfig.read(tmp_path / "config.yaml")
    assert found == config
    assert repr(found.recipe) == repr(config.recipe)  # 1 and 1.0 too


def test_each_field_stands_under_its_own_text(tmp_path):
    FULL.write(tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert text.startswith("# The options of a training")
    assert "vggkit train --config" in text
    assert "vggkit train --resume" in text
    assert max(map(len, text.splitlines())) <= 102
    lines = text.splitlines()
    for kind in (Recipe, NetworkChoice, Columns):
        texts = read_field_texts(kind)
        assert set(texts) == {field.name for field in fields(kind)}
        for name, about in texts.items():
            (place,) = [number for number, line in enumerate(lines) if line.startswith(f"  {name}:")]
            above = []
            while lines[place - 1 - len(above)].startswith("  #"):
                above.insert(0, lines[place - 1 - len(above)].removeprefix("  # "))
            assert " ".join(above) == about
    # Any other reader of YAML sees the same.
    assert yaml.safe_load(text)["recipe"] == FULL.recipe.to_dict()
    assert "\n  batch_size: null\n" in text
    assert "from Python" not in text


def test_the_texts_are_those_in_the_code():
    source = Path(recipes.__file__).read_text(encoding="utf-8")
    for name, about in read_field_texts(Recipe).items():
        after = source.split(f"    {name}: ")[1].split('"""')[1]
        assert " ".join(after.split()) == about


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("", RunConfig()),
        ("recipe: {epochs: 3}", RunConfig(recipe=Recipe(epochs=3))),
        ("recipe:\n", RunConfig()),
        ("found:\nnetwork:\ncolumns:\n", RunConfig()),
        ("network:\n  model: vgg16\n", RunConfig(network=NetworkChoice(model="vgg16"))),
        (
            "recipe: {learning_rate: 5e-4, weight_decay: 1E-3}",
            RunConfig(recipe=Recipe(learning_rate=5e-4, weight_decay=1e-3)),
        ),
        ("recipe: {fold: 2/5, rand_augment: null}", RunConfig(recipe=Recipe(fold="2/5"))),
        ("data: 1e3x\nloggers: [wandb]", RunConfig(data="1e3x", loggers=("wandb",))),
    ],
)
def test_what_people_write_by_hand(text, config, tmp_path):
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert RunConfig.read(tmp_path / "mine.yaml") == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recipe: {epoch: 3}", "Did you mean 'epochs'"),
        ("recipe: {epochs: three}", "epochs must be a whole number"),
        ("recipe: {optimizer: adam}", "optimizer must be one of sgd, adamw, muon; got 'adam'"),
        ("recipe: {trainable: [head]}", "trainable must be one of"),
        ("recipe: [1]", "a recipe is a mapping"),
        ("recipes: {}", "Did you mean 'recipe'"),
        ("model: vgg16", "model belongs under network:"),
        ("epochs: 3", "epochs belongs under recipe:"),
        ("path_column: x", "path_column belongs under columns:"),
        ("network: {modle: vgg16}", "Did you mean 'model'"),
        ("network: {head: poll}", "head must be one of fc, dense, pool; got 'poll'"),
        ("network: {image_size: big}", "image_size must be a whole number or null; got 'big'"),
        ("network: {image_size: true}", "image_size must be"),
        ("network: {reduced_decoding: 1}", "reduced_decoding must be true or false"),
        ("network: vgg16", "network must hold fields"),
        ("columns: {path_column: 3}", "path_column must be text or null"),
        ("columns: {file: x}", "field of columns"),
        ("data: 3", "data must be text; got 3"),
        ("data:\n", "data must be text; got None"),
        ("loggers: wandb", "loggers must be a list"),
        ("loggers: [wanbd]", "Did you mean 'wandb'"),
        ("loggers: [[]]", "is not a logger"),
        ("found: 3", "found must hold"),
        ("- a\n- b", "the file must hold"),
        ("recipe: {epochs: 3", "line 1"),
        ("recipe:\n  epochs: 3\n  epochs: 4\n", "line 3: epochs is there twice"),
        ("recipe: !!python/object:os.system {}", "is not YAML"),
        ("data: 2024-13-45", "is not YAML"),
        ("{[1]: 2}", "is not YAML"),
        ("\x00", "is not YAML"),
    ],
)
def test_mistakes_name_the_file_and_the_field(text, said, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadConfiguration) as refused:
        RunConfig.read(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert said in str(refused.value)


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(BadConfiguration, match=r"none\.yaml: cannot be read"):
        RunConfig.read(tmp_path / "none.yaml")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(BadConfiguration, match=r"x\.yaml"):
        RunConfig.read(tmp_path / "x.yaml")
    with pytest.raises(BadConfiguration, match=r"config\.yaml: cannot be read"):
        RunConfig.read(tmp_path)
    with pytest.raises(BadOutput):
        FULL.write(tmp_path)


def test_places_mean_the_same_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("digits", "cifar10", "imagenet", "hf://datasets/a/b", "https://x/y.tar", "s3://b/k", "-", ""):
        assert locate(place) == place
    assert locate("photos") == str(tmp_path / "photos")
    assert locate("a/../train-{0..9}.tar") == str(tmp_path / "train-{0..9}.tar")
    (tmp_path / "digits").mkdir()
    assert locate("digits") == str(tmp_path / "digits")
    (tmp_path / "link").symlink_to(tmp_path / "digits")
    assert locate("link") == str(tmp_path / "link")


def test_what_is_told_of_a_training_from_python(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fed = Preprocessing(resize_pixels=64, crop_pixels=64, fit_mode="pad")
    classifier = Classifier.create(tiny, labels=("a", "b", "c"), preprocessing=fed, until="relu3_2")
    config = RunConfig(data=locate("photos"), network=NetworkChoice.of(classifier), from_python=True)
    assert config.data == str(tmp_path / "photos")
    choice = config.network
    assert (choice.head, choice.until, choice.image_size, choice.fit_mode) == ("pool", "relu3_2", 64, "pad")
    assert choice.weights is None
    replace(config, found={"labels": ["a"]}).write(tmp_path / "config.yaml")
    assert RunConfig.read(tmp_path).from_python
    assert "started from Python" in (tmp_path / "config.yaml").read_text()


def test_it_is_the_same_in_another_process_and_needs_no_torch(tmp_path):
    FULL.write(tmp_path / "config.yaml")
    code = (
        "import sys; from vggkit.workflows.run_config import RunConfig\n"
        "RunConfig.read(sys.argv[1]).write(sys.argv[1] + '.again'); print('torch' in sys.modules)"
    )
    path = str(tmp_path / "config.yaml")
    found = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
    assert Path(path + ".again").read_bytes() == Path(path).read_bytes()
