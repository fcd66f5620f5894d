"""The two ways of learning as workflows: the head at once, and what is noticed while learning by steps."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from conftest import fill_folder
from vggkit.classifier import Classifier, load
from vggkit.errors import BadConfiguration, BadData, BadInput
from vggkit.evaluation.measure import evaluate
from vggkit.images.preprocessing import Preprocessing
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.training import train_state as learners
from vggkit.training.recipe import Recipe
from vggkit.workflows.resume_run import resume_run as resume
from vggkit.workflows.train import train

LABELS = ("across", "down", "red")
FED = Preprocessing(resize_pixels=32, crop_pixels=32)
STEPS = Recipe(epochs=2, batch_size=8, learning_rate=0.05, precision="fp32")
HEAD = Recipe(trainable="head", precision="fp32")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VGGKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def trained(tiny, photos, tmp_path_factory):
    """A file of weights."""
    out = tmp_path_factory.mktemp("trained") / "run"
    torch.manual_seed(0)
    fresh = Classifier.create(tiny, labels=LABELS, preprocessing=FED)
    train(photos, model=fresh, recipe=replace(STEPS, epochs=3), out=out, device="cpu", quiet=True)
    return out / "best.safetensors"


def start(tiny, weights=None, labels=LABELS):
    return Classifier.create(tiny, labels=labels, weights=weights, preprocessing=FED, seed=0)


def weights_of(run):
    return run.classifier.network.state_dict()


@pytest.mark.slow
def test_the_linear_probe_is_evaluated_as_evaluate_does(tiny, trained, photos, tmp_path, real_plots):
    classifier = start(tiny, trained)
    before = {key: value.clone() for key, value in classifier.network.state_dict().items()}
    run = train(photos, model=classifier, recipe=HEAD, out=tmp_path / "run", device="cpu", quiet=True)
    changed = {key for key, value in weights_of(run).items() if not torch.equal(value, before[key])}
    assert changed == {"classifier.0.weight", "classifier.0.bias"}
    assert run.evaluation.top1 > 0.6
    again = evaluate(load(tmp_path / "run"), photos)
    assert (again.top1, again.n) == (run.evaluation.top1, 15)
    assert again.loss == pytest.approx(run.evaluation.loss, abs=1e-4)
    plain = run.evaluation.predictions.sharpen(1 / run.classifier.temperature)
    assert plain.losses.mean() == pytest.approx(run.history[0].val_loss)
    with Image.open(tmp_path / "run" / "regularisation.png") as image:
        assert min(image.size) > 300


@pytest.mark.slow
def test_a_second_run_uses_cached_features(tiny, trained, photos, tmp_path, capsys):
    first = train(photos, model=start(tiny, trained), recipe=HEAD, out=tmp_path / "1", device="cpu")
    assert "found in the cache" not in capsys.readouterr().err
    second = train(photos, model=start(tiny, trained), recipe=HEAD, out=tmp_path / "2", device="cpu")
    told = capsys.readouterr().err
    assert "features of 48 of 48 images were found in the cache" in told
    assert "computed by" not in told
    assert all(torch.equal(weights_of(second)[key], value) for key, value in weights_of(first).items())
    other = start(tiny, trained)
    with torch.no_grad():
        other.network.features[0].bias += 0.01
    train(photos, model=other, recipe=HEAD, out=tmp_path / "3", device="cpu")
    assert "found in the cache" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_stopped_linear_probe_resumes_bit_for_bit(tiny, trained, photos, tmp_path, monkeypatch):
    from vggkit.training import linear_probe

    whole = train(photos, model=start(tiny, trained), recipe=HEAD, out=tmp_path / "1", device="cpu", quiet=True)
    monkeypatch.setenv("VGGKIT_HOME", str(tmp_path / "other"))

    def end(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(linear_probe, "solve_head", end)
        with pytest.raises(KeyboardInterrupt):
            train(photos, model=start(tiny, trained), recipe=HEAD, out=tmp_path / "2", device="cpu", quiet=True)
    resumed = resume(tmp_path / "2", device="cpu", quiet=True)
    assert all(torch.equal(weights_of(resumed)[key], value) for key, value in weights_of(whole).items())


@pytest.mark.slow
def test_the_linear_probe_uses_augmented_views(tiny, trained, photos, tmp_path, capsys):
    recipe = replace(HEAD, views=3, mirror="alternating")
    train(photos, model=start(tiny, trained), recipe=recipe, out=tmp_path / "1", device="cpu")
    assert "features of 144 views of images computed" in capsys.readouterr().err
    train(photos, model=start(tiny, trained), recipe=replace(recipe, views=4), out=tmp_path / "2", device="cpu")
    assert "features of 48 views of images computed" in capsys.readouterr().err


@pytest.mark.slow
def test_weights_are_reused_for_other_classes(tiny, trained, tmp_path, capsys):
    fill_folder(tmp_path / "photos", LABELS[:2], 10)
    classifier = start(replace(tiny, num_classes=2), trained, labels=LABELS[:2])
    run = train(tmp_path / "photos", model=classifier, recipe=Recipe(), out=tmp_path / "run", device="cpu")
    assert "trainable head: 16 images and loaded weights" in capsys.readouterr().err
    assert run.evaluation.top1 == 1
    assert run.evaluation.n == 4


def test_as_many_other_classes_reinitialise_the_last_layer(tiny, trained, tmp_path, capsys):
    for ours, theirs in zip(("x", "y", "z"), ("red", "across", "down"), strict=True):
        fill_folder(tmp_path, (theirs,), 8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / theirs).rename(tmp_path / "photos" / ours)
    classifier = start(tiny, trained, labels=("x", "y", "z"))
    run = train(tmp_path / "photos", model=classifier, recipe=Recipe(), out=tmp_path / "run", device="cpu")
    told = capsys.readouterr().err
    assert "the last layer: the weights are of other classes (across, down, red) than x, y, z" in told
    assert "trainable head" in told
    assert run.evaluation.top1 == 1


def test_labels_in_another_order_reorder_the_last_layer(tiny, trained, photos, tmp_path, capsys):
    turned = start(tiny, trained, labels=("red", "down", "across"))
    expected = evaluate(load(trained), photos)
    found = evaluate(turned, photos)
    assert found.top1 == expected.top1 > 0.6
    # A Classifier's order is its own, whatever the order of the folders.
    slow = replace(STEPS, trainable="all", epochs=1, learning_rate=1e-9)
    run = train(photos, model=turned, recipe=slow, out=tmp_path / "run", device="cpu")
    assert "its rows in the order of these labels" in capsys.readouterr().err
    assert run.history[0].val_top1 == expected.top1
    assert run.classifier.labels == ("red", "down", "across")
    assert evaluate(load(tmp_path / "run"), photos).top1 == expected.top1


def test_labels_that_differ_in_case_only_are_named_where_they_do_not_match(tiny, trained, tmp_path):
    fill_folder(tmp_path / "photos", LABELS, 6)
    (tmp_path / "photos" / "red").rename(tmp_path / "photos" / "Red")
    with pytest.raises(BadData, match=r"case or spaces only \('Red' for 'red'\)"):
        train(
            tmp_path / "photos", model=load(trained), recipe=STEPS, out=tmp_path / "run", device="cpu", quiet=True
        )
    notes = evaluate(load(trained), tmp_path / "photos").notes
    assert any("'Red' for 'red'" in note for note in notes)
    for label in LABELS[:2]:
        (tmp_path / "photos" / label).rename(tmp_path / "photos" / label.upper())
    with pytest.raises(BadData, match="'ACROSS' for 'across'"):
        evaluate(load(trained), tmp_path / "photos")


def diverge_at(monkeypatch, *numbers):
    """Let the loss of the batches of these numbers be none, counted over everything that is computed."""
    compute, count = learners.TrainState.compute, iter(range(10**6))

    def computed(self, images, targets, **options):
        loss = compute(self, images, targets, **options)
        return loss * float("nan") if next(count) in numbers else loss

    monkeypatch.setattr(learners.TrainState, "compute", computed)


def test_nan_rolls_back_and_lowers_the_rate(tiny, photos, tmp_path, monkeypatch, capsys):
    diverge_at(monkeypatch, 8)
    run = train(
        photos, model=start(tiny), recipe=replace(STEPS, schedule="constant"), out=tmp_path / "run", device="cpu"
    )
    told = capsys.readouterr().err
    assert "the loss became nan in epoch 2, after 2 of 6 batches: back to the start of the epoch" in told
    assert [epoch.learning_rate for epoch in run.history] == pytest.approx([0.05, 0.015], rel=0.2)
    assert len(run.history) == 2


@pytest.mark.slow
def test_a_rolled_back_run_resumes_at_its_lower_rate(tiny, photos, tmp_path, monkeypatch):
    from vggkit.training import trainer as loop

    recipe = replace(STEPS, epochs=3, schedule="constant")
    with monkeypatch.context() as patch:
        diverge_at(patch, 8)
        whole = train(photos, model=start(tiny), recipe=recipe, out=tmp_path / "1", device="cpu", quiet=True)
    pause = loop.Trainer._pause

    def stop(self):
        pause(self)
        if self.progress.steps == 15:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        diverge_at(patch, 8)
        patch.setattr(loop.Trainer, "_pause", stop)
        with pytest.raises(KeyboardInterrupt):
            train(
                photos,
                model=start(tiny),
                recipe=recipe,
                out=tmp_path / "2",
                device="cpu",
                quiet=True,
                save_seconds=0,
            )
    resumed = resume(tmp_path / "2", device="cpu", quiet=True)
    assert [e.learning_rate for e in resumed.history] == [e.learning_rate for e in whole.history]
    assert all(torch.equal(weights_of(resumed)[key], value) for key, value in weights_of(whole).items())


def test_training_fails_after_three_rollbacks(tiny, photos, tmp_path, monkeypatch, capsys):
    diverge_at(monkeypatch, *range(7, 1000))
    with pytest.raises(BadInput, match=r"epoch 2.*after 3 rollbacks.*--learning-rate"):
        train(photos, model=start(tiny), recipe=STEPS, out=tmp_path / "run", device="cpu")
    told = capsys.readouterr().err
    assert told.count("back to the start of the epoch") == 3
    assert load(tmp_path / "run").provenance["epoch"] == 1


def test_early_stopping(tiny, photos, tmp_path, capsys):
    recipe = replace(STEPS, epochs=50, patience=1, learning_rate=0.5, schedule="constant")
    run = train(photos, model=start(tiny), recipe=recipe, out=tmp_path / "run", device="cpu")
    assert len(run.history) < 50
    assert "stopped early" in capsys.readouterr().err
    assert run.history[-1].val_loss >= min(epoch.val_loss for epoch in run.history)


def test_the_ema_is_evaluated_and_saved(tiny, photos, tmp_path):
    run = train(
        photos,
        model=start(tiny),
        recipe=replace(STEPS, ema_decay=0.9),
        out=tmp_path / "run",
        device="cpu",
        quiet=True,
    )
    plain = train(photos, model=start(tiny), recipe=STEPS, out=tmp_path / "plain", device="cpu", quiet=True)
    assert not torch.equal(weights_of(run)["features.0.weight"], weights_of(plain)["features.0.weight"])
    best = run.history[run.best_epoch - 1]
    plain = run.evaluation.predictions.sharpen(1 / run.classifier.temperature)
    assert best.val_loss == pytest.approx(plain.losses.mean(), abs=1e-5)


def test_the_found_learning_rate_is_used(tiny, photos, tmp_path, capsys):
    recipe = replace(STEPS, learning_rate=None)
    with pytest.raises(BadConfiguration, match=r"learning_rate=0\.05"):
        train(photos, model=start(tiny), recipe=STEPS, out=tmp_path / "run", device="cpu", find_learning_rate=True)
    run = train(
        photos, model=start(tiny), recipe=recipe, out=tmp_path / "run", device="cpu", find_learning_rate=True
    )
    assert "learning_rate_search.png" in capsys.readouterr().err
    assert (tmp_path / "run" / "learning_rate_search.png").is_file()
    assert run.classifier.provenance["recipe"]["learning_rate"] > 0
    with pytest.raises(BadConfiguration, match="find-learning-rate"):
        train(
            photos,
            model=start(tiny, tmp_path / "run" / "best.safetensors"),
            recipe=HEAD,
            out=tmp_path / "2",
            find_learning_rate=True,
        )
    assert not (tmp_path / "2").exists()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"balance": "weights"}, {"balance": "sampling"}, {"trainable": "gradual"}])
@pytest.mark.slow
def test_other_options_train(changes, tiny, photos, tmp_path):
    recipe = replace(STEPS, epochs=4, **changes)
    run = train(photos, model=start(tiny), recipe=recipe, out=tmp_path / "run", device="cpu", quiet=True)
    assert run.history[-1].train_loss < run.history[0].train_loss


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Eighteen, six and two images to learn from."""
    folder = tmp_path_factory.mktemp("uneven")
    for label, count in zip(LABELS, (18, 6, 2), strict=True):
        fill_folder(folder / "train", (label,), count)
    fill_folder(folder / "val", LABELS, 1, start=100)
    return folder


