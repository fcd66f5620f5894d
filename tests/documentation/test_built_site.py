"""The site: built without a network and without a warning, and what a reader does with it in a browser."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from page_blocks import DOCS
from vggkit.cli.commands import VERBS

ROOT = DOCS.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Built in a process without a route to the network: proxies that nobody listens at."""
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.mark.slow
def test_a_reader_searches_and_reads(site, browser):
    page = browser.new_page(viewport={"width": 390, "height": 800})  # a phone
    complaints, addresses = [], []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: addresses.append(request.url))
    page.goto((site / "index.html").as_uri())
    page.locator("label.md-header__button[for=__search]").first.click()
    page.locator("input.md-search__input").press_sequentially("receptive field")
    page.wait_for_selector(".md-search-result__item")
    for name in (
        "lesson/why.html",
        "reference/cli/shipping.html",
        "tutorials/figures.html",
        "benchmarks/engines.html",
    ):
        page.goto((site / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    page.goto((site / "lesson/explorer.html").as_uri())
    page.click("text=Open the drawing")
    assert page.inner_text("h1") == "Any VGG, layer by layer"
    assert complaints == []
    assert {address.split(":")[0] for address in addresses} <= {"file", "data", "blob"}
    page.close()


@pytest.mark.slow
def test_what_is_generated_is_there(site):
    text = (site / "reference/cli/training-and-evaluation.html").read_text(encoding="utf-8")
    assert "--layer-decay" in text
    assert "vk.Classifier" in (site / "reference/python/weights.html").read_text(encoding="utf-8")
    assert len(list((site / "notebooks").glob("*.ipynb"))) == 12
    assert (site / "explore.html").is_file()


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("reference_pages", DOCS / "tools" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_name_and_every_option_is_in_the_reference(reference):
    import json

    python = "\n".join(reference.write_python_pages().values())
    for name, place in reference.list_public_names().items():
        assert python.count(f"## vk.{name} {{") == 1
        assert f"::: {place}\n" in python
    pages = reference.write_cli_pages()
    surface = json.loads((ROOT / "tests/cli/surface.json").read_text(encoding="utf-8"))
    for group, verbs in VERBS.items():
        page = pages[f"reference/cli/{group.lower().replace(' ', '-')}.md"]
        for verb in verbs:
            section = page.split(f"## vggkit {verb} {{")[1].split("\n## ")[0]
            for option in surface[verb]:
                assert option == "--help" or f"`{option}`" in section, (verb, option)
