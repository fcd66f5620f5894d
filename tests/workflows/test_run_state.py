"""State is records: where weights come from, and how far a run is, in entries and files of their own."""

import json
from dataclasses import replace

import pytest
import torch
import yaml

from vggkit.classifier import Classifier, load
from vggkit.errors import BadCheckpoint, BadConfiguration, BadInput
from vggkit.images.preprocessing import Preprocessing
from vggkit.training.recipe import Recipe
from vggkit.weights.card import Card
from vggkit.weights.origin import WeightsOrigin
from vggkit.workflows.resume_run import resume_run as resume
from vggkit.workflows.run_folder import RunState, read_run_state
from vggkit.workflows.train import train

LABELS = ("across", "down", "red")
FED = Preprocessing(resize_pixels=32, crop_pixels=32)
RECIPE = Recipe(epochs=2, batch_size=16, precision="fp32")
OLD = {
    "file": "vgg11_bn-6002323d.pth",
    "taken": 30,
    "random": ["classifier.0.weight", "classifier.0.bias"],
    "renewed": "the last layer",
}


def start(tiny, **options):
    return Classifier.create(tiny, labels=LABELS, preprocessing=FED, seed=0, **options)


def test_free_provenance_changes_no_learning_rate(tiny, photos, tmp_path):
    rates = []
    for name, provenance in (("plain", {}), ("noted", {"metrics": {"top1": 0.9}, "weights": {"random": []}})):
        classifier = Classifier(start(tiny).network, labels=LABELS, preprocessing=FED, provenance=provenance)
        run = train(photos, model=classifier, recipe=RECIPE, out=tmp_path / name, device="cpu", quiet=True)
        rates.append(run.classifier.provenance["recipe"]["learning_rate"])
    assert rates[0] == rates[1] == 0.021


def test_where_weights_come_from_is_written_and_read_back(tiny, photos, tmp_path):
    classifier = start(tiny)
    assert classifier.origin == WeightsOrigin()
    classifier.save(tmp_path / "random.safetensors")
    assert load(tmp_path / "random.safetensors").origin == WeightsOrigin()
    loaded = Classifier.create(tiny, labels=("a", "b"), weights=tmp_path / "random.safetensors", preprocessing=FED)
    keys = ("classifier.0.weight", "classifier.0.bias")
    assert loaded.origin.kind == "loaded"
    assert loaded.origin.source == "random.safetensors"
    assert sorted(loaded.origin.random_keys) == sorted(keys)
    run = train(photos, model=classifier, recipe=RECIPE, out=tmp_path / "run", device="cpu", quiet=True)
    assert run.classifier.origin == load(tmp_path / "run").origin == WeightsOrigin(kind="trained")
    assert classifier.origin.kind == "trained"


@pytest.mark.parametrize(
    ("provenance", "origin"),
    [
        ({}, WeightsOrigin()),
        ({"weights": OLD}, WeightsOrigin(kind="loaded", source=OLD["file"], random_keys=tuple(OLD["random"]))),
        ({"metrics": {"part": "val"}}, WeightsOrigin(kind="trained")),
    ],
    ids=["random", "loaded", "trained"],
)
def test_files_of_earlier_formats_are_understood(tiny, provenance, origin):
    values = start(tiny).card.to_dict() | {"format_version": 4, "provenance": provenance}
    del values["origin"]
    assert Card.from_dict(values).origin == origin
    about = {
        "data": {"pictures": {"train": 3}},
        "metrics": {"part": "val"},
        "calibration": {"pictures": "x", "part": "val"},
    }
    assert Card.from_dict(values | {"provenance": about}).provenance == {
        "data": {"images": {"train": 3}},
        "metrics": {"split": "val"},
        "calibration": {"images": "x", "split": "val"},
    }


@pytest.mark.parametrize("wrong", [{"kind": "borrowed"}, {"source": 3}, {"random_keys": "abc"}, {"kinds": 1}, 7])
def test_an_origin_that_cannot_be_is_refused(tiny, wrong):
    with pytest.raises(BadConfiguration, match="origin"):
        Card.from_dict(start(tiny).card.to_dict() | {"origin": wrong})


