"""`vggkit models`: whole at 80 characters, with licences where there is room."""

import io
import json

import pytest
from rich.console import Console

from vggkit.cli import models as cli
from vggkit.models.configuration import list_models
from vggkit.models.configure import configure
from vggkit.models.summary import summarize
from vggkit.reports.model_table import LICENCE_WIDTH, draw_models
from vggkit.weights.bundled import BUNDLED
from vggkit.weights.published import find_published, list_published


def draw(width: int) -> list[str]:
    out = io.StringIO()
    table = draw_models([summarize(configure(name)) for name in list_models()], width=width)
    Console(file=out, width=width, highlight=False).print(table)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, LICENCE_WIDTH, 120])
def test_nothing_is_cut_off(width):
    lines = draw(width)
    assert all(len(line) <= width for line in lines)
    assert "…" not in "".join(lines)
    rows = {line.split()[0]: line for line in lines if line.startswith("vgg")}
    assert list(rows) == list_models()
    for name, row in rows.items():
        known = list_published(name)
        assert ("69.02  88.63" in row) == (name == "vgg11")
        assert ("BSD-3-Clause" in row) == (bool(known) and width >= LICENCE_WIDTH)
        if known:
            assert f"{100 * known[0].top1:.2f}  {100 * known[0].top5:.2f}" in row
    assert "2 2 2+1 2+1 2+1" in rows["vgg16_c"]
    assert "BSD-3-Clause" in lines[-2]  # in words at every width
    assert "with vggkit comes digits" in lines[-1]


def test_networks_without_published_weights_promise_none():
    out = io.StringIO()
    Console(file=out, width=80).print(draw_models([summarize(configure("vgg16_c"))]))
    assert "imagenet" not in out.getvalue()


def test_json_has_the_weights_with_their_source(capsys):
    cli.models(json=True)
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [*list_models(), *BUNDLED]
    assert found["digits"]["weights"]["bundled"]["top1"] > 0.97
    assert found["digits"]["parameters"] < 300_000
    assert found["vgg11_lrn"]["weights"] == {}
    assert set(found["vgg16"]["weights"]) == {"imagenet", "features"}
    assert found["vgg16"]["weights"]["features"]["top1"] is None
    said = found["vgg19"]["weights"]["imagenet"]
    assert said == find_published("vgg19").to_dict()
    assert {"top1", "top5", "licence", "terms", "url", "source", "digest_prefix", "hub_repository"} <= set(said)
    assert found["vgg19"]["parameters"] == 143_667_240
