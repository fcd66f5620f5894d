"""The verb: formats by endings, what is refused before any work, and files that are whole or not there at all."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_classifiers import FC, build, draw_photo

import vggkit as vk
from vggkit.cli import main as cli
from vggkit.errors import BadConfiguration, BadData, BadInput, BadOutput, MissingExtra, UnknownName
from vggkit.exporting import formats, onnx_file
from vggkit.exporting.formats import choose_format
from vggkit.exporting.programs import Program

POOL = replace(FC, head="pool", hidden=())


@pytest.fixture
def photo():
    return draw_photo()


@pytest.fixture
def runtimes():
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("name", "to", "expected"),
    [
        ("m.onnx", None, "onnx"),
        ("M.ONNX", None, "onnx"),
        ("m.pt2", None, "pt2"),
        ("m.xml", None, "openvino"),
        ("m.pth", None, "torchvision"),
        ("m.safetensors", None, "torchvision"),
        ("m.safetensors", "timm", "timm"),
        ("m.weights.h5", None, "keras"),
        ("m.npz", None, "keras"),
    ],
)
def test_the_ending_chooses_the_format(name, to, expected, monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda package: object())
    assert choose_format(name, to).name == expected


@pytest.mark.parametrize(
    ("name", "to", "kind", "message"),
    [
        ("m.onxx", None, UnknownName, "Did you mean '.onnx'"),
        ("m.bin", None, UnknownName, ".xml"),
        ("m.ts", None, UnknownName, "ending"),
        ("model", None, UnknownName, "ending"),
        ("m.pth", "onnx", BadConfiguration, ".onnx"),
        ("m.onnx", "onx", UnknownName, "Did you mean 'onnx'"),
    ],
)
def test_names_that_mean_no_format(name, to, kind, message):
    with pytest.raises(kind, match=message):
        choose_format(name, to)


@pytest.mark.parametrize(
    ("name", "line"),
    [("m.onnx", "vggkit[onnx]"), ("m.xml", "vggkit[fast]"), ("m.h5", "vggkit[weights]")],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(name, line, monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(MissingExtra) as refusal:
        choose_format(name)
    assert line in str(refusal.value)


def test_a_program_is_exported_and_its_check_recorded(tmp_path, runtimes, photo):
    classifier = build(POOL)
    Image.fromarray(photo).save(tmp_path / "a.png")
    done = []
    found = classifier.export(
        tmp_path / "out" / "m.onnx", data=[tmp_path / "a.png", photo], on_progress=lambda *step: done.append(step)
    )
    assert list_names(tmp_path / "out") == ["m.onnx"]
    assert found.size_bytes == (tmp_path / "out" / "m.onnx").stat().st_size
    assert found.input_shape == ("N", "H", "W", 3)
    assert found.least_pixels == 32
    assert found.parity.images == "2 of the given images"
    assert len(found.parity.sizes) == len(found.parity.batch_sizes) == 2
    assert found.parity.agreement == 1
    assert found.parity.logit_difference < found.parity.tolerance
    assert found.parity.resizing_levels is None
    assert done[-1] == ("checking", found.parity.predictions, found.parity.predictions)
    assert json.loads(json.dumps(found.to_dict()))["parity"]["runtime"].startswith("onnxruntime")


def test_a_program_that_resizes_is_checked_against_predicts_pixels(tmp_path, runtimes):
    found = build(FC, resize_pixels=80).export(tmp_path / "m.onnx", resize=True)
    assert found.parity.images == "4 synthetic images"
    assert found.parity.resizing_levels <= 1
    assert found.least_pixels == 1
    assert "resized pixels differ" in str(found)


@pytest.mark.parametrize("fault", ["weights", "preprocessing", "nan"])
def test_a_program_that_computes_something_else_is_not_kept(fault, tmp_path, runtimes, monkeypatch):
    """An older file of the name stays as it was."""
    (tmp_path / "m.onnx").write_bytes(b"older")

    def open_wrong(path):
        run, runtime = onnx_file.open_onnx(path)
        return {
            "weights": lambda images: run(images) * 0.999 + 0.001 / 5,
            "preprocessing": lambda images: run(images[..., ::-1]),
            "nan": lambda images: run(images) * np.nan,
        }[fault], runtime

    monkeypatch.setattr(
        "vggkit.workflows.export.find_program", lambda name: Program(onnx_file.write_onnx, open_wrong)
    )
    with pytest.raises(BadOutput, match="not kept"):
        build(POOL).export(tmp_path / "m.onnx")
    assert list_names(tmp_path) == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"older"


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("name", ["m.onnx", "m.xml"])
def test_what_breaks_off_leaves_nothing(problem, name, tmp_path, monkeypatch):
    classifier = build(POOL)
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda package: object())

    def write(weights, plan, target):
        target.write_bytes(b"half")
        target.with_suffix(".bin").write_bytes(b"half")
        raise problem

    program = Program(write, lambda path: None, beside=(".bin",) if name == "m.xml" else ())
    monkeypatch.setattr("vggkit.workflows.export.find_program", lambda name: program)
    with pytest.raises((BadOutput, KeyboardInterrupt)) as stop:
        classifier.export(tmp_path / name)
    assert isinstance(stop.value, KeyboardInterrupt) or "No space left" in str(stop.value)
    assert list_names(tmp_path) == []


@pytest.mark.parametrize("name", ["m.onnx", "m.xml", pytest.param("m.pt2", marks=pytest.mark.slow)])
def test_a_full_disk(name, tmp_path):
    resource = pytest.importorskip("resource")  # a limit on the size of files stands in for it
    for package in {"m.onnx": ("onnx", "onnxruntime"), "m.xml": ("openvino",)}.get(name, ()):
        pytest.importorskip(package)
    classifier = build(replace(FC, hidden=(512, 512)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(BadOutput, match="cannot be written"):
            classifier.export(tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list_names(tmp_path) == []


def test_openvino_writes_two_files_and_takes_both_places(tmp_path):
    pytest.importorskip("openvino")
    (tmp_path / "m.xml").write_text("older", encoding="utf-8")
    found = build(POOL).export(tmp_path / "m.xml")
    assert list_names(tmp_path) == ["m.bin", "m.xml"]
    assert [path.name for path in found.files] == ["m.bin", "m.xml"]
    assert found.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "options", "name", "message"),
    [
        ({"lrn_after": ("relu1_1",)}, {}, "m.h5", "local response normalisation"),
        ({"lrn_after": ("relu1_1",)}, {}, "m.pth", "local response normalisation"),
        ({"pooling": "average"}, {}, "m.npz", "average pooling"),
        ({"head": "pool", "hidden": ()}, {}, "m.safetensors", "a pool head"),
        ({"grid": 7}, {}, "m.npz", "64 pixels"),
        ({}, {"resize": True}, "m.pth", "resize must be left out"),
        ({}, {"precision": "fp16"}, "m.pth", "precision must be left out"),
        ({}, {"data": ["x.jpg"]}, "m.pth", "data must be left out"),
        ({}, {"precision": "int4"}, "m.onnx", "fp16"),
    ],
)
def test_networks_and_options_without_a_form(changes, options, name, message, tmp_path):
    with pytest.raises((BadConfiguration, UnknownName), match=message):
        build(replace(FC, **changes)).export(tmp_path / name, **options)
    assert list_names(tmp_path) == []


def test_filters_that_programs_do_not_have(tmp_path):
    with pytest.raises(BadConfiguration, match="lanczos"):
        build(POOL, interpolation="lanczos").export(tmp_path / "m.onnx", resize=True)


def test_places_that_cannot_be_written(tmp_path):
    classifier = build(POOL)
    classifier.save(tmp_path / "m.safetensors")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").write_text("", encoding="utf-8")
    for out in (tmp_path / "folder.onnx", tmp_path / "file" / "m.onnx"):
        with pytest.raises(BadOutput):
            classifier.export(out)
    with pytest.raises(BadOutput, match="one of the inputs"):
        vk.export(tmp_path / "m.safetensors", tmp_path / "m.safetensors")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(BadData, match="broken"):
        classifier.export(tmp_path / "m.onnx", data=tmp_path / "broken.png")
    assert not (tmp_path / "m.onnx").exists()


def test_a_network_that_overflows_is_refused(tmp_path, runtimes):
    classifier = build(POOL)
    with torch.no_grad():
        for parameter in classifier.network.parameters():
            parameter.mul_(1e9)
    with pytest.raises(BadInput, match="overflow"):
        classifier.export(tmp_path / "m.onnx")
    assert list_names(tmp_path) == []


def test_the_command(tmp_path, runtimes, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build(POOL).save("m.safetensors")

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["export", *arguments])
        return ended.value.code, *capsys.readouterr()

    code, out, _ = call("m.safetensors", "m.onnx", "--quiet")
    assert code == 0
    assert "N × H × W × 3, H and W from 32 pixels" in out
    assert "import onnxruntime" in out
    code, out, _ = call("m.safetensors", "m.onnx", "--json", "--quiet", "--precision", "fp16")
    assert json.loads(out)["precision"] == "fp16"
    for arguments, said in (
        (("m.safetensors", "m.onxx"), "Did you mean '.onnx'"),
        (("m.safetensors", "missing/../."), "ending"),
        (("none.safetensors", "m.onnx"), "none.safetensors"),
        (("m.safetensors", "m.npz", "--resize"), "--resize must be left out"),
    ):
        code, out, err = call(*arguments)
        assert (code, out) == (2, "")
        assert said in err
        assert err.strip().count("\n") == 0


def test_refusals_come_before_torch(tmp_path):
    build(POOL).save(tmp_path / "m.safetensors")
    code = (
        "import sys\nfrom vggkit.cli.main import main\n"
        "for arguments in (['m.onxx'], ['m.pth'], ['folder/']):\n"
        f"    try: main(['export', {str(tmp_path / 'm.safetensors')!r}, *arguments])\n"
        "    except SystemExit as ended: assert ended.code == 2\n"
        "    assert 'torch' not in sys.modules and 'onnx' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=60, capture_output=True)
