"""Each tutorial and page of the lesson is a notebook, which runs from top to bottom."""

import importlib.util
import os
import sys

import pytest
from test_pages import INSTEAD

from contracts.test_inside_page import INSTEAD as INSIDE
from contracts.test_inside_page import write_random_weights
from page_blocks import DOCS, join_lines, read_blocks

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")


@pytest.fixture(scope="module")
def notebooks():
    spec = importlib.util.spec_from_file_location("notebooks", DOCS / "tools" / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(notebooks, page):
    return notebooks.write_notebook((DOCS / page).read_text(encoding="utf-8"))


def test_a_notebook_has_the_code_of_its_page(notebooks):
    for page in notebooks.PAGES:
        notebook = write(notebooks, page)
        nbformat.validate(notebook)
        cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        blocks = [text.strip() for kind, text in read_blocks(page) if kind in ("python", "bash")]
        assert len(cells) == len(blocks)
        for cell, block in zip(cells, blocks, strict=True):
            assert join_lines(cell.removeprefix("%%bash\n")).strip() == block
        assert write(notebooks, page) == notebook
        assert not any("](../" in cell.source for cell in notebook.cells)


PAGES = [
    "three-ways.md",
    "lesson/why.md",
    "lesson/shapes.md",
    "lesson/training.md",
    "lesson/experiments.md",
    "lesson/transfer.md",
    "tutorials/your-photos.md",
    "tutorials/figures.md",
    "inside.md",
    "tutorials/small-and-fast.md",
    "tutorials/serving.md",
    "tutorials/several-machines.md",
]


FEWER = {
    "inside.md": INSIDE,
    "lesson/experiments.md": {"EPOCHS, SEEDS = 4, 4": "EPOCHS, SEEDS = 1, 2"},
    "lesson/transfer.md": {"steps=150": "steps=15", "range(4)": "range(2)"},
}
"""Of the minutes that a page takes; test_pages.py runs it as it is, and compares what it prints."""


def test_every_notebook_is_run(notebooks):
    assert set(PAGES) == set(notebooks.PAGES)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES)
def test_the_notebook_runs(page, notebooks, tmp_path, monkeypatch):
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}")  # noqa: PTH120
    monkeypatch.setenv("VGGKIT_OFFLINE", "1")
    if page == "inside.md":
        write_random_weights(tmp_path / "random.pth")
    notebook = write(notebooks, page)
    for cell in notebook.cells:
        cell.source = join_lines(cell.source) if cell.source.startswith("%%bash") else cell.source
        for written, smaller in {**INSTEAD.get(page, {}), **FEWER.get(page, {})}.items():
            cell.source = cell.source.replace(written, smaller)
        if cell.source.strip() == "%%bash":
            cell.source = ""
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert all(cell.get("outputs") is not None for cell in notebook.cells if cell.cell_type == "code")
