"""The search for a recipe, from the first trial to the training in full."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import vggkit as vk
from vggkit.workflows import recipe_search
from vggkit.workflows.recipe_search import RecipeSearch
from vggkit.workflows.run_config import RunConfig

OPTIONS = {"blocks": "6/8", "batch_size": 16, "quiet": True, "device": "cpu", "precision": "fp32", "epochs": 3}


def paint(number, label, side=32):
    pixels = np.random.default_rng(number).integers(0, 60, (side, side, 3)).astype(np.uint8)
    pixels[: side // 2 if label == "sky" else side, :, 2 if label == "sky" else 1] += 120
    return pixels


@pytest.fixture(scope="module")
def data():
    """Two classes, with a test split."""
    pairs = [(paint(number, label), label) for number, label in enumerate(["sky", "grass"] * 24)]
    return vk.open_dataset({"train": pairs[:32], "val": pairs[32:40], "test": pairs[40:]})


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return vk.train(data, search=6, out=tmp_path_factory.mktemp("search") / "whole", **OPTIONS)


def weights_of(run):
    return list(run.classifier.network.state_dict().values())


def read_trials(directory):
    return json.loads((directory / "search" / "search.json").read_text(encoding="utf-8"))["trials"]


def test_the_best_recipe_is_trained_in_full(whole, data, tmp_path):
    config = RunConfig.read(whole.directory)
    with open(whole.directory / "search.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    [chosen] = [row for row in rows if row["chosen"] == "1"]
    assert chosen is rows[0]
    assert int(chosen["trial"]) == config.found["search"]["chosen"]
    assert float(chosen["learning_rate"]) == config.resolved.learning_rate
    longest = [float(row["val_figure"]) for row in rows if row["epochs"] == chosen["epochs"]]
    assert float(chosen["val_figure"]) == max(longest)
    assert config.resolved.epochs == 3
    assert len([epoch for epoch in whole.history if epoch.epoch]) == 3
    assert (whole.directory / "search.png").stat().st_size > 5000
    assert not list(whole.directory.glob("search/trial-*")), "states are removed"
    plain = vk.train(data, recipe=config.resolved, blocks="6/8", out=tmp_path / "plain", quiet=True, device="cpu")
    assert all(map(torch.equal, weights_of(plain), weights_of(whole))), "as if the options had been given"


def test_the_test_split_is_not_looked_at(whole, data, tmp_path, monkeypatch):
    without = replace(data, splits={name: data.splits[name] for name in ("train", "val")})
    seen, fit = [], recipe_search.Trainer.fit

    def watch(self, *arguments, **options):
        seen.append(set(self.splits))
        return fit(self, *arguments, **options)

    monkeypatch.setattr(recipe_search.Trainer, "fit", watch)
    run = vk.train(without, search=6, out=tmp_path / "without", **OPTIONS)
    mine, theirs = (read_trials(each.directory) for each in (run, whole))
    for trial in (*mine, *theirs):
        for epoch in trial["history"]:
            del epoch["seconds"]
    assert mine == theirs
    assert all(splits == {"train", "val"} for splits in seen)


@pytest.mark.parametrize("after", [0, 2])
def test_a_search_that_was_killed_continues_to_the_same_result(whole, data, tmp_path, monkeypatch, after):
    train, count = RecipeSearch._train, [0]

    def die(self, trial, planned):
        if count[0] == after:
            raise KeyboardInterrupt
        count[0] += 1
        return train(self, trial, planned)

    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(RecipeSearch, "_train", die)
        with pytest.raises(KeyboardInterrupt) as stopped:
            vk.train(data, search=6, out=out, **OPTIONS)
    assert f"vggkit train --resume {out}" in str(stopped.value.command)
    assert sum(trial["epochs"] > 0 for trial in read_trials(out)) == after
    run = vk.train(data, resume=out, quiet=True, device="cpu")
    assert all(map(torch.equal, weights_of(run), weights_of(whole)))
    chosen = [RunConfig.read(each.directory).found["search"]["chosen"] for each in (run, whole)]
    assert chosen[0] == chosen[1]


def test_a_search_in_the_middle_of_an_epoch_continues_too(whole, data, tmp_path, monkeypatch):
    fit, count = recipe_search.Trainer._train_epoch, [0]

    def die(self):
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        return fit(self)

    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(recipe_search.Trainer, "_train_epoch", die)
        with pytest.raises(KeyboardInterrupt):
            vk.train(data, search=6, out=out, **OPTIONS)
    assert list(out.glob("search/trial-*/last.ckpt"))
    run = vk.train(data, resume=out, quiet=True, device="cpu")
    assert all(map(torch.equal, weights_of(run), weights_of(whole)))


def test_other_options_are_no_continuation(data, tmp_path, monkeypatch):
    def die(self, trial, planned):
        raise KeyboardInterrupt

    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(RecipeSearch, "_train", die)
        with pytest.raises(KeyboardInterrupt):
            vk.train(data, search=4, out=out, **OPTIONS)
    text = (out / "config.yaml").read_text(encoding="utf-8")
    (out / "config.yaml").write_text(text.replace("search: 4", "search: 5"), encoding="utf-8")
    with pytest.raises(vk.BadCheckpoint, match="is of a search with other search than now"):
        vk.train(data, resume=out, quiet=True, device="cpu")
    (out / "search" / "search.json").write_text("{", encoding="utf-8")
    with pytest.raises(vk.BadCheckpoint, match="is not the state of a search"):
        vk.train(data, resume=out, quiet=True, device="cpu")


def test_a_recipe_that_diverges_is_given_up(data, tmp_path, monkeypatch):
    fit = recipe_search.Trainer.fit

    def diverge(self, *arguments, **options):
        if self.checkpoints._last.parent.name in self_diverging:
            raise vk.BadInput("the loss became nan")
        return fit(self, *arguments, **options)

    self_diverging = {"trial-01", "trial-02"}
    monkeypatch.setattr(recipe_search.Trainer, "fit", diverge)
    run = vk.train(data, search=3, out=tmp_path / "a", **OPTIONS)
    assert RunConfig.read(run.directory).found["search"]["chosen"] == 3
    assert [trial["problem"] for trial in read_trials(run.directory)] == ["the loss became nan"] * 2 + [None]
    self_diverging.add("trial-03")
    with pytest.raises(vk.BadInput, match="found no recipe that can be trained: the loss became nan"):
        vk.train(data, search=3, out=tmp_path / "b", **OPTIONS)


def test_options_that_contradict_a_search_are_refused(data, tmp_path):
    for options, message in (
        ({"find_learning_rate": True}, "search tries learning rates; leave out find_learning_rate"),
        ({"trainable": "head"}, "solves the last layer directly"),
        ({"search": 1}, "2 or more; got 1"),
    ):
        with pytest.raises(vk.BadConfiguration, match=message):
            vk.train(data, out=tmp_path / "x", **{"search": 4, **OPTIONS, **options})


def test_a_search_from_weights_tries_a_linear_probe_and_the_top(data, whole, tmp_path):
    others = vk.open_dataset([(paint(n, "sky" if n % 2 else "grass"), "a" if n % 2 else "b") for n in range(40)])
    options = {name: value for name, value in OPTIONS.items() if name not in ("blocks", "precision")}
    run = vk.train(
        others,
        model=whole.classifier.configuration,
        weights=whole.directory / "best.safetensors",
        search=5,
        out=tmp_path / "from",
        **options,
    )
    layers = [trial["recipe"]["trainable"] for trial in read_trials(run.directory)]
    assert layers[0] == "head", "the usual choice for few images"
    assert {"all", "top"} <= set(layers)
    assert layers.count("head") == 1
