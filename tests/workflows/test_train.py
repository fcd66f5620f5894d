import csv
import itertools
from dataclasses import replace

import pytest
import torch
import yaml
from PIL import Image

from conftest import fill_folder
from vggkit.classifier import Classifier, load
from vggkit.errors import BadCheckpoint, BadConfiguration, BadData, BadInput, BadOutput
from vggkit.evaluation.measure import evaluate
from vggkit.images.preprocessing import Preprocessing
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.inference.predict import predict
from vggkit.training.recipe import Recipe
from vggkit.workflows.build_classifier import build_classifier
from vggkit.workflows.run_config import RunConfig
from vggkit.workflows.train import train

LABELS = ("across", "down", "red")
RECIPE = Recipe(epochs=3, batch_size=8, learning_rate=0.1, precision="fp32")


def create(tiny, seed=0):
    torch.manual_seed(seed)
    return Classifier.create(tiny, labels=LABELS, preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32))


@pytest.fixture(scope="module")
def run(tiny, photos, tmp_path_factory):
    return train(
        photos,
        model=create(tiny),
        recipe=RECIPE,
        out=tmp_path_factory.mktemp("run") / "it",
        device="cpu",
        quiet=True,
    )


def test_it_learns_and_what_it_reports_is_true(run, photos):
    assert run.evaluation.top1 > 0.8
    assert run.history[-1].train_loss < run.history[0].train_loss
    images = open_dataset(photos).split("val")
    right = [p.labels[0] == q.label for p, q in zip(predict(run.classifier, images), images, strict=True)]
    assert run.evaluation.top1 == pytest.approx(sum(right) / len(right))
    assert run.evaluation.n == 15
    best = run.history[run.best_epoch - 1]
    assert best.val_top1 == max(record.val_top1 for record in run.history) == pytest.approx(run.evaluation.top1)
    assert best.val_loss == pytest.approx(run.evaluation.loss, abs=1e-5)


