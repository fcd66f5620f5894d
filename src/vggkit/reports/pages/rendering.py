"""Pages that are one file: a template of this folder and its values become HTML that loads nothing.

Every value is text to the template, never markup. `layout.html` forbids the browser scripts and addresses, so that
a page could not reach out even if something slipped through.
"""

from collections.abc import Mapping
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from vggkit.escaping import is_unseen


def render_page(template: str, values: Mapping[str, object]) -> str:
    """The page that a template makes of the values."""
    return _open_templates().get_template(template).render(values)


def thousands(count: int) -> str:
    """`1,281,167`."""
    return f"{count:,}"


def percent(share: float) -> str:
    """`98.4 %`; what is not the whole is never rounded up to it, nor what there is down to nothing."""
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return "100 %" if share == 1 else f"{share:.1%}".replace("%", " %")


def say_count(count: int, one: str, many: str | None = None) -> str:
    """`1 class`, `1,000 classes`; the plural is made with an s where it is not given."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _show_unseen(value: object) -> object:
    r"""Text with each unseen character spelled out; what the templates made of such text is left alone.

    `cat\u202egpj.exe` would be read as `catexe.jpg`, and no page can hold bytes of a name that are no text.
    """
    if type(value) is not str or value.isprintable():
        return value
    return "".join(f"\\u{ord(each):04x}" if each not in "\t\n" and is_unseen(each) else each for each in value)


@cache
def _open_templates() -> Environment:
    templates = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=True,
        finalize=_show_unseen,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"thousands": thousands, "percent": percent, "say_count": say_count}
    return templates
