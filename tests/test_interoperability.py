"""docs/interoperability.md: its code runs, each block in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "interoperability.md"
BLOCKS = dict(re.findall(r"^## (.+?)\n.*?```python\n(.+?)```", PAGE.read_text(encoding="utf-8"), re.M | re.S))
SLOW = {"scikit-learn", "timm", "torchvision"}
"""Nine trainings; networks of half a gigabyte."""


def test_every_library_of_the_page_has_code():
    assert list(BLOCKS) == ["scikit-learn", "torchvision", "timm", "The Hugging Face hub"]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in BLOCKS])
def test_the_code_of_the_page_runs(name, tmp_path):
    for package in {"scikit-learn": ["sklearn"], "timm": ["timm"], "torchvision": ["torchvision"]}.get(name, []):
        pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BLOCKS[name]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
