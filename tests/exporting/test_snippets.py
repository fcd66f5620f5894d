"""The printed code runs an exported file without vggkit, and gives what `predict` gives."""

import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from small_classifiers import FC, build, draw_photo

from vggkit.classifier import Classifier
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configure import configure

POOL = replace(FC, head="pool", hidden=())
# Keras hands torch's tensors to NumPy in a way that NumPy 2 warns of.
keras_warns = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
ROOM: dict[str, object] = {"atol": 0.02}
"""Where the image is resized by Pillow itself, or in the program: a level of 255."""


@pytest.fixture
def photo():
    return draw_photo()


def run(snippet, folder, photo, monkeypatch, *, lines):
    """What the code leaves, run beside the file and an image whose orientation is in its EXIF."""
    assert "vggkit" not in snippet.replace("vggkit.json", "").replace('"vggkit"', "")
    assert sum(1 for line in snippet.splitlines() if line and not line.startswith(("import", "from"))) <= lines
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    Image.fromarray(photo).save(folder / "image.jpg", quality=95, exif=exif)
    monkeypatch.chdir(folder)
    found: dict[str, object] = {}
    exec(compile(snippet, "snippet", "exec"), found)
    return found


def check(classifier, out, folder, photo, monkeypatch, capsys, *, lines=12, **options):
    exported = classifier.export(folder / out, **options)
    found = run(exported.snippet, folder, photo, monkeypatch, lines=lines)
    [expected] = classifier.predict(folder / "image.jpg", top=len(classifier.labels), engine="pytorch")
    by_label = dict(zip(expected.labels, expected.probabilities, strict=True))
    np.testing.assert_allclose(found["probabilities"], [by_label[label] for label in classifier.labels], **ROOM)
    best = expected.labels[0] if expected.probabilities[0] >= classifier.threshold else "unknown"
    assert capsys.readouterr().out.split(" 0.")[0] == best


@pytest.mark.parametrize("resize", [False, True], ids=["resized by Pillow", "resized inside"])
@pytest.mark.parametrize(
    ("out", "packages"),
    [
        ("m.onnx", ("onnx", "onnxruntime")),
        pytest.param("m.xml", ("openvino",), marks=pytest.mark.slow),
        pytest.param("m.pt2", (), marks=pytest.mark.slow),
    ],
)
def test_programs(out, packages, resize, tmp_path, photo, monkeypatch, capsys):
    for package in packages:
        pytest.importorskip(package)
    check(build(POOL), out, tmp_path, photo, monkeypatch, capsys, resize=resize)


def test_the_code_for_openvino(tmp_path, photo, monkeypatch, capsys):
    """The quicker of its two, among the default tests."""
    pytest.importorskip("openvino")
    check(build(POOL), "m.xml", tmp_path, photo, monkeypatch, capsys)


@pytest.mark.parametrize("fit", [{"fit_mode": "pad"}, {"fit_mode": "stretch"}, {"resize_pixels": 51}], ids=str)
def test_preparations(fit, tmp_path, photo, monkeypatch, capsys):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    check(build(FC, **fit), "m.onnx", tmp_path, photo, monkeypatch, capsys)


@pytest.fixture(scope="module")
def whole():
    """The paper's network, whose shape the libraries build."""
    classifier = Classifier.create(
        configure("vgg11", num_classes=3),
        labels=["a", "b", "c"],
        preprocessing=Preprocessing(),
        seed=0,
    )
    classifier.calibrate(temperature=0.2, threshold=0.1, about={})
    return classifier


@pytest.mark.slow
@pytest.mark.parametrize(
    ("out", "to"), [("m.pth", None), ("m.safetensors", None), ("m.safetensors", "timm"), ("m.pth", "timm")]
)
def test_weights_in_torch(out, to, whole, tmp_path, photo, monkeypatch, capsys):
    pytest.importorskip(to or "torchvision")
    check(whole, out, tmp_path, photo, monkeypatch, capsys, to=to, lines=15)


@keras_warns
@pytest.mark.slow
@pytest.mark.parametrize("out", ["m.weights.h5", "m.h5", "m.npz"])
def test_weights_in_keras(out, tmp_path, photo, monkeypatch, capsys):
    os.environ.setdefault("KERAS_BACKEND", "torch")
    pytest.importorskip("keras")
    check(build(FC), out, tmp_path, photo, monkeypatch, capsys, lines=26)


@keras_warns
@pytest.mark.slow
def test_keras_own_vgg16(tmp_path, photo, monkeypatch, capsys):
    os.environ.setdefault("KERAS_BACKEND", "torch")
    pytest.importorskip("keras")
    classifier = Classifier.create(
        configure("vgg16", num_classes=3), labels=["a", "b", "c"], preprocessing=Preprocessing(), seed=0
    )
    check(classifier, "m.weights.h5", tmp_path, photo, monkeypatch, capsys, lines=13)
