"""Shards are written whatever happens, and a training that streams them continues exactly."""

import itertools
import json
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import vggkit as vk
from conftest import draw_class, fill_folder
from processes import Processes
from vggkit.errors import BadCheckpoint, BadConfiguration, BadData, BadOutput, Stopped
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.images.sources.shards import dataset as sharded
from vggkit.training.augmentation import View
from vggkit.training.batches import TrainingBatches
from vggkit.training.distributed.process_group import ProcessGroup

LABELS = ("across", "down", "red")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("images")
    fill_folder(made / "train", LABELS, 12)
    fill_folder(made / "val", LABELS, 4, start=100)
    return made


def contents(place: Path) -> dict[str, bytes]:
    return {str(file.relative_to(place)): file.read_bytes() for file in sorted(place.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("form", ["tar", pytest.param("parquet", marks=pytest.mark.slow)])
def test_a_killed_command_continues_to_the_same_bytes(form, tmp_path, processes: Processes):
    fill_folder(tmp_path / "images", LABELS, 60)
    options = ("--to", form, "--images-per-shard", "4")
    vk.shard(tmp_path / "images", tmp_path / "whole", to=form, images_per_shard=4)
    out = tmp_path / "killed"
    for least in (1, 9):
        process = processes.start("shard", tmp_path / "images", out, *options)
        while process.poll() is None and len(list(out.glob(f"*.{form}"))) < least:
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(9)
            process.wait()
    assert not (out / "shards.json").exists()
    left = {file.name: file.stat().st_mtime_ns for file in out.glob(f"*.{form}")}
    process = processes.start("shard", tmp_path / "images", out, *options)
    assert process.wait() == 0, process.err
    assert contents(out) == contents(tmp_path / "whole")
    kept = [name for name, written in left.items() if (out / name).stat().st_mtime_ns == written]
    assert len(kept) >= len(left) - 2  # all but those whose record was not written yet
    again = vk.shard(tmp_path / "images", out, to=form, images_per_shard=4)
    assert again.found_done
    assert again.images == 180


def test_what_cannot_be_read_is_left_out_and_reported(folder, tmp_path, processes):
    fill_folder(tmp_path / "images", LABELS, 3)
    (tmp_path / "images" / "red" / "broken.png").write_bytes(b"\x89PNG no image")
    process = processes.start("shard", tmp_path / "images", tmp_path / "out", "--json")
    assert process.wait() == 1
    found = json.loads(process.out)
    assert (found["images"], found["excluded"]) == (9, 1)
    assert "broken.png" in found["examples"][0]
    assert process.err.splitlines()[-1] == "vggkit: error: 1 images cannot be read, and are in no shard"
    (tmp_path / "none" / "red").mkdir(parents=True)
    (tmp_path / "none" / "red" / "broken.png").write_bytes(b"\x89PNG no image")
    with pytest.raises(BadData, match=r"none of 1 images can be read; the first: .*broken\.png"):
        vk.shard(tmp_path / "none", tmp_path / "nothing")


def test_a_folder_of_something_else_is_refused(folder, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.tex").write_text("my thesis")
    with pytest.raises(BadOutput, match=r"holds other files \(thesis\.tex\); name a new folder"):
        vk.shard(folder, tmp_path / "own")
    vk.shard(folder, tmp_path / "out")
    with pytest.raises(BadOutput, match=r"other images or options \(seed: 0 then, 1 now\).*--overwrite"):
        vk.shard(folder, tmp_path / "out", seed=1)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert not vk.shard(folder, tmp_path / "out", seed=1, to="parquet", overwrite=True).found_done
    assert sorted(file.suffix for file in (tmp_path / "out").iterdir()) == [
        *(".json", ".npz", ".parquet", ".parquet", ".txt")
    ]
    with pytest.raises(BadOutput, match=r"lies in .*, whose images are packed"):
        vk.shard(folder, folder / "shards")
    with pytest.raises(BadConfiguration, match="validation_share must be below 1"):
        vk.shard(folder, tmp_path / "more", validation_share=1)
    with pytest.raises(BadConfiguration, match="to must be one of tar, parquet; got 'zip'"):
        vk.shard(folder, tmp_path / "more", to="zip")


def test_groups_stay_together_when_shards_are_divided(tmp_path):
    rows = ["path,label,group"]
    for number in range(40):
        Image.fromarray(draw_class(LABELS[number % 2], number)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{LABELS[number % 2]},patient{number // 4}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    with pytest.raises(BadData, match=r"its images have groups.*give validation_share"):
        vk.shard(tmp_path / "table.csv", tmp_path / "out")
    found = vk.shard(tmp_path / "table.csv", tmp_path / "out", validation_share=0.25)
    assert sum(found.counts["val"].values()) % 4 == 0
    opened = vk.open_dataset(tmp_path / "out")
    patients = {
        split: {int(image.path.rpartition("-")[2].partition(".")[0]) // 4 for image in images}
        for split, images in opened.splits.items()
    }
    assert patients["val"]
    assert not patients["val"] & patients["train"]


def test_images_in_memory_become_png(tmp_path):
    pixels = [draw_class(label, 0) for label in LABELS]
    vk.shard(list(zip(pixels, LABELS, strict=True)), tmp_path / "out")
    opened = vk.open_dataset(tmp_path / "out")
    for image in opened.split("all"):
        assert (image.decode() == draw_class(str(image.label), 0)).all()


def train(data: object, out: Path, **options: object) -> vk.TrainingRun:
    recipe = vk.Recipe(epochs=2, batch_size=4, optimizer="adamw", mixup=0.2, augmentation="shift", mirror="random")
    network = {"model": "vgg11_bn", "until": "pool2", "image_size": 32}
    return vk.train(data, **network, recipe=recipe, out=out, device="cpu", quiet=True, save_seconds=0, **options)


def state(run: Path) -> dict[str, torch.Tensor]:
    import safetensors.torch

    return safetensors.torch.load_file(run / "last.ckpt")


@pytest.mark.parametrize("form", ["tar", pytest.param("parquet", marks=pytest.mark.slow)])
def test_a_training_stopped_within_an_epoch_continues_exactly(form, folder, tmp_path, monkeypatch):
    """And what it reads again is what is left of the epoch."""
    monkeypatch.setattr(sharded, "BUFFER", 8)
    vk.shard(folder, tmp_path / "shards", to=form, images_per_shard=5)
    whole = train(tmp_path / "shards", tmp_path / "whole")
    assert whole.evaluation.split == "val"
    of_epoch, calls = TrainingBatches.of_epoch, []

    def stopping(self, epoch, *, start=0):
        calls.append((epoch, start))
        for number, batch in enumerate(of_epoch(self, epoch, start=start), start=start):
            if len(calls) == 1 and (epoch, number) == (1, 6):
                raise Stopped(15)
            yield batch

    monkeypatch.setattr(TrainingBatches, "of_epoch", stopping)
    with pytest.raises(Stopped):
        train(tmp_path / "shards", tmp_path / "stopped")
    resumed = vk.train(resume=tmp_path / "stopped", quiet=True, device="cpu")
    assert calls == [(1, 0), (1, 6), (2, 0)]
    found, expected = state(tmp_path / "stopped"), state(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []
    assert resumed.evaluation.top1 == whole.evaluation.top1
    # Shards that were written anew, in another order, are not the images of this run's order.
    vk.shard(folder, tmp_path / "shards", to=form, images_per_shard=6, overwrite=True)
    with pytest.raises(BadCheckpoint, match=r"other images than the run has now \(train, val changed\)"):
        vk.train(tmp_path / "shards", resume=tmp_path / "whole", epochs=3, quiet=True)
    Image.fromarray(draw_class("red", 999)).save(folder / "train" / "red" / "more.png")
    vk.shard(folder, tmp_path / "other", to=form)
    (folder / "train" / "red" / "more.png").unlink()
    with pytest.raises(BadData, match="differs from the images that this run began with"):
        vk.train(tmp_path / "other", resume=tmp_path / "stopped", epochs=3, quiet=True)


def test_undivided_shards_are_divided_for_training_and_evaluation_alike(folder, tmp_path):
    vk.shard(folder / "train", tmp_path / "shards", images_per_shard=7)
    run = train(tmp_path / "shards", tmp_path / "run", validation_share=0.25)
    assert len(run.evaluation.predictions) == 9
    measured = run.classifier.evaluate(tmp_path / "shards")
    assert sorted(measured.predictions.paths) == sorted(run.evaluation.predictions.paths)
    assert "the Classifier was trained on the rest" in str(measured.notes)
    assert len(run.classifier.predict(tmp_path / "shards")) == 36
    assert vk.check(tmp_path / "shards").n == 36


def test_a_split_that_lacks_a_class_and_copies_across_splits(folder, tmp_path):
    fill_folder(tmp_path / "images" / "train", LABELS, 6)
    fill_folder(tmp_path / "images" / "val", LABELS[:2], 3)
    vk.shard(tmp_path / "images", tmp_path / "shards")
    with pytest.raises(BadData, match=r"val has no images of red.*--despite-findings"):
        train(tmp_path / "shards", tmp_path / "run")
    train(tmp_path / "shards", tmp_path / "run", despite_findings=True)
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "6 images of val are in train too" in config


def test_a_damaged_shard_ends_a_training_with_one_clear_error(folder, tmp_path, processes):
    vk.shard(folder, tmp_path / "shards", images_per_shard=10)
    shard = tmp_path / "shards" / "train-00001.tar"
    data = bytearray(shard.read_bytes())
    data[-2000] ^= 1
    shard.write_bytes(data)
    options = ("--model", "vgg11_bn", "--until", "pool2", "--image-size", 32, "--epochs", 1, "--quiet")
    process = processes.start("train", tmp_path / "shards", "--out", tmp_path / "run", *options)
    assert process.wait() == 2
    assert "train-00001.tar: its contents are not those that its manifest states" in process.err
    assert len(process.err.splitlines()) == 1


def test_processes_read_different_shards_and_each_image_once(folder, tmp_path):
    """Of 36 images in batches of 8, as 2 processes read them, and what each of them brings."""
    vk.shard(folder, tmp_path / "shards", images_per_shard=6)
    preprocessing = choose_preprocessing(32)
    seen: list[list[int]] = []
    brought: list[set[int]] = []
    for rank in range(2):
        opened = vk.open_dataset(tmp_path / "shards")
        images = opened.split("train")
        batches = TrainingBatches(
            images,
            labels=opened.labels,
            preprocessing=preprocessing,
            view=View(preprocessing, "none", "none", None, 0.0),
            batch_size=8,
            seed=0,
            device=torch.device("cpu"),
            group=ProcessGroup(rank=rank, size=2),
        )
        shards = set[int]()
        images.held.files.bring = shards.add
        order = batches._draw_order(1)
        sizes = [len(classes) for _, classes in batches.of_epoch(1)]
        assert sizes in ([4, 4, 4, 4, 2], [4, 4, 4, 6])
        seen.append(order[rank::2].tolist())
        brought.append(shards)
    assert sorted(seen[0] + seen[1]) == list(range(36))
    assert brought[0] | brought[1] == set(range(6))
    assert not brought[0] & brought[1]


def test_another_number_of_processes_reads_what_is_left_of_an_epoch(folder, tmp_path, monkeypatch):
    """Two processes read two batches of five, and one process reads the others; and the other way round."""
    monkeypatch.setattr(sharded, "BUFFER", 8)
    vk.shard(folder, tmp_path / "shards", images_per_shard=6)
    opened = vk.open_dataset(tmp_path / "shards")
    preprocessing = choose_preprocessing(32)

    def read(group: ProcessGroup, *, start: int = 0, stop: int | None = None) -> list[bytes]:
        batches = TrainingBatches(
            opened.split("train"),
            labels=opened.labels,
            preprocessing=preprocessing,
            view=View(preprocessing, "none", "none", None, 0.0),
            batch_size=8,
            seed=0,
            device=torch.device("cpu"),
            group=group,
        )
        found = itertools.islice(batches.of_epoch(1, start=start), None if stop is None else stop - start)
        return [image.numpy().tobytes() for images, _ in found for image in images]

    every = sorted(read(ProcessGroup()))
    assert len(set(every)) == 36
    for before, after in ((2, 1), (1, 2), (4, 2)):
        first = [read(ProcessGroup(rank=rank, size=before), stop=2) for rank in range(before)]
        rest = [read(ProcessGroup(rank=rank, size=after, began_with=before), start=2) for rank in range(after)]
        assert sorted(itertools.chain(*first, *rest)) == every
