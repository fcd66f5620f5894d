"""The references of the site, made from the code: Python from docstrings, the command line from its parsers."""

import ast
import importlib
import inspect
import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from vggkit.cli.commands import VERBS
from vggkit.cli.options import DescribedArgument, describe_arguments

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "vggkit"
PYTHON_PAGES = {
    "models": ("Networks", ("models",)),
    "weights": ("Classifiers and weights", ("classifier", "weights")),
    "images": ("Images", ("images", "data_checks", "workflows.check")),
    "training": (
        "Training",
        (
            "training",
            "reports",
            *(
                f"workflows.{name}"
                for name in ("fit_and_record", "run_config", "train", "compare")
            ),
        ),
    ),
    "evaluation": ("Evaluation", ("evaluation",)),
    "inference": (
        "Inference",
        (
            "inference",
            "engines",
            "benchmarking",
            *(f"workflows.{name}" for name in ("predict", "search", "bench")),
        ),
    ),
    "inside": (
        "Looking inside",
        (
            "explanations",
            "features",
            *(
                f"workflows.{name}"
                for name in ("explain", "filters", "style", "distance")
            ),
        ),
    ),
    "shipping": (
        "Compression, export and serving",
        (
            "compression",
            "exporting",
            "serving",
            "workflows.compress",
            "workflows.export",
        ),
    ),
}
"""For each page its title and the modules whose public names it describes; `other.md` has the rest."""


def list_public_names() -> dict[str, str]:
    """Each public name and where it is defined, such as `VGG`: `vggkit.models.vgg.VGG`."""
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    return {
        alias.asname or alias.name: f"vggkit.{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def find_python_page(place: str) -> str:
    """The page that describes a public name that is defined there; the longest prefix decides."""
    module = place.removeprefix("vggkit.")
    found = [
        (len(prefix), page)
        for page, (_, prefixes) in PYTHON_PAGES.items()
        for prefix in prefixes
        if module == prefix or module.startswith(f"{prefix}.")
    ]
    return max(found)[1] if found else "other"


def write_python_pages() -> dict[str, str]:
    """A page of `mkdocstrings` directives for each group of public names."""
    groups: dict[str, list[tuple[str, str]]] = {
        name: [] for name in (*PYTHON_PAGES, "other")
    }
    for name, place in list_public_names().items():
        groups[find_python_page(place)].append((name, place))
    pages = {}
    index = [
        "# Python",
        "",
        "Every public name of `import vggkit as vk`, from its docstring.",
        "",
    ]
    for page, names in groups.items():
        title = (
            PYTHON_PAGES[page][0]
            if page in PYTHON_PAGES
            else "Errors and other names"
        )
        lines = [f"# {title}", ""]
        for name, place in sorted(
            names, key=lambda each: (each[0][0].isupper(), each[0].lower())
        ):
            lines += [f"## vk.{name} {{ #vk.{name} }}", "", f"::: {place}", ""]
        pages[f"reference/python/{page}.md"] = "\n".join(lines)
        links = ", ".join(
            f"[`{name}`]({page}.md#vk.{name})"
            for name, _ in sorted(names, key=lambda e: e[0].lower())
        )
        index += [f"**[{title}]({page}.md)**: {links}", ""]
    return {"reference/python/README.md": "\n".join(index), **pages}


def name_kind(kind: Any) -> str:
    """What is typed for a value of that type: `PATH`, `INT`, `{a,b}`, `[INT ...]`; nothing for a flag."""
    kinds = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(
            filter(
                None, (name_kind(each) for each in kinds if each is not type(None))
            )
        )
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, kinds)) + "}"
    if get_origin(kind) in (tuple, list):
        inner = [name_kind(each) for each in kinds if each is not ...]
        return (
            f"{inner[0]} ..."
            if ... in kinds or len(inner) == 1
            else " ".join(inner)
        )
    return {bool: "", str: "TEXT"}.get(
        kind, getattr(kind, "__name__", str(kind)).upper()
    )


def describe_argument(argument: DescribedArgument) -> tuple[str, str]:
    """The spelling and the text of an argument or option, for a table."""
    text = re.sub(r"([|<>*_])", r"\\\1", argument.text)
    default = argument.default
    if default is not inspect.Parameter.empty and default not in (
        None,
        False,
        "",
        (),
    ):
        shown = (
            default
            if not isinstance(default, tuple)
            else " ".join(map(str, default))
        )
        text += f" Default: `{shown}`." if "efault:" not in text else ""
    if not argument.name.startswith("--"):
        more = get_origin(argument.kind) is tuple
        name = f"{argument.name} ..." if more else argument.name
        return (
            f"`{name}`" if default is inspect.Parameter.empty else f"`[{name}]`",
            text,
        )
    value = name_kind(argument.kind)
    return f"`{argument.name}`" + (f" `{value}`" if value else ""), text


def write_verb(verb: str, module: str) -> list[str]:
    """The section of a verb: what its function says, its arguments and its options."""
    command = getattr(importlib.import_module(f"vggkit.cli.{module}"), verb)
    text = inspect.cleandoc(command.__doc__ or "").split("\nArgs:")[0]
    rows = [describe_argument(each) for each in describe_arguments(command)]
    placed = [left.strip("`") for left, _ in rows if not left.startswith("`--")]
    return [
        f"## vggkit {verb} {{ #{verb} }}",
        "",
        f"```text\n{' '.join(['vggkit', verb, *placed, '[OPTIONS]'])}\n```",
        "",
        text,
        "",
        "| argument or option | description |",
        "|---|---|",
        *(f"| {left} | {right} |" for left, right in rows),
        "",
    ]


def write_cli_pages() -> dict[str, str]:
    """A page for each group of verbs, and the list of all."""
    index = [
        "# Command line",
        "",
        "`vggkit VERB --help` prints the same. Every verb is also a function or method of the same name with "
        "the same options in [Python](../python/README.md).",
        "",
    ]
    pages = {}
    for group, verbs in VERBS.items():
        page = group.lower().replace(" ", "-")
        index += [f"**[{group}]({page}.md)**", "", "| | |", "|---|---|"]
        index += [
            f"| [`vggkit {name}`]({page}.md#{name}) | {verb.summary} |"
            for name, verb in verbs.items()
        ] + [""]
        lines = [f"# {group}", ""]
        for name, verb in verbs.items():
            lines += write_verb(name, verb.module)
        pages[f"reference/cli/{page}.md"] = "\n".join(lines)
    return {"reference/cli/README.md": "\n".join(index), **pages}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages to the site."""
    for place, text in {**write_python_pages(), **write_cli_pages()}.items():
        files.append(File.generated(config, place, content=text))
    return files
