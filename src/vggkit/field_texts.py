"""The texts under the fields of dataclasses: help of the command line, comments in YAML, and `help` in Python."""

import ast
import inspect
import textwrap
from collections.abc import Mapping


def read_field_texts(kind: type) -> Mapping[str, str]:
    """The text under each field of a dataclass, on one line; empty where Python keeps no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return {}
    definition = tree.body[0]
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for above, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value)
            texts[above.target.id] = " ".join(str(text).split())
    return texts


class FieldDocs:
    """The docstring of a dataclass with the texts under its fields, read from the source when it is accessed."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __get__(self, _: object, kind: type) -> str:
        texts = {name: text for each in reversed(kind.__mro__) for name, text in read_field_texts(each).items()}
        if not texts:
            return self._text
        lines = [
            textwrap.fill(f"{name}: {text}", 100, initial_indent=" " * 4, subsequent_indent=" " * 8)
            for name, text in texts.items()
        ]
        return "\n".join([inspect.cleandoc(self._text), "", "Attributes:", *lines, ""])


def document_fields(kind: type) -> None:
    """Let `help` of a dataclass show the texts under its fields."""
    text = vars(kind).get("__doc__")
    if isinstance(text, str):
        kind.__doc__ = FieldDocs(text)  # type: ignore[assignment]
