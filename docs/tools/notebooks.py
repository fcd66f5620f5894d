"""The tutorials and the pages of the lesson as notebooks, written by jupytext when the site is built.

A `bash` block becomes a cell of shell commands, a `text` block stays as what the cell above prints. Relative links
of notebooks would lead nowhere, so they become plain text.
"""

import re
from pathlib import Path

import jupytext
import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

DOCS = Path(__file__).resolve().parents[1]
PAGES = (
    "lesson/why.md",
    "three-ways.md",
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
)
"""In the order of the navigation."""
HEADER = """---
jupyter:
  kernelspec:
    display_name: Python 3
    language: python
    name: python3
---

"""
"""Without it the language of a page's first block would be the notebook's."""
IMAGE = re.compile(r"!\[([^\]]*)\]\([^)]*\)(?:\{[^}]*\})?")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:)[^)]*\)")


def write_notebook(text: str) -> nbformat.NotebookNode:
    """The notebook of a page; its identifiers and metadata are the same whenever it is written."""
    parts = re.split(r"(^```.*?^```)", text, flags=re.M | re.S)
    plain = [
        part
        if part.startswith("```")
        else LINK.sub(r"\1", IMAGE.sub(r"*(image on the page: \1)*", part))
        for part in parts
    ]
    notebook = jupytext.reads(HEADER + "".join(plain), fmt="md")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {}
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    return notebook


def notebook_place(page: str) -> str:
    """Where the notebook of a page lies on the site."""
    return "notebooks/" + page.rsplit("/", 1)[-1].replace(".md", ".ipynb")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the notebooks."""
    for page in PAGES:
        written = nbformat.writes(
            write_notebook((DOCS / page).read_text(encoding="utf-8"))
        )
        files.append(File.generated(config, notebook_place(page), content=written))
    return files


def on_page_markdown(
    markdown: str, *, page, config: MkDocsConfig, files: Files
) -> str:
    """Offer the notebook under the title of its page."""
    if page.file.src_uri not in PAGES:
        return markdown
    up = "../" * page.file.src_uri.count("/")
    title, rest = markdown.split("\n", 1)
    name = notebook_place(page.file.src_uri)
    return f"{title}\n\n[This page as a notebook]({up}{name}){{ .notebook download }}\n{rest}"
