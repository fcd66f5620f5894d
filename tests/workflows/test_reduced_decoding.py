"""JPEGs that are too large for decoding at their full size, and --reduced-decoding, which reads them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import vggkit as vk
from vggkit.cli.main import main
from vggkit.images import decoding_limits
from vggkit.images.preprocessing import choose_preprocessing

LABELS = ("across", "down", "red")


@pytest.fixture
def place(tiny, photos, tmp_path, monkeypatch) -> Path:
    """A Classifier, labelled images and the list of two, where one is of more pixels than may be decoded."""
    classifier = vk.Classifier.create(tiny, labels=LABELS, preprocessing=choose_preprocessing(32), seed=1)
    classifier.save(tmp_path / "m.safetensors")
    shutil.copytree(photos, tmp_path / "data")
    image = sorted((photos / "val" / "red").glob("*.png"))[0]
    large = Image.open(image).convert("RGB").resize((2400, 2400))
    large.save(tmp_path / "data" / "val" / "red" / "large.jpg")
    monkeypatch.setattr("vggkit.data_checks.inspection.MOST_QUICK", 10**6)
    monkeypatch.setattr(decoding_limits, "MOST_BYTES", 15_000_000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_call_may_read_what_the_classifier_does_not(place):
    classifier, large = vk.load("m.safetensors"), "data/val/red/large.jpg"
    expected = vk.load("m.safetensors")
    expected.card = replace(expected.card, preprocessing=replace(expected.preprocessing, reduced_decoding=True))
    [refused] = classifier.predict(large)
    assert "--reduced-decoding" in str(refused.problem)
    assert classifier.predict(large, reduced_decoding=True) == expected.predict(large)
    assert classifier.preprocessing.reduced_decoding is False
    assert classifier.embed(large, reduced_decoding=True).problems == (None,)
    [explained] = classifier.explain(large, reduced_decoding=True)
    assert explained.problem is None
    assert len(classifier.evaluate("data", split="val").unreadable) == 1
    found = classifier.evaluate("data", split="val", reduced_decoding=True)
    assert not found.unreadable
    assert "large JPEGs were decoded at a smaller scale" in " ".join(found.notes)


def test_files_of_results_know_it(place):
    vk.predict_into("m.safetensors", "data/val", "r.csv", reduced_decoding=True)
    assert "1 GB" not in Path("r.csv").read_text(encoding="utf-8")
    with pytest.raises(vk.BadOutput, match="reduced_decoding: True then, False now"):
        vk.predict_into("m.safetensors", "data/val", "r.csv")
    vk.embed_into("m.safetensors", "data/val", "v.npy", reduced_decoding=True)
    [found] = vk.search("v.npy", "data/val/red/large.jpg", keep_query=True)
    assert found.problem is None
    assert found.similar[0].similarity == pytest.approx(1)


def test_check_counts_as_training_reads(place):
    [finding] = [each for each in vk.check("data", image_size=32).findings if each.kind == "unreadable"]
    assert "scale it down first" in str(finding.cases[0].detail)
    found = vk.check("data", image_size=32, reduced_decoding=True)
    assert "unreadable" not in {each.kind for each in found.findings}
    assert found.options == {"image_size": "32", "reduced_decoding": True}


@pytest.mark.parametrize(
    "line",
    [
        "predict m.safetensors data/val/red/large.jpg",
        "predict m.safetensors data/val/red/large.jpg --out p.csv",
        "embed m.safetensors data/val/red/large.jpg --out v.npy",
        "explain m.safetensors data/val/red/large.jpg --out e",
        "evaluate m.safetensors data --split val",
    ],
)
def test_the_shell_reads_what_the_message_says(place, capsys, line):
    for option, code in ((), (1, 2)), (("--reduced-decoding",), (0,)):
        with pytest.raises(SystemExit) as stop:
            main([*line.split(), *option])
        assert stop.value.code in code
        if not option:
            shown = capsys.readouterr().err
            assert "failed" in shown or "--reduced-decoding" in shown
            for made in ("p.csv", "v.npy", "p.csv.about.json"):
                Path(made).unlink(missing_ok=True)
