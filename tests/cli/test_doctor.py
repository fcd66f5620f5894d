"""`vggkit doctor`: what is installed and what of it works, in one screen without private paths."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import vggkit as vk
from vggkit.benchmarking.checkup import PackageState
from vggkit.benchmarking.packages import import_apart, list_packages, try_imports
from vggkit.cli import doctor as cli
from vggkit.reports.checkup_table import draw_checkup
from vggkit.reports.terminal import write_plainly
from vggkit.workflows import doctor as workflow


@pytest.fixture(scope="module")
def checkup():
    """The real engines; packages are imported in a test of their own, as all of them take half a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workflow, "try_imports", lambda packages, on_progress: packages)
        patch.setenv("HF_TOKEN", "hf_secret")
        patch.setenv("HTTPS_PROXY", "http://user:secret@proxy.example")
        return vk.doctor()


def test_every_engine_is_really_tried(checkup):
    engines = {(each.engine, each.precision): each for each in checkup.engines if each.device == "cpu"}
    assert set(engines) == {
        ("pytorch", "fp32"),
        ("pytorch", "bf16"),
        ("onnx", "fp32"),
        ("ncnn", "fp32"),
        ("openvino", "fp32"),
        ("openvino", "bf16"),
        ("openvino", "int8"),
    }
    reference = engines["pytorch", "fp32"]
    assert (reference.status, reference.error) == ("works", None)
    assert reference.start_seconds > 0
    for each in engines.values():
        assert each.status in ("works", "not installed", "not on this machine"), each
        if each.status == "works" and each is not reference:
            assert each.error < workflow.TOLERANCES[each.precision]
    assert checkup.problems == ()


def test_it_fits_one_screen_and_keeps_secrets(checkup):
    found = replace(checkup, vggkit="0.2.0")
    text = write_plainly(draw_checkup(found))
    lines = text.splitlines()
    assert len(lines) <= 42
    assert all(len(line) <= 80 for line in lines)
    for private in ("secret", str(Path.home()) + os.sep, sys.prefix):
        assert private not in text
        assert private not in json.dumps(found.to_dict())
    assert found.variables["HF_TOKEN"] == "set"
    assert "HF_TOKEN:" in text
    for part in ("vggkit 0.2.0", "Python 3.", "torch ", "openvino", "everything that is installed works"):
        assert part in text


def test_what_fails_is_named_and_the_exit_code_is_1(checkup, monkeypatch, capsys):
    broken = PackageState(name="captum", needed=">=0.9", version="0.9.0", problem="ImportError: no such symbol")
    lacking = PackageState(name="ray", needed=">=2.50", version=None)
    engines = (replace(checkup.engines[0], status="fails", problem="its process was ended by signal 4"),)
    found = replace(checkup, engines=engines, extras={"explain": (broken,), "ray": (lacking,)})
    assert found.problems == (
        "captum 0.9.0: ImportError: no such symbol",
        "pytorch in fp32 on cpu: its process was ended by signal 4",
    )
    monkeypatch.setattr(workflow, "doctor", lambda on_progress: found)
    assert cli.doctor(quiet=True) == 1
    out = capsys.readouterr().out
    assert "captum 0.9.0 FAILS" in out
    assert 'pip install "vggkit[ray]"' in out
    assert "signal 4" in out
    monkeypatch.setattr(workflow, "doctor", lambda on_progress: checkup)
    assert cli.doctor(json=True, quiet=True) == 0
    assert json.loads(capsys.readouterr().out)["schema_version"] == 1


def test_a_package_that_ends_the_process_is_named_and_the_others_are_tried(tmp_path, monkeypatch):
    (tmp_path / "crashes.py").write_text("import os; print('noise'); os._exit(3)")
    (tmp_path / "raises.py").write_text("raise OSError('libfoo.so.1: not found')")
    (tmp_path / "fine.py").write_text("print('noise')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = []
    found = import_apart(
        {name: name for name in ("fine", "crashes", "raises", "json")}, on_progress=lambda *each: done.append(each)
    )
    assert found == {
        "crashes": "its import ended the process, or took too long",
        "raises": "OSError: libfoo.so.1: not found",
    }
    assert done[-1] == (4, 4)


def test_packages_are_those_of_the_metadata():
    found = list_packages()
    if not found:
        pytest.skip("vggkit is on the path here, and not installed")
    assert {each.name for each in found[""]} >= {"torch", "numpy", "safetensors"}
    assert "all" not in found
    assert [each.name for each in found["fast"]] == ["openvino"]
    old = {"": (PackageState(name="x", needed=">=2", version="1.9", problem="vggkit needs x>=2"),)}
    assert try_imports({"": ()}, on_progress=lambda *_: None) == {"": ()}
    assert try_imports(old, on_progress=lambda *_: None) == old  # the first problem stays


@pytest.mark.slow
def test_the_command_tries_everything():
    done = subprocess.run(
        [sys.executable, "-m", "vggkit", "doctor", "--json"], capture_output=True, text=True, timeout=280
    )
    found = json.loads(done.stdout)
    assert done.returncode == (1 if found["problems"] else 0), done.stderr
    assert {each["engine"] for each in found["engines"]} == {"pytorch", "openvino", "onnx", "ncnn"}