def test_the_folder_of_a_run(run, photos):
    names = {entry.name for entry in run.directory.iterdir()}
    assert names == {
        *("config.yaml", "run.json", "metrics.csv", "best.safetensors", "last.ckpt"),
        *("report.html", "results.csv"),
        *("learning_curve.png", "confusion_matrix.png", "reliability.png", "classes.png"),
    }
    for name in ("learning_curve.png", "confusion_matrix.png", "reliability.png", "classes.png"):
        with Image.open(run.directory / name) as image:
            assert min(image.size) > 300
    with open(run.directory / "metrics.csv", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert float(rows[0]["val_loss"]) == run.history[0].val_loss
    config = yaml.safe_load((run.directory / "config.yaml").read_text(encoding="utf-8"))
    chosen = {"trainable": "all", "augmentation": "shift", "mirror": "none", "weight_decay": 5e-4}
    assert Recipe.from_dict(config["recipe"]) == RECIPE
    assert config["found"]["chosen"] == chosen
    assert RunConfig.read(run.directory).resolved == replace(RECIPE, **chosen)
    kept = load(run.directory)
    assert kept.card == run.classifier.card
    assert kept.provenance["metrics"]["n"] == 15
    assert kept.provenance["data"]["images"] == {"train": 48, "val": 15}
    assert evaluate(kept, photos).top1 == run.evaluation.top1


def test_the_same_seed_gives_the_same_weights_and_another_does_not(run, tiny, photos, tmp_path):
    torch.manual_seed(99)  # the state of torch's generator must not matter after the network is built
    again = create(tiny)
    torch.rand(5)
    same = train(photos, model=again, recipe=RECIPE, out=tmp_path / "same", device="cpu", quiet=True)
    other = train(
        photos, model=create(tiny), recipe=replace(RECIPE, seed=1), out=tmp_path / "other", device="cpu", quiet=True
    )
    for key, value in run.classifier.network.state_dict().items():
        assert torch.equal(same.classifier.network.state_dict()[key], value), key
    assert any(
        not torch.equal(other.classifier.network.state_dict()[key], value)
        for key, value in run.classifier.network.state_dict().items()
    )


def test_a_folder_without_parts_is_divided_and_the_held_out_share_is_found_again(tiny, tmp_path):
    fill_folder(tmp_path / "photos", LABELS, 10)
    run = train(
        tmp_path / "photos", model=create(tiny), recipe=replace(RECIPE, epochs=1), out=tmp_path / "r", quiet=True
    )
    assert run.evaluation.n == 6
    found = evaluate(run.classifier, tmp_path / "photos")
    assert (found.n, found.top1) == (6, run.evaluation.top1)
    assert any("trained on the rest" in note for note in found.notes)
    everything = evaluate(run.classifier, tmp_path / "photos", split="all")
    assert everything.n == 30
    assert any("trained on these images" in note for note in everything.notes)


def test_the_same_images_divided_otherwise_are_not_taken_for_held_out(tiny, tmp_path):
    """A table with splits or groups, and the folder that its images lie in."""
    fill_folder(tmp_path / "photos", LABELS, 10)
    files = sorted((tmp_path / "photos").rglob("*.png"))
    for name, column, value in (
        ("parts.csv", "split", lambda index: "val" if index % 10 > 6 else "train"),
        ("groups.csv", "group", lambda index: f"g{index % 5}"),
    ):
        rows = [f"{f.relative_to(tmp_path)},{f.parent.name},{value(i)}" for i, f in enumerate(files)]
        (tmp_path / name).write_text("\n".join([f"path,label,{column}", *rows]))
        run = train(
            tmp_path / name,
            model=create(tiny),
            recipe=replace(RECIPE, epochs=1),
            out=tmp_path / f"r-{name}",
            quiet=True,
        )
        again = evaluate(run.classifier, tmp_path / name)
        assert (again.n, again.top1) == (run.evaluation.n, run.evaluation.top1)
        with pytest.raises(BadData, match="divided in another way"):
            evaluate(run.classifier, tmp_path / "photos")
        everything = evaluate(run.classifier, tmp_path / "photos", split="all")
        assert any("trained on these images" in note for note in everything.notes)


def test_a_class_that_the_data_lacks_altogether_is_refused(tiny, tmp_path):
    fill_folder(tmp_path / "photos", LABELS[:2], 6)
    with pytest.raises(BadData, match=r"train has no readable image of red; val has no readable image of red"):
        train(tmp_path / "photos", model=create(tiny), recipe=RECIPE, out=tmp_path / "r", quiet=True)
    assert not (tmp_path / "r").exists()


def test_what_is_not_measured_or_not_learnt_despite_findings_is_noted(tiny, tmp_path):
    fill_folder(tmp_path / "photos" / "train", LABELS[:2], 4)
    fill_folder(tmp_path / "photos" / "val", LABELS[1:], 2, start=50)
    recipe = replace(RECIPE, epochs=1, balance="weights")
    run = train(
        tmp_path / "photos",
        model=create(tiny),
        recipe=recipe,
        out=tmp_path / "r",
        quiet=True,
        despite_findings=True,
    )
    assert any("no images of across: these classes are not evaluated" in note for note in run.evaluation.notes)
    assert any("no images of red are in the training split" in note for note in run.evaluation.notes)


def test_a_fold_is_found_again(tiny, tmp_path):
    fill_folder(tmp_path / "photos" / "train", LABELS, 6)
    fill_folder(tmp_path / "photos" / "val", LABELS, 4, start=50)
    recipe = replace(RECIPE, epochs=1, fold="2/5")
    run = train(tmp_path / "photos", model=create(tiny), recipe=recipe, out=tmp_path / "r", quiet=True)
    assert run.evaluation.n == 6
    again = evaluate(run.classifier, tmp_path / "photos")
    assert (again.n, again.top1) == (6, run.evaluation.top1)


def test_unreadable_images_are_left_out_and_told(tiny, tmp_path, capsys):
    fill_folder(tmp_path / "photos", LABELS, 6)
    (tmp_path / "photos" / "red" / "broken.jpg").write_text("x")
    run = train(tmp_path / "photos", model=create(tiny), recipe=replace(RECIPE, epochs=1), out=tmp_path / "r")
    told = capsys.readouterr().err
    assert "excluded:" in told
    assert "broken.jpg" in told
    assert "val top-1" in told
    assert run.evaluation.n == 3


def test_classes_that_make_results_lie_are_refused(tiny, tmp_path):
    fill_folder(tmp_path / "a" / "train", LABELS, 3)
    fill_folder(tmp_path / "a" / "val", LABELS[:2], 2)
    with pytest.raises(BadData, match=r"val has no readable image of red"):
        train(tmp_path / "a", model=create(tiny), recipe=RECIPE, out=tmp_path / "r1", quiet=True)
    fill_folder(tmp_path / "b", (*LABELS, "zebra"), 3)
    with pytest.raises(BadData, match="zebra"):
        train(tmp_path / "b", model=create(tiny), recipe=RECIPE, out=tmp_path / "r2", quiet=True)


def test_a_folder_that_is_taken_is_refused(tiny, photos, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(BadOutput, match="--out"):
        train(photos, model=create(tiny), recipe=RECIPE, out=tmp_path, quiet=True)
    with pytest.raises(BadOutput):
        train(photos, model=create(tiny), recipe=RECIPE, out=tmp_path / "thesis.txt", quiet=True)


def test_a_diverging_loss_is_explained_and_the_last_good_weights_stay(tiny, photos, tmp_path):
    recipe = replace(RECIPE, learning_rate=1e30, clip_norm=1e30)
    with pytest.raises(BadInput, match="learning-rate"):
        train(photos, model=create(tiny), recipe=recipe, out=tmp_path / "r", quiet=True)


def test_what_suits_the_images(photos):
    images = open_dataset(photos)
    small = build_classifier(images, "vgg11")
    assert small.preprocessing.crop_pixels == 32
    assert small.configuration.head == "pool"
    digits = build_classifier(open_dataset("digits"), "vgg11", in_channels=1)
    assert digits.preprocessing.channel_order == "L"
    large = build_classifier(images, "vgg11", image_size=224, until="pool1")
    assert (large.preprocessing.resize_pixels, large.preprocessing.crop_pixels) == (256, 224)
    with pytest.raises(BadConfiguration, match="32"):
        build_classifier(images, "vgg11", image_size=16)


@pytest.mark.slow
def test_augmented_training_on_real_photos(shared, tiny, tmp_path):
    pytest.importorskip("torchvision")
    classifier = Classifier.create(
        tiny, labels=["ants", "bees"], preprocessing=Preprocessing(resize_pixels=72, crop_pixels=64)
    )
    run = train(shared / "hymenoptera", model=classifier, recipe=Recipe(epochs=1), out=tmp_path / "r", quiet=True)
    assert run.evaluation.n == 153
    images = open_dataset(shared / "hymenoptera").split("val")
    predictions = predict(load(tmp_path / "r"), images, top=1)
    right = sum(a.labels[0] == p.label for a, p in zip(predictions, images, strict=True))
    assert run.evaluation.top1 == pytest.approx(right / 153)


@pytest.mark.slow
def test_the_same_command_gives_the_same_bytes_in_another_process(photos, tmp_path, monkeypatch):
    import subprocess
    import sys

    from vggkit.cli import main as cli

    monkeypatch.chdir(tmp_path)
    command = ["train", str(photos), "--until", "pool1", "--image-size", "32", "--epochs", "1", "--device", "cpu"]
    command += ["--quiet", "--out"]
    for options in (["here"], ["other", "--seed", "1"]):
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, *options])
        assert ended.value.code == 0
    subprocess.run([sys.executable, "-m", "vggkit", *command, "there"], check=True)
    here, there, other = (load(tmp_path / name).network.state_dict() for name in ("here", "there", "other"))
    assert all(torch.equal(there[key], value) for key, value in here.items())
    assert not torch.equal(other["features.0.weight"], here["features.0.weight"])


