"""What a check says of everyday faults: one class, placeholders, copies that a split would part."""

import csv

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vggkit.data_checks.clean_table import write_clean_table
from vggkit.images.dataset import ImageDataset, ImageSample
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.images.splits import divide
from vggkit.reports.check_page import write_check_page
from vggkit.workflows.check import check, check_training_data


def draw(seed: int, side: int = 64) -> Image.Image:
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)).resize((side, side), 3), float)
        for n in (4, 12, 40)
    ]
    return Image.fromarray(np.clip(sum(layers) / 3 * 1.4 - 50, 0, 255).astype(np.uint8))


def draw_placeholder() -> Image.Image:
    image = Image.new("RGB", (130, 100), (204, 204, 204))
    ImageDraw.Draw(image).text((20, 40), "Image not found", fill=(90, 90, 90))
    return image


@pytest.fixture
def photos(tmp_path):
    for number, label in enumerate(("ants", "bees")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(8):
            draw(100 * number + index).save(tmp_path / "photos" / label / f"{index}.png")
    return tmp_path / "photos"


def test_a_dataset_of_one_class_is_a_finding(tmp_path):
    (tmp_path / "ants").mkdir()
    draw(0).save(tmp_path / "ants" / "0.png")
    finding = check(tmp_path).find("one-class")
    assert finding.severity == "error"
    assert finding.cases[0].detail == "every image is of ants"


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_placeholder_images_are_found(photos, ending):
    for index in range(3):
        draw_placeholder().save(photos / "ants" / f"gone{index}.{ending}")
    finding = check(photos).find("placeholder")
    assert "3 images are probably no photo" in finding.summary
    [case] = finding.cases
    assert len(case.members) == 3
    assert "3 files are the same" in case.detail


def test_photos_on_white_and_drawings_are_no_placeholders(photos, tmp_path):
    white = Image.new("RGB", (64, 64), "white")
    white.paste(draw(7, 24), (20, 20))
    white.save(photos / "ants" / "white.png")
    assert check(photos).find("placeholder") is None
    for label in ("circle", "line"):
        (tmp_path / "drawings" / label).mkdir(parents=True)
        for index in range(3):
            image = Image.new("L", (64, 64), 255)
            ImageDraw.Draw(image).line((3, 5 * index, 60, 50), fill=0, width=2)
            image.save(tmp_path / "drawings" / label / f"{index}.png")
    assert check(tmp_path / "drawings").find("placeholder") is None


def test_classes_with_subfolders_are_a_finding(photos):
    for year in ("2019", "2020"):
        (photos / "bees" / year).mkdir()
        draw(int(year)).save(photos / "bees" / year / "one.png")
    [case] = check(photos).find("nested").cases
    assert case.detail.startswith("bees holds ")
    assert "2019" in case.detail


def test_equal_files_are_counted_apart_from_a_near_duplicate():
    copy, other = np.asarray(draw(1)), np.asarray(draw(1).resize((48, 48)))
    images = [("train", "a", copy), ("val", "b", copy), ("train", "c", other)]
    images += [(split, f"{split}{n}", np.asarray(draw(50 + n))) for n, split in enumerate(("train", "val"))]
    samples = [(split, ImageSample(name, "ant", pixels)) for split, name, pixels in images]
    finding = check(ImageDataset.of("ants", samples)).find("leakage")
    [case] = finding.cases
    assert len(case.members) == 3
    assert case.detail.startswith("2 of 3 are the same file, the other ")
    assert "in test, else those in val, and removes the others" in finding.advice


def test_a_cleaned_table_keeps_near_copies_in_one_split(photos, tmp_path):
    for index in range(6):
        draw(100 + index).resize((60, 60)).save(photos / "bees" / f"{index} smaller.jpg", quality=90)
    images, table = open_dataset(photos), tmp_path / "clean.csv"
    found = check(images)
    assert len(found.find("near-duplicate").cases) == 6
    assert write_clean_table(images, found, table) == {}
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row["group"]) for row in rows) == 12
    for seed in range(4):
        said: list[str] = []
        divided = divide(open_dataset(table), validation_share=0.25, seed=seed)
        check_training_data(divided, despite_findings=False, log=said.append)
        assert not any("more than one split" in line for line in said)


def test_near_copies_of_groups_join_the_groups(tmp_path):
    pixels = [np.asarray(draw(seed)) for seed in range(3)]
    for number, (name, values) in enumerate(zip("abc", pixels, strict=True)):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
        draw(number).resize((56, 56)).save(tmp_path / f"{name}2.png")
    rows = ["path,label,group", "a.png,ant,p1", "a2.png,ant,p2", "b.png,bee,p2", "b2.png,bee,", "c.png,bee,p3"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    images = open_dataset(tmp_path / "t.csv")
    write_clean_table(images, check(images), tmp_path / "clean.csv")
    with open(tmp_path / "clean.csv", newline="") as file:
        groups = {row["path"]: row["group"] for row in csv.DictReader(file)}
    assert groups == dict.fromkeys(("a.png", "a2.png", "b.png", "b2.png"), "p1") | {"c.png": "p3"}


def test_a_training_names_three_unreadable_images_and_counts_the_others(photos):
    for index in range(9):
        (photos / "ants" / f"broken{index}.jpg").write_text("x")
    said: list[str] = []
    check_training_data(open_dataset(photos), despite_findings=False, log=said.append)
    excluded = [line for line in said if "excluded" in line]
    assert len(excluded) == 4
    assert excluded[-1] == "excluded: 6 more images that cannot be read"


def test_the_clean_page_shows_samples_and_commands_with_the_options_that_were_given(photos, tmp_path):
    rows = [f"photos/{label}/{n}.png,{label}" for label in ("ants", "bees") for n in range(8)]
    (tmp_path / "t.csv").write_text("\n".join(["Foto,Art", *rows]))
    from vggkit.images.sources.tables import Columns

    found = check(tmp_path / "t.csv", columns=Columns(path_column="Foto", label_column="Art"), image_size=32)
    assert {label: len(members) for label, members in found.samples.items()} == {"ants": 4, "bees": 4}
    write_check_page(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/webp") == 8
    options = "--path-column Foto --label-column Art --image-size 32"
    assert f"vggkit check {tmp_path / 't.csv'} {options} --fix clean.csv" in page
    assert "vggkit train clean.csv --image-size 32<" in page
