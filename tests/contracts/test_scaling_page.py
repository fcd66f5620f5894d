"""The figures of docs/scaling.md are those that its script computes, and its bytes those that are sent."""

import importlib.util
import json
from pathlib import Path

import pytest

from ranks import start_ranks, wait_for

ROOT = Path(__file__).resolve().parents[2]
COUNTS = """
import json
import torch
from vggkit.models.vgg import VGG
from vggkit.training.distributed.joining import join_processes
from vggkit.training.distributed.traffic import count_traffic
from vggkit.training.recipe import Recipe
from vggkit.training.train_state import TrainState

found = {}
with join_processes("cpu") as group:
    for split in (False, True):
        recipe = Recipe(
            trainable="all", precision="fp32", learning_rate=0.01, weight_decay=5e-4, momentum=0.0, batch_size=2,
            split_head=split,
        )
        state = TrainState(VGG("vgg11"), recipe, device=torch.device("cpu"), group=group)
        state.start_epoch(1)
        with count_traffic() as traffic:
            state.compute(torch.randn(1, 3, 224, 224), torch.zeros(1, dtype=torch.int64), draw=0)
        found["exact, split head" if split else "exact, data parallel"] = traffic.bytes
        del state
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("scaling", ROOT / "benchmarks" / "scaling.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_page_has_the_computed_figures(script):
    assert script.describe_model() in (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_a_split_head_exchanges_ten_times_fewer_bytes_on_paper(script):
    whole, split = (
        script.count_bytes(way, processes=2, images=8) for way in ("exact, data parallel", "exact, split head")
    )
    assert whole == 4 * 132_863_336
    assert whole > 10 * split


@pytest.mark.slow
def test_a_split_head_exchanges_ten_times_fewer_bytes_of_vgg11_at_224_pixels(script, processes):
    ranks = start_ranks(processes, code=COUNTS)
    wait_for(ranks, seconds=250)
    found = json.loads(ranks[0].out)
    for way, count in found.items():
        assert abs(count - script.count_bytes(way, processes=2, images=1)) < 200, way
    assert found["exact, data parallel"] > 10 * found["exact, split head"]