def test_a_loss_that_diverges_only_in_validation_is_explained_too(tiny, photos, tmp_path):
    recipe = replace(RECIPE, epochs=1, batch_size=100, learning_rate=1e30, warmup_epochs=0)
    with pytest.raises(BadInput, match="validation after epoch 1"):
        train(photos, model=create(tiny), recipe=recipe, out=tmp_path / "r", quiet=True)


def test_what_cannot_be_learned_is_refused_before_training(tiny, photos, tmp_path):
    pixels = Preprocessing(resize_pixels=16, crop_pixels=16)
    deep = Classifier.create(tiny, labels=LABELS, until="relu5_1", preprocessing=pixels)
    with pytest.raises(BadConfiguration, match="batch_size"):
        train(photos, model=deep, recipe=replace(RECIPE, batch_size=1), out=tmp_path / "r", quiet=True)
    fill_folder(tmp_path / "one", ("red",), 4)
    lonely = build_classifier(open_dataset(tmp_path / "one"), tiny)
    with pytest.raises(BadData, match="one class"):
        train(tmp_path / "one", model=lonely, recipe=RECIPE, out=tmp_path / "q", quiet=True)


def test_another_folder_with_the_same_names_is_another_folder(tiny, tmp_path):
    fill_folder(tmp_path / "a", LABELS, 10)
    fill_folder(tmp_path / "b", LABELS, 10)
    Image.new("RGB", (50, 41)).save(tmp_path / "b" / "red" / "000.png")
    run = train(
        tmp_path / "a", model=create(tiny), recipe=replace(RECIPE, epochs=1), out=tmp_path / "r", quiet=True
    )
    found = evaluate(run.classifier, tmp_path / "b")
    assert found.n == 30
    assert found.notes == ()