def test_a_finished_run_says_so(tiny, photos, tmp_path):
    run = train(photos, model=start(tiny), recipe=RECIPE, out=tmp_path / "run", device="cpu", quiet=True)
    found = read_run_state(tmp_path / "run")
    assert (found.state, found.epoch, found.epochs) == ("finished", 2, 2)
    assert found.best_epoch == run.best_epoch
    assert found.problem is None
    assert set(found.versions) == {"python", "torch", "vggkit"}
    assert found.started is not None
    assert found.updated is not None
    assert found.started <= found.updated
    written = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert written["schema_version"] == 1
    assert RunState.from_dict(written) == found


def test_a_stopped_run_says_so_and_how_far_it_is(tiny, photos, tmp_path, monkeypatch):
    from vggkit.training import trainer

    measure, ends = trainer.Trainer._validate, iter([False, True])

    def end(self):
        if next(ends):
            raise KeyboardInterrupt
        return measure(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_validate", end)
        with pytest.raises(KeyboardInterrupt):
            train(photos, model=start(tiny), recipe=RECIPE, out=tmp_path / "run", device="cpu", quiet=True)
    before = read_run_state(tmp_path / "run")
    assert (before.state, before.epoch, before.best_epoch) == ("stopped", 1, 1)
    resume(tmp_path / "run", device="cpu", quiet=True)
    after = read_run_state(tmp_path / "run")
    assert (after.state, after.epoch, after.started) == ("finished", 2, before.started)


def test_a_failed_run_says_why(tiny, photos, tmp_path):
    recipe = replace(RECIPE, learning_rate=1e30, clip_norm=1e30)
    with pytest.raises(BadInput) as raised:
        train(photos, model=start(tiny), recipe=recipe, out=tmp_path / "run", device="cpu", quiet=True)
    found = read_run_state(tmp_path / "run")
    assert (found.state, found.problem) == ("failed", str(raised.value))


def test_runs_without_a_state_of_their_own_are_understood(tiny, photos, tmp_path):
    train(photos, model=start(tiny), recipe=RECIPE, out=tmp_path / "run", device="cpu", quiet=True)
    (tmp_path / "run" / "run.json").unlink()
    found = read_run_state(tmp_path / "run")
    assert (found.state, found.epoch) == ("finished", 2)
    (tmp_path / "run" / "confusion_matrix.png").unlink()
    assert read_run_state(tmp_path / "run").state == "stopped"


def test_what_is_no_state_of_a_run_is_refused(tmp_path):
    with pytest.raises(BadCheckpoint, match=r"config\.yaml"):
        read_run_state(tmp_path)
    for text in ("", "[]", '{"schema_version": 99, "state": "running"}', '{"schema_version": 1, "state": "done"}'):
        (tmp_path / "run.json").write_text(text, encoding="utf-8")
        with pytest.raises(BadCheckpoint, match=r"run\.json"):
            read_run_state(tmp_path)


def test_a_run_of_an_earlier_version_goes_on(tiny, photos, tmp_path):
    """Where config.yaml and last.ckpt call images pictures."""
    import safetensors
    from safetensors.torch import save_file

    from vggkit.weights.model_file import read_state

    train(photos, model=start(tiny), recipe=RECIPE, out=tmp_path / "run", device="cpu", quiet=True)
    state, metadata = read_state(tmp_path / "run" / "last.ckpt")
    card = json.loads(metadata["vggkit"])
    origin = card.pop("origin")
    assert origin == WeightsOrigin().to_dict(), "what the run began with, not what came of it"
    metadata = dict(metadata) | {"vggkit": json.dumps(card | {"format_version": 4})}
    metadata["pictures"] = metadata.pop("images")
    save_file(state, tmp_path / "run" / "last.ckpt", metadata)
    with safetensors.safe_open(tmp_path / "run" / "last.ckpt", "pt") as opened:
        assert "pictures" in opened.metadata()
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    config["found"]["data"]["pictures"] = config["found"]["data"].pop("images")
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (tmp_path / "run" / "run.json").unlink()
    run = resume(tmp_path / "run", device="cpu", quiet=True)
    assert run.classifier.provenance["data"]["images"] == {"train": 48, "val": 15}
    assert all(torch.isfinite(value).all() for value in run.classifier.network.state_dict().values())