@pytest.mark.sweep(2)
@pytest.mark.parametrize("changes", [{"balance": "weights", "label_smoothing": 0.1}, {"mixup": 0.0}], ids=str)
def test_accumulation_gives_the_same_step(tiny, uneven, tmp_path, changes):
    """26 images are steps of 12, 12 and 2, where no batch norm tells batches apart; the last step has two."""
    network = replace(tiny, batch_norm=False)
    recipe = replace(STEPS, epochs=1, warmup_epochs=0.0, augmentation="none", mirror="none", **changes)
    runs = [
        train(
            uneven,
            model=start(network),
            recipe=replace(recipe, batch_size=size, accumulate=together),
            out=tmp_path / str(size),
            device="cpu",
            quiet=True,
        )
        for size, together in ((12, 1), (4, 3), (1, 12))
    ]
    for other in runs[1:]:
        assert other.history[0].train_loss == pytest.approx(runs[0].history[0].train_loss, rel=1e-4)
        for key, value in weights_of(runs[0]).items():
            torch.testing.assert_close(weights_of(other)[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("accumulate", [1, 5])
def test_the_loss_of_an_epoch_is_torchs_of_all_its_images(tiny, uneven, tmp_path, accumulate):
    """With class weights an image counts by its class."""
    recipe = replace(STEPS, epochs=1, augmentation="none", mirror="none", learning_rate=1e-12, batch_size=3)
    recipe = replace(recipe, balance="weights", label_smoothing=0.1, accumulate=accumulate)
    classifier = start(replace(tiny, batch_norm=False))
    logits, targets = [], []
    with torch.inference_mode():
        for image in open_dataset(uneven).split("train"):
            logits.append(classifier.network.eval()(torch.from_numpy(FED(image.decode()))[None])[0])
            targets.append(LABELS.index(image.label))
    weights = torch.tensor([26 / (3 * count) for count in (18, 6, 2)], dtype=torch.float64)
    expected = F.cross_entropy(
        torch.stack(logits).double(), torch.tensor(targets), weight=weights, label_smoothing=0.1
    ).item()
    classifier.network.train()
    run = train(uneven, model=classifier, recipe=recipe, out=tmp_path / "run", device="cpu", quiet=True)
    assert run.history[0].train_loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_the_linear_probe_reports_the_loss_of_training_steps(tiny, trained, uneven, tmp_path):
    recipe = Recipe(trainable="head", precision="fp32", balance="weights", label_smoothing=0.1)
    run = train(uneven, model=start(tiny, trained), recipe=recipe, out=tmp_path / "head", device="cpu", quiet=True)
    steps = replace(STEPS, epochs=1, augmentation="none", mirror="none", learning_rate=1e-12, batch_size=26)
    steps = replace(steps, balance="weights", label_smoothing=0.1, freeze_norm=True)
    again = train(
        uneven, model=load(tmp_path / "head"), recipe=steps, out=tmp_path / "steps", device="cpu", quiet=True
    )
    assert again.history[0].train_loss == pytest.approx(run.history[0].train_loss, rel=1e-3)
    assert again.history[0].val_loss == pytest.approx(run.history[0].val_loss, rel=1e-3)


def test_negative_save_seconds_are_refused(tiny, photos, tmp_path):
    for seconds in (-1.0, float("nan")):
        with pytest.raises(BadInput, match="seconds"):
            train(photos, model=start(tiny), recipe=STEPS, out=tmp_path / "run", save_seconds=seconds)


@pytest.mark.slow
def test_fine_tuning_begins_with_a_linear_probe(tiny, trained, tmp_path, monkeypatch, capsys):
    from vggkit.training import linear_probe
    from vggkit.training import trainer as loop

    fill_folder(tmp_path / "photos", LABELS[:2], 12)
    recipe = replace(STEPS, trainable="all", epochs=2, batch_size=4, learning_rate=1e-6)

    def begin():
        return start(replace(tiny, num_classes=2), trained, labels=LABELS[:2])

    whole = train(tmp_path / "photos", model=begin(), recipe=recipe, out=tmp_path / "1", device="cpu")
    assert "a linear probe first" in capsys.readouterr().err
    assert whole.evaluation.top1 == 1, "at such a rate the steps alone learn nothing"
    pause = loop.Trainer._pause

    def stop(self):
        pause(self)
        if self.progress.steps == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_pause", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "photos", model=begin(), recipe=recipe, out=tmp_path / "2", device="cpu", quiet=True)
    resumed = resume(tmp_path / "2", device="cpu", quiet=True)
    assert all(torch.equal(weights_of(resumed)[key], value) for key, value in weights_of(whole).items())

    def end(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(linear_probe, "solve_head", end)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "photos", model=begin(), recipe=recipe, out=tmp_path / "4", device="cpu", quiet=True)
    resumed = resume(tmp_path / "4", device="cpu", quiet=True)
    assert all(torch.equal(weights_of(resumed)[key], value) for key, value in weights_of(whole).items())
    assert [epoch.epoch for epoch in resumed.history] == [0, 1, 2]
    assert whole.history[0].val_top1 == 1
    again = load(tmp_path / "1")
    train(tmp_path / "photos", model=again, recipe=recipe, out=tmp_path / "3", device="cpu")
    assert "a linear probe first" not in capsys.readouterr().err, "a trained head is not thrown away"


@pytest.mark.slow
def test_test_metrics_of_a_run_agree_with_evaluate(tiny, tmp_path):
    """Calibrated on one split and measured on another: the temperature is counted once."""
    fill_folder(tmp_path / "photos" / "train", LABELS, 16)
    fill_folder(tmp_path / "photos" / "val", LABELS, 14, start=100)
    fill_folder(tmp_path / "photos" / "test", LABELS, 12, start=200)
    run = train(
        tmp_path / "photos",
        model=start(tiny),
        recipe=replace(STEPS, epochs=4),
        out=tmp_path / "run",
        device="cpu",
        quiet=True,
    )
    kept = load(tmp_path / "run")
    assert kept.temperature != 1
    again = evaluate(kept, tmp_path / "photos")
    assert run.evaluation.split == "test"
    assert (again.n, again.top1) == (run.evaluation.n, run.evaluation.top1)
    assert again.loss == pytest.approx(run.evaluation.loss, rel=1e-4)
    assert again.ece == pytest.approx(run.evaluation.ece, rel=1e-3)
    assert kept.provenance["metrics"]["loss"] == run.evaluation.loss
    resume(tmp_path / "run", device="cpu", quiet=True)
    assert load(tmp_path / "run").temperature == kept.temperature, (
        "a finished run that is gone on with stays as sure"
    )
