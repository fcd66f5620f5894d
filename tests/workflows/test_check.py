import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from conftest import fill_folder
from vggkit.classifier import Classifier
from vggkit.data_checks.clean_table import write_clean_table
from vggkit.errors import BadData, BadInput, BadOutput
from vggkit.images.dataset import ImageDataset, ImageSample
from vggkit.images.preprocessing import Preprocessing
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.workflows.check import check, check_training_data, validate_outputs


def draw(seed: int, side: int = 96) -> Image.Image:
    """An image with large and small structure, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)).resize((side, side), 3), float)
        for n in (4, 12, 40)
    ]
    return Image.fromarray(np.clip(sum(layers) / 3 * 1.4 - 50, 0, 255).astype(np.uint8))


def fill(folder: Path, part: str, label: str, seeds: range) -> None:
    place = folder / part / label
    place.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        draw(seed).save(place / f"{seed}.png")


@pytest.fixture
def clean(tmp_path):
    for part, count in (("train", 24), ("val", 12)):
        for index, label in enumerate(("ants", "bees")):
            first = 1000 * index + 100 * len(part)
            fill(tmp_path / "data", part, label, range(first, first + count))
    return tmp_path / "data"


def kinds(diagnosis):
    return {finding.kind: len(finding.cases) for finding in diagnosis.findings}


def test_a_clean_dataset_has_no_findings(clean):
    found = check(clean, image_size=96)
    assert found.findings == ()
    assert found.n == 72
    assert found.counts == {"train": {"ants": 24, "bees": 24}, "val": {"ants": 12, "bees": 12}}
    assert found.formats == {"PNG": 72}
    assert found.sides.median == (96, 96)
    assert json.loads(json.dumps(found.to_dict()))["findings"] == []


def test_every_kind_of_finding(clean):
    train, val = clean / "train", clean / "val"
    (train / "ants" / "broken.jpg").write_text("no image")
    (train / "ants" / "empty.png").write_bytes(b"")
    original = draw(5500)
    original.save(train / "ants" / "500.png")
    (train / "ants" / "500 copy.png").write_bytes((train / "ants" / "500.png").read_bytes())
    draw(5501).save(train / "bees" / "501.png")
    (val / "bees" / "501 again.png").write_bytes((train / "bees" / "501.png").read_bytes())
    draw(5502, 128).save(train / "bees" / "502.png")
    ImageOps.mirror(draw(5502, 128)).resize((100, 100)).save(val / "bees" / "502.jpg", quality=60)
    draw(5503).save(train / "ants" / "503.png")
    (train / "bees" / "503.png").write_bytes((train / "ants" / "503.png").read_bytes())
    draw(5504).save(train / "bees" / "504.png")
    draw(5504).save(train / "bees" / "504.jpg", quality=50)
    draw(5505).save(train / "ants" / "really a jpeg.png", "JPEG")
    draw(5506, 40).save(train / "ants" / "tiny.png")
    frames = [draw(5507), draw(5508)]
    frames[0].save(train / "ants" / "moving.gif", save_all=True, append_images=frames[1:])
    (val / "wasps").mkdir()
    fill(clean, "train", "wasps", range(9000, 9005))
    found = check(clean, image_size=64)
    assert kinds(found) == {
        "missing-class": 1,
        "leakage": 2,
        "unreadable": 2,
        "contradiction": 1,
        "duplicate": 1,
        "near-duplicate": 1,
        "few": 1,
        "imbalance": 1,
        "small": 1,
        "wrong-extension": 1,
        "animated": 1,
    }
    order = [finding.severity for finding in found.findings]
    assert order[:3].count("error") == 2
    leaked = found.find("leakage").cases
    assert {Path(member.path).stem.split()[0] for case in leaked for member in case.members} == {"501", "502"}
    assert leaked[0].similarity == 1
    assert {m.label for m in found.find("contradiction").cases[0].members} == {"ants", "bees"}
    assert "val has no readable image of wasps" in found.find("missing-class").cases[0].detail
    assert "is JPEG" in found.find("wrong-extension").cases[0].detail
    assert found.find("small").cases[0].detail == "40×40 pixels"
    said = json.dumps(found.to_dict())
    assert "broken.jpg" in said


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("Ants", "ants"), "'Ants' and 'ants'"),
        (("ants", "ants "), "'ants' and 'ants '"),
    ],
    ids=ascii,
)
def test_similar_class_names_are_found_and_reported(names, shown):
    parts, said = ("train", "val"), []
    images = [
        (part, ImageSample(f"{part}/{name}/{i}", name, np.asarray(draw(100 * len(part) + 10 * place + i))))
        for part in parts
        for place, name in enumerate((*names, "bees"))
        for i in range(2)
    ]
    whole = ImageDataset.of("made", images)
    case = check(whole, image_size=32).find("similar-names").cases[0]
    assert case.detail == f"{shown} differ only in case or spaces"
    check_training_data(whole, despite_findings=False, log=said.append)
    assert any(shown in sentence for sentence in said)
    # One name in training and another in validation.
    crossed = [(part, p) for part, p in images if p.label not in names or part == parts[names.index(p.label)]]
    with pytest.raises(BadData, match=re.escape(shown)):
        check_training_data(ImageDataset.of("made", crossed), despite_findings=False, log=said.append)
    plain = ImageDataset.of("made", [(part, p) for part, p in images if p.label != names[0]])
    assert "similar-names" not in kinds(check(plain, image_size=32))


def test_a_class_of_one_image_is_reported_before_training(clean):
    said = []
    fill(clean, "train", "wasps", [9000])
    fill(clean, "val", "wasps", [9001])
    check_training_data(open_dataset(clean), despite_findings=False, log=said.append)
    assert "warning: only one training image of wasps" in said


def test_groups_in_two_splits_are_leakage():
    images = []
    for part, first in (("train", 4), ("val", 0)):
        for i in range(6):
            pixels = np.asarray(draw(10 * len(part) + i))
            images.append((part, ImageSample(f"{part}/{i}", "ab"[i % 2], pixels, group=f"p{first + i}")))
    found = check(ImageDataset.of("made", images), image_size=32)
    cases = found.find("leakage").cases
    assert {case.detail for case in cases} == {"the group p4 is in train, val", "the group p5 is in train, val"}


def test_the_cleaned_table_omits_findings_and_changes_no_image(clean, tmp_path):
    train, val = clean / "train", clean / "val"
    (train / "ants" / "broken.jpg").write_text("no image")
    for name in ("600.png", "600 copy.png"):
        draw(6600).save(train / "ants" / name)
    draw(6601).save(train / "bees" / "601.png")
    ImageOps.mirror(draw(6601)).save(val / "bees" / "601 mirrored.png")
    for label in ("ants", "bees"):
        draw(6602).save(train / label / "602.png")
    before = {path: path.read_bytes() for path in clean.rglob("*") if path.is_file()}
    images = open_dataset(clean)
    table = tmp_path / "deeper" / "clean.csv"
    left_out = write_clean_table(images, check(images, image_size=32), table)
    assert left_out == {"unreadable": 1, "in more than one class": 2, "also in val": 1, "a copy": 1}
    assert {path: path.read_bytes() for path in clean.rglob("*") if path.is_file()} == before
    again = open_dataset(table)
    assert sum(map(len, again.splits.values())) == 72 + 7 - 5
    assert check(again, image_size=32).findings == ()
    with open(table, newline="") as file:
        assert next(csv.DictReader(file)).keys() == {"path", "label", "split", "note"}
    kept = {Path(image.path).name for image in again.split("val")}
    assert "601 mirrored.png" in kept


def test_cleaned_tables_of_archives_name_what_is_inside(tmp_path):
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "images"))
    import test_sources

    for place in (
        test_sources.write_tar(tmp_path / "all.tar", label="json"),
        test_sources.write_parquet(tmp_path / "all.parquet"),
    ):
        images = open_dataset(place)
        write_clean_table(images, check(images, image_size=32), tmp_path / "out" / "clean.csv")
        again = open_dataset(tmp_path / "out" / "clean.csv")
        assert {name: len(part) for name, part in again.splits.items()} == {"train": 8, "val": 4}
        assert {p.read() for p in again.split("val")} == {p.read() for p in images.split("val")}
        (tmp_path / "out" / "wrong.csv").write_text(f"path,label\n{place}#none.png,x\n")
        with pytest.raises(BadData, match="no such image"):
            open_dataset(tmp_path / "out" / "wrong.csv")


def test_members_with_dots_in_their_names_are_found_again(tmp_path):
    import io
    import tarfile

    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for index, label in enumerate("ab"):
            stream = io.BytesIO()
            draw(index).save(stream, "PNG")
            member = tarfile.TarInfo(f"../../{label}/0.png")
            member.size = len(stream.getvalue())
            stream.seek(0)
            archive.addfile(member, stream)
    images = open_dataset(tmp_path / "x.tar")
    write_clean_table(images, check(images, image_size=32), tmp_path / "deep" / "clean.csv")
    again = open_dataset(tmp_path / "deep" / "clean.csv")
    assert [p.read() for p in again.split("all")] == [p.read() for p in images.split("all")]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are text there")
def test_names_that_are_not_text_are_left_out_of_the_table(clean, tmp_path):
    draw(9999).save(os.fsdecode(os.fsencode(clean) + b"/train/ants/caf\xe9.png"))
    images = open_dataset(clean)
    left_out = write_clean_table(images, check(images, image_size=32), tmp_path / "clean.csv")
    assert left_out == {"a name that is not text": 1}
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    found = run(clean, "--html", tmp_path / "page.html", environment=environment)
    assert found.returncode == 0, found.stderr


def test_checked_images_are_not_overwritten(clean, tmp_path):
    images = open_dataset(clean)
    write_clean_table(images, check(images, image_size=32), tmp_path / "own.csv")
    before = (tmp_path / "own.csv").read_bytes()
    own = open_dataset(tmp_path / "own.csv")
    (tmp_path / "folder.html").mkdir()
    for outputs, said in (
        ({"table": tmp_path / "own.csv"}, "overwritten"),
        ({"table": tmp_path / "deeper" / ".." / "own.csv"}, "overwritten"),
        ({"table": Path(own.split("val")[0].path)}, "must end in .csv"),
        ({"page": Path(own.split("val")[0].path)}, "must end in .html"),
        ({"page": tmp_path / "folder.html"}, "is a folder"),
    ):
        with pytest.raises(BadOutput, match=said):
            validate_outputs(own, **outputs)
    with pytest.raises(BadOutput, match="in memory"):
        validate_outputs(open_dataset("digits"), table=tmp_path / "x.csv")
    validate_outputs(own, table=tmp_path / "new" / "x.csv", page=tmp_path / "x.html")
    assert (tmp_path / "own.csv").read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_libtiff_warnings_are_not_shown(shared, tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for file in list((shared / "odd_images" / "pillow").rglob("*.tif"))[:60]:
            (tmp_path / label / file.name).write_bytes(file.read_bytes())
    found = run(tmp_path, "--json")
    assert not found.stderr, found.stderr
    assert json.loads(found.stdout)["n"] > 20


def test_images_in_memory_cannot_be_written_to_a_table(tmp_path):
    digits = open_dataset("digits")
    with pytest.raises(BadOutput, match="--fix"):
        write_clean_table(digits, check(digits), tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


def test_digits_are_no_duplicates():
    found = check("digits")
    assert set(kinds(found)) == {"small"}
    assert found.find("small").severity == "note"


def test_wrong_arguments_are_refused(clean):
    with pytest.raises(BadInput, match="image_size"):
        check(clean, image_size=0)
    with pytest.raises(BadData):
        check(clean / "none")


def test_a_dataset_without_readable_images_is_diagnosed(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "x.jpg").write_text("x")
    found = check(tmp_path)
    assert found.sides is None
    assert kinds(found) == {"missing-class": 2, "unreadable": 2}


def test_training_warns_and_stops_only_for_invalid_metrics(clean):
    said: list[str] = []
    (clean / "train" / "ants" / "broken.jpg").write_text("x")
    draw(7700).save(clean / "train" / "ants" / "700.png")
    draw(7700).save(clean / "val" / "ants" / "700.jpg", quality=80)
    images = open_dataset(clean)
    kept, contents = check_training_data(images, despite_findings=False, log=said.append)
    assert contents.keys() == kept.splits.keys()
    assert len(kept.split("train")) == 49
    assert sum("excluded" in line for line in said) == 1
    assert sum("more than one split" in line and "700" in line for line in said) == 1
    for path in (clean / "val" / "bees").iterdir():
        path.unlink()
    with pytest.raises(BadData, match="--despite-findings"):
        check_training_data(open_dataset(clean), despite_findings=False, log=said.append)
    said.clear()
    check_training_data(open_dataset(clean), despite_findings=True, log=said.append)
    assert any("continuing because of" in line for line in said)


def test_a_classifier_finds_labels_that_are_wrong(tiny, tmp_path):
    """Stripes and colours, which a network need not be trained to tell apart; one of each is under another name."""
    from dataclasses import replace

    fill_folder(tmp_path / "p", ("across", "down", "red"), 20)
    (tmp_path / "p" / "across" / "000.png").rename(tmp_path / "p" / "red" / "moved.png")
    classifier = Classifier.create(
        replace(tiny, until="pool2"),
        labels=["x", "y", "z"],
        preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32),
        seed=0,
    )
    found = check(tmp_path / "p", classifier)
    cases = found.find("mislabelled").cases
    assert [Path(case.members[0].path).name for case in cases] == ["moved.png"]
    assert cases[0].suggestion == "across"
    assert found.model == repr(classifier)
    images = open_dataset(tmp_path / "p")
    write_clean_table(images, check(images, classifier), tmp_path / "clean.csv")
    assert "moved.png,red,looks like across" in (tmp_path / "clean.csv").read_text()


def run(*arguments, environment=None):
    return subprocess.run(
        [sys.executable, "-m", "vggkit", "check", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )


def test_the_command(clean, tmp_path):
    draw(8800).save(clean / "train" / "ants" / "800.png")
    draw(8800).save(clean / "val" / "ants" / "800.jpg", quality=80)
    found = run(clean, "--html", tmp_path / "page.html", "--fix", tmp_path / "clean.csv", "--image-size", 96)
    assert found.returncode == 1, found.stderr
    assert "✗ error" in found.stdout
    assert "1 also in val" in found.stderr
    assert (tmp_path / "page.html").read_text().count("data:image/webp") == 2 + 2 * 4  # of each class 4
    clean_again = run(tmp_path / "clean.csv", "--json", "--image-size", 96)
    assert clean_again.returncode == 0, clean_again.stderr
    assert json.loads(clean_again.stdout)["findings"] == []
    nothing = run(tmp_path / "none")
    assert nothing.returncode == 2
    assert "Traceback" not in nothing.stderr


def test_checking_imports_no_torch(clean):
    code = (
        "import sys; from vggkit.workflows.check import check; check(sys.argv[1]);"
        "print([m for m in ('torch', 'sklearn', 'scipy', 'pyarrow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code, str(clean)], capture_output=True, text=True, timeout=60)
    assert found.stdout == "[]\n", found.stderr


@pytest.mark.filterwarnings("ignore")
def test_real_photos(shared):
    found = check(shared / "hymenoptera")
    assert found.n == 398
    assert set(kinds(found)) == {"small", "placeholder"}  # one says that it was not found
