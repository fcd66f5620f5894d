"""Files of the repository outside docs/ as pages of the site: benchmarks, source files, the project's own pages.

Pages under docs/ link to them by relative paths, which work where the repository is read; here each link outside
docs/ is turned into a link to a page that is generated from the file.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PROJECT = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
}
"""Files of the repository's root and the page of each."""
LINK = re.compile(r"(?<!!)(\[[^\]]*\]\()([^)#\s]+)(#[^)]*)?\)")
SEARCH_BOOSTS = {
    "lesson": 3.0,
    "tutorials": 2.0,
    "reference": 2.0,
    "reference/python": 0.3,
    "reference/cli": 0.5,
    "decisions": 0.05,
    "benchmarks": 0.1,
}
"""Pages for readers come before those on how the project was made."""
LATER = ("shell.md", "interoperability.md")
"""Pages of the navigation that may not be there yet."""
LANGUAGES = {
    ".py": "python",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".js": "javascript",
    ".conf": "nginx",
}


def place_of(path: str) -> str:
    """The page of the site that shows a file or folder of the repository, such as `src/vggkit/models/vgg.py`."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path in PROJECT:
        return PROJECT[path]
    if path == "README.md":
        return "README.md"
    if path.startswith("benchmarks") and not path.endswith(".py"):
        if (
            path.endswith(".md") and not (ROOT / path).exists()
        ):  # a table that was not measured yet: its script
            return f"source/{path.removesuffix('.md')}.py.md"
        return "benchmarks/README.md" if path.rstrip("/") == "benchmarks" else path
    return f"source/{path}.md"


def rewrite_links(text: str, origin: str) -> str:
    """The text of the file `origin` with its links leading to pages of the site."""
    here = posixpath.dirname(place_of(origin))

    def rewrite(found: re.Match[str]) -> str:
        opening, target, anchor = found.groups()
        if re.match(r"[a-z]+:|/", target):
            return found.group()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if path.startswith("docs/") and origin.startswith("docs/"):
            return found.group()
        return f"{opening}{posixpath.relpath(place_of(path), here or '.')}{anchor or ''})"

    fenced = re.split(r"(^```.*?^```)", text, flags=re.M | re.S)
    return "".join(
        part if part.startswith("```") else LINK.sub(rewrite, part)
        for part in fenced
    )


def list_linked(paths: list[Path]) -> Iterator[str]:
    """The files of the repository outside docs/ and benchmarks/ that these pages link to."""
    for path in paths:
        for _, target, _ in LINK.findall(path.read_text(encoding="utf-8")):
            found = posixpath.normpath(
                posixpath.join(path.parent.relative_to(ROOT).as_posix(), target)
            )
            outside = not found.startswith(
                ("docs/", "benchmarks")
            ) or found.endswith(".py")
            if (
                outside
                and not re.match(r"[a-z]+:", target)
                and (ROOT / found).is_file()
            ):
                yield found


def list_benchmarks() -> list[Path]:
    """The tables of measurements, in the order of their names."""
    return sorted((ROOT / "benchmarks").glob("*.md"))


def write_source_page(path: str) -> str:
    """A page that shows a source file."""
    language = LANGUAGES.get(PurePosixPath(path).suffix, "text")
    text = (ROOT / path).read_text(encoding="utf-8")
    return f'---\nsearch:\n  exclude: true\n---\n# {path}\n\n~~~~{language} linenums="1"\n{text}~~~~\n'


def write_benchmark_index() -> str:
    """The list of the measurements: the title of each, its first paragraph and its script."""
    lines = [
        "# Benchmarks\n",
        "Each table was written by the script beside it, which names the hardware, the versions, the number of "
        "repetitions and the date. Speeds are ratios to an established library in one run. `make bench` repeats "
        "all.\n",
    ]
    for path in list_benchmarks():
        title, *paragraphs = [
            each.strip() for each in path.read_text(encoding="utf-8").split("\n\n")
        ]
        first = next(
            (each for each in paragraphs if not each.startswith(("|", "#", "!"))),
            "",
        )
        lines.append(
            f"**[{title.removeprefix('# ')}]({path.name})**  \n{rewrite_links(first, f'benchmarks/{path.name}')}\n"
        )
    return "\n".join(lines)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add a page for each of these files."""
    pages = {"benchmarks/README.md": write_benchmark_index()}
    for path in list_benchmarks():
        origin = f"benchmarks/{path.name}"
        text = rewrite_links(path.read_text(encoding="utf-8"), origin)
        script = path.with_suffix(".py")
        if script.exists():
            text += f"\n[The script](../source/benchmarks/{script.name}.md)\n"
        pages[origin] = text
    for script in sorted((ROOT / "benchmarks").glob("*.py")):
        pages[f"source/benchmarks/{script.name}.md"] = write_source_page(
            f"benchmarks/{script.name}"
        )
    for name, place in PROJECT.items():
        if (ROOT / name).exists():
            pages[place] = rewrite_links(
                (ROOT / name).read_text(encoding="utf-8"), name
            )
    written = [*sorted((ROOT / "docs").rglob("*.md")), *list_benchmarks()]
    for path in list_linked(
        [*written, *(ROOT / name for name in PROJECT if (ROOT / name).exists())]
    ):
        if path not in PROJECT and path != "README.md":
            pages.setdefault(place_of(path), write_source_page(path))
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(
    markdown: str, *, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Rewrite the links of pages that are files under docs/, and set their weight in the search."""
    folder = page.file.src_uri.rpartition("/")[0]
    page.meta.setdefault("search", {"boost": SEARCH_BOOSTS.get(folder, 1.0)})
    generated = page.file.generated_by is not None
    return (
        markdown
        if generated
        else rewrite_links(markdown, f"docs/{page.file.src_uri}")
    )


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the sections of the navigation that list a folder: decisions and benchmarks."""
    decisions = re.findall(
        r"\]\(([\w-]+\.md)\)",
        (ROOT / "docs/decisions/README.md").read_text(encoding="utf-8"),
    )
    sections = {
        "decisions/README.md": [f"decisions/{name}" for name in decisions],
        "benchmarks/README.md": [
            f"benchmarks/{path.name}" for path in list_benchmarks()
        ],
    }
    config.nav = _complete(config.nav, sections)
    return config


def _complete(entries: list, sections: dict[str, list[str]]) -> list:
    """The navigation with each section's page followed by the pages of its folder."""
    completed = []
    for entry in entries:
        if isinstance(entry, dict):
            [(title, inner)] = entry.items()
            if isinstance(inner, list):
                completed.append({title: _complete(inner, sections)})
            elif inner in sections:
                completed.append({title: [inner, *sections[inner]]})
            elif inner not in LATER or (ROOT / "docs" / inner).exists():
                completed.append(entry)
        else:
            completed.append(entry)
    return completed
