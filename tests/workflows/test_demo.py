import json

import pytest

from vggkit.errors import BadOutput
from vggkit.workflows.demo import demonstrate


@pytest.mark.slow
def test_the_demonstration_reaches_what_it_promises_and_repeats(tmp_path):
    first = demonstrate(tmp_path / "demo", quiet=True, device="cpu")
    assert first.run.evaluation.top1 >= 0.98
    assert first.run.evaluation.n == 359
    assert first.sheet.is_file()
    assert demonstrate(tmp_path / "demo", quiet=True, device="cpu").run.evaluation == first.run.evaluation


def finish(folder, names):
    """A folder with these files, as a finished demonstration's record names them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / "demo.json").write_text(json.dumps({"schema_version": 1, "files": [*names, "demo.json"]}))


NAMES = ["config.yaml", "run.json", "best.safetensors", "predictions.png", "images/digit_0030.png"]


@pytest.mark.parametrize("names", [["thesis.txt", "config.yaml"], NAMES, []], ids=str)
def test_it_removes_nothing_without_a_record(tmp_path, names):
    """A training run least of all."""
    finish(tmp_path, names)
    (tmp_path / "demo.json").write_text("{}")
    with pytest.raises(BadOutput, match="--out"):
        demonstrate(tmp_path, quiet=True)
    assert all((tmp_path / name).exists() for name in names)


@pytest.mark.parametrize("extra", ["thesis.txt", "images/holiday.png"])
def test_it_removes_nothing_that_its_record_does_not_name(tmp_path, extra):
    finish(tmp_path, NAMES)
    (tmp_path / extra).write_text("x")
    with pytest.raises(BadOutput, match="--out"):
        demonstrate(tmp_path, quiet=True)
    assert all((tmp_path / name).exists() for name in [*NAMES, extra])


def test_a_finished_demonstration_is_replaced(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise ZeroDivisionError

    finish(tmp_path / "demo", NAMES)
    monkeypatch.setattr("vggkit.workflows.demo.train", stop)
    with pytest.raises(ZeroDivisionError):
        demonstrate(tmp_path / "demo", quiet=True)
    assert not (tmp_path / "demo").exists()
