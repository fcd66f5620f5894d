"""Near duplicates stay in one split where vggkit divides a dataset, and runs remember how it was divided."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps

from vggkit.classifier import load
from vggkit.cli.main import main
from vggkit.data_checks.copies import Copies
from vggkit.evaluation.measure import evaluate
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.images.splits import hold_out
from vggkit.workflows.run_config import RunConfig
from vggkit.workflows.train import train

TINY = {"model": "vgg11", "until": "pool1", "image_size": 32, "batch_size": 8, "device": "cpu", "precision": "fp32"}
LABELS = ("ants", "bees")


def draw(seed: int, side: int = 96) -> Image.Image:
    """An image with large and small structure, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)).resize((side, side), 3), float)
        for n in (4, 12, 40)
    ]
    return Image.fromarray(np.clip(sum(layers) / 3 * 1.4 - 50, 0, 255).astype(np.uint8))


def fill(folder: Path, *, bursts: int, copies: int = 2, singles: int = 6) -> Path:
    """Two classes of images that are alone, and of images with resized, mirrored and exact copies."""
    for place, label in enumerate(LABELS):
        (folder / label).mkdir(parents=True)
        for number in range(singles):
            draw(1000 * place + number).save(folder / label / f"single-{number}.png")
        for burst in range(bursts):
            image = draw(1000 * place + 500 + burst)
            image.save(folder / label / f"burst-{burst}-original.png")
            shutil.copy(folder / label / f"burst-{burst}-original.png", folder / label / f"burst-{burst}-again.png")
            for copy in range(copies):
                turned = ImageOps.mirror(image) if copy % 2 else image
                turned.resize((80 + 4 * copy,) * 2).save(folder / label / f"burst-{burst}-{copy}.jpg", quality=70)
    return folder


def find_parted(directory: Path, data: Path) -> set[str]:
    """The bursts that are in both splits of a run, by its record of how it divided the data."""
    about = RunConfig.read(directory).found["data"]
    options = {name: about.get(name) for name in ("validation_share", "seed", "fold")}
    divided = hold_out(open_dataset(data), **options, copy_groups=about.get("ties", ()))
    sides = [
        {f"{p.label} {Path(p.path).name.split('-')[1]}" for p in divided.split(name) if "burst" in p.path}
        for name in ("train", "val")
    ]
    return sides[0] & sides[1]


@pytest.mark.parametrize("fold", [None, "2/3"])
def test_near_duplicates_stay_in_one_split(fold, tmp_path, capsys):
    data = fill(tmp_path / "data", bursts=3)
    run = train(data, epochs=1, fold=fold, out=tmp_path / "run", **TINY)
    said = capsys.readouterr().err
    assert find_parted(run.directory, data) == set()
    assert "near duplicates and copies: 24 images in 6 groups, each kept in one split" in said
    assert "more than one split" not in said
    assert run.evaluation.n == pytest.approx(36 * (1 / 3 if fold else 0.2), abs=6)
    again = evaluate(load(run.directory), data)
    assert (again.n, again.top1, again.split) == (run.evaluation.n, run.evaluation.top1, "val")


def test_a_resumed_run_keeps_its_split(tmp_path, capsys):
    data = fill(tmp_path / "data", bursts=3)
    whole = train(data, epochs=2, schedule="constant", out=tmp_path / "whole", **TINY)
    train(data, epochs=2, schedule="constant", out=tmp_path / "run", on_epoch=lambda epoch: True, **TINY)
    resumed = train(resume=tmp_path / "run", device="cpu")
    assert [(epoch.train_loss, epoch.val_loss) for epoch in resumed.history] == [
        (epoch.train_loss, epoch.val_loss) for epoch in whole.history
    ]
    assert "more than one split" not in capsys.readouterr().err


def test_a_run_of_an_earlier_version_keeps_its_split(tmp_path, capsys, monkeypatch):
    data = fill(tmp_path / "data", bursts=3)
    with monkeypatch.context() as earlier:
        earlier.setattr(Copies, "list_groups", lambda self: [])
        begun = train(data, epochs=1, schedule="constant", out=tmp_path / "run", **TINY)
    path = begun.directory / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config["found"]["data"].pop("ties") == []
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    assert find_parted(begun.directory, data)
    capsys.readouterr()
    resumed = train(resume=begun.directory, epochs=2, device="cpu")
    assert resumed.history[0] == begun.history[0]
    assert "more than one split" in capsys.readouterr().err


def test_a_class_of_one_burst_is_divided_and_reported(tmp_path, capsys):
    data = fill(tmp_path / "data", bursts=3)
    for path in (data / "bees").glob("*"):
        if not path.name.startswith("burst-0"):
            path.unlink()
    run = train(data, epochs=1, out=tmp_path / "run", **TINY)
    said = capsys.readouterr().err
    assert find_parted(run.directory, data) <= {"bees 0"}
    assert "12 images in 3 groups, each kept in one split; 1 group could not be" in said
    assert "warning" in said
    assert "more than one split" in said


def test_copies_across_given_splits_are_reported_with_a_command(tmp_path, capsys):
    data = fill(tmp_path / "data", bursts=3)
    rows = [
        f"{path.relative_to(tmp_path)},{path.parent.name},{'val' if number % 3 == 0 else 'train'}"
        for number, path in enumerate(sorted(data.rglob("*-*")))
    ]
    (tmp_path / "mine.csv").write_text("\n".join(["photo,kind,split", *rows]))
    columns = {"path_column": "photo", "label_column": "kind"}
    train(tmp_path / "mine.csv", epochs=1, out=tmp_path / "run", **TINY, **columns)
    said = capsys.readouterr().err
    assert "more than one split" in said
    command = f"vggkit check {tmp_path / 'mine.csv'} --path-column photo --label-column kind --fix clean.csv"
    assert f"`{command}`" in said
    clean = tmp_path / "clean.csv"
    with pytest.raises(SystemExit):
        main([*command.split()[1:-1], str(clean)])
    train(clean, epochs=1, out=tmp_path / "run2", **TINY)
    assert "more than one split" not in capsys.readouterr().err.rpartition("left out")[2]
