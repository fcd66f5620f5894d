"""What a caller set on a network by hand is kept while it learns, or refused, and is left as it was found."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from conftest import fill_folder
from vggkit.classifier import Classifier, load
from vggkit.errors import BadConfiguration
from vggkit.evaluation.measure import evaluate
from vggkit.images.preprocessing import Preprocessing
from vggkit.training import trainer as loop
from vggkit.training.recipe import Recipe
from vggkit.workflows.resume_run import resume_run as resume
from vggkit.workflows.train import train

LABELS = ("across", "down", "red")
FED = Preprocessing(resize_pixels=32, crop_pixels=32)
HEAD = Recipe(precision="fp32")
STEPS = Recipe(epochs=2, batch_size=6, learning_rate=0.05, precision="fp32", augmentation="none", mirror="none")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VGGKIT_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    fill_folder(folder / "train", LABELS, 6)
    fill_folder(folder / "val", LABELS, 2, start=100)
    return folder


def start(configuration, weights=None, **options):
    return Classifier.create(
        configuration, labels=LABELS, weights=weights, preprocessing=FED, seed=0, until="pool2", **options
    )


def copy_of(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def changed(network, before):
    return {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}


def freeze_features(network):
    network.features.requires_grad_(False)


def freeze_one(network):
    network.features[0].weight.requires_grad_(False)


def freeze_head(network):
    network.classifier.requires_grad_(False)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("freeze", [freeze_features, freeze_one, freeze_head])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"precision": "bf16", "optimizer": "muon", "ema_decay": 0.9}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_what_is_frozen_by_hand_stays_bit_for_bit_and_it_is_said(freeze, changes, tiny, data, tmp_path, capsys):
    classifier = start(tiny)
    freeze(classifier.network)
    before = copy_of(classifier.network)
    flags = {key: value.requires_grad for key, value in classifier.network.named_parameters()}
    frozen = {key for key, learns in flags.items() if not learns}
    run = train(data, model=classifier, recipe=replace(STEPS, **changes), out=tmp_path / "run", device="cpu")
    moved = changed(run.classifier.network, before)
    assert not moved & frozen
    assert {key for key in flags if key.endswith("weight")} - frozen <= moved
    told = capsys.readouterr().err
    assert f"{len(frozen)} of {len(flags)} parameters frozen" in told
    assert sorted(frozen)[0].split(".")[0] in told
    assert {key: value.requires_grad for key, value in run.classifier.network.named_parameters()} == flags
    if freeze is freeze_features:  # statistics of frozen batch norms do not drift
        assert not any(key.startswith("features.") for key in moved)


@pytest.mark.slow
def test_a_run_with_frozen_layers_resumes_to_the_same_bits(tiny, data, tmp_path, monkeypatch):
    def begin():
        classifier = start(replace(tiny, dropout=0.3, hidden=(8,)), head="pool")
        freeze_one(classifier.network)
        classifier.network.train().features[1].eval()
        classifier.network.features[1].momentum = 0.4
        for module in classifier.network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.7
        return classifier

    whole = train(data, model=begin(), recipe=STEPS, out=tmp_path / "1", device="cpu", quiet=True)
    pause = loop.Trainer._pause

    def stop(self):
        pause(self)
        if self.progress.steps == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_pause", stop)
        with pytest.raises(KeyboardInterrupt):
            train(data, model=begin(), recipe=STEPS, out=tmp_path / "2", device="cpu", quiet=True, save_seconds=0)
    resumed = resume(tmp_path / "2", device="cpu", quiet=True)
    assert not changed(resumed.classifier.network, copy_of(whole.classifier.network))
    by_default = start(replace(tiny, dropout=0.3, hidden=(8,)), head="pool")
    other = train(data, model=by_default, recipe=STEPS, out=tmp_path / "3", device="cpu", quiet=True)
    assert changed(resumed.classifier.network, copy_of(other.classifier.network)), "it made a difference"


@pytest.mark.parametrize("trainable", ["all", "gradual", "top", "head"])
def test_an_explicit_trainable_that_contradicts_is_refused(trainable, tiny, data, tmp_path):
    start(tiny).save(tmp_path / "w.safetensors")
    classifier = start(tiny, tmp_path / "w.safetensors")
    flags = classifier.network.classifier.requires_grad_(False)
    with pytest.raises(BadConfiguration, match=rf"trainable={trainable} .*classifier\.0\.weight.*frozen"):
        train(
            data,
            model=classifier,
            recipe=replace(HEAD if trainable == "head" else STEPS, trainable=trainable),
            out=tmp_path / "run",
            quiet=True,
        )
    assert not (tmp_path / "run").exists()
    assert not any(value.requires_grad for value in flags.parameters())


@pytest.mark.slow
def test_what_would_not_learn_anyway_may_be_frozen(tiny, data, tmp_path):
    start(tiny).save(tmp_path / "w.safetensors")
    for number, recipe in enumerate((replace(HEAD, trainable="head"), replace(STEPS, trainable="top", epochs=1))):
        classifier = start(tiny, tmp_path / "w.safetensors")
        classifier.network.features[0].requires_grad_(False)
        before = copy_of(classifier.network)
        run = train(data, model=classifier, recipe=recipe, out=tmp_path / str(number), device="cpu", quiet=True)
        assert "features.0.weight" not in changed(run.classifier.network, before)


def test_a_last_layer_that_is_frozen_is_not_solved(tiny, data, tmp_path, capsys):
    """Few photos from given weights: the head alone would learn."""
    start(tiny).save(tmp_path / "w.safetensors")
    classifier = start(tiny, tmp_path / "w.safetensors")
    freeze_head(classifier.network)
    before = copy_of(classifier.network)
    run = train(
        data, model=classifier, recipe=Recipe(epochs=1, precision="fp32"), out=tmp_path / "run", device="cpu"
    )
    moved = changed(run.classifier.network, before)
    assert moved
    assert not any(key.startswith("classifier.") for key in moved)
    assert "trainable all: the last layer is frozen" in capsys.readouterr().err
    with pytest.raises(BadConfiguration, match=r"views.*frozen"):
        train(data, model=classifier, recipe=Recipe(views=3), out=tmp_path / "2", device="cpu", quiet=True)


def test_nothing_left_to_learn_is_refused(tiny, data, tmp_path):
    classifier = start(tiny)
    classifier.network.requires_grad_(False)
    with pytest.raises(BadConfiguration, match=r"requires_grad_\(True\)"):
        train(data, model=classifier, recipe=STEPS, out=tmp_path / "run", quiet=True)


def test_modules_in_evaluation_mode_stay_so_where_the_network_is_not(tiny, data, tmp_path, capsys):
    classifier = start(tiny)
    classifier.calibrate(threshold=0.7, about={})
    classifier.network.train()
    norm = classifier.network.features[1].eval()
    before = copy_of(classifier.network)
    run = train(data, model=classifier, recipe=replace(STEPS, epochs=1), out=tmp_path / "run", device="cpu")
    moved = changed(run.classifier.network, before)
    assert "features.1.running_mean" not in moved
    assert "features.5.running_mean" in moved
    assert "features.1.weight" in moved, "its scales learn"
    told = capsys.readouterr().err
    assert "features.1" in told
    assert "the threshold of the Classifier belonged to its earlier weights: dropped" in told
    assert not norm.training
    assert classifier.network.training


@pytest.mark.sweep(3)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("ends", [True, False])
def test_flags_and_modes_are_left_as_they_were_found(training, ends, tiny, data, tmp_path, monkeypatch):
    start(tiny).save(tmp_path / "w.safetensors")
    classifier = start(tiny, tmp_path / "w.safetensors")
    classifier.network.train(training)
    recipe = replace(STEPS, epochs=1, trainable="top")
    if ends:
        train(data, model=classifier, recipe=recipe, out=tmp_path / "run", device="cpu", quiet=True)
    else:
        monkeypatch.setattr(loop.Trainer, "_validate", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(data, model=classifier, recipe=recipe, out=tmp_path / "run", device="cpu", quiet=True)
    assert all(value.requires_grad for value in classifier.network.parameters())
    assert all(module.training == training for module in classifier.network.modules())


@pytest.mark.parametrize(
    ("kinds", "trainable", "from_file"),
    [
        pytest.param(["float16"], "all", True, marks=pytest.mark.slow),
        pytest.param(["bfloat16"], "head", False, marks=pytest.mark.slow),
        pytest.param(["float64"], "all", False, marks=pytest.mark.slow),
        (["float16", "float64"], "head", False),
    ],
    ids=str,
)
def test_a_network_of_another_precision_learns_in_float32_and_it_is_said(
    kinds, trainable, from_file, tiny, data, tmp_path, capsys
):
    start(tiny).save(tmp_path / "w.safetensors")
    classifier = start(tiny, tmp_path / "w.safetensors")
    classifier.network.to(getattr(torch, kinds[0]))
    classifier.network.classifier.to(getattr(torch, kinds[-1]))
    if from_file:
        classifier.save(tmp_path / "half.safetensors")
        classifier = load(tmp_path / "half.safetensors")
    rounded = {key: value.float() for key, value in copy_of(classifier.network).items()}
    recipe = replace(STEPS, epochs=1) if trainable == "all" else HEAD
    recipe = replace(recipe, trainable=trainable)
    run = train(data, model=classifier, recipe=recipe, out=tmp_path / "1", device="cpu")
    assert f"weights in {', '.join(kinds)} are converted to float32" in capsys.readouterr().err
    kept = load(tmp_path / "1")
    for network in (run.classifier.network, kept.network):
        assert {value.dtype for value in network.state_dict().values()} == {torch.float32, torch.int64}
    assert evaluate(kept, data).top1 == run.evaluation.top1
    # As one whose weights were given back in float32 by hand.
    peer = start(tiny, tmp_path / "w.safetensors")
    peer.network.load_state_dict(rounded)
    expected = train(data, model=peer, recipe=recipe, out=tmp_path / "2", device="cpu", quiet=True)
    assert not changed(run.classifier.network, copy_of(expected.classifier.network))


EDITS = {
    "features.3 is AvgPool2d": lambda network: network.features.__setitem__(3, nn.AvgPool2d(2)),
    "features.2 is LeakyReLU": lambda network: network.features.__setitem__(2, nn.LeakyReLU(0.2)),
    "features.1 (BatchNorm2d) has eps=0.5": lambda network: setattr(network.features[1], "eps", 0.5),
    "features.1 is Identity": lambda network: network.features.__setitem__(1, nn.Identity()),
    "classifier.0.weight has the shape (5, 8)": lambda network: network.classifier.__setitem__(0, nn.Linear(8, 5)),
    "classifier is Linear, Linear": lambda network: network.classifier.append(nn.Linear(3, 3)),
    "features.0 computes its weights": lambda network: nn.utils.parametrizations.weight_norm(network.features[0]),
    "features.5.bias is the same parameter": lambda network: setattr(
        network.features[5], "bias", network.features[5].weight
    ),
    "features.0.weight holds": lambda network: network.features[0].weight.data.fill_(float("nan")),
}


@pytest.mark.parametrize("said", list(EDITS))
def test_a_network_that_its_file_would_not_hold_is_refused_before_it_learns(said, tiny, data, tmp_path):
    classifier = start(tiny)
    EDITS[said](classifier.network)
    with pytest.raises(BadConfiguration, match=re.escape(said)):
        train(data, model=classifier, recipe=STEPS, out=tmp_path / "run", device="cpu", quiet=True)
    assert not (tmp_path / "run").exists()


def test_working_in_place_or_not_is_no_other_network(tiny, data, tmp_path):
    classifier = start(tiny)
    for module in classifier.network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # as backward hooks need it
    train(data, model=classifier, recipe=replace(STEPS, epochs=1), out=tmp_path / "run", device="cpu", quiet=True)
