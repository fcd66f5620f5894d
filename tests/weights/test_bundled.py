"""The classifier of handwritten digits that comes with vggkit: its accuracy, its file, its name."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vggkit as vk
from vggkit.errors import BadCheckpoint, BadInput
from vggkit.weights.bundled import BUNDLED, find_bundled
from vggkit.weights.card import find_card
from vggkit.weights.locate import locate_model, locate_own_model
from vggkit.weights.model_card import write_model_card

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def digits():
    return vk.load("digits")


@pytest.fixture(scope="module")
def test_digits():
    pytest.importorskip("sklearn")
    return vk.open_dataset("digits").splits["test"]


def enlarge(pixels, side=320, *, dark_on_light=False, margin=40):
    """A digit as a larger image with a margin, light on dark as it is, or dark on light."""
    grown = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
    grown = np.pad(grown, ((margin, margin), (2 * margin, 2 * margin), (0, 0)))
    return 255 - grown if dark_on_light else grown


def test_the_reported_accuracy_is_reproduced(digits, test_digits):
    stated = digits.provenance["metrics"]
    found = digits.evaluate("digits")
    assert (found.split, found.n) == (stated["split"], stated["n"]) == ("test", 359)
    assert found.top1 == pytest.approx(stated["top1"], abs=1 / 359)  # engines differ in the last bits
    assert found.loss == pytest.approx(stated["loss"], rel=0.05)
    low, high = stated["top1_interval"]
    assert low <= found.top1 <= high
    assert digits.provenance["data"]["fingerprint"] == vk.open_dataset("digits").fingerprint()


@pytest.mark.slow
def test_the_reported_accuracy_on_renderings_is_reproduced(digits, test_digits, monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    import train_digits

    stated = digits.provenance["metrics"]["rendered"]
    found = train_digits.measure(digits, vk.open_dataset("digits"))["rendered"]
    assert found["n"] == stated["n"] == 3590
    # Other versions of torch may draw other renderings.
    assert found["top1"] == pytest.approx(stated["top1"], abs=0.01)


@pytest.mark.parametrize("dark_on_light", [False, True])
def test_digits_of_either_colour_and_any_size_are_read(digits, test_digits, dark_on_light):
    some = test_digits[:40]
    for side, margin in ((320, 40), (40, 2)):
        images = [enlarge(each.pixels, side, dark_on_light=dark_on_light, margin=margin) for each in some]
        found = digits.predict(images, top=1)
        correct = sum(p.labels[0] == each.label for p, each in zip(found, some, strict=True))
        assert correct >= 36, f"{correct} of 40 at {side} pixels"


def test_int8_gives_the_same_digits(digits, test_digits):
    pytest.importorskip("openvino")
    some = test_digits[:40]
    whole = [p.labels[0] for p in digits.predict(some, top=1)]
    rounded = [p.labels[0] for p in digits.predict(some, top=1, precision="int8")]
    assert sum(a == b for a, b in zip(whole, rounded, strict=True)) >= 38


def test_its_file_is_small_and_states_where_it_comes_from():
    path = find_bundled("digits")
    assert path.stat().st_size < 2_000_000
    card = find_card(path)
    assert card.labels == tuple("0123456789")
    assert card.storage == "fp16"
    assert {"data", "recipe", "licence", "metrics", "versions", "purpose"} <= set(card.provenance)
    text = json.dumps(card.to_dict())
    assert "/tmp" not in text
    assert "CC BY 4.0" in card.provenance["data"]["source"]
    readme = write_model_card(card)
    assert "long side resized to" in readme
    assert "98." in readme


def test_the_shell_predicts_offline_from_its_name_alone(tmp_path, test_digits):
    image = test_digits[0]
    Image.fromarray(enlarge(image.pixels, dark_on_light=True)).save(tmp_path / "photo.png")
    environment = {"VGGKIT_OFFLINE": "1", "VGGKIT_HOME": str(tmp_path / "home"), "PATH": "", "HOME": str(tmp_path)}
    import os

    done = subprocess.run(
        [sys.executable, "-m", "vggkit", "predict", "digits", "photo.png", "--json"],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["labels"][0] == image.label


def test_the_name_is_a_model_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate_model("digits") == find_bundled("digits")
    assert vk.list_classifiers() == [
        *(name for name in vk.list_models() if name not in ("vgg11_lrn", "vgg16_c")),
        *BUNDLED,
    ]
    with pytest.raises(BadInput, match="make a copy of your own"):
        locate_own_model("digits")
    with pytest.raises(BadCheckpoint, match="did you mean digits"):
        vk.load("digit")
    (tmp_path / "digits").write_bytes(b"")
    assert locate_model("digits") == Path("digits")  # an existing path comes first


def test_it_is_a_start_for_training(tmp_path, test_digits):
    own = vk.Classifier.create(find_card(find_bundled("digits")).configuration, weights="digits")
    assert own.origin.kind == "loaded"
    assert own.labels == tuple("0123456789")
