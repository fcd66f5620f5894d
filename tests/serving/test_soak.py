"""The soak of benchmarks/serve_soak.py, shortened."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "serve_soak.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's memory from Linux's /proc")
def test_many_requests_are_all_answered_right_in_the_same_memory():
    found = subprocess.run(
        [sys.executable, SCRIPT, "3000"], capture_output=True, text=True, timeout=280, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
