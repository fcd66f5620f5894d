"""Examples in docstrings as blocks of code: Markdown would show `>>>` as a quotation of a quotation."""

import re

import griffe

EXAMPLE = re.compile(r"^( *)>>> .*\n?(?:^\1(?! *$).+\n?)*", flags=re.M)


class DoctestBlocks(griffe.Extension):
    """Puts each example, up to the next empty line, into a fenced block."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called for each function, class and module."""
        docstring = obj.docstring
        if docstring is not None and ">>> " in docstring.value:
            docstring.value = EXAMPLE.sub(fence, docstring.value)


def fence(found: re.Match[str]) -> str:
    """The example between two fences of its own indent."""
    indent, text = found.group(1), found.group().rstrip("\n")
    return f"{indent}```pycon\n{text}\n{indent}```\n"
