import pytest

from vggkit.errors import BadOutput
from vggkit.workflows.demonstration import demonstrate


@pytest.mark.slow
def test_the_demonstration_reaches_what_it_promises_and_repeats(tmp_path):
    first = demonstrate(tmp_path / "demo", quiet=True, device="cpu")
    assert first.run.evaluation.top1 >= 0.98
    assert first.run.evaluation.n == 359
    assert first.sheet.is_file()
    assert demonstrate(tmp_path / "demo", quiet=True, device="cpu").run.evaluation == first.run.evaluation


def test_it_removes_nothing_that_it_did_not_write(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    (tmp_path / "config.yaml").write_text("x")
    with pytest.raises(BadOutput, match="--out"):
        demonstrate(tmp_path, quiet=True)
    assert (tmp_path / "thesis.txt").exists()
