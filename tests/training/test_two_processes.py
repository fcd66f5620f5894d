"""Two processes with half of each batch learn what one process does; the checks are those of `two_processes.py`."""

import json
from pathlib import Path

import pytest

from ranks import start_ranks, wait_for

CODE = Path(__file__).with_name("two_processes.py").read_text(encoding="utf-8")
CHECKS = [line.split("(")[0].removeprefix("def ") for line in CODE.splitlines() if line.startswith("def check_")]


@pytest.fixture(scope="module")
def failed(processes):
    ranks = start_ranks(processes, code=CODE)
    wait_for(ranks)
    return [json.loads(rank.out.splitlines()[-1])["failed"] for rank in ranks]


@pytest.mark.parametrize("check", CHECKS)
def test_two_processes_and_one_agree(check, failed):
    assert [each.get(check) for each in failed] == [None, None], failed[0].get(check) or failed[1].get(check)