def test_an_interruption_keeps_the_best_and_says_how_to_go_on(tiny, photos, tmp_path, monkeypatch):
    from vggkit.training.trainer import Trainer

    measure, calls = Trainer._validate, itertools.count()

    def cut_short(self):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return measure(self)

    monkeypatch.setattr(Trainer, "_validate", cut_short)
    with pytest.raises(KeyboardInterrupt, match="vggkit train --resume"):
        train(photos, model=create(tiny), recipe=RECIPE, out=tmp_path / "r", quiet=True)
    assert load(tmp_path / "r").provenance["epoch"] == 1


def test_files_are_as_readable_as_the_system_makes_new_files(run):
    modes = {entry.stat().st_mode for entry in run.directory.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_part_without_a_readable_image_is_refused_whatever_is_said(part, tiny, tmp_path):
    for name in ("train", "val", "test"):
        fill_folder(tmp_path / "photos" / name, LABELS, 2)
    for file in (tmp_path / "photos" / part).rglob("*.png"):
        file.write_text("x")
    with pytest.raises(BadData, match=rf"split {part} cannot be used: none of its 6 images.*does not apply here"):
        train(
            tmp_path / "photos",
            model=create(tiny),
            recipe=RECIPE,
            out=tmp_path / "r",
            quiet=True,
            despite_findings=True,
        )
    opened = open_dataset(tmp_path / "photos")
    with pytest.raises(BadData, match=rf"split {part} cannot be used: it is empty"):
        train(
            opened.keep({**opened.splits, part: ()}),
            model=create(tiny),
            recipe=RECIPE,
            out=tmp_path / "r",
            quiet=True,
            despite_findings=True,
        )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("balance", ["none", "weights", "sampling"])
def test_a_class_that_cannot_be_read_is_done_without_where_that_is_asked_for(balance, tiny, tmp_path):
    for name in ("train", "val"):
        fill_folder(tmp_path / "photos" / name, LABELS, 2)
    for file in (tmp_path / "photos").rglob("red/*.png"):
        file.write_text("x")
    recipe = replace(RECIPE, epochs=1, balance=balance)
    run = train(
        tmp_path / "photos",
        model=create(tiny),
        recipe=recipe,
        out=tmp_path / "r",
        quiet=True,
        despite_findings=True,
        device="cpu",
    )
    assert run.evaluation.n == 4


@pytest.fixture
def grouped(tmp_path):
    """A table of images in groups, each of which has every class."""
    fill_folder(tmp_path / "photos", LABELS, 6)
    files = sorted((tmp_path / "photos").rglob("*.png"))
    rows = [f"{f.relative_to(tmp_path)},{f.parent.name},g{index % 6}" for index, f in enumerate(files)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,group", *rows]))
    return tmp_path / "t.csv"


def test_another_rule_of_division_is_never_taken_for_the_old_one(grouped, tiny, tmp_path, monkeypatch):
    """As when an earlier version dealt the groups in another way: a run neither goes on nor is measured with it."""
    from vggkit.images import splits
    from vggkit.workflows.resume_run import resume_run as resume

    recipe = replace(RECIPE, epochs=1, fold="1/3")
    run = train(grouped, model=create(tiny), recipe=recipe, out=tmp_path / "r", quiet=True, device="cpu")
    assert evaluate(run.classifier, grouped, device="cpu").n == run.evaluation.n
    dealt = splits.assign_folds
    monkeypatch.setattr(
        splits, "assign_folds", lambda units, folds: {u: (f + 1) % folds for u, f in dealt(units, folds).items()}
    )
    with pytest.raises(BadCheckpoint, match="other images"):
        resume(tmp_path / "r", quiet=True, device="cpu")
    with pytest.raises(BadData, match="divided in another way"):
        evaluate(run.classifier, grouped, device="cpu")


def test_a_place_that_has_changed_since_the_training_is_measured_with_a_word(tiny, tmp_path):
    fill_folder(tmp_path / "photos", LABELS, 5)
    run = train(
        tmp_path / "photos", model=create(tiny), recipe=replace(RECIPE, epochs=1), out=tmp_path / "r", quiet=True
    )
    fill_folder(tmp_path / "photos", LABELS, 1, start=50)
    found = evaluate(run.classifier, tmp_path / "photos")
    assert found.n == 18
    assert any("has changed since" in note for note in found.notes)


def test_the_order_of_a_tables_rows_changes_no_division(grouped, tiny, tmp_path):
    runs = []
    for name in ("one", "other"):
        header, *rows = grouped.read_text().splitlines()
        table = tmp_path / f"{name}.csv"
        table.write_text("\n".join([header, *(rows if name == "one" else rows[::-1])]))
        runs.append(
            train(table, model=create(tiny), recipe=replace(RECIPE, epochs=1), out=tmp_path / name, quiet=True)
        )
    held = [run.classifier.provenance["data"]["held_out"] for run in runs]
    assert held[0] == held[1]
