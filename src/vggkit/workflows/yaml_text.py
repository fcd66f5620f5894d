"""YAML with a comment on each entry: written to be edited, and read strictly."""

import re
import textwrap
from collections.abc import Iterator
from typing import Any, Final

import yaml

LINE_WIDTH: Final = 100


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; raises ValueError with the line of the error."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        raise ValueError(_describe(problem)) from problem


def write_entry(name: str, value: Any, text: str, *, indent: str = "") -> Iterator[str]:
    """The lines of a comment and of the entry below it."""
    yield from write_comment(text, indent=indent)
    dumped = yaml.dump(
        {name: value},
        Dumper=_Dumper,
        allow_unicode=True,
        sort_keys=False,
        default_flow_style=None if value and isinstance(value, (dict, list)) else False,
        width=LINE_WIDTH,
    )
    yield from (indent + line if line else line for line in dumped.rstrip("\n").split("\n"))


def write_comment(text: str, *, indent: str = "") -> Iterator[str]:
    """The lines of a comment."""
    for line in textwrap.wrap(text, LINE_WIDTH - len(indent), break_on_hyphens=False):
        yield f"{indent}# {line}"


class _Loader(yaml.SafeLoader):
    """YAML in which 5e-4 is a number and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, (key, _) in enumerate(node.value):
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in keys[:number]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Writes values that the loader above reads as the same."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def write_text(self, text: str) -> yaml.ScalarNode:
        """Line ends of other alphabets are escaped; PyYAML writes them as they are and reads them as spaces."""
        style = '"' if any(mark in text for mark in "\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.write_text)

# YAML 1.1 takes 5e-4 for text.
_NUMBER: Final = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def _describe(problem: Exception) -> str:
    mark = getattr(problem, "problem_mark", None)
    text = str(getattr(problem, "problem", None) or problem)
    return f"line {mark.line + 1}: {text}" if mark is not None else text
